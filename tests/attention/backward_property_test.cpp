// What must hold of the gradient whatever the numbers, on random shapes from a fixed seed: the
// invariants of the specification, and that the number of threads never changes a bit.
#include <gtest/gtest.h>

#include <cstring>
#include <random>

#include "attention/backward_problem.hpp"
#include "rapt/core/parallel.hpp"

namespace rapt::test {
namespace {

template <class Body>
void on_random_shapes(int count, Body body) {
  std::mt19937 random(2025);
  const auto from = [&](index_t low, index_t high) {
    return low + static_cast<index_t>(random() % static_cast<unsigned>(high - low + 1));
  };
  for (int n = 0; n < count; ++n) {
    const index_t kv_heads = from(1, 3);
    const Sizes sizes{from(1, 2), from(1, 100), from(1, 160), kv_heads * from(1, 4),
                      kv_heads,   from(1, 40),  from(1, 40)};
    SCOPED_TRACE(testing::Message() << n << ": " << sizes);
    body(Problem<double>(sizes, static_cast<unsigned>(n)), from);
    if (testing::Test::HasFatalFailure()) return;
  }
}

Tensor<double, 4> random_dout(const Sizes& s) {
  return normal<double>(Shape<4>{s.batch, s.q_len, s.heads, s.values()}, 77);
}

TEST(BackwardProperty, RandomCallsMatchTheOracle) {
  on_random_shapes(40, [](const Problem<double>& p, auto from) {
    const auto sinks = normal<double>(Shape<1>{p.sizes.heads}, 3);
    Tensor<std::int32_t, 1> lengths({p.sizes.batch});
    for (index_t b = 0; b < p.sizes.batch; ++b)
      lengths(b) = static_cast<std::int32_t>(from(0, p.sizes.kv_len));
    AttentionBackwardOptions<Tensor<double, 4>> options;
    options.scale = static_cast<double>(from(1, 10)) / 20;
    if (from(0, 1) != 0) options.sink_logits = sinks;
    if (from(0, 1) != 0) options.kv_lengths = lengths;
    expect_backward_matches(p, Causal{} & (SlidingWindow{from(1, 80)} | SinkTokens{from(0, 10)}),
                            SoftCap{static_cast<double>(from(1, 20))}, options);
  });
}

/// dk and dv of grouped heads are the sums over the group of the gradients of expanded heads.
TEST(BackwardProperty, GroupsSumTheirHeads) {
  on_random_shapes(15, [](const Problem<double>& p, auto) {
    const Sizes& s = p.sizes;
    const index_t group = s.heads / s.kv_heads;
    Tensor<double, 4> k({s.batch, s.kv_len, s.heads, s.head_dim});
    Tensor<double, 4> v({s.batch, s.kv_len, s.heads, s.values()});
    const auto each = [&](const Tensor<double, 4>& of, auto f) {
      for (index_t b = 0; b < s.batch; ++b)
        for (index_t j = 0; j < s.kv_len; ++j)
          for (index_t h = 0; h < s.heads; ++h)
            for (index_t t = 0; t < of.extent(3); ++t) f(b, j, h, t);
    };
    each(k, [&](auto b, auto j, auto h, auto t) { k(b, j, h, t) = p.k(b, j, h / group, t); });
    each(v, [&](auto b, auto j, auto h, auto t) { v(b, j, h, t) = p.v(b, j, h / group, t); });
    const auto dout = random_dout(s);
    Gradients<double> grouped(p.q, p.k, p.v), expanded(p.q, k, v), want(p.q, p.k, p.v);
    run_backward(grouped, dout, p.q, p.k, p.v, Causal{}, Identity{});
    run_backward(expanded, dout, p.q, k, v, Causal{}, Identity{});
    for (auto* t : {&want.dk, &want.dv})
      for (index_t n = 0; n < t->size(); ++n) t->data()[n] = 0;
    each(k, [&](auto b, auto j, auto h, auto t) {
      want.dk(b, j, h / group, t) += expanded.dk(b, j, h, t);
    });
    each(v, [&](auto b, auto j, auto h, auto t) {
      want.dv(b, j, h / group, t) += expanded.dv(b, j, h, t);
    });
    const Tolerance close = tolerance_of<double>();
    expect_gradient_close(grouped.dq, expanded.dq, close, "dq");
    expect_gradient_close(grouped.dk, want.dk, close, "dk");
    expect_gradient_close(grouped.dv, want.dv, close, "dv");
  });
}

/// sum_j dz_ij = 0 for each row; with a sink exp(sink - L_i) D_i, which dsinks sums. A table of
/// biases shows dz.
TEST(BackwardProperty, RowsOfTheScoreGradientSumToZero) {
  on_random_shapes(15, [](const Problem<double>& p, auto) {
    const Sizes& s = p.sizes;
    const Tensor<double, 4> table({s.batch, s.heads, s.q_len, s.kv_len});
    const auto dout = random_dout(s);
    const auto row_sum = [&](const Gradients<double>& got, index_t b, index_t h, index_t i) {
      double sum = 0;
      for (index_t j = 0; j < s.kv_len; ++j) sum += got.dbias(b, h, i, j);
      return sum;
    };
    Gradients<double> got(p.q, p.k, p.v);
    got.dbias = Tensor<double, 4>(table.shape());
    run_backward(got, dout, p.q, p.k, p.v, Causal{}, AdditiveBias{table});
    for (index_t b = 0; b < s.batch; ++b)
      for (index_t h = 0; h < s.heads; ++h)
        for (index_t i = 0; i < s.q_len; ++i) ASSERT_NEAR(row_sum(got, b, h, i), 0, 1e-12);

    const auto sinks = normal<double>(Shape<1>{s.heads}, 3);
    Gradients<double> with_sink(p.q, p.k, p.v);
    with_sink.dbias = Tensor<double, 4>(table.shape());
    run_backward(with_sink, dout, p.q, p.k, p.v, Causal{}, AdditiveBias{table},
                 {.sink_logits = sinks});
    for (index_t h = 0; h < s.heads; ++h) {
      double sum = 0;
      for (index_t b = 0; b < s.batch; ++b)
        for (index_t i = 0; i < s.q_len; ++i) sum += row_sum(with_sink, b, h, i);
      ASSERT_NEAR(sum, -with_sink.dsinks(h), 1e-10);
    }
  });
}

/// The gradient of sum(dlse * logsumexp) alone: dk_j = scale sum_i P_ij dlse_i q_i, and no dv.
TEST(BackwardProperty, LogsumexpAloneHasNoGradientOfValues) {
  on_random_shapes(10, [](const Problem<double>& p, auto) {
    const Sizes& s = p.sizes;
    const Tensor<double, 4> dout({s.batch, s.q_len, s.heads, s.values()});  // zeros
    const auto dlse = normal<double>(Shape<3>{s.batch, s.heads, s.q_len}, 4);
    Gradients<double> got(p.q, p.k, p.v);
    run_backward(got, dout, p.q, p.k, p.v, Causal{}, Identity{}, {.dlogsumexp = dlse});
    for (index_t n = 0; n < got.dv.size(); ++n) ASSERT_EQ(got.dv.data()[n], 0);
  });
}

template <class T, class Mask = Causal, class Score = Identity>
void expect_equal_bits(const Sizes& sizes, Mask mask = {}, Score score = {},
                       Shape<2> relative = {}) {
  SCOPED_TRACE(testing::Message() << sizes);
  const int before = num_threads();
  const Problem<T> p(sizes);
  const auto dout = normal<T>(Shape<4>{sizes.batch, sizes.q_len, sizes.heads, sizes.values()}, 77);
  const auto sinks = normal<T>(Shape<1>{sizes.heads}, 3);
  Gradients<T> first(p.q, p.k, p.v);
  for (const int threads : {1, 2, 3, 7}) {
    set_num_threads(threads);
    Gradients<T> got(p.q, p.k, p.v);
    got.drelative_bias = Tensor<accumulate_t<T>, 2>(relative);
    run_backward(got, dout, p.q, p.k, p.v, mask, score, {.sink_logits = sinks});
    if (threads == 1) first = got;
    const auto same = [&](const auto& a, const auto& b) {
      ASSERT_EQ(a.shape(), b.shape());
      if (!a.empty()) {  // memcmp takes no null pointers
        EXPECT_EQ(std::memcmp(a.data(), b.data(), a.bytes()), 0) << threads;
      }
    };
    same(got.dq, first.dq);
    same(got.dk, first.dk);
    same(got.dv, first.dv);
    same(got.dsinks, first.dsinks);
    same(got.drelative_bias, first.drelative_bias);
  }
  set_num_threads(before);
}

TEST(BackwardProperty, ThreadsNeverChangeAResult) {
  expect_equal_bits<float>({2, 300, 300, 6, 2, 64});
  expect_equal_bits<float>({1, 1300, 1300, 8, 1, 16});  // in parts
  expect_equal_bits<bfloat16>({1, 700, 700, 2, 1, 40});
  expect_equal_bits<half>({8, 130, 130, 4, 2, 32});
  expect_equal_bits<double>({1, 500, 700, 3, 3, 32},
                            Causal{} & (SlidingWindow{100} | SinkTokens{4}));
  const auto table = normal<float>(Shape<2>{1, 65}, 8);
  expect_equal_bits<float>({2, 400, 400, 4, 2, 16}, Causal{}, RelativeBias{table}, table.shape());
}

}  // namespace
}  // namespace rapt::test
