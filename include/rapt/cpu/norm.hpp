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

/// f(i, a, x, dy, vector) for the vectors of a row: a = dy * weight, or dy where there is none.
template <class A, class T, class F>
void by_weighted_vectors(index_t n, const T* dy, const T* x, const A* weight, F f) {
  if (weight != nullptr)
    by_vectors<A>(n, [&](index_t i, auto v) {
      const Vec<A> g = v.load(dy + i);
      f(i, g * v.load(weight + i), v.load(x + i), g, v);
    });
  else
    by_vectors<A>(n, [&](index_t i, auto v) {
      const Vec<A> g = v.load(dy + i);
      f(i, g, v.load(x + i), g, v);
    });
}

/// dx of one row, which may be dy or x; dw (or null) is added to.
template <class A, class T>
void rms_norm_gradient_row(T* dx, A* dw, const T* dy, const T* x, index_t n, const A* weight,
                           A eps) {
  using V = Vec<A>;
  V squares = V::zero(), products = V::zero();
  by_weighted_vectors(n, dy, x, weight, [&](index_t, V a, V u, V, auto) {
    squares = fma(u, u, squares);
    products = fma(a, u, products);
  });
  const A count = static_cast<A>(n);
  const A r = A{1} / std::sqrt(sum(squares) / count + eps);
  const V scale = V::broadcast(r), share = V::broadcast(-r * r * r * (sum(products) / count));
  by_weighted_vectors(n, dy, x, weight, [&](index_t i, V a, V u, V g, auto v) {
    v.store(dx + i, fma(u, share, a * scale));
    if (dw != nullptr) v.store(dw + i, fma(g, u * scale, v.load(dw + i)));
  });
}

template <class A, class T>
void layer_norm_gradient_row(T* dx, A* dw, A* db, const T* dy, const T* x, index_t n,
                             const A* weight, A eps) {
  using V = Vec<A>;
  const A count = static_cast<A>(n);
  V total = V::zero();
  by_vectors<A>(n, [&](index_t i, auto v) { total = total + v.load(x + i); });
  const V mean = V::broadcast(sum(total) / count);
  V squares = V::zero(), products = V::zero(), gradients = V::zero();
  by_weighted_vectors(n, dy, x, weight, [&](index_t, V a, V u, V, auto v) {
    const V difference = v.only(u - mean);
    squares = fma(difference, difference, squares);
    products = fma(a, difference, products);
    gradients = gradients + a;
  });
  const A r = A{1} / std::sqrt(sum(squares) / count + eps);
  const V scale = V::broadcast(r), mean_a = V::broadcast(sum(gradients) / count);
  const V share = V::broadcast(-r * r * (sum(products) / count));
  by_weighted_vectors(n, dy, x, weight, [&](index_t i, V a, V u, V g, auto v) {
    const V difference = u - mean;
    v.store(dx + i, fma(difference, share, a - mean_a) * scale);
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
    cpu::rms_norm_gradient_row(cpu::row_at(dx, i), dw, cpu::row_at(dy, i), cpu::row_at(x, i), n, w,
                               static_cast<A>(eps));
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
    cpu::layer_norm_gradient_row(cpu::row_at(dx, i), dw, db, cpu::row_at(dy, i), cpu::row_at(x, i),
                                 n, w, static_cast<A>(eps));
  });
}

}  // namespace rapt
