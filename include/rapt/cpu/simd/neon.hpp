// Vec for 64-bit Arm (4 floats, 2 doubles; 32 registers).
// Included by cpu/simd.hpp alone, which documents the operations.
#pragma once

#include <arm_neon.h>

#include "rapt/core/dtype.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

#if defined(__ARM_FEATURE_DOTPROD)
inline constexpr const char* kIsa = "neon_dot";
#else
inline constexpr const char* kIsa = "neon";
#endif
inline constexpr bool kBfloat16Dot = false;

template <class T>
struct Vec;

template <>
struct Vec<float> {
  using value_type = float;
  static constexpr int kLanes = 4;
  static constexpr int kRegisters = 32;
  float32x4_t v;

  static Vec zero() { return {vdupq_n_f32(0)}; }
  static Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  static Vec load(const bfloat16* p) {
    const uint16x4_t bits = vld1_u16(reinterpret_cast<const std::uint16_t*>(p));
    return {vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(bits), 16))};
  }
  static Vec load(const half* p) {
    return {
        vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(reinterpret_cast<const std::uint16_t*>(p))))};
  }
  static Vec load(const std::int8_t* p) {
    const int16x8_t wide = vmovl_s8(vreinterpret_s8_u8(bytes(p)));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)))};
  }
  static Vec load(const float8_e5m2* p) {  // the upper half of a half
    return halves(vshl_n_u16(vget_low_u16(vmovl_u8(bytes(p))), 8));
  }
  static Vec load(const float8_e4m3* p) {
    // Sign, 0 and the other bits are those of a half whose exponent is 8 short of what it says, but
    // for the one NaN.
    const uint16x4_t code = vget_low_u16(vmovl_u8(bytes(p)));
    const uint16x4_t rest = vand_u16(code, vdup_n_u16(0x7f));
    const uint16x4_t nan = vceq_u16(rest, vdup_n_u16(0x7f));
    const uint16x4_t sign = vshl_n_u16(vand_u16(code, vdup_n_u16(0x80)), 8);
    return halves(vorr_u16(vorr_u16(sign, vshl_n_u16(rest, 7)), nan)) * broadcast(256.f);
  }
  template <class H>
  static Vec load(const H* p, index_t n) {
    H lanes[kLanes] = {};
    std::memcpy(lanes, p, static_cast<std::size_t>(n) * sizeof(H));
    return load(lanes);
  }
  /// Masks: all ones or all zeros in each lane.
  static Vec load_mask(const std::int32_t* p) { return {vreinterpretq_f32_s32(vld1q_s32(p))}; }

  void store(float* p) const { vst1q_f32(p, v); }
  void store(half* p) const {
    vst1_u16(reinterpret_cast<std::uint16_t*>(p), vreinterpret_u16_f16(vcvt_f16_f32(v)));
  }
  void store(bfloat16* p) const {
    float lanes[kLanes];
    store(lanes);
    for (int i = 0; i < kLanes; ++i) p[i] = bfloat16(lanes[i]);
  }
  template <class H>
  void store(H* p, index_t n) const {
    H lanes[kLanes];
    store(lanes);
    std::memcpy(p, lanes, static_cast<std::size_t>(n) * sizeof(H));
  }

  friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f32(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  friend Vec max(Vec a, Vec b) { return {vbslq_f32(vcgtq_f32(a.v, b.v), a.v, b.v)}; }
  friend Vec min(Vec a, Vec b) { return {vbslq_f32(vcltq_f32(a.v, b.v), a.v, b.v)}; }
  friend Vec sqrt(Vec a) { return {vsqrtq_f32(a.v)}; }
  friend Vec round(Vec a) { return {vrndnq_f32(a.v)}; }
  friend Vec select(Vec mask, Vec a, Vec b) {
    return {vbslq_f32(vcltzq_s32(vreinterpretq_s32_f32(mask.v)), a.v, b.v)};
  }
  friend Vec bit_and(Vec a, Vec mask) {
    return {vreinterpretq_f32_u32(
        vandq_u32(vreinterpretq_u32_f32(a.v), vreinterpretq_u32_f32(mask.v)))};
  }
  friend Vec pow2(Vec n) {
    return {
        vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v), vdupq_n_s32(127)), 23))};
  }
  friend float sum(Vec a) { return vaddvq_f32(a.v); }
  friend float largest(Vec a) { return vmaxnmvq_f32(a.v); }
  static Vec sums(const Vec (&a)[kLanes]) {
    return {vpaddq_f32(vpaddq_f32(a[0].v, a[1].v), vpaddq_f32(a[2].v, a[3].v))};
  }
  /// Rows become columns.
  static void transpose(Vec (&a)[kLanes]) {
    const float32x4_t t0 = vtrn1q_f32(a[0].v, a[1].v), t1 = vtrn2q_f32(a[0].v, a[1].v);
    const float32x4_t t2 = vtrn1q_f32(a[2].v, a[3].v), t3 = vtrn2q_f32(a[2].v, a[3].v);
    a[0].v = pair<0>(t0, t2), a[1].v = pair<0>(t1, t3);
    a[2].v = pair<1>(t0, t2), a[3].v = pair<1>(t1, t3);
  }

 private:
  static uint8x8_t bytes(const void* p) {  // the first four
    std::uint32_t four;
    std::memcpy(&four, p, sizeof four);
    return vcreate_u8(four);
  }
  static Vec halves(uint16x4_t bits) { return {vcvt_f32_f16(vreinterpret_f16_u16(bits))}; }
  template <int kHalf>
  static float32x4_t pair(float32x4_t a, float32x4_t b) {
    const float64x2_t x = vreinterpretq_f64_f32(a), y = vreinterpretq_f64_f32(b);
    return vreinterpretq_f32_f64(kHalf == 0 ? vtrn1q_f64(x, y) : vtrn2q_f64(x, y));
  }
};

