// The five products of a tile of the gradient of attention,
//
//   S = Q K^T     dP = dO V^T     dQ += dU K     dV += P^T dO     dK += dU^T Q
//
//   VectorBackward<T>     fp32 (or double) multiply-adds on widened copies; each six rows over the
//                         columns that they see
//   PairBackward<Tiles>   pairs of bfloat16: q, k, v and dO as they are, P and dU rounded to 8
//                         bits, sums in fp32; the smallest box, in steps of 16 rows and 32 columns,
//                         that holds what the tile's rows see
//
// What is rounded once enters a sum of many terms, and a gradient's last bit is coarser. Inputs are
// exact in pairs, but for subnormal ones, which are 0 there. A sink's weight w, which joins dO in
// fp32, stays with the row: dP and P are multiplied by it. An entry of q or k that is not finite
// makes S, and so dU, NaN or 0 for every pair that it is in: as a factor of dU it may be 0, so that
// what is hidden (dU = 0) never meets it. One of dO is a factor of P, which may be any number: such
// rows are summed pair by pair.
//
// PairBackward, with A by rows and B in pairs along what is summed (cpu/attention_pairs.hpp):
//
//            A                                       B, packed once
//   S, dP    q, dO  [rows][dim]                      K^T, V^T  a tile   [keys / 32][dim / 2][32]
//   dQ       dU     [rows][keys]    narrowed         K         a tile   [dims / 32][keys / 2][32]
//   dV, dK   P, dU  [keys][rows]    transposed       dO, Q     a chunk  [dims / 32][rows / 2][32]
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_backward_tile.hpp"
#include "rapt/cpu/attention_pairs.hpp"
#include "rapt/cpu/gemm.hpp"
#include "rapt/cpu/simd.hpp"
#include "rapt/cpu/simd/amx.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Columns [begin, end) of the tile hold all that six rows see of it. Bit v of `tested`: not all
/// of vector v is seen, and the tile's bits say what.
struct BackwardColumns {
  index_t begin, end;
  std::uint32_t tested;
  bool empty() const { return begin >= end; }
};

/// A tile: queries [0, queries) of one head and keys [0, keys).
template <class A>
struct BackwardTile {
  A *s, *dp;                       // [kRowTile][kKeyTile]: S, then P; dP, then dU
  const BackwardColumns* columns;  // of each six rows
  index_t queries, keys;
  index_t row;    // packed row of query 0
  index_t index;  // of the row tile within the chunk
};

namespace detail {

/// dQ += dU K, each six rows over the columns they see; pair by pair where K is not finite.
template <class A>
void add_to_queries(A* dq, const BackwardTile<A>& tile, const A* keys, index_t step, index_t dim,
                    bool finite) {
  constexpr index_t kGroup = BackwardTiling<A>::kGroup, kKeyTile = BackwardTiling<A>::kKeyTile;
  for (index_t first = 0; first < tile.queries; first += kGroup) {
    const BackwardColumns& of = tile.columns[first / kGroup];
    if (of.empty()) continue;
    const int n = static_cast<int>(std::min<index_t>(kGroup, tile.queries - first));
    A* const to = dq + first * step;
    const A* const du = tile.dp + first * kKeyTile + of.begin;
    const A* const from = keys + of.begin * step;
    if (finite) {
      add_product<false>(n, to, step, du, kKeyTile, from, step, of.end - of.begin, dim);
    } else {
      for (index_t r = 0; r < n; ++r)
        add_seen(to + r * step, du + r * kKeyTile, 1, from, step, of.end - of.begin, dim);
    }
  }
}

/// dV += P^T dO or dK += dU^T Q, each six keys over the rows that see them; pair by pair where the
/// rows are not finite.
template <class A>
void add_to_keys(A* sums, const BackwardTile<A>& tile, const A* weights, const A* rows,
                 index_t step, index_t dim, bool finite) {
  constexpr index_t kGroup = BackwardTiling<A>::kGroup, kKeyTile = BackwardTiling<A>::kKeyTile;
  const index_t groups = (tile.queries + kGroup - 1) / kGroup;
  for (index_t key = 0; key < tile.keys; key += kGroup) {
    const index_t count = std::min<index_t>(kGroup, tile.keys - key);
    const auto sees = [&](index_t g) {
      return tile.columns[g].begin < key + count && tile.columns[g].end > key;
    };
    index_t begin = 0, end = groups;
    while (begin < end && !sees(begin)) ++begin;
    while (begin < end && !sees(end - 1)) --end;
    if (begin == end) continue;
    const index_t first = begin * kGroup, depth = std::min(tile.queries, end * kGroup) - first;
    const A* const a = weights + first * kKeyTile + key;
    if (finite) {
      add_product<true>(static_cast<int>(count), sums + key * step, step, a, kKeyTile,
                        rows + first * step, step, depth, dim);
    } else {
      for (index_t j = 0; j < count; ++j)
        add_seen(sums + (key + j) * step, a + j, kKeyTile, rows + first * step, step, depth, dim);
    }
  }
}

}  // namespace detail

