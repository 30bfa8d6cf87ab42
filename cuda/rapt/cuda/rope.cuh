// Rotary embedding on the GPU, one block per head of a token.
//
//   turned channels [offset, offset + 2 pairs): read all into shared memory, barrier, then thread k
//   turns pair k and writes it: (u, w) -> (u cos - w sin, w cos + u sin)
//
//   The barrier lets out be x: interleaved_to_half writes where other threads read.
//   Shared memory: 2 pairs numbers. Bound: memory traffic of x and out.
#pragma once

#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

inline constexpr int kRopeThreads = 64;

/// The two channels of pair k, counted from the first turned channel.
struct ChannelPair {
  index_t first, second;
};
__device__ inline ChannelPair neighbours(index_t k) { return {2 * k, 2 * k + 1}; }
__device__ inline ChannelPair halves(index_t k, index_t pairs) { return {k, k + pairs}; }

template <class T>
__global__ void rope_block_per_head(TensorView<T, 4, Cuda> out, TensorView<const T, 4, Cuda> x,
                                    TensorView<const accumulate_t<T>, 3, Cuda> cos,
                                    TensorView<const accumulate_t<T>, 3, Cuda> sin,
                                    RopeOptions options) {
  using A = accumulate_t<T>;
  const Shared<A> before = shared<A>();  // [2 * pairs]
  const index_t seq = x.extent(1), heads = x.extent(2), dim = x.extent(3), pairs = cos.extent(2);
  // Forward, interleaved_to_half reads neighbours and writes halves; backwards the other way.
  const bool reads_halves = options.layout == RopeLayout::rotate_half ||
                            (options.layout == RopeLayout::interleaved_to_half && options.inverse);
  const bool writes_halves =
      options.layout == RopeLayout::rotate_half ||
      (options.layout == RopeLayout::interleaved_to_half && !options.inverse);

  for (index_t row = block_index(); row < x.extent(0) * seq * heads; row += grid_size()) {
    const index_t s = row / heads % seq, b = row / heads / seq;
    const T* from = row_of(x, row);
    T* to = row_of(out, row);
    for (index_t c = thread_index(); c < 2 * pairs; c += block_size())
      before[c] = static_cast<A>(from[options.offset + c]);
    block_barrier();
    for (index_t k = thread_index(); k < pairs; k += block_size()) {
      const A turn_cos = cos(cos.extent(0) == 1 ? 0 : b, s, k);
      const A turn_sin = sin(sin.extent(0) == 1 ? 0 : b, s, k) * (options.inverse ? A{-1} : A{1});
      const ChannelPair source = reads_halves ? halves(k, pairs) : neighbours(k);
      const ChannelPair target = writes_halves ? halves(k, pairs) : neighbours(k);
      const A u = before[source.first], w = before[source.second];
      to[options.offset + target.first] = static_cast<T>(u * turn_cos - w * turn_sin);
      to[options.offset + target.second] = static_cast<T>(w * turn_cos + u * turn_sin);
    }
    if (to != from)
      for (index_t c = thread_index(); c < dim; c += block_size())
        if (c < options.offset || c >= options.offset + 2 * pairs) to[c] = from[c];
    block_barrier();  // the next head overwrites what this one still reads
  }
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::rope(Cuda backend, TensorView<T, 4, Cuda> out,
                               TensorView<const T, 4, Cuda> x,
                               TensorView<const accumulate_t<T>, 3, Cuda> cos,
                               TensorView<const accumulate_t<T>, 3, Cuda> sin,
                               const RopeOptions& options) {
  if (x.empty()) return;
  const auto shared_bytes =
      static_cast<int>(2 * cos.extent(2) * static_cast<index_t>(sizeof(accumulate_t<T>)));
  cuda::launch("rope_block_per_head", cuda::rope_block_per_head<T>,
               {cuda::blocks_for(cuda::rows_of(x)), cuda::kRopeThreads, shared_bytes}, backend, out,
               x, cos, sin, options);
}

}  // namespace rapt
