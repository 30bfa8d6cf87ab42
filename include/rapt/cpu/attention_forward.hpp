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
    for_each_tile(kv_begin, kv_end, /*with_values=*/true,
                  [&](index_t begin, index_t end, index_t n, bool partial) {
                    soften(begin, end, n, m, l);
                    accumulate(begin, end, n, partial, o);
                  });
    for (index_t r = 0; r < rows_; ++r) m[r] *= units_.natural();
  }

  /// probabilities(...) = exp(s - denominator), the logarithm of each row's whole denominator.
  void write_probabilities(const A* denominators) {
    const auto at = [&](index_t r, index_t j) -> A& {
      return args_.probabilities(seq_.row, block_.head_of(r), seq_.q_begin + block_.query_of(r),
                                 seq_.kv_begin + j);
    };
    for_each_tile(0, seq_.kv_len, /*with_values=*/false,
                  [&](index_t begin, index_t end, index_t n, bool) {
                    for (index_t r = begin; r < end; ++r) {
                      const std::uint32_t panels = panels_[(r - begin) / kGroup];
                      for (index_t j = 0; j < n; ++j) {
                        if ((panels >> (j / kPanel) & 1u) == 0) continue;
                        const A s = s_[(r - begin) * kKeyTile + j] * units_.natural();
                        if (s != kNone) at(r, tile_begin_ + j) = std::exp(s - denominators[r]);
                      }
                    }
                  });
  }

 private:
  void pack_queries() {
    for (index_t first = 0; first < rows_; first += kGroup) {
      const T* rows[kGroup];
      const int n = static_cast<int>(std::min<index_t>(kGroup, rows_ - first));
      for (int i = 0; i < n; ++i)
        rows[i] = args_.q.data() + seq_.row * args_.q.stride(0) +
                  (seq_.q_begin + block_.query_of(first + i)) * args_.q.stride(1) +
                  block_.head_of(first + i) * args_.q.stride(2);
      detail::pack_queries(q_ + first * dim_, rows, n, dim_, units_.q_factor());
    }
  }

  /// Calls f(first row, end row, keys, partial) for every 48 rows and tile that are not skipped,
  /// after the scores of the tile were computed.
  template <class F>
  void for_each_tile(index_t kv_begin, index_t kv_end, bool with_values, F f) {
    for (tile_begin_ = kv_begin; tile_begin_ < kv_end; tile_begin_ += kKeyTile) {
      const index_t n = std::min(kKeyTile, kv_end - tile_begin_);
      const KeySpan keys = keys_of(args_, seq_, tile_begin_, n);
      const detail::KeyRange range = detail::key_range(keys);
      TileVerdict verdict = detail::verdict_of(mask_, seq_.b, block_, 0, rows_, range);
      if (verdict == TileVerdict::skip) continue;

      bool packed = false;
      for (index_t begin = 0; begin < rows_; begin += kRowTile) {
        const index_t end = std::min(rows_, begin + kRowTile);
        const TileVerdict part = verdict == TileVerdict::full
                                     ? verdict
                                     : detail::verdict_of(mask_, seq_.b, block_, begin, end, range);
        if (part == TileVerdict::skip) continue;
        if (!packed) pack_tile(n, with_values);
        packed = true;
        detail::report_tile(mask_, seq_.b, block_, begin, end, range, part);
        compute_scores(begin, end, keys, part == TileVerdict::partial);
        f(begin, end, n, part == TileVerdict::partial);
      }
    }
  }

  void pack_tile(index_t n, bool with_values) {
    const T* rows[kKeyTile];
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
        const TileVerdict verdict =
            detail::verdict_of(mask_, seq_.b, block_, first, last, detail::key_range(part));
        if (verdict == TileVerdict::skip) continue;
        bool any = verdict == TileVerdict::full;
        if (!any) {
          for (index_t r = first; r < last; ++r)
            any |= detail::ask_row<A>(seen_ + (r - first) * kKeyTile + p * kPanel, mask_, seq_.b,
                                      block_.head_of(r), block_.position_of(r), part);
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

  void soften(index_t begin, index_t end, index_t n, A* m, A* l) {
    const A unit = units_.unit();
    for (index_t r = begin; r < end; ++r) {
      const std::uint32_t panels = panels_[(r - begin) / kGroup];
      if (panels == 0) continue;
      const Columns columns = columns_of(panels, n);
      detail::soften_row(row(r - begin), columns.begin, columns.end, unit, m[r], l[r],
                         factors_[r - begin]);
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
  A factors_[kRowTile] = {};
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

template <class A>
AttentionCut cut_sequence(const AttentionSequence& seq, index_t group, index_t max_rows,
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

/// The whole call: see the top of the file.
template <class Args, class Mask, class Score>
void attention_forward(const Args& args, const Mask& mask, const Score& score) {
  using A = accumulate_t<typename Args::Element>;
  using Block = AttentionBlock<Args, Mask, Score>;
  const index_t sequences = rapt::detail::sequence_count(args);
  const index_t heads = args.q.extent(2), kv_heads = args.k.extent(2);
  const index_t value_step = detail::round_up(args.v.extent(3), Vec<A>::kLanes);
  if (sequences == 0 || heads == 0 || args.q.extent(1) == 0) return;
  const index_t group = heads / kv_heads;
  // A block's rows stay within 256 KiB of cache: q and o of each.
  const index_t row_bytes = (args.q.extent(3) + value_step) * static_cast<index_t>(sizeof(A));
  const index_t row_tiles = (index_t{1} << 18) / (row_bytes * AttentionTiling<A>::kRowTile);
  const index_t max_rows =
      std::clamp<index_t>(row_tiles, 1, Block::kMaxRowTiles) * AttentionTiling<A>::kRowTile;
  const bool differ = rapt::detail::lengths_differ(args);
  const auto cut_of = [&](const AttentionSequence& seq) {
    return detail::cut_sequence<A>(seq, group, max_rows, sequences * kv_heads);
  };

  // Where each sequence's items begin, and where its partial results lie (only if it is split).
  Scratch<Cpu> scratch;
  const auto first_item = scratch.tensor<index_t>(Shape<1>{sequences + 1});
  const auto first_partial = scratch.tensor<index_t>(Shape<1>{sequences + 1});
  const auto partial_size = [&](const AttentionCut& cut) {
    return cut.splits == 1 ? 0 : cut.heads * cut.queries * (value_step + 2);
  };
  first_item(0) = first_partial(0) = 0;
  double work = 0;  // multiply-adds, were nothing masked
  for (index_t s = 0; s < sequences; ++s) {
    const AttentionSequence seq = rapt::detail::sequence_at(args, s);
    const AttentionCut cut = cut_of(seq);
    const index_t items = kv_heads * cut.items();
    first_item(s + 1) = first_item(s) + items;
    first_partial(s + 1) = first_partial(s) + items * partial_size(cut);
    work += static_cast<double>(seq.q_len) * static_cast<double>(seq.kv_len);
  }
  work *= static_cast<double>(heads * (args.q.extent(3) + args.v.extent(3)));
  A* const partials = scratch.tensor<A>(Shape<1>{first_partial(sequences)}).data();

  if (args.probabilities) {
    for (index_t b = 0; b < args.probabilities.extent(0); ++b)
      for (index_t h = 0; h < heads; ++h)
        for (index_t i = 0; i < args.probabilities.extent(2); ++i)
          for (index_t j = 0; j < args.probabilities.extent(3); ++j)
            args.probabilities(b, h, i, j) = 0;
  }

  // Finds the sequence and block of an item and calls f with them, mask and score bound.
  const auto with_item = [&](index_t item, auto f) {
    index_t s = 0;
    for (index_t end = sequences; end - s > 1;) {  // last s with first_item(s) <= item
      const index_t middle = (s + end) / 2;
      (first_item(middle) <= item ? s : end) = middle;
    }
    while (first_item(s + 1) <= item) ++s;
    const AttentionSequence seq = rapt::detail::sequence_at(args, s);
    const AttentionCut cut = cut_of(seq);
    index_t local = item - first_item(s);
    A* const partial = partials + first_partial(s) + local * partial_size(cut);
    const index_t split = local % cut.splits;
    local /= cut.splits;
    const index_t query_block = local % cut.query_blocks;
    local /= cut.query_blocks;
    const index_t head_block = local % cut.head_blocks, kv_head = local / cut.head_blocks;

    Scratch<Cpu> inner;
    RowBlock block{};
    block.head = kv_head * group + head_block * cut.heads;
    block.heads = std::min(cut.heads, group - head_block * cut.heads);
    block.i_begin = query_block * cut.queries;
    block.queries = std::min(cut.queries, seq.q_len - block.i_begin);
    block.consecutive = !args.q_positions;
    index_t* const positions = inner.tensor<index_t>(Shape<1>{block.queries}).data();
    for (index_t i = 0; i < block.queries; ++i)
      positions[i] = query_position(args, seq, block.i_begin + i);
    block.positions = positions;
    f(seq, cut, block, kv_head, split, partial, inner);
  };

  const auto finish = [&](const AttentionSequence& seq, const RowBlock& block, A* o, A* m, A* l,
                          index_t r) {
    return detail::finish_row(args, seq, block.head_of(r), block.query_of(r),
                              detail::RowState<A>{m[r], l[r], o + r * value_step});
  };

  const auto run = [&](index_t item) {
    with_item(
        item, [&](const AttentionSequence& seq, const AttentionCut& cut, const RowBlock& block,
                  index_t kv_head, index_t split, A* partial, Scratch<Cpu>& inner) {
          const index_t rows = block.rows();
          A* o = partial;
          if (cut.splits == 1) o = inner.tensor<A>(Shape<1>{rows * (value_step + 2)}).data();
          A *const m = o + rows * value_step, *const l = m + rows;
          const index_t begin = split * cut.split, end = std::min(seq.kv_len, begin + cut.split);
          const auto with_bound = [&](const auto& bound_mask, const auto& bound_score) {
            if (seq.q_len * group <= detail::kDecodeRows) {
              detail::decode_block(args, seq, bound_mask, bound_score, kv_head, block, begin, end,
                                   o, m, l, inner);
            } else {
              AttentionBlock tiles(args, seq, bound_mask, bound_score, kv_head, block, inner);
              tiles.run(begin, end, o, m, l);
            }
            if (cut.splits > 1) return;
            A* const whole = inner.tensor<A>(Shape<1>{rows}).data();
            for (index_t r = 0; r < rows; ++r) whole[r] = finish(seq, block, o, m, l, r);
            if (args.probabilities)
              AttentionBlock(args, seq, bound_mask, bound_score, kv_head, block, inner)
                  .write_probabilities(whole);
          };
          if (differ) {
            const CallShape call = rapt::detail::call_shape_of(args, seq);
            with_bound(bind_call(mask, call), bind_call(score, call));
          } else {
            with_bound(mask, score);
          }
        });
  };

  // Splits of one block in order: M = max m_t, l = sum exp(m_t - M) l_t, o = sum exp(m_t - M) o_t.
  const auto merge = [&](index_t item) {
    with_item(item, [&](const AttentionSequence& seq, const AttentionCut& cut,
                        const RowBlock& block, index_t kv_head, index_t split, A* partial,
                        Scratch<Cpu>& inner) {
      if (cut.splits == 1 || split != 0) return;
      const index_t rows = block.rows(), step = partial_size(cut);
      A* const whole = inner.tensor<A>(Shape<1>{rows}).data();
      for (index_t r = 0; r < rows; ++r) {
        whole[r] =
            detail::finish_row(args, seq, block.head_of(r), block.query_of(r),
                               detail::merge_row(partial, step, cut.splits, rows, r, value_step));
      }
      if (!args.probabilities) return;
      const CallShape call = rapt::detail::call_shape_of(args, seq);
      const auto write = [&](const auto& bound_mask, const auto& bound_score) {
        AttentionBlock(args, seq, bound_mask, bound_score, kv_head, block, inner)
            .write_probabilities(whole);
      };
      if (differ)
        write(bind_call(mask, call), bind_call(score, call));
      else
        write(mask, score);
    });
  };

  const index_t items = first_item(sequences);
  constexpr double kWorthThreads = 1 << 18;
  if (work < kWorthThreads) {
    for (index_t item = 0; item < items; ++item) run(item);
    if (first_partial(sequences) > 0)
      for (index_t item = 0; item < items; ++item) merge(item);
  } else {
    parallel_for(items, run);
    if (first_partial(sequences) > 0) parallel_for(items, merge);
  }
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

namespace rapt {

template <class Args, class Mask, class Score>
void BackendTraits<Cpu>::attention_forward(Cpu, const Args& args, const Mask& mask,
                                           const Score& score) {
  cpu::attention_forward(args, mask, score);
}

}  // namespace rapt
