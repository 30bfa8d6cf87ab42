// Attention forward on the CPU: tiles with an online softmax.
//
//   for each tile of keys J that some query of the block sees:            K_J, V_J packed once
//     for each 48 rows of the block:                                      m, l, o: running state
//       S  = Q K_J^T                                       [48, keys]     6 rows x 1 panel a time
//       S  = score(scale S), minus infinity where hidden
//       m' = max(m, rowmax S);  E = exp(S - m');  f = exp(m - m')
//       l  = f l + rowsum E;    o = f o + E V_J;  m = m'
//   out = o / l;  logsumexp = m + log l
//
// The products are those of cpu/attention_product.hpp, fp32 or pairs of bfloat16; sizes here are
// those of fp32.
//
//              keys ->                       A block is up to 960 rows (query, head of a group), so
//          full   full  partial  skip        that a packed tile of K and V serves all of them.
//        +------+------+------+- - - +       Verdicts are asked for a block, then for 48 rows; in a
//   rows |      |      |   \  |      |       partial tile each 6 rows take the columns between the
//     |  |      |      |     \|      |       first and the last that they see, rounded to vectors
//     v  +------+------+------+- - - +       for S and exactly for E V. What is skipped is neither
//                                            packed nor multiplied; what is full is not tested.
//
// Memory O(tile) a thread; 16-bit K and V are converted as they are packed, codes of 8 bits also
// multiplied by their scales. Work is cut by shape
// alone and each part owns its rows, so a result does not depend on the number of threads; a part
// is a block from the beginning of the sequence and one from its end, so that under a causal mask
// all parts cost the same. A hidden key's value is never multiplied where it could matter: packing
// notes values that are not finite, and a partial tile that holds one is summed pair by pair. Few
// rows (decode): cpu/attention_decode.hpp. Sequences that give too few blocks are also cut along
// the keys; the parts are merged in order.
//
// Sources: Milakov, Gimelshein 2018, arXiv:1805.02867; Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <bit>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>

#include "rapt/attention/options.hpp"
#include "rapt/attention/sequences.hpp"
#include "rapt/core/backend.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_amx.hpp"
#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_decode.hpp"
#include "rapt/cpu/attention_product.hpp"
#include "rapt/cpu/attention_score.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// One block of rows against the keys of one head. Product: cpu/attention_product.hpp.
template <class Args, class Mask, class Score, class Product>
class AttentionBlock {
  using T = typename Args::Element;
  using S = typename Args::Stored;
  using A = accumulate_t<T>;
  using V = Vec<A>;
  using Tiling = typename Product::Tiling;
  using Columns = detail::Columns;
  static constexpr int kGroup = Tiling::kGroup;
  static constexpr index_t kPanel = Tiling::kPanel, kKeyTile = Tiling::kKeyTile;
  static constexpr index_t kRowTile = Tiling::kRowTile, kGroups = kRowTile / kGroup;
  static constexpr A kNone = -std::numeric_limits<A>::infinity();

 public:
  static constexpr index_t kMaxRowTiles = 20;
  static constexpr index_t kMaxRows = kMaxRowTiles * kRowTile;

  AttentionBlock(const Args& args, const AttentionSequence& seq, const Mask& mask,
                 const Score& score, index_t kv_head, const RowBlock& block, Scratch<Cpu>& scratch)
      : args_(args),
        seq_(seq),
        mask_(mask),
        score_(score),
        block_(block),
        units_{args.scale},
        rows_(block.rows()),
        dim_(args.q.extent(3)),
        value_step_(detail::round_up(args.v.extent(3), V::kLanes)),
        // A group of rows of one head sees almost the same keys; those of two heads need not.
        groups_{rows_, block.queries >= 4 * kGroup ? block.queries : rows_},
        product_(scratch, rows_, dim_, args.v.extent(3)),
        k_row_(row_address(args, args.k, seq, kv_head)),
        v_row_(row_address(args, args.v, seq, kv_head)),
        k_scale_(row_address(args, args.k_scales, seq, kv_head)),
        v_scale_(row_address(args, args.v_scales, seq, kv_head)) {
    s_ = scratch.template tensor<A>(Shape<1>{kRowTile * kKeyTile}).data();
    seen_ = scratch.template tensor<mask_int<A>>(Shape<1>{kRowTile * kKeyTile}).data();
    copy_queries();
  }

