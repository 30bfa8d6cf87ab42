// One block of rows of attention forward on the CPU: tiles with an online softmax.
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
//              keys ->                       A block is up to 1728 rows (query, head of group), so
//          full   full  partial  skip        that a packed tile of K and V serves all of them.
//        +------+------+------+- - - +       Verdicts are asked for a block, then for 48 rows; in a
//   rows |      |      |   \  |      |       partial tile each 6 rows take the columns between the
//     |  |      |      |     \|      |       first and the last that they see, rounded to vectors
//     v  +------+------+------+- - - +       for S and exactly for E V. What is skipped is neither
//                                            packed nor multiplied; what is full is not tested.
//
// Tiles come packed where several blocks share them (PackedTiles), else the block packs its own and
// memory is O(tile). A hidden key's value is never multiplied where it could matter: packing notes
// values that are not finite, and a partial tile that holds one is summed pair by pair.
//
// Sources: Milakov, Gimelshein 2018, arXiv:1805.02867; Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <type_traits>

#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_keys.hpp"
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
  using Unit = typename Product::Unit;
  using Tiling = typename Product::Tiling;
  using Columns = detail::Columns;
  using Units = detail::ScoreUnits<A, Score, Product>;
  static constexpr int kGroup = Tiling::kGroup;
  static constexpr index_t kPanel = Tiling::kPanel, kKeyTile = Tiling::kKeyTile;
  static constexpr index_t kRowTile = Tiling::kRowTile, kGroups = kRowTile / kGroup;
  static constexpr A kNone = -std::numeric_limits<A>::infinity();

 public:
  static constexpr index_t kMaxRowTiles = 36;

  AttentionBlock(const Args& args, const AttentionSequence& seq, const Mask& mask,
                 const Score& score, index_t kv_head, const RowBlock& block,
                 const PackedTiles<Unit>& packed, Scratch<Cpu>& scratch)
      : args_(args),
        seq_(seq),
        mask_(mask),
        score_(score),
        block_(block),
        units_{args.scale},
        rows_(block.rows()),
        dim_(args.q.extent(3)),
        value_step_(detail::round_up(args.v.extent(3), V::kLanes)),
        // Neighbours see almost the same keys; where heads lie apart, those of two heads need not.
        groups_{rows_, !block.by_query && block.queries >= 4 * kGroup ? block.queries : rows_},
        product_(scratch, rows_, dim_, args.v.extent(3)),
        key_rows_(args, seq, kv_head),
        packed_(packed) {
    k_ = scratch.template tensor<Unit>(Shape<1>{Product::key_units(dim_)}).data();
    v_ = scratch.template tensor<Unit>(Shape<1>{Product::value_units(args.v.extent(3))}).data();
    s_ = scratch.template tensor<A>(Shape<1>{kRowTile * kKeyTile}).data();
    seen_ = scratch.template tensor<mask_int<A>>(Shape<1>{kRowTile * kKeyTile}).data();
    met_ = scratch.template tensor<bool>(Shape<1>{row_tiles()}).data();
    copy_queries();
  }

  /// o [rows, value_step], m and l [rows]: the state after keys [kv_begin, kv_end), m in natural
  /// units.
  void run(index_t kv_begin, index_t kv_end, A* o, A* m, A* l) {
    std::fill_n(m, rows_, kNone);
    std::fill_n(l, rows_, A(0));
    std::fill_n(met_, row_tiles(), false);
    walk(kv_begin, kv_end, o, m, l, nullptr);
    for (index_t t = 0; t < row_tiles(); ++t) {
      if (met_[t]) continue;
      const index_t begin = groups_[t * kGroups].begin;
      const index_t end = groups_[std::min((t + 1) * kGroups, groups_.count()) - 1].end;
      std::fill_n(o + begin * value_step_, (end - begin) * value_step_, A(0));
    }
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
  typename Product::Tile tile(bool first = false) const {
    return {s_, groups(), begin_, end_, columns_, factors_, first};
  }

  index_t row_tiles() const { return detail::ceil_div(groups_.count(), kGroups); }
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
        if (!packed) use_tile(keys.count, denominators == nullptr);
        packed = true;
        if (!packed_) fetch_ahead(first_group, all_groups, kv_end);
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
        bool& met = met_[first_group / kGroups];
        if (!finite_ && (part == TileVerdict::partial || !Product::kTakesInfinities))
          accumulate_seen(o, keys.count, !met);
        else
          product_.accumulate(o, tile(!met));
        met = true;
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

  /// The tile of n keys as it was packed, or packed now.
  void use_tile(index_t n, bool with_values) {
    using Packed = PackedTiles<Unit>;
    const index_t t = tile_begin_ / kKeyTile;
    if (packed_ && packed_.states[t] != Packed::absent) {
      finite_ = packed_.states[t] == Packed::finite;
      product_.use(packed_.keys(t), packed_.values(t));
      return;
    }
    key_rows_.pack_keys(k_, tile_begin_, n);
    if (with_values) finite_ = key_rows_.pack_values(v_, tile_begin_, n);
    product_.use(k_, v_);
  }

  /// Brings a share of the next tile's rows nearer, so that packing need not wait for memory.
  void fetch_ahead(index_t first_group, index_t all_groups, index_t kv_end) const {
    const index_t next = tile_begin_ + kKeyTile, count = std::min(kKeyTile, kv_end - next);
    if (count <= 0) return;
    key_rows_.fetch(next + count * first_group / all_groups,
                    next + count * (first_group + group_count_) / all_groups);
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
  /// Minus infinity outside of what each row of a group sees, seen(r), in the vectors of `columns`.
  /// Vector by vector, because rows of a group see nearly the same.
  template <class Seen>
  void hide_outside(RowGroup group, Columns columns, Seen seen) const {
    Columns all{0, kKeyTile};  // what every row sees: whole vectors of it are left alone
    for (index_t r = group.begin; r < group.end; ++r)
      all = {std::max(all.begin, seen(r).begin), std::min(all.end, seen(r).end)};
    const V none = V::broadcast(kNone);
    const auto hide = [&](index_t begin, index_t end) {
      for (index_t j = begin; j < end; j += V::kLanes)
        for (index_t r = group.begin; r < group.end; ++r) {
          const Columns of_row = seen(r);
          const V s = select(detail::first_lanes<A>(of_row.end - j), V::load(row(r) + j), none);
          select(detail::first_lanes<A>(of_row.begin - j), none, s).store(row(r) + j);
        }
    };
    const index_t begin = vector_begin(columns.begin), end = vector_end(columns.end);
    const index_t first = std::min(vector_end(std::max(all.begin, begin)), end);
    hide(begin, first);
    hide(std::max(first, vector_begin(all.end)), end);
  }

  /// S of a tile that every row sees whole.
  void score_full_tile(const KeySpan& keys) {
    const Columns all{0, keys.count};
    std::fill_n(columns_, end_ - begin_, all);
    product_.scores(tile());
    if constexpr (!detail::is_identity<Score>)
      for (index_t r = begin_; r < end_; ++r) modify(r, all, keys);
    if (keys.count % V::kLanes != 0)
      hide_outside({begin_, end_}, all, [all](index_t) { return all; });
  }

  /// S of a tile that some rows see in part: of each group the columns that one of its rows sees.
  void score_partial_tile(const KeySpan& keys, const detail::KeyRange& range) {
    const bool asked = !RangeMask<Mask> || keys.given != nullptr;
    RowCursor at(block_, begin_);
    for (const RowGroup& group : groups()) {
      const Columns columns = asked ? ask_group(group.begin, group.end, keys, range)
                                    : columns_of_group(at, group.begin, group.end, keys);
      std::fill(columns_ + (group.begin - begin_), columns_ + (group.end - begin_), columns);
    }
    product_.scores(tile());
    for (const RowGroup& group : groups()) {
      const Columns columns = columns_[group.begin - begin_];
      if (!columns) continue;
      for (index_t r = group.begin; r < group.end; ++r) {
        if constexpr (!detail::is_identity<Score>) modify(r, columns, keys);
        if (asked) hide_unseen(r, columns);
      }
      if (!asked)
        hide_outside(group, columns, [this](index_t r) { return row_columns_[r - begin_]; });
    }
  }

  /// row_columns_ = what the range of the mask lets rows [first, last) see, `at` the first. Returns
  /// what holds all.
  Columns columns_of_group([[maybe_unused]] RowCursor& at, index_t first, index_t last,
                           const KeySpan& keys) {
    Columns columns;
    if constexpr (RangeMask<Mask>) {
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
        total[i] = detail::soften_row<typename Product::Weight, Units::kExponents>(
            s_ + (first + i) * kKeyTile, vector_begin(columns.begin), columns.end,
            some ? m[begin_ + first + i] : A(0), unit);
      }
      A* const to = l + begin_ + first;
      const index_t left = rows - first;
      detail::store_lanes(detail::load_lanes<A>(to, left) + V::sums(total), to, left);
    }
  }

  /// o = f o + P V of a tile with values that are not finite, some of them perhaps hidden.
  [[gnu::noinline, gnu::cold]] void accumulate_seen(A* o, index_t n, bool first) const {
    if (first) std::fill_n(o + begin_ * value_step_, (end_ - begin_) * value_step_, A(0));
    const S* rows[kKeyTile] = {};
    key_rows_.values(rows, tile_begin_, n);
    for (index_t r = begin_; r < end_; ++r)
      if (columns_[r - begin_])
        product_.accumulate_seen(o + r * value_step_, tile(), r - begin_, rows);
  }

  const Args& args_;
  const AttentionSequence& seq_;
  const Mask& mask_;
  const Score& score_;
  const RowBlock& block_;
  const Units units_;
  const index_t rows_, dim_, value_step_;
  const RowGroups<kGroup> groups_;
  Product product_;
  const KeyRows<Args, Product> key_rows_;
  const PackedTiles<Unit> packed_;  // of the head, if its tiles were packed for all blocks
  Unit *k_, *v_;                    // a tile of our own
  A* s_;                            // [kRowTile][kKeyTile]
  mask_int<A>* seen_;               // [kRowTile][kKeyTile]
  bool* met_;                       // of each kGroups groups of rows: whether o holds anything
  bool finite_ = true;
  // The tile at hand: its keys, its groups of rows, its rows.
  index_t tile_begin_ = 0, group_count_ = 0, begin_ = 0, end_ = 0;
  RowGroup tile_groups_[kGroups] = {};
  Columns columns_[kRowTile] = {};      // of each row; a group shares them
  Columns row_columns_[kRowTile] = {};  // of each row alone, where a range says them
  A factors_[kRowTile + V::kLanes] = {};
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
