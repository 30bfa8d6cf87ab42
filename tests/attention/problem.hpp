// Inputs of an attention call and the comparison with the oracle in double precision.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <ostream>
#include <random>
#include <utility>
#include <vector>

#include "rapt/attention/attention.hpp"
#include "rapt/attention/reference.hpp"
#include "support/tolerance.hpp"

namespace rapt::test {

struct Sizes {
  index_t batch = 1, q_len = 1, kv_len = 1, heads = 1, kv_heads = 1, head_dim = 16;
  index_t value_dim = 0;  // 0: head_dim

  index_t values() const { return value_dim == 0 ? head_dim : value_dim; }
  friend std::ostream& operator<<(std::ostream& out, const Sizes& s) {
    return out << "batch " << s.batch << ", q_len " << s.q_len << ", kv_len " << s.kv_len
               << ", heads " << s.heads << "/" << s.kv_heads << ", dims " << s.head_dim << "/"
               << s.values();
  }
};

/// f(sizes, seed) for head dims that are whole tiles and that are not, keys and values alike and
/// not, over one tile of keys and over two. Ends at the first fatal failure.
template <class F>
void at_every_head_dim(F f) {
  unsigned seed = 0;
  for (const auto& [head_dim, value_dim] : {std::pair<index_t, index_t>{1, 1},
                                            {31, 31},
                                            {64, 64},
                                            {80, 80},
                                            {128, 128},
                                            {192, 128},
                                            {576, 512},
                                            {33, 70},
                                            {64, 24}})
    for (const auto& [q_len, kv_len] : {std::pair<index_t, index_t>{17, 17}, {75, 133}}) {
      const Sizes sizes{.q_len = q_len,
                        .kv_len = kv_len,
                        .heads = 4,
                        .kv_heads = 2,
                        .head_dim = head_dim,
                        .value_dim = value_dim};
      SCOPED_TRACE(testing::Message() << sizes);
      f(sizes, ++seed);
      if (testing::Test::HasFatalFailure()) return;
    }
}

/// Standard normal numbers, or integers of [low, high].
template <class T, std::size_t Rank>
Tensor<T, Rank> normal(Shape<Rank> shape, unsigned seed) {
  Tensor<T, Rank> t(shape);
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution;
  for (index_t n = 0; n < t.size(); ++n) t.data()[n] = T(distribution(random));
  return t;
}
template <std::size_t Rank>
Tensor<std::int32_t, Rank> integers(Shape<Rank> shape, unsigned seed, int low, int high) {
  Tensor<std::int32_t, Rank> t(shape);
  std::mt19937 random(seed);
  for (index_t n = 0; n < t.size(); ++n)
    t.data()[n] = low + static_cast<int>(random() % static_cast<unsigned>(high - low + 1));
  return t;
}
inline Tensor<std::int32_t, 1> list(const std::vector<std::int32_t>& values) {
  Tensor<std::int32_t, 1> t(Shape<1>{static_cast<index_t>(values.size())});
  for (std::size_t n = 0; n < values.size(); ++n) t(static_cast<index_t>(n)) = values[n];
  return t;
}

/// doubles(), but codes of 8 bits as they are: the oracle dequantises them itself.
template <class X>
auto exact(const X& x) {
  if constexpr (QuantizedElement<element_t<X>>)
    return as_const_view(x);
  else
    return doubles(x);
}

template <class T>
struct Problem {
  Sizes sizes;
  Tensor<T, 4> q, k, v;

  explicit Problem(Sizes s, unsigned seed = 1)
      : sizes(s),
        q(normal<T>(Shape<4>{s.batch, s.q_len, s.heads, s.head_dim}, seed)),
        k(normal<T>(Shape<4>{s.batch, s.kv_len, s.kv_heads, s.head_dim}, seed + 1000)),
        v(normal<T>(Shape<4>{s.batch, s.kv_len, s.kv_heads, s.values()}, seed + 2000)) {}
};

/// What a call writes, filled with garbage first.
template <class T>
struct Outputs {
  using A = accumulate_t<T>;
  Tensor<T, 4> out;
  Tensor<A, 3> logsumexp, with_sink;
  Tensor<A, 4> probabilities;

