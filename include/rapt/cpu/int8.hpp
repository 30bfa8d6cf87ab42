// One thin wrapper over the integer dot products of the machine, beside Vec (cpu/simd.hpp).
//
//   Quads   kLanes (those of Vec<float>) groups of four bytes, or as many int32
//
//   zero() load(p) store(p) 4 kLanes bytes             broadcast(p)      the same four bytes
//   a.right<n>() a.left<n>()  shifts inside 16 bits: mask away what comes from the neighbour
//   a & b, a | b            bitwise                    bytes(x)          the byte x everywhere
//   add(a, b)               of int32                   to_float(a)       of int32
//   unsigned_lanes(p), signed_lanes(p)                 kLanes bytes at p as floats
//   store_int8(p, v)        kLanes floats to the nearest int8
//
// The dot product of a lane is sum of c[4 i + t] x[4 i + t] over t = 0..3, c unsigned, x signed,
// -127 to 127. A machine has one of
//
//   dot(s, c, x)            s[i] + the product, c below 128: vpdpbusd (AVX-512 VNNI, AVX-VNNI),
//                           sdot (NEON), plain code elsewhere
//   dot_wide(s, c, x)       the same with c up to 255
//   dot_repeated(s, c, p)   the same with x = broadcast(p), in one instruction: AVX-512 VNNI alone
//
//   pairs(c, x)             two sums of two products in 16 bits, with saturation: vpmaddubsw (AVX2,
//                           AVX-512 BW)
//   add_pairs(s, p)         their sums, still in 16 bits
//   p.widen_pairs<n>()      n times their sum, int32
//
// and all of them narrow_dot() and the others below, which are exact, so that all machines agree.
//
// With AVX-512 VNNI there is besides what cpu/attention_decode_int8.hpp and its form for matrix
// registers take: load(p, n), repeat16(p), gather_quads(), transpose(), a.plus128(),
// interleave_half(), store_signed_digits(), store_digits(), any_negative().
#pragma once

#include <algorithm>

#include "rapt/cpu/simd.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX2__) && defined(__FMA__)
#include "rapt/cpu/simd/int8_avx512.hpp"
#elif defined(__AVX2__) && defined(__FMA__)
#include "rapt/cpu/simd/int8_avx2.hpp"
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include "rapt/cpu/simd/int8_neon.hpp"
#else
#include "rapt/cpu/simd/int8_portable.hpp"
#endif

namespace rapt::cpu {
inline namespace RAPT_SIMD {

// ---- sums of many dot products ----
//
// In 16 bits while they fit, where the machine sums pairs: an addition for each quad, not a product
// with ones and an addition.

template <class Q>
inline constexpr bool kSumsPairs = requires(Q q) {
  pairs(q, q);
};

template <class Q>
inline constexpr bool kRepeatsMemory = requires(Q q, const void* p) {
  dot_repeated(q, q, p);
};

/// Codes of so many bits are multiplied in one piece, or in two digits of 4 bits: two codes of 8
/// bits times two of x are up to 2 * 255 * 127, which 16 bits do not hold.
template <class Q = Quads>
constexpr int digits(int bits) {
  return kSumsPairs<Q> && bits == 8 ? 2 : 1;
}

/// Quads whose narrow sum cannot overflow, of the 8 of a block.
template <class Q = Quads>
constexpr int narrow_quads(int bits) {
  const int largest = (1 << bits / digits<Q>(bits)) - 1;
  return kSumsPairs<Q> ? std::min(8, 32767 / (2 * 127 * largest)) : 8;
}

/// s + the dot products of codes of kBits bits (or of their digits) with x.
template <int kBits, class Q>
[[gnu::always_inline]] inline Q narrow_dot(Q s, Q c, Q x) {
  if constexpr (kSumsPairs<Q>)
    return add_pairs(s, pairs(c, x));
  else if constexpr (kBits == 8)
    return dot_wide(s, c, x);
  else
    return dot(s, c, x);
}

/// The first of them.
template <int kBits, class Q>
[[gnu::always_inline]] inline Q narrow_dot(Q c, Q x) {
  if constexpr (kSumsPairs<Q>)
    return pairs(c, x);
  else
    return narrow_dot<kBits>(Q::zero(), c, x);
}

/// A narrow sum of the given digit, by its weight, as int32.
template <int kDigit, class Q>
[[gnu::always_inline]] inline Q widen(Q s) {
  if constexpr (kSumsPairs<Q>)
    return s.template widen_pairs < kDigit == 0 ? 1 : 16 > ();
  else
    return s;
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
