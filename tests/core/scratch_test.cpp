// Scratch: what it lends does not overlap, and after the first call nothing is allocated.
#include "rapt/core/scratch.hpp"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <set>
#include <thread>
#include <vector>

namespace {
std::atomic<long> allocations{0};

void* counted(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  void* pointer = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (pointer == nullptr) throw std::bad_alloc();
  return pointer;
}
}  // namespace

// Every operator new of this program is counted. Never inlined: g++ 12 would see std::free meet
// operator new and warn.
[[gnu::noinline]] void* operator new(std::size_t n) {
  return counted(n, alignof(std::max_align_t));
}
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t a) {
  return counted(n, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}

namespace rapt::test {

// What a layer does: some buffers, an inner call with its own, and more after it.
float layer(index_t n) {
  Scratch<> scratch;
  auto a = scratch.tensor<float>(Shape(n, 16));
  a(n - 1, 15) = 1.f;
  float inner = 0;
  {
    Scratch<> own;
    auto b = own.tensor<double>(Shape(n, 40));
    auto c = own.tensor<std::int8_t>(Shape{3});
    b(n - 1, 39) = 2.0;
    c(2) = 3;
    inner = static_cast<float>(b(n - 1, 39)) + static_cast<float>(c(2));
  }
  auto d = scratch.tensor<float>(Shape(n, 100));
  d(n - 1, 99) = 4.f;
  return a(n - 1, 15) + inner + d(n - 1, 99);
}

TEST(Scratch, LendsAlignedMemoryThatDoesNotOverlap) {
  Scratch<> scratch;
  std::vector<TensorView<float, 1>> views;
  for (const index_t n : {1, 7, 5000, 100000, 3, 400000}) {
    views.push_back(scratch.tensor<float>(Shape{n}));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(views.back().data()) % 64, 0u);
    for (index_t i = 0; i < n; ++i) views.back()(i) = static_cast<float>(views.size());
  }
  for (std::size_t v = 0; v < views.size(); ++v)
    for (index_t i = 0; i < views[v].extent(0); ++i)
      ASSERT_EQ(views[v](i), static_cast<float>(v + 1));
}

TEST(Scratch, GivesAZeroSizedTensorAnAddress) {
  Scratch<> scratch;
  EXPECT_TRUE((scratch.tensor<float>(Shape(0, 4))));
}

TEST(Scratch, AllocatesNothingInSteadyState) {
  EXPECT_EQ(layer(2000), 10.f);
  EXPECT_EQ(layer(2000), 10.f);
  const long before = allocations;
  for (int step = 0; step < 100; ++step) {
    ASSERT_EQ(layer(2000), 10.f);
    ASSERT_EQ(layer(1 + step), 10.f);  // smaller steps live in what the largest one left
  }
  EXPECT_EQ(allocations - before, 0);
}

TEST(Scratch, ReturnsItsMemoryToTheNextCall) {
  const float* first = nullptr;
  {
    Scratch<> scratch;
    first = scratch.tensor<float>(Shape{64}).data();
  }
  Scratch<> scratch;
  EXPECT_EQ(scratch.tensor<float>(Shape{64}).data(), first);
}

TEST(Scratch, ReleasesWhenAnExceptionPasses) {
  layer(100);
  const float* at = nullptr;
  {
    Scratch<> scratch;
    at = scratch.tensor<float>(Shape{8}).data();
  }
  try {
    Scratch<> scratch;
    scratch.tensor<float>(Shape{8});
    throw 1;
  } catch (int) {
  }
  Scratch<> scratch;
  EXPECT_EQ(scratch.tensor<float>(Shape{8}).data(), at);
}

TEST(Scratch, IsSeparateInEveryThread) {
  Scratch<> scratch;
  auto mine = scratch.tensor<int>(Shape{1000});
  std::thread other([] {
    Scratch<> theirs;
    auto view = theirs.tensor<int>(Shape{1000});
    for (index_t i = 0; i < 1000; ++i) view(i) = -1;
  });
  for (index_t i = 0; i < 1000; ++i) mine(i) = 1;
  other.join();
  for (index_t i = 0; i < 1000; ++i) ASSERT_EQ(mine(i), 1);
}

TEST(Scratch, RefusesAnAbsurdShape) {
  Scratch<> scratch;
  EXPECT_THROW(scratch.tensor<float>(Shape(index_t{1} << 40, index_t{1} << 40)), ShapeError);
  EXPECT_THROW(scratch.tensor<float>(Shape(-1, 4)), ShapeError);
}

}  // namespace rapt::test
