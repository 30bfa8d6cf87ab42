// The gradient of attention over bfloat16, for the masks and scores that models train with.
#include "rapt/cuda/attention_backward.cuh"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

namespace rapt {

using WindowAndSinks = And<Causal, Or<SlidingWindow, SinkTokens>>;
using OfDocuments = And<WindowAndSinks, SameDocument<Cuda>>;
using Args = AttentionBackwardArgs<bfloat16, Cuda>;

template void BackendTraits<Cuda>::attention_backward(Cuda, const Args&, const Full&,
                                                      const Identity&);
template void BackendTraits<Cuda>::attention_backward(Cuda, const Args&, const Causal&,
                                                      const Identity&);
template void BackendTraits<Cuda>::attention_backward(Cuda, const Args&, const WindowAndSinks&,
                                                      const Identity&);
template void BackendTraits<Cuda>::attention_backward(Cuda, const Args&, const WindowAndSinks&,
                                                      const SoftCap&);
template void BackendTraits<Cuda>::attention_backward(Cuda, const Args&, const OfDocuments&,
                                                      const Identity&);
template void BackendTraits<Cuda>::attention_backward(Cuda, const Args&, const OfDocuments&,
                                                      const SoftCap&);

}  // namespace rapt
