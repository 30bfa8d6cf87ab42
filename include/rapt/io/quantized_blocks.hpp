// The quantized tensors of GGUF files as matrices to multiply with (core/quantized_matrix.hpp).
//
//   if (const auto format = block_format_of(file.type(name))) append_blocks(matrix, *format,
//   bytes);
//
// Codes and scales go over as they are, so the matrix stands for exactly the values that
// dequantize() gives; only their order in memory changes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

#include "rapt/core/quantized_matrix.hpp"
#include "rapt/io/ggml_blocks.hpp"

namespace rapt {

/// The format of a type that products are made with; none for the others (floats, integers, types
/// without a kernel).
constexpr std::optional<BlockFormat> block_format_of(GgmlType type) {
  switch (type) {
    case GgmlType::q4_0:
      return BlockFormat::q4_0;
    case GgmlType::q4_1:
      return BlockFormat::q4_1;
    case GgmlType::q5_0:
      return BlockFormat::q5_0;
    case GgmlType::q5_1:
      return BlockFormat::q5_1;
    case GgmlType::q8_0:
      return BlockFormat::q8_0;
    case GgmlType::q4_k:
      return BlockFormat::q4_k;
    case GgmlType::q5_k:
      return BlockFormat::q5_k;
    case GgmlType::q6_k:
      return BlockFormat::q6_k;
    default:
      return std::nullopt;
  }
}

namespace detail {

// codes[i] = weight i of a block of 32, j of the eight in a K-quant; all unsigned.
inline void unpack_nibbles(UnpackedBlock& to, const std::uint8_t* q) {
  for (int i = 0; i < 16; ++i) {
    to.codes[i] = q[i] & 15;
    to.codes[i + 16] = q[i] >> 4;
  }
}
inline void add_fifth_bits(UnpackedBlock& to, std::uint32_t bits) {
  for (int i = 0; i < 32; ++i)
    to.codes[i] = static_cast<std::uint8_t>(to.codes[i] | (bits >> i & 1u) << 4);
}
inline UnpackedBlock unpack(const BlockQ4_0& b, index_t) {
  UnpackedBlock to{};
  to.d = b.d;
  unpack_nibbles(to, b.q);
  return to;
}
inline UnpackedBlock unpack(const BlockQ4_1& b, index_t) {
  UnpackedBlock to{};
  to.d = b.d;
  to.m = b.m;
  unpack_nibbles(to, b.q);
  return to;
}
inline UnpackedBlock unpack(const BlockQ5_0& b, index_t) {
  UnpackedBlock to{};
  to.d = b.d;
  unpack_nibbles(to, b.q);
  add_fifth_bits(to, fifth_bits(b.fifth));
  return to;
}
inline UnpackedBlock unpack(const BlockQ5_1& b, index_t) {
  UnpackedBlock to{};
  to.d = b.d;
  to.m = b.m;
  unpack_nibbles(to, b.q);
  add_fifth_bits(to, fifth_bits(b.fifth));
  return to;
}
inline UnpackedBlock unpack(const BlockQ8_0& b, index_t) {
  UnpackedBlock to{};
  to.d = b.d;
  for (int i = 0; i < 32; ++i) to.codes[i] = static_cast<std::uint8_t>(b.q[i] + 128);
  return to;
}
template <class Block>
UnpackedBlock unpack_affine(const Block& b, index_t j) {
  UnpackedBlock to{};
  const auto [scale, min] = scale_and_min(b.scales, static_cast<int>(j));
  to.d = b.d;
  to.m = b.m;
  to.s = static_cast<std::uint8_t>(scale);
  to.t = static_cast<std::uint8_t>(min);
  for (int i = 0; i < 32; ++i)
    to.codes[i] = static_cast<std::uint8_t>(b.q[32 * (j / 2) + i] >> 4 * (j % 2) & 15);
  return to;
}
inline UnpackedBlock unpack(const BlockQ4_K& b, index_t j) { return unpack_affine(b, j); }
inline UnpackedBlock unpack(const BlockQ5_K& b, index_t j) {
  UnpackedBlock to = unpack_affine(b, j);
  for (int i = 0; i < 32; ++i)
    to.codes[i] = static_cast<std::uint8_t>(to.codes[i] | (b.fifth[i] >> j & 1) << 4);
  return to;
}
inline UnpackedBlock unpack(const BlockQ6_K& b, index_t j) {
  UnpackedBlock to{};
  const index_t part = j % 4;
  const std::uint8_t* lower = b.lower + 64 * (j / 4) + 32 * (part % 2);
  const std::uint8_t* upper = b.upper + 32 * (j / 4);
  for (int i = 0; i < 32; ++i)
    to.codes[i] = static_cast<std::uint8_t>((lower[i] >> 4 * (part / 2) & 15) |
                                            (upper[i] >> 2 * part & 3) << 4);
  to.d = b.d;
  to.s = static_cast<std::uint8_t>(b.scales[2 * j]);
  to.t = static_cast<std::uint8_t>(b.scales[2 * j + 1]);
  return to;
}

template <class Block>
void append_blocks(QuantizedMatrix& matrix, BlockFormat format, index_t rows,
                   const std::byte* bytes) {
  constexpr index_t kParts = Block::kWeights / 32;
  const index_t row_blocks = matrix.columns() / Block::kWeights;
  matrix.append(format, rows, [&](index_t row, index_t b) {
    Block block;
    std::memcpy(&block,
                bytes + (row * row_blocks + b / kParts) * static_cast<index_t>(sizeof(Block)),
                sizeof(Block));
    return unpack(block, b % kParts);
  });
}

}  // namespace detail

/// Appends the rows of a tensor whose bytes these are. Throws ShapeError where the bytes are not
/// whole rows of matrix.columns() weights.
inline void append_blocks(QuantizedMatrix& matrix, BlockFormat format,
                          std::span<const std::byte> bytes) {
  const auto append = [&]<class Block>(const Block*) {
    const index_t row_bytes =
        matrix.columns() / Block::kWeights * static_cast<index_t>(sizeof(Block));
    const auto size = static_cast<index_t>(bytes.size());
    if (matrix.columns() % Block::kWeights != 0 || row_bytes == 0 || size % row_bytes != 0)
      throw ShapeError(detail::text("append_blocks: bytes is [", size, "], expected whole rows of ",
                                    matrix.columns(), " weights of ", block_format(format).name));
    detail::append_blocks<Block>(matrix, format, size / row_bytes, bytes.data());
  };
  switch (format) {
    case BlockFormat::q4_0:
      return append(static_cast<const BlockQ4_0*>(nullptr));
    case BlockFormat::q4_1:
      return append(static_cast<const BlockQ4_1*>(nullptr));
    case BlockFormat::q5_0:
      return append(static_cast<const BlockQ5_0*>(nullptr));
    case BlockFormat::q5_1:
      return append(static_cast<const BlockQ5_1*>(nullptr));
    case BlockFormat::q8_0:
      return append(static_cast<const BlockQ8_0*>(nullptr));
    case BlockFormat::q4_k:
      return append(static_cast<const BlockQ4_K*>(nullptr));
    case BlockFormat::q5_k:
      return append(static_cast<const BlockQ5_K*>(nullptr));
    case BlockFormat::q6_k:
      return append(static_cast<const BlockQ6_K*>(nullptr));
  }
}

}  // namespace rapt
