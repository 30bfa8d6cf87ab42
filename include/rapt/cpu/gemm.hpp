// The packed matrix product of the CPU: out[m, n] = a[m, k] b[k, n] (+ bias) (+ out).
//
//          b, packed: panels of kPanel columns, row l of a panel right behind row l - 1
//          +---------+---------+---------+
//      a   | b[l][0] | b[l][1] | b[l][2] |      8 rows x 3 vectors of accumulators (with 16
//   a[0][l]|  sums   |  sums   |  sums   |      registers: 6 x 2). Every element of a is broadcast
//    ...   |         |         |         |      once, every vector of b loaded once for 8 rows.
//   a[7][l]|         |         |         |
//          +---------+---------+---------+
//
//   task        a block of rows times a strip of panels; cut by shape alone
//     for each kDepthBlock of k          b packed here, unless it came packed; it stays in L2
//       for each 8 rows of the block     these rows of a stay in L1
//         for each panel of the strip    one register tile: from 0 through kChunk units of k, then
//                                        added to bias, out or the chunks of k before
//
// Every out[i, j] is (start + chunk 0) + chunk 1 + ..., a chunk the sum of kChunk units of k in
// their order, wherever the tiles, tasks and blocks of k are cut. Chunks keep rounding small: a
// residual stream much larger than what is added to it takes one rounding for a chunk, not one for
// each product.
//
// a is read where it lies if it lies by rows in the type that is multiplied; else it is brought
// into that form once, for all tasks. half is widened; bfloat16 is widened, or multiplied in pairs
// (2 l, 2 l + 1) where the machine has a dot product for them, in tiles of 32 rows where it has
// matrix registers (cpu/simd/amx.hpp).
//
// Source: Goto, van de Geijn 2008, "Anatomy of high-performance matrix multiplication", section 4.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>
#include <utility>

#include "rapt/cpu/register_tile.hpp"
#include "rapt/cpu/rows.hpp"
#include "rapt/cpu/simd/amx.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// A matrix in memory: element (i, j) at data[i * outer + j], or [j * outer + i] by columns.
template <class T>
struct MatrixRef {
  const T* data;
  index_t outer;
  bool by_rows;

  const T* at(index_t i, index_t j) const {
    return data + (by_rows ? i * outer + j : j * outer + i);
  }
};

/// How elements of type T are multiplied, and the sizes of the tiles.
template <class T>
struct ProductFormat {
  using Sum = accumulate_t<T>;
  static constexpr bool kPairs = kBfloat16Dot && std::is_same_v<T, bfloat16>;
  using Element = std::conditional_t<kPairs, bfloat16, Sum>;   // of a
  using Unit = std::conditional_t<kPairs, Bfloat16Pair, Sum>;  // of b in a panel
  static constexpr index_t kDepth = kPairs ? 2 : 1;            // elements of k in a unit

  static constexpr int kLanes = Vec<Sum>::kLanes;
  static constexpr int kRows = Vec<Sum>::kRegisters >= 32 ? 8 : 6;
  static constexpr int kVectors = Vec<Sum>::kRegisters >= 32 ? 3 : 2;
  static constexpr index_t kPanel = kVectors * kLanes;

  static constexpr index_t kChunk = 256;              // units of k that are summed apart
  static constexpr index_t kDepthBlock = 4 * kChunk;  // units of k between two visits of a sum
  static constexpr index_t kStripBytes = 384 * 1024;  // of b that stay in L2
  static constexpr index_t kRowsBytes = 768 * 1024;   // of a, rearranged, that stay in L2
  static constexpr index_t kPacksAgain = 2 << 20;     // bytes of b, above which it is packed once,
  static constexpr index_t kPackedBytes = 8 << 20;    // these at a time
  static constexpr index_t kRowBlock = 512;           // rows for one packing of b
  static constexpr index_t kPackedRowBlock = 128;     // where b came packed
};

/// What a matrix packed ahead of time is stored in: no more bytes than it has elsewhere.
template <class T>
using PackedElement = std::conditional_t<ProductFormat<T>::kPairs, Bfloat16Pair, T>;

