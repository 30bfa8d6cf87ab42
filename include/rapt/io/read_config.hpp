// ModelConfig from a Hugging Face config.json and back.
//
//   model_type      what it is                                            settings of its own
//   llama           RMSNorm, SwiGLU, half-split RoPE (SmolLM2 too)        attention_bias, mlp_bias
//   mistral         llama with a window                                   sliding_window
//   qwen2           llama with q, k, v biases                             window from a layer on
//   qwen3           llama with QK-norm per head                           head_dim free
//   gemma2          (1 + w) norms before and after, GeGLU, soft-caps      windows alternate
//   gemma3_text     gemma2 with QK-norm, without caps; two RoPE bases     five local layers, one
//   global gemma3          the same inside "text_config" rapt_gpt        LayerNorm, SwiGLU, no
//   biases: rapt's own small model  attention_bias, mlp_bias
//
// Two spellings are read and give equal structs: that of transformers 5 ("rope_parameters",
// possibly per layer type; "dtype") and the older one of most files on the Hub ("rope_theta",
// "rope_scaling", "rope_local_base_freq", "sliding_window_pattern", "torch_dtype").
//
// Sizes have to be given; other settings that are missing take the family's default in
// transformers. What rapt cannot compute (another model_type, another activation, quantisation
// inside the file, a RoPE setting it does not know) is refused by name rather than ignored. Errors:
// FormatError "<path>: <key> is <value>, expected ...".
//
// Source: configuration_*.py of transformers 5.23.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/io/atomic_file.hpp"
#include "rapt/io/byte_reader.hpp"
#include "rapt/io/model_config.hpp"

namespace rapt {

namespace detail {

inline constexpr index_t kMaxLayers = 100'000;  // far above any model, far below any memory

/// A JSON object whose members are asked for by type; wrong types are named.
class JsonFields {
 public:
  JsonFields(const nlohmann::json& object, std::string_view source, std::string prefix = "")
      : object_(&object), source_(source), prefix_(std::move(prefix)) {
    if (!object.is_object())
      throw FormatError(text(source_, ": ", prefix_.empty() ? "the text" : prefix_, " is ",
                             shown(object), ", expected an object"));
  }

  std::string_view source() const { return source_; }

  /// Null where the key is missing or null.
  const nlohmann::json* find(const char* key) const {
    const auto found = object_->find(key);
    return found == object_->end() || found->is_null() ? nullptr : &*found;
  }
  bool has(const char* key) const { return find(key) != nullptr; }
  const nlohmann::json& object() const { return *object_; }

  [[noreturn]] void refuse(std::string_view key, const nlohmann::json& value,
                           std::string_view expected) const {
    throw FormatError(
        text(source_, ": ", name(key), " is ", shown(value), ", expected ", expected));
  }
  [[noreturn]] void refuse(const char* key, std::string_view expected) const {
    const nlohmann::json* value = find(key);
    if (!value) throw FormatError(text(source_, ": has no ", name(key), ", expected ", expected));
    refuse(key, *value, expected);
  }

  index_t integer(const char* key, index_t low, index_t high,
                  std::optional<index_t> otherwise = {}) const {
    const nlohmann::json* value = find(key);
    if (!value && otherwise) return *otherwise;
    const std::string expected = text("an integer from ", low, " to ", high);
    if (!value || !value->is_number_integer()) refuse(key, expected);
    if (value->is_number_unsigned() && value->get<std::uint64_t>() > INT64_MAX)
      refuse(key, expected);
    const auto number = value->get<index_t>();
    if (number < low || number > high) refuse(key, expected);
    return number;
  }
  double number(const char* key, double low, double high,
                std::optional<double> otherwise = {}) const {
    const nlohmann::json* value = find(key);
    if (!value && otherwise) return *otherwise;
    const std::string expected = text("a number from ", low, " to ", high);
    if (!value || !value->is_number()) refuse(key, expected);
    const auto x = value->get<double>();
    if (!(x >= low && x <= high)) refuse(key, expected);
    return x;
  }
  bool boolean(const char* key, bool otherwise) const {
    const nlohmann::json* value = find(key);
    if (!value) return otherwise;
    if (!value->is_boolean()) refuse(key, "true or false");
    return value->get<bool>();
  }
  std::string string(const char* key, std::optional<std::string> otherwise = {}) const {
    const nlohmann::json* value = find(key);
    if (!value && otherwise) return *otherwise;
    if (!value || !value->is_string()) refuse(key, "a string");
    return value->get<std::string>();
  }
  std::vector<double> numbers(const char* key) const {
    std::vector<double> out;
    const nlohmann::json* value = find(key);
    if (!value) return out;
    if (!value->is_array()) refuse(key, "an array of positive numbers");
    for (const auto& element : *value) {
      if (!element.is_number()) refuse(key, "an array of positive numbers");
      const auto x = element.get<double>();
      if (!(x > 0 && x < 1e30)) refuse(key, "an array of positive numbers");
      out.push_back(x);
    }
    return out;
  }
  JsonFields inside(const char* key) const {
    const nlohmann::json* value = find(key);
    if (!value) refuse(key, "an object");
    return {*value, source_, name(key)};
  }

