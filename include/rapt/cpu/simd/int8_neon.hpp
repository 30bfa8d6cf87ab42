// Quads for 64-bit Arm, with the dot-product instructions (Armv8.2) or without.
// Included by cpu/int8.hpp alone, which documents the operations.
#pragma once

namespace rapt::cpu {
inline namespace RAPT_SIMD {

struct Quads {
  static constexpr int kLanes = Vec<float>::kLanes;
  uint8x16_t v;

  static Quads zero() { return {vdupq_n_u8(0)}; }
  static Quads bytes(int x) { return {vdupq_n_u8(static_cast<std::uint8_t>(x))}; }
  static Quads load(const void* p) { return {vld1q_u8(static_cast<const std::uint8_t*>(p))}; }
  void store(void* p) const { vst1q_u8(static_cast<std::uint8_t*>(p), v); }
  static Quads broadcast(const void* p) {
    std::uint32_t four;
    std::memcpy(&four, p, sizeof four);
    return {vreinterpretq_u8_u32(vdupq_n_u32(four))};
  }
  template <int n>
  Quads right() const {
    return {vreinterpretq_u8_u16(vshrq_n_u16(vreinterpretq_u16_u8(v), n))};
  }
  template <int n>
  Quads left() const {
    return {vreinterpretq_u8_u16(vshlq_n_u16(vreinterpretq_u16_u8(v), n))};
  }
  friend Quads operator&(Quads a, Quads b) { return {vandq_u8(a.v, b.v)}; }
  friend Quads operator|(Quads a, Quads b) { return {vorrq_u8(a.v, b.v)}; }

  friend Quads dot(Quads s, Quads c, Quads x) {
    const int32x4_t sums = vreinterpretq_s32_u8(s.v);
    const int8x16_t a = vreinterpretq_s8_u8(c.v), b = vreinterpretq_s8_u8(x.v);
#if defined(__ARM_FEATURE_DOTPROD)
    return {vreinterpretq_u8_s32(vdotq_s32(sums, a, b))};
#else
    const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
    const int16x8_t high = vmull_s8(vget_high_s8(a), vget_high_s8(b));
    const int32x4_t four = vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high));
    return {vreinterpretq_u8_s32(vaddq_s32(sums, four))};
#endif
  }
  // Signed instructions: c = 2 (c >> 1) + (c & 1).
  friend Quads dot_wide(Quads s, Quads c, Quads x) {
    const Quads half = {vshrq_n_u8(c.v, 1)};
    return dot(dot(dot(s, half, x), half, x), c & bytes(1), x);
  }

  friend Quads add(Quads a, Quads b) {
    return {vreinterpretq_u8_s32(vaddq_s32(vreinterpretq_s32_u8(a.v), vreinterpretq_s32_u8(b.v)))};
  }
  friend Vec<float> to_float(Quads a) { return {vcvtq_f32_s32(vreinterpretq_s32_u8(a.v))}; }
};

inline Vec<float> unsigned_lanes(const std::uint8_t* p) {
  std::uint32_t four;
  std::memcpy(&four, p, sizeof four);
  const uint16x8_t words = vmovl_u8(vcreate_u8(four));
  return {vcvtq_f32_u32(vmovl_u16(vget_low_u16(words)))};
}
inline Vec<float> signed_lanes(const std::uint8_t* p) {
  std::uint32_t four;
  std::memcpy(&four, p, sizeof four);
  const int16x8_t words = vmovl_s8(vcreate_s8(four));
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)))};
}
inline void store_int8(std::int8_t* p, Vec<float> v) {
  const int16x4_t words = vqmovn_s32(vcvtnq_s32_f32(v.v));
  const int8x8_t four = vqmovn_s16(vcombine_s16(words, words));
  const std::uint32_t bits = vget_lane_u32(vreinterpret_u32_s8(four), 0);
  std::memcpy(p, &bits, sizeof bits);
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