/// On copies in the accumulation type.
template <class T>
class VectorBackward {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  using Tiling = BackwardTiling<A>;
  using Tile = BackwardTile<A>;
  static constexpr index_t kGroup = Tiling::kGroup, kLanes = Tiling::kLanes;
  static constexpr index_t kPanel = Tiling::kPanel, kKeyTile = Tiling::kKeyTile;

 public:
  VectorBackward(Scratch<Cpu>& scratch, index_t rows, index_t, index_t dim, index_t value_dim)
      : dim_(dim),
        value_dim_(value_dim),
        k_step_(Tiling::row_step(dim)),
        v_step_(Tiling::row_step(value_dim)) {
    const auto buffer = [&](index_t n) { return scratch.tensor<A>(Shape<1>{n}).data(); };
    q_ = buffer(rows * k_step_);
    dout_ = buffer(rows * v_step_);
    keys_ = buffer(kKeyTile * k_step_);
    keys_across_ = buffer(kKeyTile * dim_);
    values_across_ = buffer(kKeyTile * value_dim_);
  }

  /// Row r of the chunk; `difference` as pack_row collects it.
  void set_row(index_t r, const T* q, const T* dout, A weight, V& difference) {
    detail::pack_row(q_ + r * k_step_, q, dim_, A(1), difference);
    detail::pack_row(dout_ + r * v_step_, dout, value_dim_, weight, difference);
  }
  void clear_row(index_t r) {
    std::fill_n(q_ + r * k_step_, k_step_, A(0));
    std::fill_n(dout_ + r * v_step_, v_step_, A(0));
  }
  /// After the rows of a row tile are set.
  void pack_row_tile(index_t, index_t, index_t) {}

  void pack_values(const T* const* rows, index_t n) {
    detail::pack_keys(values_across_, rows, n, value_dim_);
  }
  /// Says whether all keys are finite.
  bool pack_keys(const T* const* rows, index_t n) {
    detail::pack_keys(keys_across_, rows, n, dim_);
    V difference = V::zero();
    for (index_t j = 0; j < n; ++j)
      detail::pack_row(keys_ + j * k_step_, rows[j], dim_, A(1), difference);
    return sum(difference) == A(0);
  }

  /// S and dP.
  void scores(const Tile& tile) const {
    multiply_across(tile, tile.s, q_ + tile.row * k_step_, k_step_, keys_across_, dim_);
    multiply_across(tile, tile.dp, dout_ + tile.row * v_step_, v_step_, values_across_, value_dim_);
  }
  void add_to_queries(A* dq, const Tile& tile, bool finite) const {
    detail::add_to_queries(dq, tile, keys_, k_step_, dim_, finite);
  }
  void add_to_keys(A* dk, A* dv, const Tile& tile, bool finite) const {
    detail::add_to_keys(dv, tile, tile.s, dout_ + tile.row * v_step_, v_step_, value_dim_, finite);
    detail::add_to_keys(dk, tile, tile.dp, q_ + tile.row * k_step_, k_step_, dim_, finite);
  }

 private:
  /// out[rows, columns of each six] = a b, b packed across.
  static void multiply_across(const Tile& tile, A* out, const A* a, index_t a_step, const A* b,
                              index_t depth) {
    for (index_t first = 0; first < tile.queries; first += kGroup) {
      const BackwardColumns& of = tile.columns[first / kGroup];
      if (of.empty()) continue;
      const int rows = static_cast<int>(std::min<index_t>(kGroup, tile.queries - first));
      const index_t end = detail::round_up(of.end, kLanes);
      for (index_t j = of.begin / kLanes * kLanes; j < end;) {
        const index_t stop = std::min(end, (j / kPanel + 1) * kPanel);
        detail::product<false, false>(rows, static_cast<int>((stop - j) / kLanes),
                                      out + first * kKeyTile + j, kKeyTile, a + first * a_step,
                                      a_step, b + j / kPanel * kPanel * depth + j % kPanel, kPanel,
                                      depth);
        j = stop;
      }
    }
  }

