// QuantizedMatrix: the weights [rows, columns] of a linear layer as blocks of integer codes, laid
// out for products.
//
//   w[row, i] = d q[row, i] + m         q an unsigned code; d, m shared by 32 (Q6_K: 16) columns
//
//                 bits of q   d               m               bytes of 32 weights
//   Q4_0, Q4_1       4        half            -8 d, half         18, 20
//   Q5_0, Q5_1       5        half            -16 d, half        22, 24
//   Q8_0             8        half            -128 d             34
//   Q4_K, Q5_K      4, 5      D s             -M t               18.5, 22.5
//   Q6_K             6        D s             -32 d              26.5
//
// D, M are halfs shared by 256 columns; s, t are bytes (s of Q6_K signed). These are the values of
// GGUF's blocks (io/ggml_blocks.hpp), exactly: repacking rounds nothing. Codes that are signed in
// the file are stored with their offset added, so that every format multiplies unsigned codes.
//
// 16 rows lie side by side in a *panel*, so that a vector register holds the same columns of
// neighbouring rows and one product updates as many outputs. A *quad* is 4 columns of 16 rows, 64
// bytes: byte 4 row + t is column t. A block of 32 columns is 8 quads, as planes of 64 bytes:
//
//   nibbles (4, 5, 6 bits)   plane j = 0..3     quad j below, quad j + 4 above
//   fifth bits (5 bits)      one plane          bit q belongs to quad q
//   upper pairs (6 bits)     plane h = 0, 1     pair p belongs to quad 4 h + p
//   bytes (8 bits)           plane q = 0..7     quad q
//
//   panel   [block][planes]   then the scales:   halfs       [block][d: 16 | m: 16]
//                                                super-block [8 blocks][D: 16 | M: 16 | 8 x (s: 16
//                                                | t: 16)]
//
// (no m where m follows from d; Q6_K has the s of columns 16 to 31 in place of t). Rows beyond the
// last are zeros. The same panels serve one token and a thousand.
//
// A matrix may be made of parts of different formats, one below the other: the fused product of
// projections that a file stores in different types.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

#include "rapt/core/backend.hpp"
#include "rapt/core/parallel.hpp"

namespace rapt {

enum class BlockFormat : std::uint8_t { q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k };

struct BlockFormatInfo {
  std::string_view name;
  int bits;          // of a code
  bool has_min;      // m is stored; else it is -2^(bits - 1) d
  bool super;        // scales of scales, shared by 256 columns
  int columns_of_d;  // 32 or 16
};

inline constexpr std::array<BlockFormatInfo, 8> kBlockFormats = {{
    {"Q4_0", 4, false, false, 32},
    {"Q4_1", 4, true, false, 32},
    {"Q5_0", 5, false, false, 32},
    {"Q5_1", 5, true, false, 32},
    {"Q8_0", 8, false, false, 32},
    {"Q4_K", 4, true, true, 32},
    {"Q5_K", 5, true, true, 32},
    {"Q6_K", 6, false, true, 16},
}};

constexpr const BlockFormatInfo& block_format(BlockFormat format) {
  return kBlockFormats[static_cast<std::size_t>(format)];
}

/// 32 consecutive weights of one row, unpacked: what a reader of files hands to a matrix.
struct UnpackedBlock {
  std::uint8_t codes[32];
  half d, m;          // d, m, or D, M of the super-block
  std::uint8_t s, t;  // super-blocks: the scale and the minimum, or both scales of Q6_K
};

/// Where things lie in a panel of one format.
struct PanelLayout {
  static constexpr index_t kRows = 16, kColumns = 32, kPlane = 64;

  index_t columns, block_bytes, scale_bytes, super_bytes;  // super_bytes: D and M

