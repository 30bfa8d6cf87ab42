// Element types: half, bfloat16, float8_e4m3, float8_e5m2, and the list of types a tensor may hold.
//
//   value = (-1)^s · 2^(e - bias) · 1.m     0 < e < all ones      (normal)
//   value = (-1)^s · 2^(1 - bias) · 0.m     e = 0                 (subnormal, signed zero)
//
//                 bits  exponent  mantissa  bias   largest   e = all ones
//   half           16       5        10       15     65504    inf (m = 0), NaN
//   bfloat16       16       8         7      127   3.39e38    inf (m = 0), NaN
//   float8_e4m3     8       4         3        7       448    finite, but for m = 7: NaN. No inf.
//   float8_e5m2     8       5         2       15     57344    inf (m = 0), NaN
//
// They store; arithmetic happens in float. Every conversion from float, double or an integer rounds
// once, to the nearest value, ties to the even code; a double never passes through a float, where
// it could be rounded twice. Beyond the largest value the 16-bit types become infinite, as IEEE 754
// asks; the 8-bit types saturate, as quantised tensors want, infinity included (NaN stays NaN), and
// `T::from_float_nonsaturating` gives inf or, in e4m3, NaN instead.
//
// The layouts are those of Eigen, CUDA and ml_dtypes, so memory may be shared with them by pointer.
//
// Source: IEEE 754-2019 (half); Micikevicius et al. 2022, arXiv:2209.05433, table 1 (fp8; e4m3 here
// is the variant called "fn" elsewhere).
#pragma once

#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "rapt/core/config.hpp"

namespace rapt {

namespace detail {

/// std::bit_cast that nvcc accepts in device code without a flag.
template <class To, class From>
RAPT_HOST_DEVICE constexpr To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "expected two types of one size");
  return __builtin_bit_cast(To, from);
}

enum class TopExponent { inf_and_nan, finite_but_one };  // what the all-ones exponent codes mean
enum class Overflow { to_infinity, saturate };

/// A binary format, and the conversion of its codes to and from float and double.
template <int kExponentBits, int kMantissaBits, TopExponent kTop>
struct FloatFormat {
  using Code = std::conditional_t<(kExponentBits + kMantissaBits > 7), std::uint16_t, std::uint8_t>;

  static constexpr int kBias = (1 << (kExponentBits - 1)) - 1;
  static constexpr unsigned kSign = 1u << (kExponentBits + kMantissaBits);
  static constexpr unsigned kOnes = (1u << kExponentBits) - 1;   // the exponent field, all ones
  static constexpr unsigned kInfinity = kOnes << kMantissaBits;  // not in e4m3
  static constexpr unsigned kLargest = kTop == TopExponent::inf_and_nan ? kInfinity - 1 : kSign - 2;
  static constexpr unsigned kQuietNaN =
      kTop == TopExponent::inf_and_nan ? kInfinity | (1u << (kMantissaBits - 1)) : kSign - 1;
  static constexpr unsigned kBeyond = kTop == TopExponent::inf_and_nan ? kInfinity : kQuietNaN;

  /// Rounds a float or a double, to nearest, ties to even.
  template <std::floating_point Source>
  RAPT_HOST_DEVICE static constexpr Code encode(Source value, Overflow overflow) {
    using Bits = std::conditional_t<sizeof(Source) == 4, std::uint32_t, std::uint64_t>;
    constexpr int kFraction = sizeof(Source) == 4 ? 23 : 52;
    constexpr int kSourceBias = sizeof(Source) == 4 ? 127 : 1023;
    constexpr Bits kImplicit = Bits{1} << kFraction;
    constexpr Bits kSourceOnes = 2 * kSourceBias + 1;

    const Bits bits = detail::bit_cast<Bits>(value);
    const unsigned sign = bits >> (8 * sizeof(Source) - 1) ? kSign : 0u;
    const Bits source_exponent = (bits >> kFraction) & kSourceOnes;
    Bits fraction = bits & (kImplicit - 1);

    if (source_exponent == kSourceOnes) {
      if (fraction == 0) return code(sign | (overflow == Overflow::saturate ? kLargest : kBeyond));
      if constexpr (kTop == TopExponent::finite_but_one) return code(sign | kQuietNaN);
      // The payload's upper bits survive, as in hardware conversions.
      return code(sign | kQuietNaN |
                  static_cast<unsigned>(fraction >> (kFraction - kMantissaBits)));
    }
    if (source_exponent == 0 && fraction == 0) return code(sign);

    // |value| = fraction · 2^(exponent - kFraction), with 2^kFraction <= fraction < 2^(kFraction+1)
    int exponent = static_cast<int>(source_exponent) - kSourceBias;
    if (source_exponent == 0) {
      exponent = 1 - kSourceBias;
      for (; fraction < kImplicit; --exponent) fraction <<= 1;
    } else {
      fraction |= kImplicit;
    }

    // Cut to kMantissaBits + 1 bits, fewer for a subnormal result. The implicit bit then adds one
    // to the exponent field, and so does the carry of a fraction that rounds up to the next power.
    const int field = exponent + kBias;
    const int cut = kFraction - kMantissaBits + (field < 1 ? 1 - field : 0);
    if (cut > kFraction + 1) return code(sign);  // under half of the smallest subnormal
    const Bits odd = (fraction >> cut) & 1u;
    const Bits rounded = (fraction + ((Bits{1} << (cut - 1)) - 1) + odd) >> cut;
    if (field > static_cast<int>(kOnes))
      return code(sign | (overflow == Overflow::saturate ? kLargest : kBeyond));
    const unsigned magnitude = static_cast<unsigned>(rounded) +
                               (field > 1 ? static_cast<unsigned>(field - 1) << kMantissaBits : 0u);
    if (magnitude > kLargest)
      return code(sign | (overflow == Overflow::saturate ? kLargest : kBeyond));
    return code(sign | magnitude);
  }

