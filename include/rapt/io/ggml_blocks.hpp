// The quantised blocks of GGUF files, and their values.
//
// A row of a tensor is a run of blocks; a block holds 32 or 256 consecutive weights. d, m are
// half-precision scales; q an unsigned code.
//
//            weights  bytes  layout, in bytes                                       weight i
//   Q4_0        32      18   d 2 | nibbles 16                                       d (q - 8)
//   Q4_1        32      20   d 2 | m 2 | nibbles 16                                 d q + m
//   Q5_0        32      22   d 2 | fifth bits 4 | nibbles 16                        d (q - 16)
//   Q5_1        32      24   d 2 | m 2 | fifth bits 4 | nibbles 16                  d q + m
//   Q8_0        32      34   d 2 | int8 32                                          d q
//   Q4_K       256     144   d 2 | m 2 | scales 12 | nibbles 128                    d s q - m t
//   Q5_K       256     176   d 2 | m 2 | scales 12 | fifth bits 32 | nibbles 128    d s q - m t
//   Q6_K       256     210   nibbles 128 | upper pairs 64 | int8 scales 16 | d 2    d s (q - 32)
//
// Nibbles of the 32-weight types: byte i holds weight i below and weight i + 16 above; fifth bit i
// is bit i of a little-endian u32.
//
//   byte     0        1              15                K-quants take 64 weights at a time:
//         [16 | 0] [17 | 1]  ...  [31 | 15]            byte i of 32 holds weight i and i + 32
//
// In a K-quant every 32 weights have a 6-bit scale s and a 6-bit minimum t (Q6_K: every 16 an int8
// scale). The twelve bytes of scales, capital letters s, small letters t, digit = sub-block, each
// group of lower or upper bits highest first:
//
//   byte 0..3   S4..S7 bits 5,4 | S0..S3 bits 5..0
//   byte 4..7   T4..T7 bits 5,4 | T0..T3 bits 5..0
//   byte 8..11  T4..T7 bits 3..0 | S4..S7 bits 3..0
//
// Every product of d, s and q has at most 24 significant bits, so it is exact in float and a value
// is rounded at most once, by the sum: all implementations agree bit for bit.
//
// Source: ggml, src/ggml-common.h and ggml-quants.c (layouts); checked against gguf-py 0.19.0.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "rapt/core/dtype.hpp"
#include "rapt/core/error.hpp"

namespace rapt {

/// The types of GGUF, with the numbers that the file uses.
enum class GgmlType : std::uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q8_1 = 9,
  q2_k = 10,
  q3_k = 11,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  q8_k = 15,
  iq2_xxs = 16,
  iq2_xs = 17,
  iq3_xxs = 18,
  iq1_s = 19,
  iq4_nl = 20,
  iq3_s = 21,
  iq2_s = 22,
  iq4_xs = 23,
  i8 = 24,
  i16 = 25,
  i32 = 26,
  i64 = 27,
  f64 = 28,
  iq1_m = 29,
  bf16 = 30,
  tq1_0 = 34,
  tq2_0 = 35,
  mxfp4 = 39,
  nvfp4 = 40,
  q1_0 = 41,
};

/// What one type looks like in a file; `dtype` where it holds plain numbers.
struct GgmlTypeInfo {
  GgmlType type;
  std::string_view name;
  std::uint32_t block;  // weights
  std::uint32_t bytes;  // of a block
  bool readable;        // whether rapt can turn it into numbers
  std::optional<DType> dtype;
};

inline constexpr std::array<GgmlTypeInfo, 34> kGgmlTypes = {{
    {GgmlType::f32, "F32", 1, 4, true, DType::f32},
    {GgmlType::f16, "F16", 1, 2, true, DType::f16},
    {GgmlType::q4_0, "Q4_0", 32, 18, true, std::nullopt},
    {GgmlType::q4_1, "Q4_1", 32, 20, true, std::nullopt},
    {GgmlType::q5_0, "Q5_0", 32, 22, true, std::nullopt},
    {GgmlType::q5_1, "Q5_1", 32, 24, true, std::nullopt},
    {GgmlType::q8_0, "Q8_0", 32, 34, true, std::nullopt},
    {GgmlType::q8_1, "Q8_1", 32, 40, false, std::nullopt},
    {GgmlType::q2_k, "Q2_K", 256, 84, false, std::nullopt},
    {GgmlType::q3_k, "Q3_K", 256, 110, false, std::nullopt},
    {GgmlType::q4_k, "Q4_K", 256, 144, true, std::nullopt},
    {GgmlType::q5_k, "Q5_K", 256, 176, true, std::nullopt},
    {GgmlType::q6_k, "Q6_K", 256, 210, true, std::nullopt},
    {GgmlType::q8_k, "Q8_K", 256, 292, false, std::nullopt},
    {GgmlType::iq2_xxs, "IQ2_XXS", 256, 66, false, std::nullopt},
    {GgmlType::iq2_xs, "IQ2_XS", 256, 74, false, std::nullopt},
    {GgmlType::iq3_xxs, "IQ3_XXS", 256, 98, false, std::nullopt},
    {GgmlType::iq1_s, "IQ1_S", 256, 50, false, std::nullopt},
    {GgmlType::iq4_nl, "IQ4_NL", 32, 18, false, std::nullopt},
    {GgmlType::iq3_s, "IQ3_S", 256, 110, false, std::nullopt},
    {GgmlType::iq2_s, "IQ2_S", 256, 82, false, std::nullopt},
    {GgmlType::iq4_xs, "IQ4_XS", 256, 136, false, std::nullopt},
    {GgmlType::i8, "I8", 1, 1, true, DType::i8},
    {GgmlType::i16, "I16", 1, 2, true, DType::i16},
    {GgmlType::i32, "I32", 1, 4, true, DType::i32},
    {GgmlType::i64, "I64", 1, 8, true, DType::i64},
    {GgmlType::f64, "F64", 1, 8, true, DType::f64},
    {GgmlType::iq1_m, "IQ1_M", 256, 56, false, std::nullopt},
    {GgmlType::bf16, "BF16", 1, 2, true, DType::bf16},
    {GgmlType::tq1_0, "TQ1_0", 256, 54, false, std::nullopt},
    {GgmlType::tq2_0, "TQ2_0", 256, 66, false, std::nullopt},
    {GgmlType::mxfp4, "MXFP4", 32, 17, false, std::nullopt},
    {GgmlType::nvfp4, "NVFP4", 64, 36, false, std::nullopt},
    {GgmlType::q1_0, "Q1_0", 128, 18, false, std::nullopt},
}};