  PanelLayout(BlockFormat format, index_t panel_columns) : columns(panel_columns) {
    const BlockFormatInfo& info = block_format(format);
    block_bytes = kPlane * info.bits;
    const index_t halfs = 2 * kRows * (info.has_min ? 2 : 1);
    scale_bytes = info.super ? 2 * kRows : halfs;
    super_bytes = info.super ? halfs : 0;
  }
  index_t blocks() const { return columns / kColumns; }
  index_t code_bytes() const { return blocks() * block_bytes; }
  index_t bytes() const {
    return code_bytes() + blocks() * scale_bytes + blocks() / 8 * super_bytes;
  }
  /// Offset of the scales of block b; those of its super-block lie before the first of its eight.
  index_t scales(index_t b) const {
    return code_bytes() + b * scale_bytes + (b / 8 + 1) * super_bytes;
  }
  index_t super_scales(index_t b) const { return scales(b / 8 * 8) - super_bytes; }
};

// Named after the instruction set, as Cpu is (core/config.hpp): its loops are compiled for it.
inline namespace RAPT_SIMD {

class QuantizedMatrix {
 public:
  struct Part {
    BlockFormat format;
    index_t begin, rows;  // rows [begin, begin + rows) of the matrix
    Tensor<std::uint8_t, 1> panels;

    index_t panel_count() const { return (rows + PanelLayout::kRows - 1) / PanelLayout::kRows; }
  };

  QuantizedMatrix() = default;
  /// No rows yet.
  explicit QuantizedMatrix(index_t columns) : columns_(columns) {
    if (columns < 1)
      throw ShapeError(
          detail::text("quantized_matrix: columns is ", columns, ", expected at least 1"));
  }

  index_t rows() const { return rows_; }
  index_t columns() const { return columns_; }
  bool empty() const { return rows_ == 0; }
  const std::vector<Part>& parts() const { return parts_; }
  /// All that a product with one vector reads of it.
  index_t bytes() const {
    index_t total = 0;
    for (const Part& part : parts_) total += part.panels.size();
    return total;
  }

  /// Appends `rows` rows; unpack(row, block) gives 32 weights of one of them. Rows are unpacked by
  /// several threads. Throws ShapeError where the columns are no multiple of the block.
  template <class Unpack>
  void append(BlockFormat format, index_t rows, Unpack&& unpack) {
    const index_t block = block_format(format).super ? 256 : 32;
    if (columns_ % block != 0)
      throw ShapeError(detail::text("quantized_matrix: columns is ", columns_,
                                    ", expected a multiple of ", block, ", the block of ",
                                    block_format(format).name));
    if (rows < 1)
      throw ShapeError(detail::text("quantized_matrix: rows is ", rows, ", expected at least 1"));
    const PanelLayout layout(format, columns_);
    Part part{format, rows_, rows, {}};
    part.panels = Tensor<std::uint8_t, 1>(Shape{part.panel_count() * layout.bytes()});
    std::uint8_t* const panels = part.panels.data();
    parallel_for(part.panel_count(), [&](index_t p) {
      for (index_t r = p * PanelLayout::kRows; r < std::min(rows, (p + 1) * PanelLayout::kRows);
           ++r)
        for (index_t b = 0; b < layout.blocks(); ++b)
          pack(panels + p * layout.bytes(), layout, format, r % PanelLayout::kRows, b,
               unpack(r, b));
    });
    parts_.push_back(std::move(part));
    rows_ += rows;
  }

  /// out[0, columns) = one row, scaled: the values that the file's blocks stand for.
  template <class T>
  void dequantize_row(index_t row, T* out, float scale = 1.f) const {
    for (const Part& part : parts_) {
      const index_t r = row - part.begin;
      if (r < 0 || r >= part.rows) continue;
      const PanelLayout layout(part.format, columns_);
      const std::uint8_t* panel = part.panels.data() + r / PanelLayout::kRows * layout.bytes();
      for (index_t b = 0; b < layout.blocks(); ++b)
        dequantize(panel, layout, part.format, r % PanelLayout::kRows, b,
                   out + b * PanelLayout::kColumns, scale);
      return;
    }
  }

 private:
  static void put(std::uint8_t* at, half value) { std::memcpy(at, &value, sizeof value); }
  static float get(const std::uint8_t* at) {
    half value;
    std::memcpy(&value, at, sizeof value);
    return static_cast<float>(value);
  }

  static void pack(std::uint8_t* panel, const PanelLayout& layout, BlockFormat format, index_t row,
                   index_t b, const UnpackedBlock& block) {
    const BlockFormatInfo& info = block_format(format);
    std::uint8_t* planes = panel + b * layout.block_bytes + 4 * row;
    for (int i = 0; i < 32; ++i) {
      const int quad = i / 4, byte = i % 4, code = block.codes[i];
      const auto join = [&](int plane, int shifted) {
        std::uint8_t& at = planes[plane * PanelLayout::kPlane + byte];
        at = static_cast<std::uint8_t>(at | shifted);
      };
      if (info.bits == 8) {
        join(quad, code);
        continue;
      }
      join(quad % 4, (code & 15) << (quad < 4 ? 0 : 4));
      if (info.bits == 5) join(4, (code >> 4) << quad);
      if (info.bits == 6) join(4 + quad / 4, (code >> 4) << 2 * (quad % 4));
    }
    std::uint8_t* scales = panel + layout.scales(b);
    std::uint8_t* halfs = info.super ? panel + layout.super_scales(b) : scales;
    put(halfs + 2 * row, block.d);
    if (info.has_min) put(halfs + 2 * (PanelLayout::kRows + row), block.m);
    if (info.super) {
      scales[row] = block.s;
      scales[PanelLayout::kRows + row] = block.t;
    }
  }

  template <class T>
  static void dequantize(const std::uint8_t* panel, const PanelLayout& layout, BlockFormat format,
                         index_t row, index_t b, T* out, float scale) {
    const BlockFormatInfo& info = block_format(format);
    const std::uint8_t* planes = panel + b * layout.block_bytes + 4 * row;
    const std::uint8_t* scales = panel + layout.scales(b);
    const std::uint8_t* halfs = info.super ? panel + layout.super_scales(b) : scales;
    const int zero = info.has_min ? 0 : 1 << (info.bits - 1);
    const float d = get(halfs + 2 * row);
    float m = info.has_min ? get(halfs + 2 * (PanelLayout::kRows + row)) : 0.f;
    if (info.super && info.has_min) m *= -static_cast<float>(scales[PanelLayout::kRows + row]);
    for (int i = 0; i < 32; ++i) {
      const int quad = i / 4, byte = i % 4;
      const auto plane = [&](int p) { return int{planes[p * PanelLayout::kPlane + byte]}; };
      int code = 0;
      if (info.bits == 8) {
        code = plane(quad);
      } else {
        code = plane(quad % 4) >> (quad < 4 ? 0 : 4) & 15;
        if (info.bits == 5) code |= (plane(4) >> quad & 1) << 4;
        if (info.bits == 6) code |= (plane(4 + quad / 4) >> 2 * (quad % 4) & 3) << 4;
      }
      float ds = d;
      if (info.super && info.columns_of_d == 16)
        ds *= static_cast<float>(
            static_cast<std::int8_t>(scales[PanelLayout::kRows * (i / 16) + row]));
      else if (info.super)
        ds *= static_cast<float>(scales[row]);
      // The product is exact, so that the value is rounded once, by the sum (and once by the
      // scale).
      out[i] = convert<T>((ds * static_cast<float>(code - zero) + m) * scale);
    }
  }

  index_t columns_ = 0, rows_ = 0;
  std::vector<Part> parts_;
};

}  // namespace RAPT_SIMD

}  // namespace rapt
