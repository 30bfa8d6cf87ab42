// The gradients and the optimiser's operations of BackendTraits<Cuda> against plain loops in
// double, as operations_test.cpp does for the operations themselves.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "rapt/core/ops/column_sum.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/ops/embedding.hpp"
#include "rapt/core/ops/gated_activation.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/core/ops/optimizer.hpp"
#include "rapt/core/ops/rope.hpp"
#include "rapt/core/ops/softcap.hpp"
#include "support/cuda_test.hpp"

namespace rapt::test {
namespace {

using testing::ThrowsMessage;

template <class T>
struct CudaGradients : CudaTypedTest<T> {};
TYPED_TEST_SUITE(CudaGradients, ElementTypes);

template <class T>
double at(const T& x) {
  return static_cast<double>(x);
}

// ---- norms ----

TYPED_TEST(CudaGradients, NormsMatchPlainLoops) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for (const index_t n : {1, 5, 32, 129, 200})
    for (const bool layer : {false, true})
      for (const bool with_weight : {false, true})
        for (const bool plus_one : {false, true}) {
          if (layer && plus_one) continue;
          SCOPED_TRACE(testing::Message() << n << " layer " << layer << " weight " << with_weight
                                          << " plus_one " << plus_one);
          constexpr double kEps = 1e-3;
          const auto wide = gaussian<T>(Shape{3, 5, n + 4}, 1);
          const auto x = wide.view().slice(2, 2, n + 2).transpose(0, 1);  // rows at odd strides
          const auto dy = gaussian<T>(Shape{5, 3, n}, 2);
          const auto weight = gaussian<T>(Shape<1>{n}, 3);
          const auto before = gaussian<A>(Shape<1>{n}, 4);
          const auto gwide = on_gpu(wide);
          const auto gx = gwide.view().slice(2, 2, n + 2).transpose(0, 1);
          const auto gdy = on_gpu(dy);
          const auto gweight = on_gpu(weight);
          TensorView<const T, 1, Cuda> w;
          if (with_weight) w = gweight.view();
          Tensor<T, 3, Cuda> dx(dy.shape());
          auto dweight = on_gpu(before), dbias = on_gpu(before);
          if (layer)
            layer_norm_backward(dx, dweight, dbias, gdy, gx, w, kEps);
          else
            rms_norm_backward(dx, dweight, gdy, gx, w, kEps, plus_one);

          const double count = static_cast<double>(n);
          Tensor<double, 3> want(dy.shape());
          std::vector<double> want_weight, want_bias;
          for (index_t c = 0; c < n; ++c)
            want_weight.push_back(at(before(c))), want_bias.push_back(at(before(c)));
          for (index_t i = 0; i < 5; ++i)
            for (index_t j = 0; j < 3; ++j) {
              double mean = 0, squares = 0, mean_a = 0, mean_ah = 0;
              for (index_t c = 0; c < n && layer; ++c) mean += at(x(i, j, c)) / count;
              for (index_t c = 0; c < n; ++c) squares += std::pow(at(x(i, j, c)) - mean, 2);
              const double r = 1 / std::sqrt(squares / count + kEps);
              const auto h = [&](index_t c) { return (at(x(i, j, c)) - mean) * r; };
              const auto a = [&](index_t c) {
                return at(dy(i, j, c)) * (with_weight ? at(weight(c)) + (plus_one ? 1 : 0) : 1);
              };
              for (index_t c = 0; c < n; ++c) {
                mean_a += layer ? a(c) / count : 0;
                mean_ah += a(c) * h(c) / count;
              }
              for (index_t c = 0; c < n; ++c) {
                want(i, j, c) = r * (a(c) - mean_a - h(c) * mean_ah);
                want_weight[static_cast<std::size_t>(c)] += at(dy(i, j, c)) * h(c);
                want_bias[static_cast<std::size_t>(c)] += at(dy(i, j, c));
              }
            }
          // Of a row of one, dx is a small difference, scaled by up to 1 / sqrt(eps).
          expect_close(to(Cpu{}, dx), want, tolerance_of<T>() * (n == 1 ? 30 : 4), "dx");
          const auto home = to(Cpu{}, dweight), home_bias = to(Cpu{}, dbias);
          for (index_t c = 0; c < n; ++c) {
            const auto k = static_cast<std::size_t>(c);
            ASSERT_TRUE(is_close(at(home(c)), want_weight[k], tolerance_of<A>() * 10)) << c;
            ASSERT_TRUE(is_close(at(home_bias(c)), layer ? want_bias[k] : at(before(c)),
                                 tolerance_of<A>() * 10))
                << c;
          }
        }
}

TYPED_TEST(CudaGradients, NormsWorkInPlaceAndLeaveOutWhatIsNotWanted) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  const auto x = gaussian<T>(Shape{4, 2, 3, 37}, 5), dy = gaussian<T>(x.shape(), 6);
  for (const bool layer : {false, true}) {
    const auto run = [&](auto& dx, auto dweight, const auto& gradient, const auto& input) {
      if (layer)
        layer_norm_backward(dx, dweight, {}, gradient, input);
      else
        rms_norm_backward(dx, dweight, gradient, input);
    };
    auto over_x = on_gpu(x), over_dy = on_gpu(dy);
    Tensor<T, 4, Cuda> want(x.shape());
    Tensor<A, 1, Cuda> first({37}), second({37});
    run(want, first.view(), on_gpu(dy), on_gpu(x));
    run(over_x, second.view(), on_gpu(dy), over_x);
    run(over_dy, TensorView<A, 1, Cuda>{}, over_dy, on_gpu(x));
    expect_close(to(Cpu{}, over_x), to(Cpu{}, want), {0, 0}, "dx over x");
    expect_close(to(Cpu{}, over_dy), to(Cpu{}, want), {0, 0}, "dx over dy");
    expect_close(to(Cpu{}, second), to(Cpu{}, first), {0, 0}, "dweight");
  }
}

