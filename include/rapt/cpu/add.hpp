// add on the CPU (core/backend.hpp): out += x, in accumulate_t<T>, rounded once.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

template <class T>
void add_rows(TensorView<T, 2> out, TensorView<const T, 2> x) {
  using V = Vec<accumulate_t<T>>;
  const index_t n = out.extent(1);
  for_row_ranges(out.extent(0), n, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* to = out.data() + i * out.stride(0);
      const T* from = x.data() + i * x.stride(0);
      index_t j = 0;
      for (; j + V::kLanes <= n; j += V::kLanes)
        (V::load(to + j) + V::load(from + j)).store(to + j);
      if (const index_t rest = n - j; rest > 0)
        (V::load(to + j, rest) + V::load(from + j, rest)).store(to + j, rest);
    }
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T>
void BackendTraits<Cpu>::add(Cpu, TensorView<T, 2> out, TensorView<const T, 2> x) {
  cpu::add_rows(out, x);
}

}  // namespace rapt