/// The second factor: as it lies, or packed by pack_columns.
template <class T>
struct ProductWeights {
  MatrixRef<T> plain{};
  const PackedElement<T>* packed = nullptr;
};

namespace detail {

/// Blocks of `unit` that cover n.
constexpr index_t blocks_of(index_t n, index_t unit) { return (n + unit - 1) / unit; }

/// Lanes [0, n) of p, converted; a whole load where there are enough.
template <class V, class T>
inline V load_some(const T* p, index_t n) {
  return n >= V::kLanes ? V::load(p) : V::load(p, n);
}

// ---- the register tile ----

inline constexpr index_t kRowsAhead = 20;  // of a panel, prefetched

/// to = start + sums of kRows x kVectors vectors over `depth` units.
template <class F, class Stored, int kRows, int kVectors>
void multiply_rows_panel(typename F::Sum* to, index_t to_stride, const typename F::Sum* start,
                         index_t start_stride, const typename F::Element* a, index_t a_stride,
                         const Stored* b, index_t b_stride, index_t depth) {
  using V = Vec<typename F::Sum>;
  V sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[i][v] = V::zero();
  }
  // What is written, and read if there are sums already, may come from memory.
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) __builtin_prefetch(to + i * to_stride + v * V::kLanes, 1);
  }
  // b may come from memory: a weight that is read once for few rows. Nearly all tiles fill the
  // registers, and in a panel of known width only the loads stand beside their multiply-adds.
  using Steps = RegisterSteps<V::kRegisters >= 32 ? 1 : 4, kRowsAhead>;
  constexpr bool kFills = kRows * kVectors == V::kRegisters / 4 * 3;
  constexpr std::integral_constant<index_t, kVectors * V::kLanes> kWidth;
  if (kFills && b_stride == kWidth)
    add_products<Lie::by_rows, Steps>(sums, a, a_stride, b, kWidth, depth);
  else
    add_products<Lie::by_rows, Steps>(sums, a, a_stride, b, b_stride, depth);
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      (V::load(start + i * start_stride + v * V::kLanes) + sums[i][v])
          .store(to + i * to_stride + v * V::kLanes);
  }
}

template <class F, class Stored>
using TileKernel = void (*)(typename F::Sum*, index_t, const typename F::Sum*, index_t,
                            const typename F::Element*, index_t, const Stored*, index_t, index_t);

/// The kernel for 1 to kRows rows and 1 to kVectors vectors.
template <class F, class Stored>
TileKernel<F, Stored> tile_kernel(index_t rows, index_t vectors) {
  static constexpr auto kernels = []<int... kIndex>(std::integer_sequence<int, kIndex...>) {
    return std::array{
        &multiply_rows_panel<F, Stored, kIndex / F::kVectors + 1, kIndex % F::kVectors + 1>...};
  }
  (std::make_integer_sequence<int, F::kRows * F::kVectors>{});
  return kernels[static_cast<std::size_t>((rows - 1) * F::kVectors + vectors - 1)];
}

/// What multiplies the tiles of a task: the kernels above, or the machine's matrix registers.
template <class F>
class TileMultiplier {
 public:
  using Sum = typename F::Sum;

  static bool uses_amx() { return F::kPairs && amx_granted(); }
  /// Rows of a tile.
  static index_t rows() { return uses_amx() ? AmxTiles::kRows : F::kRows; }

  template <class Stored>
  void operator()(index_t rows, index_t vectors, Sum* to, index_t to_stride, const Sum* start,
                  index_t start_stride, const typename F::Element* a, index_t a_stride,
                  const Stored* b, index_t b_stride, index_t depth) {
    for (index_t at = 0; at == 0 || at < depth; at += F::kChunk) {
      multiply_chunk(rows, vectors, to, to_stride, start, start_stride, a + at * F::kDepth,
                     a_stride, b + at * b_stride, b_stride, std::min(F::kChunk, depth - at));
      start = to, start_stride = to_stride;
    }
  }

