// The law of caches for every module: prefill and decode, in any split, equal the uncached forward
// pass; and the laws between modules: GQA with as many heads is MHA, one head is MQA, a window as
// wide as the text is causal attention, the stack of heads is the fused form.
#include "rapt/modules/attention.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rapt/modules/teaching.hpp"

namespace rapt::test {
namespace {

constexpr index_t kBatch = 2, kSeq = 19, kWidth = 24;

Tensor<float, 3> tokens(index_t seq = kSeq) {
  Philox random(11);
  Tensor<float, 3> x(Shape{kBatch, seq, kWidth});
  fill_normal(x, random);
  return x;
}

double distance(const Tensor<float, 3>& a, const Tensor<float, 3>& b) {
  EXPECT_EQ(a.shape(), b.shape());
  double worst = 0;
  for (index_t i = 0; i < a.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(a.data()[i]) - b.data()[i]));
  return worst;
}

/// Feeds x to the cache in the given pieces and compares with one uncached call.
template <class M, class C>
void expect_law(const M& module, C cache, const std::vector<index_t>& pieces) {
  const auto x = tokens();
  const auto whole = module.forward(x);
  auto joined = Tensor<float, 3>(whole.shape());
  index_t begin = 0;
  for (const index_t n : pieces) {
    copy(joined.slice(1, begin, begin + n), module.forward(x.slice(1, begin, begin + n), cache));
    begin += n;
    EXPECT_EQ(cache.length(), begin);
  }
  ASSERT_EQ(begin, kSeq);
  EXPECT_LT(distance(joined, whole), 5e-6);
}

const std::vector<std::vector<index_t>> kSplits = {
    {19}, {1, 18}, {18, 1}, {7, 1, 1, 1, 9}, {4, 5, 10}, std::vector<index_t>(19, 1)};

/// Every option that a module has, one after the other.
std::vector<AttentionConfig> configs() {
  const AttentionConfig plain = {.d_model = kWidth, .heads = 4, .kv_heads = 2, .rope = Rope{}};
  std::vector<AttentionConfig> out = {plain};
  const auto with = [&](auto change) {
    out.push_back(plain);
    change(out.back());
  };
  with([](auto& c) { c.rope.reset(); });
  with([](auto& c) { c.qkv_bias = c.out_bias = true; });
  with([](auto& c) {
    c.qk_norm = QkNorm::head;
    c.norm_plus_one = true;
  });
  with([](auto& c) { c.qk_norm = QkNorm::flat; });
  with([](auto& c) { c.softcap = 2; });
  with([](auto& c) { c.sinks = true; });
  with([](auto& c) { c.output_gate = true; });
  with([](auto& c) {
    c.head_dim = 10;
    c.value_dim = 7;
    c.scale = 0.3;
  });
  with([](auto& c) { c.out_projection = false; });
  with([](auto& c) { c.rope = Rope{.layout = RopeLayout::interleaved_to_half}; });
  return out;
}

template <class M>
void randomize(M& module) {
  Philox random(5);
  for (auto& p : module.parameters()) fill_normal(p.values, random, 0.3);
}

TEST(AttentionModule, CachedEqualsUncachedForEverySplitAndOption) {
  for (const AttentionConfig& config : configs()) {
    GroupedQueryAttention<float> module(config);
    randomize(module);
    for (const auto& split : kSplits) expect_law(module, module.make_cache(kBatch, kSeq), split);
  }
}

TEST(AttentionModule, SlidingWindowEqualsUncachedInRingsAndFullCaches) {
  for (AttentionConfig config : configs())
    for (const index_t window : {1, 4, 30})
      for (const index_t sinks : {0, 3}) {
        config.window = window;
        config.sink_tokens = sinks;
        SlidingWindowAttention<float> module(config);
        randomize(module);
        for (const auto& split : kSplits) {
          expect_law(module, module.make_cache(kBatch), split);
          expect_law(module, module.make_full_cache(kBatch, kSeq), split);
        }
      }
}

TEST(AttentionModule, StreamingPositionsHoldTheLawToo) {
  SlidingWindowAttention<float> module({.d_model = kWidth,
                                        .heads = 4,
                                        .kv_heads = 2,
                                        .window = 4,
                                        .sink_tokens = 2,
                                        .sink_positions = SinkPositions::in_cache,
                                        .rope = Rope{}});
  randomize(module);
  for (const auto& split : kSplits) expect_law(module, module.make_cache(kBatch), split);
}

TEST(AttentionModule, StackAndSingleHeadHoldTheLaw) {
  MultiHeadAttentionStack<float> stack({.d_in = kWidth, .heads = 4, .qkv_bias = true});
  randomize(stack);
  CausalAttention<float> head({.d_in = kWidth, .d_out = 5});
  randomize(head);
  for (const auto& split : kSplits) {
    expect_law(stack, stack.make_cache(kBatch, kSeq), split);
    expect_law(head, head.make_cache(kBatch, kSeq), split);
  }
}

TEST(AttentionModule, GqaWithAllHeadsIsMhaAndWithOneIsMqa) {
  MultiHeadAttention<float> mha({.d_model = kWidth, .heads = 4, .rope = Rope{}});
  GroupedQueryAttention<float> all({.d_model = kWidth, .heads = 4, .kv_heads = 4, .rope = Rope{}});
  MultiQueryAttention<float> mqa({.d_model = kWidth, .heads = 4, .rope = Rope{}});
  GroupedQueryAttention<float> one({.d_model = kWidth, .heads = 4, .kv_heads = 1, .rope = Rope{}});
  for (auto* module : {static_cast<Attention<float>*>(&mha), static_cast<Attention<float>*>(&all),
                       static_cast<Attention<float>*>(&mqa), static_cast<Attention<float>*>(&one)})
    randomize(*module);
  const auto x = tokens();
  EXPECT_EQ(distance(mha.forward(x), all.forward(x)), 0);
  EXPECT_EQ(distance(mqa.forward(x), one.forward(x)), 0);
}

TEST(AttentionModule, GqaIsMhaWithRepeatedKeyValueWeights) {
  GroupedQueryAttention<float> gqa({.d_model = kWidth, .heads = 4, .kv_heads = 2, .rope = Rope{}});
  MultiHeadAttention<float> mha({.d_model = kWidth, .heads = 4, .rope = Rope{}});
  randomize(gqa);
  auto from = gqa.parameters(), into = mha.parameters();
  ASSERT_EQ(from.size(), into.size());
  for (std::size_t i = 0; i < from.size(); ++i) {
    const auto& source = from[i].values;
    const auto& target = into[i].values;
    if (source.size() == target.size()) {
      copy(target, source);
      continue;
    }
    const index_t head = 6 * kWidth;  // rows of one head
    for (index_t h = 0; h < 4; ++h)
      copy(target.slice(0, h * head, (h + 1) * head),
           source.slice(0, h / 2 * head, (h / 2 + 1) * head));
  }
  const auto x = tokens();
  EXPECT_LT(distance(gqa.forward(x), mha.forward(x)), 5e-6);
}

TEST(AttentionModule, WindowAsWideAsTheTextIsCausal) {
  AttentionConfig config = {.d_model = kWidth, .heads = 4, .kv_heads = 2, .rope = Rope{}};
  GroupedQueryAttention<float> causal(config);
  config.window = kSeq;
  SlidingWindowAttention<float> windowed(config);
  randomize(causal);
  randomize(windowed);
  const auto x = tokens();
  EXPECT_LT(distance(causal.forward(x), windowed.forward(x)), 1e-6);
}

TEST(AttentionModule, StackOfHeadsIsTheFusedForm) {
  MultiHeadAttentionStack<float> stack({.d_in = kWidth, .heads = 4});
  randomize(stack);
  MultiHeadAttention<float> fused({.d_model = kWidth, .heads = 4, .out_projection = false});
  auto heads = stack.parameters(), whole = fused.parameters();  // 4 x (q, k, v); q, k, v
  const index_t rows = 6 * kWidth;
  for (std::size_t h = 0; h < 4; ++h)
    for (std::size_t part = 0; part < 3; ++part) {
      const auto at = static_cast<index_t>(h) * rows;
      copy(whole[part].values.slice(0, at, at + rows), heads[3 * h + part].values);
    }
  const auto x = tokens();
  EXPECT_LT(distance(stack.forward(x), fused.forward(x)), 5e-6);
}

TEST(AttentionModule, LeftPaddingChangesNothingForTheTokens) {
  GroupedQueryAttention<float> module(
      {.d_model = kWidth, .heads = 4, .kv_heads = 2, .rope = Rope{}});
  randomize(module);
  const auto x = tokens();
  const index_t pad = 5;
  Tensor<float, 3> padded(Shape{kBatch, kSeq + pad, kWidth});
  Philox random(3);
  fill_normal(padded, random, 100.0);  // what padding holds must not matter
  copy(padded.slice(1, pad, pad + kSeq), x);
  Tensor<std::int32_t, 2> positions(Shape{kBatch, kSeq + pad}), mask(Shape{kBatch, kSeq + pad});
  for (index_t b = 0; b < kBatch; ++b)
    for (index_t i = pad; i < kSeq + pad; ++i) {
      positions(b, i) = static_cast<std::int32_t>(i - pad);
      mask(b, i) = 1;
    }
  const auto want = module.forward(x);
  const auto got = module.forward(padded, {.positions = positions, .key_mask = mask});
  EXPECT_LT(distance(clone(got.slice(1, pad, pad + kSeq)), want), 5e-6);

  auto cache = module.make_cache(kBatch, kSeq + pad);
  const index_t half = pad + 6;
  const auto part = [&](const auto& t, index_t begin, index_t end) {
    return t.slice(1, begin, end);
  };
  module.forward(part(padded, 0, half), cache,
                 {.positions = part(positions, 0, half), .key_mask = part(mask, 0, half)});
  const auto rest = module.forward(part(padded, half, kSeq + pad), cache,
                                   {.positions = part(positions, half, kSeq + pad)});
  EXPECT_LT(distance(rest, clone(want.slice(1, half - pad, kSeq))), 5e-6);
}

TEST(AttentionModule, ProbabilitiesSumToOneOverWhatIsSeen) {
  GroupedQueryAttention<float> module({.d_model = kWidth, .heads = 4, .kv_heads = 2});
  randomize(module);
  Tensor<float, 4> p(Shape{kBatch, 4, kSeq, kSeq});
  module.forward(tokens(), {.probabilities = p});
  for (index_t i = 0; i < kSeq; ++i) {
    double sum = 0;
    for (index_t j = 0; j < kSeq; ++j) {
      if (j > i) {
        EXPECT_EQ(p(1, 3, i, j), 0.f);
      }
      sum += static_cast<double>(p(1, 3, i, j));
    }
    EXPECT_NEAR(sum, 1, 1e-5);
  }
}

TEST(AttentionModule, SixteenBitElementsFollowTheFloatResult) {
  GroupedQueryAttention<float> module(
      {.d_model = kWidth, .heads = 4, .kv_heads = 2, .rope = Rope{}});
  GroupedQueryAttention<bfloat16> narrow(
      {.d_model = kWidth, .heads = 4, .kv_heads = 2, .rope = Rope{}});
  randomize(module);
  auto from = module.parameters();
  auto into = narrow.parameters();
  for (std::size_t i = 0; i < from.size(); ++i) copy(into[i].values, from[i].values);
  const auto x = tokens();
  auto cache = narrow.make_cache(kBatch, kSeq);
  const auto want = module.forward(x), got = to<float>(narrow.forward(to<bfloat16>(x), cache));
  double scale = 0;
  for (index_t i = 0; i < want.size(); ++i)
    scale = std::max(scale, std::abs(static_cast<double>(want.data()[i])));
  EXPECT_LT(distance(got, want), 0.03 * scale);
}

TEST(AttentionModule, EmptyBatchAndNoTokensAreLegal) {
  GroupedQueryAttention<float> module({.d_model = kWidth, .heads = 4, .kv_heads = 2});
  EXPECT_EQ(module.forward(Tensor<float, 3>(Shape{0, 3, kWidth})).size(), 0);
  auto cache = module.make_cache(kBatch, kSeq);
  EXPECT_EQ(module.forward(Tensor<float, 3>(Shape{kBatch, 0, kWidth}), cache).size(), 0);
  EXPECT_EQ(cache.length(), 0);
}

template <class E, class F>
void expect_text(F&& f, const std::string& part) {
  EXPECT_THAT(f, testing::ThrowsMessage<E>(testing::HasSubstr(part)));
}

TEST(AttentionModule, NamesWhatDoesNotFit) {
  expect_text<ShapeError>([] { MultiHeadAttention<float>({.d_model = 10, .heads = 3}); },
                          "heads is 3, expected a divisor of 10 = d_model");
  expect_text<ShapeError>(
      [] { GroupedQueryAttention<float>({.d_model = 8, .heads = 4, .kv_heads = 3}); },
      "kv_heads is 3, expected a divisor of 4 = heads");
  expect_text<ShapeError>(
      [] { MultiQueryAttention<float>({.d_model = 8, .heads = 4, .kv_heads = 2}); },
      "kv_heads is 2, expected 1");
  expect_text<ShapeError>([] { SlidingWindowAttention<float>({.d_model = 8, .heads = 4}); },
                          "window is 0, expected at least 1");
  GroupedQueryAttention<float> module({.d_model = kWidth, .heads = 4, .kv_heads = 2});
  expect_text<ShapeError>(
      [&] {
        module.forward(Tensor<float, 3>(Shape{1, 2, 7}));
      },
      "x is [1, 2, 7], expected [1, 2, 24] = [batch, seq, d_model]");
}

TEST(AttentionModule, FullCacheThrowsAndStaysAsItWas) {
  GroupedQueryAttention<float> module(
      {.d_model = kWidth, .heads = 4, .kv_heads = 2, .rope = Rope{}});
  randomize(module);
  const auto x = tokens();
  auto cache = module.make_cache(kBatch, 10), untouched = cache.fork();
  module.forward(x.slice(1, 0, 8), cache);
  module.forward(x.slice(1, 0, 8), untouched);
  expect_text<CapacityError>([&] { module.forward(x.slice(1, 8, 11), cache); },
                             "holds 8 of 10 tokens and cannot take 3 more");
  EXPECT_EQ(cache.length(), 8);
  EXPECT_EQ(distance(module.forward(x.slice(1, 8, 10), cache),
                     module.forward(x.slice(1, 8, 10), untouched)),
            0);
}

TEST(AttentionModule, DoesNotDependOnThreads) {
  GroupedQueryAttention<float> module(
      {.d_model = kWidth, .heads = 4, .kv_heads = 2, .rope = Rope{}});
  randomize(module);
  const auto x = tokens();
  const int before = num_threads();
  set_num_threads(1);
  const auto one = module.forward(x);
  for (const int threads : {2, 3, 7}) {
    set_num_threads(threads);
    EXPECT_EQ(distance(module.forward(x), one), 0);
  }
  set_num_threads(before);
}

}  // namespace
}  // namespace rapt::test
