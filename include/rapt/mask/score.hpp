// Score modifiers: what happens to a scaled score before the softmax. A modifier is any callable
//
//   score(s, b, h, q_pos, kv_pos) -> s'      s = scale * dot(q, k); positions as in
//   mask/concept.hpp
//
// that works for float, double and, where gradients are wanted, a dual number (mask/dual.hpp):
// write it as a formula in s with a generic first parameter. What ships:
//
//   Identity                 s
//   SoftCap{c}               c tanh(s / c)
//   Alibi{slopes}            s - slopes[h] |q_pos - kv_pos|                      slopes [heads]
//   RelativeBias{table}      s + table[h, clamp(kv_pos - q_pos, -R, R) + R]      table [heads | 1,
//   2 R + 1] AdditiveBias{table}      s + table[b, h, i, j]                  table [batch | 1,
//   heads | 1, q_len, kv_len]
//
// i is the row of the call, q_pos - (kv_len - q_len), as for DenseMask, and j the key's position.
// Relative positions saturate at R, so a table of buckets (T5) is written out once, an entry a
// distance.
//
// `then(f, g, ...)` applies modifiers in the order written: then(SoftCap{50}, Alibi{slopes}) caps
// first, adds the bias to the capped score after, which is the order of Gemma 2 and of specs in
// general.
//
// Errors: a cap that is not positive is a ValueError, a table that does not cover the call a
// ShapeError, both when a call binds the modifier.
//
// Sources: soft-cap: Gemma Team 2024, arXiv:2408.00118, sec. 2. ALiBi: Press et al. 2021,
// arXiv:2108.12409. Relative bias: Shaw et al. 2018, arXiv:1803.02155; Raffel et al. 2019,
// arXiv:1910.10683.
#pragma once

#include <cmath>
#include <concepts>
#include <utility>

#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/mask/by_row.hpp"
#include "rapt/mask/concept.hpp"
#include "rapt/mask/dual.hpp"

namespace rapt {

/// Changes a score. The result is a number again and never a bool, so a mask cannot pass for a
/// score.
template <class F>
concept ScoreModifier = std::copy_constructible<F> &&
    requires(const F& f, float s, index_t b, index_t h, index_t q_pos, index_t kv_pos) {
  { f(s, b, h, q_pos, kv_pos) } -> std::convertible_to<float>;
  requires !std::same_as<decltype(f(s, b, h, q_pos, kv_pos)), bool>;
};

/// A modifier whose derivative a dual number can carry.
template <class F, class T>
concept DifferentiableScore = ScoreModifier<F> &&
    requires(const F& f, Dual<T> s, index_t b, index_t h, index_t q_pos, index_t kv_pos) {
  { f(s, b, h, q_pos, kv_pos) } -> std::convertible_to<Dual<T>>;
};

/// d score / d s at s.
template <class F, std::floating_point T>
requires DifferentiableScore<F, T> RAPT_HOST_DEVICE constexpr T score_derivative(
    const F& f, T s, index_t b, index_t h, index_t q_pos, index_t kv_pos) {
  return Dual<T>(f(Dual<T>{s, T{1}}, b, h, q_pos, kv_pos)).derivative;
}

/// The score as it is.
struct Identity {
  template <class S>
  RAPT_HOST_DEVICE constexpr S operator()(S s, index_t, index_t, index_t, index_t) const {
    return s;
  }
};
static_assert(DifferentiableScore<Identity, float>);

/// Squeezes scores smoothly into (-cap, cap).
struct SoftCap {
  double cap;

  template <class S>
  RAPT_HOST_DEVICE S operator()(S s, index_t, index_t, index_t, index_t) const {
    using std::tanh;
    const auto c = static_cast<detail::scalar_of<S>>(cap);
    return c * tanh(s / c);
  }
  constexpr SoftCap bind(const CallShape&) const {
    if (!(cap > 0))
      throw ValueError(detail::text("SoftCap: cap is ", cap, ", expected a positive number"));
    return *this;
  }
};
static_assert(DifferentiableScore<SoftCap, float>);

/// Attention with linear biases: the farther the key, the lower its score.
template <class T = float, class B = Cpu>
struct Alibi {
  TensorView<const T, 1, B> slopes;  // [heads]

