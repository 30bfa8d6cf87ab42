// Attention over half, for the masks and scores of rapt's modules and the usual ones beside them.
#include "rapt/cuda/attention_forward.cuh"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

namespace rapt {

using Window = And<Causal, SlidingWindow>;
using WindowAndSinks = And<Causal, Or<SlidingWindow, SinkTokens>>;
using Args = AttentionArgs<half, Cuda>;

template void BackendTraits<Cuda>::attention_forward(Cuda, const Args&, const Full&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args&, const Full&,
                                                     const SoftCap&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args&, const Causal&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args&, const Causal&,
                                                     const SoftCap&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args&, const WindowAndSinks&,
                                                     const Identity&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args&, const WindowAndSinks&,
                                                     const SoftCap&);
template void BackendTraits<Cuda>::attention_forward(Cuda, const Args&, const Window&,
                                                     const Identity&);

}  // namespace rapt
