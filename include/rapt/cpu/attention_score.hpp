// Score modifiers on the CPU, a row of scores at a time:
//
//   s[j] = score(scale s[j], b, h, q_pos, position of key j)       d[j] *= d s'/d s, for gradients
//
// What ships is vector code: SoftCap, the biases that are added (Alibi, RelativeBias,
// AdditiveBias), and compositions of these by `then`. Any other modifier is asked key by key, in
// loops of known length, which a compiler turns into vector code where the formula allows it; so
// is every modifier where the caller gave the keys' positions. A modifier may be asked about a pair
// that the mask hides, but never about a key at a negative position, which is no key.
//
//   RelativeBias, one row:   table[h, 0] | table[h, i], table[h, i + 1], ... | table[h, 2 R]
//                            far before        as it lies in memory             far behind
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/simd.hpp"
#include "rapt/mask/dual.hpp"
#include "rapt/mask/score.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

template <class Score>
inline constexpr bool is_identity = std::is_same_v<Score, Identity>;

/// What of a scale is folded into q, into the modifier and into the exponent. A score that no
/// modifier changes is, if Product::kScalesQueries, an exponent of 2 as it stands in a tile; else
/// it stays a dot product, but for the scale's sign.
template <class A, class Score, class Product>
struct ScoreUnits {
  static constexpr bool kExponents = is_identity<Score> && Product::kScalesQueries;

  A scale;
  A q_factor() const {
    if (kExponents) return scale * kLog2E<A>;
    return is_identity<Score> && scale < 0 ? A(-1) : A(1);
  }
  /// From a score as it stands in a tile to natural units, and to an exponent of 2.
  A natural() const { return kExponents ? kLn2<A> : is_identity<Score> ? std::abs(scale) : A(1); }
  A unit() const { return kExponents ? A(1) : natural() * kLog2E<A>; }
};

/// The pairs of one row: query q_pos of head h in sequence b, and keys.
struct ScoreRow {
  index_t b, h, q_pos;
  KeySpan keys;
};

// ---- modifiers as vector code: apply() and whether it changes nothing but the value ----

template <class Score>
struct RowModifier {
  static constexpr bool kVector = false, kAdditive = false;
};

template <>
struct RowModifier<Identity> {
  static constexpr bool kVector = true, kAdditive = true;
  template <class A>
  static void apply(A* s, A*, const Identity&, A scale, const ScoreRow& row) {
    using V = Vec<A>;
    const index_t n = row.keys.count;
    for (index_t j = 0; scale != A(1) && j < n; j += V::kLanes)
      store_lanes(load_lanes<A>(s + j, n - j) * V::broadcast(scale), s + j, n - j);
  }
};

/// s = cap tanh(scale s / cap), which the standard library would do one by one; d *= 1 - tanh^2.
template <>
struct RowModifier<SoftCap> {
  static constexpr bool kVector = true, kAdditive = false;
  template <class A>
  static void apply(A* s, A* derivative, const SoftCap& score, A scale, const ScoreRow& row) {
    using V = Vec<A>;
    const A cap = static_cast<A>(score.cap);
    const V inner = V::broadcast(scale / cap), outer = V::broadcast(cap);
    const V one = V::broadcast(A(1));
    const index_t n = row.keys.count;
    for (index_t j = 0; j < n; j += V::kLanes) {
      const V t = tanh(inner * load_lanes<A>(s + j, n - j));
      store_lanes(outer * t, s + j, n - j);
      if (derivative != nullptr)
        store_lanes(load_lanes<A>(derivative + j, n - j) * (one - t * t), derivative + j, n - j);
    }
  }
};

/// s = scale s - slope |q_pos - kv_pos|. Distances below 2^24 are exact.
template <class T, class B>
struct RowModifier<Alibi<T, B>> {
  static constexpr bool kVector = true, kAdditive = true;
  template <class A>
  static void apply(A* s, A*, const Alibi<T, B>& score, A scale, const ScoreRow& row) {
    using V = Vec<A>;
    A lanes[V::kLanes];
    for (int i = 0; i < V::kLanes; ++i) lanes[i] = static_cast<A>(i);
    const V lane = V::load(lanes), factor = V::broadcast(scale);
    const V slope = V::broadcast(-static_cast<A>(score.slopes(row.h)));
    const index_t n = row.keys.count;
    for (index_t j = 0; j < n; j += V::kLanes) {
      const V ahead = lane - V::broadcast(static_cast<A>(row.q_pos - row.keys.begin - j));
      const V distance = max(ahead, V::zero() - ahead);
      store_lanes(fma(slope, distance, load_lanes<A>(s + j, n - j) * factor), s + j, n - j);
    }
  }
};

