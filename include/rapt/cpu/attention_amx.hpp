// The products of a tile of attention in matrix registers (cpu/attention_product.hpp).
//
//   S   32 rows x 32 keys at a time over pairs of dims         K_J  [keys / 32][dim / 2][32] pairs
//   O   32 rows x 32 dims at a time over pairs of keys         V_J  [dims / 32][keys / 2][32] pairs
//
// The rows of a tile are multiplied together, 32 or 16 at a time, so that the registers are
// configured once for a block: what lies beyond the last row is computed and left. A partial tile
// is computed whole and hidden, P V between the first and the last key that some row sees.
#pragma once

#include <algorithm>

#include "rapt/cpu/attention_decode_amx.hpp"
#include "rapt/cpu/attention_pairs.hpp"
#include "rapt/cpu/attention_product.hpp"
#include "rapt/cpu/simd/amx.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Tiles: AmxTiles, or what a test puts in its place.
template <class Tiles = AmxTiles, class Packed = Bfloat16Pair>
class AmxProduct {
  using V = Vec<float>;
  using U = Vec<Packed>;
  using Columns = detail::Columns;
  static constexpr index_t kRows = detail::kTileColumns;  // read and written together
  static constexpr index_t kStep = detail::kPairStep;
  static_assert(kStep == 2 * Tiles::kUnits);

 public:
  using Unit = Packed;
  struct Tiling {
    static constexpr int kLanes = V::kLanes;
    static constexpr int kPanel = static_cast<int>(detail::kPairPanel);
    static constexpr int kGroup = 8;
    static constexpr int kRowTile = 64;
    static constexpr int kKeyTile = 128;
    static_assert(kKeyTile % kStep == 0 && kKeyTile % kPanel == 0 && kPanel % kStep == 0);
    static_assert(kKeyTile == AttentionTiling<float>::kKeyTile);  // see weights_of
    static_assert(kRowTile % kRows == 0 && kRowTile % kGroup == 0 && kRowTile % kLanes == 0);
  };
  using Tile = ScoreTile<float>;
  using Weight = Unit;
  static constexpr bool kScalesQueries = false, kTakesInfinities = true;
  using Decode = detail::AmxDecode<Tiles, Unit>;

  AmxProduct(Scratch<Cpu>& scratch, index_t rows, index_t dim, index_t value_dim)
      : dim_(dim),
        dim_step_(detail::round_up(dim, kStep)),
        value_dim_(value_dim),
        value_step_(detail::round_up(value_dim, V::kLanes)) {
    const index_t q_size = (rows + kRows - 1) * dim_step_;
    q_ = scratch.tensor<bfloat16>(Shape<1>{q_size}).data();
    std::fill_n(q_, q_size, bfloat16{});
  }

  static index_t key_units(index_t dim) { return kKeyTile * detail::round_up(dim, kStep) / 2; }
  static index_t value_units(index_t value_dim) {
    return kKeyTile / 2 * detail::round_up(value_dim, detail::kTileColumns);
  }
  static void pack_keys(Unit* to, const bfloat16* const* rows, index_t n, index_t dim,
                        const float* = nullptr) {
    detail::pack_key_pairs<Tiling::kPanel>(to, rows, n, detail::round_up(n, Tiling::kPanel), dim,
                                           detail::round_up(dim, kStep) / 2);
  }
  static bool pack_values(Unit* to, const bfloat16* const* rows, index_t n, index_t value_dim,
                          const float* = nullptr) {
    return detail::pack_row_pairs<kKeyTile / 2>(to, rows, n, detail::round_up(n, kStep), value_dim);
  }
  void use(const Unit* k, const Unit* v) { k_ = k, v_ = v; }

  void set_query(index_t r, const bfloat16* q, float factor) {
    for (index_t t = 0; t < dim_; t += V::kLanes)
      detail::store_lanes(detail::load_lanes<float>(q + t, dim_ - t) * V::broadcast(factor),
                          q_ + r * dim_step_ + t, dim_ - t);
  }

  void scores(const Tile& tile) {
    const Columns columns = detail::seen_by_some(tile);
    if (!columns) return;
    detail::pair_product(tiles_, tile.s, kKeyTile, tile.end - tile.begin, columns.begin,
                         columns.end, q_ + tile.begin * dim_step_, dim_step_, k_, dim_step_ / 2);
  }

  [[gnu::noinline]] void accumulate(float* o, const Tile& tile) {
    const index_t rows = tile.end - tile.begin;
    if (tile.first) std::fill_n(o + tile.begin * value_step_, rows * value_step_, 0.f);
    Columns keys = detail::seen_by_some(tile);
    if (!keys) return;
    keys = {keys.begin / kStep * kStep, detail::round_up(keys.end, kStep)};
    for (index_t r = 0; r < rows; ++r) {
      detail::clear_outside(detail::weights_of(tile, r), tile.columns[r], keys);
      if (!tile.first && tile.columns[r] && tile.factors[r] != 1)
        detail::scale_sums(o + (tile.begin + r) * value_step_, value_step_, tile.factors[r]);
    }
    detail::add_pair_product<kKeyTile / 2>(tiles_, o + tile.begin * value_step_, value_step_, rows,
                                           value_dim_, detail::weights_of(tile, 0) + keys.begin,
                                           2 * kKeyTile, v_, keys.begin / 2,
                                           (keys.end - keys.begin) / 2);
  }

  void accumulate_seen(float* o, const Tile& tile, index_t r, const bfloat16* const* rows) const {
    detail::accumulate_seen(o, tile.factors[r], detail::weights_of(tile, r), tile.columns[r],
                            value_dim_, [&](index_t j, index_t t) {
                              return detail::load_lanes<float>(rows[j] + t, value_dim_ - t);
                            });
  }

 private:
  static constexpr index_t kKeyTile = Tiling::kKeyTile;

  const index_t dim_, dim_step_, value_dim_, value_step_;
  bfloat16* q_;                             // [rows][dim_step]
  const Unit *k_ = nullptr, *v_ = nullptr;  // [panels][units][columns of the panel]
  Tiles tiles_;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
