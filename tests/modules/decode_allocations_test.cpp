// Decoding allocates nothing on the heap: projections, rotation, cache and attention of one token.
#include <gtest/gtest.h>

#include "rapt/modules/attention.hpp"
#include "support/count_allocations.hpp"

namespace rapt::test {
namespace {

template <class Module>
void expect_no_allocations(const AttentionConfig& config) {
  Module module(config);
  Philox random(1);
  module.initialize(random);
  using T = typename Module::value_type;
  Tensor<T, 3> prompt({2, 40, config.d_model}), token({2, 1, config.d_model}),
      out({2, 1, config.d_model});
  fill_normal(prompt, random);
  fill_normal(token, random);
  auto cache = module.make_cache(2, 400);
  module.forward(prompt, cache);
  // The scratch of every thread grows to what the longest context needs, once.
  for (int i = 0; i < 350; ++i) module.forward(out, token, cache);
  cache.reset();
  module.forward(prompt, cache);
  const AllocationCount count;
  for (int i = 0; i < 350; ++i) module.forward(out, token, cache);
  EXPECT_EQ(count.so_far(), 0);
  EXPECT_EQ(cache.length(), 390);
}

AttentionConfig config() {
  AttentionConfig c;
  c.d_model = 64;
  c.heads = 8;
  c.kv_heads = 2;
  c.qk_norm = QkNorm::head;
  c.rope = Rope{};
  return c;
}

TEST(DecodeAllocations, GroupedQueryAttention) {
  expect_no_allocations<GroupedQueryAttention<float>>(config());
  expect_no_allocations<GroupedQueryAttention<bfloat16>>(config());
}

TEST(DecodeAllocations, SlidingWindowAttentionManyTurnsOfItsRing) {
  AttentionConfig c = config();
  c.window = 16;
  c.sink_tokens = 2;
  expect_no_allocations<SlidingWindowAttention<float>>(c);
}

}  // namespace
}  // namespace rapt::test