 private:
  template <class Stored>
  void multiply_chunk(index_t rows, index_t vectors, Sum* to, index_t to_stride, const Sum* start,
                      index_t start_stride, const typename F::Element* a, index_t a_stride,
                      const Stored* b, index_t b_stride, index_t depth) {
    if constexpr (kAmx && F::kPairs) {
      if (uses_amx_) {
        const index_t whole = depth / AmxTiles::kUnits * AmxTiles::kUnits;
        amx_.multiply(rows, vectors, to, to_stride, start, start_stride, a, a_stride, b,
                      vectors * Vec<float>::kLanes, whole);
        if (whole == depth) return;
        b += whole * b_stride;
        for (index_t r = 0; r < rows; r += F::kRows) {
          Sum* const sums = to + r * to_stride;
          tile_kernel<F, Stored>(std::min<index_t>(F::kRows, rows - r), vectors)(
              sums, to_stride, sums, to_stride, a + r * a_stride + whole * F::kDepth, a_stride, b,
              b_stride, depth - whole);
        }
        return;
      }
    }
    tile_kernel<F, Stored>(rows, vectors)(to, to_stride, start, start_stride, a, a_stride, b,
                                          b_stride, depth);
  }

  const bool uses_amx_ = uses_amx();
  AmxTiles amx_;
};

// ---- packing ----

/// Asks for columns [j, j + n) of a row soon to come behind row l: rows are pages apart, and a
/// processor sees no pattern in them.
template <class T>
[[gnu::always_inline]] inline void fetch_row_of_panel(MatrixRef<T> b, index_t l, index_t j,
                                                      index_t n, index_t depth) {
  constexpr index_t kAhead = 16, kLine = 64 / static_cast<index_t>(sizeof(T));
  const T* const row = b.at(std::min(l + kAhead, depth - 1), j);
  for (index_t c = 0; c < n; c += kLine) __builtin_prefetch(row + c);
}

/// Columns of b, `depth` elements of each, into a panel of whole vectors; b is the corner.
template <class T, class Stored>
[[gnu::noinline]] void pack_panel(Stored* to, MatrixRef<T> b, index_t columns, index_t depth) {
  using V = Vec<accumulate_t<T>>;
  const index_t width = blocks_of(columns, V::kLanes) * V::kLanes;
  if constexpr (std::is_same_v<Stored, Bfloat16Pair>) {
    using U = Vec<Stored>;
    const index_t units = blocks_of(depth, 2);
    for (index_t v = 0; v < columns; v += V::kLanes) {
      const index_t lines = std::min<index_t>(V::kLanes, columns - v);
      if (b.by_rows) {
        for (index_t u = 0; u < units; ++u) {
          fetch_row_of_panel(b, 2 * u, v, lines, depth);
          fetch_row_of_panel(b, 2 * u + 1, v, lines, depth);
          const bfloat16* even = b.at(2 * u, v);
          U::interleave(even, 2 * u + 1 < depth ? even + b.outer : nullptr, lines)
              .store(to + u * width + v);
        }
      } else {
        transpose_lines<U>(to + v, width, lines, units, [&](index_t c, index_t u, index_t) {
          return U::load_pairs(b.at(2 * u, v + c), depth - 2 * u);
        });
      }
    }
  } else if (b.by_rows) {
    for (index_t l = 0; l < depth; ++l) {
      fetch_row_of_panel(b, l, 0, columns, depth);
      for (index_t v = 0; v < columns; v += V::kLanes)
        load_some<V>(b.at(l, v), columns - v).store(to + l * width + v);
    }
  } else {
    for (index_t v = 0; v < columns; v += V::kLanes)
      transpose_lines<V>(
          to + v, width, std::min<index_t>(V::kLanes, columns - v), depth,
          [&](index_t c, index_t l, index_t n) { return load_some<V>(b.at(l, v + c), n); });
  }
}

/// Whether the kernel can read the rows of a where they lie: side by side in the type that is
/// multiplied, and in pairs an even number of them.
template <class T, class F = ProductFormat<T>>
bool rows_fit(MatrixRef<T> a, index_t k) {
  return std::is_same_v<typename F::Element, T> && a.by_rows && k % F::kDepth == 0;
}

/// Elements between rows that pack_rows writes: whole lines of the cache, and one more where the
/// rows of a tile would share the same sets.
template <class E>
index_t packed_row_stride(index_t k) {
  constexpr index_t kLine = 64 / static_cast<index_t>(sizeof(E));
  const index_t stride = blocks_of(k, kLine) * kLine;
  return stride % (8 * kLine) == 0 ? stride + kLine : stride;
}

