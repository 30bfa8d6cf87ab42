// rms_norm and layer_norm on the CPU (core/backend.hpp): one row at a time, statistics and the
// product with the weight in accumulate_t<T>, rounded once.
//
// The gradients read a row of x and dy twice (layer_norm three times), from L1 after the first:
// once for the sums, once to write dx and to add to the sums of the weight (rows.hpp:
// sum_over_rows).
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

// ---- gradients; the symbols are those of core/ops/norm.hpp ----

/// dx of one row, which may be dy or x; dw (or null) is added to. `a` is dy * weight.
template <bool kWeight, class A, class T>
void rms_norm_gradient_row(T* dx, A* dw, const T* dy, const T* x, index_t n, const A* weight,
                           A eps) {
  using V = Vec<A>;
  const auto weighted = [=](index_t i, V g, auto v) {
    if constexpr (kWeight) return g * v.load(weight + i);
    return g;
  };
  const auto [squares, products] = fold_vectors<2, A>(n, [&](index_t i, auto v, V(&sums)[2]) {
    const V u = v.load(x + i), a = weighted(i, v.load(dy + i), v);
    sums[0] = fma(u, u, sums[0]);
    sums[1] = fma(a, u, sums[1]);
  });
  const A count = static_cast<A>(n);
  const A r = A{1} / std::sqrt(squares / count + eps);
  // Factor by factor: r^3 leaves the range of float where x is large.
  const V scale = V::broadcast(r), share = V::broadcast(-(products / count * r) * r * r);
  by_vectors<A>(n, [&](index_t i, auto v) {
    const V u = v.load(x + i), g = v.load(dy + i), a = weighted(i, g, v);
    v.store(dx + i, fma(u, share, a * scale));
    if (dw != nullptr) v.store(dw + i, fma(g, u * scale, v.load(dw + i)));
  });
}

template <bool kWeight, class A, class T>
void layer_norm_gradient_row(T* dx, A* dw, A* db, const T* dy, const T* x, index_t n,
                             const A* weight, A eps) {
  using V = Vec<A>;
  const auto weighted = [=](index_t i, V g, auto v) {
    if constexpr (kWeight) return g * v.load(weight + i);
    return g;
  };
  const A count = static_cast<A>(n);
  const auto [total] = fold_vectors<1, A>(
      n, [&](index_t i, auto v, V(&sums)[1]) { sums[0] = sums[0] + v.load(x + i); });
  const V mean = V::broadcast(total / count);
  const auto [squares, products, gradients] =
      fold_vectors<3, A>(n, [&](index_t i, auto v, V(&sums)[3]) {
        const V difference = v.only(v.load(x + i) - mean), a = weighted(i, v.load(dy + i), v);
        sums[0] = fma(difference, difference, sums[0]);
        sums[1] = fma(a, difference, sums[1]);
        sums[2] = sums[2] + a;
      });
  const A r = A{1} / std::sqrt(squares / count + eps);
  const V scale = V::broadcast(r), mean_a = V::broadcast(gradients / count);
  const V share = V::broadcast(-(products / count * r) * r);
  by_vectors<A>(n, [&](index_t i, auto v) {
    const V difference = v.load(x + i) - mean, g = v.load(dy + i);
    v.store(dx + i, fma(difference, share, weighted(i, g, v) - mean_a) * scale);
    if (dw != nullptr) v.store(dw + i, fma(g, difference * scale, v.load(dw + i)));
    if (db != nullptr) v.store(db + i, v.load(db + i) + g);
  });
}

/// f(row, sums) for every row, where sums are those of its block, null where none are wanted.
template <class A, std::size_t kSums, class F>
void gradient_rows(A* const (&out)[kSums], index_t rows, index_t n, F f) {
  if (n == 0) return;
  if (std::all_of(std::begin(out), std::end(out), [](A* to) { return to == nullptr; }))
    return for_row_ranges(rows, n, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) f(i, static_cast<A*>(nullptr));
    });
  sum_over_rows(out, rows, n, true, [&](index_t begin, index_t end, A* sums) {
    for (index_t i = begin; i < end; ++i) f(i, sums);
  });
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

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::rms_norm_backward(Cpu, TensorView<T, Rank> dx,
                                           TensorView<accumulate_t<T>, 1> dweight,
                                           TensorView<const T, Rank> dy,
                                           TensorView<const T, Rank> x,
                                           TensorView<const T, 1> weight, double eps,
                                           bool plus_one) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  Scratch<Cpu> scratch;
  const A* w = cpu::widened_vector<T>(scratch, weight, plus_one ? A{1} : A{0});
  A* const sums_of[] = {dweight.data()};
  cpu::gradient_rows(sums_of, cpu::row_count(x), n, [=](index_t i, A* dw) {
    const auto row = w != nullptr ? cpu::rms_norm_gradient_row<true, A, T>
                                  : cpu::rms_norm_gradient_row<false, A, T>;
    row(cpu::row_at(dx, i), dw, cpu::row_at(dy, i), cpu::row_at(x, i), n, w, static_cast<A>(eps));
  });
}

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::layer_norm_backward(Cpu, TensorView<T, Rank> dx,
                                             TensorView<accumulate_t<T>, 1> dweight,
                                             TensorView<accumulate_t<T>, 1> dbias,
                                             TensorView<const T, Rank> dy,
                                             TensorView<const T, Rank> x,
                                             TensorView<const T, 1> weight, double eps) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  Scratch<Cpu> scratch;
  const A* w = cpu::widened_vector<T>(scratch, weight);
  A* const sums_of[] = {dweight.data(), dbias.data()};
  cpu::gradient_rows(sums_of, cpu::row_count(x), n, [=](index_t i, A* sums) {
    A* dw = sums == nullptr || !dweight ? nullptr : sums;
    A* db = sums == nullptr || !dbias ? nullptr : sums + n;
    const auto row = w != nullptr ? cpu::layer_norm_gradient_row<true, A, T>
                                  : cpu::layer_norm_gradient_row<false, A, T>;
    row(cpu::row_at(dx, i), dw, db, cpu::row_at(dy, i), cpu::row_at(x, i), n, w,
        static_cast<A>(eps));
  });
}

}  // namespace rapt
