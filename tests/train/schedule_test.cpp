// The learning rate, the loss scaler and AdamW against numbers worked out by hand or in double.
#include "rapt/train/schedule.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "rapt/train/loss_scaler.hpp"
#include "rapt/train/optimizer.hpp"

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using train::AdamW;
using train::AdamWOptions;
using train::LossScaler;
using train::Schedule;
using train::ScheduleKind;

TEST(Schedule, ValuesOfTheCosineWithWarmup) {
  const Schedule s{.lr = 1e-3, .min_lr = 1e-4, .warmup = 10, .steps = 100, .warmup_from_one = true};
  EXPECT_DOUBLE_EQ(s(0), 1e-4);
  EXPECT_DOUBLE_EQ(s(4), 5e-4);
  EXPECT_DOUBLE_EQ(s(9), 1e-3);
  EXPECT_DOUBLE_EQ(s(10), 1e-3);
  EXPECT_NEAR(s(55), 5.5e-4, 1e-12);
  EXPECT_NEAR(s(99), 1.002741e-4, 1e-10);
  EXPECT_DOUBLE_EQ(s(100), 1e-4);
  EXPECT_DOUBLE_EQ(s(1000), 1e-4);
}

TEST(Schedule, StartsFromZeroAndCountsFromOneOnRequest) {
  Schedule s{.lr = 1, .warmup = 4, .steps = 8};
  EXPECT_EQ(s(0), 0);
  EXPECT_EQ(s(2), 0.5);
  s.warmup_from_one = true;
  EXPECT_EQ(s(0), 0.25);
  EXPECT_EQ(s(3), 1);
}

TEST(Schedule, LinearConstantAndSeveralCycles) {
  const Schedule linear{.kind = ScheduleKind::linear, .lr = 1, .min_lr = 0.5, .steps = 10};
  EXPECT_EQ(linear(0), 1);
  EXPECT_DOUBLE_EQ(linear(5), 0.75);
  EXPECT_EQ(linear(12), 0.5);
  const Schedule constant{.kind = ScheduleKind::constant, .lr = 2, .warmup = 2, .steps = 4};
  EXPECT_EQ(constant(1), 1);
  EXPECT_EQ(constant(100), 2);
  Schedule cycles{.lr = 1, .steps = 30, .cycles = 1.5};
  EXPECT_NEAR(cycles(10), 0, 1e-15);
  EXPECT_NEAR(cycles(20), 1, 1e-15);
  EXPECT_EQ(cycles(30), 0);
  cycles.hold_at_end = false;
  EXPECT_NEAR(cycles(40), 1, 1e-15);
}

TEST(Schedule, RefusesSettingsOutOfRange) {
  EXPECT_THAT(([] { Schedule{.lr = 1, .min_lr = 2}.check(); }),
              ThrowsMessage<ValueError>(HasSubstr("min_lr is 2, expected 0 to lr = 1")));
  EXPECT_THAT([] { Schedule{.steps = 0}.check(); }, ThrowsMessage<ValueError>(HasSubstr("steps")));
  EXPECT_THAT([] { train::parse_schedule_kind("step"); },
              ThrowsMessage<ValueError>(HasSubstr("constant, linear or cosine")));
}

TEST(LossScaler, HalvesOnOverflowAndDoublesAfterGoodSteps) {
  LossScaler scaler(true, {.growth_interval = 3});
  EXPECT_EQ(scaler.scale(), 65536);
  EXPECT_TRUE(scaler.update(true));
  EXPECT_FALSE(scaler.update(false));
  EXPECT_EQ(scaler.scale(), 32768);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(scaler.update(true));
  EXPECT_EQ(scaler.scale(), 65536);
  EXPECT_EQ(scaler.state().skipped, 1);
  for (int i = 0; i < 40; ++i) scaler.update(false);
  EXPECT_EQ(scaler.scale(), 1);
}

TEST(LossScaler, IsOneWhenDisabledButStillSkips) {
  LossScaler scaler(false);
  EXPECT_EQ(scaler.scale(), 1);
  EXPECT_FALSE(scaler.update(false));
  for (int i = 0; i < 5000; ++i) EXPECT_TRUE(scaler.update(true));
  EXPECT_EQ(scaler.scale(), 1);
  EXPECT_THAT([&] { scaler.set_state({.scale = 2}); }, ThrowsMessage<ValueError>(HasSubstr("2")));
}

/// Parameters with gradients that a test fills.
template <class T>
struct Weights {
  Tensor<T, 2> matrix{{2, 3}};
  Tensor<T, 1> norm{{4}};
  Tensor<T, 2> table{{2, 2}};
  Tensor<accumulate_t<T>, 2> matrix_gradient{{2, 3}};
  Tensor<accumulate_t<T>, 1> norm_gradient{{4}};
  Tensor<accumulate_t<T>, 2> table_gradient{{2, 2}};

  Parameters<T, Cpu> parameters() {
    Parameters<T, Cpu> out;
    out.push_back({"layer.q_proj.weight", matrix, matrix_gradient});
    out.push_back({"layer.norm.weight", norm, norm_gradient});
    out.push_back({"model.embed_tokens.weight", table, table_gradient});
    return out;
  }
  void fill_gradients(double value) {
    fill(matrix_gradient, value);
    fill(norm_gradient, value);
    fill(table_gradient, value);
  }
};

