// x = cap * tanh(x / cap), in place, on the GPU, and its gradient. One thread per element; bound by
// memory traffic.
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

template <class T>
__global__ void softcap_gradient_thread_per_element(TensorView<T, 2, Cuda> dx,
                                                    TensorView<const T, 2, Cuda> dy,
                                                    TensorView<const T, 2, Cuda> y,
                                                    accumulate_t<T> cap) {
  using A = accumulate_t<T>;
  const index_t n = y.extent(1), elements = y.size();
  for (index_t e = first_element(); e < elements; e += element_step()) {
    const index_t i = e / n, j = e % n;
    const A t = static_cast<A>(y(i, j)) / cap;  // the hyperbolic tangent
    dx(i, j) = static_cast<T>(static_cast<A>(dy(i, j)) * ((A{1} - t) * (A{1} + t)));
  }
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::softcap(Cuda backend, TensorView<T, 2, Cuda> x, accumulate_t<T> cap) {
  cuda::launch("softcap_thread_per_element", cuda::softcap_thread_per_element<T>,
               cuda::element_launch(x.size()), backend, x, cap);
}

template <class T>
void BackendTraits<Cuda>::softcap_backward(Cuda backend, TensorView<T, 2, Cuda> dx,
                                           TensorView<const T, 2, Cuda> dy,
                                           TensorView<const T, 2, Cuda> y, accumulate_t<T> cap) {
  cuda::launch("softcap_gradient_thread_per_element", cuda::softcap_gradient_thread_per_element<T>,
               cuda::element_launch(y.size()), backend, dx, dy, y, cap);
}

}  // namespace rapt
