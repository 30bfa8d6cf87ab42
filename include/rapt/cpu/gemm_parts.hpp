// The packed matrix product of fp32 and half where the machine has matrix registers for bfloat16:
// out[m, n] = a[m, k] b[k, n] (+ bias) (+ out), factors in parts (cpu/float_parts.hpp).
//
//   for each kRowBlock rows of a and each block of k, up to kDepthBlock, as long as each other
//     split      tiles of 32 rows of a                                            all threads
//     task       a strip of columns and a group of those rows                     all threads
//       split      the strip's tiles of 32 columns, which stay in L2
//       multiply   each 32 rows by the tiles of the strip, 32 x 32 sums at a time
//
// Every out[i, j] is (start + block 0) + block 1 + ..., a block a sum over elements of k, wherever
// strips and tasks are cut, and whatever the number of threads. Between two blocks of k sums wait
// in out, or, where that is half, in fp32 for kWaitingColumns columns at a time.
//
// Source: as cpu/gemm.hpp and cpu/float_parts.hpp.
#pragma once

#include <algorithm>
#include <type_traits>

#include "rapt/cpu/float_parts.hpp"
#include "rapt/cpu/gemm.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Whether parts in matrix registers are faster than multiply-adds: splitting b pays for itself
/// from three tiles of rows on, of half, which takes fewer products, from one.
template <class T>
bool parts_pay(index_t m, index_t n, index_t k) {
  constexpr bool kHalf = std::is_same_v<T, half>;
  return m >= (kHalf ? 32 : 96) && std::min(n, k) >= (kHalf ? 32 : 64) && amx_granted();
}

/// The product above for any m, n and k; Out is T or float. Tiles: AmxPartTiles, or what a test
/// puts in its place.
template <class T, class Out, class Tiles = AmxPartTiles, class Unit = Bfloat16Pair>
class PartsGemm {
  using V = Vec<float>;
  using F = ProductFormat<T>;  // of b, packed: half a tile lies in one panel
  using Parts = PartsOf<T>;
  static_assert(!kAmx || F::kPanel % (Parts::kRows / 2) == 0);
  static constexpr index_t kTile = Parts::kRows;
  static constexpr index_t kDepthBlock = 1728 / Parts::kRight;  // elements of k: 108 KiB of a tile
  static constexpr index_t kStrip = 8 * kTile;                  // columns: 864 KiB of parts
  static constexpr index_t kRowBlock = 2048;                    // 6.75 MiB of parts
  static constexpr index_t kWorthThreads = 65536;  // numbers, below which splitting wakes nobody
  static constexpr index_t kWaitingColumns = 32 * F::kPanel;
  static constexpr bool kWaitsInOut = std::is_same_v<Out, float>;

 public:
  PartsGemm(TensorView<Out, 2> out, MatrixRef<T> a, const ProductWeights<T>& b, index_t k,
            const float* bias, bool accumulate)
      : out_(out), a_(a), b_(b), k_(k), bias_(bias), accumulate_(accumulate) {}

  void run() const {
    const index_t m = out_.extent(0), n = out_.extent(1);
    const index_t depths = std::max<index_t>(1, detail::blocks_of(k_, kDepthBlock));
    const index_t blocks = detail::part_blocks(detail::blocks_of(k_, depths));
    const index_t depth = blocks * Parts::kDepth;
    const bool waits = !kWaitsInOut && depths > 1;
    const index_t rows = std::min(m, kRowBlock), columns = waits ? std::min(n, kWaitingColumns) : n;
    Scratch<Cpu> scratch;
    Piece piece{.tile = blocks * Parts::kBlock};
    piece.rows = tiles(scratch, rows, piece.tile);
    if (waits) piece.sums = scratch.tensor<float>(Shape{rows, columns}).data();
    for (index_t i = 0; i < m; i += kRowBlock)
      for (index_t j = 0; j < n; j += columns)
        for (index_t block = 0; block < depths; ++block) {
          piece.row = i, piece.row_end = std::min(m, i + kRowBlock);
          piece.column = j, piece.column_end = std::min(n, j + columns);
          piece.at = block * depth, piece.depth = std::min(depth, k_ - piece.at);
          run(piece);
        }
  }

 private:
  /// Rows [row, row_end), columns [column, column_end), elements [at, at + depth) of k; the parts
  /// of the rows, `tile` pairs for each 32; and where sums wait, if not in out.
  struct Piece {
    index_t tile;
    Unit* rows = nullptr;
    float* sums = nullptr;  // [row_end - row, column_end - column]
    index_t row = 0, row_end = 0, column = 0, column_end = 0, at = 0, depth = 0;

    index_t columns() const { return column_end - column; }
    index_t row_tiles() const { return detail::blocks_of(row_end - row, kTile); }
  };

  static Unit* tiles(Scratch<Cpu>& scratch, index_t extent, index_t tile) {
    return scratch.tensor<Unit>(Shape{detail::blocks_of(extent, kTile) * tile}).data();
  }

  void run(const Piece& piece) const {
    const index_t n = piece.columns(), row_tiles = piece.row_tiles();
    const auto split = [&](index_t i) {
      split_rows(piece.rows + i * piece.tile, piece.row + i * kTile, piece);
    };
    if ((piece.row_end - piece.row) * piece.depth < kWorthThreads)
      for (index_t i = 0; i < row_tiles; ++i) split(i);
    else
      parallel_for(row_tiles, split);
    // Strips first: each group of rows splits its strip anew.
    index_t strip = std::min(kStrip, detail::blocks_of(n, kTile) * kTile), groups = 1;
    const auto tasks = [&] { return detail::blocks_of(n, strip) * groups; };
    const index_t wanted = num_threads() == 1 ? 1 : 3 * num_threads();
    while (tasks() < wanted && strip > 2 * kTile)
      strip = detail::blocks_of(strip / 2, kTile) * kTile;
    while (tasks() < wanted && row_tiles >= 8 * groups) groups *= 2;
    parallel_for(tasks(), [&](index_t task) {
      const index_t group = task % groups, column = piece.column + task / groups * strip;
      multiply(piece, row_tiles * group / groups, row_tiles * (group + 1) / groups, column,
               std::min(piece.column_end, column + strip));
    });
  }