template <>
struct Vec<double> {
  using value_type = double;
  static constexpr int kLanes = 2;
  static constexpr int kRegisters = 32;
  float64x2_t v;

  static Vec zero() { return {vdupq_n_f64(0)}; }
  static Vec broadcast(double x) { return {vdupq_n_f64(x)}; }
  static Vec load(const double* p) { return {vld1q_f64(p)}; }
  static Vec load(const double* p, index_t n) {
    double lanes[kLanes] = {};
    std::memcpy(lanes, p, static_cast<std::size_t>(n) * sizeof(double));
    return load(lanes);
  }
  static Vec load_mask(const std::int64_t* p) { return {vreinterpretq_f64_s64(vld1q_s64(p))}; }

  void store(double* p) const { vst1q_f64(p, v); }
  void store(double* p, index_t n) const {
    double lanes[kLanes];
    store(lanes);
    std::memcpy(p, lanes, static_cast<std::size_t>(n) * sizeof(double));
  }

  friend Vec operator+(Vec a, Vec b) { return {vaddq_f64(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f64(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f64(a.v, b.v)}; }
  friend Vec operator/(Vec a, Vec b) { return {vdivq_f64(a.v, b.v)}; }
  friend Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f64(c.v, a.v, b.v)}; }
  friend Vec max(Vec a, Vec b) { return {vbslq_f64(vcgtq_f64(a.v, b.v), a.v, b.v)}; }
  friend Vec min(Vec a, Vec b) { return {vbslq_f64(vcltq_f64(a.v, b.v), a.v, b.v)}; }
  friend Vec sqrt(Vec a) { return {vsqrtq_f64(a.v)}; }
  friend Vec round(Vec a) { return {vrndnq_f64(a.v)}; }
  friend Vec select(Vec mask, Vec a, Vec b) {
    return {vbslq_f64(vcltzq_s64(vreinterpretq_s64_f64(mask.v)), a.v, b.v)};
  }
  friend Vec bit_and(Vec a, Vec mask) {
    return {vreinterpretq_f64_u64(
        vandq_u64(vreinterpretq_u64_f64(a.v), vreinterpretq_u64_f64(mask.v)))};
  }
  friend Vec pow2(Vec n) {
    return {
        vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(vcvtnq_s64_f64(n.v), vdupq_n_s64(1023)), 52))};
  }
  friend double sum(Vec a) { return vaddvq_f64(a.v); }
  friend double largest(Vec a) { return vmaxnmvq_f64(a.v); }
  static Vec sums(const Vec (&a)[kLanes]) { return {vpaddq_f64(a[0].v, a[1].v)}; }
  static void transpose(Vec (&a)[kLanes]) {
    const float64x2_t t = vtrn1q_f64(a[0].v, a[1].v);
    a[1].v = vtrn2q_f64(a[0].v, a[1].v);
    a[0].v = t;
  }
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
