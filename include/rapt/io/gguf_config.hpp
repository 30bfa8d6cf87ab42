// ModelConfig from the metadata of a GGUF file, and the names of its tensors in Hugging Face's
// terms.
//
// What a GGUF file does not say, or says differently from config.json:
//
//   llama     rows of W_q and W_k are permuted, so RoPE is interleaved there; Llama 3.1's frequency
//             scaling is a tensor, rope_freqs.weight
//   gemma*    norm weights already hold the + 1
//   gemma2    windows alternate, layer 0 has one; caps 50 and 30 where the file has none
//   gemma3    five local layers, then a global one; local layers have RoPE base 10000; a linear
//   RoPE
//             scaling holds for the global ones; 27B scales queries by sqrt(heads / d_model)
//   all       whether embeddings are tied and which biases exist is seen from the tensors
//
// Errors: FormatError naming the file, the key and its value; another general.architecture, experts
// and per-layer sizes are refused.
//
// Source: llama.cpp, src/llama-model.cpp (load_hparams) and gguf-py/gguf/constants.py.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/io/gguf.hpp"
#include "rapt/io/model_config.hpp"

namespace rapt {

/// The Hugging Face name of a GGUF tensor: blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.
/// weight. A name that has no counterpart is returned as it is. `architecture` is
/// general.architecture: Gemma has four norms where llama has two.
inline std::string hugging_face_name(std::string_view gguf_name, std::string_view architecture) {
  const bool gemma = architecture.substr(0, 5) == "gemma";
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 3> kModel = {
      {{"token_embd.", "model.embed_tokens."},
       {"output_norm.", "model.norm."},
       {"output.", "lm_head."}}};
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 13> kLayer = {
      {{"attn_norm.", "input_layernorm."},
       {"attn_q.", "self_attn.q_proj."},
       {"attn_k.", "self_attn.k_proj."},
       {"attn_v.", "self_attn.v_proj."},
       {"attn_output.", "self_attn.o_proj."},
       {"attn_q_norm.", "self_attn.q_norm."},
       {"attn_k_norm.", "self_attn.k_norm."},
       {"post_attention_norm.", "post_attention_layernorm."},
       {"ffn_norm.", "post_attention_layernorm."},  // llama; gemma below
       {"post_ffw_norm.", "post_feedforward_layernorm."},
       {"ffn_gate.", "mlp.gate_proj."},
       {"ffn_up.", "mlp.up_proj."},
       {"ffn_down.", "mlp.down_proj."}}};

  for (const auto& [from, to] : kModel)
    if (gguf_name.substr(0, from.size()) == from)
      return std::string(to) + std::string(gguf_name.substr(from.size()));
  if (gguf_name.substr(0, 4) != "blk.") return std::string(gguf_name);
  const std::size_t dot = gguf_name.find('.', 4);
  if (dot == std::string_view::npos) return std::string(gguf_name);
  const std::string layer = "model.layers." + std::string(gguf_name.substr(4, dot - 4)) + ".";
  const std::string_view rest = gguf_name.substr(dot + 1);
  for (const auto& [from, to] : kLayer) {
    if (rest.substr(0, from.size()) != from) continue;
    const std::string_view target =
        gemma && from == "ffn_norm." ? std::string_view("pre_feedforward_layernorm.") : to;
    return layer + std::string(target) + std::string(rest.substr(from.size()));
  }
  return std::string(gguf_name);
}

namespace detail {

/// The shortest decimal that is this float, as a double: 1e-05 and not 9.999999747378752e-06, as
/// the original config.json had it.
inline double shortest_decimal(double value) {
  const auto single = static_cast<float>(value);
  if (static_cast<double>(single) != value || !std::isfinite(single)) return value;
  char buffer[40];
  for (int digits = 1; digits <= 9; ++digits) {
    std::snprintf(buffer, sizeof buffer, "%.*g", digits, value);
    if (std::strtof(buffer, nullptr) == single) return std::strtod(buffer, nullptr);
  }
  return value;
}

class GgufConfigReader {
 public:
  explicit GgufConfigReader(const GgufFile& file)
      : file_(file), architecture_(file.string("general.architecture")) {}

  ModelConfig read() {
    const bool gemma2 = architecture_ == "gemma2", gemma3 = architecture_ == "gemma3";
    if (architecture_ != "llama" && architecture_ != "qwen2" && architecture_ != "qwen3" &&
        !gemma2 && !gemma3)
      refuse("general.architecture", printable(architecture_),
             "llama, qwen2, qwen3, gemma2 or gemma3");
    if (size("expert_count", 0) != 0)
      refuse(key("expert_count"), size("expert_count", 0), "0: experts are not supported");

    ModelConfig config;
    config.architecture = gemma3 ? "gemma3_text" : architecture_;
    read_sizes(config);
    read_tensors(config);
    config.norm_eps = number("attention.layer_norm_rms_epsilon", 0, 1);
    config.activation = Activation::silu;
    config.layer_types.resize(static_cast<std::size_t>(config.layers));
    read_rope(config);
    if (gemma2 || gemma3) read_gemma(config, gemma3);
    read_token_ids(config);
    return config;
  }

