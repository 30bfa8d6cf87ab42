// Attention forward on the CPU: a whole call, cut into blocks of rows (cpu/attention_block.hpp).
//
//   the queries of a sequence, heads of one key head     Under a causal mask a block from the
//            +---------------+                           beginning and one from the end cost what
//     item   | 0  1  2  2 1 0|                           all other pairs do.
//            +---------------+
//
//   1. pack the tiles of K and V of some heads, up to 16 MiB, where several blocks read them
//   2. attend: every item owns its rows of out      (few rows, decode: cpu/attention_decode.hpp)
//   3. merge: sequences that give too few blocks are also cut along the keys; the parts are merged
//      in order
//
// Work is cut by shape alone and each part owns its rows, so a result does not depend on the number
// of threads. Tiles that nobody sees are neither packed nor multiplied.
//
// Sources: Milakov, Gimelshein 2018, arXiv:1805.02867; Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <algorithm>
#include <type_traits>

#include "rapt/attention/options.hpp"
#include "rapt/attention/sequences.hpp"
#include "rapt/core/backend.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_amx.hpp"
#include "rapt/cpu/attention_block.hpp"
#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_decode.hpp"
#include "rapt/cpu/attention_keys.hpp"
#include "rapt/cpu/attention_parts.hpp"
#include "rapt/cpu/attention_product.hpp"
#include "rapt/cpu/attention_score.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// How one sequence is cut. An item of work is one split of the keys against the rows of some key
/// heads (decode), or against a block of rows from the beginning of the sequence and one from its
/// end: under a causal mask such pairs cost the same.
struct AttentionCut {
  index_t kv_heads, kv_items;     // key heads of an item, items a sequence
  index_t heads, head_blocks;     // query heads of a block, blocks a group
  index_t queries, query_blocks;  // queries of a block, blocks a sequence
  index_t split, splits;          // keys of a split, splits a sequence
  index_t pairs() const { return (query_blocks + 1) / 2; }
  index_t items() const { return kv_items * head_blocks * pairs() * splits; }
};

namespace detail {

inline constexpr index_t kDecodeRows = 16;              // up to here, dot products beat packing
inline constexpr index_t kDecodeSplit = 512;            // most keys
inline constexpr index_t kSmallSplit = 256;             // fewest, where sequences and heads are few
inline constexpr index_t kFarBytes = index_t{4} << 20;  // of keys and values: few caches hold them
inline constexpr index_t kTiledSplit = 2048;
inline constexpr index_t kEnoughItems = 8;   // for a few threads
inline constexpr index_t kFewRows = 192;     // of a block, below which packing shows
inline constexpr index_t kFewestRows = 128;  // the same, where a thread would wait instead

/// Blocks of up to max_rows rows, a multiple of row_unit where there are several.
/// token_bytes: of a token's keys and values of all heads. heads_side_by_side: these follow one
/// another in memory, which may change no split, and so no bit.
inline AttentionCut cut_sequence(const AttentionSequence& seq, index_t group, index_t kv_heads,
                                 index_t max_rows, index_t row_unit, index_t sequences,
                                 index_t token_bytes, bool heads_side_by_side) {
  AttentionCut cut{};
  const bool decode = seq.q_len * group <= kDecodeRows;
  cut.heads = std::min(group, max_rows);
  cut.head_blocks = ceil_div(group, cut.heads);
  cut.queries = std::max<index_t>(1, seq.q_len);
  if (!decode) {
    index_t blocks = ceil_div(cut.queries, std::max<index_t>(1, max_rows / cut.heads));
    const auto items = [&](index_t n) {
      return sequences * kv_heads * cut.head_blocks * ((n + 1) / 2);
    };
    const index_t rows = cut.queries * cut.heads;
    while (items(blocks) < kEnoughItems && rows >= (blocks + 1) * kFewRows) ++blocks;
    // Of few items, an odd one leaves a thread waiting.
    if (items(blocks) % 2 == 1 && items(blocks) < 4 * kEnoughItems &&
        rows >= (blocks + 2) * kFewestRows)
      blocks += 2;
    if (blocks > 1) {
      blocks += blocks % 2;
      cut.queries = round_up(ceil_div(cut.queries, blocks), row_unit);
    }
  }
  cut.query_blocks = ceil_div(seq.q_len, cut.queries);
  cut.splits = 1;
  if (decode) {
    cut.splits = std::max<index_t>(1, ceil_div(seq.kv_len, kDecodeSplit));
    // What comes from memory is read fastest whole tokens at a time: items are then splits, not
    // heads. Where it is near, merging more splits costs more than that gains.
    const bool far = sequences * seq.kv_len * token_bytes >= kFarBytes;
    const index_t parts = far ? 1 : kv_heads, enough = far ? kEnoughItems : kEnoughItems / 2;
    while (sequences * parts * cut.splits < enough && seq.kv_len >= (cut.splits + 1) * kSmallSplit)
      ++cut.splits;
  } else if (cut.query_blocks == 1 && seq.kv_len >= 2 * kTiledSplit) {
    cut.splits = ceil_div(seq.kv_len, kTiledSplit);
  }
  // As long as each other, or the thread that has the short one waits; but whole tiles.
  const index_t unit = decode ? 16 : 128;
  cut.split = std::max(unit, round_up(ceil_div(seq.kv_len, cut.splits), unit));
  cut.splits = std::max<index_t>(1, ceil_div(seq.kv_len, cut.split));
  // Decode reads all heads of a token at once where they lie together and leave enough items.
  cut.kv_heads = 1;
  if (decode && heads_side_by_side) {
    const index_t wanted = ceil_div(kEnoughItems, std::max<index_t>(1, sequences * cut.splits));
    cut.kv_heads = ceil_div(kv_heads, std::min(wanted, kv_heads));
  }
  cut.kv_items = ceil_div(kv_heads, cut.kv_heads);
  return cut;
}

}  // namespace detail

