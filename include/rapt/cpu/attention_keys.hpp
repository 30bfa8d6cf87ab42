// Keys and values of one head on their way into attention's tiles (cpu/attention_block.hpp).
//
//   rows where they lie        KeyRows::pack_keys,           packed tile, as a product reads it
//   [kv_len], paged or not     pack_values                   (cpu/attention_product.hpp)
//       ----------                                        +------------+------------+
//       ----------     128 rows at a time    ---->        | keys       | values     |   of_tile
//       ----------                                        +------------+------------+
//
// PackedTiles: the tiles of a head side by side, where several blocks of rows read them.
#pragma once

#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_tile.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// The tiles of a head's keys and values that were packed for several blocks.
template <class Unit>
struct PackedTiles {
  enum State : unsigned char { absent, finite, not_finite };  // the values of a tile

  Unit* units = nullptr;  // tile t: keys at t * of_tile, values of_keys behind them
  State* states = nullptr;
  index_t of_tile = 0, of_keys = 0;

  explicit operator bool() const { return units != nullptr; }
  Unit* keys(index_t t) const { return units + t * of_tile; }
  Unit* values(index_t t) const { return keys(t) + of_keys; }
  PackedTiles from(index_t t) const { return {keys(t), states + t, of_tile, of_keys}; }
};

/// Rows of keys and values of one head, and packing them tile by tile.
template <class Args, class Product>
class KeyRows {
  using S = typename Args::Stored;
  using Unit = typename Product::Unit;
  static constexpr index_t kKeyTile = Product::Tiling::kKeyTile;

 public:
  KeyRows(const Args& args, const AttentionSequence& seq, index_t kv_head)
      : dim_(args.k.extent(3)),
        value_dim_(args.v.extent(3)),
        k_(row_address(args, args.k, seq, kv_head)),
        v_(row_address(args, args.v, seq, kv_head)),
        k_scale_(row_address(args, args.k_scales, seq, kv_head)),
        v_scale_(row_address(args, args.v_scales, seq, kv_head)) {}

  void pack_keys(Unit* to, index_t begin, index_t n) const {
    const S* rows[kKeyTile] = {};
    float scales[kScales] = {};
    address(rows, scales, k_, k_scale_, begin, n);
    Product::pack_keys(to, rows, n, dim_, scales);
  }
  /// Whether all of them are finite.
  bool pack_values(Unit* to, index_t begin, index_t n) const {
    const S* rows[kKeyTile] = {};
    float scales[kScales] = {};
    address(rows, scales, v_, v_scale_, begin, n);
    return Product::pack_values(to, rows, n, value_dim_, scales);
  }
  void values(const S** rows, index_t begin, index_t n) const { row_addresses(rows, v_, begin, n); }
  /// Brings rows [begin, end) nearer.
  void fetch(index_t begin, index_t end) const {
    for (index_t j = begin; j < end; ++j) {
      detail::prefetch_row(k_(j), dim_);
      detail::prefetch_row(v_(j), value_dim_);
    }
  }

 private:
  static constexpr index_t kScales = QuantizedElement<S> ? kKeyTile : 1;
  static void address(const S** rows, [[maybe_unused]] float* scales, const RowAddress<S>& row,
                      [[maybe_unused]] const RowAddress<float>& scale, index_t begin, index_t n) {
    row_addresses(rows, row, begin, n);
    if constexpr (QuantizedElement<S>) read_scales(scales, scale, begin, n);
  }

  const index_t dim_, value_dim_;
  const RowAddress<S> k_, v_;
  const RowAddress<float> k_scale_, v_scale_;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
