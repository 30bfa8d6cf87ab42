// The inside of quantized_matmul on the CPU (cpu/quantized_matmul.hpp has its equation): rows of x
// as codes, and a tile of 16 rows of w (a panel) by kRows rows of x.
//
//                     rows of w: 16 lanes                 per block of 32 columns
//                  +---------------------+
//   x row 0   C a  | s0 s0 s0 ...     s0 |                quad by quad: unpacked once for all rows
//   x row 1   C a  | s1 s1 s1 ...     s1 |                of x; 4 codes of x broadcast from memory,
//   ...            |                     |                a dot product for each register of w;
//                  +---------------------+                then one conversion, two multiply-adds
//
// Where dot products come as sums of pairs in 16 bits (AVX2), these are added in 16 bits for as
// many quads as cannot overflow, 8 of 4 bits, and widened once.
//
// The codes of x are kept tile by tile as the kernel reads them, for each block
//   [8 quads][kRows][4] codes   [kRows] a   [3][kRows] C of columns 0..15, of 16..31, of both
// (tiles for matrix registers: [kRows][32] codes).
#pragma once

#include <algorithm>

#include "rapt/core/quantized_matrix.hpp"
#include "rapt/cpu/int8.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

// ---- rows of x as codes ----

/// Rows of x in a tile, largest first. A row gives the same result in each of them. The first are
/// tiles for matrix registers (cpu/quantized_matmul_amx.hpp).
inline constexpr int kTileRows[] = {16, Vec<float>::kRegisters == 32 ? 12 : 6, 4, 2, 1};
inline constexpr int kMatrixRows = kTileRows[0];

/// Where tile t of m rows begins: as many tiles of the largest kind as fit come first (of
/// kMatrixRows, if uses_matrix), then those of the next smaller. m, where there is no tile t.
inline index_t tile_begin(index_t m, index_t t, bool uses_matrix) {
  index_t begin = 0;
  for (const int rows : kTileRows) {
    if (rows == kMatrixRows && !uses_matrix) continue;
    const index_t tiles = std::min(t, (m - begin) / rows);
    begin += tiles * rows;
    t -= tiles;
  }
  return begin;
}

/// Bytes that a row of x takes in its tile.
constexpr index_t coded_row_bytes(index_t columns) {
  return columns / PanelLayout::kColumns *
         (PanelLayout::kColumns + 4 * static_cast<index_t>(sizeof(float)));
}

/// The codes of one row, x[0, columns), as row `r` of a tile of `rows` at `tile`.
inline void code_row(std::uint8_t* tile, index_t rows, index_t r, const float* x, index_t columns) {
  using V = Vec<float>;
  constexpr index_t kColumns = PanelLayout::kColumns;
  constexpr int kVectors = kColumns / V::kLanes;
  constexpr float kSmallest =
      1e-35f;  // below it 127 / amax overflows; such a block counts as zeros
  const index_t stride = rows * coded_row_bytes(kColumns);
  const V zero = V::zero();
  V poison = zero;  // NaN once a value was NaN or infinite
  for (index_t b = 0; b < columns / kColumns; ++b, x += kColumns) {
    V values[kVectors], amax = zero;
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      values[v] = V::load(x + v * V::kLanes);
      amax = max(max(values[v], zero - values[v]), amax);
      poison = fma(values[v], zero, poison);
    }
    const float largest_value = largest(amax);
    const bool is_zero = !(largest_value > kSmallest);
    const float step = is_zero ? 0.f : largest_value / 127.f;
    const V inverse = V::broadcast(is_zero ? 0.f : 127.f / largest_value);
    std::uint8_t* const at = tile + b * stride;
    alignas(64) std::int8_t scattered[kColumns];
    const bool by_rows = rows == kMatrixRows;
    std::int8_t* const codes =
        by_rows ? reinterpret_cast<std::int8_t*>(at) + kColumns * r : scattered;
    V halves[2] = {zero, zero};
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const V code = round(values[v] * inverse);
      store_int8(codes + v * V::kLanes, code);
      V& half_sum = halves[v / (kVectors / 2)];
      half_sum = half_sum + code;
    }
    const float lower = sum(halves[0]), upper = sum(halves[1]);
    if (!by_rows) {
#pragma GCC unroll 8
      for (int quad = 0; quad < 8; ++quad)
        std::memcpy(at + 4 * (quad * rows + r), codes + 4 * quad, 4);
    }
    float* scales = reinterpret_cast<float*>(at + kColumns * rows) + r;
    scales[0] = step;
    scales[rows] = step * lower;
    scales[2 * rows] = step * upper;
    scales[3 * rows] = step * (lower + upper);
  }
  if (sum(poison) == 0) return;
  for (index_t b = 0; b < columns / kColumns; ++b)
    *(reinterpret_cast<float*>(tile + b * stride + kColumns * rows) + r) = sum(poison);
}

