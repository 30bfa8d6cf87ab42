// A transformer whose matrices are quantized blocks, beside its twin with the values that they
// stand for; and caches of half under fp32 activations.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "rapt/nn/checkpoint.hpp"
#include "rapt/text/generate.hpp"

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using Model = nn::Transformer<float>;

ModelConfig small_config(bool local_layers) {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = 41;
  config.d_model = 32;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 8;
  config.ffn_dim = 64;
  config.max_position = 64;
  config.tie_embeddings = local_layers;
  config.layer_types.resize(3);
  config.sinks = local_layers;
  if (local_layers) config.layer_types = {{4, true}, {0, false}, {4, true}};
  return config;
}

UnpackedBlock random_block(BlockFormat format, Philox& random) {
  const BlockFormatInfo& info = block_format(format);
  UnpackedBlock b{};
  for (auto& code : b.codes)
    code = static_cast<std::uint8_t>(random.uniform() * ((1 << info.bits) - 0.01));
  const float d = 0.8f / static_cast<float>(1 << info.bits);
  b.d = half(d);
  b.m = half(-d * static_cast<float>(1 << (info.bits - 1)));
  return b;
}

/// Every matrix in blocks, the parts of a fused one in different formats.
void quantize(Model& model) {
  Philox random(5);
  const BlockFormat formats[] = {BlockFormat::q4_1, BlockFormat::q8_0, BlockFormat::q5_0};
  for (const auto& slot : model.weights()) {
    QuantizedMatrix blocks(slot.weight->in());
    int part_index = 0;
    for (const auto& part : slot.parts) {
      const BlockFormat format = formats[part_index++ % 3];
      std::vector<UnpackedBlock> made;
      for (index_t i = 0; i < part.rows * slot.weight->in() / 32; ++i)
        made.push_back(random_block(format, random));
      blocks.append(format, part.rows, [&](index_t row, index_t b) {
        return made[static_cast<std::size_t>(row * (slot.weight->in() / 32) + b)];
      });
    }
    slot.weight->hold(std::move(blocks));
  }
}

/// The same model in elements.
Model dequantized(Model& model) {
  Model out(model.config());
  const auto from = model.weights(), to = out.weights();
  for (std::size_t i = 0; i < from.size(); ++i)
    for (index_t row = 0; row < to[i].weight->out(); ++row)
      from[i].weight->blocks().dequantize_row(
          row, to[i].weight->view().data() + row * to[i].weight->in());
  return out;
}

Tensor<std::int32_t, 2> ids_of(index_t batch, index_t seq) {
  Tensor<std::int32_t, 2> ids(Shape{batch, seq});
  for (index_t i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<std::int32_t>(i * 7 % 41);
  return ids;
}

double distance(TensorView<const float, 3> a, TensorView<const float, 3> b) {
  EXPECT_EQ(a.shape(), b.shape());
  double worst = 0;
  for (index_t i = 0; i < a.extent(0); ++i)
    for (index_t j = 0; j < a.extent(1); ++j)
      for (index_t k = 0; k < a.extent(2); ++k)
        worst = std::max(worst, std::abs(static_cast<double>(a(i, j, k)) - b(i, j, k)));
  return worst;
}

struct QuantizedModel : testing::TestWithParam<bool> {
  QuantizedModel() : model(small_config(GetParam()), Cpu{}, WeightStorage::none) {
    quantize(model);
  }
  Model model;
};
INSTANTIATE_TEST_SUITE_P(Layers, QuantizedModel, testing::Bool());

TEST_P(QuantizedModel, ComputesWhatItsValuesDoUpToTheRoundingOfActivations) {
  const Model twin = dequantized(model);
  const auto ids = ids_of(2, 13);
  const auto blocks = model.forward(ids), values = twin.forward(ids);
  double size = 0;
  for (index_t i = 0; i < values.size(); ++i)
    size = std::max(size, std::abs(static_cast<double>(values.data()[i])));
  EXPECT_LT(distance(blocks, values), 0.05 * size);
  EXPECT_GT(distance(blocks, values), 0);  // or the blocks were not used
}

TEST_P(QuantizedModel, CachedEqualsUncached) {
  const auto ids = ids_of(2, 13);
  const auto whole = model.forward(ids);
  auto cache = model.make_cache(2, 13);
  for (index_t t = 0; t < 13; ++t)
    // Near a tie of two codes a rounding moves a whole step.
    EXPECT_LT(distance(model.forward(ids.slice(1, t, t + 1), cache), whole.slice(1, t, t + 1)),
              0.05);
}

TEST_P(QuantizedModel, HasNoElementsToLearnOrToSave) {
  EXPECT_TRUE(model.is_quantized());
  for (const auto& p : model.parameters())
    EXPECT_TRUE(p.name.find("norm") != std::string::npos ||
                p.name.find("sinks") != std::string::npos)
        << p.name;
  index_t bytes = 0;
  for (const auto& slot : model.weights()) bytes += slot.weight->blocks().bytes();
  EXPECT_LE(model.weight_bytes_per_token(), bytes);
  EXPECT_THAT([&] { model.require_gradients(); },
              ThrowsMessage<ValueError>(HasSubstr("holds quantized blocks, expected elements")));
  const auto folder = std::filesystem::temp_directory_path() / "rapt_quantized_model_test";
  EXPECT_THAT([&] { nn::save_transformer(model, folder); },
              ThrowsMessage<ValueError>(HasSubstr("model holds quantized blocks")));
  EXPECT_FALSE(std::filesystem::exists(folder));
}

TEST_P(QuantizedModel, ACacheOfHalfIsHalfAsLargeAndCloseBy) {
  const Model twin = dequantized(model);
  const std::vector<std::vector<std::int32_t>> prompts = {{1, 2, 3, 4, 5, 6, 7}, {9}, {8, 30, 2}};
  Session<float> wide(twin, 3, 24);
  Session<float, Cpu, half> narrow(twin, 3, 24);
  wide.feed(prompts);
  narrow.feed(prompts);
  for (int step = 0; step < 12; ++step) {
    for (index_t row = 0; row < 3; ++row)
      for (std::size_t v = 0; v < 41; ++v)
        ASSERT_NEAR(narrow.logits(row)[v], wide.logits(row)[v], 0.03) << step;
    const std::vector<std::vector<std::int32_t>> next(3, {step * 3});
    wide.feed(next);
    narrow.feed(next);
  }
  EXPECT_EQ(2 * narrow.cache_bytes(), wide.cache_bytes());
}

}  // namespace
}  // namespace rapt::test