/// Null for a number that names no type (or one that was removed from the format).
constexpr const GgmlTypeInfo* find_ggml_type(std::uint32_t number) {
  for (const GgmlTypeInfo& info : kGgmlTypes)
    if (static_cast<std::uint32_t>(info.type) == number) return &info;
  return nullptr;
}

/// "F32, F16, Q4_0, ...": what dequantize_row and GgufFile::read accept.
inline std::string readable_ggml_types() {
  std::string names;
  for (const GgmlTypeInfo& info : kGgmlTypes)
    if (info.readable) names += (names.empty() ? "" : ", ") + std::string(info.name);
  return names;
}

// The blocks. Members are read in place in a mapped file, where nothing is aligned to more than a
// byte's guarantee: a block is copied (or its bytes are) before a scale is looked at.
struct BlockQ4_0 {
  static constexpr int kWeights = 32;
  half d;
  std::uint8_t q[16];
};
struct BlockQ4_1 {
  static constexpr int kWeights = 32;
  half d, m;
  std::uint8_t q[16];
};
struct BlockQ5_0 {
  static constexpr int kWeights = 32;
  half d;
  std::uint8_t fifth[4];
  std::uint8_t q[16];
};
struct BlockQ5_1 {
  static constexpr int kWeights = 32;
  half d, m;
  std::uint8_t fifth[4];
  std::uint8_t q[16];
};
struct BlockQ8_0 {
  static constexpr int kWeights = 32;
  half d;
  std::int8_t q[32];
};
struct BlockQ4_K {
  static constexpr int kWeights = 256;
  half d, m;
  std::uint8_t scales[12];
  std::uint8_t q[128];
};
struct BlockQ5_K {
  static constexpr int kWeights = 256;
  half d, m;
  std::uint8_t scales[12];
  std::uint8_t fifth[32];
  std::uint8_t q[128];
};
struct BlockQ6_K {
  static constexpr int kWeights = 256;
  std::uint8_t lower[128];
  std::uint8_t upper[64];
  std::int8_t scales[16];
  half d;
};
static_assert(sizeof(BlockQ4_0) == 18, "a Q4_0 block is 18 bytes in the file");
static_assert(sizeof(BlockQ4_1) == 20, "a Q4_1 block is 20 bytes in the file");
static_assert(sizeof(BlockQ5_0) == 22, "a Q5_0 block is 22 bytes in the file");
static_assert(sizeof(BlockQ5_1) == 24, "a Q5_1 block is 24 bytes in the file");
static_assert(sizeof(BlockQ8_0) == 34, "a Q8_0 block is 34 bytes in the file");
static_assert(sizeof(BlockQ4_K) == 144, "a Q4_K block is 144 bytes in the file");
static_assert(sizeof(BlockQ5_K) == 176, "a Q5_K block is 176 bytes in the file");
static_assert(sizeof(BlockQ6_K) == 210, "a Q6_K block is 210 bytes in the file");

namespace detail {

inline std::uint32_t fifth_bits(const std::uint8_t (&bytes)[4]) {
  std::uint32_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return bits;
}

/// Scale and minimum of sub-block j of a Q4_K or Q5_K block; drawing at the top.
struct ScaleAndMin {
  int scale, min;
};
inline ScaleAndMin scale_and_min(const std::uint8_t (&bytes)[12], int j) {
  if (j < 4) return {bytes[j] & 63, bytes[j + 4] & 63};
  return {(bytes[j + 4] & 15) | (bytes[j - 4] >> 6) << 4, (bytes[j + 4] >> 4) | (bytes[j] >> 6)
                                                                                    << 4};
}

}  // namespace detail

