// What kernels' host code needs from the machine besides a launch. Plain C++, defined once in
// cuda/instances/runtime.cu.
#pragma once

#include "rapt/core/dtype.hpp"
#include "rapt/cuda/backend.hpp"

namespace rapt::cuda {

/// Makes the backend's device the one that this thread talks to. Throws DeviceError.
void use_device(Cuda backend);

/// out[m,n] = a[m,k] b[k,n] (+ bias[n]) (+ out). Strides count elements; out is contiguous along n.
struct MatrixProduct {
  DType dtype;      // of a, b and bias
  DType out_dtype;  // the same, or the type that sums run in
  index_t m, n, k;
  const void* a;
  index_t a_row, a_column;  // a(i, j) = a[i * a_row + j * a_column]
  const void* b;
  index_t b_row, b_column;
  void* out;
  index_t out_row;
  const void* bias;  // may be null
  index_t bias_stride;
  bool accumulate;
};

/// Runs the product by the vendor's library, sums in fp32 (fp64 for f64), same bits every time.
/// False: not a case for the library, and nothing was done. Throws DeviceError on failure.
bool library_matmul(Cuda backend, const MatrixProduct& product);

}  // namespace rapt::cuda
