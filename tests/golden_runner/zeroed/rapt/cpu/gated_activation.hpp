// gated_activation as a kernel that writes zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::gated_activation(Cpu, TensorView<T, 2> out, TensorView<const T, 2>,
                                          TensorView<const T, 2>, Activation) {
  zeroed::zero(out);
}

template <class T>
void BackendTraits<Cpu>::gated_activation_backward(Cpu, TensorView<T, 2> dgate,
                                                   TensorView<T, 2> dup, TensorView<const T, 2>,
                                                   TensorView<const T, 2>, TensorView<const T, 2>,
                                                   Activation) {
  zeroed::zero(dgate);
  zeroed::zero(dup);
}

}  // namespace rapt
