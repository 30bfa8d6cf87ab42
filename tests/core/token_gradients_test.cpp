// The gradients at the two ends of a model, embedding and cross-entropy: against plain loops in
// double over the values that the element type holds, and against finite differences.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "core/rows.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/ops/embedding.hpp"

namespace rapt::test {
namespace {

template <class T>
struct TokenGradients : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(TokenGradients, Elements);

const std::vector<index_t> kWidths = {1, 3, 8, 17, 33, 64, 577};

// ---- embedding ----

TYPED_TEST(TokenGradients, EmbeddingAddsTheRowsOfEachId) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(9);
  for (const index_t n : kWidths) {
    const auto wide = normal<T>(Shape{2, 7, n + 2}, random);
    const auto dy = wide.view().slice(2, 1, n + 1);
    Tensor<std::int32_t, 2> ids({2, 7});
    for (index_t i = 0; i < 14; ++i) ids(i / 7, i % 7) = static_cast<std::int32_t>(i * i % 5);
    auto dtable = normal<A>(Shape{6, n}, random);
    const auto before = dtable;
    embedding_backward(dtable, dy, ids, A{3});
    for (index_t row = 0; row < 6; ++row)
      for (index_t j = 0; j < n; ++j) {
        double want = double(before(row, j));
        for (index_t i = 0; i < 14; ++i)
          if (ids(i / 7, i % 7) == row) want += 3 * double(dy(i / 7, i % 7, j));
        ASSERT_NEAR(double(dtable(row, j)), want, tolerance<A>(want, 20)) << row << " " << j;
      }
  }
}

TEST(EmbeddingGradient, RefusesAnIdOutsideTheTableBeforeWriting) {
  Tensor<float, 2> dtable({4, 2});
  Tensor<float, 3> dy({1, 2, 2}), narrow({1, 2, 1});
  fill(dy, 1);
  Tensor<std::int32_t, 2> ids({1, 2});
  ids(0, 1) = 4;
  EXPECT_THAT([&] { embedding_backward(dtable, dy, ids); },
              testing::ThrowsMessage<ValueError>(
                  "embedding_backward: ids[0, 1] is 4, expected 0 to 3, the rows of dtable"));
  EXPECT_EQ(dtable(0, 0), 0);
  EXPECT_THAT([&] { embedding_backward(dtable, narrow, ids); },
              testing::ThrowsMessage<ShapeError>("embedding_backward: dy is [1, 2, 1], expected "
                                                 "[1, 2, 2] = [batch, seq, the last axis of "
                                                 "dtable]"));
}

// ---- loss ----

TYPED_TEST(TokenGradients, CrossEntropyMatchesTheOracle) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(10);
  for (const index_t vocab : {1, 2, 7, 50, 577, 1031})
    for (const double smoothing : {0.0, 0.1, 1.0}) {
      SCOPED_TRACE(testing::Message() << vocab << " smoothing " << smoothing);
      Rows<T> logits(6, vocab, random, 4), dlogits(6, vocab, random);
      Tensor<std::int32_t, 1> targets(Shape{6});
      for (index_t i = 0; i < 6; ++i) targets(i) = static_cast<std::int32_t>(i * 3 % vocab);
      targets(2) = -100;
      const A scale = A(64);
      const CrossEntropyOptions options{.label_smoothing = smoothing};
      Tensor<A, 1> loss(Shape{6}), loss_want(Shape{6});
      cross_entropy(loss_want, logits.view, targets, options);
      cross_entropy_backward(dlogits.view, logits.view, targets, scale, options);
      for (index_t i = 0; i < 6; ++i) {
        double most = double(logits.view(i, 0)), sum = 0;
        for (index_t j = 0; j < vocab; ++j) most = std::max(most, double(logits.view(i, j)));
        for (index_t j = 0; j < vocab; ++j) sum += std::exp(double(logits.view(i, j)) - most);
        for (index_t j = 0; j < vocab; ++j) {
          const double wanted = (j == targets(i) ? 1 - smoothing : 0) + smoothing / double(vocab);
          const double p = std::exp(double(logits.view(i, j)) - most) / sum;
          const double want = i == 2 ? 0 : 64 * (p - wanted);
          ASSERT_NEAR(double(dlogits.view(i, j)), want, tolerance<T>(want, 4)) << i << " " << j;
        }
      }
      // The fused form: the same bits, in the place of the logits.
      const Tensor<T, 2> want = clone(dlogits.view);
      cross_entropy_with_gradient(loss, logits.view, targets, scale, options);
      EXPECT_EQ(std::memcmp(clone(logits.view).data(), want.data(), want.bytes()), 0);
      for (index_t i = 0; i < 6; ++i)
        ASSERT_NEAR(double(loss(i)), double(loss_want(i)), sizeof(A) == 4 ? 2e-6 : 1e-13);
    }
}