/// The whole call: see the top of the file. `mask` and `score` are bound to the call, and bound
/// again to each sequence where lengths differ.
template <class Args, class Mask, class Score,
          class Product = AttentionProduct<typename Args::Element, typename Args::Stored>>
class AttentionForward {
  using A = accumulate_t<typename Args::Element>;
  using Block = AttentionBlock<Args, Mask, Score, Product>;
  using Tiling = typename Product::Tiling;
  using Unit = typename Product::Unit;
  using Packed = PackedTiles<Unit>;
  static constexpr index_t kPackedBytes = index_t{16} << 20;  // of tiles packed at a time

 public:
  AttentionForward(const Args& args, const Mask& mask, const Score& score)
      : args_(args), mask_(mask), score_(score) {}

  void run() {
    const index_t sequences = rapt::detail::sequence_count(args_), heads = args_.q.extent(2);
    if (sequences == 0 || heads == 0 || args_.q.extent(1) == 0) return;
    const index_t dim = args_.q.extent(3), kv_heads = args_.k.extent(2);
    kv_heads_ = kv_heads;
    group_ = heads / kv_heads;
    sequences_ = sequences;
    value_step_ = detail::round_up(args_.v.extent(3), Vec<A>::kLanes);
    // A block's rows stay within 896 KiB of cache: q and o of each.
    const index_t row_bytes = (dim + value_step_) * static_cast<index_t>(sizeof(A));
    const index_t row_tiles = (index_t{7} << 17) / (row_bytes * Tiling::kRowTile);
    max_rows_ = std::clamp<index_t>(row_tiles, 1, Block::kMaxRowTiles) * Tiling::kRowTile;

    // Where each sequence's items begin, and where its partial results lie (only if it is split).
    Scratch<Cpu> scratch;
    first_item_ = scratch.tensor<index_t>(Shape<1>{sequences + 1}).data();
    first_partial_ = scratch.tensor<index_t>(Shape<1>{sequences + 1}).data();
    first_tile_ = scratch.tensor<index_t>(Shape<1>{sequences + 1}).data();
    first_item_[0] = first_partial_[0] = first_tile_[0] = 0;
    packed_.of_keys = round_up_units(Product::key_units(dim));
    packed_.of_tile = packed_.of_keys + round_up_units(Product::value_units(args_.v.extent(3)));
    const index_t most_tiles =
        kPackedBytes / (packed_.of_tile * static_cast<index_t>(sizeof(Unit)));
    double work = 0;  // multiply-adds, were nothing masked
    for (index_t s = 0; s < sequences; ++s) {
      const AttentionSequence seq = rapt::detail::sequence_at(args_, s);
      const AttentionCut cut = cut_of(seq);
      first_item_[s + 1] = first_item_[s] + cut.items();
      first_partial_[s + 1] = first_partial_[s] + cut.items() * partial_size(cut);
      const index_t tiles = detail::ceil_div(seq.kv_len, Tiling::kKeyTile);
      const bool shared =
          cut.query_blocks * cut.head_blocks > 1 && cut.splits == 1 && tiles <= most_tiles;
      first_tile_[s + 1] = first_tile_[s] + (shared ? tiles * kv_heads : 0);
      work += static_cast<double>(seq.q_len) * static_cast<double>(seq.kv_len);
    }
    work *= static_cast<double>(heads * (dim + args_.v.extent(3)));
    const index_t partials = first_partial_[sequences];
    partials_ = scratch.tensor<A>(Shape<1>{partials}).data();
    if (args_.probabilities) clear_probabilities();

    const index_t tiles = std::min(most_tiles, first_tile_[sequences]);
    packed_.units =
        tiles == 0 ? nullptr : scratch.tensor<Unit>(Shape<1>{tiles * packed_.of_tile}).data();
    packed_.states = scratch.tensor<typename Packed::State>(Shape<1>{tiles}).data();

    // Below, waking a thread costs more than it does.
    constexpr double kWorthThreads = 1 << 18;
    constexpr index_t kWorthMerging = 1 << 14;
    const auto each = [](bool worth_threads, index_t n, auto f) {
      if (worth_threads)
        parallel_for(n, f);
      else
        for (index_t i = 0; i < n; ++i) f(i);
    };
    const index_t items = first_item_[sequences];
    HeadCursor at;
    for (index_t begin = 0; begin < items;) {
      const index_t end = heads_that_fit(at, most_tiles);
      each(work >= kWorthThreads, tile_at(at) - packed_begin_, [this](index_t t) { pack_tile(t); });
      each(work >= kWorthThreads, end - begin, [=, this](index_t i) { attend_item(begin + i); });
      begin = end;
    }
    if (partials > 0)
      each(work >= kWorthThreads && partials >= kWorthMerging, items,
           [this](index_t item) { merge_item(item); });
  }

