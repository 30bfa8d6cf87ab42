// The packed matrix product of fp32 where the machine has matrix registers for bfloat16:
// out[m, n] = a[m, k] b[k, n] (+ bias) (+ out), factors in three parts (cpu/float_parts.hpp).
//
//   for each kRowBlock rows of a and each block of k, up to kDepthBlock, as long as each other
//     split      tiles of 32 rows of a                                            all threads
//     task       a strip of columns and a group of those rows                     all threads
//       split      the strip's tiles of 32 columns, which stay in L2
//       multiply   each 32 rows by the tiles of the strip, 32 x 32 sums at a time
//
// Every out[i, j] is (start + block 0) + block 1 + ..., a block a sum over elements of k, wherever
// strips and tasks are cut, and whatever the number of threads.
//
// Source: as cpu/gemm.hpp and cpu/float_parts.hpp.
#pragma once

#include <algorithm>

#include "rapt/cpu/float_parts.hpp"
#include "rapt/cpu/gemm.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Whether parts in matrix registers are faster than multiply-adds: splitting b pays for itself
/// from three tiles of rows on.
inline bool parts_pay(index_t m, index_t n, index_t k) {
  return m >= 96 && n >= 64 && k >= 64 && amx_granted();
}

/// The product above for any m, n and k. Tiles: AmxPartTiles, or what a test puts in its place.
template <class Tiles = AmxPartTiles, class Unit = Bfloat16Pair>
class PartsGemm {
  using V = Vec<float>;
  using F = ProductFormat<float>;  // of b, packed: half a tile lies in one panel
  static_assert(!kAmx || F::kPanel % (FloatParts::kRows / 2) == 0);
  static constexpr index_t kTile = FloatParts::kRows;
  static constexpr index_t kDepthBlock = 576;      // elements of k: 108 KiB of a tile's parts
  static constexpr index_t kStrip = 8 * kTile;     // columns: 864 KiB of parts
  static constexpr index_t kRowBlock = 2048;       // 6.75 MiB of parts
  static constexpr index_t kWorthThreads = 65536;  // numbers, below which splitting wakes nobody

 public:
  PartsGemm(TensorView<float, 2> out, MatrixRef<float> a, const ProductWeights<float>& b, index_t k,
            const float* bias, bool accumulate)
      : out_(out), a_(a), b_(b), k_(k), bias_(bias), accumulate_(accumulate) {}

  void run() const {
    const index_t m = out_.extent(0);
    const index_t depths = std::max<index_t>(1, detail::blocks_of(k_, kDepthBlock));
    const index_t blocks = detail::part_blocks(detail::blocks_of(k_, depths));
    const index_t depth = blocks * FloatParts::kDepth, tile = blocks * FloatParts::kBlock;
    Scratch<Cpu> scratch;
    Unit* const rows = tiles(scratch, std::min(m, kRowBlock), tile);
    for (index_t i = 0; i < m; i += kRowBlock)
      for (index_t block = 0; block < depths; ++block) {
        const index_t l = block * depth;
        run({i, std::min(m, i + kRowBlock), l, std::min(depth, k_ - l), rows, tile});
      }
  }

 private:
  /// Rows [row, row_end), elements [at, at + depth) of k, and the parts of them, `tile` pairs for
  /// each 32 rows.
  struct Piece {
    index_t row, row_end, at, depth;
    Unit* rows;
    index_t tile;

    index_t row_tiles() const { return detail::blocks_of(row_end - row, kTile); }
  };

  static Unit* tiles(Scratch<Cpu>& scratch, index_t extent, index_t tile) {
    return scratch.tensor<Unit>(Shape{detail::blocks_of(extent, kTile) * tile}).data();
  }

