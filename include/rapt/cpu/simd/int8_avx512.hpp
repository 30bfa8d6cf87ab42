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
  friend Quads dot(Quads s, Quads c, Quads x) { return {_mm512_dpbusd_epi32(s.v, c.v, x.v)}; }
  friend Quads dot_wide(Quads s, Quads c, Quads x) { return dot(s, c, x); }
#else
  // Pairs are summed in 16 bits, with saturation: 2 * 127 * 127 fits, 2 * 255 * 127 does not.
  friend Quads dot(Quads s, Quads c, Quads x) {
    const __m512i pairs = _mm512_maddubs_epi16(c.v, x.v);
    return {_mm512_add_epi32(s.v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)))};
  }
  friend Quads dot_wide(Quads s, Quads c, Quads x) {
    return dot(dot(s, c & bytes(0x7f), x), c & bytes(0x80), x);  // 2 * 128 * 127 fits too
  }
#endif

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