// ---- elementwise ----

double activated(double x, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::sigmoid:
      break;
  }
  return 1 / (1 + std::exp(-x));
}

/// The derivative by central differences, good to 1e-9.
double slope(double x, Activation activation) {
  constexpr double kStep = 1e-4;
  const auto f = [&](double step) { return activated(x + step, activation); };
  return (8 * (f(kStep) - f(-kStep)) - (f(2 * kStep) - f(-2 * kStep))) / (12 * kStep);
}

TYPED_TEST(CudaGradients, GatedActivationsMatchDifferencesOfTheirFormulas) {
  using T = TypeParam;
  const auto fused = gaussian<T>(Shape{5, 2 * 131}, 9);
  const auto dout = gaussian<T>(Shape{5, 131}, 10);
  for (const auto activation :
       {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::sigmoid}) {
    auto gfused = on_gpu(fused);
    const auto gate = gfused.view().slice(1, 0, 131), up = gfused.view().slice(1, 131, 262);
    Tensor<T, 2, Cuda> dgate({5, 131}), dup({5, 131});
    gated_activation_backward(dgate, dup, on_gpu(dout), gate, up, activation);
    Tensor<double, 2> want_gate({5, 131}), want_up({5, 131});
    for (index_t i = 0; i < 5; ++i)
      for (index_t j = 0; j < 131; ++j) {
        const double g = at(fused(i, j)), d = at(dout(i, j));
        want_gate(i, j) = d * at(fused(i, 131 + j)) * slope(g, activation);
        want_up(i, j) = d * activated(g, activation);
      }
    const auto home = to(Cpu{}, dgate);
    expect_close(home, want_gate,
                 std::is_same_v<T, double> ? Tolerance{1e-9, 1e-9} : tolerance_of<T>() * 2);
    expect_close(to(Cpu{}, dup), want_up, tolerance_of<T>() * 2);
    gated_activation_backward(gate, up, on_gpu(dout), gate, up, activation);  // in place
    expect_close(to(Cpu{}, gate), home, {0, 0});
    expect_close(to(Cpu{}, up), to(Cpu{}, dup), {0, 0});
  }
}

