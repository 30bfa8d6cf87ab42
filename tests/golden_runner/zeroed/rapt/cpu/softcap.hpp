// softcap as a kernel that writes zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::softcap(Cpu, TensorView<T, 2> x, accumulate_t<T>) {
  zeroed::zero(x);
}

template <class T>
void BackendTraits<Cpu>::softcap_backward(Cpu, TensorView<T, 2> dx, TensorView<const T, 2>,
                                          TensorView<const T, 2>, accumulate_t<T>) {
  zeroed::zero(dx);
}

}  // namespace rapt