 private:
  std::string name(std::string_view key) const {
    return prefix_.empty() ? std::string(key) : prefix_ + "." + std::string(key);
  }
  static std::string shown(const nlohmann::json& value) {
    return printable(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), 60);
  }

  const nlohmann::json* object_;
  std::string_view source_;
  std::string prefix_;
};

inline Activation parse_activation(const JsonFields& fields, const char* key,
                                   const char* otherwise) {
  const std::string name = fields.string(key, otherwise);
  if (name == "silu" || name == "swish") return Activation::silu;
  if (name == "gelu_pytorch_tanh" || name == "gelu_new") return Activation::gelu_tanh;
  if (name == "gelu") return Activation::gelu_erf;
  fields.refuse(key, "silu, swish, gelu, gelu_new or gelu_pytorch_tanh");
}

inline const char* activation_name(Activation activation) {
  switch (activation) {
    case Activation::silu:
      return "silu";
    case Activation::gelu_tanh:
      return "gelu_pytorch_tanh";
    case Activation::gelu_erf:
      return "gelu";
    case Activation::sigmoid:
      break;
  }
  throw ValueError("config: activation is sigmoid, expected silu or a gelu");
}

/// One set of RoPE settings, from rope_parameters or from rope_scaling; `theta` where it names
/// none.
inline RopeConfig parse_rope(const JsonFields& fields, double theta, double partial) {
  for (const auto& [key, value] : fields.object().items()) {
    static constexpr const char* kKnown[] = {"rope_type",
                                             "type",
                                             "rope_theta",
                                             "factor",
                                             "original_max_position_embeddings",
                                             "low_freq_factor",
                                             "high_freq_factor",
                                             "beta_fast",
                                             "beta_slow",
                                             "mscale",
                                             "mscale_all_dim",
                                             "attention_factor",
                                             "short_factor",
                                             "long_factor",
                                             "truncate",
                                             "partial_rotary_factor",
                                             "finetuned"};
    bool known = value.is_null();
    for (const char* name : kKnown) known = known || key == name;
    if (!known) fields.refuse(printable(key), value, "no such RoPE setting");
  }
  RopeConfig rope;
  rope.kind = fields.string("rope_type", fields.string("type", "default"));
  if (rope.kind == "su") rope.kind = "longrope";  // its name in early Phi-3 files
  rope.theta = fields.number("rope_theta", 1e-3, 1e30, theta);
  rope.partial_factor = fields.number("partial_rotary_factor", 1e-6, 1.0, partial);
  constexpr double kMost = 1e9;
  if (rope.kind == "default") return rope;

  const auto factor = [&](bool required) {
    if (required && !fields.has("factor")) fields.refuse("factor", "a number for " + rope.kind);
    rope.factor = fields.number("factor", 1e-6, kMost, 0.0);
  };
  const auto original = [&] {
    rope.original_max_position =
        fields.integer("original_max_position_embeddings", 1, INT32_MAX, 0);
  };
  if (rope.kind == "linear" || rope.kind == "dynamic") {
    factor(true);
  } else if (rope.kind == "llama3") {
    factor(true);
    original();
    rope.low_freq_factor = fields.number("low_freq_factor", 1e-6, kMost, {});
    rope.high_freq_factor = fields.number("high_freq_factor", 1e-6, kMost, {});
  } else if (rope.kind == "yarn") {
    factor(false);
    original();
    rope.beta_fast = fields.number("beta_fast", 1e-6, kMost, rope.beta_fast);
    rope.beta_slow = fields.number("beta_slow", 1e-6, kMost, rope.beta_slow);
    rope.mscale = fields.number("mscale", 0, kMost, 0.0);
    rope.mscale_all_dim = fields.number("mscale_all_dim", 0, kMost, 0.0);
    rope.attention_factor = fields.number("attention_factor", 1e-6, kMost, 0.0);
    rope.truncate = fields.boolean("truncate", true);
  } else if (rope.kind == "longrope") {
    factor(false);
    original();
    rope.attention_factor = fields.number("attention_factor", 1e-6, kMost, 0.0);
    rope.short_factor = fields.numbers("short_factor");
    rope.long_factor = fields.numbers("long_factor");
    if (rope.short_factor.empty()) fields.refuse("short_factor", "an array of numbers");
    if (rope.long_factor.empty()) fields.refuse("long_factor", "an array of numbers");
  } else {
    fields.refuse(fields.has("rope_type") ? "rope_type" : "type",
                  "default, linear, dynamic, yarn, llama3 or longrope");
  }
  return rope;
}

/// rope and rope_local, in whichever spelling.
inline void parse_ropes(const JsonFields& fields, ModelConfig& config, double default_theta,
                        double default_local_theta) {
  const double theta = fields.number("rope_theta", 1e-3, 1e30, default_theta);
  const double partial = fields.number("partial_rotary_factor", 1e-6, 1.0, 1.0);
  const double local_theta = fields.number("rope_local_base_freq", 1e-3, 1e30, default_local_theta);
  const auto finish = [&](RopeConfig& rope) {  // a few files name this beside rope_scaling
    if (rope.original_max_position == 0 && rope.kind != "default")
      rope.original_max_position =
          fields.integer("original_max_position_embeddings", 1, INT32_MAX, 0);
  };
  config.rope.theta = theta;
  config.rope.partial_factor = partial;
  config.rope_local = config.rope;
  config.rope_local.theta = local_theta;

  const char* key = fields.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  if (!fields.has(key)) return;
  const JsonFields rope = fields.inside(key);
  if (rope.has("full_attention") || rope.has("sliding_attention")) {
    config.rope = parse_rope(rope.inside("full_attention"), theta, partial);
    if (rope.has("sliding_attention"))
      config.rope_local = parse_rope(rope.inside("sliding_attention"), local_theta, partial);
    for (const auto& [name, value] : rope.object().items())
      if (name != "full_attention" && name != "sliding_attention" && !value.is_null())
        rope.refuse(printable(name), value,
                    "settings of full_attention and sliding_attention only");
    finish(config.rope_local);
  } else {
    config.rope = parse_rope(rope, theta, partial);
  }
  finish(config.rope);
}

/// layer_types, or the family's rule `is_sliding(layer)` where the file has none.
template <class F>
void parse_layers(const JsonFields& fields, ModelConfig& config, index_t window, F is_sliding) {
  const auto layers = static_cast<std::size_t>(config.layers);
  config.layer_types.resize(layers);
  const nlohmann::json* types = fields.find("layer_types");
  if (types && (!types->is_array() || types->size() != layers))
    fields.refuse("layer_types", text("an array of ", layers, " names = num_hidden_layers"));
  for (std::size_t i = 0; i < layers; ++i) {
    bool sliding;
    if (types) {
      const nlohmann::json& type = (*types)[i];
      sliding = type == "sliding_attention";
      if (!sliding && type != "full_attention")
        fields.refuse(text("layer_types[", i, "]"), type, "full_attention or sliding_attention");
    } else {
      sliding = is_sliding(static_cast<index_t>(i));
    }
    if (sliding && window == 0)
      fields.refuse("sliding_window", "a window, as there are sliding_attention layers");
    config.layer_types[i].window = sliding ? window : 0;
  }
}

inline DType parse_dtype(const JsonFields& fields) {
  const char* key = fields.has("dtype") ? "dtype" : "torch_dtype";
  std::string name = fields.string(key, "float32");
  if (name.rfind("torch.", 0) == 0) name.erase(0, 6);
  if (name == "float32" || name == "auto") return DType::f32;
  if (name == "float64") return DType::f64;
  if (name == "float16") return DType::f16;
  if (name == "bfloat16") return DType::bf16;
  fields.refuse(key, "float32, float64, float16 or bfloat16");
}

inline void parse_token_ids(const JsonFields& fields, ModelConfig& config) {
  // A negative id (some files say -1) means none.
  constexpr index_t kLow = INT32_MIN, kHigh = INT32_MAX;
  const auto id = [&](const char* key) {
    return static_cast<std::int32_t>(std::max<index_t>(fields.integer(key, kLow, kHigh, -1), -1));
  };
  config.bos_id = id("bos_token_id");
  config.pad_id = id("pad_token_id");
  const nlohmann::json* eos = fields.find("eos_token_id");
  if (!eos) return;
  const nlohmann::json list = eos->is_array() ? *eos : nlohmann::json::array({*eos});
  for (const auto& element : list) {
    if (!element.is_number_integer() || element.get<std::int64_t>() > kHigh ||
        element.get<std::int64_t>() < kLow)
      fields.refuse("eos_token_id", "an id or an array of ids");
    if (element.get<std::int64_t>() >= 0) config.eos_ids.push_back(element.get<std::int32_t>());
  }
}

/// Sizes that a family has when its config does not say; 0: they must be given.
struct DefaultSizes {
  index_t vocab = 0, d_model = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  index_t max_position = 0;
};

inline void parse_sizes(const JsonFields& fields, ModelConfig& config, const DefaultSizes& sizes) {
  const auto size = [&](const char* key, index_t otherwise, index_t high = INT32_MAX) {
    return fields.integer(key, 1, high, otherwise ? std::optional(otherwise) : std::nullopt);
  };
  config.vocab_size = size("vocab_size", sizes.vocab);
  config.d_model = size("hidden_size", sizes.d_model, 1 << 24);
  config.layers = size("num_hidden_layers", sizes.layers, kMaxLayers);
  config.heads = size("num_attention_heads", sizes.heads, 1 << 20);
  config.kv_heads = size("num_key_value_heads", sizes.kv_heads ? sizes.kv_heads : config.heads);
  config.ffn_dim = size("intermediate_size", sizes.ffn);
  config.max_position = size("max_position_embeddings", sizes.max_position);
  if (config.heads % config.kv_heads != 0)
    fields.refuse("num_key_value_heads", text("a divisor of num_attention_heads = ", config.heads));
  if (fields.has("head_dim") || sizes.head_dim != 0) {
    config.head_dim = size("head_dim", sizes.head_dim, 1 << 20);
  } else {
    if (config.d_model % config.heads != 0)
      fields.refuse("hidden_size",
                    text("a multiple of num_attention_heads = ", config.heads, ", or head_dim"));
    config.head_dim = config.d_model / config.heads;
  }
}

inline ModelConfig parse_config(const JsonFields& fields, bool nested);

inline void parse_llama_family(const JsonFields& fields, ModelConfig& config) {
  const bool mistral = config.architecture == "mistral", qwen2 = config.architecture == "qwen2",
             qwen3 = config.architecture == "qwen3";
  DefaultSizes sizes;
  sizes.max_position = mistral ? 131072 : qwen2 || qwen3 ? 32768 : 2048;
  if (mistral) sizes.kv_heads = 8;
  if (qwen3) sizes.head_dim = 128;
  parse_sizes(fields, config, sizes);
  config.norm_eps = fields.number("rms_norm_eps", 0, 1, 1e-6);
  config.activation = parse_activation(fields, "hidden_act", "silu");
  config.tie_embeddings = fields.boolean("tie_word_embeddings", false);
  const bool bias = !mistral && fields.boolean("attention_bias", false);
  config.qkv_bias = bias || qwen2;
  config.out_bias = bias && !qwen2;
  config.mlp_bias = config.architecture == "llama" && fields.boolean("mlp_bias", false);
  if (qwen3) config.qk_norm = QkNorm::head;
  parse_ropes(fields, config, 10000.0, 10000.0);

  index_t window = 0, first = 0;
  const nlohmann::json* given =
      fields.object().count("sliding_window") ? &fields.object().at("sliding_window") : nullptr;
  if (mistral) {  // a missing key means 4096 in transformers, null means none
    window = given && given->is_null() ? 0 : fields.integer("sliding_window", 1, INT32_MAX, 4096);
  } else if ((qwen2 || qwen3) && fields.boolean("use_sliding_window", false)) {
    window = fields.integer("sliding_window", 1, INT32_MAX, 4096);
    first = fields.integer("max_window_layers", 0, kMaxLayers, 28);
  }
  parse_layers(fields, config, window, [&](index_t i) { return window > 0 && i >= first; });
}

inline void parse_gemma_family(const JsonFields& fields, ModelConfig& config, bool nested) {
  const bool gemma3 = config.architecture != "gemma2";
  DefaultSizes sizes;
  // The text half of a multimodal file leaves out what equals transformers' defaults.
  if (nested) sizes = {262208, 2304, 26, 8, 4, 256, 9216, 131072};
  if (!nested) sizes.kv_heads = 4;
  sizes.head_dim = 256;
  if (sizes.max_position == 0) sizes.max_position = gemma3 ? 131072 : 8192;
  parse_sizes(fields, config, sizes);
  config.norm_eps = fields.number("rms_norm_eps", 0, 1, 1e-6);
  config.norm_plus_one = true;
  config.post_norms = true;
  config.qk_norm = gemma3 ? QkNorm::head : QkNorm::none;
  config.activation = parse_activation(fields, "hidden_activation", "gelu_pytorch_tanh");
  config.tie_embeddings = fields.boolean("tie_word_embeddings", true);
  config.qkv_bias = config.out_bias = fields.boolean("attention_bias", false);
  config.embedding_scale = std::sqrt(static_cast<double>(config.d_model));
  config.query_scale = 1.0 / std::sqrt(fields.number("query_pre_attn_scalar", 1e-9, 1e9, 256.0));
  // In Gemma 2 a missing soft-cap means the default, and only null means none.
  const auto cap = [&](const char* key, double otherwise) {
    const bool is_null = fields.object().count(key) != 0 && !fields.has(key);
    return is_null ? 0.0 : fields.number(key, 1e-6, 1e9, otherwise);
  };
  config.attention_softcap = cap("attn_logit_softcapping", gemma3 ? 0.0 : 50.0);
  config.logit_softcap = cap("final_logit_softcapping", gemma3 ? 0.0 : 30.0);
  if (fields.boolean("use_bidirectional_attention", false))
    fields.refuse("use_bidirectional_attention", "false");
  parse_ropes(fields, config, gemma3 ? 1e6 : 1e4, 1e4);

  const index_t window = fields.integer("sliding_window", 1, INT32_MAX, 4096);
  const char* pattern_key =
      fields.has("sliding_window_pattern") ? "sliding_window_pattern" : "_sliding_window_pattern";
  const index_t pattern = gemma3 ? fields.integer(pattern_key, 1, kMaxLayers, 6) : 2;
  parse_layers(fields, config, window, [&](index_t i) { return (i + 1) % pattern != 0; });
  if (gemma3)
    for (LayerConfig& layer : config.layer_types) layer.local_rope = layer.window > 0;
  else
    config.rope_local = RopeConfig{};
}

inline void parse_rapt_gpt(const JsonFields& fields, ModelConfig& config) {
  parse_sizes(fields, config, {});
  config.norm = NormKind::layer;
  config.norm_eps = fields.number("layer_norm_eps", 0, 1, 1e-5);
  config.activation = parse_activation(fields, "hidden_act", "silu");
  config.tie_embeddings = fields.boolean("tie_word_embeddings", false);
  config.qkv_bias = config.out_bias = fields.boolean("attention_bias", false);
  config.mlp_bias = fields.boolean("mlp_bias", false);
  const std::string qk_norm = fields.string("qk_norm", "none");
  if (qk_norm == "head")
    config.qk_norm = QkNorm::head;
  else if (qk_norm == "flat")
    config.qk_norm = QkNorm::flat;
  else if (qk_norm != "none")
    fields.refuse("qk_norm", "none, head or flat");
  parse_ropes(fields, config, 10000.0, 10000.0);
  const index_t window =
      fields.has("sliding_window") ? fields.integer("sliding_window", 1, INT32_MAX) : 0;
  parse_layers(fields, config, window, [&](index_t) { return window > 0; });
}

inline ModelConfig parse_config(const JsonFields& fields, bool nested) {
  ModelConfig config;
  config.architecture = fields.string(
      "model_type", nested ? std::optional<std::string>("gemma3_text") : std::nullopt);
  const std::string& type = config.architecture;
  if (type == "gemma3" && !nested && fields.has("text_config"))
    return parse_config(fields.inside("text_config"), true);
  if (fields.has("quantization_config"))
    fields.refuse("quantization_config", "none: rapt reads quantised weights from GGUF files only");
  if (type == "llama" || type == "mistral" || type == "qwen2" || type == "qwen3") {
    parse_llama_family(fields, config);
  } else if (type == "gemma2" || type == "gemma3_text" || type == "gemma3") {
    config.architecture = type == "gemma2" ? "gemma2" : "gemma3_text";
    parse_gemma_family(fields, config, nested);
  } else if (type == "rapt_gpt") {
    parse_rapt_gpt(fields, config);
  } else {
    fields.refuse("model_type",
                  "llama, mistral, qwen2, qwen3, gemma2, gemma3, gemma3_text or rapt_gpt");
  }
  if (config.architecture != "gemma3_text") config.rope_local = RopeConfig{};
  config.dtype = parse_dtype(fields);
  parse_token_ids(fields, config);
  return config;
}

inline nlohmann::json rope_json(const RopeConfig& rope) {
  nlohmann::json out = {{"rope_type", rope.kind}, {"rope_theta", rope.theta}};
  const auto put = [&](const char* key, auto value, bool given) {
    if (given) out[key] = value;
  };
  const RopeConfig defaults;
  put("partial_rotary_factor", rope.partial_factor, rope.partial_factor != 1.0);
  if (rope.kind == "default") return out;
  put("factor", rope.factor, rope.factor != 0);
  put("original_max_position_embeddings", rope.original_max_position,
      rope.original_max_position != 0);
  if (rope.kind == "llama3") {
    out["low_freq_factor"] = rope.low_freq_factor;
    out["high_freq_factor"] = rope.high_freq_factor;
  }
  put("beta_fast", rope.beta_fast, rope.beta_fast != defaults.beta_fast);
  put("beta_slow", rope.beta_slow, rope.beta_slow != defaults.beta_slow);
  put("mscale", rope.mscale, rope.mscale != 0);
  put("mscale_all_dim", rope.mscale_all_dim, rope.mscale_all_dim != 0);
  put("attention_factor", rope.attention_factor, rope.attention_factor != 0);
  put("truncate", rope.truncate, !rope.truncate);
  put("short_factor", rope.short_factor, !rope.short_factor.empty());
  put("long_factor", rope.long_factor, !rope.long_factor.empty());
  return out;
}

}  // namespace detail