TYPED_TEST(CudaGradients, ActivationsOfExtremeGatesHaveSlopesZeroAndOne) {
  using T = TypeParam;
  const std::vector<float> gates = {-60000, -100, -20, 20, 100, 60000};
  Tensor<T, 2> gate({1, 6}), one({1, 6});
  fill(one, 1);
  for (index_t j = 0; j < 6; ++j) gate(0, j) = T(gates[static_cast<std::size_t>(j)]);
  for (const auto activation :
       {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::sigmoid}) {
    Tensor<T, 2, Cuda> dgate({1, 6}), dup({1, 6});
    gated_activation_backward(dgate, dup, on_gpu(one), on_gpu(gate), on_gpu(one), activation);
    const auto home = to(Cpu{}, dgate);
    for (index_t j = 0; j < 6; ++j)
      EXPECT_NEAR(at(home(0, j)), j < 3 || activation == Activation::sigmoid ? 0 : 1, 1e-7) << j;
  }
}

TYPED_TEST(CudaGradients, SoftcapWorksOnStridedRows) {
  using T = TypeParam;
  const auto wide = gaussian<T>(Shape{6, 80}, 11), dy = gaussian<T>(Shape{6, 77}, 12);
  const auto gwide = on_gpu(wide);
  auto dx = on_gpu(dy);
  softcap_backward(dx, dx, gwide.view().slice(1, 2, 79), accumulate_t<T>{5});
  Tensor<double, 2> want({6, 77});
  for (index_t i = 0; i < 6; ++i)
    for (index_t j = 0; j < 77; ++j)
      want(i, j) = at(dy(i, j)) * (1 - std::pow(at(wide(i, j + 2)) / 5, 2));
  expect_close(to(Cpu{}, dx), want, tolerance_of<T>() * 2);
}

TYPED_TEST(CudaGradients, ColumnSumsMatchPlainLoops) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for (const index_t rows : {0, 1, 7, 100})
    for (const index_t n : {1, 33, 70})
      for (const bool accumulate : {false, true}) {
        const auto wide = gaussian<T>(Shape{rows, n + 3}, 13);
        const auto before = gaussian<A>(Shape<1>{n}, 14);
        const auto gwide = on_gpu(wide);
        auto out = on_gpu(before);
        column_sum(out, gwide.view().slice(1, 1, n + 1), accumulate);
        Tensor<double, 1> want(Shape<1>{n});
        for (index_t j = 0; j < n; ++j) {
          want(j) = accumulate ? at(before(j)) : 0;
          for (index_t i = 0; i < rows; ++i) want(j) += at(wide(i, j + 1));
        }
        expect_close(to(Cpu{}, out), want, tolerance_of<A>() * 10);
      }
}

/// <dy, R x> = <R^T dy, x>, whatever cos and sin are: `inverse` is the gradient in every layout.
TYPED_TEST(CudaGradients, InverseRopeIsTheAdjoint) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  constexpr index_t kDim = 22;
  const auto x = gaussian<T>(Shape{2, 3, 2, kDim}, 31), dy = gaussian<T>(x.shape(), 32);
  for (const auto layout :
       {RopeLayout::rotate_half, RopeLayout::interleaved, RopeLayout::interleaved_to_half})
    for (const index_t pairs : {5, 11})
      for (const index_t offset : {index_t{0}, kDim - 2 * pairs}) {
        const auto cos = on_gpu(gaussian<A>(Shape{2, 3, pairs}, 33)),
                   sin = on_gpu(gaussian<A>(Shape{2, 3, pairs}, 34));
        RopeOptions options{.layout = layout, .offset = offset};
        Tensor<T, 4, Cuda> y(x.shape());
        rope(y, on_gpu(x), cos, sin, options);
        options.inverse = true;
        auto dx = on_gpu(dy);
        rope(dx, cos, sin, options);
        const auto y_home = to(Cpu{}, y), dx_home = to(Cpu{}, dx);
        double through_y = 0, through_x = 0, size = 1;
        for (index_t i = 0; i < x.size(); ++i) {
          const double term = at(dy.data()[i]) * at(y_home.data()[i]);
          through_y += term;
          through_x += at(dx_home.data()[i]) * at(x.data()[i]);
          size += std::abs(term);
        }
        EXPECT_NEAR(through_x, through_y, tolerance_of<T>().relative * size)
            << "layout " << static_cast<int>(layout) << " pairs " << pairs << " offset " << offset;
      }
}

// ---- embedding, loss ----

