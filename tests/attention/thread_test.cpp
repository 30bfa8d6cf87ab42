// The number of threads never changes a bit of a result.
#include <gtest/gtest.h>

#include <cstring>

#include "attention/problem.hpp"
#include "rapt/core/parallel.hpp"

namespace rapt::test {
namespace {

template <class T, class Mask = Causal>
void expect_equal_bits(const Sizes& sizes, Mask mask = {}) {
  SCOPED_TRACE(testing::Message() << sizes);
  const int before = num_threads();
  const Problem<T> p(sizes);
  const Shape<4> shape{sizes.batch, sizes.q_len, sizes.heads, sizes.values()};
  Outputs<T> first(shape);
  for (const int threads : {1, 2, 3, 7}) {
    set_num_threads(threads);
    Outputs<T> got(shape);
    attention(got.out, p.q, p.k, p.v, mask, Identity{}, {.logsumexp = got.logsumexp});
    if (threads == 1) {
      first = got;
      continue;
    }
    EXPECT_EQ(std::memcmp(got.out.data(), first.out.data(), first.out.bytes()), 0) << threads;
    EXPECT_EQ(std::memcmp(got.logsumexp.data(), first.logsumexp.data(), first.logsumexp.bytes()), 0)
        << threads;
  }
  set_num_threads(before);
}

TEST(Threads, NeverChangeAResult) {
  expect_equal_bits<float>(
      {.batch = 2, .q_len = 300, .kv_len = 300, .heads = 6, .kv_heads = 2, .head_dim = 64});
  expect_equal_bits<bfloat16>(
      {.q_len = 700, .kv_len = 700, .heads = 2, .kv_heads = 1, .head_dim = 40});
  expect_equal_bits<float>(
      {.batch = 3, .q_len = 1, .kv_len = 4000, .heads = 8, .kv_heads = 2, .head_dim = 64});
  expect_equal_bits<half>({.q_len = 3, .kv_len = 3000, .heads = 8, .kv_heads = 8, .head_dim = 32});
  expect_equal_bits<double>(
      {.q_len = 1, .kv_len = 6000, .heads = 32, .kv_heads = 1, .head_dim = 32});
  expect_equal_bits<float>({.q_len = 400, .kv_len = 900, .heads = 3, .kv_heads = 3, .head_dim = 32},
                           Causal{} & SlidingWindow{100});
}

}  // namespace
}  // namespace rapt::test
