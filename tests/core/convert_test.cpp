// Copies: strided on both sides, between element types, refusing other shapes.
#include "rapt/core/convert.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace rapt::test {

using testing::HasSubstr;
using testing::ThrowsMessage;

Tensor<float, 3> counting(Shape<3> shape) {
  Tensor<float, 3> t(shape);
  for (index_t i = 0; i < t.size(); ++i) t.data()[i] = static_cast<float>(i) / 8;
  return t;
}

TEST(Copy, HandlesStridesOnBothSides) {
  const Tensor<float, 3> from = counting({3, 4, 5});
  Tensor<float, 3> to_memory({5, 7, 3});
  auto target = to_memory.slice(1, 2, 6).transpose(0, 2);  // [3, 4, 5]
  copy(target, from);
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 4; ++j)
      for (index_t k = 0; k < 5; ++k) ASSERT_EQ(to_memory(k, j + 2, i), from(i, j, k));
  EXPECT_EQ(to_memory(0, 0, 2), 0.f);  // outside the slice nothing is written
  EXPECT_EQ(to_memory(4, 6, 0), 0.f);
}

template <class T>
class ElementTypes : public testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16, float8_e4m3, float8_e5m2,
                                std::int64_t, std::int32_t, std::int16_t, std::int8_t>;
TYPED_TEST_SUITE(ElementTypes, Elements);

TYPED_TEST(ElementTypes, RoundTripsWhatItHolds) {
  Tensor<float, 2> values({2, 3});
  const float numbers[] = {0.f, 1.f, -2.f, 4.f, -16.f, 7.f};
  for (int i = 0; i < 6; ++i) values.data()[i] = numbers[i];
  const auto there = to<TypeParam>(values);
  const auto back = to<float>(there);
  const auto wide = to<double>(there);
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(back.data()[i], numbers[i]);
    EXPECT_EQ(wide.data()[i], static_cast<double>(numbers[i]));
  }
}

TEST(Copy, RoundsToNearestEvenAndOnce) {
  Tensor<double, 1> d({2});
  // Halfway between two bfloat16 in float, a hair above it in double: rounded once, it goes up.
  d(0) = 1.0 + 0x1p-8 + 0x1p-40;
  d(1) = 1.0 + 0x1p-8;  // a true tie: to the even neighbour
  const auto b = to<bfloat16>(d);
  EXPECT_EQ(static_cast<float>(b(0)), 1.0f + 0x1p-7f);
  EXPECT_EQ(static_cast<float>(b(1)), 1.0f);
}

TEST(Copy, ClampsIntegersAndKeepsSpecialValues) {
  Tensor<float, 1> f({4});
  f(0) = 300.f;
  f(1) = -std::numeric_limits<float>::infinity();
  f(2) = std::numeric_limits<float>::quiet_NaN();
  f(3) = -1.75f;
  const auto i = to<std::int8_t>(f);
  EXPECT_EQ(i(0), 127);
  EXPECT_EQ(i(1), -128);
  EXPECT_EQ(i(2), 0);
  EXPECT_EQ(i(3), -1);
  const auto h = to<half>(f);
  EXPECT_TRUE(std::isinf(static_cast<float>(h(1))));
  EXPECT_TRUE(std::isnan(static_cast<float>(h(2))));
}

TEST(Copy, NamesTheShapesThatDiffer) {
  Tensor<float, 2> a({2, 3}), b({3, 2});
  EXPECT_THAT([&] { copy(a, b); },
              ThrowsMessage<ShapeError>(HasSubstr("copy: from is [3, 2], expected [2, 3]")));
}

TEST(Copy, MovesNothingForAnEmptyTensor) {
  Tensor<float, 2> a({0, 3}), b({0, 3});
  EXPECT_NO_THROW(copy(a, b));
  EXPECT_EQ(to<half>(a).extent(1), 3);
}

TEST(Clone, MakesAViewContiguous) {
  const Tensor<float, 3> t = counting({2, 3, 4});
  const auto c = clone(t.transpose());
  EXPECT_EQ(c.shape(), Shape(2, 4, 3));
  EXPECT_EQ(c(1, 3, 2), t(1, 2, 3));
  const auto d = to(Cpu{}, t.slice(1, 1, 2));
  EXPECT_EQ(d(1, 0, 3), t(1, 1, 3));
}

}  // namespace rapt::test
