// Attention forward on the CPU: tiles with an online softmax.
//
//   for each tile of keys J that some query of the block sees:            K_J, V_J packed once
//     for each 48 rows of the block:                                      m, l, o: running state
//       S = Q K_J^T                                      [48, keys]       6 rows x 1 panel at a
//       time S = score(scale S), minus infinity where hidden m' = max(m, rowmax S);  E = exp(S -
//       m');  f = exp(m - m') l = f l + rowsum E;     o = f o + E V_J;  m = m'
//   out = o / l;  logsumexp = m + log l
//
//              keys ->                        A block is up to 480 rows (query, head of the group),
//              so
//          full   full  partial  skip         that a packed tile of K and V serves all of them.
//        +------+------+------+- - - +        Verdicts are asked for a block, for 48 rows, and in a
//   rows |      |      |   \  |      |        partial tile for 6 rows x 1 panel: what is skipped is
//     |  |      |      |     \|      |        neither packed nor multiplied; what is full is not
//     v  +------+------+------+- - - +        tested; the rest is tested pair by pair.
//
// Memory O(tile) a thread; 16-bit K and V are converted as they are packed. Work is cut by shape
// alone and each part owns its rows, so a result does not depend on the number of threads. A hidden
// key's value is never multiplied where it could matter: packing notes values that are not finite,
// and a partial tile that holds one is summed pair by pair. Few rows (decode):
// cpu/attention_decode.hpp. Sequences that give too few blocks are also cut along the keys; the
// parts are merged in order.
//
// Sources: Milakov, Gimelshein 2018, arXiv:1805.02867; Dao 2023, arXiv:2307.08691, algorithm 1.
#pragma once

#include <bit>
#include <cmath>
#include <limits>

#include "rapt/attention/options.hpp"
#include "rapt/attention/sequences.hpp"
#include "rapt/core/backend.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_decode.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

namespace detail {

/// Six rows of q into [dim][6], times `factor`. Stores are whole vectors that run into the next six
/// numbers, which are written after them; the buffer ends with a spare vector.
template <class A, class T>
[[gnu::noinline]] void pack_queries(A* packed, const T* const* rows, int n, index_t dim, A factor) {
  using V = Vec<A>;
  constexpr int kGroup = AttentionTiling<A>::kGroup, kBlocks = (kGroup + V::kLanes - 1) / V::kLanes;
  for (index_t t = 0; t < dim; t += V::kLanes) {
    const index_t left = dim - t;
    V block[kBlocks][V::kLanes];
    for (int c = 0; c < kBlocks; ++c) {
      for (int i = 0; i < V::kLanes; ++i) {
        const int row = c * V::kLanes + i;
        block[c][i] =
            row < n ? load_lanes<A>(rows[row] + t, left) * V::broadcast(factor) : V::zero();
      }
      V::transpose(block[c]);
    }
    for (int i = 0; i < V::kLanes && i < left; ++i)
      for (int c = 0; c < kBlocks; ++c)
        block[c][i].store(packed + (t + i) * kGroup + c * V::kLanes);
  }
}

/// o = f o + sum of s[j] v_j over keys [begin, end) of a packed tile, keys of weight 0 left out.
template <class A>
[[gnu::noinline]] void accumulate_seen(A* o, A factor, const A* s, index_t begin, index_t end,
                                       const A* values, index_t value_dim) {
  using V = Vec<A>;
  using Tiling = AttentionTiling<A>;
  for (index_t t = 0; t < value_dim; t += V::kLanes) {
    V sum = V::load(o + t) * V::broadcast(factor);
    const A* const column =
        values + t / Tiling::kPanel * Tiling::kKeyTile * Tiling::kPanel + t % Tiling::kPanel;
    for (index_t j = begin; j < end; ++j)
      if (s[j] != 0) sum = fma(V::broadcast(s[j]), V::load(column + j * Tiling::kPanel), sum);
    sum.store(o + t);
  }
}

}  // namespace detail

/// One block of rows against the keys of one head.
template <class Args, class Mask, class Score>
class AttentionBlock {
  using T = typename Args::Element;
  using A = accumulate_t<T>;
  using V = Vec<A>;
  using Tiling = AttentionTiling<A>;
  static constexpr int kGroup = Tiling::kGroup;
  static constexpr index_t kPanel = Tiling::kPanel, kKeyTile = Tiling::kKeyTile;
  static constexpr index_t kRowTile = Tiling::kRowTile;
  static constexpr A kNone = -std::numeric_limits<A>::infinity();

