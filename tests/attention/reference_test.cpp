// The oracle against numbers worked out elsewhere, its edge cases, and what must hold of any
// attention. Expected numbers: cases A to G and M of the specification of dense attention, computed
// in fp64.
#include "rapt/attention/reference.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "rapt/core/random.hpp"

namespace rapt::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// value(i) = (((7 i + 5 s) mod 13) - 6) / 6 in the order [heads, seq, dim], as [1, seq, heads,
/// dim].
Tensor<double, 4> fixture(index_t s, index_t heads, index_t seq, index_t dim) {
  Tensor<double, 4> out({1, seq, heads, dim});
  for (index_t h = 0; h < heads; ++h)
    for (index_t i = 0; i < seq; ++i)
      for (index_t t = 0; t < dim; ++t)
        out(0, i, h, t) = static_cast<double>((7 * ((h * seq + i) * dim + t) + 5 * s) % 13 - 6) / 6;
  return out;
}

Tensor<double, 4> normal(Shape<4> shape, std::uint64_t seed) {
  Tensor<double, 4> out(shape);
  Philox random(seed);
  fill_normal(out, random);
  return out;
}

void expect_equal(TensorView<const double, 4> got, TensorView<const double, 4> want,
                  double tolerance = 1e-13) {
  ASSERT_EQ(got.shape(), want.shape());
  for (index_t b = 0; b < got.extent(0); ++b)
    for (index_t i = 0; i < got.extent(1); ++i)
      for (index_t h = 0; h < got.extent(2); ++h)
        for (index_t e = 0; e < got.extent(3); ++e)
          ASSERT_NEAR(got(b, i, h, e), want(b, i, h, e), tolerance)
              << "at [" << b << ", " << i << ", " << h << ", " << e << "]";
}

double sum(const Tensor<double, 4>& t) {
  double total = 0;
  for (index_t n = 0; n < t.size(); ++n) total += t.data()[n];
  return total;
}

/// Results of one call in fp64.
struct Result {
  Tensor<double, 4> out, probabilities;
  Tensor<double, 3> logsumexp, logsumexp_with_sink;
};

template <class Mask = Causal, class Score = Identity>
Result attend(const Tensor<double, 4>& q, const Tensor<double, 4>& k, const Tensor<double, 4>& v,
              Mask mask = {}, Score score = {}, AttentionOptions<Tensor<double, 4>> options = {}) {
  const index_t batch = q.extent(0), q_len = q.extent(1), heads = q.extent(2);
  Result r{Tensor<double, 4>({batch, q_len, heads, v.extent(3)}),
           Tensor<double, 4>({batch, heads, q_len, k.extent(1)}),
           Tensor<double, 3>({batch, heads, q_len}), Tensor<double, 3>({batch, heads, q_len})};
  options.logsumexp = r.logsumexp;
  options.logsumexp_with_sink = r.logsumexp_with_sink;
  if (!options.block_table) options.probabilities = r.probabilities;
  reference_attention(r.out, q, k, v, mask, score, options);
  return r;
}

TEST(Reference, CaseAThreeTokensByHand) {
  const auto q = fixture(1, 1, 3, 2), k = fixture(2, 1, 3, 2), v = fixture(3, 1, 3, 2);
  const Result r = attend(q, k, v);
  const double out[3][2] = {{-0.666667, 0.5}, {-0.588238, 0.578429}, {-0.508721, 0.657946}};
  const double lse[3] = {-0.314270, 0.871659, 1.297087};
  const double p[3][3] = {{1, 0, 0}, {0.529429, 0.470571, 0}, {0.359838, 0.332649, 0.307514}};
  for (index_t i = 0; i < 3; ++i) {
    for (index_t e = 0; e < 2; ++e) EXPECT_NEAR(r.out(0, i, 0, e), out[i][e], 1e-6);
    for (index_t j = 0; j < 3; ++j) EXPECT_NEAR(r.probabilities(0, 0, i, j), p[i][j], 1e-6);
    EXPECT_NEAR(r.logsumexp(0, 0, i), lse[i], 1e-6);
    EXPECT_EQ(r.logsumexp(0, 0, i), r.logsumexp_with_sink(0, 0, i));
  }
}

