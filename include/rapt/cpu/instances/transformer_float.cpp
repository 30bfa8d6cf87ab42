#include "rapt/cpu/instances/transformer.hpp"

namespace rapt::nn {
template class Transformer<float, Cpu>;
}  // namespace rapt::nn
