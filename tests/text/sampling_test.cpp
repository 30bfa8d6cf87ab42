// Oracle: the golden cases of op `sampling` run in tests/golden; here are the numbers of
// specs/transformer.md section 8, and properties that need no oracle.
#include "rapt/text/sampling.hpp"

#include <gmock/gmock.h>

#include <set>

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> processed(std::vector<float> logits, const SamplingParams& params,
                             std::vector<std::int32_t> previous = {}) {
  process_logits(logits, previous, params);
  return logits;
}

std::size_t kept(const std::vector<float>& logits) { return detail::kept_ids(logits).size(); }

std::vector<float> random_logits(Philox& random, std::size_t vocab) {
  std::vector<float> logits(vocab);
  for (float& z : logits) z = static_cast<float>(3 * random.normal());
  return logits;
}

TEST(Sampling, GivesTheNumbersOfThePage) {
  const std::vector<float> logits = {2, 1, 0, -1, -2};
  std::vector<float> p(5);
  softmax(p, logits);
  const double want[] = {0.636409, 0.234122, 0.086129, 0.031685, 0.011656};
  for (std::size_t i = 0; i < 5; ++i) EXPECT_NEAR(p[i], want[i], 1e-6);
  EXPECT_EQ(kept(processed(logits, {.top_p = 0.9})), 3u);
  EXPECT_EQ(kept(processed(logits, {.min_p = 0.1})), 3u);
  EXPECT_EQ(processed(logits, {.repetition_penalty = 2}, {0, 4, 4}),
            (std::vector<float>{1, 1, 0, -1, -4}));
  softmax(p, processed(logits, {.temperature = 0.5}));
  EXPECT_NEAR(p[0], 0.864704, 1e-6);
  EXPECT_NEAR(p[4], 0.000290, 1e-6);
}

TEST(Sampling, KeepsEveryTokenEqualToTheKth) {
  EXPECT_EQ(processed({1, 3, 2, 2, 2, 0}, {.top_k = 2}),
            (std::vector<float>{-kInf, 3, 2, 2, 2, -kInf}));
  EXPECT_EQ(kept(processed({1, 2, 3}, {.top_k = 100})), 3u);
}

TEST(Sampling, TopPKeepsTheLowerIdOnTiesAndAtLeastOne) {
  EXPECT_EQ(processed({0, 0, 0, 0}, {.top_p = 0.5}), (std::vector<float>{0, 0, -kInf, -kInf}));
  EXPECT_EQ(kept(processed({0, 0, 0, 0}, {.top_p = 0})), 1u);
}

