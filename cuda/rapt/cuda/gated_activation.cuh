// out = act(gate) * up on the GPU, and its gradient. One thread per element, which reads before it
// writes, so out may be gate or up; bound by memory traffic.
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

/// act(x) and its derivative.
template <class A>
struct ActivationAndSlope {
  A value, slope;
};
template <class A>
__device__ ActivationAndSlope<A> activate_with_slope(A x, Activation activation) {
  if (activation == Activation::gelu_erf) {
    const A cumulative = A(0.5) * std::erfc(x * A(-0.7071067811865476));  // -1 / sqrt(2)
    const A density = A(0.3989422804014327) * std::exp(A(-0.5) * x * x);  // 1 / sqrt(2 pi)
    return {x * cumulative, cumulative + x * density};
  }
  // The others are x or 1 times s = sigmoid(u). Beyond 32 the slope of gelu_tanh is 0 or 1 already,
  // and x^3 must not meet it as infinity.
  A near = x, u = x, slope_of_u = 1;
  if (activation == Activation::gelu_tanh) {
    constexpr A kTwice = A(1.5957691216057308);  // 2 sqrt(2 / pi): (1 + tanh(v)) / 2 = sigmoid(2 v)
    near = x < A(-32) ? A(-32) : x > A(32) ? A(32) : x;
    const A square = near * near;
    u = kTwice * (near + A(0.044715) * square * near);
    slope_of_u = kTwice * (A{1} + A(3 * 0.044715) * square);
  }
  const A e = std::exp(u < 0 ? u : -u), large = A{1} / (A{1} + e), small = e * large;
  const A s = u < 0 ? small : large, rest = u < 0 ? large : small;  // rest = 1 - s
  if (activation == Activation::sigmoid) return {s, s * rest};
  return {x * s, s + near * rest * slope_of_u * s};
}

/// Reads all three before it writes, so dgate and dup may lie over any two of them.
template <class T>
__global__ void gated_activation_gradient_thread_per_element(
    TensorView<T, 2, Cuda> dgate, TensorView<T, 2, Cuda> dup, TensorView<const T, 2, Cuda> dout,
    TensorView<const T, 2, Cuda> gate, TensorView<const T, 2, Cuda> up, Activation activation) {
  using A = accumulate_t<T>;
  const index_t n = gate.extent(1), elements = gate.size();
  for (index_t e = first_element(); e < elements; e += element_step()) {
    const index_t i = e / n, j = e % n;
    const auto activated = activate_with_slope(static_cast<A>(gate(i, j)), activation);
    const A d = static_cast<A>(dout(i, j)), factor = static_cast<A>(up(i, j));
    dgate(i, j) = static_cast<T>(d * factor * activated.slope);
    dup(i, j) = static_cast<T>(d * activated.value);
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

template <class T>
void BackendTraits<Cuda>::gated_activation_backward(Cuda backend, TensorView<T, 2, Cuda> dgate,
                                                    TensorView<T, 2, Cuda> dup,
                                                    TensorView<const T, 2, Cuda> dout,
                                                    TensorView<const T, 2, Cuda> gate,
                                                    TensorView<const T, 2, Cuda> up,
                                                    Activation activation) {
  cuda::launch("gated_activation_gradient_thread_per_element",
               cuda::gated_activation_gradient_thread_per_element<T>,
               cuda::element_launch(gate.size()), backend, dgate, dup, dout, gate, up, activation);
}

}  // namespace rapt
