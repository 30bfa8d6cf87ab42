// The machine under BackendTraits<Cuda>: memory, errors, and the vendor's matrix product.
//
// Memory comes from the device's pool in the order of the stream (cudaMallocAsync), so a tensor may
// be dropped while kernels that read it are still queued.
#include <cublasLt.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "rapt/cuda/runtime.hpp"

namespace rapt {

namespace {

std::string device_text(Cuda backend) { return detail::text("device ", backend.device); }

void check(cudaError_t error, const char* call, const std::string& about) {
  if (error == cudaSuccess) return;
  std::string message = detail::text(call, " failed on ", about, ": ", cudaGetErrorString(error));
  if (error == cudaErrorNoDevice || error == cudaErrorInsufficientDriver ||
      error == cudaErrorInvalidDevice)
    message += detail::text("; this machine has ", cuda_device_count(), " CUDA devices");
  static_cast<void>(cudaGetLastError());  // what is reported here must not be reported again
  throw DeviceError(message);
}

}  // namespace

int cuda_device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    return 0;
  }
  return count;
}

void cuda::use_device(Cuda backend) {
  check(cudaSetDevice(backend.device), "cudaSetDevice", device_text(backend));
}

void* BackendTraits<Cuda>::allocate(Cuda backend, std::size_t bytes) {
  cuda::use_device(backend);
  void* pointer = nullptr;
  check(cudaMallocAsync(&pointer, bytes, backend.stream), "cudaMallocAsync",
        detail::text(device_text(backend), " for ", bytes, " bytes"));
  return pointer;
}

void BackendTraits<Cuda>::deallocate(Cuda backend, void* pointer, std::size_t) noexcept {
  // Destructors end here, some while the process shuts down: an error has nowhere to go.
  static_cast<void>(cudaSetDevice(backend.device));
  static_cast<void>(cudaFreeAsync(pointer, backend.stream));
}

void BackendTraits<Cuda>::copy(Cuda backend, void* to, const void* from, std::size_t bytes) {
  if (bytes == 0) return;
  cuda::use_device(backend);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, backend.stream),
        "cudaMemcpyAsync", device_text(backend));
}

void BackendTraits<Cuda>::copy_from_host(Cuda backend, void* to, const void* from,
                                         std::size_t bytes) {
  if (bytes == 0) return;
  cuda::use_device(backend);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, backend.stream),
        "cudaMemcpyAsync from the host", device_text(backend));
  synchronize(backend);
}

void BackendTraits<Cuda>::copy_to_host(Cuda backend, void* to, const void* from,
                                       std::size_t bytes) {
  if (bytes == 0) return;
  cuda::use_device(backend);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, backend.stream),
        "cudaMemcpyAsync to the host", device_text(backend));
  synchronize(backend);
}

void BackendTraits<Cuda>::fill_zero(Cuda backend, void* pointer, std::size_t bytes) {
  if (bytes == 0) return;
  cuda::use_device(backend);
  check(cudaMemsetAsync(pointer, 0, bytes, backend.stream), "cudaMemsetAsync",
        device_text(backend));
}

void BackendTraits<Cuda>::synchronize(Cuda backend) {
  cuda::use_device(backend);
  check(cudaStreamSynchronize(backend.stream), "cudaStreamSynchronize", device_text(backend));
}

// ---- matrix product ----

