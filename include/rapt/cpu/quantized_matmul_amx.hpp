// 16 rows of x by panels of quantized blocks (cpu/quantized_matmul.hpp) in Intel's matrix tiles.
//
//                 16 rows of w                        per block of 32 columns, of a panel that was
//              +---------------+                      unpacked once for all rows of x:
//   16 rows    | 16 x 16 sums, |                        one product of tiles (Q6_K: two), written
//     of x     | int32         |                        to the first cache;
//              +---------------+                        16 vectors of it converted, scaled, added
//
// A product of tiles takes 16 cycles for what are 128 dot products of 64 bytes; what is left is to
// convert and scale, four instructions for 16 outputs. The sums are exact and scaled in the order
// of PanelTile, so that a row has the same bits here and there.
//
//   unpacked panel, for each block   [8 quads][16 rows of w][4] codes
//                                    [halves][16] d   [halves][16] m
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <type_traits>

#include "rapt/cpu/quantized_panel.hpp"
#include "rapt/cpu/simd/amx_int8.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Products of tiles that are multiplied before the first of them is scaled. One by one they would
/// share the ports: beside instructions on tiles a core issues one multiply-add a cycle, not two.
/// Their sums, 1 KiB each, stay in the first cache.
inline constexpr index_t kProductsOfBatch = 8;

/// Of fewer rows of x, unpacking the panels costs more than it saves (one tile of 16 rows took up
/// to 1.4 times as long as 12 and 4 rows of PanelTile).
inline constexpr index_t kFewestMatrixRows = 48;

/// Bytes of a block of an unpacked panel, and the most of all formats.
template <BlockFormat kFormat>
inline constexpr index_t kUnpackedBlock =
    PanelLayout::kRows*(PanelLayout::kColumns + 8 * index_t{PanelTile<kFormat, 1>::kHalves});
inline constexpr index_t kLargestUnpackedBlock = kUnpackedBlock<BlockFormat::q6_k>;

/// Reads a panel once, in order; memory is fetched ahead.
template <BlockFormat kFormat>
void unpack_panel(std::uint8_t* to, const std::uint8_t* panel, const PanelLayout& layout) {
  using Tile = PanelTile<kFormat, 1>;
  using V = Vec<float>;
  visit_blocks<kFormat>(
      panel, layout, true,
      [&](const std::uint8_t* planes, const std::uint8_t* halfs, const std::uint8_t* scales) {
        float* const d_to =
            reinterpret_cast<float*>(to + PanelLayout::kColumns * PanelLayout::kRows);
        float* const m_to = d_to + Tile::kHalves * PanelLayout::kRows;
#pragma GCC unroll 4
        for (int first = 0; first < Tile::kGroups; first += Tile::kTogether) {
          unrolled<8>([&](auto quad) __attribute__((always_inline)) {
#pragma GCC unroll 4
            for (int g = first; g < first + Tile::kTogether; ++g) {
              const index_t at = 4 * V::kLanes * g;
              unpack_quad<Tile::kInfo.bits, quad>(planes + at)
                  .store(to + PanelLayout::kPlane * quad + at);
            }
          });
          V d[Tile::kHalves][Tile::kTogether], m[Tile::kHalves][Tile::kTogether];
          Tile::affine(d, m, halfs, scales, V::kLanes * first);
#pragma GCC unroll 2
          for (int h = 0; h < Tile::kHalves; ++h)
#pragma GCC unroll 4
            for (int g = 0; g < Tile::kTogether; ++g) {
              const index_t at = PanelLayout::kRows * h + V::kLanes * (first + g);
              d[h][g].store(d_to + at);
              m[h][g].store(m_to + at);
            }
        }
        to += kUnpackedBlock<kFormat>;
      });
}

