// softcap as a kernel that writes zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::softcap(Cpu, TensorView<T, 2> x, accumulate_t<T>) {
  zeroed::zero(x);
}

}  // namespace rapt
