// The register tiles of the gradient of attention: products of small packed matrices, and the
// elementwise step from scores to their gradients.
//
//   multiply       C[rows, n] (+)= A[rows, depth] B[depth, n]      6 rows x 4 vectors of sums
//                  (AVX2, portable: x 2); each element of A broadcast once, each vector of B
//                  loaded once for six rows. A is read by rows, or, for P^T dO and dU^T Q, by
//                  columns.
//
// All operands are row-major in the accumulation type, rows padded with zeros to whole vectors, but
// for keys and values as right factors of Q K^T and dO V^T, which pack_keys transposes.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rapt/core/config.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/register_tile.hpp"
#include "rapt/cpu/rows.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Sizes of the tiles for sums of type A.
template <class A>
struct BackwardTiling {
  static constexpr int kLanes = Vec<A>::kLanes;
  static constexpr int kPanel = AttentionTiling<A>::kPanel;  // columns of a register tile
  static constexpr int kVectors = kPanel / kLanes;
  static constexpr int kGroup = 6;              // rows of a register tile
  static constexpr int kRowTile = 16 * kGroup;  // rows that share a tile of scores
  static constexpr int kKeyTile = 64;           // its columns
  static constexpr int kVectorsOfTile = kKeyTile / kLanes;
  static_assert(kKeyTile % kPanel == 0 && kVectorsOfTile <= 32);

  /// Numbers from a packed row to the next: whole vectors, and no large power of two, which would
  /// map all rows to few sets of the cache.
  static constexpr index_t row_step(index_t dim) {
    const index_t step = (dim + kLanes - 1) / kLanes * kLanes;
    return step * static_cast<index_t>(sizeof(A)) % 512 == 0 ? step + kLanes : step;
  }
};

namespace detail {

/// One register tile. A element (i, k): kByColumns ? a[k * a_step + i] : a[i * a_step + k].
template <int kRows, int kVecs, bool kByColumns, bool kAdd, class A>
inline void product_tile(A* c, index_t c_step, const A* a, index_t a_step, const A* b,
                         index_t b_step, index_t depth) {
  using V = Vec<A>;
  // With 32 registers four steps at a time were slower by 3 to 8 %.
  using Steps = RegisterSteps<V::kRegisters >= 32 ? 1 : 4>;
  V acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v)
      acc[i][v] = kAdd ? V::load(c + i * c_step + v * V::kLanes) : V::zero();
  }
  add_products<kByColumns ? Lie::by_columns : Lie::by_rows, Steps>(acc, a, a_step, b, b_step,
                                                                   depth);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[i][v].store(c + i * c_step + v * V::kLanes);
  }
}

template <int kRows, bool kByColumns, bool kAdd, class A>
inline void product_rows(int vectors, A* c, index_t c_step, const A* a, index_t a_step, const A* b,
                         index_t b_step, index_t depth) {
  constexpr int kVectors = BackwardTiling<A>::kVectors;
  if (vectors == kVectors)
    product_tile<kRows, kVectors, kByColumns, kAdd>(c, c_step, a, a_step, b, b_step, depth);
  else if (vectors == 1)
    product_tile<kRows, 1, kByColumns, kAdd>(c, c_step, a, a_step, b, b_step, depth);
  else if constexpr (kVectors > 2) {
    if (vectors == 2)
      product_tile<kRows, 2, kByColumns, kAdd>(c, c_step, a, a_step, b, b_step, depth);
    else
      product_tile<kRows, 3, kByColumns, kAdd>(c, c_step, a, a_step, b, b_step, depth);
  }
}

/// C[rows, vectors] (+)= A B for 1 to 6 rows and 1 to kVectors vectors: 6 rows, or what is left as
/// 4 + 2 + 1. Not inlined: one copy serves all masks.
template <bool kByColumns, bool kAdd, class A>
[[gnu::noinline]] void product(int rows, int vectors, A* c, index_t c_step, const A* a,
                               index_t a_step, const A* b, index_t b_step, index_t depth) {
  if (rows == BackwardTiling<A>::kGroup) {
    product_rows<BackwardTiling<A>::kGroup, kByColumns, kAdd>(vectors, c, c_step, a, a_step, b,
                                                              b_step, depth);
    return;
  }
  const index_t a_row = kByColumns ? 1 : a_step;
  if (rows & 4) {
    product_rows<4, kByColumns, kAdd>(vectors, c, c_step, a, a_step, b, b_step, depth);
    c += 4 * c_step, a += 4 * a_row;
  }
  if (rows & 2) {
    product_rows<2, kByColumns, kAdd>(vectors, c, c_step, a, a_step, b, b_step, depth);
    c += 2 * c_step, a += 2 * a_row;
  }
  if (rows & 1) product_rows<1, kByColumns, kAdd>(vectors, c, c_step, a, a_step, b, b_step, depth);
}

