// x = cap * tanh(x / cap), in place, on the GPU. One thread per element; bound by memory traffic.
#pragma once

#include <cmath>

#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

template <class T>
__global__ void softcap_thread_per_element(TensorView<T, 2, Cuda> x, accumulate_t<T> cap) {
  using A = accumulate_t<T>;
  const index_t n = x.extent(1), elements = x.size();
  for (index_t e = first_element(); e < elements; e += element_step()) {
    const index_t i = e / n, j = e % n;
    x(i, j) = static_cast<T>(cap * std::tanh(static_cast<A>(x(i, j)) / cap));
  }
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::softcap(Cuda backend, TensorView<T, 2, Cuda> x, accumulate_t<T> cap) {
  cuda::launch("softcap_thread_per_element", cuda::softcap_thread_per_element<T>,
               cuda::element_launch(x.size()), backend, x, cap);
}

}  // namespace rapt
