// Attention for few query rows (up to 16 of a group, as in decoding): every key row is read once
// for all query heads of its group, straight from the cache, and nothing is packed.
//
//   for 128 keys at a time:
//     s[r][j] = dot(q_r, k_j)          a product (cpu/attention_decode_*.hpp)
//     e, m, l: online softmax          as in cpu/attention_block.hpp
//     o[r] += e[r][j] v_j              the same product
//
// Keys that come from memory are read in the order in which they lie, all heads of a token before
// the next token: then s of all heads comes first, o of all heads last, with the same bits.
//
// Codes of 8 bits are read as they are: the scale of a key multiplies its scores, that of a value
// its weights (l sums them unscaled), so that neither costs anything for each channel.
//
// Long rows of keys are cut into splits by length alone (flash-decoding); a split leaves o, m and
// l, and merge_row joins them in order, so threads never change a result. Bound by reading K and V:
// 4 R FLOP for each element. Keys that no row sees are left out before anything of them is read.
//
// Sources: Dao et al. 2023, "Flash-Decoding" (blog); merge rule: Hong et al. 2023,
// arXiv:2311.01282.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_decode_product.hpp"
#include "rapt/cpu/attention_score.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

inline constexpr index_t kTileBytes = 262144;  // most bytes of a tile: two fit the second level
// How far ahead of a stream of keys or values, in order, its lines are asked for. Not 8 KiB: where
// that is a whole number of pages and of steps, a core reads a tenth slower (seen on Intel's).
inline constexpr index_t kBytesAhead = 9216;
inline constexpr index_t kFirstTile = 64;  // keys: nobody may have brought these nearer

/// The rows of kv_heads heads of keys from kv_head on, against keys [kv_begin, kv_end). Rows of a
/// token's heads lie side by side, so all heads take a tile before the next one is touched.
/// `block` is that of the first head. Each head leaves o [rows, value_step], m (natural units)
/// [rows], l [rows], `state_step` after the head before.
template <class Args, class Mask, class Score, class Product>
class DecodeItem {
  using T = typename Args::Element;
  using S = typename Args::Stored;
  using A = accumulate_t<T>;
  using V = Vec<A>;
  using Units = ScoreUnits<A, Score, Product>;
  static constexpr bool kScaled = QuantizedElement<S>;
  static constexpr bool kInOrder = [] {
    if constexpr (requires { Product::kInOrder; }) return Product::kInOrder;
    return false;
  }();
  static constexpr A kNone = -std::numeric_limits<A>::infinity();
  static constexpr auto kEveryKey = [] {
    std::array<index_t, kDecodeKeys> index{};
    for (std::size_t j = 0; j < index.size(); ++j) index[j] = static_cast<index_t>(j);
    return index;
  }();

 public:
  DecodeItem(const Args& args, const AttentionSequence& seq, const Mask& mask, const Score& score,
             index_t kv_head, index_t kv_heads, const RowBlock& block, A* state, index_t state_step,
             Scratch<Cpu>& scratch)
      : args_(args),
        seq_(seq),
        mask_(mask),
        score_(score),
        kv_heads_(kv_heads),
        block_(block),
        units_{args.scale},
        rows_(block.rows()),
        value_step_(round_up(args.v.extent(3), V::kLanes)),
        state_(state),
        state_step_(state_step),
        k_row_(row_address(args, args.k, seq, kv_head)),
        v_row_(row_address(args, args.v, seq, kv_head)),
        k_scale_(row_address(args, args.k_scales, seq, kv_head)),
        v_scale_(row_address(args, args.v_scales, seq, kv_head)),
        product_(scratch, kv_heads, rows_, args.q.extent(3), args.v.extent(3)) {
    const index_t scores = takes_order() ? kv_heads : 1;
    s_ = scratch.tensor<A>(Shape<3>{scores, score_rows(rows_), kDecodeKeys}).data();
    factors_ = scratch.tensor<A>(Shape<1>{kv_heads * rows_ + V::kLanes}).data();
    tops_ = scratch.tensor<A>(Shape<1>{rows_ + V::kLanes}).data();
    seen_ = scratch.tensor<mask_int<A>>(Shape<2>{rows_, kDecodeKeys}).data();
    if constexpr (kScaled) {
      k_scales_ = scratch.tensor<float>(Shape<2>{kv_heads, kDecodeKeys}).data();
      v_scales_ = scratch.tensor<float>(Shape<2>{kv_heads, kDecodeKeys}).data();
    }
    std::fill_n(tops_, rows_ + V::kLanes, kNone);
    for (index_t h = 0; h < kv_heads; ++h) load_queries(h);
  }

