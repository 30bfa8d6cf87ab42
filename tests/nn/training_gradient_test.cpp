// The gradients of nn::Transformer against finite differences in double, for every family of
// models, packed and unpacked; and the laws of training that hold without a number to compare with.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rapt/core/parallel.hpp"
#include "support/gradients.hpp"
#include "support/training_models.hpp"

namespace rapt::test {
namespace {

using nn::TokenLoss;
using nn::TrainingCall;

void check(const ModelConfig& config, bool packed) {
  auto model = random_transformer<double>(config);
  const Batch batch(2, 7, static_cast<std::int32_t>(config.vocab_size));
  TrainingCall call{.scale = 0.25};
  if (packed) call.document_ids = batch.documents;
  Tape<> tape;
  const TokenLoss got = model.forward_backward(batch.ids, batch.targets, tape, call);
  EXPECT_TRUE(tape.empty());
  EXPECT_EQ(got.tokens, batch.counted());
  EXPECT_EQ(got.sum, model.loss(batch.ids, batch.targets, call).sum);
  expect_parameter_gradients(
      model.parameters(),
      [&] { return call.scale * model.loss(batch.ids, batch.targets, call).sum; }, 12);
}

TEST(TrainingGradient, EveryFamily) {
  for (const auto& [name, config] : model_families()) {
    SCOPED_TRACE(name);
    check(config, false);
    check(config, true);
  }
}

TEST(TrainingGradient, LossIsTheCrossEntropyOfTheLogits) {
  for (const auto& [name, config] : model_families()) {
    SCOPED_TRACE(name);
    const auto model = random_transformer<double>(config);
    const Batch batch(2, 7, 17);
    const auto logits = model.forward(batch.ids);
    double want = 0;
    for (index_t b = 0; b < 2; ++b)
      for (index_t i = 0; i < 7; ++i) {
        if (batch.targets(b, i) == -100) continue;
        double sum = 0;
        for (index_t v = 0; v < 17; ++v) sum += std::exp(logits(b, i, v));
        want += std::log(sum) - logits(b, i, batch.targets(b, i));
      }
    EXPECT_NEAR(model.loss(batch.ids, batch.targets).sum, want, 1e-12 * want);
  }
}

// ---- laws ----

double worst_difference(const std::vector<double>& a, const std::vector<double>& b) {
  EXPECT_EQ(a.size(), b.size());
  double worst = 0, largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    worst = std::max(worst, std::abs(a[i] - b[i]));
    largest = std::max(largest, std::abs(a[i]));
  }
  return worst / largest;
}

TEST(TrainingLaw, PackedDocumentsAreTheirDocumentsAlone) {
  for (const auto& [name, config] : model_families()) {
    SCOPED_TRACE(name);
    const Batch batch(2, 11, 17);
    Tape<> tape;
    auto packed = random_transformer<double>(config), alone = random_transformer<double>(config);
    const TokenLoss whole =
        packed.forward_backward(batch.ids, batch.targets, tape, {.document_ids = batch.documents});
    TokenLoss parts;
    for (index_t b = 0; b < 2; ++b)
      for (index_t begin = 0; begin < 11;) {
        index_t end = begin + 1;
        while (end < 11 && batch.documents(b, end) == batch.documents(b, begin)) ++end;
        const auto of = [&](const auto& x) { return x.slice(0, b, b + 1).slice(1, begin, end); };
        parts += alone.forward_backward(of(batch.ids), of(batch.targets), tape);
        begin = end;
      }
    EXPECT_EQ(whole.tokens, parts.tokens);
    EXPECT_NEAR(whole.sum, parts.sum, 1e-12 * whole.sum);
    EXPECT_LT(worst_difference(gradients_of(packed), gradients_of(alone)), 1e-12);
  }
}

TEST(TrainingLaw, MicroBatchesWeightedByTokensAreOneBatch) {
  for (const auto& [name, config] : model_families()) {
    SCOPED_TRACE(name);
    const Batch batch(4, 6, 17);
    Tape<> tape;
    auto whole = random_transformer<double>(config), parts = random_transformer<double>(config);
    const TrainingCall call{.scale = 1.0 / static_cast<double>(batch.counted())};
    const TokenLoss at_once = whole.forward_backward(batch.ids, batch.targets, tape, call);
    TokenLoss summed;
    for (const auto& [begin, end] : {std::pair<index_t, index_t>{0, 1}, {1, 4}})
      summed += parts.forward_backward(batch.ids.slice(0, begin, end),
                                       batch.targets.slice(0, begin, end), tape, call);
    EXPECT_EQ(at_once.tokens, summed.tokens);
    EXPECT_NEAR(at_once.mean(), summed.mean(), 1e-12 * summed.mean());
    EXPECT_LT(worst_difference(gradients_of(whole), gradients_of(parts)), 1e-12);
  }
}

TEST(TrainingLaw, TiedTablesCollectBothOfTheirUses) {
  ModelConfig config = model_families()[2].second;  // tied
  auto tied = random_transformer<double>(config);
  config.tie_embeddings = false;
  auto untied = random_transformer<double>(config);
  auto from = tied.parameters(), into = untied.parameters();
  ASSERT_EQ(into.size(), from.size() + 1);
  ASSERT_EQ(into.back().name, "lm_head.weight");
  for (std::size_t i = 0; i < from.size(); ++i) copy(into[i].values, from[i].values);
  copy(into.back().values, from[0].values);
  const Batch batch(2, 6, 17);
  Tape<> tape;
  EXPECT_EQ(tied.forward_backward(batch.ids, batch.targets, tape).sum,
            untied.forward_backward(batch.ids, batch.targets, tape).sum);
  for (index_t i = 0; i < from[0].gradient.size(); ++i)
    EXPECT_NEAR(from[0].gradient(i), into[0].gradient(i) + into.back().gradient(i), 1e-12);
}

TEST(TrainingLaw, IgnoredTargetsLeaveNoTrace) {
  const auto [name, config] = model_families()[0];
  auto model = random_transformer<double>(config);
  Batch batch(2, 6, 17);
  for (index_t i = 0; i < batch.targets.size(); ++i) batch.targets.data()[i] = 99;
  Tape<> tape;
  const TokenLoss none =
      model.forward_backward(batch.ids, batch.targets, tape, {.ignore_index = 99});
  EXPECT_EQ(none.tokens, 0);
  EXPECT_EQ(none.sum, 0);
  EXPECT_EQ(none.mean(), 0);
  for (const double g : gradients_of(model)) ASSERT_EQ(g, 0);
}

TEST(TrainingLaw, NoTokensAreLegal) {
  auto model = random_transformer<double>(small_model());
  Tape<> tape;
  for (const Shape<2> shape : {Shape{0, 4}, Shape{3, 0}}) {
    const Tensor<std::int32_t, 2> ids(shape);
    EXPECT_EQ(model.forward_backward(ids, ids, tape).tokens, 0);
    EXPECT_EQ(model.loss(ids, ids).tokens, 0);
  }
  for (const double g : gradients_of(model)) ASSERT_EQ(g, 0);
}

TEST(TrainingLaw, PositionsAreThoseOfTheCall) {
  auto model = random_transformer<double>(small_model());
  const Batch batch(2, 6, 17);
  Tensor<std::int32_t, 2> shifted(Shape{2, 6});
  for (index_t i = 0; i < 12; ++i) shifted.data()[i] = static_cast<std::int32_t>(7 + i % 6);
  Tape<> tape;
  const auto at = model.forward_backward(batch.ids, batch.targets, tape, {.positions = shifted});
  const auto moved = gradients_of(model);
  zero_gradients(model.parameters());
  const auto from_0 = model.forward_backward(batch.ids, batch.targets, tape);
  EXPECT_NEAR(at.sum, from_0.sum, 1e-12 * at.sum);  // rotations see differences only
  EXPECT_LT(worst_difference(moved, gradients_of(model)), 1e-12);
  for (index_t i = 0; i < 12; ++i) shifted.data()[i] = static_cast<std::int32_t>(2 * (i % 6));
  EXPECT_GT(std::abs(model.loss(batch.ids, batch.targets, {.positions = shifted}).sum - at.sum),
            1e-9);
}

template <class E, class F>
void expect_text(F&& f, const std::string& part) {
  EXPECT_THAT(f, testing::ThrowsMessage<E>(testing::HasSubstr(part)));
}

TEST(TrainingLaw, BadInputIsNamedAndChangesNothing) {
  auto model = random_transformer<double>(small_model());
  Batch batch(2, 6, 17);
  Tensor<std::int32_t, 2> shorter(Shape{2, 5});
  Tape<> tape;
  expect_text<ShapeError>([&] { model.forward_backward(batch.ids, shorter, tape); },
                          "targets is [2, 5], expected [2, 6]");
  expect_text<ShapeError>(
      [&] { model.forward_backward(batch.ids, batch.targets, tape, {.document_ids = shorter}); },
      "document_ids is [2, 5], expected [2, 6] = [batch, seq]");
  batch.targets(1, 2) = 17;
  expect_text<ValueError>([&] { model.forward_backward(batch.ids, batch.targets, tape); },
                          "targets[1, 2] is 17, expected 0 to 16 or -100");
  batch.targets(1, 2) = 0;
  batch.ids(1, 5) = -1;
  expect_text<ValueError>([&] { model.forward_backward(batch.ids, batch.targets, tape); }, "-1");
  EXPECT_TRUE(tape.empty());
  for (const double g : gradients_of(model)) ASSERT_EQ(g, 0);
}

TEST(TrainingLaw, ATinyModelLearnsOneBatch) {
  auto model = random_transformer<double>(small_model(), 0.15);
  Batch batch(2, 8, 17);
  for (index_t i = 0; i < batch.ids.size(); ++i)  // no two targets for one context
    batch.ids.data()[i] = static_cast<std::int32_t>(i % 17);
  const double scale = 1.0 / static_cast<double>(batch.counted());
  Tape<> tape;
  const auto parameters = model.parameters();
  std::vector<std::vector<double>> first(parameters.size()), second(parameters.size());
  double loss = 0;
  for (int step = 1; step <= 200; ++step) {  // Adam, written out
    zero_gradients(parameters);
    loss = model.forward_backward(batch.ids, batch.targets, tape, {.scale = scale}).mean();
    if (step == 1) {
      EXPECT_NEAR(loss, std::log(17.0), 1.0);
    }
    for (std::size_t k = 0; k < parameters.size(); ++k) {
      const auto& p = parameters[k];
      const auto n = static_cast<std::size_t>(p.values.size());
      first[k].resize(n);
      second[k].resize(n);
      for (std::size_t i = 0; i < n; ++i) {
        const double g = p.gradient.data()[i];
        first[k][i] += 0.1 * (g - first[k][i]);
        second[k][i] += 0.01 * (g * g - second[k][i]);
        const double m = first[k][i] / (1 - std::pow(0.9, step));
        const double v = second[k][i] / (1 - std::pow(0.99, step));
        p.values.data()[i] -= 0.02 * m / (std::sqrt(v) + 1e-8);
      }
    }
  }
  EXPECT_LT(loss, 1e-2);
}

}  // namespace
}  // namespace rapt::test