  /// o [rows, value_step], m and l [rows]: the state after keys [kv_begin, kv_end), m in natural
  /// units.
  void run(index_t kv_begin, index_t kv_end, A* o, A* m, A* l) {
    for (index_t r = 0; r < rows_; ++r) m[r] = kNone, l[r] = 0;
    for (index_t t = 0; t < rows_ * value_step_; ++t) o[t] = 0;
    walk(kv_begin, kv_end, o, m, l, nullptr);
    for (index_t r = 0; r < rows_; ++r) m[r] *= units_.natural();
  }

  /// probabilities(...) = exp(s - denominator), the logarithm of each row's whole denominator.
  void write_probabilities(const A* denominators) {
    walk(0, seq_.kv_len, nullptr, nullptr, nullptr, denominators);
  }

 private:
  void copy_queries() {
    const index_t end = block_.i_begin + block_.queries;
    RowCursor at(block_, 0);
    for (index_t r = 0; r < rows_; ++r, ++at) {
      const T* const q = args_.q.data() + seq_.row * args_.q.stride(0) +
                         (seq_.q_begin + at.query()) * args_.q.stride(1) +
                         at.head() * args_.q.stride(2);
      if (at.query() + detail::kScatteredAhead < end)
        detail::prefetch_row(q + detail::kScatteredAhead * args_.q.stride(1), dim_);
      product_.set_query(r, q, units_.q_factor());
    }
  }

  /// The tile at hand, as the product takes it.
  typename Product::Tile tile() const { return {s_, groups(), begin_, end_, columns_, factors_}; }

  std::span<const RowGroup> groups() const {
    return {tile_groups_, static_cast<std::size_t>(group_count_)};
  }

  /// Every tile that is not skipped: its scores, and then either the online softmax into o, m, l
  /// or, given the denominators, the probabilities.
  void walk(index_t kv_begin, index_t kv_end, A* o, A* m, A* l, const A* denominators) {
    const index_t all_groups = groups_.count();
    for (tile_begin_ = kv_begin; tile_begin_ < kv_end; tile_begin_ += kKeyTile) {
      const KeySpan keys =
          keys_of(args_, seq_, tile_begin_, std::min(kKeyTile, kv_end - tile_begin_));
      const detail::KeyRange range = detail::key_range(keys);
      const TileVerdict verdict = detail::verdict_of(mask_, seq_.b, block_, 0, rows_, range);
      if (verdict == TileVerdict::skip) continue;

      bool packed = false;
      for (index_t first_group = 0; first_group < all_groups; first_group += kGroups) {
        group_count_ = std::min(kGroups, all_groups - first_group);
        for (index_t g = 0; g < group_count_; ++g) tile_groups_[g] = groups_[first_group + g];
        begin_ = tile_groups_[0].begin, end_ = tile_groups_[group_count_ - 1].end;
        const TileVerdict part =
            verdict == TileVerdict::full
                ? verdict
                : detail::verdict_of(mask_, seq_.b, block_, begin_, end_, range);
        if (part == TileVerdict::skip) continue;
        if (!packed) pack_tile(keys.count, denominators == nullptr);
        packed = true;
        fetch_ahead(first_group, all_groups, kv_end);
        if (part == TileVerdict::full)
          score_full_tile(keys);
        else
          score_partial_tile(keys, range);
        if (denominators != nullptr) {
          store_probabilities(denominators);
          continue;
        }
        detail::report_tile(mask_, seq_.b, block_, begin_, end_, range);
        soften(m, l);
        if (!finite_ && part == TileVerdict::partial)
          accumulate_seen(o);
        else
          product_.accumulate(o, tile());
      }
    }
  }

  [[gnu::noinline, gnu::cold]] void store_probabilities(const A* denominators) const {
    for (index_t r = begin_; r < end_; ++r) {
      const Columns columns = columns_[r - begin_];
      for (index_t j = columns.begin; j < columns.end; ++j) {
        const A s = row(r)[j] * units_.natural();
        if (s != kNone)
          args_.probabilities(seq_.row, block_.head_of(r), seq_.q_begin + block_.query_of(r),
                              seq_.kv_begin + tile_begin_ + j) = std::exp(s - denominators[r]);
      }
    }
  }

