#include "rapt/cpu/attention_forward.hpp"
#include "rapt/cpu/instances/attention_forward.hpp"

namespace rapt {
RAPT_INSTANCES_OF_ATTENTION_FORWARD(, half)
}  // namespace rapt
