// Symmetric quantisation of activations, keys and values to 8 bits, and back.
//
//   int8:  scale = amax / 127      code = clamp(round(x / scale), -127, 127)     x' = code · scale
//   fp8:   scale given             code = fp8(x / scale), saturating             x' = code · scale
//
//   x, codes, x'  [batch, seq, heads, dim]       T and int8_t or float8_e4m3 / float8_e5m2
//   scale         float, one per slice that shares it; amax = max |x| over that slice:
//                   per token and head   [batch, seq, heads, 1]
//                   per channel          [batch, 1, heads, dim]
//
// The shape of `scale` says which: an extent is the one of x, or 1 where the axis shares a scale,
// so [1, 1, heads, 1] is one scale per head and [1, 1, 1, 1] one for all. Rounding is to nearest,
// ties to even. -128 is never used, so that codes are symmetric. A slice of zeros has scale 0 and
// codes 0; a scale of 0 always gives codes 0. Arithmetic is in float. NaN becomes code 0 in int8,
// NaN in fp8.
//
// quantize_rows is what a cache of 8-bit keys and values wants: a scale for each token and head, as
// attention() takes them (k_scales, v_scales), for any code:
//
//   scales[b,s,h] = max |x[b,s,h,:]| / largest        largest = 127, 448 (e4m3) or 57344 (e5m2)
//
// Errors: ShapeError "<operation>: scale is [...], expected ..."; quantize_rows: ValueError for
// elements that are not finite.
#pragma once

#include <algorithm>
#include <cmath>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include "rapt/core/backend.hpp"
#include "rapt/core/dtype.hpp"
#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

/// Largest code of the symmetric int8 range.
inline constexpr float kInt8Largest = 127.f;

/// The number that the largest code stands for.
template <QuantizedElement Code>
inline constexpr float kLargestCode = static_cast<float>(std::numeric_limits<Code>::max());
template <>
inline constexpr float kLargestCode<std::int8_t> = kInt8Largest;

/// The code of one value. scale = 0: code 0.
template <QuantizedElement Code>
Code quantize_value(float x, float scale) {
  const float scaled = scale == 0.f ? 0.f : x / scale;
  if constexpr (std::is_same_v<Code, std::int8_t>) {
    if (scaled != scaled) return 0;
    const float bounded = scaled > kInt8Largest    ? kInt8Largest
                          : scaled < -kInt8Largest ? -kInt8Largest
                                                   : scaled;
    return static_cast<std::int8_t>(std::nearbyint(bounded));  // ties to even
  } else {
    return Code(scaled);
  }
}

template <QuantizedElement Code>
float dequantize_value(Code code, float scale) {
  return convert<float>(code) * scale;
}

namespace detail {

/// A view of `scale` over the shape of x: axes of extent 1 get stride 0.
template <class T, std::size_t Rank>
TensorView<T, Rank> expand_scale(std::string_view operation, TensorView<T, Rank> scale,
                                 const Shape<Rank>& shape) {
  Shape<Rank> strides;
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    if (scale.extent(axis) != 1 && scale.extent(axis) != shape[axis])
      throw ShapeError(text(operation, ": scale is ", shape_text(scale.shape()),
                            ", expected on each axis 1 or the extent of x, ", shape_text(shape)));
    strides[axis] = scale.extent(axis) == 1 ? 0 : scale.stride(axis);
  }
  return {scale.data(), shape, strides};
}

/// f(a, b, ...) for every element of views of one shape.
template <class F, class First, class... Rest>
void for_each_element(F f, First first, Rest... rest) {
  for (index_t i = 0; i < first.extent(0); ++i) {
    if constexpr (First::kRank == 1)
      f(first(i), rest(i)...);
    else
      for_each_element(f, first.select(0, i), rest.select(0, i)...);
  }
}

}  // namespace detail

/// codes = x over the given scale.
template <WritableTensorLike<4> Codes, TensorLike<4> X, TensorLike<4> Scale>
requires QuantizedElement<element_t<Codes>>
void quantize(Codes&& codes, const X& x, const Scale& scale) {
  using Code = element_t<Codes>;
  const auto out = as_view(codes);
  const auto in = as_view(x);
  detail::check_shape("quantize", "codes", out.shape(), in.shape(), "[batch, seq, heads, dim]");
  const auto scales = detail::expand_scale("quantize", as_view(scale), in.shape());
  detail::for_each_element(
      [](Code& code, const auto& value, const auto& s) {
        code = quantize_value<Code>(convert<float>(value), s);
      },
      out, in, scales);
}

