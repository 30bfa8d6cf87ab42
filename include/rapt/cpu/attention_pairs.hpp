// Pairs of bfloat16 for the products of attention: packing, and sums in tiles of 16 or 32 rows.
//
// A right factor B [k, n] lies in panels of 32 columns (the last one of 16 or 32), pairs along k:
//
//   panel of columns [t, t + width)      [k / 2][width] pairs, at b + t kUnits
//
// and a left factor A [m, k] by rows. Tiles is AmxTiles (cpu/simd/amx.hpp), DotTiles, or what a
// test puts in their place: to = start + A B for 16 or 32 rows and 1 or 2 times 16 columns.
#pragma once

#include <algorithm>
#include <cstring>

#include "rapt/core/config.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/rows.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

inline constexpr index_t kTileColumns = 16, kPairPanel = 32;
inline constexpr index_t kPairStep = 32;  // elements of k that a tile takes at a time

/// Columns of the panel that begins at column t of n.
constexpr index_t panel_width(index_t n, index_t t) {
  return std::min(kPairPanel, round_up(n - t, kTileColumns));
}

/// Rows rows[0..n) become columns of panels [units][kPanel], pairs along their dims. What does not
/// exist up to `units`, up to whole vectors, and up to column `end`, is 0.
template <index_t kPanel, class Unit>
[[gnu::noinline]] void pack_key_pairs(Unit* packed, const bfloat16* const* rows, index_t n,
                                      index_t end, index_t dim, index_t units) {
  using U = Vec<Unit>;
  for (index_t key = 0; key < end; key += U::kLanes)
    transpose_lines<U>(
        packed + key / kPanel * kPanel * units + key % kPanel, kPanel,
        std::clamp<index_t>(n - key, 0, U::kLanes), units, [&](index_t c, index_t u, index_t) {
          return 2 * u < dim ? U::load_pairs(rows[key + c] + 2 * u, dim - 2 * u) : U::zero();
        });
}

/// Rows rows[0..n) into panels of kUnits units, pairs of rows; up to row `end` zeros. Says whether
/// all of them are finite. Panels of 32 columns, the last one narrower, or all of kPanel.
template <index_t kUnits, index_t kPanel = kPairPanel, class Unit>
[[gnu::noinline]] bool pack_row_pairs(Unit* packed, const bfloat16* const* rows, index_t n,
                                      index_t end, index_t dim) {
  using U = Vec<Unit>;
  Vec<float> infinite = Vec<float>::zero();  // x 0: 0, or NaN for an infinity or a NaN
  for (index_t u = 0; u < end / 2; ++u) {
    const bfloat16* const even = 2 * u < n ? rows[2 * u] : nullptr;
    const bfloat16* const odd = 2 * u + 1 < n ? rows[2 * u + 1] : nullptr;
    for (index_t t = 0; t < dim; t += kPanel) {
      const index_t width = kPanel == kPairPanel ? panel_width(dim, t) : kPanel;
      for (index_t c = 0; c < std::min(width, round_up(dim - t, kTileColumns)); c += U::kLanes) {
        const index_t left = std::min<index_t>(U::kLanes, dim - t - c);
        const U pairs = even != nullptr && left > 0
                            ? U::interleave(even + t + c, odd == nullptr ? odd : odd + t + c, left)
                            : U::zero();
        infinite = fma(pairs, U::zero(), infinite);
        pairs.store(packed + t * kUnits + u * width + c);
      }
    }
  }
  return sum(infinite) == 0;
}

/// c[rows, n] += A B over `depth` units of B from unit `first` on, panels of kUnits units.
template <index_t kUnits, class Tiles, class Unit>
[[gnu::noinline]] void add_pair_product(Tiles& tiles, float* c, index_t c_step, index_t rows,
                                        index_t n, const bfloat16* a, index_t a_step, const Unit* b,
                                        index_t first, index_t depth) {
  for (index_t t = 0; t < n; t += kPairPanel) {
    const index_t width = panel_width(n, t);
    const auto add = [&](index_t r, index_t height, float* to, index_t to_step) {
      tiles.multiply(height, width / kTileColumns, to, to_step, to, to_step, a + r * a_step, a_step,
                     b + t * kUnits + first * width, width, depth);
    };
    const bool fits = t + width <= c_step;  // always, where vectors have 16 lanes
    for (index_t r = 0; r < rows;) {
      float* const to = c + r * c_step + t;
      if (const index_t left = rows - r; fits && left >= kTileColumns) {
        const index_t height = left >= Tiles::kRows ? Tiles::kRows : kTileColumns;
        add(r, height, to, c_step);
        r += height;
      } else {  // in a copy, since 16 whole rows are written
        float sums[kTileColumns * kPairPanel] = {};
        const index_t some = std::min(kTileColumns, left);
        const auto bytes = static_cast<std::size_t>(std::min(width, c_step - t)) * sizeof(float);
        for (index_t i = 0; i < some; ++i)
          std::memcpy(sums + i * kPairPanel, to + i * c_step, bytes);
        add(r, kTileColumns, sums, kPairPanel);
        for (index_t i = 0; i < some; ++i)
          std::memcpy(to + i * c_step, sums + i * kPairPanel, bytes);
        r += kTileColumns;
      }
    }
  }
}

/// c[rows, columns [begin, end)] = A B, B in panels of `depth` units and 32 columns whose end is
/// padded with zeros. Rows up to a multiple of 16 are read and written.
template <class Tiles, class Unit>
[[gnu::noinline]] void pair_product(Tiles& tiles, float* c, index_t c_step, index_t rows,
                                    index_t begin, index_t end, const bfloat16* a, index_t a_step,
                                    const Unit* b, index_t depth) {
  static constexpr float kZeros[kPairPanel] = {};
  const index_t height = round_up(rows, kTileColumns);
  for (index_t p = begin / kPairPanel * kPairPanel; p < end; p += kPairPanel)
    for (index_t r = 0; r < height; r += Tiles::kRows)
      tiles.multiply(std::min(Tiles::kRows, height - r), kPairPanel / kTileColumns,
                     c + r * c_step + p, c_step, kZeros, 0, a + r * a_step, a_step, b + p * depth,
                     kPairPanel, depth);
}

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
