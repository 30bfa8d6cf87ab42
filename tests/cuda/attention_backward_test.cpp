// attention_backward() on the CUDA backend against the oracle in double precision: element types,
// sizes, masks and options.
#include <limits>
#include <vector>

#include "support/cuda_backward.hpp"

namespace rapt::test {
namespace {

struct BackwardSizes {
  index_t batch, q_len, kv_len, heads, kv_heads, head_dim, value_dim;
  friend std::ostream& operator<<(std::ostream& out, const BackwardSizes& s) {
    return out << "batch " << s.batch << " q_len " << s.q_len << " kv_len " << s.kv_len << " heads "
               << s.heads << "/" << s.kv_heads << " dims " << s.head_dim << "/" << s.value_dim;
  }
};

template <class T>
struct BackwardProblem {
  Tensor<T, 4> q, k, v;
  explicit BackwardProblem(const BackwardSizes& s)
      : q(gaussian<T>(Shape{s.batch, s.q_len, s.heads, s.head_dim}, 1)),
        k(gaussian<T>(Shape{s.batch, s.kv_len, s.kv_heads, s.head_dim}, 2)),
        v(gaussian<T>(Shape{s.batch, s.kv_len, s.kv_heads, s.value_dim}, 3)) {}
  template <class Mask = Causal, class Score = Identity>
  void expect_matches(const Mask& mask = {}, const Score& score = {},
                      const HostBackwardOptions<T>& host = {}) const {
    expect_backward_matches<T>(q, k, v, mask, mask, score, score, host);
  }
};

Tensor<std::int32_t, 1> starts(const std::vector<int>& values) {
  Tensor<std::int32_t, 1> t(Shape<1>{static_cast<index_t>(values.size())});
  for (std::size_t n = 0; n < values.size(); ++n) t(static_cast<index_t>(n)) = values[n];
  return t;
}

template <class T>
struct CudaBackward : CudaTypedTest<T> {};
TYPED_TEST_SUITE(CudaBackward, ElementTypes);

TYPED_TEST(CudaBackward, MatchesTheOracleOverSizes) {
  for (const BackwardSizes& sizes : {BackwardSizes{1, 1, 1, 1, 1, 1, 1},
                                     {2, 5, 5, 4, 2, 64, 64},
                                     {1, 3, 40, 6, 1, 33, 17},
                                     {2, 9, 4, 2, 2, 40, 40},
                                     {1, 35, 33, 2, 1, 16, 8},
                                     {1, 2, 3, 4, 1, 576, 512},
                                     {1, 4, 0, 2, 1, 16, 16},
                                     {1, 0, 4, 2, 1, 16, 16}}) {
    SCOPED_TRACE(testing::Message() << sizes);
    const BackwardProblem<TypeParam> problem(sizes);
    problem.expect_matches();
    problem.expect_matches(Full{});
  }
}

TYPED_TEST(CudaBackward, MatchesTheOracleForMasksAndScores) {
  const BackwardProblem<TypeParam> problem({2, 7, 45, 4, 2, 20, 20});
  problem.expect_matches(Causal{} & (SlidingWindow{3} | SinkTokens{2}));
  problem.expect_matches(Causal{} & (SlidingWindow{40} | SinkTokens{0}), SoftCap{1.5});
}

TYPED_TEST(CudaBackward, MatchesTheOracleForDocuments) {
  const BackwardProblem<TypeParam> problem({2, 20, 20, 2, 1, 12, 12});
  Tensor<std::int32_t, 2> ids({2, 20});
  for (int i = 0; i < 20; ++i) ids(0, i) = i / 6, ids(1, i) = i / 9;
  const auto on_device = on_gpu(ids);
  const auto window = Causal{} & (SlidingWindow{8} | SinkTokens{0});
  expect_backward_matches<TypeParam>(problem.q, problem.k, problem.v, window & SameDocument{ids},
                                     window & SameDocument{on_device}, Identity{}, Identity{});
}

TYPED_TEST(CudaBackward, TakesSinksScaleAndGradientsOfLogsumexps) {
  using A = accumulate_t<TypeParam>;
  const BackwardProblem<TypeParam> problem({2, 6, 30, 4, 2, 24, 24});
  HostBackwardOptions<TypeParam> options{.scale = 0.3};
  options.dlogsumexp = gaussian<A>(Shape{2, 4, 6}, 5);
  problem.expect_matches(Causal{}, Identity{}, options);
  options.dlogsumexp_with_sink = gaussian<A>(Shape{2, 4, 6}, 6);
  for (const float sink : {-50.f, 0.f, 50.f, -std::numeric_limits<float>::infinity()}) {
    options.sinks = gaussian<TypeParam>(Shape<1>{4}, 4);
    options.sinks(1) = TypeParam(sink);
    problem.expect_matches(Causal{}, Identity{}, options);
  }
}

TYPED_TEST(CudaBackward, QueriesWithoutKeysHaveNoGradient) {
  const BackwardProblem<TypeParam> problem({1, 5, 2, 2, 1, 8, 8});
  problem.expect_matches();
  HostBackwardOptions<TypeParam> options;
  options.sinks = gaussian<TypeParam>(Shape<1>{2}, 4);
  problem.expect_matches(Causal{}, Identity{}, options);
}

TYPED_TEST(CudaBackward, TakesLengthsOfEachRow) {
  const BackwardProblem<TypeParam> problem({4, 3, 50, 2, 1, 16, 16});
  HostBackwardOptions<TypeParam> options;
  options.kv_lengths = starts({50, 1, 0, 33});
  problem.expect_matches(Causal{}, Identity{}, options);
}

TYPED_TEST(CudaBackward, TakesPackedSequences) {
  const BackwardProblem<TypeParam> problem({1, 12, 90, 4, 2, 16, 24});
  HostBackwardOptions<TypeParam> options;
  options.cu_q = starts({0, 3, 3, 4, 10});  // two tokens belong to no sequence
  options.cu_k = starts({0, 1, 20, 60, 88});
  problem.expect_matches(Causal{}, Identity{}, options);
}

TYPED_TEST(CudaBackward, TakesPositionsOfQueriesAndKeys) {
  const BackwardProblem<TypeParam> problem({2, 3, 40, 2, 1, 16, 16});
  HostBackwardOptions<TypeParam> options;
  options.q_positions = Tensor<std::int32_t, 2>({2, 3});
  options.kv_positions = Tensor<std::int32_t, 2>({2, 40});
  for (int b = 0; b < 2; ++b) {
    for (int i = 0; i < 3; ++i) options.q_positions(b, i) = 100 + b + i;
    for (int j = 0; j < 40; ++j)  // a ring that has turned, its oldest slots empty
      options.kv_positions(b, j) = j < 3 ? -1 : 63 + (j + 17) % 40;
  }
  problem.expect_matches(Causal{}, Identity{}, options);
}

TYPED_TEST(CudaBackward, ReadsAndWritesStridedViews) {
  using T = TypeParam;
  const auto fused = gaussian<T>(Shape{2, 9, 8, 20}, 5);  // 4 query, 2 key, 2 value heads
  const auto part = [](auto& x, index_t begin, index_t end) {
    return x.view().slice(2, begin, end);
  };
  const auto dout = gaussian<T>(Shape{2, 9, 4, 20}, 6);
  Tensor<T, 4> out(dout.shape());
  Tensor<accumulate_t<T>, 3> lse({2, 4, 9});
  AttentionOptions<Tensor<T, 4>> forward;
  forward.logsumexp = lse;
  reference_attention<double>(out, part(fused, 0, 4), part(fused, 4, 6), part(fused, 6, 8),
                              Causal{}, Identity{}, forward);
  Tensor<T, 4> want(fused.shape());
  reference_attention_backward<double>(part(want, 0, 4), part(want, 4, 6), part(want, 6, 8), dout,
                                       part(fused, 0, 4), part(fused, 4, 6), part(fused, 6, 8));
  const auto device = on_gpu(fused);
  Tensor<T, 4, Cuda> got(fused.shape());
  attention_backward(part(got, 0, 4), part(got, 4, 6), part(got, 6, 8), on_gpu(dout),
                     part(device, 0, 4), part(device, 4, 6), part(device, 6, 8), on_gpu(out),
                     on_gpu(lse));
  expect_gradient_close(got, want, tolerance_of<T>() * 4, "dqkv");
}

}  // namespace
}  // namespace rapt::test
