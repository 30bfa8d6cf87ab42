// The two products of a tile of attention, S = Q K^T and O = f O + P V, as the machine has them:
//
//                        Q, K                 S                    P, V           O
//   VectorProduct<T>     widened to fp32      fp32 multiply-adds   fp32           multiply-adds
//   with Bfloat16Pair    bf16, two dims each  vdpbf16ps            bf16, two keys vdpbf16ps
//   AmxProduct           bf16, two dims each  tdpbf16ps            bf16, two keys tdpbf16ps
//   PartsProduct<float>  fp32 in three bf16   six tdpbf16ps        the same       six tdpbf16ps
//   PartsProduct<half>   half in two bf16     four tdpbf16ps       16 bits, two   four tdpbf16ps
//   over codes           K, V: one            three or two         as above       three or two
//
// (double: multiply-adds of double.) Sums are fp32 everywhere, and the products of bfloat16 inputs
// are exact, so S is as good as that of fp32, except that pairs flush subnormal inputs and sums to
// 0: an error below 2^-126 times the other factor. P is rounded to bfloat16 for its product (as by
// FlashAttention and every kernel on tensor cores), l sums the weights before: that adds at most
// 2^-9 times the mean of |v| under the same weights to an entry's error.
//
// A product holds the queries of a block and what is packed of a tile of keys:
//
//   Tiling                         the sizes of its tiles
//   Unit, key_units(dim), value_units(value_dim)     what a packed tile takes
//   pack_keys(to, ...), pack_values(to, ...)   rows[0..n) of the tile, times scales[0..n) where
//                                  these are codes of 8 bits; says whether all values are finite
//   set_query(r, q, factor)        row r of the block
//   kScalesQueries                 whether factor may be any number; else it is 1 or -1
//   kTakesInfinities               whether accumulate() gives an infinity for one among the values
//   use(k, v)                      the packed tile that what follows multiplies
//   scores(tile)                   S of the tile's rows, each in its columns (rounded outwards)
//   Weight                         what of the tile's scores become (soften_row): A, or pairs
//   Decode                         the products for few rows (cpu/attention_decode_product.hpp)
//   accumulate(o, tile)            O = f O + P V, or P V where tile.first says that o holds
//                                  nothing; P may be overwritten
//   accumulate_seen(o, tile, r, rows)    the same for row r of the tile, keys of weight 0 left
//                                  out; rows[j] is value j where it lies
#pragma once

#include <algorithm>
#include <span>
#include <type_traits>

#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_decode_int8_amx.hpp"
#include "rapt/cpu/attention_decode_product.hpp"
#include "rapt/cpu/attention_pairs.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/simd.hpp"
#include "rapt/cpu/simd/amx.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Some rows [begin, end) of a block.
struct RowGroup {
  index_t begin, end;
};

/// How the rows of a block fall into groups of up to kGroup, each of one run. operator[] divides: a
/// tile asks for its groups once.
template <int kGroup>
struct RowGroups {
  index_t rows, run;
  index_t of_run = (run + kGroup - 1) / kGroup;

  index_t count() const { return rows / run * of_run; }
  RowGroup operator[](index_t g) const {
    const index_t first = g / of_run * run, begin = first + g % of_run * kGroup;
    return {begin, std::min(begin + kGroup, first + run)};
  }
};

/// The scores of some rows of a block and one tile of keys.
template <class A>
struct ScoreTile {
  A* s;  // [rows][kKeyTile]
  std::span<const RowGroup> groups;
  index_t begin, end;              // its rows
  const detail::Columns* columns;  // what each row sees, from row `begin` on; groups share them
  const A* factors;                // f of each row
  bool first;                      // o holds nothing yet
};

