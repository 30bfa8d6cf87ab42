// Strided, converting copy on the GPU.
//
//   to[i_1, ..., i_R] = convert(from[i_1, ..., i_R])
//
//   One thread per element, elements counted along the last axis first, so neighbouring threads
//   touch neighbouring elements of a row-major side. Bound: memory traffic of both sides.
//
// The rank is a run-time number to the kernel, and a copy without conversion is one kernel per
// element size: 4 + 12 kernels serve every rank and type.
#pragma once

#include <cstdint>
#include <type_traits>

#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

inline constexpr std::size_t kMostAxes = 8;

struct CopyShape {
  int rank;
  index_t elements;
  index_t extent[kMostAxes], to_stride[kMostAxes], from_stride[kMostAxes];
};

template <class To, class From>
__global__ void copy_thread_per_element(To* to, const From* from, CopyShape shape) {
  for (index_t i = first_element(); i < shape.elements; i += element_step()) {
    index_t rest = i, to_at = 0, from_at = 0;
    for (int axis = shape.rank - 1; axis >= 0; --axis) {
      const index_t along = rest % shape.extent[axis];
      rest /= shape.extent[axis];
      to_at += along * shape.to_stride[axis];
      from_at += along * shape.from_stride[axis];
    }
    to[to_at] = convert<To>(from[from_at]);
  }
}

/// What a copy without conversion moves: bits.
template <std::size_t kBytes>
using Bits = std::conditional_t<
    kBytes == 1, std::uint8_t,
    std::conditional_t<kBytes == 2, std::uint16_t,
                       std::conditional_t<kBytes == 4, std::uint32_t, std::uint64_t>>>;

}  // namespace rapt::cuda

namespace rapt {

template <class To, class From, std::size_t Rank>
void BackendTraits<Cuda>::copy_elements(Cuda backend, TensorView<To, Rank, Cuda> to,
                                        TensorView<const From, Rank, Cuda> from) {
  static_assert(Rank <= cuda::kMostAxes, "expected a rank of at most 8");
  cuda::CopyShape shape{static_cast<int>(Rank), to.size(), {}, {}, {}};
  for (std::size_t axis = 0; axis < Rank; ++axis) {
    shape.extent[axis] = to.extent(axis);
    shape.to_stride[axis] = to.stride(axis);
    shape.from_stride[axis] = from.stride(axis);
  }
  if constexpr (std::is_same_v<To, From>) {
    using Moved = cuda::Bits<sizeof(To)>;
    static_assert(sizeof(Moved) == sizeof(To), "expected elements of 1, 2, 4 or 8 bytes");
    cuda::launch("copy_thread_per_element", cuda::copy_thread_per_element<Moved, Moved>,
                 cuda::element_launch(shape.elements), backend, reinterpret_cast<Moved*>(to.data()),
                 reinterpret_cast<const Moved*>(from.data()), shape);
  } else {
    cuda::launch("copy_thread_per_element", cuda::copy_thread_per_element<To, From>,
                 cuda::element_launch(shape.elements), backend, to.data(), from.data(), shape);
  }
}

}  // namespace rapt
