// The row-wise operations against plain loops in double, over the values that the element type
// holds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "core/rows.hpp"
#include "rapt/core/ops/add.hpp"
#include "rapt/core/ops/append_to_cache.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/ops/embedding.hpp"
#include "rapt/core/ops/gated_activation.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/core/ops/softcap.hpp"

namespace rapt::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <class T>
struct Ops : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(Ops, Elements);

const std::vector<index_t> kWidths = {1, 3, 7, 8, 9, 31, 32, 64, 100, 577};

// ---- norms ----

TYPED_TEST(Ops, RmsNormMatchesTheOracle) {
  using T = TypeParam;
  Philox random(1);
  for (const index_t n : kWidths)
    for (const bool plus_one : {false, true})
      for (const bool has_weight : {true, false}) {
        Rows<T> x(5, n, random, 3), y(5, n, random);
        Tensor<T, 1> weight(Shape{n});
        fill_normal(weight, random);
        TensorView<const T, 1> w;
        if (has_weight) w = weight;
        rms_norm(y.view, x.view, w, 1e-5, plus_one);
        for (index_t i = 0; i < 5; ++i) {
          double squares = 0;
          for (index_t j = 0; j < n; ++j) squares += std::pow(double(x.view(i, j)), 2);
          const double scale = 1 / std::sqrt(squares / double(n) + 1e-5);
          for (index_t j = 0; j < n; ++j) {
            const double factor = has_weight ? double(weight(j)) + (plus_one ? 1 : 0) : 1;
            const double want = double(x.view(i, j)) * scale * factor;
            ASSERT_NEAR(double(y.view(i, j)), want, tolerance<T>(want))
                << n << " " << i << " " << j;
          }
        }
      }
}

TYPED_TEST(Ops, LayerNormMatchesTheOracle) {
  using T = TypeParam;
  Philox random(2);
  for (const index_t n : kWidths)
    for (const bool has_bias : {true, false}) {
      Rows<T> x(4, n, random, 2), y(4, n, random);
      Tensor<T, 1> weight(Shape{n}), bias(Shape{n});
      fill_normal(weight, random);
      fill_normal(bias, random);
      TensorView<const T, 1> b;
      if (has_bias) b = bias;
      layer_norm(y.view, x.view, weight, b, 1e-3);
      for (index_t i = 0; i < 4; ++i) {
        double mean = 0, variance = 0;
        for (index_t j = 0; j < n; ++j) mean += double(x.view(i, j)) / double(n);
        for (index_t j = 0; j < n; ++j)
          variance += std::pow(double(x.view(i, j)) - mean, 2) / double(n);
        for (index_t j = 0; j < n; ++j) {
          const double want =
              (double(x.view(i, j)) - mean) / std::sqrt(variance + 1e-3) * double(weight(j)) +
              (has_bias ? double(bias(j)) : 0);
          ASSERT_NEAR(double(y.view(i, j)), want, tolerance<T>(want, 8))
              << n << " " << i << " " << j;
        }
      }
    }
}

TYPED_TEST(Ops, NormsWorkInPlaceOnHeadsOfAFusedProjection) {
  using T = TypeParam;
  Philox random(3);
  Tensor<T, 2> fused({6, 3 * 4 * 16});  // q, k, v side by side; the norm of k's heads
  fill_normal(fused, random);
  const auto k = fused.slice(1, 64, 128).reshape(Shape{2, 3, 4, 16});
  Tensor<T, 4> copied = clone(k), want({2, 3, 4, 16});
  Tensor<T, 1> weight(Shape{16});
  fill_normal(weight, random);
  rms_norm(want, copied, weight, 1e-6);
  rms_norm(k, k, weight, 1e-6);
  EXPECT_EQ(std::memcmp(clone(k).data(), want.data(), want.bytes()), 0);
  layer_norm(want, copied);
  copy(k, copied);
  layer_norm(k, k);
  EXPECT_EQ(std::memcmp(clone(k).data(), want.data(), want.bytes()), 0);
}

TEST(RmsNorm, KeepsTinyAndLargeRows) {
  Tensor<float, 2> x({2, 16}), y({2, 16});
  for (index_t j = 0; j < 16; ++j) {
    x(0, j) = 1e-12f;
    x(1, j) = 1e15f;
  }
  rms_norm(y, x, {}, 0);
  for (index_t j = 0; j < 16; ++j) {
    EXPECT_FLOAT_EQ(y(0, j), 1);
    EXPECT_FLOAT_EQ(y(1, j), 1);
  }
}

