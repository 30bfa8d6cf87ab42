// Tiles of keys and values that are packed once for several blocks of rows
// (cpu/attention_forward.hpp): from 384 rows of a group on, so larger calls than elsewhere.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "attention/problem.hpp"

namespace rapt::test {
namespace {

constexpr Sizes kSizes{
    .batch = 2, .q_len = 131, .kv_len = 300, .heads = 8, .kv_heads = 2, .head_dim = 24};

template <class T>
struct PackedTiles : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(PackedTiles, Elements);

TYPED_TEST(PackedTiles, MatchTheOracle) {
  const Problem<TypeParam> p(kSizes);
  expect_matches_oracle(p, Causal{}, Identity{}, {}, true);
  expect_matches_oracle(p, Full{}, SoftCap{3});
  expect_matches_oracle(p, Causal{} & (SlidingWindow{40} | SinkTokens{3}));
  // Nobody sees the first tile; and the odd keys of all others.
  expect_matches_oracle(
      p, [](index_t, index_t, index_t, index_t kv) { return kv >= 128 && kv % 2 == 1; });
}

TYPED_TEST(PackedTiles, MatchTheOracleInSequencesOfTheirOwn) {
  const auto cu_q = list({0, 150, 150, 155, 400}), cu_k = list({0, 290, 300, 340, 600});
  Sizes sizes = kSizes;
  sizes.batch = 1, sizes.q_len = 400, sizes.kv_len = 600;
  const Problem<TypeParam> p(sizes);
  expect_matches_oracle(p, Causal{}, Identity{}, {.cu_seqlens_q = cu_q, .cu_seqlens_k = cu_k});
}

TEST(PackedTilesOfHiddenValues, DoNotReachTheRowsThatDoNotSeeThem) {
  Problem<float> p(kSizes);
  Outputs<float> clean({kSizes.batch, kSizes.q_len, kSizes.heads, kSizes.head_dim});
  attention(clean.out, p.q, p.k, p.v, Causal{});
  const index_t last = kSizes.kv_len - 1, first_row_that_sees = kSizes.q_len - 20;
  for (index_t t = 0; t < kSizes.head_dim; ++t) {
    p.v(1, last - 19, 0, t) = std::numeric_limits<float>::quiet_NaN();
    p.v(1, last - 19, 1, t) = std::numeric_limits<float>::infinity();
  }
  Tensor<float, 4> out(clean.out.shape());
  attention(out, p.q, p.k, p.v, Causal{});
  for (index_t i = 0; i < kSizes.q_len; ++i)
    for (index_t h = 0; h < kSizes.heads; ++h) {
      if (i < first_row_that_sees)
        EXPECT_NEAR(out(1, i, h, 5), clean.out(1, i, h, 5), 1e-5) << i;
      else
        EXPECT_FALSE(std::isfinite(out(1, i, h, 5))) << i;
      EXPECT_EQ(out(0, i, h, 5), clean.out(0, i, h, 5)) << i;
    }
}

TEST(PackedTilesOfManyHeads, AreThoseOfEachAlone) {
  // Eleven tiles of 512 KiB a head: two heads fit 16 MiB, the third comes after them.
  const Sizes sizes{.q_len = 384, .kv_len = 1400, .heads = 3, .kv_heads = 3, .head_dim = 512};
  const Problem<float> p(sizes);
  Tensor<float, 4> all({1, sizes.q_len, 3, sizes.head_dim}), one({1, sizes.q_len, 1, 512});
  attention(all, p.q, p.k, p.v, Causal{});
  for (index_t h = 0; h < 3; ++h) {
    attention(one, p.q.slice(2, h, h + 1), p.k.slice(2, h, h + 1), p.v.slice(2, h, h + 1),
              Causal{});
    for (index_t i = 0; i < sizes.q_len; ++i)
      ASSERT_EQ(std::memcmp(&all(0, i, h, 0), &one(0, i, 0, 0), 512 * sizeof(float)), 0)
          << "head " << h << ", row " << i;
  }
}

}  // namespace
}  // namespace rapt::test
