// Vec for any machine: 16 bytes as an array with one loop an operation. GCC and Clang turn it into
// whatever vector registers the target has (SSE2 on plain x86-64).
// Included by cpu/simd.hpp alone, which documents the operations.
#pragma once

#include <bit>
#include <cmath>

#include "rapt/core/dtype.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

inline constexpr const char* kIsa = "portable";
inline constexpr bool kBfloat16Dot = false;

template <class T>
struct Vec {
  using value_type = T;
  using Bits = std::conditional_t<sizeof(T) == 8, std::int64_t, std::int32_t>;
  static constexpr int kLanes = 16 / sizeof(T);
  static constexpr int kRegisters = 16;
#if defined(__GNUC__)
  typedef T Native __attribute__((vector_size(16)));
  typedef Bits NativeBits __attribute__((vector_size(16)));
#else
#error "rapt's portable path needs the vector extensions of GCC or Clang"
#endif
  Native v;

  static Vec zero() { return {Native{}}; }
  static Vec broadcast(T x) { return {x - Native{}}; }  // x - 0 is x, of either sign
  static Vec load(const T* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  static Vec load(const T* p, index_t n) {
    Vec r = zero();
    std::memcpy(&r.v, p, static_cast<std::size_t>(n) * sizeof(T));
    return r;
  }
  template <class H>
  requires(sizeof(H) <= 2) static Vec load(const H* p) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<T>(p[i]);
    return r;
  }
  template <class H>
  requires(sizeof(H) <= 2) static Vec load(const H* p, index_t n) {
    Vec r = zero();
    for (int i = 0; i < n; ++i) r.v[i] = static_cast<T>(p[i]);
    return r;
  }
  static Vec load_mask(const Bits* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }

  void store(T* p) const { std::memcpy(p, &v, sizeof v); }
  void store(T* p, index_t n) const { std::memcpy(p, &v, static_cast<std::size_t>(n) * sizeof(T)); }
  template <class H>
  requires(sizeof(H) == 2) void store(H* p, index_t n = kLanes) const {
    for (int i = 0; i < n; ++i) p[i] = H(v[i]);
  }

  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  friend Vec operator/(Vec a, Vec b) { return {a.v / b.v}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  friend Vec max(Vec a, Vec b) { return blend(a.v > b.v, a, b); }
  friend Vec min(Vec a, Vec b) { return blend(a.v < b.v, a, b); }
  friend Vec sqrt(Vec a) {
    for (int i = 0; i < kLanes; ++i) a.v[i] = std::sqrt(a.v[i]);
    return a;
  }
  friend Vec round(Vec a) {
    // Adding 1.5 * 2^(mantissa bits) leaves no room for a fraction; right for |a| below 2^22
    // (2^51), which is all that the exponentials ask for.
    const T shift = sizeof(T) == 8 ? T(6755399441055744.0) : T(12582912.0);
    Native t = a.v + shift;
    asm("" : "+m"(t));  // or the compiler might cancel the two
    return {t - shift};
  }
  friend Vec select(Vec mask, Vec a, Vec b) { return blend(bits(mask) < NativeBits{}, a, b); }
  friend Vec bit_and(Vec a, Vec mask) { return from_bits(bits(a) & bits(mask)); }
  friend Vec pow2(Vec n) {
    constexpr int kMantissa = sizeof(T) == 8 ? 52 : 23;
    constexpr Bits kBias = sizeof(T) == 8 ? 1023 : 127;
    Vec r;
    for (int i = 0; i < kLanes; ++i)
      r.v[i] =
          std::bit_cast<T>(static_cast<Bits>((static_cast<Bits>(n.v[i]) + kBias) << kMantissa));
    return r;
  }
  friend T sum(Vec a) {
    T s = 0;
    for (int i = 0; i < kLanes; ++i) s += a.v[i];
    return s;
  }
  friend T largest(Vec a) {
    T m = a.v[0];
    for (int i = 1; i < kLanes; ++i) m = a.v[i] > m ? a.v[i] : m;
    return m;
  }
  static Vec sums(const Vec (&a)[kLanes]) {
    Vec r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = sum(a[i]);
    return r;
  }
  static void transpose(Vec (&a)[kLanes]) {
    for (int i = 0; i < kLanes; ++i)
      for (int j = i + 1; j < kLanes; ++j) {
        const T t = a[i].v[j];
        a[i].v[j] = a[j].v[i];
        a[j].v[i] = t;
      }
  }

 private:
  static NativeBits bits(Vec a) { return std::bit_cast<NativeBits>(a.v); }
  static Vec from_bits(NativeBits b) { return {std::bit_cast<Native>(b)}; }
  static Vec blend(NativeBits mask, Vec a, Vec b) {
    return from_bits((mask & bits(a)) | (~mask & bits(b)));
  }
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
