// Eigen's view of a matrix: eigen_map(view) is an Eigen::Map.
//
// For programs that use Eigen beside rapt. No other header includes it: it takes 1.5 s to parse.
#pragma once

// GCC 12 warns about its own header, __m256d y = y (GCC bug 105593), in Eigen's AVX-512 packing.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <Eigen/Core>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include "rapt/core/tensor.hpp"

namespace rapt {

/// A matrix view as Eigen sees it. The last axis must be contiguous; map view.transpose() and
/// transpose the result where the first one is.
template <class T>
auto eigen_map(TensorView<T, 2> view) {
  using Matrix =
      Eigen::Matrix<std::remove_const_t<T>, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Plain = std::conditional_t<std::is_const_v<T>, const Matrix, Matrix>;
  return Eigen::Map<Plain, 0, Eigen::OuterStride<>>(view.data(), view.extent(0), view.extent(1),
                                                    Eigen::OuterStride<>(view.stride(0)));
}

}  // namespace rapt
