// A training step in every element type: recomputation, threads and memory; 16-bit models against
// the same model in fp32.
#include <gtest/gtest.h>

#include "rapt/core/parallel.hpp"
#include "support/count_allocations.hpp"
#include "support/training_models.hpp"

namespace rapt::test {
namespace {

using nn::TokenLoss;
using nn::TrainingCall;

template <class T>
struct TrainingStep : testing::Test {};
using Types = testing::Types<float, half, bfloat16>;
TYPED_TEST_SUITE(TrainingStep, Types);

struct Threads {
  explicit Threads(int n) : before(num_threads()) { set_num_threads(n); }
  ~Threads() { set_num_threads(before); }
  int before;
};

/// Loss and gradients of one step.
template <class T>
std::pair<TokenLoss, std::vector<double>> step(const ModelConfig& config, const TrainingCall& call,
                                               Tape<>& tape, index_t seq = 19) {
  auto model = random_transformer<T>(config);
  const Batch batch(3, seq, static_cast<std::int32_t>(config.vocab_size));
  TrainingCall with_documents = call;
  with_documents.document_ids = batch.documents;
  const TokenLoss loss = model.forward_backward(batch.ids, batch.targets, tape, with_documents);
  return {loss, gradients_of(model)};
}

TYPED_TEST(TrainingStep, RecomputedBlocksGiveTheSameBits) {
  for (const auto& [name, config] : model_families()) {
    SCOPED_TRACE(name);
    Tape<> saved, again;
    const auto [a, gradients] = step<TypeParam>(config, {}, saved);
    const auto [b, recomputed] = step<TypeParam>(config, {.recompute = true}, again);
    EXPECT_EQ(a.sum, b.sum);
    EXPECT_TRUE(gradients == recomputed);
    EXPECT_LT(again.peak_bytes(), saved.peak_bytes());
  }
}

TYPED_TEST(TrainingStep, DoesNotDependOnThreads) {
  ModelConfig config = model_families()[2].second;
  config.d_model = 48;
  config.ffn_dim = 100;
  config.vocab_size = 301;
  Tape<> tape;
  const Threads one(1);
  const auto [loss, gradients] = step<TypeParam>(config, {}, tape, 70);
  for (const int threads : {2, 3, 7}) {
    const Threads more(threads);
    const auto [other, same] = step<TypeParam>(config, {}, tape, 70);
    EXPECT_EQ(loss.sum, other.sum) << threads;
    EXPECT_TRUE(gradients == same) << threads;
  }
}

TYPED_TEST(TrainingStep, AllocatesNothingOnceItHasRun) {
  for (const bool recompute : {false, true})
    for (const auto& [name, config] : model_families()) {
      SCOPED_TRACE(name);
      auto model = random_transformer<TypeParam>(config);
      const Batch batch(3, 19, static_cast<std::int32_t>(config.vocab_size));
      const TrainingCall call{.document_ids = batch.documents, .recompute = recompute};
      Tape<> tape;
      for (int warm = 0; warm < 3; ++warm)
        model.forward_backward(batch.ids, batch.targets, tape, call);
      const AllocationCount count;
      model.forward_backward(batch.ids, batch.targets, tape, call);
      EXPECT_EQ(count.so_far(), 0);
    }
}

/// Gradients of a 16-bit model stay near those of the same weights in fp32.
TYPED_TEST(TrainingStep, FollowsFloat) {
  using T = TypeParam;
  if (std::is_same_v<T, float>) GTEST_SKIP() << "float is what the others are compared with";
  for (const auto& [name, config] : model_families()) {
    SCOPED_TRACE(name);
    auto narrow = random_transformer<T>(config, 0.2);
    auto wide = random_transformer<float>(config, 0.2);
    const auto from = narrow.parameters();
    const auto into = wide.parameters();
    for (std::size_t i = 0; i < from.size(); ++i) copy(into[i].values, from[i].values);
    const Batch batch(3, 19, 17);
    Tape<> tape;
    const double loss_scale = 64;
    const TrainingCall call{.scale = loss_scale / static_cast<double>(batch.counted())};
    const double got = narrow.forward_backward(batch.ids, batch.targets, tape, call).mean();
    const double want = wide.forward_backward(batch.ids, batch.targets, tape, call).mean();
    const double unit = std::is_same_v<T, half> ? 1.0 / 1024 : 1.0 / 128;
    EXPECT_NEAR(got, want, 2 * unit * want);
    double error = 0, size = 0;  // of all gradients together
    for (std::size_t i = 0; i < from.size(); ++i) {
      double along = 0, own = 0, other = 0;
      for (index_t j = 0; j < from[i].gradient.size(); ++j) {
        const double g = static_cast<double>(from[i].gradient(j));
        const double w = static_cast<double>(into[i].gradient(j));
        error += (g - w) * (g - w);
        along += g * w;
        own += g * g;
        other += w * w;
      }
      size += other;
      if (from[i].name.ends_with("k_proj.bias")) continue;  // nearly nothing but rounding
      EXPECT_GT(along, 0.98 * std::sqrt(own * other)) << from[i].name;  // one direction
    }
    // Some sixty roundings in a row, of either sign: the root of that many.
    EXPECT_LT(std::sqrt(error), 8 * unit * std::sqrt(size));
  }
}

TYPED_TEST(TrainingStep, APowerOfTwoOnTheLossIsOneOnTheGradients) {
  using T = TypeParam;
  if (std::is_same_v<T, half>) GTEST_SKIP() << "small gradients of half are subnormal";
  for (const auto& [name, config] : model_families()) {
    SCOPED_TRACE(name);
    Tape<> tape;
    const auto [a, once] = step<T>(config, {}, tape);
    auto [b, scaled] = step<T>(config, {.scale = 1024}, tape);
    EXPECT_EQ(a.sum, b.sum);
    for (double& g : scaled) g /= 1024;
    EXPECT_TRUE(once == scaled);
  }
}

TEST(TrainingMemory, RecomputationKeepsTheInputsOfBlocks) {
  ModelConfig config = small_model();
  config.layers = 8;
  config.layer_types.resize(8);
  auto model = random_transformer<float>(config);
  const Batch batch(2, 64, 17);
  const auto peak = [&](bool recompute) {
    Tape<> tape;
    model.forward_backward(batch.ids, batch.targets, tape, {.recompute = recompute});
    return static_cast<index_t>(tape.peak_bytes());
  };
  const index_t tokens = 2 * 64, size = sizeof(float);
  // 2 d_model + q, k, v + heads side by side + logsumexps + gate and up
  const index_t layer = tokens * size * (2 * 12 + (4 + 2 + 2) * 4 + 4 * 4 + 4 + 2 * 14);
  EXPECT_EQ(peak(false), 8 * layer);
  EXPECT_EQ(peak(true), 7 * tokens * size * 12 + layer);
}

TEST(TrainingMemory, LogitsAreNeverWhole) {
  ModelConfig config = small_model();
  config.layers = 1;
  config.layer_types.resize(1);
  config.vocab_size = 50000;
  auto model = random_transformer<float>(config, 0.05);
  const Batch batch(1, 300, 50000);
  Tape<> tape;
  // 300 rows of 50000 logits in pieces of 128: the last piece is short.
  const TokenLoss in_pieces = model.forward_backward(batch.ids, batch.targets, tape);
  Tensor<float, 2> h(Shape{300, 12}), logits(Shape{300, 50000});
  model.hidden(h.reshape(Shape{1, 300, 12}), batch.ids);
  model.logits(logits, h);
  const double whole = static_cast<double>(
      cross_entropy(logits, batch.targets.reshape(Shape<1>{300}), {.reduction = Reduction::sum}));
  EXPECT_NEAR(in_pieces.sum, whole, 1e-6 * whole);
  EXPECT_EQ(in_pieces.tokens, batch.counted());
}

}  // namespace
}  // namespace rapt::test
