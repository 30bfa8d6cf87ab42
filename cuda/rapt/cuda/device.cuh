// The hardware, as kernels see it. Everything that a kernel does to the machine goes through the
// names below, and nothing else of CUDA appears in a kernel: the tests compile the same kernels
// with a C++ compiler against another file of this name (tests/support/cuda_on_host), where the
// threads of a block are fibres under a scheduler that hunts for races.
//
//   thread_index  block_size  block_index  grid_size      one axis each
//   shuffle_xor  shuffle  ballot                          all 32 lanes of a warp, no exceptions
//   block_barrier  warp_barrier                           and what was written before is seen after
//   shared<T>(byte_offset)                                the block's shared memory, as elements
//   atomic_max                                            on global memory
//   launch(name, kernel, {blocks, threads, shared_bytes}, backend, arguments...)
//
// Blocks are whole warps. A shuffle orders no memory.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"
#include "rapt/cuda/backend.hpp"
#include "rapt/cuda/runtime.hpp"

namespace rapt::cuda {

inline constexpr int kWarp = 32;

__device__ inline int thread_index() { return static_cast<int>(threadIdx.x); }
__device__ inline int block_size() { return static_cast<int>(blockDim.x); }
__device__ inline index_t block_index() { return blockIdx.x; }
__device__ inline index_t grid_size() { return gridDim.x; }

/// The value of lane (own lane) ^ mask.
template <class T>
__device__ T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}
/// The value of one lane.
template <class T>
__device__ T shuffle(T value, int lane) {
  return __shfl_sync(0xffffffffu, value, lane);
}
/// Bit t: what lane t asked.
__device__ inline unsigned ballot(bool question) { return __ballot_sync(0xffffffffu, question); }

__device__ inline void block_barrier() { __syncthreads(); }
__device__ inline void warp_barrier() { __syncwarp(); }

/// A stretch of the block's shared memory.
template <class T>
class Shared {
 public:
  __device__ explicit Shared(T* data) : data_(data) {}
  __device__ T& operator[](index_t i) const { return data_[i]; }

 private:
  T* data_;
};
template <class T>
__device__ Shared<T> shared(int byte_offset = 0) {
  extern __shared__ __align__(16) unsigned char rapt_shared_memory[];
  return Shared<T>(reinterpret_cast<T*>(rapt_shared_memory + byte_offset));
}

/// *to = max(*to, value).
__device__ inline void atomic_max(unsigned long long* to, unsigned long long value) {
  atomicMax(to, value);
}

struct LaunchShape {
  index_t blocks;
  int threads;  // a multiple of 32
  int shared_bytes = 0;
};

/// Queues `kernel` on the backend's stream. No blocks: nothing to do.
template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), LaunchShape shape, Cuda backend,
            Arguments&&... arguments) {
  if (shape.blocks == 0) return;
  use_device(backend);
  kernel<<<static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.threads),
           static_cast<std::size_t>(shape.shared_bytes), backend.stream>>>(
      static_cast<Parameters>(arguments)...);
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess)
    throw DeviceError(detail::text(name, ": launch of ", shape.blocks, " blocks of ", shape.threads,
                                   " threads with ", shape.shared_bytes,
                                   " bytes of shared memory failed: ", cudaGetErrorString(error)));
}

}  // namespace rapt::cuda
