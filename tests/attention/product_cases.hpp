// What every product of a tile of attention must do (cpu/attention_product.hpp), for the file that
// includes this. Before, in rapt::test, that file defines
//
//   Element                              of its calls
//   Through                              an enumeration of its products
//   through                              the one that computes
//   forward(args, mask, score)           attention through it
//   through_all(), name_of(Through)      for the names of tests
//
// Oracle: attention/reference.hpp, with the tolerances of Element that every kernel meets.
#pragma once

#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "attention/any_mask.hpp"
#include "attention/problem.hpp"
#include "rapt/core/parallel.hpp"

namespace rapt::test {
namespace {

/// A mask that knows the range of what a query sees; AnyMask does not.
struct Window {
  index_t window;

  auto mask() const { return Causal{} & SlidingWindow{window}; }
  bool operator()(index_t b, index_t h, index_t q, index_t kv) const { return mask()(b, h, q, kv); }
  TileVerdict classify(index_t b, index_t h, PositionRange q, PositionRange kv) const {
    return rapt::classify(mask(), b, h, q, kv);
  }
  PositionRange visible_range(index_t b, index_t h, index_t q) const {
    return mask().visible_range(b, h, q);
  }
};
static_assert(RangeMask<Window> && !RangeMask<AnyMask>);

using Args = AttentionArgs<Element, Cpu>;

}  // namespace
}  // namespace rapt::test

namespace rapt {

template <>
void BackendTraits<Cpu>::attention_forward(Cpu, const test::Args& args, const test::AnyMask& mask,
                                           const Identity& score) {
  test::forward(args, mask, score);
}
template <>
void BackendTraits<Cpu>::attention_forward(Cpu, const test::Args& args, const test::AnyMask& mask,
                                           const SoftCap& score) {
  test::forward(args, mask, score);
}
template <>
void BackendTraits<Cpu>::attention_forward(Cpu, const test::Args& args, const test::Window& mask,
                                           const Identity& score) {
  test::forward(args, mask, score);
}

}  // namespace rapt

