// Products with a matrix of quantized blocks, and its rows by id.
//
//   quantized_matmul      out[i, j] = sum_l x[i, l] w[j, l]  (+ bias[j])  (+ out[i, j])
//   quantized_embedding   out[b, s, :] = scale * w[ids[b, s], :]
//
//   x [m, columns]   w [rows, columns]   out [m, rows]   bias [rows]   ids [batch, seq], int32
//
// With BlockInput::int8 each 32 columns of a row of x are rounded to 8 bits once per call (amax /
// 127 is their step), and the products are sums of integers, exact within a block: an error of
// about 0.4 % of the largest |x| of the block, times |w|, in each term. With BlockInput::exact x
// stays as it is and w is the value that the file's blocks stand for: the slow form, to compare
// with. A row of x with a NaN or an infinity gives NaN. The result depends neither on the number of
// threads nor on m. docs/quantization.md has the equations.
#pragma once

#include "rapt/core/ops/checks.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/core/quantized_matrix.hpp"

namespace rapt {

enum class BlockInput : std::uint8_t { int8, exact };

/// A backend that multiplies with quantized blocks as they are. On others a loader dequantizes.
template <class B, class T = float>
concept MultipliesBlocks = requires(B b, TensorView<T, 2, B> out, TensorView<const T, 2, B> x,
                                    TensorView<T, 3, B> rows,
                                    TensorView<const std::int32_t, 2, B> ids,
                                    const QuantizedMatrix& w, MatmulOptions<T, B> options) {
  BackendTraits<B>::quantized_matmul(b, out, x, w, options, BlockInput::int8);
  BackendTraits<B>::quantized_embedding(b, rows, w, ids, accumulate_t<T>{1});
};

template <WritableTensorLike<2> Out, TensorLike<2> X>
requires SameElements<Out, X>
void quantized_matmul(Out&& out, const X& x, const QuantizedMatrix& w,
                      const MatmulOptions<element_t<Out>, backend_t<Out>>& options = {},
                      BlockInput input = BlockInput::int8) {
  const auto o = as_view(out);
  const auto xv = as_const_view(x);
  const index_t m = xv.extent(0);
  detail::check_shape("quantized_matmul", "x", xv.shape(), Shape{m, w.columns()}, "[m, columns]");
  detail::check_shape("quantized_matmul", "out", o.shape(), Shape{m, w.rows()}, "[m, rows]");
  detail::check_vector("quantized_matmul", "bias", options.bias, w.rows(), "[rows]");
  detail::check_last_axis("quantized_matmul", "out", o);
  detail::check_last_axis("quantized_matmul", "x", xv);
  BackendTraits<backend_t<Out>>::quantized_matmul(o.backend(), o, xv, w, options, input);
}

/// Throws ValueError naming an id outside the matrix; nothing is written then.
template <WritableTensorLike<3> Out, TensorLike<2> Ids>
void quantized_embedding(Out&& out, const QuantizedMatrix& w, const Ids& ids,
                         accumulate_t<element_t<Out>> scale = 1) {
  const auto o = as_view(out);
  const auto i = as_const_view(ids);
  detail::check_shape("quantized_embedding", "out", o.shape(),
                      Shape{i.extent(0), i.extent(1), w.columns()}, "[batch, seq, columns]");
  detail::check_last_axis("quantized_embedding", "out", o);
  BackendTraits<backend_t<Out>>::quantized_embedding(o.backend(), o, w, i, scale);
}

}  // namespace rapt

#include "rapt/cpu/quantized_matmul.hpp"
