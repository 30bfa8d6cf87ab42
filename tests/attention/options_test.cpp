// What AttentionOptions add to a call: sinks, probabilities, lengths, packed sequences, pages,
// explicit positions, strided views; and that nothing leaks from where a query does not look.
#include <gtest/gtest.h>

#include <limits>

#include "attention/problem.hpp"

namespace rapt::test {
namespace {

using Options = AttentionOptions<Tensor<float, 4>>;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

const Sizes kSizes[] = {
    {.batch = 3, .q_len = 40, .kv_len = 150, .heads = 4, .kv_heads = 2, .head_dim = 20},
    {.batch = 3, .q_len = 1, .kv_len = 150, .heads = 4, .kv_heads = 2, .head_dim = 20},
    {.batch = 3,
     .q_len = 5,
     .kv_len = 150,
     .heads = 3,
     .kv_heads = 1,
     .head_dim = 20,
     .value_dim = 7},
    {.batch = 3, .q_len = 150, .kv_len = 150, .heads = 1, .kv_heads = 1, .head_dim = 64},
};

TEST(Options, SinksAndProbabilities) {
  for (const Sizes& sizes : kSizes) {
    SCOPED_TRACE(testing::Message() << sizes);
    const Problem<float> p(sizes);
    auto sinks = normal<float>(Shape<1>{sizes.heads}, 7);
    sinks(0) = -kInf;
    expect_matches_oracle(p, Causal{}, Identity{}, Options{.sink_logits = sinks}, true);
    sinks(0) = 40;
    expect_matches_oracle(p, Causal{} & SlidingWindow{3}, Identity{},
                          Options{.scale = 0.5f, .sink_logits = sinks}, true);
  }
}

TEST(Options, ARowWithoutKeysIsZeroAndItsLogsumexpTheSink) {
  const Problem<float> p({.q_len = 40, .kv_len = 0, .heads = 2, .kv_heads = 1, .head_dim = 8});
  const auto sinks = list({0, 3});
  Tensor<float, 1> logits({2});
  logits(1) = 3;
  Outputs<float> got(p.q.shape());
  attention(
      got.out, p.q, p.k, p.v, Causal{}, Identity{},
      {.sink_logits = logits, .logsumexp = got.logsumexp, .logsumexp_with_sink = got.with_sink});
  for (index_t n = 0; n < got.out.size(); ++n) ASSERT_EQ(got.out.data()[n], 0);
  for (index_t n = 0; n < got.logsumexp.size(); ++n) ASSERT_EQ(got.logsumexp.data()[n], -kInf);
  for (index_t i = 0; i < 40; ++i) ASSERT_EQ(got.with_sink(0, 1, i), 3);
}

TEST(Options, LengthsOfEachRow) {
  for (const Sizes& sizes : kSizes)
    for (const auto& values : {std::vector<std::int32_t>{150, 77, 1}, {0, 64, 149}}) {
      SCOPED_TRACE(testing::Message() << sizes << ", first length " << values[0]);
      Problem<float> p(sizes);
      const auto lengths = list(values);
      for (index_t b = 0; b < 3; ++b)  // whatever lies beyond a length is never used
        for (index_t j = lengths(b); j < 150; ++j)
          for (index_t g = 0; g < sizes.kv_heads; ++g) {
            p.k(b, j, g, 0) = kNaN;
            p.v(b, j, g, 0) = j % 2 == 0 ? kNaN : kInf;
          }
      const Options options{.kv_lengths = lengths};
      expect_matches_oracle(p, Causal{}, Identity{}, options, true);
      expect_matches_oracle(p, Full{}, Identity{}, options);
      const auto map = integers(Shape<4>{3, 1, 150, 150}, 3, 0, 1);
      expect_matches_oracle(p, DenseMask<>{map}, Identity{}, options);
      if (HasFatalFailure()) return;
    }
}

TEST(Options, PackedSequences) {
  const auto cu_q = list({0, 3, 3, 64, 65, 165});
  const auto cu_k = list({0, 9, 20, 70, 72, 180});
  const Options options{.cu_seqlens_q = cu_q, .cu_seqlens_k = cu_k};
  for (const index_t group : {1, 3}) {
    const Problem<float> p(
        {.q_len = 165, .kv_len = 180, .heads = 2 * group, .kv_heads = 2, .head_dim = 12});
    expect_matches_oracle(p, Causal{}, Identity{}, options, true);
    expect_matches_oracle(p, Full{}, Identity{}, options);
    expect_matches_oracle(p, Causal{} & SlidingWindow{6}, SoftCap{3}, options);
    const auto bias = normal<float>(Shape<4>{5, 1, 120, 120}, 3);
    expect_matches_oracle(p, Causal{}, AdditiveBias<>{bias}, options);
  }
}

/// Scatters rows of k and v over a pool of pages in a shuffled order.
struct Pages {
  Tensor<float, 4> k, v;
  Tensor<std::int32_t, 2> table;

