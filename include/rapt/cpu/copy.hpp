// copy_elements on the CPU: strided, converting copy (core/backend.hpp).
#pragma once

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
  if constexpr (Rank == 1) {
    detail::copy_row(to.data(), to.stride(0), from.data(), from.stride(0), to.extent(0));
  } else {
    for (index_t i = 0; i < to.extent(0); ++i) {
      if constexpr (Rank == 2)
        detail::copy_row(to.data() + i * to.stride(0), to.stride(1),
                         from.data() + i * from.stride(0), from.stride(1), to.extent(1));
      else
        copy_elements<To, From, Rank - 1>(Cpu{}, to.select(0, i), from.select(0, i));
    }
  }
}

}  // namespace rapt
