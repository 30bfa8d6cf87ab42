// Attention over codes of 8 bits by products of parts of bfloat16 (cpu/attention_parts.hpp), on
// matrix registers in plain loops (support/bfloat16_pairs.hpp) and on this machine's own. Oracle:
// attention/reference.hpp.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "attention/quantized_problem.hpp"
#include "rapt/core/parallel.hpp"
#include "support/bfloat16_pairs.hpp"

namespace rapt::test {
namespace {

bool own_registers = false;

template <class Args>
void forward(const Args& args, const AnyMask& mask, const Identity& score) {
  using T = typename Args::Element;
  using S = typename Args::Stored;
  if constexpr (cpu::kAmx)
    if (own_registers)
      return cpu::AttentionForward<Args, AnyMask, Identity, cpu::PartsProduct<T, S>>(args, mask,
                                                                                     score)
          .run();
  using Emulated = cpu::PartsProduct<T, S, EmulatedPartTiles>;
  cpu::AttentionForward<Args, AnyMask, Identity, Emulated>(args, mask, score).run();
}

using FloatInt8 = AttentionArgs<float, Cpu, std::int8_t>;
using FloatE4m3 = AttentionArgs<float, Cpu, float8_e4m3>;
using HalfE5m2 = AttentionArgs<half, Cpu, float8_e5m2>;

}  // namespace
}  // namespace rapt::test

namespace rapt {

template <>
void BackendTraits<Cpu>::attention_forward(Cpu, const test::FloatInt8& args,
                                           const test::AnyMask& mask, const Identity& score) {
  test::forward(args, mask, score);
}
template <>
void BackendTraits<Cpu>::attention_forward(Cpu, const test::FloatE4m3& args,
                                           const test::AnyMask& mask, const Identity& score) {
  test::forward(args, mask, score);
}
template <>
void BackendTraits<Cpu>::attention_forward(Cpu, const test::HalfE5m2& args,
                                           const test::AnyMask& mask, const Identity& score) {
  test::forward(args, mask, score);
}

}  // namespace rapt

namespace rapt::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

/// f(own) for each kind of registers.
template <class F>
void by_each(F f) {
  for (const bool own : {false, true}) {
    if (own && !(cpu::kAmx && cpu::amx_granted())) continue;
    SCOPED_TRACE(own ? "own registers" : "emulated registers");
    own_registers = own;
    f();
  }
}

template <class Args>
struct QuantizedParts : testing::Test {
  using T = typename Args::Element;
  using Codes = typename Args::Stored;
  using Call = Cached<T, Codes>;
  using Options = AttentionOptions<Tensor<T, 4>>;
};
using Kinds = testing::Types<FloatInt8, FloatE4m3, HalfE5m2>;
TYPED_TEST_SUITE(QuantizedParts, Kinds);

TYPED_TEST(QuantizedParts, MatchesTheOracleAtEveryHeadDim) {
  by_each([] {
    at_every_head_dim([](const Sizes& sizes, unsigned seed) {
      const typename TestFixture::Call call(sizes, seed);
      call.expect_matches(Causal{});
      const float scale = -2 / std::sqrt(static_cast<float>(sizes.head_dim));
      call.expect_matches(Full{}, Identity{}, {.scale = scale}, true);
    });
  });
}

TYPED_TEST(QuantizedParts, MasksLengthsAndSequences) {
  by_each([] {
    const typename TestFixture::Call call(
        {.batch = 2, .q_len = 70, .kv_len = 203, .heads = 4, .kv_heads = 2, .head_dim = 40});
    const auto lengths = list({150, 203});
    const AnyMask masks[] = {
        Causal{} & SlidingWindow{9}, Causal{} & (SlidingWindow{40} | SinkTokens{3}),
        [](index_t, index_t h, index_t q, index_t kv) { return (q + kv) % (h + 2) == 0; }};
    for (const AnyMask& mask : masks) {
      call.expect_matches(mask);
      call.expect_matches(mask, Identity{}, {.kv_lengths = lengths}, true);
    }
    const typename TestFixture::Call several_tiles(
        {.q_len = 40, .kv_len = 300, .heads = 4, .kv_heads = 2, .head_dim = 64});
    several_tiles.expect_matches(Causal{});
    const auto cu_q = list({0, 3, 3, 64, 65, 165}), cu_k = list({0, 9, 20, 70, 72, 180});
    const typename TestFixture::Call packed(
        {.q_len = 165, .kv_len = 180, .heads = 4, .kv_heads = 2, .head_dim = 24});
    packed.expect_matches(Causal{}, Identity{}, {.cu_seqlens_q = cu_q, .cu_seqlens_k = cu_k}, true);
  });
}

// Scales, and codes of float8, that are no numbers.
TYPED_TEST(QuantizedParts, WhatIsHiddenIsNeverMultiplied) {
  by_each([] {
    using Code = typename TestFixture::Codes;
    for (const index_t bad : {0, 75, 149})
      for (const float what : {kNaN, kInf}) {
        typename TestFixture::Call call(
            {.q_len = 150, .kv_len = 150, .heads = 2, .kv_heads = 1, .head_dim = 20});
        call.k.scales(0, bad, 0) = call.v.scales(0, bad, 0) = what;
        if constexpr (!std::is_same_v<Code, std::int8_t>) call.v.codes(0, bad, 0, 3) = Code(kNaN);
        Tensor<typename TestFixture::T, 4> out(call.q.shape());
        const auto shows = [=](index_t q, index_t kv) { return kv != bad || q % 2 == 0; };
        typename TestFixture::Options options;
        options.k_scales = call.k.scales, options.v_scales = call.v.scales;
        attention(out, call.q, call.k.codes, call.v.codes,
                  AnyMask{[=](index_t, index_t, index_t q, index_t kv) { return shows(q, kv); }},
                  Identity{}, options);
        for (index_t i = 1; i < 150; i += 2)
          for (index_t t = 0; t < 20; ++t)
            ASSERT_TRUE(std::isfinite(float(out(0, i, 1, t)))) << bad << " " << i << " " << t;
      }
  });
}

TYPED_TEST(QuantizedParts, AnInfiniteScaleOfAValueStaysWhatItIs) {
  by_each([] {
    typename TestFixture::Call call(
        {.q_len = 40, .kv_len = 40, .heads = 1, .kv_heads = 1, .head_dim = 16});
    call.v.scales(0, 20, 0) = kInf;
    call.expect_matches(Full{});
    call.expect_matches(Causal{});
  });
}

TYPED_TEST(QuantizedParts, ThreadsNeverChangeAResult) {
  const int before = num_threads();
  by_each([] {
    const typename TestFixture::Call call(
        {.q_len = 100, .kv_len = 400, .heads = 4, .kv_heads = 2, .head_dim = 40});
    typename TestFixture::Options options;
    options.k_scales = call.k.scales, options.v_scales = call.v.scales;
    Tensor<typename TestFixture::T, 4> first(call.q.shape());
    for (const int threads : {1, 2, 3, 7}) {
      set_num_threads(threads);
      Tensor<typename TestFixture::T, 4> got(call.q.shape());
      attention(threads == 1 ? first : got, call.q, call.k.codes, call.v.codes, AnyMask{Causal{}},
                Identity{}, options);
      if (threads > 1) {
        EXPECT_EQ(std::memcmp(got.data(), first.data(), first.bytes()), 0) << threads;
      }
    }
  });
  set_num_threads(before);
}

}  // namespace
}  // namespace rapt::test
