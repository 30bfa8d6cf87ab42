// What the row-wise operations of the CPU share: conversion of a row to the type that arithmetic
// runs in and back, sums over a row, elementwise functions, and the split of rows over threads.
//
// Rows of float and double are read where they lie; rows of half and bfloat16 are widened one at a
// time into scratch and rounded once, on the way out.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "rapt/core/backend.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

// ---- conversion ----

/// to[i] = from[i], exactly.
template <class A, class T>
void widen_row(A* __restrict to, const T* __restrict from, index_t n) {
  if constexpr (std::is_same_v<A, T>) {
    if (n > 0) std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
  } else {
    using V = Vec<A>;
    index_t i = 0;
    for (; i + V::kLanes <= n; i += V::kLanes) V::load(from + i).store(to + i);
    if (i < n) V::load(from + i, n - i).store(to + i, n - i);
  }
}

/// to[i] = from[i], rounded to nearest even.
template <class T, class A>
void narrow_row(T* __restrict to, const A* __restrict from, index_t n) {
  if constexpr (std::is_same_v<A, T>) {
    if (n > 0) std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
  } else {
    using V = Vec<A>;
    index_t i = 0;
    for (; i + V::kLanes <= n; i += V::kLanes) V::load(from + i).store(to + i);
    if (i < n) V::load(from + i, n - i).store(to + i, n - i);
  }
}

/// A row in the type that arithmetic runs in: the row itself, or a widened copy in `buffer` [n].
template <class A, class T>
const A* arithmetic_row(const T* row, [[maybe_unused]] A* buffer, [[maybe_unused]] index_t n) {
  if constexpr (std::is_same_v<A, T>) {
    return row;
  } else {
    widen_row(buffer, row, n);
    return buffer;
  }
}

// ---- transposition ----

namespace detail {

/// to[i * to_stride + c] = line c at i, for c < lines <= kLanes and i < length: lines become
/// columns. Whole vectors are written; the lines that do not exist are 0.
template <class V, class To, class Load>
inline void transpose_lines(To* to, index_t to_stride, index_t lines, index_t length, Load load) {
  for (index_t i = 0; i < length; i += V::kLanes) {
    const index_t n = std::min<index_t>(V::kLanes, length - i);
    V block[V::kLanes];
    unrolled<V::kLanes>([&](auto c) { block[c] = c < lines ? load(c, i, n) : V::zero(); });
    V::transpose(block);
    unrolled<V::kLanes>([&](auto r) {
      if (r < n) block[r].store(to + (i + r) * to_stride);
    });
  }
}

}  // namespace detail

// ---- functions of a row ----

/// y[i] = f(x[i]...) by vectors; f takes and returns Vec<A>. The rows may be the same.
template <class A, class F, class... Rows>
void map_row(A* y, index_t n, F f, const Rows*... x) {
  using V = Vec<A>;
  index_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) f(V::load(x + i)...).store(y + i);
  if (i < n) f(V::load(x + i, n - i)...).store(y + i, n - i);
}

/// Positions [i, i + kLanes) of a row, or the fewer that are left at its end.
template <class A>
struct WholeVector {
  template <class T>
  Vec<A> load(const T* p) const {
    return Vec<A>::load(p);
  }
  template <class T>
  void store(T* p, Vec<A> v) const {
    v.store(p);
  }
  Vec<A> only(Vec<A> v) const { return v; }
};
template <class A>
struct PartialVector {
  index_t lanes;
  template <class T>
  Vec<A> load(const T* p) const {
    return Vec<A>::load(p, lanes);
  }
  template <class T>
  void store(T* p, Vec<A> v) const {
    v.store(p, lanes);
  }
  Vec<A> only(Vec<A> v) const {
    A all[Vec<A>::kLanes];
    v.store(all);
    return Vec<A>::load(all, lanes);
  }
};

