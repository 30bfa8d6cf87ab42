// Tensor and TensorView: shapes, element access, views, and the words of their errors.
#include "rapt/core/tensor.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <span>
#include <vector>

namespace rapt::test {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

template <std::size_t Rank>
Tensor<float, Rank> counting(Shape<Rank> shape) {
  Tensor<float, Rank> t(shape);
  std::iota(t.data(), t.data() + t.size(), 0.f);
  return t;
}

template <class T, std::size_t Rank>
std::vector<float> elements(TensorView<T, Rank> view) {
  std::vector<float> out;
  if constexpr (Rank == 1) {
    for (index_t i = 0; i < view.extent(0); ++i) out.push_back(static_cast<float>(view(i)));
  } else {
    for (index_t i = 0; i < view.extent(0); ++i)
      for (const float x : elements(view.select(0, i))) out.push_back(x);
  }
  return out;
}

// A shape is exactly Rank integers, in braces: anything else must not compile.
static_assert(std::is_constructible_v<Tensor<float, 2>, Shape<2>>);
static_assert(std::is_constructible_v<Shape<2>, int, std::size_t>);
static_assert(!std::is_constructible_v<Shape<2>, int>);
static_assert(!std::is_constructible_v<Shape<2>, int, int, int>);
static_assert(!std::is_constructible_v<Shape<2>, int, float>);
static_assert(!std::is_convertible_v<int, Shape<1>>);
static_assert(!std::is_invocable_v<const Tensor<float, 2>&, int>);
static_assert(std::is_invocable_v<const Tensor<float, 2>&, int, std::int64_t>);
static_assert(std::is_trivially_copyable_v<TensorView<float, 4>>);
static_assert(std::is_convertible_v<TensorView<float, 2>, TensorView<const float, 2>>);
static_assert(!std::is_convertible_v<TensorView<const float, 2>, TensorView<float, 2>>);
static_assert(TensorLike<Tensor<float, 3>, 3> && !TensorLike<Tensor<float, 3>, 4>);
static_assert(WritableTensorLike<Tensor<float, 3>&, 3>);
static_assert(!WritableTensorLike<const Tensor<float, 3>&, 3>);
static_assert(!WritableTensorLike<TensorView<const float, 3>, 3>);
static_assert(std::is_same_v<element_t<const TensorView<const half, 2>&>, half>);

TEST(Tensor, StartsAsAlignedZerosInRowMajorOrder) {
  Tensor<float, 3> t({2, 3, 4});
  EXPECT_EQ(t.size(), 24);
  EXPECT_EQ(t.bytes(), 96u);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(t.data()) % 64, 0u);
  for (const float x : elements(t.view())) EXPECT_EQ(x, 0.f);
  EXPECT_EQ(t.strides(), Shape(12, 4, 1));
  t(1, 2, 3) = 5.f;
  EXPECT_EQ(t.data()[23], 5.f);
}

TEST(Tensor, CopiesDeeplyAndMovesWithoutCopying) {
  Tensor<float, 2> a = counting(Shape(2, 2));
  Tensor<float, 2> b = a;
  b(0, 0) = 9;
  EXPECT_EQ(a(0, 0), 0.f);
  const float* data = a.data();
  const Tensor<float, 2> c = std::move(a);
  EXPECT_EQ(c.data(), data);
  EXPECT_TRUE(a.empty());  // NOLINT(bugprone-use-after-move): a moved-from tensor is empty
  const Tensor<float, 2>& itself = b;
  b = itself;
  EXPECT_EQ(b(0, 0), 9.f);
  b = c;
  EXPECT_EQ(b(1, 1), 3.f);
}

TEST(Tensor, HoldsNothingWhenAnExtentIsZero) {
  Tensor<float, 3> t({2, 0, 4});
  EXPECT_TRUE(t.empty());
  EXPECT_EQ(t.extent(2), 4);
  const Tensor<float, 3> copy = t;
  EXPECT_EQ(copy.shape(), t.shape());
  EXPECT_TRUE(t.view().is_contiguous());
  EXPECT_EQ(t.reshape(Shape(0, 7)).extent(1), 7);
}

TEST(Tensor, RefusesNegativeAndAbsurdShapes) {
  using Matrix = Tensor<double, 2>;
  EXPECT_THAT(
      [] {
        Matrix({2, -1});
      },
      ThrowsMessage<ShapeError>(HasSubstr("shape is [2, -1], expected no negative")));
  EXPECT_THAT(
      [] {
        Matrix({index_t{1} << 40, index_t{1} << 21});
      },
      ThrowsMessage<ShapeError>(HasSubstr("[1099511627776, 2097152] of 8-byte elements")));
  // An extent of zero hides nothing: no overflow is possible.
  EXPECT_NO_THROW((Tensor<float, 3>({index_t{1} << 40, index_t{1} << 40, 0})));
}

TEST(TensorView, IsAbsentByDefaultAndBorrowsForeignMemory) {
  EXPECT_FALSE((TensorView<float, 2>()));
  std::vector<float> memory(12);
  std::iota(memory.begin(), memory.end(), 0.f);
  const TensorView<float, 2> rows(memory.data(), {3, 4});
  EXPECT_TRUE(rows);
  EXPECT_EQ(rows(2, 1), 9.f);
  const TensorView<const float, 2> columns(memory.data(), {4, 3}, {1, 4});
  EXPECT_EQ(columns(1, 2), 9.f);
  const TensorView<const float, 1> line{std::span<const float>(memory)};
  EXPECT_EQ(line.extent(0), 12);
}

