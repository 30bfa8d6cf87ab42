// RollingKvCache against attention over all tokens under the window's mask: for any split of the
// prompt, many times around the ring.
#include "rapt/cache/rolling_kv_cache.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "rapt/attention/reference.hpp"
#include "rapt/core/random.hpp"
#include "support/count_allocations.hpp"

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr RollingKvCacheShape kShape{.layers = 2,
                                     .batch = 2,
                                     .window = 5,
                                     .sink_tokens = 0,
                                     .kv_heads = 2,
                                     .head_dim = 3,
                                     .value_dim = 4};

/// q, k and v of every layer for `seq` tokens, and what attention over all of them gives.
struct Stream {
  RollingKvCacheShape shape;
  std::vector<Tensor<double, 4>> q, k, v;

  Stream(const RollingKvCacheShape& s, index_t seq, std::uint64_t seed) : shape(s) {
    Philox random(seed);
    for (index_t layer = 0; layer < s.layers; ++layer) {
      q.emplace_back(Shape{s.batch, seq, 2 * s.kv_heads, s.head_dim});
      k.emplace_back(Shape{s.batch, seq, s.kv_heads, s.head_dim});
      v.emplace_back(Shape{s.batch, seq, s.kv_heads, s.value_dim});
      for (auto* t : {&q.back(), &k.back(), &v.back()}) fill_normal(*t, random);
    }
  }

  auto mask() const {
    return Causal{} & (SlidingWindow{shape.window} | SinkTokens{shape.sink_tokens});
  }
  /// Tokens [begin, end) attending to all before them; padding[b]: that many first keys are unseen.
  Tensor<double, 4> uncached(std::size_t layer, index_t begin, index_t end,
                             std::vector<std::int32_t> padding = {0, 0}) const {
    Tensor<double, 4> out({shape.batch, end - begin, 2 * shape.kv_heads, shape.value_dim});
    const auto unpadded = [&](index_t b, index_t, index_t, index_t kv) {
      return kv >= padding[static_cast<std::size_t>(b)];
    };
    reference_attention(out, q[layer].view().slice(1, begin, end), k[layer].view().slice(1, 0, end),
                        v[layer].view().slice(1, 0, end), mask() & unpadded);
    return out;
  }
  /// The same through a cache, in one step of all layers.
  std::vector<Tensor<double, 4>> cached(RollingKvCache<double>& cache, index_t begin, index_t end,
                                        TensorView<const std::int32_t, 2> key_mask = {}) const {
    std::vector<Tensor<double, 4>> outs;
    for (std::size_t layer = 0; layer < q.size(); ++layer) {
      Scratch<> scratch;
      const auto step = cache.append(scratch, static_cast<index_t>(layer),
                                     as_const_view(k[layer]).slice(1, begin, end),
                                     as_const_view(v[layer]).slice(1, begin, end), key_mask);
      Tensor<double, 4> out({shape.batch, end - begin, 2 * shape.kv_heads, shape.value_dim});
      reference_attention(out, q[layer].view().slice(1, begin, end), step.keys, step.values, mask(),
                          Identity{},
                          {.kv_lengths = step.kv_lengths,
                           .q_positions = step.q_positions,
                           .kv_positions = step.kv_positions});
      outs.push_back(std::move(out));
    }
    return outs;
  }
};

void expect_near(TensorView<const double, 4> got, TensorView<const double, 4> want) {
  ASSERT_EQ(got.shape(), want.shape());
  for (index_t b = 0; b < got.extent(0); ++b)
    for (index_t i = 0; i < got.extent(1); ++i)
      for (index_t h = 0; h < got.extent(2); ++h)
        for (index_t e = 0; e < got.extent(3); ++e)
          ASSERT_NEAR(got(b, i, h, e), want(b, i, h, e), 1e-13)
              << "at [" << b << ", " << i << ", " << h << ", " << e << "]";
}

void expect_step(const Stream& stream, RollingKvCache<double>& cache, index_t begin, index_t end) {
  SCOPED_TRACE(testing::Message() << "tokens [" << begin << ", " << end << ")");
  const auto outs = stream.cached(cache, begin, end);
  for (std::size_t layer = 0; layer < outs.size(); ++layer)
    expect_near(outs[layer], stream.uncached(layer, begin, end));
  ASSERT_EQ(cache.length(), end);
}