  /// The value of a code; exact.
  RAPT_HOST_DEVICE static constexpr float decode(Code c) {
    const std::uint32_t sign = (c & kSign) ? 0x80000000u : 0u;
    const std::uint32_t magnitude = c & (kSign - 1);
    const std::uint32_t field = magnitude >> kMantissaBits;
    const std::uint32_t mantissa = magnitude & ((1u << kMantissaBits) - 1);
    if (field == 0) {  // an integer below 2^kMantissaBits times the smallest subnormal
      const float smallest =
          detail::bit_cast<float>(static_cast<std::uint32_t>(128 - kBias - kMantissaBits) << 23);
      const float value = static_cast<float>(mantissa) * smallest;
      return sign ? -value : value;
    }
    const bool is_special =
        kTop == TopExponent::inf_and_nan ? field == kOnes : magnitude == kQuietNaN;
    const std::uint32_t exponent =
        is_special ? 255u : field + static_cast<std::uint32_t>(127 - kBias);
    return detail::bit_cast<float>(sign | exponent << 23 | mantissa << (23 - kMantissaBits));
  }

 private:
  RAPT_HOST_DEVICE static constexpr Code code(unsigned bits) { return static_cast<Code>(bits); }
};

using HalfFormat = FloatFormat<5, 10, TopExponent::inf_and_nan>;
using Bfloat16Format = FloatFormat<8, 7, TopExponent::inf_and_nan>;
using Float8E4M3Format = FloatFormat<4, 3, TopExponent::finite_but_one>;
using Float8E5M2Format = FloatFormat<5, 2, TopExponent::inf_and_nan>;

/// An integer as a double that rounds to any of the formats above as the integer itself would.
/// Bits that a double cannot hold are folded into its last one ("round to odd"), so that the second
/// rounding still sees on which side of a tie the value lies.
template <std::integral I>
RAPT_HOST_DEVICE constexpr double to_double_sticky(I value) {
  if constexpr (sizeof(I) < 8) {
    return static_cast<double>(value);
  } else {
    const bool negative = value < 0;
    const auto u = static_cast<std::uint64_t>(value);
    const std::uint64_t magnitude = negative ? 0u - u : u;
    if (magnitude < std::uint64_t{1} << 53) return static_cast<double>(value);
    const double upper =
        static_cast<double>(magnitude >> 12 | ((magnitude & 0xfffu) != 0 ? 1u : 0u)) * 4096.0;
    return negative ? -upper : upper;
  }
}

}  // namespace detail

/// IEEE 754 binary16.
struct half {
  std::uint16_t bits;

  half() = default;  // uninitialised, like a float
  RAPT_HOST_DEVICE constexpr explicit half(float value)
      : bits(detail::HalfFormat::encode(value, detail::Overflow::to_infinity)) {}
  RAPT_HOST_DEVICE constexpr explicit half(double value)
      : bits(detail::HalfFormat::encode(value, detail::Overflow::to_infinity)) {}
  template <std::integral I>
  RAPT_HOST_DEVICE constexpr explicit half(I value) : half(detail::to_double_sticky(value)) {}