TYPED_TEST(Ops, ResultsDoNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  Philox random(4);
  Tensor<T, 2> x({300, 577}), y({300, 577});
  fill_normal(x, random);
  expect_same_with_any_threads<T>(y, [&] { rms_norm(y, x); });
  expect_same_with_any_threads<T>(y, [&] { layer_norm(y, x); });
  expect_same_with_any_threads<T>(y, [&] { gated_activation(y, x, x, Activation::silu); });
  expect_same_with_any_threads<T>(y, [&] { add(y, x); });
}

// ---- elementwise ----

TYPED_TEST(Ops, GatedActivationMatchesTheOracle) {
  using T = TypeParam;
  const auto tanh_gelu = [](double x) {
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  };
  const std::vector<std::pair<Activation, std::function<double(double)>>> kinds = {
      {Activation::silu, [](double x) { return x / (1 + std::exp(-x)); }},
      {Activation::sigmoid, [](double x) { return 1 / (1 + std::exp(-x)); }},
      {Activation::gelu_tanh, tanh_gelu},
      {Activation::gelu_erf,
       [](double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }}};
  Philox random(5);
  for (const index_t n : kWidths)
    for (const auto& [kind, f] : kinds) {
      Rows<T> gate(3, n, random, 3), up(3, n, random), out(3, n, random);
      gated_activation(out.view, gate.view, up.view, kind);
      for (index_t i = 0; i < 3; ++i)
        for (index_t j = 0; j < n; ++j) {
          const double want = f(double(gate.view(i, j))) * double(up.view(i, j));
          ASSERT_NEAR(double(out.view(i, j)), want, tolerance<T>(want))
              << n << " " << i << " " << j;
        }
      gated_activation(gate.view, gate.view, up.view, kind);  // in place: the same bits
      for (index_t j = 0; j < n; ++j) ASSERT_EQ(double(gate.view(0, j)), double(out.view(0, j)));
    }
}

TYPED_TEST(Ops, ActivationsOfExtremeGatesAreFinite) {
  using T = TypeParam;
  Tensor<T, 2> gate({1, 6}), one({1, 6}), out({1, 6});
  for (index_t j = 0; j < 6; ++j) {
    gate(0, j) = T(std::vector<float>{-60000, -100, -20, 20, 100, 60000}[std::size_t(j)]);
    one(0, j) = T(1.f);
  }
  for (const auto kind : {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf}) {
    gated_activation(out, gate, one, kind);
    for (index_t j = 0; j < 6; ++j)
      EXPECT_NEAR(double(out(0, j)), j < 3 ? 0 : double(gate(0, j)), 1e-7) << j;
  }
}

TYPED_TEST(Ops, SoftcapMatchesTheOracleAndStaysInside) {
  using T = TypeParam;
  Philox random(6);
  for (const double stddev : {0.01, 1.0, 30.0, 3000.0})
    for (const index_t n : kWidths) {
      Rows<T> x(3, n, random, stddev);
      const Tensor<T, 2> before = clone(x.view);
      softcap(x.view, 30.f);
      for (index_t i = 0; i < 3; ++i)
        for (index_t j = 0; j < n; ++j) {
          const double want = 30 * std::tanh(double(before(i, j)) / 30);
          ASSERT_NEAR(double(x.view(i, j)), want, tolerance<T>(want, 0)) << stddev << " " << n;
          ASSERT_LE(std::abs(double(x.view(i, j))), 30);
        }
    }
}

TYPED_TEST(Ops, AddMatchesTheOracle) {
  using T = TypeParam;
  Philox random(7);
  for (const index_t n : kWidths) {
    Rows<T> out(3, n, random), x(3, n, random);
    const Tensor<T, 2> before = clone(out.view);
    add(out.view, x.view);
    for (index_t i = 0; i < 3; ++i)
      for (index_t j = 0; j < n; ++j) {
        const double want = double(before(i, j)) + double(x.view(i, j));
        ASSERT_NEAR(double(out.view(i, j)), want, tolerance<T>(want));
      }
  }
}

// ---- lookups ----

TYPED_TEST(Ops, EmbeddingCopiesRowsAndScales) {
  using T = TypeParam;
  Philox random(8);
  Rows<T> table(9, 13, random);
  Tensor<std::int32_t, 2> ids({2, 3});
  for (index_t i = 0; i < 6; ++i) ids(i / 3, i % 3) = static_cast<std::int32_t>(i * 5 % 9);
  Tensor<T, 3> out({2, 3, 13});
  for (const float scale : {1.f, 25.f}) {
    embedding(out, table.view, ids, scale);
    for (index_t i = 0; i < 6; ++i)
      for (index_t j = 0; j < 13; ++j) {
        const double want = double(scale) * double(table.view(ids(i / 3, i % 3), j));
        ASSERT_NEAR(double(out(i / 3, i % 3, j)), want, scale == 1 ? 0 : tolerance<T>(want));
      }
  }
}

