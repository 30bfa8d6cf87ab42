// matmul on the CPU (core/backend.hpp): out[m, n] = a[m, k] b[k, n] (+ bias) (+ out).
//
//   m > 4   the packed product of cpu/gemm.hpp
//   m <= 4  a decode step: bound by reading b, once. b stored by columns (a weight [n, k]): dot
//           products along k, two columns at a time. b stored by rows: a strip of columns is kept
//           in registers while k runs.
//
// No sum is cut across tasks, so none depends on the number of threads.
#pragma once

#include <algorithm>

#include "rapt/cpu/gemm.hpp"
#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

inline constexpr index_t kFewRows = 4;

/// The operand as memory: by rows where its last axis is contiguous.
template <class T>
MatrixRef<T> matrix_ref(TensorView<const T, 2> x) {
  const bool by_rows = x.stride(1) == 1 || x.extent(1) <= 1;
  return {x.data(), x.stride(by_rows ? 0 : 1), by_rows};
}

// ---- few rows ----

/// sums[c][r] = sum_l x[r][l] w[c][l] for kColumns columns of the weights and kRows rows of x.
/// x is [kRows, k] in A. A (row, column) pair is summed in one order, however many run together:
/// two vectors of partial sums, even and odd.
template <int kRows, int kColumns, class A, class T>
void dot_products(A (&sums)[kColumns][kRows], const A* x, index_t k, const T* w, index_t w_stride) {
  using V = Vec<A>;
  constexpr index_t kStep = V::kLanes;
  V even[kColumns][kRows], odd[kColumns][kRows];
  for (int c = 0; c < kColumns; ++c)
    for (int r = 0; r < kRows; ++r) even[c][r] = odd[c][r] = V::zero();
  index_t l = 0;
  for (; l + 2 * kStep <= k; l += 2 * kStep)
    for (int c = 0; c < kColumns; ++c) {
      const V w0 = V::load(w + c * w_stride + l), w1 = V::load(w + c * w_stride + l + kStep);
      for (int r = 0; r < kRows; ++r) {
        even[c][r] = fma(V::load(x + r * k + l), w0, even[c][r]);
        odd[c][r] = fma(V::load(x + r * k + l + kStep), w1, odd[c][r]);
      }
    }
  for (; l < k; l += kStep) {
    const index_t rest = std::min(kStep, k - l);
    for (int c = 0; c < kColumns; ++c) {
      const V w0 = V::load(w + c * w_stride + l, rest);
      for (int r = 0; r < kRows; ++r)
        even[c][r] = fma(V::load(x + r * k + l, rest), w0, even[c][r]);
    }
  }
  for (int c = 0; c < kColumns; ++c)
    for (int r = 0; r < kRows; ++r) sums[c][r] = sum(even[c][r] + odd[c][r]);
}

/// b by columns: out[r, j] for j in [begin, end).
template <int kRows, class A, class T, class Finish>
void dot_columns(const A* x, MatrixRef<T> b, index_t k, index_t begin, index_t end,
                 const Finish& finish) {
  constexpr int kColumns = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;  // 8 sums or less in registers
  index_t j = begin;
  for (; j + kColumns <= end; j += kColumns) {
    A sums[kColumns][kRows];
    dot_products<kRows, kColumns>(sums, x, k, b.data + j * b.outer, b.outer);
    for (int c = 0; c < kColumns; ++c)
      for (int r = 0; r < kRows; ++r) finish(r, j + c, sums[c][r]);
  }
  for (; j < end; ++j) {
    A sums[1][kRows];
    dot_products<kRows, 1>(sums, x, k, b.data + j * b.outer, b.outer);
    for (int r = 0; r < kRows; ++r) finish(r, j, sums[0][r]);
  }
}