/// a [m, k] into rows that the kernel reads; a is the corner.
template <class T, class F = ProductFormat<T>>
[[gnu::noinline]] void pack_rows(typename F::Element* to, index_t stride, MatrixRef<T> a, index_t m,
                                 index_t k) {
  using V = Vec<typename F::Sum>;
  if (a.by_rows) {
    for (index_t i = 0; i < m; ++i) {
      widen_row(to + i * stride, a.at(i, 0), k);
      if (k % F::kDepth != 0) to[i * stride + k] = {};
    }
  } else if constexpr (F::kPairs) {
    using U = Vec<typename F::Unit>;
    constexpr index_t kStep = 2 * U::kLanes;
    for (index_t l = 0; l < k; l += kStep)
      transpose_lines<U>(to + l, stride, blocks_of(std::min(kStep, k - l), 2), m,
                         [&](index_t c, index_t i, index_t n) {
                           const T* const even = a.at(i, l + 2 * c);
                           return U::interleave(even, l + 2 * c + 1 < k ? even + a.outer : nullptr,
                                                n);
                         });
  } else {
    for (index_t l = 0; l < k; l += V::kLanes)
      transpose_lines<V>(
          to + l, stride, std::min<index_t>(V::kLanes, k - l), m,
          [&](index_t c, index_t i, index_t n) { return load_some<V>(a.at(i, l + c), n); });
  }
}

// ---- a task ----

/// A panel: unit row l at data + l * stride.
template <class Stored>
struct PanelRef {
  const Stored* data;
  index_t stride;
};

/// What all tasks of a product share.
template <class T, class Out>
struct Product {
  using F = ProductFormat<T>;
  using Sum = typename F::Sum;
  using Element = typename F::Element;

  Out* out;
  index_t out_stride, m, n, k;
  MatrixRef<T> a;
  ProductWeights<T> b;
  const Sum* bias;  // [n] or null
  bool accumulate;

  index_t units() const { return blocks_of(k, F::kDepth); }
  /// Whether packing b would cost more than it saves: few rows, and b lies by rows, as in a panel.
  bool reads_rows_of_b() const {
    return !F::kPairs && b.packed == nullptr && b.plain.by_rows && m <= F::kRows;
  }
  /// Whether rows of a lie whole pages apart, so that those of a tile share the sets of the first
  /// cache, and the product is large enough to bring them elsewhere first (2 to 5 % at 1024^2).
  bool rows_collide() const {
    constexpr index_t kPage = 4096 / static_cast<index_t>(sizeof(T)), kManyColumns = 512;
    return a.by_rows && a.outer % kPage == 0 && k > F::kChunk && m > F::kRows && n >= kManyColumns;
  }
  /// Panels of b that stay in L2 while the rows of a task pass by.
  index_t strip_columns() const {
    const index_t bytes = F::kPanel * static_cast<index_t>(sizeof(typename F::Unit)) *
                          std::clamp<index_t>(units(), 1, F::kDepthBlock);
    return std::max<index_t>(1, F::kStripBytes / bytes) * F::kPanel;
  }

