// Rotary embedding of queries or keys by given angles; rope/rope.hpp says where angles come from.
//
//   (x, y)  ->  (x cos - y sin,  y cos + x sin)        for each pair of channels of a head
//
//   x, out    [batch, seq, heads, head_dim]   out may be x
//   cos, sin  [batch or 1, seq, r/2]          accumulate_t<T>, the attention factor included
//
// Channels [offset, offset + r) turn, the others pass through. RopeLayout names the pairs.
// `inverse` turns by the negative angle: the gradient, and for interleaved_to_half also the way
// back to the layout of the input. 16-bit elements are turned in fp32 and rounded once.
//
// Source: Su et al. 2021, arXiv:2104.09864.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

template <WritableTensorLike<4> Out, TensorLike<4> X, TensorLike<3> Cos, TensorLike<3> Sin>
requires(SameElements<Out, X>&& SameElements<Cos, Sin>&& std::same_as<
         element_t<Cos>, accumulate_t<element_t<X>>>) void rope(Out&& out, const X& x,
                                                                const Cos& cos, const Sin& sin,
                                                                const RopeOptions& options = {}) {
  const auto o = as_view(out);
  const auto xv = as_const_view(x);
  const auto c = as_const_view(cos);
  const auto s = as_const_view(sin);
  const index_t batch = xv.extent(0), seq = xv.extent(1), dim = xv.extent(3), pairs = c.extent(2);
  detail::check_shape("rope", "out", o.shape(), xv.shape(), "the shape of x");
  detail::check_shape("rope", "cos", c.shape(), Shape{c.extent(0) == 1 ? 1 : batch, seq, pairs},
                      "[batch or 1, seq, rotary_dim / 2]");
  detail::check_shape("rope", "sin", s.shape(), c.shape(), "the shape of cos");
  if (options.offset < 0 || options.offset > dim - 2 * pairs)
    throw ShapeError(detail::text("rope: offset is ", options.offset, ", expected 0 to ",
                                  dim - 2 * pairs, " = head_dim - rotary_dim of ", dim, " - ",
                                  2 * pairs));
  detail::check_last_axis("rope", "x", xv);
  detail::check_last_axis("rope", "out", o);
  detail::check_last_axis("rope", "cos", c);
  detail::check_last_axis("rope", "sin", s);
  BackendTraits<backend_t<Out>>::rope(o.backend(), o, xv, c, s, options);
}

/// In place.
template <WritableTensorLike<4> X, TensorLike<3> Cos, TensorLike<3> Sin>
void rope(X&& x, const Cos& cos, const Sin& sin, const RopeOptions& options = {}) {
  rope(x, x, cos, sin, options);
}

}  // namespace rapt

#include "rapt/cpu/rope.hpp"
