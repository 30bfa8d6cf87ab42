// The gradient on dot products of bfloat16 pairs and in matrix registers, both in plain loops
// (support/bfloat16_pairs.hpp). Oracle: attention/reference_backward.hpp, with the tolerances of
// bfloat16 that every kernel meets.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "attention/any_mask.hpp"
#include "attention/backward_problem.hpp"
#include "rapt/core/parallel.hpp"
#include "support/bfloat16_pairs.hpp"

namespace rapt::test {
namespace {

bool through_tiles = false;  // which of them computes

using Args = AttentionBackwardArgs<bfloat16, Cpu>;
template <class Score>
void backward(const Args& args, const AnyMask& mask, const Score& score) {
  if (through_tiles)
    cpu::AttentionBackward<Args, AnyMask, Score, cpu::PairBackward<EmulatedTiles>>(args, mask,
                                                                                   score)
        .run();
  else
    cpu::AttentionBackward<Args, AnyMask, Score, cpu::PairBackward<cpu::DotTiles<>>>(args, mask,
                                                                                     score)
        .run();
}

}  // namespace
}  // namespace rapt::test

namespace rapt {

template <>
void BackendTraits<Cpu>::attention_backward(Cpu, const test::Args& args, const test::AnyMask& mask,
                                            const Identity& score) {
  test::backward(args, mask, score);
}
template <>
void BackendTraits<Cpu>::attention_backward(Cpu, const test::Args& args, const test::AnyMask& mask,
                                            const SoftCap& score) {
  test::backward(args, mask, score);
}

}  // namespace rapt

