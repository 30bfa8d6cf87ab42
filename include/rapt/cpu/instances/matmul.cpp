#include "rapt/cpu/matmul.hpp"

#include "rapt/cpu/instances/matmul.hpp"

namespace rapt {
RAPT_INSTANCES_OF_MATMUL(, float)
RAPT_INSTANCES_OF_MATMUL(, double)
RAPT_INSTANCES_OF_MATMUL(, half)
RAPT_INSTANCES_OF_MATMUL(, bfloat16)
}  // namespace rapt
