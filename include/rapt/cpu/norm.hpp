// rms_norm and layer_norm on the CPU (core/backend.hpp); one row at a time, statistics and the
// product with the weight in accumulate_t<T>, rounded once.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace detail {

/// f(y, x) for every row: x in accumulate_t<T>, y a row of accumulate_t<T> to be filled, which may
/// be x. Rows of 16-bit types pass through scratch.
template <class T, std::size_t Rank, class F>
void normalize_rows(TensorView<T, Rank> y, TensorView<const T, Rank> x, F f) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  if (n == 0) return;
  for_row_ranges(row_count(x), n, [&](index_t begin, index_t end) {
    if constexpr (std::is_same_v<A, T>) {
      for (index_t i = begin; i < end; ++i) f(row_at(y, i), row_at(x, i));
    } else {
      Scratch<Cpu> scratch;
      A* buffer = scratch.template tensor<A>(Shape{n}).data();
      for (index_t i = begin; i < end; ++i) {
        widen_row(buffer, row_at(x, i), n);
        f(buffer, buffer);
        narrow_row(row_at(y, i), buffer, n);
      }
    }
  });
}

/// weight [n] in accumulate_t<T>, plus `offset`; null where it is absent.
template <class T, class A = accumulate_t<T>>
const A* widened_vector(Scratch<Cpu>& scratch, TensorView<const T, 1> vector, A offset = 0) {
  if (!vector) return nullptr;
  const index_t n = vector.extent(0);
  A* out = scratch.template tensor<A>(Shape{n}).data();
  for (index_t i = 0; i < n; ++i)
    out[i] = static_cast<A>(vector.data()[i * vector.stride(0)]) + offset;
  return out;
}

}  // namespace detail

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::rms_norm(Cpu, TensorView<T, Rank> y, TensorView<const T, Rank> x,
                                  TensorView<const T, 1> weight, double eps, bool plus_one) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  Scratch<Cpu> scratch;
  const A* w = detail::widened_vector<T>(scratch, weight, plus_one ? A{1} : A{0});
  detail::normalize_rows(y, x, [=](A* out, const A* in) {
    const A mean_square = detail::row_sum_of_squares(in, n) / static_cast<A>(n);
    const A scale = A{1} / std::sqrt(mean_square + static_cast<A>(eps));
    if (w != nullptr)
      for (index_t i = 0; i < n; ++i) out[i] = in[i] * scale * w[i];
    else
      for (index_t i = 0; i < n; ++i) out[i] = in[i] * scale;
  });
}

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::layer_norm(Cpu, TensorView<T, Rank> y, TensorView<const T, Rank> x,
                                    TensorView<const T, 1> weight, TensorView<const T, 1> bias,
                                    double eps) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  Scratch<Cpu> scratch;
  const A* w = detail::widened_vector<T>(scratch, weight);
  const A* b = detail::widened_vector<T>(scratch, bias);
  detail::normalize_rows(y, x, [=](A* out, const A* in) {
    const A mean = detail::row_sum(in, n) / static_cast<A>(n);
    const A variance = detail::row_sum_of_squares(in, n, mean) / static_cast<A>(n);
    const A scale = A{1} / std::sqrt(variance + static_cast<A>(eps));
    for (index_t i = 0; i < n; ++i) out[i] = (in[i] - mean) * scale;
    if (w != nullptr)
      for (index_t i = 0; i < n; ++i) out[i] *= w[i];
    if (b != nullptr)
      for (index_t i = 0; i < n; ++i) out[i] += b[i];
  });
}

}  // namespace rapt
