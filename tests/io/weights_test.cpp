// WeightFile over both kinds of files, and the way from GGUF to a Hugging Face folder.
#include "rapt/io/weights.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "io_support.hpp"
#include "rapt/io/export.hpp"

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

using Weights = std::map<std::string, std::pair<std::vector<index_t>, std::vector<float>>>;

constexpr index_t kLayers = 2, kModel = 12, kHeads = 3, kKvHeads = 1, kHeadDim = 4, kFfn = 8;
constexpr index_t kVocab = 5;

/// A model under Hugging Face names; all values different, so that a wrong row shows.
Weights make_weights(bool gemma) {
  Weights out;
  float next = 0;
  const auto add = [&](const std::string& name, std::vector<index_t> shape) {
    index_t n = 1;
    for (const index_t extent : shape) n *= extent;
    std::vector<float> values(static_cast<std::size_t>(n));
    for (float& value : values) value = (next += 1) / 256;
    out[name] = {std::move(shape), std::move(values)};
  };
  add("model.embed_tokens.weight", {kVocab, kModel});
  add("model.norm.weight", {kModel});
  for (index_t i = 0; i < kLayers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add(layer + "self_attn.q_proj.weight", {kHeads * kHeadDim, kModel});
    add(layer + "self_attn.k_proj.weight", {kKvHeads * kHeadDim, kModel});
    add(layer + "self_attn.v_proj.weight", {kKvHeads * kHeadDim, kModel});
    add(layer + "self_attn.o_proj.weight", {kModel, kHeads * kHeadDim});
    add(layer + "mlp.gate_proj.weight", {kFfn, kModel});
    add(layer + "mlp.up_proj.weight", {kFfn, kModel});
    add(layer + "mlp.down_proj.weight", {kModel, kFfn});
    add(layer + "input_layernorm.weight", {kModel});
    add(layer + "post_attention_layernorm.weight", {kModel});
    if (gemma) {
      add(layer + "pre_feedforward_layernorm.weight", {kModel});
      add(layer + "post_feedforward_layernorm.weight", {kModel});
      add(layer + "self_attn.q_norm.weight", {kHeadDim});
      add(layer + "self_attn.k_norm.weight", {kHeadDim});
    }
  }
  return out;
}

/// What llama.cpp's converter does with rows of a head: [2, D/2] becomes [D/2, 2].
std::vector<float> permuted(const std::vector<float>& w, index_t heads) {
  std::vector<float> out(w.size());
  const std::size_t row = w.size() / static_cast<std::size_t>(heads * kHeadDim);
  for (index_t h = 0; h < heads; ++h)
    for (index_t half = 0; half < 2; ++half)
      for (index_t i = 0; i < kHeadDim / 2; ++i)
        for (std::size_t c = 0; c < row; ++c)
          out[static_cast<std::size_t>(h * kHeadDim + 2 * i + half) * row + c] =
              w[static_cast<std::size_t>(h * kHeadDim + half * (kHeadDim / 2) + i) * row + c];
  return out;
}

