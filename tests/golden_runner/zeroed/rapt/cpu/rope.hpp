// rope as a kernel that writes zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::rope(Cpu, TensorView<T, 4> out, TensorView<const T, 4>,
                              TensorView<const accumulate_t<T>, 3>,
                              TensorView<const accumulate_t<T>, 3>, const RopeOptions&) {
  zeroed::zero(out);
}

}  // namespace rapt