TEST(Reference, CaseA2FewerQueriesThanKeysAreAlignedAtTheEnd) {
  const auto q = fixture(1, 1, 3, 2), k = fixture(2, 1, 3, 2), v = fixture(3, 1, 3, 2);
  const Result all = attend(q, k, v);
  Tensor<double, 4> last({1, 2, 1, 2}), out({1, 2, 1, 2});
  for (index_t i = 0; i < 2; ++i)
    for (index_t t = 0; t < 2; ++t) last(0, i, 0, t) = q(0, i + 1, 0, t);
  reference_attention(out, last, k, v);
  expect_equal(out, all.out.view().slice(1, 1, 3), 0);
  // A strided view is as good as a copy.
  Tensor<double, 4> again({1, 2, 1, 2});
  reference_attention(again, q.view().slice(1, 1, 3), k, v);
  expect_equal(again, out, 0);
}

/// Four heads on two, five tokens: the fixture of cases B to G and M.
struct Grouped {
  Tensor<double, 4> q = fixture(1, 4, 5, 4), k = fixture(2, 2, 5, 4), v = fixture(3, 2, 5, 4);
};

void expect_case(const Result& r, const Tensor<double, 3>& lse, const double (&head0_row4)[4],
                 const double (&lse_row4)[4], double total) {
  for (index_t e = 0; e < 4; ++e) EXPECT_NEAR(r.out(0, 4, 0, e), head0_row4[e], 1e-6);
  for (index_t h = 0; h < 4; ++h) EXPECT_NEAR(lse(0, h, 4), lse_row4[h], 1e-6);
  EXPECT_NEAR(sum(r.out), total, 1e-6);
}

TEST(Reference, CaseBGroupedQueryCausal) {
  const Grouped c;
  const Result r = attend(c.q, c.k, c.v, Causal{}, Identity{}, {.scale = 0.5});
  expect_case(r, r.logsumexp, {0.097502, -0.424200, 0.264169, -0.257533},
              {1.864835, 1.570212, 1.806584, 1.691995}, 0.698006);
  const double head3[4] = {-0.060125, 0.116407, -0.084567, -0.356737};
  for (index_t e = 0; e < 4; ++e) EXPECT_NEAR(r.out(0, 4, 3, e), head3[e], 1e-6);
}

TEST(Reference, CaseCWindowOfTwo) {
  const Grouped c;
  const Result r = attend(c.q, c.k, c.v, Causal{} & SlidingWindow{2});
  expect_case(r, r.logsumexp, {0.452722, -0.547278, 0.619389, -0.380611},
              {1.026759, 0.395642, 0.210504, 1.282641}, -0.990064);
}

TEST(Reference, CaseDWindowAndOneEarlyToken) {
  const Grouped c;
  const Result r = attend(c.q, c.k, c.v, Causal{} & (SlidingWindow{2} | SinkTokens{1}));
  expect_case(r, r.logsumexp, {0.288808, -0.393924, 0.455475, -0.227257},
              {1.185088, 1.217791, 1.140610, 1.407352}, 0.468822);
}

TEST(Reference, CaseELearnedSinkLogits) {
  const Grouped c;
  Tensor<double, 1> sinks({4});
  sinks(0) = 0.5, sinks(1) = -1, sinks(2) = 0, sinks(3) = 1;
  const Result r = attend(c.q, c.k, c.v, Causal{}, Identity{}, {.sink_logits = sinks});
  expect_case(r, r.logsumexp_with_sink, {0.077665, -0.337894, 0.210422, -0.205136},
              {2.092308, 1.643945, 1.958630, 2.097845}, 0.534340);
  // The sink can also be applied afterwards: out0 sigmoid(L0 - s), logaddexp(L0, s).
  const Result plain = attend(c.q, c.k, c.v);
  for (index_t h = 0; h < 4; ++h)
    for (index_t i = 0; i < 5; ++i) {
      const double l0 = plain.logsumexp(0, h, i), s = sinks(h);
      EXPECT_NEAR(r.logsumexp(0, h, i), l0, 1e-14);
      double row = 0;
      for (index_t j = 0; j < 5; ++j) row += r.probabilities(0, h, i, j);
      EXPECT_NEAR(row, 1 - std::exp(s - r.logsumexp_with_sink(0, h, i)), 1e-14);
      for (index_t e = 0; e < 4; ++e)
        EXPECT_NEAR(r.out(0, i, h, e), plain.out(0, i, h, e) / (1 + std::exp(s - l0)), 1e-14);
    }
}

