#include "rapt/cpu/instances/transformer.hpp"

namespace rapt::nn {
template class Transformer<bfloat16, Cpu>;
}  // namespace rapt::nn
