// gated_activation on the CPU (core/backend.hpp): out = act(gate) * up, in accumulate_t<T>.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace detail {

/// act(x); the enumerators of Activation give the formulas.
template <Activation kActivation, class A>
inline A activate(A x) {
  if constexpr (kActivation == Activation::silu) {
    return x / (A{1} + std::exp(-x));
  } else if constexpr (kActivation == Activation::sigmoid) {
    return A{1} / (A{1} + std::exp(-x));
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    constexpr A kScale = static_cast<A>(0.7978845608028653558798921198687637369);  // sqrt(2/pi)
    return A(0.5) * x * (A{1} + std::tanh(kScale * (x + A(0.044715) * x * x * x)));
  } else {
    constexpr A kScale = static_cast<A>(0.70710678118654752440084436210484903928);  // 1/sqrt(2)
    return A(0.5) * x * (A{1} + std::erf(x * kScale));
  }
}

template <Activation kActivation, class T>
void gate_rows(TensorView<T, 2> out, TensorView<const T, 2> gate, TensorView<const T, 2> up) {
  using A = accumulate_t<T>;
  const index_t n = out.extent(1);
  // An exponential costs as much as some ten other elements.
  for_row_ranges(out.extent(0), 8 * n, [&](index_t begin, index_t end) {
    constexpr index_t kChunk = 512;
    A g[kChunk], u[kChunk];
    for (index_t i = begin; i < end; ++i)
      for (index_t at = 0; at < n; at += kChunk) {
        const index_t width = n - at < kChunk ? n - at : kChunk;
        widen_row(g, gate.data() + i * gate.stride(0) + at, width);
        widen_row(u, up.data() + i * up.stride(0) + at, width);
        for (index_t j = 0; j < width; ++j) g[j] = activate<kActivation>(g[j]) * u[j];
        narrow_row(out.data() + i * out.stride(0) + at, g, width);
      }
  });
}

}  // namespace detail

template <class T>
void BackendTraits<Cpu>::gated_activation(Cpu, TensorView<T, 2> out, TensorView<const T, 2> gate,
                                          TensorView<const T, 2> up, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return detail::gate_rows<Activation::silu>(out, gate, up);
    case Activation::gelu_tanh:
      return detail::gate_rows<Activation::gelu_tanh>(out, gate, up);
    case Activation::gelu_erf:
      return detail::gate_rows<Activation::gelu_erf>(out, gate, up);
    case Activation::sigmoid:
      return detail::gate_rows<Activation::sigmoid>(out, gate, up);
  }
}

}  // namespace rapt
