// The products of a tile of attention in fp32 or half where the machine has matrix registers for
// bfloat16 (cpu/attention_product.hpp says what a product is): factors in three or two parts
// (cpu/float_parts.hpp), sums and softmax in fp32.
//
//   S   32 rows x 32 keys at a time     Q  [row][block of dims][part]     K_J  tiles of 32 keys
//   O   32 rows x 32 dims at a time     P  split after the softmax        V_J  tiles of 32 dims
//
// Of half, S is as exact as in fp32, and the weights P are cut to 16 bits: their error is below
// 2^-16, where out is rounded by up to 2^-11.
//
// Codes of 8 bits are parts as they are. The scale of a key multiplies its scores, that of a value
// its weights; they lie before the packed tile.
//
// The rows of a tile are multiplied together: what lies beyond the last row is computed and left. A
// partial tile is computed whole and hidden, P V between the first and the last key that some row
// sees. Of a tile with values that are not finite, rows are summed pair by pair.
//
// Sources: the online softmax of Milakov, Gimelshein 2018, arXiv:1805.02867; the parts of Henry,
// Tang, Heinecke 2019 (cpu/float_parts.hpp).
#pragma once

#include <algorithm>
#include <type_traits>

#include "rapt/cpu/attention_product.hpp"
#include "rapt/cpu/float_parts.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Tiles: AmxPartTiles, or what a test puts in its place.
template <class T, class Stored = T, class Tiles = AmxPartTiles, class Packed = Bfloat16Pair>
class PartsProduct {
  using V = Vec<float>;
  using Columns = detail::Columns;
  using Parts = PartsOf<T, Stored>;
  static constexpr bool kCodes = QuantizedElement<Stored>;
  static constexpr index_t kRows = Parts::kRows;

 public:
  using Unit = Packed;
  struct Tiling {
    static constexpr int kLanes = V::kLanes;
    static constexpr int kPanel = static_cast<int>(kRows);
    static constexpr int kGroup = 8;
    static constexpr int kRowTile = 32;
    static constexpr int kKeyTile = 128;
    static_assert(kKeyTile % kPanel == 0 && kPanel == Parts::kDepth);
    static_assert(kRowTile == kRows && kRowTile % kGroup == 0 && kRowTile % kLanes == 0);
  };
  using Tile = ScoreTile<float>;
  using Weight = float;
  static constexpr bool kScalesQueries = std::is_same_v<T, float>, kTakesInfinities = false;
  using Decode = detail::DecodeOf<T, Stored, float>;

  /// Whether a call is faster this way than by multiply-adds: of few keys or dims, splitting,
  /// hiding and the softmax, which nothing hides behind products, take what the products save.
  static bool serves(index_t rows, index_t keys, index_t dim) {
    constexpr bool kFew = Parts::kRight < 3;  // products, and parts to split
    constexpr index_t kLeastRows = kFew ? 32 : 64, kLeastNumbers = kFew ? 8192 : 65536;
    constexpr index_t kLeastDims = std::is_same_v<T, float> ? 64 : 48;
    return rows >= kLeastRows && dim >= kLeastDims && keys * dim >= kLeastNumbers && amx_granted();
  }

  PartsProduct(Scratch<Cpu>& scratch, index_t rows, index_t dim, index_t value_dim)
      : dim_(dim),
        value_dim_(value_dim),
        value_step_(detail::round_up(value_dim, V::kLanes)),
        blocks_(detail::part_blocks(dim)) {
    const index_t all = rows + kRows / 2 - 1;  // up to a multiple of 16 of the last tile's are read
    q_ = detail::left_rows<Parts>(
        scratch.tensor<Unit>(Shape<1>{all * detail::pairs_of_row<Parts>(dim)}).data(), dim);
    detail::clear_pairs(q_.from_row(rows).data, (all - rows) * q_.row);
    p_ = detail::left_rows<Parts>(scratch.tensor<Unit>(Shape<1>{kWeightTile}).data(), kKeyTile);
    detail::clear_pairs(p_.data, kWeightTile);
  }

  static index_t key_units(index_t dim) {
    return kScales + kKeyTile / kRows * detail::part_blocks(dim) * Parts::kBlock;
  }
  static index_t value_units(index_t value_dim) {
    return kScales + kValueTile * detail::ceil_div(value_dim, kRows);
  }
  static void pack_keys(Unit* to, const Stored* const* rows, index_t n, index_t dim,
                        const float* scales = nullptr) {
    pack_scales(to, scales, n);
    detail::split_rows_across(to + kScales, rows, n, dim);
  }
  static bool pack_values(Unit* to, const Stored* const* rows, index_t n, index_t value_dim,
                          const float* scales = nullptr) {
    const bool finite = pack_scales(to, scales, n);
    return detail::split_rows_along(to + kScales, kValueTile, rows, n, value_dim) && finite;
  }
  void use(const Unit* k, const Unit* v) {
    k_ = k + kScales, v_ = v + kScales;
    k_scales_ = reinterpret_cast<const float*>(k), v_scales_ = reinterpret_cast<const float*>(v);
  }

