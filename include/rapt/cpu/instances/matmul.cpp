#include "rapt/cpu/matmul.hpp"

#include "rapt/cpu/instances/matmul.hpp"

namespace rapt {
RAPT_INSTANCES_OF_MATMUL(, float, float)
RAPT_INSTANCES_OF_MATMUL(, double, double)
RAPT_INSTANCES_OF_MATMUL(, half, half)
RAPT_INSTANCES_OF_MATMUL(, bfloat16, bfloat16)
RAPT_INSTANCES_OF_MATMUL(, float, half)
RAPT_INSTANCES_OF_MATMUL(, float, bfloat16)
}  // namespace rapt
