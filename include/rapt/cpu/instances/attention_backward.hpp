// The calls of attention_backward() for which rapt::instances holds the kernel: what models train
// with. cpu/attention_backward.hpp ends by including this file for users of that library;
// instances/attention_backward_*.cpp make them, one element type each.
#pragma once

#include "rapt/attention/backward_options.hpp"
#include "rapt/core/backend.hpp"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

#define RAPT_INSTANCE_BACKWARD(KIND, T, SCORE, ...)          \
  KIND template void BackendTraits<Cpu>::attention_backward( \
      Cpu, const AttentionBackwardArgs<T, Cpu>&, const __VA_ARGS__&, const SCORE&);

#define RAPT_INSTANCES_OF_ATTENTION_BACKWARD(KIND, T)                                        \
  RAPT_INSTANCE_BACKWARD(KIND, T, Identity, Full)                                            \
  RAPT_INSTANCE_BACKWARD(KIND, T, Identity, Causal)                                          \
  RAPT_INSTANCE_BACKWARD(KIND, T, Identity, And<Causal, Or<SlidingWindow, SinkTokens>>)      \
  RAPT_INSTANCE_BACKWARD(KIND, T, SoftCap, And<Causal, Or<SlidingWindow, SinkTokens>>)       \
  RAPT_INSTANCE_BACKWARD(KIND, T, Identity,                                                  \
                         And<And<Causal, Or<SlidingWindow, SinkTokens>>, SameDocument<Cpu>>) \
  RAPT_INSTANCE_BACKWARD(KIND, T, SoftCap,                                                   \
                         And<And<Causal, Or<SlidingWindow, SinkTokens>>, SameDocument<Cpu>>)

namespace rapt {

RAPT_INSTANCES_OF_ATTENTION_BACKWARD(extern, float)
RAPT_INSTANCES_OF_ATTENTION_BACKWARD(extern, double)
RAPT_INSTANCES_OF_ATTENTION_BACKWARD(extern, half)
RAPT_INSTANCES_OF_ATTENTION_BACKWARD(extern, bfloat16)

}  // namespace rapt