  RAPT_HOST_DEVICE static constexpr half from_bits(std::uint16_t code) {
    half result{};
    result.bits = code;
    return result;
  }
  RAPT_HOST_DEVICE constexpr explicit operator float() const {
    return detail::HalfFormat::decode(bits);
  }
  RAPT_HOST_DEVICE constexpr explicit operator double() const { return static_cast<float>(*this); }
};

/// The upper half of a float: its range, with 8 bits of precision.
struct bfloat16 {
  std::uint16_t bits;

  bfloat16() = default;
  RAPT_HOST_DEVICE constexpr explicit bfloat16(float value) : bits(round(value)) {}
  RAPT_HOST_DEVICE constexpr explicit bfloat16(double value)
      : bits(detail::Bfloat16Format::encode(value, detail::Overflow::to_infinity)) {}
  template <std::integral I>
  RAPT_HOST_DEVICE constexpr explicit bfloat16(I value)
      : bfloat16(detail::to_double_sticky(value)) {}

  RAPT_HOST_DEVICE static constexpr bfloat16 from_bits(std::uint16_t code) {
    bfloat16 result{};
    result.bits = code;
    return result;
  }
  RAPT_HOST_DEVICE constexpr explicit operator float() const {
    return detail::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
  RAPT_HOST_DEVICE constexpr explicit operator double() const { return static_cast<float>(*this); }

 private:
  // The same exponent field as float: rounding the upper 16 bits carries into it, and on to inf.
  RAPT_HOST_DEVICE static constexpr std::uint16_t round(float value) {
    const auto u = detail::bit_cast<std::uint32_t>(value);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
    return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
  }
};

/// 8-bit float for weights, activations and keys/values: more precision, range ±448, no infinity.
struct float8_e4m3 {
  std::uint8_t bits;

  float8_e4m3() = default;
  RAPT_HOST_DEVICE constexpr explicit float8_e4m3(float value)
      : bits(detail::Float8E4M3Format::encode(value, detail::Overflow::saturate)) {}
  RAPT_HOST_DEVICE constexpr explicit float8_e4m3(double value)
      : bits(detail::Float8E4M3Format::encode(value, detail::Overflow::saturate)) {}
  template <std::integral I>
  RAPT_HOST_DEVICE constexpr explicit float8_e4m3(I value)
      : float8_e4m3(detail::to_double_sticky(value)) {}

  RAPT_HOST_DEVICE static constexpr float8_e4m3 from_bits(std::uint8_t code) {
    float8_e4m3 result{};
    result.bits = code;
    return result;
  }
  /// What rounds beyond 448, and infinity, becomes NaN.
  template <std::floating_point F>
  RAPT_HOST_DEVICE static constexpr float8_e4m3 from_float_nonsaturating(F value) {
    return from_bits(detail::Float8E4M3Format::encode(value, detail::Overflow::to_infinity));
  }
  RAPT_HOST_DEVICE constexpr explicit operator float() const {
    return detail::Float8E4M3Format::decode(bits);
  }
  RAPT_HOST_DEVICE constexpr explicit operator double() const { return static_cast<float>(*this); }
};

/// 8-bit float for gradients: the range of half, 3 bits of precision.
struct float8_e5m2 {
  std::uint8_t bits;

  float8_e5m2() = default;
  RAPT_HOST_DEVICE constexpr explicit float8_e5m2(float value)
      : bits(detail::Float8E5M2Format::encode(value, detail::Overflow::saturate)) {}
  RAPT_HOST_DEVICE constexpr explicit float8_e5m2(double value)
      : bits(detail::Float8E5M2Format::encode(value, detail::Overflow::saturate)) {}
  template <std::integral I>
  RAPT_HOST_DEVICE constexpr explicit float8_e5m2(I value)
      : float8_e5m2(detail::to_double_sticky(value)) {}

