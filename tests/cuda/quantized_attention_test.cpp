// Attention on the CUDA backend over keys and values of 8-bit codes, against reference_attention in
// double precision.
#include <cmath>
#include <limits>

#include "rapt/attention/attention.hpp"
#include "rapt/attention/reference.hpp"
#include "rapt/core/quantize.hpp"
#include "support/cuda_test.hpp"

namespace rapt::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// A cache of codes in pages of a pool, or with one row of keys a sequence, in host memory.
template <class T, class S>
struct Problem {
  Tensor<T, 4> q;
  Tensor<S, 4> k, v;
  Tensor<float, 3> k_scales, v_scales;
  Tensor<std::int32_t, 1> kv_lengths{};
  Tensor<std::int32_t, 2> block_table{};

  Problem(Shape<4> queries, Shape<4> keys, index_t value_dim)
      : q(gaussian<T>(queries, 1)),
        k(keys),
        v({keys[0], keys[1], keys[2], value_dim}),
        k_scales({keys[0], keys[1], keys[2]}),
        v_scales(k_scales.shape()) {
    quantize_rows(k, k_scales, gaussian<float>(k.shape(), 2));
    quantize_rows(v, v_scales, gaussian<float>(v.shape(), 3));
  }

  template <class Mask = Causal, class Score = Identity>
  void expect_matches(const Mask& mask = {}, const Score& score = {}, bool scaled = true) const {
    using A = accumulate_t<T>;
    const Shape shape{q.extent(0), q.extent(1), q.extent(2), v.extent(3)};
    const Shape rows{q.extent(0), q.extent(2), q.extent(1)};
    Tensor<T, 4> want(shape);
    Tensor<A, 3> want_lse(rows);
    AttentionOptions<Tensor<T, 4>> options{.logsumexp = want_lse};
    const auto give = [](auto& option, const auto& tensor) {
      if (!tensor.empty()) option = tensor.view();
    };
    give(options.kv_lengths, kv_lengths);
    give(options.block_table, block_table);
    if (scaled) options.k_scales = k_scales, options.v_scales = v_scales;
    reference_attention<double>(want, q, k, v, mask, score, options);

    const auto lengths = on_gpu(kv_lengths);
    const auto table = on_gpu(block_table);
    const auto gk_scales = on_gpu(k_scales), gv_scales = on_gpu(v_scales);
    Tensor<T, 4, Cuda> out(shape);
    Tensor<A, 3, Cuda> lse(rows);
    AttentionOptions<Tensor<T, 4, Cuda>> on_device{.logsumexp = lse};
    give(on_device.kv_lengths, lengths);
    give(on_device.block_table, table);
    if (scaled) on_device.k_scales = gk_scales, on_device.v_scales = gv_scales;
    attention(out, on_gpu(q), on_gpu(k), on_gpu(v), mask, score, on_device);
    expect_close(to(Cpu{}, out), want, tolerance_of<T>() * 4, "out");
    expect_close(to(Cpu{}, lse), want_lse, tolerance_of<A>() * 4, "logsumexp");
  }
};

template <class Query, class Code>
struct Types {
  using T = Query;
  using S = Code;
};
template <class Pair>
struct CudaQuantizedAttention : CudaTest {
  using Call = Problem<typename Pair::T, typename Pair::S>;
};
using Pairs = testing::Types<Types<float, std::int8_t>, Types<half, float8_e4m3>,
                             Types<bfloat16, float8_e5m2>>;
TYPED_TEST_SUITE(CudaQuantizedAttention, Pairs);

TYPED_TEST(CudaQuantizedAttention, MatchesTheOracle) {
  const typename TestFixture::Call call({2, 5, 4, 40}, {2, 75, 2, 40}, 24);
  call.expect_matches();
  call.expect_matches(Full{});
  call.expect_matches(Causal{}, SoftCap{2});
  call.expect_matches(Causal{} & SlidingWindow{7});
  typename TestFixture::Call({1, 1, 2, 1}, {1, 1, 1, 1}, 1).expect_matches();
  typename TestFixture::Call({1, 2, 4, 576}, {1, 35, 1, 576}, 512).expect_matches();
}

TYPED_TEST(CudaQuantizedAttention, AbsentScalesAreOne) {
  using S = typename TypeParam::S;
  typename TestFixture::Call call({1, 3, 4, 16}, {1, 40, 2, 16}, 16);
  for (index_t i = 0; i < call.k.size(); ++i) {
    call.k.data()[i] = S(static_cast<float>(i % 5 - 2));
    call.v.data()[i] = S(static_cast<float>(i % 7 - 3));
  }
  call.expect_matches(Causal{}, Identity{}, false);
}

TYPED_TEST(CudaQuantizedAttention, ReadsPagesAndTheirScales) {
  typename TestFixture::Call call({2, 3, 4, 16}, {9, 8, 2, 16}, 12);
  call.block_table = Tensor<std::int32_t, 2>({2, 5});
  index_t n = 0;
  for (const int block : {7, 2, 0, 5, -1, 1, 8, -1, -1, -1}) call.block_table.data()[n++] = block;
  call.kv_lengths = Tensor<std::int32_t, 1>(Shape<1>{2});
  call.kv_lengths(0) = 29;
  call.kv_lengths(1) = 16;
  for (index_t at = 5; at < 8; ++at)  // behind the last key
    for (index_t g = 0; g < 2; ++g) call.k_scales(5, at, g) = call.v_scales(5, at, g) = kNaN;
  call.expect_matches();
}

TYPED_TEST(CudaQuantizedAttention, AHiddenScaleStaysHidden) {
  using T = typename TypeParam::T;
  typename TestFixture::Call call({1, 3, 2, 16}, {1, 40, 1, 16}, 16);
  call.k_scales(0, 39, 0) = call.v_scales(0, 39, 0) = kNaN;
  Tensor<T, 4, Cuda> out(call.q.shape());
  const auto k_scales = on_gpu(call.k_scales), v_scales = on_gpu(call.v_scales);
  AttentionOptions<Tensor<T, 4, Cuda>> options{.k_scales = k_scales, .v_scales = v_scales};
  attention(out, on_gpu(call.q), on_gpu(call.k), on_gpu(call.v), Causal{}, Identity{}, options);
  const auto home = to(Cpu{}, out);
  for (index_t i = 0; i < 3; ++i)
    for (index_t c = 0; c < 16; ++c)
      EXPECT_EQ(std::isnan(static_cast<float>(home(0, i, 1, c))), i == 2);
}

}  // namespace
}  // namespace rapt::test
