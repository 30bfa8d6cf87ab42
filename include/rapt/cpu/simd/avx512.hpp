// Vec for AVX-512 F, BW, DQ, VL (16 floats, 8 doubles; 32 registers).
// Included by cpu/simd.hpp alone, which documents the operations.
#pragma once

// GCC 12 warns about its own header: __m512 y = y, for lanes that no one reads (GCC bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include "rapt/core/dtype.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

#if defined(__AMX_BF16__) && defined(RAPT_BFLOAT16_DOT) && defined(__AVX512VNNI__)
inline constexpr const char* kIsa = "avx512_amx_vnni";
#elif defined(__AMX_BF16__) && defined(RAPT_BFLOAT16_DOT)
inline constexpr const char* kIsa = "avx512_amx";
#elif defined(RAPT_BFLOAT16_DOT) && defined(__AVX512VNNI__)
inline constexpr const char* kIsa = "avx512_bf16_vnni";
#elif defined(RAPT_BFLOAT16_DOT)
inline constexpr const char* kIsa = "avx512_bf16";
#elif defined(__AVX512VNNI__)
inline constexpr const char* kIsa = "avx512_vnni";
#else
inline constexpr const char* kIsa = "avx512";
#endif
#if defined(RAPT_BFLOAT16_DOT)
inline constexpr bool kBfloat16Dot = true;
#else
inline constexpr bool kBfloat16Dot = false;
#endif

template <class T>
struct Vec;

namespace detail {
inline __mmask16 lanes16(index_t n) { return static_cast<__mmask16>((1u << n) - 1u); }
inline __mmask8 lanes8(index_t n) { return static_cast<__mmask8>((1u << n) - 1u); }
}  // namespace detail