  RAPT_HOST_DEVICE static constexpr float8_e5m2 from_bits(std::uint8_t code) {
    float8_e5m2 result{};
    result.bits = code;
    return result;
  }
  /// What rounds beyond 57344 becomes infinite.
  template <std::floating_point F>
  RAPT_HOST_DEVICE static constexpr float8_e5m2 from_float_nonsaturating(F value) {
    return from_bits(detail::Float8E5M2Format::encode(value, detail::Overflow::to_infinity));
  }
  RAPT_HOST_DEVICE constexpr explicit operator float() const {
    return detail::Float8E5M2Format::decode(bits);
  }
  RAPT_HOST_DEVICE constexpr explicit operator double() const { return static_cast<float>(*this); }
};

/// A float of 16 or 8 bits, defined above.
template <class T>
concept SmallFloat = std::same_as<T, half> || std::same_as<T, bfloat16> ||
    std::same_as<T, float8_e4m3> || std::same_as<T, float8_e5m2>;

/// A float of any width: what a value can be converted to without thinking of a range.
template <class T>
concept AnyFloat = std::same_as<T, float> || std::same_as<T, double> || SmallFloat<T>;

/// An element type that kernels compute with (in accumulate_t<T>).
template <class T>
concept Element = std::same_as<T, float> || std::same_as<T, double> || std::same_as<T, half> ||
    std::same_as<T, bfloat16>;

/// A code of 8 bits that values are quantised to, beside scales (core/quantize.hpp).
template <class T>
concept QuantizedElement =
    std::same_as<T, std::int8_t> || std::same_as<T, float8_e4m3> || std::same_as<T, float8_e5m2>;

static_assert(Element<half> && Element<bfloat16> && !Element<float8_e4m3> && !Element<int>);
static_assert(QuantizedElement<std::int8_t> && !QuantizedElement<std::uint8_t>);
static_assert(sizeof(half) == 2 && std::is_trivially_copyable_v<half> && std::is_trivial_v<half>);
static_assert(sizeof(bfloat16) == 2 && std::is_trivial_v<bfloat16>);
static_assert(sizeof(float8_e4m3) == 1 && std::is_trivial_v<float8_e4m3>);
static_assert(sizeof(float8_e5m2) == 1 && std::is_trivial_v<float8_e5m2>);

/// Equal values: +0 == -0, and NaN equals nothing. Compare `bits` for equal codes.
template <SmallFloat T>
RAPT_HOST_DEVICE constexpr bool operator==(T a, T b) {
  return static_cast<float>(a) == static_cast<float>(b);
}
template <SmallFloat T>
RAPT_HOST_DEVICE constexpr bool operator<(T a, T b) {
  return static_cast<float>(a) < static_cast<float>(b);
}
template <SmallFloat T>
RAPT_HOST_DEVICE constexpr T operator-(T a) {
  constexpr unsigned kSign = sizeof(T) == 2 ? 0x8000u : 0x80u;
  return T::from_bits(static_cast<decltype(a.bits)>(a.bits ^ kSign));
}

/// The type that sums of T are kept in: double for double, float for everything else.
template <class T>
using accumulate_t = std::conditional_t<std::is_same_v<std::remove_cv_t<T>, double>, double, float>;

/// The element types a tensor may hold, in memory or in a file.
enum class DType { f64, f32, f16, bf16, f8_e4m3, f8_e5m2, i64, i32, i16, i8, u8, boolean };

namespace detail {
template <class T>
struct DTypeOf;  // undefined: not an element type
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::f64;
};
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::f32;
};
template <>
struct DTypeOf<half> {
  static constexpr DType value = DType::f16;
};
template <>
struct DTypeOf<bfloat16> {
  static constexpr DType value = DType::bf16;
};
template <>
struct DTypeOf<float8_e4m3> {
  static constexpr DType value = DType::f8_e4m3;
};
template <>
struct DTypeOf<float8_e5m2> {
  static constexpr DType value = DType::f8_e5m2;
};
template <>
struct DTypeOf<std::int64_t> {
  static constexpr DType value = DType::i64;
};
template <>
struct DTypeOf<std::int32_t> {
  static constexpr DType value = DType::i32;
};
template <>
struct DTypeOf<std::int16_t> {
  static constexpr DType value = DType::i16;
};
template <>
struct DTypeOf<std::int8_t> {
  static constexpr DType value = DType::i8;
};
template <>
struct DTypeOf<std::uint8_t> {
  static constexpr DType value = DType::u8;
};
template <>
struct DTypeOf<bool> {
  static constexpr DType value = DType::boolean;
};
}  // namespace detail

template <class T>
inline constexpr DType dtype_of = detail::DTypeOf<std::remove_cv_t<T>>::value;

/// Bytes of one element.
constexpr std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
    case DType::i16:
      return 2;
    case DType::f8_e4m3:
    case DType::f8_e5m2:
    case DType::i8:
    case DType::u8:
    case DType::boolean:
      return 1;
  }
  return 0;
}

/// The name used in messages.
constexpr const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::f16:
      return "f16";
    case DType::bf16:
      return "bf16";
    case DType::f8_e4m3:
      return "f8_e4m3";
    case DType::f8_e5m2:
      return "f8_e5m2";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::i16:
      return "i16";
    case DType::i8:
      return "i8";
    case DType::u8:
      return "u8";
    case DType::boolean:
      return "bool";
  }
  return "?";
}

