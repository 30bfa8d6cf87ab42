// Score modifiers: their values, their order, and their derivatives by dual numbers against central
// differences.
#include "rapt/mask/score.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "rapt/core/random.hpp"

namespace rapt::test {
namespace {

template <class F>
void expect_derivative(const F& f) {
  constexpr double kStep = 1e-5;
  for (const double s : {-3.0, -0.4, 0.0, 0.7, 2.5}) {
    const double plus = f(s + kStep, 1, 2, 6, 3), minus = f(s - kStep, 1, 2, 6, 3);
    EXPECT_NEAR(score_derivative(f, s, 1, 2, 6, 3), (plus - minus) / (2 * kStep), 1e-8)
        << "s = " << s;
  }
}

TEST(Score, SoftCapSqueezes) {
  EXPECT_DOUBLE_EQ(SoftCap{50}(3.0, 0, 0, 0, 0), 50 * std::tanh(3.0 / 50));
  EXPECT_EQ(SoftCap{0.5}(1e30f, 0, 0, 0, 0), 0.5f);  // saturates, no NaN
  EXPECT_EQ(SoftCap{0.5}(-1e30f, 0, 0, 0, 0), -0.5f);
  expect_derivative(SoftCap{0.5});
  expect_derivative(SoftCap{50});
}

TEST(Score, AlibiSlopesAreTheAuthors) {
  const auto eight = alibi_slopes(8), six = alibi_slopes(6), one = alibi_slopes(1);
  for (index_t h = 0; h < 8; ++h) EXPECT_EQ(eight(h), std::exp2(-static_cast<float>(h + 1)));
  const float expected[] = {0.25f, 0.0625f, 0.015625f, 0.00390625f, 0.5f, 0.125f};
  for (index_t h = 0; h < 6; ++h) EXPECT_EQ(six(h), expected[h]);
  EXPECT_EQ(one(0), 0.00390625f);
  EXPECT_THROW(alibi_slopes(0), ValueError);
}

TEST(Score, AlibiFallsWithTheDistanceOnBothSides) {
  const auto slopes = alibi_slopes(8);
  const Alibi alibi{slopes};
  EXPECT_EQ(alibi(1.f, 0, 0, 5, 2), 1.f - 0.5f * 3);
  EXPECT_EQ(alibi(1.f, 0, 1, 2, 5), 1.f - 0.25f * 3);
  EXPECT_EQ(alibi(1.0, 0, 1, -2, 5), 1.0 - 0.25 * 7);
  expect_derivative(alibi);
}

TEST(Score, RelativeBiasSaturatesAtItsEnds) {
  Tensor<float, 2> table({1, 5});
  for (index_t i = 0; i < 5; ++i) table(0, i) = static_cast<float>(i + 1);
  const RelativeBias bias{table};
  EXPECT_EQ(bias(0.f, 0, 3, 10, 10), 3.f);
  EXPECT_EQ(bias(0.f, 0, 3, 10, 9), 2.f);
  EXPECT_EQ(bias(0.f, 0, 3, 10, 0), 1.f);
  EXPECT_EQ(bias(0.f, 0, 3, 10, 99), 5.f);
  expect_derivative(bias);
}

TEST(Score, AdditiveBiasIsReadByTheRowOfTheCall) {
  Tensor<float, 4> table({2, 3, 4, 7});
  Philox random(1);
  fill_normal(table, random);
  const auto bias =
      bind_call(AdditiveBias{table}, CallShape{.q_len = 4, .kv_len = 7, .batch = 2, .heads = 3});
  EXPECT_EQ(bias(10.f, 1, 2, 3, 5), 10.f + table(1, 2, 0, 5));
  EXPECT_EQ(bias(10.f, 1, 2, 6, 6), 10.f + table(1, 2, 3, 6));
  expect_derivative(bias);
}

TEST(Score, ThenAppliesInTheOrderWritten) {
  const auto slopes = alibi_slopes(4);
  const auto twice = [](auto s, auto, auto, auto, auto) { return s * 2; };
  const auto f = then(SoftCap{2}, Alibi{slopes}, twice);
  EXPECT_DOUBLE_EQ(f(1.5, 0, 2, 9, 4), 2 * (2 * std::tanh(0.75) - 5.0 / 64));
  EXPECT_EQ(then(twice)(3, 0, 0, 0, 0), 6);
  expect_derivative(f);
}

TEST(Score, BindReachesInsideAComposition) {
  Tensor<float, 4> table({1, 1, 2, 5});
  table(0, 0, 0, 4) = 7;
  const auto f = then(SoftCap{50}, AdditiveBias{table});
  static_assert(reads_call_row<decltype(f)> && !reads_call_row<SoftCap>);
  EXPECT_EQ(bind_call(f, 2, 5)(0.f, 0, 0, 3, 4), 7.f);
}

TEST(Score, LambdasMayBeTypedOrGenericButNoMaskIsAScore) {
  static_assert(
      ScoreModifier<decltype([](float s, index_t, index_t, index_t, index_t) { return s; })>);
  static_assert(
      !DifferentiableScore<decltype([](float s, index_t, index_t, index_t, index_t) { return s; }),
                           float>);
  static_assert(DifferentiableScore<decltype([](auto s, auto...) { return s + 1; }), float>);
  static_assert(!ScoreModifier<decltype([](auto...) { return true; })>);
  expect_derivative([](auto s, auto, auto, auto q, auto kv) {
    using std::exp;
    return s / (1 + exp(-s)) + 0.1 * static_cast<double>(q - kv) * s * s;
  });
  expect_derivative([](auto s, auto...) {
    using std::cos, std::sin, std::sqrt, std::log, std::abs, std::max;
    return sqrt(s * s + 1) + log(s * s + 2) + sin(s) * cos(s) + abs(s - 0.1) + max(s, 1 - s);
  });
}

TEST(Score, BindRefusesWhatDoesNotFitTheCall) {
  using testing::ThrowsMessage;
  const CallShape call{.q_len = 2, .kv_len = 6, .batch = 1, .heads = 4};
  Tensor<float, 4> table({1, 1, 2, 5});
  Tensor<float, 1> slopes({3});
  Tensor<float, 2> even({1, 4});
  EXPECT_THAT([&] { bind_call(SoftCap{0}, call); },
              ThrowsMessage<ValueError>("SoftCap: cap is 0, expected a positive number"));
  EXPECT_THAT([&] { bind_call(Alibi{slopes}, call); },
              ThrowsMessage<ShapeError>("Alibi: slopes is [3], expected [4] = [heads]"));
  EXPECT_THAT([&] { bind_call(then(SoftCap{1}, AdditiveBias{table}), call); },
              ThrowsMessage<ShapeError>(
                  "AdditiveBias: table is [1, 1, 2, 5], expected [1 or 1, 1 or 4, 2, 6] = "
                  "[batch, heads, q_len, kv_len]"));
  EXPECT_THROW(bind_call(RelativeBias{even}, call), ShapeError);
}

}  // namespace
}  // namespace rapt::test
