// attention() over keys and values of 8-bit codes, beside queries of every type: the oracle matched
// over shapes, masks, scores and options; scales folded equal dequantised keys and values; a hidden
// code or scale may be anything.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "attention/quantized_problem.hpp"
#include "rapt/core/parallel.hpp"
#include "support/count_allocations.hpp"

namespace rapt::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <class Query, class Code>
struct Types {
  using T = Query;
  using S = Code;
};
template <class Pair>
struct Quantized : testing::Test {
  using Call = Cached<typename Pair::T, typename Pair::S>;
};
using Pairs = testing::Types<Types<float, std::int8_t>, Types<float, float8_e4m3>,
                             Types<float, float8_e5m2>, Types<half, std::int8_t>,
                             Types<bfloat16, float8_e4m3>, Types<double, float8_e5m2>>;
TYPED_TEST_SUITE(Quantized, Pairs);

TYPED_TEST(Quantized, MatchesTheOracleOverSizes) {
  unsigned seed = 0;
  for (const index_t dim : {1, 7, 64, 80, 128, 576})
    for (const auto& [q_len, kv_len] :
         {std::pair<index_t, index_t>{1, 1}, {1, 130}, {1, 600}, {4, 9}, {33, 70}}) {
      const Sizes sizes{.q_len = q_len,
                        .kv_len = kv_len,
                        .heads = 4,
                        .kv_heads = 2,
                        .head_dim = dim,
                        .value_dim = dim == 576 ? 512 : dim};
      SCOPED_TRACE(testing::Message() << sizes);
      typename TestFixture::Call(sizes, ++seed).expect_matches();
      if (this->HasFatalFailure()) return;
    }
}

TYPED_TEST(Quantized, MatchesTheOracleOverQueriesAndGroups) {
  unsigned seed = 100;
  for (const index_t q_len : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 200})
    for (const auto& [heads, kv_heads] : {std::pair<index_t, index_t>{2, 2}, {6, 2}, {5, 1}}) {
      const Sizes sizes{.batch = q_len < 3 ? 2 : 1,
                        .q_len = q_len,
                        .kv_len = q_len + 61,
                        .heads = heads,
                        .kv_heads = kv_heads,
                        .head_dim = 20};
      SCOPED_TRACE(testing::Message() << sizes);
      typename TestFixture::Call(sizes, ++seed).expect_matches();
      if (this->HasFatalFailure()) return;
    }
}

TYPED_TEST(Quantized, MatchesTheOracleForMasks) {
  for (const index_t q_len : {1, 3, 70}) {
    const typename TestFixture::Call call(
        {.batch = 2, .q_len = q_len, .kv_len = 150, .heads = 4, .kv_heads = 2, .head_dim = 24});
    call.expect_matches(Full{});
    call.expect_matches(Causal{} & SlidingWindow{9});
    call.expect_matches(Causal{} & (SlidingWindow{40} | SinkTokens{3}));
    call.expect_matches([](index_t, index_t h, index_t q, index_t kv) {  // heads of a group differ
      return (q + kv) % (h + 2) == 0 && kv > 5;
    });
    const auto map = integers(Shape<4>{2, 1, q_len, 150}, 3, 0, 1);
    call.expect_matches(DenseMask<>{map});
  }
}

TYPED_TEST(Quantized, PagesOfAPoolAndItsScales) {
  using T = typename TypeParam::T;
  using S = typename TypeParam::S;
  for (const index_t q_len : {1, 3, 40}) {
    const auto q = normal<T>(Shape<4>{3, q_len, 4, 20}, 1);
    Rows<S> k({12, 8, 2, 20}, 2), v({12, 8, 2, 12}, 3);
    Tensor<std::int32_t, 2> table({3, 5});
    index_t n = 0;
    for (const int block : {7, 2, 0, 5, -1, 1, 8, -1, -1, -1, 11, 10, 9, 6, 4})
      table.data()[n++] = block;
    const auto lengths = list({29, 16, 40});
    for (index_t at = 5; at < 8; ++at)  // behind the last key of the first row
      for (index_t g = 0; g < 2; ++g) k.scales(5, at, g) = v.scales(5, at, g) = kNaN;
    AttentionOptions<Tensor<T, 4>> options{.kv_lengths = lengths, .block_table = table};
    options.k_scales = k.scales, options.v_scales = v.scales;
    expect_matches_oracle(q, k.codes, v.codes, AnyMask(Causal{}), Identity{}, options, true);
  }
}