 public:
  static constexpr index_t kMaxRowTiles = 10;
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
        value_dim_(args.v.extent(3)),
        value_step_(detail::round_up(value_dim_, V::kLanes)),
        k_row_(row_address(args, args.k, seq, kv_head)),
        v_row_(row_address(args, args.v, seq, kv_head)) {
    const auto buffer = [&](index_t n) { return scratch.template tensor<A>(Shape<1>{n}).data(); };
    q_ = buffer(detail::round_up(rows_, kGroup) * dim_ + V::kLanes);
    k_ = buffer(kKeyTile * dim_);
    v_ = buffer(detail::round_up(value_dim_, kPanel) * kKeyTile);
    s_ = buffer(kRowTile * kKeyTile);
    seen_ = scratch.template tensor<mask_int<A>>(Shape<1>{kGroup * kKeyTile}).data();
    pack_queries();
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
  void pack_queries() {
    for (index_t first = 0; first < rows_; first += kGroup) {
      const T* rows[kGroup] = {};
      const int n = static_cast<int>(std::min<index_t>(kGroup, rows_ - first));
      for (int i = 0; i < n; ++i)
        rows[i] = args_.q.data() + seq_.row * args_.q.stride(0) +
                  (seq_.q_begin + block_.query_of(first + i)) * args_.q.stride(1) +
                  block_.head_of(first + i) * args_.q.stride(2);
      detail::pack_queries(q_ + first * dim_, rows, n, dim_, units_.q_factor());
    }
  }

  /// Every tile that is not skipped: its scores, and then either the online softmax into o, m, l
  /// or, given the denominators, the probabilities.
  void walk(index_t kv_begin, index_t kv_end, A* o, A* m, A* l, const A* denominators) {
    for (tile_begin_ = kv_begin; tile_begin_ < kv_end; tile_begin_ += kKeyTile) {
      const index_t n = std::min(kKeyTile, kv_end - tile_begin_);
      const KeySpan keys = keys_of(args_, seq_, tile_begin_, n);
      const detail::KeyRange range = detail::key_range(keys);
      const TileVerdict verdict = detail::verdict_of(mask_, seq_.b, block_, 0, rows_, range);
      if (verdict == TileVerdict::skip) continue;

      bool packed = false;
      for (index_t begin = 0; begin < rows_; begin += kRowTile) {
        const index_t end = std::min(rows_, begin + kRowTile);
        const TileVerdict part = verdict == TileVerdict::full
                                     ? verdict
                                     : detail::verdict_of(mask_, seq_.b, block_, begin, end, range);
        if (part == TileVerdict::skip) continue;
        if (!packed) pack_tile(n, denominators == nullptr);
        packed = true;
        const bool partial = part == TileVerdict::partial;
        compute_scores(begin, end, keys, partial);
        if (denominators != nullptr) {
          store_probabilities(begin, end, n, denominators);
          continue;
        }
        detail::report_tile(mask_, seq_.b, block_, begin, end, range);
        soften(begin, end, n, m, l);
        accumulate(begin, end, n, partial, o);
      }
    }
  }

  [[gnu::noinline, gnu::cold]] void store_probabilities(index_t begin, index_t end, index_t n,
                                                        const A* denominators) const {
    for (index_t r = begin; r < end; ++r) {
      const std::uint32_t panels = panels_[(r - begin) / kGroup];
      for (index_t j = 0; j < n; ++j) {
        if ((panels >> (j / kPanel) & 1u) == 0) continue;
        const A s = row(r - begin)[j] * units_.natural();
        if (s != kNone)
          args_.probabilities(seq_.row, block_.head_of(r), seq_.q_begin + block_.query_of(r),
                              seq_.kv_begin + tile_begin_ + j) = std::exp(s - denominators[r]);
      }
    }
  }

  void pack_tile(index_t n, bool with_values) {
    const T* rows[kKeyTile] = {};
    for (index_t j = 0; j < n; ++j) rows[j] = k_row_(tile_begin_ + j);
    detail::pack_keys(k_, rows, n, dim_);
    if (!with_values) return;
    for (index_t j = 0; j < n; ++j) rows[j] = v_row_(tile_begin_ + j);
    finite_ = detail::pack_values(v_, rows, n, value_dim_);
  }

  /// s_ = scores of rows [begin, end), in panels_ the panels that each six rows of them see at all.
  void compute_scores(index_t begin, index_t end, const KeySpan& keys, bool partial) {
    const index_t panels = (keys.count + kPanel - 1) / kPanel;
    const std::uint32_t all = panels >= 32 ? ~0u : (1u << panels) - 1u;
    if (!partial) {
      for (index_t g = 0; begin + g * kGroup < end; ++g) panels_[g] = all;
      multiply_panels(begin, end, panels, keys.count);
      if constexpr (!detail::is_identity<Score>) {
        for (index_t r = begin; r < end; ++r)
          detail::modify_row(row(r - begin), score_, units_.scale, seq_.b, block_.head_of(r),
                             block_.position_of(r), keys);
      }
      hide_beyond(begin, end, keys.count);
      return;
    }
    // Six rows at a time: which panels they see, then those panels' scores, then the test.
    for (index_t first = begin; first < end; first += kGroup) {
      const index_t last = std::min(end, first + kGroup);
      std::uint32_t tested = 0, visible = 0;
      for (index_t p = 0; p < panels; ++p) {
        const KeySpan part = keys.part(p * kPanel, std::min(kPanel, keys.count - p * kPanel));
        const detail::KeyRange range = detail::key_range(part);
        const TileVerdict verdict = detail::verdict_of(mask_, seq_.b, block_, first, last, range);
        bool any = verdict == TileVerdict::full;
        if (verdict == TileVerdict::partial) {
          any = detail::ask_rows<A>(seen_ + p * kPanel, kKeyTile, mask_, seq_.b, block_, first,
                                    last, part, range);
          if (any) tested |= 1u << p;
        }
        if (any) visible |= 1u << p;
      }
      panels_[(first - begin) / kGroup] = visible;
      const V none = V::broadcast(kNone);
      for (index_t p = 0; p < panels; ++p) {
        A* const s = row(first - begin) + p * kPanel;
        const index_t vectors = vectors_of(p, keys.count);
        if ((visible >> p & 1u) == 0) {
          for (index_t r = first; r < last; ++r)
            for (index_t v = 0; v < vectors; ++v)
              none.store(s + (r - first) * kKeyTile + v * V::kLanes);
          continue;
        }
        multiply_panel(first, last, p, keys.count, s);
        const KeySpan part = keys.part(p * kPanel, std::min(kPanel, keys.count - p * kPanel));
        for (index_t r = first; r < last; ++r) {
          A* const to = s + (r - first) * kKeyTile;
          detail::modify_row(to, score_, units_.scale, seq_.b, block_.head_of(r),
                             block_.position_of(r), part);
          if ((tested >> p & 1u) == 0) continue;
          const mask_int<A>* const seen = seen_ + (r - first) * kKeyTile + p * kPanel;
          for (index_t v = 0; v < vectors; ++v)
            select(V::load_mask(seen + v * V::kLanes), V::load(to + v * V::kLanes), none)
                .store(to + v * V::kLanes);
        }
      }
    }
    hide_beyond(begin, end, keys.count);
  }

  index_t vectors_of(index_t panel, index_t n) const {
    return (std::min(kPanel, n - panel * kPanel) + V::kLanes - 1) / V::kLanes;
  }
  A* row(index_t r) const { return s_ + r * kKeyTile; }

  void multiply_panel(index_t first, index_t last, index_t panel, index_t n, A* s) const {
    detail::multiply<1, kGroup, false>(static_cast<int>(last - first),
                                       static_cast<int>(vectors_of(panel, n)), s, kKeyTile, s,
                                       q_ + first * dim_, k_ + panel * kPanel * dim_, kPanel, dim_);
  }
  void multiply_panels(index_t begin, index_t end, index_t panels, index_t n) const {
    for (index_t p = 0; p < panels; ++p)
      for (index_t first = begin; first < end; first += kGroup)
        multiply_panel(first, std::min(end, first + kGroup), p, n, row(first - begin) + p * kPanel);
  }
  /// The last vector may reach beyond the keys.
  void hide_beyond(index_t begin, index_t end, index_t n) const {
    const index_t whole = detail::round_up(n, V::kLanes);
    for (index_t r = begin; n < whole && r < end; ++r)
      for (index_t j = n; j < whole; ++j) row(r - begin)[j] = kNone;
  }

  /// Columns between the first and the last panel that six rows see.
  struct Columns {
    index_t begin, end;
  };
  Columns columns_of(std::uint32_t panels, index_t n) const {
    return {std::countr_zero(panels) * kPanel,
            std::min<index_t>(std::bit_width(panels) * kPanel, detail::round_up(n, V::kLanes))};
  }

  /// Scores become weights: first all maxima, then all exponentials, so that neither waits for a
  /// sum across lanes.
  void soften(index_t begin, index_t end, index_t n, A* m, A* l) {
    const A unit = units_.unit();
    A tops[kRowTile + V::kLanes];
    std::fill_n(tops, kRowTile + V::kLanes, kNone);
    for (index_t r = begin; r < end; ++r) {
      const std::uint32_t panels = panels_[(r - begin) / kGroup];
      if (panels == 0) continue;
      const Columns columns = columns_of(panels, n);
      tops[r - begin] = detail::row_top(row(r - begin), columns.begin, columns.end);
    }
    detail::raise_rows(m + begin, l + begin, factors_, tops, end - begin, unit);
    for (index_t r = begin; r < end; ++r) {
      const std::uint32_t panels = panels_[(r - begin) / kGroup];
      if (panels == 0) continue;
      const Columns columns = columns_of(panels, n);
      l[r] += detail::soften_row(row(r - begin), columns.begin, columns.end, m[r], unit);
    }
  }

  void accumulate(index_t begin, index_t end, index_t n, bool partial, A* o) {
    static constexpr A kOnes[kGroup] = {1, 1, 1, 1, 1, 1};
    if (partial && !finite_) {
      for (index_t r = begin; r < end; ++r) {
        const std::uint32_t panels = panels_[(r - begin) / kGroup];
        if (panels == 0) continue;
        const Columns columns = columns_of(panels, n);
        detail::accumulate_seen(o + r * value_step_, factors_[r - begin], row(r - begin),
                                columns.begin, std::min(columns.end, n), v_, value_dim_);
      }
      return;
    }
    for (index_t t = 0; t < value_dim_; t += kPanel) {
      const A* const values = v_ + t * kKeyTile;
      const int vectors = static_cast<int>(vectors_of(t / kPanel, value_dim_));
      for (index_t first = begin; first < end; first += kGroup) {
        const int rows = static_cast<int>(std::min<index_t>(kGroup, end - first));
        const A* factors = factors_ + (first - begin);
        std::uint32_t left = panels_[(first - begin) / kGroup];
        while (left != 0) {  // a run of panels that are seen
          const int from = std::countr_zero(left), length = std::countr_one(left >> from);
          left = from + length >= 32 ? 0 : left >> (from + length) << (from + length);
          const index_t j = from * kPanel, depth = std::min(length * kPanel, n - j);
          detail::multiply<kKeyTile, 1, true>(rows, vectors, o + first * value_step_ + t,
                                              value_step_, factors, row(first - begin) + j,
                                              values + j * kPanel, kPanel, depth);
          factors = kOnes;
        }
      }
    }
  }

  const Args& args_;
  const AttentionSequence& seq_;
  const Mask& mask_;
  const Score& score_;
  const RowBlock& block_;
  const detail::ScoreUnits<A, Score> units_;
  const index_t rows_, dim_, value_dim_, value_step_;
  const RowAddress<T> k_row_, v_row_;
  A *q_, *k_, *v_, *s_;  // q [groups][dim][6], k and v as packed, s [kRowTile][kKeyTile]
  mask_int<A>* seen_;    // [6][kKeyTile]
  index_t tile_begin_ = 0;
  bool finite_ = true;
  std::uint32_t panels_[kRowTile / kGroup] = {};
  A factors_[kRowTile + V::kLanes] = {};
};

/// How one sequence is cut: blocks of rows, and splits of the keys.
struct AttentionCut {
  index_t heads, head_blocks;     // heads of a block, blocks a group
  index_t queries, query_blocks;  // queries of a block, blocks a sequence
  index_t split, splits;          // keys of a split, splits a sequence
  index_t items() const { return head_blocks * query_blocks * splits; }  // a kv head
};

namespace detail {

inline constexpr index_t kDecodeRows = 16;    // up to here, dot products beat packing
inline constexpr index_t kDecodeSplit = 512;  // keys
inline constexpr index_t kTiledSplit = 2048;

inline AttentionCut cut_sequence(const AttentionSequence& seq, index_t group, index_t max_rows,
                                 index_t blocks_elsewhere) {
  AttentionCut cut{};
  const bool decode = seq.q_len * group <= kDecodeRows;
  cut.heads = std::min(group, max_rows);
  cut.head_blocks = (group + cut.heads - 1) / cut.heads;
  cut.queries =
      std::min(std::max<index_t>(1, max_rows / cut.heads), std::max<index_t>(1, seq.q_len));
  const auto blocks = [&] { return (seq.q_len + cut.queries - 1) / cut.queries; };
  // Enough blocks for a few threads, but none so small that packing shows.
  while (!decode && blocks_elsewhere * cut.head_blocks * blocks() < 8 &&
         cut.queries * cut.heads >= 384)
    cut.queries = (cut.queries + 1) / 2;
  cut.query_blocks = blocks();
  cut.split = decode ? kDecodeSplit : kTiledSplit;
  const bool split = decode || (cut.query_blocks == 1 && seq.kv_len >= 2 * kTiledSplit);
  cut.splits = split ? std::max<index_t>(1, (seq.kv_len + cut.split - 1) / cut.split) : 1;
  if (cut.splits == 1) cut.split = std::max<index_t>(1, seq.kv_len);
  return cut;
}

}  // namespace detail

/// The whole call: see the top of the file. `mask` and `score` are bound to the call, and bound
/// again to each sequence where lengths differ.
template <class Args, class Mask, class Score>
class AttentionForward {
  using A = accumulate_t<typename Args::Element>;
  using Block = AttentionBlock<Args, Mask, Score>;
  using Tiling = AttentionTiling<A>;

