// The gradient under masks and scores beyond those compiled into rapt::cuda: what a program gets
// that includes attention_backward.cuh itself. Tables that are read by the row of the call, their
// gradients, lambdas.
#include "rapt/cuda/attention_backward.cuh"
#include "support/cuda_backward.hpp"

namespace rapt::test {
namespace {

struct CudaCustomBackward : CudaTest {
  const Tensor<float, 4> q = gaussian<float>(Shape{2, 5, 4, 12}, 1);
  const Tensor<float, 4> k = gaussian<float>(Shape{2, 40, 2, 12}, 2);
  const Tensor<float, 4> v = gaussian<float>(Shape{2, 40, 2, 12}, 3);

  template <class HostMask, class Mask, class HostScore, class Score>
  void expect_matches(HostMask host_mask, Mask mask, HostScore host_score, Score score,
                      HostBackwardOptions<float> options = {}) {
    for (const bool with_lengths : {false, true}) {
      SCOPED_TRACE(with_lengths);
      if (with_lengths) {
        options.kv_lengths = Tensor<std::int32_t, 1>(Shape<1>{2});
        options.kv_lengths(0) = 37, options.kv_lengths(1) = 3;
      }
      expect_backward_matches<float>(q, k, v, host_mask, mask, host_score, score, options);
    }
  }
};

TEST_F(CudaCustomBackward, DenseMask) {
  const auto table = whole_numbers(Shape{2, 1, 5, 40}, 4, 0, 1);
  const auto on_device = on_gpu(table);
  expect_matches(DenseMask{table}, DenseMask{on_device}, Identity{}, Identity{});
}

TEST_F(CudaCustomBackward, AdditiveBias) {
  for (const Shape<4>& shape :
       {Shape<4>{2, 4, 5, 40}, Shape<4>{1, 4, 5, 40}, Shape<4>{1, 1, 5, 40}}) {
    const auto table = gaussian<float>(shape, 4);
    const auto on_device = on_gpu(table);
    HostBackwardOptions<float> options;
    options.bias = shape;
    expect_matches(Causal{}, Causal{}, then(AdditiveBias{table}, SoftCap{2}),
                   then(AdditiveBias{on_device}, SoftCap{2}), options);
  }
}

TEST_F(CudaCustomBackward, RelativeBias) {
  for (const Shape<2>& shape : {Shape<2>{4, 7}, Shape<2>{1, 9}}) {
    const auto table = gaussian<float>(shape, 4);
    const auto on_device = on_gpu(table);
    HostBackwardOptions<float> options;
    options.relative = shape;
    expect_matches(Full{}, Full{}, RelativeBias{table}, RelativeBias{on_device}, options);
  }
}

TEST_F(CudaCustomBackward, Lambdas) {
  const auto mask = [](index_t, index_t h, index_t i, index_t j) {
    return j <= i && (i - j) % (h + 2) == 0;
  };
  const auto score = [](auto s, index_t, index_t, index_t, index_t) { return s + s * s * 0.1f; };
  expect_matches(mask, mask, score, score);
}

}  // namespace
}  // namespace rapt::test