/// b by rows: strips of columns stay in registers while k runs.
template <int kRows, class A, class T, class Finish>
void sum_strips(const A* x, MatrixRef<T> b, index_t k, index_t begin, index_t end,
                const Finish& finish) {
  using V = Vec<A>;
  constexpr int kGroups = kRows <= 2 ? 4 : 2;
  constexpr index_t kStrip = kGroups * V::kLanes;
  A part[kStrip];
  index_t j = begin;
  for (; j + kStrip <= end; j += kStrip) {
    V sums[kRows][kGroups];
    for (auto& row : sums)
      for (V& v : row) v = V::zero();
    for (index_t l = 0; l < k; ++l)
      for (int g = 0; g < kGroups; ++g) {
        const V w = V::load(b.data + l * b.outer + j + g * V::kLanes);
        for (int r = 0; r < kRows; ++r) sums[r][g] = fma(w, V::broadcast(x[r * k + l]), sums[r][g]);
      }
    for (int r = 0; r < kRows; ++r) {
      for (int g = 0; g < kGroups; ++g) sums[r][g].store(part + g * V::kLanes);
      for (index_t c = 0; c < kStrip; ++c) finish(r, j + c, part[c]);
    }
  }
  for (; j < end; j += V::kLanes) {
    const index_t rest = std::min<index_t>(V::kLanes, end - j);
    for (int r = 0; r < kRows; ++r) {
      V sums = V::zero();
      for (index_t l = 0; l < k; ++l)
        sums = fma(V::load(b.data + l * b.outer + j, rest), V::broadcast(x[r * k + l]), sums);
      sums.store(part);
      for (index_t c = 0; c < rest; ++c) finish(r, j + c, part[c]);
    }
  }
}

template <int kRows, class Out, class T, class A = accumulate_t<T>>
void product_of_rows(TensorView<Out, 2> out, const A* x, MatrixRef<T> b, index_t k, const A* bias,
                     bool accumulate) {
  const index_t n = out.extent(1);
  const auto finish = [&](index_t r, index_t j, A sum) {
    Out& to = out.data()[r * out.stride(0) + j];
    if (bias != nullptr) sum += bias[j];
    if (accumulate) sum += static_cast<A>(to);
    to = static_cast<Out>(sum);
  };
  // About 32 KiB of b for a task, in whole strips.
  const index_t strip = 4 * Vec<A>::kLanes;
  const index_t columns =
      std::max<index_t>(1,
                        32768 / std::max<index_t>(1, k * static_cast<index_t>(sizeof(T))) / strip) *
      strip;
  parallel_for((n + columns - 1) / columns, [&](index_t task) {
    const index_t begin = task * columns, end = std::min(begin + columns, n);
    if (b.by_rows)
      sum_strips<kRows>(x, b, k, begin, end, finish);
    else
      dot_columns<kRows>(x, b, k, begin, end, finish);
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class Out, class T>
void BackendTraits<Cpu>::matmul(Cpu, TensorView<Out, 2> out, TensorView<const T, 2> a,
                                TensorView<const T, 2> b, const MatmulOptions<T, Cpu>& options) {
  using A = accumulate_t<T>;
  const index_t m = out.extent(0), n = out.extent(1), k = a.extent(1);
  if (m == 0 || n == 0) return;
  Scratch<Cpu> scratch;
  const A* bias = nullptr;
  if (options.bias) {
    A* widened = scratch.template tensor<A>(Shape{n}).data();
    for (index_t j = 0; j < n; ++j) widened[j] = static_cast<A>(options.bias(j));
    bias = widened;
  }
  const auto weights = cpu::matrix_ref(b);
  if (m <= cpu::kFewRows) {
    // The rows of a, once and for all columns: contiguous and in A.
    A* x = scratch.template tensor<A>(Shape{m, k}).data();
    for (index_t i = 0; i < m; ++i)
      for (index_t l = 0; l < k; ++l)
        x[i * k + l] = static_cast<A>(a.data()[i * a.stride(0) + l * a.stride(1)]);
    for (index_t i = 0; i < m; i += cpu::kFewRows) {
      const index_t rows = std::min(cpu::kFewRows, m - i);
      const auto to = out.slice(0, i, i + rows);
      const A* from = x + i * k;
      switch (rows) {
        case 1:
          cpu::product_of_rows<1>(to, from, weights, k, bias, options.accumulate);
          break;
        case 2:
          cpu::product_of_rows<2>(to, from, weights, k, bias, options.accumulate);
          break;
        case 3:
          cpu::product_of_rows<3>(to, from, weights, k, bias, options.accumulate);
          break;
        default:
          cpu::product_of_rows<4>(to, from, weights, k, bias, options.accumulate);
          break;
      }
    }
  } else {
    cpu::product(out, cpu::matrix_ref(a), cpu::ProductWeights<T>{weights}, k, bias,
                 options.accumulate);
  }
}

}  // namespace rapt

#ifdef RAPT_USE_INSTANCES
#include "rapt/cpu/instances/matmul.hpp"
#endif