 private:
  std::string key(std::string_view name) const {
    return std::string(architecture_) + "." + std::string(name);
  }

  template <class V>
  [[noreturn]] void refuse(std::string_view name, const V& value, std::string_view expected) const {
    throw FormatError(text(file_.source(), ": ", name, " is ", value, ", expected ", expected));
  }

  static constexpr index_t kRequired = -1;

  index_t size(std::string_view name, index_t otherwise = kRequired, index_t low = 0,
               index_t high = INT32_MAX) const {
    const std::string k = key(name);
    if (otherwise != kRequired && !file_.find(k)) return otherwise;
    const index_t value = file_.integer(k);
    if (value < low || value > high) refuse(k, value, text("an integer from ", low, " to ", high));
    return value;
  }
  double number(std::string_view name, double low, double high, double otherwise = NAN) const {
    const std::string k = key(name);
    if (otherwise == otherwise && !file_.find(k)) return otherwise;
    const double value = file_.number(k);
    if (!(value >= low && value <= high))
      refuse(k, value, text("a number from ", low, " to ", high));
    return shortest_decimal(value);
  }

  void read_sizes(ModelConfig& config) const {
    config.layers = size("block_count", kRequired, 1, 100'000);
    config.d_model = size("embedding_length", kRequired, 1, 1 << 24);
    config.heads = size("attention.head_count", kRequired, 1, 1 << 20);
    config.kv_heads = size("attention.head_count_kv", config.heads, 1);
    if (config.heads % config.kv_heads != 0)
      refuse(key("attention.head_count_kv"), config.kv_heads,
             text("a divisor of head_count = ", config.heads));
    config.ffn_dim = size("feed_forward_length", kRequired, 1);
    config.max_position = size("context_length", kRequired, 1);
    config.head_dim = size("attention.key_length", config.d_model / config.heads, 1, 1 << 20);
    if (config.head_dim < 1 ||
        (!file_.find(key("attention.key_length")) && config.d_model % config.heads != 0))
      refuse(key("embedding_length"), config.d_model,
             text("a multiple of head_count = ", config.heads));
    const index_t value_length = size("attention.value_length", config.head_dim, 1);
    if (value_length != config.head_dim)
      refuse(key("attention.value_length"), value_length,
             text(config.head_dim, " = attention.key_length"));
  }

  /// What only the tensors tell.
  void read_tensors(ModelConfig& config) const {
    const TensorInfo& table = file_.info("token_embd.weight");
    if (table.shape.size() != 2 || table.shape[1] != config.d_model || table.shape[0] < 1 ||
        table.shape[0] > INT32_MAX)
      refuse("tensor token_embd.weight", shape_text(table.shape),
             text("[vocab, ", config.d_model, "] = [vocab, embedding_length]"));
    config.vocab_size = table.shape[0];
    config.tie_embeddings = !file_.has("output.weight");
    config.qkv_bias = file_.has("blk.0.attn_q.bias");
    config.out_bias = file_.has("blk.0.attn_output.bias");
    config.mlp_bias = file_.has("blk.0.ffn_down.bias");
    if (file_.has("blk.0.attn_q_norm.weight")) {
      const index_t width = file_.info("blk.0.attn_q_norm.weight").elements();
      config.qk_norm = width == config.head_dim ? QkNorm::head : QkNorm::flat;
      if (width != config.head_dim && width != config.heads * config.head_dim)
        refuse("tensor blk.0.attn_q_norm.weight", width,
               text(config.head_dim, " = head_dim or ", config.heads * config.head_dim));
    }
    // One plain type for all matrices is worth keeping; mixtures are read as float.
    const std::optional<DType> stored = file_.info("token_embd.weight").dtype;
    config.dtype = stored == DType::f16 || stored == DType::bf16 ? *stored : DType::f32;
  }

  void read_rope(ModelConfig& config) const {
    RopeConfig& rope = config.rope;
    rope.theta = number("rope.freq_base", 1e-3, 1e30, 10000.0);
    rope.layout = architecture_ == "llama" ? RopeLayout::interleaved : RopeLayout::rotate_half;
    const index_t turned = size("rope.dimension_count", config.head_dim, 1, config.head_dim);
    rope.partial_factor = static_cast<double>(turned) / static_cast<double>(config.head_dim);

    std::string_view kind = file_.string(key("rope.scaling.type"), "none");
    double factor = number("rope.scaling.factor", 0, 1e9, 0.0);
    if (factor == 0) factor = number("rope.scale_linear", 0, 1e9, 0.0);  // the older key
    if (kind == "none" && factor > 1 && !file_.find(key("rope.scaling.type"))) kind = "linear";
    if (kind == "linear" && factor != 0 && factor != 1) {
      rope.kind = "linear";
      rope.factor = factor;
    } else if (kind == "yarn") {
      rope.kind = "yarn";
      rope.factor = factor;
      rope.original_max_position = size("rope.scaling.original_context_length", 0);
      rope.attention_factor = number("rope.scaling.attn_factor", 0, 1e9, 0.0);
      rope.beta_fast = number("rope.scaling.yarn_beta_fast", 1e-6, 1e9, rope.beta_fast);
      rope.beta_slow = number("rope.scaling.yarn_beta_slow", 1e-6, 1e9, rope.beta_slow);
    } else if (kind != "none" && kind != "linear") {
      refuse(key("rope.scaling.type"), printable(kind), "none, linear or yarn");
    }
    read_rope_factors(config, turned);
  }

  /// rope_freqs.weight divides each frequency: longrope whose two lists are the same.
  void read_rope_factors(ModelConfig& config, index_t turned) const {
    if (!file_.has("rope_freqs.weight")) return;
    const TensorInfo& info = file_.info("rope_freqs.weight");
    if (info.shape != std::vector<index_t>{turned / 2} || config.rope.kind != "default")
      refuse("tensor rope_freqs.weight", shape_text(info.shape),
             text("[", turned / 2, "] = [rope.dimension_count / 2] and no other scaling"));
    std::vector<double> factors(static_cast<std::size_t>(turned / 2));
    file_.read("rope_freqs.weight", std::span<double>(factors));
    for (const double f : factors)
      if (!(f > 0 && f < 1e30)) refuse("rope_freqs.weight", f, "positive numbers");
    config.rope.kind = "longrope";
    config.rope.short_factor = factors;
    config.rope.long_factor = std::move(factors);
    config.rope.factor = 1.0;
    config.rope.attention_factor = 1.0;
    config.rope.original_max_position = config.max_position;
  }

  void read_gemma(ModelConfig& config, bool gemma3) const {
    config.norm_plus_one = false;  // the converter has added it
    config.post_norms = true;
    config.activation = Activation::gelu_tanh;
    config.embedding_scale = std::sqrt(static_cast<double>(config.d_model));
    // The largest models divide by the width that a head would have had in d_model.
    const bool largest = config.layers == (gemma3 ? 62 : 46);
    config.query_scale = 1.0 / std::sqrt(static_cast<double>(largest ? config.d_model / config.heads
                                                                     : config.head_dim));
    config.attention_softcap = number("attn_logit_softcapping", 0, 1e9, gemma3 ? 0.0 : 50.0);
    config.logit_softcap = number("final_logit_softcapping", 0, 1e9, gemma3 ? 0.0 : 30.0);

    const index_t window = size("attention.sliding_window", gemma3 ? kRequired : 4096, 1);
    const index_t period = gemma3 ? 6 : 2;
    for (index_t i = 0; i < config.layers; ++i) {
      LayerConfig& layer = config.layer_types[static_cast<std::size_t>(i)];
      const bool sliding = (i + 1) % period != 0;
      layer.window = sliding ? window : 0;
      layer.local_rope = gemma3 && sliding;
    }
    if (gemma3) {
      config.rope_local.theta = number("rope.freq_base_swa", 1e-3, 1e30, 10000.0);
      config.rope_local.partial_factor = config.rope.partial_factor;
    }
  }

  void read_token_ids(ModelConfig& config) const {
    const auto id = [&](std::string_view name) {
      const std::string k = text("tokenizer.ggml.", name);
      const std::int64_t value = file_.integer(k, -1);
      if (value == UINT32_MAX) return std::int32_t{-1};  // "none" in files of older converters
      if (value < -1 || value >= config.vocab_size)
        refuse(k, value, text("an id below ", config.vocab_size));
      return static_cast<std::int32_t>(value);
    };
    config.bos_id = id("bos_token_id");
    config.pad_id = id("padding_token_id");
    for (const char* name : {"eos_token_id", "eot_token_id"}) {
      const std::int32_t eos = id(name);
      if (eos >= 0 && (config.eos_ids.empty() || config.eos_ids[0] != eos))
        config.eos_ids.push_back(eos);
    }
  }

  const GgufFile& file_;
  std::string architecture_;
};

}  // namespace detail

/// What the file's metadata and tensors say about the model.
inline ModelConfig model_config_from_gguf(const GgufFile& file) {
  return detail::GgufConfigReader(file).read();
}

}  // namespace rapt
