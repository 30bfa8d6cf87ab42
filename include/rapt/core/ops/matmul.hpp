// Matrix product, the operation behind every projection.
//
//   out[i, j] = sum_l a[i, l] b[l, j]  (+ bias[j])  (+ out[i, j] where options.accumulate)
//
//   out [m, n]   a [m, k]   b [k, n]   bias [n]
//
// a and b may be transposed or sliced views, as long as one of their two axes is contiguous; out is
// contiguous along its last axis, and aliases no input. A Linear layer with weight w [n, k] is
// matmul(y, x, w.transpose()). m, n or k may be 0.
//
// Sums run in accumulate_t<T> (fp32; double for double) and are rounded once. 16-bit weights are
// widened tile by tile, never as a whole. The result does not depend on the number of threads.
// Products of fp32 and half in matrix registers (cpu/float_parts.hpp) are as exact as
// multiply-adds, but for fp32 numbers below 2^-103, whose last bits count as 0, and for an
// infinity, which gives NaN.
//
// out may hold accumulate_t<T> where a and b hold T: the gradient of a 16-bit weight, dw += dy^T x,
// is matmul(dw, dy.transpose(), x, {.accumulate = true}) and is rounded nowhere.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

template <WritableTensorLike<2> Out, TensorLike<2> A, TensorLike<2> B>
requires HoldsSumsOf<Out, A, B>
void matmul(Out&& out, const A& a, const B& b,
            const MatmulOptions<element_t<A>, backend_t<A>>& options = {}) {
  auto o = as_view(out);
  const auto av = as_const_view(a);
  const auto bv = as_const_view(b);
  const index_t m = av.extent(0), k = av.extent(1), n = bv.extent(1);
  detail::check_shape("matmul", "b", bv.shape(), Shape{k, n}, "[k, n]");
  detail::check_shape("matmul", "out", o.shape(), Shape{m, n}, "[m, n]");
  detail::check_vector("matmul", "bias", options.bias, n, "[n]");
  detail::check_last_axis("matmul", "out", o);
  detail::check_one_contiguous_axis("matmul", "a", av);
  detail::check_one_contiguous_axis("matmul", "b", bv);
  BackendTraits<backend_t<Out>>::matmul(o.backend(), o, av, bv, options);
}

}  // namespace rapt

#include "rapt/cpu/matmul.hpp"