  const index_t dim_, value_dim_, k_step_, v_step_;
  A *q_, *dout_;                             // packed rows of the chunk
  A *keys_, *keys_across_, *values_across_;  // of the tile: [keys][k_step], and as panels
};

/// The interface of AmxTiles on dot products of pairs.
template <class Unit_ = Bfloat16Pair>
class DotTiles {
  struct Format {
    using Sum = float;
    using Element = bfloat16;
    using Unit = Unit_;
    static constexpr index_t kDepth = 2;
  };
  static constexpr int kVectors = 16 / Vec<float>::kLanes, kHeight = 8;

 public:
  static constexpr index_t kRows = 32, kUnits = 16;

  void multiply(index_t rows, index_t vectors, float* to, index_t to_stride, const float* start,
                index_t start_stride, const bfloat16* a, index_t a_stride, const Unit_* b,
                index_t b_stride, index_t depth) {
    const auto kernel = vectors == 1
                            ? &detail::multiply_rows_panel<Format, Unit_, kHeight, kVectors>
                            : &detail::multiply_rows_panel<Format, Unit_, kHeight, 2 * kVectors>;
    for (index_t r = 0; r < rows; r += kHeight)
      kernel(to + r * to_stride, to_stride, start + r * start_stride, start_stride,
             a + r * a_stride, a_stride, b, b_stride, depth);
  }
};

/// On pairs of bfloat16.
template <class Tiles, class Unit = Bfloat16Pair>
class PairBackward {
  using V = Vec<float>;
  using U = Vec<Unit>;
  using Tiling = BackwardTiling<float>;
  using Tile = BackwardTile<float>;
  static constexpr index_t kLanes = Tiling::kLanes, kGroup = Tiling::kGroup;
  static constexpr index_t kKeyTile = Tiling::kKeyTile, kRowTile = Tiling::kRowTile;
  static constexpr index_t kRows = detail::kTileColumns, kStep = detail::kPairStep;
  static_assert(kStep == 2 * Tiles::kUnits && kRowTile % kStep == 0 && kKeyTile % kStep == 0);

 public:
  PairBackward(Scratch<Cpu>& scratch, index_t rows, index_t row_tiles, index_t dim,
               index_t value_dim)
      : q_(scratch, rows, row_tiles, dim), dout_(scratch, rows, row_tiles, value_dim) {
    const auto units = [&](index_t n) { return scratch.tensor<Unit>(Shape<1>{n}).data(); };
    const auto numbers = [&](index_t n) { return scratch.tensor<bfloat16>(Shape<1>{n}).data(); };
    keys_across_ = units(kKeyTile / 2 * q_.step);
    values_across_ = units(kKeyTile / 2 * dout_.step);
    keys_ = units(kKeyTile / 2 * q_.columns);
    du_ = numbers((kRowTile + kRows) * kKeyTile);
    across_ = numbers(kKeyTile * kRowTile);
    weights_ = scratch.tensor<float>(Shape<1>{rows}).data();
    wide_ =
        scratch.tensor<float>(Shape<1>{kRowTile * std::max(q_.sum_step, dout_.sum_step)}).data();
  }

  void set_row(index_t r, const bfloat16* q, const bfloat16* dout, float weight, V& difference) {
    V ignored = V::zero();
    q_.set(r, q, ignored);
    dout_.set(r, dout, difference);
    // Of a row with a NaN weight all of P is NaN already, but for what is hidden, which stays 0.
    weights_[r] = std::isnan(weight) ? 1.f : weight;
  }
  void clear_row(index_t r) {
    std::fill_n(q_.row(r), q_.step, bfloat16{});
    std::fill_n(dout_.row(r), dout_.step, bfloat16{});
    weights_[r] = 1;
  }
  void pack_row_tile(index_t index, index_t first, index_t n) {
    if (!q_.pack(index, first, n)) clear_infinite(q_.pairs_of(index), (kRowTile / 2) * q_.columns);
    dout_.pack(index, first, n);
  }

