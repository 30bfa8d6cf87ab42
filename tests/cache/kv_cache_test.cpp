// KvCache against a list of tokens: whatever the split of the prompt, the cache holds the same, and
// a call that fails leaves it as it was.
#include "rapt/cache/kv_cache.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "rapt/core/random.hpp"
#include "support/count_allocations.hpp"

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

Tensor<float, 4> normal(Shape<4> shape, std::uint64_t seed) {
  Tensor<float, 4> out(shape);
  Philox random(seed);
  fill_normal(out, random);
  return out;
}

void expect_equal(TensorView<const float, 4> got, TensorView<const float, 4> want) {
  ASSERT_EQ(got.shape(), want.shape());
  for (index_t b = 0; b < got.extent(0); ++b)
    for (index_t i = 0; i < got.extent(1); ++i)
      for (index_t g = 0; g < got.extent(2); ++g)
        for (index_t e = 0; e < got.extent(3); ++e)
          ASSERT_EQ(got(b, i, g, e), want(b, i, g, e))
              << "at [" << b << ", " << i << ", " << g << ", " << e << "]";
}

constexpr KvCacheShape kShape{
    .layers = 2, .batch = 2, .capacity = 12, .kv_heads = 3, .head_dim = 4, .value_dim = 5};

/// Tokens of every layer: k[layer], v[layer] [batch, seq, kv_heads, dim].
struct Tokens {
  std::vector<Tensor<float, 4>> k, v;
  Tokens(const KvCacheShape& s, index_t seq, std::uint64_t seed) {
    for (index_t layer = 0; layer < s.layers; ++layer) {
      const auto n = static_cast<std::uint64_t>(layer);
      k.push_back(normal({s.batch, seq, s.kv_heads, s.head_dim}, seed + 10 * n));
      v.push_back(normal({s.batch, seq, s.kv_heads, s.value_dim}, seed + 10 * n + 5));
    }
  }
};

/// One step: tokens [begin, end) into every layer. Gives what the last layer attends over.
CacheStep<float, Cpu> append(KvCache<>& cache, const Tokens& tokens, index_t begin, index_t end,
                             TensorView<const std::int32_t, 2> key_mask = {}) {
  Scratch<> scratch;
  CacheStep<float, Cpu> step;
  for (index_t layer = 0; layer < cache.layers(); ++layer) {
    const auto at = static_cast<std::size_t>(layer);
    step = cache.append(scratch, layer, as_const_view(tokens.k[at]).slice(1, begin, end),
                        as_const_view(tokens.v[at]).slice(1, begin, end), key_mask);
  }
  return step;
}

void expect_holds(const KvCache<>& cache, const Tokens& tokens, index_t length) {
  ASSERT_EQ(cache.length(), length);
  for (index_t layer = 0; layer < cache.layers(); ++layer) {
    const auto at = static_cast<std::size_t>(layer);
    expect_equal(cache.keys(layer), as_const_view(tokens.k[at]).slice(1, 0, length));
    expect_equal(cache.values(layer), as_const_view(tokens.v[at]).slice(1, 0, length));
  }
}

TEST(KvCache, AnySplitOfThePromptHoldsTheSame) {
  const Tokens tokens(kShape, 12, 1);
  Philox random(2);
  for (int round = 0; round < 40; ++round) {
    KvCache<> cache(kShape);
    for (index_t at = 0; at < 12;) {
      const index_t end = std::min<index_t>(12, at + 1 + static_cast<index_t>(random() % 5));
      const auto step = append(cache, tokens, at, end);
      expect_equal(step.keys, as_const_view(tokens.k[1]).slice(1, 0, end));
      expect_equal(step.values, as_const_view(tokens.v[1]).slice(1, 0, end));
      EXPECT_FALSE(step.kv_lengths);
      EXPECT_FALSE(step.kv_positions);
      at = end;
      expect_holds(cache, tokens, at);
    }
  }
}

TEST(KvCache, CountsItsBytesExactly) {
  EXPECT_EQ(KvCache<>(kShape).bytes(), 2 * 2 * 12 * 3 * (4 + 5) * 4);
  EXPECT_EQ(
      (KvCache<bfloat16>({.batch = 1, .capacity = 256, .kv_heads = 2, .head_dim = 64}).bytes()),
      2 * 256 * 2 * 64 * 2);
  KvCache<> empty({.batch = 1, .capacity = 0, .kv_heads = 2, .head_dim = 4});
  EXPECT_EQ(empty.bytes(), 0);
  EXPECT_EQ(empty.length(), 0);
}

TEST(KvCache, FullThrowsAndStaysAsItWas) {
  const Tokens tokens(kShape, 14, 1);
  KvCache<> cache(kShape);
  append(cache, tokens, 0, 10);
  EXPECT_THAT([&] { append(cache, tokens, 10, 13); },
              ThrowsMessage<CapacityError>(
                  HasSubstr("row 0 holds 10 of 12 tokens and cannot take 3 more")));
  expect_holds(cache, tokens, 10);
  append(cache, tokens, 10, 12);
  expect_holds(cache, tokens, 12);
  EXPECT_THROW(append(cache, tokens, 12, 13), CapacityError);
  EXPECT_THROW(cache.check_room(2, 1), CapacityError);
  EXPECT_NO_THROW(cache.check_room(2, 0));
}