  void run(const Piece& piece) const {
    const index_t n = out_.extent(1), row_tiles = piece.row_tiles();
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
      const index_t group = task % groups, column = task / groups * strip;
      multiply(piece, row_tiles * group / groups, row_tiles * (group + 1) / groups, column,
               std::min(n, column + strip));
    });
  }

  /// Rows from i on, of one tile.
  void split_rows(Unit* to, index_t i, const Piece& piece) const {
    const index_t n = std::min(kTile, piece.row_end - i), l = piece.at;
    Scratch<Cpu> scratch;
    const float* rows = a_.at(i, l);
    index_t stride = a_.outer;
    if (!a_.by_rows) {
      stride = detail::packed_row_stride<float>(piece.depth);
      float* const turned = scratch.tensor<float>(Shape{n, stride}).data();
      detail::pack_rows<float>(turned, stride, MatrixRef<float>{rows, a_.outer, false}, n,
                               piece.depth);
      rows = turned;
    }
    for (index_t r = 0; r < n; ++r)
      detail::split_row(LeftParts<Unit>{to}, r, piece.depth, [&](index_t at, index_t left) {
        return detail::load_some<V>(rows + r * stride + at, left);
      });
  }

  /// Columns from j on, of one tile, none beyond `end`.
  void split_columns(Unit* to, index_t j, index_t end, const Piece& piece) const {
    for (index_t half = 0; half < 2; ++half, j += kTile / 2, to += FloatParts::kHalf) {
      const index_t n = std::min(kTile / 2, end - j), l = piece.at;
      if (n <= 0) return;
      Scratch<Cpu> scratch;
      const float* from;
      index_t stride;
      if (b_.packed != nullptr) {
        const index_t panel = j / F::kPanel * F::kPanel;
        stride =
            std::min(F::kPanel, detail::blocks_of(out_.extent(1) - panel, F::kLanes) * F::kLanes);
        from = b_.packed + panel * k_ + l * stride + (j - panel);
      } else if (b_.plain.by_rows) {
        stride = b_.plain.outer;
        from = b_.plain.at(l, j);
      } else {
        stride = detail::blocks_of(n, V::kLanes) * V::kLanes;
        float* const turned = scratch.tensor<float>(Shape{piece.depth, stride}).data();
        detail::pack_panel(turned, MatrixRef<float>{b_.plain.at(l, j), b_.plain.outer, false}, n,
                           piece.depth);
        from = turned;
      }
      detail::split_columns(to, n, piece.depth, [=](index_t at) { return from + at * stride; });
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
    const index_t blocks = detail::part_blocks(piece.depth);
    const bool begins = piece.at == 0;
    for (index_t t = first; t < last; ++t) {
      const index_t i = piece.row + t * kTile, m = std::min(kTile, piece.row_end - i);
      const LeftParts<Unit> rows{piece.rows + t * piece.tile};
      for (index_t j = begin; j < end; j += kTile) {
        const index_t n = std::min(kTile, end - j), stride = out_.stride(0);
        float* const to = out_.data() + i * stride + j;
        for (index_t r = 0; r < m; ++r)  // may come from memory
          for (index_t c = 0; c < n; c += 16) __builtin_prefetch(to + r * stride + c, 1);
        registers.multiply(m, n, false, sums, kTile, rows,
                           columns + (j - begin) / kTile * piece.tile, blocks);
        const float* const bias = begins && bias_ != nullptr ? bias_ + j : nullptr;
        for (index_t r = 0; r < m; ++r)
          write_row(to + r * stride, sums + r * kTile, bias, accumulate_ || !begins, n);
      }
    }
  }

  static void write_row(float* to, const float* sums, const float* bias, bool add, index_t n) {
    for (index_t c = 0; c < n; c += V::kLanes) {
      const index_t left = n - c;
      V start = add ? detail::load_some<V>(to + c, left) : V::zero();
      if (bias != nullptr) start = start + detail::load_some<V>(bias + c, left);
      const V sum = start + V::load(sums + c);
      left >= V::kLanes ? sum.store(to + c) : sum.store(to + c, left);
    }
  }

  const TensorView<float, 2> out_;
  const MatrixRef<float> a_;
  const ProductWeights<float> b_;
  const index_t k_;
  const float* const bias_;
  const bool accumulate_;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
