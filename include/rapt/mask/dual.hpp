// A dual number: a value and its derivative, carried together through ordinary arithmetic.
//
//   (x + x'e) (y + y'e) = x y + (x' y + x y') e,      e^2 = 0
//
// The backward pass calls a score modifier with Dual{s, 1} and reads d score / d s from the result,
// so that a modifier is written once, as a formula, and never differentiated by hand.
//
// Source: Clifford 1873; forward mode in Griewank, Walther, "Evaluating Derivatives", 2008, ch. 3.
#pragma once

#include <cmath>
#include <concepts>
#include <type_traits>

#include "rapt/core/config.hpp"

namespace rapt {

template <std::floating_point T>
struct Dual {
  using scalar_type = T;
  T value{};
  T derivative{};

  constexpr Dual() = default;
  /// A constant; any number, so that `s * 2` and `s + 0.5` work for every T.
  template <class N>
  requires std::is_arithmetic_v<N> RAPT_HOST_DEVICE constexpr Dual(N constant)
      : value(static_cast<T>(constant)) {}
  RAPT_HOST_DEVICE constexpr Dual(T v, T d) : value(v), derivative(d) {}

  RAPT_HOST_DEVICE friend constexpr Dual operator+(Dual a) { return a; }
  RAPT_HOST_DEVICE friend constexpr Dual operator-(Dual a) { return {-a.value, -a.derivative}; }
  RAPT_HOST_DEVICE friend constexpr Dual operator+(Dual a, Dual b) {
    return {a.value + b.value, a.derivative + b.derivative};
  }
  RAPT_HOST_DEVICE friend constexpr Dual operator-(Dual a, Dual b) {
    return {a.value - b.value, a.derivative - b.derivative};
  }
  RAPT_HOST_DEVICE friend constexpr Dual operator*(Dual a, Dual b) {
    return {a.value * b.value, a.derivative * b.value + a.value * b.derivative};
  }
  RAPT_HOST_DEVICE friend constexpr Dual operator/(Dual a, Dual b) {
    const T quotient = a.value / b.value;
    return {quotient, (a.derivative - quotient * b.derivative) / b.value};
  }
  RAPT_HOST_DEVICE constexpr Dual& operator+=(Dual b) { return *this = *this + b; }
  RAPT_HOST_DEVICE constexpr Dual& operator-=(Dual b) { return *this = *this - b; }
  RAPT_HOST_DEVICE constexpr Dual& operator*=(Dual b) { return *this = *this * b; }
  RAPT_HOST_DEVICE constexpr Dual& operator/=(Dual b) { return *this = *this / b; }

  // Branches of a formula are taken by value; its derivative is that of the branch.
  RAPT_HOST_DEVICE friend constexpr bool operator==(Dual a, Dual b) { return a.value == b.value; }
  RAPT_HOST_DEVICE friend constexpr auto operator<=>(Dual a, Dual b) { return a.value <=> b.value; }

  RAPT_HOST_DEVICE friend Dual exp(Dual a) {
    const T y = std::exp(a.value);
    return {y, y * a.derivative};
  }
  RAPT_HOST_DEVICE friend Dual log(Dual a) { return {std::log(a.value), a.derivative / a.value}; }
  RAPT_HOST_DEVICE friend Dual sqrt(Dual a) {
    const T y = std::sqrt(a.value);
    return {y, a.derivative / (2 * y)};
  }
  RAPT_HOST_DEVICE friend Dual tanh(Dual a) {
    const T y = std::tanh(a.value);
    return {y, (1 - y * y) * a.derivative};
  }
  RAPT_HOST_DEVICE friend Dual sin(Dual a) {
    return {std::sin(a.value), std::cos(a.value) * a.derivative};
  }
  RAPT_HOST_DEVICE friend Dual cos(Dual a) {
    return {std::cos(a.value), -std::sin(a.value) * a.derivative};
  }
  RAPT_HOST_DEVICE friend Dual pow(Dual a, T exponent) {
    return {std::pow(a.value, exponent), exponent * std::pow(a.value, exponent - 1) * a.derivative};
  }
  RAPT_HOST_DEVICE friend constexpr Dual abs(Dual a) { return a.value < 0 ? -a : a; }
  RAPT_HOST_DEVICE friend constexpr Dual min(Dual a, Dual b) { return b.value < a.value ? b : a; }
  RAPT_HOST_DEVICE friend constexpr Dual max(Dual a, Dual b) { return a.value < b.value ? b : a; }
};
template <std::floating_point T>
Dual(T, T) -> Dual<T>;

namespace detail {

template <class N>
struct ScalarOf {
  using type = N;
};
template <class T>
struct ScalarOf<Dual<T>> {
  using type = T;
};
/// The floating-point type under a number: T for T and for Dual<T>.
template <class N>
using scalar_of = typename ScalarOf<N>::type;

}  // namespace detail
}  // namespace rapt