  void pack_tile(index_t n, bool with_values) {
    const S* rows[kKeyTile] = {};
    float scales[QuantizedElement<S> ? kKeyTile : 1] = {};
    const auto address = [&](const RowAddress<S>& row, const RowAddress<float>& scale) {
      row_addresses(rows, row, tile_begin_, n);
      if constexpr (QuantizedElement<S>) read_scales(scales, scale, tile_begin_, n);
    };
    address(k_row_, k_scale_);
    product_.pack_keys(rows, n, scales);
    if (!with_values) return;
    address(v_row_, v_scale_);
    finite_ = product_.pack_values(rows, n, scales);
  }

  /// Brings a share of the next tile's rows nearer, so that packing need not wait for memory.
  void fetch_ahead(index_t first_group, index_t all_groups, index_t kv_end) const {
    const index_t next = tile_begin_ + kKeyTile, count = std::min(kKeyTile, kv_end - next);
    if (count <= 0) return;
    const index_t end = count * (first_group + group_count_) / all_groups;
    for (index_t j = count * first_group / all_groups; j < end; ++j) {
      detail::prefetch_row(k_row_(next + j), dim_);
      detail::prefetch_row(v_row_(next + j), args_.v.extent(3));
    }
  }

  /// Scores of the tile's row r, one a key.
  A* row(index_t r) const { return s_ + (r - begin_) * kKeyTile; }
  /// What row r sees of the tile, where the mask was asked.
  mask_int<A>* seen(index_t r) const { return seen_ + (r - begin_) * kKeyTile; }
  static index_t vector_begin(index_t j) { return j / V::kLanes * V::kLanes; }
  static index_t vector_end(index_t j) { return detail::round_up(j, V::kLanes); }

  /// The modifier, on columns of a row.
  void modify(index_t r, Columns columns, const KeySpan& keys) const {
    detail::modify_row(row(r) + columns.begin, score_, units_.scale,
                       {seq_.b, block_.head_of(r), block_.position_of(r),
                        keys.part(columns.begin, columns.end - columns.begin)});
  }
  /// Minus infinity where seen_ is 0, in the vectors of `columns`.
  void hide_unseen(index_t r, Columns columns) const {
    const V none = V::broadcast(kNone);
    for (index_t j = vector_begin(columns.begin); j < columns.end; j += V::kLanes)
      select(V::load_mask(seen(r) + j), V::load(row(r) + j), none).store(row(r) + j);
  }
  /// Minus infinity outside of `seen`, in the vectors of `columns`.
  void hide_outside(index_t r, Columns seen, Columns columns) const {
    const V none = V::broadcast(kNone);
    const auto hide = [&](index_t begin, index_t end) {
      for (index_t j = begin; j < end; j += V::kLanes) {
        const V s = select(detail::first_lanes<A>(seen.end - j), V::load(row(r) + j), none);
        select(detail::first_lanes<A>(seen.begin - j), none, s).store(row(r) + j);
      }
    };
    const index_t begin = vector_begin(columns.begin), end = vector_end(columns.end);
    const index_t first = std::min(vector_end(seen.begin), end);  // whole vectors are left alone
    hide(begin, first);
    hide(std::max(first, vector_begin(seen.end)), end);
  }

  /// S of a tile that every row sees whole.
  void score_full_tile(const KeySpan& keys) {
    const Columns all{0, keys.count};
    std::fill_n(columns_, end_ - begin_, all);
    product_.scores(tile());
    for (index_t r = begin_; r < end_; ++r) {
      if constexpr (!detail::is_identity<Score>) modify(r, all, keys);
      if (keys.count % V::kLanes != 0) hide_outside(r, all, all);
    }
  }

