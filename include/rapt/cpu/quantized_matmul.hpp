// quantized_matmul on the CPU (core/backend.hpp): out[m, rows] = x[m, columns] w^T on panels of
// quantized blocks (core/quantized_matrix.hpp).
//
//   a[i, b] = amax / 127 over block b of row i of x      the step of its codes, fp32
//   c[i, l] = round(x[i, l] / a[i, b])                   int8
//   C[i, b] = a[i, b] sum_l c[i, l]                      what a block's minimum is multiplied by
//
//   out[i, j] = sum_b  d[j, b] a[i, b] * ( sum_l q[j, l] c[i, l] )  +  m[j, b] * C[i, b]
//                                        `------ int32, exact ----'
//
// A tile is 16 rows of w (a panel) by kRows rows of x:
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
// A task multiplies some panels, which stay in the second-level cache, with all rows of x, tile by
// tile. The first tile brings them from memory, and fetches ahead: it reads each byte of w once, in
// order. A few rows of x (a decode step of some sequences) are bound by that.
//
// The codes of x are kept tile by tile as the kernel reads them, for each block
//   [8 quads][kRows][4] codes   [kRows] a   [3][kRows] C of columns 0..15, of 16..31, of both
#pragma once

#include <algorithm>

#include "rapt/core/ops/quantized_matmul.hpp"
#include "rapt/cpu/int8.hpp"
#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

// ---- rows of x as codes ----

/// Rows of x in a tile, largest first. A row gives the same result in each of them.
inline constexpr int kTileRows[] = {Vec<float>::kRegisters == 32 ? 12 : 6, 4, 2, 1};

/// Where tile t of m rows begins: as many tiles of the largest kind as fit come first, then those
/// of the next smaller. m, where there is no tile t.
inline index_t tile_begin(index_t m, index_t t) {
  index_t begin = 0;
  for (const int rows : kTileRows) {
    const index_t tiles = std::min(t, (m - begin) / rows);
    begin += tiles * rows;
    t -= tiles;
  }
  return begin;
}

/// Bytes that a row of x takes in its tile.
inline index_t coded_row_bytes(index_t columns) {
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
    alignas(64) std::int8_t codes[kColumns];
    V halves[2] = {zero, zero};
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const V code = round(values[v] * inverse);
      store_int8(codes + v * V::kLanes, code);
      V& half_sum = halves[v / (kVectors / 2)];
      half_sum = half_sum + code;
    }
    const float lower = sum(halves[0]), upper = sum(halves[1]);
    std::uint8_t* at = tile + b * stride;
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; ++quad)
      std::memcpy(at + 4 * (quad * rows + r), codes + 4 * quad, 4);
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

