// A weight in its forms: elements, and packed. Blocks: tests/cpu/quantized_matmul_test.cpp.
#include "rapt/core/weight.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <utility>

namespace rapt {
namespace {

template <class T>
struct PackedWeight : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(PackedWeight, Elements);

TYPED_TEST(PackedWeight, MultipliesAsItsElementsDo) {
  using T = TypeParam;
  Philox random(1);
  Weight<T> dense(Shape{70, 36});
  fill_normal(dense.view(), random);
  Weight<T> packed = dense;
  packed.pack();
  EXPECT_TRUE(packed.is_packed());
  EXPECT_TRUE(std::as_const(packed).view().empty());
  EXPECT_LT(packed.bytes(), dense.bytes() * 5 / 4);
  for (const index_t m : {1, 3, 8, 40}) {
    Tensor<T, 2> x({m, 36}), want({m, 70}), got({m, 70});
    Tensor<T, 1> bias({70});
    fill_normal(x, random);
    fill_normal(bias, random);
    dense.multiply(want, x, {.bias = bias.view()});
    packed.multiply(got, x, {.bias = bias.view()});
    const double tolerance = sizeof(T) == 2 ? 0.1 : 1e-4;  // one rounding of sums of about 6
    for (index_t i = 0; i < m; ++i)
      for (index_t j = 0; j < 70; ++j)
        ASSERT_NEAR(static_cast<double>(got(i, j)), static_cast<double>(want(i, j)), tolerance);
  }
}

TYPED_TEST(PackedWeight, GivesItsElementsBack) {
  using T = TypeParam;
  Philox random(2);
  Weight<T> weight(Shape{19, 35});
  fill_normal(weight.view(), random);
  Tensor<T, 2> before({19, 35});
  copy(before, std::as_const(weight).view());
  weight.pack();
  weight.pack();  // nothing left to pack
  const auto elements = weight.view();
  EXPECT_FALSE(weight.is_packed());
  EXPECT_EQ(std::memcmp(elements.data(), before.data(), before.bytes()), 0);
}

TEST(WeightErrors, APackedWeightNeitherLearnsNorIsLookedUp) {
  Weight<float> weight(Shape{5, 3});
  weight.pack();
  Tensor<float, 2> dx({2, 3}), dy({2, 5});
  EXPECT_THAT(
      [&] { weight.multiply_back(dx, dy); },
      testing::ThrowsMessage<ValueError>("backward: a weight [5, 3] is packed, expected elements"));
  Tensor<float, 3> rows({1, 1, 3});
  Tensor<std::int32_t, 2> ids({1, 1});
  EXPECT_THAT([&] { weight.look_up(rows, ids, 1.f); },
              testing::ThrowsMessage<ValueError>(
                  "embedding: a weight [5, 3] is packed, expected elements"));
}

}  // namespace
}  // namespace rapt