/// f(i, vector) for the vectors of a row [n], which read and write rows of any element type: lanes
/// beyond the end read as 0 and are not written; `only` makes them 0 in a value.
template <class A, class F>
void by_vectors(index_t n, F f) {
  index_t i = 0;
  for (; i + Vec<A>::kLanes <= n; i += Vec<A>::kLanes) f(i, WholeVector<A>{});
  if (i < n) f(i, PartialVector<A>{n - i});
}

/// kSums sums over a row [n]: f(i, vector, sums) adds to each Vec<A> of sums what [i, i + kLanes)
/// has for it, 0 in lanes beyond the end. Four sets of sums take turns, which hides the latency of
/// an addition, and are joined in a fixed order.
template <std::size_t kSums, class A, class F>
std::array<A, kSums> fold_vectors(index_t n, F f) {
  using V = Vec<A>;
  constexpr int kSets = 4;
  V sets[kSets][kSums];
  for (auto& sums : sets)
    for (V& v : sums) v = V::zero();
  index_t i = 0;
  for (; i + kSets * V::kLanes <= n; i += kSets * V::kLanes)
    for (int k = 0; k < kSets; ++k) f(i + k * V::kLanes, WholeVector<A>{}, sets[k]);
  for (; i + V::kLanes <= n; i += V::kLanes) f(i, WholeVector<A>{}, sets[0]);
  if (i < n) f(i, PartialVector<A>{n - i}, sets[1]);
  std::array<A, kSums> out;
  for (std::size_t s = 0; s < kSums; ++s)
    out[s] = sum((sets[0][s] + sets[1][s]) + (sets[2][s] + sets[3][s]));
  return out;
}

/// sum of f(x[i]) where f(0) adds nothing; four vectors at a time, in a fixed order.
template <class A, class F>
A fold_row(const A* x, index_t n, F f) {
  using V = Vec<A>;
  constexpr index_t kStep = V::kLanes;
  V a = V::zero(), b = V::zero(), c = V::zero(), d = V::zero();
  index_t i = 0;
  for (; i + 4 * kStep <= n; i += 4 * kStep) {
    a = a + f(V::load(x + i));
    b = b + f(V::load(x + i + kStep));
    c = c + f(V::load(x + i + 2 * kStep));
    d = d + f(V::load(x + i + 3 * kStep));
  }
  for (; i + kStep <= n; i += kStep) a = a + f(V::load(x + i));
  if (i < n) b = b + f(V::load(x + i, n - i));
  return sum((a + b) + (c + d));
}

template <class A>
A row_sum(const A* x, index_t n) {
  return fold_row(x, n, [](Vec<A> v) { return v; });
}
template <class A>
A row_sum_of_squares(const A* x, index_t n) {
  return fold_row(x, n, [](Vec<A> v) { return v * v; });
}

/// Largest x[i]; n is at least 1. A NaN may be passed over.
template <class A>
A row_max(const A* x, index_t n) {
  using V = Vec<A>;
  V best = V::broadcast(x[0]);
  index_t i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) best = max(best, V::load(x + i));
  A out = largest(best);
  for (; i < n; ++i) out = out < x[i] ? x[i] : out;
  return out;
}

/// sum of exp(x[i] - shift) in double, shift being the largest x[i] or more: blocks of a few
/// hundred terms in A, so that a vocabulary of any size loses nothing.
template <class A>
double row_sum_of_exp(const A* x, index_t n, A shift) {
  using V = Vec<A>;
  constexpr index_t kBlock = 512;
  const V m = V::broadcast(shift);
  double total = 0;
  index_t i = 0;
  while (i + V::kLanes <= n) {
    const index_t end = std::min(n, i + kBlock);
    V block = V::zero();
    for (; i + V::kLanes <= end; i += V::kLanes) block = block + exp_flushed(V::load(x + i) - m);
    total += static_cast<double>(sum(block));
  }
  for (; i < n; ++i) total += static_cast<double>(std::exp(x[i] - shift));
  return total;
}

