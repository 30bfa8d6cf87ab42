// Quads for AVX-512, with VNNI or without.
// Included by cpu/int8.hpp alone, which documents the operations.
#pragma once

namespace rapt::cpu {
inline namespace RAPT_SIMD {

struct Quads {
  static constexpr int kLanes = Vec<float>::kLanes;
  __m512i v;

  static Quads zero() { return {_mm512_setzero_si512()}; }
  static Quads bytes(int x) { return {_mm512_set1_epi8(static_cast<char>(x))}; }
  static Quads load(const void* p) { return {_mm512_loadu_si512(p)}; }
  void store(void* p) const { _mm512_storeu_si512(p, v); }
  static Quads broadcast(const void* p) {
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    return {_mm512_set1_epi32(four)};
  }
  template <int n>
  Quads right() const {
    return {_mm512_srli_epi16(v, n)};
  }
  template <int n>
  Quads left() const {
    return {_mm512_slli_epi16(v, n)};
  }
  friend Quads operator&(Quads a, Quads b) { return {_mm512_and_si512(a.v, b.v)}; }
  friend Quads operator|(Quads a, Quads b) { return {_mm512_or_si512(a.v, b.v)}; }

#if defined(__AVX512VNNI__)
  /// The first n bytes, others 0.
  static Quads load(const void* p, index_t n) {
    if (n >= 4 * kLanes) return load(p);
    return {_mm512_maskz_loadu_epi8((std::uint64_t{1} << n) - 1, p)};
  }
  /// 16 bytes, four times.
  static Quads repeat16(const void* p) {
    return {_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
  }
  /// 16 bytes each at p, p + step, p + 2 step, p + 3 step (of int32).
  static Quads gather_quads(const std::int32_t* p, index_t step) {
    const auto quad = [](const std::int32_t* from) __attribute__((always_inline)) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    };
    __m512i x = _mm512_castsi128_si512(quad(p));
    x = _mm512_mask_broadcast_i32x4(x, 0x00f0, quad(p + step));
    x = _mm512_mask_broadcast_i32x4(x, 0x0f00, quad(p + 2 * step));
    return {_mm512_mask_broadcast_i32x4(x, 0xf000, quad(p + 3 * step))};
  }
  /// Rows of quads as columns.
  static void transpose(Quads (&a)[kLanes]) { detail::transpose_bits(a); }
  /// Signed bytes as unsigned ones, 128 larger.
  Quads plus128() const { return {_mm512_xor_si512(v, _mm512_set1_epi8(-128))}; }
  /// Half of four rows of 64 bytes, next to each other: lane 4 a + i of vector b holds the four
  /// rows' byte 16 a + 4 b + i, b 0 and 1, or (high) 2 and 3.
  static void interleave_half(const Quads (&rows)[4], bool high, Quads& first, Quads& second) {
    const auto pairs = [high](Quads a, Quads b) {
      return high ? _mm512_unpackhi_epi8(a.v, b.v) : _mm512_unpacklo_epi8(a.v, b.v);
    };
    const __m512i even = pairs(rows[0], rows[1]), odd = pairs(rows[2], rows[3]);
    first.v = _mm512_unpacklo_epi16(even, odd), second.v = _mm512_unpackhi_epi16(even, odd);
  }
  /// The whole numbers nearest to x as d0 + 256 d1 + 65536 d2 with digits of -128 to 127.
  static void store_signed_digits(Vec<float> x, std::int8_t* d0, std::int8_t* d1, std::int8_t* d2) {
    const auto store = [](std::int8_t* to, __m512i n) {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(n));
    };
    const auto higher = [](__m512i n) {
      return _mm512_srai_epi32(_mm512_add_epi32(n, _mm512_set1_epi32(128)), 8);
    };
    const __m512i n = _mm512_cvtps_epi32(x.v);
    store(d0, n);
    store(d1, higher(n));
    store(d2, higher(higher(n)));
  }
  /// The same of x from 0 to 2^24 with digits of 0 to 255: of each four numbers the four d0, the
  /// four d1, the four d2, and zeros. Returns the numbers; one is negative where x is, or is none.
  static Quads store_digits(Vec<float> x, std::uint8_t* to) {
    const __m512i n = _mm512_cvtps_epi32(x.v);
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    _mm512_storeu_si512(to, _mm512_shuffle_epi8(n, order));
    return {n};
  }
  /// The same of 64 numbers, of each digit on its own, 64 bytes. The four of a quad stay side by
  /// side, but quad 4 i + l comes at place 4 l + i.
  static Quads store_digits(const Vec<float> (&x)[4], std::uint8_t* d0, std::uint8_t* d1,
                            std::uint8_t* d2) {
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    __m512i n[4], digits[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      n[i] = _mm512_cvtps_epi32(x[i].v);
      digits[i] = _mm512_shuffle_epi8(n[i], order);
    }
    const __m512i low0 = _mm512_unpacklo_epi32(digits[0], digits[1]);
    const __m512i low1 = _mm512_unpacklo_epi32(digits[2], digits[3]);
    _mm512_storeu_si512(d0, _mm512_unpacklo_epi64(low0, low1));
    _mm512_storeu_si512(d1, _mm512_unpackhi_epi64(low0, low1));
    _mm512_storeu_si512(d2, _mm512_unpacklo_epi64(_mm512_unpackhi_epi32(digits[0], digits[1]),
                                                  _mm512_unpackhi_epi32(digits[2], digits[3])));
    return {_mm512_or_si512(_mm512_or_si512(n[0], n[1]), _mm512_or_si512(n[2], n[3]))};
  }
  static bool any_negative(Quads numbers) { return _mm512_movepi32_mask(numbers.v) != 0; }

  friend Quads dot(Quads s, Quads c, Quads x) { return {_mm512_dpbusd_epi32(s.v, c.v, x.v)}; }
  friend Quads dot_wide(Quads s, Quads c, Quads x) { return dot(s, c, x); }
  friend Quads dot_repeated(Quads s, Quads c, const void* four) {
    asm("vpdpbusd {%2%{1to16%}, %1, %0|%0, %1, %2%{1to16%}}"
        : "+v"(s.v)
        : "v"(c.v), "m"(*static_cast<const char(*)[4]>(four)));
    return s;
  }
#else
  friend Quads pairs(Quads c, Quads x) { return {_mm512_maddubs_epi16(c.v, x.v)}; }
  // Left to choose, g++ multiplies all pairs first, adds them later, and runs out of registers.
  friend Quads add_pairs(Quads s, Quads p) {
    asm("vpaddw {%1, %0, %0|%0, %0, %1}" : "+v"(s.v) : "v"(p.v));
    return s;
  }
  template <int kTimes>
  Quads widen_pairs() const {
    return {_mm512_madd_epi16(v, _mm512_set1_epi16(kTimes))};
  }
#endif

  friend Quads add(Quads a, Quads b) { return {_mm512_add_epi32(a.v, b.v)}; }
  friend Vec<float> to_float(Quads a) { return {_mm512_cvtepi32_ps(a.v)}; }
};

inline Vec<float> unsigned_lanes(const std::uint8_t* p) {
  const __m128i lanes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(lanes))};
}
inline Vec<float> signed_lanes(const std::uint8_t* p) {
  const __m128i lanes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(lanes))};
}
inline void store_int8(std::int8_t* p, Vec<float> v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v.v)));
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
