// Attention by products of parts of bfloat16 (cpu/attention_parts.hpp), on matrix registers in
// plain loops (support/bfloat16_pairs.hpp) and on this machine's own: attention/product_cases.hpp,
// for the file that includes this. Before, in rapt::test, that file defines Element.
#pragma once

#include <string>
#include <vector>

#include "rapt/attention/attention.hpp"
#include "support/bfloat16_pairs.hpp"

namespace rapt::test {
namespace {

enum class Through { emulated_registers, own_registers } through;
std::vector<Through> through_all() {
  if (cpu::kAmx && cpu::amx_granted()) return {Through::emulated_registers, Through::own_registers};
  return {Through::emulated_registers};
}
std::string name_of(Through by) {
  return by == Through::own_registers ? "OwnRegisters" : "EmulatedRegisters";
}

template <class Args, class Mask, class Score>
void forward(const Args& args, const Mask& mask, const Score& score) {
  if constexpr (cpu::kAmx)
    if (through == Through::own_registers)
      return cpu::AttentionForward<Args, Mask, Score, cpu::PartsProduct<Element>>(args, mask, score)
          .run();
  using Emulated = cpu::PartsProduct<Element, Element, EmulatedPartTiles>;
  cpu::AttentionForward<Args, Mask, Score, Emulated>(args, mask, score).run();
}

}  // namespace
}  // namespace rapt::test

#include "attention/product_cases.hpp"
