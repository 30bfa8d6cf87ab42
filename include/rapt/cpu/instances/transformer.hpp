// The element types for which rapt::instances holds nn::Transformer on the CPU: nn/transformer.hpp
// ends by including this file for users of that library, instances/transformer_*.cpp make them.
#pragma once

#include "rapt/nn/transformer.hpp"

namespace rapt::nn {

extern template class Transformer<float, Cpu>;
extern template class Transformer<half, Cpu>;
extern template class Transformer<bfloat16, Cpu>;

// A forward with a cache of the model's own type, and with one of half.
extern template void Transformer<float, Cpu>::run(TensorView<float, 3>,
                                                  TensorView<const std::int32_t, 2>,
                                                  TransformerCache<float, Cpu>*, const Call&) const;
extern template void Transformer<float, Cpu>::run(TensorView<float, 3>,
                                                  TensorView<const std::int32_t, 2>,
                                                  TransformerCache<half, Cpu>*, const Call&) const;
extern template void Transformer<half, Cpu>::run(TensorView<half, 3>,
                                                 TensorView<const std::int32_t, 2>,
                                                 TransformerCache<half, Cpu>*, const Call&) const;
extern template void Transformer<bfloat16, Cpu>::run(TensorView<bfloat16, 3>,
                                                     TensorView<const std::int32_t, 2>,
                                                     TransformerCache<bfloat16, Cpu>*,
                                                     const Call&) const;
extern template void Transformer<bfloat16, Cpu>::run(TensorView<bfloat16, 3>,
                                                     TensorView<const std::int32_t, 2>,
                                                     TransformerCache<half, Cpu>*,
                                                     const Call&) const;

}  // namespace rapt::nn
