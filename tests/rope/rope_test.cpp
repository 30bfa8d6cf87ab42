// Numbers of the released models, and the laws that every rotation obeys. The oracle turns a pair
// as a complex number in double.
#include "rapt/rope/rope.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <complex>
#include <limits>
#include <vector>

#include "rapt/core/ops/matmul.hpp"
#include "rapt/core/ops/rope.hpp"
#include "rapt/core/random.hpp"
#include "rapt/rope/permute.hpp"
#include "rapt/rope/table.hpp"

namespace rapt {
namespace {

constexpr RopeLayout kLayouts[] = {RopeLayout::rotate_half, RopeLayout::interleaved,
                                   RopeLayout::interleaved_to_half};

void expect_relative(double got, double want, double error = 1e-6) {
  EXPECT_NEAR(got, want, error * std::abs(want));
}
double frequency(const RopeFrequencies& f, std::size_t k) { return f.inverse.at(k); }

/// One head of dimension head_dim, turned to position p.
std::vector<double> turn(const Rope& rope, std::vector<double> x, std::int32_t p,
                         bool inverse = false) {
  const auto dim = static_cast<index_t>(x.size());
  const RopeTable<double> table(rope, dim);
  Scratch<Cpu> scratch;
  const auto angles = table.angles(scratch, Cpu{}, index_t{p}, 1);
  TensorView<double, 4> view(x.data(), Shape{1, 1, 1, dim});
  rapt::rope(view, angles.cos, angles.sin, table.options(inverse));
  return x;
}

std::vector<double> random_head(index_t dim, std::uint64_t seed) {
  Philox random(seed);
  std::vector<double> x(static_cast<std::size_t>(dim));
  for (double& v : x) v = static_cast<double>(random.normal());
  return x;
}
double dot(const std::vector<double>& a, const std::vector<double>& b) {
  double sum = 0;
  for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

Rope llama31() {
  return {.theta = 500000.f, .kind = RopeKind::llama3, .factor = 8, .original_max_position = 8192};
}
Rope gpt_oss() {
  return {.theta = 150000.f,
          .kind = RopeKind::yarn,
          .factor = 32,
          .original_max_position = 4096,
          .truncate = false};
}
Rope deepseek_v3() {
  return {.theta = 10000.f,
          .kind = RopeKind::yarn,
          .factor = 40,
          .original_max_position = 4096,
          .mscale = 1,
          .mscale_all_dim = 1};
}

/// One valid setting of every kind, for heads of 16.
std::vector<Rope> one_of_each_kind() {
  Rope longrope{.kind = RopeKind::longrope, .original_max_position = 64, .max_position = 256};
  longrope.short_factor.assign(8, 1.5f);
  longrope.long_factor = {1, 2, 3, 4, 5, 6, 7, 8};
  return {{.theta = 100.f},
          {.kind = RopeKind::linear, .factor = 4},
          {.kind = RopeKind::dynamic, .factor = 2, .max_position = 32},
          {.kind = RopeKind::yarn, .factor = 4, .original_max_position = 32},
          {.kind = RopeKind::llama3, .factor = 8, .original_max_position = 128},
          longrope,
          {.kind = RopeKind::proportional, .partial_factor = 0.5}};
}

// ---- published numbers ----

TEST(RopeNumbers, TurnsASmallHead) {
  const auto expect = [](const Rope& rope, std::int32_t p, std::vector<double> want) {
    const auto got = turn(rope, {1, 2, 3, 4}, p);
    for (std::size_t i = 0; i < 4; ++i) EXPECT_NEAR(got[i], want[i], 1e-6) << p << " " << i;
  };
  expect({}, 0, {1, 2, 3, 4});
  expect({}, 1, {-1.984111, 1.959901, 2.462378, 4.019800});
  expect({}, 3, {-1.413353, 1.879118, -2.828857, 4.058191});
  const Rope interleaved{.layout = RopeLayout::interleaved};
  expect(interleaved, 1, {-1.142640, 1.922076, 2.959851, 4.029800});
  expect(interleaved, 3, {-1.272233, -1.838865, 2.878668, 4.088187});
  const Rope to_half{.layout = RopeLayout::interleaved_to_half};
  expect(to_half, 1, {-1.142640, 2.959851, 1.922076, 4.029800});
}

TEST(RopeNumbers, Llama31) {
  const auto scaled = rope_frequencies(llama31(), 128);
  const auto plain = rope_frequencies({.theta = 500000.f}, 128);
  const auto ratio = [&](std::size_t k) { return frequency(scaled, k) / frequency(plain, k); };
  for (std::size_t k = 0; k <= 28; ++k) EXPECT_DOUBLE_EQ(ratio(k), 1) << k;
  expect_relative(ratio(29), 0.8281684);
  expect_relative(ratio(30), 0.6437431);
  expect_relative(ratio(32), 0.3711223);
  expect_relative(ratio(34), 0.1902107);
  for (std::size_t k = 35; k < 64; ++k) EXPECT_DOUBLE_EQ(ratio(k), 0.125) << k;
  expect_relative(frequency(scaled, 16), 0.03760603);
  expect_relative(frequency(scaled, 29), 0.002166571);
  expect_relative(frequency(scaled, 63), 3.068926e-07);
  EXPECT_EQ(scaled.attention_factor, 1);
}

TEST(RopeNumbers, GptOss) {
  const auto f = rope_frequencies(gpt_oss(), 64);
  const auto plain = rope_frequencies({.theta = 150000.f}, 64);
  expect_relative(frequency(f, 8), 0.05081327);
  EXPECT_DOUBLE_EQ(frequency(f, 8), frequency(plain, 8));
  expect_relative(frequency(f, 9), 0.03170570);
  expect_relative(frequency(f, 9) / frequency(plain, 9), 0.9055511);
  expect_relative(frequency(f, 12), 0.006794959);
  expect_relative(frequency(f, 16), 4.564839e-04);
  expect_relative(frequency(f, 18), 3.830881e-05);
  expect_relative(frequency(f, 31), 3.023511e-07);
  expect_relative(f.attention_factor, 1.3465736, 1e-7);
}

TEST(RopeNumbers, DeepSeek) {
  const auto f = rope_frequencies(deepseek_v3(), 64);
  expect_relative(frequency(f, 10), 0.05623413);
  expect_relative(frequency(f, 11), 0.03900693);
  expect_relative(frequency(f, 16), 0.0055);
  expect_relative(frequency(f, 22), 1.778279e-04);
  expect_relative(frequency(f, 23), 3.333804e-05);
  expect_relative(frequency(f, 31), 3.333804e-06);
  EXPECT_EQ(f.attention_factor, 1);
  expect_relative(yarn_mscale(40), 1.368888);
  expect_relative(std::pow(yarn_mscale(40), 2) / std::sqrt(192), 0.1352338);

  const auto v4 = rope_frequencies({.theta = 160000.f,
                                    .kind = RopeKind::yarn,
                                    .factor = 16,
                                    .original_max_position = 65536,
                                    .attention_factor = 1},
                                   64);
  expect_relative(frequency(v4, 16), 2.265625e-03);
  expect_relative(frequency(v4, 24), 1.953125e-05);
  expect_relative(frequency(v4, 31), 5.680529e-07);
  EXPECT_EQ(v4.attention_factor, 1);
}

TEST(RopeNumbers, DynamicAndLongRope) {
  const auto dynamic = rope_frequencies(
      {.kind = RopeKind::dynamic, .factor = 2, .max_position = 4096}, 128, /*seq_len=*/8192);
  expect_relative(std::pow(frequency(dynamic, 1), -64), 30527.737, 1e-6);
  expect_relative(frequency(dynamic, 1), 0.8509943);
  expect_relative(frequency(dynamic, 63), 3.849273e-05);

  Rope phi3{.kind = RopeKind::longrope, .original_max_position = 4096, .max_position = 131072};
  phi3.short_factor.assign(48, 1.25f);
  phi3.long_factor.assign(48, 2.5f);
  const auto plain = rope_frequencies({}, 96);
  for (const index_t length : {1, 4096, 4097}) {
    const auto f = rope_frequencies(phi3, 96, length);
    expect_relative(f.attention_factor, 1.190238);
    for (std::size_t k = 0; k < 48; ++k)
      expect_relative(frequency(f, k), frequency(plain, k) / (length > 4096 ? 2.5 : 1.25), 1e-12);
  }
}

TEST(RopeNumbers, ProportionalTurnsTheFirstPairsOnly) {
  const auto f = rope_frequencies({.kind = RopeKind::proportional, .partial_factor = 0.25}, 64);
  const auto plain = rope_frequencies({}, 64);
  ASSERT_EQ(f.inverse.size(), 32u);
  for (std::size_t k = 0; k < 32; ++k) EXPECT_EQ(frequency(f, k), k < 8 ? frequency(plain, k) : 0);
}

// ---- laws ----

TEST(RopeLaws, ScalingsThatScaleByOneAreTheDefault) {
  Rope ones{.kind = RopeKind::longrope, .original_max_position = 64, .max_position = 64};
  ones.short_factor.assign(16, 1);
  ones.long_factor.assign(16, 1);
  const auto plain = rope_frequencies({}, 32);
  const std::vector<Rope> settings = {
      {.kind = RopeKind::linear, .factor = 1},
      {.kind = RopeKind::yarn, .factor = 1, .original_max_position = 64},
      {.kind = RopeKind::yarn, .original_max_position = 64, .max_position = 64},
      {.kind = RopeKind::llama3, .factor = 1, .original_max_position = 64},
      {.kind = RopeKind::dynamic, .factor = 4, .max_position = 64},
      {.kind = RopeKind::proportional},
      ones};
  for (const Rope& rope : settings) {
    const auto f = rope_frequencies(rope, 32, /*seq_len=*/64);
    SCOPED_TRACE(static_cast<int>(rope.kind));
    EXPECT_EQ(f.attention_factor, 1);
    for (std::size_t k = 0; k < 16; ++k)
      expect_relative(frequency(f, k), frequency(plain, k), 1e-14);
  }
}

TEST(RopeLaws, PairsKeepTheirLengthTimesTheAttentionFactor) {
  const auto x = random_head(64, 1);
  for (const Rope& rope : {Rope{}, gpt_oss()}) {
    const double a = rope_attention_factor(rope);
    const auto y = turn(rope, x, 1234567);
    for (std::size_t k = 0; k < 32; ++k)
      EXPECT_NEAR(std::hypot(y[k], y[k + 32]), a * std::hypot(x[k], x[k + 32]), 1e-12);
  }
}

TEST(RopeLaws, ScoresDependOnTheDistanceOnly) {
  const auto q = random_head(16, 2), k = random_head(16, 3);
  for (Rope rope : one_of_each_kind())
    for (const RopeLayout layout : kLayouts) {
      rope.layout = layout;
      const double want = dot(turn(rope, q, 7), turn(rope, k, 2));
      EXPECT_NEAR(dot(turn(rope, q, 10005), turn(rope, k, 10000)), want, 1e-9);
      EXPECT_NEAR(dot(turn(rope, q, 5), turn(rope, k, 0)), want, 1e-9);
    }
}

TEST(RopeLaws, TurningBackIsTheIdentity) {
  const auto x = random_head(16, 4);
  for (Rope rope : one_of_each_kind())
    for (const RopeLayout layout : kLayouts)
      for (const double partial : {1.0, 0.5}) {
        rope.layout = layout;
        if (rope.kind == RopeKind::longrope && partial != 1) continue;  // lists fit one rotary_dim
        rope.partial_factor = partial;
        rope.attention_factor = 1;
        const auto back = turn(rope, turn(rope, x, 77), 77, /*inverse=*/true);
        for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(back[i], x[i], 1e-12);
        if (layout == RopeLayout::interleaved_to_half) continue;  // its way back changes the layout
        const auto negative = turn(rope, turn(rope, x, 77), -77);
        for (std::size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(negative[i], x[i], 1e-12);
      }
}

TEST(RopeLaws, InverseIsTheTransposeWithTheAttentionFactor) {
  // <dy, R x> = <R^T dy, x> for every x and dy: the gradient.
  const auto x = random_head(64, 5), dy = random_head(64, 6);
  for (Rope rope : {Rope{}, gpt_oss()})
    for (const RopeLayout layout : kLayouts) {
      rope.layout = layout;
      EXPECT_NEAR(dot(dy, turn(rope, x, 9)), dot(turn(rope, dy, 9, true), x), 1e-10);
    }
}

TEST(RopeLaws, PartialRotationLeavesTheOtherChannelsAlone) {
  const auto x = random_head(32, 7);
  for (const RopeLayout layout : kLayouts) {
    const auto leading = turn({.rotary_dim = 8, .layout = layout}, x, 5);
    const auto trailing =
        turn({.rotary_dim = 8, .layout = layout, .slice = RopeSlice::trailing}, x, 5);
    const auto alone = turn({.layout = layout}, {x.begin(), x.begin() + 8}, 5);
    const auto alone_at_the_end = turn({.layout = layout}, {x.end() - 8, x.end()}, 5);
    for (std::size_t i = 0; i < 32; ++i) {
      EXPECT_EQ(leading[i], i < 8 ? alone[i] : x[i]) << i;
      EXPECT_EQ(trailing[i], i >= 24 ? alone_at_the_end[i - 24] : x[i]) << i;
    }
  }
  EXPECT_EQ(turn({.partial_factor = 0}, x, 5), x);  // no rotation at all
}

TEST(RopeLaws, InterleavedRowsAndRotationGiveTheScoresOfHalves) {
  constexpr index_t kHeads = 3, kDim = 8, kWidth = 5;
  Philox random(8);
  Tensor<double, 2> wq({kHeads * kDim, kWidth}), wk = wq, pq = wq, pk = wq, back = wq,
                                                 x({4, kWidth});
  fill_normal(wq, random);
  fill_normal(wk, random);
  fill_normal(x, random);
  to_interleaved_rows(pq, wq, kDim);
  to_interleaved_rows(pk, wk, kDim);
  to_half_split_rows(back, pq, kDim);
  EXPECT_EQ(std::memcmp(back.data(), wq.data(), wq.bytes()), 0);
  for (index_t h = 0; h < kHeads; ++h)  // the definition of the GGUF converter
    for (index_t i = 0; i < kDim / 2; ++i)
      for (const index_t half : {0, 1})
        EXPECT_EQ(pq(h * kDim + 2 * i + half, 0), wq(h * kDim + half * kDim / 2 + i, 0));

  const auto project = [&](const Tensor<double, 2>& w, RopeLayout layout) {
    Tensor<double, 4> out({1, 4, kHeads, kDim});
    matmul(out.reshape(Shape{4, kHeads * kDim}), x, w.transpose());
    const RopeTable<double> table({.layout = layout}, kDim);
    Scratch<Cpu> scratch;
    const auto angles = table.angles(scratch, Cpu{}, 3, 4);
    rapt::rope(out, angles.cos, angles.sin, table.options());
    return out;
  };
  const auto q = project(wq, RopeLayout::rotate_half), k = project(wk, RopeLayout::rotate_half);
  for (const RopeLayout layout : {RopeLayout::interleaved, RopeLayout::interleaved_to_half}) {
    const auto q2 = project(pq, layout), k2 = project(pk, layout);
    for (index_t i = 0; i < 4; ++i)
      for (index_t j = 0; j < 4; ++j)
        for (index_t h = 0; h < kHeads; ++h) {
          double want = 0, got = 0;
          for (index_t c = 0; c < kDim; ++c) {
            want += q(0, i, h, c) * k(0, j, h, c);
            got += q2(0, i, h, c) * k2(0, j, h, c);
          }
          EXPECT_NEAR(got, want, 1e-10);
        }
  }
}

// ---- the operation ----

template <class T>
struct RopeOperation : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(RopeOperation, Elements);

TYPED_TEST(RopeOperation, MatchesComplexNumbersOnStridedViews) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  const double error = std::is_same_v<T, double>  ? 1e-13
                       : std::is_same_v<T, float> ? 2e-6
                       : std::is_same_v<T, half>  ? 0x1p-9
                                                  : 0x1p-6;
  for (const index_t dim : {2, 10, 34, 64})
    for (const index_t turning : {index_t{2}, dim / 2 / 2 * 2, dim}) {
      if (turning == 0) continue;
      for (const RopeLayout layout : kLayouts)
        for (const bool trailing : {false, true})
          for (const bool shared : {false, true}) {
            constexpr index_t kBatch = 2, kSeq = 5, kHeads = 3;
            Philox random(9);
            Tensor<T, 3> fused({kBatch, kSeq, 7 + kHeads * dim});  // heads inside a wider row
            fill_normal(fused, random);
            const auto x =
                fused.slice(2, 4, 4 + kHeads * dim).reshape(Shape{kBatch, kSeq, kHeads, dim});
            const Tensor<T, 4> before = clone(x);
            Tensor<A, 3> cos({shared ? 1 : kBatch, kSeq, turning / 2}), sin(cos.shape());
            fill_normal(cos, random);
            fill_normal(sin, random);
            const RopeOptions options{.layout = layout, .offset = trailing ? dim - turning : 0};
            Tensor<T, 4> out(before.shape());
            rapt::rope(out, x, cos, sin, options);
            rapt::rope(x, cos, sin, options);
            for (index_t b = 0; b < kBatch; ++b)
              for (index_t s = 0; s < kSeq; ++s)
                for (index_t h = 0; h < kHeads; ++h) {
                  std::vector<double> want(static_cast<std::size_t>(dim));
                  const auto at = [&](index_t c) -> double& {
                    return want[static_cast<std::size_t>(c)];
                  };
                  for (index_t c = 0; c < dim; ++c) at(c) = double(before(b, s, h, c));
                  for (index_t k = 0; k < turning / 2; ++k) {
                    const bool half_in = layout == RopeLayout::rotate_half;
                    const bool half_out = layout != RopeLayout::interleaved;
                    const index_t o = options.offset, m = turning / 2;
                    const std::complex<double> z(
                        double(before(b, s, h, o + (half_in ? k : 2 * k))),
                        double(before(b, s, h, o + (half_in ? k + m : 2 * k + 1))));
                    const index_t row = shared ? 0 : b;
                    const auto turned =
                        z * std::complex<double>(double(cos(row, s, k)), double(sin(row, s, k)));
                    at(o + (half_out ? k : 2 * k)) = turned.real();
                    at(o + (half_out ? k + m : 2 * k + 1)) = turned.imag();
                  }
                  for (index_t c = 0; c < dim; ++c) {
                    ASSERT_NEAR(double(out(b, s, h, c)), at(c), error * (1 + std::abs(at(c))));
                    ASSERT_EQ(double(x(b, s, h, c)), double(out(b, s, h, c)));  // in place: alike
                  }
                }
          }
    }
}

/// <dy, R x> = <R^T dy, x>, whatever cos and sin are: `inverse` is the gradient in every layout,
/// for partial rotation on either side, on strided heads and in place.
TYPED_TEST(RopeOperation, InverseIsTheAdjoint) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  constexpr index_t kBatch = 2, kSeq = 3, kHeads = 2;
  const double error = std::is_same_v<T, double>  ? 1e-14
                       : std::is_same_v<T, float> ? 1e-6
                       : std::is_same_v<T, half>  ? 0x1p-11
                                                  : 0x1p-8;
  Philox random(12);
  for (const RopeLayout layout : kLayouts)
    for (const auto& [dim, turning] : {std::pair<index_t, index_t>{34, 34}, {34, 10}, {64, 48}})
      for (const bool trailing : {false, true})
        for (const bool shared : {false, true}) {
          SCOPED_TRACE(testing::Message() << "layout " << int(layout) << " dim " << dim
                                          << " turning " << turning << " trailing " << trailing);
          Tensor<T, 3> fused({kBatch, kSeq, 5 + kHeads * dim});
          fill_normal(fused, random);
          const Shape heads{kBatch, kSeq, kHeads, dim};
          const auto x = fused.slice(2, 3, 3 + kHeads * dim).reshape(heads);
          Tensor<T, 4> dy(heads), y(heads), dx(heads);
          fill_normal(dy, random);
          Tensor<A, 3> cos({shared ? 1 : kBatch, kSeq, turning / 2}), sin(cos.shape());
          fill_normal(cos, random);
          fill_normal(sin, random);
          RopeOptions options{.layout = layout, .offset = trailing ? dim - turning : 0};
          rapt::rope(y, x, cos, sin, options);
          options.inverse = true;
          rapt::rope(dx, dy, cos, sin, options);
          double through_y = 0, through_x = 0, size = 1;
          for (index_t b = 0; b < kBatch; ++b)
            for (index_t s = 0; s < kSeq; ++s)
              for (index_t h = 0; h < kHeads; ++h)
                for (index_t c = 0; c < dim; ++c) {
                  const double term = double(dy(b, s, h, c)) * double(y(b, s, h, c));
                  through_y += term;
                  through_x += double(dx(b, s, h, c)) * double(x(b, s, h, c));
                  size += std::abs(term);
                }
          EXPECT_NEAR(through_x, through_y, error * size);
          rapt::rope(dy, cos, sin, options);
          EXPECT_EQ(std::memcmp(dy.data(), dx.data(), dx.bytes()), 0) << "in place";
        }
}

TYPED_TEST(RopeOperation, DoesNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  Philox random(10);
  Tensor<T, 4> x({2, 100, 4, 64}), want(x.shape()), got(x.shape());
  fill_normal(x, random);
  const RopeTable<accumulate_t<T>> table({}, 64);
  const int before = num_threads();
  for (const int threads : {1, 2, 3, 7}) {
    set_num_threads(threads);
    Scratch<Cpu> scratch;
    const auto angles = table.angles(scratch, Cpu{}, 0, 100);
    rapt::rope(threads == 1 ? want : got, x, angles.cos, angles.sin, table.options());
    if (threads > 1) {
      EXPECT_EQ(std::memcmp(got.data(), want.data(), want.bytes()), 0) << threads;
    }
  }
  set_num_threads(before);
}

// ---- the table ----

TEST(RopeTable, LooksUpWhatItWouldCompute) {
  const Rope rope = gpt_oss();
  RopeTable<float> grown(rope, 64);
  const RopeTable<float> fresh(rope, 64);
  Tensor<std::int32_t, 2> positions({2, 4});
  const std::int32_t where[] = {0, 6, 7, 8, -3, 1, 1000000, 2};
  for (index_t i = 0; i < 8; ++i) positions(i / 4, i % 4) = where[i];
  for (const index_t rows : {0, 1, 7, 8, 9, 300}) {
    grown.reserve(rows);
    EXPECT_GE(grown.reserved(), rows);
    Scratch<Cpu> scratch;
    const auto a = grown.angles(scratch, Cpu{}, positions),
               b = fresh.angles(scratch, Cpu{}, positions);
    const auto c = grown.angles(scratch, Cpu{}, 5, 6), d = fresh.angles(scratch, Cpu{}, 5, 6);
    EXPECT_EQ(std::memcmp(a.cos.data(), b.cos.data(), 2 * 4 * 32 * sizeof(float)), 0);
    EXPECT_EQ(std::memcmp(a.sin.data(), b.sin.data(), 2 * 4 * 32 * sizeof(float)), 0);
    EXPECT_EQ(std::memcmp(c.cos.data(), d.cos.data(), 6 * 32 * sizeof(float)), 0);
    for (index_t i = 0; i < 8; ++i)
      for (index_t k = 0; k < 32; ++k)
        EXPECT_FLOAT_EQ(
            a.cos(i / 4, i % 4, k),
            static_cast<float>(
                fresh.attention_factor() *
                std::cos(where[i] * rope_frequencies(rope, 64).inverse[std::size_t(k)])));
  }
}

TEST(RopeTable, LongSequencesTakeTheirOwnFrequencies) {
  Rope rope{.kind = RopeKind::longrope, .original_max_position = 16, .max_position = 64};
  rope.short_factor.assign(4, 1);
  rope.long_factor.assign(4, 4);
  RopeTable<double> table(rope, 8);
  table.reserve(32);
  Scratch<Cpu> scratch;
  const auto first = table.angles(scratch, Cpu{}, 3, 1),
             short_one = table.angles(scratch, Cpu{}, 3, 1, 16),
             long_one = table.angles(scratch, Cpu{}, 3, 1, 17);
  for (index_t k = 0; k < 4; ++k) {
    EXPECT_EQ(first.cos(0, 0, k), short_one.cos(0, 0, k));
    EXPECT_NEAR(long_one.sin(0, 0, k),
                table.attention_factor() * std::sin(3 * std::pow(10000., -double(k) / 4) / 4),
                1e-15);
  }
}

// ---- refusals ----

TEST(RopeErrors, NameTheSetting) {
  const auto expect_value = [](const Rope& rope, const char* message) {
    EXPECT_THAT([&] { rope_frequencies(rope, 64); }, testing::ThrowsMessage<ValueError>(message));
  };
  const auto expect_shape = [](const Rope& rope, index_t head_dim, const char* message) {
    EXPECT_THAT([&] { rope_frequencies(rope, head_dim); },
                testing::ThrowsMessage<ShapeError>(message));
  };
  expect_shape({}, 0, "rope: head_dim is 0, expected at least 1");
  expect_shape({}, 7, "rope: rotary_dim is 7 of head_dim 7, expected an even number");
  expect_shape({.rotary_dim = 128}, 64,
               "rope: rotary_dim is 128, expected 0 (all) to 64 = head_dim");
  expect_shape({.partial_factor = 0.3}, 10,
               "rope: rotary_dim is 3 of head_dim 10, expected an even number");
  expect_value({.partial_factor = 1.5}, "rope: partial_factor is 1.5, expected 0 to 1");
  expect_value({.theta = 0}, "rope: theta is 0, expected a finite number above 0 for the base");
  expect_value({.theta = std::numeric_limits<double>::quiet_NaN()},
               "rope: theta is nan, expected a finite number above 0 for the base");
  expect_value({.kind = RopeKind::linear},
               "rope: factor is 0, expected a finite number above 0 for linear");
  expect_value({.kind = RopeKind::dynamic, .factor = 0.5, .max_position = 8},
               "rope: factor is 0.5, expected a finite number of at least 1 for dynamic");
  expect_value({.kind = RopeKind::dynamic, .factor = 2},
               "rope: max_position is 0, expected at least 1 for dynamic");
  expect_value({.kind = RopeKind::dynamic, .factor = 2, .max_position = 8, .rotary_dim = 2},
               "rope: rotary_dim is 2, expected at least 4 for dynamic");
  expect_value({.kind = RopeKind::yarn, .factor = 2},
               "rope: original_max_position is 0, expected at least 1 for yarn");
  expect_value({.kind = RopeKind::yarn, .factor = 2, .original_max_position = 8, .beta_fast = 0.5},
               "rope: beta_fast is 0.5, expected at least 1 = beta_slow");
  expect_value({.kind = RopeKind::llama3,
                .factor = 8,
                .low_freq_factor = 4,
                .high_freq_factor = 4,
                .original_max_position = 8192},
               "rope: high_freq_factor is 4, expected more than 4 = low_freq_factor");
  expect_value({.kind = RopeKind::llama3, .factor = 8},
               "rope: original_max_position is 0, expected at least 1 for llama3");
  expect_value({.attention_factor = -1.0},
               "rope: attention_factor is -1, expected a finite number above 0 for cos and sin");
  expect_value({.kind = static_cast<RopeKind>(77)},
               "rope: kind is 77, expected one of RopeKind's names");
  Rope longrope{.kind = RopeKind::longrope, .original_max_position = 64, .max_position = 256};
  longrope.short_factor.assign(31, 1);
  expect_shape(longrope, 64, "rope: short_factor is [31], expected [32] = [rotary_dim / 2]");
  longrope.short_factor.assign(32, 1);
  longrope.long_factor.assign(32, -1);
  expect_value(longrope, "rope: long_factor is -1, expected a finite number above 0 for longrope");
}

TEST(RopeErrors, NameTheArgumentOfTheOperation) {
  Tensor<float, 4> x({2, 3, 1, 8}), other({2, 3, 1, 6});
  Tensor<float, 3> cos({1, 3, 4}), four({1, 4, 4}), wide({1, 3, 5});
  EXPECT_THAT([&] { rapt::rope(other, x, cos, cos); },
              testing::ThrowsMessage<ShapeError>(
                  "rope: out is [2, 3, 1, 6], expected [2, 3, 1, 8] = the shape of x"));
  EXPECT_THAT([&] { rapt::rope(x, four, four); },
              testing::ThrowsMessage<ShapeError>("rope: cos is [1, 4, 4], expected [1, 3, 4] = "
                                                 "[batch or 1, seq, rotary_dim / 2]"));
  EXPECT_THAT([&] { rapt::rope(x, cos, wide); },
              testing::ThrowsMessage<ShapeError>(
                  "rope: sin is [1, 3, 5], expected [1, 3, 4] = the shape of cos"));
  EXPECT_THAT([&] { rapt::rope(x, wide, wide); }, testing::Throws<ShapeError>());
  EXPECT_THAT([&] { rapt::rope(x, cos, cos, {.offset = 1}); },
              testing::ThrowsMessage<ShapeError>(
                  "rope: offset is 1, expected 0 to 0 = head_dim - rotary_dim of 8 - 8"));
  Tensor<double, 2> w({6, 2}), out({6, 2});
  EXPECT_THAT([&] { to_half_split_rows(out, w, 4); },
              testing::ThrowsMessage<ShapeError>(
                  "to_half_split_rows: w has 6 rows, expected a multiple of 4 = head_dim"));
  EXPECT_THAT([&] { to_half_split_rows(out, w, 3); },
              testing::ThrowsMessage<ShapeError>(
                  "to_half_split_rows: head_dim is 3, expected an even number of at least 2"));
}

}  // namespace
}  // namespace rapt
