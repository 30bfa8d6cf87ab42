// Philox: the published words, resuming, and the moments of what is drawn from it.
#include "rapt/core/random.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace rapt::test {

using testing::ElementsAre;

// Known answers of philox4x32-10 that ship with Random123 (kat_vectors).
TEST(Philox, AgreesWithRandom123) {
  EXPECT_THAT(Philox::rounds({0, 0, 0, 0}, {0, 0}),
              ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  EXPECT_THAT(Philox::rounds({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
              ElementsAre(0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu));
  EXPECT_THAT(Philox::rounds({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u},
                             {0xa4093822u, 0x299f31d0u}),
              ElementsAre(0xd16cfe09u, 0x94fdccebu, 0x5001e420u, 0x24126ea1u));
}

TEST(Philox, DrawsTheWordsOfItsCounterInOrder) {
  Philox random(0);
  std::array<std::uint32_t, 4> words{};
  for (auto& w : words) w = random();
  EXPECT_THAT(words, ElementsAre(0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u));
  EXPECT_EQ(random(), Philox::block_of(0, 1)[0]);
}

TEST(Philox, ResumesFromItsState) {
  Philox a(7);
  for (int i = 0; i < 13; ++i) a();
  Philox b;
  b.set_state(a.state());
  for (int i = 0; i < 100; ++i) ASSERT_EQ(a(), b());
  b.set_state({7, 13});
  Philox c(7);
  for (int i = 0; i < 13; ++i) c();
  EXPECT_EQ(b(), c());
  EXPECT_EQ(b.normal(), c.normal());
}

TEST(Philox, GivesEverySeedItsOwnStream) {
  EXPECT_NE(Philox(1)(), Philox(2)());
  EXPECT_NE(Philox(1)(), Philox(std::uint64_t{1} << 32)());
}

TEST(Philox, DrawsUniformAndNormalNumbersWithTheRightMoments) {
  Philox random(42);
  constexpr int kCount = 200000;
  double sum = 0, square = 0, lowest = 1, highest = 0;
  for (int i = 0; i < kCount; ++i) {
    const double u = random.uniform();
    lowest = std::min(lowest, u);
    highest = std::max(highest, u);
    sum += u;
    square += u * u;
  }
  EXPECT_GE(lowest, 0.0);
  EXPECT_LT(highest, 1.0);
  EXPECT_NEAR(sum / kCount, 0.5, 0.003);
  EXPECT_NEAR(square / kCount, 1.0 / 3, 0.003);
  sum = square = 0;
  double fourth = 0;
  for (int i = 0; i < kCount; ++i) {
    const double x = random.normal();
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    square += x * x;
    fourth += x * x * x * x;
  }
  EXPECT_NEAR(sum / kCount, 0.0, 0.01);
  EXPECT_NEAR(square / kCount, 1.0, 0.02);
  EXPECT_NEAR(fourth / kCount, 3.0, 0.15);
}

TEST(Philox, BelowIsUniformOverItsRange) {
  Philox random(3);
  std::vector<int> count(7);
  for (int i = 0; i < 70000; ++i) {
    const std::uint64_t n = random.below(7);
    ASSERT_LT(n, 7u);
    ++count[n];
  }
  for (const int c : count) EXPECT_NEAR(c, 10000, 400);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(random.below(1), 0u);
  EXPECT_LE(random.below(~std::uint64_t{0}), ~std::uint64_t{0} - 1);
}

TEST(Philox, IsARandomBitGeneratorForTheStandardLibrary) {
  std::vector<int> a{0, 1, 2, 3, 4, 5, 6, 7}, sorted = a;
  Philox random(5);
  std::shuffle(a.begin(), a.end(), random);
  EXPECT_NE(a, sorted);
  EXPECT_TRUE(std::is_permutation(a.begin(), a.end(), sorted.begin()));
}

TEST(Fill, GivesTheSameNumbersInEveryTypeAndLayout) {
  Tensor<float, 2> plain({3, 4});
  Tensor<float, 2> wide({3, 9});
  Tensor<bfloat16, 2> small({3, 4});
  Philox a(11), b(11), c(11);
  fill_normal(plain, a, 2.0);
  fill_normal(wide.slice(1, 2, 6), b, 2.0);
  fill_normal(small, c, 2.0);
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 4; ++j) {
      EXPECT_EQ(plain(i, j), wide(i, j + 2));
      EXPECT_EQ(bfloat16(plain(i, j)).bits, small(i, j).bits);
    }
  EXPECT_EQ(wide(0, 0), 0.f);
  EXPECT_EQ(wide(2, 6), 0.f);
}

TEST(Fill, KeepsItsBoundsAndItsValue) {
  Tensor<double, 1> t({1000});
  Philox random(1);
  fill_uniform(t, random, -3, 5);
  EXPECT_GE(*std::min_element(t.data(), t.data() + 1000), -3.0);
  EXPECT_LE(*std::max_element(t.data(), t.data() + 1000), 5.0);
  fill(t, 0.1);
  EXPECT_EQ(t(999), 0.1);
  Tensor<std::int64_t, 1> ids({2});
  fill(ids, 16777217);
  EXPECT_EQ(ids(1), 16777217);
}

}  // namespace rapt::test