  /// Rows from i on, of one tile.
  void split_rows(Unit* to, index_t i, const Piece& piece) const {
    const index_t n = std::min(kTile, piece.row_end - i), l = piece.at;
    const T* const rows = a_.at(i, l);
    const auto split = [&](const auto* from, index_t stride) {
      for (index_t r = 0; r < n; ++r)
        detail::split_row(LeftParts<Parts, Unit>{to}, r, piece.depth,
                          [&](index_t at, index_t left) {
                            return detail::load_some<V>(from + r * stride + at, left);
                          });
    };
    if (a_.by_rows) return split(rows, a_.outer);
    Scratch<Cpu> scratch;
    const index_t stride = detail::packed_row_stride<float>(piece.depth);
    float* const turned = scratch.tensor<float>(Shape{n, stride}).data();
    detail::pack_rows<T>(turned, stride, MatrixRef<T>{rows, a_.outer, false}, n, piece.depth);
    split(turned, stride);
  }

  /// Columns from j on, of one tile, none beyond `end`.
  void split_columns(Unit* to, index_t j, index_t end, const Piece& piece) const {
    for (index_t side = 0; side < 2; ++side, j += kTile / 2, to += Parts::kHalf) {
      const index_t n = std::min(kTile / 2, end - j), l = piece.at;
      if (n <= 0) return;
      const auto split = [&](const auto* from, index_t stride) {
        detail::split_columns<Parts>(to, n, piece.depth,
                                     [=](index_t at) { return from + at * stride; });
      };
      if (b_.packed != nullptr) {
        const index_t panel = j / F::kPanel * F::kPanel;
        const index_t stride =
            std::min(F::kPanel, detail::blocks_of(out_.extent(1) - panel, F::kLanes) * F::kLanes);
        split(b_.packed + panel * k_ + l * stride + (j - panel), stride);
      } else if (b_.plain.by_rows) {
        split(b_.plain.at(l, j), b_.plain.outer);
      } else {
        Scratch<Cpu> scratch;
        const index_t stride = detail::blocks_of(n, V::kLanes) * V::kLanes;
        float* const turned = scratch.tensor<float>(Shape{piece.depth, stride}).data();
        detail::pack_panel(turned, MatrixRef<T>{b_.plain.at(l, j), b_.plain.outer, false}, n,
                           piece.depth);
        split(turned, stride);
      }
    }
  }

  /// Tiles [first, last) of the rows by columns [begin, end).
  void multiply(const Piece& piece, index_t first, index_t last, index_t begin, index_t end) const {
    Scratch<Cpu> scratch;
    Unit* const columns = tiles(scratch, end - begin, piece.tile);
    for (index_t j = begin; j < end; j += kTile)
      split_columns(columns + (j - begin) / kTile * piece.tile, j, end, piece);
    Tiles registers;
    alignas(64) float sums[kTile * kTile];
    const index_t blocks = detail::part_blocks(piece.depth), stride = out_.stride(0);
    const bool begins = piece.at == 0, ends = piece.at + piece.depth == k_;
    for (index_t t = first; t < last; ++t) {
      const index_t i = piece.row + t * kTile, m = std::min(kTile, piece.row_end - i);
      const LeftParts<Parts, Unit> rows{piece.rows + t * piece.tile};
      for (index_t j = begin; j < end; j += kTile) {
        const index_t n = std::min(kTile, end - j);
        Out* const to = out_.data() + i * stride + j;
        for (index_t r = 0; r < m; ++r)  // may come from memory
          for (index_t c = 0; c < n; c += 16) __builtin_prefetch(to + r * stride + c, 1);
        registers.multiply(m, n, false, sums, kTile, rows,
                           columns + (j - begin) / kTile * piece.tile, blocks);
        const float* const bias = begins && bias_ != nullptr ? bias_ + j : nullptr;
        for (index_t r = 0; r < m; ++r) {
          const float* const of_row = sums + r * kTile;
          Out* const out = to + r * stride;
          if (piece.sums == nullptr) {
            write_row(out, accumulate_ || !begins ? out : nullptr, of_row, bias, n);
            continue;
          }
          float* const waiting =
              piece.sums + (i - piece.row + r) * piece.columns() + (j - piece.column);
          if (begins)
            write_row(waiting, accumulate_ ? out : nullptr, of_row, bias, n);
          else if (ends)
            write_row(out, waiting, of_row, bias, n);
          else
            write_row(waiting, waiting, of_row, bias, n);
        }
      }
    }
  }

  /// to = start (+ bias) + sums, n numbers; start may be to, or null, which is 0.
  template <class To, class Start>
  static void write_row(To* to, const Start* start, const float* sums, const float* bias,
                        index_t n) {
    for (index_t c = 0; c < n; c += V::kLanes) {
      const index_t left = n - c;
      V sum = start != nullptr ? detail::load_some<V>(start + c, left) : V::zero();
      if (bias != nullptr) sum = sum + detail::load_some<V>(bias + c, left);
      sum = sum + V::load(sums + c);
      left >= V::kLanes ? sum.store(to + c) : sum.store(to + c, left);
    }
  }

  const TensorView<Out, 2> out_;
  const MatrixRef<T> a_;
  const ProductWeights<T> b_;
  const index_t k_;
  const float* const bias_;
  const bool accumulate_;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
