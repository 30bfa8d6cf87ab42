// What rapt needs of the compiler and one compiler gets wrong. g++ 12.2 with AVX-512 passes a
// constant struct of 64-bit integers such as {1, 1, 0, 0} by value as {1, 1, 1, 1}: it takes the
// two words that are not zero for a whole vector of equal ones. Shapes and settings are such
// structs. -mmove-max=128 -mstore-max=128 (set by our CMakeLists.txt) keeps it from trying.
#include <gtest/gtest.h>

#include <cstdint>

#include "rapt/core/tensor.hpp"

namespace rapt::test {
namespace {

struct Settings {
  std::int64_t layers = 1, batch = 1, capacity = 0, kv_heads = 1, head_dim = 1, value_dim = 0;
};

std::int64_t digits(Settings s) {
  std::int64_t n = 0;
  for (const std::int64_t x : {s.layers, s.batch, s.capacity, s.kv_heads, s.head_dim, s.value_dim})
    n = 10 * n + x;
  return n;
}
std::int64_t digits(Shape<4> s) { return ((s[0] * 10 + s[1]) * 10 + s[2]) * 10 + s[3]; }

// Called through pointers that the compiler cannot see through.
std::int64_t (*volatile digits_of_settings)(Settings) = digits;
std::int64_t (*volatile digits_of_shape)(Shape<4>) = digits;

TEST(Compiler, ConstantStructsKeepTheirZerosWhenPassedByValue) {
  EXPECT_EQ(digits_of_settings(Settings{.kv_heads = 0, .head_dim = 4}), 110040)
      << "compile with -mmove-max=128 -mstore-max=128, or with another compiler";
  EXPECT_EQ(digits_of_shape(Shape<4>{1, 1, 0, 0}), 1100);
  EXPECT_EQ(digits_of_shape(Shape<4>{3, 3, 3, 0}), 3330);
}

}  // namespace
}  // namespace rapt::test
