#include "rapt/cpu/instances/transformer.hpp"

namespace rapt::nn {
template class Transformer<bfloat16, Cpu>;
template void Transformer<bfloat16, Cpu>::run(TensorView<bfloat16, 3>,
                                              TensorView<const std::int32_t, 2>,
                                              TransformerCache<bfloat16, Cpu>*, const Call&) const;
template void Transformer<bfloat16, Cpu>::run(TensorView<bfloat16, 3>,
                                              TensorView<const std::int32_t, 2>,
                                              TransformerCache<half, Cpu>*, const Call&) const;
}  // namespace rapt::nn