TEST(TensorView, SlicesSelectsAndTransposesWithoutCopying) {
  Tensor<float, 3> t = counting(Shape(2, 3, 4));
  const auto middle = t.slice(1, 1, 3);
  EXPECT_EQ(middle.shape(), Shape(2, 2, 4));
  EXPECT_EQ(middle(1, 0, 2), t(1, 1, 2));
  EXPECT_FALSE(middle.is_contiguous());
  EXPECT_TRUE(t.slice(0, 1, 2).is_contiguous());
  EXPECT_THAT(elements(t.select(1, 2).select(0, 1)), ElementsAre(20, 21, 22, 23));
  EXPECT_EQ(t.transpose()(1, 3, 2), t(1, 2, 3));
  EXPECT_EQ(t.transpose(0, 2)(3, 2, 1), t(1, 2, 3));
  EXPECT_EQ(t.slice(1, 3, 3).size(), 0);
  t.slice(0, 1, 2)(0, 0, 0) = -1;
  EXPECT_EQ(t(1, 0, 0), -1.f);
}

TEST(TensorView, NamesTheRangeThatDoesNotFit) {
  Tensor<float, 2> t({2, 3});
  EXPECT_THAT([&] { t.slice(1, 1, 4); },
              ThrowsMessage<ShapeError>(HasSubstr("axis 1 range is [1, 4), expected a range inside "
                                                  "[2, 3]")));
  EXPECT_THROW(t.slice(1, -1, 2), ShapeError);
  EXPECT_THROW(t.slice(1, 2, 1), ShapeError);
  EXPECT_THROW(t.slice(2, 0, 1), ShapeError);
  EXPECT_THAT(
      [&] { t.select(0, 2); },
      ThrowsMessage<ShapeError>(HasSubstr("index 2 of axis 0, expected one inside [2, 3]")));
  EXPECT_THROW(t.transpose(0, 2), ShapeError);
}

TEST(TensorView, ReshapesWhatLiesWithoutGaps) {
  Tensor<float, 3> t = counting(Shape(4, 6, 5));
  EXPECT_EQ(t.reshape(Shape(2, 2, 30))(1, 0, 7), t(2, 1, 2));

  const auto left = t.slice(2, 0, 4);  // gaps after every row of 4
  EXPECT_EQ(left.reshape(Shape(2, 2, 3, 2, 4))(1, 0, 2, 1, 3), t(2, 5, 3));
  EXPECT_EQ(left.reshape(Shape(24, 2, 2))(13, 1, 1), t(2, 1, 3));
  EXPECT_THAT(
      [&] { left.reshape(Shape(4, 24)); },
      ThrowsMessage<ShapeError>(HasSubstr("shape [4, 6, 4] and strides [30, 5, 1] has gaps")));
  const auto some_rows = t.slice(1, 0, 3);
  EXPECT_EQ(some_rows.reshape(Shape(4, 15))(1, 14), t(1, 2, 4));
  EXPECT_THROW(some_rows.reshape(Shape(12, 5)), ShapeError);
  EXPECT_THROW(t.reshape(Shape(4, 6, 6)), ShapeError);
}

TEST(TensorView, ReshapesAcrossAxesOfExtentOne) {
  // One decode step of a longer buffer, [batch, 1, heads, dim] turned to [batch, heads, 1, dim]:
  // the stride of the axis of extent 1 is not the one a dense tensor would have, and must not
  // matter.
  Tensor<float, 4> t = counting(Shape(2, 3, 4, 5));
  const auto step = t.slice(1, 1, 2).transpose(1, 2);
  const auto flat = step.reshape(Shape(2, 20));
  EXPECT_EQ(flat(1, 7), t(1, 1, 1, 2));
  const auto grown = t.slice(1, 1, 2).reshape(Shape(2, 1, 1, 20, 1));
  EXPECT_EQ(grown(1, 0, 0, 19, 0), t(1, 1, 3, 4));
}

TEST(TensorView, KnowsWhetherItIsContiguous) {
  Tensor<float, 3> t({2, 3, 4});
  EXPECT_TRUE(t.view().is_contiguous());
  EXPECT_FALSE(t.transpose().is_contiguous());
  EXPECT_TRUE(t.slice(0, 0, 1).transpose(0, 1).is_contiguous());  // [3, 1, 4]
}

TEST(CheckShape, NamesOperationArgumentValueAndAxes) {
  EXPECT_THAT(
      [] {
        detail::check_shape("attention", "v", Shape(2, 96, 2, 64), Shape(2, 128, 2, 64),
                            "[batch, kv_len, kv_heads, value_dim]");
      },
      ThrowsMessage<ShapeError>("attention: v is [2, 96, 2, 64], expected [2, 128, 2, 64] = "
                                "[batch, kv_len, kv_heads, value_dim]"));
  EXPECT_TRUE((std::is_base_of_v<std::invalid_argument, ShapeError>));
  EXPECT_TRUE((std::is_base_of_v<std::length_error, CapacityError>));
}

TEST(Tensor, StartsAtAHugePageFromTwoMebibytesOn) {
  constexpr index_t kHuge = index_t{2} << 20;
  for (const index_t bytes : {kHuge - 1, kHuge, kHuge + 1, 3 * kHuge + 5}) {
    Tensor<std::uint8_t, 1> t(Shape{bytes});
    const auto address = reinterpret_cast<std::uintptr_t>(t.data());
    EXPECT_EQ(address % (bytes < kHuge ? 64 : kHuge), 0u) << bytes;
    EXPECT_EQ(t(bytes - 1), 0);
    t(bytes - 1) = 7;
    const Tensor<std::uint8_t, 1> moved = std::move(t), copy = moved;
    EXPECT_EQ(copy(bytes - 1), 7);
  }
}

}  // namespace rapt::test
