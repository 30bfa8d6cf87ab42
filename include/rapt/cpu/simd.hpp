// One thin wrapper over the vector registers of the machine that the compiler was told to build
// for.
//
//   Vec<float>, Vec<double>     kLanes numbers side by side
//
//   zero() broadcast(x)                        load(p) load(p, n)       the first n lanes, others 0
//   load from half, bfloat16 and codes of      store(p) store(p, n)     converting, to nearest even
//   8 bits (Vec<float>): exact
//   a + b, a - b, a * b, a / b, fma(a, b, c)   max(a, b), min(a, b)     b where either is NaN
//   fma_in_place(a, b, c)   fma, for sums of a loop that needs every register: none is moved
//   sqrt(a)            rounded once            round(a)                 to nearest even
//   select(mask, a, b) a where mask's sign bit is set
//   pow2(n)            2^n for whole n         bit_and(a, mask)         bits, so NaN & 0 = 0
//   sum(a), largest(a) over the lanes          sums(a), tops(a)         lane i: of a[i]'s lanes
//   exp2, exp2_flushed, exp, exp_flushed       polynomials, below
//   Vec<Bfloat16Pair>, where kBfloat16Dot: fma(pairs, pairs, Vec<float>) adds both products
//
// The instruction set is chosen from the target flags, as Eigen does, and all code that depends on
// it lives in an inline namespace of its name (RAPT_SIMD), so that files built with other flags
// never share a function. `rapt::cpu::isa()` says which: "avx512", "avx2", "neon" or "portable",
// with "_bf16", "_vnni" or "_dot" where the dot products of 16-bit or 8-bit numbers are there.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "rapt/core/config.hpp"
#include "rapt/core/dtype.hpp"

// The ladder that names RAPT_SIMD is in core/config.hpp.
namespace rapt::cpu {
/// Neighbours of a bfloat16 matrix along the axis that is summed.
struct Bfloat16Pair {
  bfloat16 even, odd;
};
}  // namespace rapt::cpu

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX2__) && defined(__FMA__)
#include "rapt/cpu/simd/avx512.hpp"
#elif defined(__AVX2__) && defined(__FMA__)
#include "rapt/cpu/simd/avx2.hpp"
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include "rapt/cpu/simd/neon.hpp"
#else
#include "rapt/cpu/simd/portable.hpp"
#endif

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// The instruction set that this translation unit's kernels use.
inline const char* isa() { return kIsa; }

/// a b + c in the register of c. U: V, or pairs of bfloat16.
template <class U, class V>
[[gnu::always_inline]] inline V fma_in_place(U a, U b, V c) {
  if constexpr (requires { V::fma_in_place(a, b, c); })
    return V::fma_in_place(a, b, c);
  else
    return fma(a, b, c);
}

/// An integer as wide as T: the element of a mask, all ones or all zeros.
template <class T>
using mask_int = std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t>;

namespace detail {

/// ((first f + c1) f + c2) f + ...
template <class V, class... T>
[[gnu::always_inline]] inline V polynomial(V f, typename V::value_type first, T... others) {
  V p = V::broadcast(first);
  ((p = fma(p, f, V::broadcast(others))), ...);
  return p;
}

// 2^f on [-1/2, 1/2]. float: a minimax polynomial (Cephes exp2f), error below 1 ulp; double: the
// Taylor series, ln(2)^k / k! for k = 13 ... 0, error below 1e-17.
inline Vec<float> exp2_fraction(Vec<float> f) {
  return polynomial(f, 1.535336188319500e-4f, 1.339887440266574e-3f, 9.618437357674640e-3f,
                    5.550332471162809e-2f, 2.402264791363012e-1f, 6.931472028550421e-1f, 1.f);
}
inline Vec<double> exp2_fraction(Vec<double> f) {
  return polynomial(f, 1.3691488853904128e-12, 2.5678435993488206e-11, 4.4455382718708116e-10,
                    7.054911620801121e-9, 1.0178086009239699e-7, 1.3215486790144307e-6,
                    1.525273380405984e-5, 1.5403530393381608e-4, 1.3333558146428443e-3,
                    9.618129107628477e-3, 5.5504108664821576e-2, 0.24022650695910072,
                    0.6931471805599453, 1.0);
}
/// The same for the softmax; float: of degree 5, minimax with p(0) = 1, with its roundings within
/// 1.8 ulp.
inline Vec<float> exp2_fraction_flushed(Vec<float> f) {
  return polynomial(f, 1.3225707e-3f, 9.6717272e-3f, 5.5508915e-2f, 2.40222365e-1f, 6.93146825e-1f,
                    1.f);
}
inline Vec<double> exp2_fraction_flushed(Vec<double> f) { return exp2_fraction(f); }

template <class T>
inline constexpr T kLog2E = T(1.4426950408889634074);
template <class T>
inline constexpr T kLn2 = T(0.69314718055994530942);

}  // namespace detail