TYPED_TEST(Quantized, PackedSequences) {
  const auto cu_q = list({0, 3, 3, 64, 65, 165}), cu_k = list({0, 9, 20, 70, 72, 180});
  const typename TestFixture::Call call(
      {.q_len = 165, .kv_len = 180, .heads = 4, .kv_heads = 2, .head_dim = 24});
  call.expect_matches(Causal{}, Identity{}, {.cu_seqlens_q = cu_q, .cu_seqlens_k = cu_k}, true);
}

TYPED_TEST(Quantized, ARingWithEmptySlots) {
  using S = typename TypeParam::S;
  for (const index_t q_len : {1, 2, 30}) {
    typename TestFixture::Call call(
        {.batch = 2, .q_len = q_len, .kv_len = 90, .heads = 4, .kv_heads = 2, .head_dim = 16});
    Tensor<std::int32_t, 2> q_positions({2, q_len}), kv_positions({2, 90});
    for (index_t b = 0; b < 2; ++b) {
      for (index_t i = 0; i < q_len; ++i)
        q_positions(b, i) = static_cast<std::int32_t>(190 + b + i);
      for (index_t j = 0; j < 90; ++j) {
        kv_positions(b, j) = j < 3 ? -1 : static_cast<std::int32_t>(103 + (j + 37) % 90);
        for (index_t g = 0; j < 3 && g < 2; ++g) {
          call.k.scales(b, j, g) = call.v.scales(b, j, g) = kNaN;
          if constexpr (!std::is_same_v<S, std::int8_t>) call.v.codes(b, j, g, 0) = S(kNaN);
        }
      }
    }
    call.expect_matches(Causal{} & SlidingWindow{50}, Identity{},
                        {.q_positions = q_positions, .kv_positions = kv_positions}, true);
  }
}

TYPED_TEST(Quantized, SinksLengthsAndScale) {
  using T = typename TypeParam::T;
  for (const index_t q_len : {1, 5, 40}) {
    typename TestFixture::Call call({.batch = 3,
                                     .q_len = q_len,
                                     .kv_len = 80,
                                     .heads = 4,
                                     .kv_heads = 1,
                                     .head_dim = 12,
                                     .value_dim = 20});
    const auto lengths = list({80, 0, 33});
    for (index_t j = 33; j < 80; ++j) call.k.scales(2, j, 0) = call.v.scales(2, j, 0) = kNaN;
    const auto sinks = normal<T>(Shape<1>{4}, 7);
    call.expect_matches(Causal{}, Identity{},
                        {.scale = -0.4f, .sink_logits = sinks, .kv_lengths = lengths}, true);
  }
}

/// Codes that mean themselves: small whole numbers.
template <class S>
Tensor<S, 4> whole_codes(Shape<4> shape, unsigned seed) {
  const auto numbers = integers(shape, seed, -2, 2);
  Tensor<S, 4> codes(shape);
  for (index_t n = 0; n < codes.size(); ++n)
    codes.data()[n] = S(static_cast<float>(numbers.data()[n]));
  return codes;
}

TYPED_TEST(Quantized, AbsentScalesAreOne) {
  using T = typename TypeParam::T;
  using S = typename TypeParam::S;
  for (const index_t q_len : {1, 50}) {
    const auto q = normal<T>(Shape<4>{2, q_len, 4, 36}, 1);
    const auto k = whole_codes<S>({2, 77, 2, 36}, 2), v = whole_codes<S>({2, 77, 2, 36}, 3);
    auto scales = normal<float>(Shape<3>{2, 77, 2}, 4);
    const AnyMask mask = Causal{};
    using Options = AttentionOptions<Tensor<T, 4>>;
    expect_matches_oracle(q, k, v, mask);
    expect_matches_oracle(q, k, v, mask, Identity{}, Options{.k_scales = scales});
    expect_matches_oracle(q, k, v, mask, Identity{}, Options{.v_scales = scales});
  }
}