TEST(KvCache, StepThatEndsEarlyLeavesTheCacheAsItWas) {
  const Tokens tokens(kShape, 12, 1), others(kShape, 4, 77);
  KvCache<> cache(kShape);
  append(cache, tokens, 0, 5);
  {
    Scratch<> scratch;  // the first of two layers only, as when the second throws
    cache.append(scratch, 0, as_const_view(others.k[0]), as_const_view(others.v[0]));
  }
  expect_holds(cache, tokens, 5);
  append(cache, tokens, 5, 8);
  expect_holds(cache, tokens, 8);
}

TEST(KvCache, RefusesLayersOutOfTurnAndWrongShapes) {
  const Tokens tokens(kShape, 4, 1);
  KvCache<> cache(kShape);
  Scratch<> scratch;
  const auto k = as_const_view(tokens.k[0]), v = as_const_view(tokens.v[0]);
  EXPECT_THAT([&] { cache.append(scratch, 1, k, v); },
              ThrowsMessage<ValueError>(HasSubstr("layer is 1, expected 0")));
  EXPECT_THAT([&] { cache.append(scratch, 2, k, v); },
              ThrowsMessage<ValueError>("kv_cache.append: layer is 2, expected 0 to 1"));
  EXPECT_THAT(
      [&] { cache.append(scratch, 0, k, k); },
      ThrowsMessage<ShapeError>("kv_cache.append: v is [2, 4, 3, 4], expected [2, 4, 3, 5] = "
                                "[batch, seq, kv_heads, value_dim]"));
  cache.append(scratch, 0, k, v);
  EXPECT_THAT([&] { cache.append(scratch, 1, k.slice(1, 0, 3), v.slice(1, 0, 3)); },
              ThrowsMessage<ShapeError>(HasSubstr("seq is 3, expected 4")));
  EXPECT_EQ(cache.length(), 0);
  EXPECT_THROW(KvCache<>({.kv_heads = 0, .head_dim = 4}), ShapeError);
  EXPECT_THROW(KvCache<>({.batch = -1, .head_dim = 4}), ShapeError);
  EXPECT_THROW(KvCache<>({.capacity = index_t{1} << 40, .head_dim = 4}), ShapeError);
}

TEST(KvCache, RowsOfDifferentLengthsAppendBehindTheirOwnEnds) {
  const Tokens tokens(kShape, 12, 1);
  KvCache<> cache(kShape);
  append(cache, tokens, 0, 6);
  cache.truncate(/*row=*/1, 2);
  EXPECT_EQ(cache.length(), 6);
  EXPECT_EQ(cache.length(0), 6);
  EXPECT_EQ(cache.length(1), 2);
  EXPECT_EQ(cache.offsets()(1), 2);
  const auto step = append(cache, tokens, 6, 8);
  ASSERT_TRUE(step.kv_lengths);
  EXPECT_EQ(step.kv_lengths(0), 8);
  EXPECT_EQ(step.kv_lengths(1), 4);
  for (index_t e = 0; e < 4; ++e) {
    EXPECT_EQ(step.keys(0, 7, 1, e), tokens.k[1](0, 7, 1, e));
    EXPECT_EQ(step.keys(1, 1, 1, e), tokens.k[1](1, 1, 1, e));
    EXPECT_EQ(step.keys(1, 2, 1, e), tokens.k[1](1, 6, 1, e));
  }
  const auto positions = cache.positions();
  EXPECT_EQ(positions(1, 3), 3);
  EXPECT_EQ(positions(1, 4), -1);
  // Full is full where the longest row is.
  EXPECT_THROW(append(cache, tokens, 0, 5), CapacityError);
  cache.truncate(4);
  EXPECT_EQ(cache.length(0), 4);
  EXPECT_EQ(cache.length(1), 4);
  EXPECT_FALSE(append(cache, tokens, 4, 5).kv_lengths);
}

TEST(KvCache, PaddingKeepsItsSlotAndIsNeverSeen) {
  const Tokens tokens(kShape, 12, 1);
  KvCache<> cache(kShape);
  Tensor<std::int32_t, 2> mask({2, 4});
  mask(0, 2) = mask(0, 3) = 1;
  for (index_t i = 0; i < 4; ++i) mask(1, i) = 1;
  auto step = append(cache, tokens, 0, 4, mask);
  const auto expect_positions = [&](std::vector<std::int32_t> row0) {
    ASSERT_TRUE(step.kv_positions);
    ASSERT_EQ(step.kv_positions.shape(), (Shape{2, static_cast<index_t>(row0.size())}));
    for (std::size_t j = 0; j < row0.size(); ++j) {
      EXPECT_EQ(step.kv_positions(0, j), row0[j]);
      EXPECT_EQ(step.kv_positions(1, j), static_cast<std::int32_t>(j));
    }
  };
  expect_positions({-1, -1, 2, 3});
  step = append(cache, tokens, 4, 6);  // no mask: tokens
  expect_positions({-1, -1, 2, 3, 4, 5});
  cache.truncate(1);
  step = append(cache, tokens, 6, 8);
  expect_positions({-1, 1, 2});
  cache.reset();
  EXPECT_EQ(cache.length(), 0);
  EXPECT_FALSE(append(cache, tokens, 0, 2).kv_positions);
}

