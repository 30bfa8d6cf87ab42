// column_sum on the CPU (core/backend.hpp): out[j] = sum_i x[i, j] (+ out[j]), in accumulate_t<T>.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

template <class T, class A = accumulate_t<T>>
void sum_columns(TensorView<A, 1> out, TensorView<const T, 2> x, bool accumulate) {
  const index_t n = x.extent(1);
  A* const to[] = {out.data()};
  sum_over_rows(to, x.extent(0), n, accumulate, [&](index_t begin, index_t end, A* sums) {
    for (index_t i = begin; i < end; ++i) {
      const T* row = x.data() + i * x.stride(0);
      by_vectors<A>(
          n, [&](index_t j, auto v) { v.store(sums + j, v.load(sums + j) + v.load(row + j)); });
    }
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T>
void BackendTraits<Cpu>::column_sum(Cpu, TensorView<accumulate_t<T>, 1> out,
                                    TensorView<const T, 2> x, bool accumulate) {
  cpu::sum_columns(out, x, accumulate);
}

}  // namespace rapt