TYPED_TEST(Quantized, StridedViews) {
  using T = typename TypeParam::T;
  using S = typename TypeParam::S;
  for (const index_t q_len : {1, 40}) {
    const auto q = normal<T>(Shape<4>{2, q_len, 4, 20}, 1);
    const Rows<S> both({2, 70, 6, 24},
                       2);  // two heads of keys, one that is no one's, two of values
    const auto part = [](const auto& x, index_t begin) {
      return x.view().slice(2, begin, begin + 2);
    };
    AttentionOptions<Tensor<T, 4>> options{};
    options.k_scales = part(both.scales, 0), options.v_scales = part(both.scales, 3);
    expect_matches_oracle(q, part(both.codes, 0).slice(3, 2, 22),
                          part(both.codes, 3).slice(3, 0, 7), AnyMask(Causal{}), Identity{},
                          options);
  }
}

TEST(QuantizedScore, MatchesTheOracle) {
  Tensor<float, 1> slopes({4});
  for (index_t h = 0; h < 4; ++h) slopes(h) = 0.3f / static_cast<float>(h + 1);
  for (const index_t q_len : {1, 3, 50}) {
    const Sizes sizes{
        .batch = 2, .q_len = q_len, .kv_len = 140, .heads = 4, .kv_heads = 2, .head_dim = 40};
    const Cached<float, std::int8_t> call(sizes);
    call.expect_matches(Causal{}, SoftCap{1.5}, {}, true);
    const Cached<float, float8_e4m3> other(sizes);
    other.expect_matches(Causal{}, AnyScore(Alibi<>{slopes}));
    other.expect_matches(Causal{} & SlidingWindow{20},
                         AnyScore([](auto s, index_t, index_t h, index_t q, index_t kv) {
                           return s * 0.5 + static_cast<double>((h + q - kv) % 3);
                         }));
  }
}

TEST(QuantizedFold, EqualsAttentionOverWhatTheCodesStandFor) {
  for (const index_t q_len : {1, 4, 100}) {
    const Cached<float, std::int8_t> call(
        {.batch = 2, .q_len = q_len, .kv_len = 700, .heads = 8, .kv_heads = 2, .head_dim = 64});
    Tensor<float, 4> folded(call.q.shape()), plain(call.q.shape()), constant(call.q.shape());
    attention(folded, call.q, call.k.codes, call.v.codes, Causal{}, Identity{},
              {.k_scales = call.k.scales, .v_scales = call.v.scales});
    attention(plain, call.q, call.k.values(), call.v.values());
    expect_close(folded, plain, tolerance_of<float>());

    // One scale for all of them: the caller's own, in the scale and on the output.
    Tensor<float, 3> k_scales(call.k.scales.shape()), v_scales(call.k.scales.shape());
    for (index_t n = 0; n < k_scales.size(); ++n)
      k_scales.data()[n] = 0.02f, v_scales.data()[n] = 0.03f;
    attention(folded, call.q, call.k.codes, call.v.codes, Causal{}, Identity{},
              {.k_scales = k_scales, .v_scales = v_scales});
    attention(constant, call.q, call.k.codes, call.v.codes, Causal{}, Identity{},
              {.scale = 0.02f / 8});
    for (index_t n = 0; n < constant.size(); ++n) constant.data()[n] *= 0.03f;
    expect_close(folded, constant, tolerance_of<float>());
  }
}

// Integer dot products take queries and weights apart into digits: whatever these are.
using Int8Call = Cached<float, std::int8_t>;
constexpr Sizes kDecodeSizes{
    .batch = 2, .q_len = 1, .kv_len = 300, .heads = 8, .kv_heads = 2, .head_dim = 72};

TEST(QuantizedDigits, QueriesOfEverySize) {
  Int8Call call(kDecodeSizes);
  for (index_t t = 0; t < 72; ++t) {
    call.q(0, 0, 0, t) *= 1e-35f;
    call.q(0, 0, 1, t) = 0;
    call.q(0, 0, 2, t) *= 30;
    if (t % 24 == 5) call.q(0, 0, 3, t) *= 100;  // a few channels tower above the others
    call.q(1, 0, 5, t) = -0.5f;
    call.q(1, 0, 6, t) = std::abs(call.q(1, 0, 6, t));
  }
  call.expect_matches();
  // Scores of up to 100 have an error of 1e-5 in float, and so do the weights: with other seeds, and
  // whatever the kernel, one call of ten is outside of what smaller scores are held to.
  call.expect_matches(Causal{}, Identity{}, {.scale = -3}, false, 4);
}

