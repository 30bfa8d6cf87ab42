// The calls of attention() for which rapt::instances holds the kernel: the element types, masks and
// scores that modules use. cpu/attention_forward.hpp ends by including this file for users of that
// library; instances/attention_forward_*.cpp make them, one element type each, so that a machine
// with several cores compiles them side by side.
#pragma once

#include "rapt/attention/options.hpp"
#include "rapt/core/backend.hpp"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

#define RAPT_INSTANCE_MASK(KIND, T, ...)                                                         \
  KIND template void BackendTraits<Cpu>::attention_forward(Cpu, const AttentionArgs<T, Cpu>&,    \
                                                           const __VA_ARGS__&, const Identity&); \
  KIND template void BackendTraits<Cpu>::attention_forward(Cpu, const AttentionArgs<T, Cpu>&,    \
                                                           const __VA_ARGS__&, const SoftCap&);

#define RAPT_INSTANCES_OF_ATTENTION_FORWARD(KIND, T)      \
  RAPT_INSTANCE_MASK(KIND, T, Full)                       \
  RAPT_INSTANCE_MASK(KIND, T, Causal)                     \
  RAPT_INSTANCE_MASK(KIND, T, And<Causal, SlidingWindow>) \
  RAPT_INSTANCE_MASK(KIND, T, And<Causal, Or<SlidingWindow, SinkTokens>>)

namespace rapt {

RAPT_INSTANCES_OF_ATTENTION_FORWARD(extern, float)
RAPT_INSTANCES_OF_ATTENTION_FORWARD(extern, double)
RAPT_INSTANCES_OF_ATTENTION_FORWARD(extern, half)
RAPT_INSTANCES_OF_ATTENTION_FORWARD(extern, bfloat16)

}  // namespace rapt