  void pack_values(const bfloat16* const* rows, index_t n) {
    detail::pack_key_pairs<detail::kPairPanel>(values_across_, rows, n,
                                               detail::round_up(n, detail::kPairPanel), dout_.dim,
                                               dout_.step / 2);
  }
  /// True: what is not finite becomes 0 for add_to_queries.
  bool pack_keys(const bfloat16* const* rows, index_t n) {
    detail::pack_key_pairs<detail::kPairPanel>(
        keys_across_, rows, n, detail::round_up(n, detail::kPairPanel), q_.dim, q_.step / 2);
    if (!detail::pack_row_pairs<kKeyTile / 2>(keys_, rows, n, detail::round_up(n, kStep), q_.dim))
      clear_infinite(keys_, kKeyTile / 2 * q_.columns);
    return true;
  }

  void scores(const Tile& tile) {
    const Box box(tile);
    if (box.empty()) return;
    const index_t first = box.row / kRows * kRows;
    const auto multiply = [&](float* to, const Rows& rows, const Unit* across) {
      detail::pair_product(tiles_, to + first * kKeyTile, kKeyTile, box.row_end - first, box.key,
                           box.key_end, rows.row(tile.row + first), rows.step, across,
                           rows.step / 2);
    };
    multiply(tile.s, q_, keys_across_);
    multiply(tile.dp, dout_, values_across_);
    for (index_t r = box.row; r < box.row_end; ++r)
      if (const float weight = weights_[tile.row + r]; weight != 1)
        for (index_t j = 0; j < kKeyTile; j += kLanes) {
          float* const dp = tile.dp + r * kKeyTile + j;
          (V::load(dp) * V::broadcast(weight)).store(dp);
        }
  }

  void add_to_queries(float* dq, const Tile& tile, bool) {
    const Box box(tile);
    if (box.empty()) return;
    const index_t begin = box.key / kStep * kStep, end = detail::round_up(box.key_end, kStep);
    for (index_t r = box.row; r < box.row_end; ++r)
      for (index_t j = begin; j < end; j += 2 * kLanes) {
        const auto some = [&](index_t at) {  // what lies beyond the last key is garbage
          const V du = V::load(tile.dp + r * kKeyTile + at);
          return at + kLanes <= tile.keys
                     ? du
                     : select(detail::first_lanes<float>(tile.keys - at), du, V::zero());
        };
        U::narrow(some(j), some(j + kLanes)).store(du_ + r * kKeyTile + j);
      }
    detail::add_pair_product<kKeyTile / 2>(
        tiles_, dq + box.row * q_.sum_step, q_.sum_step, box.row_end - box.row, q_.dim,
        du_ + box.row * kKeyTile + begin, kKeyTile, keys_, begin / 2, (end - begin) / 2);
  }

  void add_to_keys(float* dk, float* dv, const Tile& tile, bool finite) {
    const Box box(tile);
    if (box.empty()) return;
    if (!finite) return add_seen_rows(dk, dv, tile);
    const index_t key = box.key / kRows * kRows;
    const index_t begin = box.row / kStep * kStep, end = detail::round_up(box.row_end, kStep);
    const auto add = [&](float* sums, const Rows& rows) {
      detail::add_pair_product<kRowTile / 2>(
          tiles_, sums + key * rows.sum_step, rows.sum_step, box.key_end - key, rows.dim,
          across_ + begin, kRowTile, rows.pairs_of(tile.index), begin / 2, (end - begin) / 2);
    };
    transpose<true>(tile, tile.s, key, box.key_end, begin, end);
    add(dv, dout_);
    transpose<false>(tile, tile.dp, key, box.key_end, begin, end);
    add(dk, q_);
  }

 private:
  /// Rows of the chunk, as they are and in pairs, a row tile at a time.
  struct Rows {
    index_t dim, step, columns, sum_step;
    bfloat16* rows;  // [rows][step], and 15 more
    Unit* pairs;     // [row tiles][panels]

    Rows(Scratch<Cpu>& scratch, index_t n, index_t row_tiles, index_t dim_)
        : dim(dim_),
          step(detail::round_up(dim, kStep)),
          columns(detail::round_up(dim, detail::kTileColumns)),
          sum_step(Tiling::row_step(dim)),
          rows(scratch.tensor<bfloat16>(Shape<1>{(n + kRows - 1) * step}).data()),
          pairs(scratch.tensor<Unit>(Shape<1>{row_tiles * (kRowTile / 2) * columns}).data()) {
      std::fill_n(rows, (n + kRows - 1) * step, bfloat16{});
    }

