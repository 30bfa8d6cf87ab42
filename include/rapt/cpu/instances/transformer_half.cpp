#include "rapt/cpu/instances/transformer.hpp"

namespace rapt::nn {
template class Transformer<half, Cpu>;
template void Transformer<half, Cpu>::run(TensorView<half, 3>, TensorView<const std::int32_t, 2>,
                                          TransformerCache<half, Cpu>*, const Call&) const;
}  // namespace rapt::nn