template <>
struct Vec<float> {
  using value_type = float;
  static constexpr int kLanes = 16;
  static constexpr int kRegisters = 32;
  __m512 v;

  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const float* p, index_t n) {
    return {_mm512_maskz_loadu_ps(detail::lanes16(n), p)};
  }
  static Vec load(const bfloat16* p) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Vec load(const bfloat16* p, index_t n) {
    return widen(_mm256_maskz_loadu_epi16(detail::lanes16(n), p));
  }
  static Vec load(const half* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Vec load(const half* p, index_t n) {
    return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(detail::lanes16(n), p))};
  }
  static Vec load(const std::int8_t* p) { return whole_numbers(bytes(p)); }
  static Vec load(const std::int8_t* p, index_t n) { return whole_numbers(bytes(p, n)); }
  static Vec load(const float8_e4m3* p) { return from_e4m3(bytes(p)); }
  static Vec load(const float8_e4m3* p, index_t n) { return from_e4m3(bytes(p, n)); }
  static Vec load(const float8_e5m2* p) { return from_e5m2(bytes(p)); }
  static Vec load(const float8_e5m2* p, index_t n) { return from_e5m2(bytes(p, n)); }
  /// 2 kLanes numbers, the even and the odd ones apart: two instructions instead of four.
  static void load_even_odd(const bfloat16* p, Vec& even, Vec& odd) {
    const __m512i bits = _mm512_loadu_si512(p);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
    odd.v = _mm512_castsi512_ps(_mm512_and_si512(bits, _mm512_set1_epi32(-0x10000)));
  }
  /// Even and odd numbers become the first and the second half of a row.
  static void interleave(Vec& even, Vec& odd) {
    const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    const __m512 first = _mm512_permutex2var_ps(even.v, low, odd.v);
    odd.v = _mm512_permutex2var_ps(even.v, high, odd.v);
    even.v = first;
  }
  /// Four numbers, repeated; of vectors of such quads, sums over each quad: (a, b, c, d) of the
  /// first, of the second, ...
  static Vec broadcast_quad(const float* p) { return {_mm512_broadcast_f32x4(_mm_loadu_ps(p))}; }
  static Vec load_quads(const float* p) { return load(p); }
  static Vec quad_sums(Vec a, Vec b, Vec c, Vec d) {
    const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a.v, b.v), _mm512_unpackhi_ps(a.v, b.v));
    const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c.v, d.v), _mm512_unpackhi_ps(c.v, d.v));
    return {_mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee))};
  }
  /// Quads at p, p + step, p + 2 step, p + 3 step.
  static Vec gather_quads(const float* p, index_t step) {
    __m512 x = _mm512_castps128_ps512(_mm_loadu_ps(p));
    x = _mm512_mask_broadcast_f32x4(x, 0x00f0, _mm_loadu_ps(p + step));
    x = _mm512_mask_broadcast_f32x4(x, 0x0f00, _mm_loadu_ps(p + 2 * step));
    return {_mm512_mask_broadcast_f32x4(x, 0xf000, _mm_loadu_ps(p + 3 * step))};
  }
  /// Quad k of the four, as rows, becomes quad k of the four, as columns.
  static void transpose_quads(Vec (&a)[4]) {
    const __m512 low0 = _mm512_unpacklo_ps(a[0].v, a[1].v);
    const __m512 high0 = _mm512_unpackhi_ps(a[0].v, a[1].v);
    const __m512 low1 = _mm512_unpacklo_ps(a[2].v, a[3].v);
    const __m512 high1 = _mm512_unpackhi_ps(a[2].v, a[3].v);
    a[0].v = _mm512_shuffle_ps(low0, low1, 0x44), a[1].v = _mm512_shuffle_ps(low0, low1, 0xee);
    a[2].v = _mm512_shuffle_ps(high0, high1, 0x44), a[3].v = _mm512_shuffle_ps(high0, high1, 0xee);
  }
  /// Masks: all ones or all zeros in each lane.
  static Vec load_mask(const std::int32_t* p) {
    return {_mm512_castsi512_ps(_mm512_loadu_si512(p))};
  }

  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(float* p, index_t n) const { _mm512_mask_storeu_ps(p, detail::lanes16(n), v); }
  void store(bfloat16* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow()); }
  void store(bfloat16* p, index_t n) const {
    _mm256_mask_storeu_epi16(p, detail::lanes16(n), narrow());
  }
  void store(half* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, 0));
  }
  void store(half* p, index_t n) const {
    _mm256_mask_storeu_epi16(p, detail::lanes16(n), _mm512_cvtps_ph(v, 0));
  }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  friend Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
  friend Vec sqrt(Vec a) { return {_mm512_sqrt_ps(a.v)}; }
  friend Vec round(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
  friend Vec select(Vec mask, Vec a, Vec b) {
    return {_mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(mask.v)), b.v, a.v)};
  }
  friend Vec bit_and(Vec a, Vec mask) { return {_mm512_and_ps(a.v, mask.v)}; }
  friend Vec pow2(Vec n) {
    const __m512i biased = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(biased, 23))};
  }
  friend float sum(Vec a) { return _mm512_reduce_add_ps(a.v); }
  friend float largest(Vec a) { return _mm512_reduce_max_ps(a.v); }
  static Vec sums(const Vec (&a)[kLanes]) {
    return across(a, [](__m512 x, __m512 y) { return _mm512_add_ps(x, y); });
  }
  static Vec tops(const Vec (&a)[kLanes]) {
    return across(a, [](__m512 x, __m512 y) { return _mm512_max_ps(x, y); });
  }
  /// p of degree 5, minimax with p(0) = 1: within 1.8 units in the last place, rounding included.
  static Vec exp2_flushed(Vec x) {
    return exp2_by(x, [](__m512 f) {
      __m512 p = _mm512_set1_ps(1.885297e-3f);
      p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.97337124e-3f));
      p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.58359101e-2f));
      p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.40152806e-1f));
      p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93152487e-1f));
      return _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
    });
  }
  /// Of degree 4, error 3e-6.
  static Vec exp2_coarse(Vec x) {
    return exp2_by(x, [](__m512 f) {
      __m512 p = _mm512_set1_ps(1.34266898e-2f);
      p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.22424652e-2f));
      p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.41280209e-1f));
      p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.93044844e-1f));
      return _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.f));
    });
  }
  /// Rows become columns: pairs within 4 x 4 blocks, then the blocks.
  static void transpose(Vec (&a)[kLanes]) {
    __m512 t[16], u[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
      t[i] = _mm512_unpacklo_ps(a[i].v, a[i + 1].v);
      t[i + 1] = _mm512_unpackhi_ps(a[i].v, a[i + 1].v);
      t[i + 2] = _mm512_unpacklo_ps(a[i + 2].v, a[i + 3].v);
      t[i + 3] = _mm512_unpackhi_ps(a[i + 2].v, a[i + 3].v);
      u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
      u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
      u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    // u[4 r + c] holds, in its block b, column 4 b + c of rows 4 r to 4 r + 3.
#pragma GCC unroll 16
    for (int c = 0; c < 4; ++c) {
      const __m512 low0 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x44);
      const __m512 high0 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xee);
      const __m512 low1 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x44);
      const __m512 high1 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xee);
      a[c].v = _mm512_shuffle_f32x4(low0, low1, 0x88);
      a[4 + c].v = _mm512_shuffle_f32x4(low0, low1, 0xdd);
      a[8 + c].v = _mm512_shuffle_f32x4(high0, high1, 0x88);
      a[12 + c].v = _mm512_shuffle_f32x4(high0, high1, 0xdd);
    }
  }

 private:
  /// Whole and fractional part in an instruction each: 2^x = 2^floor(x) p(x - floor(x)).
  template <class Polynomial>
  static Vec exp2_by(Vec x, Polynomial p) {
    const __mmask16 normal = _mm512_cmp_ps_mask(x.v, _mm512_set1_ps(-126.f), _CMP_NLT_UQ);
    return {_mm512_maskz_scalef_ps(normal, p(_mm512_reduce_ps(x.v, _MM_FROUND_TO_NEG_INF)), x.v)};
  }
  /// Lane i: op over the lanes of a[i]. Each step joins two vectors into one: their outer parts in
  /// one operand, by a blend, their inner parts in the other, by a shuffle; halves first, so that
  /// the order of the vectors is kept.
  template <class Op>
  static Vec across(const Vec (&a)[kLanes], Op op) {
    __m512 blocks[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const auto halves = [&](__m512 x, __m512 y) {
        return op(_mm512_mask_blend_ps(0xff00, x, y), _mm512_shuffle_f32x4(x, y, 0x4e));
      };
      const __m512 low = halves(a[c].v, a[8 + c].v), high = halves(a[4 + c].v, a[12 + c].v);
      const __m512 mixed = _mm512_mask_blend_ps(0xf0f0, high, low);
      blocks[c] =
          op(_mm512_mask_blend_ps(0xf0f0, low, high), _mm512_shuffle_f32x4(mixed, mixed, 0xb1));
    }
    const auto pairs = [&](__m512 x, __m512 y) {
      return op(_mm512_mask_blend_ps(0xcccc, x, y), _mm512_shuffle_ps(x, y, 0x4e));
    };
    const __m512 even = pairs(blocks[0], blocks[2]), odd = pairs(blocks[1], blocks[3]);
    return {op(_mm512_mask_blend_ps(0xaaaa, even, odd),
               _mm512_permute_ps(_mm512_mask_blend_ps(0xaaaa, odd, even), 0xb1))};
  }
  static __m128i bytes(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m128i bytes(const void* p, index_t n) {
    return _mm_maskz_loadu_epi8(detail::lanes16(n), p);
  }
  static Vec whole_numbers(__m128i codes) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))};
  }
  static Vec from_e5m2(__m128i codes) {  // the upper half of a half
    return {_mm512_cvtph_ps(_mm256_slli_epi16(_mm256_cvtepu8_epi16(codes), 8))};
  }
  // Sign, 0 and the other bits are those of a half whose exponent is 8 short of what it says, but
  // for the one NaN.
  static Vec from_e4m3(__m128i codes) {
    const __m256i shifted = _mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7);
    const __m256i top = _mm256_set1_epi16(0x3f80);
    const __mmask16 nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(shifted, top), top);
    const __m256i bits = _mm256_andnot_si256(_mm256_set1_epi16(0x4000), shifted);
    const __m256i halves = _mm256_mask_blend_epi16(nan, bits, _mm256_set1_epi16(-1));
    return {_mm512_mul_ps(_mm512_cvtph_ps(halves), _mm512_set1_ps(256.f))};
  }
  static Vec widen(__m256i bits) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  // Not vcvtneps2bf16, which flushes subnormals: round to nearest even by adding just below half an
  // ulp, plus the last kept bit; NaN stays NaN.
  __m256i narrow() const {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded =
        _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(
        _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16));
  }
};

