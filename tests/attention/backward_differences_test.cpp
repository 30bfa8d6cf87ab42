// Every gradient of attention_backward(), under every mask and score, against central differences
// of attention() in double:   (loss(x + e) - loss(x - e)) / 2e
#include <gtest/gtest.h>

#include <cmath>

#include "attention/any_mask.hpp"
#include "attention/backward_problem.hpp"

namespace rapt::test {
namespace {

/// sum(out * dout) + sum(logsumexps * their gradients), by a forward call.
struct Loss {
  const Tensor<double, 4>& dout;
  const Tensor<double, 3>&dlse, &dlse_with_sink;

  template <class Score>
  double operator()(const Problem<double>& p, const Tensor<double, 1>& sinks, const AnyMask& mask,
                    const Score& score) const {
    Tensor<double, 4> out(dout.shape());
    Tensor<double, 3> lse(dlse.shape()), with_sink(dlse.shape());
    attention(out, p.q, p.k, p.v, mask, score,
              {.sink_logits = sinks, .logsumexp = lse, .logsumexp_with_sink = with_sink});
    double sum = 0;
    for (index_t n = 0; n < out.size(); ++n) sum += out.data()[n] * dout.data()[n];
    for (index_t n = 0; n < lse.size(); ++n) {
      if (std::isfinite(lse.data()[n])) sum += lse.data()[n] * dlse.data()[n];
      sum += with_sink.data()[n] * dlse_with_sink.data()[n];
    }
    return sum;
  }
};

template <class Score>
void expect_matches_differences(const AnyMask& mask, const Score& score,
                                Tensor<double, 4>* bias = nullptr,
                                Tensor<double, 2>* relative = nullptr) {
  Problem<double> p({2, 6, 9, 4, 2, 3, 5});
  auto sinks = normal<double>(Shape<1>{4}, 4);
  const auto dout = normal<double>(Shape<4>{2, 6, 4, 5}, 77);
  const auto dlse = normal<double>(Shape<3>{2, 4, 6}, 78);
  const auto dlse_with_sink = normal<double>(Shape<3>{2, 4, 6}, 79);
  const Loss loss{dout, dlse, dlse_with_sink};

  Gradients<double> got(p.q, p.k, p.v);
  if (bias != nullptr) got.dbias = Tensor<double, 4>(bias->shape());
  if (relative != nullptr) got.drelative_bias = Tensor<double, 2>(relative->shape());
  run_backward(got, dout, p.q, p.k, p.v, mask, score,
               {.sink_logits = sinks, .dlogsumexp = dlse, .dlogsumexp_with_sink = dlse_with_sink});

  const auto compare = [&](auto& of, const auto& gradient, const char* name) {
    double largest = 1;
    for (index_t i = 0; i < of.size(); ++i)
      largest = std::max(largest, std::abs(gradient.data()[i]));
    for (index_t i = 0; i < of.size(); ++i) {
      constexpr double kStep = 1e-5;
      double& x = of.data()[i];
      const double at = x;
      x = at + kStep;
      const double above = loss(p, sinks, mask, score);
      x = at - kStep;
      const double below = loss(p, sinks, mask, score);
      x = at;
      ASSERT_NEAR(gradient.data()[i], (above - below) / (2 * kStep), 1e-7 * largest)
          << name << " " << i;
    }
  };
  compare(p.q, got.dq, "dq");
  compare(p.k, got.dk, "dk");
  compare(p.v, got.dv, "dv");
  compare(sinks, got.dsinks, "dsinks");
  if (bias != nullptr) compare(*bias, got.dbias, "dbias");
  if (relative != nullptr) compare(*relative, got.drelative_bias, "drelative_bias");
}

void of_mask(const AnyMask& mask) { expect_matches_differences(mask, Identity{}); }
void of_score(const AnyScore& score) { expect_matches_differences(Causal{}, score); }

TEST(BackwardDifferences, Causal) { of_mask(Causal{}); }
TEST(BackwardDifferences, Full) { of_mask(Full{}); }
TEST(BackwardDifferences, WindowAndSinkTokens) {
  of_mask(Causal{} & (SlidingWindow{2} | SinkTokens{1}));
  of_mask(SlidingWindow{3});
}
TEST(BackwardDifferences, ChunkedLocal) { of_mask(ChunkedLocal{4}); }
TEST(BackwardDifferences, PrefixLm) {
  const auto lengths = list({2, 5});
  of_mask(PrefixLm{lengths});
}
TEST(BackwardDifferences, SameDocument) {
  Tensor<std::int32_t, 2> ids({2, 9});
  for (int i = 0; i < 9; ++i) ids(0, i) = i / 4, ids(1, i) = i / 2;
  of_mask(SameDocument{ids});
  of_mask(Causal{} & SameDocument{ids});
}
TEST(BackwardDifferences, Tables) {
  const auto map = integers(Shape<4>{1, 4, 3, 5}, 3, 0, 1);
  of_mask(BlockSparse{map, 2});
  const auto table = integers(Shape<4>{2, 1, 6, 9}, 3, 0, 1);
  of_mask(DenseMask{table});
}
TEST(BackwardDifferences, LambdaMask) {
  of_mask([](index_t, index_t h, index_t i, index_t j) { return (i + j + h) % 3 != 0; });
  of_mask(~Causal{});
}

TEST(BackwardDifferences, SoftCap) { of_score(SoftCap{1.2}); }
TEST(BackwardDifferences, Alibi) {
  const auto slopes = alibi_slopes<double>(4);
  of_score(Alibi{slopes});
  of_score(then(SoftCap{2}, Alibi{slopes}));
}
TEST(BackwardDifferences, LambdaScore) {
  of_score([](auto s, index_t, index_t, index_t i, index_t j) {
    using std::tanh;
    return s * s * 0.3 + tanh(s) * static_cast<double>(1 + (i + j) % 2);
  });
}
TEST(BackwardDifferences, AdditiveBias) {
  auto table = normal<double>(Shape<4>{1, 4, 6, 9}, 8);
  for (const AnyScore& after : {AnyScore(Identity{}), AnyScore(SoftCap{2})})
    expect_matches_differences(Causal{}, then(AdditiveBias{table}, after), &table);
}
TEST(BackwardDifferences, RelativeBias) {
  auto table = normal<double>(Shape<2>{4, 5}, 8);
  for (const AnyScore& after : {AnyScore(Identity{}), AnyScore(SoftCap{2})})
    expect_matches_differences(Full{}, then(RelativeBias{table}, after), nullptr, &table);
}

}  // namespace
}  // namespace rapt::test