TEST(KvCache, TruncateResetGrowAndFork) {
  const Tokens tokens(kShape, 12, 1), others(kShape, 12, 50);
  KvCache<> cache(kShape);
  append(cache, tokens, 0, 9);
  cache.truncate(5);
  expect_holds(cache, tokens, 5);
  EXPECT_THAT([&] { cache.truncate(6); },
              ThrowsMessage<ValueError>(HasSubstr("length is 6, expected 0 to 5")));
  EXPECT_THROW(cache.truncate(-1), ValueError);
  EXPECT_THROW(cache.truncate(2, 1), ValueError);

  KvCache<> fork = cache.fork();
  append(fork, others, 5, 7);
  append(cache, tokens, 5, 12);
  expect_holds(cache, tokens, 12);
  EXPECT_EQ(fork.length(), 7);
  EXPECT_EQ(fork.keys(1)(1, 6, 2, 3), others.k[1](1, 6, 2, 3));
  EXPECT_EQ(fork.keys(1)(1, 4, 2, 3), tokens.k[1](1, 4, 2, 3));

  EXPECT_THROW(cache.grow(11), ValueError);
  expect_holds(cache, tokens, 12);
  cache.grow(20);
  EXPECT_EQ(cache.capacity(), 20);
  EXPECT_EQ(cache.bytes(), 2 * 2 * 20 * 3 * (4 + 5) * 4);
  expect_holds(cache, tokens, 12);
  append(cache, others, 0, 8);
  EXPECT_EQ(cache.length(), 20);
  cache.reset();
  EXPECT_EQ(cache.length(), 0);
  append(cache, others, 0, 3);
  expect_holds(cache, others, 3);
}

TEST(KvCache, RemembersTheLengthItsSequenceBeganWith) {
  const Tokens tokens(kShape, 12, 1);
  KvCache<> cache(kShape);
  EXPECT_EQ(cache.rope_length(7), 7);
  append(cache, tokens, 0, 7);
  append(cache, tokens, 7, 8);
  EXPECT_EQ(cache.rope_length(1), 7);
  cache.truncate(0);
  EXPECT_EQ(cache.rope_length(3), 3);
}

TEST(KvCache, DecodeAllocatesNothing) {
  KvCacheShape shape = kShape;
  shape.capacity = 100;
  const Tokens tokens(shape, 100, 1);
  KvCache<> cache(shape);
  append(cache, tokens, 0, 10);
  cache.truncate(1, 8);  // rows of different lengths take the longer way
  append(cache, tokens, 10, 11);
  append(cache, tokens, 11, 12);
  const AllocationCount count;
  for (index_t i = 12; i < 90; ++i) append(cache, tokens, i, i + 1);
  EXPECT_EQ(count.so_far(), 0);
}

TEST(KvCache, LensAgreesWithTheCache) {
  const KvCache<> cache(kShape);
  const Footprint f = cache.footprint(kShape.capacity);
  EXPECT_EQ(f.bytes_stored, cache.bytes());
  EXPECT_EQ(f.bytes_per_token, 2 * 3 * (4 + 5) * 4);
  const auto keys = cache.footprint(12).bytes_read_per_query;
  EXPECT_EQ(keys, 12 * f.bytes_per_token);
}

TEST(KvCache, StateMovesToAnotherCache) {
  const Tokens tokens(kShape, 12, 1);
  KvCache<> cache(kShape);
  Tensor<std::int32_t, 2> mask({2, 3});
  mask(0, 2) = mask(1, 1) = mask(1, 2) = 1;
  append(cache, tokens, 0, 3, mask);
  append(cache, tokens, 3, 6);
  KvCacheShape wider = kShape;
  wider.capacity = 30;
  KvCache<> other(wider);
  other.restore(cache.state());
  std::vector<TensorView<const float, 4>> parts;
  std::as_const(cache).visit([&](const std::string&, auto view) { parts.push_back(view); });
  std::size_t n = 0;
  other.visit([&](const std::string&, auto view) { copy(view, parts[n++]); });
  ASSERT_EQ(n, 4u);
  expect_holds(other, tokens, 6);
  const auto a = append(cache, tokens, 6, 7), b = append(other, tokens, 6, 7);
  expect_equal(a.keys, b.keys);
  for (index_t j = 0; j < 7; ++j) EXPECT_EQ(a.kv_positions(0, j), b.kv_positions(0, j));
  KvCacheShape small = kShape;
  small.capacity = 4;
  EXPECT_THROW(KvCache<>(small).restore(cache.state()), ValueError);
}

}  // namespace
}  // namespace rapt::test
