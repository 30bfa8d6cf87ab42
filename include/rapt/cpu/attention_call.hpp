// A call of attention as the CPU kernels walk it: where a row of K or V lies, at which position a
// query or key stands, what a mask says about a tile, and how a finished row is written.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "rapt/attention/options.hpp"
#include "rapt/attention/sequences.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/rows.hpp"
#include "rapt/mask/concept.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

using rapt::detail::AttentionSequence;

/// Address of row j of one head's keys or values: evenly spaced, or through a block table.
template <class T>
struct RowAddress {
  const T* base = nullptr;
  index_t stride = 0;                   // from a row to the next, within a block
  const std::int32_t* table = nullptr;  // blocks of this sequence; absent: one endless block
  index_t table_step = 1, block_size = 1, block_stride = 0;

  const T* operator()(index_t j) const {
    if (table == nullptr) return base + j * stride;
    return base + table[j / block_size * table_step] * block_stride + j % block_size * stride;
  }
  /// How many rows from j on, at most n, are evenly spaced: those of its block.
  index_t rows_from(index_t j, index_t n) const {
    return table == nullptr ? n : std::min(n, block_size - j % block_size);
  }
  /// From each row to the next; 0 if blocks lie apart.
  index_t step() const { return table == nullptr ? stride : 0; }
};

template <class Args, class View>
auto row_address(const Args& args, const View& rows, const AttentionSequence& seq, index_t head) {
  RowAddress<typename View::value_type> address{rows.data() + head * rows.stride(2),
                                                rows.stride(1)};
  if (args.block_table) {
    address.table = args.block_table.data() + seq.b * args.block_table.stride(0);
    address.table_step = args.block_table.stride(1);
    address.block_size = rows.extent(1);
    address.block_stride = rows.stride(0);
  } else {
    address.base += seq.row * rows.stride(0) + seq.kv_begin * rows.stride(1);
  }
  return address;
}

/// Addresses of rows [begin, begin + n) of one head.
template <class T>
void row_addresses(const T** rows, const RowAddress<T>& at, index_t begin, index_t n) {
  for (index_t j = 0; j < n;) {  // block by block: a division costs as much as a row
    const T* row = at(begin + j);
    const index_t end = j + at.rows_from(begin + j, n - j);
    constexpr index_t kStep = 8;  // a loop of known length becomes vectors
    for (; j + kStep <= end; j += kStep, row += kStep * at.stride)
      for (index_t i = 0; i < kStep; ++i) rows[j + i] = row + i * at.stride;
    for (; j < end; ++j, row += at.stride) rows[j] = row;
  }
}

/// Scales of rows [begin, begin + n) of one head; 1 where there are none.
inline void read_scales(float* scales, const RowAddress<float>& at, index_t begin, index_t n) {
  if (at.base == nullptr) {
    std::fill_n(scales, n, 1.f);
    return;
  }
  for (index_t j = 0; j < n;) {
    const float* const row = at(begin + j);
    const index_t count = at.rows_from(begin + j, n - j);
    for (index_t i = 0; i < count; ++i) scales[j + i] = row[i * at.stride];
    j += count;
  }
}

/// The keys [begin, begin + count) of a tile and their positions: consecutive, or given by the
/// caller, and then a negative one makes its key invisible.
struct KeySpan {
  index_t begin, count;
  const std::int32_t* given = nullptr;  // of the sequence's key 0
  index_t given_step = 1;

  index_t position(index_t j) const {
    return given == nullptr ? begin + j : given[(begin + j) * given_step];
  }
  KeySpan part(index_t from, index_t n) const { return {begin + from, n, given, given_step}; }
};

template <class Args>
KeySpan keys_of(const Args& args, const AttentionSequence& seq, index_t begin, index_t count) {
  KeySpan span{begin, count};
  if (args.kv_positions) {
    span.given = args.kv_positions.data() + seq.row * args.kv_positions.stride(0) +
                 seq.kv_begin * args.kv_positions.stride(1);
    span.given_step = args.kv_positions.stride(1);
  }
  return span;
}

template <class Args>
index_t query_position(const Args& args, const AttentionSequence& seq, index_t i) {
  return args.q_positions ? index_t{args.q_positions(seq.row, seq.q_begin + i)}
                          : i + seq.kv_len - seq.q_len;
}