 private:
  /// One item of work: see AttentionCut.
  struct Item {
    AttentionSequence seq;
    AttentionCut cut;
    index_t sequence, kv_head, head_block, pair, split;
    A* partial;  // this item's place among the partial results, a state for each of its kv heads
    index_t kv_heads(index_t all) const { return std::min(cut.kv_heads, all - kv_head); }
  };

  /// A key head of a sequence: as far as a call has come.
  struct HeadCursor {
    index_t sequence = 0, kv_head = 0;
  };

  /// Tiles are counted over all sequences whose blocks share them, head after head.
  index_t tiles_of_head(index_t s) const {
    return (first_tile_[s + 1] - first_tile_[s]) / kv_heads_;
  }
  index_t tile_at(const HeadCursor& at) const {
    if (at.sequence == sequences_) return first_tile_[sequences_];
    return first_tile_[at.sequence] + at.kv_head * tiles_of_head(at.sequence);
  }
  static index_t round_up_units(index_t n) {
    return detail::round_up(n, 64 / static_cast<index_t>(sizeof(Unit)));
  }

  /// Moves the cursor behind as many heads as have room for their tiles, whose first becomes
  /// packed_begin_. Returns where their items end.
  index_t heads_that_fit(HeadCursor& at, index_t most_tiles) {
    packed_begin_ = tile_at(at);
    while (at.sequence < sequences_) {
      const index_t tiles = tiles_of_head(at.sequence);
      if (tile_at(at) + tiles - packed_begin_ > most_tiles) break;
      if (tiles > 0 && at.kv_head + 1 < kv_heads_)
        ++at.kv_head;
      else
        at = {at.sequence + 1, 0};
    }
    const index_t s = at.sequence;
    if (at.kv_head == 0) return first_item_[s];
    return first_item_[s] + (first_item_[s + 1] - first_item_[s]) / kv_heads_ * at.kv_head;
  }

