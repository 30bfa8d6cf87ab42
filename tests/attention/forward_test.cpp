// attention() over the grid of sizes. Oracle: attention/reference.hpp in double precision.
#include <gtest/gtest.h>

#include "attention/problem.hpp"

namespace rapt::test {
namespace {

TEST(Forward, MatchesTheOracleAtEveryLength) {
  const index_t lengths[] = {0, 1, 2, 15, 16, 17, 31, 63, 64, 65, 127, 128, 129, 200};
  unsigned seed = 0;
  for (const index_t q_len : lengths)
    for (const index_t kv_len : lengths) {
      const Sizes sizes{
          .q_len = q_len, .kv_len = kv_len, .heads = 2, .kv_heads = 1, .head_dim = 24};
      SCOPED_TRACE(testing::Message() << sizes);
      Problem<float> p(sizes, ++seed);
      expect_matches_oracle(p);
      expect_matches_oracle(p, Full{});
      if (HasFatalFailure()) return;
    }
}

TEST(Forward, MatchesTheOracleAtEveryHeadDim) {
  unsigned seed = 0;
  for (const auto& [head_dim, value_dim] : {std::pair<index_t, index_t>{1, 1},
                                            {3, 3},
                                            {7, 9},
                                            {8, 8},
                                            {15, 17},
                                            {16, 16},
                                            {40, 40},
                                            {64, 64},
                                            {80, 80},
                                            {96, 96},
                                            {128, 128},
                                            {160, 160},
                                            {192, 128},
                                            {256, 256},
                                            {576, 512},
                                            {33, 1},
                                            {1, 70}})
    for (const index_t q_len : {1, 3, 37}) {
      const Sizes sizes{.q_len = q_len,
                        .kv_len = 75,
                        .heads = 4,
                        .kv_heads = 2,
                        .head_dim = head_dim,
                        .value_dim = value_dim};
      SCOPED_TRACE(testing::Message() << sizes);
      expect_matches_oracle(Problem<float>(sizes, ++seed));
      if (HasFatalFailure()) return;
    }
}

TEST(Forward, MatchesTheOracleForEveryGroup) {
  for (const index_t group : {1, 2, 3, 5, 8, 32})
    for (const index_t kv_heads : {1, 2})
      for (const index_t q_len : {1, 2, 5, 33, 130}) {
        const Sizes sizes{.batch = 2,
                          .q_len = q_len,
                          .kv_len = 131,
                          .heads = group * kv_heads,
                          .kv_heads = kv_heads,
                          .head_dim = 16};
        SCOPED_TRACE(testing::Message() << sizes);
        expect_matches_oracle(Problem<float>(sizes, static_cast<unsigned>(group * 7 + q_len)));
        if (HasFatalFailure()) return;
      }
}

TEST(Forward, MatchesTheOracleOnLongSequences) {
  for (const auto& [q_len, kv_len] :
       {std::pair<index_t, index_t>{700, 700}, {1, 1500}, {3, 5000}, {40, 4500}, {500, 100}}) {
    const Sizes sizes{.q_len = q_len, .kv_len = kv_len, .heads = 3, .kv_heads = 1, .head_dim = 32};
    SCOPED_TRACE(testing::Message() << sizes);
    expect_matches_oracle(Problem<float>(sizes));
    if (HasFatalFailure()) return;
  }
}

template <class T>
struct ForwardOf : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(ForwardOf, Elements);

TYPED_TEST(ForwardOf, MatchesTheOracle) {
  unsigned seed = 0;
  for (const auto& [q_len, kv_len] : {std::pair<index_t, index_t>{1, 1},
                                      {1, 77},
                                      {4, 4},
                                      {5, 130},
                                      {65, 65},
                                      {20, 150},
                                      {130, 129},
                                      {200, 333}})
    for (const auto& [head_dim, value_dim] :
         {std::pair<index_t, index_t>{1, 3}, {40, 24}, {64, 64}, {65, 63}})
      for (const index_t kv_heads : {1, 2}) {
        const Sizes sizes{.batch = 2,
                          .q_len = q_len,
                          .kv_len = kv_len,
                          .heads = 4,
                          .kv_heads = kv_heads,
                          .head_dim = head_dim,
                          .value_dim = value_dim};
        SCOPED_TRACE(testing::Message() << sizes);
        expect_matches_oracle(Problem<TypeParam>(sizes, ++seed));
        if (this->HasFatalFailure()) return;
      }
}

TEST(Forward, LargeAndNegativeScalesAreExact) {
  Problem<float> p({.q_len = 33, .kv_len = 70, .heads = 2, .kv_heads = 1, .head_dim = 16});
  for (const float scale : {0.01f, 1.f, 30.f, -0.25f, -3.f}) {
    SCOPED_TRACE(scale);
    AttentionOptions<Tensor<float, 4>> options{.scale = scale};
    // Scores of a few hundred have an error of 1e-5 in float, and so do the logarithms.
    expect_matches_oracle(p.q, p.k, p.v, Causal{}, Identity{}, options, false,
                          std::max(1.f, 20 * std::abs(scale)));
  }
}

}  // namespace
}  // namespace rapt::test