TEST(Reference, CaseFSoftCap) {
  const Grouped c;
  const Result r = attend(c.q, c.k, c.v, Causal{}, SoftCap{0.5});
  expect_case(r, r.logsumexp, {0.075579, -0.320244, 0.242245, -0.153577},
              {1.736906, 1.537466, 1.736076, 1.626664}, 0.709675);
}

TEST(Reference, CaseGAlibi) {
  const Grouped c;
  const auto slopes = alibi_slopes<double>(4);
  const Result r = attend(c.q, c.k, c.v, Causal{}, Alibi{slopes});
  expect_case(r, r.logsumexp, {0.197771, -0.493746, 0.364438, -0.327080},
              {1.476143, 1.419503, 1.766318, 1.687111}, 0.646761);
}

TEST(Reference, CaseMSplitKeysMergeByLogsumexp) {
  const Grouped c;
  const Result whole = attend(c.q, c.k, c.v);
  const auto q = c.q.view().slice(1, 4, 5);
  Tensor<double, 4> out1({1, 1, 4, 4}), out2({1, 1, 4, 4});
  Tensor<double, 3> lse1({1, 4, 1}), lse2({1, 4, 1});
  reference_attention(out1, q, c.k.view().slice(1, 0, 2), c.v.view().slice(1, 0, 2), Full{},
                      Identity{}, {.logsumexp = lse1});
  reference_attention(out2, q, c.k.view().slice(1, 2, 5), c.v.view().slice(1, 2, 5), Full{},
                      Identity{}, {.logsumexp = lse2});
  const double part1[4] = {-0.445379, 0.721288, -0.278712, 0.887954};
  const double part2[4] = {0.251295, -0.748705, 0.417962, -0.582038};
  EXPECT_NEAR(lse1(0, 0, 0), 0.354124, 1e-6);
  EXPECT_NEAR(lse2(0, 0, 0), 1.615408, 1e-6);
  for (index_t e = 0; e < 4; ++e) {
    EXPECT_NEAR(out1(0, 0, 0, e), part1[e], 1e-6);
    EXPECT_NEAR(out2(0, 0, 0, e), part2[e], 1e-6);
    for (index_t h = 0; h < 4; ++h) {
      const double w1 = std::exp(lse1(0, h, 0)), w2 = std::exp(lse2(0, h, 0));
      EXPECT_NEAR((w1 * out1(0, 0, h, e) + w2 * out2(0, 0, h, e)) / (w1 + w2),
                  whole.out(0, 4, h, e), 1e-15);
    }
  }
}

// ---- edge cases ----

TEST(Reference, QueryThatSeesNoKeyGivesZerosAndMinusInfinity) {
  const auto q = normal({1, 5, 2, 3}, 1), k = normal({1, 3, 1, 3}, 2), v = normal({1, 3, 1, 4}, 3);
  const Result r = attend(q, k, v);  // queries stand at -2 ... 2
  for (index_t h = 0; h < 2; ++h)
    for (index_t i = 0; i < 2; ++i) {
      EXPECT_EQ(r.logsumexp(0, h, i), -kInfinity);
      for (index_t e = 0; e < 4; ++e) EXPECT_EQ(r.out(0, i, h, e), 0);
    }
  Tensor<double, 1> sinks({2});
  sinks(0) = 0.25, sinks(1) = -kInfinity;
  const Result s = attend(q, k, v, Causal{}, Identity{}, {.sink_logits = sinks});
  EXPECT_EQ(s.logsumexp_with_sink(0, 0, 0), 0.25);
  EXPECT_EQ(s.logsumexp_with_sink(0, 1, 0), -kInfinity);
  EXPECT_EQ(s.logsumexp(0, 0, 0), -kInfinity);
  EXPECT_EQ(s.out(0, 0, 0, 0), 0);
  for (index_t e = 0; e < 4; ++e)
    EXPECT_EQ(s.out(0, 4, 1, e), r.out(0, 4, 1, e));  // sink -inf: none
  sinks(0) = -1000;  // exp(-sink) is infinite, and multiplies nothing
  const Result low = attend(q, k, v, Causal{}, Identity{}, {.sink_logits = sinks});
  EXPECT_EQ(low.logsumexp_with_sink(0, 0, 0), -1000);
  EXPECT_EQ(low.out(0, 0, 0, 0), 0);
}

