// One unit of the gradient of attention on the CPU: a chunk of queries of some heads against all
// keys of their key head.
//
//   Q, dO packed; D, L; dQ = 0
//   for each tile of 64 keys J that some query sees:            K_J, V_J packed once a chunk
//     for each 96 queries I of a head:
//       S  = Q_I K_J^T                 P = exp(score(scale S) - L)        0 where hidden
//       dP = dO_I V_J^T                dU = P (dP - D) d score / d s
//       dQ_I += dU K_J     dV_J += P^T dO_I     dK_J += dU^T Q_I
//   dq = scale dQ
//
//               keys ->                         Five products of equal size. Verdicts are asked for
//           full   full  partial  skip          96 rows x 64 keys, and in a partial tile for 6 rows
//         +------+------+------+- - - +         x 1 vector of keys; what six rows see lies between
//    96 | |      |      |\.    |      |         two columns, and nothing outside of them is
//  rows | |      |      |  \.  |      |         multiplied: not in S and dP, not in the sums over
//         +------+------+------+- - - +         keys (dQ), not in the sums over rows (dK, dV).
//
// The products, and what is packed for them: cpu/attention_backward_product.hpp. The grain of six
// rows is that of fp32; pairs of bfloat16 are multiplied in larger steps. What a whole call is cut
// into, and the equations of sinks and of a logsumexp's gradient: cpu/attention_backward.hpp.
//
// A partial tile that holds a value which is not finite is summed pair by pair, so that what is
// hidden is never multiplied.
//
// Bound by multiply-adds: the products run at 0.94 to 0.98 of the peak from the first-level cache;
// the exponentials take 6 % of a tile's time, packing keys 2 %. What is left of a short sequence
// goes into the diagonal's tiles and into reading q, dout and out.
//
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>

#include "rapt/attention/backward_options.hpp"
#include "rapt/attention/sequences.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_backward_product.hpp"
#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_score.hpp"
#include "rapt/cpu/simd.hpp"
#include "rapt/mask/bias_gradient.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// How one key head of a sequence is cut. A unit is a chunk of the queries of some heads of the
/// group; a part is a set of units with one dK and dV.
struct BackwardCut {
  index_t heads, head_blocks;     // heads of a unit, blocks of heads in a group
  index_t queries, query_blocks;  // queries of a unit, chunks of a sequence
  index_t parts;
  index_t units() const { return head_blocks * query_blocks; }
  /// Unit u belongs to part 0 1 2 2 1 0 0 1 2 ...: causal work grows with u.
  index_t part_of(index_t u) const {
    const index_t turn = u % (2 * parts);
    return turn < parts ? turn : 2 * parts - 1 - turn;
  }
};

/// The query rows of one head that share a tile of scores, and their place among the packed rows.
struct BackwardRows {
  RowBlock block;
  index_t first;  // packed row
  bool finite;    // all of q and dO of these queries, whatever the head
};

/// What a part of the work adds to: dK and dV, zeros until a tile of keys is touched, and the
/// gradients of the score's parameters.
template <class A>
struct BackwardSums {
  A *dk, *dv;              // [kv_len][row_step]
  unsigned char* touched;  // [key tiles]
  A* dsinks;               // [group], or absent
  A* dbias;                // [group][columns of the relative bias], or absent
};

/// One unit: a chunk of queries of some heads against all keys of their key head. Product:
/// cpu/attention_backward_product.hpp.
template <class Args, class Mask, class Score, class Product>
class BackwardUnit {
  using T = typename Args::Element;
  using A = accumulate_t<T>;
  using V = Vec<A>;
  using Tiling = BackwardTiling<A>;
  using Columns = BackwardColumns;
  static constexpr int kGroup = Tiling::kGroup;
  static constexpr index_t kLanes = Tiling::kLanes;
  static constexpr index_t kKeyTile = Tiling::kKeyTile, kRowTile = Tiling::kRowTile;
  static constexpr index_t kGroups = kRowTile / kGroup;
  static constexpr index_t kAhead = 4;  // rows from packing to prefetching
  static constexpr A kNone = -std::numeric_limits<A>::infinity();

