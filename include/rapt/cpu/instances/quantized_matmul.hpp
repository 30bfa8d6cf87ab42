// The types for which rapt::instances holds the products with quantized blocks:
// cpu/quantized_matmul.hpp ends by including this file for users of that library, and
// instances/quantized_matmul.cpp makes them.
#pragma once

#include "rapt/core/ops/quantized_matmul.hpp"

#define RAPT_INSTANCES_OF_QUANTIZED_MATMUL(KIND, T)                                     \
  KIND template void BackendTraits<Cpu>::quantized_matmul(                              \
      Cpu, TensorView<T, 2>, TensorView<const T, 2>, const QuantizedMatrix&,            \
      const MatmulOptions<T, Cpu>&, BlockInput);                                        \
  KIND template void BackendTraits<Cpu>::quantized_embedding(                           \
      Cpu, TensorView<T, 3>, const QuantizedMatrix&, TensorView<const std::int32_t, 2>, \
      accumulate_t<T>);

namespace rapt {

RAPT_INSTANCES_OF_QUANTIZED_MATMUL(extern, float)
RAPT_INSTANCES_OF_QUANTIZED_MATMUL(extern, double)
RAPT_INSTANCES_OF_QUANTIZED_MATMUL(extern, half)
RAPT_INSTANCES_OF_QUANTIZED_MATMUL(extern, bfloat16)

}  // namespace rapt
