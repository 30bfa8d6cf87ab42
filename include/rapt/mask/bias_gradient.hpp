// The tables inside a score modifier, AdditiveBias and RelativeBias, as parameters: which one a
// modifier holds, and how the final score moves with an entry of it.
//
//   s' = g(f(s) + bias)         d s' / d bias = g'(f(s) + bias)
//
// The derivative is read from a dual number that starts at the bias instead of at s. A modifier is
// searched through `then`; a bias inside a lambda is not seen.
#pragma once

#include <type_traits>

#include "rapt/core/config.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/mask/dual.hpp"
#include "rapt/mask/score.hpp"

namespace rapt::detail {

/// How many biases of each kind a modifier holds.
template <class F>
struct BiasCount {
  static constexpr int kAdditive = 0, kRelative = 0;
};
template <class T, class B>
struct BiasCount<AdditiveBias<T, B>> {
  static constexpr int kAdditive = 1, kRelative = 0;
};
template <class T, class B>
struct BiasCount<RelativeBias<T, B>> {
  static constexpr int kAdditive = 0, kRelative = 1;
};
template <class F, class G>
struct BiasCount<Then<F, G>> {
  static constexpr int kAdditive = BiasCount<F>::kAdditive + BiasCount<G>::kAdditive;
  static constexpr int kRelative = BiasCount<F>::kRelative + BiasCount<G>::kRelative;
};

/// AdditiveBias where kAdditive, else RelativeBias.
template <bool kAdditive, class F>
inline constexpr int bias_count = kAdditive ? BiasCount<std::remove_const_t<F>>::kAdditive
                                            : BiasCount<std::remove_const_t<F>>::kRelative;

template <class F>
inline constexpr bool is_then = false;
template <class F, class G>
inline constexpr bool is_then<Then<F, G>> = true;

/// The bias itself; F holds one.
template <bool kAdditive, class F>
RAPT_HOST_DEVICE constexpr const auto& bias_in(const F& f) {
  static_assert(bias_count<kAdditive, F> == 1, "the modifier holds one such bias");
  if constexpr (!is_then<F>) {
    return f;
  } else if constexpr (bias_count<kAdditive, decltype(f.first)> == 1) {
    return bias_in<kAdditive>(f.first);
  } else {
    return bias_in<kAdditive>(f.second);
  }
}

/// The score, with the derivative of its bias set to 1 where it joins.
template <bool kAdditive, class F, class S>
RAPT_HOST_DEVICE constexpr S score_along_bias(const F& f, S s, index_t b, index_t h, index_t q_pos,
                                              index_t kv_pos) {
  if constexpr (is_then<F>) {
    return score_along_bias<kAdditive>(f.second,
                                       score_along_bias<kAdditive>(f.first, s, b, h, q_pos, kv_pos),
                                       b, h, q_pos, kv_pos);
  } else {
    S moved = static_cast<S>(f(s, b, h, q_pos, kv_pos));
    if constexpr (bias_count<kAdditive, F> == 1) moved.derivative += 1;
    return moved;
  }
}

/// d score / d bias at the scaled score s.
template <bool kAdditive, class F, class T>
RAPT_HOST_DEVICE constexpr T bias_derivative(const F& f, T s, index_t b, index_t h, index_t q_pos,
                                             index_t kv_pos) {
  return score_along_bias<kAdditive>(f, Dual<T>{s, T{0}}, b, h, q_pos, kv_pos).derivative;
}

/// The entry of `gradient`, shaped like the bias's table, that a pair of positions reads.
template <class T, class B, class A>
RAPT_HOST_DEVICE constexpr A& bias_entry(const AdditiveBias<T, B>& bias,
                                         const TensorView<A, 4, B>& gradient, index_t b, index_t h,
                                         index_t q_pos, index_t kv_pos) {
  return gradient(shared_index(gradient.extent(0), b), shared_index(gradient.extent(1), h),
                  q_pos - bias.row_offset, kv_pos);
}
/// The column of a pair of positions in a RelativeBias's table.
template <class T, class B>
RAPT_HOST_DEVICE constexpr index_t bias_column(const RelativeBias<T, B>& bias, index_t q_pos,
                                               index_t kv_pos) {
  const index_t reach = bias.table.extent(1) / 2, at = kv_pos - q_pos;
  return (at < -reach ? -reach : at > reach ? reach : at) + reach;
}

}  // namespace rapt::detail