  /// S of a tile that some rows see in part: of each group the columns that one of its rows sees.
  void score_partial_tile(const KeySpan& keys, const detail::KeyRange& range) {
    const bool asked = !RangeMask<Mask> || keys.given != nullptr;
    for (const RowGroup& group : groups()) {
      const Columns columns = asked ? ask_group(group.begin, group.end, keys, range)
                                    : columns_of_group(group.begin, group.end, keys);
      std::fill(columns_ + (group.begin - begin_), columns_ + (group.end - begin_), columns);
    }
    product_.scores(tile());
    for (index_t r = begin_; r < end_; ++r) {
      const Columns columns = columns_[r - begin_];
      if (!columns) continue;
      if constexpr (!detail::is_identity<Score>) modify(r, columns, keys);
      if (asked)
        hide_unseen(r, columns);
      else if (const Columns seen = row_columns_[r - begin_];
               seen.begin != columns.begin || seen.end != columns.end ||
               columns.begin % V::kLanes != 0 || columns.end % V::kLanes != 0)
        hide_outside(r, seen, columns);
    }
  }

  /// row_columns_ = what the range of the mask lets rows [first, last) see. Returns what holds all.
  Columns columns_of_group(index_t first, index_t last, const KeySpan& keys) {
    Columns columns;
    if constexpr (RangeMask<Mask>) {
      RowCursor at(block_, first);
      for (index_t r = first; r < last; ++r, ++at) {
        const Columns seen = detail::seen_columns(mask_, seq_.b, at.head(), at.position(), keys);
        if (seen) columns.include(seen.begin, seen.end);
        row_columns_[r - begin_] = seen;
      }
    }
    return columns;
  }

  /// seen_ = what the mask lets rows [first, last) see, asked panel by panel. Returns columns that
  /// hold all of it.
  Columns ask_group(index_t first, index_t last, const KeySpan& keys,
                    const detail::KeyRange& range) {
    Columns columns;
    for (index_t at = 0; at < keys.count; at += kPanel) {
      const KeySpan part = keys.part(at, std::min(kPanel, keys.count - at));
      const detail::KeyRange part_range = keys.count <= kPanel ? range : detail::key_range(part);
      if (detail::verdict_of(mask_, seq_.b, block_, first, last, part_range) == TileVerdict::skip) {
        for (index_t r = first; r < last; ++r)
          std::fill_n(seen(r) + at, part.count, mask_int<A>(0));
        continue;
      }
      const Columns some = detail::ask_rows<A>(seen(first) + at, kKeyTile, mask_, seq_.b, block_,
                                               first, last, part, part_range);
      if (some) columns.include(at + some.begin, at + some.end);
    }
    for (index_t r = first; r < last; ++r)  // up to a whole vector
      for (index_t j = keys.count; j < vector_end(keys.count); ++j) seen(r)[j] = 0;
    return columns;
  }

  /// Scores become weights, as many rows at a time as a vector has lanes: sums and maxima across
  /// lanes are then shared among the rows.
  void soften(A* m, A* l) {
    const A unit = units_.unit();
    const index_t rows = end_ - begin_;
    A tops[kRowTile] = {};
    for (index_t first = 0; first < rows; first += V::kLanes) {
      V top[V::kLanes];
      for (index_t i = 0; i < V::kLanes; ++i) {
        const Columns columns = first + i < rows ? columns_[first + i] : Columns{0, 0};
        top[i] =
            detail::row_top(s_ + (first + i) * kKeyTile, vector_begin(columns.begin), columns.end);
      }
      rapt::cpu::tops(top).store(tops + first);
    }
    detail::raise_rows(m + begin_, l + begin_, factors_, tops, rows, unit);
    for (index_t first = 0; first < rows; first += V::kLanes) {
      V total[V::kLanes];
      for (index_t i = 0; i < V::kLanes; ++i) {
        const bool some = first + i < rows;
        const Columns columns = some ? columns_[first + i] : Columns{0, 0};
        total[i] = detail::soften_row<typename Product::Weight>(
            s_ + (first + i) * kKeyTile, vector_begin(columns.begin), columns.end,
            some ? m[begin_ + first + i] : A(0), unit);
      }
      A* const to = l + begin_ + first;
      const index_t left = rows - first;
      detail::store_lanes(detail::load_lanes<A>(to, left) + V::sums(total), to, left);
    }
  }

  /// o = f o + P V of a tile with values that are not finite, some of them perhaps hidden.
  [[gnu::noinline, gnu::cold]] void accumulate_seen(A* o) const {
    for (index_t r = begin_; r < end_; ++r)
      if (columns_[r - begin_]) product_.accumulate_seen(o + r * value_step_, tile(), r - begin_);
  }