/// 1 / (1 + exp(-x))
template <class A>
Vec<A> sigmoid(Vec<A> x) {
  const Vec<A> one = Vec<A>::broadcast(A{1});
  return one / (one + exp(Vec<A>::zero() - x));
}

/// tanh: a polynomial around 0, where 1 - 2 / (e^2x + 1) would cancel. Cephes tanhf; within 2 ulp.
inline Vec<float> tanh(Vec<float> x) {
  using V = Vec<float>;
  const V one = V::broadcast(1.f), two = V::broadcast(2.f);
  const V magnitude = max(x, V::zero() - x), z = x * x;
  V p = V::broadcast(-5.70498872745e-3f);
  p = fma(p, z, V::broadcast(2.06390887954e-2f));
  p = fma(p, z, V::broadcast(-5.37397155531e-2f));
  p = fma(p, z, V::broadcast(1.33314422036e-1f));
  p = fma(p, z, V::broadcast(-3.33332819422e-1f));
  const V near = fma(p * z, x, x);
  const V far = one - two / (exp(x + x) + one);
  return select(magnitude - V::broadcast(0.625f), near, far);
}

/// f(lane) for each lane: functions that have no vector form.
template <class A, class F>
Vec<A> by_lanes(Vec<A> x, F f) {
  A lanes[Vec<A>::kLanes];
  x.store(lanes);
  for (A& lane : lanes) lane = f(lane);
  return Vec<A>::load(lanes);
}
inline Vec<double> tanh(Vec<double> x) {
  return by_lanes(x, [](double v) { return std::tanh(v); });
}

/// The polynomial of these coefficients, highest power first.
template <std::size_t kTerms>
Vec<float> polynomial(Vec<float> x, const float (&terms)[kTerms]) {
  Vec<float> sum = Vec<float>::broadcast(terms[0]);
  for (std::size_t k = 1; k < kTerms; ++k) sum = fma(sum, x, Vec<float>::broadcast(terms[k]));
  return sum;
}

/// 1 - erf(x), which keeps its relative precision in the tail (to 4e-6; 2e-7 absolute). Cephes
/// erfcf: 1 - x T(x^2) within 1, then exp(-x^2) / x times P or R of 1 / x^2.
inline Vec<float> erfc(Vec<float> x) {
  using V = Vec<float>;
  constexpr float kT[] = {7.853861353153693e-5f,  -8.010193625184903e-4f, 5.188327685732524e-3f,
                          -2.685381193529856e-2f, 1.128358514861418e-1f,  -3.761262582423300e-1f,
                          1.128379165726710f};
  constexpr float kP[] = {2.326819970068386e-2f,  -1.387039388740657e-1f, 3.687424674597105e-1f,
                          -5.824733027278666e-1f, 6.210004621745983e-1f,  -4.944515323274145e-1f,
                          3.404879937665872e-1f,  -2.741127028184656e-1f, 5.638259427386472e-1f};
  constexpr float kR[] = {-1.047766399936249e1f,  1.297719955372516e1f, -7.495518717768503f,
                          2.921019019210786f,     -1.015265279202700f,  4.218463358204948e-1f,
                          -2.820767439740514e-1f, 5.641895067754075e-1f};
  const V one = V::broadcast(1.f), two = V::broadcast(2.f);
  const V magnitude = max(x, V::zero() - x), square = x * x;
  const V near = one - x * polynomial(square, kT);
  const V inverse = one / max(magnitude, one), z = inverse * inverse;
  const V p = select(magnitude - two, polynomial(z, kP), polynomial(z, kR));
  const V far = exp_flushed(V::zero() - square) * inverse * p;
  return select(magnitude - one, near, select(x, two - far, far));
}
inline Vec<double> erfc(Vec<double> x) {
  return by_lanes(x, [](double v) { return std::erfc(v); });
}

