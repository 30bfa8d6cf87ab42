// norm as a kernel that writes zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::rms_norm(Cpu, TensorView<T, Rank> y, TensorView<const T, Rank>,
                                  TensorView<const T, 1>, double, bool) {
  zeroed::zero(y);
}

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::layer_norm(Cpu, TensorView<T, Rank> y, TensorView<const T, Rank>,
                                    TensorView<const T, 1>, TensorView<const T, 1>, double) {
  zeroed::zero(y);
}

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::rms_norm_backward(Cpu, TensorView<T, Rank> dx,
                                           TensorView<accumulate_t<T>, 1> dweight,
                                           TensorView<const T, Rank>, TensorView<const T, Rank>,
                                           TensorView<const T, 1>, double, bool) {
  zeroed::zero(dx);
  zeroed::zero(dweight);
}

template <class T, std::size_t Rank>
void BackendTraits<Cpu>::layer_norm_backward(Cpu, TensorView<T, Rank> dx,
                                             TensorView<accumulate_t<T>, 1> dweight,
                                             TensorView<accumulate_t<T>, 1> dbias,
                                             TensorView<const T, Rank>, TensorView<const T, Rank>,
                                             TensorView<const T, 1>, double) {
  zeroed::zero(dx);
  zeroed::zero(dweight);
  zeroed::zero(dbias);
}

}  // namespace rapt