TYPED_TEST(CudaGradients, EmbeddingAddsTheRowsOfEachId) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  const auto dy = gaussian<T>(Shape{3, 7, 145}, 15);
  const auto before = gaussian<A>(Shape{11, 145}, 16);
  const auto ids = whole_numbers(Shape{3, 7}, 17, 0, 6);
  auto dtable = on_gpu(before);
  embedding_backward(dtable, on_gpu(dy), on_gpu(ids), A{2});
  Tensor<double, 2> want(before.shape());
  for (index_t row = 0; row < 11; ++row)
    for (index_t j = 0; j < 145; ++j) {
      want(row, j) = at(before(row, j));
      for (index_t i = 0; i < 21; ++i)
        if (ids(i / 7, i % 7) == row) want(row, j) += 2 * at(dy(i / 7, i % 7, j));
    }
  expect_close(to(Cpu{}, dtable), want, tolerance_of<A>() * 8);
}

TYPED_TEST(CudaGradients, EmbeddingNamesAnIdOutsideTheTableAndWritesNothing) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  auto ids = whole_numbers(Shape{2, 3}, 18, 0, 4);
  ids(1, 2) = 5;
  Tensor<A, 2, Cuda> dtable({5, 4});
  const auto dy = on_gpu(gaussian<T>(Shape{2, 3, 4}, 19));
  EXPECT_THAT([&] { embedding_backward(dtable, dy, on_gpu(ids)); },
              ThrowsMessage<ValueError>(
                  "embedding_backward: ids[1, 2] is 5, expected 0 to 4, the rows of dtable"));
  const auto home = to(Cpu{}, dtable);
  for (index_t i = 0; i < home.size(); ++i) ASSERT_EQ(at(home.data()[i]), 0);
}

TYPED_TEST(CudaGradients, CrossEntropyMatchesPlainLoops) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for (const index_t vocab : {1, 40, 700})
    for (const double smoothing : {0.0, 0.1}) {
      SCOPED_TRACE(testing::Message() << vocab << " smoothing " << smoothing);
      auto logits = gaussian<T>(Shape{6, vocab}, 20);
      for (index_t j = 0; j < vocab; ++j)
        logits(2, j) = T(at(logits(2, j)) * 50 + 300);  // far from 0
      auto targets = whole_numbers(Shape<1>{6}, 21, 0, static_cast<int>(vocab) - 1);
      targets(4) = -100;
      const CrossEntropyOptions options{.label_smoothing = smoothing};
      const auto gtargets = on_gpu(targets);
      auto in_place = on_gpu(logits);
      Tensor<T, 2, Cuda> dlogits(logits.shape());
      Tensor<A, 1, Cuda> loss(Shape<1>{6}), want_loss(Shape<1>{6});
      cross_entropy(want_loss, in_place, gtargets, options);
      cross_entropy_backward(dlogits, in_place, gtargets, A{8}, options);
      cross_entropy_with_gradient(loss, in_place, gtargets, A{8}, options);
      Tensor<double, 2> want(logits.shape());
      for (index_t i = 0; i < 6; ++i) {
        if (targets(i) == -100) continue;
        double most = -1e300, sum = 0;
        for (index_t j = 0; j < vocab; ++j) most = std::max(most, at(logits(i, j)));
        for (index_t j = 0; j < vocab; ++j) sum += std::exp(at(logits(i, j)) - most);
        for (index_t j = 0; j < vocab; ++j)
          want(i, j) =
              8 * (std::exp(at(logits(i, j)) - most) / sum - (j == targets(i) ? 1 - smoothing : 0) -
                   smoothing / static_cast<double>(vocab));
      }
      expect_close(to(Cpu{}, dlogits), want, tolerance_of<T>() * 4);
      expect_close(to(Cpu{}, in_place), to(Cpu{}, dlogits), {0, 0});
      expect_close(to(Cpu{}, loss), to(Cpu{}, want_loss), tolerance_of<A>());
    }
}

TYPED_TEST(CudaGradients, CrossEntropyNamesATargetOutsideTheVocabulary) {
  using T = TypeParam;
  auto logits = on_gpu(gaussian<T>(Shape{3, 9}, 22));
  Tensor<std::int32_t, 1> targets(Shape<1>{3});
  targets(1) = 9;
  EXPECT_THAT(
      [&] { cross_entropy_backward(logits, logits, on_gpu(targets), accumulate_t<T>{1}); },
      ThrowsMessage<ValueError>(
          "cross_entropy_backward: targets[1] is 9, expected 0 to 8 or -100 = ignore_index"));
}

