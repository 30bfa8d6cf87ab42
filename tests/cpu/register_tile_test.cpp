// The inner loop of the register tiles: one to eight rows and one to four vectors, both ways that A
// may lie, depths that are no multiple of the steps, B narrower in memory than in its product.
#include "rapt/cpu/register_tile.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace {

/// Small whole numbers, so that sums are exact in any order.
template <class T>
std::vector<T> small_numbers(index_t n, int seed) {
  std::vector<T> x(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = convert<T>(static_cast<float>((static_cast<int>(i) * 7 + seed) % 11 - 5));
  return x;
}

/// B lies as rows of `Stored`, kElements neighbours along the depth side by side.
template <int kRows, int kVecs, detail::Lie kLie, class Steps, class A, class E, class Stored,
          int kElements = 1>
void expect_sums(index_t depth) {
  using V = Vec<A>;
  constexpr index_t kWidth = kVecs * V::kLanes, kGap = 3;
  const index_t elements = depth * kElements, b_step = kWidth + kGap;
  const index_t a_step = (kLie == detail::Lie::by_rows ? elements : kRows) + kGap;
  const auto a = small_numbers<E>(a_step * std::max<index_t>(kRows, elements), 1);
  const auto b = small_numbers<Stored>(std::max<index_t>(1, depth * b_step * kElements), 4);
  const auto start = small_numbers<A>(kRows * kWidth, 2);

  V sums[kRows][kVecs];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVecs; ++v)
      sums[i][v] = V::load(start.data() + (i * kVecs + v) * V::kLanes);
  if constexpr (kElements == 2)
    detail::add_products<kLie, Steps>(
        sums, a.data(), a_step, reinterpret_cast<const Bfloat16Pair*>(b.data()), b_step, depth);
  else
    detail::add_products<kLie, Steps>(sums, a.data(), a_step, b.data(), b_step, depth);

  for (int i = 0; i < kRows; ++i)
    for (index_t c = 0; c < kWidth; ++c) {
      A want = start[static_cast<std::size_t>(i * kWidth + c)];
      for (index_t k = 0; k < elements; ++k) {
        const index_t at = kLie == detail::Lie::by_rows ? i * a_step + k : k * a_step + i;
        const index_t in_b = (k / kElements * b_step + c) * kElements + k % kElements;
        want += convert<A>(a[static_cast<std::size_t>(at)]) *
                convert<A>(b[static_cast<std::size_t>(in_b)]);
      }
      A got[V::kLanes];
      sums[i][c / V::kLanes].store(got);
      ASSERT_EQ(got[c % V::kLanes], want) << "rows " << kRows << " vectors " << kVecs << " depth "
                                          << depth << " at " << i << ", " << c;
    }
}

template <class Steps, class A, class Stored>
void expect_all_tiles(index_t depth) {
  const auto rows = [&]<int kRows, int kVecs>() {
    expect_sums<kRows, kVecs, detail::Lie::by_rows, Steps, A, A, Stored>(depth);
    expect_sums<kRows, kVecs, detail::Lie::by_columns, Steps, A, A, Stored>(depth);
  };
  rows.template operator()<1, 1>(), rows.template operator()<2, 4>();
  rows.template operator()<3, 2>(), rows.template operator()<4, 3>();
  rows.template operator()<5, 2>(), rows.template operator()<6, 2>();
  rows.template operator()<6, 4>(), rows.template operator()<7, 1>();
  rows.template operator()<8, 3>();
}

TEST(RegisterTile, AddsTheProductsOfEveryTile) {
  for (const index_t depth : {0, 1, 3, 4, 7, 64}) {
    expect_all_tiles<detail::RegisterSteps<4>, float, float>(depth);
    expect_all_tiles<detail::RegisterSteps<1>, double, double>(depth);
  }
}

TEST(RegisterTile, WidensBWhileItMultiplies) {
  for (const index_t depth : {1, 5, 33}) {
    expect_all_tiles<detail::RegisterSteps<4, 20>, float, half>(depth);
    expect_all_tiles<detail::RegisterSteps<1, 20>, float, bfloat16>(depth);
  }
}

TEST(RegisterTile, AddsThePairsOfBfloat16) {
  if constexpr (kBfloat16Dot) {
    using detail::Lie;
    for (const index_t depth : {0, 1, 3, 4, 7, 64}) {
      expect_sums<6, 4, Lie::by_rows, detail::RegisterSteps<4>, float, bfloat16, bfloat16, 2>(
          depth);
      expect_sums<8, 3, Lie::by_rows, detail::RegisterSteps<1>, float, bfloat16, bfloat16, 2>(
          depth);
      expect_sums<1, 1, Lie::by_rows, detail::RegisterSteps<4>, float, bfloat16, bfloat16, 2>(
          depth);
    }
  } else {
    GTEST_SKIP() << "no dot product of bfloat16 pairs";
  }
}

TEST(RegisterTile, TakesTheWidthOfAPanelAsAConstant) {
  using V = Vec<float>;
  constexpr std::integral_constant<index_t, 2 * V::kLanes> kWidth;
  const auto a = small_numbers<float>(6 * 9, 1), b = small_numbers<float>(9 * kWidth, 3);
  V sums[6][2], same[6][2];
  for (int i = 0; i < 6; ++i) sums[i][0] = sums[i][1] = same[i][0] = same[i][1] = V::zero();
  detail::add_products<detail::Lie::by_rows, detail::RegisterSteps<4>>(sums, a.data(), 9, b.data(),
                                                                       kWidth, 9);
  detail::add_products<detail::Lie::by_rows, detail::RegisterSteps<1>>(same, a.data(), 9, b.data(),
                                                                       index_t{kWidth}, 9);
  for (int i = 0; i < 6; ++i)
    for (int v = 0; v < 2; ++v) EXPECT_EQ(sum(sums[i][v] - same[i][v]), 0);
}

}  // namespace
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
