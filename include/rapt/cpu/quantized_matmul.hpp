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
// A tile is 16 rows of w (a panel) by a few rows of x: cpu/quantized_panel.hpp draws it, and
// cpu/quantized_matmul_amx.hpp the one in Intel's matrix registers.
//
// A task multiplies some panels, which stay in the second-level cache, with all rows of x, tile by
// tile. The first tile brings them from memory, and fetches ahead: it reads each byte of w once, in
// order. A few rows of x (a decode step of some sequences) are bound by that.
#pragma once

#include <algorithm>

#include "rapt/core/ops/quantized_matmul.hpp"
#include "rapt/cpu/quantized_matmul_amx.hpp"
#include "rapt/cpu/quantized_panel.hpp"
#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

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

/// The product of some rows of x, as codes, with w. Tiles: what multiplies kMatrixRows of them at
/// once (AmxQuads), or NoTiles.
template <class Tiles, class T>
class QuantizedProduct {
  static constexpr bool kMatrix = !std::is_same_v<Tiles, NoTiles>;

 public:
  QuantizedProduct(TensorView<T, 2> out, const QuantizedMatrix& w, const float* bias,
                   bool accumulate, Scratch<Cpu>& scratch)
      : out_(out),
        w_(w),
        bias_(bias),
        accumulate_(accumulate),
        uses_matrix_(kMatrix && out.extent(0) >= kFewestMatrixRows) {
    codes_ = scratch.template tensor<std::uint8_t>(Shape{out.extent(0) * row_bytes()}).data();
    while (begin_of(tiles_) < out.extent(0)) ++tiles_;
    for (const auto& part : w.parts()) panels_ += part.panel_count();
  }

  void run(TensorView<const T, 2> x) {
    parallel_for(tiles_, [&](index_t t) { code_tile(x, t); });
    // A task: panels of about 64 KiB, which the second-level cache holds while the tiles of x go
    // by, but no fewer tasks than four for each of several threads, or some wait for the last one.
    // Of one tile, for which nothing is read again, a task for each thread: memory is read best in
    // long runs, beyond whose ends the processor fetches in vain.
    const index_t threads = num_threads();
    const index_t shares = tiles_ == 1 || threads == 1 ? threads : 4 * threads;
    const index_t share = (panels_ + shares - 1) / shares;
    const index_t wanted = tiles_ == 1 ? share : std::min<index_t>(share, 65536 / (columns() * 10));
    const index_t step = std::max<index_t>(1, wanted);
    parallel_for((panels_ + step - 1) / step, [&](index_t task) {
      multiply(task * step, std::min(panels_, (task + 1) * step));
    });
  }

 private:
  index_t columns() const { return w_.columns(); }
  index_t row_bytes() const { return coded_row_bytes(columns()); }
  index_t begin_of(index_t tile) const { return tile_begin(out_.extent(0), tile, uses_matrix_); }

  void code_tile(TensorView<const T, 2> x, index_t t) {
    const index_t begin = begin_of(t), rows = begin_of(t + 1) - begin, k = columns();
    Scratch<Cpu> own;
    float* const widened = own.template tensor<float>(Shape{k}).data();
    for (index_t r = 0; r < rows; ++r) {
      const T* const from = x.data() + (begin + r) * x.stride(0);
      const float* values = widened;
      if constexpr (std::is_same_v<T, float>)
        values = from;
      else if constexpr (sizeof(T) == 2)
        widen_row(widened, from, k);
      else
        for (index_t i = 0; i < k; ++i) widened[i] = convert<float>(from[i]);
      code_row(codes_ + begin * row_bytes(), rows, r, values, k);
    }
  }

  /// Panels [begin, end) by all rows.
  void multiply(index_t begin, index_t end) {
    // Matrix registers take panels unpacked: by the first tile, for all.
    const index_t unpacked_bytes = columns() / PanelLayout::kColumns * kLargestUnpackedBlock;
    Scratch<Cpu> own;
    std::uint8_t* const unpacked =
        own.template tensor<std::uint8_t>(Shape{uses_matrix_ ? (end - begin) * unpacked_bytes : 0})
            .data();
    [[maybe_unused]] Tiles matrix;
    for (index_t t = 0; t < tiles_; ++t) {
      const index_t i = begin_of(t), rows = begin_of(t + 1) - i;
      const std::uint8_t* const x = codes_ + i * row_bytes();
      [[maybe_unused]] std::uint8_t* to = unpacked;
      visit_panels(w_, begin, end, [&](const QuantizedMatrix::Part& part, index_t p) {
        const PanelLayout layout(part.format, columns());
        const std::uint8_t* const panel = part.panels.data() + p * layout.bytes();
        const index_t first = part.begin + p * PanelLayout::kRows;
        const index_t n = std::min(PanelLayout::kRows, part.rows - p * PanelLayout::kRows);
        if constexpr (kMatrix) {
          if (rows == kMatrixRows) {
            const MatrixKernels<Tiles> kernels = matrix_kernels<Tiles>(part.format);
            if (t == 0) kernels.unpack(to, panel, layout);
            finish(i, rows, first, n, [&](float* sums, index_t step) {
              kernels.multiply(sums, step, to, layout.blocks(), x, matrix);
            });
            to += unpacked_bytes;
            return;
          }
        }
        finish(i, rows, first, n, [&](float* sums, index_t step) {
          panel_kernel(part.format, rows)(sums, step, panel, layout, x, t == 0);
        });
      });
    }
  }

  /// Rows [i, i + rows) and columns [first, first + n) of out from what product(sums, step) writes.
  template <class Product>
  void finish(index_t i, index_t rows, index_t first, index_t n, const Product& product) {
    T* const to = out_.data() + i * out_.stride(0) + first;
    for (index_t r = 0; r < rows; ++r) __builtin_prefetch(to + r * out_.stride(0), 1);
    if constexpr (std::is_same_v<T, float>)
      if (n == PanelLayout::kRows && bias_ == nullptr && !accumulate_)
        return product(to, out_.stride(0));
    alignas(64) float sums[kMatrixRows * PanelLayout::kRows];
    product(sums, PanelLayout::kRows);
    for (index_t r = 0; r < rows; ++r)
      finish_row(to + r * out_.stride(0), sums + r * PanelLayout::kRows, n,
                 bias_ == nullptr ? nullptr : bias_ + first, accumulate_);
  }

  const TensorView<T, 2> out_;
  const QuantizedMatrix& w_;
  const float* const bias_;
  const bool accumulate_, uses_matrix_;
  std::uint8_t* codes_;
  index_t tiles_ = 0, panels_ = 0;
};

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
  if (input == BlockInput::exact) return cpu::exact_product(out, x, w, bias, options.accumulate);
  if constexpr (cpu::kAmxInt8)
    if (cpu::amx_granted())
      return cpu::QuantizedProduct<cpu::AmxQuads, T>(out, w, bias, options.accumulate, scratch)
          .run(x);
  cpu::QuantizedProduct<cpu::NoTiles, T>(out, w, bias, options.accumulate, scratch).run(x);
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