 public:
  AttentionForward(const Args& args, const Mask& mask, const Score& score)
      : args_(args), mask_(mask), score_(score) {}

  void run() {
    const index_t sequences = rapt::detail::sequence_count(args_), heads = args_.q.extent(2);
    if (sequences == 0 || heads == 0 || args_.q.extent(1) == 0) return;
    const index_t dim = args_.q.extent(3), kv_heads = args_.k.extent(2);
    group_ = heads / kv_heads;
    blocks_elsewhere_ = sequences * kv_heads;
    value_step_ = detail::round_up(args_.v.extent(3), Vec<A>::kLanes);
    // A block's rows stay within 256 KiB of cache: q and o of each.
    const index_t row_bytes = (dim + value_step_) * static_cast<index_t>(sizeof(A));
    const index_t row_tiles = (index_t{1} << 18) / (row_bytes * Tiling::kRowTile);
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
      const index_t items = kv_heads * cut.items();
      first_item_[s + 1] = first_item_[s] + items;
      first_partial_[s + 1] = first_partial_[s] + items * partial_size(cut);
      work += static_cast<double>(seq.q_len) * static_cast<double>(seq.kv_len);
    }
    work *= static_cast<double>(heads * (dim + args_.v.extent(3)));
    const index_t partials = first_partial_[sequences];
    partials_ = scratch.tensor<A>(Shape<1>{partials}).data();
    if (args_.probabilities) clear_probabilities();