/// The rows of a tile: queries [i_begin, i_begin + queries) of heads [head, head + heads).
///
///   by_query   q0 h0 | q0 h1 | q1 h0 | q1 h1     neighbours see nearly the same keys and lie side
///                                                by side in memory
///   else       q0 h0 | q1 h0 | q0 h1 | q1 h1     a tile knows few heads: for masks that differ
///                                                from head to head
struct RowBlock {
  index_t head, heads, i_begin, queries;
  const index_t* positions;  // [queries]
  bool consecutive;          // positions count up by one
  bool by_query = false;

  index_t rows() const { return heads * queries; }
  index_t head_of(index_t r) const { return head + (by_query ? r % heads : r / queries); }
  /// Which of the block's queries.
  index_t local_query_of(index_t r) const { return by_query ? r / heads : r % queries; }
  index_t query_of(index_t r) const { return i_begin + local_query_of(r); }
  index_t position_of(index_t r) const { return positions[local_query_of(r)]; }
};

/// Head, query and position of one row after the other: one division for all of them.
class RowCursor {
 public:
  RowCursor(const RowBlock& block, index_t r)
      : block_(block), head_(block.head_of(r)), query_(block.local_query_of(r)) {}
  index_t head() const { return head_; }
  index_t query() const { return block_.i_begin + query_; }
  index_t position() const { return block_.positions[query_]; }
  RowCursor& operator++() {
    if (block_.by_query) {
      if (++head_ == block_.head + block_.heads) head_ = block_.head, ++query_;
    } else {
      if (++query_ == block_.queries) query_ = 0, ++head_;
    }
    return *this;
  }

 private:
  const RowBlock& block_;
  index_t head_, query_;
};

namespace detail {

/// Smallest range that holds the positions of n rows or keys.
template <class At>
PositionRange range_of(At at, index_t n, bool consecutive) {
  PositionRange range{at(0), at(0) + 1};
  if (consecutive) return {range.begin, range.begin + n};
  for (index_t i = 1; i < n; ++i) {
    const index_t p = at(i);
    range.begin = p < range.begin ? p : range.begin;
    range.end = p >= range.end ? p + 1 : range.end;
  }
  return range;
}

/// Calls f(head, positions, first row, end row, rows from one to the next) for each head among rows
/// [begin, end).
template <class F>
void for_each_head(const RowBlock& block, index_t begin, index_t end, F f) {
  const auto positions = [&](index_t first, index_t n) {
    const index_t* const at = block.positions + first;
    return range_of([=](index_t i) { return at[i]; }, n, block.consecutive);
  };
  if (block.by_query) {
    const index_t query = begin / block.heads, skipped = begin % block.heads;
    const index_t last = end / block.heads, left = end % block.heads;
    for (index_t h = 0; h < block.heads; ++h) {
      const index_t from = query + (h < skipped ? 1 : 0), to = last + (h < left ? 1 : 0);
      if (from < to)
        f(block.head + h, positions(from, to - from), from * block.heads + h, end, block.heads);
    }
    return;
  }
  for (index_t r = begin; r < end;) {
    const index_t of_head = r / block.queries, first = r - of_head * block.queries;
    const index_t n = std::min(end - r, block.queries - first);
    f(block.head + of_head, positions(first, n), r, r + n, index_t{1});
    r += n;
  }
}

/// Positions of the keys of a tile. `some_invisible`: given positions, some of them negative.
struct KeyRange {
  PositionRange range;
  bool some_invisible;
};
inline KeyRange key_range(const KeySpan& keys) {
  PositionRange range =
      range_of([&](index_t j) { return keys.position(j); }, keys.count, keys.given == nullptr);
  const bool negative = range.begin < 0;
  if (negative) range.begin = 0;
  return {range, negative};
}

/// The verdict on the queries of one head and a tile of keys.
template <class Mask>
TileVerdict verdict_of_head(const Mask& mask, index_t b, index_t h, PositionRange q,
                            const KeyRange& keys) {
  const TileVerdict verdict = classify(mask, b, h, q, keys.range);
  return verdict == TileVerdict::full && keys.some_invisible ? TileVerdict::partial : verdict;
}

/// The verdict on rows [begin, end) of a block and a tile of keys, over all heads among the rows.
template <class Mask>
TileVerdict verdict_of(const Mask& mask, index_t b, const RowBlock& block, index_t begin,
                       index_t end, const KeyRange& keys) {
  if (keys.range.empty()) return TileVerdict::skip;
  bool any = false, all = true;
  for_each_head(block, begin, end, [&](index_t h, PositionRange q, auto...) {
    const TileVerdict v = verdict_of_head(mask, b, h, q, keys);
    any = any || v != TileVerdict::skip;
    all = all && v == TileVerdict::full;
  });
  return !any ? TileVerdict::skip : all ? TileVerdict::full : TileVerdict::partial;
}

/// A mask may watch: mask.on_tile(b, h, q, kv, verdict) is told of every rectangle that is
/// computed. Tests count with it; for any other mask this is nothing.
template <class Mask>
void report_tile(const Mask& mask, index_t b, const RowBlock& block, index_t begin, index_t end,
                 const KeyRange& keys) {
  if constexpr (requires { mask.on_tile(b, b, keys.range, keys.range, TileVerdict::full); }) {
    for_each_head(block, begin, end, [&](index_t h, PositionRange q, auto...) {
      const TileVerdict v = verdict_of_head(mask, b, h, q, keys);
      if (v != TileVerdict::skip) mask.on_tile(b, h, q, keys.range, v);
    });
  }
}

/// Columns of a tile, [begin, end): none where begin >= end.
struct Columns {
  index_t begin = std::numeric_limits<index_t>::max(), end = 0;

