// Quads for AVX2, with AVX-VNNI or without.
// Included by cpu/int8.hpp alone, which documents the operations.
#pragma once

namespace rapt::cpu {
inline namespace RAPT_SIMD {

struct Quads {
  static constexpr int kLanes = Vec<float>::kLanes;
  __m256i v;

  static Quads zero() { return {_mm256_setzero_si256()}; }
  static Quads bytes(int x) { return {_mm256_set1_epi8(static_cast<char>(x))}; }
  static Quads load(const void* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
  }
  void store(void* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static Quads broadcast(const void* p) {
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    return {_mm256_set1_epi32(four)};
  }
  template <int n>
  Quads right() const {
    return {_mm256_srli_epi16(v, n)};
  }
  template <int n>
  Quads left() const {
    return {_mm256_slli_epi16(v, n)};
  }
  friend Quads operator&(Quads a, Quads b) { return {_mm256_and_si256(a.v, b.v)}; }
  friend Quads operator|(Quads a, Quads b) { return {_mm256_or_si256(a.v, b.v)}; }

#if defined(__AVXVNNI__)
  friend Quads dot(Quads s, Quads c, Quads x) { return {_mm256_dpbusd_avx_epi32(s.v, c.v, x.v)}; }
  friend Quads dot_wide(Quads s, Quads c, Quads x) { return dot(s, c, x); }
#else
  friend Quads pairs(Quads c, Quads x) { return {_mm256_maddubs_epi16(c.v, x.v)}; }
  // Left to choose, g++ multiplies all pairs first, adds them later, and runs out of registers.
  friend Quads add_pairs(Quads s, Quads p) {
    asm("vpaddw {%1, %0, %0|%0, %0, %1}" : "+x"(s.v) : "x"(p.v));
    return s;
  }
  template <int kTimes>
  Quads widen_pairs() const {
    return {_mm256_madd_epi16(v, _mm256_set1_epi16(kTimes))};
  }
#endif

  friend Quads add(Quads a, Quads b) { return {_mm256_add_epi32(a.v, b.v)}; }
  friend Vec<float> to_float(Quads a) { return {_mm256_cvtepi32_ps(a.v)}; }
};

inline Vec<float> unsigned_lanes(const std::uint8_t* p) {
  const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(lanes))};
}
inline Vec<float> signed_lanes(const std::uint8_t* p) {
  const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(lanes))};
}
inline void store_int8(std::int8_t* p, Vec<float> v) {
  const __m256i wide = _mm256_cvtps_epi32(v.v);
  const __m128i words =
      _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
