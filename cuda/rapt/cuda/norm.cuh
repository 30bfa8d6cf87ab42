// rms_norm and layer_norm on the GPU, one block per row.
//
//   rms_norm     r = 1 / sqrt(sum_i x_i^2 / n + eps);     y_i = x_i r (w_i or 1 + w_i)
//   layer_norm   u = sum_i x_i / n;  r = 1 / sqrt(sum_i (x_i - u)^2 / n + eps)
//                y_i = (x_i - u) r w_i + b_i
//
//   Thread t owns elements t, t + block, ... of the row: it writes only what it alone reads, so y
//   may be x. Shared memory: one number a warp. Traffic: x two (three) times, from L1 after the
//   first, and y once: bound by memory.
//
// The gradients, in three kernels, in the symbols of core/ops/norm.hpp (rms_norm: mean = 0 and no
// mean(a)). The last one may overwrite what the others read.
//
//   statistics   mean, r of each row                  one block per row     -> [rows, 2]
//   weights      dw_j += sum_i dy_ij (x_ij - mean_i) r_i,  db_j += sum_i dy_ij
//                                                     one block per 32 columns, warps share the
//                                                     rows
//   rows         a = dy w, h = (x - mean) r;  dx = r (a - mean(a) - h mean(a h))    one block per
//   row
#pragma once

#include <cmath>

#include "rapt/core/scratch.hpp"
#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

inline constexpr int kNormThreads = 128;

template <class T, std::size_t Rank>
__global__ void rms_norm_block_per_row(TensorView<T, Rank, Cuda> y,
                                       TensorView<const T, Rank, Cuda> x,
                                       TensorView<const T, 1, Cuda> weight, index_t rows,
                                       accumulate_t<T> eps, bool plus_one) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  for (index_t row = block_index(); row < rows; row += grid_size()) {
    const T* from = row_of(x, row);
    T* to = row_of(y, row);
    A squares = 0;
    for (index_t i = thread_index(); i < n; i += block_size()) {
      const A value = static_cast<A>(from[i]);
      squares += value * value;
    }
    const A r = A{1} / std::sqrt(block_sum(squares) / static_cast<A>(n) + eps);
    for (index_t i = thread_index(); i < n; i += block_size()) {
      const A w = weight ? static_cast<A>(weight(i)) + (plus_one ? A{1} : A{0}) : A{1};
      to[i] = static_cast<T>(static_cast<A>(from[i]) * r * w);
    }
  }
}

template <class T, std::size_t Rank>
__global__ void layer_norm_block_per_row(TensorView<T, Rank, Cuda> y,
                                         TensorView<const T, Rank, Cuda> x,
                                         TensorView<const T, 1, Cuda> weight,
                                         TensorView<const T, 1, Cuda> bias, index_t rows,
                                         accumulate_t<T> eps) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  for (index_t row = block_index(); row < rows; row += grid_size()) {
    const T* from = row_of(x, row);
    T* to = row_of(y, row);
    A sum = 0;
    for (index_t i = thread_index(); i < n; i += block_size()) sum += static_cast<A>(from[i]);
    const A mean = block_sum(sum) / static_cast<A>(n);
    A squares = 0;  // of the differences: sum(x^2) - n mean^2 would cancel
    for (index_t i = thread_index(); i < n; i += block_size()) {
      const A difference = static_cast<A>(from[i]) - mean;
      squares += difference * difference;
    }
    const A r = A{1} / std::sqrt(block_sum(squares) / static_cast<A>(n) + eps);
    for (index_t i = thread_index(); i < n; i += block_size()) {
      const A w = weight ? static_cast<A>(weight(i)) : A{1};
      const A b = bias ? static_cast<A>(bias(i)) : A{0};
      to[i] = static_cast<T>((static_cast<A>(from[i]) - mean) * r * w + b);
    }
  }
}

// ---- gradients ----

