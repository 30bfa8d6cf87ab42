// out = act(gate) * up on the GPU. One thread per element, which reads before it writes, so out may
// be gate or up; bound by memory traffic.
#pragma once

#include <cmath>

#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

/// act(x); core/kinds.hpp names the formulas.
template <class A>
__device__ A activate(A x, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return x / (A{1} + std::exp(-x));
    case Activation::gelu_tanh: {
      const A inner = A(0.7978845608028654) * (x + A(0.044715) * x * x * x);  // sqrt(2 / pi)
      return A(0.5) * x * (A{1} + std::tanh(inner));
    }
    case Activation::gelu_erf:
      return A(0.5) * x * (A{1} + std::erf(x * A(0.7071067811865476)));  // 1 / sqrt(2)
    case Activation::sigmoid:
      break;
  }
  return A{1} / (A{1} + std::exp(-x));
}

template <class T>
__global__ void gated_activation_thread_per_element(TensorView<T, 2, Cuda> out,
                                                    TensorView<const T, 2, Cuda> gate,
                                                    TensorView<const T, 2, Cuda> up,
                                                    Activation activation) {
  using A = accumulate_t<T>;
  const index_t n = out.extent(1), elements = out.size();
  for (index_t e = first_element(); e < elements; e += element_step()) {
    const index_t i = e / n, j = e % n;
    out(i, j) =
        static_cast<T>(activate(static_cast<A>(gate(i, j)), activation) * static_cast<A>(up(i, j)));
  }
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::gated_activation(Cuda backend, TensorView<T, 2, Cuda> out,
                                           TensorView<const T, 2, Cuda> gate,
                                           TensorView<const T, 2, Cuda> up, Activation activation) {
  cuda::launch("gated_activation_thread_per_element", cuda::gated_activation_thread_per_element<T>,
               cuda::element_launch(out.size()), backend, out, gate, up, activation);
}

}  // namespace rapt
