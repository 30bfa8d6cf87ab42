// What the row-wise operations of the CPU share: conversion of a row to the type that arithmetic
// runs in and back, sums over a row, and the split of rows over threads.
//
// Rows of float and double are read where they lie; rows of half and bfloat16 are widened one at a
// time into scratch and rounded once, on the way out. Sums run in kLanes fixed lanes, so that a
// compiler may use any vector width without changing a bit.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "rapt/core/backend.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/core/scratch.hpp"

#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace rapt::detail {

// Named after the instruction set: two files of one program that were built with different flags
// must not share these functions.
#if defined(__AVX512F__)
inline namespace rows_avx512 {
#elif defined(__F16C__)
inline namespace rows_f16c {
#else
inline namespace rows_portable {
#endif

/// Lanes of one vector register group; GNU vectors compile to whatever the target has.
template <class A>
inline constexpr index_t kLanes = 64 / static_cast<index_t>(sizeof(A));
template <class A>
struct LanesOf {
  typedef A type __attribute__((vector_size(64)));
};
template <class A>
using Lanes = typename LanesOf<A>::type;

template <class A>
inline void load_lanes(Lanes<A>& to, const A* from) {
  std::memcpy(&to, from, sizeof to);
}
template <class A>
inline A sum_of_lanes(const Lanes<A>& lanes) {
  A part[kLanes<A>];
  std::memcpy(part, &lanes, sizeof part);
  for (index_t width = kLanes<A> / 2; width > 0; width /= 2)
    for (index_t l = 0; l < width; ++l) part[l] += part[l + width];
  return part[0];
}

/// to[i] = from[i], exactly.
template <class A, class T>
inline void widen_row(A* __restrict to, const T* __restrict from, index_t n) {
  index_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, half> && std::is_same_v<A, float>) {
    for (; i + 8 <= n; i += 8)
      _mm256_storeu_ps(
          to + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i))));
  }
#endif
  for (; i < n; ++i) to[i] = static_cast<A>(from[i]);
}

/// to[i] = from[i], rounded to nearest even.
template <class T, class A>
inline void narrow_row(T* __restrict to, const A* __restrict from, index_t n) {
  index_t i = 0;
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, half> && std::is_same_v<A, float>) {
    for (; i + 8 <= n; i += 8)
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT));
  }
#endif
  for (; i < n; ++i) to[i] = static_cast<T>(from[i]);
}

/// sum of x[i]
template <class A>
inline A row_sum(const A* x, index_t n) {
  Lanes<A> sum = {}, v;
  index_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) {
    load_lanes<A>(v, x + i);
    sum += v;
  }
  A tail = 0;
  for (; i < n; ++i) tail += x[i];
  return sum_of_lanes<A>(sum) + tail;
}

/// sum of (x[i] - shift)^2
template <class A>
inline A row_sum_of_squares(const A* x, index_t n, A shift = 0) {
  Lanes<A> sum = {}, v;
  index_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>) {
    load_lanes<A>(v, x + i);
    v -= shift;
    sum += v * v;
  }
  A tail = 0;
  for (; i < n; ++i) tail += (x[i] - shift) * (x[i] - shift);
  return sum_of_lanes<A>(sum) + tail;
}

/// largest x[i]; minus infinity for an empty row; a NaN may be passed over
template <class A>
inline A row_max(const A* x, index_t n) {
  A part[kLanes<A>];
  for (A& p : part) p = -std::numeric_limits<A>::infinity();
  index_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>)
    for (index_t l = 0; l < kLanes<A>; ++l) part[l] = part[l] < x[i + l] ? x[i + l] : part[l];
  for (index_t l = 0; i < n; ++i, ++l) part[l] = part[l] < x[i] ? x[i] : part[l];
  A best = part[0];
  for (const A p : part) best = best < p ? p : best;
  return best;
}

}  // inline namespace

/// A row in the type that arithmetic runs in: the row itself, or a widened copy in `buffer` [n].
template <class A, class T>
inline const A* arithmetic_row(const T* row, A* buffer, index_t n) {
  if constexpr (std::is_same_v<A, T>) {
    (void)buffer;
    (void)n;
    return row;
  } else {
    widen_row(buffer, row, n);
    return buffer;
  }
}

/// Rows of one task: enough elements to pay for handing it to a thread. By shape alone.
inline index_t rows_per_task(index_t elements_per_row) {
  constexpr index_t kElements = 8192;
  return elements_per_row >= kElements ? 1
                                       : kElements / (elements_per_row > 0 ? elements_per_row : 1);
}

/// f(begin, end) over disjoint ranges of rows that cover [0, rows).
template <class F>
inline void for_row_ranges(index_t rows, index_t elements_per_row, F&& f) {
  const index_t step = rows_per_task(elements_per_row);
  parallel_for((rows + step - 1) / step, [&](index_t task) {
    const index_t begin = task * step;
    f(begin, begin + step < rows ? begin + step : rows);
  });
}

/// Rows of a view: the product of all extents but the last.
template <class T, std::size_t Rank>
inline index_t row_count(const TensorView<T, Rank>& view) {
  index_t rows = 1;
  for (std::size_t axis = 0; axis + 1 < Rank; ++axis) rows *= view.extent(axis);
  return rows;
}

/// First element of row `index` of a strided view, rows counted in row-major order.
template <class T, std::size_t Rank>
inline T* row_at(const TensorView<T, Rank>& view, index_t index) {
  T* at = view.data();
  for (std::size_t axis = Rank - 1; axis-- > 0;) {
    at += index % view.extent(axis) * view.stride(axis);
    index /= view.extent(axis);
  }
  return at;
}

}  // namespace rapt::detail