TEST(RollingKvCache, AnySplitEqualsTheWindowOverAllTokens) {
  Philox random(3);
  const auto pick = [&](index_t n) {
    return static_cast<index_t>(random() % static_cast<std::uint32_t>(n));
  };
  for (int round = 0; round < 60; ++round) {
    RollingKvCacheShape shape = kShape;
    shape.window = 1 + pick(7);
    shape.sink_tokens = pick(4);
    SCOPED_TRACE(testing::Message() << "round " << round << ", window " << shape.window << ", "
                                    << shape.sink_tokens << " sink tokens");
    const Stream stream(shape, 45, 100 + static_cast<std::uint64_t>(round));
    RollingKvCache<double> cache(shape);
    for (index_t at = 0; at < 45;) {
      // Single tokens half of the time; chunks up to three times around the ring.
      const index_t n = pick(2) == 0 ? 1 : 1 + pick(3 * shape.window + 4);
      const index_t end = std::min<index_t>(45, at + n);
      expect_step(stream, cache, at, end);
      at = end;
    }
  }
}

TEST(RollingKvCache, ManyTurnsOfTheRingOneTokenAtATime) {
  RollingKvCacheShape shape = kShape;
  shape.layers = 1;
  shape.sink_tokens = 2;
  const Stream stream(shape, 200, 4);
  RollingKvCache<double> cache(shape);
  for (index_t at = 0; at < 200; ++at) expect_step(stream, cache, at, at + 1);
  // The slots hold the last tokens, each at its place.
  const auto positions = cache.positions();
  ASSERT_EQ(positions.extent(1), 7);
  for (index_t slot = 0; slot < 7; ++slot) {
    const index_t p = positions(0, slot);
    if (slot < 2) {
      EXPECT_EQ(p, slot);
    } else {
      EXPECT_EQ(2 + (p - 2) % 5, slot);
      EXPECT_GE(p, 195);
    }
    EXPECT_EQ(cache.keys()(1, slot, 1, 2), stream.k[0](1, p, 1, 2));
  }
}

TEST(RollingKvCache, CountsBytesOfWhatItKeepsAndNeverOverflows) {
  RollingKvCache<double> cache(kShape);
  EXPECT_EQ(cache.bytes(), 2 * 2 * 5 * 2 * (3 + 4) * 8);
  EXPECT_NO_THROW(cache.check_room(2, 1'000'000));
  EXPECT_THROW(cache.check_room(2, index_t{1} << 31), CapacityError);
  EXPECT_THROW(cache.check_room(3, 1), ShapeError);
  EXPECT_EQ(cache.footprint(1000).bytes_stored, cache.bytes());
  EXPECT_EQ(cache.footprint(3).bytes_stored, cache.bytes() / 5 * 3);
  EXPECT_THROW(RollingKvCache<>({.window = 0, .head_dim = 4}), ShapeError);
  EXPECT_THROW(RollingKvCache<>({.window = 1, .sink_tokens = -1, .head_dim = 4}), ShapeError);
  EXPECT_THROW(RollingKvCache<>({.window = index_t{1} << 40, .head_dim = 4}), ShapeError);
}

TEST(RollingKvCache, PaddingIsNeverSeenEvenInTheRing) {
  RollingKvCacheShape shape = kShape;
  shape.sink_tokens = 2;
  for (const index_t prompt : {4, 7, 20}) {
    const Stream stream(shape, 40, 6);
    RollingKvCache<double> cache(shape);
    Tensor<std::int32_t, 2> mask({2, prompt});
    for (index_t i = 0; i < prompt; ++i) mask(0, i) = i >= 3, mask(1, i) = 1;
    auto outs = stream.cached(cache, 0, prompt, mask);
    for (index_t at = prompt; at < 40;) {
      for (std::size_t layer = 0; layer < 2; ++layer) {
        const index_t begin = at - outs[layer].extent(1);
        auto want = stream.uncached(layer, begin, at, {3, 0});
        expect_near(outs[layer], want);
      }
      const index_t end = std::min<index_t>(40, at + (at % 3 == 0 ? 4 : 1));
      outs = stream.cached(cache, at, end);
      at = end;
    }
  }
}