  /// Tile packed_begin_ + t, unless nobody sees it.
  void pack_tile(index_t t) const {
    const index_t number = packed_begin_ + t;
    const index_t s = place_of(first_tile_, number), of_head = tiles_of_head(s);
    const index_t local = number - first_tile_[s], kv_head = local / of_head;
    const AttentionSequence seq = rapt::detail::sequence_at(args_, s);
    const index_t begin = local % of_head * Tiling::kKeyTile;
    const index_t n = std::min<index_t>(Tiling::kKeyTile, seq.kv_len - begin);
    packed_.states[t] = Packed::absent;
    if (!is_seen(seq, kv_head, keys_of(args_, seq, begin, n))) return;
    const KeyRows<Args, Product> rows(args_, seq, kv_head);
    rows.pack_keys(packed_.keys(t), begin, n);
    packed_.states[t] =
        rows.pack_values(packed_.values(t), begin, n) ? Packed::finite : Packed::not_finite;
  }
  /// Whether one of the sequence's queries may see one of the keys.
  bool is_seen(const AttentionSequence& seq, index_t kv_head, const KeySpan& keys) const {
    const detail::KeyRange range = detail::key_range(keys);
    if (range.range.empty()) return false;
    const Mask mask = bound(mask_, seq);
    const PositionRange queries = detail::range_of(
        [&](index_t i) { return query_position(args_, seq, i); }, seq.q_len, !args_.q_positions);
    for (index_t h = kv_head * group_; h < (kv_head + 1) * group_; ++h)
      if (classify(mask, seq.b, h, queries, range.range) != TileVerdict::skip) return true;
    return false;
  }
  /// The tiles of an item's head.
  Packed packed_of(const Item& at, index_t kv_head) const {
    if (tiles_of_head(at.sequence) == 0) return {};
    return packed_.from(tile_at({at.sequence, kv_head}) - packed_begin_);
  }

  AttentionCut cut_of(const AttentionSequence& seq) const {
    const auto side_by_side = [](const auto& rows) {
      return rows.stride(2) >= rows.extent(3) && rows.stride(2) < 2 * rows.extent(3);
    };
    return detail::cut_sequence(seq, group_, kv_heads_, max_rows_, Tiling::kGroup, sequences_,
                                token_bytes(), side_by_side(args_.k) && side_by_side(args_.v));
  }
  /// Of a token's keys and values.
  index_t token_bytes() const {
    return kv_heads_ * (args_.k.extent(3) + args_.v.extent(3)) *
           static_cast<index_t>(sizeof(typename Args::Stored));
  }
  /// o, m and l of a block.
  index_t state_size(const AttentionCut& cut) const {
    return cut.heads * cut.queries * (value_step_ + 2);
  }
  /// Those of an item; nothing where the keys are not split.
  index_t partial_size(const AttentionCut& cut) const {
    return cut.splits == 1 ? 0 : cut.kv_heads * state_size(cut);
  }

  /// The sequence that holds number `n` of what `first` counts.
  index_t place_of(const index_t* first, index_t n) const {
    index_t s = 0;
    for (index_t end = sequences_; end - s > 1;) {
      const index_t middle = (s + end) / 2;
      (first[middle] <= n ? s : end) = middle;  // the last one; empty ones come before it
    }
    return s;
  }

  Item locate(index_t item) const {
    const index_t s = place_of(first_item_, item);
    Item at{rapt::detail::sequence_at(args_, s), {}, s, 0, 0, 0, 0, nullptr};
    at.cut = cut_of(at.seq);
    index_t local = item - first_item_[s];
    at.partial = partials_ + first_partial_[s] + local * partial_size(at.cut);
    const auto digit = [&](index_t base) {
      const index_t d = local % base;
      local /= base;
      return d;
    };
    at.split = digit(at.cut.splits);
    at.pair = digit(at.cut.pairs());
    at.head_block = digit(at.cut.head_blocks);
    at.kv_head = local * at.cut.kv_heads;
    return at;
  }

