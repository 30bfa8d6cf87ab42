// Composition of masks: `&`, `|` and `~` join what is visible, and the verdicts on tiles with it.
//
//   auto mask = Causal{} & (SlidingWindow{512} | SinkTokens{4}) & SameDocument{document_ids};
//   auto sparse = Causal{} & [](index_t, index_t, index_t q, index_t kv) { return (q - kv) % 2 ==
//   0; };
//
//   verdict of a & b:  skip if either skips, full if both are full, else partial
//   verdict of a | b:  full if either is full, skip if both skip, else partial
//   verdict of ~a:     skip and full change places
//
// The operators exist where at least one side is a mask of this library (or a type that opts in
// with a member `using composable_mask = void;`), the other may be any mask, a lambda included; two
// bare lambdas are joined by naming one of them a mask: `as_mask(f) & g`.
//
// A lambda that should run on the GPU has typed parameters and is marked __host__ __device__.
#pragma once

#include "rapt/mask/concept.hpp"

namespace rapt {

/// A mask that may stand beside `&`, `|` and `~`.
template <class M>
concept ComposableMask = AttentionMask<M> && requires {
  typename M::composable_mask;
};

template <class L, class R>
concept ComposableMasks = AttentionMask<L> && AttentionMask<R> &&
    (ComposableMask<L> || ComposableMask<R>);

namespace detail {

RAPT_HOST_DEVICE constexpr TileVerdict verdict_of_and(TileVerdict a, TileVerdict b) {
  return a < b ? a : b;  // skip < partial < full: the stricter of the two
}
RAPT_HOST_DEVICE constexpr TileVerdict verdict_of_or(TileVerdict a, TileVerdict b) {
  return a < b ? b : a;
}
RAPT_HOST_DEVICE constexpr TileVerdict verdict_of_not(TileVerdict a) {
  return a == TileVerdict::skip   ? TileVerdict::full
         : a == TileVerdict::full ? TileVerdict::skip
                                  : TileVerdict::partial;
}

}  // namespace detail

/// A lambda, function object or function pointer by the name of mask, so that operators apply to
/// it.
template <AttentionMask F>
struct MaskFunction {
  using composable_mask = void;
  F function;

  RAPT_HOST_DEVICE constexpr bool operator()(index_t b, index_t h, index_t q_pos,
                                             index_t kv_pos) const {
    return function(b, h, q_pos, kv_pos);
  }
};

template <AttentionMask F>
constexpr MaskFunction<F> as_mask(F function) {
  return {std::move(function)};
}

/// Visible where both are.
template <AttentionMask L, AttentionMask R>
struct And {
  using composable_mask = void;
  static constexpr bool kReadsCallRow = reads_call_row<L> || reads_call_row<R>;
  L left;
  R right;

  RAPT_HOST_DEVICE constexpr bool operator()(index_t b, index_t h, index_t q_pos,
                                             index_t kv_pos) const {
    return left(b, h, q_pos, kv_pos) && right(b, h, q_pos, kv_pos);
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t b, index_t h, PositionRange q,
                                                  PositionRange kv) const {
    const TileVerdict verdict = rapt::classify(left, b, h, q, kv);
    if (verdict == TileVerdict::skip) return verdict;  // saves a look into the right side's tables
    return detail::verdict_of_and(verdict, rapt::classify(right, b, h, q, kv));
  }
  RAPT_HOST_DEVICE constexpr PositionRange visible_range(index_t b, index_t h, index_t q_pos) const
      requires(RangeMask<L>&& RangeMask<R>) {
    const PositionRange l = left.visible_range(b, h, q_pos), r = right.visible_range(b, h, q_pos);
    return {l.begin > r.begin ? l.begin : r.begin, l.end < r.end ? l.end : r.end};
  }
  RAPT_HOST_DEVICE constexpr bool visible_run(index_t b, index_t h, index_t q_pos, PositionRange of,
                                              PositionRange& run) const {
    return rapt::visible_run(left, b, h, q_pos, of, run) &&
           rapt::visible_run(right, b, h, q_pos, run, run);
  }
  constexpr auto bind(const CallShape& call) const {
    return rapt::And<decltype(bind_call(left, call)), decltype(bind_call(right, call))>{
        bind_call(left, call), bind_call(right, call)};
  }
};

/// Visible where at least one is.
template <AttentionMask L, AttentionMask R>
struct Or {
  using composable_mask = void;
  static constexpr bool kReadsCallRow = reads_call_row<L> || reads_call_row<R>;
  L left;
  R right;

  RAPT_HOST_DEVICE constexpr bool operator()(index_t b, index_t h, index_t q_pos,
                                             index_t kv_pos) const {
    return left(b, h, q_pos, kv_pos) || right(b, h, q_pos, kv_pos);
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t b, index_t h, PositionRange q,
                                                  PositionRange kv) const {
    const TileVerdict verdict = rapt::classify(left, b, h, q, kv);
    if (verdict == TileVerdict::full) return verdict;
    return detail::verdict_of_or(verdict, rapt::classify(right, b, h, q, kv));
  }
  /// Of what both sides see, runs that overlap or touch are one.
  RAPT_HOST_DEVICE constexpr bool visible_run(index_t b, index_t h, index_t q_pos, PositionRange of,
                                              PositionRange& run) const {
    PositionRange l, r;
    if (!rapt::visible_run(left, b, h, q_pos, of, l) ||
        !rapt::visible_run(right, b, h, q_pos, of, r))
      return false;
    if (l.empty() || r.empty()) {
      run = l.empty() ? r : l;
      return true;
    }
    run = {l.begin < r.begin ? l.begin : r.begin, l.end > r.end ? l.end : r.end};
    return l.begin <= r.end && r.begin <= l.end;
  }
  constexpr auto bind(const CallShape& call) const {
    return rapt::Or<decltype(bind_call(left, call)), decltype(bind_call(right, call))>{
        bind_call(left, call), bind_call(right, call)};
  }
};

/// Visible where the other is not.
template <AttentionMask M>
struct Not {
  using composable_mask = void;
  static constexpr bool kReadsCallRow = reads_call_row<M>;
  M mask;

  RAPT_HOST_DEVICE constexpr bool operator()(index_t b, index_t h, index_t q_pos,
                                             index_t kv_pos) const {
    return !mask(b, h, q_pos, kv_pos);
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t b, index_t h, PositionRange q,
                                                  PositionRange kv) const {
    return detail::verdict_of_not(rapt::classify(mask, b, h, q, kv));
  }
  constexpr auto bind(const CallShape& call) const {
    return rapt::Not<decltype(bind_call(mask, call))>{bind_call(mask, call)};
  }
};

template <class L, class R>
requires ComposableMasks<L, R> RAPT_HOST_DEVICE constexpr And<L, R> operator&(L left, R right) {
  return {std::move(left), std::move(right)};
}

template <class L, class R>
requires ComposableMasks<L, R> RAPT_HOST_DEVICE constexpr Or<L, R> operator|(L left, R right) {
  return {std::move(left), std::move(right)};
}

template <ComposableMask M>
RAPT_HOST_DEVICE constexpr Not<M> operator~(M mask) {
  return {std::move(mask)};
}

}  // namespace rapt