template <>
struct Vec<double> {
  using value_type = double;
  static constexpr int kLanes = 8;
  static constexpr int kRegisters = 32;
  __m512d v;

  static Vec zero() { return {_mm512_setzero_pd()}; }
  static Vec broadcast(double x) { return {_mm512_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec load(const double* p, index_t n) {
    return {_mm512_maskz_loadu_pd(detail::lanes8(n), p)};
  }
  static Vec load_mask(const std::int64_t* p) {
    return {_mm512_castsi512_pd(_mm512_loadu_si512(p))};
  }

  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store(double* p, index_t n) const { _mm512_mask_storeu_pd(p, detail::lanes8(n), v); }

  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_pd(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_pd(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_pd(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {_mm512_div_pd(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  friend Vec max(Vec a, Vec b) { return {_mm512_max_pd(a.v, b.v)}; }
  friend Vec min(Vec a, Vec b) { return {_mm512_min_pd(a.v, b.v)}; }
  friend Vec sqrt(Vec a) { return {_mm512_sqrt_pd(a.v)}; }
  friend Vec round(Vec a) { return {_mm512_roundscale_pd(a.v, _MM_FROUND_TO_NEAREST_INT)}; }
  friend Vec select(Vec mask, Vec a, Vec b) {
    return {_mm512_mask_blend_pd(_mm512_movepi64_mask(_mm512_castpd_si512(mask.v)), b.v, a.v)};
  }
  friend Vec bit_and(Vec a, Vec mask) { return {_mm512_and_pd(a.v, mask.v)}; }
  friend Vec pow2(Vec n) {
    const __m512i biased = _mm512_add_epi64(_mm512_cvtpd_epi64(n.v), _mm512_set1_epi64(1023));
    return {_mm512_castsi512_pd(_mm512_slli_epi64(biased, 52))};
  }
  friend double sum(Vec a) { return _mm512_reduce_add_pd(a.v); }
  friend double largest(Vec a) { return _mm512_reduce_max_pd(a.v); }
  static Vec sums(const Vec (&a)[kLanes]) {
    Vec rows[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = a[i];
    transpose(rows);
#pragma GCC unroll 16
    for (int n = kLanes / 2; n > 0; n /= 2)
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i) rows[i] = rows[i] + rows[i + n];
    return rows[0];
  }
  static void transpose(Vec (&a)[kLanes]) {
    __m512d t[8];
#pragma GCC unroll 16
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm512_unpacklo_pd(a[i].v, a[i + 1].v);      // columns 0 2 4 6
      t[i + 1] = _mm512_unpackhi_pd(a[i].v, a[i + 1].v);  // columns 1 3 5 7
    }
#pragma GCC unroll 16
    for (int c = 0; c < 2; ++c) {
      const __m512d low0 = _mm512_shuffle_f64x2(t[c], t[2 + c], 0x44);
      const __m512d high0 = _mm512_shuffle_f64x2(t[c], t[2 + c], 0xee);
      const __m512d low1 = _mm512_shuffle_f64x2(t[4 + c], t[6 + c], 0x44);
      const __m512d high1 = _mm512_shuffle_f64x2(t[4 + c], t[6 + c], 0xee);
      a[c].v = _mm512_shuffle_f64x2(low0, low1, 0x88);
      a[2 + c].v = _mm512_shuffle_f64x2(low0, low1, 0xdd);
      a[4 + c].v = _mm512_shuffle_f64x2(high0, high1, 0x88);
      a[6 + c].v = _mm512_shuffle_f64x2(high0, high1, 0xdd);
    }
  }
};

namespace detail {
/// Rows of 16 integers of 32 bits as columns. X holds one, v.
template <class X>
[[gnu::always_inline]] inline void transpose_bits(X (&a)[16]) {
  Vec<float> bits[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) bits[i].v = _mm512_castsi512_ps(a[i].v);
  Vec<float>::transpose(bits);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i].v = _mm512_castps_si512(bits[i].v);
}
}  // namespace detail

#if defined(RAPT_BFLOAT16_DOT)
/// Pairs of bfloat16, for vdpbf16ps.
template <>
struct Vec<Bfloat16Pair> {
  static constexpr int kLanes = 16;
  __m512i v;

  static Vec zero() { return {_mm512_setzero_si512()}; }
  static Vec load(const Bfloat16Pair* p) { return {_mm512_loadu_si512(p)}; }
  /// The pairs that lie at p, of which `elements` elements exist; others are 0.
  static Vec load_pairs(const bfloat16* p, index_t elements) {
    if (elements >= 2 * kLanes) return {_mm512_loadu_si512(p)};
    return {_mm512_maskz_loadu_epi16(static_cast<__mmask32>((1u << elements) - 1u), p)};
  }
  /// Eight numbers, repeated.
  static Vec broadcast_quad(const bfloat16* p) {
    return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Vec load_quads(const bfloat16* p) { return {_mm512_loadu_si512(p)}; }
  static Vec broadcast(const bfloat16& first) {
    int bits;
    std::memcpy(&bits, &first, sizeof bits);
    return {_mm512_set1_epi32(bits)};
  }
  /// Lane i: (even[i], odd[i]) for the first n lanes, others 0; an absent row is 0.
  static Vec interleave(const bfloat16* even, const bfloat16* odd, index_t n) {
    const __mmask16 lanes = detail::lanes16(n);
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, even));
    if (odd == nullptr) return {low};
    const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(lanes, odd));
    return {_mm512_or_si512(low, _mm512_slli_epi32(high, 16))};
  }
  /// Pairs (first[i], second[i]) of 32 numbers each (no second: 0), in an order that order_rows
  /// makes that of the numbers.
  static void pair_rows(const bfloat16* first, const bfloat16* second, Vec& low, Vec& high) {
    const __m512i a = _mm512_loadu_si512(first);
    const __m512i b = second == nullptr ? _mm512_setzero_si512() : _mm512_loadu_si512(second);
    low.v = _mm512_unpacklo_epi16(a, b), high.v = _mm512_unpackhi_epi16(a, b);
  }
  static void order_rows(Vec<float>& low, Vec<float>& high) {
    const __m512i lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
    const __m512 first = _mm512_permutex2var_ps(low.v, lower, high.v);
    high.v = _mm512_permutex2var_ps(low.v, upper, high.v);
    low.v = first;
  }
  /// Bits of each lane, as Vec<float> has them.
  static Vec load_mask(const std::int32_t* p) { return {_mm512_loadu_si512(p)}; }
  friend Vec bit_and(Vec a, Vec mask) { return {_mm512_and_si512(a.v, mask.v)}; }
  /// The numbers of two vectors in their order, to nearest even; what is subnormal becomes 0.
  static Vec narrow(Vec<float> first, Vec<float> second) {
    return {reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second.v, first.v))};
  }
  /// Lane i: (even[i], odd[i]), rounded in the same way.
  static Vec narrow_pairs(Vec<float> even, Vec<float> odd) {
    const __m512i order =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return {_mm512_permutexvar_epi16(order, narrow(even, odd).v)};
  }
  /// The parts of both (cpu/float_parts.hpp): pairs (even[i], odd[i]) at p, p + step, ... What is
  /// left after kParts - 1 is cut to 8 bits, which loses nothing of fp32 in three or half in two.
  template <int kParts>
  static void store_parts(Bfloat16Pair* p, index_t step, Vec<float> even, Vec<float> odd) {
    const auto part = [](__m512 x) __attribute__((always_inline)) {  // to nearest, halves upwards
      const __m512i up = _mm512_add_epi32(_mm512_castps_si512(x), _mm512_set1_epi32(0x8000));
      return _mm512_castsi512_ps(_mm512_and_si512(up, _mm512_set1_epi32(-0x10000)));
    };
    const auto pairs = [](__m512 x, __m512 y) __attribute__((always_inline)) {  // upper halves
      return _mm512_mask_blend_epi16(0x55555555, _mm512_castps_si512(y),
                                     _mm512_srli_epi32(_mm512_castps_si512(x), 16));
    };
#pragma GCC unroll 2
    for (int i = 0; i < kParts - 1; ++i) {
      const __m512 x = part(even.v), y = part(odd.v);
      _mm512_storeu_si512(p + i * step, pairs(x, y));
      even.v = _mm512_sub_ps(even.v, x), odd.v = _mm512_sub_ps(odd.v, y);
    }
    _mm512_storeu_si512(p + (kParts - 1) * step, pairs(even.v, odd.v));
  }
  void store(Bfloat16Pair* p) const { _mm512_storeu_si512(p, v); }
  void store(bfloat16* p) const { _mm512_storeu_si512(p, v); }

  friend Vec<float> fma(Vec a, Vec b, Vec<float> c) {
    return {
        _mm512_dpbf16_ps(c.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
  static void transpose(Vec (&a)[kLanes]) { detail::transpose_bits(a); }
};
#endif

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
