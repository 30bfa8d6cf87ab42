// fp32 and half factors for matrix registers that multiply bfloat16: a number is the sum of parts,
//
//   fp32   x = x0 + x1 + x2    x0 = bf16(x), x1 = bf16(x - x0), x2 = x - x0 - x1    8 + 8 + 8 bits
//   half   x = x0 + x1         x0 = bf16(x), x1 = x - x0                                8 + 3 bits
//   codes  x = x0              of 8 bits, int8 and float8
//
// exactly, and a product of two is a sum of products of theirs:
//
//   fp32   x y = x0 y0 + x0 y1 + x1 y0 + x0 y2 + x1 y1 + x2 y0
//   half   x y = x0 y0 + x0 y1 + x1 y0 + x1 y1
//   by codes   x y = x0 y0 + x1 y0 (+ x2 y0)
//
// What fp32 leaves out, x1 y2 + x2 y1 + x2 y2, is about 2^-24 |x y| at most, one rounding; the
// others leave nothing out. Sums are fp32. So a result is as good as that of multiply-adds, for six
// products or fewer in registers that do sixteen in the time of one.
//
// Parts that are subnormal count as 0: an error below 2^-125 times the other factor. (No part of a
// half is.) An infinity, and what bfloat16 rounds to one (beyond 3.39e38), gives NaN.
//
//   left factor     32 rows x 32 elements of k        [part][row][u]           pairs (u, u + 16)
//   right factor    32 elements of k x 32 columns     [part][half][u][column]
//
// are a block of a tile, and its blocks follow one another along k. A left factor may also lie by
// rows, [row][block][part][u], and be multiplied from any row on (left_rows). Parts: PartsOf<T, S>.
//
// Source: Henry, Tang, Heinecke 2019, "Leveraging the bfloat16 Artificial Intelligence Datatype For
// Higher-Precision Computations", section III.
#pragma once

#include <algorithm>
#include <cstring>

#include "rapt/cpu/rows.hpp"
#include "rapt/cpu/simd.hpp"
#include "rapt/cpu/simd/amx_parts.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

/// Blocks of k elements.
constexpr index_t part_blocks(index_t k) { return (k + PartTile::kDepth - 1) / PartTile::kDepth; }

/// Pairs of a row of k elements, all its blocks side by side, and a left factor of such rows.
template <class Parts>
constexpr index_t pairs_of_row(index_t k) {
  return part_blocks(k) * Parts::kLeft * Parts::kUnits;
}
template <class Parts, class Unit>
constexpr LeftParts<Parts, Unit> left_rows(Unit* data, index_t k) {
  return {data, pairs_of_row<Parts>(k), Parts::kUnits, Parts::kLeft * Parts::kUnits};
}
template <class Unit>
void clear_pairs(Unit* p, index_t n) {
  std::memset(static_cast<void*>(p), 0, static_cast<std::size_t>(n) * sizeof(Unit));
}

/// Row r of a left factor: k numbers, load(l, n) those from l on of which n exist. What is missing
/// of the last block is 0.
template <class Parts, class Unit, class Load>
[[gnu::always_inline]] inline void split_row(const LeftParts<Parts, Unit>& to, index_t r, index_t k,
                                             Load load) {
  using V = Vec<float>;
  constexpr index_t kVectors = Parts::kUnits / V::kLanes;
  Unit* block = to.data + r * to.row;
  for (index_t l = 0; l < k; l += Parts::kDepth, block += to.block) {
    V numbers[2 * kVectors];
    unrolled<2 * kVectors>([&](auto i) __attribute__((always_inline)) {
      const index_t at = l + i * V::kLanes;
      numbers[i] = at < k ? load(at, k - at) : V::zero();
    });
    unrolled<kVectors>([&](auto i) __attribute__((always_inline)) {
      Vec<Unit>::template store_parts<Parts::kLeft>(block + i * V::kLanes, to.part, numbers[i],
                                                    numbers[i + kVectors]);
    });
  }
}

