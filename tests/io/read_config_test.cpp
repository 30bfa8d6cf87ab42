// config.json and GGUF metadata to ModelConfig, and back.
#include "rapt/io/read_config.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>

#include "io_support.hpp"
#include "rapt/io/gguf_config.hpp"

namespace rapt::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

const char kLlama[] = R"({"model_type": "llama", "vocab_size": 96, "hidden_size": 48,
  "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "intermediate_size": 96, "max_position_embeddings": 256)";

ModelConfig llama(const std::string& more) {
  return parse_model_config(std::string(kLlama) + more + "}", "f");
}

void expect_refused(const std::string& json, const std::string& message) {
  EXPECT_THAT([&] { parse_model_config(json, "f"); },
              ThrowsMessage<FormatError>(HasSubstr(message)))
      << json;
}

TEST(ReadConfig, LlamaWithItsDefaults) {
  const ModelConfig c = llama("");
  EXPECT_EQ(c.architecture, "llama");
  EXPECT_EQ(c.head_dim, 12);
  EXPECT_EQ(c.group(), 2);
  EXPECT_EQ(c.norm_eps, 1e-6);
  EXPECT_EQ(c.rope.theta, 10000.0);
  EXPECT_EQ(c.rope.kind, "default");
  EXPECT_FALSE(c.tie_embeddings);
  EXPECT_EQ(c.activation, Activation::silu);
  EXPECT_EQ(c.layer_types, std::vector<LayerConfig>(2));
  EXPECT_EQ(c.bos_id, -1);
  EXPECT_TRUE(c.eos_ids.empty());
}

TEST(ReadConfig, BothSpellingsOfRopeAreEqual) {
  const std::string settings =
      R"("factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 64)";
  const ModelConfig modern = llama(R"(, "rope_parameters": {"rope_type": "llama3",
      "rope_theta": 500000.0, )" + settings +
                                   "}, \"dtype\": \"bfloat16\"");
  const ModelConfig older = llama(R"(, "rope_theta": 500000, "torch_dtype": "bfloat16",
      "rope_scaling": {"type": "llama3", )" +
                                  settings + "}");
  EXPECT_EQ(modern, older);
  EXPECT_EQ(modern.rope.kind, "llama3");
  EXPECT_EQ(modern.rope.factor, 8.0);
  EXPECT_EQ(modern.rope.original_max_position, 64);
  EXPECT_EQ(modern.dtype, DType::bf16);
}

TEST(ReadConfig, EveryRopeKind) {
  const auto rope = [](const std::string& settings) {
    return llama(R"(, "rope_scaling": {)" + settings + "}").rope;
  };
  EXPECT_EQ(rope(R"("type": "linear", "factor": 4)").factor, 4.0);
  EXPECT_EQ(rope(R"("rope_type": "dynamic", "factor": 2)").kind, "dynamic");
  const RopeConfig yarn = rope(R"("rope_type": "yarn", "factor": 32, "beta_fast": 16,
      "truncate": false, "original_max_position_embeddings": 4096, "attention_factor": 1.25)");
  EXPECT_EQ(yarn.beta_fast, 16.0);
  EXPECT_EQ(yarn.beta_slow, 1.0);
  EXPECT_FALSE(yarn.truncate);
  EXPECT_EQ(yarn.attention_factor, 1.25);
  const RopeConfig longrope = rope(R"("type": "su", "short_factor": [1, 1.5],
      "long_factor": [2, 4], "original_max_position_embeddings": 4096)");
  EXPECT_EQ(longrope.kind, "longrope");
  EXPECT_THAT(longrope.long_factor, ElementsAre(2.0, 4.0));
  EXPECT_EQ(llama(R"(, "rope_scaling": null, "partial_rotary_factor": 0.5)").rope.partial_factor,
            0.5);
}

TEST(ReadConfig, GoldenModelsAreEqualInBothSpellingsAndAfterWriting) {
  int found = 0;
  for (const std::string name : {"llama", "llama31", "mistral", "qwen3", "gemma2", "gemma3"}) {
    const auto path = golden("models/" + name + "/config.json");
    if (!path) continue;
    ++found;
    SCOPED_TRACE(name);
    const ModelConfig config = read_model_config(path->parent_path());
    EXPECT_EQ(config, read_model_config(path->parent_path() / "config_legacy.json"));
    EXPECT_EQ(config, parse_model_config(write_model_config(config), "written"));
  }
  if (found == 0) GTEST_SKIP() << "no models in RAPT_GOLDEN or tests/golden";
}

