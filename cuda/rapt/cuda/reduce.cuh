// Sums and maxima over a warp and over a block, and how rows and elements are dealt to blocks.
//
// Orders are fixed by the shape of the block, so results repeat bit for bit. Every thread gets the
// result. A block reduction uses the first kWarp elements of shared memory and ends with a barrier,
// so two may follow one another.
#pragma once

#include "rapt/cuda/device.cuh"

namespace rapt::cuda {

__device__ inline int lane_index() { return thread_index() % kWarp; }

template <class T>
__device__ T warp_sum(T value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}
template <class T>
__device__ T warp_max(T value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = shuffle_xor(value, mask);
    value = other > value ? other : value;
  }
  return value;
}

/// Joins the warps' results, in their order.
template <class T, class Combine>
__device__ T block_reduce(T of_warp, Combine combine) {
  const Shared<T> of_warps = shared<T>();  // [block_size / kWarp]
  if (lane_index() == 0) of_warps[thread_index() / kWarp] = of_warp;
  block_barrier();
  T result = of_warps[0];
  for (int warp = 1; warp < block_size() / kWarp; ++warp)
    result = combine(result, static_cast<T>(of_warps[warp]));
  block_barrier();  // the next reduction writes where this one still reads
  return result;
}

template <class T>
__device__ T block_sum(T value) {
  return block_reduce(warp_sum(value), [](T a, T b) { return a + b; });
}
template <class T>
__device__ T block_max(T value) {
  return block_reduce(warp_max(value), [](T a, T b) { return b > a ? b : a; });
}

/// Bytes of shared memory that a block reduction of T wants.
template <class T>
inline constexpr int kReduceBytes = kWarp* static_cast<int>(sizeof(T));

/// Where row `row` of a view starts, rows being counted over all axes but the last.
template <class T, std::size_t Rank>
__device__ T* row_of(const TensorView<T, Rank, Cuda>& view, index_t row) {
  index_t at = 0;
  for (std::size_t axis = Rank - 1; axis-- > 0;) {
    at += row % view.extent(axis) * view.stride(axis);
    row /= view.extent(axis);
  }
  return view.data() + at;
}

/// Rows of a view, over all axes but the last.
template <class T, std::size_t Rank>
index_t rows_of(const TensorView<T, Rank, Cuda>& view) {
  index_t rows = 1;
  for (std::size_t axis = 0; axis + 1 < Rank; ++axis) rows *= view.extent(axis);
  return rows;
}

/// Blocks for `n` pieces of work; kernels loop `for (i = block_index(); i < n; i += grid_size())`.
inline index_t blocks_for(index_t n) {
  constexpr index_t kMost = index_t{1} << 30;  // a grid's x axis holds 2^31 - 1
  return n < kMost ? n : kMost;
}

inline constexpr int kElementThreads = 256;  // a block of the elementwise kernels

/// First element of this thread, and the distance to its next, in a grid over single elements.
__device__ inline index_t first_element() { return block_index() * block_size() + thread_index(); }
__device__ inline index_t element_step() { return grid_size() * block_size(); }
inline LaunchShape element_launch(index_t n) {
  return {blocks_for((n + kElementThreads - 1) / kElementThreads), kElementThreads};
}

}  // namespace rapt::cuda