/// Half of the columns of a right factor, up to `columns` of them: row(l) points to those of
/// element l of k. What is missing is 0. Says, if kChecks, whether bfloat16 holds all as numbers.
template <class Parts, bool kChecks = false, class Unit, class Row>
[[gnu::always_inline]] inline bool split_columns(Unit* to, index_t columns, index_t k, Row row) {
  using V = Vec<float>;
  constexpr index_t kUnits = Parts::kUnits, kLast = (Parts::kRight - 1) * Parts::kPart;
  V infinite = V::zero();  // the last part times 0: NaN where x or x0 is infinite, or x is NaN
  for (index_t l = 0; l < k; l += Parts::kDepth, to += Parts::kBlock)
    for (index_t u = 0; u < kUnits; ++u) {
      for (const index_t at : {l + u, l + u + kUnits})  // they may lie pages apart
        __builtin_prefetch(row(std::min(at + Parts::kDepth, k - 1)));
      for (index_t c = 0; c < Parts::kRows / 2; c += V::kLanes) {
        const auto load = [&](index_t at) __attribute__((always_inline)) {
          const index_t left = at < k ? columns - c : 0;
          return left >= V::kLanes ? V::load(row(at) + c)
                 : left > 0        ? V::load(row(at) + c, left)
                                   : V::zero();
        };
        Unit* const parts = to + u * (Parts::kRows / 2) + c;
        Vec<Unit>::template store_parts<Parts::kRight>(parts, Parts::kPart, load(l + u),
                                                       load(l + u + kUnits));
        if constexpr (kChecks)
          infinite = fma(Vec<Unit>::load(parts + kLast), Vec<Unit>::zero(), infinite);
      }
    }
  return sum(infinite) == 0;
}

/// Rows rows[0..n), of `dim` numbers each, as the columns of a right factor: tiles of 32 rows,
/// whose blocks follow one another along dim.
template <class T, class Unit>
[[gnu::noinline]] void split_rows_across(Unit* to, const T* const* rows, index_t n, index_t dim) {
  using V = Vec<float>;
  using Parts = PartsOf<T>;
  constexpr index_t kHalf = Parts::kRows / 2, kDepth = Parts::kDepth;
  float turned[kDepth * kHalf];
  for (index_t first = 0; first < n; first += kHalf) {
    Unit* columns = to + first / Parts::kRows * part_blocks(dim) * Parts::kBlock +
                    first % Parts::kRows / kHalf * Parts::kHalf;
    for (index_t t = 0; t < dim; t += kDepth, columns += Parts::kBlock) {
      const index_t depth = std::min(kDepth, dim - t);
      for (index_t c = first; c < first + kHalf; c += V::kLanes)
        transpose_lines<V>(turned + (c - first), kHalf, std::clamp<index_t>(n - c, 0, V::kLanes),
                           depth, [&](index_t line, index_t i, index_t left) {
                             const T* const at = rows[c + line] + t + i;
                             return left >= V::kLanes ? V::load(at) : V::load(at, left);
                           });
      split_columns<Parts>(columns, kHalf, depth, [&](index_t l) { return turned + l * kHalf; });
    }
  }
}

/// Rows rows[0..n) as the rows of a right factor: tiles of 32 of their `dim` columns, `tile` pairs
/// apart. Says whether bfloat16 holds all as numbers.
template <class T, class Unit>
[[gnu::noinline]] bool split_rows_along(Unit* to, index_t tile, const T* const* rows, index_t n,
                                        index_t dim) {
  using Parts = PartsOf<T>;
  constexpr index_t kHalf = Parts::kRows / 2;
  bool finite = true;
  for (index_t t = 0; t < dim; t += kHalf)
    finite &= split_columns<Parts, true>(
        to + t / Parts::kRows * tile + t % Parts::kRows / kHalf * Parts::kHalf,
        std::min(kHalf, dim - t), n, [&](index_t j) { return rows[j] + t; });
  return finite;
}

/// c[rows, n] = A B (+ c) over `blocks` blocks of k; the tiles of B lie `tile` pairs apart. Whole
/// vectors of columns are written.
template <class Tiles, class Parts, class Unit>
[[gnu::noinline]] void parts_product(Tiles& tiles, bool add, float* c, index_t c_step, index_t rows,
                                     index_t n, const LeftParts<Parts, Unit>& a, const Unit* b,
                                     index_t tile, index_t blocks) {
  using V = Vec<float>;
  constexpr index_t kTile = Parts::kRows, kHalf = kTile / 2;
  for (index_t r = 0; r < rows; r += kTile) {
    const index_t some = std::min(kTile, rows - r);
    for (index_t t = 0; t < n; t += kTile) {
      const index_t left = n - t, columns = left > kHalf ? kTile : kHalf;
      float* const to = c + r * c_step + t;
      const Unit* const from = b + t / kTile * tile;
      if (some % kHalf == 0 && t + columns <= c_step) {
        tiles.multiply(some, columns, add, to, c_step, a.from_row(r), from, blocks);
        continue;
      }
      alignas(64) float sums[kTile * kTile];  // 16 whole rows are written
      tiles.multiply(some, columns, false, sums, kTile, a.from_row(r), from, blocks);
      for (index_t i = 0; i < some; ++i)
        for (index_t j = 0; j < std::min(left, columns); j += V::kLanes) {
          const V sum = V::load(sums + i * kTile + j);
          float* const at = to + i * c_step + j;
          (add ? V::load(at) + sum : sum).store(at);
        }
    }
  }
}

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
