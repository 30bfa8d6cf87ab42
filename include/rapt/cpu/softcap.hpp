// softcap on the CPU (core/backend.hpp): x = cap * tanh(x / cap).
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::softcap(Cpu, TensorView<T, 2> x, accumulate_t<T> cap) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(1);
  detail::for_row_ranges(x.extent(0), 8 * n, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* row = x.data() + i * x.stride(0);
      for (index_t j = 0; j < n; ++j)
        row[j] = static_cast<T>(cap * std::tanh(static_cast<A>(row[j]) / cap));
    }
  });
}

}  // namespace rapt
