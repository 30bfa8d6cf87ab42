// The hardware as kernels see it, made of fibres: the second implementation of
// cuda/rapt/cuda/device.cuh, found before it by the include path of tests/cuda. What each name
// means is said there; how it runs, in ../../emulator.hpp.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"
#include "rapt/cuda/backend.hpp"
#include "rapt/cuda/runtime.hpp"
#include "support/cuda_on_host/emulator.hpp"

#define __global__
#define __device__
#define __host__

namespace rapt::cuda {

inline constexpr int kWarp = 32;

inline int thread_index() { return cuda_on_host::thread_index(); }
inline int block_size() { return cuda_on_host::block_size(); }
inline index_t block_index() { return cuda_on_host::block_index(); }
inline index_t grid_size() { return cuda_on_host::grid_size(); }

namespace emulated {

template <class T>
std::uint64_t pack(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}
template <class T>
T unpack(std::uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

/// A word of shared memory: every read and write is noted.
template <class T>
class Word {
 public:
  explicit Word(index_t offset) : offset_(offset) {}
  operator T() const {
    T value;
    std::memcpy(&value, cuda_on_host::access_shared(offset_, sizeof(T), cuda_on_host::Access::read),
                sizeof(T));
    return value;
  }
  const Word& operator=(T value) const {
    std::memcpy(cuda_on_host::access_shared(offset_, sizeof(T), cuda_on_host::Access::write),
                &value, sizeof(T));
    return *this;
  }
  const Word& operator=(const Word& other) const { return *this = static_cast<T>(other); }
  Word(const Word&) = default;
  const Word& operator+=(T value) const { return *this = static_cast<T>(*this) + value; }

 private:
  index_t offset_;
};

}  // namespace emulated

template <class T>
T shuffle_xor(T value, int mask, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const int lane = thread_index() % kWarp;
  const auto* values = cuda_on_host::meet_warp(cuda_on_host::Meeting::shuffle_xor, mask,
                                               emulated::pack(value), file, line);
  return emulated::unpack<T>(values[(lane ^ mask) % kWarp]);
}
template <class T>
T shuffle(T value, int lane, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  const auto* values =
      cuda_on_host::meet_warp(cuda_on_host::Meeting::shuffle, 0, emulated::pack(value), file, line);
  return emulated::unpack<T>(values[lane % kWarp]);
}
inline unsigned ballot(bool question, const char* file = __builtin_FILE(),
                       int line = __builtin_LINE()) {
  const auto* values =
      cuda_on_host::meet_warp(cuda_on_host::Meeting::ballot, 0, question ? 1 : 0, file, line);
  unsigned answers = 0;
  for (int lane = 0; lane < kWarp; ++lane) answers |= static_cast<unsigned>(values[lane]) << lane;
  return answers;
}

inline void block_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_on_host::block_barrier(file, line);
}
inline void warp_barrier(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  cuda_on_host::meet_warp(cuda_on_host::Meeting::warp_barrier, 0, 0, file, line);
}

template <class T>
class Shared {
 public:
  explicit Shared(index_t byte_offset) : byte_offset_(byte_offset) {}
  emulated::Word<T> operator[](index_t i) const {
    return emulated::Word<T>(byte_offset_ + i * static_cast<index_t>(sizeof(T)));
  }

 private:
  index_t byte_offset_;
};
template <class T>
Shared<T> shared(int byte_offset = 0) {
  return Shared<T>(byte_offset);
}

inline void atomic_max(unsigned long long* to, unsigned long long value) {
  cuda_on_host::yield();  // blocks and threads may come in any order
  if (value > *to) *to = value;
}

struct LaunchShape {
  index_t blocks;
  int threads;
  int shared_bytes = 0;
};

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), LaunchShape shape, Cuda backend,
            Arguments&&... arguments) {
  if (shape.blocks == 0) return;
  use_device(backend);
  // Each thread gets its own copy of the arguments, as on a GPU.
  cuda_on_host::run({name, shape.blocks, shape.threads, shape.shared_bytes},
                    [&] { kernel(static_cast<Parameters>(arguments)...); });
}

}  // namespace rapt::cuda