/// The same model as a GGUF file.
Bytes make_gguf(const Weights& weights, const std::string& architecture) {
  const bool gemma = architecture == "gemma3";
  const std::map<std::string, std::string> names = {
      {"input_layernorm", "attn_norm"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"},
      {"post_attention_layernorm", gemma ? "post_attention_norm" : "ffn_norm"},
      {"pre_feedforward_layernorm", "ffn_norm"},
      {"post_feedforward_layernorm", "post_ffw_norm"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"}};
  GgufBuilder b;
  const std::string a = architecture + ".";
  b.string("general.architecture", architecture)
      .u32(a + "block_count", kLayers)
      .u32(a + "embedding_length", kModel)
      .u32(a + "attention.head_count", kHeads)
      .u32(a + "attention.head_count_kv", kKvHeads)
      .u32(a + "attention.key_length", kHeadDim)
      .u32(a + "feed_forward_length", kFfn)
      .u32(a + "context_length", 64)
      .u32(a + "attention.sliding_window", 16)
      .f32(a + "attention.layer_norm_rms_epsilon", 1e-6f);
  for (const auto& [name, tensor] : weights) {
    std::vector<float> values = tensor.second;
    std::string own = name == "model.embed_tokens.weight" ? "token_embd.weight"
                      : name == "model.norm.weight"       ? "output_norm.weight"
                                                          : "";
    if (own.empty()) {
      const std::string rest = name.substr(15, name.size() - 15 - 7);  // model.layers.N. … .weight
      own = "blk." + name.substr(13, 1) + "." + names.at(rest) + ".weight";
      if (architecture == "llama" && rest == "self_attn.q_proj") values = permuted(values, kHeads);
      if (architecture == "llama" && rest == "self_attn.k_proj")
        values = permuted(values, kKvHeads);
    }
    if (gemma && tensor.first.size() == 1)
      for (float& value : values) value += 1;
    std::vector<std::uint64_t> ne(tensor.first.rbegin(), tensor.first.rend());
    b.f32_tensor(own, ne, values);
  }
  return b.build();
}

void write_bytes(const fs::path& path, const Bytes& bytes) {
  write_file(path, detail::as_text(bytes.span()));
}

void expect_equal(const WeightFile& file, const Weights& weights) {
  ASSERT_EQ(file.names().size(), weights.size());
  for (const auto& [name, tensor] : weights) {
    ASSERT_TRUE(file.has(name)) << name;
    ASSERT_EQ(file.shape(name), tensor.first) << name;
    std::vector<float> values(tensor.second.size());
    file.read(name, std::span<float>(values));
    ASSERT_EQ(values, tensor.second) << name;
  }
}

TEST(WeightFile, GgufTensorsHaveHuggingFaceNames) {
  const ScratchFolder folder;
  const Weights weights = make_weights(true);
  write_bytes(folder / "m", make_gguf(weights, "gemma3"));
  const WeightFile file = WeightFile::open(folder / "m");
  ASSERT_NE(file.gguf(), nullptr);
  EXPECT_EQ(file.names().size(), weights.size());
  for (const auto& [name, tensor] : weights) EXPECT_EQ(file.shape(name), tensor.first) << name;
  EXPECT_EQ(file.info("model.layers.1.pre_feedforward_layernorm.weight").name,
            "blk.1.ffn_norm.weight");
  std::vector<float> row(kModel);
  file.read_rows("model.layers.1.mlp.gate_proj.weight", 3, std::span<float>(row));
  EXPECT_EQ(row[2], weights.at("model.layers.1.mlp.gate_proj.weight").second[3 * kModel + 2]);
  EXPECT_EQ((file.load<double, 1>("model.norm.weight", Shape{kModel}))(1),
            1 + static_cast<double>(weights.at("model.norm.weight").second[1]));
}

TEST(WeightFile, NamesWhatIsMissingOrMisshapen) {
  const ScratchFolder folder;
  write_bytes(folder / "m.gguf", make_gguf(make_weights(false), "llama"));
  const WeightFile file = WeightFile::open(folder.path());  // the only .gguf of the folder
  const std::vector<std::string> names = {"model.norm.weight", "a", "b", "c", "d"};
  EXPECT_THAT([&] { file.require(names); },
              ThrowsMessage<FormatError>(HasSubstr("has no tensor named a, b, c and 1 more")));
  EXPECT_NO_THROW(file.require(std::span(names).first(1)));
  EXPECT_THAT([&] { file.info("lm_head.weight"); },
              ThrowsMessage<FormatError>(HasSubstr("has no tensor named lm_head.weight")));
  EXPECT_THAT(
      [&] {
        (file.load<float, 2>("model.embed_tokens.weight", Shape{5, 11}));
      },
      ThrowsMessage<FormatError>(HasSubstr("is [5, 12], expected [5, 11]")));
}

TEST(ExportModel, GivesBackTheLlamaThatWasConvertedToGguf) {
  const ScratchFolder folder;
  const Weights weights = make_weights(false);
  write_bytes(folder / "m.gguf", make_gguf(weights, "llama"));
  std::size_t calls = 0;
  export_model(WeightFile::open(folder / "m.gguf"), folder / "out", DType::f32,
               [&](std::string_view, std::size_t i, std::size_t n) {
                 EXPECT_EQ(i, calls++);
                 EXPECT_EQ(n, weights.size());
               });
  EXPECT_EQ(calls, weights.size());
  const WeightFile out = WeightFile::open(folder / "out");
  expect_equal(out, weights);
  EXPECT_EQ(out.config().rope.layout, RopeLayout::rotate_half);
  EXPECT_EQ(out.config().head_dim, kHeadDim);
  EXPECT_TRUE(out.config().tie_embeddings);
  expect_equal(WeightFile::open(folder / "out/model.safetensors"), weights);
}

TEST(ExportModel, TakesTheOneOutOfGemmasNorms) {
  const ScratchFolder folder;
  const Weights weights = make_weights(true);
  write_bytes(folder / "m.gguf", make_gguf(weights, "gemma3"));
  export_model(WeightFile::open(folder / "m.gguf"), folder / "out", DType::f32);
  const WeightFile out = WeightFile::open(folder / "out");
  expect_equal(out, weights);  // multiples of 1/256: adding and subtracting 1 is exact
  EXPECT_TRUE(out.config().norm_plus_one);
  EXPECT_EQ(out.config().rope_of(0).theta, 10000.0);
  EXPECT_EQ(out.config().window_of(0), 16);
}

TEST(ExportModel, RoundsToTheWantedType) {
  const ScratchFolder folder;
  const Weights weights = make_weights(false);
  write_bytes(folder / "m.gguf", make_gguf(weights, "llama"));
  export_model(WeightFile::open(folder / "m.gguf"), folder / "out", DType::bf16);
  const WeightFile out = WeightFile::open(folder / "out");
  EXPECT_EQ(out.config().dtype, DType::bf16);
  const std::string name = "model.layers.0.mlp.down_proj.weight";
  EXPECT_EQ(out.dtype(name), DType::bf16);
  std::vector<bfloat16> values(kModel * kFfn);
  out.read(name, std::span<bfloat16>(values));
  for (std::size_t i = 0; i < values.size(); ++i)
    EXPECT_EQ(values[i], bfloat16(weights.at(name).second[i]));
  EXPECT_THROW(export_model(out, folder / "again", DType::i8), ValueError);
  // A folder as the source, in place.
  export_model(out, folder / "out", DType::f16);
  EXPECT_EQ(WeightFile::open(folder / "out").dtype(name), DType::f16);
}

TEST(ExportModel, RefusesTensorsWithoutAName) {
  const ScratchFolder folder;
  write_bytes(folder / "m.gguf", make_gguf(make_weights(false), "llama"));
  Bytes bytes = make_gguf(make_weights(false), "llama");
  const std::string text(detail::as_text(bytes.span()));
  const std::size_t at = text.find("blk.0.ffn_up");
  bytes.data()[at] = std::byte{'x'};
  write_bytes(folder / "m.gguf", bytes);
  EXPECT_THAT(
      [&] { export_model(WeightFile::open(folder / "m.gguf"), folder / "out", DType::f32); },
      ThrowsMessage<FormatError>(HasSubstr("xlk.0.ffn_up.weight has no counterpart")));
  EXPECT_FALSE(fs::exists(folder / "out"));
}

TEST(ExportModel, NamesAFolderThatCannotBe) {
  const ScratchFolder folder;
  write_bytes(folder / "m.gguf", make_gguf(make_weights(false), "llama"));
  const WeightFile file = WeightFile::open(folder / "m.gguf");
  EXPECT_THAT([&] { export_model(file, folder / "m.gguf", DType::f32); },
              ThrowsMessage<IoError>(HasSubstr("m.gguf")));
}

TEST(WeightFile, NamesWhatCannotBeOpened) {
  const ScratchFolder folder;
  EXPECT_THAT([&] { WeightFile::open(folder.path()); },
              ThrowsMessage<IoError>(HasSubstr("has no config.json")));
  EXPECT_THROW(WeightFile::open(folder / "nothing"), IoError);
  write_file(folder / "config.json", R"({"model_type": "gpt2"})");
  EXPECT_THAT([&] { WeightFile::open(folder.path()); },
              ThrowsMessage<FormatError>(HasSubstr("model_type is \"gpt2\"")));
}

TEST(WeightFile, OpensTheGoldenModels) {
  int found = 0;
  for (const std::string name : {"llama", "llama31", "mistral", "qwen3", "gemma2", "gemma3"}) {
    const auto path = golden("models/" + name + "/config.json");
    if (!path) continue;
    ++found;
    const WeightFile file = WeightFile::open(path->parent_path());
    EXPECT_EQ(file.shape("model.embed_tokens.weight"),
              (std::vector<index_t>{file.config().vocab_size, file.config().d_model}));
    EXPECT_EQ(file.has("lm_head.weight"), !file.config().tie_embeddings) << name;
  }
  if (found == 0) GTEST_SKIP() << "no models in RAPT_GOLDEN or tests/golden";
}

}  // namespace
}  // namespace rapt::test
