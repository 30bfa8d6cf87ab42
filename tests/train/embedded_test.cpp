// The model that comes with rapt: it speaks, and its training can be repeated.
//
// tests/train/data/embedded_steps.safetensors holds what the first 20 steps of the real run
// (examples/train_embedded.sh) saw, its batches as token ids, and where it was after them: of every
// parameter the first 64 elements and the sum of squares. The settings are those of
// examples/model/train.json, the losses those of examples/model/log.jsonl. Steps are repeated on
// this machine's instructions, which sum in another order: equal within rounding, which Adam's
// first steps magnify where a gradient is near 0.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "rapt/io/safetensors.hpp"
#include "rapt/text/generate.hpp"
#include "rapt/text/load_tokenizer.hpp"
#include "rapt/train/log.hpp"
#include "rapt/train/trainer.hpp"

namespace rapt::test {
namespace {

namespace fs = std::filesystem;

const fs::path kModel = "examples/model";
const fs::path kSteps = "tests/train/data/embedded_steps.safetensors";
constexpr index_t kCount = 20, kSample = 64;

struct Settings {
  nlohmann::json flags = nlohmann::json::parse(read_file(kModel / "train.json"));
  std::string text(const char* name) const {
    const auto& value = flags.at(name);
    return value.is_string() ? value.get<std::string>() : value.dump();
  }
  double number(const char* name) const { return std::stod(text(name)); }
  index_t integer(const char* name) const { return std::stoll(text(name)); }