TEST(RollingKvCache, TruncatesAsLongAsTheWindowStaysWhole) {
  const Stream stream(kShape, 60, 7), other(kShape, 60, 8);
  RollingKvCache<double> cache(kShape);
  stream.cached(cache, 0, 5);
  cache.truncate(2);  // nothing was evicted
  for (index_t at = 2; at < 12; ++at) expect_step(stream, cache, at, at + 1);
  // The newest token can be taken back, and what follows is as if it had never been.
  const auto dropped = other.cached(cache, 12, 13);
  cache.truncate(12);
  expect_step(stream, cache, 12, 13);
  other.cached(cache, 13, 14);
  cache.truncate(13);
  expect_step(stream, cache, 13, 20);
  // Two tokens cannot: the second one's window has lost its oldest key.
  cache.truncate(19);
  EXPECT_THAT(
      [&] { cache.truncate(18); },
      ThrowsMessage<ValueError>(
          "rolling_kv_cache.truncate: length is 18, expected 19 or 0: of 20 tokens seen only 5 "
          "are kept"));
  EXPECT_THROW(cache.truncate(21), ValueError);
  EXPECT_THROW(cache.truncate(-1), ValueError);
  expect_step(stream, cache, 19, 21);
  cache.truncate(0);
  EXPECT_EQ(cache.length(), 0);
  EXPECT_EQ(cache.kept(), 0);
  expect_step(stream, cache, 0, 9);
}

TEST(RollingKvCache, RowsMayHaveDifferentLengths) {
  RollingKvCacheShape shape = kShape;
  shape.sink_tokens = 1;
  // Row 1 is taken back to 2 tokens while row 0 keeps 5; each then goes on from its own end.
  const Stream stream(shape, 60, 9);
  for (const index_t chunk : {1, 2, 3, 11}) {
    RollingKvCache<double> cache(shape);
    stream.cached(cache, 0, 5);
    cache.truncate(/*row=*/1, 2);
    EXPECT_EQ(cache.length(), 5);
    EXPECT_EQ(cache.length(1), 2);
    // What row 1 is fed from now on: tokens 5 .. at positions 2 ..
    Stream shifted = stream;
    for (std::size_t layer = 0; layer < 2; ++layer)
      for (auto* t : {&shifted.q[layer], &shifted.k[layer], &shifted.v[layer]}) {
        const auto from = (t == &shifted.q[layer]   ? stream.q
                           : t == &shifted.k[layer] ? stream.k
                                                    : stream.v)[layer]
                              .view()
                              .slice(0, 1, 2);
        copy(t->view().slice(0, 1, 2).slice(1, 2, 57), from.slice(1, 5, 60));
      }
    for (index_t at = 5; at + chunk <= 50; at += chunk) {
      const auto outs = stream.cached(cache, at, at + chunk);
      for (std::size_t layer = 0; layer < 2; ++layer) {
        expect_near(outs[layer].view().slice(0, 0, 1),
                    stream.uncached(layer, at, at + chunk).view().slice(0, 0, 1));
        expect_near(outs[layer].view().slice(0, 1, 2),
                    shifted.uncached(layer, at - 3, at - 3 + chunk).view().slice(0, 1, 2));
      }
    }
  }
}