  explicit operator bool() const { return begin < end; }
  void include(index_t from, index_t to) {
    begin = std::min(begin, from);
    end = std::max(end, to);
  }
};

/// seen[j] = all ones where the mask lets the query see key j, else 0. Returns columns that hold
/// all that are seen: the run of a mask that knows it, else rounded to chunks of a vector. Whole
/// chunks are loops of known length, which compilers turn into vector code, a user's lambda
/// included.
template <class A, class Mask>
Columns ask_row(mask_int<A>* seen, const Mask& mask, index_t b, index_t h, index_t q_pos,
                const KeySpan& keys) {
  using M = mask_int<A>;
  constexpr index_t kChunk = Vec<A>::kLanes;
  Columns columns;
  if (PositionRange run;
      keys.given == nullptr &&
      visible_run(mask, b, h, q_pos, {keys.begin, keys.begin + keys.count}, run)) {
    std::fill_n(seen, keys.count, M(0));
    if (run.empty()) return columns;
    columns.include(run.begin - keys.begin, run.end - keys.begin);
    std::fill(seen + columns.begin, seen + columns.end, M(-1));
    return columns;
  }
  for (index_t j = 0; j < keys.count; j += kChunk) {
    M any = 0;
    M* const to = seen + j;
    if (keys.given != nullptr) {
      const index_t n = std::min(kChunk, keys.count - j);
      for (index_t c = 0; c < n; ++c) {
        const index_t p = keys.position(j + c);
        to[c] = p >= 0 && mask(b, h, q_pos, p) ? M(-1) : M(0);
        any |= to[c];
      }
    } else if (const index_t first = keys.begin + j; j + kChunk <= keys.count) {
      for (index_t c = 0; c < kChunk; ++c) {
        to[c] = static_cast<M>(-static_cast<M>(mask(b, h, q_pos, first + c)));
        any |= to[c];
      }
    } else {
      for (index_t c = 0; c < keys.count - j; ++c) {
        to[c] = static_cast<M>(-static_cast<M>(mask(b, h, q_pos, first + c)));
        any |= to[c];
      }
    }
    if (any != 0) columns.include(j, std::min(j + kChunk, keys.count));
  }
  return columns;
}

/// The same for rows [begin, end) of a block, seen[r] at `step` from seen[r - 1], and the columns
/// of all of them. Heads that see all or nothing of the tile are not asked.
template <class A, class Mask>
Columns ask_rows(mask_int<A>* seen, index_t step, const Mask& mask, index_t b,
                 const RowBlock& block, index_t begin, index_t end, const KeySpan& keys,
                 const KeyRange& range) {
  Columns columns;
  for_each_head(block, begin, end,
                [&](index_t h, PositionRange q, index_t first, index_t last, index_t to_next) {
                  const TileVerdict verdict = verdict_of_head(mask, b, h, q, range);
                  for (index_t r = first; r < last; r += to_next) {
                    mask_int<A>* const row = seen + (r - begin) * step;
                    if (verdict == TileVerdict::partial) {
                      const Columns of_row =
                          ask_row<A>(row, mask, b, h, block.position_of(r), keys);
                      if (of_row) columns.include(of_row.begin, of_row.end);
                    } else {
                      const bool all = verdict == TileVerdict::full;
                      std::fill_n(row, keys.count, static_cast<mask_int<A>>(all ? -1 : 0));
                      if (all) columns.include(0, keys.count);
                    }
                  }
                });
  return columns;
}

/// The columns that a query sees, from a mask that knows.
template <RangeMask Mask>
Columns seen_columns(const Mask& mask, index_t b, index_t h, index_t q_pos, const KeySpan& keys) {
  const PositionRange seen = mask.visible_range(b, h, q_pos);
  const auto column = [&](index_t p) {
    return p <= keys.begin ? index_t{0} : std::min(p - keys.begin, keys.count);
  };
  return {column(seen.begin), column(seen.end)};
}

/// A row without its division: running maximum m in natural units, sum l, and o = sum of e v.
template <class A>
struct RowState {
  A m, l;
  A* o;  // [value_dim], padded to a whole vector
};

/// Where the output of a row begins.
template <class Args>
auto* out_row(const Args& args, const AttentionSequence& seq, index_t h, index_t i) {
  return args.out.data() + seq.row * args.out.stride(0) + (seq.q_begin + i) * args.out.stride(1) +
         h * args.out.stride(2);
}

/// Whether finish_logarithms has anything to do: logarithms cost as much as a row of a short
/// sequence.
template <class Args>
bool wants_logarithms(const Args& args) {
  return args.sink_logits || args.logsumexp || args.logsumexp_with_sink || args.probabilities;
}

/// Writes logsumexp and logsumexp_with_sink of one row. Returns the logarithm of the whole
/// denominator, sink included, for a call with probabilities; `factor` of its output loses what the
/// sink takes.
template <class Args, class A>
[[gnu::noinline]] A finish_logarithms(const Args& args, const AttentionSequence& seq, index_t h,
                                      index_t i, const RowState<A>& row, A& factor) {
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  const index_t at = seq.q_begin + i;
  const A lse = row.l == 0 ? kNone : row.m + std::log(row.l);
  A whole = lse;
  if (args.sink_logits) {
    const A sink = static_cast<A>(args.sink_logits(h));
    const A m = std::max(lse, sink);
    if (m != kNone) {
      whole = m + std::log(std::exp(lse - m) + std::exp(sink - m));
      if (row.l != 0) factor *= std::exp(lse - whole);
    }
  }
  if (args.logsumexp) args.logsumexp(seq.row, h, at) = lse;
  if (args.logsumexp_with_sink) args.logsumexp_with_sink(seq.row, h, at) = whole;
  return whole;
}

/// out = factor o; 0 where l is 0: o may be anything.
template <class T, class A>
void store_output(T* out, const RowState<A>& row, A factor, index_t dim) {
  using V = Vec<A>;
  if (row.l == 0) {
    for (index_t t = 0; t < dim; t += V::kLanes) store_lanes(V::zero(), out + t, dim - t);
    return;
  }
  const V f = V::broadcast(factor);
  index_t t = 0;
  for (; t + V::kLanes <= dim; t += V::kLanes) (V::load(row.o + t) * f).store(out + t);
  if (t < dim) store_lanes(V::load(row.o + t) * f, out + t, dim - t);
}

}  // namespace detail

/// Whether one of a call's sequences is worth splitting numbers into parts (cpu/float_parts.hpp);
/// then all are.
template <class Product, class Args>
bool parts_serve(const Args& args) {
  const index_t kv_heads = args.k.extent(2);
  if (kv_heads == 0) return false;
  for (index_t s = 0; s < rapt::detail::sequence_count(args); ++s) {
    const AttentionSequence seq = rapt::detail::sequence_at(args, s);
    if (Product::serves(seq.q_len * args.q.extent(2) / kv_heads, seq.kv_len, args.q.extent(3)))
      return true;
  }
  return false;
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