// ---- rows of a call ----

/// f(begin, end) over disjoint ranges of rows that cover [0, rows). Ranges depend on the shape
/// alone and hold enough elements to pay for handing them to a thread.
template <class F>
void for_row_ranges(index_t rows, index_t elements_per_row, F&& f) {
  constexpr index_t kElements = 8192;
  const index_t step = std::max<index_t>(1, kElements / std::max<index_t>(1, elements_per_row));
  parallel_for((rows + step - 1) / step,
               [&](index_t task) { f(task * step, std::min(rows, (task + 1) * step)); });
}

/// The sums over all rows of kSums vectors [n] at once, added to out[0], out[1], ... (null: not
/// wanted; `accumulate` false: overwritten). Blocks of rows, cut by shape alone, are summed into
/// vectors of their own by f(begin, end, sums), sums [kSums, n] and 0 at first; these are added in
/// the order of the blocks.
template <class A, std::size_t kSums, class F>
void sum_over_rows(A* const (&out)[kSums], index_t rows, index_t n, bool accumulate, F f) {
  constexpr index_t kMostBlocks = 64, kElements = 8192, kColumns = 256;
  constexpr auto kVectors = static_cast<index_t>(kSums);
  const index_t step = std::max(
      {index_t{1}, kElements / std::max<index_t>(1, n), (rows + kMostBlocks - 1) / kMostBlocks});
  const index_t blocks = (rows + step - 1) / step;
  Scratch<Cpu> scratch;
  A* parts = scratch.template tensor<A>(Shape{blocks, kVectors, n}).data();
  parallel_for(blocks, [&](index_t block) {
    A* sums = parts + block * kVectors * n;
    std::fill_n(sums, kVectors * n, A{0});
    f(block * step, std::min(rows, (block + 1) * step), sums);
  });
  parallel_for((n + kColumns - 1) / kColumns, [&](index_t task) {
    const index_t first = task * kColumns, columns = std::min(kColumns, n - first);
    for (std::size_t s = 0; s < kSums; ++s) {
      if (out[s] == nullptr) continue;
      const A* part = parts + static_cast<index_t>(s) * n + first;
      A* to = out[s] + first;
      by_vectors<A>(columns, [&](index_t j, auto v) {
        Vec<A> sum = Vec<A>::zero();
        for (index_t block = 0; block < blocks; ++block)
          sum = sum + v.load(part + block * kVectors * n + j);
        v.store(to + j, accumulate ? sum + v.load(to + j) : sum);
      });
    }
  });
}

/// Rows of a view: the product of all extents but the last.
template <class T, std::size_t Rank>
index_t row_count(const TensorView<T, Rank>& view) {
  index_t rows = 1;
  for (std::size_t axis = 0; axis + 1 < Rank; ++axis) rows *= view.extent(axis);
  return rows;
}

/// First element of row `index` of a strided view, rows counted in row-major order.
template <class T, std::size_t Rank>
T* row_at(const TensorView<T, Rank>& view, index_t index) {
  T* at = view.data();
  for (std::size_t axis = Rank - 1; axis-- > 0;) {
    at += index % view.extent(axis) * view.stride(axis);
    index /= view.extent(axis);
  }
  return at;
}

/// A vector [n] in accumulate_t<T>, plus `offset`; null where it is absent.
template <class T, class A = accumulate_t<T>>
const A* widened_vector(Scratch<Cpu>& scratch, TensorView<const T, 1> vector, A offset = 0) {
  if (!vector) return nullptr;
  const index_t n = vector.extent(0);
  if constexpr (std::is_same_v<A, T>)
    if (offset == 0) return vector.data();
  A* out = scratch.template tensor<A>(Shape{n}).data();
  widen_row(out, vector.data(), n);
  if (offset != 0)
    for (index_t i = 0; i < n; ++i) out[i] += offset;
  return out;
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