TEST(RollingKvCache, StepThatEndsEarlyIsUndone) {
  RollingKvCacheShape shape = kShape;
  shape.sink_tokens = 1;
  const Stream stream(shape, 40, 10), other(shape, 40, 11);
  for (const index_t failed : {1, 2, 4, 9}) {
    RollingKvCache<double> cache(shape);
    stream.cached(cache, 0, 17);
    const auto fail = [&] {
      Scratch<> scratch;  // the first of two layers, as when the second throws
      cache.append(scratch, 0, as_const_view(other.k[0]).slice(1, 0, failed),
                   as_const_view(other.v[0]).slice(1, 0, failed));
    };
    fail();
    EXPECT_EQ(cache.length(), 17);
    if (failed > 1) {
      for (index_t slot = 0; slot < cache.kept(); ++slot)
        EXPECT_EQ(cache.keys()(0, slot, 1, 1), stream.k[0](0, cache.positions()(0, slot), 1, 1));
    }
    expect_step(stream, cache, 17, 20);
    fail();
    auto fork = cache.fork();
    expect_step(stream, cache, 20, 21);
    expect_step(stream, fork, 20, 21);
    fail();
    if (failed > 1) {
      cache.truncate(20);
      expect_step(stream, cache, 20, 25);
    } else {
      EXPECT_THROW(cache.truncate(20), ValueError);  // the failed token took the oldest one's place
      expect_step(stream, cache, 21, 25);
    }
  }
}

TEST(RollingKvCache, RefusesLayersOutOfTurn) {
  const Stream stream(kShape, 4, 1);
  RollingKvCache<double> cache(kShape);
  Scratch<> scratch;
  EXPECT_THAT(
      [&] { cache.append(scratch, 1, as_const_view(stream.k[1]), as_const_view(stream.v[1])); },
      ThrowsMessage<ValueError>(HasSubstr("layer is 1, expected 0")));
  cache.append(scratch, 0, as_const_view(stream.k[0]), as_const_view(stream.v[0]));
  EXPECT_THAT(
      [&] {
        cache.append(scratch, 1, as_const_view(stream.k[1]).slice(1, 0, 2),
                     as_const_view(stream.v[1]).slice(1, 0, 2));
      },
      ThrowsMessage<ShapeError>(HasSubstr("seq is 2, expected 4")));
}

TEST(RollingKvCache, ForksGoTheirOwnWays) {
  const Stream stream(kShape, 40, 12), other(kShape, 40, 13);
  RollingKvCache<double> cache(kShape);
  stream.cached(cache, 0, 13);
  auto fork = cache.fork();
  other.cached(fork, 13, 30);
  expect_step(stream, cache, 13, 40);
  EXPECT_EQ(fork.length(), 30);
}

TEST(RollingKvCache, StateMovesToAnotherCache) {
  const Stream stream(kShape, 40, 14);
  for (const index_t length : {3, 5, 13}) {
    RollingKvCache<double> cache(kShape), other(kShape);
    stream.cached(cache, 0, length);
    other.restore(cache.state());
    std::vector<TensorView<const double, 4>> parts;
    std::as_const(cache).visit([&](const std::string&, auto view) { parts.push_back(view); });
    std::size_t n = 0;
    other.visit([&](const std::string&, auto view) { copy(view, parts[n++]); });
    EXPECT_EQ(n, 4u);
    expect_step(stream, other, length, length + 1);
    expect_step(stream, other, length + 1, 30);
  }
  RollingKvCache<double> cache(kShape), other(kShape);
  stream.cached(cache, 0, 13);
  CacheState broken = cache.state();
  broken.positions(0, 2) = 9;  // belongs into another slot
  EXPECT_THROW(other.restore(broken), ValueError);
  broken = cache.state();
  broken.lengths[1] = 14;
  EXPECT_THROW(other.restore(broken), ValueError);
  EXPECT_EQ(other.length(), 0);
}

TEST(RollingKvCache, DecodeAllocatesNothing) {
  RollingKvCacheShape shape = kShape;
  shape.sink_tokens = 2;
  const Stream stream(shape, 80, 15);
  RollingKvCache<double> cache(shape);
  const auto step = [&](index_t at) {
    for (std::size_t layer = 0; layer < 2; ++layer) {
      Scratch<> scratch;
      cache.append(scratch, static_cast<index_t>(layer),
                   as_const_view(stream.k[layer]).slice(1, at, at + 1),
                   as_const_view(stream.v[layer]).slice(1, at, at + 1));
    }
  };
  for (index_t at = 0; at < 10; ++at) step(at);
  const AllocationCount count;
  for (index_t at = 10; at < 80; ++at) step(at);
  EXPECT_EQ(count.so_far(), 0);
}

}  // namespace
}  // namespace rapt::test