namespace rapt::test {
namespace {

using Options = AttentionOptions<Tensor<Element, 4>>;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct AttentionProducts : testing::TestWithParam<Through> {
  void SetUp() override { through = GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Of, AttentionProducts, testing::ValuesIn(through_all()),
                         [](const auto& test) { return name_of(test.param); });

TEST_P(AttentionProducts, MatchesTheOracleAtEveryHeadDim) {
  at_every_head_dim([](const Sizes& sizes, unsigned seed) {
    const Problem<Element> p(sizes, seed);
    expect_matches_oracle(p, AnyMask{Causal{}});
    expect_matches_oracle(p, AnyMask{Full{}});
    expect_matches_oracle(p, Window{20}, Identity{}, {}, true);
  });
}

TEST_P(AttentionProducts, MatchesTheOracleAtEveryLength) {
  const index_t lengths[] = {0, 1, 15, 16, 17, 32, 63, 64, 65, 127, 128, 129, 200};
  unsigned seed = 0;
  for (const index_t q_len : lengths)
    for (const index_t kv_len : lengths) {
      const Sizes sizes{
          .q_len = q_len, .kv_len = kv_len, .heads = 2, .kv_heads = 1, .head_dim = 24};
      SCOPED_TRACE(testing::Message() << sizes);
      const Problem<Element> p(sizes, ++seed);
      expect_matches_oracle(p, Window{1000});
      expect_matches_oracle(p, AnyMask{Full{}});
      if (HasFatalFailure()) return;
    }
}

TEST_P(AttentionProducts, LongSequencesAndSplits) {
  for (const auto& [q_len, kv_len] :
       {std::pair<index_t, index_t>{700, 700}, {40, 4500}, {500, 100}}) {
    const Sizes sizes{.q_len = q_len, .kv_len = kv_len, .heads = 3, .kv_heads = 1, .head_dim = 32};
    SCOPED_TRACE(testing::Message() << sizes);
    expect_matches_oracle(Problem<Element>(sizes), Window{10000});
  }
}

TEST_P(AttentionProducts, EveryMaskAndScore) {
  for (const auto& [q_len, kv_len] : {std::pair<index_t, index_t>{150, 150}, {70, 203}, {90, 40}}) {
    const Sizes sizes{.batch = 2,
                      .q_len = q_len,
                      .kv_len = kv_len,
                      .heads = 4,
                      .kv_heads = 2,
                      .head_dim = 40,
                      .value_dim = 24};
    SCOPED_TRACE(testing::Message() << sizes);
    const Problem<Element> p(sizes);
    const auto prefix = list({50, 7});
    const auto map = integers(Shape<4>{2, 1, q_len, kv_len}, 4, 0, 1);
    const auto odd = [](index_t, index_t h, index_t q, index_t kv) {
      return (h + q + kv) % 3 == 1;
    };
    const AnyMask masks[] = {Causal{},
                             SlidingWindow{9},
                             Causal{} & (SlidingWindow{7} | SinkTokens{4}),
                             ChunkedLocal{33},
                             PrefixLm{prefix},
                             DenseMask<>{map},
                             ~SlidingWindow{30},
                             odd};
    for (const AnyMask& mask : masks) {
      expect_matches_oracle(p, mask);
      expect_matches_oracle(p, mask, SoftCap{2.0}, Options{.scale = -0.3f});
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(AttentionProducts, SinksProbabilitiesAndScales) {
  const Problem<Element> p({.batch = 3,
                            .q_len = 40,
                            .kv_len = 150,
                            .heads = 4,
                            .kv_heads = 2,
                            .head_dim = 20,
                            .value_dim = 7});
  auto sinks = normal<Element>(Shape<1>{4}, 7);
  sinks(0) = Element(-kInf);
  const auto lengths = list({150, 77, 1});
  for (const float scale : {0.25f, -0.5f}) {
    expect_matches_oracle(p, AnyMask{Causal{}}, Identity{},
                          Options{.scale = scale, .sink_logits = sinks}, true);
    expect_matches_oracle(p, Window{3}, Identity{}, Options{.scale = scale, .kv_lengths = lengths},
                          true);
  }
}

TEST_P(AttentionProducts, PackedSequencesPagesAndPositions) {
  const auto cu_q = list({0, 3, 3, 64, 65, 165});
  const auto cu_k = list({0, 9, 20, 70, 72, 180});
  const Problem<Element> packed(
      {.q_len = 165, .kv_len = 180, .heads = 6, .kv_heads = 2, .head_dim = 12});
  expect_matches_oracle(packed, AnyMask{Causal{}}, Identity{},
                        Options{.cu_seqlens_q = cu_q, .cu_seqlens_k = cu_k}, true);

  const auto k = normal<Element>(Shape<4>{20, 16, 2, 24}, 2);
  const auto q = normal<Element>(Shape<4>{2, 40, 4, 24}, 3);
  const auto table = integers(Shape<2>{2, 9}, 4, 0, 19);
  const auto lengths = list({141, 50});
  expect_matches_oracle(q, k, k, AnyMask{Causal{}}, Identity{},
                        Options{.kv_lengths = lengths, .block_table = table});

  const Problem<Element> ring(
      {.batch = 1, .q_len = 20, .kv_len = 64, .heads = 4, .kv_heads = 2, .head_dim = 16});
  Tensor<std::int32_t, 2> q_positions({1, 20}), kv_positions({1, 64});
  for (index_t i = 0; i < 20; ++i) q_positions(0, i) = static_cast<std::int32_t>(144 + i);
  for (index_t j = 0; j < 64; ++j)
    kv_positions(0, j) = static_cast<std::int32_t>(j < 9 ? -1 : 100 + (j + 28) % 64);
  expect_matches_oracle(ring, Window{30}, Identity{},
                        Options{.q_positions = q_positions, .kv_positions = kv_positions});
}

TEST_P(AttentionProducts, HiddenValuesAreNeverMultiplied) {
  const index_t dim = 20;
  for (const index_t bad : {0, 75, 140, 149}) {
    Problem<Element> p({.q_len = 150, .kv_len = 150, .heads = 2, .kv_heads = 1, .head_dim = dim});
    for (index_t t = 0; t < dim; ++t) {
      p.v(0, bad, 0, t) = Element(t % 2 == 0 ? kNaN : kInf);
      p.k(0, bad, 0, t) = Element(kNaN);
    }
    const auto clean = [&](auto mask) {
      Tensor<Element, 4> out({1, 150, 2, dim});
      attention(out, p.q, p.k, p.v, mask);
      for (index_t i = 0; i < 150; ++i)
        for (index_t h = 0; h < 2 && !mask(0, h, i, bad); ++h)
          for (index_t t = 0; t < dim; ++t)
            ASSERT_TRUE(std::isfinite(float(out(0, i, h, t)))) << bad << " " << i << " " << t;
      Tensor<Element, 4> few({1, 3, 2, dim});  // the last three rows, as in decoding
      const auto last = p.q.slice(1, 147, 150);
      attention(few, last, p.k, p.v, mask);
      for (index_t i = 0; i < 3; ++i)
        for (index_t h = 0; h < 2 && !mask(0, h, 147 + i, bad); ++h)
          for (index_t t = 0; t < dim; ++t)
            ASSERT_TRUE(std::isfinite(float(few(0, i, h, t)))) << bad << " " << i << " " << t;
    };
    clean(AnyMask{Causal{}});
    clean(Window{8});
    clean(
        AnyMask{[=](index_t, index_t, index_t q, index_t kv) { return kv != bad || q % 2 == 0; }});
  }
}

TEST_P(AttentionProducts, InfiniteValuesStayWhatTheyAre) {
  for (const index_t q_len : {3, 5, 20}) {  // by vectors, a few rows in registers, and in tiles
    Problem<Element> p({.q_len = q_len, .kv_len = 7, .heads = 1, .kv_heads = 1, .head_dim = 16});
    p.v(0, 3, 0, 1) = Element(kInf);
    p.v(0, 5, 0, 2) = Element(-kInf);
    p.v(0, 6, 0, 4) = Element(kNaN);
    expect_matches_oracle(p, AnyMask{Full{}});
    expect_matches_oracle(p, AnyMask{Causal{}});
  }
}

// Weights from 1 down to what is no longer a number. Scores of up to 200 are rounded that much more
// coarsely: multiply-adds of fp32 need 8 times the usual tolerance here, parts 4 times; what is
// rounded to 16 bits in the end needs the usual one.
TEST_P(AttentionProducts, LargeScores) {
  const Problem<Element> p({.q_len = 70, .kv_len = 200, .heads = 2, .kv_heads = 1, .head_dim = 64});
  for (const float scale : {2.f, 5.f, -5.f})  // scores of up to 80 and 200
    for (const bool whole : {false, true})
      expect_matches_oracle(p.q, p.k, p.v, whole ? AnyMask{Full{}} : AnyMask{Causal{}}, Identity{},
                            Options{.scale = scale}, false, std::is_same_v<Element, float> ? 8 : 1);
}

TEST_P(AttentionProducts, ThreadsNeverChangeAResult) {
  const int before = num_threads();
  const Problem<Element> p(
      {.q_len = 400, .kv_len = 400, .heads = 4, .kv_heads = 2, .head_dim = 40});
  Tensor<Element, 4> first(p.q.shape());
  for (const int threads : {1, 2, 3, 7}) {
    set_num_threads(threads);
    Tensor<Element, 4> got(p.q.shape());
    attention(threads == 1 ? first : got, p.q, p.k, p.v, Window{300});
    if (threads > 1) {
      EXPECT_EQ(std::memcmp(got.data(), first.data(), first.bytes()), 0) << threads;
    }
  }
  set_num_threads(before);
}

}  // namespace
}  // namespace rapt::test
