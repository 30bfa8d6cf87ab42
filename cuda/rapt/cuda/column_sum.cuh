// out[j] = sum_i x[i,j] (+ out[j]) on the GPU: the gradient of a bias. One block per 32 columns,
// whose warps share the rows (reduce.cuh); bound by the traffic of x.
#pragma once

#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

template <class T>
__global__ void column_sum_block_per_columns(TensorView<accumulate_t<T>, 1, Cuda> out,
                                             TensorView<const T, 2, Cuda> x, bool accumulate) {
  using A = accumulate_t<T>;
  sum_columns<A>(
      x.extent(0), x.extent(1), [&](index_t i, index_t j) { return static_cast<A>(x(i, j)); },
      [&](index_t j, A sum) { out(j) = accumulate ? out(j) + sum : sum; });
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::column_sum(Cuda backend, TensorView<accumulate_t<T>, 1, Cuda> out,
                                     TensorView<const T, 2, Cuda> x, bool accumulate) {
  cuda::launch("column_sum_block_per_columns", cuda::column_sum_block_per_columns<T>,
               cuda::column_launch<accumulate_t<T>>(x.extent(1)), backend, out, x, accumulate);
}

}  // namespace rapt
