// softcap on the CPU (core/backend.hpp): x = cap * tanh(x / cap).
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

template <class T, class A>
void softcap_rows(TensorView<T, 2> x, A cap) {
  using V = Vec<A>;
  const index_t n = x.extent(1);
  const V scale = V::broadcast(cap), inverse = V::broadcast(A{1} / cap);
  const auto f = [=](V v) { return scale * tanh(v * inverse); };
  for_row_ranges(x.extent(0), 4 * n, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* row = x.data() + i * x.stride(0);
      index_t j = 0;
      for (; j + V::kLanes <= n; j += V::kLanes) f(V::load(row + j)).store(row + j);
      if (j < n) f(V::load(row + j, n - j)).store(row + j, n - j);
    }
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T>
void BackendTraits<Cpu>::softcap(Cpu, TensorView<T, 2> x, accumulate_t<T> cap) {
  cpu::softcap_rows(x, cap);
}

}  // namespace rapt