  Outputs(Shape<4> shape, index_t keys = 0)
      : out(shape),
        logsumexp({shape[0], shape[2], shape[1]}),
        with_sink(logsumexp.shape()),
        probabilities({shape[0], shape[2], shape[1], keys}) {
    const auto spoil = [](auto& t) {
      for (index_t n = 0; n < t.size(); ++n)
        t.data()[n] = std::remove_reference_t<decltype(*t.data())>(1e4f);
    };
    spoil(out), spoil(logsumexp), spoil(with_sink), spoil(probabilities);
  }
};

/// attention() against reference_attention<double>() on the same call: out, both logsumexps and, on
/// request, the probabilities.
template <class Q, class K, class V, class Mask = Causal, class Score = Identity>
void expect_matches_oracle(const Q& q, const K& k, const V& v, Mask mask = {}, Score score = {},
                           AttentionOptions<Q> options = {}, bool probabilities = false,
                           double factor = 1) {
  using T = element_t<Q>;
  const Shape<4> shape{q.extent(0), q.extent(1), q.extent(2), v.extent(3)};
  const index_t keys =
      options.block_table ? options.block_table.extent(1) * k.extent(1) : k.extent(1);
  Outputs<T> got(shape, probabilities ? keys : 0);
  Outputs<double> want(shape, probabilities ? keys : 0);
  options.logsumexp = got.logsumexp;
  options.logsumexp_with_sink = got.with_sink;
  if (probabilities) options.probabilities = got.probabilities;
  attention(got.out, q, k, v, mask, score, options);

  AttentionOptions<Tensor<double, 4>> wide;
  Tensor<double, 1> sinks;
  if (options.sink_logits) {
    sinks = doubles(options.sink_logits);
    wide.sink_logits = sinks;
  }
  // The default scale is computed in the accumulation type: compare with the number that was used.
  wide.scale = static_cast<double>(options.scale);
  wide.kv_lengths = options.kv_lengths;
  wide.cu_seqlens_q = options.cu_seqlens_q;
  wide.cu_seqlens_k = options.cu_seqlens_k;
  wide.block_table = options.block_table;
  wide.q_positions = options.q_positions;
  wide.kv_positions = options.kv_positions;
  wide.k_scales = options.k_scales;
  wide.v_scales = options.v_scales;
  wide.logsumexp = want.logsumexp;
  wide.logsumexp_with_sink = want.with_sink;
  if (probabilities) wide.probabilities = want.probabilities;

  const Tolerance sums = tolerance_of<accumulate_t<T>>() * factor;
  if constexpr (std::is_same_v<T, bfloat16> && std::is_same_v<element_t<V>, bfloat16>) {
    // Kernels may round a weight to 8 bits before its product, an error of at most 2^-9 of it: in
    // all 2^-9 times the mean of |v| under the same weights, which are more columns of values.
    const index_t dim = v.extent(3);
    Tensor<double, 4> both({v.extent(0), v.extent(1), v.extent(2), 2 * dim});
    const auto values = doubles(v);
    for (index_t n = 0; n < values.size(); ++n) {
      double* const row = both.data() + n / dim * 2 * dim + n % dim;
      row[0] = values.data()[n], row[dim] = std::abs(row[0]);
    }
    Tensor<double, 4> out({shape[0], shape[1], shape[2], 2 * dim});
    reference_attention(out, doubles(q), exact(k), both, mask, score, wide);
    const auto tolerance = [&](index_t n) {
      const double mean = out.data()[n / dim * 2 * dim + dim + n % dim];
      Tolerance close = tolerance_of<T>() * factor;
      if (std::isfinite(mean)) close.absolute += std::ldexp(mean, -9);
      return close;
    };
    expect_close(got.out, out.slice(3, 0, dim), tolerance, "out");
  } else {
    reference_attention(want.out, doubles(q), exact(k), exact(v), mask, score, wide);
    expect_close(got.out, want.out, tolerance_of<T>() * factor, "out");
  }
  expect_close(got.logsumexp, want.logsumexp, sums, "logsumexp");
  expect_close(got.with_sink, want.with_sink, sums, "logsumexp_with_sink");
  if (probabilities) expect_close(got.probabilities, want.probabilities, sums, "probabilities");
}

template <class T, class Mask = Causal, class Score = Identity>
void expect_matches_oracle(const Problem<T>& p, Mask mask = {}, Score score = {},
                           AttentionOptions<Tensor<T, 4>> options = {},
                           bool probabilities = false) {
  expect_matches_oracle(p.q, p.k, p.v, mask, score, options, probabilities);
}

}  // namespace rapt::test