 public:
  BackwardUnit(const Args& args, const AttentionSequence& seq, const Mask& mask, const Score& score,
               index_t kv_head, index_t group, const BackwardCut& cut, BackwardSums<A> sums,
               Scratch<Cpu>& scratch)
      : args_(args),
        seq_(seq),
        mask_(mask),
        score_(score),
        first_head_(kv_head * group),
        sums_(sums),
        dim_(args.q.extent(3)),
        value_dim_(args.v.extent(3)),
        k_step_(Tiling::row_step(dim_)),
        v_step_(Tiling::row_step(value_dim_)),
        product_(scratch, cut.heads * cut.queries, row_tiles_of(cut), dim_, value_dim_),
        k_row_(row_address(args, args.k, seq, kv_head)),
        v_row_(row_address(args, args.v, seq, kv_head)) {
    const auto buffer = [&](index_t n) { return scratch.template tensor<A>(Shape<1>{n}).data(); };
    const index_t most_rows = cut.heads * cut.queries;
    dq_ = buffer(most_rows * k_step_);
    lse_ = buffer(most_rows);
    delta_ = buffer(most_rows);
    s_ = buffer(kRowTile * kKeyTile);
    dp_ = buffer(kRowTile * kKeyTile);
    derivative_ = buffer(detail::is_identity<Score> ? 0 : kKeyTile);
    seen_ = scratch.template tensor<mask_int<A>>(Shape<1>{kRowTile * kKeyTile}).data();
    positions_ = scratch.template tensor<index_t>(Shape<1>{cut.queries}).data();
    rows_ = scratch.template tensor<BackwardRows>(Shape<1>{row_tiles_of(cut)}).data();
    verdicts_ = scratch.template tensor<TileVerdict>(Shape<1>{row_tiles_of(cut)}).data();
  }

  /// Heads [head, head + heads) of the group, queries [begin, begin + queries).
  void run(index_t head, index_t heads, index_t begin, index_t queries) {
    pack_queries(first_head_ + head, heads, begin, queries);
    std::fill_n(dq_, heads * queries * k_step_, A(0));
    for (tile_begin_ = 0; tile_begin_ < seq_.kv_len; tile_begin_ += kKeyTile) {
      const index_t n = std::min(kKeyTile, seq_.kv_len - tile_begin_);
      const KeySpan keys = keys_of(args_, seq_, tile_begin_, n);
      const detail::KeyRange range = detail::key_range(keys);
      bool seen = false;
      for (index_t t = 0; t < row_tiles_; ++t) {
        const RowBlock& block = rows_[t].block;
        verdicts_[t] = detail::verdict_of(mask_, seq_.b, block, 0, block.queries, range);
        seen = seen || verdicts_[t] != TileVerdict::skip;
      }
      if (!seen) continue;
      pack_tile(n);
      for (index_t t = 0; t < row_tiles_; ++t) {
        if (verdicts_[t] == TileVerdict::skip) continue;
        const RowBlock& block = rows_[t].block;
        detail::report_tile(mask_, seq_.b, block, 0, block.queries, range);
        add_tile(t, keys, verdicts_[t] == TileVerdict::partial);
      }
    }
    store_queries(first_head_ + head, heads, begin, queries);
  }

 private:
  static index_t row_tiles_of(const BackwardCut& cut) {
    return cut.heads * ((cut.queries + kRowTile - 1) / kRowTile);
  }

  // ---- rows ----

  void pack_queries(index_t head, index_t heads, index_t begin, index_t queries) {
    for (index_t i = 0; i < queries; ++i) positions_[i] = query_position(args_, seq_, begin + i);
    const index_t tiles = (queries + kRowTile - 1) / kRowTile;  // of a head
    row_tiles_ = heads * tiles;
    for (index_t i = 0; i < queries; i += kRowTile) {
      const index_t n = std::min(kRowTile, queries - i);
      V difference = V::zero();  // of all heads, which lie side by side
      for (index_t r = i; r < i + n; ++r)
        for (index_t h = 0; h < heads; ++h)
          pack_query(head + h, begin + r, h * queries + r, difference);
      for (index_t h = 0; h < heads; ++h) {
        const index_t tile = h * tiles + i / kRowTile, first = h * queries + i;
        rows_[tile] = {{head + h, 1, begin + i, n, positions_ + i, !args_.q_positions},
                       first,
                       sum(difference) == A(0)};
        product_.pack_row_tile(tile, first, n);
      }
    }
  }

  template <class View>
  auto* row_of(const View& view, index_t h, index_t i) const {
    return view.data() + seq_.row * view.stride(0) + (seq_.q_begin + i) * view.stride(1) +
           h * view.stride(2);
  }

