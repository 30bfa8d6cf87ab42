#include "rapt/cpu/instances/transformer.hpp"

namespace rapt::nn {
template class Transformer<half, Cpu>;
}  // namespace rapt::nn