namespace cuda {
namespace {

void check(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw DeviceError(rapt::detail::text(call, " failed: ", cublasLtGetStatusString(status)));
}

/// One handle per device for the life of the process; cuBLASLt handles are thread-safe.
cublasLtHandle_t handle_of(int device) {
  static std::mutex mutex;
  static std::vector<cublasLtHandle_t> handles;
  const std::lock_guard lock(mutex);
  if (handles.size() <= static_cast<std::size_t>(device))
    handles.resize(static_cast<std::size_t>(device) + 1, nullptr);
  auto& handle = handles[static_cast<std::size_t>(device)];
  if (handle == nullptr) check(cublasLtCreate(&handle), "cublasLtCreate");
  return handle;
}

struct Types {
  cudaDataType_t element, scale;
  cublasComputeType_t compute;
  std::size_t size;
};

bool types_of(DType dtype, Types& types) {
  switch (dtype) {
    case DType::f32:
      types = {CUDA_R_32F, CUDA_R_32F, CUBLAS_COMPUTE_32F, 4};
      return true;
    case DType::f64:
      types = {CUDA_R_64F, CUDA_R_64F, CUBLAS_COMPUTE_64F, 8};
      return true;
    case DType::f16:
      types = {CUDA_R_16F, CUDA_R_32F, CUBLAS_COMPUTE_32F, 2};
      return true;
    case DType::bf16:
      types = {CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F, 2};
      return true;
    default:
      return false;
  }
}

/// A row-major [rows, columns] matrix is a column-major [columns, rows] one in the same memory. The
/// library thinks in columns, so it is asked for out^T = b^T a^T.
struct Operand {
  bool transposed;    // stored as the transpose of what the product wants
  index_t inner, ld;  // contiguous extent; distance between neighbours on the other axis
  index_t outer;
};

bool operand_of(index_t rows, index_t columns, index_t row_stride, index_t column_stride,
                Operand& out) {
  if (columns == 1 || column_stride == 1)
    out = {false, columns, rows == 1 ? columns : row_stride, rows};
  else if (rows == 1 || row_stride == 1)
    out = {true, rows, column_stride, columns};
  else
    return false;
  return out.ld >= out.inner;  // not so for a broadcast view
}

std::uint32_t alignment_of(const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  return static_cast<std::uint32_t>(std::min<std::uintptr_t>(256, address & (~address + 1)));
}

template <class H, cublasStatus_t (*kDestroy)(H)>
struct Destroy {
  using pointer = H;
  void operator()(H handle) const { static_cast<void>(kDestroy(handle)); }
};
using Layout = std::unique_ptr<cublasLtMatrixLayout_t,
                               Destroy<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>>;
using Description =
    std::unique_ptr<cublasLtMatmulDesc_t, Destroy<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>>;
using Preference =
    std::unique_ptr<cublasLtMatmulPreference_t,
                    Destroy<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>>;

Layout layout(cudaDataType_t type, index_t rows, index_t columns, index_t ld) {
  cublasLtMatrixLayout_t out = nullptr;
  check(cublasLtMatrixLayoutCreate(&out, type, static_cast<std::uint64_t>(rows),
                                   static_cast<std::uint64_t>(columns), ld),
        "cublasLtMatrixLayoutCreate");
  return Layout(out);
}

}  // namespace

bool library_matmul(Cuda backend, const MatrixProduct& product) {
  Types types, out_types;
  Operand a, b;
  if (product.m == 0 || product.n == 0 || product.k == 0 || !types_of(product.dtype, types) ||
      !types_of(product.out_dtype, out_types) ||
      !operand_of(product.m, product.k, product.a_row, product.a_column, a) ||
      !operand_of(product.k, product.n, product.b_row, product.b_column, b))
    return false;
  const index_t out_ld = product.m == 1 ? product.n : product.out_row;
  if (out_ld < product.n) return false;
  // The library reads a bias as one dense, aligned vector of the type of the result.
  const bool has_bias = product.bias != nullptr;
  if (has_bias && (product.dtype != product.out_dtype ||
                   (product.n > 1 && product.bias_stride != 1) || alignment_of(product.bias) < 16))
    return false;

  use_device(backend);
  const cublasLtHandle_t handle = handle_of(backend.device);

  cublasLtMatmulDesc_t raw_description = nullptr;
  check(cublasLtMatmulDescCreate(&raw_description, types.compute, types.scale),
        "cublasLtMatmulDescCreate");
  const Description description(raw_description);
  const auto set = [&](cublasLtMatmulDescAttributes_t name, const auto& value) {
    check(cublasLtMatmulDescSetAttribute(description.get(), name, &value, sizeof value),
          "cublasLtMatmulDescSetAttribute");
  };
  // The library's first operand is our b: column-major [n, k] unless stored transposed.
  set(CUBLASLT_MATMUL_DESC_TRANSA, b.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set(CUBLASLT_MATMUL_DESC_TRANSB, a.transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  if (has_bias) {
    set(CUBLASLT_MATMUL_DESC_EPILOGUE, CUBLASLT_EPILOGUE_BIAS);
    set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias);
  }
  const Layout first = layout(types.element, b.inner, b.outer, b.ld);
  const Layout second = layout(types.element, a.inner, a.outer, a.ld);
  const Layout result = layout(out_types.element, product.n, product.m, out_ld);

  cublasLtMatmulPreference_t raw_preference = nullptr;
  check(cublasLtMatmulPreferenceCreate(&raw_preference), "cublasLtMatmulPreferenceCreate");
  const Preference preference(raw_preference);
  const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t name, const auto& value) {
    check(cublasLtMatmulPreferenceSetAttribute(preference.get(), name, &value, sizeof value),
          "cublasLtMatmulPreferenceSetAttribute");
  };
  prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, std::uint64_t{32} << 20);
  // Partial sums meet in fp32 and in a fixed order; without this they may meet in 16 bits.
  prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
         static_cast<std::uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  // The library assumes 256 bytes unless told; a slice of a tensor has less.
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment_of(product.b));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment_of(product.a));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment_of(product.out));
  prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment_of(product.out));

  cublasLtMatmulHeuristicResult_t choice{};
  int choices = 0;
  const cublasStatus_t found = cublasLtMatmulAlgoGetHeuristic(
      handle, description.get(), first.get(), second.get(), result.get(), result.get(),
      preference.get(), 1, &choice, &choices);
  if (found == CUBLAS_STATUS_NOT_SUPPORTED || choices == 0) return false;
  check(found, "cublasLtMatmulAlgoGetHeuristic");

  const std::size_t workspace_bytes = choice.workspaceSize;
  void* workspace =
      workspace_bytes > 0 ? BackendTraits<Cuda>::allocate(backend, workspace_bytes) : nullptr;
  const float one = 1, beta = product.accumulate ? 1 : 0;
  const double one_double = 1, beta_double = beta;
  const bool is_double = product.dtype == DType::f64;
  const cublasStatus_t status = cublasLtMatmul(
      handle, description.get(), is_double ? static_cast<const void*>(&one_double) : &one,
      product.b, first.get(), product.a, second.get(),
      is_double ? static_cast<const void*>(&beta_double) : &beta, product.out, result.get(),
      product.out, result.get(), &choice.algo, workspace, workspace_bytes, backend.stream);
  if (workspace != nullptr) BackendTraits<Cuda>::deallocate(backend, workspace, workspace_bytes);
  check(status, "cublasLtMatmul");
  return true;
}

}  // namespace cuda
}  // namespace rapt