TEST(Reference, NoKeysAtAll) {
  const auto q = normal({1, 2, 1, 3}, 1);
  const Tensor<double, 4> k({1, 0, 1, 3}), v({1, 0, 1, 2});
  const Result r = attend(q, k, v, Full{});
  EXPECT_EQ(r.out(0, 1, 0, 1), 0);
  EXPECT_EQ(r.logsumexp(0, 0, 1), -kInfinity);
}

TEST(Reference, MaskedKeysAreNeverRead) {
  const auto q = normal({1, 4, 2, 3}, 1);
  auto k = normal({1, 6, 2, 3}, 2), v = normal({1, 6, 2, 4}, 3);
  const Result clean = attend(q, k, v, Causal{} & SlidingWindow{2});
  for (index_t e = 0; e < 3; ++e) k(0, 0, 1, e) = kNaN;
  for (index_t e = 0; e < 4; ++e) v(0, 0, 1, e) = kNaN;
  expect_equal(attend(q, k, v, Causal{} & SlidingWindow{2}).out, clean.out, 0);
}

TEST(Reference, HugeScoresStayFinite) {
  auto q = normal({1, 3, 1, 4}, 1), k = normal({1, 3, 1, 4}, 2), v = normal({1, 3, 1, 2}, 3);
  for (index_t n = 0; n < q.size(); ++n) q.data()[n] *= 1e5;
  const Result r = attend(q, k, v);
  for (index_t i = 0; i < 3; ++i) EXPECT_TRUE(std::isfinite(r.out(0, i, 0, 0)));
  Tensor<double, 1> sinks({1});
  sinks(0) = 1e9;  // far above every score: L0 must not underflow to log 0
  const Result s = attend(q, k, v, Causal{}, Identity{}, {.sink_logits = sinks});
  EXPECT_NEAR(s.logsumexp(0, 0, 2), r.logsumexp(0, 0, 2), 1e-9);
  EXPECT_EQ(s.logsumexp_with_sink(0, 0, 2), 1e9);
  EXPECT_EQ(s.out(0, 2, 0, 0), 0);
}

TEST(Reference, WindowOfOneGivesTheValuesThemselves) {
  const auto q = normal({2, 4, 2, 3}, 1), k = normal({2, 4, 2, 3}, 2), v = normal({2, 4, 2, 5}, 3);
  expect_equal(attend(q, k, v, Causal{} & SlidingWindow{1}).out, v);
}

// ---- what must hold of any attention ----

TEST(Reference, GroupedHeadsEqualExpandedOnes) {
  const auto q = normal({2, 5, 6, 3}, 1), k = normal({2, 7, 2, 3}, 2), v = normal({2, 7, 2, 4}, 3);
  Tensor<double, 4> k6({2, 7, 6, 3}), v6({2, 7, 6, 4});
  for (index_t b = 0; b < 2; ++b)
    for (index_t j = 0; j < 7; ++j)
      for (index_t h = 0; h < 6; ++h) {
        for (index_t t = 0; t < 3; ++t) k6(b, j, h, t) = k(b, j, h / 3, t);
        for (index_t e = 0; e < 4; ++e) v6(b, j, h, e) = v(b, j, h / 3, e);
      }
  expect_equal(attend(q, k, v).out, attend(q, k6, v6).out, 0);
}