TEST(CrossEntropyGradient, IsThatOfFiniteDifferences) {
  Philox random(11);
  for (const double smoothing : {0.0, 0.3}) {
    auto z = normal<double>(Shape{4, 9}, random, 2);
    Tensor<std::int32_t, 1> targets(Shape{4});
    for (index_t i = 0; i < 4; ++i) targets(i) = static_cast<std::int32_t>(2 * i);
    targets(1) = -100;
    const CrossEntropyOptions options{.label_smoothing = smoothing, .reduction = Reduction::sum};
    Tensor<double, 2> dz(z.shape());
    cross_entropy_backward(dz, z, targets, 0.5, options);
    expect_gradient(
        dz, z, [&] { return 0.5 * cross_entropy(z, targets, options); }, "dlogits");
  }
}

TEST(CrossEntropyGradient, IsStableForExtremeLogits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Tensor<float, 2> z({3, 19});
  fill(z, -3e38);
  z(0, 4) = 3e38f;
  z(1, 0) = z(1, 1) = 1e4f;
  for (index_t j = 0; j < 19; ++j) z(2, j) = -kInfinity;  // masked vocabulary but for two ids
  z(2, 3) = z(2, 18) = 0;
  Tensor<std::int32_t, 1> targets(Shape{3});
  targets(0) = 4;
  targets(1) = 1;
  targets(2) = 18;
  Tensor<float, 1> loss(Shape{3});
  cross_entropy_with_gradient(loss, z, targets, 1.f);
  EXPECT_EQ(loss(0), 0);
  EXPECT_FLOAT_EQ(loss(1), 0.69314718f);
  EXPECT_FLOAT_EQ(loss(2), 0.69314718f);
  for (index_t j = 0; j < 19; ++j) {
    EXPECT_EQ(z(0, j), 0);
    EXPECT_EQ(z(1, j), j == 0 ? 0.5f : j == 1 ? -0.5f : 0);
    EXPECT_EQ(z(2, j), j == 3 ? 0.5f : j == 18 ? -0.5f : 0);
  }
}

TEST(CrossEntropyGradient, NamesWhatItRefusesBeforeWriting) {
  Tensor<float, 2> z({2, 3}), wide({2, 4});
  fill(z, 2);
  Tensor<std::int32_t, 1> targets(Shape{2}), three(Shape{3});
  Tensor<float, 1> loss(Shape{2}), loss3(Shape{3});
  targets(1) = 3;
  EXPECT_THAT([&] { cross_entropy_with_gradient(loss, z, targets, 1.f); },
              testing::ThrowsMessage<ValueError>("cross_entropy_with_gradient: targets[1] is 3, "
                                                 "expected 0 to 2 or -100 = ignore_index"));
  EXPECT_EQ(z(0, 0), 2);
  EXPECT_THAT([&] { cross_entropy_backward(z, z, targets, 1.f); },
              testing::ThrowsMessage<ValueError>("cross_entropy_backward: targets[1] is 3, "
                                                 "expected 0 to 2 or -100 = ignore_index"));
  EXPECT_THAT([&] { cross_entropy_backward(wide, z, targets, 1.f); },
              testing::ThrowsMessage<ShapeError>("cross_entropy_backward: dlogits is [2, 4], "
                                                 "expected [2, 3] = the shape of logits"));
  EXPECT_THAT([&] { cross_entropy_backward(z, z, three, 1.f); },
              testing::ThrowsMessage<ShapeError>(
                  "cross_entropy_backward: targets is [3], expected [2] = [rows]"));
  EXPECT_THAT([&] { cross_entropy_with_gradient(loss3, z, targets, 1.f); },
              testing::ThrowsMessage<ShapeError>(
                  "cross_entropy_with_gradient: loss is [3], expected [2] = [rows]"));
}

TYPED_TEST(TokenGradients, DoNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(13);
  const auto x = normal<T>(Shape{301, 577}, random);
  Tensor<T, 2> dx(x.shape());
  Tensor<std::int32_t, 2> ids({1, 301});
  Tensor<std::int32_t, 1> targets({301});
  for (index_t i = 0; i < 301; ++i) ids(0, i) = targets(i) = static_cast<std::int32_t>(i * 7 % 23);
  Tensor<A, 2> table({23, 577});
  expect_same_with_any_threads<A>(table, [&] {
    embedding_backward(table, x.view().reshape(Shape{1, 301, 577}), ids);
  });
  expect_same_with_any_threads<T>(dx, [&] { cross_entropy_backward(dx, x, targets, A{1}); });
}

TYPED_TEST(TokenGradients, OfNothingAreLegal) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Tensor<T, 2> logits({0, 4});
  cross_entropy_backward(logits, logits, Tensor<std::int32_t, 1>({0}), A{1});
  Tensor<A, 2> table({2, 5});
  embedding_backward(table, Tensor<T, 3>({0, 3, 5}), Tensor<std::int32_t, 2>({0, 3}));
}

}  // namespace
}  // namespace rapt::test
