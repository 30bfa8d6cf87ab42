// Every mask and composition: the result against the oracle, and the tiles that were visited
// against the mask's own verdicts. The oracle reads no verdict, so a wrong one cannot hide.
#include <gtest/gtest.h>

#include <mutex>
#include <set>
#include <tuple>

#include "attention/any_mask.hpp"
#include "attention/problem.hpp"

namespace rapt::test {
namespace {

/// What a kernel asked and computed.
struct Record {
  struct Tile {
    index_t b, h;
    PositionRange q, kv;
    TileVerdict verdict;
  };
  std::mutex mutex;
  std::vector<Tile> tiles;
  std::set<std::tuple<index_t, index_t, index_t, index_t>> asked;

  void clear() { tiles.clear(), asked.clear(); }
};

/// A mask that writes down which tiles are computed and which pairs are asked about.
struct Recording {
  AnyMask mask;
  Record* record;

  bool operator()(index_t b, index_t h, index_t q, index_t kv) const {
    const std::lock_guard<std::mutex> lock(record->mutex);
    record->asked.insert({b, h, q, kv});
    return mask(b, h, q, kv);
  }
  TileVerdict classify(index_t b, index_t h, PositionRange q, PositionRange kv) const {
    return rapt::classify(mask, b, h, q, kv);
  }
  Recording bind(const CallShape& call) const { return {mask.bind(call), record}; }
  void on_tile(index_t b, index_t h, PositionRange q, PositionRange kv, TileVerdict verdict) const {
    const std::lock_guard<std::mutex> lock(record->mutex);
    record->tiles.push_back({b, h, q, kv, verdict});
  }
};

template <class Mask>
void expect_visits_what_is_visible(const Problem<float>& p, const Mask& mask) {
  const Sizes& s = p.sizes;
  Record record;
  Tensor<float, 4> out(Shape<4>{s.batch, s.q_len, s.heads, s.values()});
  attention(out, p.q, p.k, p.v, Recording{mask, &record});

  const CallShape call{.q_len = s.q_len, .kv_len = s.kv_len, .batch = s.batch, .heads = s.heads};
  const auto bound = bind_call(mask, call);
  std::set<std::tuple<index_t, index_t, index_t, index_t>> covered;
  for (const Record::Tile& tile : record.tiles) {
    ASSERT_NE(classify(bound, tile.b, tile.h, tile.q, tile.kv), TileVerdict::skip)
        << "a tile that the mask skips was computed";
    for (index_t q = tile.q.begin; q < tile.q.end; ++q)
      for (index_t kv = tile.kv.begin; kv < tile.kv.end; ++kv)
        ASSERT_TRUE(covered.insert({tile.b, tile.h, q, kv}).second) << "computed twice";
    if (tile.verdict == TileVerdict::full) {
      for (index_t q = tile.q.begin; q < tile.q.end; ++q)
        for (index_t kv = tile.kv.begin; kv < tile.kv.end; ++kv)
          ASSERT_FALSE(record.asked.contains({tile.b, tile.h, q, kv})) << "asked in a full tile";
    }
  }
  for (const auto& pair : record.asked)
    ASSERT_TRUE(covered.contains(pair)) << "asked in a tile that is not computed";
  for (index_t b = 0; b < s.batch; ++b)
    for (index_t h = 0; h < s.heads; ++h)
      for (index_t i = 0; i < s.q_len; ++i)
        for (index_t j = 0; j < s.kv_len; ++j) {
          const index_t q = s.kv_len - s.q_len + i;
          if (bound(b, h, q, j)) {
            ASSERT_TRUE(covered.contains({b, h, q, j})) << "a visible pair is missing";
          }
        }
}

const Sizes kSizes[] = {
    {.batch = 2, .q_len = 150, .kv_len = 150, .heads = 4, .kv_heads = 2, .head_dim = 8},
    {.batch = 2, .q_len = 70, .kv_len = 203, .heads = 2, .kv_heads = 2, .head_dim = 8},
    {.batch = 1, .q_len = 3, .kv_len = 140, .heads = 4, .kv_heads = 1, .head_dim = 8},
    {.batch = 2, .q_len = 1, .kv_len = 150, .heads = 2, .kv_heads = 2, .head_dim = 8},
    {.batch = 1, .q_len = 90, .kv_len = 40, .heads = 2, .kv_heads = 1, .head_dim = 8},
};

/// make(sizes) gives the mask for a problem.
template <class Make>
void expect_mask_is_right(Make make) {
  unsigned seed = 0;
  for (const Sizes& sizes : kSizes) {
    SCOPED_TRACE(testing::Message() << sizes);
    const Problem<float> p(sizes, ++seed);
    const auto mask = make(sizes);
    expect_matches_oracle(p, mask);
    expect_visits_what_is_visible(p, mask);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(Mask, FullAndCausal) {
  expect_mask_is_right([](const Sizes&) { return Full{}; });
  expect_mask_is_right([](const Sizes&) { return Causal{}; });
}

TEST(Mask, SlidingWindow) {
  for (const index_t window : {1, 3, 16, 64, 100, 1000}) {
    SCOPED_TRACE(window);
    expect_mask_is_right([=](const Sizes&) { return Causal{} & SlidingWindow{window}; });
    expect_mask_is_right([=](const Sizes&) { return SlidingWindow{window}; });
  }
}

TEST(Mask, WindowWithSinkTokens) {
  for (const index_t window : {1, 20, 64})
    for (const index_t sinks : {0, 4, 70})
      expect_mask_is_right(
          [=](const Sizes&) { return Causal{} & (SlidingWindow{window} | SinkTokens{sinks}); });
}

TEST(Mask, ChunkedLocal) {
  for (const index_t chunk : {1, 7, 64, 500})
    expect_mask_is_right([=](const Sizes&) { return ChunkedLocal{chunk}; });
}

TEST(Mask, PrefixLm) {
  const auto lengths = list({17, 90});
  expect_mask_is_right([&](const Sizes&) { return PrefixLm<>{lengths}; });
}

TEST(Mask, SameDocument) {
  Tensor<std::int32_t, 2> ids({1, 256});
  for (index_t n = 0; n < 256; ++n)
    ids(0, n) = static_cast<std::int32_t>(n / 37 + (n > 200 ? 3 : 0));
  expect_mask_is_right([&](const Sizes&) { return Causal{} & SameDocument<>{ids}; });
  expect_mask_is_right([&](const Sizes&) { return SameDocument<>{ids, true}; });
  const auto jumbled = integers(Shape<2>{2, 256}, 3, 0, 2);
  expect_mask_is_right([&](const Sizes&) { return Causal{} & SameDocument<>{jumbled}; });
}

TEST(Mask, BlockSparseDiffersByHead) {
  for (const index_t block : {5, 16, 64}) {
    const auto map = integers(Shape<4>{2, 4, 50, 50}, static_cast<unsigned>(block), 0, 1);
    expect_mask_is_right([&](const Sizes&) { return BlockSparse<>{map, block}; });
    expect_mask_is_right([&](const Sizes&) { return Causal{} & BlockSparse<>{map, block}; });
  }
}

TEST(Mask, DenseMask) {
  expect_mask_is_right([table = integers(Shape<4>{2, 1, 256, 256}, 5, 0, 1)](const Sizes&) {
    return DenseMask<>{table};
  });
  auto rare =
      integers(Shape<4>{2, 4, 256, 256}, 5, 0, 200);  // nearly all visible, then nearly none
  expect_mask_is_right([&](const Sizes&) { return DenseMask<>{rare}; });
  for (index_t n = 0; n < rare.size(); ++n) rare.data()[n] = rare.data()[n] == 0;
  expect_mask_is_right([&](const Sizes&) { return Causal{} & DenseMask<>{rare}; });
}

TEST(Mask, LambdasAndTheirBlockMaps) {
  const auto odd = [](index_t, index_t h, index_t q, index_t kv) {
    return kv <= q && (q - kv) % (h + 2) == 0;
  };
  expect_mask_is_right([=](const Sizes&) { return odd; });
  expect_mask_is_right([=](const Sizes&) { return ~(Causal{} & as_mask(odd)); });
  expect_mask_is_right([=](const Sizes& s) {
    return make_block_mask(odd, s.batch, s.heads, s.q_len, s.kv_len, 32);
  });
  const auto none = [](index_t, index_t, index_t, index_t) { return false; };
  expect_mask_is_right([=](const Sizes&) { return none; });
}

TEST(Mask, ACausalTileIsComputedOnceAndOnlyBelowTheDiagonal) {
  const Problem<float> p({.q_len = 512, .kv_len = 512, .head_dim = 8});
  Record record;
  Tensor<float, 4> out({1, 512, 1, 8});
  attention(out, p.q, p.k, p.v, Recording{Causal{}, &record});
  index_t computed = 0;
  for (const auto& tile : record.tiles)
    computed += (tile.q.end - tile.q.begin) * (tile.kv.end - tile.kv.begin);
  // Half, and what the diagonal's tiles reach beyond it.
  using Tiling = cpu::AttentionTiling<float>;
  EXPECT_LE(computed, 512 * 512 / 2 + 512 * (Tiling::kRowTile + Tiling::kKeyTile) / 2);
  EXPECT_LT(static_cast<index_t>(record.asked.size()), 512 * 70);
}

}  // namespace
}  // namespace rapt::test