  /// Row r of the packed rows: q, w dO, L0 and D' (see the top).
  void pack_query(index_t h, index_t i, index_t r, V& difference) {
    // Rows of a head lie far apart, which the processor's own prefetching does not follow.
    const index_t ahead = std::min(i + kAhead, seq_.q_len - 1);
    detail::prefetch(row_of(args_.q, h, ahead), dim_);
    detail::prefetch(row_of(args_.dout, h, ahead), value_dim_);
    detail::prefetch(row_of(args_.out, h, ahead), value_dim_);
    const index_t at = seq_.q_begin + i;
    const A lse = args_.logsumexp(seq_.row, h, at);
    A whole = lse, sink_weight = 0;
    if (args_.sink_logits) {
      const A sink = static_cast<A>(args_.sink_logits(h));
      if (args_.logsumexp_with_sink) {
        whole = args_.logsumexp_with_sink(seq_.row, h, at);
      } else if (const A top = std::max(lse, sink); top != kNone) {
        whole = top + std::log(std::exp(lse - top) + std::exp(sink - top));
      }
      if (whole != kNone) sink_weight = std::exp(sink - whole);
    }
    const A dwhole =
        args_.dlogsumexp_with_sink ? args_.dlogsumexp_with_sink(seq_.row, h, at) : A(0);
    if (lse == kNone) {  // sees nothing: no gradient, whatever q and dO hold
      product_.clear_row(r);
      lse_[r] = -kNone;
      delta_[r] = 0;
      if (sums_.dsinks != nullptr) sums_.dsinks[h - first_head_] += sink_weight * dwhole;
      return;
    }
    const T* const dout = row_of(args_.dout, h, i);
    const A weight = whole == lse ? A(1) : std::exp(lse - whole);
    const A d = detail::dot_rows<A>(dout, row_of(args_.out, h, i), value_dim_) - dwhole;
    if (sums_.dsinks != nullptr) sums_.dsinks[h - first_head_] -= sink_weight * d;
    lse_[r] = lse;
    delta_[r] = weight * d;
    if (args_.dlogsumexp) delta_[r] -= args_.dlogsumexp(seq_.row, h, at);
    product_.set_row(r, row_of(args_.q, h, i), dout, weight, difference);
  }

  void store_queries(index_t head, index_t heads, index_t begin, index_t queries) const {
    const V scale = V::broadcast(args_.scale);
    for (index_t i = 0; i < queries; ++i) {
      for (index_t h = 0; h < heads; ++h) {
        const A* const from = dq_ + (h * queries + i) * k_step_;
        T* const to = row_of(args_.dq, head + h, begin + i);
        for (index_t t = 0; t < dim_; t += kLanes)
          detail::store_lanes(V::load(from + t) * scale, to + t, dim_ - t);
      }
    }
  }

  // ---- keys ----

  void pack_tile(index_t n) {
    const T* rows[kKeyTile] = {};
    for (index_t j = 0; j < n; ++j) rows[j] = v_row_(tile_begin_ + j);
    product_.pack_values(rows, n);
    for (index_t j = 0; j < n; ++j) rows[j] = k_row_(tile_begin_ + j);
    keys_finite_ = product_.pack_keys(rows, n);
    unsigned char& touched = sums_.touched[tile_begin_ / kKeyTile];
    if (touched == 0) {
      std::fill_n(sums_.dk + tile_begin_ * k_step_, n * k_step_, A(0));
      std::fill_n(sums_.dv + tile_begin_ * v_step_, n * v_step_, A(0));
    }
    touched = 1;
  }

  // ---- a tile ----

  void add_tile(index_t index, const KeySpan& keys, bool partial) {
    const BackwardRows& rows = rows_[index];
    const index_t queries = rows.block.queries, n = keys.count;
    Columns columns[kGroups];
    for (index_t first = 0, g = 0; first < queries; first += kGroup, ++g) {
      columns[g] = {0, n, 0};
      if (partial) columns[g] = look(rows.block, first, std::min(queries, first + kGroup), keys);
    }
    const BackwardTile<A> tile{s_, dp_, columns, queries, n, rows.first, index};
    product_.scores(tile);
    for (index_t first = 0, g = 0; partial && first < queries; first += kGroup, ++g)
      clear_outside(first, std::min(queries, first + kGroup), n, columns[g]);
    for (index_t r = 0; r < queries; ++r)
      if (!columns[r / kGroup].empty()) gradients_of_row(rows, r, keys, columns[r / kGroup]);
    // Only what hides something can meet a value that must not be multiplied.
    const bool safe = !partial && detail::is_identity<Score>;
    product_.add_to_queries(dq_ + rows.first * k_step_, tile, safe || keys_finite_);
    product_.add_to_keys(sums_.dk + tile_begin_ * k_step_, sums_.dv + tile_begin_ * v_step_, tile,
                         safe || rows.finite);
  }

