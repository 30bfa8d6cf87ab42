// gated_activation on the CPU (core/backend.hpp): out = act(gate) * up, in accumulate_t<T>.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

/// act(x); the enumerators of Activation give the formulas.
template <Activation kActivation, class A>
Vec<A> activate(Vec<A> x) {
  using V = Vec<A>;
  if constexpr (kActivation == Activation::silu) {
    return x / (V::broadcast(A{1}) + exp(V::zero() - x));
  } else if constexpr (kActivation == Activation::sigmoid) {
    return sigmoid(x);
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    // (1 + tanh(u)) / 2 = sigmoid(2u), which does not cancel where tanh(u) is near -1.
    constexpr A kTwice = static_cast<A>(1.5957691216057307117597842397375274738);  // 2 sqrt(2/pi)
    const V u = fma(V::broadcast(A(0.044715)) * x * x, x, x);
    return x / (V::broadcast(A{1}) + exp(V::broadcast(-kTwice) * u));
  } else {
    constexpr A kScale = static_cast<A>(0.70710678118654752440084436210484903928);  // 1/sqrt(2)
    return by_lanes(x, [](A v) { return A(0.5) * v * std::erfc(-v * kScale); });
  }
}

template <Activation kActivation, class T>
void gate_rows(TensorView<T, 2> out, TensorView<const T, 2> gate, TensorView<const T, 2> up) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const index_t n = out.extent(1);
  // An exponential costs as much as a few other elements.
  for_row_ranges(out.extent(0), 4 * n, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      T* y = out.data() + i * out.stride(0);
      const T* g = gate.data() + i * gate.stride(0);
      const T* u = up.data() + i * up.stride(0);
      index_t j = 0;
      for (; j + V::kLanes <= n; j += V::kLanes)
        (activate<kActivation>(V::load(g + j)) * V::load(u + j)).store(y + j);
      if (const index_t rest = n - j; rest > 0)
        (activate<kActivation>(V::load(g + j, rest)) * V::load(u + j, rest)).store(y + j, rest);
    }
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T>
void BackendTraits<Cpu>::gated_activation(Cpu, TensorView<T, 2> out, TensorView<const T, 2> gate,
                                          TensorView<const T, 2> up, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return cpu::gate_rows<Activation::silu>(out, gate, up);
    case Activation::gelu_tanh:
      return cpu::gate_rows<Activation::gelu_tanh>(out, gate, up);
    case Activation::gelu_erf:
      return cpu::gate_rows<Activation::gelu_erf>(out, gate, up);
    case Activation::sigmoid:
      return cpu::gate_rows<Activation::sigmoid>(out, gate, up);
  }
}

}  // namespace rapt
