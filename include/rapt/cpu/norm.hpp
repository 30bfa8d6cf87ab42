// rms_norm and layer_norm on the CPU (core/backend.hpp): one row at a time, statistics and the
// product with the weight in accumulate_t<T>, rounded once.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

/// f(y, x) for every row: x in accumulate_t<T>, y a row of accumulate_t<T> to be filled, which may
/// be x.
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

template <class A>
void rms_norm_row(A* y, const A* x, index_t n, const A* weight, A eps) {
  using V = Vec<A>;
  const A mean_square = row_sum_of_squares(x, n) / static_cast<A>(n);
  const V scale = V::broadcast(A{1} / std::sqrt(mean_square + eps));
  if (weight != nullptr)
    map_row(
        y, n, [=](V v, V w) { return v * scale * w; }, x, weight);
  else
    map_row(
        y, n, [=](V v) { return v * scale; }, x);
}

template <class A>
void layer_norm_row(A* y, const A* x, index_t n, const A* weight, const A* bias, A eps) {
  using V = Vec<A>;
  const V mean = V::broadcast(row_sum(x, n) / static_cast<A>(n));
  map_row(
      y, n, [=](V v) { return v - mean; }, x);
  const A variance = row_sum_of_squares(y, n) / static_cast<A>(n);
  const V scale = V::broadcast(A{1} / std::sqrt(variance + eps));
  if (weight != nullptr)
    map_row(
        y, n, [=](V v, V w) { return v * scale * w; }, y, weight);
  else
    map_row(
        y, n, [=](V v) { return v * scale; }, y);
  if (bias != nullptr)
    map_row(
        y, n, [](V v, V b) { return v + b; }, y, bias);
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::rms_norm(Cpu, TensorView<T, Rank> y, TensorView<const T, Rank> x,
                                  TensorView<const T, 1> weight, double eps, bool plus_one) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  Scratch<Cpu> scratch;
  const A* w = cpu::widened_vector<T>(scratch, weight, plus_one ? A{1} : A{0});
  cpu::normalize_rows(
      y, x, [=](A* to, const A* from) { cpu::rms_norm_row(to, from, n, w, static_cast<A>(eps)); });
}

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::layer_norm(Cpu, TensorView<T, Rank> y, TensorView<const T, Rank> x,
                                    TensorView<const T, 1> weight, TensorView<const T, 1> bias,
                                    double eps) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  Scratch<Cpu> scratch;
  const A* w = cpu::widened_vector<T>(scratch, weight);
  const A* b = cpu::widened_vector<T>(scratch, bias);
  cpu::normalize_rows(y, x, [=](A* to, const A* from) {
    cpu::layer_norm_row(to, from, n, w, b, static_cast<A>(eps));
  });
}

}  // namespace rapt
