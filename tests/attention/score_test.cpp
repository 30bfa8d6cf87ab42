// Score modifiers, alone and together with masks, sinks and scales. Oracle:
// attention/reference.hpp.
#include <gtest/gtest.h>

#include <cmath>

#include "attention/problem.hpp"

namespace rapt::test {
namespace {

const Sizes kSizes[] = {
    {.batch = 2, .q_len = 70, .kv_len = 131, .heads = 4, .kv_heads = 2, .head_dim = 16},
    {.batch = 2, .q_len = 2, .kv_len = 131, .heads = 4, .kv_heads = 2, .head_dim = 16},
};

template <class Mask, class Score>
void expect_score_is_right(const Mask& mask, const Score& score) {
  for (const Sizes& sizes : kSizes)
    for (const float scale : {0.f, 1.f, -0.5f}) {
      SCOPED_TRACE(testing::Message() << sizes << ", scale " << scale);
      const Problem<float> p(sizes);
      const auto sinks = normal<float>(Shape<1>{sizes.heads}, 9);
      AttentionOptions<Tensor<float, 4>> options{.scale = scale};
      expect_matches_oracle(p, mask, score, options, true);
      options.sink_logits = sinks;
      expect_matches_oracle(p, mask, score, options, true);
      if (testing::Test::HasFatalFailure()) return;
    }
}

TEST(Score, SoftCap) {
  for (const double cap : {0.5, 2.0, 50.0}) {
    expect_score_is_right(Causal{}, SoftCap{cap});
    expect_score_is_right(Full{}, SoftCap{cap});
  }
}

TEST(Score, Alibi) {
  const auto slopes = alibi_slopes(4);
  expect_score_is_right(Causal{}, Alibi<>{slopes});
  expect_score_is_right(Full{}, Alibi<>{slopes});
  expect_score_is_right(Causal{} & SlidingWindow{40}, Alibi<>{slopes});
}

TEST(Score, BiasesFromTables) {
  const auto relative = normal<float>(Shape<2>{4, 33}, 3);
  expect_score_is_right(Causal{}, RelativeBias<>{relative});
  const auto additive = normal<float>(Shape<4>{2, 4, 70, 131}, 4);
  expect_score_is_right(Full{}, AdditiveBias<>{additive});
}

TEST(Score, TablesOfAnyShapeAndStride) {
  // Saturated on both sides, one row for all heads, and a table that is one number.
  for (const index_t width : {1, 3, 301}) {
    const auto shared = normal<float>(Shape<2>{1, width}, 5);
    expect_score_is_right(Full{}, RelativeBias<>{shared});
    const auto halves = normal<half>(Shape<2>{4, width}, 6);
    expect_score_is_right(Causal{}, RelativeBias<half>{halves});
    // Every other entry of a wider table.
    const auto wide = normal<float>(Shape<2>{4, 2 * width}, 7);
    expect_score_is_right(Full{}, RelativeBias<>{TensorView<const float, 2>(
                                      wide.data(), Shape<2>{4, width}, Shape<2>{2 * width, 2})});
  }
  // Keys of one bias a query, and a table that lies transposed.
  const auto column = normal<float>(Shape<4>{2, 4, 70, 1}, 8);
  expect_score_is_right(
      Full{}, AdditiveBias<>{TensorView<const float, 4>(column.data(), Shape<4>{2, 4, 70, 131},
                                                        Shape<4>{280, 70, 1, 0})});
  const auto transposed = normal<float>(Shape<4>{1, 4, 131, 70}, 9);
  expect_score_is_right(Full{}, AdditiveBias<>{transposed.view().transpose(2, 3)});
  const auto brain = normal<bfloat16>(Shape<4>{1, 1, 70, 131}, 10);
  expect_score_is_right(Full{}, AdditiveBias<bfloat16>{brain});
}

TEST(Score, KeysThatNobodySeesLeaveGaps) {
  const auto slopes = alibi_slopes(4);
  const auto holes = [](index_t, index_t, index_t, index_t kv) {
    return kv % 7 != 3 && kv % 5 != 1;
  };
  expect_score_is_right(holes, Alibi<>{slopes});
  const auto relative = normal<float>(Shape<2>{4, 33}, 3);
  expect_score_is_right(holes, then(RelativeBias<>{relative}, SoftCap{3}, Alibi<>{slopes}));
}

TEST(Score, AnAdditiveBiasOfMinusInfinityHides) {
  Problem<float> p({.q_len = 9, .kv_len = 20, .heads = 2, .kv_heads = 2, .head_dim = 8});
  auto bias = normal<float>(Shape<4>{1, 1, 9, 20}, 4);
  for (index_t i = 0; i < 9; ++i)
    for (index_t j = 0; j < 20; ++j)
      if ((i * j) % 3 == 1 || i == 4) bias(0, 0, i, j) = -std::numeric_limits<float>::infinity();
  expect_matches_oracle(p, Full{}, AdditiveBias<>{bias});
}

TEST(Score, LambdasAndChains) {
  const auto slopes = alibi_slopes(4);
  expect_score_is_right(Causal{}, then(SoftCap{5}, Alibi<>{slopes}));
  expect_score_is_right(Causal{}, [](auto s, index_t, index_t h, index_t q, index_t kv) {
    using S = decltype(s);
    return s * S(0.5) + S(h) - S((q + 3 * kv) % 5);
  });
}

}  // namespace
}  // namespace rapt::test
