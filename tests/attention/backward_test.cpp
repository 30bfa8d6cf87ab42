// attention_backward() against the oracle: element types, sizes and options, and the worked cases
// of the specification.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "attention/backward_problem.hpp"

namespace rapt::test {
namespace {

template <class T>
struct Backward : testing::Test {};
using ElementTypes = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(Backward, ElementTypes);

TYPED_TEST(Backward, MatchesTheOracleOverSizes) {
  for (const Sizes& s :
       {Sizes{1, 1, 1, 1, 1, 1}, Sizes{2, 5, 5, 4, 2, 64}, Sizes{1, 64, 64, 2, 1, 16},
        Sizes{1, 65, 63, 2, 2, 33, 17}, Sizes{2, 49, 130, 6, 3, 40, 8}, Sizes{1, 130, 49, 4, 1, 8},
        Sizes{1, 97, 97, 3, 3, 128, 160}, Sizes{1, 70, 70, 16, 1, 20}, Sizes{0, 4, 4, 2, 1, 8},
        Sizes{1, 0, 4, 2, 1, 8}, Sizes{1, 4, 0, 2, 1, 8}, Sizes{1, 20, 20, 2, 1, 576, 512}}) {
    SCOPED_TRACE(testing::Message() << s);
    expect_backward_matches(Problem<TypeParam>(s));
  }
}

TEST(Backward, CutsLongCallsIntoParts) {
  const Problem<float> p({.q_len = 700, .kv_len = 760, .heads = 8, .kv_heads = 1, .head_dim = 8});
  expect_backward_matches(p);
  expect_backward_matches(p, Full{});
}

TEST(Backward, ManyHeadsOfAGroup) {
  expect_backward_matches(
      Problem<float>({.q_len = 60, .kv_len = 75, .heads = 40, .kv_heads = 1, .head_dim = 128}));
}

TEST(Backward, TakesAScale) {
  const Problem<float> p({.q_len = 30, .kv_len = 40, .heads = 2, .kv_heads = 1});
  for (const float scale : {0.02f, 1.f, -0.3f})
    expect_backward_matches(p, Causal{}, Identity{}, {.scale = scale});
}

TEST(Backward, TakesSinksAndGradientsOfLogsumexps) {
  const Problem<float> p({2, 50, 60, 4, 2, 16});
  const Shape<3> rows{2, 4, 50};
  const auto dlse = normal<float>(rows, 5), dlse_with_sink = normal<float>(rows, 6);
  expect_backward_matches(p, Causal{}, Identity{}, {.dlogsumexp = dlse});
  for (const float level : {-40.f, 0.f, 40.f}) {
    auto sinks = normal<float>(Shape<1>{4}, 9);
    for (index_t h = 0; h < 4; ++h) sinks(h) += level;
    sinks(3) = -std::numeric_limits<float>::infinity();
    SCOPED_TRACE(level);
    expect_backward_matches(p, Causal{}, Identity{}, {.sink_logits = sinks});
    expect_backward_matches(
        p, Causal{}, Identity{},
        {.sink_logits = sinks, .dlogsumexp = dlse, .dlogsumexp_with_sink = dlse_with_sink});
  }
}

TEST(Backward, ReadsALogsumexpWithSinkOrComputesIt) {
  const Problem<double> p({1, 20, 20, 2, 1, 8});
  const auto sinks = normal<double>(Shape<1>{2}, 9);
  const auto dout = normal<double>(p.q.shape(), 77);
  Tensor<double, 4> out(p.q.shape());
  Tensor<double, 3> lse({1, 2, 20}), with_sink({1, 2, 20});
  attention(out, p.q, p.k, p.v, Causal{}, Identity{},
            {.sink_logits = sinks, .logsumexp = lse, .logsumexp_with_sink = with_sink});
  Gradients<double> a(p.q, p.k, p.v), b(p.q, p.k, p.v);
  attention_backward(a.dq, a.dk, a.dv, dout, p.q, p.k, p.v, out, lse, Causal{}, Identity{},
                     {.sink_logits = sinks, .dsinks = a.dsinks});
  attention_backward(b.dq, b.dk, b.dv, dout, p.q, p.k, p.v, out, lse, Causal{}, Identity{},
                     {.sink_logits = sinks, .logsumexp_with_sink = with_sink, .dsinks = b.dsinks});
  expect_close(a.dq, b.dq, tolerance_of<double>(), "dq");
  expect_close(a.dsinks, b.dsinks, tolerance_of<double>(), "dsinks");
}

TEST(Backward, ParameterGradientsAreAddedTo) {
  const Problem<float> p({1, 20, 20, 2, 1, 8});
  const auto sinks = normal<float>(Shape<1>{2}, 9);
  const auto dout = normal<float>(p.q.shape(), 77);
  Gradients<float> once(p.q, p.k, p.v), twice(p.q, p.k, p.v);
  run_backward(once, dout, p.q, p.k, p.v, Causal{}, Identity{}, {.sink_logits = sinks});
  for (int n = 0; n < 2; ++n)
    run_backward(twice, dout, p.q, p.k, p.v, Causal{}, Identity{}, {.sink_logits = sinks});
  for (index_t h = 0; h < 2; ++h) EXPECT_FLOAT_EQ(twice.dsinks(h), 2 * once.dsinks(h));
}

TEST(Backward, TakesLengthsOfEachRow) {
  const Problem<float> p({4, 9, 150, 4, 2, 16});
  const auto lengths = list({150, 1, 0, 70});
  expect_backward_matches(p, Causal{}, Identity{}, {.kv_lengths = lengths});
  expect_backward_matches(p, Causal{} & (SlidingWindow{40} | SinkTokens{2}), SoftCap{2},
                          {.kv_lengths = lengths});
}

TEST(Backward, TakesPackedSequences) {
  const Problem<float> p({1, 200, 260, 4, 2, 16, 24});
  const auto q_starts = list({0, 3, 3, 100, 190}), k_starts = list({0, 20, 21, 118, 250});
  expect_backward_matches(p, Causal{}, Identity{},
                          {.cu_seqlens_q = q_starts, .cu_seqlens_k = k_starts});
}

TEST(Backward, TakesPositions) {
  const Problem<float> p({2, 30, 80, 4, 2, 16});
  Tensor<std::int32_t, 2> q_positions({2, 30}), kv_positions({2, 80});
  for (index_t b = 0; b < 2; ++b) {
    for (index_t i = 0; i < 30; ++i) q_positions(b, i) = static_cast<std::int32_t>(60 + 2 * i + b);
    for (index_t j = 0; j < 80; ++j)  // a ring that has turned, some slots empty
      kv_positions(b, j) = j % 11 == 3 ? -1 : static_cast<std::int32_t>(20 + (j + 17 * b) % 80);
  }
  expect_backward_matches(p, Causal{}, Identity{},
                          {.q_positions = q_positions, .kv_positions = kv_positions});
}

TEST(Backward, ReadsAndWritesStridedViews) {
  const auto fused = normal<float>(Shape<4>{2, 70, 8, 20}, 3);  // 4 query, 2 key, 2 value heads
  Tensor<float, 4> dfused(fused.shape());
  const auto part = [](const auto& x, index_t begin, index_t end) {
    return x.slice(2, begin, end);
  };
  const auto view = fused.view();
  const auto q = part(view, 0, 4), k = part(view, 4, 6), v = part(view, 6, 8);
  const auto dout = normal<float>(Shape<4>{2, 70, 4, 20}, 77);
  Tensor<float, 4> out(dout.shape());
  Tensor<float, 3> lse({2, 4, 70});
  attention(out, q, k, v, Causal{}, Identity{}, {.logsumexp = lse});
  const auto dview = dfused.view();
  attention_backward(part(dview, 0, 4), part(dview, 4, 6), part(dview, 6, 8), dout, q, k, v, out,
                     lse);
  Tensor<double, 4> dq(q.shape()), dk(k.shape()), dv(v.shape());
  reference_attention_backward(dq, dk, dv, doubles(dout), doubles(q), doubles(k), doubles(v));
  expect_gradient_close(part(dview, 0, 4), dq, tolerance_of<float>(), "dq");
  expect_gradient_close(part(dview, 4, 6), dk, tolerance_of<float>(), "dk");
  expect_gradient_close(part(dview, 6, 8), dv, tolerance_of<float>(), "dv");
}

TEST(Backward, RowsThatSeeNothingHaveNoGradient) {
  Problem<float> p({1, 10, 4, 2, 1, 16});  // queries 0 to 5 stand before the first key
  const float nan = std::numeric_limits<float>::quiet_NaN();
  auto dout = normal<float>(p.q.shape(), 77);
  for (index_t i = 0; i < 6; ++i)
    for (index_t t = 0; t < 16; ++t) p.q(0, i, 0, t) = dout(0, i, 1, t) = nan;
  Gradients<float> got(p.q, p.k, p.v);
  run_backward(got, dout, p.q, p.k, p.v, Causal{}, Identity{});
  for (index_t i = 0; i < 10; ++i)
    for (index_t h = 0; h < 2; ++h) {
      // Query 6 sees one key: P = 1 and dz = 0.
      if (i != 6) {
        EXPECT_EQ(got.dq(0, i, h, 3) == 0, i < 6) << i;
      }
    }
  for (index_t n = 0; n < got.dk.size(); ++n) {
    EXPECT_TRUE(std::isfinite(got.dk.data()[n]));
    EXPECT_TRUE(std::isfinite(got.dv.data()[n]));
  }
}

TYPED_TEST(Backward, AHiddenNaNStaysHidden) {
  using T = TypeParam;
  const T nan(std::numeric_limits<float>::quiet_NaN());
  const Sizes sizes{1, 100, 100, 2, 1, 16};
  const auto mask = Causal{} & (SlidingWindow{20} | SinkTokens{0});
  const Problem<T> clean(sizes);
  const auto dout = normal<T>(clean.q.shape(), 77);
  Gradients<T> want(clean.q, clean.k, clean.v);
  run_backward(want, dout, clean.q, clean.k, clean.v, mask, Identity{});

  // A key that later queries see, and a query that sees keys before it.
  for (const bool key : {true, false}) {
    Problem<T> p(sizes);
    for (index_t t = 0; t < 16; ++t) {
      if (key)
        p.k(0, 50, 0, t) = p.v(0, 50, 0, t) = nan;
      else
        p.q(0, 50, 1, t) = nan;
    }
    Gradients<T> got(p.q, p.k, p.v);
    run_backward(got, dout, p.q, p.k, p.v, mask, Identity{});
    for (index_t i = 0; i < 100; ++i) {
      const bool q_touched = key ? i >= 50 && i < 70 : i == 50;
      // Keys that share a query with the NaN.
      const bool k_touched = key ? i > 30 && i < 70 : i > 30 && i <= 50;
      for (index_t t = 0; t < 16; ++t) {
        SCOPED_TRACE(testing::Message() << key << " " << i << " " << t);
        if (q_touched) {
          ASSERT_TRUE(std::isnan(float(got.dq(0, i, 1, t))));
        } else {
          ASSERT_EQ(float(got.dq(0, i, 1, t)), float(want.dq(0, i, 1, t)));
        }
        if (k_touched) {
          ASSERT_TRUE(std::isnan(float(got.dv(0, i, 0, t))));
        } else {
          ASSERT_EQ(float(got.dk(0, i, 0, t)), float(want.dk(0, i, 0, t)));
          ASSERT_EQ(float(got.dv(0, i, 0, t)), float(want.dv(0, i, 0, t)));
        }
      }
    }
  }
}

/// value(i) = (((7 i + 5 s) mod 13) - 6) / 6, heads first, as [1, seq, heads, dim].
Tensor<double, 4> fixture(int s, index_t heads, index_t seq, index_t dim) {
  Tensor<double, 4> t({1, seq, heads, dim});
  index_t n = 0;
  for (index_t h = 0; h < heads; ++h)
    for (index_t i = 0; i < seq; ++i)
      for (index_t c = 0; c < dim; ++c, ++n)
        t(0, i, h, c) = static_cast<double>((7 * n + 5 * s) % 13 - 6) / 6;
  return t;
}
double sum_of(const Tensor<double, 4>& t, bool absolute) {
  double sum = 0;
  for (index_t n = 0; n < t.size(); ++n) sum += absolute ? std::abs(t.data()[n]) : t.data()[n];
  return sum;
}

TEST(Backward, WorkedCase) {
  const auto q = fixture(1, 4, 5, 4), k = fixture(2, 2, 5, 4), v = fixture(3, 2, 5, 4);
  const auto dout = fixture(4, 4, 5, 4);
  Gradients<double> got(q, k, v);
  run_backward(got, dout, q, k, v, Causal{}, Identity{}, {.scale = 0.5});
  constexpr double kDq[] = {0.319599, -0.151468, 0.006875, -0.057815};
  constexpr double kDk[] = {-0.045926, 0.316813, -0.055905, 0.306834};
  constexpr double kDv[] = {-0.871373, 0.768576, -0.126999, 0.869328};
  for (index_t t = 0; t < 4; ++t) {
    EXPECT_NEAR(got.dq(0, 4, 0, t), kDq[t], 1e-6);
    EXPECT_NEAR(got.dk(0, 0, 0, t), kDk[t], 1e-6);
    EXPECT_NEAR(got.dv(0, 0, 1, t), kDv[t], 1e-6);
  }
  EXPECT_NEAR(sum_of(got.dq, false), 0.421562, 1e-6);
  EXPECT_NEAR(sum_of(got.dk, false), 0, 1e-12);
  EXPECT_NEAR(sum_of(got.dv, false), -0.666667, 1e-6);
  EXPECT_NEAR(sum_of(got.dq, true), 6.463624, 1e-6);
  EXPECT_NEAR(sum_of(got.dk, true), 4.363280, 1e-6);
  EXPECT_NEAR(sum_of(got.dv, true), 14.681979, 1e-6);
}

TEST(Backward, WorkedCaseWithSinks) {
  const auto q = fixture(1, 4, 5, 4), k = fixture(2, 2, 5, 4), v = fixture(3, 2, 5, 4);
  const auto dout = fixture(4, 4, 5, 4);
  Tensor<double, 1> sinks({4});
  sinks(0) = 0.5, sinks(1) = -1, sinks(2) = 0, sinks(3) = 1;
  Gradients<double> got(q, k, v);
  run_backward(got, dout, q, k, v, Causal{}, Identity{}, {.scale = 0.5, .sink_logits = sinks});
  constexpr double kWant[] = {0.644168, -0.001759, 0.087261, -0.490171};
  for (index_t h = 0; h < 4; ++h) EXPECT_NEAR(got.dsinks(h), kWant[h], 1e-6);
}

}  // namespace
}  // namespace rapt::test
