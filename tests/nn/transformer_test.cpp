// The transformer: the law of caches over layers of mixed kinds, padding, saving and loading.
#include "rapt/nn/transformer.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "rapt/nn/checkpoint.hpp"
#include "rapt/text/generate.hpp"

namespace rapt::test {
namespace {

ModelConfig small(const char* architecture = "llama") {
  ModelConfig config;
  config.architecture = architecture;
  config.vocab_size = 37;
  config.d_model = 24;
  config.layers = 3;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 6;
  config.ffn_dim = 32;
  config.max_position = 64;
  config.layer_types.resize(3);
  return config;
}

std::vector<ModelConfig> families() {
  std::vector<ModelConfig> out = {small(), small(), small(), small()};
  out[1].tie_embeddings = true;  // Gemma 3's shape: windows, two ropes, post-norms
  out[1].post_norms = true;
  out[1].norm_plus_one = true;
  out[1].qk_norm = QkNorm::head;
  out[1].activation = Activation::gelu_tanh;
  out[1].layer_types = {{4, true}, {0, false}, {4, true}};
  out[1].embedding_scale = 4.9;
  out[2].attention_softcap = 3;  // Gemma 2's caps, two windows
  out[2].logit_softcap = 5;
  out[2].layer_types = {{3, false}, {5, false}, {0, false}};
  out[3].norm = NormKind::layer;  // the GPT of LayerNorms; sinks and biases
  out[3].sinks = true;
  out[3].qkv_bias = out[3].out_bias = true;
  return out;
}

nn::Transformer<float> random_model(const ModelConfig& config, std::uint64_t seed = 2) {
  nn::Transformer<float> model(config);
  Philox random(seed);
  for (auto& p : model.parameters()) fill_normal(p.values, random, 0.3);
  return model;
}

Tensor<std::int32_t, 2> ids_of(index_t batch, index_t seq) {
  Tensor<std::int32_t, 2> ids(Shape{batch, seq});
  for (index_t i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<std::int32_t>(i * 7 % 37);
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

TEST(Transformer, CachedEqualsUncachedForEveryFamilyAndSplit) {
  for (const ModelConfig& config : families()) {
    const auto model = random_model(config);
    const auto ids = ids_of(2, 17);
    const auto whole = model.forward(ids);
    for (const std::vector<index_t>& split :
         {std::vector<index_t>{17}, {1, 16}, {6, 1, 1, 9}, std::vector<index_t>(17, 1)}) {
      auto cache = model.make_cache(2, 17);
      index_t begin = 0;
      for (const index_t n : split) {
        const auto part = model.forward(ids.slice(1, begin, begin + n), cache);
        EXPECT_LT(distance(part, whole.slice(1, begin, begin + n)), 2e-5);
        begin += n;
      }
      EXPECT_EQ(cache.length(), 17);
    }
  }
}

TEST(Transformer, LocalLayersKeepTheirWindowOnly) {
  const ModelConfig config = families()[1];
  const auto model = random_model(config);
  const auto cache = model.make_cache(3, 64);
  const index_t token = 2 * 2 * 6 * 4;  // k and v, kv_heads, head_dim, float
  EXPECT_EQ(cache.bytes(), 3 * token * (64 + 4 + 4));
}

TEST(Transformer, FootprintIsWhatTheCacheAllocatesAndReads) {
  const auto model = random_model(families()[1]);
  auto cache = model.make_cache(2, 32);
  model.forward(ids_of(2, 32), cache);
  const Footprint lens = model.footprint(32, 2);
  EXPECT_EQ(lens.bytes_stored, cache.bytes());
  EXPECT_EQ(2 * lens.bytes_read_per_query, cache.bytes_read_per_token());
  EXPECT_EQ(lens.layers, 3);
}

TEST(Transformer, FullCacheThrowsAndStaysAsItWas) {
  const auto model = random_model(small());
  const auto ids = ids_of(1, 12);
  auto cache = model.make_cache(1, 8);
  model.forward(ids.slice(1, 0, 6), cache);
  EXPECT_THROW(model.forward(ids.slice(1, 6, 12), cache), CapacityError);
  EXPECT_EQ(cache.length(), 6);
  EXPECT_LT(distance(model.forward(ids.slice(1, 6, 8), cache), model.forward(ids).slice(1, 6, 8)),
            2e-5);
}

TEST(Transformer, AnIdOutsideTheVocabularyLeavesTheCacheAsItWas) {
  const auto model = random_model(small());
  auto cache = model.make_cache(1, 8);
  Tensor<std::int32_t, 2> ids(Shape{1, 3});
  ids(0, 1) = 37;
  EXPECT_THROW(model.forward(ids, cache), ValueError);
  EXPECT_EQ(cache.length(), 0);
}

TEST(Transformer, SavedAndLoadedIsTheSame) {
  const auto folder = std::filesystem::temp_directory_path() / "rapt_transformer_test";
  std::filesystem::remove_all(folder);
  for (const char* architecture : {"llama", "rapt_gpt"}) {
    ModelConfig config = small(architecture);
    if (std::string(architecture) == "rapt_gpt") config.norm = NormKind::layer;
    auto model = random_model(config);
    nn::save_transformer(model, folder);
    const auto loaded = nn::load_transformer<float>(folder);
    EXPECT_EQ(distance(loaded.forward(ids_of(1, 9)), model.forward(ids_of(1, 9))), 0);
    std::filesystem::remove_all(folder);
  }
}

TEST(Transformer, LoadingNamesAMissingTensor) {
  const auto folder = std::filesystem::temp_directory_path() / "rapt_transformer_missing";
  std::filesystem::remove_all(folder);
  auto model = random_model(small());
  nn::save_transformer(model, folder);
  auto parameters = model.parameters();
  parameters.erase(parameters.begin() + 3);
  const std::string missing = model.parameters()[3].name;
  save_parameters(std::move(parameters), folder / "model.safetensors");
  EXPECT_THAT([&] { nn::load_transformer<float>(folder); },
              testing::ThrowsMessage<FormatError>(testing::HasSubstr(missing)));
  std::filesystem::remove_all(folder);
}

// ---- generation ----

std::vector<std::int32_t> greedy(const nn::Transformer<float>& model, std::vector<std::int32_t> ids,
                                 int n) {
  std::vector<std::int32_t> out;
  for (int step = 0; step < n; ++step) {
    const auto logits = model.forward(TensorView<const std::int32_t, 2>(
        ids.data(), Shape<2>{1, static_cast<index_t>(ids.size())}));
    const float* row = logits.data() + (logits.extent(1) - 1) * logits.extent(2);
    out.push_back(argmax({row, static_cast<std::size_t>(logits.extent(2))}));
    ids.push_back(out.back());
  }
  return out;
}

TEST(Generate, BatchOfDifferentLengthsEqualsEachPromptAlone) {
  for (const ModelConfig& config : families()) {
    const auto model = random_model(config);
    const std::vector<std::vector<std::int32_t>> prompts = {{1, 2, 3, 4, 5, 6, 7}, {9}, {8, 30, 2}};
    for (const bool cached : {true, false}) {
      Session<float> session(model, 3, 20, cached);
      session.feed(prompts);
      Philox random(1);
      const auto result =
          generate(session, {.max_new_tokens = 10, .sampling = {.temperature = 0}}, random);
      for (std::size_t row = 0; row < prompts.size(); ++row)
        EXPECT_EQ(result.ids[row], greedy(model, prompts[row], 10))
            << "row " << row << " " << cached;
    }
  }
}

TEST(Generate, StopsAtEndIdsLimitsAndCancellation) {
  const auto model = random_model(small());
  const auto free = greedy(model, {1, 2}, 6);
  const auto run = [&](GenerateOptions options, index_t capacity = 20) {
    Session<float> session(model, 1, capacity);
    session.feed({{1, 2}});
    options.sampling.temperature = 0;
    Philox random(1);
    return generate(session, options, random);
  };
  std::size_t first = 3;  // the first time that token comes
  while (std::find(free.begin(), free.begin() + static_cast<std::ptrdiff_t>(first), free[first]) !=
         free.begin() + static_cast<std::ptrdiff_t>(first))
    --first;
  EXPECT_EQ(run({.max_new_tokens = 6, .end_ids = {free[first]}}).ids[0].size(), first);
  EXPECT_EQ(run({.max_new_tokens = 0}).ids[0].size(), 0u);
  const auto full = run({.max_new_tokens = 6}, 4);
  EXPECT_TRUE(full.full);
  EXPECT_EQ(full.ids[0].size(), 3u);  // two fed, one more sampled
  const std::atomic<bool> cancel{true};
  EXPECT_TRUE(run({.max_new_tokens = 6, .cancel = &cancel}).cancelled);
}

TEST(Generate, ALongPromptGoesInPieces) {
  ModelConfig config = families()[1];
  config.max_position = 2000;
  const auto model = random_model(config);
  const auto ids = ids_of(1, 1100);
  Session<float> session(model, 1, 1200);
  session.feed({std::vector<std::int32_t>(ids.data(), ids.data() + ids.size())});
  const auto whole = model.forward(ids);
  for (index_t v = 0; v < 37; ++v)
    EXPECT_NEAR(session.logits(0)[static_cast<std::size_t>(v)], whole(0, 1099, v), 5e-5);
}

TEST(Generate, RefusesEmptyPromptsAndForeignIds) {
  const auto model = random_model(small());
  Session<float> session(model, 1, 8);
  EXPECT_THROW(session.feed({{}}), ValueError);
  EXPECT_THROW(session.feed({{1, 37}}), ValueError);
  EXPECT_THROW(session.feed({std::vector<std::int32_t>(9, 1)}), CapacityError);
  EXPECT_EQ(session.length(), 0);
  session.feed({{1, 2, 3}});
  EXPECT_EQ(session.length(), 3);
}

}  // namespace
}  // namespace rapt::test