    const index_t items = first_item_[sequences];
    constexpr double kWorthThreads = 1 << 18;  // below, waking a thread costs more than it does
    const auto attend = [this](index_t item) { attend_item(item); };
    const auto merge = [this](index_t item) { merge_item(item); };
    if (work < kWorthThreads) {
      for (index_t item = 0; item < items; ++item) attend(item);
      for (index_t item = 0; partials > 0 && item < items; ++item) merge(item);
    } else {
      parallel_for(items, attend);
      if (partials > 0) parallel_for(items, merge);
    }
  }

 private:
  /// One part of the work: a block of rows against one split of the keys.
  struct Item {
    AttentionSequence seq;
    AttentionCut cut;
    RowBlock block;
    index_t kv_head, split;
    A* partial;  // this item's place among the partial results
  };

  AttentionCut cut_of(const AttentionSequence& seq) const {
    return detail::cut_sequence(seq, group_, max_rows_, blocks_elsewhere_);
  }
  /// o, m and l of a block; nothing where the keys are not split.
  index_t partial_size(const AttentionCut& cut) const {
    return cut.splits == 1 ? 0 : cut.heads * cut.queries * (value_step_ + 2);
  }

  Item locate(index_t item, Scratch<Cpu>& scratch) const {
    index_t s = 0;
    for (index_t end = rapt::detail::sequence_count(args_); end - s > 1;) {
      const index_t middle = (s + end) / 2;
      (first_item_[middle] <= item ? s : end) = middle;  // the last one; empty ones come before it
    }
    Item at{rapt::detail::sequence_at(args_, s), {}, {}, 0, 0, nullptr};
    at.cut = cut_of(at.seq);
    index_t local = item - first_item_[s];
    at.partial = partials_ + first_partial_[s] + local * partial_size(at.cut);
    const auto digit = [&](index_t base) {
      const index_t d = local % base;
      local /= base;
      return d;
    };
    at.split = digit(at.cut.splits);
    const index_t query_block = digit(at.cut.query_blocks), head_block = digit(at.cut.head_blocks);
    at.kv_head = local;

    RowBlock& block = at.block;
    block.head = at.kv_head * group_ + head_block * at.cut.heads;
    block.heads = std::min(at.cut.heads, group_ - head_block * at.cut.heads);
    block.i_begin = query_block * at.cut.queries;
    block.queries = std::min(at.cut.queries, at.seq.q_len - block.i_begin);
    block.consecutive = !args_.q_positions;
    index_t* const positions = scratch.tensor<index_t>(Shape<1>{block.queries}).data();
    for (index_t i = 0; i < block.queries; ++i)
      positions[i] = query_position(args_, at.seq, block.i_begin + i);
    block.positions = positions;
    return at;
  }

