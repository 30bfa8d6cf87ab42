// The optimiser's operations as kernels that write zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::adamw_step(Cpu, TensorView<accumulate_t<T>, 1> master,
                                    TensorView<accumulate_t<T>, 1> first,
                                    TensorView<accumulate_t<T>, 1> second,
                                    TensorView<const accumulate_t<T>, 1>, TensorView<T, 1>,
                                    const AdamWStep&) {
  zeroed::zero(master);
  zeroed::zero(first);
  zeroed::zero(second);
}

template <class T>
double BackendTraits<Cpu>::sum_of_squares(Cpu, TensorView<const T, 1>) {
  return 0;
}

template <class T>
void BackendTraits<Cpu>::scale_in_place(Cpu, TensorView<T, 1> x, accumulate_t<T>) {
  zeroed::zero(x);
}

}  // namespace rapt
