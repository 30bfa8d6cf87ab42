// The training loop: the law of resuming, accumulation, mixed precision, skipped steps.
#include "rapt/train/trainer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "io/io_support.hpp"
#include "rapt/core/parallel.hpp"

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using train::Dataset;
using train::DatasetOptions;
using train::StepReport;
using train::Trainer;
using train::TrainerOptions;

ModelConfig tiny() {
  ModelConfig c;
  c.architecture = "llama";
  c.vocab_size = 32;
  c.d_model = 32;
  c.layers = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.ffn_dim = 48;
  c.max_position = 32;
  c.tie_embeddings = true;
  c.layer_types.resize(2);
  return c;
}

/// A text with something to learn: each id is mostly a function of the one before.
std::vector<std::int32_t> text_of(index_t n) {
  Philox random(11);
  std::vector<std::int32_t> out;
  std::int32_t id = 1;
  for (index_t i = 0; i < n; ++i) {
    id = random.below(8) == 0 ? static_cast<std::int32_t>(random.below(31)) + 1
                              : (id * 5 + 3) % 31 + 1;
    if (i % 37 == 0) id = 0;  // a separator
    out.push_back(id);
  }
  return out;
}

TrainerOptions options_of(index_t steps) {
  TrainerOptions o;
  o.batch = 4;
  o.schedule = {.lr = 3e-3, .min_lr = 3e-4, .warmup = 3, .steps = steps};
  o.seed = 5;
  return o;
}

template <class T>
struct Training {
  static inline const std::vector<std::int32_t> text = text_of(2000);
  nn::Transformer<T> model;
  Dataset data;
  Trainer<T> trainer;

  static nn::Transformer<T> first_model() {
    nn::Transformer<T> model(tiny());
    Philox random(3);
    model.initialize(random);
    return model;
  }
  explicit Training(const TrainerOptions& options,
                    const DatasetOptions& data_options = {.seq = 16, .seed = 5, .separator = 0})
      : model(first_model()),
        data(train::TokenSpan(text, 32), data_options),
        trainer(model, data, options) {}

  std::vector<double> weights() {
    std::vector<double> out;
    for (const auto& p : model.parameters())
      for (index_t i = 0; i < p.values.size(); ++i) out.push_back(static_cast<double>(p.values(i)));
    return out;
  }
  double run(index_t steps) {  // the mean loss of the last ten steps
    double sum = 0;
    for (index_t i = 0; i < steps; ++i) {
      const StepReport r = trainer.step();
      if (i >= steps - 10) sum += r.loss / 10;
    }
    return sum;
  }
};

template <class T>
struct Resume : testing::Test {};
using Elements = testing::Types<float, bfloat16, half>;
TYPED_TEST_SUITE(Resume, Elements);

TYPED_TEST(Resume, TwentyStepsAreTenAndTenMore) {
  const ScratchFolder folder;
  TrainerOptions options = options_of(20);
  options.accumulate = 2;
  Training<TypeParam> whole(options), first(options), second(options);
  whole.run(10);
  first.run(10);
  first.trainer.random()();
  first.trainer.save(folder / "latest");
  second.run(3);  // whatever it was before
  second.trainer.load(folder / "latest");
  EXPECT_EQ(second.trainer.state(), first.trainer.state());
  for (int i = 0; i < 10; ++i) {
    const StepReport a = whole.trainer.step(), b = second.trainer.step();
    EXPECT_EQ(a.loss, b.loss);
    EXPECT_EQ(a.grad_norm, b.grad_norm);
    EXPECT_EQ(a.lr, b.lr);
    EXPECT_EQ(a.step, b.step);
  }
  EXPECT_EQ(whole.weights(), second.weights());
}

TEST(Trainer, LearnsAndReportsWhatItDid) {
  Training<float> t(options_of(60));
  const StepReport first = t.trainer.step();
  EXPECT_EQ(first.step, 1);
  EXPECT_EQ(first.lr, 0);  // step 0 of the schedule
  EXPECT_NEAR(first.loss, std::log(32.0), 0.3);
  EXPECT_EQ(first.tokens, 64);
  EXPECT_GT(first.grad_norm, 0);
  EXPECT_FALSE(first.skipped);
  EXPECT_LT(t.run(59), first.loss - 0.8);
  EXPECT_EQ(t.trainer.state().position, 60 * 4);
  EXPECT_EQ(t.trainer.state().tokens, 60 * 64);
}

TEST(Trainer, OverfitsOneBatch) {
  TrainerOptions options = options_of(300);
  options.schedule.lr = 1e-2;
  options.optimizer.weight_decay = 0;
  Training<float> t(options);
  train::Batch batch(4, 16);
  t.data.fill(batch, 0);
  double loss = 0;
  for (int i = 0; i < 300; ++i) loss = t.trainer.step(std::span(&batch, 1)).loss;
  // Documents that begin alike (a separator begins one) cannot be told apart: the entropy of what
  // follows is the floor.
  std::map<std::vector<std::int32_t>, std::map<std::int32_t, double>> next;
  for (index_t row = 0; row < 4; ++row)
    for (index_t at = 0; at < 16; ++at) {
      const std::int32_t* const ids = batch.ids.data() + 16 * row;
      index_t begin = at;
      while (begin > 0 && ids[begin] != 0) --begin;
      next[std::vector<std::int32_t>(ids + begin, ids + at + 1)][batch.targets(row, at)] += 1;
    }
  double floor = 0;
  for (const auto& [prefix, counts] : next) {
    double all = 0;
    for (const auto& [id, count] : counts) all += count;
    for (const auto& [id, count] : counts) floor -= count * std::log(count / all) / 64;
  }
  EXPECT_LT(loss, floor + 1e-3);
}