/// One value from any element type to any other. To a float type: rounded once, as above. To an
/// integer type: towards zero, clamped to the type's range, NaN to 0. To bool: whether not zero.
template <class To, class From>
RAPT_HOST_DEVICE constexpr To convert(From from) {
  if constexpr (std::is_same_v<To, From>) {
    return from;
  } else if constexpr (SmallFloat<From>) {
    return rapt::convert<To>(static_cast<float>(from));
  } else if constexpr (std::is_same_v<To, bool>) {
    return from != From{};
  } else if constexpr (std::is_same_v<From, bool>) {
    return To(from ? 1 : 0);
  } else if constexpr (std::is_integral_v<To>) {
    constexpr To kMin = std::numeric_limits<To>::min(), kMax = std::numeric_limits<To>::max();
    if constexpr (std::is_floating_point_v<From>) {
      constexpr From kEnd = static_cast<From>(kMax / 2 + 1) * From{2};  // kMax + 1, exact in From
      if (from != from) return To{0};
      if (from >= kEnd) return kMax;
      return from <= static_cast<From>(kMin) ? kMin : static_cast<To>(from);
    } else {
      const auto wide = static_cast<std::int64_t>(from);  // holds every integer element type
      if (wide < static_cast<std::int64_t>(kMin)) return kMin;
      return wide > static_cast<std::int64_t>(kMax) ? kMax : static_cast<To>(from);
    }
  } else {
    return static_cast<To>(from);
  }
}

}  // namespace rapt

namespace rapt::detail {
/// std::numeric_limits of the small types, from their format.
template <class T, class Format, int kExponentBits, int kMantissaBits, bool kHasInfinity>
struct SmallFloatLimits {
  static constexpr bool is_specialized = true, is_signed = true, is_integer = false,
                        is_exact = false, is_bounded = true, is_modulo = false,
                        has_quiet_NaN = true, has_signaling_NaN = false, traps = false,
                        has_infinity = kHasInfinity, is_iec559 = kHasInfinity,
                        tinyness_before = false, has_denorm_loss = false;
  static constexpr std::float_denorm_style has_denorm = std::denorm_present;
  static constexpr std::float_round_style round_style = std::round_to_nearest;
  static constexpr int radix = 2, digits = kMantissaBits + 1, digits10 = kMantissaBits * 3 / 10,
                       max_digits10 = 2 + (kMantissaBits + 1) * 3 / 10,
                       min_exponent = 2 - Format::kBias,
                       max_exponent = Format::kBias + (kHasInfinity ? 1 : 2);
  RAPT_HOST_DEVICE static constexpr T code(unsigned bits) {
    return T::from_bits(static_cast<typename Format::Code>(bits));
  }
  RAPT_HOST_DEVICE static constexpr T min() { return code(1u << kMantissaBits); }
  RAPT_HOST_DEVICE static constexpr T denorm_min() { return code(1u); }
  RAPT_HOST_DEVICE static constexpr T max() { return code(Format::kLargest); }
  RAPT_HOST_DEVICE static constexpr T lowest() { return code(Format::kLargest | Format::kSign); }
  RAPT_HOST_DEVICE static constexpr T infinity() {
    return code(kHasInfinity ? Format::kInfinity : 0u);
  }
  RAPT_HOST_DEVICE static constexpr T quiet_NaN() { return code(Format::kQuietNaN); }
  RAPT_HOST_DEVICE static constexpr T
  epsilon() {  // 2^-kMantissaBits; subnormal where the range is short
    return T(detail::bit_cast<float>(static_cast<std::uint32_t>(127 - kMantissaBits) << 23));
  }
  RAPT_HOST_DEVICE static constexpr T round_error() { return T(0.5f); }
};
}  // namespace rapt::detail

template <>
class std::numeric_limits<rapt::half>
    : public rapt::detail::SmallFloatLimits<rapt::half, rapt::detail::HalfFormat, 5, 10, true> {};
template <>
class std::numeric_limits<rapt::bfloat16>
    : public rapt::detail::SmallFloatLimits<rapt::bfloat16, rapt::detail::Bfloat16Format, 8, 7,
                                            true> {};
template <>
class std::numeric_limits<rapt::float8_e4m3>
    : public rapt::detail::SmallFloatLimits<rapt::float8_e4m3, rapt::detail::Float8E4M3Format, 4, 3,
                                            false> {};
template <>
class std::numeric_limits<rapt::float8_e5m2>
    : public rapt::detail::SmallFloatLimits<rapt::float8_e5m2, rapt::detail::Float8E5M2Format, 5, 2,
                                            true> {};
