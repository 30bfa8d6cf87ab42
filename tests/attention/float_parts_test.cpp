// Attention in fp32 by products of three parts of bfloat16: attention/parts_cases.hpp, and numbers
// that parts might lose.
#include <bit>
#include <cstdint>

namespace rapt::test {
using Element = float;
}

#include "attention/parts_cases.hpp"

namespace rapt::test {
namespace {

// bfloat16 would round it to infinity, which has no parts.
TEST_P(AttentionProducts, ValuesCloseToTheLargestNumber) {
  Problem<float> p({.q_len = 40, .kv_len = 40, .heads = 1, .kv_heads = 1, .head_dim = 16});
  p.v(0, 7, 0, 5) = 3.4e38f;
  expect_matches_oracle(p, AnyMask{Full{}});
  expect_matches_oracle(p, AnyMask{Causal{}});
}

// Rounded upwards as a whole number, one of these would become a 0.
TEST_P(AttentionProducts, HiddenNaNsOfEveryBitPattern) {
  for (const std::uint32_t bits : {0x7fffffffu, 0xffffffffu, 0x7fff8000u, 0x7f800001u}) {
    Problem<float> p({.q_len = 40, .kv_len = 40, .heads = 1, .kv_heads = 1, .head_dim = 16});
    for (index_t t = 0; t < 16; ++t) p.v(0, 39, 0, t) = std::bit_cast<float>(bits);
    Tensor<float, 4> out(p.q.shape());
    attention(out, p.q, p.k, p.v, AnyMask{Causal{}});
    for (index_t i = 0; i < 40; ++i)
      ASSERT_EQ(std::isnan(out(0, i, 0, 3)), i == 39) << bits << ", " << i;
  }
}

}  // namespace
}  // namespace rapt::test
