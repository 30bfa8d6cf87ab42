#include "rapt/cpu/instances/transformer.hpp"

namespace rapt::nn {
template class Transformer<float, Cpu>;
template void Transformer<float, Cpu>::run(TensorView<float, 3>, TensorView<const std::int32_t, 2>,
                                           TransformerCache<float, Cpu>*, const Call&) const;
template void Transformer<float, Cpu>::run(TensorView<float, 3>, TensorView<const std::int32_t, 2>,
                                           TransformerCache<half, Cpu>*, const Call&) const;
}  // namespace rapt::nn