TEST(QuantizedDigits, ExtremeCodes) {
  Int8Call call(kDecodeSizes);
  for (index_t n = 0; n < call.k.codes.size(); ++n) {
    call.k.codes.data()[n] = n % 3 == 0 ? std::int8_t{-128} : std::int8_t{127};
    call.v.codes.data()[n] = n % 5 == 0 ? std::int8_t{127} : std::int8_t{-128};
  }
  call.expect_matches();
}

TEST(QuantizedDigits, ScalesOfEverySizeAndSign) {
  Int8Call call(kDecodeSizes);
  for (index_t n = 0; n < call.v.scales.size(); ++n)
    call.v.scales.data()[n] *= n % 7 == 0 ? 100.f : n % 7 == 1 ? 0.f : 1e-3f;
  call.expect_matches();
  for (index_t n = 0; n < call.v.scales.size(); ++n)
    call.v.scales.data()[n] *= n % 3 == 0 ? -1.f : 1.f;
  call.expect_matches();
  for (index_t n = 0; n < call.v.scales.size(); ++n) call.v.scales.data()[n] = 1e-36f;
  call.expect_matches();
  for (index_t n = 0; n < call.v.scales.size(); ++n) call.v.scales.data()[n] = 0;
  call.expect_matches();
}

TEST(QuantizedDigits, WhatIsNoNumberStaysInItsRow) {
  Int8Call call(kDecodeSizes);
  const Int8Call clean(kDecodeSizes);
  call.q(0, 0, 1, 3) = kNaN;
  call.q(1, 0, 4, 70) = std::numeric_limits<float>::infinity();
  Tensor<float, 4> got(call.q.shape()), want(call.q.shape());
  const auto attend = [](const Int8Call& c, const Tensor<float, 4>& q, Tensor<float, 4>& out) {
    attention(out, q, c.k.codes, c.v.codes, Causal{}, Identity{},
              {.k_scales = c.k.scales, .v_scales = c.v.scales});
  };
  attend(call, call.q, got);
  attend(clean, clean.q, want);
  for (index_t b = 0; b < 2; ++b)
    for (index_t h = 0; h < 8; ++h)
      for (index_t t = 0; t < 72; ++t) {
        if (h == (b == 0 ? 1 : 4))
          ASSERT_TRUE(std::isnan(got(b, 0, h, t))) << b << " " << h << " " << t;
        else
          ASSERT_NEAR(got(b, 0, h, t), want(b, 0, h, t), 1e-5) << b << " " << h << " " << t;
      }
  call.v.scales(0, 299, 0) = std::numeric_limits<float>::infinity();
  attend(call, clean.q, got);
  for (index_t t = 0; t < 72; ++t) {
    const float code = static_cast<float>(call.v.codes(0, 299, 0, t)), x = got(0, 0, 0, t);
    ASSERT_TRUE(code == 0 ? std::isnan(x) : std::isinf(x) && (x > 0) == (code > 0)) << t;
  }
}

TEST(QuantizedThreads, NeverChangeAResult) {
  const int before = num_threads();
  for (const Sizes& sizes :
       {Sizes{.batch = 2, .q_len = 1, .kv_len = 3000, .heads = 8, .kv_heads = 2, .head_dim = 64},
        Sizes{.q_len = 300, .kv_len = 300, .heads = 6, .kv_heads = 2, .head_dim = 64}}) {
    const Cached<float, std::int8_t> call(sizes);
    Tensor<float, 4> first(call.q.shape()), out(call.q.shape());
    for (const int threads : {1, 2, 3, 7}) {
      set_num_threads(threads);
      attention(out, call.q, call.k.codes, call.v.codes, Causal{}, Identity{},
                {.k_scales = call.k.scales, .v_scales = call.v.scales});
      if (threads == 1) first = out;
      EXPECT_EQ(std::memcmp(out.data(), first.data(), out.bytes()), 0) << threads;
    }
  }
  set_num_threads(before);
}

TEST(QuantizedAllocation, AStepInTheSteadyStateAllocatesNothing) {
  const Cached<float, std::int8_t> call(
      {.batch = 2, .q_len = 1, .kv_len = 2000, .heads = 8, .kv_heads = 2, .head_dim = 64});
  Tensor<float, 4> out(call.q.shape());
  const auto lengths = list({2000, 1234});
  const auto step = [&] {
    attention(out, call.q, call.k.codes, call.v.codes, Causal{}, Identity{},
              {.kv_lengths = lengths, .k_scales = call.k.scales, .v_scales = call.v.scales});
  };
  for (int n = 0; n < 3; ++n) step();
  const AllocationCount count;
  for (int n = 0; n < 10; ++n) step();
  EXPECT_EQ(count.so_far(), 0);
}