  /// Rows [row, row_end) times columns [column, column_end); column is a multiple of kPanel.
  /// Stored: the panels that the kernel reads, of Unit or of PackedElement.
  template <class Stored>
  void run(index_t row, index_t row_end, index_t column, index_t column_end) const {
    const bool pack_a = !rows_fit(a, k) || rows_collide();
    const bool pack_b = b.packed == nullptr || !std::is_same_v<Stored, PackedElement<T>>;
    const bool in_place = std::is_same_v<Stored, T> && reads_rows_of_b();
    const index_t rows = row_end - row;
    const index_t strip =
        std::min(strip_columns(), blocks_of(column_end - column, F::kPanel) * F::kPanel);
    // Rearranged rows of a stay in L2 where sums can wait in out, and hold all of k elsewhere.
    index_t span = std::max<index_t>(1, units());
    if (pack_a && kDirect) {
      const index_t fits = F::kRowsBytes / (static_cast<index_t>(sizeof(typename F::Unit)) *
                                            std::max(rows, F::kRowBlock / 2));
      constexpr index_t kWhole = F::kChunk;  // chunks stay whole
      span = blocks_of(blocks_of(span, blocks_of(span, fits)), kWhole) * kWhole;
    }
    const index_t block = std::min(span, F::kDepthBlock);

    TileMultiplier<F> multiplier;
    Scratch<Cpu> scratch;
    const index_t a_stride = pack_a ? packed_row_stride<Element>(span * F::kDepth) : a.outer;
    Element* packed_rows = nullptr;
    if (pack_a) packed_rows = scratch.template tensor<Element>(Shape{rows, a_stride}).data();
    Stored* panels = nullptr;
    if (pack_b) panels = scratch.template tensor<Stored>(Shape{strip * block}).data();
    Tiles tiles{.row = row, .rows = rows};
    // Sums that cannot wait in out: of a panel that is not whole vectors, of a 16-bit out.
    const bool several = units() > block;
    tiles.sums_stride = several && !kDirect ? strip : F::kPanel;
    tiles.sums =
        scratch.template tensor<Sum>(Shape{several ? rows : multiplier.rows(), tiles.sums_stride})
            .data();
    tiles.keep_sums = several;

    for (index_t s = 0; s == 0 || s < units(); s += span) {
      const index_t span_end = std::min(units(), s + span);
      if (pack_a) {
        const index_t l = s * F::kDepth;
        pack_rows<T>(packed_rows, a_stride, MatrixRef<T>{a.at(row, l), a.outer, a.by_rows}, rows,
                     std::min(k, span_end * F::kDepth) - l);
      }
      for (index_t j = column; j < column_end; j += strip) {
        const index_t j_end = std::min(column_end, j + strip);
        for (index_t u = s; u == s || u < span_end; u += block) {
          const index_t depth = std::min(block, span_end - u);
          if (pack_b && depth > 0)
            for (index_t p = j; p < j_end; p += F::kPanel)
              if (!in_place || j_end - p < F::kPanel)
                fill_panel(panels + (p - j) * block, p, std::min(F::kPanel, j_end - p), u, depth);
          tiles.first = u == 0;
          tiles.last = u + depth >= units();
          tiles.column = j;
          const Element* from = packed_rows + (u - s) * F::kDepth;
          if constexpr (std::is_same_v<Element, T>)
            if (!pack_a) from = a.at(row, u * F::kDepth);
          multiply(multiplier, tiles, from, a_stride, j_end, depth, [&](index_t p, index_t width) {
            if constexpr (std::is_same_v<Stored, PackedElement<T>>)
              if (!pack_b) return PanelRef<Stored>{b.packed + p * units() + u * width, width};
            if constexpr (std::is_same_v<Stored, T>)
              if (in_place && j_end - p >= F::kPanel)
                return PanelRef<Stored>{b.plain.at(u, p), b.plain.outer};
            return PanelRef<Stored>{panels + (p - j) * block, width};
          });
        }
      }
    }
  }

 private:
  static constexpr bool kDirect = std::is_same_v<Out, Sum>;  // sums may wait in out

  struct Tiles {
    index_t row, rows, column = 0;
    Sum* sums = nullptr;
    index_t sums_stride = 0;
    bool keep_sums = false, first = true, last = true;
  };

