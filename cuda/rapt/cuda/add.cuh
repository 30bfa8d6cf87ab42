// out += x on the GPU: the residual stream. One thread per element; bound by memory traffic.
#pragma once

#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

template <class T>
__global__ void add_thread_per_element(TensorView<T, 2, Cuda> out, TensorView<const T, 2, Cuda> x) {
  using A = accumulate_t<T>;
  const index_t n = out.extent(1), elements = out.size();
  for (index_t e = first_element(); e < elements; e += element_step()) {
    const index_t i = e / n, j = e % n;
    out(i, j) = static_cast<T>(static_cast<A>(out(i, j)) + static_cast<A>(x(i, j)));
  }
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::add(Cuda backend, TensorView<T, 2, Cuda> out,
                              TensorView<const T, 2, Cuda> x) {
  cuda::launch("add_thread_per_element", cuda::add_thread_per_element<T>,
               cuda::element_launch(out.size()), backend, out, x);
}

}  // namespace rapt
