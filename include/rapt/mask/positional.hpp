// The masks that are answered from positions alone, or from a short table of them.
//
//   p = position of the query, j = position of the key              visible when
//
//   Full                         always
//   Causal                       j <= p
//   SlidingWindow{W}             |p - j| < W
//   ChunkedLocal{C}              j <= p  and  floor(j / C) == floor(p / C)
//   SinkTokens{S}                j < S
//   PrefixLm{lengths}            j <= p  or  j < lengths[b]
//   SameDocument{ids}            ids[b, p] == ids[b, j]
//
// SlidingWindow alone looks both ways; under Causal it leaves the last W keys, the query's own
// included: (left, right) = (W - 1, 0) in the convention of other libraries. SinkTokens only makes
// the first S keys visible, so it stands beside a window and under Causal:
//
//   Causal{} & (SlidingWindow{512} | SinkTokens{4})
//
// All but SameDocument judge tiles exactly: skip if and only if no pair is visible, full if and
// only if all are. SameDocument compares the ranges of ids, which is exact where ids grow along a
// row.
//
// Errors: a window, chunk or sink count out of range is a ValueError when a call binds the mask.
//
// Sources: window: Child et al. 2019, arXiv:1904.10509; Jiang et al. 2023, arXiv:2310.06825,
// sec. 2. Sink tokens: Xiao et al. 2023, arXiv:2309.17453. Prefix-LM: Raffel et al. 2019,
// arXiv:1910.10683, sec. 3.2.1. Chunks: Llama 4 (transformers, `attention_chunk_size`). Packed
// documents: Krell et al. 2021, arXiv:2107.02027.
#pragma once

#include <cstdint>

#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/mask/compose.hpp"

namespace rapt {

/// Every key is visible.
struct Full {
  using composable_mask = void;

  RAPT_HOST_DEVICE constexpr bool operator()(index_t, index_t, index_t, index_t) const {
    return true;
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t, index_t, PositionRange,
                                                  PositionRange) const {
    return TileVerdict::full;
  }
  RAPT_HOST_DEVICE constexpr PositionRange visible_range(index_t, index_t, index_t) const {
    return {-PositionRange::kEndless, PositionRange::kEndless};
  }
};
static_assert(AttentionMask<Full> && RangeMask<Full>);

/// A query sees the keys up to its own.
struct Causal {
  using composable_mask = void;

  RAPT_HOST_DEVICE constexpr bool operator()(index_t, index_t, index_t q_pos,
                                             index_t kv_pos) const {
    return kv_pos <= q_pos;
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t, index_t, PositionRange q,
                                                  PositionRange kv) const {
    if (kv.begin > q.last()) return TileVerdict::skip;
    return kv.last() <= q.begin ? TileVerdict::full : TileVerdict::partial;
  }
  RAPT_HOST_DEVICE constexpr PositionRange visible_range(index_t, index_t, index_t q_pos) const {
    return {-PositionRange::kEndless, q_pos + 1};
  }
};
static_assert(AttentionMask<Causal> && RangeMask<Causal>);

/// A query sees the keys less than `window` away, in both directions.
struct SlidingWindow {
  using composable_mask = void;
  index_t window;  // under Causal: keys per query, its own included

  RAPT_HOST_DEVICE constexpr bool operator()(index_t, index_t, index_t q_pos,
                                             index_t kv_pos) const {
    return near(q_pos, kv_pos);
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t, index_t, PositionRange q,
                                                  PositionRange kv) const {
    // The closest pair decides skip; where the ranges overlap it is a query and its own key.
    if (q.begin > kv.last() && !near(q.begin, kv.last())) return TileVerdict::skip;
    if (kv.begin > q.last() && !near(kv.begin, q.last())) return TileVerdict::skip;
    if (window < 1) return TileVerdict::skip;
    // The farthest pair lies in one of two corners.
    const bool all = near(q.begin, kv.last()) && near(q.last(), kv.begin);
    return all ? TileVerdict::full : TileVerdict::partial;
  }
  RAPT_HOST_DEVICE constexpr PositionRange visible_range(index_t, index_t, index_t q_pos) const {
    const index_t w = window < PositionRange::kEndless ? window : PositionRange::kEndless;
    return {q_pos - w + 1, q_pos + w};
  }
  constexpr SlidingWindow bind(const CallShape&) const {
    if (window < 1)
      throw ValueError(detail::text("SlidingWindow: window is ", window, ", expected at least 1"));
    return *this;
  }