template <class T, std::size_t Rank>
__global__ void norm_statistics_block_per_row(TensorView<accumulate_t<T>, 2, Cuda> statistics,
                                              TensorView<const T, Rank, Cuda> x,
                                              accumulate_t<T> eps, bool centred) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  for (index_t row = block_index(); row < statistics.extent(0); row += grid_size()) {
    const T* from = row_of(x, row);
    A mean = 0;
    if (centred) {
      A sum = 0;
      for (index_t i = thread_index(); i < n; i += block_size()) sum += static_cast<A>(from[i]);
      mean = block_sum(sum) / static_cast<A>(n);
    }
    A squares = 0;
    for (index_t i = thread_index(); i < n; i += block_size()) {
      const A difference = static_cast<A>(from[i]) - mean;
      squares += difference * difference;
    }
    const A r = A{1} / std::sqrt(block_sum(squares) / static_cast<A>(n) + eps);
    if (thread_index() == 0) {
      statistics(row, 0) = mean;
      statistics(row, 1) = r;
    }
  }
}

template <class T, std::size_t Rank>
__global__ void norm_weight_gradient_block_per_columns(
    TensorView<accumulate_t<T>, 1, Cuda> dweight, TensorView<accumulate_t<T>, 1, Cuda> dbias,
    TensorView<const T, Rank, Cuda> dy, TensorView<const T, Rank, Cuda> x,
    TensorView<const accumulate_t<T>, 2, Cuda> statistics) {
  using A = accumulate_t<T>;
  const index_t rows = statistics.extent(0), n = x.extent(Rank - 1);
  if (dweight)
    sum_columns<A>(
        rows, n,
        [&](index_t i, index_t j) {
          const A h = (static_cast<A>(row_of(x, i)[j]) - statistics(i, 0)) * statistics(i, 1);
          return static_cast<A>(row_of(dy, i)[j]) * h;
        },
        [&](index_t j, A sum) { dweight(j) += sum; });
  if (dbias)
    sum_columns<A>(
        rows, n, [&](index_t i, index_t j) { return static_cast<A>(row_of(dy, i)[j]); },
        [&](index_t j, A sum) { dbias(j) += sum; });
}

template <class T, std::size_t Rank>
__global__ void norm_gradient_block_per_row(TensorView<T, Rank, Cuda> dx,
                                            TensorView<const T, Rank, Cuda> dy,
                                            TensorView<const T, Rank, Cuda> x,
                                            TensorView<const T, 1, Cuda> weight,
                                            TensorView<const accumulate_t<T>, 2, Cuda> statistics,
                                            bool plus_one, bool centred) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(Rank - 1);
  const auto weighted = [&](A gradient, index_t i) {
    return weight ? gradient * (static_cast<A>(weight(i)) + (plus_one ? A{1} : A{0})) : gradient;
  };
  for (index_t row = block_index(); row < statistics.extent(0); row += grid_size()) {
    const T *gradient = row_of(dy, row), *from = row_of(x, row);
    T* to = row_of(dx, row);
    const A mean = statistics(row, 0), r = statistics(row, 1);
    A sum_a = 0, sum_ah = 0;
    for (index_t i = thread_index(); i < n; i += block_size()) {
      const A a = weighted(static_cast<A>(gradient[i]), i);
      sum_a += a;
      sum_ah += a * ((static_cast<A>(from[i]) - mean) * r);
    }
    const A mean_ah = block_sum(sum_ah) / static_cast<A>(n);
    const A mean_a = centred ? block_sum(sum_a) / static_cast<A>(n) : A{0};
    for (index_t i = thread_index(); i < n; i += block_size()) {
      const A a = weighted(static_cast<A>(gradient[i]), i);
      const A h = (static_cast<A>(from[i]) - mean) * r;
      to[i] = static_cast<T>(r * (a - mean_a - h * mean_ah));
    }
  }
}

