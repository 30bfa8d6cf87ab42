// embedding as a kernel that writes zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::embedding(Cpu, TensorView<T, 3> out, TensorView<const T, 2>,
                                   TensorView<const std::int32_t, 2>, accumulate_t<T>) {
  zeroed::zero(out);
}

template <class T>
void BackendTraits<Cpu>::embedding_backward(Cpu, TensorView<accumulate_t<T>, 2> dtable,
                                            TensorView<const T, 3>,
                                            TensorView<const std::int32_t, 2>, accumulate_t<T>) {
  zeroed::zero(dtable);
}

}  // namespace rapt
