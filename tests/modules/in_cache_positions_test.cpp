// First tokens kept beside a window, in both position modes, against their definitions: what a
// model without any cache gives on the tokens that are left.
//
//   in_cache   token p sees [first tokens, last tokens] as if they were the whole text: the cached
//              keys are numbered 0, 1, 2, ... without the gap   (StreamingLLM, arXiv:2309.17453)
//   absolute   token p sees the same keys at the positions they have in the text
#include <gtest/gtest.h>

#include <vector>

#include "rapt/modules/attention.hpp"

namespace rapt::test {
namespace {

constexpr index_t kModel = 24, kTokens = 30, kWindow = 5, kSinkTokens = 3;

AttentionConfig config(SinkPositions positions) {
  AttentionConfig c;
  c.d_model = kModel;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 6;
  c.window = kWindow;
  c.sink_tokens = kSinkTokens;
  c.sink_positions = positions;
  c.rope = Rope{.theta = 100};
  return c;
}

/// One layer with random weights, and random tokens.
template <class Module>
Module layer(SinkPositions positions) {
  Module module(config(positions));
  Philox random(1);
  module.initialize(random, 0.4);
  return module;
}
Tensor<double, 3> tokens() {
  Tensor<double, 3> x({1, kTokens, kModel});
  Philox random(2);
  fill_normal(x, random);
  return x;
}

/// The definition: for each p, plain causal attention over the tokens that are kept for it.
Tensor<double, 3> by_definition(SinkPositions mode) {
  const auto plain = layer<GroupedQueryAttention<double>>(mode);
  const auto x = tokens();
  Tensor<double, 3> out({1, kTokens, kModel});
  for (index_t p = 0; p < kTokens; ++p) {
    std::vector<std::int32_t> kept;
    for (index_t j = 0; j <= p; ++j)
      if (j < kSinkTokens || j > p - kWindow) kept.push_back(static_cast<std::int32_t>(j));
    const auto n = static_cast<index_t>(kept.size());
    Tensor<double, 3> text({1, n, kModel});
    for (index_t i = 0; i < n; ++i)
      copy(text.view().select(1, i), x.view().select(1, kept[static_cast<std::size_t>(i)]));
    AttentionCall<double, Cpu> call;
    if (mode == SinkPositions::absolute)
      call.positions = TensorView<const std::int32_t, 2>(kept.data(), Shape{1, n});
    const auto y = plain.forward(text, call);
    copy(out.view().select(1, p), y.view().select(1, n - 1));
  }
  return out;
}

void expect_near(TensorView<const double, 3> got, TensorView<const double, 3> want) {
  ASSERT_EQ(got.shape(), want.shape());
  for (index_t i = 0; i < got.extent(1); ++i)
    for (index_t e = 0; e < got.extent(2); ++e)
      ASSERT_NEAR(got(0, i, e), want(0, i, e), 1e-12) << i;
}

void expect_definition(SinkPositions mode) {
  const auto module = layer<SlidingWindowAttention<double>>(mode);
  const auto x = tokens(), want = by_definition(mode);
  expect_near(module.forward(x), want);
  for (const std::vector<index_t>& split : {std::vector<index_t>{30},
                                            {1, 1, 1, 1, 1, 1, 1, 1, 22},
                                            {8, 22},
                                            {9, 1, 20},
                                            {4, 3, 2, 1, 20},
                                            {7, 1, 1, 1, 20},
                                            {20, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}}) {
    auto cache = module.make_cache(1);
    index_t at = 0;
    for (const index_t n : split) {
      const auto y = module.forward(x.view().slice(1, at, at + n), cache);
      expect_near(y, want.view().slice(1, at, at + n));
      at += n;
    }
    EXPECT_EQ(cache.length(), kTokens);
  }
}

TEST(SinkTokenPositions, InCacheNumbersWhatIsKept) { expect_definition(SinkPositions::in_cache); }

TEST(SinkTokenPositions, AbsoluteKeepsTheTruePositions) {
  expect_definition(SinkPositions::absolute);
}

TEST(SinkTokenPositions, ModesAgreeUntilTheFirstEviction) {
  const auto x = tokens();
  const auto a = layer<SlidingWindowAttention<double>>(SinkPositions::absolute).forward(x);
  const auto b = layer<SlidingWindowAttention<double>>(SinkPositions::in_cache).forward(x);
  const index_t kept = kWindow + kSinkTokens;
  expect_near(a.view().slice(1, 0, kept), b.view().slice(1, 0, kept));
  double difference = 0;
  for (index_t e = 0; e < kModel; ++e) difference += std::abs(a(0, 20, e) - b(0, 20, e));
  EXPECT_GT(difference, 1e-3);  // afterwards they are different functions
}

}  // namespace
}  // namespace rapt::test
