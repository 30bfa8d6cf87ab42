// Masks and scores beyond those compiled into rapt::cuda: what a program gets that includes
// attention_forward.cuh itself. Tables that are read by the row of the call, lambdas, documents.
#include "rapt/attention/attention.hpp"
#include "rapt/attention/reference.hpp"
#include "rapt/cuda/attention_forward.cuh"
#include "support/cuda_test.hpp"

namespace rapt::test {
namespace {

struct CudaCustomMasks : CudaTest {
  Tensor<float, 4> q = gaussian<float>(Shape{3, 5, 4, 16}, 1);
  Tensor<float, 4> k = gaussian<float>(Shape{3, 70, 2, 16}, 2);
  Tensor<float, 4> v = gaussian<float>(Shape{3, 70, 2, 16}, 3);
  Tensor<std::int32_t, 1> lengths{Shape<1>{3}};

  CudaCustomMasks() {
    lengths(0) = 70;
    lengths(1) = 37;
    lengths(2) = 4;
  }

  /// With and without lengths: what is read by row must follow each row's own length.
  template <class HostMask, class Mask, class HostScore = Identity, class Score = Identity>
  void expect_matches(HostMask host_mask, Mask mask, HostScore host_score = {}, Score score = {}) {
    for (const bool with_lengths : {false, true}) {
      Tensor<float, 4> want(q.shape());
      AttentionOptions<Tensor<float, 4>> host;
      if (with_lengths) host.kv_lengths = lengths.view();
      reference_attention<double>(want, q, k, v, host_mask, host_score, host);

      Tensor<float, 4, Cuda> out(q.shape());
      const auto on_device = on_gpu(lengths);
      AttentionOptions<Tensor<float, 4, Cuda>> options;
      if (with_lengths) options.kv_lengths = on_device.view();
      attention(out, on_gpu(q), on_gpu(k), on_gpu(v), mask, score, options);
      expect_close(to(Cpu{}, out), want, tolerance_of<float>() * 4,
                   with_lengths ? "with lengths" : "without lengths");
    }
  }
};

TEST_F(CudaCustomMasks, DenseMasksAndBlockMapsFollowTheRow) {
  const auto table = whole_numbers(Shape{3, 1, 5, 70}, 4, 0, 1);
  const auto map = whole_numbers(Shape{1, 4, 1, 9}, 5, 0, 1);
  const auto gtable = on_gpu(table), gmap = on_gpu(map);
  expect_matches(DenseMask{table}, DenseMask{gtable});
  expect_matches(Causal{} & BlockSparse{map, 8}, Causal{} & BlockSparse{gmap, 8});
  expect_matches(~DenseMask{table} | SinkTokens{2}, ~DenseMask{gtable} | SinkTokens{2});
}

TEST_F(CudaCustomMasks, BiasesFollowTheRow) {
  const auto bias = gaussian<float>(Shape{1, 4, 5, 70}, 6);
  const auto slopes = alibi_slopes(4);
  const auto relative = gaussian<float>(Shape{4, 21}, 7);
  const auto gbias = on_gpu(bias);
  const auto gslopes = on_gpu(slopes);
  const auto grelative = on_gpu(relative);
  expect_matches(Causal{}, Causal{}, AdditiveBias{bias}, AdditiveBias{gbias});
  expect_matches(Causal{}, Causal{}, Alibi{slopes}, Alibi{gslopes});
  expect_matches(Full{}, Full{}, then(SoftCap{2}, RelativeBias{relative}),
                 then(SoftCap{2}, RelativeBias{grelative}));
}

TEST_F(CudaCustomMasks, DocumentsAndPrefixesAreReadOnTheDevice) {
  Tensor<std::int32_t, 2> documents({1, 70});
  for (index_t i = 0; i < 70; ++i) documents(0, i) = static_cast<std::int32_t>(i / 9);
  Tensor<std::int32_t, 1> prefixes(Shape<1>{3});
  prefixes(0) = 68;
  prefixes(1) = 36;
  const auto gdocuments = on_gpu(documents);
  const auto gprefixes = on_gpu(prefixes);
  expect_matches(Causal{} & SameDocument{documents}, Causal{} & SameDocument{gdocuments});
  expect_matches(PrefixLm{prefixes}, PrefixLm{gprefixes});
}

TEST_F(CudaCustomMasks, LambdasAreMasksAndScores) {
  const auto mask = [](index_t b, index_t h, index_t p, index_t j) {
    return j <= p && (p + j + h + b) % 3 != 0;
  };
  const auto score = [](auto s, index_t, index_t h, index_t p, index_t j) {
    return s * static_cast<float>(h + 1) - static_cast<float>(p - j) * 0.1f;
  };
  expect_matches(mask, mask, score, score);
}

}  // namespace
}  // namespace rapt::test
