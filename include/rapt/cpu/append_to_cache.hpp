// append_to_cache on the CPU (core/backend.hpp): new keys or values into their slots.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::append_to_cache(Cpu, TensorView<T, 4> cache, TensorView<const T, 4> x,
                                         TensorView<const std::int32_t, 2> slots) {
  const index_t seq = x.extent(1), heads = x.extent(2), dim = x.extent(3);
  for (index_t b = 0; b < x.extent(0); ++b)
    for (index_t s = 0; s < seq; ++s)
      if (const index_t slot = slots(b, s); slot >= cache.extent(1))
        throw ValueError(detail::text("append_to_cache: slots[", b, ", ", s, "] is ", slot,
                                      ", expected at most ", cache.extent(1) - 1,
                                      ", the last slot of cache"));
  cpu::for_row_ranges(x.extent(0) * seq, heads * dim, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      const index_t b = i / seq, s = i % seq, slot = slots(b, s);
      if (slot < 0) continue;
      const T* from = x.data() + b * x.stride(0) + s * x.stride(1);
      T* to = cache.data() + b * cache.stride(0) + slot * cache.stride(1);
      for (index_t g = 0; g < heads; ++g)
        std::memcpy(to + g * cache.stride(2), from + g * x.stride(2),
                    static_cast<std::size_t>(dim) * sizeof(T));
    }
  });
}

}  // namespace rapt