  /// What rows [first, last) see of the tile, if the mask knows one run of it for each.
  std::optional<Columns> look_at_runs(const RowBlock& block, index_t first, index_t last,
                                      const KeySpan& keys) {
    if (!knows_runs<Mask> || keys.given != nullptr) return std::nullopt;
    const index_t n = keys.count, rows = last - first;
    Columns columns{n, 0, 0};
    PositionRange runs[kGroup], all{0, n};  // columns of each row, and those that every row sees
    for (index_t i = 0; i < rows; ++i) {
      PositionRange& run = runs[i];
      if (!visible_run(mask_, seq_.b, block.head, block.positions[first + i],
                       {keys.begin, keys.begin + n}, run))
        return std::nullopt;
      run = run.empty() ? PositionRange{n, 0}
                        : PositionRange{run.begin - keys.begin, run.end - keys.begin};
      all = {std::max(all.begin, run.begin), std::min(all.end, run.end)};
      columns.begin = std::min(columns.begin, run.begin);
      columns.end = std::max(columns.end, run.end);
    }
    for (index_t j = columns.begin / kLanes * kLanes; j < columns.end; j += kLanes) {
      if (j >= all.begin && std::min(j + kLanes, n) <= all.end) continue;
      columns.tested |= 1u << (j / kLanes);
      for (index_t i = 0; i < rows; ++i) {
        using Lane = mask_int<A>;
        Lane* const seen = seen_ + (first + i) * kKeyTile + j;
        const Lane begin = static_cast<Lane>(runs[i].begin - j);
        const Lane end = static_cast<Lane>(runs[i].end - j);
        for (Lane c = 0; c < kLanes; ++c) seen[c] = -static_cast<Lane>(begin <= c && c < end);
      }
    }
    return columns;
  }

  /// What rows [first, last) see of the tile: what their runs say, or asked for six rows and one
  /// vector of keys.
  Columns look(const RowBlock& block, index_t first, index_t last, const KeySpan& keys) {
    if (const auto of_runs = look_at_runs(block, first, last, keys)) return *of_runs;
    Columns columns{keys.count, 0, 0};
    for (index_t j = 0; j < keys.count; j += kLanes) {
      const KeySpan part = keys.part(j, std::min(kLanes, keys.count - j));
      const detail::KeyRange range = detail::key_range(part);
      const TileVerdict verdict = detail::verdict_of(mask_, seq_.b, block, first, last, range);
      if (verdict == TileVerdict::skip) continue;
      mask_int<A>* const seen = seen_ + first * kKeyTile + j;
      index_t begin = j, end = j + part.count;  // what is seen of this vector
      if (verdict == TileVerdict::partial) {
        if (!detail::ask_rows<A>(seen, kKeyTile, mask_, seq_.b, block, first, last, part, range))
          continue;
        columns.tested |= 1u << (j / kLanes);
        const auto any = [&](index_t at) {
          mask_int<A> bits = 0;
          for (index_t r = 0; r < last - first; ++r) bits |= seen[r * kKeyTile + at - j];
          return bits != 0;
        };
        while (!any(begin)) ++begin;
        while (!any(end - 1)) --end;
      }
      // A gap since the last vector that is seen.
      const index_t gap = columns.end == 0 ? j : detail::round_up(columns.end, kLanes);
      for (index_t hidden = gap; hidden < j; hidden += kLanes) {
        columns.tested |= 1u << (hidden / kLanes);
        for (index_t r = first; r < last; ++r)
          std::fill_n(seen_ + r * kKeyTile + hidden, kLanes, mask_int<A>(0));
      }
      columns.begin = std::min(columns.begin, begin);
      columns.end = end;
    }
    return columns;
  }

  /// Zeros for the vectors in which six rows see nothing: the sums over rows may read them.
  void clear_outside(index_t first, index_t last, index_t n, const Columns& columns) {
    const index_t begin = columns.begin / kLanes * kLanes;
    const index_t end = detail::round_up(columns.end, kLanes), whole = detail::round_up(n, kLanes);
    for (index_t r = first; r < last; ++r) {
      for (index_t j = 0; j < whole; j += kLanes) {
        if (!columns.empty() && j >= begin && j < end) continue;
        V::zero().store(s_ + r * kKeyTile + j);
        V::zero().store(dp_ + r * kKeyTile + j);
      }
    }
  }