TEST(Sampling, TopPEqualsAFullSortOnLargeVocabularies) {
  Philox random(5);
  for (const double p : {0.1, 0.5, 0.9, 0.999}) {
    const std::vector<float> logits = random_logits(random, 5000);
    std::vector<float> probabilities(logits.size());
    softmax(probabilities, logits);
    std::vector<std::size_t> order(logits.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
    std::size_t want = 0;
    for (double before = 0; want < order.size() && before < p; ++want)
      before += static_cast<double>(probabilities[order[want]]);
    EXPECT_NEAR(static_cast<double>(kept(processed(logits, {.top_p = p}))),
                static_cast<double>(want), 1);
  }
}

TEST(Sampling, TheOrderMatters) {
  std::vector<float> first = {4, 2, 1, 0}, last = first;
  process_logits(first, {}, {.temperature = 4, .top_p = 0.8});
  const SamplingStage order[] = {SamplingStage::top_p, SamplingStage::temperature};
  process_logits(last, {}, {.temperature = 4, .top_p = 0.8}, order);
  EXPECT_EQ(kept(first), 3u);
  EXPECT_EQ(kept(last), 1u);
  EXPECT_EQ(sampling_stage("min_p"), SamplingStage::min_p);
  EXPECT_THROW(sampling_stage("mirostat"), ValueError);
}

TEST(Sampling, GreedyTakesTheLowestIdOnTiesAndDrawsNothing) {
  Philox random(1);
  std::vector<float> logits = {1, 5, 5, 2};
  EXPECT_EQ(sample(logits, {}, {.temperature = 0, .top_k = 1}, random), 1);
  EXPECT_EQ(random.state(), Philox(1).state());
  logits = {1, 5, 5, 2};
  const std::int32_t previous[] = {1};
  EXPECT_EQ(sample(logits, previous, {.temperature = 0, .repetition_penalty = 2}, random), 2);
}

TEST(Sampling, DrawsTheSmallestIdAboveU) {
  const std::vector<float> even = {0, -kInf, 0, 0, 0};
  EXPECT_EQ(draw(even, 0.0), 0);
  EXPECT_EQ(draw(even, 0.2499), 0);
  EXPECT_EQ(draw(even, 0.25), 2);
  EXPECT_EQ(draw(even, 0.75), 4);
  EXPECT_EQ(draw(even, 0.9999999999999999), 4);
}

TEST(Sampling, FollowsTheProbabilities) {
  Philox random(42);
  const std::vector<float> logits = {2, 1, 0, -1, -2};
  std::vector<float> p(5);
  softmax(p, logits);
  std::vector<int> counts(5);
  constexpr int kDraws = 20000;
  for (int i = 0; i < kDraws; ++i) {
    std::vector<float> z = logits;
    ++counts[static_cast<std::size_t>(sample(z, {}, {}, random))];
  }
  for (std::size_t i = 0; i < 5; ++i) {
    const double q = static_cast<double>(p[i]);
    EXPECT_NEAR(counts[i] / double{kDraws}, q, 5 * std::sqrt(q * (1 - q) / kDraws)) << i;
  }
}

TEST(Sampling, OneSeedGivesOneSequenceAndStagesOnlyNarrowIt) {
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    Philox a(seed), b(seed), source(seed + 1000);
    const SamplingParams params{.temperature = 0.8, .top_k = 20, .top_p = 0.9, .min_p = 0.02};
    for (int step = 0; step < 5; ++step) {
      std::vector<float> x = random_logits(source, 100), y = x;
      const std::int32_t id = sample(x, {}, params, a);
      EXPECT_EQ(id, sample(y, {}, params, b));
      EXPECT_NE(x[static_cast<std::size_t>(id)], -kInf);
      EXPECT_LE(kept(x), 20u);
    }
    EXPECT_EQ(a.state(), b.state());
  }
}

TEST(Sampling, ColderIsGreedierAndTopK1IsGreedy) {
  Philox random(9);
  for (int round = 0; round < 20; ++round) {
    const std::vector<float> logits = random_logits(random, 64);
    std::vector<float> cold = logits, one = logits;
    EXPECT_EQ(sample(cold, {}, {.temperature = 1e-4}, random), argmax(logits));
    EXPECT_EQ(sample(one, {}, {.top_k = 1}, random), argmax(logits));
  }
}

TEST(Sampling, RefusesWhatCannotBeSampled) {
  const auto refused = [](std::vector<float> logits, SamplingParams params, const char* why,
                          std::vector<std::int32_t> previous = {}) {
    EXPECT_THAT([&] { process_logits(logits, previous, params); },
                ThrowsMessage<ValueError>(HasSubstr(why)));
  };
  refused({-kInf, -kInf}, {}, "all 2 logits are -inf");
  refused({}, {}, "all 0 logits are -inf");
  refused({0, std::numeric_limits<float>::quiet_NaN()}, {}, "the logit of token 1 is");
  refused({0, kInf}, {}, "the logit of token 1 is inf");
  refused({0, 1}, {.temperature = -1}, "temperature is -1, expected 0 or more");
  refused({0, 1}, {.top_p = 1.5}, "top_p is 1.5, expected 0 ... 1");
  refused({0, 1}, {.min_p = std::nan("")}, "min_p is nan");
  refused({0, 1}, {.repetition_penalty = 0}, "repetition_penalty is 0");
  refused({0, 1}, {.top_k = -1}, "top_k is -1");
  refused({0, 1}, {.repetition_penalty = 2}, "a previous id is 2, expected 0 ... 1", {2});
}

}  // namespace
}  // namespace rapt::test
