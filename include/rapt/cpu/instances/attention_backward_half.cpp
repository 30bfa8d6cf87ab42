#include "rapt/cpu/attention_backward.hpp"
#include "rapt/cpu/instances/attention_backward.hpp"

namespace rapt {
RAPT_INSTANCES_OF_ATTENTION_BACKWARD(, half)
}  // namespace rapt