template <class T, std::size_t Rank>
void norm_backward(Cuda backend, TensorView<T, Rank, Cuda> dx,
                   TensorView<accumulate_t<T>, 1, Cuda> dweight,
                   TensorView<accumulate_t<T>, 1, Cuda> dbias, TensorView<const T, Rank, Cuda> dy,
                   TensorView<const T, Rank, Cuda> x, TensorView<const T, 1, Cuda> weight,
                   double eps, bool plus_one, bool centred) {
  using A = accumulate_t<T>;
  if (x.empty()) return;
  const index_t rows = rows_of(x);
  const LaunchShape by_row{blocks_for(rows), kNormThreads, kReduceBytes<A>};
  Scratch<Cuda> scratch(backend);
  const auto statistics = scratch.template tensor<A>(Shape{rows, 2});
  launch("norm_statistics_block_per_row", norm_statistics_block_per_row<T, Rank>, by_row, backend,
         statistics, x, static_cast<A>(eps), centred);
  if (dweight || dbias)
    launch("norm_weight_gradient_block_per_columns",
           norm_weight_gradient_block_per_columns<T, Rank>, column_launch<A>(x.extent(Rank - 1)),
           backend, dweight, dbias, dy, x, statistics);
  launch("norm_gradient_block_per_row", norm_gradient_block_per_row<T, Rank>, by_row, backend, dx,
         dy, x, weight, statistics, plus_one, centred);
}

}  // namespace rapt::cuda

namespace rapt {

template <class T, std::size_t Rank>
void BackendTraits<Cuda>::rms_norm(Cuda backend, TensorView<T, Rank, Cuda> y,
                                   TensorView<const T, Rank, Cuda> x,
                                   TensorView<const T, 1, Cuda> weight, double eps, bool plus_one) {
  if (x.empty()) return;
  using A = accumulate_t<T>;
  const index_t rows = cuda::rows_of(x);
  cuda::launch("rms_norm_block_per_row", cuda::rms_norm_block_per_row<T, Rank>,
               {cuda::blocks_for(rows), cuda::kNormThreads, cuda::kReduceBytes<A>}, backend, y, x,
               weight, rows, static_cast<A>(eps), plus_one);
}

template <class T, std::size_t Rank>
void BackendTraits<Cuda>::layer_norm(Cuda backend, TensorView<T, Rank, Cuda> y,
                                     TensorView<const T, Rank, Cuda> x,
                                     TensorView<const T, 1, Cuda> weight,
                                     TensorView<const T, 1, Cuda> bias, double eps) {
  if (x.empty()) return;
  using A = accumulate_t<T>;
  const index_t rows = cuda::rows_of(x);
  cuda::launch("layer_norm_block_per_row", cuda::layer_norm_block_per_row<T, Rank>,
               {cuda::blocks_for(rows), cuda::kNormThreads, cuda::kReduceBytes<A>}, backend, y, x,
               weight, bias, rows, static_cast<A>(eps));
}

template <class T, std::size_t Rank>
void BackendTraits<Cuda>::rms_norm_backward(Cuda backend, TensorView<T, Rank, Cuda> dx,
                                            TensorView<accumulate_t<T>, 1, Cuda> dweight,
                                            TensorView<const T, Rank, Cuda> dy,
                                            TensorView<const T, Rank, Cuda> x,
                                            TensorView<const T, 1, Cuda> weight, double eps,
                                            bool plus_one) {
  cuda::norm_backward<T, Rank>(backend, dx, dweight, {}, dy, x, weight, eps, plus_one, false);
}

template <class T, std::size_t Rank>
void BackendTraits<Cuda>::layer_norm_backward(Cuda backend, TensorView<T, Rank, Cuda> dx,
                                              TensorView<accumulate_t<T>, 1, Cuda> dweight,
                                              TensorView<accumulate_t<T>, 1, Cuda> dbias,
                                              TensorView<const T, Rank, Cuda> dy,
                                              TensorView<const T, Rank, Cuda> x,
                                              TensorView<const T, 1, Cuda> weight, double eps) {
  cuda::norm_backward<T, Rank>(backend, dx, dweight, dbias, dy, x, weight, eps, false, true);
}

}  // namespace rapt