  Pages(const Problem<float>& p, index_t block_size) {
    const Sizes& s = p.sizes;
    const index_t blocks = (s.kv_len + block_size - 1) / block_size, pool = s.batch * blocks + 3;
    k = Tensor<float, 4>(Shape<4>{pool, block_size, s.kv_heads, s.head_dim});
    v = Tensor<float, 4>(Shape<4>{pool, block_size, s.kv_heads, s.values()});
    for (index_t n = 0; n < k.size(); ++n) k.data()[n] = kNaN;
    for (index_t n = 0; n < v.size(); ++n) v.data()[n] = kNaN;
    table = Tensor<std::int32_t, 2>(Shape<2>{s.batch, blocks});
    for (index_t b = 0; b < s.batch; ++b)
      for (index_t j = 0; j < s.kv_len; ++j) {
        const index_t page = (b * blocks + j / block_size) * 5 % pool;
        table(b, j / block_size) = static_cast<std::int32_t>(page);
        for (index_t g = 0; g < s.kv_heads; ++g) {
          for (index_t t = 0; t < s.head_dim; ++t) k(page, j % block_size, g, t) = p.k(b, j, g, t);
          for (index_t t = 0; t < s.values(); ++t) v(page, j % block_size, g, t) = p.v(b, j, g, t);
        }
      }
  }
};

TEST(Options, Pages) {
  for (const Sizes& sizes : kSizes)
    for (const index_t block_size : {1, 16, 37}) {
      SCOPED_TRACE(testing::Message() << sizes << ", block_size " << block_size);
      const Problem<float> p(sizes);
      const Pages pages(p, block_size);
      const auto lengths = list({150, 61, 2});
      const Options options{.kv_lengths = lengths, .block_table = pages.table};
      expect_matches_oracle(p.q, pages.k, pages.v, Causal{}, Identity{}, options, true);
      // And equal to the same keys in one piece, bit for bit.
      Tensor<float, 4> paged({3, sizes.q_len, sizes.heads, sizes.values()}), plain(paged.shape());
      attention(paged, p.q, pages.k, pages.v, Causal{}, Identity{}, options);
      attention(plain, p.q, p.k, p.v, Causal{}, Identity{}, {.kv_lengths = lengths});
      for (index_t n = 0; n < plain.size(); ++n) ASSERT_EQ(paged.data()[n], plain.data()[n]);
    }
}

TEST(Options, PackedQueriesOnPages) {
  const Problem<float> keys(
      {.batch = 3, .q_len = 1, .kv_len = 100, .heads = 4, .kv_heads = 2, .head_dim = 16});
  const Pages pages(keys, 16);
  const auto lengths = list({100, 33, 50});
  const auto cu_q = list({0, 1, 30, 37});
  const auto q = normal<float>(Shape<4>{1, 37, 4, 16}, 5);
  expect_matches_oracle(
      q, pages.k, pages.v, Causal{}, Identity{},
      Options{.kv_lengths = lengths, .cu_seqlens_q = cu_q, .block_table = pages.table});
}

TEST(Options, PositionsOfARing) {
  // A ring of 64 keys that holds positions 100 ... 163, rotated; and rows padded on the left.
  for (const index_t q_len : {1, 20}) {
    const Problem<float> p(
        {.batch = 2, .q_len = q_len, .kv_len = 64, .heads = 4, .kv_heads = 2, .head_dim = 16});
    Tensor<std::int32_t, 2> q_positions({2, q_len}), kv_positions({2, 64});
    for (index_t b = 0; b < 2; ++b) {
      for (index_t i = 0; i < q_len; ++i)
        q_positions(b, i) = static_cast<std::int32_t>(164 - q_len + i);
      for (index_t j = 0; j < 64; ++j)
        kv_positions(b, j) = static_cast<std::int32_t>(100 + (j + 64 - 36) % 64);
    }
    for (index_t j = 0; j < 30; ++j) kv_positions(1, j) = -1;
    const Options options{.q_positions = q_positions, .kv_positions = kv_positions};
    const auto slopes = alibi_slopes(4);
    expect_matches_oracle(p, Causal{}, Identity{}, options, true);
    expect_matches_oracle(p, Full{}, Identity{}, options, true);
    expect_matches_oracle(p, Causal{} & SlidingWindow{17}, Alibi<>{slopes}, options);
  }
}

TEST(Options, ABatchPaddedOnTheLeft) {
  Problem<float> p(
      {.batch = 2, .q_len = 70, .kv_len = 70, .heads = 2, .kv_heads = 1, .head_dim = 16});
  Tensor<std::int32_t, 2> positions({2, 70});
  for (index_t j = 0; j < 70; ++j) {
    positions(0, j) = static_cast<std::int32_t>(j);
    positions(1, j) = static_cast<std::int32_t>(j - 33);
  }
  for (index_t j = 0; j < 33; ++j) p.v(1, j, 0, 3) = kNaN, p.k(1, j, 0, 3) = kNaN;
  expect_matches_oracle(p, Causal{}, Identity{},
                        Options{.q_positions = positions, .kv_positions = positions}, true);
}

TEST(Options, StridedViews) {
  // Heads of q, k and v side by side in one projection; out inside a larger tensor.
  for (const index_t seq : {1, 4, 90}) {
    const auto fused = normal<float>(Shape<4>{2, seq, 4 + 2 + 2, 24}, 3);
    const auto q = fused.slice(2, 0, 4), k = fused.slice(2, 4, 6), v = fused.slice(2, 6, 8);
    expect_matches_oracle(q, k, v, Causal{}, Identity{}, AttentionOptions<decltype(q)>{});
    Tensor<float, 4> large({2, seq, 7, 24}), plain({2, seq, 4, 24});
    attention(large.slice(2, 1, 5), q, k, v);
    attention(plain, q, k, v);
    for (index_t b = 0; b < 2; ++b)
      for (index_t i = 0; i < seq; ++i)
        for (index_t h = 0; h < 7; ++h)
          for (index_t t = 0; t < 24; ++t)
            ASSERT_EQ(large(b, i, h, t), h >= 1 && h < 5 ? plain(b, i, h - 1, t) : 0.f);
    // [batch, heads, seq, dim] in memory, and values that are a part of the keys (latent
    // attention).
    const auto swapped = normal<float>(Shape<4>{2, 4, seq, 24}, 5);
    const auto rows = swapped.transpose(1, 2);
    expect_matches_oracle(rows, rows.slice(2, 0, 2), rows.slice(2, 0, 2).slice(3, 0, 10), Causal{},
                          Identity{}, AttentionOptions<decltype(rows)>{});
  }
}

TEST(Options, HiddenValuesAreNeverMultiplied) {
  for (const Sizes& sizes : kSizes)
    for (const index_t bad : {0, 75, 140, 149}) {
      SCOPED_TRACE(testing::Message() << sizes << ", key " << bad);
      Problem<float> p(sizes);
      for (index_t b = 0; b < sizes.batch; ++b)
        for (index_t g = 0; g < sizes.kv_heads; ++g)
          for (index_t t = 0; t < sizes.values(); ++t) {
            p.v(b, bad, g, t) = t % 2 == 0 ? kNaN : kInf;
            p.k(b, bad, g, t % sizes.head_dim) = kNaN;
          }
      const auto clean = [&](auto mask) {
        Tensor<float, 4> out({3, sizes.q_len, sizes.heads, sizes.values()});
        attention(out, p.q, p.k, p.v, mask);
        for (index_t b = 0; b < sizes.batch; ++b)
          for (index_t i = 0; i < sizes.q_len; ++i) {
            if (mask(b, 0, 150 - sizes.q_len + i, bad)) continue;
            for (index_t h = 0; h < sizes.heads; ++h)
              for (index_t t = 0; t < sizes.values(); ++t)
                ASSERT_TRUE(std::isfinite(out(b, i, h, t))) << i << " " << h << " " << t;
          }
      };
      clean(Causal{});
      clean(Causal{} & SlidingWindow{8});
      clean([=](index_t, index_t, index_t, index_t kv) { return kv != bad; });
      clean([=](index_t, index_t, index_t q, index_t kv) { return kv != bad || q % 2 == 0; });
    }
}

}  // namespace
}  // namespace rapt::test