    bfloat16* row(index_t r) const { return rows + r * step; }
    Unit* pairs_of(index_t tile) const { return pairs + tile * (kRowTile / 2) * columns; }

    void set(index_t r, const bfloat16* from, V& difference) {
      for (index_t t = 0; t < dim; t += kLanes) {
        const V x = detail::load_lanes<float>(from + t, dim - t);
        difference = difference + (x - x);
        detail::store_lanes(x, row(r) + t, dim - t);
      }
    }
    /// Says whether all of them are finite.
    bool pack(index_t tile, index_t first, index_t n) {
      const bfloat16* from[kRowTile];
      for (index_t r = 0; r < n; ++r) from[r] = row(first + r);
      return detail::pack_row_pairs<kRowTile / 2>(pairs_of(tile), from, n,
                                                  detail::round_up(n, kStep), dim);
    }
  };

  /// Rows and keys that hold all that the tile sees.
  struct Box {
    index_t row = 0, row_end = 0, key = kKeyTile, key_end = 0;
    bool empty() const { return row >= row_end; }

    explicit Box(const Tile& tile) {
      for (index_t first = 0; first < tile.queries; first += kGroup) {
        const BackwardColumns& columns = tile.columns[first / kGroup];
        if (columns.empty()) continue;
        if (row_end == 0) row = first;
        row_end = std::min(first + kGroup, tile.queries);
        key = std::min(key, columns.begin);
        key_end = std::max(key_end, columns.end);
      }
    }
  };

  /// across_[key - first][row] = from[row][key], rounded, for rows [begin, end); those that do not
  /// exist are 0. kWeights: times the row's weight.
  template <bool kWeights>
  void transpose(const Tile& tile, const float* from, index_t first, index_t last, index_t begin,
                 index_t end) {
    for (index_t row = begin; row < end; row += 2 * kLanes)
      detail::transpose_lines<U>(across_ + row, kRowTile, kLanes,
                                 detail::round_up(last - first, kRows),
                                 [&](index_t c, index_t j, index_t) {
                                   const auto some = [&](index_t r) {
                                     if (r >= tile.queries) return V::zero();
                                     const V x = V::load(from + r * kKeyTile + first + j);
                                     return kWeights ? x * V::broadcast(weights_[tile.row + r]) : x;
                                   };
                                   return U::narrow_pairs(some(row + 2 * c), some(row + 2 * c + 1));
                                 });
  }

  /// 0 for what is not finite.
  [[gnu::noinline, gnu::cold]] static void clear_infinite(Unit* pairs, index_t n) {
    for (index_t i = 0; i < n; ++i) {
      if (!std::isfinite(float(pairs[i].even))) pairs[i].even = {};
      if (!std::isfinite(float(pairs[i].odd))) pairs[i].odd = {};
    }
  }

  /// Pair by pair, in fp32.
  [[gnu::noinline, gnu::cold]] void add_seen_rows(float* dk, float* dv, const Tile& tile) {
    const auto add = [&](float* sums, const float* weights, const Rows& rows, bool weighted) {
      V ignored = V::zero();
      for (index_t r = 0; r < tile.queries; ++r)
        detail::pack_row(wide_ + r * rows.sum_step, rows.row(tile.row + r), rows.dim,
                         weighted ? weights_[tile.row + r] : 1.f, ignored);
      detail::add_to_keys(sums, tile, weights, wide_, rows.sum_step, rows.dim, false);
    };
    add(dv, tile.s, dout_, true);
    add(dk, tile.dp, q_, false);
  }

  Rows q_, dout_;
  Unit *keys_across_, *values_across_, *keys_;  // of the tile of keys
  bfloat16 *du_, *across_;                      // [kRowTile][kKeyTile], [kKeyTile][kRowTile]
  float *weights_, *wide_;                      // of each row; a tile of rows in fp32
  Tiles tiles_;
};

/// Of elements of type T, without matrix registers (see AttentionProduct).
template <class T>
using BackwardProduct = std::conditional_t<std::is_same_v<T, bfloat16> && kBfloat16Dot && !kAmx,
                                           PairBackward<DotTiles<>>, VectorBackward<T>>;

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
