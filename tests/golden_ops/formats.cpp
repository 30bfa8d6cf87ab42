// ops round_format, decode_format, quantize_int8, quantize_int8_given_scale, quantize_fp8.
#include <type_traits>

#include "golden_ops/case.hpp"
#include "rapt/core/dtype.hpp"
#include "rapt/core/quantize.hpp"

namespace rapt::golden {
namespace {

/// f(T{}) with the element type of the case's format.
template <class F>
void with_format(const Case& c, F f) {
  const std::string name = c.setting<std::string>("format");
  if (name == "fp16") return f(half{});
  if (name == "bf16") return f(bfloat16{});
  if (name == "fp8_e4m3fn") return f(float8_e4m3{});
  if (name == "fp8_e5m2") return f(float8_e5m2{});
  throw Unsupported{"format " + name};
}

/// Codes and values of x under one overflow rule. Where x is NaN any NaN code will do: there the
/// code is checked by its value.
template <class T, class Round>
void expect_rounded(Case& c, const std::string& suffix, const Tensor<float, 1>& x,
                    const Tensor<std::int32_t, 1>& is_nan, Round round) {
  Tensor<std::int32_t, 1> bits(x.shape());
  Tensor<float, 1> value(x.shape());
  for (index_t i = 0; i < x.size(); ++i) {
    const T code = round(x(i));
    bits(i) = code.bits;
    value(i) = static_cast<float>(code);
  }
  c.expect("value" + suffix, value);
  c.expect("bits" + suffix, bits, [&](index_t i) { return is_nan(i) == 0; });
}

}  // namespace

void run_round_format(Case& c) {
  const auto x = c.input<float, 1>("x");
  const auto is_nan = c.input<std::int32_t, 1>("is_nan");
  with_format(c, [&](auto format) {
    using T = decltype(format);
    if (c.has("bits")) {
      expect_rounded<T>(c, "", x, is_nan, [](float v) { return T(v); });
    } else if constexpr (sizeof(T) == 1) {
      expect_rounded<T>(c, "_saturating", x, is_nan, [](float v) { return T(v); });
      expect_rounded<T>(c, "_nonsaturating", x, is_nan,
                        [](float v) { return T::from_float_nonsaturating(v); });
    }
  });
}

void run_decode_format(Case& c) {
  const auto bits = c.input<std::int32_t, 1>("bits");
  with_format(c, [&](auto format) {
    using T = decltype(format);
    Tensor<float, 1> value(bits.shape());
    for (index_t i = 0; i < bits.size(); ++i)
      value(i) = static_cast<float>(T::from_bits(static_cast<decltype(T::bits)>(bits(i))));
    c.expect("value", value);
  });
}

void run_quantize_int8(Case& c) {
  const auto x = c.input<float, 4>("x");
  const auto& shape = c.shape("scale");  // an extent of 1 says which axes share a scale
  if (shape.size() != 4) throw Failure("scale has not rank 4");
  Tensor<float, 4> scale({shape[0], shape[1], shape[2], shape[3]}), values(x.shape());
  Tensor<std::int8_t, 4> codes(x.shape());
  quantize_int8(codes, scale, x);
  dequantize(values, codes, scale);
  c.expect("scale", scale);
  c.expect("codes", codes);
  c.expect("dequant", values);
}

void run_quantize_int8_given_scale(Case& c) {
  const auto& stored = c.shape("x");
  index_t elements = 1;
  for (const index_t extent : stored) elements *= extent;
  const auto x = c.input_as<float>("x", Shape(1, 1, 1, elements));
  Tensor<float, 4> scale({1, 1, 1, 1}), values(x.shape());
  scale(0, 0, 0, 0) = c.setting<float>("scale");
  Tensor<std::int8_t, 4> codes(x.shape());
  quantize(codes, x, scale);
  dequantize(values, codes, scale);
  c.expect("codes", codes);
  c.expect("dequant", values);
}

void run_quantize_fp8(Case& c) {
  const auto x = c.input<float, 4>("x");
  const auto scale = c.input_as<float>("scale", Shape(1, 1, x.extent(2), 1));  // per head
  with_format(c, [&](auto format) {
    using T = decltype(format);
    if constexpr (sizeof(T) == 1) {
      Tensor<T, 4> codes(x.shape());
      Tensor<float, 4> values(x.shape());
      quantize(codes, x, scale);
      dequantize(values, codes, scale);
      Tensor<std::int32_t, 4> bits(x.shape());
      for (index_t i = 0; i < codes.size(); ++i) bits.data()[i] = codes.data()[i].bits;
      c.expect("bits", bits);
      c.expect("dequant", values);
    } else {
      throw Unsupported{"quantize_fp8 to 16 bits"};
    }
  });
}

}  // namespace rapt::golden