 private:
  RAPT_HOST_DEVICE constexpr bool near(index_t a, index_t b) const {
    return window > 0 && detail::distance(a, b) < static_cast<std::uint64_t>(window);
  }
};
static_assert(AttentionMask<SlidingWindow> && RangeMask<SlidingWindow>);

/// A query sees the keys up to its own that lie in its chunk of `chunk` tokens.
struct ChunkedLocal {
  using composable_mask = void;
  index_t chunk;

  RAPT_HOST_DEVICE constexpr bool operator()(index_t, index_t, index_t q_pos,
                                             index_t kv_pos) const {
    return kv_pos <= q_pos && same(q_pos, kv_pos);
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t, index_t, PositionRange q,
                                                  PositionRange kv) const {
    if (kv.begin > q.last()) return TileVerdict::skip;
    if (kv.last() < q.begin && !same(q.begin, kv.last())) return TileVerdict::skip;
    const bool all = kv.last() <= q.begin && same(q.last(), kv.begin);
    return all ? TileVerdict::full : TileVerdict::partial;
  }
  RAPT_HOST_DEVICE constexpr PositionRange visible_range(index_t, index_t, index_t q_pos) const {
    return {detail::floor_div(q_pos, chunk) * chunk, q_pos + 1};
  }
  constexpr ChunkedLocal bind(const CallShape&) const {
    if (chunk < 1)
      throw ValueError(detail::text("ChunkedLocal: chunk is ", chunk, ", expected at least 1"));
    return *this;
  }

 private:
  RAPT_HOST_DEVICE constexpr bool same(index_t a, index_t b) const {
    return detail::floor_div(a, chunk) == detail::floor_div(b, chunk);
  }
};
static_assert(AttentionMask<ChunkedLocal> && RangeMask<ChunkedLocal>);

/// The first `tokens` keys are visible to every query.
struct SinkTokens {
  using composable_mask = void;
  index_t tokens;

  RAPT_HOST_DEVICE constexpr bool operator()(index_t, index_t, index_t, index_t kv_pos) const {
    return kv_pos < tokens;
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t, index_t, PositionRange,
                                                  PositionRange kv) const {
    if (kv.begin >= tokens) return TileVerdict::skip;
    return kv.end <= tokens ? TileVerdict::full : TileVerdict::partial;
  }
  RAPT_HOST_DEVICE constexpr PositionRange visible_range(index_t, index_t, index_t) const {
    return {-PositionRange::kEndless, tokens};
  }
  constexpr SinkTokens bind(const CallShape&) const {
    if (tokens < 0)
      throw ValueError(detail::text("SinkTokens: tokens is ", tokens, ", expected 0 or more"));
    return *this;
  }
};
static_assert(AttentionMask<SinkTokens> && RangeMask<SinkTokens>);

/// Causal, but for a prefix of each row that every query of the row sees whole.
template <class B = Cpu>
struct PrefixLm {
  using composable_mask = void;
  TensorView<const std::int32_t, 1, B> lengths;  // [batch], or [1] for all rows

  RAPT_HOST_DEVICE constexpr bool operator()(index_t b, index_t, index_t q_pos,
                                             index_t kv_pos) const {
    return kv_pos <= q_pos || kv_pos < length(b);
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t b, index_t h, PositionRange q,
                                                  PositionRange kv) const {
    // If the last query does not see the first key, nobody sees anything; if the first query sees
    // the last key, everybody sees everything.
    if (!(*this)(b, h, q.last(), kv.begin)) return TileVerdict::skip;
    return (*this)(b, h, q.begin, kv.last()) ? TileVerdict::full : TileVerdict::partial;
  }
  RAPT_HOST_DEVICE constexpr PositionRange visible_range(index_t b, index_t, index_t q_pos) const {
    const index_t prefix = length(b);
    return {-PositionRange::kEndless, q_pos + 1 > prefix ? q_pos + 1 : prefix};
  }
  PrefixLm bind(const CallShape& call) const {
    detail::check_rows("PrefixLm", "lengths", lengths.extent(0), call.batch);
    return *this;
  }

