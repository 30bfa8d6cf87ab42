// Few query rows against many keys: split along the keys, heads of a group together, no allocation.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "attention/problem.hpp"
#include "rapt/core/convert.hpp"

namespace {
std::atomic<long> allocations{0};
[[gnu::noinline]] void* counted(std::size_t bytes, std::size_t alignment) {
  ++allocations;
  void* p = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  if (p == nullptr) throw std::bad_alloc();
  return p;
}
[[gnu::noinline]] void release(void* p) { std::free(p); }
}  // namespace

void* operator new(std::size_t bytes) { return counted(bytes, 16); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return counted(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* p) noexcept { release(p); }
void operator delete(void* p, std::size_t) noexcept { release(p); }
void operator delete(void* p, std::align_val_t) noexcept { release(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { release(p); }

namespace rapt::test {
namespace {

template <class T>
struct Decode : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(Decode, Elements);

TYPED_TEST(Decode, MatchesTheOracle) {
  unsigned seed = 0;
  for (const index_t kv_len : {1, 7, 64, 65, 511, 513, 1100})
    for (const auto& [q_len, group] : {std::pair<index_t, index_t>{1, 1},
                                       {1, 2},
                                       {1, 3},
                                       {1, 4},
                                       {1, 7},
                                       {1, 16},
                                       {2, 5},
                                       {5, 3}})
      for (const auto& [head_dim, value_dim] :
           {std::pair<index_t, index_t>{1, 3}, {64, 64}, {20, 100}}) {
        const Sizes sizes{.q_len = q_len,
                          .kv_len = kv_len,
                          .heads = group,
                          .kv_heads = 1,
                          .head_dim = head_dim,
                          .value_dim = value_dim};
        SCOPED_TRACE(testing::Message() << sizes);
        expect_matches_oracle(Problem<TypeParam>(sizes, ++seed));
        if (this->HasFatalFailure()) return;
      }
}

TEST(DecodeMask, RowsMaySeeDifferentKeys) {
  for (const index_t q_len : {1, 4}) {
    const Problem<float> p(
        {.batch = 2, .q_len = q_len, .kv_len = 700, .heads = 4, .kv_heads = 1, .head_dim = 24});
    expect_matches_oracle(p, [](index_t, index_t h, index_t q, index_t kv) {
      return (q + kv) % (h + 1) == 0 && kv > 65 && (kv < 400 || kv > 650);
    });
    expect_matches_oracle(p, Causal{} & (SlidingWindow{50} | SinkTokens{3}), SoftCap{2});
  }
}

TEST(DecodeTiled, LongKeysAreSplitForOneBlockOfRows) {
  // 20 rows are too many for dot products; 5000 keys are three splits.
  const auto sinks = normal<float>(Shape<1>{20}, 3);
  const Problem<float> p({.q_len = 1, .kv_len = 5000, .heads = 20, .kv_heads = 1, .head_dim = 16});
  expect_matches_oracle(p, Causal{}, Identity{},
                        AttentionOptions<Tensor<float, 4>>{.sink_logits = sinks}, true);
}

TEST(DecodeSplit, EmptySplitsDoNotCount) {
  const Problem<float> p({.q_len = 1, .kv_len = 3000, .heads = 4, .kv_heads = 2, .head_dim = 16});
  for (const auto& [low, high] :
       {std::pair<index_t, index_t>{0, 3}, {1500, 1501}, {2999, 3000}, {0, 0}, {100, 2000}})
    expect_matches_oracle(p, [low = low, high = high](index_t, index_t, index_t, index_t kv) {
      return kv >= low && kv < high;
    });
}

// From 4 MiB of keys and values on: items are splits of 256 keys and more first, then heads.
TEST(DecodeSplit, LongTokensAreCutIntoSplitsBeforeHeads) {
  for (const auto& [batch, kv_len] :
       {std::pair<index_t, index_t>{1, 512}, {1, 767}, {1, 768}, {3, 800}, {1, 2100}}) {
    const Sizes sizes{
        .batch = batch, .q_len = 1, .kv_len = kv_len, .heads = 32, .kv_heads = 16, .head_dim = 64};
    SCOPED_TRACE(testing::Message() << sizes);
    expect_matches_oracle(Problem<float>(sizes), Causal{} & SlidingWindow{1500});
  }
}

/// x [batch, tokens, heads, dim], memory [batch, heads, tokens, dim].
template <class T>
Tensor<T, 4> head_after_head(const Tensor<T, 4>& x) {
  Tensor<T, 4> out({x.extent(0), x.extent(2), x.extent(1), x.extent(3)});
  copy(out.transpose(1, 2), x);
  return out;
}

template <class T>
void expect_the_same_from_heads_apart(const Sizes& sizes) {
  SCOPED_TRACE(testing::Message() << sizes);
  const Problem<T> p(sizes);
  const Tensor<T, 4> k = head_after_head(p.k), v = head_after_head(p.v);
  const Shape<4> shape{sizes.batch, sizes.q_len, sizes.heads, sizes.values()};
  Tensor<T, 4> together(shape), apart(shape), values_apart(shape);
  attention(together, p.q, p.k, p.v, Causal{});
  attention(apart, p.q, k.transpose(1, 2), v.transpose(1, 2), Causal{});
  attention(values_apart, p.q, p.k, v.transpose(1, 2), Causal{});
  for (index_t n = 0; n < together.size(); ++n) {
    ASSERT_EQ(apart.data()[n], together.data()[n]) << n;
    ASSERT_EQ(values_apart.data()[n], together.data()[n]) << n;
  }
}

TEST(DecodeLayouts, HeadsThatLieApartGiveTheSameBits) {
  for (const index_t kv_len : {1, 100, 700, 3000}) {
    expect_the_same_from_heads_apart<float>(
        {.batch = 2, .q_len = 1, .kv_len = kv_len, .heads = 24, .kv_heads = 6, .head_dim = 40});
    expect_the_same_from_heads_apart<bfloat16>(
        {.q_len = 2, .kv_len = kv_len, .heads = 9, .kv_heads = 9, .head_dim = 64, .value_dim = 24});
  }
}

TEST(DecodeAllocation, AStepInTheSteadyStateAllocatesNothing) {
  const Problem<float> p(
      {.batch = 2, .q_len = 1, .kv_len = 2000, .heads = 8, .kv_heads = 2, .head_dim = 64});
  Tensor<float, 4> out({2, 1, 8, 64});
  Tensor<float, 3> logsumexp({2, 8, 1});
  const auto lengths = list({2000, 1234});
  const auto step = [&] {
    attention(out, p.q, p.k, p.v, Causal{} & SlidingWindow{1500}, SoftCap{30},
              {.logsumexp = logsumexp, .kv_lengths = lengths});
  };
  for (int n = 0; n < 3; ++n) step();
  const long before = allocations;
  for (int n = 0; n < 10; ++n) step();
  EXPECT_EQ(allocations - before, 0);
}

TEST(DecodeAllocation, NorDoesPrefill) {
  const Problem<bfloat16> p(
      {.q_len = 300, .kv_len = 300, .heads = 4, .kv_heads = 2, .head_dim = 64});
  Tensor<bfloat16, 4> out({1, 300, 4, 64});
  for (int n = 0; n < 3; ++n) attention(out, p.q, p.k, p.v);
  const long before = allocations;
  for (int n = 0; n < 5; ++n) attention(out, p.q, p.k, p.v);
  EXPECT_EQ(allocations - before, 0);
}

}  // namespace
}  // namespace rapt::test