/// 2^x; subnormal results and overflow to infinity included, NaN stays.
template <class T>
Vec<T> exp2(Vec<T> x) {
  using V = Vec<T>;
  constexpr T kLow = sizeof(T) == 4 ? T(-151) : T(-1076), kHigh = sizeof(T) == 4 ? T(129) : T(1025);
  x = min(V::broadcast(kHigh), max(V::broadcast(kLow), x));
  const V n = round(x);
  const V half = round(n * V::broadcast(T(0.5)));  // in two steps: 2^n itself may not be a number
  return detail::exp2_fraction(x - n) * pow2(half) * pow2(n - half);
}

/// 2^x for x <= 0, where what would be subnormal is 0. The softmax: exactly 0 for x = -inf.
template <class T>
Vec<T> exp2_flushed(Vec<T> x) {
  using V = Vec<T>;
  if constexpr (requires { V::exp2_flushed(x); }) return V::exp2_flushed(x);
  constexpr T kLow = sizeof(T) == 4 ? T(-127) : T(-1023);  // pow2 of it is 0
  x = max(V::broadcast(kLow), x);
  if constexpr (requires { V::split_exponent(x); }) {
    const auto [fraction, power] = V::split_exponent(x);
    return detail::exp2_fraction_flushed(fraction) * power;
  } else {
    const V n = round(x);
    return detail::exp2_fraction_flushed(x - n) * pow2(n);
  }
}

/// The same to 18 bits where that is cheaper, for weights that will be rounded to 8.
template <class T>
Vec<T> exp2_coarse(Vec<T> x) {
  if constexpr (requires { Vec<T>::exp2_coarse(x); })
    return Vec<T>::exp2_coarse(x);
  else
    return exp2_flushed(x);
}

/// f(0), f(1), ..., f(kCount - 1), each with its number as a constant, so that an array of vectors
/// that it indexes stays in registers: at -O2 a compiler leaves a loop a loop, and the array in
/// memory. (Where nvcc never looks, #pragma GCC unroll does the same.)
template <int kCount, class F>
[[gnu::always_inline]] inline void unrolled(F f) {
  [&]<int... i>(std::integer_sequence<int, i...>) { (f(std::integral_constant<int, i>{}), ...); }
  (std::make_integer_sequence<int, kCount>{});
}

/// Lane i: the largest of a[i]'s lanes.
template <class V>
V tops(const V (&a)[V::kLanes]) {
  if constexpr (requires { V::tops(a); }) {
    return V::tops(a);
  } else {
    V rows[V::kLanes];
    unrolled<V::kLanes>([&](auto i) { rows[i] = a[i]; });
    V::transpose(rows);
    V top = rows[0];
    unrolled<V::kLanes>([&](auto i) { top = max(top, rows[i]); });
    return top;
  }
}

namespace detail {

/// e^x / 2^n, n = round(x / ln 2), with ln 2 in two parts so that large arguments keep their last
/// bits.
template <class T>
Vec<T> exp_fraction(Vec<T> x, Vec<T> n) {
  using V = Vec<T>;
  constexpr T kLn2High = sizeof(T) == 4 ? T(0.693359375) : T(6.93147180369123816490e-01);
  constexpr T kLn2Low = sizeof(T) == 4 ? T(-2.12194440e-4) : T(1.90821492927058770002e-10);
  const V r = fma(n, V::broadcast(-kLn2Low), fma(n, V::broadcast(-kLn2High), x));
  return exp2_fraction(r * V::broadcast(kLog2E<T>));
}

}  // namespace detail

/// e^x; subnormal results and overflow to infinity included, NaN stays.
template <class T>
Vec<T> exp(Vec<T> x) {
  using V = Vec<T>;
  constexpr T kLow = sizeof(T) == 4 ? T(-105) : T(-746),
              kHigh = sizeof(T) == 4 ? T(89.5) : T(710.5);
  x = min(V::broadcast(kHigh), max(V::broadcast(kLow), x));
  const V n = round(x * V::broadcast(detail::kLog2E<T>));
  const V half = round(n * V::broadcast(T(0.5)));
  return detail::exp_fraction(x, n) * pow2(half) * pow2(n - half);
}

/// e^x for x <= 0, where what would be subnormal is 0. NaN stays.
template <class T>
Vec<T> exp_flushed(Vec<T> x) {
  using V = Vec<T>;
  constexpr T kLow = sizeof(T) == 4 ? T(-88) : T(-709);  // pow2 of n is 0 there
  x = max(V::broadcast(kLow), x);
  const V n = round(x * V::broadcast(detail::kLog2E<T>));
  return detail::exp_fraction(x, n) * pow2(n);
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
