// Kernels that write zeros. This folder stands before include/ when golden_zeroed is built, so its
// headers take the place of the library's own: every case that a kernel has a part in must then
// fail.
#pragma once

#include "rapt/core/tensor.hpp"

namespace rapt::zeroed {

template <class T, std::size_t Rank>
void zero(TensorView<T, Rank> view) {
  for (index_t i = 0; i < view.extent(0); ++i) {
    if constexpr (Rank == 1)
      view(i) = T{};
    else
      zero(view.select(0, i));
  }
}

}  // namespace rapt::zeroed
