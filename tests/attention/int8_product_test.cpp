// Decoding over int8 codes by each of its products, whatever the machine would choose: converted to
// floats, by integer dot products, in matrix registers (in plain loops, support/int8_tiles.hpp).
// Oracle: attention/reference.hpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "attention/quantized_problem.hpp"
#include "support/int8_tiles.hpp"

namespace rapt::test {
namespace {

enum class By { vectors, dot_products, matrix_registers };
By by = By::vectors;  // which of them computes

/// A product that takes every call.
template <class Decode>
struct Always : Decode {
  using Decode::Decode;
  static bool serves(index_t, index_t, index_t) { return true; }
};
template <class Decode_>
struct Through : cpu::VectorProduct<float, float, std::int8_t> {
  using VectorProduct::VectorProduct;
  using Decode = std::conditional_t<std::is_same_v<Decode_, typename Decode_::Exact>, Decode_,
                                    Always<Decode_>>;
};

using Args = AttentionArgs<float, Cpu, std::int8_t>;
template <class Q = cpu::Quads>
void forward(const Args& args, const AnyMask& mask, const Identity& score) {
  namespace products = cpu::detail;
  const auto run = [&]<class Decode>(std::type_identity<Decode>) {
    cpu::AttentionForward<Args, AnyMask, Identity, Through<Decode>>(args, mask, score).run();
  };
  if constexpr (products::kDecodesInt8<Q>) {
    if (by == By::dot_products) return run(std::type_identity<products::Int8Decode<float, Q>>{});
    if (by == By::matrix_registers)
      return run(std::type_identity<products::AmxInt8Decode<float, Q, EmulatedQuads>>{});
  }
  run(std::type_identity<products::VectorDecode<float, std::int8_t, float>>{});
}

}  // namespace
}  // namespace rapt::test

namespace rapt {

template <>
void BackendTraits<Cpu>::attention_forward(Cpu, const test::Args& args, const test::AnyMask& mask,
                                           const Identity& score) {
  test::forward(args, mask, score);
}

}  // namespace rapt