namespace rapt::test {
namespace {

using Options = AttentionBackwardOptions<Tensor<bfloat16, 4>>;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

struct BackwardBfloat16 : testing::TestWithParam<bool> {
  void SetUp() override { through_tiles = GetParam(); }
};
INSTANTIATE_TEST_SUITE_P(Of, BackwardBfloat16, testing::Bool(), [](const auto& test) {
  return std::string(test.param ? "MatrixRegisters" : "DotProducts");
});

TEST_P(BackwardBfloat16, MatchesTheOracleAtEveryHeadDim) {
  at_every_head_dim([](const Sizes& sizes, unsigned seed) {
    const Problem<bfloat16> p(sizes, seed);
    expect_backward_matches(p, AnyMask{Causal{}});
    expect_backward_matches(p, AnyMask{Full{}});
  });
}

TEST_P(BackwardBfloat16, MatchesTheOracleAtEveryLength) {
  const index_t lengths[] = {1, 2, 15, 16, 17, 33, 64, 65, 97, 130, 200};
  unsigned seed = 0;
  for (const index_t q_len : lengths)
    for (const index_t kv_len : lengths) {
      // Where a query sees few keys its gradient is a small difference, and the error that of the
      // rounded out, which every kernel reads.
      if (kv_len < 15) continue;
      const Sizes sizes{
          .q_len = q_len, .kv_len = kv_len, .heads = 3, .kv_heads = 1, .head_dim = 24};
      SCOPED_TRACE(testing::Message() << sizes);
      const Problem<bfloat16> p(sizes, ++seed);
      expect_backward_matches(p, AnyMask{Causal{}});
      expect_backward_matches(p, AnyMask{Full{}});
      if (HasFatalFailure()) return;
    }
}

TEST_P(BackwardBfloat16, EveryMaskAndScore) {
  for (const auto& [q_len, kv_len] : {std::pair<index_t, index_t>{150, 150}, {70, 203}, {90, 40}}) {
    const Sizes sizes{.batch = 2,
                      .q_len = q_len,
                      .kv_len = kv_len,
                      .heads = 4,
                      .kv_heads = 2,
                      .head_dim = 40,
                      .value_dim = 24};
    SCOPED_TRACE(testing::Message() << sizes);
    const Problem<bfloat16> p(sizes);
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
      expect_backward_matches(p, mask);
      expect_backward_matches(p, mask, SoftCap{2.0}, Options{.scale = -0.3f});
      if (HasFatalFailure()) return;
    }
  }
}

TEST_P(BackwardBfloat16, SinksAndGradientsOfTheLogsumexp) {
  const Problem<bfloat16> p({.batch = 3,
                             .q_len = 100,
                             .kv_len = 150,
                             .heads = 4,
                             .kv_heads = 2,
                             .head_dim = 20,
                             .value_dim = 7});
  auto sinks = normal<bfloat16>(Shape<1>{4}, 7);
  sinks(0) = bfloat16(-kInf);
  sinks(1) = bfloat16(30.f);
  const auto dlse = normal<float>(Shape<3>{3, 4, 100}, 8);
  const auto lengths = list({150, 77, 1});
  expect_backward_matches(p, AnyMask{Causal{}}, Identity{}, Options{.sink_logits = sinks});
  expect_backward_matches(p, AnyMask{Causal{}}, Identity{},
                          Options{.sink_logits = sinks, .kv_lengths = lengths, .dlogsumexp = dlse});
}

TEST_P(BackwardBfloat16, PackedSequences) {
  const auto cu_q = list({0, 3, 3, 64, 65, 165});
  const auto cu_k = list({0, 9, 20, 70, 72, 180});
  const Problem<bfloat16> p(
      {.q_len = 165, .kv_len = 180, .heads = 6, .kv_heads = 2, .head_dim = 12});
  expect_backward_matches(p, AnyMask{Causal{}}, Identity{},
                          Options{.cu_seqlens_q = cu_q, .cu_seqlens_k = cu_k});
}

TEST_P(BackwardBfloat16, WhatIsHiddenIsNeverMultiplied) {
  const index_t dim = 20, n = 150;
  const Problem<bfloat16> clean(
      {.q_len = n, .kv_len = n, .heads = 2, .kv_heads = 1, .head_dim = dim});
  for (const index_t bad : {0, 75, 149}) {
    Problem<bfloat16> p = clean;
    for (index_t t = 0; t < dim; ++t) {
      p.v(0, bad, 0, t) = bfloat16(t % 2 == 0 ? kNaN : kInf);
      p.k(0, bad, 0, t) = bfloat16(kNaN);
      for (index_t h = 0; h < 2; ++h) p.q(0, bad, h, t) = bfloat16(kInf);
    }
    // The bad key is seen by nobody, the bad query sees nothing.
    const AnyMask mask(
        [=](index_t, index_t, index_t q, index_t kv) { return kv <= q && kv != bad && q != bad; });
    const auto dout = normal<bfloat16>(p.q.shape(), 77);
    Gradients<bfloat16> got(p.q, p.k, p.v), want(p.q, p.k, p.v);
    run_backward(got, dout, p.q, p.k, p.v, mask, Identity{});
    run_backward(want, dout, clean.q, clean.k, clean.v, mask, Identity{});
    const Tolerance close = tolerance_of<bfloat16>();
    expect_gradient_close(got.dq, want.dq, close, "dq");
    expect_gradient_close(got.dk, want.dk, close, "dk");
    expect_gradient_close(got.dv, want.dv, close, "dv");
  }
}

TEST_P(BackwardBfloat16, ANaNTouchesOnlyThoseWhoSeeIt) {
  const index_t dim = 16, n = 100;
  const Problem<bfloat16> clean(
      {.q_len = n, .kv_len = n, .heads = 2, .kv_heads = 1, .head_dim = dim});
  Problem<bfloat16> p = clean;
  for (index_t t = 0; t < dim; ++t) p.k(0, 50, 0, t) = p.v(0, 50, 0, t) = bfloat16(kNaN);
  const AnyMask mask{Causal{} & SlidingWindow{20}};
  const auto dout = normal<bfloat16>(p.q.shape(), 77);
  Gradients<bfloat16> got(p.q, p.k, p.v), want(p.q, p.k, p.v);
  run_backward(got, dout, p.q, p.k, p.v, mask, Identity{});
  run_backward(want, dout, clean.q, clean.k, clean.v, mask, Identity{});
  const Tolerance close = tolerance_of<bfloat16>();
  for (const auto& [begin, end] : {std::pair<index_t, index_t>{0, 31}, {70, n}}) {
    expect_gradient_close(got.dk.slice(1, begin, end), want.dk.slice(1, begin, end), close, "dk");
    expect_gradient_close(got.dv.slice(1, begin, end), want.dv.slice(1, begin, end), close, "dv");
  }
  for (const auto& [begin, end] : {std::pair<index_t, index_t>{0, 50}, {70, n}})
    expect_gradient_close(got.dq.slice(1, begin, end), want.dq.slice(1, begin, end), close, "dq");
  for (index_t i = 50; i < 70; ++i) EXPECT_TRUE(std::isnan(float(got.dq(0, i, 1, 3)))) << i;
}

TEST_P(BackwardBfloat16, ThreadsNeverChangeAResult) {
  const int before = num_threads();
  const Problem<bfloat16> p(
      {.q_len = 2100, .kv_len = 300, .heads = 2, .kv_heads = 1, .head_dim = 40});
  const auto dout = normal<bfloat16>(p.q.shape(), 77);
  Gradients<bfloat16> first(p.q, p.k, p.v);
  for (const int threads : {1, 2, 3, 7}) {
    set_num_threads(threads);
    Gradients<bfloat16> got(p.q, p.k, p.v);
    run_backward(got, dout, p.q, p.k, p.v, AnyMask{Full{}}, Identity{});
    if (threads == 1) {
      first = got;
      continue;
    }
    EXPECT_EQ(std::memcmp(got.dq.data(), first.dq.data(), first.dq.bytes()), 0) << threads;
    EXPECT_EQ(std::memcmp(got.dk.data(), first.dk.data(), first.dk.bytes()), 0) << threads;
    EXPECT_EQ(std::memcmp(got.dv.data(), first.dv.data(), first.dv.bytes()), 0) << threads;
  }
  set_num_threads(before);
}

}  // namespace
}  // namespace rapt::test
