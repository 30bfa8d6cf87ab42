#include "rapt/cpu/quantized_matmul.hpp"

#include "rapt/cpu/instances/quantized_matmul.hpp"

namespace rapt {
RAPT_INSTANCES_OF_QUANTIZED_MATMUL(, float)
RAPT_INSTANCES_OF_QUANTIZED_MATMUL(, double)
RAPT_INSTANCES_OF_QUANTIZED_MATMUL(, half)
RAPT_INSTANCES_OF_QUANTIZED_MATMUL(, bfloat16)
}  // namespace rapt
