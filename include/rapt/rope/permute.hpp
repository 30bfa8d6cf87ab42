// The order of the rows of a query or key projection, for the two pairings of RoPE.
//
// A projection whose heads are turned as halves gives the same attention turned as neighbours, once
// the rows of every head are reordered:
//
//   interleaved row  h d + 2 i + half   =   half-split row  h d + half d/2 + i      0 <= i < d/2
//
// GGUF files of arch `llama` hold W_q and W_k (and their biases) in interleaved order, because the
// converter permuted them; Hugging Face's safetensors hold half-split rows. Whole rows move, so
// rows of quantized blocks can be moved as bytes. W_v and W_o are never permuted.
#pragma once

#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

/// Where row `row` of the half-split order lies in the interleaved order.
constexpr index_t interleaved_rope_row(index_t row, index_t head_dim) {
  const index_t first = row - row % head_dim, at = row % head_dim, half = head_dim / 2;
  return first + (at < half ? 2 * at : 2 * (at - half) + 1);
}
/// Where row `row` of the interleaved order lies in the half-split order.
constexpr index_t half_split_rope_row(index_t row, index_t head_dim) {
  const index_t first = row - row % head_dim, at = row % head_dim;
  return first + at / 2 + (at % 2 == 0 ? 0 : head_dim / 2);
}

namespace detail {

template <class T, class Row>
void permute_rope_rows(std::string_view operation, TensorView<T, 2> out, TensorView<const T, 2> w,
                       index_t head_dim, Row source) {
  check_shape(operation, "out", out.shape(), w.shape(), "the shape of w");
  if (head_dim < 2 || head_dim % 2 != 0)
    throw ShapeError(
        text(operation, ": head_dim is ", head_dim, ", expected an even number of at least 2"));
  if (w.extent(0) % head_dim != 0)
    throw ShapeError(text(operation, ": w has ", w.extent(0), " rows, expected a multiple of ",
                          head_dim, " = head_dim"));
  for (index_t i = 0; i < w.extent(0); ++i)
    for (index_t j = 0; j < w.extent(1); ++j) out(i, j) = w(source(i, head_dim), j);
}

}  // namespace detail

/// out [heads * head_dim, n]: the half-split rows of w in interleaved order. Any trivial element:
/// bytes of quantized rows, too. out may not alias w; a bias is a matrix of one column.
template <WritableTensorLike<2> Out, TensorLike<2> W>
void to_interleaved_rows(Out&& out, const W& w, index_t head_dim) {
  detail::permute_rope_rows("to_interleaved_rows", as_view(out), as_const_view(w), head_dim,
                            half_split_rope_row);
}
/// out [heads * head_dim, n]: the interleaved rows of w (GGUF llama) in half-split order.
template <WritableTensorLike<2> Out, TensorLike<2> W>
void to_half_split_rows(Out&& out, const W& w, index_t head_dim) {
  detail::permute_rope_rows("to_half_split_rows", as_view(out), as_const_view(w), head_dim,
                            interleaved_rope_row);
}

}  // namespace rapt