  /// The rows of kv head `kv_head` in query block `query_block` of an item.
  RowBlock block_of(const Item& at, index_t kv_head, index_t query_block,
                    Scratch<Cpu>& scratch) const {
    RowBlock block{};
    block.head = kv_head * group_ + at.head_block * at.cut.heads;
    block.heads = std::min(at.cut.heads, group_ - at.head_block * at.cut.heads);
    block.i_begin = query_block * at.cut.queries;
    block.queries = std::min(at.cut.queries, at.seq.q_len - block.i_begin);
    block.consecutive = !args_.q_positions;
    block.by_query = knows_runs<Mask>;
    index_t* const positions = scratch.tensor<index_t>(Shape<1>{block.queries}).data();
    for (index_t i = 0; i < block.queries; ++i)
      positions[i] = query_position(args_, at.seq, block.i_begin + i);
    block.positions = positions;
    return block;
  }

  template <class F>
  F bound(const F& f, const AttentionSequence& seq) const {
    static_assert(std::is_same_v<decltype(bind_call(f, CallShape{})), F>,
                  "binding a mask or score that is bound already gives the same type");
    if (!rapt::detail::lengths_differ(args_)) return f;
    return bind_call(f, rapt::detail::call_shape_of(args_, seq));
  }

  void attend_item(index_t item) const {
    const Item at = locate(item);
    if (at.seq.q_len * group_ <= detail::kDecodeRows) {
      decode(at);
      return;
    }
    attend_block(at, at.pair);
    const index_t other = at.cut.query_blocks - 1 - at.pair;
    if (other != at.pair) attend_block(at, other);
  }

  /// The keys of an item's split.
  PositionRange keys_of_item(const Item& at) const {
    const index_t begin = at.split * at.cut.split;
    return {begin, std::min(at.seq.kv_len, begin + at.cut.split)};
  }

  void attend_block(const Item& at, index_t query_block) const {
    Scratch<Cpu> scratch;
    const RowBlock block = block_of(at, at.kv_head, query_block, scratch);
    A* state = at.partial;
    if (at.cut.splits == 1) state = scratch.tensor<A>(Shape<1>{state_size(at.cut)}).data();
    A *const m = state + block.rows() * value_step_, *const l = m + block.rows();
    const PositionRange keys = keys_of_item(at);
    const Mask mask = bound(mask_, at.seq);
    const Score score = bound(score_, at.seq);
    Block(args_, at.seq, mask, score, at.kv_head, block, packed_of(at, at.kv_head), scratch)
        .run(keys.begin, keys.end, state, m, l);
    if (at.cut.splits == 1) finish_state(at, at.kv_head, block, state, scratch);
  }

  void decode(const Item& at) const {
    Scratch<Cpu> scratch;
    const RowBlock block = block_of(at, at.kv_head, 0, scratch);
    const index_t kv_heads = at.kv_heads(kv_heads_), size = state_size(at.cut);
    A* state = at.partial;
    if (at.cut.splits == 1) state = scratch.tensor<A>(Shape<1>{kv_heads * size}).data();
    const PositionRange keys = keys_of_item(at);
    const Mask mask = bound(mask_, at.seq);
    const Score score = bound(score_, at.seq);
    const auto run = [&]<class By>(std::type_identity<By>) {
      return detail::DecodeItem<Args, Mask, Score, By>(args_, at.seq, mask, score, at.kv_head,
                                                       kv_heads, block, state, size, scratch)
          .run(keys.begin, keys.end);
    };
    const index_t bytes = at.seq.kv_len * token_bytes();
    const auto attempt = [&]<class By>(const auto& self, std::type_identity<By> by) -> void {
      if (By::serves(block.rows(), args_.k.extent(3), bytes) && run(by)) return;
      if constexpr (!std::is_same_v<By, typename By::Exact>)
        self(self, std::type_identity<typename By::Exact>{});
    };
    attempt(attempt, std::type_identity<typename Product::Decode>{});
    for (index_t h = 0; at.cut.splits == 1 && h < kv_heads; ++h)
      finish_state(at, at.kv_head + h, block_of(at, at.kv_head + h, 0, scratch), state + h * size,
                   scratch);
  }

  /// Splits of the same rows, in order.
  void merge_item(index_t item) const {
    const Item at = locate(item);
    if (at.cut.splits == 1 || at.split != 0) return;
    for (index_t h = 0; h < at.kv_heads(kv_heads_); ++h) {
      Scratch<Cpu> scratch;
      const RowBlock block = block_of(at, at.kv_head + h, 0, scratch);
      A* const first = at.partial + h * state_size(at.cut);
      finish(at, at.kv_head + h, block, scratch, [&](index_t r) {
        return detail::merge_row(first, partial_size(at.cut), at.cut.splits, block.rows(), r,
                                 value_step_);
      });
    }
  }

