// Vec for AVX2 + FMA (8 floats, 4 doubles; 16 registers). half needs F16C, else it goes by lanes.
// Included by cpu/simd.hpp alone, which documents the operations.
#pragma once

#include <immintrin.h>

#include <utility>

#include "rapt/core/dtype.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

#if defined(__AVXVNNI__)
inline constexpr const char* kIsa = "avx2_vnni";
#else
inline constexpr const char* kIsa = "avx2";
#endif
inline constexpr bool kBfloat16Dot = false;

template <class T>
struct Vec;

namespace detail {
/// The first n of 8 (or 4) lanes.
inline __m256i lanes32(index_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i lanes64(index_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
}  // namespace detail

template <>
struct Vec<float> {
  using value_type = float;
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 16;
  __m256 v;

  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const float* p, index_t n) { return {_mm256_maskload_ps(p, detail::lanes32(n))}; }
  static Vec load(const bfloat16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static Vec load(const half* p) {
#if defined(__F16C__)
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
#else
    alignas(32) float lanes[kLanes];
    for (int i = 0; i < kLanes; ++i) lanes[i] = static_cast<float>(p[i]);
    return load(lanes);
#endif
  }
  static Vec load(const std::int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes(p)))};
  }
  static Vec load(const float8_e5m2* p) {  // the upper half of a half
    return halves(_mm_unpacklo_epi8(_mm_setzero_si128(), bytes(p)));
  }
  static Vec load(const float8_e4m3* p) {
    // Sign, 0 and the other bits are those of a half whose exponent is 8 short of what it says, but
    // for the one NaN.
    const __m128i shifted = _mm_srai_epi16(_mm_unpacklo_epi8(_mm_setzero_si128(), bytes(p)), 1);
    const __m128i top = _mm_set1_epi16(0x3f80);
    const __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(shifted, top), top);
    const __m128i bits = _mm_andnot_si128(_mm_set1_epi16(0x4000), shifted);
    return halves(_mm_or_si128(bits, nan)) * broadcast(256.f);
  }
  template <class H>
  requires(sizeof(H) <= 2) static Vec load(const H* p, index_t n) {
    H lanes[kLanes] = {};
    std::memcpy(lanes, p, static_cast<std::size_t>(n) * sizeof(H));
    return load(lanes);
  }
  /// Masks: all ones or all zeros in each lane.
  /// 2 kLanes numbers, the even and the odd ones apart: two instructions instead of four.
  static void load_even_odd(const bfloat16* p, Vec& even, Vec& odd) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    even.v = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    odd.v = _mm256_castsi256_ps(_mm256_and_si256(bits, _mm256_set1_epi32(-0x10000)));
  }
  /// Even and odd numbers become the first and the second half of a row.
  static void interleave(Vec& even, Vec& odd) {
    const __m256 low = _mm256_unpacklo_ps(even.v, odd.v), high = _mm256_unpackhi_ps(even.v, odd.v);
    even.v = _mm256_permute2f128_ps(low, high, 0x20);
    odd.v = _mm256_permute2f128_ps(low, high, 0x31);
  }
  /// As in simd/avx512.hpp: four numbers, repeated; sums over each quad.
  static Vec broadcast_quad(const float* p) {
    return {_mm256_broadcast_ps(reinterpret_cast<const __m128*>(p))};
  }
  static Vec load_quads(const float* p) { return load(p); }
  static Vec quad_sums(Vec a, Vec b, Vec c, Vec d) {
    const __m256 ab = _mm256_add_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v));
    const __m256 cd = _mm256_add_ps(_mm256_unpacklo_ps(c.v, d.v), _mm256_unpackhi_ps(c.v, d.v));
    return {_mm256_add_ps(_mm256_shuffle_ps(ab, cd, 0x44), _mm256_shuffle_ps(ab, cd, 0xee))};
  }
  static Vec load_mask(const std::int32_t* p) {
    return {_mm256_castsi256_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }

  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(float* p, index_t n) const { _mm256_maskstore_ps(p, detail::lanes32(n), v); }
  void store(bfloat16* p) const {
    // Round to nearest even by adding just below half an ulp, plus the last kept bit; NaN stays
    // NaN.
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x400000)), nan);
    const __m256i high = _mm256_srli_epi32(rounded, 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }
  void store(half* p) const {
#if defined(__F16C__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, 0));
#else
    alignas(32) float lanes[kLanes];
    store(lanes);
    for (int i = 0; i < kLanes; ++i) p[i] = half(lanes[i]);
#endif
  }
  template <class H>
  requires(sizeof(H) == 2) void store(H* p, index_t n) const {
    H lanes[kLanes];
    store(lanes);
    std::memcpy(p, lanes, static_cast<std::size_t>(n) * sizeof(H));
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  /// Left to choose, a compiler writes some sums over a factor and moves them back, and reads b
  /// from memory for each of its uses.
  static Vec fma_in_place(Vec a, Vec b, Vec c) {
    asm("vfmadd231ps {%2, %1, %0|%0, %1, %2}" : "+x"(c.v) : "x"(a.v), "x"(b.v));
    return c;
  }
  friend Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  friend Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
  friend Vec sqrt(Vec a) { return {_mm256_sqrt_ps(a.v)}; }
  friend Vec round(Vec a) {
    return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  friend Vec select(Vec mask, Vec a, Vec b) { return {_mm256_blendv_ps(b.v, a.v, mask.v)}; }
  friend Vec bit_and(Vec a, Vec mask) { return {_mm256_and_ps(a.v, mask.v)}; }
  friend Vec pow2(Vec n) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n.v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(biased, 23))};
  }
  /// x - n and 2^n for n = round(x), x in [-127, 127]. A large sum rounds x, and holds n + 127 in
  /// its last bits, from where a shift makes it 2^n: an instruction less than to round and convert.
  static std::pair<Vec, Vec> split_exponent(Vec x) {
    const Vec large = broadcast(0x1.8p23f + 127.f), n = x + large;
    const __m256i power = _mm256_slli_epi32(_mm256_castps_si256(n.v), 23);
    return {x - (n - large), {_mm256_castsi256_ps(power)}};
  }
  friend float sum(Vec a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
  }
  friend float largest(Vec a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
  }
  /// Each step joins two vectors into one: their outer parts in one operand, by a blend, their
  /// inner parts in the other, by a shuffle; a third of what horizontal additions take.
  static Vec sums(const Vec (&a)[kLanes]) {
    const auto halves = [](__m256 x, __m256 y) {
      return _mm256_add_ps(_mm256_blend_ps(x, y, 0xf0), _mm256_permute2f128_ps(x, y, 0x21));
    };
    const auto pairs = [](__m256 x, __m256 y) {
      return _mm256_add_ps(_mm256_blend_ps(x, y, 0xcc), _mm256_shuffle_ps(x, y, 0x4e));
    };
    const __m256 even = pairs(halves(a[0].v, a[4].v), halves(a[2].v, a[6].v));
    const __m256 odd = pairs(halves(a[1].v, a[5].v), halves(a[3].v, a[7].v));
    return {_mm256_add_ps(_mm256_blend_ps(even, odd, 0xaa),
                          _mm256_permute_ps(_mm256_blend_ps(odd, even, 0xaa), 0xb1))};
  }
  /// Rows become columns.
  static void transpose(Vec (&a)[kLanes]) {
    __m256 t[8], u[8];
#pragma GCC unroll 8
    for (int i = 0; i < 4; ++i) {
      t[2 * i] = _mm256_unpacklo_ps(a[2 * i].v, a[2 * i + 1].v);
      t[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i].v, a[2 * i + 1].v);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 2; ++i) {
      u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 4; ++i) {
      a[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      a[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
  }

 private:
  static __m128i bytes(const void* p) { return _mm_loadl_epi64(static_cast<const __m128i*>(p)); }
  static Vec halves(__m128i bits) {
#if defined(__F16C__)
    return {_mm256_cvtph_ps(bits)};
#else
    half lanes[kLanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(lanes), bits);
    return load(lanes);
#endif
  }
};

template <>
struct Vec<double> {
  using value_type = double;
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 16;
  __m256d v;

  static Vec zero() { return {_mm256_setzero_pd()}; }
  static Vec broadcast(double x) { return {_mm256_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec load(const double* p, index_t n) {
    return {_mm256_maskload_pd(p, detail::lanes64(n))};
  }
  static Vec load_mask(const std::int64_t* p) {
    return {_mm256_castsi256_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }

  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store(double* p, index_t n) const { _mm256_maskstore_pd(p, detail::lanes64(n), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm256_div_pd(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec fma_in_place(Vec a, Vec b, Vec c) {
    asm("vfmadd231pd {%2, %1, %0|%0, %1, %2}" : "+x"(c.v) : "x"(a.v), "x"(b.v));
    return c;
  }
  friend Vec max(Vec a, Vec b) { return {_mm256_max_pd(a.v, b.v)}; }
  friend Vec min(Vec a, Vec b) { return {_mm256_min_pd(a.v, b.v)}; }
  friend Vec sqrt(Vec a) { return {_mm256_sqrt_pd(a.v)}; }
  friend Vec round(Vec a) {
    return {_mm256_round_pd(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  friend Vec select(Vec mask, Vec a, Vec b) { return {_mm256_blendv_pd(b.v, a.v, mask.v)}; }
  friend Vec bit_and(Vec a, Vec mask) { return {_mm256_and_pd(a.v, mask.v)}; }
  friend Vec pow2(Vec n) {
    const __m256i biased =
        _mm256_add_epi64(_mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n.v)), _mm256_set1_epi64x(1023));
    return {_mm256_castsi256_pd(_mm256_slli_epi64(biased, 52))};
  }
  friend double sum(Vec a) {
    const __m128d x = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
    return _mm_cvtsd_f64(_mm_add_sd(x, _mm_unpackhi_pd(x, x)));
  }
  friend double largest(Vec a) {
    const __m128d x = _mm_max_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
    return _mm_cvtsd_f64(_mm_max_sd(x, _mm_unpackhi_pd(x, x)));
  }
  static Vec sums(const Vec (&a)[kLanes]) {
    const __m256d low = _mm256_hadd_pd(a[0].v, a[1].v), high = _mm256_hadd_pd(a[2].v, a[3].v);
    return {_mm256_add_pd(_mm256_permute2f128_pd(low, high, 0x20),
                          _mm256_permute2f128_pd(low, high, 0x31))};
  }
  static void transpose(Vec (&a)[kLanes]) {
    const __m256d t0 = _mm256_unpacklo_pd(a[0].v, a[1].v), t1 = _mm256_unpackhi_pd(a[0].v, a[1].v);
    const __m256d t2 = _mm256_unpacklo_pd(a[2].v, a[3].v), t3 = _mm256_unpackhi_pd(a[2].v, a[3].v);
    a[0].v = _mm256_permute2f128_pd(t0, t2, 0x20);
    a[1].v = _mm256_permute2f128_pd(t1, t3, 0x20);
    a[2].v = _mm256_permute2f128_pd(t0, t2, 0x31);
    a[3].v = _mm256_permute2f128_pd(t1, t3, 0x31);
  }
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
