// rope on the CPU (core/backend.hpp). A head's turning channels are first read into a buffer, so
// out may be x and the loops below vectorize: nothing they read is written.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

/// y = the pairs of x turned by cos and sin [pairs]. x and y do not overlap.
template <class A>
void rotate_halves(A* y, const A* x, const A* cos, const A* sin, index_t pairs, bool inverse) {
  using V = Vec<A>;
  const V sign = V::broadcast(inverse ? A{-1} : A{1});
  const A *low = x, *high = x + pairs;
  map_row(
      y, pairs, [=](V x0, V x1, V c, V s) { return x0 * c - x1 * (s * sign); }, low, high, cos,
      sin);
  map_row(
      y + pairs, pairs, [=](V x0, V x1, V c, V s) { return x1 * c + x0 * (s * sign); }, low, high,
      cos, sin);
}

template <class A>
void rotate_neighbours(A* __restrict y, const A* __restrict x, const A* __restrict cos,
                       const A* __restrict sin, index_t pairs, bool inverse) {
  const A sign = inverse ? A{-1} : A{1};
  for (index_t k = 0; k < pairs; ++k) {
    const A s = sign * sin[k];
    y[2 * k] = x[2 * k] * cos[k] - x[2 * k + 1] * s;
    y[2 * k + 1] = x[2 * k + 1] * cos[k] + x[2 * k] * s;
  }
}

template <class A>
void rotate_neighbours_to_halves(A* __restrict y, const A* __restrict x, const A* __restrict cos,
                                 const A* __restrict sin, index_t pairs) {
  for (index_t k = 0; k < pairs; ++k) {
    y[k] = x[2 * k] * cos[k] - x[2 * k + 1] * sin[k];
    y[k + pairs] = x[2 * k + 1] * cos[k] + x[2 * k] * sin[k];
  }
}

/// The way back: turns by the negative angle, halves to neighbours.
template <class A>
void rotate_halves_to_neighbours(A* __restrict y, const A* __restrict x, const A* __restrict cos,
                                 const A* __restrict sin, index_t pairs) {
  for (index_t k = 0; k < pairs; ++k) {
    y[2 * k] = x[k] * cos[k] + x[k + pairs] * sin[k];
    y[2 * k + 1] = x[k + pairs] * cos[k] - x[k] * sin[k];
  }
}

template <class A>
void rotate_head(A* y, const A* x, const A* cos, const A* sin, index_t pairs,
                 const RopeOptions& options) {
  switch (options.layout) {
    case RopeLayout::rotate_half:
      return rotate_halves(y, x, cos, sin, pairs, options.inverse);
    case RopeLayout::interleaved:
      return rotate_neighbours(y, x, cos, sin, pairs, options.inverse);
    case RopeLayout::interleaved_to_half:
      if (options.inverse) return rotate_halves_to_neighbours(y, x, cos, sin, pairs);
      return rotate_neighbours_to_halves(y, x, cos, sin, pairs);
  }
}

}  // namespace RAPT_SIMD
}  // namespace cpu

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
  cpu::for_row_ranges(x.extent(0) * seq, heads * dim, [&](index_t begin, index_t end) {
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
        cpu::widen_row(before, from + first, turning);
        if constexpr (std::is_same_v<A, T>) {
          cpu::rotate_head(to + first, before, c, n, pairs, options);
        } else {
          cpu::rotate_head(after, before, c, n, pairs, options);
          cpu::narrow_row(to + first, after, turning);
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