/// PanelTile::scale for the products of a block, and d, m of it, in memory.
template <BlockFormat kFormat, class V, int kGroups>
[[gnu::always_inline]] inline void scale_products(V (&out)[kGroups][kMatrixRows],
                                                  const std::int32_t* products, const float* d,
                                                  const float* steps) {
  using Tile = PanelTile<kFormat, kMatrixRows>;
  constexpr int kHalves = Tile::kHalves;
  constexpr index_t kAll = PanelLayout::kRows;
  static_assert(Tile::kTogether == 1);
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
    Quads total[kHalves][1][kMatrixRows];
    V scale[kHalves][1], minimum[kHalves][1];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) {
      const index_t at = kAll * h + V::kLanes * g;
      scale[h][0] = V::load(d + at);
      minimum[h][0] = V::load(d + kAll * kHalves + at);
#pragma GCC unroll 16
      for (int r = 0; r < kMatrixRows; ++r)
        total[h][0][r] = Quads::load(products + kAll * (kMatrixRows * h + r) + V::kLanes * g);
    }
    Tile::scale(out + g, total, scale, minimum, steps);
  }
}

/// multiply_panel for 16 rows of x.
template <BlockFormat kFormat, class Tiles>
void multiply_unpacked(float* sums, index_t step, const std::uint8_t* panel, index_t blocks,
                       const std::uint8_t* x, Tiles& tiles) {
  using V = Vec<float>;
  using Tile = PanelTile<kFormat, kMatrixRows>;
  constexpr int kHalves = Tile::kHalves, kQuads = Tile::kQuads, kGroups = Tile::kGroups;
  constexpr index_t kAll = PanelLayout::kRows, kColumns = PanelLayout::kColumns;
  constexpr index_t kStep = kUnpackedBlock<kFormat>, kMost = kProductsOfBatch / kHalves;
  constexpr index_t kXStep = coded_row_bytes(kColumns) * kMatrixRows;
  alignas(64) std::int32_t products[kProductsOfBatch * kMatrixRows * kAll];
  V out[kGroups][kMatrixRows];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g)
#pragma GCC unroll 16
    for (int r = 0; r < kMatrixRows; ++r) out[g][r] = V::zero();
  for (index_t begin = 0; begin < blocks; begin += kMost) {
    const index_t count = std::min(kMost, blocks - begin);
    const std::uint8_t* const codes = panel + begin * kStep;
    const std::uint8_t* const rows = x + begin * kXStep;
    tiles.template multiply<kQuads, AmxSigns::signed_unsigned>(
        products, count * kHalves, std::integral_constant<index_t, 1>{}, kColumns, 4 * kAll,
        [=](index_t i, index_t) {
          const index_t b = i / kHalves, h = i % kHalves;
          return AmxOperands{rows + b * kXStep + 4 * kQuads * h,
                             codes + b * kStep + PanelLayout::kPlane * kQuads * h};
        });
    for (index_t b = 0; b < count; ++b) {
      const std::uint8_t* const block = codes + b * kStep;
      scale_products<kFormat>(
          out, products + b * kHalves * kMatrixRows * kAll,
          reinterpret_cast<const float*>(block + kColumns * kAll),
          reinterpret_cast<const float*>(rows + b * kXStep + kColumns * kMatrixRows));
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kMatrixRows; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) out[g][r].store(sums + r * step + g * V::kLanes);
}

/// In place of a class of tiles, where there is none.
struct NoTiles {};

template <class Tiles>
struct MatrixKernels {
  void (*unpack)(std::uint8_t* to, const std::uint8_t* panel, const PanelLayout& layout);
  void (*multiply)(float* sums, index_t step, const std::uint8_t* panel, index_t blocks,
                   const std::uint8_t* x, Tiles& tiles);
};

template <class Tiles>
MatrixKernels<Tiles> matrix_kernels(BlockFormat format) {
  return with_format(format, [](auto f) {
    return MatrixKernels<Tiles>{unpack_panel<f>, multiply_unpacked<f, Tiles>};
  });
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