TEST(ReadConfig, MistralHasAWindowUnlessItSaysNull) {
  const std::string sizes =
      std::string(kLlama).replace(std::string(kLlama).find("llama"), 5, "mistral");
  EXPECT_EQ(parse_model_config(sizes + "}", "f").window_of(1), 4096);
  EXPECT_EQ(parse_model_config(sizes + R"(, "sliding_window": 6})", "f").window_of(0), 6);
  EXPECT_EQ(parse_model_config(sizes + R"(, "sliding_window": null})", "f").window_of(0), 0);
}

TEST(ReadConfig, QwenBiasesWindowsAndNorms) {
  const auto with = [](const std::string& type, const std::string& more) {
    std::string json = kLlama;
    json.replace(json.find("llama"), 5, type);
    return parse_model_config(json + more + "}", "f");
  };
  const ModelConfig qwen2 =
      with("qwen2", R"(, "use_sliding_window": true, "sliding_window": 7, "max_window_layers": 1)");
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.out_bias);
  EXPECT_EQ(qwen2.window_of(0), 0);
  EXPECT_EQ(qwen2.window_of(1), 7);
  EXPECT_EQ(with("qwen2", R"(, "use_sliding_window": false, "sliding_window": 7)").window_of(1), 0);
  const ModelConfig qwen3 = with("qwen3", R"(, "eos_token_id": [3, 4], "bos_token_id": 2)");
  EXPECT_EQ(qwen3.qk_norm, QkNorm::head);
  EXPECT_EQ(qwen3.head_dim, 128);
  EXPECT_THAT(qwen3.eos_ids, ElementsAre(3, 4));
  EXPECT_EQ(qwen3.bos_id, 2);
  EXPECT_EQ(qwen2, parse_model_config(write_model_config(qwen2), "f"));
  EXPECT_EQ(qwen3, parse_model_config(write_model_config(qwen3), "f"));
}

TEST(ReadConfig, GemmaFamily) {
  std::string json = kLlama;
  json.replace(json.find("llama"), 5, "gemma3_text");
  json.replace(json.find("\"num_hidden_layers\": 2"), 22, "\"num_hidden_layers\": 7");
  const ModelConfig c = parse_model_config(
      json + R"(, "head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 24,
                "rope_theta": 1e6, "rope_local_base_freq": 9000, "sliding_window_pattern": 3,
                "rope_scaling": {"rope_type": "linear", "factor": 8}})",
      "f");
  EXPECT_TRUE(c.norm_plus_one && c.post_norms && c.tie_embeddings);
  EXPECT_EQ(c.activation, Activation::gelu_tanh);
  EXPECT_EQ(c.embedding_scale, std::sqrt(48.0));
  EXPECT_EQ(c.query_scale, 1 / std::sqrt(24.0));
  EXPECT_EQ(c.window_of(1), 5);
  EXPECT_EQ(c.window_of(2), 0);
  EXPECT_EQ(c.rope_of(1).theta, 9000.0);
  EXPECT_EQ(c.rope_of(1).kind, "default");
  EXPECT_EQ(c.rope_of(2).kind, "linear");
  EXPECT_EQ(c, parse_model_config(write_model_config(c), "f"));

  const std::string inner = R"({"hidden_size": 640, "intermediate_size": 2048,
      "num_hidden_layers": 18, "model_type": "gemma3_text", "sliding_window": 512})";
  const ModelConfig nested =
      parse_model_config(R"({"model_type": "gemma3", "text_config": )" + inner + "}", "f");
  EXPECT_EQ(nested.heads, 8);
  EXPECT_EQ(nested.vocab_size, 262208);
  expect_refused(R"({"model_type": "gemma3", "text_config": {"hidden_size": "x"}})",
                 "text_config.hidden_size is \"x\"");

  json.replace(json.find("gemma3_text"), 11, "gemma2");
  const ModelConfig gemma2 =
      parse_model_config(json + R"(, "final_logit_softcapping": null})", "f");
  EXPECT_EQ(gemma2.attention_softcap, 50.0);
  EXPECT_EQ(gemma2.logit_softcap, 0.0);
  EXPECT_EQ(gemma2.window_of(0), 4096);
  EXPECT_EQ(gemma2.window_of(1), 0);
  EXPECT_FALSE(gemma2.layer_types[0].local_rope);
  EXPECT_EQ(gemma2, parse_model_config(write_model_config(gemma2), "f"));
}