  void finish_state(const Item& at, index_t kv_head, const RowBlock& block, A* state,
                    Scratch<Cpu>& scratch) const {
    const A *const m = state + block.rows() * value_step_, *const l = m + block.rows();
    finish(at, kv_head, block, scratch, [=, this](index_t r) {
      return detail::RowState<A>{m[r], l[r], state + r * value_step_};
    });
  }

  /// Writes the rows of a block, state(r) each, and what else was asked for.
  template <class State>
  void finish(const Item& at, index_t kv_head, const RowBlock& block, Scratch<Cpu>& scratch,
              State state) const {
    A* const whole = scratch.tensor<A>(Shape<1>{block.rows()}).data();
    const index_t end = block.i_begin + block.queries, dim = args_.out.extent(3);
    const bool logarithms = detail::wants_logarithms(args_);
    RowCursor row(block, 0);
    for (index_t r = 0; r < block.rows(); ++r, ++row) {
      auto* const out = detail::out_row(args_, at.seq, row.head(), row.query());
      if (row.query() + detail::kScatteredAhead < end)
        detail::prefetch_row<true>(out + detail::kScatteredAhead * args_.out.stride(1), dim);
      const detail::RowState<A> s = state(r);
      A factor = s.l == 0 ? A(0) : 1 / s.l;
      if (logarithms)
        whole[r] = detail::finish_logarithms(args_, at.seq, row.head(), row.query(), s, factor);
      detail::store_output(out, s, factor, dim);
    }
    if (args_.probabilities) write_probabilities(at, kv_head, block, scratch, whole);
  }

  [[gnu::noinline, gnu::cold]] void write_probabilities(const Item& at, index_t kv_head,
                                                        const RowBlock& block,
                                                        Scratch<Cpu>& scratch,
                                                        const A* denominators) const {
    const Mask mask = bound(mask_, at.seq);
    const Score score = bound(score_, at.seq);
    Block(args_, at.seq, mask, score, kv_head, block, packed_of(at, kv_head), scratch)
        .write_probabilities(denominators);
  }

  [[gnu::cold]] void clear_probabilities() const {
    const auto& p = args_.probabilities;
    for (index_t b = 0; b < p.extent(0); ++b)
      for (index_t h = 0; h < p.extent(1); ++h)
        for (index_t i = 0; i < p.extent(2); ++i)
          for (index_t j = 0; j < p.extent(3); ++j) p(b, h, i, j) = 0;
  }

  const Args& args_;
  const Mask& mask_;
  const Score& score_;
  index_t group_ = 1, kv_heads_ = 1, sequences_ = 1, value_step_ = 0, max_rows_ = 0;
  index_t *first_item_ = nullptr, *first_partial_ = nullptr, *first_tile_ = nullptr;
  A* partials_ = nullptr;
  Packed packed_;  // tiles packed_begin_ and on
  index_t packed_begin_ = 0;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

namespace rapt {

template <class Args, class Mask, class Score>
void BackendTraits<Cpu>::attention_forward(Cpu, const Args& args, const Mask& mask,
                                           const Score& score) {
  using T = typename Args::Element;
  using Stored = typename Args::Stored;
  if constexpr (cpu::kAmx) {
    if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<Stored, T>)
      if (cpu::amx_granted())
        return cpu::AttentionForward<Args, Mask, Score, cpu::AmxProduct<>>(args, mask, score).run();
    if constexpr (std::is_same_v<T, float> || std::is_same_v<T, half>) {
      using Parts = cpu::PartsProduct<T, Stored>;
      if (cpu::parts_serve<Parts>(args))
        return cpu::AttentionForward<Args, Mask, Score, Parts>(args, mask, score).run();
    }
  }
  cpu::AttentionForward<Args, Mask, Score>(args, mask, score).run();
}

}  // namespace rapt

#ifdef RAPT_USE_INSTANCES
#include "rapt/cpu/instances/attention_forward.hpp"
#endif
