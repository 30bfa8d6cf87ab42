// Eigen, and the two things rapt asks of it: a map of a view, and a single-threaded product.
//
//   eigen_map(view)                     Eigen::Map of a matrix view, either axis contiguous
//   eigen_product(out, a, b)            out[m, n] += a[m, k] b[k, n] on raw memory
//
// Only cpu/ includes this header: it takes 1.5 s to parse.
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
#include "rapt/cpu/simd.hpp"

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

namespace cpu {
inline namespace RAPT_SIMD {

/// A matrix in memory: element (i, j) at data[i * outer + j], or [j * outer + i] by columns.
template <class T>
struct MatrixRef {
  const T* data;
  index_t outer;
  bool by_rows;
};

template <class T, bool kARows, bool kBRows>
void eigen_product(T* out, index_t out_stride, const T* a, index_t a_stride, const T* b,
                   index_t b_stride, index_t m, index_t n, index_t k) {
  // Eigen's kernel writes columns, so it computes out^T = b^T a^T: a row-major b is a column-major
  // b^T. Called below its expression templates, for two reasons: `out += a * b` also compiles
  // matrix-vector and small-size paths that are never taken here (six seconds for four layouts,
  // this is one), and in a program built with OpenMP it would start threads inside our own.
  constexpr int kLeft = kBRows ? Eigen::ColMajor : Eigen::RowMajor;
  constexpr int kRight = kARows ? Eigen::ColMajor : Eigen::RowMajor;
  Eigen::internal::gemm_blocking_space<Eigen::ColMajor, T, T, Eigen::Dynamic, Eigen::Dynamic,
                                       Eigen::Dynamic>
      blocking(n, m, k, 1, true);
  Eigen::internal::general_matrix_matrix_product<Eigen::Index, T, kLeft, false, T, kRight, false,
                                                 Eigen::ColMajor, 1>::run(n, m, k, b, b_stride, a,
                                                                          a_stride, out, 1,
                                                                          out_stride, T{1},
                                                                          blocking, nullptr);
}

/// out[m, n] += a[m, k] b[k, n] on the calling thread. m, n, k are at least 1.
template <class T>
void eigen_product(T* out, index_t out_stride, MatrixRef<T> a, MatrixRef<T> b, index_t m, index_t n,
                   index_t k) {
  if (a.by_rows) {
    if (b.by_rows)
      eigen_product<T, true, true>(out, out_stride, a.data, a.outer, b.data, b.outer, m, n, k);
    else
      eigen_product<T, true, false>(out, out_stride, a.data, a.outer, b.data, b.outer, m, n, k);
  } else {
    if (b.by_rows)
      eigen_product<T, false, true>(out, out_stride, a.data, a.outer, b.data, b.outer, m, n, k);
    else
      eigen_product<T, false, false>(out, out_stride, a.data, a.outer, b.data, b.outer, m, n, k);
  }
}

}  // namespace RAPT_SIMD
}  // namespace cpu
}  // namespace rapt