TEST(ReadConfig, RaptGptComesBackFromItsOwnFile) {
  ModelConfig c;
  c.architecture = "rapt_gpt";
  c.vocab_size = 512;
  c.d_model = 64;
  c.layers = 3;
  c.heads = 8;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.ffn_dim = 192;
  c.max_position = 128;
  c.norm = NormKind::layer;
  c.tie_embeddings = true;
  c.layer_types.resize(3);
  c.layer_types[1].window = 16;
  c.eos_ids = {0};
  c.dtype = DType::bf16;
  EXPECT_EQ(c, parse_model_config(write_model_config(c), "f"));
  c.qk_norm = QkNorm::flat;
  c.rope.kind = "yarn";
  c.rope.factor = 4;
  c.rope.original_max_position = 32;
  c.rope.truncate = false;
  EXPECT_EQ(c, parse_model_config(write_model_config(c), "f"));
}

TEST(ReadConfig, RefusesWhatItCannotCompute) {
  expect_refused("[]", "f: the text is [], expected an object");
  expect_refused("{", "f: [json.exception.parse_error.101]");
  expect_refused("{\"model_type\": \"\xff\"}", "f: [json.exception");
  expect_refused(R"({"vocab_size": 3})", "f: has no model_type, expected a string");
  expect_refused(R"({"model_type": "mamba"})", "model_type is \"mamba\", expected llama, mistral");
  expect_refused(std::string(100000, '['), "nested more than 32 deep");
  const auto refused = [](const std::string& more, const std::string& message) {
    expect_refused(std::string(kLlama) + more + "}", message);
  };
  refused(R"(, "hidden_act": "relu")", "hidden_act is \"relu\", expected silu");
  refused(R"(, "rope_scaling": {"type": "magic"})", "rope_scaling.type is \"magic\"");
  refused(R"(, "rope_scaling": {"type": "linear"})", "has no rope_scaling.factor");
  refused(R"(, "rope_scaling": {"type": "linear", "factor": 2, "mrope_section": [1]})",
          "rope_scaling.mrope_section is [1], expected no such RoPE setting");
  refused(R"(, "rope_parameters": {"full_attention": {}, "chunked": {}})",
          "rope_parameters.chunked");
  refused(R"(, "quantization_config": {"bits": 4})", "quantization_config is {\"bits\":4}");
  refused(R"(, "layer_types": ["full_attention"])", "an array of 2 names = num_hidden_layers");
  refused(R"(, "layer_types": ["full_attention", "linear_attention"])",
          "layer_types[1] is \"linear_attention\"");
  refused(R"(, "layer_types": ["full_attention", "sliding_attention"])", "has no sliding_window");
  refused(R"(, "dtype": "int8")", "dtype is \"int8\"");
  refused(R"(, "eos_token_id": "x")", "eos_token_id is \"x\", expected an id");
  refused(R"(, "tie_word_embeddings": 1)", "tie_word_embeddings is 1, expected true or false");
  refused(R"(, "rms_norm_eps": -1)", "rms_norm_eps is -1, expected a number from 0 to 1");
  refused(R"(, "vocab_size": 1e3)", "vocab_size is 1000.0, expected an integer");
  refused(R"(, "vocab_size": 18446744073709551615)", "vocab_size is 18446744073709551615");
  refused(R"(, "num_hidden_layers": 1000000)", "expected an integer from 1 to 100000");
  refused(R"(, "num_key_value_heads": 3)", "a divisor of num_attention_heads = 4");
  refused(R"(, "hidden_size": 50)", "a multiple of num_attention_heads = 4");
  refused(R"(, "head_dim": 0)", "head_dim is 0");
}

