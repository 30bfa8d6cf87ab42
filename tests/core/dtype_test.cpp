// Oracles: decoding by the definition, value = (-1)^s 2^(e-bias) 1.m, in double; rounding by search
// among all codes of a format, decided in exact arithmetic on doubles. No code is shared.
#include "rapt/core/dtype.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

namespace rapt::test {
namespace {

struct HalfCase {
  using Type = half;
  static constexpr int kExponent = 5, kMantissa = 10;
  static constexpr bool kInfinity = true, kSaturates = false;
};
struct Bfloat16Case {
  using Type = bfloat16;
  static constexpr int kExponent = 8, kMantissa = 7;
  static constexpr bool kInfinity = true, kSaturates = false;
};
struct Float8E4M3Case {
  using Type = float8_e4m3;
  static constexpr int kExponent = 4, kMantissa = 3;
  static constexpr bool kInfinity = false, kSaturates = true;
};
struct Float8E5M2Case {
  using Type = float8_e5m2;
  static constexpr int kExponent = 5, kMantissa = 2;
  static constexpr bool kInfinity = true, kSaturates = true;
};

template <class Case>
constexpr unsigned code_count() {
  return 1u << (1 + Case::kExponent + Case::kMantissa);
}

/// The definition. Infinity and NaN as such.
template <class Case>
double decode(unsigned code) {
  const int bias = (1 << (Case::kExponent - 1)) - 1;
  const unsigned mantissa = code & ((1u << Case::kMantissa) - 1);
  const unsigned exponent = (code >> Case::kMantissa) & ((1u << Case::kExponent) - 1);
  const double sign = code >> (Case::kExponent + Case::kMantissa) ? -1 : 1;
  const unsigned ones = (1u << Case::kExponent) - 1;
  const double fraction = std::ldexp(mantissa, -Case::kMantissa);
  if (exponent == ones) {
    if (Case::kInfinity)
      return mantissa == 0 ? sign * std::numeric_limits<double>::infinity() : std::nan("");
    if (mantissa == (1u << Case::kMantissa) - 1) return std::nan("");
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1 + fraction, static_cast<int>(exponent) - bias);
}

/// Finite, non-negative values in ascending order; the index is the code.
template <class Case>
const std::vector<double>& magnitudes() {
  static const std::vector<double> values = [] {
    std::vector<double> out;
    for (unsigned code = 0; code < code_count<Case>() / 2; ++code) {
      const double value = decode<Case>(code);
      if (!std::isfinite(value)) break;
      out.push_back(value);
    }
    return out;
  }();
  return values;
}

/// Nearest code of a finite |x|, ties to even; `beyond` where x rounds past the largest value.
/// Neighbouring values and their middle are exact in double, so the comparison is exact.
template <class Case>
unsigned round_magnitude(double x, unsigned beyond) {
  const std::vector<double>& values = magnitudes<Case>();
  const auto last = static_cast<unsigned>(values.size() - 1);
  const auto above =
      static_cast<unsigned>(std::lower_bound(values.begin(), values.end(), x) - values.begin());
  if (above == 0) return 0;
  if (above > last) {
    const double step = values[last] - values[last - 1];
    const double middle = values[last] + step / 2;
    return x < middle || (x == middle && last % 2 == 0) ? last : beyond;
  }
  const unsigned below = above - 1;
  const double middle = (values[below] + values[above]) / 2;
  if (x == middle) return below % 2 == 0 ? below : above;
  return x < middle ? below : above;
}

template <class Case, class Source>
unsigned round(Source x, bool saturate) {
  const unsigned sign = std::signbit(x) ? code_count<Case>() / 2 : 0;
  const auto last = static_cast<unsigned>(magnitudes<Case>().size() - 1);
  const unsigned beyond = saturate ? last : last + 1;  // the next code is inf, or e4m3's NaN
  if (std::isinf(x)) return sign | beyond;
  return sign | round_magnitude<Case>(std::fabs(static_cast<double>(x)), beyond);
}

template <class Case>
struct SmallFloats : testing::Test {};
using Cases = testing::Types<HalfCase, Bfloat16Case, Float8E4M3Case, Float8E5M2Case>;
TYPED_TEST_SUITE(SmallFloats, Cases);

TYPED_TEST(SmallFloats, EveryCodeHasItsValueAndComesBack) {
  using T = typename TypeParam::Type;
  for (unsigned code = 0; code < code_count<TypeParam>(); ++code) {
    const T x = T::from_bits(static_cast<decltype(T::bits)>(code));
    const double wanted = decode<TypeParam>(code);
    const auto value = static_cast<float>(x);
    if (std::isnan(wanted)) {
      ASSERT_TRUE(std::isnan(value)) << code;
      ASSERT_TRUE(std::isnan(static_cast<float>(T(value)))) << code;
      ASSERT_TRUE(std::isnan(static_cast<float>(T(static_cast<double>(x))))) << code;
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), wanted) << code;
    ASSERT_EQ(static_cast<double>(x), wanted) << code;
    ASSERT_EQ(std::signbit(value), std::signbit(wanted)) << code;
    if (std::isinf(wanted) && TypeParam::kSaturates) continue;
    ASSERT_EQ(unsigned{T(value).bits}, code);
    ASSERT_EQ(unsigned{T(wanted).bits}, code);
  }
}

template <class Case, class Source>
void expect_rounded(Source x) {
  using T = typename Case::Type;
  ASSERT_EQ(unsigned{T(x).bits}, (round<Case>(x, Case::kSaturates))) << x;
  if constexpr (Case::kSaturates) {
    ASSERT_EQ(unsigned{T::from_float_nonsaturating(x).bits}, (round<Case>(x, false))) << x;
  }
}

TYPED_TEST(SmallFloats, TiesGoToEvenAndTheirNeighboursToTheNearest) {
  const std::vector<double>& values = magnitudes<TypeParam>();
  for (std::size_t i = 0; i < values.size(); ++i) {
    // Past the last value lies the first tie that overflows.
    const double next = i + 1 < values.size() ? values[i + 1] : 2 * values[i] - values[i - 1];
    const double middle = (values[i] + next) / 2;
    for (const double sign : {1.0, -1.0}) {
      expect_rounded<TypeParam>(sign * middle);
      // A double that a float would move onto the tie: the trap of rounding twice.
      expect_rounded<TypeParam>(sign * std::nextafter(middle, 0.0));
      expect_rounded<TypeParam>(sign * std::nextafter(middle, 2 * next));
      const auto single = static_cast<float>(sign * middle);
      if (std::isinf(single)) continue;
      expect_rounded<TypeParam>(single);
      expect_rounded<TypeParam>(std::nextafter(single, 0.f));
      if (std::isfinite(std::nextafter(single, 2 * single)))
        expect_rounded<TypeParam>(std::nextafter(single, 2 * single));
    }
  }
}

TYPED_TEST(SmallFloats, RandomBitPatternsRoundLikeTheSearch) {
  std::mt19937_64 random(1);
  for (int i = 0; i < 200000; ++i) {
    const auto bits32 = static_cast<std::uint32_t>(random());
    float single;
    std::memcpy(&single, &bits32, sizeof single);
    if (!std::isnan(single)) expect_rounded<TypeParam>(single);
    const std::uint64_t bits64 = random();
    double wide;
    std::memcpy(&wide, &bits64, sizeof wide);
    if (!std::isfinite(wide) || wide == 0) continue;
    expect_rounded<TypeParam>(wide);
    // Most random doubles are far out of range: these are near it.
    expect_rounded<TypeParam>(std::ldexp(wide / std::ldexp(1.0, std::ilogb(wide)),
                                         static_cast<int>(random() % 300) - 150));
  }
}

TYPED_TEST(SmallFloats, SpecialValues) {
  using T = typename TypeParam::Type;
  using Limits = std::numeric_limits<T>;
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(T(0.f).bits, 0);
  EXPECT_EQ(unsigned{T(-0.f).bits}, code_count<TypeParam>() / 2);
  EXPECT_EQ(unsigned{T(-0.).bits}, code_count<TypeParam>() / 2);
  EXPECT_TRUE(std::isnan(static_cast<float>(T(std::nanf("")))));
  EXPECT_TRUE(std::isnan(static_cast<float>(Limits::quiet_NaN())));
  EXPECT_EQ(static_cast<double>(Limits::max()), magnitudes<TypeParam>().back());
  EXPECT_EQ(static_cast<double>(Limits::lowest()), -magnitudes<TypeParam>().back());
  EXPECT_EQ(static_cast<double>(Limits::denorm_min()), magnitudes<TypeParam>()[1]);
  EXPECT_EQ(static_cast<float>(Limits::epsilon()), std::ldexp(1.f, -TypeParam::kMantissa));
  if (TypeParam::kSaturates)
    EXPECT_EQ(T(infinity), Limits::max());
  else
    EXPECT_EQ(T(infinity), Limits::infinity());
  // Float's own subnormals, all below the smallest subnormal but for bfloat16.
  expect_rounded<TypeParam>(std::numeric_limits<float>::denorm_min());
  expect_rounded<TypeParam>(std::numeric_limits<float>::min() / 3);
  expect_rounded<TypeParam>(std::numeric_limits<double>::denorm_min());
}

TYPED_TEST(SmallFloats, IntegersRoundOnce) {
  using T = typename TypeParam::Type;
  for (const std::int64_t x : {std::int64_t{0}, std::int64_t{1}, std::int64_t{-7},
                               std::int64_t{65519}, std::int64_t{65520}, INT64_MAX, INT64_MIN})
    EXPECT_EQ(T(x).bits, T(static_cast<double>(x)).bits) << x;
  // One above a tie of bfloat16, in the bits that a double cannot hold: it is no tie.
  if (std::is_same_v<T, bfloat16>) {
    const std::int64_t tie = (std::int64_t{0x81} << 55) - (std::int64_t{1} << 54);
    EXPECT_EQ(static_cast<double>(tie), static_cast<double>(tie + 1));
    EXPECT_EQ(static_cast<double>(T(tie)), std::ldexp(double{0x80}, 55));
    EXPECT_EQ(static_cast<double>(T(tie + 1)), std::ldexp(double{0x81}, 55));
    EXPECT_EQ(static_cast<double>(T(-tie - 1)), -std::ldexp(double{0x81}, 55));
  }
}

TYPED_TEST(SmallFloats, ComparesByValue) {
  using T = typename TypeParam::Type;
  EXPECT_TRUE(T(0.f) == T(-0.f));
  EXPECT_TRUE(T(1.f) == T(1.0));
  EXPECT_TRUE(T(1.f) != T(1.5f));
  EXPECT_TRUE(T(-2.f) < T(1.f));
  EXPECT_TRUE(-T(1.f) == T(-1.f));
  const T nan(std::nanf(""));
  EXPECT_FALSE(nan == nan);
}

TEST(Dtype, ConvertsBetweenAnyTwoTypes) {
  EXPECT_EQ(convert<float>(bfloat16(1.5f)), 1.5f);
  EXPECT_EQ(convert<half>(bfloat16(1.5f)), half(1.5f));
  EXPECT_EQ(convert<double>(half(0.1f)), static_cast<double>(static_cast<float>(half(0.1f))));
  EXPECT_EQ(convert<std::int8_t>(127.9f), 127);
  EXPECT_EQ(convert<std::int8_t>(300.f), 127);
  EXPECT_EQ(convert<std::int8_t>(-1e30), -128);
  EXPECT_EQ(convert<std::int8_t>(std::int32_t{-500}), -128);
  EXPECT_EQ(convert<std::uint8_t>(-1.f), 0);
  EXPECT_EQ(convert<std::uint8_t>(std::int64_t{1} << 40), 255);
  EXPECT_EQ(convert<std::int32_t>(std::nanf("")), 0);
  EXPECT_EQ(convert<std::int32_t>(2147483648.f), INT32_MAX);
  EXPECT_EQ(convert<std::int64_t>(9.3e18), INT64_MAX);
  EXPECT_EQ(convert<std::int64_t>(-9.3e18f), INT64_MIN);
  EXPECT_EQ(convert<float>(INT64_MAX), 9223372036854775808.f);
  EXPECT_EQ(convert<bool>(half(0.5f)), true);
  EXPECT_EQ(convert<bool>(-0.0), false);
  EXPECT_EQ(convert<float>(true), 1.f);
  EXPECT_EQ(convert<bfloat16>(true), bfloat16(1.f));
  EXPECT_EQ(convert<std::int32_t>(bfloat16(-3.9f)), -3);
}

TEST(Dtype, NamesAndSizes) {
  EXPECT_EQ(dtype_of<const bfloat16>, DType::bf16);
  EXPECT_STREQ(name_of(DType::f8_e4m3), "f8_e4m3");
  EXPECT_EQ(size_of(dtype_of<double>), sizeof(double));
  EXPECT_EQ(size_of(dtype_of<float8_e5m2>), 1u);
  EXPECT_TRUE((std::is_same_v<accumulate_t<double>, double>));
  EXPECT_TRUE((std::is_same_v<accumulate_t<half>, float>));
}

static_assert(half(65519.99).bits == 0x7bff && half(65520.0).bits == 0x7c00,
              "conversions run at compile time");
static_assert(static_cast<float>(float8_e4m3(1e9f)) == 448.f);

}  // namespace
}  // namespace rapt::test
