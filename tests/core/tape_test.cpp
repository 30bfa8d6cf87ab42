// Tape: last in, first out, checked; memory that is kept; what parameters do with gradients.
#include "rapt/core/tape.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rapt/core/parameter.hpp"
#include "support/count_allocations.hpp"

namespace rapt::test {
namespace {

template <class E, class F>
void expect_text(F&& f, const std::string& part) {
  EXPECT_THAT(f, testing::ThrowsMessage<E>(testing::HasSubstr(part)));
}

TEST(Tape, GivesBackWhatWasPushedInTheOppositeOrder) {
  Tape<> tape;
  const auto fill = [](auto view, int first) {
    for (index_t i = 0; i < view.size(); ++i)
      view.data()[i] = static_cast<element_t<decltype(view)>>(first + static_cast<int>(i));
  };
  fill(tape.push<float>(Shape{3, 5}), 100);
  fill(tape.push<std::int32_t>(Shape<1>{7}), 200);
  fill(tape.push<bfloat16>(Shape{1, 2, 3, 4}), 50);
  tape.push<double>(Shape{0, 4});
  EXPECT_EQ(tape.size(), 4u);

  EXPECT_TRUE((tape.pop<double, 2>().empty()));
  const auto c = tape.pop<bfloat16>(Shape{1, 2, 3, 4});
  const auto b = tape.pop<std::int32_t, 1>();
  const auto a = tape.pop<float, 2>();
  EXPECT_EQ(static_cast<float>(c(0, 1, 2, 3)), 50.f + 23);
  EXPECT_EQ(b(6), 206);
  EXPECT_EQ(a.shape(), (Shape{3, 5}));
  EXPECT_EQ(a(2, 4), 114.f);
  EXPECT_TRUE(tape.empty());
  EXPECT_EQ(tape.bytes(), 0u);
}

TEST(Tape, NamesWhatDoesNotFitAndStaysAsItWas) {
  Tape<> tape;
  expect_text<ValueError>(
      [&] {
        tape.pop<float>(Shape{2, 3});
      },
      "tape: nothing is left, expected f32 [2, 3]");
  tape.push<float>(Shape{2, 3});
  expect_text<ValueError>(
      [&] {
        tape.pop<double>(Shape{2, 3});
      },
      "tape: the last pushed is f32 [2, 3], expected f64 [2, 3]");
  expect_text<ShapeError>(
      [&] {
        tape.pop<float>(Shape{3, 2});
      },
      "tape: the last pushed is f32 [2, 3], expected f32 [3, 2]");
  expect_text<ShapeError>([&] { (void)tape.pop<float, 3>(); },
                          "tape: the last pushed is f32 [2, 3], expected f32 of rank 3");
  EXPECT_EQ(tape.size(), 1u);
  EXPECT_TRUE(tape.pop<float>(Shape{2, 3}));
}

// A step whose sizes spread over several pages.
void step(Tape<>& tape) {
  for (index_t n = 1; n < 40; ++n) {
    auto view = tape.push<float>(Shape{n * 1000, 3});
    view(n * 1000 - 1, 2) = static_cast<float>(n);
  }
  for (index_t n = 40; n-- > 1;) {
    const auto view = tape.pop<float>(Shape{n * 1000, 3});
    EXPECT_EQ(view(n * 1000 - 1, 2), static_cast<float>(n));
  }
}

TEST(Tape, AllocatesNothingOnceItHasGrown) {
  Tape<> tape;
  step(tape);
  step(tape);  // one page now
  const std::size_t capacity = tape.capacity();
  const AllocationCount count;
  for (int i = 0; i < 3; ++i) step(tape);
  EXPECT_EQ(count.so_far(), 0);
  EXPECT_EQ(tape.capacity(), capacity);
  EXPECT_EQ(tape.capacity(), tape.peak_bytes());
}

TEST(Tape, CountsBytesAndTheirPeak) {
  Tape<> tape;
  tape.push<float>(Shape<1>{64});  // 256 bytes: no padding
  tape.push<half>(Shape<1>{128});
  EXPECT_EQ(tape.bytes(), 512u);
  tape.pop<half, 1>();
  EXPECT_EQ(tape.bytes(), 256u);
  EXPECT_EQ(tape.peak_bytes(), 512u);
  tape.reset_peak();
  EXPECT_EQ(tape.peak_bytes(), 256u);
  tape.clear();
  EXPECT_EQ(tape.bytes(), 0u);
  EXPECT_TRUE(tape.empty());
}

TEST(Tape, TruncatedForgetsTheLatest) {
  Tape<> tape;
  tape.push<float>(Shape<1>{3})(0) = 7;
  const std::size_t mark = tape.size();
  tape.push<double>(Shape{2, 2});
  tape.push<double>(Shape{2, 2});
  tape.truncate(mark);
  EXPECT_EQ((tape.pop<float, 1>()(0)), 7.f);
}

TEST(Parameter, CarriesItsGradientAndZeroesIt) {
  Tensor<bfloat16, 2> weight(Shape{2, 3});
  Tensor<float, 2> gradient;
  Parameters<bfloat16, Cpu> parameters = {{"w", weight, gradient}};
  EXPECT_FALSE(parameters[0].gradient);
  zero_gradients(parameters);  // nothing to do

  detail::make_gradient(gradient, weight);
  parameters = {{"w", weight, gradient}};
  ASSERT_TRUE(parameters[0].gradient);
  EXPECT_EQ(parameters[0].gradient.size(), 6);
  gradient(1, 2) = 4;
  detail::make_gradient(gradient, weight);  // keeps what there is
  EXPECT_EQ(parameters[0].gradient(5), 4.f);
  zero_gradients(parameters);
  EXPECT_EQ(gradient(1, 2), 0.f);

  Tensor<float, 2> other(Shape{3, 2});
  expect_text<ShapeError>([&] { Parameter<bfloat16, Cpu>("w", weight, other); },
                          "w's gradient is [3, 2], expected [2, 3]");
}

}  // namespace
}  // namespace rapt::test