TEST(Reference, WideWindowsAndManyEarlyTokensAreCausal) {
  const auto q = normal({1, 5, 2, 3}, 1), k = normal({1, 7, 1, 3}, 2), v = normal({1, 7, 1, 3}, 3);
  const auto causal = attend(q, k, v).out;
  constexpr index_t kHuge = std::numeric_limits<index_t>::max();
  expect_equal(attend(q, k, v, Causal{} & SlidingWindow{7}).out, causal, 0);
  expect_equal(attend(q, k, v, Causal{} & SlidingWindow{kHuge}).out, causal, 0);
  expect_equal(attend(q, k, v, Causal{} & (SlidingWindow{3} | SinkTokens{4})).out, causal, 0);
  expect_equal(attend(q, k, v, Causal{} & (SlidingWindow{3} | SinkTokens{0})).out,
               attend(q, k, v, Causal{} & SlidingWindow{3}).out, 0);
  expect_equal(attend(q, k, v, Causal{}, SoftCap{1e6}).out, causal, 1e-10);
  Tensor<std::int32_t, 4> ones({1, 1, 3, 4});
  for (index_t n = 0; n < ones.size(); ++n) ones.data()[n] = 1;
  expect_equal(attend(q, k, v, Causal{} & BlockSparse{ones, 2}).out, causal, 0);
}

TEST(Reference, ConstantOnEveryScoreMovesOnlyTheLogsumexp) {
  const auto q = normal({1, 4, 2, 3}, 1), k = normal({1, 4, 1, 3}, 2), v = normal({1, 4, 1, 3}, 3);
  const Result plain = attend(q, k, v);
  const Result moved = attend(q, k, v, Causal{}, [](auto s, auto...) { return s + 3; });
  expect_equal(moved.out, plain.out);
  for (index_t i = 0; i < 4; ++i)
    EXPECT_NEAR(moved.logsumexp(0, 1, i), plain.logsumexp(0, 1, i) + 3, 1e-13);
}

TEST(Reference, EqualKeysGiveTheMeanOfTheValues) {
  const auto q = normal({1, 4, 1, 3}, 1), v = normal({1, 4, 1, 2}, 3);
  const Tensor<double, 4> k({1, 4, 1, 3});
  const Result r = attend(q, k, v);
  for (index_t i = 0; i < 4; ++i) {
    double mean = 0;
    for (index_t j = 0; j <= i; ++j) mean += v(0, j, 0, 1) / static_cast<double>(i + 1);
    EXPECT_NEAR(r.out(0, i, 0, 1), mean, 1e-14);
    EXPECT_NEAR(r.logsumexp(0, 0, i), std::log(static_cast<double>(i + 1)), 1e-14);
  }
}

TEST(Reference, RaggedBatchEqualsEachSequenceAlone) {
  const std::vector<std::int32_t> cu_q = {0, 3, 3, 7}, cu_k = {0, 5, 6, 10};
  const auto q = normal({1, 7, 2, 3}, 1), k = normal({1, 10, 1, 3}, 2),
             v = normal({1, 10, 1, 4}, 3);
  const Result packed = attend(q, k, v, Causal{} & SlidingWindow{3}, Identity{},
                               {.cu_seqlens_q = std::span(cu_q), .cu_seqlens_k = std::span(cu_k)});
  for (std::size_t n = 0; n < 3; ++n) {
    Tensor<double, 4> out({1, cu_q[n + 1] - cu_q[n], 2, 4});
    reference_attention(out, q.view().slice(1, cu_q[n], cu_q[n + 1]),
                        k.view().slice(1, cu_k[n], cu_k[n + 1]),
                        v.view().slice(1, cu_k[n], cu_k[n + 1]), Causal{} & SlidingWindow{3});
    expect_equal(packed.out.view().slice(1, cu_q[n], cu_q[n + 1]), out, 0);
  }
  EXPECT_EQ(packed.probabilities(0, 0, 4, 5), 0);  // a key of another sequence
}