/// Reads the text of a config.json. `source` begins every error message.
inline ModelConfig parse_model_config(std::string_view json, std::string_view source) {
  nlohmann::json root;
  try {
    // The callback keeps hostile nesting from reaching code that recurses (printing a value).
    root = nlohmann::json::parse(
        json.begin(), json.end(), [&](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
          if (depth > 32) throw FormatError(detail::text(source, ": is nested more than 32 deep"));
          return true;
        });
  } catch (const nlohmann::json::exception& error) {
    throw FormatError(detail::text(source, ": ", detail::printable(error.what(), 200)));
  }
  return detail::parse_config(detail::JsonFields(root, source), false);
}

/// Reads config.json of a Hugging Face folder, or the file itself.
inline ModelConfig read_model_config(const std::filesystem::path& path) {
  const auto file = std::filesystem::is_directory(path) ? path / "config.json" : path;
  return parse_model_config(read_file(file), file.string());
}

/// The text of a config.json that read_model_config and transformers 5 both read as `config`.
/// ValueError where the file's architecture has no way to say it: GGUF's interleaved rows or norms
/// without the + 1 have to be converted first.
inline std::string write_model_config(const ModelConfig& config) {
  using nlohmann::json;
  const std::string& type = config.architecture;
  const bool gemma = type == "gemma2" || type == "gemma3_text";
  const auto refuse = [&](std::string_view what) {
    throw ValueError(detail::text("write_model_config: ", type, " has ", what,
                                  ", which its config.json cannot say"));
  };
  if (config.rope.layout != RopeLayout::rotate_half ||
      config.rope_local.layout != RopeLayout::rotate_half)
    refuse("a RoPE layout other than rotate_half");
  if (config.norm_plus_one != gemma) refuse(gemma ? "norms without + 1" : "norms with + 1");

  json out = {{"model_type", type},
              {"vocab_size", config.vocab_size},
              {"hidden_size", config.d_model},
              {"num_hidden_layers", config.layers},
              {"num_attention_heads", config.heads},
              {"num_key_value_heads", config.kv_heads},
              {"head_dim", config.head_dim},
              {"intermediate_size", config.ffn_dim},
              {"max_position_embeddings", config.max_position},
              {"tie_word_embeddings", config.tie_embeddings}};
  static constexpr std::pair<const char*, const char*> kClasses[] = {
      {"llama", "LlamaForCausalLM"},     {"mistral", "MistralForCausalLM"},
      {"qwen2", "Qwen2ForCausalLM"},     {"qwen3", "Qwen3ForCausalLM"},
      {"gemma2", "Gemma2ForCausalLM"},   {"gemma3_text", "Gemma3ForCausalLM"},
      {"rapt_gpt", "RaptGptForCausalLM"}};
  for (const auto& [name, class_name] : kClasses)
    if (type == name) out["architectures"] = {class_name};
  if (!out.contains("architectures"))
    throw ValueError("write_model_config: architecture is " + type + ", expected one that is read");

  out[type == "rapt_gpt" ? "layer_norm_eps" : "rms_norm_eps"] = config.norm_eps;
  out[gemma ? "hidden_activation" : "hidden_act"] = detail::activation_name(config.activation);
  if (type != "mistral" && type != "qwen2") {
    if (config.qkv_bias != config.out_bias) refuse("biases on some of q, k, v and o only");
    out["attention_bias"] = config.qkv_bias;
  }
  if (type == "llama" || type == "rapt_gpt") out["mlp_bias"] = config.mlp_bias;
  if (type == "rapt_gpt" && config.qk_norm != QkNorm::none)
    out["qk_norm"] = config.qk_norm == QkNorm::head ? "head" : "flat";

  json types = json::array();
  index_t window = 0;
  bool full = false;
  for (const LayerConfig& layer : config.layer_types) {
    if (layer.window > 0 && window > 0 && layer.window != window) refuse("windows of two sizes");
    if (layer.window > 0) window = layer.window;
    full = full || layer.window == 0;
    types.push_back(layer.window > 0 ? "sliding_attention" : "full_attention");
  }
  if (window > 0)
    out["sliding_window"] = window;
  else
    out["sliding_window"] = nullptr;
  if (type == "mistral" && window > 0 && full) refuse("windows in some layers only");
  if (type == "llama" && window > 0) refuse("a window");
  if (type != "mistral" && type != "llama") out["layer_types"] = types;
  if (type == "qwen2" || type == "qwen3") {
    out["use_sliding_window"] = window > 0;
    if (window > 0) out["max_window_layers"] = 0;
  }
  if (gemma) {
    if (window == 0) out["sliding_window"] = 4096;  // must be a number there
    const double scale = config.query_scale != 0
                             ? config.query_scale
                             : 1.0 / std::sqrt(static_cast<double>(config.head_dim));
    const double scalar = 1.0 / (scale * scale);
    // 1/sqrt(24)^-2 is not 24 in floating point, but the file means 24.
    if (std::abs(scalar - std::round(scalar)) < 1e-9 * scalar)
      out["query_pre_attn_scalar"] = static_cast<index_t>(std::round(scalar));
    else
      out["query_pre_attn_scalar"] = scalar;
    const auto cap = [&](const char* key, double value) {
      if (value > 0)
        out[key] = value;
      else
        out[key] = nullptr;
    };
    cap("attn_logit_softcapping", config.attention_softcap);
    cap("final_logit_softcapping", config.logit_softcap);
  }
  if (type == "gemma3_text") {
    out["rope_parameters"] = {{"full_attention", detail::rope_json(config.rope)},
                              {"sliding_attention", detail::rope_json(config.rope_local)}};
  } else {
    out["rope_parameters"] = detail::rope_json(config.rope);
    if (config.rope.kind == "default") out["rope_theta"] = config.rope.theta;  // for transformers 4
  }
  const auto id = [&](const char* key, std::int32_t value) {
    if (value >= 0)
      out[key] = value;
    else
      out[key] = nullptr;
  };
  id("bos_token_id", config.bos_id);
  id("pad_token_id", config.pad_id);
  if (config.eos_ids.size() > 1)
    out["eos_token_id"] = config.eos_ids;
  else
    id("eos_token_id", config.eos_ids.empty() ? -1 : config.eos_ids[0]);
  switch (config.dtype) {
    case DType::f64:
      out["dtype"] = "float64";
      break;
    case DType::f16:
      out["dtype"] = "float16";
      break;
    case DType::bf16:
      out["dtype"] = "bfloat16";
      break;
    default:
      out["dtype"] = "float32";
      break;
  }
  return out.dump(2) + "\n";
}

}  // namespace rapt
