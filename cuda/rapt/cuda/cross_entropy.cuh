// cross_entropy on the GPU and its gradient, one block per row. Targets are checked first
// (ids.cuh).
//
//   m = max_j z_j;  loss = log sum_j exp(z_j - m) - (1 - e) (z_t - m) - e sum_j (z_j - m) / n
//
//   (Differences to m first: where logits are far from 0, their products with e and 1 - e would
//   each round more than the loss is.)
//
//   Thread t owns logits t, t + block, ...; shared memory: one number a warp. Bound: the traffic of
//   the logits, three times, from L2 after the first.
//
//   dz_j = scale (exp(z_j - m) / l - (1 - e) [j = t] - e / n)       the gradient, in one more pass
#pragma once

#include <cmath>
#include <limits>

#include "rapt/cuda/ids.cuh"

namespace rapt::cuda {

inline constexpr int kCrossEntropyThreads = 256;

/// What a smoothed target takes off log l: `wanted` is z_t - m and `total` the sum of z_j - m.
template <class A>
__device__ A smoothed_target(A wanted, A total, A smoothing, index_t n) {
  if (smoothing == 0) return wanted;  // an unsmoothed target must not meet 0 * -inf
  return (A{1} - smoothing) * wanted + smoothing * (total / static_cast<A>(n));
}

template <class T>
__global__ void cross_entropy_block_per_row(TensorView<accumulate_t<T>, 1, Cuda> loss,
                                            TensorView<const T, 2, Cuda> logits,
                                            TensorView<const std::int32_t, 1, Cuda> targets,
                                            std::int32_t ignore_index, accumulate_t<T> smoothing) {
  using A = accumulate_t<T>;
  const index_t n = logits.extent(1);
  for (index_t row = block_index(); row < logits.extent(0); row += grid_size()) {
    const std::int32_t target = targets(row);
    if (target == ignore_index) {  // the whole block agrees
      if (thread_index() == 0) loss(row) = 0;
      continue;
    }
    const T* z = row_of(logits, row);
    A most = -std::numeric_limits<A>::infinity();
    for (index_t j = thread_index(); j < n; j += block_size()) {
      const A value = static_cast<A>(z[j]);
      most = value > most ? value : most;
    }
    const A m = block_max(most);
    A exponentials = 0, sum = 0;
    for (index_t j = thread_index(); j < n; j += block_size()) {
      const A value = static_cast<A>(z[j]);
      exponentials += std::exp(value - m);
      sum += value - m;
    }
    const A l = block_sum(exponentials), total = block_sum(sum);
    if (thread_index() == 0) {
      const A wanted = static_cast<A>(z[target]) - m;
      loss(row) = std::log(l) - smoothed_target(wanted, total, smoothing, n);
    }
  }
}

/// dlogits may be logits: what is not a thread's own is read before the first barrier.
template <class T>
__global__ void cross_entropy_gradient_block_per_row(
    TensorView<accumulate_t<T>, 1, Cuda> loss, TensorView<T, 2, Cuda> dlogits,
    TensorView<const T, 2, Cuda> logits, TensorView<const std::int32_t, 1, Cuda> targets,
    std::int32_t ignore_index, accumulate_t<T> smoothing, accumulate_t<T> scale) {
  using A = accumulate_t<T>;
  const index_t n = logits.extent(1);
  for (index_t row = block_index(); row < logits.extent(0); row += grid_size()) {
    const std::int32_t target = targets(row);
    T* to = row_of(dlogits, row);
    if (target == ignore_index) {  // the whole block agrees
      for (index_t j = thread_index(); j < n; j += block_size()) to[j] = static_cast<T>(A{0});
      if (loss && thread_index() == 0) loss(row) = 0;
      continue;
    }
    const T* z = row_of(logits, row);
    const A wanted = static_cast<A>(z[target]);
    A most = -std::numeric_limits<A>::infinity();
    for (index_t j = thread_index(); j < n; j += block_size()) {
      const A value = static_cast<A>(z[j]);
      most = value > most ? value : most;
    }
    const A m = block_max(most);
    A exponentials = 0, sum = 0;
    for (index_t j = thread_index(); j < n; j += block_size()) {
      const A value = static_cast<A>(z[j]);
      exponentials += std::exp(value - m);
      sum += value - m;
    }
    const A l = block_sum(exponentials), total = block_sum(sum);
    const A spread = smoothing / static_cast<A>(n);
    for (index_t j = thread_index(); j < n; j += block_size()) {
      const A p = std::exp(static_cast<A>(z[j]) - m) / l;
      to[j] = static_cast<T>(scale * ((j == target ? p - (A{1} - smoothing) : p) - spread));
    }
    if (loss && thread_index() == 0) {
      loss(row) = std::log(l) - smoothed_target(wanted - m, total, smoothing, n);
    }
  }
}

/// Throws ValueError on a target outside the vocabulary.
inline void check_targets(const char* operation, TensorView<const std::int32_t, 1, Cuda> targets,
                          index_t vocab, std::int32_t ignore_index) {
  const TensorView<const std::int32_t, 2, Cuda> in_a_row(
      targets.data(), Shape{1, targets.extent(0)}, Shape{index_t{0}, targets.stride(0)},
      targets.backend());
  if (const auto bad = find_bad_id(targets.backend(), in_a_row, {0, vocab, ignore_index});
      bad.found)
    throw ValueError(rapt::detail::text(operation, ": targets[", bad.column, "] is ", bad.id,
                                        ", expected 0 to ", vocab - 1, " or ", ignore_index,
                                        " = ignore_index"));
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::cross_entropy(Cuda backend, TensorView<accumulate_t<T>, 1, Cuda> loss,
                                        TensorView<const T, 2, Cuda> logits,
                                        TensorView<const std::int32_t, 1, Cuda> targets,
                                        std::int32_t ignore_index, double smoothing) {
  using A = accumulate_t<T>;
  cuda::check_targets("cross_entropy", targets, logits.extent(1), ignore_index);
  cuda::launch(
      "cross_entropy_block_per_row", cuda::cross_entropy_block_per_row<T>,
      {cuda::blocks_for(logits.extent(0)), cuda::kCrossEntropyThreads, cuda::kReduceBytes<A>},
      backend, loss, logits, targets, ignore_index, static_cast<A>(smoothing));
}

template <class T>
void BackendTraits<Cuda>::cross_entropy_backward(
    Cuda backend, TensorView<accumulate_t<T>, 1, Cuda> loss, TensorView<T, 2, Cuda> dlogits,
    TensorView<const T, 2, Cuda> logits, TensorView<const std::int32_t, 1, Cuda> targets,
    std::int32_t ignore_index, double smoothing, accumulate_t<T> scale) {
  using A = accumulate_t<T>;
  cuda::check_targets(loss ? "cross_entropy_with_gradient" : "cross_entropy_backward", targets,
                      logits.extent(1), ignore_index);
  cuda::launch(
      "cross_entropy_gradient_block_per_row", cuda::cross_entropy_gradient_block_per_row<T>,
      {cuda::blocks_for(logits.extent(0)), cuda::kCrossEntropyThreads, cuda::kReduceBytes<A>},
      backend, loss, dlogits, logits, targets, ignore_index, static_cast<A>(smoothing), scale);
}

}  // namespace rapt