  train::TrainerOptions options() const {
    train::TrainerOptions o;
    o.batch = integer("batch");
    o.schedule = {.kind = train::parse_schedule_kind(text("schedule")),
                  .lr = number("lr"),
                  .min_lr = number("min-lr"),
                  .warmup = integer("warmup"),
                  .steps = integer("steps")};
    o.optimizer = {.beta1 = number("beta1"),
                   .beta2 = number("beta2"),
                   .eps = number("eps"),
                   .weight_decay = number("weight-decay")};
    o.clip = number("clip");
    return o;
  }
};

train::DatasetOptions data_options(const Settings& s, std::int32_t separator) {
  return {.seq = s.integer("seq"),
          .seed = static_cast<std::uint64_t>(s.integer("seed")),
          .separator = separator};
}

TEST(EmbeddedModel, RepeatsItsFirstTwentySteps) {
  if (!fs::exists(kSteps)) GTEST_SKIP() << kSteps << " is not there";
  const Settings settings;
  const auto file = SafetensorsFile::open(kSteps);
  const index_t batch = settings.integer("batch"), seq = settings.integer("seq");
  const auto ids = file.load<std::int32_t, 3>("ids");  // [steps, batch, seq + 1]
  ASSERT_EQ(ids.shape(), Shape(kCount, batch, seq + 1));
  const auto losses = train::read_training_log(kModel / "log.jsonl").loss;
  ASSERT_GE(losses.size(), static_cast<std::size_t>(kCount));

  ModelConfig config = read_model_config(kModel / "config.json");
  nn::Transformer<float> model(config);
  Philox random(static_cast<std::uint64_t>(settings.integer("seed")));
  model.initialize(random);
  const std::vector<std::int32_t> unused(static_cast<std::size_t>(seq) + 1, 0);
  train::Dataset data(train::TokenSpan(unused, config.vocab_size), data_options(settings, -1));
  train::Trainer<float> trainer(model, data, settings.options());
  std::vector<train::Batch> now;
  now.emplace_back(batch, seq);
  for (index_t step = 0; step < kCount; ++step) {
    for (index_t b = 0; b < batch; ++b)
      for (index_t t = 0; t < seq; ++t) {
        now[0].ids(b, t) = ids(step, b, t);
        now[0].targets(b, t) = ids(step, b, t + 1);
      }
    now[0].valid = batch * seq;
    EXPECT_NEAR(trainer.step(now).loss, losses[static_cast<std::size_t>(step)].value, 1e-3)
        << "step " << step + 1;
  }
  double worst = 0, moved = 0;
  Philox again(static_cast<std::uint64_t>(settings.integer("seed")));
  nn::Transformer<float> first(config);
  first.initialize(again);
  const auto begin = first.parameters();
  std::size_t i = 0;
  for (const auto& p : model.parameters()) {
    const auto sample = file.load<float, 1>(p.name);
    double squares = 0;
    for (index_t k = 0; k < p.values.size(); ++k)
      squares += static_cast<double>(p.values(k)) * static_cast<double>(p.values(k));
    EXPECT_NEAR(squares / static_cast<double>(sample(0)), 1, 1e-3) << p.name;
    for (index_t k = 0; k + 1 < sample.size(); ++k) {
      worst = std::max(worst, std::abs(static_cast<double>(p.values(k) - sample(k + 1))));
      moved = std::max(moved, std::abs(static_cast<double>(begin[i].values(k) - sample(k + 1))));
    }
    ++i;
  }
  EXPECT_GT(moved, 1e-3);          // the reference is no copy of the start
  EXPECT_LT(worst, moved * 2e-2);  // and the repeated steps went where the run went
}

TEST(EmbeddedModel, SpeaksEnglishAtOnce) {
  if (!fs::exists(kModel / "config.json")) GTEST_SKIP() << kModel << " is not there";
  EXPECT_LT(fs::file_size(kModel / "model.safetensors"), 3'000'000u);
  const auto model = nn::load_transformer<float>(kModel);
  const Tokenizer tokenizer = load_tokenizer(kModel);
  Session<float> session(model, 1, 128);
  session.feed({tokenizer.encode("KING RICHARD:\n")});
  GenerateOptions options;
  options.sampling = {.temperature = 0.0};
  options.max_new_tokens = 100;
  Philox random(1);
  std::string text;
  generate(session, options, random, [&](index_t, std::int32_t id) {
    text += tokenizer.piece(id);
    return true;
  });
  int common = 0;  // words of any English text
  for (const char* word :
       {" the ", " and ", " of ", " to ", " my ", " I ", " that ", " a ", " not "})
    common += text.find(word) != std::string::npos ? 1 : 0;
  EXPECT_GE(common, 2) << text;
}

/// Writes the reference from the run's own files; examples/train_embedded.sh calls it.
TEST(EmbeddedModel, RecordsItsFirstTwentySteps) {
  const char* run = std::getenv("RAPT_EMBEDDED_RUN");
  if (run == nullptr) GTEST_SKIP() << "RAPT_EMBEDDED_RUN is not set";
  const Settings settings;
  const train::TokenFile tokens(fs::path(run) / "tokens.bin");
  train::Dataset data(tokens.training(), data_options(settings, tokens.header().separator));
  const index_t batch = settings.integer("batch"), seq = settings.integer("seq");
  auto model = nn::load_transformer<float>(fs::path(run) / "step20");
  std::vector<TensorSpec> specs = {{"ids", DType::i16, {kCount, batch, seq + 1}}};
  for (const auto& p : model.parameters())
    specs.push_back({p.name, DType::f32, {1 + std::min(kSample, p.values.size())}});
  SafetensorsWriter out(kSteps, specs);
  train::Batch now(batch, seq);
  for (index_t step = 0; step < kCount; ++step) {
    data.fill(now, step * batch);
    ASSERT_TRUE(now.one_document);
    for (index_t b = 0; b < batch; ++b) {
      out.write(
          std::span<const std::int32_t>(now.ids.data() + b * seq, static_cast<std::size_t>(seq)));
      out.write(std::span<const std::int32_t>(&now.targets(b, seq - 1), 1));
    }
  }
  for (const auto& p : model.parameters()) {
    double squares = 0;
    for (index_t k = 0; k < p.values.size(); ++k)
      squares += static_cast<double>(p.values(k)) * static_cast<double>(p.values(k));
    const float sum = static_cast<float>(squares);
    out.write(std::span<const float>(&sum, 1));
    out.write(std::span<const float>(p.values.data(),
                                     static_cast<std::size_t>(std::min(kSample, p.values.size()))));
  }
  out.finish();
}

}  // namespace
}  // namespace rapt::test
