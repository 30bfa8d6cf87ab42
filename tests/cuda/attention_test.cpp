// Attention on the CUDA backend against reference_attention in double precision: masks, scores and
// every option, over odd sizes.
#include "rapt/attention/attention.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "rapt/attention/reference.hpp"
#include "support/cuda_test.hpp"

namespace rapt::test {
namespace {

/// The options of a call, in host memory; empty: absent.
template <class T>
struct HostOptions {
  double scale = 0;
  Tensor<T, 1> sinks{};
  Tensor<std::int32_t, 1> kv_lengths{}, cu_q{}, cu_k{};
  Tensor<std::int32_t, 2> block_table{}, q_positions{}, kv_positions{};
};

/// Runs attention() on the GPU and the oracle on the host, and compares out, both logsumexps and
/// the probabilities.
template <class T, class Mask, class Score>
void expect_matches(TensorView<const T, 4> q, TensorView<const T, 4> k, TensorView<const T, 4> v,
                    const Mask& mask, const Score& score, const HostOptions<T>& host = {}) {
  using A = accumulate_t<T>;
  const Shape out_shape{q.extent(0), q.extent(1), q.extent(2), v.extent(3)};
  const Shape rows{q.extent(0), q.extent(2), q.extent(1)};
  const index_t keys =
      host.block_table.empty() ? k.extent(1) : host.block_table.extent(1) * k.extent(1);
  const Shape weights{q.extent(0), q.extent(2), q.extent(1), keys};

  Tensor<T, 4> want(out_shape);
  Tensor<A, 3> want_lse(rows), want_lse_sink(rows);
  Tensor<A, 4> want_weights(weights);
  AttentionOptions<Tensor<T, 4>> options{.scale = static_cast<A>(host.scale)};
  options.logsumexp = want_lse;
  options.logsumexp_with_sink = want_lse_sink;
  options.probabilities = want_weights;
  const auto give = [](auto& option, const auto& tensor) {
    if (!tensor.empty()) option = tensor.view();
  };
  give(options.sink_logits, host.sinks);
  give(options.kv_lengths, host.kv_lengths);
  give(options.cu_seqlens_q, host.cu_q);
  give(options.cu_seqlens_k, host.cu_k);
  give(options.block_table, host.block_table);
  give(options.q_positions, host.q_positions);
  give(options.kv_positions, host.kv_positions);
  reference_attention<double>(want, q, k, v, mask, score, options);

  const auto gq = to(Cuda{}, q), gk = to(Cuda{}, k), gv = to(Cuda{}, v);
  Tensor<T, 4, Cuda> out(out_shape);
  Tensor<A, 3, Cuda> lse(rows), lse_sink(rows);
  Tensor<A, 4, Cuda> probabilities(weights);
  const auto sinks = on_gpu(host.sinks);
  const auto kv_lengths = on_gpu(host.kv_lengths), cu_q = on_gpu(host.cu_q),
             cu_k = on_gpu(host.cu_k);
  const auto block_table = on_gpu(host.block_table), q_positions = on_gpu(host.q_positions),
             kv_positions = on_gpu(host.kv_positions);
  AttentionOptions<Tensor<T, 4, Cuda>> on_device{.scale = static_cast<A>(host.scale)};
  on_device.logsumexp = lse;
  on_device.logsumexp_with_sink = lse_sink;
  on_device.probabilities = probabilities;
  give(on_device.sink_logits, sinks);
  give(on_device.kv_lengths, kv_lengths);
  give(on_device.cu_seqlens_q, cu_q);
  give(on_device.cu_seqlens_k, cu_k);
  give(on_device.block_table, block_table);
  give(on_device.q_positions, q_positions);
  give(on_device.kv_positions, kv_positions);
  attention(out, gq, gk, gv, mask, score, on_device);

  const auto tolerance = tolerance_of<T>() * 4;
  expect_close(to(Cpu{}, out), want, tolerance, "out");
  expect_close(to(Cpu{}, lse), want_lse, tolerance_of<A>() * 4, "logsumexp");
  expect_close(to(Cpu{}, lse_sink), want_lse_sink, tolerance_of<A>() * 4, "logsumexp_with_sink");
  expect_close(to(Cpu{}, probabilities), want_weights, tolerance_of<A>() * 4, "probabilities");
}

struct Sizes {
  index_t batch, q_len, kv_len, heads, kv_heads, head_dim, value_dim;
  friend std::ostream& operator<<(std::ostream& out, const Sizes& s) {
    return out << "batch " << s.batch << " q_len " << s.q_len << " kv_len " << s.kv_len << " heads "
               << s.heads << "/" << s.kv_heads << " dims " << s.head_dim << "/" << s.value_dim;
  }
};

template <class T>
struct Problem {
  Tensor<T, 4> q, k, v;
  explicit Problem(const Sizes& s)
      : q(gaussian<T>(Shape{s.batch, s.q_len, s.heads, s.head_dim}, 1)),
        k(gaussian<T>(Shape{s.batch, s.kv_len, s.kv_heads, s.head_dim}, 2)),
        v(gaussian<T>(Shape{s.batch, s.kv_len, s.kv_heads, s.value_dim}, 3)) {}
  template <class Mask = Causal, class Score = Identity>
  void expect_matches(const Mask& mask = {}, const Score& score = {},
                      const HostOptions<T>& host = {}) const {
    test::expect_matches<T>(q, k, v, mask, score, host);
  }
};

template <class T>
struct CudaAttention : CudaTypedTest<T> {};
TYPED_TEST_SUITE(CudaAttention, ElementTypes);

TYPED_TEST(CudaAttention, MatchesTheOracleOverSizes) {
  for (const Sizes& sizes : {Sizes{1, 1, 1, 1, 1, 1, 1},
                             {2, 5, 5, 4, 2, 64, 64},
                             {1, 3, 70, 6, 1, 33, 17},
                             {2, 9, 4, 2, 2, 40, 40},
                             {1, 2, 33, 2, 1, 192, 128},
                             {1, 2, 35, 4, 1, 576, 512},
                             {1, 1, 32, 3, 3, 128, 128},
                             {1, 4, 0, 2, 1, 16, 16}}) {
    SCOPED_TRACE(testing::Message() << sizes);
    const Problem<TypeParam> problem(sizes);
    problem.expect_matches();
    problem.expect_matches(Full{});
  }
}

TYPED_TEST(CudaAttention, MatchesTheOracleForMasksAndScores) {
  const Problem<TypeParam> problem({2, 7, 75, 4, 2, 20, 20});
  problem.expect_matches(Causal{} & SlidingWindow{5});
  problem.expect_matches(Causal{} & (SlidingWindow{40} | SinkTokens{0}), SoftCap{1.5});
  problem.expect_matches(Causal{} & (SlidingWindow{3} | SinkTokens{2}));
  problem.expect_matches(Full{}, SoftCap{0.5});
}

TYPED_TEST(CudaAttention, MatchesTheOracleWithSinksAndScale) {
  const Problem<TypeParam> problem({2, 6, 40, 4, 2, 24, 24});
  for (const float sink : {-50.f, 0.f, 3.f, 50.f, -std::numeric_limits<float>::infinity()}) {
    HostOptions<TypeParam> options{.scale = 0.7, .sinks = gaussian<TypeParam>(Shape<1>{4}, 4)};
    options.sinks(1) = TypeParam(sink);
    problem.expect_matches(Causal{}, Identity{}, options);
  }
}

TYPED_TEST(CudaAttention, QueriesWithoutKeysGiveZerosAndTheSink) {
  const Problem<TypeParam> problem(
      {1, 5, 2, 2, 1, 8, 8});  // rows 0 to 2 stand before the first key
  problem.expect_matches();
  problem.expect_matches(Causal{}, Identity{}, {.sinks = gaussian<TypeParam>(Shape<1>{2}, 4)});
}

TYPED_TEST(CudaAttention, TakesLengthsOfEachRow) {
  const Problem<TypeParam> problem({4, 3, 50, 2, 1, 16, 16});
  HostOptions<TypeParam> options;
  options.kv_lengths = Tensor<std::int32_t, 1>(Shape<1>{4});
  for (const auto& [b, n] : std::vector<std::pair<index_t, int>>{{0, 50}, {1, 1}, {2, 0}, {3, 33}})
    options.kv_lengths(b) = n;
  problem.expect_matches(Causal{}, Identity{}, options);
  problem.expect_matches(Full{}, SoftCap{2}, options);
}

TYPED_TEST(CudaAttention, TakesPackedSequences) {
  const Problem<TypeParam> problem({1, 12, 90, 4, 2, 16, 24});
  HostOptions<TypeParam> options;
  options.cu_q = options.cu_k = Tensor<std::int32_t, 1>(Shape<1>{5});
  for (const auto& [i, n] : std::vector<std::pair<index_t, int>>{{1, 3}, {2, 3}, {3, 4}, {4, 12}})
    options.cu_q(i) = n;
  for (const auto& [i, n] : std::vector<std::pair<index_t, int>>{{1, 1}, {2, 20}, {3, 60}, {4, 90}})
    options.cu_k(i) = n;
  problem.expect_matches(Causal{}, Identity{}, options);
  problem.expect_matches(Causal{} & SlidingWindow{4}, Identity{}, options);
  options.cu_q(4) = 10;  // two tokens behind the last sequence stay as they are
  problem.expect_matches(Causal{}, Identity{}, options);
}

TYPED_TEST(CudaAttention, ReadsPagesThroughTheBlockTable) {
  using T = TypeParam;
  const auto q = gaussian<T>(Shape{2, 3, 4, 16}, 1);
  const auto k = gaussian<T>(Shape{9, 8, 2, 16}, 2), v = gaussian<T>(Shape{9, 8, 2, 12}, 3);
  HostOptions<T> options;
  options.block_table = Tensor<std::int32_t, 2>({2, 5});
  index_t n = 0;
  for (const int block : {7, 2, 0, 5, -1, 1, 8, -1, -1, -1})
    options.block_table.data()[n++] = block;
  options.kv_lengths = Tensor<std::int32_t, 1>(Shape<1>{2});
  options.kv_lengths(0) = 29;
  options.kv_lengths(1) = 16;
  expect_matches<T>(q, k, v, Causal{}, Identity{}, options);
}

TYPED_TEST(CudaAttention, TakesPositionsOfQueriesAndKeys) {
  const Problem<TypeParam> problem({2, 3, 40, 2, 1, 16, 16});
  HostOptions<TypeParam> options;
  options.q_positions = Tensor<std::int32_t, 2>({2, 3});
  options.kv_positions = Tensor<std::int32_t, 2>({2, 40});
  for (index_t b = 0; b < 2; ++b) {
    for (index_t i = 0; i < 3; ++i)
      options.q_positions(b, i) = static_cast<std::int32_t>(100 + b + i);
    // A ring of 40 slots that has turned, its oldest three slots empty.
    for (index_t j = 0; j < 40; ++j)
      options.kv_positions(b, j) = j < 3 ? -1 : static_cast<std::int32_t>(63 + (j + 17) % 40);
  }
  problem.expect_matches(Causal{}, Identity{}, options);
  problem.expect_matches(Causal{} & (SlidingWindow{8} | SinkTokens{0}), SoftCap{3}, options);
}

TYPED_TEST(CudaAttention, ReadsStridedViewsOfAFusedProjection) {
  using T = TypeParam;
  const auto fused = gaussian<T>(Shape{2, 9, 8, 20}, 5);  // 4 query, 2 key, 2 value heads
  const auto part = [&](const auto& x, index_t begin, index_t end) {
    return x.view().slice(2, begin, end);
  };
  Tensor<T, 4> want({2, 9, 4, 20});
  reference_attention<double>(want, part(fused, 0, 4), part(fused, 4, 6), part(fused, 6, 8));
  const auto device = on_gpu(fused);
  Tensor<T, 4, Cuda> heads_first({2, 4, 9, 20});  // [batch, heads, seq, dim]
  attention(heads_first.view().transpose(1, 2), part(device, 0, 4), part(device, 4, 6),
            part(device, 6, 8));
  expect_close(to(Cpu{}, heads_first).view().transpose(1, 2), want, tolerance_of<T>() * 4);
}

TYPED_TEST(CudaAttention, AHiddenNaNStaysHidden) {
  using T = TypeParam;
  Problem<T> problem({1, 3, 40, 2, 1, 16, 16});
  const T nan(std::numeric_limits<float>::quiet_NaN());
  for (index_t c = 0; c < 16; ++c) problem.k(0, 39, 0, c) = problem.v(0, 39, 0, c) = nan;
  const HostOptions<T> options;
  Tensor<T, 4, Cuda> out({1, 3, 2, 16});
  attention(out, on_gpu(problem.q), on_gpu(problem.k), on_gpu(problem.v), Causal{});
  const auto home = to(Cpu{}, out);
  for (index_t i = 0; i < 3; ++i)
    for (index_t c = 0; c < 16; ++c)
      EXPECT_EQ(std::isnan(static_cast<float>(home(0, i, 1, c))), i == 2);
}

TYPED_TEST(CudaAttention, LargeScoresNeitherOverflowNorVanish) {
  using T = TypeParam;
  if constexpr (sizeof(T) > 2) {
    Problem<T> problem({1, 4, 40, 2, 1, 16, 16});
    for (index_t i = 0; i < problem.q.size(); ++i) problem.q.data()[i] *= T(3000);
    Tensor<T, 4> want({1, 4, 2, 16});
    reference_attention<double>(want, problem.q, problem.k, problem.v);
    Tensor<T, 4, Cuda> out(want.shape());
    attention(out, on_gpu(problem.q), on_gpu(problem.k), on_gpu(problem.v));
    expect_close(to(Cpu{}, out), want, {2e-3, 2e-3});
  }
}

}  // namespace
}  // namespace rapt::test