/// out[0, kWeights) = the values of a block.
inline void dequantize(const BlockQ4_0& b, float* out) {
  const float d(b.d);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((b.q[i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((b.q[i] >> 4) - 8);
  }
}
inline void dequantize(const BlockQ4_1& b, float* out) {
  const float d(b.d), m(b.m);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(b.q[i] & 15) + m;
    out[i + 16] = d * static_cast<float>(b.q[i] >> 4) + m;
  }
}
inline void dequantize(const BlockQ5_0& b, float* out) {
  const float d(b.d);
  const std::uint32_t fifth = detail::fifth_bits(b.fifth);
  for (int i = 0; i < 16; ++i) {
    const int low = (b.q[i] & 15) | static_cast<int>(fifth >> i & 1u) << 4;
    const int high = (b.q[i] >> 4) | static_cast<int>(fifth >> (i + 16) & 1u) << 4;
    out[i] = d * static_cast<float>(low - 16);
    out[i + 16] = d * static_cast<float>(high - 16);
  }
}
inline void dequantize(const BlockQ5_1& b, float* out) {
  const float d(b.d), m(b.m);
  const std::uint32_t fifth = detail::fifth_bits(b.fifth);
  for (int i = 0; i < 16; ++i) {
    const int low = (b.q[i] & 15) | static_cast<int>(fifth >> i & 1u) << 4;
    const int high = (b.q[i] >> 4) | static_cast<int>(fifth >> (i + 16) & 1u) << 4;
    out[i] = d * static_cast<float>(low) + m;
    out[i + 16] = d * static_cast<float>(high) + m;
  }
}
inline void dequantize(const BlockQ8_0& b, float* out) {
  const float d(b.d);
  for (int i = 0; i < 32; ++i) out[i] = d * static_cast<float>(b.q[i]);
}
inline void dequantize(const BlockQ4_K& b, float* out) {
  const float d(b.d), m(b.m);
  for (int j = 0; j < 8; ++j) {  // bytes 32 (j / 2) .. + 32; the lower nibbles are the even j
    const auto [scale, min] = detail::scale_and_min(b.scales, j);
    const float ds = d * static_cast<float>(scale), mt = m * static_cast<float>(min);
    const std::uint8_t* q = b.q + 32 * (j / 2);
    for (int i = 0; i < 32; ++i)
      out[32 * j + i] = ds * static_cast<float>(q[i] >> 4 * (j % 2) & 15) - mt;
  }
}
inline void dequantize(const BlockQ5_K& b, float* out) {
  const float d(b.d), m(b.m);
  for (int j = 0; j < 8; ++j) {  // bit j of fifth[i] belongs to weight i of sub-block j
    const auto [scale, min] = detail::scale_and_min(b.scales, j);
    const float ds = d * static_cast<float>(scale), mt = m * static_cast<float>(min);
    const std::uint8_t* q = b.q + 32 * (j / 2);
    for (int i = 0; i < 32; ++i) {
      const int code = (q[i] >> 4 * (j % 2) & 15) | (b.fifth[i] >> j & 1) << 4;
      out[32 * j + i] = ds * static_cast<float>(code) - mt;
    }
  }
}
inline void dequantize(const BlockQ6_K& b, float* out) {
  const float d(b.d);
  // Halves of 128 weights: 64 bytes of nibbles hold weights i and i + 64; byte i % 32 of 32 upper
  // bytes holds the pairs of weights i, i + 32, i + 64, i + 96, lowest first.
  for (int j = 0; j < 8; ++j) {  // 32 weights
    const int part = j % 4;
    const std::uint8_t* lower = b.lower + 64 * (j / 4) + 32 * (part % 2);
    const std::uint8_t* upper = b.upper + 32 * (j / 4);
    for (int i = 0; i < 32; ++i) {
      const int code = (lower[i] >> 4 * (part / 2) & 15) | (upper[i] >> 2 * part & 3) << 4;
      const float ds = d * static_cast<float>(b.scales[2 * j + i / 16]);
      out[32 * j + i] = ds * static_cast<float>(code - 32);
    }
  }
}

namespace detail {

/// Whole blocks of one type, block by block through float; a tail cannot occur, because a row is a
/// multiple of the block.
template <class Block, class T>
void dequantize_blocks(std::span<const std::byte> bytes, T* out) {
  const std::size_t blocks = bytes.size() / sizeof(Block);
  for (std::size_t i = 0; i < blocks; ++i) {
    Block block;
    std::memcpy(&block, bytes.data() + i * sizeof(Block), sizeof(Block));
    if constexpr (std::is_same_v<T, float>) {
      dequantize(block, out + i * Block::kWeights);
    } else {
      float values[Block::kWeights];
      dequantize(block, values);
      for (int j = 0; j < Block::kWeights; ++j)
        out[i * Block::kWeights + static_cast<std::size_t>(j)] = convert<T>(values[j]);
    }
  }
}

}  // namespace detail

}  // namespace rapt