// ---- one panel ----

/// Bits of each byte moved from `kFrom` up or down to `kTo`; what comes from its neighbour is to be
/// masked away.
template <int kFrom, int kTo>
[[gnu::always_inline]] inline Quads moved(Quads a) {
  if constexpr (kFrom > kTo)
    return a.right<kFrom - kTo>();
  else if constexpr (kFrom < kTo)
    return a.left<kTo - kFrom>();
  else
    return a;
}

/// Quad `kQuad` of a block, unsigned, for one register's worth of rows.
template <int kBits, int kQuad>
[[gnu::always_inline]] inline Quads unpack_quad(const std::uint8_t* planes) {
  const auto plane = [&](int n) { return Quads::load(planes + n * PanelLayout::kPlane); };
  const Quads nibble = Quads::bytes(0x0f);
  if constexpr (kBits == 8) {
    return plane(kQuad);
  } else {
    const Quads lower = moved<kQuad / 4 * 4, 0>(plane(kQuad % 4)) & nibble;
    if constexpr (kBits == 5)
      return lower | (moved<kQuad, 4>(plane(4)) & Quads::bytes(0x10));
    else if constexpr (kBits == 6)
      return lower | (moved<kQuad % 4 * 2, 4>(plane(4 + kQuad / 4)) & Quads::bytes(0x30));
    else
      return lower;
  }
}

/// The digit of it that is multiplied: all of it, but for 8 bits in two pieces.
template <int kBits, int kQuad, int kDigit>
[[gnu::always_inline]] inline Quads unpack_digit(const std::uint8_t* planes) {
  const Quads quad = unpack_quad<kBits, kQuad>(planes);
  if constexpr (digits(kBits) == 1)
    return quad;
  else
    return moved<4 * kDigit, 0>(quad) & Quads::bytes(0x0f);
}

/// One block of a panel and kRows rows of x. kTogether registers of w are multiplied at once.
template <BlockFormat kFormat, int kRows>
struct PanelTile {
  using V = Vec<float>;
  static constexpr BlockFormatInfo kInfo = block_format(kFormat);
  static constexpr int kLanes = V::kLanes, kAll = PanelLayout::kRows, kGroups = kAll / kLanes;
  // As many as leave room in the registers for their sums: these share a broadcast of x.
  static constexpr int kTogether = kRows <= 3 && kGroups % 4 == 0   ? 4
                                   : kRows <= 6 && kGroups % 2 == 0 ? 2
                                                                    : 1;
  static constexpr int kHalves = 32 / kInfo.columns_of_d, kQuads = 8 / kHalves;

