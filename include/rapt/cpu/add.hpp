// add on the CPU (core/backend.hpp): out += x, in accumulate_t<T>, rounded once.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::add(Cpu, TensorView<T, 2> out, TensorView<const T, 2> x) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(1);
  detail::for_row_ranges(x.extent(0), n, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* to = out.data() + i * out.stride(0);
      const T* from = x.data() + i * x.stride(0);
      if constexpr (std::is_same_v<A, T>) {
        for (index_t j = 0; j < n; ++j) to[j] += from[j];
      } else {
        constexpr index_t kChunk = 512;
        A sum[kChunk], term[kChunk];
        for (index_t at = 0; at < n; at += kChunk) {
          const index_t width = n - at < kChunk ? n - at : kChunk;
          detail::widen_row(sum, to + at, width);
          detail::widen_row(term, from + at, width);
          for (index_t j = 0; j < width; ++j) sum[j] += term[j];
          detail::narrow_row(to + at, sum, width);
        }
      }
    }
  });
}

}  // namespace rapt
