// matmul on the CPU (core/backend.hpp): out[m, n] = a[m, k] b[k, n] (+ bias) (+ out).
//
//   m > 12   the packed product of cpu/gemm.hpp, in matrix registers that of cpu/gemm_parts.hpp for
//            fp32 and half; and few rows where b lies by rows, as in a panel
//   m <= 12  a decode step with a weight [n, k]: bound by reading b, once. Dot products along k,
//            column by column
//
// No sum is cut across tasks, so none depends on the number of threads.
#pragma once

#include <algorithm>

#include "rapt/cpu/gemm.hpp"
#include "rapt/cpu/gemm_parts.hpp"
#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

inline constexpr index_t kFewRows = 12;
inline constexpr index_t kTaskBytes = 32768;  // of b that a task of few rows reads

/// The operand as memory: by rows where its last axis is contiguous.
template <class T>
MatrixRef<T> matrix_ref(TensorView<const T, 2> x) {
  const bool by_rows = x.stride(1) == 1 || x.extent(1) <= 1;
  return {x.data(), x.stride(by_rows ? 0 : 1), by_rows};
}

// ---- few rows ----

/// The units that begin at element p of a row, `elements` of which exist; others are 0.
template <class F, class T>
inline Vec<typename F::Unit> load_units(const T* p, index_t elements) {
  if constexpr (F::kPairs)
    return Vec<typename F::Unit>::load_pairs(p, elements);
  else
    return detail::load_some<Vec<typename F::Sum>>(p, elements);
}

/// sums[r] = sum_l x[r][l] w[l] for kRows rows of x and one column of the weights: two vectors of
/// partial sums, even and odd. (One column at a time, in the order of memory: several at once are
/// several streams, which a processor fetches ahead at half the rate.)
template <class F, int kRows, class T>
void dot_products(typename F::Sum (&sums)[kRows], const typename F::Element* x, index_t x_stride,
                  index_t k, const T* w, index_t w_stride) {
  using V = Vec<typename F::Sum>;
  constexpr index_t kStep = V::kLanes * F::kDepth;
  V even[kRows], odd[kRows];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) even[r] = odd[r] = V::zero();
  const auto add = [&](V(&to)[kRows], index_t l, index_t rest) {
    const auto wl = load_units<F>(w + l, rest);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      to[r] = fma(load_units<F>(x + r * x_stride + l, rest), wl, to[r]);
  };
  index_t l = 0;
  for (; l + 2 * kStep <= k; l += 2 * kStep) {
    const auto next = reinterpret_cast<const char*>(w + w_stride + l);  // of the next column
#pragma GCC unroll 2
    for (std::size_t line = 0; line < 2 * kStep * sizeof(T); line += 64)
      __builtin_prefetch(next + line);
    add(even, l, kStep);
    add(odd, l + kStep, kStep);
  }
  for (; l < k; l += kStep) add(even, l, std::min(kStep, k - l));
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) sums[r] = sum(even[r] + odd[r]);
}

/// b by columns: out[r, j] for j in [begin, end).
template <class F, int kRows, class T, class Finish>
void dot_columns(const typename F::Element* x, index_t x_stride, MatrixRef<T> b, index_t k,
                 index_t begin, index_t end, const Finish& finish) {
  for (index_t j = begin; j < end; ++j) {
    typename F::Sum sums[kRows];
    dot_products<F, kRows>(sums, x, x_stride, k, b.data + j * b.outer, b.outer);
    for (int r = 0; r < kRows; ++r) finish(r, j, sums[r]);
  }
}

/// The rows of a, few, times the columns of b where they lie.
template <class Out, class T, class F = ProductFormat<T>>
void product_of_few_rows(TensorView<Out, 2> out, MatrixRef<T> a, MatrixRef<T> b, index_t k,
                         const typename F::Sum* bias, bool accumulate) {
  using Element = typename F::Element;
  const index_t m = out.extent(0);
  Scratch<Cpu> scratch;
  const Element* x = nullptr;
  index_t stride = a.outer;
  if constexpr (std::is_same_v<Element, T>)
    if (a.by_rows) x = a.data;
  if (x == nullptr) {
    stride = detail::packed_row_stride<Element>(k);
    Element* const rows = scratch.template tensor<Element>(Shape{m, stride}).data();
    detail::pack_rows<T>(rows, stride, a, m, k);
    x = rows;
  }
  const index_t n = out.extent(1);
  const index_t bytes = std::max<index_t>(1, k * static_cast<index_t>(sizeof(T)));
  // Where nothing is read again, in long runs: beyond their ends the processor fetches in vain.
  const index_t columns =
      std::max<index_t>(1, m <= 4 ? detail::blocks_of(n, num_threads()) : kTaskBytes / bytes);
  parallel_for(detail::blocks_of(n, columns), [&](index_t task) {
    const index_t begin = task * columns, end = std::min(n, begin + columns);
    for (index_t i = 0; i < m;
         i += 4) {  // the columns of a task are read once, and again from cache
      const auto run = [&]<int kRows>(std::integral_constant<int, kRows>) {
        dot_columns<F, kRows>(x + i * stride, stride, b, k, begin, end,
                              [&](index_t r, index_t j, typename F::Sum sum) {
                                Out& to = out.data()[(i + r) * out.stride(0) + j];
                                if (bias != nullptr) sum += bias[j];
                                if (accumulate) sum += static_cast<typename F::Sum>(to);
                                to = static_cast<Out>(sum);
                              });
      };
      const index_t left = m - i;
      if (left == 1)
        run(std::integral_constant<int, 1>{});
      else if (left == 2)
        run(std::integral_constant<int, 2>{});
      else if (left == 3)
        run(std::integral_constant<int, 3>{});
      else
        run(std::integral_constant<int, 4>{});
    }
  });
}

