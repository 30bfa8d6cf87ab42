// The types for which rapt::instances holds the matrix product: cpu/matmul.hpp ends by including
// this file for users of that library, and instances/matmul.cpp makes them.
#pragma once

#include "rapt/core/backend.hpp"

#define RAPT_INSTANCES_OF_MATMUL(KIND, OUT, T)                                                   \
  KIND template void BackendTraits<Cpu>::matmul(Cpu, TensorView<OUT, 2>, TensorView<const T, 2>, \
                                                TensorView<const T, 2>,                          \
                                                const MatmulOptions<T, Cpu>&);                   \
  KIND template void BackendTraits<Cpu>::packed_matmul(                                          \
      Cpu, TensorView<OUT, 2>, TensorView<const T, 2>, TensorView<const T, 1>,                   \
      const MatmulOptions<T, Cpu>&);

namespace rapt {

RAPT_INSTANCES_OF_MATMUL(extern, float, float)
RAPT_INSTANCES_OF_MATMUL(extern, double, double)
RAPT_INSTANCES_OF_MATMUL(extern, half, half)
RAPT_INSTANCES_OF_MATMUL(extern, bfloat16, bfloat16)
RAPT_INSTANCES_OF_MATMUL(extern, float, half)
RAPT_INSTANCES_OF_MATMUL(extern, float, bfloat16)

}  // namespace rapt
