// The gradient of attention under masks that know what each row sees as one run of keys: they are
// not asked pair by pair, so they must say the same as when they are (backward_mask_test.cpp, where
// their type is hidden).
#include <gtest/gtest.h>

#include "attention/backward_problem.hpp"
#include "attention/window_of_head.hpp"

namespace rapt::test {
namespace {

template <class T>
struct BackwardRuns : testing::Test {};
using Elements = testing::Types<float, double, bfloat16>;
TYPED_TEST_SUITE(BackwardRuns, Elements);

template <class T, class Mask>
void expect_all_lengths(const Mask& mask) {
  for (const Sizes& sizes :
       {Sizes{.batch = 2, .q_len = 70, .kv_len = 70, .heads = 4, .kv_heads = 2, .head_dim = 12},
        Sizes{.q_len = 13, .kv_len = 150, .heads = 3, .kv_heads = 1, .head_dim = 16},
        Sizes{.q_len = 110, .kv_len = 37, .heads = 2, .kv_heads = 2, .head_dim = 20}})
    expect_backward_matches(Problem<T>(sizes), mask);
}

TYPED_TEST(BackwardRuns, Causal) { expect_all_lengths<TypeParam>(Causal{}); }
TYPED_TEST(BackwardRuns, SlidingWindow) {
  expect_all_lengths<TypeParam>(Causal{} & SlidingWindow{5});
  expect_all_lengths<TypeParam>(Causal{} & SlidingWindow{40});
}
TYPED_TEST(BackwardRuns, WindowAndSinkTokens) {  // of many tiles two runs
  expect_all_lengths<TypeParam>(Causal{} & (SlidingWindow{9} | SinkTokens{3}));
}
TYPED_TEST(BackwardRuns, RunsThatDifferByHead) { expect_all_lengths<TypeParam>(WindowOfHead{}); }

}  // namespace
}  // namespace rapt::test
