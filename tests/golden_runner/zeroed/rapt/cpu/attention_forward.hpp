// attention_forward as a kernel that writes zeros; see zero.hpp.
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/cpu/zero.hpp"

namespace rapt {

template <class Args, class Mask, class Score>
void BackendTraits<Cpu>::attention_forward(Cpu, const Args& args, const Mask&, const Score&) {
  zeroed::zero(args.out);
  if (args.logsumexp) zeroed::zero(args.logsumexp);
  if (args.logsumexp_with_sink) zeroed::zero(args.logsumexp_with_sink);
}

}  // namespace rapt