TEST(WriteConfig, RefusesWhatTheFileCannotSay) {
  ModelConfig c = llama("");
  c.rope.layout = RopeLayout::interleaved;
  EXPECT_THAT([&] { write_model_config(c); }, ThrowsMessage<ValueError>(HasSubstr("RoPE layout")));
  c = llama("");
  c.norm_plus_one = true;
  EXPECT_THROW(write_model_config(c), ValueError);
  c = llama("");
  c.layer_types[1].window = 8;
  EXPECT_THROW(write_model_config(c), ValueError);
  c = llama("");
  c.architecture = "other";
  EXPECT_THROW(write_model_config(c), ValueError);
}

// ---- GGUF ----

GgufBuilder gguf(const std::string& architecture) {
  GgufBuilder b;
  const std::string a = architecture + ".";
  b.string("general.architecture", architecture)
      .u32(a + "block_count", 2)
      .u32(a + "embedding_length", 8)
      .u32(a + "attention.head_count", 2)
      .u32(a + "feed_forward_length", 16)
      .u32(a + "context_length", 64)
      .f32(a + "attention.layer_norm_rms_epsilon", 1e-5f)
      .f32_tensor("token_embd.weight", {8, 3}, std::vector<float>(24));
  return b;
}

ModelConfig parse_gguf(const GgufBuilder& builder) {
  const Bytes bytes = builder.build();
  return model_config_from_gguf(GgufFile::from_bytes(bytes.span(), "f"));
}

TEST(GgufConfig, LlamaIsInterleaved) {
  const ModelConfig c = parse_gguf(gguf("llama").u32("llama.attention.head_count_kv", 1));
  EXPECT_EQ(c.rope.layout, RopeLayout::interleaved);
  EXPECT_EQ(c.norm_eps, 1e-5) << "the decimal that was meant, not the float's digits";
  EXPECT_EQ(c.vocab_size, 3);
  EXPECT_EQ(c.kv_heads, 1);
  EXPECT_EQ(c.head_dim, 4);
  EXPECT_TRUE(c.tie_embeddings);
  EXPECT_EQ(parse_gguf(gguf("qwen2")).rope.layout, RopeLayout::rotate_half);
}

TEST(GgufConfig, TensorsTellBiasesNormsAndTying) {
  GgufBuilder b = gguf("qwen3");
  b.f32_tensor("output.weight", {8, 3}, std::vector<float>(24))
      .f32_tensor("blk.0.attn_q.bias", {8}, std::vector<float>(8))
      .f32_tensor("blk.0.attn_q_norm.weight", {4}, std::vector<float>(4));
  const ModelConfig c = parse_gguf(b);
  EXPECT_FALSE(c.tie_embeddings);
  EXPECT_TRUE(c.qkv_bias);
  EXPECT_FALSE(c.out_bias);
  EXPECT_EQ(c.qk_norm, QkNorm::head);
}

TEST(GgufConfig, LlamaThreeScalesByATensor) {
  const ModelConfig c = parse_gguf(gguf("llama").f32_tensor("rope_freqs.weight", {2}, {1, 8}));
  EXPECT_EQ(c.rope.kind, "longrope");
  EXPECT_THAT(c.rope.long_factor, ElementsAre(1.0, 8.0));
  EXPECT_EQ(c.rope.short_factor, c.rope.long_factor);
  EXPECT_EQ(c.rope.attention_factor, 1.0);
}

TEST(GgufConfig, Gemma3KnowsWhatTheFileDoesNotSay) {
  GgufBuilder b = gguf("gemma3");
  b.u32("gemma3.attention.sliding_window", 5)
      .u32("gemma3.attention.key_length", 16)
      .u32("gemma3.attention.value_length", 16)
      .f32("gemma3.rope.freq_base", 1e6f)
      .string("gemma3.rope.scaling.type", "linear")
      .f32("gemma3.rope.scaling.factor", 8);
  const ModelConfig c = parse_gguf(b);
  EXPECT_EQ(c.architecture, "gemma3_text");
  EXPECT_FALSE(c.norm_plus_one);
  EXPECT_TRUE(c.post_norms);
  EXPECT_EQ(c.rope_of(0).theta, 10000.0);
  EXPECT_EQ(c.rope_of(0).kind, "default");
  EXPECT_EQ(c.rope.theta, 1e6);
  EXPECT_EQ(c.rope.factor, 8.0);
  EXPECT_EQ(c.query_scale, 0.25);
  EXPECT_EQ(c.embedding_scale, std::sqrt(8.0));
  EXPECT_EQ(parse_gguf(gguf("gemma2")).attention_softcap, 50.0);
}