 private:
  RAPT_HOST_DEVICE constexpr index_t length(index_t b) const {
    return lengths(lengths.extent(0) == 1 ? index_t{0} : b);
  }
};
template <TensorLike<1> X>
PrefixLm(const X&) -> PrefixLm<backend_t<X>>;
static_assert(AttentionMask<PrefixLm<>> && RangeMask<PrefixLm<>>);

/// Tokens packed into one row see only tokens of their own document, in both directions; beside
/// Causal, the earlier ones.
template <class B = Cpu>
struct SameDocument {
  using composable_mask = void;
  TensorView<const std::int32_t, 2, B> document_ids;  // [batch, seq], or [1, seq] for all rows
  bool ids_grow = false;  // the caller's word that ids never fall along a row: verdicts in O(1)

  RAPT_HOST_DEVICE constexpr bool operator()(index_t b, index_t, index_t q_pos,
                                             index_t kv_pos) const {
    const index_t seq = document_ids.extent(1);
    if (q_pos < 0 || q_pos >= seq || kv_pos < 0 || kv_pos >= seq) return false;  // of no document
    return id(b, q_pos) == id(b, kv_pos);
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t b, index_t, PositionRange q,
                                                  PositionRange kv) const {
    const PositionRange q_in = inside(q), kv_in = inside(kv);
    if (q_in.empty() || kv_in.empty()) return TileVerdict::skip;
    const Ids of_q = ids_in(b, q_in), of_kv = ids_in(b, kv_in);
    if (of_q.highest < of_kv.lowest || of_kv.highest < of_q.lowest) return TileVerdict::skip;
    const bool one = of_q.lowest == of_q.highest && of_kv.lowest == of_kv.highest;
    return one && q_in == q && kv_in == kv ? TileVerdict::full : TileVerdict::partial;
  }
  SameDocument bind(const CallShape& call) const {
    detail::check_rows("SameDocument", "document_ids", document_ids.extent(0), call.batch);
    if (document_ids.extent(1) < call.kv_len)
      throw ShapeError(
          detail::text("SameDocument: document_ids is ", detail::shape_text(document_ids.shape()),
                       ", expected at least ", call.kv_len, " ids a row = [batch, kv_len]"));
    return *this;
  }

 private:
  struct Ids {
    std::int32_t lowest, highest;
  };
  RAPT_HOST_DEVICE constexpr std::int32_t id(index_t b, index_t position) const {
    return document_ids(document_ids.extent(0) == 1 ? index_t{0} : b, position);
  }
  RAPT_HOST_DEVICE constexpr PositionRange inside(PositionRange range) const {
    const index_t seq = document_ids.extent(1);
    return {range.begin < 0 ? 0 : range.begin, range.end > seq ? seq : range.end};
  }
  RAPT_HOST_DEVICE constexpr Ids ids_in(index_t b, PositionRange range) const {
    if (ids_grow) return {id(b, range.begin), id(b, range.last())};
    Ids ids{id(b, range.begin), id(b, range.begin)};
    for (index_t position = range.begin + 1; position < range.end; ++position) {
      const std::int32_t next = id(b, position);
      if (next < ids.lowest) ids.lowest = next;
      if (next > ids.highest) ids.highest = next;
    }
    return ids;
  }
};
template <TensorLike<2> X>
SameDocument(const X&) -> SameDocument<backend_t<X>>;
template <TensorLike<2> X>
SameDocument(const X&, bool) -> SameDocument<backend_t<X>>;
static_assert(AttentionMask<SameDocument<>>);

}  // namespace rapt
