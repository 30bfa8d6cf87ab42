// The gradients of the gated activations and of the soft cap: against their formulas in double, and
// against finite differences of the operations themselves, in double.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "core/rows.hpp"
#include "rapt/core/ops/gated_activation.hpp"
#include "rapt/core/ops/softcap.hpp"

namespace rapt::test {
namespace {

template <class T>
struct ElementwiseGradients : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(ElementwiseGradients, Elements);

const std::vector<index_t> kWidths = {1, 3, 8, 17, 33, 64, 577};

const std::vector<Activation> kActivations = {Activation::silu, Activation::gelu_tanh,
                                              Activation::gelu_erf, Activation::sigmoid};

double activated(double x, Activation kind) {
  switch (kind) {
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

double slope(double x, Activation kind) {
  const double s = 1 / (1 + std::exp(-x));
  switch (kind) {
    case Activation::silu:
      return s * (1 + x * (1 - s));
    case Activation::gelu_tanh: {
      const double k = std::sqrt(2 / M_PI), t = std::tanh(k * (x + 0.044715 * x * x * x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
    }
    case Activation::gelu_erf:
      return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) +
             x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
    case Activation::sigmoid:
      break;
  }
  return s * (1 - s);
}

TYPED_TEST(ElementwiseGradients, GatedActivationsMatchTheOracle) {
  using T = TypeParam;
  Philox random(5);
  for (const index_t n : kWidths)
    for (const Activation kind : kActivations) {
      SCOPED_TRACE(testing::Message() << n << " activation " << int(kind));
      Rows<T> gate(3, n, random, 3), up(3, n, random), dout(3, n, random);
      Rows<T> dgate(3, n, random), dup(3, n, random);
      gated_activation_backward(dgate.view, dup.view, dout.view, gate.view, up.view, kind);
      for (index_t i = 0; i < 3; ++i)
        for (index_t j = 0; j < n; ++j) {
          const double g = double(gate.view(i, j)), u = double(up.view(i, j)),
                       d = double(dout.view(i, j));
          const double want_gate = d * u * slope(g, kind), want_up = d * activated(g, kind);
          ASSERT_NEAR(double(dgate.view(i, j)), want_gate, tolerance<T>(want_gate, std::abs(d * u)))
              << g;
          ASSERT_NEAR(double(dup.view(i, j)), want_up, tolerance<T>(want_up, std::abs(d))) << g;
        }
      // In place, over any two of the three: the same bits.
      const Tensor<T, 2> want_gate = clone(dgate.view), want_up = clone(dup.view);
      for (const int over : {0, 1, 2}) {
        Tensor<T, 2> g = clone(gate.view), u = clone(up.view), d = clone(dout.view);
        Tensor<T, 2>& to_gate = over == 0 ? g : over == 1 ? d : u;
        Tensor<T, 2>& to_up = over == 0 ? u : over == 1 ? g : d;
        gated_activation_backward(to_gate, to_up, d, g, u, kind);
        ASSERT_EQ(std::memcmp(to_gate.data(), want_gate.data(), want_gate.bytes()), 0) << over;
        ASSERT_EQ(std::memcmp(to_up.data(), want_up.data(), want_up.bytes()), 0) << over;
      }
    }
}

TYPED_TEST(ElementwiseGradients, ActivationsOfExtremeGatesHaveSlopesZeroAndOne) {
  using T = TypeParam;
  const std::vector<float> gates = {-60000, -100, -20, 20, 100, 60000};
  Tensor<T, 2> gate({1, 6}), one({1, 6}), dgate({1, 6}), dup({1, 6});
  fill(one, 1);
  for (index_t j = 0; j < 6; ++j) gate(0, j) = T(gates[std::size_t(j)]);
  for (const Activation kind : kActivations) {
    gated_activation_backward(dgate, dup, one, gate, one, kind);
    for (index_t j = 0; j < 6; ++j)
      EXPECT_NEAR(double(dgate(0, j)), j < 3 || kind == Activation::sigmoid ? 0 : 1, 1e-7) << j;
  }
}

TEST(ActivationGradients, KeepTheirTailsAndLargestGates) {
  Tensor<float, 2> gate({1, 3}), one({1, 3}), dgate({1, 3}), dup({1, 3});
  fill(one, 1);
  gate(0, 0) = -1e38f;
  gate(0, 1) = 1e38f;
  gate(0, 2) = -30;
  for (const Activation kind : kActivations) {
    gated_activation_backward(dgate, dup, one, gate, one, kind);
    EXPECT_EQ(dgate(0, 0), 0) << int(kind);
    EXPECT_EQ(dgate(0, 1), kind == Activation::sigmoid ? 0 : 1) << int(kind);
  }
  gated_activation_backward(dgate, dup, one, gate, one, Activation::sigmoid);
  EXPECT_FLOAT_EQ(dgate(0, 2), float(std::exp(-30.0)));
}

TEST(ActivationGradients, AreThoseOfFiniteDifferences) {
  Philox random(6);
  for (const Activation kind : kActivations) {
    auto gate = normal<double>(Shape{2, 2, 3, 5}, random),
         up = normal<double>(gate.shape(), random);
    const auto dout = normal<double>(gate.shape(), random);
    Tensor<double, 4> out(gate.shape()), dgate(gate.shape()), dup(gate.shape());
    const auto f = [&] {
      gated_activation(out, gate, up, kind);
      return dot(dout, out);
    };
    gated_activation_backward(dgate, dup, dout, gate, up, kind);
    expect_gradient(dgate, gate, f, "dgate");
    expect_gradient(dup, up, f, "dup");
  }
}

TYPED_TEST(ElementwiseGradients, SoftcapMatchesTheOracle) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(7);
  for (const index_t n : kWidths) {
    Rows<T> y(3, n, random), dy(3, n, random), dx(3, n, random);
    for (index_t j = 0; j < n; ++j) y.view(1, j) = T(30.0);  // capped: no slope
    softcap_backward(dx.view, dy.view, y.view, A{30});
    for (index_t i = 0; i < 3; ++i)
      for (index_t j = 0; j < n; ++j) {
        const double want = double(dy.view(i, j)) * (1 - std::pow(double(y.view(i, j)) / 30, 2));
        ASSERT_NEAR(double(dx.view(i, j)), want, tolerance<T>(want)) << n << " " << i;
      }
    const Tensor<T, 2> want = clone(dx.view);
    Tensor<T, 2> over_dy = clone(dy.view), over_y = clone(y.view);
    softcap_backward(over_dy, over_dy, y.view, A{30});
    softcap_backward(over_y, dy.view, over_y, A{30});
    EXPECT_EQ(std::memcmp(over_dy.data(), want.data(), want.bytes()), 0);
    EXPECT_EQ(std::memcmp(over_y.data(), want.data(), want.bytes()), 0);
  }
}

TEST(SoftcapGradient, IsThatOfFiniteDifferences) {
  Philox random(8);
  auto x = normal<double>(Shape{3, 13}, random, 2);
  const auto dy = normal<double>(x.shape(), random);
  Tensor<double, 2> y = x, dx(x.shape());
  softcap(y, 1.5);
  softcap_backward(dx, dy, y, 1.5);
  const auto f = [&] {
    Tensor<double, 2> capped = x;
    softcap(capped, 1.5);
    return dot(dy, capped);
  };
  expect_gradient(dx, x, f, "dx");
}

TYPED_TEST(ElementwiseGradients, DoNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  Philox random(13);
  const auto x = normal<T>(Shape{101, 577}, random), dy = normal<T>(x.shape(), random);
  Tensor<T, 2> dx(x.shape()), other(x.shape());
  for (const Activation kind : kActivations)
    expect_same_with_any_threads<T>(dx,
                                    [&] { gated_activation_backward(dx, other, dy, x, x, kind); });
  expect_same_with_any_threads<T>(dx, [&] { softcap_backward(dx, dy, x, accumulate_t<T>{30}); });
}

TEST(ElementwiseGradientErrors, NameTheArgumentAndTheShape) {
  Tensor<float, 2> x({3, 4}), other({3, 5}), y({3, 4}), z({3, 4});
  EXPECT_THAT(
      [&] { gated_activation_backward(x, y, other, x, y, Activation::silu); },
      testing::ThrowsMessage<ShapeError>(
          "gated_activation_backward: dout is [3, 5], expected [3, 4] = the shape of gate"));
  EXPECT_THAT([&] { gated_activation_backward(x, x, y, y, z, Activation::silu); },
              testing::ThrowsMessage<ValueError>("gated_activation_backward: dup is dgate, "
                                                 "expected two tensors that do not overlap"));
  EXPECT_THAT([&] { softcap_backward(x, y, z, 0.f); },
              testing::ThrowsMessage<ValueError>(
                  "softcap_backward: cap is 0, expected a finite number above 0"));
  EXPECT_THAT([&] { softcap_backward(x, other, z, 1.f); },
              testing::ThrowsMessage<ShapeError>(
                  "softcap_backward: dy is [3, 5], expected [3, 4] = the shape of y"));
}

TYPED_TEST(ElementwiseGradients, OfNothingAreLegal) {
  using T = TypeParam;
  for (const auto& shape : {Shape{0, 4}, Shape{3, 0}}) {
    Tensor<T, 2> x(shape), y(shape);
    gated_activation_backward(x, y, x, x, y, Activation::silu);
    softcap_backward(x, x, x, accumulate_t<T>{1});
  }
}

}  // namespace
}  // namespace rapt::test