/// Any number of rows, b as it lies or packed.
template <class Out, class T>
void product_of_rows(TensorView<Out, 2> out, MatrixRef<T> a, const ProductWeights<T>& b, index_t k,
                     const accumulate_t<T>* bias, bool accumulate) {
  if constexpr (kAmx && (std::is_same_v<T, float> || std::is_same_v<T, half>))
    if (parts_pay<T>(out.extent(0), out.extent(1), k))
      return PartsGemm<T, Out>(out, a, b, k, bias, accumulate).run();
  product(out, a, b, k, bias, accumulate);
}

/// The bias in the type of the sums, or null.
template <class T>
const accumulate_t<T>* product_bias(Scratch<Cpu>& scratch, const MatmulOptions<T, Cpu>& options) {
  using Sum = accumulate_t<T>;
  if (!options.bias) return nullptr;
  const index_t n = options.bias.extent(0), step = options.bias.stride(0);
  if constexpr (std::is_same_v<Sum, T>)
    if (step == 1) return options.bias.data();
  Sum* const bias = scratch.template tensor<Sum>(Shape{n}).data();
  for (index_t j = 0; j < n; ++j) bias[j] = static_cast<Sum>(options.bias.data()[j * step]);
  return bias;
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class Out, class T>
void BackendTraits<Cpu>::matmul(Cpu, TensorView<Out, 2> out, TensorView<const T, 2> a,
                                TensorView<const T, 2> b, const MatmulOptions<T, Cpu>& options) {
  const index_t k = a.extent(1);
  if (out.empty()) return;
  Scratch<Cpu> scratch;
  const auto* bias = cpu::product_bias(scratch, options);
  const auto rows = cpu::matrix_ref(a);
  const auto weights = cpu::matrix_ref(b);
  if (out.extent(0) <= cpu::kFewRows && !weights.by_rows)
    cpu::product_of_few_rows(out, rows, weights, k, bias, options.accumulate);
  else
    cpu::product_of_rows(out, rows, cpu::ProductWeights<T>{weights}, k, bias, options.accumulate);
}

template <class T>
index_t BackendTraits<Cpu>::packed_size(Cpu, index_t k, index_t n) {
  return cpu::packed_size<T>(k, n) * cpu::ProductFormat<T>::kDepth;
}

template <class T>
void BackendTraits<Cpu>::pack(Cpu, TensorView<T, 1> to, TensorView<const T, 2> b) {
  cpu::pack_columns<T>(reinterpret_cast<cpu::PackedElement<T>*>(to.data()), cpu::matrix_ref(b),
                       b.extent(0), b.extent(1));
}

template <class T>
void BackendTraits<Cpu>::unpack(Cpu, TensorView<T, 2> b, TensorView<const T, 1> from) {
  cpu::unpack_columns<T>(b.data(), b.stride(0), b.stride(1),
                         reinterpret_cast<const cpu::PackedElement<T>*>(from.data()), b.extent(0),
                         b.extent(1));
}

template <class Out, class T>
void BackendTraits<Cpu>::packed_matmul(Cpu, TensorView<Out, 2> out, TensorView<const T, 2> a,
                                       TensorView<const T, 1> packed,
                                       const MatmulOptions<T, Cpu>& options) {
  if (out.empty()) return;
  Scratch<Cpu> scratch;
  cpu::ProductWeights<T> weights;
  weights.packed = reinterpret_cast<const cpu::PackedElement<T>*>(packed.data());
  cpu::product_of_rows(out, cpu::matrix_ref(a), weights, a.extent(1),
                       cpu::product_bias(scratch, options), options.accumulate);
}

}  // namespace rapt

#ifdef RAPT_USE_INSTANCES
#include "rapt/cpu/instances/matmul.hpp"
#endif
