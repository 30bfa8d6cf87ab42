// The element types for which rapt::instances holds nn::Transformer on the CPU: nn/transformer.hpp
// ends by including this file for users of that library, instances/transformer_*.cpp make them.
#pragma once

#include "rapt/nn/transformer.hpp"

namespace rapt::nn {

extern template class Transformer<float, Cpu>;
extern template class Transformer<half, Cpu>;
extern template class Transformer<bfloat16, Cpu>;

}  // namespace rapt::nn