TEST(GgufConfig, RefusesByName) {
  const auto refused = [](const GgufBuilder& builder, const std::string& message) {
    EXPECT_THAT([&] { parse_gguf(builder); }, ThrowsMessage<FormatError>(HasSubstr(message)));
  };
  refused(gguf("mamba"), "f: general.architecture is mamba, expected llama, qwen2");
  refused(gguf("llama").u32("llama.expert_count", 8), "llama.expert_count is 8");
  refused(gguf("llama").u32("llama.attention.head_count_kv", 0), "head_count_kv is 0");
  refused(gguf("llama").u32("llama.attention.value_length", 7), "value_length is 7, expected 4");
  refused(gguf("llama").string("llama.rope.scaling.type", "magic"), "is magic, expected none");
  refused(gguf("llama").u32("tokenizer.ggml.bos_token_id", 3), "bos_token_id is 3, expected an id");
  refused(gguf("gemma3"), "has no metadata gemma3.attention.sliding_window");
  GgufBuilder empty;
  refused(empty, "has no metadata general.architecture");
  empty.string("general.architecture", "llama");
  refused(empty, "has no metadata llama.block_count");
}

TEST(GgufConfig, RealModelsSayWhatTheReferenceSays) {
  for (const auto& [file, name] : {std::pair("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m"),
                                   std::pair("gemma-3-270m-q4_k_m.gguf", "gemma3-270m")}) {
    const auto model = real_model(file);
    const auto path = golden(std::string("models/") + name + "/config.json");
    if (!model || !path)
      GTEST_SKIP() << file << " is not in RAPT_MODELS or models/, or " << name
                   << " not in RAPT_GOLDEN or tests/golden";
    const auto want = nlohmann::json::parse(read_file(*path));
    const ModelConfig c = model_config_from_gguf(GgufFile::open(*model));
    EXPECT_EQ(c.layers, want["n_layers"]);
    EXPECT_EQ(c.d_model, want["d_model"]);
    EXPECT_EQ(c.heads, want["n_heads"]);
    EXPECT_EQ(c.kv_heads, want["n_kv_heads"]);
    EXPECT_EQ(c.head_dim, want["head_dim"]);
    EXPECT_EQ(c.ffn_dim, want["d_ff"]);
    EXPECT_EQ(c.vocab_size, want["vocab_size"]);
    EXPECT_EQ(c.norm_eps, want["norm_eps"]);
    EXPECT_EQ(c.max_position, want["context_length"]);
    EXPECT_EQ(c.tie_embeddings, want["tied_output"]);
    EXPECT_EQ(c.bos_id, want["tokenizer"]["bos"]);
    EXPECT_EQ(c.eos_ids[0], want["tokenizer"]["eos"]);
    EXPECT_EQ(c.pad_id, want["tokenizer"]["pad"]);
    if (want["rope"].contains("theta_local")) {
      EXPECT_EQ(c.rope.theta, want["rope"]["theta_global"]);
      EXPECT_EQ(c.query_scale, want["attention_scale"]);
      for (index_t i = 0; i < c.layers; ++i) {
        bool global = false;
        for (const auto& layer : want["global_layers"]) global = global || layer == i;
        EXPECT_EQ(c.window_of(i), global ? 0 : want["sliding_window"].get<index_t>());
        EXPECT_EQ(
            c.rope_of(i).theta,
            (global ? want["rope"]["theta_global"] : want["rope"]["theta_local"]).get<double>());
      }
    } else {
      EXPECT_EQ(c.rope.theta, want["rope"]["theta"]);
      EXPECT_EQ(c.query_scale, 0.0);
    }
  }
}

}  // namespace
}  // namespace rapt::test