  void set_query(index_t r, const T* q, float factor) {
    detail::split_row(q_, r, dim_, [&](index_t t, index_t left) {
      return detail::load_lanes<float>(q + t, left) * V::broadcast(factor);
    });
  }

  void scores(const Tile& tile) {
    const Columns columns = detail::seen_by_some(tile);
    if (!columns) return;
    const index_t first = columns.begin / kRows * kRows;  // and whole registers of rows
    const index_t key_tile = blocks_ * Parts::kBlock;
    detail::parts_product(tiles_, false, tile.s + first, kKeyTile,
                          detail::round_up(tile.end - tile.begin, kRows / 2), columns.end - first,
                          q_.from_row(tile.begin), k_ + first / kRows * key_tile, key_tile,
                          blocks_);
    if constexpr (kCodes)
      for (index_t r = 0; r < tile.end - tile.begin; ++r)
        for (index_t j = first; j < columns.end; j += V::kLanes) {
          float* const s = tile.s + r * kKeyTile + j;
          (V::load(s) * V::load(k_scales_ + j)).store(s);
        }
  }

  [[gnu::noinline]] void accumulate(float* o, const Tile& tile) {
    constexpr index_t kDepth = Parts::kDepth;
    const index_t rows = tile.end - tile.begin;
    float* const to = o + tile.begin * value_step_;
    Columns keys = detail::seen_by_some(tile);
    if (!keys) {
      if (tile.first) std::fill_n(to, rows * value_step_, 0.f);
      return;
    }
    keys = {keys.begin / kDepth * kDepth, detail::round_up(keys.end, kDepth)};
    for (index_t r = 0; r < rows; ++r) {
      float* const weights = tile.s + r * kKeyTile;
      detail::clear_outside(weights, tile.columns[r], keys);
      detail::split_row(p_, r, keys.end - keys.begin, [&](index_t j, index_t) {
        const V weight = V::load(weights + keys.begin + j);
        return kCodes ? weight * V::load(v_scales_ + keys.begin + j) : weight;
      });
      if (!tile.first && tile.columns[r] && tile.factors[r] != 1)
        detail::scale_sums(to + r * value_step_, value_step_, tile.factors[r]);
    }
    detail::parts_product(tiles_, !tile.first, to, value_step_, rows, value_dim_, p_,
                          v_ + keys.begin / kDepth * Parts::kBlock, kValueTile,
                          (keys.end - keys.begin) / kDepth);
  }

  void accumulate_seen(float* o, const Tile& tile, index_t r, const Stored* const* rows) const {
    detail::accumulate_seen(o, tile.factors[r], tile.s + r * kKeyTile, tile.columns[r], value_dim_,
                            [&](index_t j, index_t t) {
                              return detail::load_scaled<float>(rows[j] + t, value_dim_ - t,
                                                                v_scales_, j);
                            });
  }

 private:
  static constexpr index_t kKeyTile = Tiling::kKeyTile;
  static constexpr index_t kValueTile = kKeyTile / Parts::kDepth * Parts::kBlock;
  static constexpr index_t kWeightTile = kKeyTile / Parts::kDepth * Parts::kLeftBlock;
  static constexpr index_t kScales = kCodes ? kKeyTile : 0;  // of a packed tile, before its codes
  static_assert(sizeof(Unit) == sizeof(float));

  /// Says whether they are finite. Keys beyond n: 0.
  static bool pack_scales(Unit* to, const float* scales, index_t n) {
    if constexpr (kCodes) {
      float* const all = reinterpret_cast<float*>(to);
      std::fill(std::copy_n(scales, n, all), all + kKeyTile, 0.f);
      return std::all_of(scales, scales + n, [](float x) { return x - x == 0; });
    }
    return true;
  }

  const index_t dim_, value_dim_, value_step_, blocks_;
  LeftParts<Parts, Unit> q_{nullptr}, p_{nullptr};  // of the block's rows; of a tile's weights
  const Unit *k_ = nullptr, *v_ = nullptr;          // tiles of 32 keys, and of 32 dims
  const float *k_scales_ = nullptr, *v_scales_ = nullptr;  // of codes
  Tiles tiles_;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