TEST(Trainer, AccumulationByTokensIsTheLargeBatch) {
  // Padded rows of documents: micro-batches have different numbers of tokens.
  const DatasetOptions padded{
      .seq = 16, .packing = train::Packing::padded, .seed = 5, .separator = 0};
  TrainerOptions large = options_of(6), small = options_of(6);
  large.batch = 8;
  small.batch = 2;
  small.accumulate = 4;
  Training<float> a(large, padded), b(small, padded);
  small.accumulation = train::Accumulation::by_micro_batch;
  Training<float> c(small, padded);
  double difference = 0, micro_difference = 0;
  for (int i = 0; i < 6; ++i) {
    const StepReport ra = a.trainer.step(), rb = b.trainer.step(), rc = c.trainer.step();
    EXPECT_NEAR(ra.loss, rb.loss, 2e-6);
    EXPECT_NEAR(ra.grad_norm, rb.grad_norm, 1e-5);
    if (i == 0) micro_difference = std::abs(ra.loss - rc.loss);
  }
  const auto wa = a.weights(), wb = b.weights();
  for (std::size_t i = 0; i < wa.size(); ++i)
    difference = std::max(difference, std::abs(wa[i] - wb[i]));
  EXPECT_LT(difference, 2e-4);        // Adam divides by small roots: rounding grows in it
  EXPECT_GT(micro_difference, 1e-6);  // the mean of means is something else
}

TEST(Trainer, HalfAndBfloat16ReachTheLossOfFloat) {
  const index_t steps = 120;
  Training<float> f(options_of(steps));
  Training<half> h(options_of(steps));
  Training<bfloat16> b(options_of(steps));
  const double loss = f.run(steps);
  EXPECT_NEAR(h.run(steps) / loss, 1, 0.02);
  EXPECT_NEAR(b.run(steps) / loss, 1, 0.02);
}

TEST(Trainer, AnOverflowSkipsItsStepAndHalvesTheScale) {
  TrainerOptions options = options_of(50);
  options.scaler.initial = 0x1p24;
  options.schedule.warmup = 0;
  Training<half> t(options);
  const auto before = t.weights();
  StepReport r = t.trainer.step();
  ASSERT_TRUE(r.skipped);
  EXPECT_EQ(r.scale, 0x1p24);
  EXPECT_EQ(t.weights(), before);
  EXPECT_EQ(t.trainer.state().optimizer_steps, 0);
  EXPECT_EQ(t.trainer.state().step, 1);
  while (r.skipped) r = t.trainer.step();
  EXPECT_LT(r.scale, 0x1p24);
  EXPECT_NE(t.weights(), before);
  EXPECT_EQ(t.trainer.state().optimizer_steps, 1);
}

TEST(Trainer, GivesUpWhenNothingIsFinite) {
  TrainerOptions options = options_of(50);
  options.patience = 3;
  Training<float> t(options);
  t.model.parameters()[0].values(7) = std::numeric_limits<float>::quiet_NaN();
  fill(t.model.parameters()[0].values, std::numeric_limits<double>::quiet_NaN());
  t.trainer.step();
  t.trainer.step();
  EXPECT_THAT([&] { t.trainer.step(); },
              ThrowsMessage<std::runtime_error>(HasSubstr("3 steps in a row up to step 3")));
}

TEST(Trainer, RecomputationAndThreadsChangeNoBit) {
  TrainerOptions options = options_of(6);
  Training<float> plain(options);
  options.recompute = true;
  Training<float> again(options);
  const int threads = num_threads();
  set_num_threads(1);
  plain.run(6);
  set_num_threads(3);
  again.run(6);
  set_num_threads(threads);
  EXPECT_EQ(plain.weights(), again.weights());
  EXPECT_LT(again.trainer.activation_bytes(), plain.trainer.activation_bytes());
}

TEST(Trainer, EvaluationChangesNothing) {
  Training<float> a(options_of(8)), b(options_of(8));
  Dataset held(train::TokenSpan(Training<float>::text, 32),
               {.seq = 16, .shuffle = false, .separator = 0});
  a.run(4);
  b.run(4);
  const auto loss = b.trainer.evaluate(held, 10);
  EXPECT_EQ(loss.tokens, 160);
  EXPECT_GT(loss.mean(), 0);
  EXPECT_EQ(b.trainer.evaluate(held).tokens, held.sequences() * 16);
  a.run(4);
  b.run(4);
  EXPECT_EQ(a.weights(), b.weights());
}

TEST(Trainer, RefusesAnotherRunsCheckpoint) {
  const ScratchFolder folder;
  Training<float> a(options_of(8)), b(options_of(8));
  a.trainer.set_settings({{"lr", "0.003"}, {"seq", "16"}});
  a.trainer.save(folder / "latest");
  b.trainer.set_settings({{"lr", "0.001"}, {"seq", "16"}});
  EXPECT_THAT([&] { b.trainer.load(folder / "latest"); },
              ThrowsMessage<FormatError>(HasSubstr("lr is 0.003, expected 0.001")));
  Training<bfloat16> c(options_of(8));
  EXPECT_THAT([&] { c.trainer.load(folder / "latest"); },
              ThrowsMessage<FormatError>(HasSubstr("dtype is f32, expected bf16")));
}

TEST(Trainer, RefusesSettingsThatDoNotFit) {
  TrainerOptions options = options_of(8);
  options.batch = 0;
  EXPECT_THAT([&] { Training<float> t(options); },
              ThrowsMessage<ValueError>(HasSubstr("batch is 0, expected at least 1")));
  EXPECT_THAT([&] { Training<float> t(options_of(8), {.seq = 33}); },
              ThrowsMessage<ValueError>(HasSubstr("seq is 33, expected at most")));
}

}  // namespace
}  // namespace rapt::test
