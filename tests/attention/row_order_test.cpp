// How rows of a block follow one another (RowBlock, cpu/attention_call.hpp): the heads of a query
// side by side where a mask is made of runs, whatever the group and the lengths. What a row is does
// not depend on its neighbours, nor on what memory held before a block's first tile.
#include <gtest/gtest.h>

#include <cstring>
#include <limits>

#include "attention/problem.hpp"
#include "attention/window_of_head.hpp"

namespace rapt::test {
namespace {

template <class T>
struct RowOrder : testing::Test {};
using Elements = testing::Types<float, bfloat16>;
TYPED_TEST_SUITE(RowOrder, Elements);

TYPED_TEST(RowOrder, HeadsThatSeeDifferentRunsShareARowTile) {
  for (const index_t group : {1, 3, 4, 7}) {
    const Sizes sizes{
        .batch = 2, .q_len = 90, .kv_len = 140, .heads = 2 * group, .kv_heads = 2, .head_dim = 20};
    const Problem<TypeParam> p(sizes);
    expect_matches_oracle(p, WindowOfHead{}, Identity{}, {}, true);
    expect_matches_oracle(p, WindowOfHead{}, SoftCap{4});
  }
}

TYPED_TEST(RowOrder, AnyGroupAndAnyLength) {
  for (const index_t group : {1, 2, 5, 6, 9})
    for (const index_t length : {3, 17, 24, 49, 65}) {
      const Problem<TypeParam> p(Sizes{.q_len = length, .kv_len = length, .heads = group});
      expect_matches_oracle(p, Causal{});
      expect_matches_oracle(p, SlidingWindow{5});
    }
}

TYPED_TEST(RowOrder, ARowHasTheSameBitsWhateverItsNeighbours) {
  for (const index_t group : {1, 3, 4}) {
    const Sizes sizes{.q_len = 90, .kv_len = 300, .heads = group, .kv_heads = 1, .head_dim = 24};
    const Problem<TypeParam> p(sizes);
    Tensor<TypeParam, 4> all(p.q.shape());
    attention(all, p.q, p.k, p.v, Causal{});
    for (const index_t n : {17, 29, 64})  // more rows than decoding takes
      for (const index_t first : {0, 5, 26}) {
        const index_t keys = sizes.kv_len - sizes.q_len + first + n;
        Tensor<TypeParam, 4> some({1, n, group, sizes.head_dim});
        attention(some, p.q.slice(1, first, first + n), p.k.slice(1, 0, keys),
                  p.v.slice(1, 0, keys), Causal{});
        EXPECT_EQ(std::memcmp(some.data(), &all(0, first, 0, 0), some.bytes()), 0)
            << group << " heads, rows " << first << " to " << first + n;
      }
  }
}

/// The bytes of a call's output, before and after the scratch memory was filled with NaN.
template <class T, class Mask>
void expect_scratch_does_not_matter(const Sizes& sizes, const Mask& mask) {
  const Problem<T> p(sizes);
  Problem<T> poison(sizes);
  const T nan = static_cast<T>(std::numeric_limits<float>::quiet_NaN());
  for (auto* x : {&poison.q, &poison.k, &poison.v}) std::fill_n(x->data(), x->size(), nan);
  Outputs<T> before(p.q.shape()), after(p.q.shape()), spoiled(p.q.shape());
  attention(before.out, p.q, p.k, p.v, mask, Identity{}, {.logsumexp = before.logsumexp});
  attention(spoiled.out, poison.q, poison.k, poison.v, Full{});
  attention(after.out, p.q, p.k, p.v, mask, Identity{}, {.logsumexp = after.logsumexp});
  EXPECT_EQ(std::memcmp(before.out.data(), after.out.data(), before.out.bytes()), 0) << sizes;
  EXPECT_EQ(std::memcmp(before.logsumexp.data(), after.logsumexp.data(), before.logsumexp.bytes()),
            0)
      << sizes;
  for (index_t n = 0; n < after.out.size(); ++n)
    ASSERT_TRUE(std::isfinite(static_cast<float>(after.out.data()[n]))) << sizes << ", " << n;
}

TYPED_TEST(RowOrder, WhatScratchMemoryHeldDoesNotMatter) {
  // Rows that see nothing, tiles that some rows of a tile see first, keys cut into splits.
  for (const Sizes& sizes :
       {Sizes{.q_len = 200, .kv_len = 70, .heads = 4, .kv_heads = 2, .head_dim = 24},
        Sizes{.q_len = 130, .kv_len = 400, .heads = 3, .kv_heads = 3, .head_dim = 40},
        Sizes{.q_len = 20, .kv_len = 5000, .heads = 4, .kv_heads = 2, .head_dim = 16}}) {
    expect_scratch_does_not_matter<TypeParam>(sizes, Causal{});
    expect_scratch_does_not_matter<TypeParam>(sizes, SlidingWindow{9});
    expect_scratch_does_not_matter<TypeParam>(
        sizes, [](index_t, index_t h, index_t q, index_t kv) { return kv <= q && (q + h) % 3; });
  }
}

}  // namespace
}  // namespace rapt::test