TEST(Embedding, RefusesAnIdOutsideTheTableBeforeWriting) {
  Tensor<float, 2> table({4, 2});
  fill(table, 1);
  Tensor<float, 3> out({1, 2, 2});
  for (const std::int32_t bad : {4, -1}) {
    Tensor<std::int32_t, 2> ids({1, 2});
    ids(0, 1) = bad;
    EXPECT_THAT(
        [&] { embedding(out, table, ids); },
        testing::ThrowsMessage<ValueError>("embedding: ids[0, 1] is " + std::to_string(bad) +
                                           ", expected 0 to 3, the rows of table"));
    EXPECT_EQ(out(0, 0, 0), 0);
  }
  Tensor<std::int32_t, 2> ids({1, 2});
  Tensor<float, 3> narrow({1, 2, 1});
  EXPECT_THAT(
      [&] { embedding(narrow, table, ids); },
      testing::ThrowsMessage<ShapeError>("embedding: out is [1, 2, 1], expected [1, 2, 2] = "
                                         "[batch, seq, the last axis of table]"));
}

TYPED_TEST(Ops, AppendToCacheWritesTheSlotsAndNothingElse) {
  using T = TypeParam;
  Philox random(9);
  Tensor<T, 4> cache({2, 5, 3, 4}), wide({2, 3, 3, 8});
  fill_normal(wide, random);
  const auto x = wide.slice(3, 4, 8);
  Tensor<std::int32_t, 2> slots({2, 3});
  const std::int32_t where[2][3] = {{4, 0, -1}, {1, 2, 3}};
  for (index_t b = 0; b < 2; ++b)
    for (index_t s = 0; s < 3; ++s) slots(b, s) = where[b][s];
  append_to_cache(cache, x, slots);
  for (index_t b = 0; b < 2; ++b)
    for (index_t slot = 0; slot < 5; ++slot) {
      index_t from = -1;
      for (index_t s = 0; s < 3; ++s)
        if (where[b][s] == slot) from = s;
      for (index_t g = 0; g < 3; ++g)
        for (index_t d = 0; d < 4; ++d)
          ASSERT_EQ(double(cache(b, slot, g, d)), from < 0 ? 0 : double(x(b, from, g, d)));
    }
  slots(1, 2) = 5;
  EXPECT_THAT([&] { append_to_cache(cache, x, slots); },
              testing::ThrowsMessage<ValueError>(
                  "append_to_cache: slots[1, 2] is 5, expected at most 4, the last slot of cache"));
}

// ---- loss ----

TYPED_TEST(Ops, CrossEntropyMatchesTheOracle) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(10);
  for (const index_t vocab : {1, 2, 7, 50, 1031})
    for (const double smoothing : {0.0, 0.1, 1.0}) {
      Rows<T> logits(6, vocab, random, 4);
      Tensor<std::int32_t, 1> targets(Shape{6});
      for (index_t i = 0; i < 6; ++i) targets(i) = static_cast<std::int32_t>(i * 3 % vocab);
      targets(2) = -100;
      Tensor<A, 1> loss(Shape{6});
      cross_entropy(loss, logits.view, targets, {.label_smoothing = smoothing});
      double total = 0;
      for (index_t i = 0; i < 6; ++i) {
        double want = 0;
        if (i != 2) {
          double largest = -kInfinity, sum = 0, mean = 0;
          for (index_t j = 0; j < vocab; ++j)
            largest = std::max(largest, double(logits.view(i, j)));
          for (index_t j = 0; j < vocab; ++j) {
            sum += std::exp(double(logits.view(i, j)) - largest);
            mean += double(logits.view(i, j)) / double(vocab);
          }
          want = largest + std::log(sum) - (1 - smoothing) * double(logits.view(i, targets(i))) -
                 smoothing * mean;
        }
        total += want;
        ASSERT_NEAR(double(loss(i)), want, tolerance<double>(want) + (sizeof(A) == 4 ? 2e-6 : 0));
      }
      const CrossEntropyOptions mean{.label_smoothing = smoothing};
      const CrossEntropyOptions sum{.label_smoothing = smoothing, .reduction = Reduction::sum};
      EXPECT_NEAR(double(cross_entropy(logits.view, targets, mean)), total / 5, 3e-6);
      EXPECT_NEAR(double(cross_entropy(logits.view, targets, sum)), total, 1e-5);
    }
}