TEST(Reference, KeyLengthsPerRowAlignEachRowsEnd) {
  const std::vector<std::int32_t> lengths = {6, 4, 0};
  const auto q = normal({3, 2, 2, 3}, 1);
  auto k = normal({3, 6, 1, 3}, 2), v = normal({3, 6, 1, 4}, 3);
  k(1, 5, 0, 0) = v(1, 4, 0, 0) = kNaN;
  const Result r = attend(q, k, v, Causal{}, Identity{}, {.kv_lengths = std::span(lengths)});
  for (index_t b = 0; b < 3; ++b) {
    Tensor<double, 4> out({1, 2, 2, 4});
    const index_t n = lengths[static_cast<std::size_t>(b)];
    reference_attention(out, q.view().slice(0, b, b + 1),
                        k.view().slice(0, b, b + 1).slice(1, 0, n),
                        v.view().slice(0, b, b + 1).slice(1, 0, n));
    expect_equal(r.out.view().slice(0, b, b + 1), out, 0);
  }
}

TEST(Reference, PagedKeysEqualContiguousOnes) {
  const std::vector<std::int32_t> lengths = {7, 3};
  const auto q = normal({2, 2, 2, 3}, 1), k = normal({2, 8, 1, 3}, 2), v = normal({2, 8, 1, 4}, 3);
  Tensor<std::int32_t, 2> table({2, 4});
  Tensor<double, 4> k_pool({9, 2, 1, 3}), v_pool({9, 2, 1, 4});
  for (index_t b = 0; b < 2; ++b)
    for (index_t page = 0; page < 4; ++page) {
      table(b, page) = static_cast<std::int32_t>((5 * (4 * b + page) + 3) % 9);
      for (index_t slot = 0; slot < 2; ++slot) {
        for (index_t t = 0; t < 3; ++t)
          k_pool(table(b, page), slot, 0, t) = k(b, 2 * page + slot, 0, t);
        for (index_t e = 0; e < 4; ++e)
          v_pool(table(b, page), slot, 0, e) = v(b, 2 * page + slot, 0, e);
      }
    }
  const auto plain = attend(q, k, v, Causal{}, Identity{}, {.kv_lengths = std::span(lengths)});
  const auto paged = attend(q, k_pool, v_pool, Causal{}, Identity{},
                            {.kv_lengths = std::span(lengths), .block_table = table});
  expect_equal(paged.out, plain.out, 0);
  // The same two sequences, their queries packed.
  const std::vector<std::int32_t> cu_q = {0, 2, 4};
  const auto packed = attend(
      normal({1, 4, 2, 3}, 1), k_pool, v_pool, Causal{}, Identity{},
      {.kv_lengths = std::span(lengths), .cu_seqlens_q = std::span(cu_q), .block_table = table});
  expect_equal(packed.out, plain.out.view().reshape(Shape{1, 4, 2, 4}), 0);
}

TEST(Reference, ExplicitPositionsMakeAnyOrderOfKeysTheSame) {
  const auto q = normal({1, 3, 2, 3}, 1), k = normal({1, 6, 1, 3}, 2), v = normal({1, 6, 1, 4}, 3);
  const auto slopes = alibi_slopes<double>(2);
  const auto plain = attend(q, k, v, Causal{} & SlidingWindow{4}, Alibi{slopes});
  // A ring of eight slots: key j lies in slot (3 j + 2) mod 8, two slots are empty.
  Tensor<double, 4> k_ring({1, 8, 1, 3}), v_ring({1, 8, 1, 4});
  Tensor<std::int32_t, 2> q_positions({1, 3}), kv_positions({1, 8});
  for (index_t slot = 0; slot < 8; ++slot) kv_positions(0, slot) = -1, v_ring(0, slot, 0, 0) = kNaN;
  for (index_t j = 0; j < 6; ++j) {
    const index_t slot = (3 * j + 2) % 8;
    kv_positions(0, slot) = static_cast<std::int32_t>(j);
    for (index_t t = 0; t < 3; ++t) k_ring(0, slot, 0, t) = k(0, j, 0, t);
    for (index_t e = 0; e < 4; ++e) v_ring(0, slot, 0, e) = v(0, j, 0, e);
  }
  for (index_t i = 0; i < 3; ++i) q_positions(0, i) = static_cast<std::int32_t>(3 + i);
  const auto ring = attend(q, k_ring, v_ring, Causal{} & SlidingWindow{4}, Alibi{slopes},
                           {.q_positions = q_positions, .kv_positions = kv_positions});
  expect_equal(ring.out, plain.out);
}