  /// total[h][g][r] = sum over the columns l of half h of q[g, l] c[r, l].
  [[gnu::always_inline]] static void dots(Quads (&total)[kHalves][kTogether][kRows],
                                          const std::uint8_t* planes, const std::uint8_t* x) {
    constexpr int kDigits = digits(kInfo.bits);
    constexpr int kSpan = std::min(kQuads, narrow_quads(kInfo.bits));
    unrolled<8 / kSpan * kDigits>([&](auto pass) __attribute__((always_inline)) {
      constexpr int kDigit = pass % kDigits, kBegin = pass / kDigits * kSpan;
      constexpr bool kFirst = kBegin % kQuads == 0 && kDigit == 0;
      Quads narrow[kTogether][kRows];
      unrolled<kSpan>([&](auto q) __attribute__((always_inline)) {
        constexpr int kQuad = kBegin + q;
        Quads w[kTogether];
#pragma GCC unroll 4
        for (int g = 0; g < kTogether; ++g)
          w[g] = unpack_digit<kInfo.bits, kQuad, kDigit>(planes + 4 * kLanes * g);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const std::uint8_t* const four = x + 4 * (kQuad * kRows + r);
          if constexpr (kTogether == 1 && kRepeatsMemory<Quads>) {
            narrow[0][r] = dot_repeated(q == 0 ? Quads::zero() : narrow[0][r], w[0], four);
          } else {
            const Quads codes = Quads::broadcast(four);
#pragma GCC unroll 4
            for (int g = 0; g < kTogether; ++g)
              narrow[g][r] = q == 0 ? narrow_dot<kInfo.bits>(w[g], codes)
                                    : narrow_dot<kInfo.bits>(narrow[g][r], w[g], codes);
          }
        }
      });
#pragma GCC unroll 4
      for (int g = 0; g < kTogether; ++g)
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const Quads sum = widen<kDigit>(narrow[g][r]);
          Quads& to = total[kBegin / kQuads][g][r];
          to = kFirst ? sum : add(to, sum);
        }
    });
  }

  /// d[h][g] and m[h][g], from row `lane` of the panel on.
  [[gnu::always_inline]] static void affine(V (&d)[kHalves][kTogether], V (&m)[kHalves][kTogether],
                                            const std::uint8_t* halfs, const std::uint8_t* scales,
                                            int lane) {
    constexpr float kZero = static_cast<float>(1 << (kInfo.bits - 1));
    const auto* steps = reinterpret_cast<const half*>(halfs);
#pragma GCC unroll 4
    for (int g = 0; g < kTogether; ++g, lane += kLanes)
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) {
        V scale = V::load(steps + lane), zero = V::zero();
        if constexpr (kInfo.columns_of_d == 16)
          scale = scale * signed_lanes(scales + kAll * h + lane);
        else if constexpr (kInfo.super)
          scale = scale * unsigned_lanes(scales + lane);
        d[h][g] = scale;
        if constexpr (!kInfo.has_min)
          m[h][g] = scale * V::broadcast(-kZero);
        else if constexpr (kInfo.super)
          m[h][g] = zero - V::load(steps + kAll + lane) * unsigned_lanes(scales + kAll + lane);
        else
          m[h][g] = V::load(steps + kAll + lane);
      }
  }

  /// out[g][r] += sum over h of d[h][g] a[r] total[h][g][r] + m[h][g] C[h][r].
  [[gnu::always_inline]] static void scale(V (*out)[kRows],
                                           const Quads (&total)[kHalves][kTogether][kRows],
                                           const V (&d)[kHalves][kTogether],
                                           const V (&m)[kHalves][kTogether], const float* steps) {
    constexpr int kSums = kHalves == 1 ? 3 : 1;  // C of all columns, or of each half
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const V step = V::broadcast(steps[r]);
#pragma GCC unroll 4
      for (int g = 0; g < kTogether; ++g) {
        V sum = out[g][r];
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h) sum = fma(to_float(total[h][g][r]), d[h][g] * step, sum);
#pragma GCC unroll 2
        for (int h = 0; h < kHalves; ++h)
          sum = fma(m[h][g], V::broadcast(steps[(kSums + h) * kRows + r]), sum);
        out[g][r] = sum;
      }
    }
  }
};