TEST(AdamW, FollowsTheWorkedExample) {
  Tensor<double, 2> theta({1, 2}), gradient({1, 2});
  theta(0, 0) = 1, theta(0, 1) = -2;
  Parameters<double, Cpu> parameters;
  parameters.push_back({"w", theta, gradient});
  AdamW<double> optimizer(parameters, {.beta1 = 0.9, .beta2 = 0.999, .weight_decay = 0.1});
  gradient(0, 0) = 0.1, gradient(0, 1) = -0.2;
  optimizer.step(0.01);
  EXPECT_NEAR(theta(0, 0), 0.989, 1e-6);
  EXPECT_NEAR(theta(0, 1), -1.988, 1e-6);
  gradient(0, 0) = 0.3, gradient(0, 1) = 0.05;
  optimizer.step(0.01);
  EXPECT_NEAR(theta(0, 0), 0.978833, 1e-6);
  EXPECT_NEAR(theta(0, 1), -1.981317, 1e-6);
  EXPECT_EQ(optimizer.steps(), 2);
}

TEST(AdamW, DecaysMatricesButNoNormsAndEmbeddings) {
  Weights<float> w;
  AdamW<float> optimizer(w.parameters(), {.weight_decay = 0.5});
  EXPECT_EQ(optimizer.slots()[0].weight_decay, 0.5);
  EXPECT_EQ(optimizer.slots()[1].weight_decay, 0);
  EXPECT_EQ(optimizer.slots()[2].weight_decay, 0);
  AdamW<float> all(w.parameters(), {.weight_decay = 0.5, .decay_all = true});
  EXPECT_EQ(all.slots()[1].weight_decay, 0.5);
  AdamW<float> ruled(w.parameters(),
                     {.weight_decay = 0.5, .rules = {{"*q_proj*", 0.25}, {"model.*", 0.125}}});
  EXPECT_EQ(ruled.slots()[0].weight_decay, 0.25);
  EXPECT_EQ(ruled.slots()[2].weight_decay, 0.125);
  fill(w.matrix, 1);
  optimizer.step(0.1);  // a gradient of 0: only the decay moves the weight
  EXPECT_FLOAT_EQ(w.matrix(0, 0), 1 - 0.1f * 0.5f);
}

TEST(AdamW, MastersKeepWhatASixteenBitWeightLoses) {
  Weights<bfloat16> w;
  fill(w.matrix, 1);
  AdamW<bfloat16> optimizer(w.parameters(), {.weight_decay = 0});
  w.fill_gradients(1);
  for (int i = 0; i < 100; ++i) optimizer.step(1e-4);  // each far below half an ulp of 1
  EXPECT_NEAR(optimizer.slots()[0].master(0), 0.99, 1e-4);
  EXPECT_EQ(static_cast<float>(w.matrix(1, 2)),
            static_cast<float>(convert<bfloat16>(optimizer.slots()[0].master(5))));
  EXPECT_EQ(optimizer.bytes(), 3 * 14 * 4);
}

TEST(AdamW, AScaledGradientIsTheGradient) {
  Weights<float> a, b;
  AdamW<float> plain(a.parameters()), scaled(b.parameters());
  for (int i = 1; i < 5; ++i) {
    a.fill_gradients(0.01 * i);
    b.fill_gradients(0.01f * static_cast<float>(i) * 65536);
    plain.step(0.1, 0.5);
    scaled.step(0.1, 0.5 / 65536);
  }
  for (index_t i = 0; i < 6; ++i) EXPECT_EQ(a.matrix.data()[i], b.matrix.data()[i]);
}

TEST(AdamW, ClipsByTheGlobalNorm) {
  Weights<float> w;
  w.fill_gradients(2);
  const auto parameters = w.parameters();
  const double norm = std::sqrt(4.0 * 14);
  EXPECT_NEAR(train::gradient_norm(parameters), norm, 1e-12);
  EXPECT_EQ(train::clip_scale(0.5, 1), 1);
  EXPECT_EQ(train::clip_scale(5, 0), 1);
  EXPECT_EQ(train::clip_scale(HUGE_VAL, 1), 1);
  EXPECT_NEAR(train::clip_gradients(parameters, 1), norm, 1e-12);
  EXPECT_LE(train::gradient_norm(parameters), 1);
  EXPECT_NEAR(train::gradient_norm(parameters), 1, 1e-5);
}

TEST(AdamW, RefusesWhatDoesNotFit) {
  Weights<float> w;
  EXPECT_THAT([&] { AdamW<float>(w.parameters(), {.beta2 = 1}); },
              ThrowsMessage<ValueError>(HasSubstr("beta2 is 1, expected 0 to less than 1")));
  Parameters<float, Cpu> bare;
  bare.push_back({"layer.weight", w.matrix});
  EXPECT_THAT([&] { AdamW<float>{bare}; },
              ThrowsMessage<ValueError>(HasSubstr("parameter layer.weight has no gradient")));
}

TEST(Patterns, AStarStandsForAnyCharacters) {
  EXPECT_TRUE(train::matches("*", ""));
  EXPECT_TRUE(train::matches("a*c*e", "abcde"));
  EXPECT_TRUE(train::matches("*norm*", "model.norm.weight"));
  EXPECT_FALSE(train::matches("norm", "model.norm"));
  EXPECT_FALSE(train::matches("a*b", "abc"));
}

}  // namespace
}  // namespace rapt::test