  /// s_ becomes P and dp_ becomes dU, row r.
  void gradients_of_row(const BackwardRows& rows, index_t r, const KeySpan& keys,
                        const Columns& columns) {
    A *const s = s_ + r * kKeyTile, *const dp = dp_ + r * kKeyTile;
    const index_t begin = columns.begin / kLanes * kLanes;
    const index_t end = detail::round_up(columns.end, kLanes);
    const mask_int<A>* const seen = seen_ + r * kKeyTile;
    const A lse = lse_[rows.first + r], delta = delta_[rows.first + r];
    if constexpr (detail::is_identity<Score>) {
      detail::gradient_row(s, dp, begin, end, args_.scale, lse, delta, columns.tested, seen);
      return;
    }
    const detail::ScoreRow pairs{seq_.b, rows.block.head, rows.block.position_of(r),
                                 keys.part(columns.begin, columns.end - columns.begin)};
    if constexpr (detail::RowModifier<Score>::kVector) {
      if (keys.given == nullptr && !wants_bias()) {
        using Modifier = detail::RowModifier<Score>;
        A* const derivative = Modifier::kAdditive ? nullptr : derivative_;
        if (derivative != nullptr) std::fill(derivative + begin, derivative + end, A(1));
        Modifier::apply(s + columns.begin,
                        derivative == nullptr ? derivative : derivative + columns.begin, score_,
                        args_.scale, pairs);
        detail::gradient_row(s, dp, begin, end, A(1), lse, delta, columns.tested, seen, derivative);
        return;
      }
    }
    // The score as a dual number that starts with derivative 1.
    A scaled[kKeyTile];
    for (index_t j = columns.begin; j < columns.end; ++j) scaled[j] = s[j] * args_.scale;
    detail::modify_row_with_derivative(
        s + columns.begin, derivative_ + columns.begin, score_, args_.scale, pairs, [&](index_t j) {
          const index_t at = columns.begin + j;
          return (columns.tested >> (at / kLanes) & 1u) == 0 || seen[at] != 0;
        });
    detail::gradient_row(s, dp, begin, end, A(1), lse, delta, columns.tested, seen);
    add_bias(pairs.h, pairs.q_pos, keys, columns, scaled, dp);
    detail::scale_row(dp, derivative_, columns.begin, columns.end);
  }

  /// Whether a table in the score wants its gradient.
  bool wants_bias() const {
    if constexpr (rapt::detail::bias_count<true, Score> == 1)
      if (args_.dbias) return true;
    if constexpr (rapt::detail::bias_count<false, Score> == 1)
      if (sums_.dbias != nullptr) return true;
    return false;
  }

  /// Gradients of the tables in the score, from dz of one row.
  void add_bias(index_t h, index_t q_pos, const KeySpan& keys, const Columns& columns,
                const A* scaled, const A* dz) const {
    if constexpr (rapt::detail::bias_count<true, Score> == 1) {
      if (args_.dbias) {
        for (index_t j = columns.begin; j < columns.end; ++j) {
          if (dz[j] == 0) continue;
          const index_t p = keys.position(j);
          rapt::detail::bias_entry(rapt::detail::bias_in<true>(score_), args_.dbias, seq_.b, h,
                                   q_pos, p) +=
              dz[j] * rapt::detail::bias_derivative<true>(score_, scaled[j], seq_.b, h, q_pos, p);
        }
      }
    }
    if constexpr (rapt::detail::bias_count<false, Score> == 1) {
      if (sums_.dbias != nullptr) {
        const auto& bias = rapt::detail::bias_in<false>(score_);
        A* const table = sums_.dbias + (h - first_head_) * bias.table.extent(1);
        for (index_t j = columns.begin; j < columns.end; ++j) {
          if (dz[j] == 0) continue;
          const index_t p = keys.position(j);
          table[rapt::detail::bias_column(bias, q_pos, p)] +=
              dz[j] * rapt::detail::bias_derivative<false>(score_, scaled[j], seq_.b, h, q_pos, p);
        }
      }
    }
  }

  const Args& args_;
  const AttentionSequence& seq_;
  const Mask& mask_;
  const Score& score_;
  const index_t first_head_;
  const BackwardSums<A> sums_;
  const index_t dim_, value_dim_, k_step_, v_step_;
  Product product_;
  const RowAddress<T> k_row_, v_row_;
  A *dq_, *lse_, *delta_;  // rows of the chunk
  A *s_, *dp_;             // [kRowTile][kKeyTile]: S, then P; dP, then dU
  A* derivative_;          // [kKeyTile], for scores that are modified
  mask_int<A>* seen_;      // [kRowTile][kKeyTile]
  index_t* positions_;     // of the chunk's queries
  BackwardRows* rows_;
  TileVerdict* verdicts_;
  index_t row_tiles_ = 0, tile_begin_ = 0;
  bool keys_finite_ = true;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