TYPED_TEST(Quantized, AHiddenCodeOrScaleStaysHidden) {
  using T = typename TypeParam::T;
  using S = typename TypeParam::S;
  const S bad = std::is_same_v<S, std::int8_t> ? S(-128) : S(kNaN);
  for (const index_t q_len : {2, 4, 40})
    for (const index_t hidden : {60, 63, 64}) {  // from the first row, but not from the last
      typename TestFixture::Call call(
          {.q_len = q_len, .kv_len = hidden + 1, .heads = 3, .kv_heads = 1, .head_dim = 20});
      Tensor<T, 4> clean(call.q.shape()), out(call.q.shape());
      AttentionOptions<Tensor<T, 4>> options{.k_scales = call.k.scales, .v_scales = call.v.scales};
      const AnyMask mask = Causal{};
      attention(clean, call.q, call.k.codes, call.v.codes, mask, Identity{}, options);
      call.k.scales(0, hidden, 0) = call.v.scales(0, hidden, 0) = kNaN;
      for (index_t t = 0; t < 20; ++t)
        call.k.codes(0, hidden, 0, t) = call.v.codes(0, hidden, 0, t) = bad;
      attention(out, call.q, call.k.codes, call.v.codes, mask, Identity{}, options);
      for (index_t i = 0; i < q_len; ++i)
        for (index_t h = 0; h < 3; ++h)
          for (index_t t = 0; t < 20; ++t) {
            const auto got = static_cast<float>(out(0, i, h, t));
            if (i == q_len - 1)
              ASSERT_TRUE(std::isnan(got));
            else
              ASSERT_EQ(got, static_cast<float>(clean(0, i, h, t))) << i;
          }
    }
}

TEST(QuantizedErrors, NameTheArgument) {
  using testing::HasSubstr;
  using testing::ThrowsMessage;
  using Options = AttentionOptions<Tensor<float, 4>>;
  Tensor<float, 4> q({2, 1, 4, 16}), out({2, 1, 4, 16}), same({2, 12, 2, 16});
  Tensor<std::int8_t, 4> k({2, 12, 2, 16}), v({2, 12, 2, 16});
  Tensor<float, 3> scales({2, 12, 2}), wrong({2, 11, 2});
  const auto refused = [&](Options options, const char* text) {
    EXPECT_THAT([&] { attention(out, q, k, v, Causal{}, Identity{}, options); },
                ThrowsMessage<ShapeError>(HasSubstr(text)));
  };
  refused({.k_scales = wrong, .v_scales = scales},
          "attention: k_scales is [2, 11, 2], expected [2, 12, 2] = [batch, kv_len, kv_heads]");
  refused({.k_scales = scales, .v_scales = wrong},
          "attention: v_scales is [2, 11, 2], expected [2, 12, 2]");
  Tensor<std::int32_t, 2> table({2, 1});
  const auto lengths = list({3, 3});
  refused(
      {.kv_lengths = lengths, .block_table = table, .k_scales = wrong},
      "attention: k_scales is [2, 11, 2], expected [2, 12, 2] = [blocks, block_size, kv_heads]");
  EXPECT_THAT(
      [&] { attention(out, q, same, same, Causal{}, Identity{}, Options{.v_scales = scales}); },
      ThrowsMessage<ValueError>(HasSubstr(
          "attention: v_scales is [2, 12, 2], expected none with a v of q's element type")));
  EXPECT_THAT(
      [&] {
        reference_attention(out, q, same, same, Causal{}, Identity{}, Options{.k_scales = scales});
      },
      ThrowsMessage<ValueError>(HasSubstr("k_scales is given, expected none")));
  const TensorView<const float, 3> inside(out.data(), {2, 12, 2});
  EXPECT_THAT([&] { attention(out, q, k, v, Causal{}, Identity{}, Options{.k_scales = inside}); },
              ThrowsMessage<ValueError>(HasSubstr("out overlaps k_scales")));
}

}  // namespace
}  // namespace rapt::test
