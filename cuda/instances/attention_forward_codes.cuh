// Attention over keys and values of 8-bit codes, for queries of the usual types: what the files
// attention_forward_{int8,float8_e4m3,float8_e5m2}.cu share. Each names its type of codes,
// rapt::Codes, and includes this; three files, so that they compile side by side.
#include "rapt/cuda/attention_forward.cuh"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

namespace rapt {

using Window = And<Causal, SlidingWindow>;
template <class T>
using Args = AttentionArgs<T, Cuda, Codes>;

template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<float>&, const Full&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<float>&, const Causal&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<float>&, const Causal&,
                                                     const SoftCap&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<float>&, const Window&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<half>&, const Full&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<half>&, const Causal&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<half>&, const Causal&,
                                                     const SoftCap&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<half>&, const Window&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<bfloat16>&, const Full&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<bfloat16>&, const Causal&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<bfloat16>&, const Causal&,
                                                     const SoftCap&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args<bfloat16>&, const Window&,
                                                     const Identity&);

}  // namespace rapt
