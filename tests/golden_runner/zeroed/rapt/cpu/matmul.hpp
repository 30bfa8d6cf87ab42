// matmul as a kernel that writes zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class Out, class T>
void BackendTraits<Cpu>::matmul(Cpu, TensorView<Out, 2> out, TensorView<const T, 2>,
                                TensorView<const T, 2>, const MatmulOptions<T, Cpu>&) {
  zeroed::zero(out);
}

template <class T>
index_t BackendTraits<Cpu>::packed_size(Cpu, index_t k, index_t n) {
  return k * n;
}

template <class T>
void BackendTraits<Cpu>::pack(Cpu, TensorView<T, 1> to, TensorView<const T, 2>) {
  zeroed::zero(to);
}

template <class T>
void BackendTraits<Cpu>::unpack(Cpu, TensorView<T, 2> b, TensorView<const T, 1>) {
  zeroed::zero(b);
}

template <class Out, class T>
void BackendTraits<Cpu>::packed_matmul(Cpu, TensorView<Out, 2> out, TensorView<const T, 2>,
                                       TensorView<const T, 1>, const MatmulOptions<T, Cpu>&) {
  zeroed::zero(out);
}

}  // namespace rapt
