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
    return V::broadcast(A(0.5)) * x * erfc(x * V::broadcast(-kScale));
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

// ---- gradient ----

/// act(x) and its derivative.
template <class A>
struct ActivationAndSlope {
  Vec<A> value, slope;
};

/// sigmoid(x) and 1 - sigmoid(x), neither of them by a difference that cancels.
template <class A>
struct SigmoidAndRest {
  Vec<A> value, rest;
  explicit SigmoidAndRest(Vec<A> x) {
    using V = Vec<A>;
    const V e = exp_flushed(min(x, V::zero() - x));  // of -|x|; NaN stays
    const V large = V::broadcast(A{1}) / (V::broadcast(A{1}) + e), small = e * large;
    value = select(x, small, large);
    rest = select(x, large, small);
  }
};

template <Activation kActivation, class A>
ActivationAndSlope<A> activate_with_slope(Vec<A> x) {
  using V = Vec<A>;
  const auto constant = [](double value) { return V::broadcast(static_cast<A>(value)); };
  if constexpr (kActivation == Activation::silu) {
    const SigmoidAndRest<A> s(x);  // s (1 + x (1 - s))
    return {x * s.value, fma(x * s.rest, s.value, s.value)};
  } else if constexpr (kActivation == Activation::sigmoid) {
    const SigmoidAndRest<A> s(x);
    return {s.value, s.value * s.rest};
  } else if constexpr (kActivation == Activation::gelu_tanh) {
    // x sigmoid(2 u), u = sqrt(2/pi) (x + 0.044715 x^3). Beyond 32 the slope is 0 or 1 already, and
    // x^3 must not meet it as infinity.
    constexpr double kTwice = 1.5957691216057307117597842397375274738;  // 2 sqrt(2/pi)
    const V near = min(constant(32), max(constant(-32), x)), square = near * near;
    const V u = constant(kTwice) * fma(constant(0.044715) * square, near, near);
    const V slope_of_u = fma(constant(kTwice * 3 * 0.044715), square, constant(kTwice));
    const SigmoidAndRest<A> s(u);
    return {x * s.value, fma(near * s.rest * slope_of_u, s.value, s.value)};
  } else {
    constexpr double kRoot = 0.70710678118654752440084436210484903928;     // 1 / sqrt(2)
    constexpr double kDensity = 0.39894228040143267793994605993438186848;  // 1 / sqrt(2 pi)
    const V cumulative = constant(0.5) * erfc(x * constant(-kRoot));
    const V density = constant(kDensity) * exp_flushed(constant(-0.5) * x * x);
    return {x * cumulative, fma(x, density, cumulative)};
  }
}

template <Activation kActivation, class T>
void gate_gradient_rows(TensorView<T, 2> dgate, TensorView<T, 2> dup, TensorView<const T, 2> dout,
                        TensorView<const T, 2> gate, TensorView<const T, 2> up) {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  const index_t n = gate.extent(1);
  for_row_ranges(gate.extent(0), 4 * n, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      const T* dy = row_at(dout, i);
      const T* g = row_at(gate, i);
      const T* u = row_at(up, i);
      T* dg = row_at(dgate, i);
      T* du = row_at(dup, i);
      by_vectors<A>(n, [&](index_t j, auto v) {
        const auto activated = activate_with_slope<kActivation>(v.load(g + j));
        const V d = v.load(dy + j), factor = v.load(u + j);
        v.store(dg + j, d * factor * activated.slope);
        v.store(du + j, d * activated.value);
      });
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

template <class T>
void BackendTraits<Cpu>::gated_activation_backward(
    Cpu, TensorView<T, 2> dgate, TensorView<T, 2> dup, TensorView<const T, 2> dout,
    TensorView<const T, 2> gate, TensorView<const T, 2> up, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return cpu::gate_gradient_rows<Activation::silu>(dgate, dup, dout, gate, up);
    case Activation::gelu_tanh:
      return cpu::gate_gradient_rows<Activation::gelu_tanh>(dgate, dup, dout, gate, up);
    case Activation::gelu_erf:
      return cpu::gate_gradient_rows<Activation::gelu_erf>(dgate, dup, dout, gate, up);
    case Activation::sigmoid:
      return cpu::gate_gradient_rows<Activation::sigmoid>(dgate, dup, dout, gate, up);
  }
}

}  // namespace rapt
