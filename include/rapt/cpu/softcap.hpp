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

template <class T, class A>
void softcap_gradient_rows(TensorView<T, 2> dx, TensorView<const T, 2> dy, TensorView<const T, 2> y,
                           A cap) {
  using V = Vec<A>;
  const index_t n = y.extent(1);
  const V one = V::broadcast(A{1}), inverse = V::broadcast(A{1} / cap);
  for_row_ranges(y.extent(0), n, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      const T *from = row_at(dy, i), *capped = row_at(y, i);
      T* to = row_at(dx, i);
      by_vectors<A>(n, [&](index_t j, auto v) {
        const V t = v.load(capped + j) * inverse;
        v.store(to + j, v.load(from + j) * ((one - t) * (one + t)));
      });
    }
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T>
void BackendTraits<Cpu>::softcap(Cpu, TensorView<T, 2> x, accumulate_t<T> cap) {
  cpu::softcap_rows(x, cap);
}

template <class T>
void BackendTraits<Cpu>::softcap_backward(Cpu, TensorView<T, 2> dx, TensorView<const T, 2> dy,
                                          TensorView<const T, 2> y, accumulate_t<T> cap) {
  cpu::softcap_gradient_rows(dx, dy, y, cap);
}

}  // namespace rapt