  /// Whether o is what it should be; if not, Product::Exact is to do it.
  bool run(index_t kv_begin, index_t kv_end) {
    for (index_t h = 0; h < kv_heads_; ++h) {
      product_.begin(h, o_of(h));
      std::fill_n(m_of(h), rows_, kNone);
      std::fill_n(m_of(h) + rows_, rows_, A(0));
    }
    const index_t largest = tile_keys();
    // If the keys come from memory they are read in order, or each tile is brought nearer during
    // the one before. (That they do may change no bit: sums depend on where tiles end.)
    const index_t after = std::min(kv_begin + largest, seq_.kv_len - 1);
    const bool has_values = args_.v.extent(3) > 0;  // else there is no address to read from
    const bool far =
        kv_begin < kv_end && (is_far(k_row_(after)) || (has_values && is_far(v_row_(after))));
    index_t tile = std::min(kFirstTile, largest);
    int now = 0;  // which of the addresses are those of the tile at hand
    addresses(now, kv_begin, std::min(tile, kv_end - kv_begin));
    for (index_t begin = kv_begin, count; begin < kv_end; begin += count, now = 1 - now) {
      count = std::min(tile, kv_end - begin);
      tile = std::min(largest, 2 * tile);
      // The tile that comes next may be that of the next split, most likely this thread's too.
      const index_t next = begin + count, next_count = std::min(tile, seq_.kv_len - next);
      if (next_count > 0) addresses(1 - now, next, next_count);
      const int then = next_count > 0 ? 1 - now : now;
      const KeySpan keys = keys_of(args_, seq_, begin, count);
      const KeyRange range = key_range(keys);
      if (far && takes_order() && count % kTokensOfStep == 0 && all_see(range)) {
        attend_in_order(keys, k_tile_[now], v_tile_[now], k_tile_[then], v_tile_[then]);
        continue;
      }
      TilePrefetch nearer;
      if (far && next_count > 0) {
        nearer.add(k_tile_[then], next_count, bytes_of_token(args_.k));
        nearer.add(v_tile_[then], next_count, bytes_of_token(args_.v));
        nearer.spread(kv_heads_ * product_.steps(count));
      }
      for (index_t h = 0; h < kv_heads_; ++h)
        attend(h, keys, range, k_tile_[now], v_tile_[now], nearer);
    }
    bool good = true;
    for (index_t h = 0; h < kv_heads_; ++h) good = finish(h) && good;
    return good;
  }

 private:
  /// From the first to the last element of a token's heads, where they lie side by side; else of
  /// one head, whose rows then follow one another.
  template <class View>
  index_t bytes_of_token(const View& rows) const {
    const index_t dim = rows.extent(3), apart = rows.stride(2);
    return ((apart >= dim && apart < 2 * dim ? (kv_heads_ - 1) * apart : 0) + dim) *
           static_cast<index_t>(sizeof(S));
  }
  index_t tile_keys() const {
    const index_t keys = kTileBytes / (bytes_of_token(args_.k) + bytes_of_token(args_.v));
    return std::clamp<index_t>(keys / 16 * 16, 16, kDecodeKeys);
  }
  /// Addresses of keys and values [begin, begin + n) of the first head, padded.
  void addresses(int which, index_t begin, index_t n) {
    row_addresses(k_tile_[which], k_row_, begin, n);
    row_addresses(v_tile_[which], v_row_, begin, n);
    if (n == 0) return;
    std::fill(k_tile_[which] + n, k_tile_[which] + kDecodeKeys, k_tile_[which][n - 1]);
    std::fill(v_tile_[which] + n, v_tile_[which] + kDecodeKeys, v_tile_[which][n - 1]);
  }

  /// Whether a token's heads can be taken one after the other. One head's rows are in order anyway.
  bool takes_order() const { return kInOrder && kv_heads_ > 1; }
  /// Whether all rows of all heads see all keys; these are then theirs.
  bool all_see(const KeyRange& range) const {
    for (index_t h = 0; h < kv_heads_; ++h)
      if (verdict_of(mask_, seq_.b, block_of(h), 0, rows_, range) != TileVerdict::full)
        return false;
    for (index_t h = 0; h < kv_heads_; ++h)
      report_tile(mask_, seq_.b, block_of(h), 0, rows_, range);
    return true;
  }

  A* o_of(index_t h) const { return state_ + h * state_step_; }
  A* m_of(index_t h) const { return o_of(h) + rows_ * value_step_; }
  RowBlock block_of(index_t h) const {
    RowBlock block = block_;
    block.head += h * block.heads;
    return block;
  }

  void load_queries(index_t h) {
    const RowBlock block = block_of(h);
    for (index_t r = 0; r < rows_; ++r)
      product_.set_query(h, r,
                         args_.q.data() + seq_.row * args_.q.stride(0) +
                             (seq_.q_begin + block.query_of(r)) * args_.q.stride(1) +
                             block.head_of(r) * args_.q.stride(2),
                         units_.q_factor());
  }