/// f(planes, halfs, scales) for the blocks of a panel, one after the other: where its codes lie,
/// and its d and m (BlockFormatInfo::super: D and M, then s and t). from_memory: what lies a panel
/// ahead is fetched, in the order of memory.
template <BlockFormat kFormat, class F>
[[gnu::always_inline]] inline void visit_blocks(const std::uint8_t* panel,
                                                const PanelLayout& layout, bool from_memory,
                                                const F& f) {
  const index_t blocks = layout.blocks(), ahead_bytes = layout.bytes() / blocks;
  const std::uint8_t* planes = panel;
  const std::uint8_t* ahead = panel + layout.bytes();
  for (index_t b = 0; b < blocks; ++b) {
    const std::uint8_t* const scales = panel + layout.scales(b);
    if (from_memory)
      for (index_t line = 0; line < ahead_bytes; line += 64) __builtin_prefetch(ahead + line);
    ahead += ahead_bytes;
    f(planes, block_format(kFormat).super ? panel + layout.super_scales(b) : scales, scales);
    planes += layout.block_bytes;
  }
}

/// sums[r step + j] = sum over l of x[r, l] w[j, l] for the 16 rows j of a panel, which another
/// tile has not read before (from_memory) or has.
template <BlockFormat kFormat, int kRows>
void multiply_panel(float* sums, index_t step, const std::uint8_t* panel, const PanelLayout& layout,
                    const std::uint8_t* x, bool from_memory) {
  using Tile = PanelTile<kFormat, kRows>;
  using V = Vec<float>;
  V out[Tile::kGroups][kRows];
#pragma GCC unroll 4
  for (int g = 0; g < Tile::kGroups; ++g)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) out[g][r] = V::zero();

  visit_blocks<kFormat>(
      panel, layout, from_memory,
      [&](const std::uint8_t* planes, const std::uint8_t* halfs, const std::uint8_t* scales)
          __attribute__((always_inline)) {
            const float* steps = reinterpret_cast<const float*>(x + PanelLayout::kColumns * kRows);
#pragma GCC unroll 4
            for (int first = 0; first < Tile::kGroups; first += Tile::kTogether) {
              Quads total[Tile::kHalves][Tile::kTogether][kRows];
              Tile::dots(total, planes + 4 * V::kLanes * first, x);
              V d[Tile::kHalves][Tile::kTogether], m[Tile::kHalves][Tile::kTogether];
              Tile::affine(d, m, halfs, scales, V::kLanes * first);
              Tile::scale(out + first, total, d, m, steps);
            }
            x += coded_row_bytes(PanelLayout::kColumns) * kRows;
          });
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < Tile::kGroups; ++g) out[g][r].store(sums + r * step + g * V::kLanes);
}

/// f(std::integral_constant<BlockFormat, format>).
template <class F>
auto with_format(BlockFormat format, const F& f) {
  const auto of = [&]<BlockFormat kFormat>() {
    return f(std::integral_constant<BlockFormat, kFormat>{});
  };
  switch (format) {
    case BlockFormat::q4_0:
      return of.template operator()<BlockFormat::q4_0>();
    case BlockFormat::q4_1:
      return of.template operator()<BlockFormat::q4_1>();
    case BlockFormat::q5_0:
      return of.template operator()<BlockFormat::q5_0>();
    case BlockFormat::q5_1:
      return of.template operator()<BlockFormat::q5_1>();
    case BlockFormat::q8_0:
      return of.template operator()<BlockFormat::q8_0>();
    case BlockFormat::q4_k:
      return of.template operator()<BlockFormat::q4_k>();
    case BlockFormat::q5_k:
      return of.template operator()<BlockFormat::q5_k>();
    case BlockFormat::q6_k:
      break;
  }
  return of.template operator()<BlockFormat::q6_k>();
}

using PanelKernel = void (*)(float* sums, index_t step, const std::uint8_t* panel,
                             const PanelLayout& layout, const std::uint8_t* x, bool from_memory);

/// The kernel of a format for a tile of `rows` rows of x, one of kTileRows but the first.
template <int kTile = 1>
PanelKernel panel_kernel(BlockFormat format, index_t rows) {
  constexpr int kRows = kTileRows[kTile];
  if constexpr (kTile + 1 < static_cast<int>(std::size(kTileRows)))
    if (rows != kRows) return panel_kernel<kTile + 1>(format, rows);
  return with_format(format, [](auto f) -> PanelKernel { return multiply_panel<f, kRows>; });
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