/// s = scale s + bias, n biases `step` apart or, at a step of 0, one for all.
template <class A, class T>
void add_biases(A* s, const T* bias, index_t step, index_t n, A scale) {
  using V = Vec<A>;
  const V factor = V::broadcast(scale);
  if (step == 0) {
    const V same = V::broadcast(n > 0 ? static_cast<A>(*bias) : A(0));
    for (index_t j = 0; j < n; j += V::kLanes)
      store_lanes(fma(load_lanes<A>(s + j, n - j), factor, same), s + j, n - j);
    return;
  }
  if constexpr (requires { load_lanes<A>(bias, n); }) {
    if (step == 1) {
      for (index_t j = 0; j < n; j += V::kLanes)
        store_lanes(fma(load_lanes<A>(s + j, n - j), factor, load_lanes<A>(bias + j, n - j)), s + j,
                    n - j);
      return;
    }
  }
  for (index_t j = 0; j < n; ++j) s[j] = s[j] * scale + static_cast<A>(bias[j * step]);
}

template <class T, class B>
struct RowModifier<RelativeBias<T, B>> {
  static constexpr bool kVector = true, kAdditive = true;
  template <class A>
  static void apply(A* s, A*, const RelativeBias<T, B>& score, A scale, const ScoreRow& row) {
    const auto& table = score.table;
    const index_t n = row.keys.count, last = table.extent(1) - 1, step = table.stride(1);
    const T* const entries =
        table.data() + rapt::detail::shared_index(table.extent(0), row.h) * table.stride(0);
    const index_t first = row.keys.begin - row.q_pos + last / 2;  // of key 0, without saturation
    const index_t before = std::clamp<index_t>(-first, 0, n);
    const index_t inside = std::clamp<index_t>(last + 1 - first, before, n);
    add_biases(s, entries, 0, before, scale);
    add_biases(s + before, entries + (first + before) * step, step, inside - before, scale);
    add_biases(s + inside, entries + last * step, 0, n - inside, scale);
  }
};

template <class T, class B>
struct RowModifier<AdditiveBias<T, B>> {
  static constexpr bool kVector = true, kAdditive = true;
  template <class A>
  static void apply(A* s, A*, const AdditiveBias<T, B>& score, A scale, const ScoreRow& row) {
    const auto& table = score.table;
    const T* const entries =
        table.data() + rapt::detail::shared_index(table.extent(0), row.b) * table.stride(0) +
        rapt::detail::shared_index(table.extent(1), row.h) * table.stride(1) +
        (row.q_pos - score.row_offset) * table.stride(2) + row.keys.begin * table.stride(3);
    add_biases(s, entries, table.stride(3), row.keys.count, scale);
  }
};

template <class F, class G>
struct RowModifier<Then<F, G>> {
  static constexpr bool kVector = RowModifier<F>::kVector && RowModifier<G>::kVector;
  static constexpr bool kAdditive = RowModifier<F>::kAdditive && RowModifier<G>::kAdditive;
  template <class A>
  static void apply(A* s, A* derivative, const Then<F, G>& score, A scale, const ScoreRow& row) {
    RowModifier<F>::apply(s, derivative, score.first, scale, row);
    RowModifier<G>::apply(s, derivative, score.second, A(1), row);
  }
};

// ---- a row ----

/// s[j] = score(scale s[j], ...) of every key of the row.
template <class A, class Score>
void modify_row(A* s, const Score& score, A scale, const ScoreRow& row) {
  if constexpr (is_identity<Score>) {
    return;
  } else if (RowModifier<Score>::kVector && row.keys.given == nullptr) {
    if constexpr (RowModifier<Score>::kVector)
      RowModifier<Score>::apply(s, static_cast<A*>(nullptr), score, scale, row);
  } else {
    const KeySpan& keys = row.keys;
    index_t j = 0;
    if (keys.given == nullptr) {
      constexpr index_t kChunk = Vec<A>::kLanes;  // a loop of known length can become vector code
      for (; j + kChunk <= keys.count; j += kChunk)
        for (index_t c = 0; c < kChunk; ++c)
          s[j + c] =
              static_cast<A>(score(s[j + c] * scale, row.b, row.h, row.q_pos, keys.begin + j + c));
    }
    for (; j < keys.count; ++j) {
      const index_t p = keys.position(j);
      if (p >= 0) s[j] = static_cast<A>(score(s[j] * scale, row.b, row.h, row.q_pos, p));
    }
  }
}

/// The same with d[j] = d s' / d s, where `seen(j)`; other keys keep their score and d[j] = 0.
template <class A, class Score, class Seen>
void modify_row_with_derivative(A* s, A* derivative, const Score& score, A scale,
                                const ScoreRow& row, Seen seen) {
  for (index_t j = 0; j < row.keys.count; ++j) {
    const index_t p = row.keys.position(j);
    derivative[j] = 0;
    if (p < 0 || !seen(j)) continue;
    const Dual<A> z = score(Dual<A>{s[j] * scale, A(1)}, row.b, row.h, row.q_pos, p);
    s[j] = z.value;
    derivative[j] = z.derivative;
  }
}

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
