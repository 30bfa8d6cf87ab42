// The gradient under every mask: against the oracle, and, tile by tile, that nothing hidden is
// computed.
#include <gtest/gtest.h>

#include "attention/any_mask.hpp"
#include "attention/backward_problem.hpp"

namespace rapt::test {
namespace {

const Sizes kSizes{2, 75, 110, 4, 2, 12};

void expect_matches(const Problem<double>& p, AnyMask mask) {
  expect_backward_matches(p, std::move(mask));
}

TEST(BackwardMask, Full) { expect_matches(Problem<double>(kSizes), Full{}); }

TEST(BackwardMask, WindowAndSinkTokens) {
  const Problem<double> p(kSizes);
  for (const index_t window : {1, 2, 17, 64, 500})
    for (const index_t first : {0, 3, 70})
      expect_matches(p, Causal{} & (SlidingWindow{window} | SinkTokens{first}));
}

TEST(BackwardMask, ChunkedLocal) {
  const Problem<double> p(kSizes);
  for (const index_t chunk : {1, 7, 64}) expect_matches(p, ChunkedLocal{chunk});
}

TEST(BackwardMask, PrefixLm) {
  const auto lengths = list({0, 90});
  expect_matches(Problem<double>(kSizes), PrefixLm{lengths});
}

TEST(BackwardMask, SameDocument) {
  Tensor<std::int32_t, 2> ids({2, 110});
  for (index_t b = 0; b < 2; ++b)
    for (index_t i = 0; i < 110; ++i) ids(b, i) = static_cast<std::int32_t>(i / (30 + 11 * b));
  const Problem<double> p(kSizes);
  expect_matches(p, Causal{} & (SlidingWindow{20} | SinkTokens{0}) & SameDocument{ids});
  expect_matches(p, SameDocument{ids});
}

TEST(BackwardMask, Blocks) {
  const Problem<double> p({1, 130, 130, 2, 1, 12});
  const auto map = integers(Shape<4>{1, 2, 9, 9}, 3, 0, 1);
  expect_matches(p, BlockSparse{map, 16});
  expect_matches(p, Causal{} & BlockSparse{map, 16});
}

TEST(BackwardMask, Dense) {
  const Problem<double> p(kSizes);
  const auto table = integers(Shape<4>{2, 4, 75, 110}, 3, 0, 1);
  expect_matches(p, DenseMask{table});
}

TEST(BackwardMask, Lambda) {
  expect_matches(Problem<double>(kSizes), [](index_t, index_t h, index_t i, index_t j) {
    return j <= i && (i - j) % (h + 2) == 0;
  });
}

/// Causal, and a count of the tiles that were computed.
struct Watched {
  index_t* tiles;
  bool operator()(index_t, index_t, index_t q, index_t kv) const { return kv <= q; }
  TileVerdict classify(index_t b, index_t h, PositionRange q, PositionRange kv) const {
    return Causal{}.classify(b, h, q, kv);
  }
  void on_tile(index_t b, index_t h, PositionRange q, PositionRange kv, TileVerdict) const {
    EXPECT_NE(Causal{}.classify(b, h, q, kv), TileVerdict::skip);
    ++*tiles;
  }
};

TEST(BackwardMask, SkippedTilesAreNotComputed) {
  const Problem<float> p({1, 192, 192, 2, 1, 12});
  const auto dout = normal<float>(p.q.shape(), 77);
  Tensor<float, 4> out(p.q.shape());
  Tensor<float, 3> lse({1, 2, 192});
  attention(out, p.q, p.k, p.v, Causal{}, Identity{}, {.logsumexp = lse});
  const int before = num_threads();
  set_num_threads(1);
  index_t tiles = 0;
  Gradients<float> got(p.q, p.k, p.v);
  attention_backward(got.dq, got.dk, got.dv, dout, p.q, p.k, p.v, out, lse, Watched{&tiles});
  set_num_threads(before);
  using Tiling = cpu::BackwardTiling<float>;
  index_t want = 0;  // of two heads
  for (index_t end = Tiling::kRowTile; end < 192 + Tiling::kRowTile; end += Tiling::kRowTile)
    want += 2 * ((std::min<index_t>(end, 192) + Tiling::kKeyTile - 1) / Tiling::kKeyTile);
  EXPECT_EQ(tiles, want);
}

}  // namespace
}  // namespace rapt::test