TEST(Reference, TablesAreReadByTheRowOfTheCall) {
  const auto q = normal({1, 2, 1, 3}, 1), k = normal({1, 5, 1, 3}, 2), v = normal({1, 5, 1, 2}, 3);
  Tensor<bool, 4> only({1, 1, 2, 5});
  only(0, 0, 0, 4) = only(0, 0, 1, 2) = true;
  const auto r = attend(q, k, v, DenseMask{only});
  for (index_t e = 0; e < 2; ++e) {
    EXPECT_DOUBLE_EQ(r.out(0, 0, 0, e), v(0, 4, 0, e));
    EXPECT_DOUBLE_EQ(r.out(0, 1, 0, e), v(0, 2, 0, e));
  }
  Tensor<double, 4> bias({1, 1, 2, 5});
  for (index_t n = 0; n < bias.size(); ++n) bias.data()[n] = -kInfinity;
  bias(0, 0, 0, 4) = bias(0, 0, 1, 2) = 5;
  expect_equal(attend(q, k, v, Full{}, AdditiveBias{bias}).out, r.out);
}

TEST(Reference, AnyElementTypeAndAnyArithmetic) {
  const auto q = normal({1, 4, 2, 8}, 1), k = normal({1, 4, 1, 8}, 2), v = normal({1, 4, 1, 8}, 3);
  const auto exact = attend(q, k, v).out;
  const auto run = [&]<class T>(T, double tolerance) {
    const auto as = [](const Tensor<double, 4>& from) {
      Tensor<T, 4> to(from.shape());
      for (index_t n = 0; n < from.size(); ++n) to.data()[n] = convert<T>(from.data()[n]);
      return to;
    };
    Tensor<T, 4> out(exact.shape()), wide(exact.shape());
    const auto qt = as(q), kt = as(k), vt = as(v);
    reference_attention(out, qt, kt, vt);
    reference_attention<double>(wide, qt, kt, vt);
    for (index_t n = 0; n < exact.size(); ++n) {
      EXPECT_NEAR(convert<double>(out.data()[n]), exact.data()[n], tolerance);
      EXPECT_NEAR(convert<double>(wide.data()[n]), exact.data()[n], tolerance);
    }
  };
  run(float{}, 1e-6);
  run(half{}, 3e-3);
  run(bfloat16{}, 3e-2);
}

TEST(Reference, NamesTheWrongShape) {
  using testing::HasSubstr;
  using testing::ThrowsMessage;
  const Tensor<double, 4> q({1, 4, 4, 8}), k({1, 4, 2, 8}), v({1, 3, 2, 8}), k3({1, 4, 3, 8});
  Tensor<double, 4> out({1, 4, 4, 8});
  EXPECT_THAT(
      [&] { reference_attention(out, q, k, v); },
      ThrowsMessage<ShapeError>(HasSubstr(
          "v is [1, 3, 2, 8], expected [1, 4, 2, 8] = [batch, kv_len, kv_heads, value_dim]")));
  EXPECT_THAT(
      [&] { reference_attention(out, q, k3, k3); },
      ThrowsMessage<ShapeError>(HasSubstr("heads is 4, expected a multiple of 3 = kv_heads")));
  const std::vector<std::int32_t> lengths = {5};
  EXPECT_THAT(
      [&] {
        reference_attention(out, q, k, k, Causal{}, Identity{}, {.kv_lengths = std::span(lengths)});
      },
      ThrowsMessage<ValueError>(HasSubstr("kv_lengths[0] is 5, expected 0 to 4")));
}

}  // namespace
}  // namespace rapt::test
