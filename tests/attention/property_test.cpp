// What must hold of attention whatever the numbers: the invariants of the specification, on random
// shapes from a fixed seed.
#include <gtest/gtest.h>

#include <random>

#include "attention/problem.hpp"

namespace rapt::test {
namespace {

using Options = AttentionOptions<Tensor<float, 4>>;

struct Random {
  std::mt19937 engine{2024};
  index_t from(index_t low, index_t high) {
    return low + static_cast<index_t>(engine() % static_cast<unsigned>(high - low + 1));
  }
  Sizes sizes() {
    const index_t kv_heads = from(1, 3), group = from(1, 4);
    return {.batch = from(1, 2),
            .q_len = from(1, 100),
            .kv_len = from(1, 160),
            .heads = kv_heads * group,
            .kv_heads = kv_heads,
            .head_dim = from(1, 40),
            .value_dim = from(1, 40)};
  }
};

Outputs<float> run(const Tensor<float, 4>& q, const Tensor<float, 4>& k, const Tensor<float, 4>& v,
                   auto mask, auto score, Options options) {
  Outputs<float> got(Shape<4>{q.extent(0), q.extent(1), q.extent(2), v.extent(3)});
  options.logsumexp = got.logsumexp;
  attention(got.out, q, k, v, mask, score, options);
  return got;
}
Outputs<float> run(const Problem<float>& p, auto mask) {
  return run(p.q, p.k, p.v, mask, Identity{}, {});
}
void expect_same(const Outputs<float>& a, const Outputs<float>& b) {
  expect_close(a.out, b.out, tolerance_of<float>(), "out");
  expect_close(a.logsumexp, b.logsumexp, tolerance_of<float>(), "logsumexp");
}

template <class Body>
void on_random_shapes(int count, Body body) {
  Random random;
  for (int n = 0; n < count; ++n) {
    const Sizes sizes = random.sizes();
    SCOPED_TRACE(testing::Message() << n << ": " << sizes);
    const Problem<float> p(sizes, static_cast<unsigned>(n));
    body(p, random);
    if (testing::Test::HasFatalFailure()) return;
  }
}

TEST(Property, RandomCallsMatchTheOracle) {
  on_random_shapes(60, [](const Problem<float>& p, Random& random) {
    const auto sinks = normal<float>(Shape<1>{p.sizes.heads}, 3);
    const index_t window = random.from(1, 80), first = random.from(0, 10);
    Tensor<std::int32_t, 1> lengths({p.sizes.batch});
    for (index_t b = 0; b < p.sizes.batch; ++b)
      lengths(b) = static_cast<std::int32_t>(random.from(0, p.sizes.kv_len));
    Options options{.scale = static_cast<float>(random.from(1, 10)) / 20};
    if (random.from(0, 1) != 0) options.sink_logits = sinks;
    if (random.from(0, 1) != 0) options.kv_lengths = lengths;
    expect_matches_oracle(p, Causal{} & (SlidingWindow{window} | SinkTokens{first}),
                          SoftCap{static_cast<double>(random.from(1, 20))}, options);
  });
}

TEST(Property, ExpandedKeyHeadsGiveTheSame) {
  on_random_shapes(20, [](const Problem<float>& p, Random&) {
    const Sizes& s = p.sizes;
    const index_t group = s.heads / s.kv_heads;
    Tensor<float, 4> k({s.batch, s.kv_len, s.heads, s.head_dim});
    Tensor<float, 4> v({s.batch, s.kv_len, s.heads, s.values()});
    for (index_t b = 0; b < s.batch; ++b)
      for (index_t j = 0; j < s.kv_len; ++j)
        for (index_t h = 0; h < s.heads; ++h) {
          for (index_t t = 0; t < s.head_dim; ++t) k(b, j, h, t) = p.k(b, j, h / group, t);
          for (index_t t = 0; t < s.values(); ++t) v(b, j, h, t) = p.v(b, j, h / group, t);
        }
    expect_same(run(p, Causal{}), run(p.q, k, v, Causal{}, Identity{}, {}));
  });
}

TEST(Property, AWindowAsLongAsTheKeysIsCausal) {
  on_random_shapes(20, [](const Problem<float>& p, Random&) {
    const index_t n = p.sizes.kv_len;
    const auto causal = run(p, Causal{});
    expect_same(run(p, Causal{} & SlidingWindow{n}), causal);
    expect_same(run(p, Causal{} & (SlidingWindow{n / 2 + 1} | SinkTokens{n})), causal);
    expect_same(run(p, [](index_t, index_t, index_t q, index_t kv) { return kv <= q; }), causal);
  });
}

TEST(Property, AWindowOfOneReturnsTheValue) {
  on_random_shapes(10, [](const Problem<float>& p, Random&) {
    const Sizes& s = p.sizes;
    const auto got = run(p, Causal{} & SlidingWindow{1});
    const index_t group = s.heads / s.kv_heads;
    for (index_t b = 0; b < s.batch; ++b)
      for (index_t i = 0; i < s.q_len; ++i)
        for (index_t h = 0; h < s.heads; ++h)
          for (index_t t = 0; t < s.values(); ++t) {
            const index_t j = s.kv_len - s.q_len + i;
            ASSERT_FLOAT_EQ(got.out(b, i, h, t), j < 0 ? 0.f : p.v(b, j, h / group, t));
          }
  });
}

TEST(Property, SmallQueryBlocksGiveWhatTheWholeDoes) {
  // Rows of one call, taken through every path: alone (decode), in small blocks, together.
  on_random_shapes(15, [](const Problem<float>& p, Random& random) {
    const Sizes& s = p.sizes;
    const auto whole = run(p, Causal{});
    for (index_t begin = 0; begin < s.q_len;) {
      const index_t end = std::min(s.q_len, begin + random.from(1, 30));
      const index_t keys = s.kv_len - s.q_len + end;  // the last query's own key is the last key
      if (keys > 0) {
        Tensor<float, 4> out({s.batch, end - begin, s.heads, s.values()});
        attention(out, p.q.slice(1, begin, end), p.k.slice(1, 0, keys), p.v.slice(1, 0, keys));
        expect_close(out, whole.out.slice(1, begin, end), tolerance_of<float>());
      }
      begin = end;
    }
  });
}

TEST(Property, ASinkScalesTheOutput) {
  on_random_shapes(15, [](const Problem<float>& p, Random&) {
    const Sizes& s = p.sizes;
    const auto sinks = normal<float>(Shape<1>{s.heads}, 3);
    const auto without = run(p, Causal{});
    const auto with = run(p.q, p.k, p.v, Causal{}, Identity{}, Options{.sink_logits = sinks});
    for (index_t b = 0; b < s.batch; ++b)
      for (index_t i = 0; i < s.q_len; ++i)
        for (index_t h = 0; h < s.heads; ++h) {
          const double share = 1 / (1 + std::exp(static_cast<double>(sinks(h)) -
                                                 static_cast<double>(without.logsumexp(b, h, i))));
          for (index_t t = 0; t < s.values(); ++t)
            ASSERT_NEAR(with.out(b, i, h, t), share * static_cast<double>(without.out(b, i, h, t)),
                        1e-5);
        }
  });
}

TEST(Property, AConstantAddedToAllScoresMovesTheLogsumexp) {
  on_random_shapes(10, [](const Problem<float>& p, Random&) {
    const auto plain = run(p, Full{});
    auto moved = run(p.q, p.k, p.v, Full{},
                     [](auto s, index_t, index_t, index_t, index_t) { return s + 3; }, {});
    for (index_t n = 0; n < moved.logsumexp.size(); ++n) moved.logsumexp.data()[n] -= 3;
    expect_same(moved, plain);
  });
}

TEST(Property, TheOrderOfKeysDoesNotMatterWithoutAMask) {
  on_random_shapes(10, [](const Problem<float>& p, Random&) {
    Problem<float> turned = p;
    const index_t n = p.sizes.kv_len;
    for (index_t b = 0; b < p.sizes.batch; ++b)
      for (index_t j = 0; j < n; ++j)
        for (index_t g = 0; g < p.sizes.kv_heads; ++g) {
          for (index_t t = 0; t < p.sizes.head_dim; ++t)
            turned.k(b, j, g, t) = p.k(b, n - 1 - j, g, t);
          for (index_t t = 0; t < p.sizes.values(); ++t)
            turned.v(b, j, g, t) = p.v(b, n - 1 - j, g, t);
        }
    expect_same(run(turned, Full{}), run(p, Full{}));
  });
}

TEST(Property, EqualKeysGiveTheMeanOfTheValues) {
  Problem<float> p({.q_len = 20, .kv_len = 70, .heads = 2, .kv_heads = 1, .head_dim = 8});
  for (index_t j = 0; j < 70; ++j)
    for (index_t t = 0; t < 8; ++t) p.k(0, j, 0, t) = p.k(0, 0, 0, t);
  const auto got = run(p, Full{});
  for (index_t t = 0; t < 8; ++t) {
    double mean = 0;
    for (index_t j = 0; j < 70; ++j) mean += static_cast<double>(p.v(0, j, 0, t)) / 70;
    for (index_t i = 0; i < 20; ++i) ASSERT_NEAR(got.out(0, i, 1, t), mean, 1e-5);
  }
}

}  // namespace
}  // namespace rapt::test