namespace rapt::test {
namespace {

using Call = Cached<float, std::int8_t>;
constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Int8Product : testing::TestWithParam<By> {
  void SetUp() override {
    by = GetParam();
    if (by != By::vectors && !cpu::detail::kDecodesInt8<cpu::Quads>)
      GTEST_SKIP() << "the instruction set has no integer dot product of 64 bytes";
  }
};
INSTANTIATE_TEST_SUITE_P(Of, Int8Product,
                         testing::Values(By::vectors, By::dot_products, By::matrix_registers),
                         [](const auto& test) {
                           return std::string(test.param == By::vectors        ? "Vectors"
                                              : test.param == By::dot_products ? "DotProducts"
                                                                               : "MatrixRegisters");
                         });

TEST_P(Int8Product, MatchesTheOracleOverSizes) {
  unsigned seed = 0;
  for (const auto& [head_dim, value_dim] : {std::pair<index_t, index_t>{1, 1},
                                            {8, 33},
                                            {64, 64},
                                            {80, 80},
                                            {128, 128},
                                            {192, 100},
                                            {576, 512}})
    for (const index_t kv_len : {1, 2, 15, 16, 64, 65, 129, 700}) {
      const Sizes sizes{.q_len = 1,
                        .kv_len = kv_len,
                        .heads = 8,
                        .kv_heads = 2,
                        .head_dim = head_dim,
                        .value_dim = value_dim};
      SCOPED_TRACE(testing::Message() << sizes);
      Call(sizes, ++seed).expect_matches();
      if (HasFatalFailure()) return;
    }
}

TEST_P(Int8Product, MatchesTheOracleOverRows) {
  unsigned seed = 100;
  for (const index_t q_len : {1, 2, 3, 4})
    for (const auto& [heads, kv_heads] : {std::pair<index_t, index_t>{1, 1},
                                          {6, 3},
                                          {3, 1},
                                          {8, 2},
                                          {10, 2},
                                          {7, 1},
                                          {8, 1},
                                          {15, 1}}) {
      if (q_len * heads / kv_heads > 16) continue;
      const Sizes sizes{.batch = 2,
                        .q_len = q_len,
                        .kv_len = 150 + q_len,
                        .heads = heads,
                        .kv_heads = kv_heads,
                        .head_dim = 64};
      SCOPED_TRACE(testing::Message() << sizes);
      Call(sizes, ++seed).expect_matches();
      if (HasFatalFailure()) return;
    }
}

// Tiles that rows see in part, with gaps, and pages: keys are then copied.
TEST_P(Int8Product, MasksAndPages) {
  for (const index_t q_len : {1, 3}) {
    const Call call(
        {.batch = 2, .q_len = q_len, .kv_len = 300, .heads = 8, .kv_heads = 2, .head_dim = 64});
    call.expect_matches(Full{});
    call.expect_matches(Causal{} & SlidingWindow{40});
    call.expect_matches(Causal{} & (SlidingWindow{100} | SinkTokens{3}));
    call.expect_matches([](index_t, index_t h, index_t q, index_t kv) {  // heads of a group differ
      return (q + kv) % (h + 2) == 0 && kv > 5;
    });

    const auto q = normal<float>(Shape<4>{2, q_len, 8, 64}, 1);
    const Rows<std::int8_t> k({30, 16, 2, 64}, 2), v({30, 16, 2, 48}, 3);
    const auto table = integers(Shape<2>{2, 10}, 4, 0, 29);
    const auto lengths = list({160, 43});
    AttentionOptions<Tensor<float, 4>> options{.kv_lengths = lengths, .block_table = table};
    options.k_scales = k.scales, options.v_scales = v.scales;
    expect_matches_oracle(q, k.codes, v.codes, AnyMask(Causal{}), Identity{}, options, true);
  }
}

TEST_P(Int8Product, CodesAndScalesOfEverySize) {
  Call call({.q_len = 1, .kv_len = 300, .heads = 8, .kv_heads = 2, .head_dim = 72});
  for (index_t t = 0; t < 72; ++t) call.q(0, 0, 0, t) *= 1e-35f, call.q(0, 0, 1, t) = 0;
  for (index_t n = 0; n < call.v.scales.size(); ++n)
    call.v.scales.data()[n] *= n % 7 == 0 ? 100.f : n % 7 == 1 ? 0.f : 1e-3f;
  call.expect_matches();
  for (index_t n = 0; n < call.v.scales.size(); ++n)  // Exact does it
    call.v.scales.data()[n] *= n % 3 == 0 ? -1.f : 1.f;
  call.expect_matches();
  for (index_t n = 0; n < call.v.scales.size(); ++n) call.v.scales.data()[n] = 0;
  call.expect_matches();

  Call extreme({.q_len = 1, .kv_len = 300, .heads = 8, .kv_heads = 2, .head_dim = 128});
  for (index_t n = 0; n < extreme.k.codes.size(); ++n) {
    extreme.k.codes.data()[n] = n % 3 == 0 ? std::int8_t{-128} : std::int8_t{127};
    extreme.v.codes.data()[n] = n % 5 == 0 ? std::int8_t{127} : std::int8_t{-128};
  }
  extreme.expect_matches();
}

TEST_P(Int8Product, WhatIsNoNumberStaysInItsRow) {
  const Sizes sizes{.q_len = 1, .kv_len = 200, .heads = 10, .kv_heads = 2, .head_dim = 64};
  Call call(sizes);
  const Call clean(sizes);
  Tensor<float, 4> got(call.q.shape()), want(call.q.shape());
  const auto attend = [](const Call& c, const Tensor<float, 4>& q, Tensor<float, 4>& out) {
    attention(out, q, c.k.codes, c.v.codes, AnyMask(Causal{}), Identity{},
              {.k_scales = c.k.scales, .v_scales = c.v.scales});
  };
  call.q(0, 0, 1, 3) = kNaN;
  call.q(0, 0, 7, 60) = kInf;
  attend(call, call.q, got);
  attend(clean, clean.q, want);
  for (index_t h = 0; h < 10; ++h)
    for (index_t t = 0; t < 64; ++t) {
      if (h == 1 || h == 7)
        ASSERT_TRUE(std::isnan(got(0, 0, h, t))) << h << " " << t;
      else
        ASSERT_NEAR(got(0, 0, h, t), want(0, 0, h, t), 1e-5) << h << " " << t;
    }
  call.v.scales(0, 199, 0) = kInf;
  attend(call, clean.q, got);
  for (index_t t = 0; t < 64; ++t) {
    const float code = static_cast<float>(call.v.codes(0, 199, 0, t)), x = got(0, 0, 0, t);
    ASSERT_TRUE(code == 0 ? std::isnan(x) : std::isinf(x) && (x > 0) == (code > 0)) << t;
  }
}

}  // namespace
}  // namespace rapt::test