/// C[rows, dim] += A B for any number of columns: panel by panel.
template <bool kByColumns, class A>
inline void add_product(int rows, A* c, index_t c_step, const A* a, index_t a_step, const A* b,
                        index_t b_step, index_t depth, index_t dim) {
  using Tiling = BackwardTiling<A>;
  for (index_t t = 0; t < dim; t += Tiling::kPanel) {
    const index_t left = std::min<index_t>(Tiling::kPanel, dim - t);
    product<kByColumns, true>(rows, static_cast<int>((left + Tiling::kLanes - 1) / Tiling::kLanes),
                              c + t, c_step, a, a_step, b + t, b_step, depth);
  }
}

/// C[i, :] += A[i, k] B[k, :] for one row, pairs of weight 0 left out: what they would multiply may
/// be NaN. A element k lies at a[k * a_step].
template <class A>
[[gnu::noinline]] void add_seen(A* c, const A* a, index_t a_step, const A* b, index_t b_step,
                                index_t depth, index_t dim) {
  using V = Vec<A>;
  for (index_t t = 0; t < dim; t += V::kLanes) {
    V sum = V::load(c + t);
    for (index_t k = 0; k < depth; ++k)
      if (a[k * a_step] != 0)
        sum = fma(V::broadcast(a[k * a_step]), V::load(b + k * b_step + t), sum);
    sum.store(c + t);
  }
}

/// A row times `factor` to a packed row, zeros behind it. `difference` collects x - x: 0, or NaN
/// where an infinity or a NaN is among the rows.
template <class A, class T>
inline void pack_row(A* packed, const T* row, index_t dim, A factor, Vec<A>& difference) {
  using V = Vec<A>;
  for (index_t t = 0; t < dim; t += V::kLanes) {
    const V x = load_lanes<A>(row + t, dim - t) * V::broadcast(factor);
    difference = difference + (x - x);
    x.store(packed + t);
  }
}

/// Asks for the cache lines of a row.
template <class T>
inline void prefetch(const T* row, index_t dim) {
  constexpr index_t kLine = 64 / static_cast<index_t>(sizeof(T));
  for (index_t t = 0; t < dim; t += kLine) __builtin_prefetch(row + t);
}

/// Sum of a[t] b[t].
template <class A, class T>
inline A dot_rows(const T* a, const T* b, index_t dim) {
  using V = Vec<A>;
  V total = V::zero();
  for (index_t t = 0; t < dim; t += V::kLanes)
    total = fma(load_lanes<A>(a + t, dim - t), load_lanes<A>(b + t, dim - t), total);
  return sum(total);
}

/// Scores of one row become weights, and dP their gradients:
///
///   p = exp(factor s - lse)       dz = p (dp - delta)
///
/// over columns [begin, end), whole vectors; in those whose bit of `tested` is set both are 0 where
/// `seen` is. dz is multiplied by `derivative` where there is one.
template <class A>
inline void gradient_row(A* s, A* dp, index_t begin, index_t end, A factor, A lse, A delta,
                         std::uint32_t tested, const mask_int<A>* seen,
                         const A* derivative = nullptr) {
  using V = Vec<A>;
  const V f = V::broadcast(factor), l = V::broadcast(-lse), d = V::broadcast(delta);
  const V log2e = V::broadcast(kLog2E<A>);
  for (index_t j = begin; j < end; j += V::kLanes) {
    V p = exp2_flushed(fma(V::load(s + j), f, l) * log2e);
    V dz = p * (V::load(dp + j) - d);
    if (derivative != nullptr) dz = dz * V::load(derivative + j);
    if (tested >> (j / V::kLanes) & 1u) {
      const V mask = V::load_mask(seen + j);
      p = bit_and(p, mask);
      dz = bit_and(dz, mask);
    }
    p.store(s + j);
    dz.store(dp + j);
  }
}

/// x[j] *= y[j] where x is not 0: a key that weighs nothing has no gradient, whatever the
/// derivative of its score.
template <class A>
inline void scale_row(A* x, const A* y, index_t begin, index_t end) {
  for (index_t j = begin; j < end; ++j) x[j] = x[j] == 0 ? A(0) : x[j] * y[j];
}

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