  template <class F>
  F bound(const F& f, const AttentionSequence& seq) const {
    static_assert(std::is_same_v<decltype(bind_call(f, CallShape{})), F>,
                  "binding a mask or score that is bound already gives the same type");
    if (!rapt::detail::lengths_differ(args_)) return f;
    return bind_call(f, rapt::detail::call_shape_of(args_, seq));
  }

  void attend_item(index_t item) const {
    Scratch<Cpu> scratch;
    const Item at = locate(item, scratch);
    const index_t rows = at.block.rows();
    A* o = at.partial;
    if (at.cut.splits == 1) o = scratch.tensor<A>(Shape<1>{rows * (value_step_ + 2)}).data();
    A *const m = o + rows * value_step_, *const l = m + rows;
    const index_t begin = at.split * at.cut.split;
    const index_t end = std::min(at.seq.kv_len, begin + at.cut.split);
    const Mask mask = bound(mask_, at.seq);
    const Score score = bound(score_, at.seq);
    if (at.seq.q_len * group_ <= detail::kDecodeRows)
      detail::decode_block(args_, at.seq, mask, score, at.kv_head, at.block, begin, end, o, m, l,
                           scratch);
    else
      Block(args_, at.seq, mask, score, at.kv_head, at.block, scratch).run(begin, end, o, m, l);
    if (at.cut.splits == 1)
      finish(at, scratch, [=, this](index_t r) {
        return detail::RowState<A>{m[r], l[r], o + r * value_step_};
      });
  }