// ---- optimiser ----

TYPED_TEST(CudaGradients, AdamWFollowsTheFormula) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  constexpr index_t kSize = 300;
  auto master = on_gpu(gaussian<A>(Shape<1>{kSize}, 23));
  Tensor<A, 1, Cuda> m(Shape<1>{kSize}), v(Shape<1>{kSize});
  Tensor<T, 1, Cuda> values(Shape<1>{kSize});
  Tensor<double, 1> theta = to<double>(to(Cpu{}, master)), mean({kSize}), square({kSize});
  AdamWStep step{.lr = 1e-2, .weight_decay = 0.1, .gradient_scale = 0.25};
  for (step.step = 1; step.step <= 3; ++step.step) {
    const auto gradient = gaussian<A>(Shape<1>{kSize}, 24 + static_cast<std::uint64_t>(step.step));
    adamw_step(master, m, v, on_gpu(gradient), values, step);
    const double t = static_cast<double>(step.step);
    for (index_t i = 0; i < kSize; ++i) {
      const double g = 0.25 * at(gradient(i));
      theta(i) -= 1e-2 * 0.1 * theta(i);
      mean(i) = 0.9 * mean(i) + 0.1 * g;
      square(i) = 0.95 * square(i) + 0.05 * g * g;
      theta(i) -= 1e-2 * (mean(i) / (1 - std::pow(0.9, t))) /
                  (std::sqrt(square(i) / (1 - std::pow(0.95, t))) + 1e-8);
    }
  }
  expect_close(to(Cpu{}, master), theta, tolerance_of<A>());
  expect_close(to(Cpu{}, m), mean, tolerance_of<A>());
  expect_close(to(Cpu{}, v), square, tolerance_of<A>());
  expect_close(to(Cpu{}, values), to<T>(to(Cpu{}, master)), {0, 0});
  adamw_step(master, m, v, m, step);  // without values
}

TYPED_TEST(CudaGradients, SumsOfSquaresAreExactToDoubleAndShowWhatIsNotFinite) {
  using T = TypeParam;
  for (const index_t n : {0, 1, 255, 256, 1000}) {
    const auto x = gaussian<T>(Shape<1>{n}, 27);
    double want = 0;
    for (index_t i = 0; i < n; ++i) want += at(x(i)) * at(x(i));
    ASSERT_NEAR(sum_of_squares(on_gpu(x)), want, 1e-13 * want);
    EXPECT_TRUE(all_finite(on_gpu(x)));
  }
  for (const double bad :
       {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    auto x = gaussian<T>(Shape<1>{600}, 28);
    x(577) = T(bad);
    EXPECT_FALSE(all_finite(on_gpu(x)));
  }
}

TYPED_TEST(CudaGradients, ScalesInPlaceAndZeroes) {
  using T = TypeParam;
  const auto x = gaussian<T>(Shape<1>{77}, 29);
  auto gpu = on_gpu(x);
  scale_in_place(gpu, accumulate_t<T>(0.5));
  const auto home = to(Cpu{}, gpu);
  for (index_t i = 0; i < 77; ++i) ASSERT_EQ(at(home(i)), at(T(0.5 * at(x(i)))));
  zero(gpu);
  EXPECT_EQ(sum_of_squares(gpu), 0);
}

TYPED_TEST(CudaGradients, NothingIsDoneToNothing) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Tensor<T, 2, Cuda> empty({0, 8}), other({0, 8});
  Tensor<A, 1, Cuda> sums(Shape<1>{8}), none;
  rms_norm_backward(empty, sums, empty, empty);
  layer_norm_backward(empty, sums, sums, empty, empty);
  gated_activation_backward(empty, other, empty, empty, empty, Activation::silu);
  softcap_backward(empty, empty, empty, A{1});
  cross_entropy_backward(empty, empty, Tensor<std::int32_t, 1, Cuda>({0}), A{1});
  column_sum(sums, empty, true);
  EXPECT_EQ(sum_of_squares(sums), 0);
  adamw_step(none, none, none, none, {});
  scale_in_place(none, A{2});
}

}  // namespace
}  // namespace rapt::test