  /// The scales of keys index[0..n) of head h and of their values, some time before they are
  /// multiplied: a vector read from numbers that were just written one by one waits for them.
  void load_scales(index_t h, const KeySpan& keys, const index_t* index, index_t n) const {
    if constexpr (kScaled) {
      const auto load = [&](float* to, const auto& scales, RowAddress<float> rows) {
        if (!scales) return;
        rows.base += h * scales.stride(2);
        if (n == keys.count)
          read_scales(to, rows, keys.begin, n);
        else
          for (index_t i = 0; i < n; ++i) to[i] = *rows(keys.begin + index[i]);
        std::fill(to + n, to + round_up(n, V::kLanes), 0.f);
      };
      load(k_scales_ + h * kDecodeKeys, args_.k_scales, k_scale_);
      load(v_scales_ + h * kDecodeKeys, args_.v_scales, v_scale_);
    }
  }

  /// s[r][i] *= scales[i], whole vectors of n columns; `seen`: but 0 where a row does not see the
  /// key, whose scale may be anything.
  void multiply_scales(A* s, const float* scales, index_t n, const mask_int<A>* seen) const {
    for (index_t r = 0; r < rows_; ++r) {
      A* const row = s + r * kDecodeKeys;
      for (index_t i = 0; i < n; i += V::kLanes) {
        const V x = V::load(row + i) * load_lanes<A>(scales + i, V::kLanes);
        (seen == nullptr ? x : bit_and(x, V::load_mask(seen + r * kDecodeKeys + i))).store(row + i);
      }
    }
  }

  /// One head and one tile of keys, rows of the first head, while the next one is brought nearer.
  void attend(index_t h, const KeySpan& keys, const KeyRange& range, const S** k_tile,
              const S** v_tile, TilePrefetch& next) {
    const RowBlock block = block_of(h);
    const TileVerdict verdict = verdict_of(mask_, seq_.b, block, 0, rows_, range);
    if (verdict == TileVerdict::skip) return;
    report_tile(mask_, seq_.b, block, 0, rows_, range);

    DecodeKeys<S> k{k_tile, h * args_.k.stride(2), keys.count, k_row_.step()};
    DecodeKeys<S> v{v_tile, h * args_.v.stride(2), keys.count, v_row_.step()};
    // The keys that some row sees, and whether rows differ in what they see.
    const S *k_seen[kDecodeKeys], *v_seen[kDecodeKeys];
    index_t seen[kDecodeKeys], n = keys.count;
    const index_t* index = kEveryKey.data();
    bool mixed = false;
    if (verdict == TileVerdict::partial) {
      n = 0;
      ask_rows<A>(seen_, kDecodeKeys, mask_, seq_.b, block, 0, rows_, keys, range);
      for (index_t j = 0; j < keys.count; ++j) {
        index_t count = 0;
        for (index_t r = 0; r < rows_; ++r) count += seen_[r * kDecodeKeys + j] != 0;
        if (count == 0) continue;
        mixed = mixed || count < rows_;
        for (index_t r = 0; r < rows_; ++r)  // n <= j: moves left
          seen_[r * kDecodeKeys + n] = seen_[r * kDecodeKeys + j];
        seen[n++] = j;
      }
      index = seen;
      if (n == 0) return;
      if (n < keys.count) {
        for (index_t j = 0; j < kDecodeKeys; ++j) {
          const index_t from = index[std::min(j, n - 1)];
          k_seen[j] = k_tile[from], v_seen[j] = v_tile[from];
        }
        k = {k_seen, k.offset, n, 0}, v = {v_seen, v.offset, n, 0};
      }
    }
    load_scales(h, keys, index, n);
    product_.scores(h, s_, k, next);
    soften(h, s_, factors_, keys, index, n, mixed);
    product_.accumulate(h, o_of(h), factors_, s_, mixed ? seen_ : nullptr, v, next);
  }

  /// All heads and one tile of keys that every row sees, token by token.
  void attend_in_order(const KeySpan& keys, const S** k_tile, const S** v_tile, const S** k_next,
                       const S** v_next) {
    if constexpr (kInOrder) {
      const auto tokens = [&](const auto& rows, index_t row_step, const S** tile, const S** next) {
        const index_t bytes =
            std::max<index_t>(1, bytes_of_token(rows));  // values may have no dims
        const index_t ahead = std::min(ceil_div(kBytesAhead, bytes), kDecodeKeys);
        return DecodeTokens<S>{tile, next, rows.stride(2), kv_heads_, keys.count, ahead, row_step};
      };
      for (index_t h = 0; h < kv_heads_; ++h) load_scales(h, keys, kEveryKey.data(), keys.count);
      product_.scores(s_, tokens(args_.k, k_row_.step(), k_tile, k_next));
      const index_t step = score_rows(rows_) * kDecodeKeys;
      for (index_t h = 0; h < kv_heads_; ++h)
        soften(h, s_ + h * step, factors_ + h * rows_, keys, kEveryKey.data(), keys.count, false);
      product_.accumulate(o_of(0), state_step_, factors_, s_,
                          tokens(args_.v, v_row_.step(), v_tile, v_next));
    }
  }

