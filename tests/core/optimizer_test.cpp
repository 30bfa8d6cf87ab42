// The optimiser's operations against plain loops in double.
#include "rapt/core/ops/optimizer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "core/rows.hpp"

namespace rapt::test {
namespace {

template <class T>
struct Optimizer : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(Optimizer, Elements);

const std::vector<index_t> kSizes = {1, 3, 16, 17, 100, 8191, 8192, 20011};

TYPED_TEST(Optimizer, AdamWFollowsTheFormula) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for (const index_t n : kSizes) {
    Philox random(1);
    auto master = normal<A>(Shape<1>{n}, random);
    Tensor<A, 1> m({n}), v({n});
    Tensor<T, 1> values({n});
    AdamWStep step{.lr = 1e-2, .weight_decay = 0.1, .gradient_scale = 0.25};
    std::vector<double> theta, mean(std::size_t(n), 0.0), square(std::size_t(n), 0.0);
    for (index_t i = 0; i < n; ++i) theta.push_back(double(master(i)));
    for (step.step = 1; step.step <= 3; ++step.step) {
      const auto gradient = normal<A>(Shape<1>{n}, random, 3);
      adamw_step(master, m, v, gradient, values, step);
      const double t = double(step.step);
      for (index_t i = 0; i < n; ++i) {
        const auto at = std::size_t(i);
        const double g = 0.25 * double(gradient(i));
        theta[at] -= 1e-2 * 0.1 * theta[at];
        mean[at] = 0.9 * mean[at] + 0.1 * g;
        square[at] = 0.95 * square[at] + 0.05 * g * g;
        theta[at] -= 1e-2 * (mean[at] / (1 - std::pow(0.9, t))) /
                     (std::sqrt(square[at] / (1 - std::pow(0.95, t))) + 1e-8);
        ASSERT_NEAR(double(master(i)), theta[at], tolerance<A>(theta[at])) << n << " " << i;
        ASSERT_NEAR(double(m(i)), mean[at], tolerance<A>(mean[at]));
        ASSERT_NEAR(double(v(i)), square[at], tolerance<A>(square[at]));
        ASSERT_EQ(double(values(i)), double(T(master(i))));  // rounded once
      }
    }
  }
}

TEST(AdamW, WorksOnParametersThatAreTheMaster) {
  Philox random(2);
  const auto start = normal<float>(Shape<1>{1001}, random),
             gradient = normal<float>(Shape<1>{1001}, random);
  Tensor<float, 1> master = start, m({1001}), v({1001}), values({1001});
  const AdamWStep step{.lr = 1e-2, .weight_decay = 0.1};
  adamw_step(master, m, v, gradient, values, step);
  for (const bool itself : {false, true}) {
    Tensor<float, 1> weights = start, m1({1001}), v1({1001});
    if (itself)
      adamw_step(weights, m1, v1, gradient, weights, step);
    else
      adamw_step(weights, m1, v1, gradient, step);
    EXPECT_EQ(std::memcmp(weights.data(), master.data(), master.bytes()), 0);
    EXPECT_EQ(std::memcmp(v1.data(), v.data(), v.bytes()), 0);
  }
}

TEST(AdamW, DecaysAndNothingElseWithoutAGradient) {
  Tensor<float, 1> master({5}), m({5}), v({5}), gradient({5});
  fill(master, 2);
  adamw_step(master, m, v, gradient, {.lr = 0.5, .weight_decay = 0.5});
  for (index_t i = 0; i < 5; ++i) EXPECT_EQ(master(i), 1.5f);
}

TYPED_TEST(Optimizer, SumOfSquaresIsExactToDouble) {
  using T = TypeParam;
  Philox random(3);
  for (const index_t n : kSizes) {
    const auto x = normal<T>(Shape<1>{n}, random, 100);
    long double want = 0;
    for (index_t i = 0; i < n; ++i)
      want += static_cast<long double>(double(x(i))) * static_cast<long double>(double(x(i)));
    ASSERT_NEAR(sum_of_squares(x), double(want), 1e-14 * double(want));
    EXPECT_TRUE(all_finite(x));
  }
}

TYPED_TEST(Optimizer, ASumShowsWhatIsNotFiniteWhereverItStands) {
  using T = TypeParam;
  for (const double bad :
       {std::numeric_limits<double>::infinity(), -std::numeric_limits<double>::infinity(),
        std::numeric_limits<double>::quiet_NaN()})
    for (const index_t at : {0, 15, 16, 8191, 8192, 9000}) {
      Tensor<T, 1> x({9001});
      fill(x, 1);
      x(at) = T(bad);
      EXPECT_FALSE(all_finite(x)) << bad << " at " << at;
    }
  Tensor<T, 1> largest({100});
  const double most = std::is_same_v<T, double> ? 1e150 : double(std::numeric_limits<T>::max());
  fill(largest, most);
  EXPECT_TRUE(all_finite(largest));
}

TYPED_TEST(Optimizer, ScalesInPlaceAndZeroes) {
  using T = TypeParam;
  Philox random(4);
  for (const index_t n : kSizes) {
    auto x = normal<T>(Shape<1>{n}, random);
    const auto before = x;
    scale_in_place(x, accumulate_t<T>(0.3));
    for (index_t i = 0; i < n; ++i)
      ASSERT_NEAR(double(x(i)), 0.3 * double(before(i)), tolerance<T>(0.3 * double(before(i))));
    zero(x);
    for (index_t i = 0; i < n; ++i) ASSERT_EQ(double(x(i)), 0);
  }
  Tensor<T, 2> wide({3, 4});
  EXPECT_THAT([&] { zero(wide.slice(1, 0, 2)); },
              testing::ThrowsMessage<ShapeError>(
                  "zero: x is [3, 2] with strides [4, 1], expected no gaps"));
}

TYPED_TEST(Optimizer, DoesNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(5);
  const auto gradient = normal<A>(Shape<1>{100003}, random);
  Tensor<A, 2> state({3, 100003});
  const int before = num_threads();
  set_num_threads(1);
  const double want = sum_of_squares(gradient);
  expect_same_with_any_threads<A>(state, [&] {
    const auto row = [&](index_t i) { return state.view().select(0, i); };
    EXPECT_EQ(sum_of_squares(gradient), want);
    adamw_step(row(0), row(1), row(2), gradient, {.lr = 0.1});
  });
  set_num_threads(before);
}

TYPED_TEST(Optimizer, TakesNothing) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Tensor<A, 1> none({0});
  adamw_step(none, none, none, none, Tensor<T, 1>({0}).view(), {});
  EXPECT_EQ(sum_of_squares(none), 0);
  EXPECT_TRUE(all_finite(none));
  scale_in_place(none, A{2});
  zero(none);
}

