// cuda/instances/runtime.cu for the host: device memory is host memory, work runs at once, and
// there is no vendor library, so every product is the readable kernel's.
#include "rapt/cuda/runtime.hpp"

#include <cstring>
#include <new>

namespace rapt {

int cuda_device_count() { return 1; }

namespace cuda {

void use_device(Cuda backend) {
  if (backend.device != 0)
    throw DeviceError(rapt::detail::text("cudaSetDevice failed on device ", backend.device,
                                         ": invalid device ordinal; this machine has ",
                                         cuda_device_count(), " CUDA devices"));
}

bool library_matmul(Cuda, const MatrixProduct&) { return false; }

}  // namespace cuda

void* BackendTraits<Cuda>::allocate(Cuda backend, std::size_t bytes) {
  cuda::use_device(backend);
  void* pointer = ::operator new (bytes, std::align_val_t{256});
  std::memset(pointer, 0xff, bytes);  // NaNs: what a kernel forgets to write is seen
  return pointer;
}
void BackendTraits<Cuda>::deallocate(Cuda, void* pointer, std::size_t) noexcept {
  ::operator delete (pointer, std::align_val_t{256});
}
void BackendTraits<Cuda>::copy(Cuda backend, void* to, const void* from, std::size_t bytes) {
  cuda::use_device(backend);
  if (bytes > 0) std::memmove(to, from, bytes);
}
void BackendTraits<Cuda>::copy_from_host(Cuda backend, void* to, const void* from,
                                         std::size_t bytes) {
  copy(backend, to, from, bytes);
}
void BackendTraits<Cuda>::copy_to_host(Cuda backend, void* to, const void* from,
                                       std::size_t bytes) {
  copy(backend, to, from, bytes);
}
void BackendTraits<Cuda>::fill_zero(Cuda backend, void* pointer, std::size_t bytes) {
  cuda::use_device(backend);
  if (bytes > 0) std::memset(pointer, 0, bytes);
}
void BackendTraits<Cuda>::synchronize(Cuda backend) { cuda::use_device(backend); }

}  // namespace rapt
