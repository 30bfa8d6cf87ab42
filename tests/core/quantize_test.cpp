// Oracle: the definition in double precision, written per slice.
#include "rapt/core/quantize.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>

#include "rapt/core/random.hpp"

namespace rapt::test {
namespace {

struct Sizes {
  index_t batch = 2, seq = 5, heads = 3, dim = 7;
};

Tensor<float, 4> random_tensor(const Sizes& n) {
  Tensor<float, 4> x({n.batch, n.seq, n.heads, n.dim});
  Philox random(7);
  fill_normal(x, random);
  return x;
}

TEST(Quantize, PerTokenAndHeadMatchesTheDefinition) {
  const Sizes n;
  auto x = random_tensor(n);
  for (index_t d = 0; d < n.dim; ++d) x(1, 2, 1, d) = 0;  // a slice of zeros
  Tensor<std::int8_t, 4> codes(x.shape());
  Tensor<float, 4> scale({n.batch, n.seq, n.heads, 1}), back(x.shape());
  quantize_int8(codes, scale, x);
  dequantize(back, codes, scale);
  for (index_t b = 0; b < n.batch; ++b)
    for (index_t s = 0; s < n.seq; ++s)
      for (index_t h = 0; h < n.heads; ++h) {
        float amax = 0;
        for (index_t d = 0; d < n.dim; ++d) amax = std::max(amax, std::fabs(x(b, s, h, d)));
        ASSERT_EQ(scale(b, s, h, 0), amax / 127);
        bool reached = amax == 0;
        for (index_t d = 0; d < n.dim; ++d) {
          ASSERT_NEAR(back(b, s, h, d), x(b, s, h, d), 0.5001f * scale(b, s, h, 0));
          reached = reached || std::abs(codes(b, s, h, d)) == 127;
        }
        EXPECT_TRUE(reached) << "the largest value takes the largest code";
      }
  EXPECT_EQ(scale(1, 2, 1, 0), 0.f);
  EXPECT_EQ(codes(1, 2, 1, 3), 0);
}

TEST(Quantize, PerChannelSharesAScaleAlongTheSequence) {
  const Sizes n;
  const auto x = random_tensor(n);
  Tensor<std::int8_t, 4> codes(x.shape());
  Tensor<float, 4> scale({n.batch, index_t{1}, n.heads, n.dim}), back(x.shape());
  quantize_int8(codes, scale, x);
  dequantize(back, codes, scale);
  for (index_t b = 0; b < n.batch; ++b)
    for (index_t h = 0; h < n.heads; ++h)
      for (index_t d = 0; d < n.dim; ++d) {
        float amax = 0;
        for (index_t s = 0; s < n.seq; ++s) amax = std::max(amax, std::fabs(x(b, s, h, d)));
        ASSERT_EQ(scale(b, 0, h, d), amax / 127);
        for (index_t s = 0; s < n.seq; ++s)
          ASSERT_NEAR(back(b, s, h, d), x(b, s, h, d), 0.5001f * scale(b, 0, h, d));
      }
}

TEST(Quantize, TiesGoToEvenAndLargeValuesClamp) {
  Tensor<float, 4> x({1, 1, 1, 8}), scale({1, 1, 1, 1});
  const float values[] = {0.5f, 1.5f, 2.5f, -0.5f, -1.5f, 1e30f, -1e30f, 126.5f};
  const int wanted[] = {0, 2, 2, 0, -2, 127, -127, 126};
  for (index_t d = 0; d < 8; ++d) x(0, 0, 0, d) = values[d] * 0.125f;
  scale(0, 0, 0, 0) = 0.125f;
  Tensor<std::int8_t, 4> codes(x.shape());
  quantize(codes, x, scale);
  for (index_t d = 0; d < 8; ++d) EXPECT_EQ(codes(0, 0, 0, d), wanted[d]) << values[d];
}

TEST(Quantize, Fp8SaturatesAtAScalePerHead) {
  const Sizes n;
  auto x = random_tensor(n);
  x(0, 0, 1, 0) = 1e6f;
  Tensor<float, 4> scale({1, 1, 3, 1}), back(x.shape());
  for (index_t h = 0; h < n.heads; ++h)
    scale(0, 0, h, 0) = std::ldexp(1.f, static_cast<int>(h) - 6);
  Tensor<float8_e4m3, 4> codes(x.shape());
  quantize(codes, x, scale);
  dequantize(back, codes, scale);
  EXPECT_EQ(back(0, 0, 1, 0), 448 * scale(0, 0, 1, 0));
  for (index_t s = 1; s < n.seq; ++s)
    for (index_t h = 0; h < n.heads; ++h)
      for (index_t d = 0; d < n.dim; ++d)
        ASSERT_EQ(
            back(1, s, h, d),
            static_cast<float>(float8_e4m3(x(1, s, h, d) / scale(0, 0, h, 0))) * scale(0, 0, h, 0));
}

TEST(Quantize, AScaleOfZeroAndNaNGiveCodeZero) {
  EXPECT_EQ(quantize_value<std::int8_t>(5.f, 0.f), 0);
  EXPECT_EQ(quantize_value<float8_e4m3>(5.f, 0.f).bits, 0);
  EXPECT_EQ(quantize_value<std::int8_t>(std::nanf(""), 1.f), 0);
  EXPECT_EQ(quantize_value<std::int8_t>(1.f, 1e-45f), 127);
}

TEST(Quantize, NamesTheWrongShape) {
  Tensor<float, 4> x({2, 5, 3, 7}), scale({2, 5, 2, 1});
  Tensor<std::int8_t, 4> codes({2, 5, 3, 7}), small({2, 5, 3, 6});
  EXPECT_THAT([&] { quantize(codes, x, scale); },
              testing::ThrowsMessage<ShapeError>(
                  "quantize: scale is [2, 5, 2, 1], expected on each axis 1 or the extent of x, "
                  "[2, 5, 3, 7]"));
  Tensor<float, 4> good({2, 5, 3, 1});
  EXPECT_THAT([&] { quantize_int8(small, good, x); },
              testing::ThrowsMessage<ShapeError>(
                  "quantize_int8: codes is [2, 5, 3, 6], expected [2, 5, 3, 7] = [batch, seq, "
                  "heads, dim]"));
}

template <class Code>
void expect_rows() {
  const Sizes n;
  auto x = random_tensor(n);
  for (index_t t = 0; t < n.dim; ++t) x(1, 2, 1, t) = 0;
  Tensor<Code, 4> codes(x.shape());
  Tensor<float, 3> scales({n.batch, n.seq, n.heads});
  quantize_rows(codes, scales, x);
  const float largest = std::is_same_v<Code, std::int8_t>   ? 127
                        : std::is_same_v<Code, float8_e4m3> ? 448
                                                            : 57344;
  const float step = std::is_same_v<Code, std::int8_t>   ? 0
                     : std::is_same_v<Code, float8_e4m3> ? 0x1p-4f
                                                         : 0x1p-3f;
  for (index_t b = 0; b < n.batch; ++b)
    for (index_t s = 0; s < n.seq; ++s)
      for (index_t h = 0; h < n.heads; ++h) {
        float most = 0;
        for (index_t t = 0; t < n.dim; ++t) most = std::max(most, std::fabs(x(b, s, h, t)));
        const float scale = scales(b, s, h);
        ASSERT_EQ(scale, most / largest);
        for (index_t t = 0; t < n.dim; ++t) {
          const float back = static_cast<float>(codes(b, s, h, t)) * scale, value = x(b, s, h, t);
          ASSERT_LE(std::fabs(back - value),
                    std::max(0.5001f * scale, 1.0001f * step * std::fabs(value)));
        }
      }
  for (index_t t = 0; t < n.dim; ++t) EXPECT_EQ(static_cast<float>(codes(1, 2, 1, t)), 0.f);
}

TEST(QuantizeRows, TakesAScaleForEachTokenAndHead) {
  expect_rows<std::int8_t>();
  expect_rows<float8_e4m3>();
  expect_rows<float8_e5m2>();
}

TEST(QuantizeRows, RoundsHalfToEvenAndIsIdempotent) {
  // 3 F(1, 8) of the specification.
  const float values[] = {-0.5f, 3, 0, -3, 0.5f, -2.5f, 1, -2};
  const int want[] = {-21, 127, 0, -127, 21, -106, 42, -85};
  const TensorView<const float, 4> x(values, {1, 1, 1, 8});
  Tensor<std::int8_t, 4> codes(x.shape()), again(x.shape());
  Tensor<float, 3> scales({1, 1, 1});
  quantize_rows(codes, scales, x);
  EXPECT_FLOAT_EQ(scales(0, 0, 0), 3 / 127.f);
  for (index_t t = 0; t < 8; ++t) EXPECT_EQ(codes(0, 0, 0, t), want[t]);
  const float halves[] = {127, 0.5f, 1.5f, 2.5f, -0.5f, -1.5f, -126.5f, 126.5f};
  const int even[] = {127, 0, 2, 2, 0, -2, -126, 126};
  quantize_rows(codes, scales, TensorView<const float, 4>(halves, {1, 1, 1, 8}));
  for (index_t t = 0; t < 8; ++t) EXPECT_EQ(codes(0, 0, 0, t), even[t]);
  Tensor<half, 4> back(x.shape());
  for (index_t t = 0; t < 8; ++t) back(0, 0, 0, t) = half(static_cast<float>(codes(0, 0, 0, t)));
  quantize_rows(again, scales, back);
  for (index_t t = 0; t < 8; ++t) EXPECT_EQ(again(0, 0, 0, t), codes(0, 0, 0, t));
}

TEST(QuantizeRows, RefusesWhatIsNotFinite) {
  Tensor<float, 4> x({1, 2, 3, 4});
  Tensor<std::int8_t, 4> codes(x.shape());
  Tensor<float, 3> scales({1, 2, 3});
  codes(0, 0, 0, 0) = 5;
  x(0, 1, 2, 3) = std::numeric_limits<float>::infinity();
  EXPECT_THAT([&] { quantize_rows(codes, scales, x); },
              testing::ThrowsMessage<ValueError>(testing::HasSubstr(
                  "quantize_rows: x[0, 1, 2, 3] is inf, expected a finite number")));
  EXPECT_EQ(codes(0, 0, 0, 0), 5);
  Tensor<float, 3> wrong({1, 3, 2});
  EXPECT_THAT([&] { quantize_rows(codes, wrong, x); },
              testing::ThrowsMessage<ShapeError>(testing::HasSubstr(
                  "quantize_rows: scales is [1, 3, 2], expected [1, 2, 3] = [batch, seq, heads]")));
}

}  // namespace
}  // namespace rapt::test