  const Args& args_;
  const AttentionSequence& seq_;
  const Mask& mask_;
  const Score& score_;
  const RowBlock& block_;
  const detail::ScoreUnits<A, Score> units_;
  const index_t rows_, dim_, value_step_;
  const RowGroups<kGroup> groups_;
  Product product_;
  const RowAddress<S> k_row_, v_row_;
  const RowAddress<float> k_scale_, v_scale_;
  A* s_;               // [kRowTile][kKeyTile]
  mask_int<A>* seen_;  // [kRowTile][kKeyTile]
  bool finite_ = true;
  // The tile at hand: its keys, its groups of rows, its rows.
  index_t tile_begin_ = 0, group_count_ = 0, begin_ = 0, end_ = 0;
  RowGroup tile_groups_[kGroups] = {};
  Columns columns_[kRowTile] = {};      // of each row; a group shares them
  Columns row_columns_[kRowTile] = {};  // of each row alone, where a range says them
  A factors_[kRowTile + V::kLanes] = {};
};

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

inline constexpr index_t kDecodeRows = 16;    // up to here, dot products beat packing
inline constexpr index_t kDecodeSplit = 512;  // most keys
inline constexpr index_t kSmallSplit = 256;   // fewest, where sequences and heads are few
inline constexpr index_t kTiledSplit = 2048;
inline constexpr index_t kEnoughItems = 8;   // for a few threads
inline constexpr index_t kFewRows = 192;     // of a block, below which packing shows
inline constexpr index_t kFewestRows = 128;  // the same, where a thread would wait instead

