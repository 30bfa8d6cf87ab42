// rms_norm and layer_norm on the GPU, one block per row.
//
//   rms_norm     r = 1 / sqrt(sum_i x_i^2 / n + eps);     y_i = x_i r (w_i or 1 + w_i)
//   layer_norm   u = sum_i x_i / n;  r = 1 / sqrt(sum_i (x_i - u)^2 / n + eps)
//                y_i = (x_i - u) r w_i + b_i
//
//   Thread t owns elements t, t + block, ... of the row: it writes only what it alone reads, so y
//   may be x. Shared memory: one number a warp. Traffic: x two (three) times, from L1 after the
//   first, and y once: bound by memory.
#pragma once

#include <cmath>

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

}  // namespace rapt