  /// Rows of `at` times the panels of columns [column, column_end); panel(p, width) is the packed
  /// panel that begins at column p.
  template <class Panel>
  void multiply(TileMultiplier<F>& multiplier, const Tiles& at, const Element* rows_of_a,
                index_t a_stride, index_t column_end, index_t depth, const Panel& panel) const {
    static constexpr Sum kZeros[F::kPanel] = {};
    // Tiles of about equal height: 9 rows are 5 and 4.
    const index_t tiles = blocks_of(at.rows, multiplier.rows());
    const index_t height = at.rows / tiles, taller = at.rows % tiles;
    index_t r = 0;
    for (index_t tile = 0; tile < tiles; ++tile) {
      const index_t rows = height + (tile < taller);
      const Element* const from = rows_of_a + r * a_stride;
      for (index_t j = at.column; j < column_end; j += F::kPanel) {
        const index_t columns = std::min(F::kPanel, column_end - j);
        const index_t vectors = blocks_of(columns, F::kLanes), width = vectors * F::kLanes;
        const auto from_b = panel(j, width);
        Out* const to = out + (at.row + r) * out_stride + j;
        if constexpr (kDirect)
          if (columns == width) {
            const bool begun = accumulate || !at.first;
            if (at.first && accumulate && bias != nullptr)
              start_sums(to, out_stride, to, rows, columns, j);
            const Sum* const start = begun ? to : bias != nullptr ? bias + j : kZeros;
            multiplier(rows, vectors, to, out_stride, start, begun ? out_stride : 0, from, a_stride,
                       from_b.data, from_b.stride, depth);
            continue;
          }
        Sum* sums = at.sums;
        if (at.keep_sums) sums += r * at.sums_stride + (kDirect ? 0 : j - at.column);
        if (at.first) start_sums(sums, at.sums_stride, to, rows, columns, j);
        multiplier(rows, vectors, sums, at.sums_stride, sums, at.sums_stride, from, a_stride,
                   from_b.data, from_b.stride, depth);
        if (at.last)
          for (index_t i = 0; i < rows; ++i)
            narrow_row(to + i * out_stride, sums + i * at.sums_stride, columns);
      }
      r += rows;
    }
  }

  /// Units [u, u + depth) of the columns from j on, in the form that is multiplied.
  template <class Stored>
  void fill_panel(Stored* to, index_t j, index_t columns, index_t u, index_t depth) const {
    const index_t width = blocks_of(columns, F::kLanes) * F::kLanes;
    const index_t l = u * F::kDepth, elements = std::min(depth * F::kDepth, k - l);
    if (b.packed == nullptr)
      pack_panel(to, MatrixRef<T>{b.plain.at(l, j), b.plain.outer, b.plain.by_rows}, columns,
                 elements);
    else if constexpr (!F::kPairs)
      widen_row(to, b.packed + j * units() + u * width, depth * width);
  }

  /// (out) (+ bias), what the sums of a tile start from; sums may be out itself.
  void start_sums(Sum* sums, index_t stride, const Out* from, index_t rows, index_t columns,
                  index_t j) const {
    for (index_t r = 0; r < rows; ++r) {
      Sum* const row = sums + r * stride;
      if (!accumulate)
        std::fill_n(row, columns, Sum{0});
      else if (static_cast<const void*>(row) != static_cast<const void*>(from + r * out_stride))
        widen_row(row, from + r * out_stride, columns);
      if (bias != nullptr)
        for (index_t c = 0; c < columns; ++c) row[c] += bias[j + c];
    }
  }
};

}  // namespace detail

/// Elements of b [k, n], packed.
template <class T>
index_t packed_size(index_t k, index_t n) {
  using F = ProductFormat<T>;
  return detail::blocks_of(k, F::kDepth) * detail::blocks_of(n, F::kLanes) * F::kLanes;
}

/// b [k, n] in the order in which `product` reads it; to has packed_size<T>(k, n) elements.
template <class T>
void pack_columns(PackedElement<T>* to, MatrixRef<T> b, index_t k, index_t n) {
  using F = ProductFormat<T>;
  parallel_for(detail::blocks_of(n, F::kPanel), [&](index_t panel) {
    const index_t j = panel * F::kPanel;
    detail::pack_panel(to + j * detail::blocks_of(k, F::kDepth),
                       MatrixRef<T>{b.at(0, j), b.outer, b.by_rows},
                       std::min<index_t>(F::kPanel, n - j), k);
  });
}

