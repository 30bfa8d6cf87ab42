// append_to_cache on the GPU: cache[b, slots[b,i], g, :] = x[b,i,g,:]; a negative slot is skipped.
// Slots are checked first (ids.cuh); then one thread per element, bound by memory traffic.
#pragma once

#include <limits>

#include "rapt/cuda/ids.cuh"

namespace rapt::cuda {

template <class T>
__global__ void append_to_cache_thread_per_element(TensorView<T, 4, Cuda> cache,
                                                   TensorView<const T, 4, Cuda> x,
                                                   TensorView<const std::int32_t, 2, Cuda> slots) {
  const index_t seq = x.extent(1), kv_heads = x.extent(2), dim = x.extent(3), elements = x.size();
  for (index_t e = first_element(); e < elements; e += element_step()) {
    const index_t c = e % dim, g = e / dim % kv_heads, s = e / dim / kv_heads % seq,
                  b = e / dim / kv_heads / seq;
    const index_t slot = slots(b, s);
    if (slot >= 0) cache(b, slot, g, c) = x(b, s, g, c);
  }
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::append_to_cache(Cuda backend, TensorView<T, 4, Cuda> cache,
                                          TensorView<const T, 4, Cuda> x,
                                          TensorView<const std::int32_t, 2, Cuda> slots) {
  constexpr index_t kLeast = std::numeric_limits<std::int32_t>::min();
  if (const auto bad = cuda::find_bad_id(backend, slots, {kLeast, cache.extent(1)}); bad.found)
    throw ValueError(detail::text("append_to_cache: slots[", bad.row, ", ", bad.column, "] is ",
                                  bad.id, ", expected at most ", cache.extent(1) - 1,
                                  ", the last slot of cache"));
  cuda::launch("append_to_cache_thread_per_element", cuda::append_to_cache_thread_per_element<T>,
               cuda::element_launch(x.size()), backend, cache, x, slots);
}

}  // namespace rapt