  template <class S>
  RAPT_HOST_DEVICE constexpr S operator()(S s, index_t, index_t h, index_t q_pos,
                                          index_t kv_pos) const {
    using Scalar = detail::scalar_of<S>;
    return s -
           static_cast<Scalar>(slopes(h)) * static_cast<Scalar>(detail::distance(q_pos, kv_pos));
  }
  Alibi bind(const CallShape& call) const {
    if (slopes.extent(0) < (call.heads == 0 ? 1 : call.heads))
      throw ShapeError(detail::text("Alibi: slopes is ", detail::shape_text(slopes.shape()),
                                    ", expected [", call.heads, "] = [heads]"));
    return *this;
  }
};
template <TensorLike<1> X>
Alibi(const X&) -> Alibi<element_t<X>, backend_t<X>>;
static_assert(DifferentiableScore<Alibi<>, float>);

/// The slopes of the ALiBi authors: 2^(-8 (h + 1) / heads) for a power of two. Otherwise those of
/// the next lower power of two, followed by every other slope of twice as many heads.
template <class T = float>
Tensor<T, 1> alibi_slopes(index_t heads) {
  if (heads < 1)
    throw ValueError(detail::text("alibi_slopes: heads is ", heads, ", expected at least 1"));
  index_t power = 1;
  while (power <= heads / 2) power *= 2;
  const auto slope = [](index_t h, index_t of) {
    return std::exp2(-8.0 * static_cast<double>(h + 1) / static_cast<double>(of));
  };
  Tensor<T, 1> slopes({heads});
  for (index_t h = 0; h < heads; ++h)
    slopes(h) = static_cast<T>(h < power ? slope(h, power) : slope(2 * (h - power), 2 * power));
  return slopes;
}

/// A learned number for each distance between query and key, saturating at the table's ends.
template <class T = float, class B = Cpu>
struct RelativeBias {
  TensorView<const T, 2, B> table;  // [heads | 1, 2 R + 1]; entry R is the key at the query itself

  template <class S>
  RAPT_HOST_DEVICE constexpr S operator()(S s, index_t, index_t h, index_t q_pos,
                                          index_t kv_pos) const {
    const index_t reach = table.extent(1) / 2;
    index_t at = kv_pos - q_pos;
    at = (at < -reach ? -reach : at > reach ? reach : at) + reach;
    const T bias = table(detail::shared_index(table.extent(0), h), at);
    return s + static_cast<detail::scalar_of<S>>(bias);
  }
  RelativeBias bind(const CallShape& call) const {
    const index_t rows = table.extent(0);
    if (table.extent(1) % 2 == 0 || rows == 0 || (rows != 1 && rows < call.heads))
      throw ShapeError(detail::text("RelativeBias: table is ", detail::shape_text(table.shape()),
                                    ", expected [1 or ", call.heads,
                                    ", an odd number] = [heads, 2 R + 1]"));
    return *this;
  }
};
template <TensorLike<2> X>
RelativeBias(const X&) -> RelativeBias<element_t<X>, backend_t<X>>;
static_assert(DifferentiableScore<RelativeBias<>, float>);

/// A number for every pair of a call.
template <class T = float, class B = Cpu>
struct AdditiveBias {
  static constexpr bool kReadsCallRow = true;
  TensorView<const T, 4, B> table;  // [batch | 1, heads | 1, q_len, kv_len]
  index_t row_offset = 0;           // position of row 0; set by bind

  template <class S>
  RAPT_HOST_DEVICE constexpr S operator()(S s, index_t b, index_t h, index_t q_pos,
                                          index_t kv_pos) const {
    const T bias = table(detail::shared_index(table.extent(0), b),
                         detail::shared_index(table.extent(1), h), q_pos - row_offset, kv_pos);
    return s + static_cast<detail::scalar_of<S>>(bias);
  }
  AdditiveBias bind(const CallShape& call) const {
    detail::check_table("AdditiveBias", "table", table, call, call.q_len, call.kv_len,
                        "[batch, heads, q_len, kv_len]");
    return {table, call.kv_len - call.q_len};
  }
};
template <TensorLike<4> X>
AdditiveBias(const X&) -> AdditiveBias<element_t<X>, backend_t<X>>;
static_assert(DifferentiableScore<AdditiveBias<>, float>);

/// First one modifier, then another. Made by `then`.
template <ScoreModifier F, ScoreModifier G>
struct Then {
  static constexpr bool kReadsCallRow = reads_call_row<F> || reads_call_row<G>;
  F first;
  G second;

  template <class S>
  RAPT_HOST_DEVICE constexpr S operator()(S s, index_t b, index_t h, index_t q_pos,
                                          index_t kv_pos) const {
    return second(static_cast<S>(first(s, b, h, q_pos, kv_pos)), b, h, q_pos, kv_pos);
  }
  constexpr auto bind(const CallShape& call) const {
    return rapt::Then<decltype(bind_call(first, call)), decltype(bind_call(second, call))>{
        bind_call(first, call), bind_call(second, call)};
  }
};

/// Modifiers in the order they are applied; lambdas are welcome.
template <ScoreModifier F>
constexpr F then(F f) {
  return f;
}
template <ScoreModifier F, ScoreModifier G, ScoreModifier... Rest>
constexpr auto then(F f, G g, Rest... rest) {
  return then(Then<F, G>{std::move(f), std::move(g)}, std::move(rest)...);
}

}  // namespace rapt
