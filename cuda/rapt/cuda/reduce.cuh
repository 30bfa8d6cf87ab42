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

inline constexpr int kColumnThreads = 256;  // a block of the kernels that sum columns

/// write(j, sum over rows of term(i, j)) for all columns j < n: a block takes kWarp neighbours at a
/// time, one a lane; its warps share the rows, i = warp, warp + warps, ..., and their sums are
/// added in the order of the warps. Uses one A a thread of shared memory.
template <class A, class Term, class Write>
__device__ void sum_columns(index_t rows, index_t n, Term term, Write write) {
  const Shared<A> of_warps = shared<A>();  // [warps, kWarp]
  const int lane = lane_index(), warp = thread_index() / kWarp, warps = block_size() / kWarp;
  for (index_t tile = block_index(); tile * kWarp < n; tile += grid_size()) {
    const index_t j = tile * kWarp + lane;
    A sum = 0;
    if (j < n)
      for (index_t i = warp; i < rows; i += warps) sum += term(i, j);
    of_warps[warp * kWarp + lane] = sum;
    block_barrier();
    if (warp == 0 && j < n) {
      for (int other = 1; other < warps; ++other) sum += of_warps[other * kWarp + lane];
      write(j, sum);
    }
    block_barrier();  // the next tile writes where warp 0 still reads
  }
}

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
template <class A>
LaunchShape column_launch(index_t n) {
  return {blocks_for((n + kWarp - 1) / kWarp), kColumnThreads,
          kColumnThreads * static_cast<int>(sizeof(A))};
}

}  // namespace rapt::cuda