/// out[m, n] = a b (+ bias) (+ out); Out is T or accumulate_t<T>. Any m, n, k.
template <class Out, class T>
void product(TensorView<Out, 2> out, MatrixRef<T> a, const ProductWeights<T>& b, index_t k,
             const accumulate_t<T>* bias, bool accumulate) {
  using F = ProductFormat<T>;
  const index_t m = out.extent(0), n = out.extent(1);
  if (m == 0 || n == 0) return;
  if constexpr (std::is_same_v<PackedElement<T>, typename F::Unit>) {
    // Where blocks of rows would pack much of b again, it is packed once for all of them, as many
    // columns at a time as a last level cache holds.
    const index_t column_bytes = k * static_cast<index_t>(sizeof(T));
    const index_t again = (m - 1) / F::kRowBlock * n * column_bytes;
    if (b.packed == nullptr && again > F::kPacksAgain) {
      const index_t strip =
          std::max<index_t>(1, F::kPackedBytes / column_bytes / F::kPanel) * F::kPanel;
      Scratch<Cpu> scratch;
      auto* const packed =
          scratch.template tensor<PackedElement<T>>(Shape{packed_size<T>(k, std::min(n, strip))})
              .data();
      for (index_t j = 0; j < n; j += strip) {
        const index_t j_end = std::min(n, j + strip);
        pack_columns<T>(packed, MatrixRef<T>{b.plain.at(0, j), b.plain.outer, b.plain.by_rows}, k,
                        j_end - j);
        product(out.slice(1, j, j_end), a, ProductWeights<T>{.packed = packed}, k,
                bias == nullptr ? nullptr : bias + j, accumulate);
      }
      return;
    }
  }
  const detail::Product<T, Out> shared{out.data(), out.stride(0), m, n, k, a, b, bias, accumulate};

  // Few large blocks pack least; all threads need some. No sum depends on where the cuts are.
  const auto even = [](index_t extent, index_t limit, index_t unit) {
    const index_t parts = detail::blocks_of(extent, limit);
    return detail::blocks_of(detail::blocks_of(extent, parts), unit) * unit;
  };
  const index_t tile = detail::TileMultiplier<F>::rows();
  const index_t block = b.packed == nullptr ? F::kRowBlock : F::kPackedRowBlock;
  index_t rows = even(m, block + F::kRows - 1, tile);  // 512 rows are one block, of tiles of 6 too
  index_t columns = even(n, n, F::kPanel);
  const auto row_blocks = [&] { return detail::blocks_of(m, rows); };
  const auto tasks = [&] { return row_blocks() * detail::blocks_of(n, columns); };
  const index_t wanted = num_threads() == 1 ? 1 : 3 * num_threads();
  while (tasks() < wanted && (rows > 64 || columns > F::kPanel)) {
    if (rows > 64 && rows >= columns)
      rows = even(rows, rows / 2, tile);
    else if (columns > F::kPanel)
      columns = even(columns, columns / 2, F::kPanel);
    else
      break;
  }
  parallel_for(tasks(), [&](index_t task) {
    const index_t row = task % row_blocks() * rows, row_end = std::min(m, row + rows);
    const index_t column = task / row_blocks() * columns;
    const index_t column_end = std::min(n, column + columns);
    if constexpr (!std::is_same_v<PackedElement<T>, typename F::Unit>) {
      // One tile of rows: b is widened in the kernel, not in memory.
      if (m <= F::kRows && (b.packed != nullptr || shared.reads_rows_of_b())) {
        shared.template run<T>(row, row_end, column, column_end);
        return;
      }
    }
    shared.template run<typename F::Unit>(row, row_end, column, column_end);
  });
}

/// The reverse: element (l, j) to b[l * row + j * column].
template <class T>
void unpack_columns(T* b, index_t row, index_t column, const PackedElement<T>* from, index_t k,
                    index_t n) {
  using F = ProductFormat<T>;
  constexpr index_t kDepth = F::kDepth;
  parallel_for(detail::blocks_of(n, F::kPanel), [&](index_t panel) {
    const index_t begin = panel * F::kPanel, columns = std::min<index_t>(F::kPanel, n - begin);
    const index_t width = detail::blocks_of(columns, F::kLanes) * F::kLanes;
    // A pair is two elements, one behind the other.
    const T* const elements =
        reinterpret_cast<const T*>(from + begin * detail::blocks_of(k, kDepth));
    for (index_t c = 0; c < columns; ++c)
      for (index_t l = 0; l < k; ++l)
        b[l * row + (begin + c) * column] =
            elements[(l / kDepth * width + c) * kDepth + l % kDepth];
  });
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
