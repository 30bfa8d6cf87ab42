// attention_backward as a kernel that writes zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class Args, class Mask, class Score>
void BackendTraits<Cpu>::attention_backward(Cpu, const Args& args, const Mask&, const Score&) {
  zeroed::zero(args.dq);
  zeroed::zero(args.dk);
  zeroed::zero(args.dv);
}

}  // namespace rapt