/// Computes `scale` from x by the rule that its shape states, then the codes.
template <WritableTensorLike<4> Codes, WritableTensorLike<4> Scale, TensorLike<4> X>
requires std::same_as<element_t<Codes>, std::int8_t> && std::same_as < element_t<Scale>,
float > void quantize_int8(Codes&& codes, Scale&& scale, const X& x) {
  const auto in = as_view(x);
  const auto out = as_view(codes);
  const auto scales = as_view(scale);
  detail::check_shape("quantize_int8", "codes", out.shape(), in.shape(),
                      "[batch, seq, heads, dim]");
  const auto shared = detail::expand_scale("quantize_int8", scales, in.shape());
  detail::for_each_element([](float& s) { s = 0.f; }, scales);
  detail::for_each_element(  // the largest magnitude, kept where the scale will lie
      [](float& amax, const auto& value) {
        // A NaN is larger than nothing, and passed over.
        amax = std::max(amax, std::fabs(convert<float>(value)));
      },
      shared, in);
  detail::for_each_element([](float& s) { s /= kInt8Largest; }, scales);
  quantize(out, in, scales);
}

/// codes and scales of every row x[b,s,h,:]: see the top of this file.
///
///   x, codes [batch, seq, heads, dim]      scales [batch, seq, heads]
template <WritableTensorLike<4> Codes, WritableTensorLike<3> Scales, TensorLike<4> X>
requires QuantizedElement<element_t<Codes>> && std::same_as < element_t<Scales>,
float > void quantize_rows(Codes&& codes, Scales&& scales, const X& x) {
  using Code = element_t<Codes>;
  constexpr const char* kName = "quantize_rows";
  static_assert(std::same_as<backend_t<X>, Cpu>, "quantize_rows runs on the CPU");
  const auto in = as_const_view(x);
  const auto out = as_view(codes);
  const auto factors = as_view(scales);
  const index_t batch = in.extent(0), seq = in.extent(1), heads = in.extent(2), dim = in.extent(3);
  detail::check_shape(kName, "codes", out.shape(), in.shape(), "[batch, seq, heads, dim]");
  detail::check_shape(kName, "scales", factors.shape(), Shape{batch, seq, heads},
                      "[batch, seq, heads]");
  const auto for_each_row = [&](auto f) {
    for (index_t b = 0; b < batch; ++b)
      for (index_t s = 0; s < seq; ++s)
        for (index_t h = 0; h < heads; ++h) f(b, s, h);
  };
  for_each_row([&](index_t b, index_t s, index_t h) {
    for (index_t t = 0; t < dim; ++t)
      if (const float value = convert<float>(in(b, s, h, t)); !std::isfinite(value))
        throw ValueError(detail::text(kName, ": x[", b, ", ", s, ", ", h, ", ", t, "] is ", value,
                                      ", expected a finite number"));
  });
  for_each_row([&](index_t b, index_t s, index_t h) {
    float most = 0.f;
    for (index_t t = 0; t < dim; ++t)
      most = std::max(most, std::fabs(convert<float>(in(b, s, h, t))));
    const float scale = most / kLargestCode<Code>;
    factors(b, s, h) = scale;
    for (index_t t = 0; t < dim; ++t)
      out(b, s, h, t) = quantize_value<Code>(convert<float>(in(b, s, h, t)), scale);
  });
}

/// out = codes · scale.
template <WritableTensorLike<4> Out, TensorLike<4> Codes, TensorLike<4> Scale>
void dequantize(Out&& out, const Codes& codes, const Scale& scale) {
  using T = element_t<Out>;
  const auto values = as_view(out);
  const auto in = as_view(codes);
  detail::check_shape("dequantize", "out", values.shape(), in.shape(), "[batch, seq, heads, dim]");
  const auto scales = detail::expand_scale("dequantize", as_view(scale), in.shape());
  detail::for_each_element([](T& value, const auto& code,
                              const auto& s) { value = convert<T>(dequantize_value(code, s)); },
                           values, in, scales);
}

}  // namespace rapt