TEST(OptimizerErrors, NameTheArgumentAndTheValue) {
  Tensor<float, 1> x({4}), five({5});
  const auto refuse = [&](const AdamWStep& step, const char* message) {
    EXPECT_THAT([&] { adamw_step(x, x, x, x, step); }, testing::ThrowsMessage<ValueError>(message));
  };
  EXPECT_THAT([&] { adamw_step(x, x, x, five, {}); },
              testing::ThrowsMessage<ShapeError>(
                  "adamw_step: gradient is [5], expected [4] = the shape of master"));
  EXPECT_THAT([&] { adamw_step(x, x, x, x, five, {}); },
              testing::ThrowsMessage<ShapeError>(
                  "adamw_step: values is [5], expected [4] = the shape of master"));
  refuse({.lr = -1}, "adamw_step: lr is -1, expected a finite number of at least 0");
  refuse({.beta1 = 1}, "adamw_step: beta1 is 1, expected 0 or more, below 1");
  refuse({.beta2 = -0.5}, "adamw_step: beta2 is -0.5, expected 0 or more, below 1");
  refuse({.step = 0}, "adamw_step: step is 0, expected 1 for the first");
  refuse({.gradient_scale = std::numeric_limits<double>::infinity()},
         "adamw_step: gradient_scale is inf, expected a finite number of at least 0");
}

}  // namespace
}  // namespace rapt::test