namespace detail {

/// The products for few rows, but for bfloat16 in matrix registers.
template <class T, class Stored, class Unit>
using DecodeOf = std::conditional_t<
    std::is_same_v<Stored, std::int8_t> && std::is_same_v<Unit, float> && kDecodesInt8<Quads>,
    std::conditional_t<kAmxInt8, AmxInt8Decode<T>, Int8Decode<T>>, VectorDecode<T, Stored, Unit>>;

/// Row r of the weights that took the place of a tile's scores, in pairs (soften_row).
template <class Tile>
bfloat16* weights_of(const Tile& tile, index_t r) {
  return reinterpret_cast<bfloat16*>(tile.s + r * AttentionTiling<float>::kKeyTile);
}

/// The columns that hold what each row sees.
template <class Tile>
Columns seen_by_some(const Tile& tile) {
  Columns columns;
  for (const auto& [first, last] : tile.groups)
    if (const Columns of = tile.columns[first - tile.begin]) columns.include(of.begin, of.end);
  return columns;
}

/// Zeros among a row's weights of `keys`, whole vectors of them, where it sees nothing.
template <class W>
void clear_outside(W* weights, Columns columns, Columns keys) {
  constexpr index_t kLanes = Vec<float>::kLanes;
  const index_t begin = columns ? columns.begin / kLanes * kLanes : keys.end;
  const index_t end = columns ? round_up(columns.end, kLanes) : keys.end;
  if (begin > keys.begin) std::fill(weights + keys.begin, weights + begin, W{});
  if (end < keys.end) std::fill(weights + end, weights + keys.end, W{});
}

/// o = f o, n numbers in whole vectors.
inline void scale_sums(float* o, index_t n, float factor) {
  using V = Vec<float>;
  for (index_t t = 0; t < n; t += V::kLanes) (V::load(o + t) * V::broadcast(factor)).store(o + t);
}

/// o = f o + sum of weights[j] v_j over the keys of `columns`, those of weight 0 left out; value(j,
/// t) are the lanes of v_j from dim t on.
template <class A, class W, class Value>
[[gnu::noinline]] void accumulate_seen(A* o, A factor, const W* weights, Columns columns,
                                       index_t value_dim, Value value) {
  using V = Vec<A>;
  for (index_t t = 0; t < value_dim; t += V::kLanes) {
    V sum = V::load(o + t) * V::broadcast(factor);
    for (index_t j = columns.begin; j < columns.end; ++j)
      if (const A weight = convert<A>(weights[j]); weight != 0)
        sum = fma(V::broadcast(weight), value(j, t), sum);
    sum.store(o + t);
  }
}

}  // namespace detail

/// Register tiles of multiply-adds, over keys and values of type Stored. Unit: accumulate_t<T>, or
/// Bfloat16Pair.
template <class T, class Packed = accumulate_t<T>, class Stored = T>
class VectorProduct {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  using Columns = detail::Columns;
  static constexpr bool kPairs = std::is_same_v<Packed, Bfloat16Pair>;
  static constexpr index_t kElements = detail::kUnitElements<Packed>;
  using Factor = std::conditional_t<kPairs, bfloat16, A>;  // an element of Q or P

 public:
  using Unit = Packed;
  using Tiling = AttentionTiling<A>;
  using Tile = ScoreTile<A>;
  using Weight = Unit;
  static constexpr bool kScalesQueries = !kPairs, kTakesInfinities = true;
  using Decode = detail::DecodeOf<T, Stored, Unit>;

  VectorProduct(Scratch<Cpu>& scratch, index_t rows, index_t dim, index_t value_dim)
      : dim_(dim),
        dim_step_(detail::round_up(dim, V::kLanes)),
        units_(units_of(dim)),
        value_dim_(value_dim),
        value_step_(detail::round_up(value_dim, V::kLanes)) {
    q_ = scratch.tensor<Factor>(Shape<1>{rows * dim_step_}).data();
  }

  static index_t key_units(index_t dim) { return kKeyTile * units_of(dim); }
  static index_t value_units(index_t value_dim) {
    return detail::round_up(value_dim, kPanel) * kKeyUnits;
  }
  static void pack_keys(Unit* to, const Stored* const* rows, index_t n, index_t dim,
                        const float* scales = nullptr) {
    if constexpr (kPairs)
      detail::pack_key_pairs<kPanel>(to, rows, n, n, dim, units_of(dim));
    else
      detail::pack_keys(to, rows, n, dim, scales);
  }
  static bool pack_values(Unit* to, const Stored* const* rows, index_t n, index_t value_dim,
                          const float* scales = nullptr) {
    if constexpr (kPairs)
      return detail::pack_row_pairs<kKeyUnits, kPanel>(to, rows, n, detail::round_up(n, kElements),
                                                       value_dim);
    else
      return detail::pack_values(to, rows, n, value_dim, scales);
  }
  void use(const Unit* k, const Unit* v) { k_ = k, v_ = v; }

  void set_query(index_t r, const T* q, A factor) {
    Factor* const to = q_ + r * dim_step_;
    if constexpr (kPairs)
      if (factor == 1) {
        std::fill(std::copy_n(q, dim_, to), to + dim_step_, bfloat16{});
        return;
      }
    for (index_t t = 0; t < dim_; t += V::kLanes)
      (detail::load_lanes<A>(q + t, dim_ - t) * V::broadcast(factor)).store(to + t);
  }