/// Quad `kQuad` of a block, unsigned, for one register's worth of rows, or one of the digits that
/// its codes are multiplied in.
template <int kBits, int kQuad, int kDigit>
[[gnu::always_inline]] inline Quads unpack_quad(const std::uint8_t* planes) {
  const auto plane = [&](int n) { return Quads::load(planes + n * PanelLayout::kPlane); };
  const Quads nibble = Quads::bytes(0x0f);
  if constexpr (kBits == 8 && digits(8) == 1) {
    return plane(kQuad);
  } else if constexpr (kBits == 8) {
    return moved<4 * kDigit, 0>(plane(kQuad)) & nibble;
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
          w[g] = unpack_quad<kInfo.bits, kQuad, kDigit>(planes + 4 * kLanes * g);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const Quads codes = Quads::broadcast(x + 4 * (kQuad * kRows + r));
#pragma GCC unroll 4
          for (int g = 0; g < kTogether; ++g)
            narrow[g][r] = q == 0 ? narrow_dot<kInfo.bits>(w[g], codes)
                                  : narrow_dot<kInfo.bits>(narrow[g][r], w[g], codes);
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

/// sums[r][j] = sum over l of x[r, l] w[j, l] for the 16 rows j of a panel, which another tile has
/// not read before (from_memory) or has.
template <BlockFormat kFormat, int kRows>
void multiply_panel(float* sums, const std::uint8_t* panel, const PanelLayout& layout,
                    const std::uint8_t* x, bool from_memory) {
  using Tile = PanelTile<kFormat, kRows>;
  using V = Vec<float>;
  V out[Tile::kGroups][kRows];
#pragma GCC unroll 4
  for (int g = 0; g < Tile::kGroups; ++g)
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) out[g][r] = V::zero();

  const index_t blocks = layout.blocks();
  const std::uint8_t* planes = panel;
  const index_t ahead_bytes = layout.bytes() / blocks;
  const std::uint8_t* ahead = panel + layout.bytes();
  for (index_t b = 0; b < blocks; ++b) {
    const std::uint8_t* scales = panel + layout.scales(b);
    const std::uint8_t* halfs = Tile::kInfo.super ? panel + layout.super_scales(b) : scales;
    if (from_memory)  // fetch what lies a panel ahead, in the order of memory
      for (index_t line = 0; line < ahead_bytes; line += 64) __builtin_prefetch(ahead + line);
    ahead += ahead_bytes;
    const float* steps = reinterpret_cast<const float*>(x + PanelLayout::kColumns * kRows);
#pragma GCC unroll 4
    for (int first = 0; first < Tile::kGroups; first += Tile::kTogether) {
      Quads total[Tile::kHalves][Tile::kTogether][kRows];
      Tile::dots(total, planes + 4 * V::kLanes * first, x);
      V d[Tile::kHalves][Tile::kTogether], m[Tile::kHalves][Tile::kTogether];
      Tile::affine(d, m, halfs, scales, V::kLanes * first);
      Tile::scale(out + first, total, d, m, steps);
    }
    planes += layout.block_bytes;
    x += coded_row_bytes(PanelLayout::kColumns) * kRows;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int g = 0; g < Tile::kGroups; ++g)
      out[g][r].store(sums + r * PanelLayout::kRows + g * V::kLanes);
}

using PanelKernel = void (*)(float* sums, const std::uint8_t* panel, const PanelLayout& layout,
                             const std::uint8_t* x, bool from_memory);

/// The kernel of a format for a tile of `rows` rows of x, one of kTileRows.
template <int kTile = 0>
PanelKernel panel_kernel(BlockFormat format, index_t rows) {
  constexpr int kRows = kTileRows[kTile];
  if constexpr (kTile + 1 < static_cast<int>(std::size(kTileRows)))
    if (rows != kRows) return panel_kernel<kTile + 1>(format, rows);
  switch (format) {
    case BlockFormat::q4_0:
      return multiply_panel<BlockFormat::q4_0, kRows>;
    case BlockFormat::q4_1:
      return multiply_panel<BlockFormat::q4_1, kRows>;
    case BlockFormat::q5_0:
      return multiply_panel<BlockFormat::q5_0, kRows>;
    case BlockFormat::q5_1:
      return multiply_panel<BlockFormat::q5_1, kRows>;
    case BlockFormat::q8_0:
      return multiply_panel<BlockFormat::q8_0, kRows>;
    case BlockFormat::q4_k:
      return multiply_panel<BlockFormat::q4_k, kRows>;
    case BlockFormat::q5_k:
      return multiply_panel<BlockFormat::q5_k, kRows>;
    case BlockFormat::q6_k:
      return multiply_panel<BlockFormat::q6_k, kRows>;
  }
  return nullptr;
}

// ---- the whole product ----

/// to[j] = sums[j] (+ bias[j]) (+ to[j]), rounded once.
template <class T>
void finish_row(T* to, const float* sums, index_t n, const float* bias, bool accumulate) {
  if constexpr (sizeof(T) <= sizeof(float)) {
    using V = Vec<float>;
    for (index_t j = 0; j < n; j += V::kLanes) {
      const index_t rest = std::min<index_t>(V::kLanes, n - j);
      V sum = V::load(sums + j);
      if (bias != nullptr) sum = sum + V::load(bias + j, rest);
      if (rest == V::kLanes)
        (accumulate ? sum + V::load(to + j) : sum).store(to + j);
      else
        (accumulate ? sum + V::load(to + j, rest) : sum).store(to + j, rest);
    }
  } else {
    for (index_t j = 0; j < n; ++j)
      to[j] =
          static_cast<T>(sums[j] + (bias != nullptr ? bias[j] : 0.f)) + (accumulate ? to[j] : T{0});
  }
}

/// f(part, panel) for the panels [begin, end), counted over all parts.
template <class F>
void visit_panels(const QuantizedMatrix& w, index_t begin, index_t end, F&& f) {
  index_t first = 0;
  for (const QuantizedMatrix::Part& part : w.parts()) {
    const index_t count = part.panel_count();
    for (index_t p = std::max(begin, first); p < std::min(end, first + count); ++p)
      f(part, p - first);
    first += count;
  }
}

template <class T>
void quantized_product(TensorView<T, 2> out, TensorView<const T, 2> x, const QuantizedMatrix& w,
                       const float* bias, bool accumulate) {
  const index_t m = x.extent(0), k = w.columns();
  Scratch<Cpu> scratch;
  const index_t row_bytes = coded_row_bytes(k);
  std::uint8_t* coded = scratch.template tensor<std::uint8_t>(Shape{m * row_bytes}).data();
  index_t tiles = 0;
  while (tile_begin(m, tiles) < m) ++tiles;
  parallel_for(tiles, [&](index_t t) {
    const index_t begin = tile_begin(m, t), rows = tile_begin(m, t + 1) - begin;
    Scratch<Cpu> own;
    float* widened = own.template tensor<float>(Shape{k}).data();
    for (index_t r = 0; r < rows; ++r) {
      const T* from = x.data() + (begin + r) * x.stride(0);
      const float* values = widened;
      if constexpr (std::is_same_v<T, float>)
        values = from;
      else if constexpr (sizeof(T) == 2)
        widen_row(widened, from, k);
      else
        for (index_t i = 0; i < k; ++i) widened[i] = convert<float>(from[i]);
      code_row(coded + begin * row_bytes, rows, r, values, k);
    }
  });

  // A task: panels of about 64 KiB, which the second-level cache holds while the tiles of x go by,
  // but no fewer tasks than four for each of several threads, or some wait for the last one.
  // Of one tile, for which nothing is read again, a task for each thread: memory is read
  // best in long runs, beyond whose ends the processor fetches in vain.
  index_t panels = 0;
  for (const auto& part : w.parts()) panels += part.panel_count();
  const index_t threads = num_threads();
  const index_t shares = tiles == 1 || threads == 1 ? threads : 4 * threads;
  const index_t share = (panels + shares - 1) / shares;
  const index_t wanted = tiles == 1 ? share : std::min<index_t>(share, 65536 / (k * 10));
  const index_t step = std::max<index_t>(1, wanted);
  parallel_for((panels + step - 1) / step, [&](index_t task) {
    alignas(64) float sums[kTileRows[0] * PanelLayout::kRows];
    for (index_t t = 0; t < tiles; ++t) {
      const index_t i = tile_begin(m, t), rows = tile_begin(m, t + 1) - i;
      visit_panels(w, task * step, std::min(panels, (task + 1) * step),
                   [&](const QuantizedMatrix::Part& part, index_t p) {
                     const PanelLayout layout(part.format, k);
                     const index_t first = part.begin + p * PanelLayout::kRows;
                     for (index_t r = 0; r < rows; ++r)
                       __builtin_prefetch(out.data() + (i + r) * out.stride(0) + first, 1);
                     panel_kernel(part.format, rows)(sums, part.panels.data() + p * layout.bytes(),
                                                     layout, coded + i * row_bytes, t == 0);
                     const index_t n =
                         std::min(PanelLayout::kRows, part.rows - p * PanelLayout::kRows);
                     for (index_t r = 0; r < rows; ++r)
                       finish_row(out.data() + (i + r) * out.stride(0) + first,
                                  sums + r * PanelLayout::kRows, n,
                                  bias == nullptr ? nullptr : bias + first, accumulate);
                   });
    }
  });
}

/// The same with x as it is: rows of w are dequantized one by one.
template <class T>
void exact_product(TensorView<T, 2> out, TensorView<const T, 2> x, const QuantizedMatrix& w,
                   const float* bias, bool accumulate) {
  using A = accumulate_t<T>;
  const index_t k = w.columns();
  parallel_for(w.rows(), [&](index_t j) {
    Scratch<Cpu> own;
    A* row = own.template tensor<A>(Shape{k}).data();
    w.dequantize_row(j, row);
    for (index_t i = 0; i < x.extent(0); ++i) {
      A sum = bias == nullptr ? A{0} : static_cast<A>(bias[j]);
      const T* from = x.data() + i * x.stride(0);
      T& to = out.data()[i * out.stride(0) + j];
      if (accumulate) sum += static_cast<A>(to);
      for (index_t l = 0; l < k; ++l) sum += static_cast<A>(from[l]) * row[l];
      to = static_cast<T>(sum);
    }
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T>
void BackendTraits<Cpu>::quantized_matmul(Cpu, TensorView<T, 2> out, TensorView<const T, 2> x,
                                          const QuantizedMatrix& w,
                                          const MatmulOptions<T, Cpu>& options, BlockInput input) {
  if (out.empty()) return;
  Scratch<Cpu> scratch;
  float* bias = nullptr;
  if (options.bias) {
    bias = scratch.template tensor<float>(Shape{w.rows()}).data();
    for (index_t j = 0; j < w.rows(); ++j) bias[j] = convert<float>(options.bias(j));
  }
  if (input == BlockInput::exact)
    cpu::exact_product(out, x, w, bias, options.accumulate);
  else
    cpu::quantized_product(out, x, w, bias, options.accumulate);
}

template <class T>
void BackendTraits<Cpu>::quantized_embedding(Cpu, TensorView<T, 3> out, const QuantizedMatrix& w,
                                             TensorView<const std::int32_t, 2> ids,
                                             accumulate_t<T> scale) {
  const index_t seq = ids.extent(1);
  for (index_t b = 0; b < ids.extent(0); ++b)
    for (index_t s = 0; s < seq; ++s)
      if (const index_t id = ids(b, s); id < 0 || id >= w.rows())
        throw ValueError(detail::text("quantized_embedding: ids[", b, ", ", s, "] is ", id,
                                      ", expected 0 to ", w.rows() - 1, ", the rows of w"));
  cpu::for_row_ranges(ids.extent(0) * seq, w.columns(), [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i)
      w.dequantize_row(ids(i / seq, i % seq), cpu::row_at(out, i), static_cast<float>(scale));
  });
}

}  // namespace rapt

#ifdef RAPT_USE_INSTANCES
#include "rapt/cpu/instances/quantized_matmul.hpp"
#endif
