// Counts heap allocations, for tests of paths that promise none. Include it in one file of a test
// binary: it replaces the global operators new and delete.
//
//   const AllocationCount count;
//   decode();
//   EXPECT_EQ(count.so_far(), 0);
//
// All threads are counted together.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace rapt::test {
inline std::atomic<long> allocations{0};

class AllocationCount {
 public:
  long so_far() const { return allocations.load() - before_; }

 private:
  long before_ = allocations.load();
};

// Out of line, or the compiler sees free() meet operator new and warns.
[[gnu::noinline]] inline void* counted_allocation(std::size_t bytes, std::size_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (bytes == 0) bytes = 1;
  void* const p =
      alignment > alignof(std::max_align_t)
          ? std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment)
          : std::malloc(bytes);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
[[gnu::noinline]] inline void counted_release(void* p) noexcept { std::free(p); }
}  // namespace rapt::test

[[gnu::noinline]] void* operator new(std::size_t n) { return rapt::test::counted_allocation(n, 1); }
[[gnu::noinline]] void* operator new[](std::size_t n) {
  return rapt::test::counted_allocation(n, 1);
}
[[gnu::noinline]] void* operator new(std::size_t n, std::align_val_t a) {
  return rapt::test::counted_allocation(n, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void* operator new[](std::size_t n, std::align_val_t a) {
  return rapt::test::counted_allocation(n, static_cast<std::size_t>(a));
}
[[gnu::noinline]] void operator delete(void* p) noexcept { rapt::test::counted_release(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { rapt::test::counted_release(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept {
  rapt::test::counted_release(p);
}
[[gnu::noinline]] void operator delete[](void* p, std::size_t) noexcept {
  rapt::test::counted_release(p);
}
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept {
  rapt::test::counted_release(p);
}
[[gnu::noinline]] void operator delete[](void* p, std::align_val_t) noexcept {
  rapt::test::counted_release(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  rapt::test::counted_release(p);
}
[[gnu::noinline]] void operator delete[](void* p, std::size_t, std::align_val_t) noexcept {
  rapt::test::counted_release(p);
}