  /// Splits of one block, in order.
  void merge_item(index_t item) const {
    Scratch<Cpu> scratch;
    const Item at = locate(item, scratch);
    if (at.cut.splits == 1 || at.split != 0) return;
    finish(at, scratch, [&](index_t r) {
      return detail::merge_row(at.partial, partial_size(at.cut), at.cut.splits, at.block.rows(), r,
                               value_step_);
    });
  }

  /// Writes the rows of a block, state(r) each, and what else was asked for.
  template <class State>
  void finish(const Item& at, Scratch<Cpu>& scratch, State state) const {
    const index_t rows = at.block.rows();
    A* const whole = scratch.tensor<A>(Shape<1>{rows}).data();
    for (index_t r = 0; r < rows; ++r)
      whole[r] =
          detail::finish_row(args_, at.seq, at.block.head_of(r), at.block.query_of(r), state(r));
    if (args_.probabilities) write_probabilities(at, scratch, whole);
  }

  [[gnu::noinline, gnu::cold]] void write_probabilities(const Item& at, Scratch<Cpu>& scratch,
                                                        const A* denominators) const {
    const Mask mask = bound(mask_, at.seq);
    const Score score = bound(score_, at.seq);
    Block(args_, at.seq, mask, score, at.kv_head, at.block, scratch)
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
  index_t group_ = 1, blocks_elsewhere_ = 1, value_step_ = 0, max_rows_ = 0;
  index_t *first_item_ = nullptr, *first_partial_ = nullptr;
  A* partials_ = nullptr;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

namespace rapt {

template <class Args, class Mask, class Score>
void BackendTraits<Cpu>::attention_forward(Cpu, const Args& args, const Mask& mask,
                                           const Score& score) {
  cpu::AttentionForward<Args, Mask, Score>(args, mask, score).run();
}

}  // namespace rapt

#ifdef RAPT_USE_INSTANCES
#include "rapt/cpu/instances/attention_forward.hpp"
#endif
