// copy_elements on the CPU: strided, converting copy (core/backend.hpp).
#pragma once

#include <array>

#include "rapt/core/backend.hpp"
#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace detail {

template <class To, class From>
void copy_row(To* to, index_t to_stride, const From* from, index_t from_stride, index_t n) {
  constexpr bool kByVectors =  // float from or to 16 bits
      (std::is_same_v<To, float> || std::is_same_v<From, float>)&&(
          std::is_same_v<To, half> || std::is_same_v<From, half> || std::is_same_v<To, bfloat16> ||
          std::is_same_v<From, bfloat16>);
  if (to_stride == 1 && from_stride == 1) {
    if constexpr (std::is_same_v<To, From>) return cpu::widen_row(to, from, n);
    if constexpr (kByVectors && std::is_same_v<To, float>) return cpu::widen_row(to, from, n);
    if constexpr (kByVectors && std::is_same_v<From, float>) return cpu::narrow_row(to, from, n);
    for (index_t i = 0; i < n; ++i) to[i] = convert<To>(from[i]);
  } else {
    for (index_t i = 0; i < n; ++i) to[i * to_stride] = convert<To>(from[i * from_stride]);
  }
}

}  // namespace detail

template <class To, class From, std::size_t Rank>
void BackendTraits<Cpu>::copy_elements(Cpu, TensorView<To, Rank> to,
                                       TensorView<const From, Rank> from) {
  constexpr std::size_t kLast = Rank - 1;
  index_t rows = 1;
  for (std::size_t axis = 0; axis < kLast; ++axis) rows *= to.extent(axis);
  cpu::for_row_ranges(rows, to.extent(kLast), [&](index_t begin, index_t end) {
    // Rows are counted like a number whose digits are the indices on the axes before the last.
    std::array<index_t, Rank> digits{};
    To* to_row = to.data();
    const From* from_row = from.data();
    const auto step = [&](std::size_t axis, index_t by) {
      digits[axis] += by;
      to_row += by * to.stride(axis);
      from_row += by * from.stride(axis);
    };
    index_t left = begin;
    for (std::size_t axis = kLast; axis-- > 0; left /= to.extent(axis))
      step(axis, left % to.extent(axis));
    for (index_t row = begin; row < end; ++row) {
      detail::copy_row(to_row, to.stride(kLast), from_row, from.stride(kLast), to.extent(kLast));
      for (std::size_t axis = kLast; axis-- > 0;) {
        step(axis, 1);
        if (digits[axis] < to.extent(axis)) break;
        step(axis, -to.extent(axis));
      }
    }
  });
}

}  // namespace rapt