/// Blocks of up to max_rows rows, a multiple of row_unit where there are several.
inline AttentionCut cut_sequence(const AttentionSequence& seq, index_t group, index_t kv_heads,
                                 index_t max_rows, index_t row_unit, index_t sequences) {
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
    while (sequences * kv_heads * cut.splits < kEnoughItems / 2 &&
           seq.kv_len >= (cut.splits + 1) * kSmallSplit)
      ++cut.splits;
  } else if (cut.query_blocks == 1 && seq.kv_len >= 2 * kTiledSplit) {
    cut.splits = ceil_div(seq.kv_len, kTiledSplit);
  }
  // As long as each other, or the thread that has the short one waits; but whole tiles.
  const index_t unit = decode ? 16 : 128;
  cut.split = std::max(unit, round_up(ceil_div(seq.kv_len, cut.splits), unit));
  cut.splits = std::max<index_t>(1, ceil_div(seq.kv_len, cut.split));
  // Decode reads all heads of a token at once, where that leaves enough items.
  cut.kv_heads = 1;
  if (decode) {
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
    // A block's rows stay within 512 KiB of cache: q and o of each.
    const index_t row_bytes = (dim + value_step_) * static_cast<index_t>(sizeof(A));
    const index_t row_tiles = (index_t{1} << 19) / (row_bytes * Tiling::kRowTile);
    max_rows_ = std::clamp<index_t>(row_tiles, 1, Block::kMaxRowTiles) * Tiling::kRowTile;

    // Where each sequence's items begin, and where its partial results lie (only if it is split).
    Scratch<Cpu> scratch;
    first_item_ = scratch.tensor<index_t>(Shape<1>{sequences + 1}).data();
    first_partial_ = scratch.tensor<index_t>(Shape<1>{sequences + 1}).data();
    first_item_[0] = first_partial_[0] = 0;
    double work = 0;  // multiply-adds, were nothing masked
    for (index_t s = 0; s < sequences; ++s) {
      const AttentionSequence seq = rapt::detail::sequence_at(args_, s);
      const AttentionCut cut = cut_of(seq);
      first_item_[s + 1] = first_item_[s] + cut.items();
      first_partial_[s + 1] = first_partial_[s] + cut.items() * partial_size(cut);
      work += static_cast<double>(seq.q_len) * static_cast<double>(seq.kv_len);
    }
    work *= static_cast<double>(heads * (dim + args_.v.extent(3)));
    const index_t partials = first_partial_[sequences];
    partials_ = scratch.tensor<A>(Shape<1>{partials}).data();
    if (args_.probabilities) clear_probabilities();

    const index_t items = first_item_[sequences];
    // Below, waking a thread costs more than it does.
    constexpr double kWorthThreads = 1 << 18;
    constexpr index_t kWorthMerging = 1 << 14;
    const auto attend = [this](index_t item) { attend_item(item); };
    const auto merge = [this](index_t item) { merge_item(item); };
    if (work < kWorthThreads) {
      for (index_t item = 0; item < items; ++item) attend(item);
      for (index_t item = 0; partials > 0 && item < items; ++item) merge(item);
    } else {
      parallel_for(items, attend);
      if (partials >= kWorthMerging)
        parallel_for(items, merge);
      else
        for (index_t item = 0; partials > 0 && item < items; ++item) merge(item);
    }
  }

 private:
  /// One item of work: see AttentionCut.
  struct Item {
    AttentionSequence seq;
    AttentionCut cut;
    index_t kv_head, head_block, pair, split;
    A* partial;  // this item's place among the partial results, a state for each of its kv heads
    index_t kv_heads(index_t all) const { return std::min(cut.kv_heads, all - kv_head); }
  };

  AttentionCut cut_of(const AttentionSequence& seq) const {
    return detail::cut_sequence(seq, group_, kv_heads_, max_rows_, Tiling::kGroup, sequences_);
  }
  /// o, m and l of a block.
  index_t state_size(const AttentionCut& cut) const {
    return cut.heads * cut.queries * (value_step_ + 2);
  }
  /// Those of an item; nothing where the keys are not split.
  index_t partial_size(const AttentionCut& cut) const {
    return cut.splits == 1 ? 0 : cut.kv_heads * state_size(cut);
  }

  Item locate(index_t item) const {
    index_t s = 0;
    for (index_t end = rapt::detail::sequence_count(args_); end - s > 1;) {
      const index_t middle = (s + end) / 2;
      (first_item_[middle] <= item ? s : end) = middle;  // the last one; empty ones come before it
    }
    Item at{rapt::detail::sequence_at(args_, s), {}, 0, 0, 0, 0, nullptr};
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
    Block(args_, at.seq, mask, score, at.kv_head, block, scratch)
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
    using Decode = typename Product::Decode;
    if (block.rows() < Decode::kFewestRows || !run(std::type_identity<Decode>{}))
      run(std::type_identity<typename Decode::Exact>{});
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
    const index_t end = block.i_begin + block.queries;
    RowCursor row(block, 0);
    for (index_t r = 0; r < block.rows(); ++r, ++row) {
      if (const index_t ahead = row.query() + detail::kScatteredAhead; ahead < end)
        detail::prefetch_row<true>(detail::out_row(args_, at.seq, row.head(), ahead),
                                   args_.out.extent(3));
      whole[r] = detail::finish_row(args_, at.seq, row.head(), row.query(), state(r));
    }
    if (args_.probabilities) write_probabilities(at, kv_head, block, scratch, whole);
  }

  [[gnu::noinline, gnu::cold]] void write_probabilities(const Item& at, index_t kv_head,
                                                        const RowBlock& block,
                                                        Scratch<Cpu>& scratch,
                                                        const A* denominators) const {
    const Mask mask = bound(mask_, at.seq);
    const Score score = bound(score_, at.seq);
    Block(args_, at.seq, mask, score, kv_head, block, scratch).write_probabilities(denominators);
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
  index_t *first_item_ = nullptr, *first_partial_ = nullptr;
  A* partials_ = nullptr;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

namespace rapt {

template <class Args, class Mask, class Score>
void BackendTraits<Cpu>::attention_forward(Cpu, const Args& args, const Mask& mask,
                                           const Score& score) {
  if constexpr (cpu::kAmx && std::is_same_v<typename Args::Element, bfloat16> &&
                std::is_same_v<typename Args::Stored, bfloat16>)
    if (cpu::amx_granted())
      return cpu::AttentionForward<Args, Mask, Score, cpu::AmxProduct<>>(args, mask, score).run();
  cpu::AttentionForward<Args, Mask, Score>(args, mask, score).run();
}

}  // namespace rapt

#ifdef RAPT_USE_INSTANCES
#include "rapt/cpu/instances/attention_forward.hpp"
#endif