  /// Panel by panel, so that one stays in the first cache for all rows.
  void scores(const Tile& tile) const {
    for (index_t p = 0; p < Tiling::kPanels; ++p)
      for (const auto& [first, last] : tile.groups)
        multiply_panel(tile, first, last, p, tile.columns[first - tile.begin]);
  }

  void accumulate(A* o, const Tile& tile) const {
    if (tile.first)
      accumulate_by<detail::Start::zero>(o, tile);
    else
      accumulate_by<detail::Start::scale>(o, tile);
  }

  void accumulate_seen(A* o, const Tile& tile, index_t r, const Stored* const* rows) const {
    detail::accumulate_seen(
        o, tile.factors[r], weights(tile, r), tile.columns[r], value_dim_,
        [&](index_t j, index_t t) {
          if constexpr (kPairs)
            return detail::load_lanes<A>(rows[j] + t, value_dim_ - t);
          else
            return V::load(v_ + (t / kPanel * kKeyTile + j) * kPanel + t % kPanel);
        });
  }

 private:
  static constexpr index_t kPanel = Tiling::kPanel, kKeyTile = Tiling::kKeyTile;
  static constexpr index_t kKeyUnits = kKeyTile / kElements;

  static index_t units_of(index_t dim) { return detail::ceil_div(dim, kElements); }

  static const Factor* weights(const Tile& tile, index_t r) {
    if constexpr (kPairs)
      return detail::weights_of(tile, r);
    else
      return tile.s + r * kKeyTile;
  }

  /// O = f O + P V, or P V alone: then rows that see nothing of the tile are zeros.
  template <detail::Start kStart>
  void accumulate_by(A* o, const Tile& tile) const {
    for (index_t t = 0; t < value_dim_; t += kPanel) {
      const int vectors =
          static_cast<int>((std::min(kPanel, value_dim_ - t) + V::kLanes - 1) / V::kLanes);
      for (const auto& [first, last] : tile.groups) {
        const index_t local = first - tile.begin;
        const Columns columns = tile.columns[local];
        if (!columns) {
          for (index_t r = first; kStart == detail::Start::zero && r < last; ++r)
            std::fill_n(o + r * value_step_ + t, vectors * V::kLanes, A(0));
          continue;
        }
        const index_t unit = columns.begin / kElements;  // what it holds of earlier keys weighs 0
        detail::multiply<kStart>(
            static_cast<int>(last - first), vectors, o + first * value_step_ + t, value_step_,
            tile.factors + local, weights(tile, local) + unit * kElements, kElements * kKeyTile,
            v_ + t * kKeyUnits + unit * kPanel, detail::ceil_div(columns.end, kElements) - unit);
      }
    }
  }

  /// Dot products of rows [first, last) with the keys of panel p that lie in `columns`.
  void multiply_panel(const Tile& tile, index_t first, index_t last, index_t p,
                      Columns columns) const {
    const index_t begin = std::max(p * kPanel, columns.begin / V::kLanes * V::kLanes);
    const index_t end = std::min((p + 1) * kPanel, detail::round_up(columns.end, V::kLanes));
    if (begin >= end) return;
    detail::multiply<detail::Start::zero>(
        static_cast<int>(last - first), static_cast<int>((end - begin) / V::kLanes),
        tile.s + (first - tile.begin) * kKeyTile + begin, kKeyTile, tile.factors,
        q_ + first * dim_step_, dim_step_, k_ + p * kPanel * units_ + begin % kPanel, units_);
  }

  const index_t dim_, dim_step_, units_, value_dim_, value_step_;
  Factor* q_;                // [rows][dim_step]
  const Unit* k_ = nullptr;  // [panels][units][kPanel]
  const Unit* v_ = nullptr;  // [panels][units of keys][kPanel]
};

/// Of elements of type T, without matrix registers. Where these exist, vdpbf16ps runs at half the
/// rate of fp32: pairs only elsewhere, and of keys that are bfloat16 themselves.
template <class T, class Stored = T>
using AttentionProduct =
    VectorProduct<T,
                  std::conditional_t<std::is_same_v<T, bfloat16> && std::is_same_v<Stored, T> &&
                                         kBfloat16Dot && !kAmx,
                                     Bfloat16Pair, accumulate_t<T>>,
                  Stored>;

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