  /// Scores of head h and of keys index[0..n) become weights; `mixed`: but 0 where a row does not
  /// see the key (seen_). Raises m and l.
  void soften(index_t h, A* s, A* factors, const KeySpan& keys, const index_t* index, index_t n,
              bool mixed) {
    const RowBlock block = block_of(h);
    A *const m = m_of(h), *const l = m + rows_;
    const index_t whole = round_up(n, V::kLanes);
    if constexpr (kScaled) {
      if (args_.k_scales) multiply_scales(s, k_scales_ + h * kDecodeKeys, whole, nullptr);
    }
    for (index_t r = 0; r < rows_; ++r) {
      A* const row = s + r * kDecodeKeys;
      if constexpr (!is_identity<Score>) {
        ScoreRow pairs{seq_.b, block.head_of(r), block.position_of(r), keys};
        for (index_t j = 0; j < n;) {  // keys that nobody sees leave gaps
          index_t end = j + 1;
          while (end < n && index[end] == index[end - 1] + 1) ++end;
          pairs.keys = keys.part(index[j], end - j);
          modify_row(row + j, score_, units_.scale, pairs);
          j = end;
        }
      }
      if (mixed) {
        for (index_t j = 0; j < n; ++j)
          if (seen_[r * kDecodeKeys + j] == 0) row[j] = kNone;
      }
      for (index_t j = n; j < whole; ++j) row[j] = kNone;
      tops_[r] = largest(row_top(row, 0, whole));
    }
    raise_rows(m, l, factors, tops_, rows_, units_.unit());
    for (index_t r = 0; r < rows_; ++r)
      l[r] += sum(soften_row<typename Product::Weight, Units::kExponents>(
          s + r * kDecodeKeys, 0, whole, m[r], units_.unit()));
    if constexpr (kScaled) {
      if (args_.v_scales)
        multiply_scales(s, v_scales_ + h * kDecodeKeys, whole, mixed ? seen_ : nullptr);
    }
  }

  /// Natural units, and the order of the output.
  bool finish(index_t h) {
    for (index_t r = 0; r < rows_; ++r) m_of(h)[r] *= units_.natural();
    return product_.finish(h, o_of(h));
  }

  const Args& args_;
  const AttentionSequence& seq_;
  const Mask& mask_;
  const Score& score_;
  const index_t kv_heads_;
  const RowBlock& block_;
  const Units units_;
  const index_t rows_, value_step_;
  A* const state_;
  const index_t state_step_;
  // Of the first head:
  const RowAddress<S> k_row_, v_row_;
  const RowAddress<float> k_scale_, v_scale_;
  const S *k_tile_[2][kDecodeKeys], *v_tile_[2][kDecodeKeys];
  Product product_;
  A *s_, *factors_, *tops_;                          // s [score_rows(rows), kDecodeKeys]
  mask_int<A>* seen_;                                // [rows, kDecodeKeys]
  float *k_scales_ = nullptr, *v_scales_ = nullptr;  // [heads, kDecodeKeys], of a tile
};

/// Row r of `splits` partial results, each [rows, value_step] of o, then m [rows], then l [rows],
/// `step` apart. The sum is left in the first part's o.
template <class A>
RowState<A> merge_row(A* partial, index_t step, index_t splits, index_t rows, index_t r,
                      index_t value_step) {
  using V = Vec<A>;
  const index_t at_m = rows * value_step + r, at_l = at_m + rows;
  A m = -std::numeric_limits<A>::infinity(), l = 0;
  for (index_t t = 0; t < splits; ++t) m = std::max(m, partial[t * step + at_m]);
  A* const o = partial + r * value_step;
  for (index_t t = 0; t < splits; ++t) {
    const A part_l = partial[t * step + at_l];
    const A weight = part_l == 0 ? A(0) : std::exp(partial[t * step + at_m] - m);
    l += weight * part_l;
    const V w = V::broadcast(weight);
    for (index_t c = 0; c < value_step; c += V::kLanes) {
      const V part = V::load(partial + t * step + r * value_step + c);
      (t == 0 ? part * w : fma(part, w, V::load(o + c))).store(o + c);
    }
  }
  return {m, l, o};
}

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