TEST(CrossEntropy, IsStableForExtremeLogits) {
  const float inf = std::numeric_limits<float>::infinity();
  Tensor<float, 2> z({3, 9});
  fill(z, -3e38);
  z(0, 4) = 3e38f;
  z(1, 0) = 1e4f;
  z(1, 1) = 1e4f;
  for (index_t j = 0; j < 9; ++j) z(2, j) = -inf;  // masked vocabulary but for two ids
  z(2, 3) = z(2, 8) = 0;
  Tensor<std::int32_t, 1> targets(Shape{3});
  targets(0) = 4;
  targets(1) = 1;
  targets(2) = 8;
  Tensor<float, 1> loss(Shape{3});
  cross_entropy(loss, z, targets);
  EXPECT_EQ(loss(0), 0);
  EXPECT_FLOAT_EQ(loss(1), 0.69314718f);
  EXPECT_FLOAT_EQ(loss(2), 0.69314718f);
}

TEST(CrossEntropy, MeanOverNoRowIsZero) {
  Tensor<float, 2> z({2, 3});
  Tensor<std::int32_t, 1> targets(Shape{2});
  targets(0) = targets(1) = 7;
  EXPECT_EQ(cross_entropy(z, targets, {.ignore_index = 7}), 0);
  EXPECT_EQ(cross_entropy(Tensor<float, 2>({0, 3}), Tensor<std::int32_t, 1>(Shape{0})), 0);
}

TEST(CrossEntropy, NamesWhatItRefuses) {
  Tensor<float, 2> z({2, 3});
  Tensor<std::int32_t, 1> targets(Shape{2}), three(Shape{3});
  targets(1) = 3;
  EXPECT_THAT([&] { cross_entropy(z, targets); },
              testing::ThrowsMessage<ValueError>(
                  "cross_entropy: targets[1] is 3, expected 0 to 2 or -100 = ignore_index"));
  EXPECT_THAT(
      [&] { cross_entropy(z, three); },
      testing::ThrowsMessage<ShapeError>("cross_entropy: targets is [3], expected [2] = [rows]"));
  EXPECT_THAT(
      [&] { cross_entropy(z, targets, {.label_smoothing = 1.5}); },
      testing::ThrowsMessage<ValueError>("cross_entropy: label_smoothing is 1.5, expected 0 to 1"));
}

// ---- refusals ----

TEST(OpsErrors, NameTheArgumentAndTheShape) {
  Tensor<float, 2> x({3, 4}), other({3, 5});
  Tensor<float, 1> weight(Shape{5});
  EXPECT_THAT([&] { rms_norm(other, x); },
              testing::ThrowsMessage<ShapeError>(
                  "rms_norm: y is [3, 5], expected [3, 4] = the shape of x"));
  EXPECT_THAT([&] { rms_norm(x, x, weight); },
              testing::ThrowsMessage<ShapeError>(
                  "rms_norm: weight is [5], expected [4] = [the last axis of x]"));
  EXPECT_THAT([&] { layer_norm(x, x, {}, weight); },
              testing::ThrowsMessage<ShapeError>(
                  "layer_norm: bias is [5], expected [4] = [the last axis of x]"));
  EXPECT_THAT([&] { rms_norm(x, x, {}, -1); },
              testing::ThrowsMessage<ValueError>(
                  "rms_norm: eps is -1, expected a finite number of at least 0"));
  EXPECT_THAT([&] { gated_activation(x, x, other, Activation::silu); },
              testing::ThrowsMessage<ShapeError>(
                  "gated_activation: up is [3, 5], expected [3, 4] = the shape of gate"));
  EXPECT_THAT([&] { add(x, other); }, testing::ThrowsMessage<ShapeError>(
                                          "add: x is [3, 5], expected [3, 4] = the shape of out"));
  EXPECT_THAT(
      [&] {
        add(x, Tensor<float, 2>({4, 3}).transpose());
      },
      testing::ThrowsMessage<ShapeError>("add: x has stride 3 along its last axis, expected 1"));
  for (const float cap : {0.f, -1.f, std::numeric_limits<float>::quiet_NaN()})
    EXPECT_THROW(softcap(x, cap), ValueError);
  EXPECT_THAT([&] { softcap(x, 0.f); }, testing::ThrowsMessage<ValueError>(
                                            "softcap: cap is 0, expected a finite number above 0"));
}

TYPED_TEST(Ops, EmptyTensorsAreLegal) {
  using T = TypeParam;
  for (const auto& shape : {Shape{0, 4}, Shape{3, 0}}) {
    Tensor<T, 2> x(shape);
    rms_norm(x, x);
    layer_norm(x, x);
    gated_activation(x, x, x, Activation::silu);
    softcap(x, 1.f);
    add(x, x);
  }
  Tensor<T, 3> out({0, 3, 5});
  embedding(out, Tensor<T, 2>({2, 5}), Tensor<std::int32_t, 2>({0, 3}));
}

}  // namespace
}  // namespace rapt::test
