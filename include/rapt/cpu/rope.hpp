// rope on the CPU (core/backend.hpp). A head's turning channels are first read into a buffer, so
// out may be x and the loops below vectorize: nothing they read is written.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace detail {

/// y = the pairs of x turned by cos and sin [pairs]; sign -1 turns backwards.
template <RopeLayout kLayout, class A>
void rotate_pairs(A* __restrict y, const A* __restrict x, const A* __restrict cos,
                  const A* __restrict sin, index_t pairs, A sign) {
  for (index_t k = 0; k < pairs; ++k) {
    const bool half = kLayout == RopeLayout::rotate_half;
    const A x0 = half ? x[k] : x[2 * k];
    const A x1 = half ? x[k + pairs] : x[2 * k + 1];
    const A s = sign * sin[k];
    const A y0 = x0 * cos[k] - x1 * s;
    const A y1 = x1 * cos[k] + x0 * s;
    if constexpr (kLayout == RopeLayout::interleaved) {
      y[2 * k] = y0;
      y[2 * k + 1] = y1;
    } else {
      y[k] = y0;
      y[k + pairs] = y1;
    }
  }
}

/// The inverse of interleaved_to_half: reads halves, writes neighbours.
template <class A>
void rotate_half_to_interleaved(A* __restrict y, const A* __restrict x, const A* __restrict cos,
                                const A* __restrict sin, index_t pairs) {
  for (index_t k = 0; k < pairs; ++k) {
    y[2 * k] = x[k] * cos[k] + x[k + pairs] * sin[k];
    y[2 * k + 1] = x[k + pairs] * cos[k] - x[k] * sin[k];
  }
}

template <class A>
void rotate_head(A* y, const A* x, const A* cos, const A* sin, index_t pairs, RopeLayout layout,
                 bool inverse) {
  const A sign = inverse ? A{-1} : A{1};
  switch (layout) {
    case RopeLayout::rotate_half:
      return rotate_pairs<RopeLayout::rotate_half>(y, x, cos, sin, pairs, sign);
    case RopeLayout::interleaved:
      return rotate_pairs<RopeLayout::interleaved>(y, x, cos, sin, pairs, sign);
    case RopeLayout::interleaved_to_half:
      if (inverse) return rotate_half_to_interleaved(y, x, cos, sin, pairs);
      return rotate_pairs<RopeLayout::interleaved_to_half>(y, x, cos, sin, pairs, sign);
  }
}

}  // namespace detail

template <class T>
void BackendTraits<Cpu>::rope(Cpu, TensorView<T, 4> out, TensorView<const T, 4> x,
                              TensorView<const accumulate_t<T>, 3> cos,
                              TensorView<const accumulate_t<T>, 3> sin,
                              const RopeOptions& options) {
  using A = accumulate_t<T>;
  const index_t seq = x.extent(1), heads = x.extent(2), dim = x.extent(3);
  const index_t pairs = cos.extent(2), turning = 2 * pairs, first = options.offset;
  const bool in_place = out.data() == x.data();
  const auto copy_channels = [](T* to, const T* from, index_t n) {
    if (n > 0) std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
  };
  detail::for_row_ranges(x.extent(0) * seq, heads * dim, [&](index_t begin, index_t end) {
    Scratch<Cpu> scratch;
    A* before = scratch.template tensor<A>(Shape{turning}).data();
    A* after = scratch.template tensor<A>(Shape{turning}).data();
    for (index_t i = begin; i < end; ++i) {
      const index_t b = i / seq, s = i % seq, angle = cos.extent(0) == 1 ? 0 : b;
      const A* c = cos.data() + angle * cos.stride(0) + s * cos.stride(1);
      const A* n = sin.data() + (sin.extent(0) == 1 ? 0 : b) * sin.stride(0) + s * sin.stride(1);
      for (index_t h = 0; h < heads; ++h) {
        const T* from = x.data() + b * x.stride(0) + s * x.stride(1) + h * x.stride(2);
        T* to = out.data() + b * out.stride(0) + s * out.stride(1) + h * out.stride(2);
        detail::widen_row(before, from + first, turning);
        if constexpr (std::is_same_v<A, T>) {
          detail::rotate_head(to + first, before, c, n, pairs, options.layout, options.inverse);
        } else {
          detail::rotate_head(after, before, c, n, pairs, options.layout, options.inverse);
          detail::narrow_row(to + first, after, turning);
        }
        if (!in_place) {
          copy_channels(to, from, first);
          copy_channels(to + first + turning, from + first + turning, dim - first - turning);
        }
      }
    }
  });
}

}  // namespace rapt
