// What tests of the CUDA backend share. The same bodies run in two programs: tests/cuda on the
// emulator (tests/support/cuda_on_host), tests/gpu on a real device, where they skip themselves if
// there is none.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <type_traits>

#include "rapt/core/convert.hpp"
#include "rapt/core/random.hpp"
#include "rapt/cuda/backend.hpp"
#include "support/tolerance.hpp"

namespace rapt::test {

struct CudaTest : testing::Test {
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "this machine has no CUDA device";
  }
};

/// float, double, half, bfloat16.
template <class T>
struct CudaTypedTest : CudaTest {};
using ElementTypes = testing::Types<float, double, half, bfloat16>;

template <class T, std::size_t Rank>
Tensor<T, Rank, Cuda> on_gpu(const Tensor<T, Rank>& x) {
  return to(Cuda{}, x);
}

/// Numbers of N(0, 1), rounded to T.
template <class T, std::size_t Rank>
Tensor<T, Rank> gaussian(Shape<Rank> shape, std::uint64_t seed) {
  Tensor<T, Rank> x(shape);
  Philox random(seed);
  for (index_t i = 0; i < x.size(); ++i) x.data()[i] = T(random.normal());
  return x;
}

/// Integers of [low, high].
template <std::size_t Rank>
Tensor<std::int32_t, Rank> whole_numbers(Shape<Rank> shape, std::uint64_t seed, int low, int high) {
  Tensor<std::int32_t, Rank> x(shape);
  Philox random(seed);
  for (index_t i = 0; i < x.size(); ++i)
    x.data()[i] = low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
  return x;
}

}  // namespace rapt::test
