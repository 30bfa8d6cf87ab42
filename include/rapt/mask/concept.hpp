// Masks: which keys a query may read. A mask is any callable that answers one question with a bool:
//
//   mask(b, h, q_pos, kv_pos)          may the query at position q_pos of row b, head h, see
//   kv_pos?
//
// Positions count tokens of the sequence from 0; query i of a call stands at kv_len - q_len + i, so
// a position is negative when q_len > kv_len. A mask may also judge a whole rectangle of positions,
//
//   mask.classify(b, h, q, kv) -> TileVerdict       q and kv are half-open ranges, neither is empty
//
// and a kernel then never touches a `skip` tile and runs a `full` one without a mask test. The
// verdict may be cautious (`partial` is always right) but never wrong: skip means that no pair of
// the rectangle is visible, full that every pair is. A mask without classify, such as a bare
// lambda, is `partial`.
//
// A mask whose queries each see one run of keys may give that run, clipped to the keys or not:
//
//   mask.visible_range(b, h, q_pos) -> PositionRange
//
// and a kernel cuts a partial tile at its ends instead of asking pair by pair. A mask that knows
// only of some positions whether they hold one run (first tokens and a window: of most tiles) says
//
//   mask.visible_run(b, h, q_pos, of, run) -> bool     run: what is seen of the range `of`, if true
//
// Masks travel by value into kernels of both backends: keep them plain data (numbers and views),
// with RAPT_HOST_DEVICE on the call operator.
#pragma once

#include <concepts>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <utility>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"

namespace rapt {

/// What is known about a rectangle of (query, key) positions.
enum class TileVerdict : std::uint8_t { skip, partial, full };

/// Positions begin, begin + 1, ..., end - 1.
struct PositionRange {
  index_t begin = 0;
  index_t end = 0;

  /// Beyond every position a sequence can have, and far from overflow.
  static constexpr index_t kEndless = index_t{1} << 62;

  RAPT_HOST_DEVICE constexpr bool empty() const { return begin >= end; }
  RAPT_HOST_DEVICE constexpr index_t last() const { return end - 1; }
  friend constexpr bool operator==(const PositionRange&, const PositionRange&) = default;
};

/// Says which keys a query may read. The answer is exactly `bool`, so a bias tensor or a score
/// cannot pass for a mask.
template <class M>
concept AttentionMask = std::copy_constructible<M> &&
    requires(const M& mask, index_t b, index_t h, index_t q_pos, index_t kv_pos) {
  { mask(b, h, q_pos, kv_pos) } -> std::same_as<bool>;
};

/// The verdict of any mask on any rectangle: `skip` for an empty one, the mask's own where it gives
/// one.
template <AttentionMask M>
RAPT_HOST_DEVICE constexpr TileVerdict classify(const M& mask, index_t b, index_t h,
                                                PositionRange q, PositionRange kv) {
  if (q.empty() || kv.empty()) return TileVerdict::skip;
  if constexpr (requires {
                  { mask.classify(b, h, q, kv) } -> std::same_as<TileVerdict>;
                }) {
    return mask.classify(b, h, q, kv);
  } else {
    return TileVerdict::partial;
  }
}

/// A mask that answers with the one run of keys that a query sees.
template <class M>
concept RangeMask = AttentionMask<M> &&
    requires(const M& mask, index_t b, index_t h, index_t q_pos) {
  { mask.visible_range(b, h, q_pos) } -> std::same_as<PositionRange>;
};

/// Whether what a query sees of the positions `of` is known to be one run, perhaps an empty one,
/// and which.
template <AttentionMask M>
RAPT_HOST_DEVICE constexpr bool visible_run(const M& mask, index_t b, index_t h, index_t q_pos,
                                            PositionRange of, PositionRange& run) {
  if constexpr (RangeMask<M>) {
    const PositionRange seen = mask.visible_range(b, h, q_pos);
    run = {seen.begin > of.begin ? seen.begin : of.begin, seen.end < of.end ? seen.end : of.end};
    return true;
  } else if constexpr (requires { mask.visible_run(b, h, q_pos, of, run); }) {
    return mask.visible_run(b, h, q_pos, of, run);
  } else {
    return false;
  }
}

/// Whether a mask is built of runs of positions, and so most likely the same for all heads.
template <class M>
inline constexpr bool knows_runs = RangeMask<M> || requires(const M& mask, PositionRange range) {
  mask.visible_run(0, 0, 0, range, range);
};

/// The sizes of the call that a mask or score is used in. Ragged batches bind once per sequence,
/// with that sequence's lengths. A batch or heads of 0 is not known, and not checked.
struct CallShape {
  index_t q_len = 0;
  index_t kv_len = 0;
  index_t batch = 0;
  index_t heads = 0;
};

/// The mask or score as one call needs it: checked against the call's sizes where it can be wrong,
/// and, where it is read by the row of the call rather than by position, told at which position row
/// 0 stands. Everything else comes back unchanged. Attention calls this on the host before a kernel
/// starts.
template <class F>
constexpr auto bind_call(const F& f, const CallShape& call) {
  if constexpr (requires { f.bind(call); }) {
    return f.bind(call);
  } else {
    return f;
  }
}

template <class F>
constexpr auto bind_call(const F& f, index_t q_len, index_t kv_len) {
  return bind_call(f, CallShape{.q_len = q_len, .kv_len = kv_len});
}

/// True for masks and scores that look up the row of the call, q_pos - (kv_len - q_len), in a
/// table. They make sense only while positions follow the rows, so not with explicit query
/// positions.
template <class F>
inline constexpr bool reads_call_row = requires {
  requires F::kReadsCallRow;
};

namespace detail {

/// |a - b| of any two positions, without overflow.
RAPT_HOST_DEVICE constexpr std::uint64_t distance(index_t a, index_t b) {
  const auto x = static_cast<std::uint64_t>(a), y = static_cast<std::uint64_t>(b);
  return a > b ? x - y : y - x;
}

/// floor(a / b) for b > 0; C++ rounds towards zero, which is wrong for the negative positions.
RAPT_HOST_DEVICE constexpr index_t floor_div(index_t a, index_t b) {
  return a / b - (a % b < 0 ? 1 : 0);
}

/// A table that is read by batch row, or by head, has one entry for all or at least one for each.
inline void check_rows(std::string_view mask, std::string_view table, index_t got, index_t wanted) {
  if (got == 1 || (wanted == 0 ? got > 0 : got >= wanted)) return;
  throw ShapeError(
      text(mask, ": ", table, " is for ", got, " rows, expected 1 or ", wanted, " = batch"));
}

}  // namespace detail
}  // namespace rapt
