// What a decoder-only language model is made of, in numbers: the one struct that a config.json, a
// GGUF header and nn::Transformer agree on. Plain data: no JSON, no file access.
//
//   h = embedding_scale · E[ids]
//   per layer:  a = Attention(norm(h));  h += post_norms ? norm(a) : a
//               f = FeedForward(norm(h));  h += post_norms ? norm(f) : f
//   logits = W norm(h), W = E when tie_embeddings;  logits = c · tanh(logits / c) when c =
//   logit_softcap > 0
//
//   Attention: q, k, v = x W (+ bias); norm of q, k by head when qk_norm; rotary; scale
//   query_scale (0: 1/sqrt(head_dim)); scores soft-capped when attention_softcap > 0
//   FeedForward: W_down(act(W_gate x) · W_up x), ffn_dim wide
//
// Filled by io/read_config.hpp (Hugging Face config.json, GGUF metadata). A number that is 0 and
// documented as "0: ..." means the default that follows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rapt/core/config.hpp"
#include "rapt/core/dtype.hpp"
#include "rapt/core/kinds.hpp"

namespace rapt {

/// Rotary embedding: base frequencies and the scaling that stretches them; formulas in
/// rope/rope.hpp. Fields that `kind` does not read keep their defaults.
struct RopeConfig {
  double theta = 10000.0;
  std::string kind = "default";       // default | linear | dynamic | yarn | llama3 | longrope
  double factor = 0.0;                // every kind but default; 0: not given
  index_t original_max_position = 0;  // yarn, llama3, longrope; 0: max_position
  double low_freq_factor = 1.0;       // llama3
  double high_freq_factor = 4.0;      // llama3
  double beta_fast = 32.0;            // yarn
  double beta_slow = 1.0;             // yarn
  double mscale = 0.0;                // yarn; 0: not given
  double mscale_all_dim = 0.0;        // yarn; 0: not given
  bool truncate = true;               // yarn
  double attention_factor = 0.0;      // yarn, longrope; 0: derived from factor
  std::vector<double> short_factor, long_factor;  // longrope: [rotary_dim / 2] each
  double partial_factor = 1.0;                    // rotary_dim = int(head_dim * it)
  RopeLayout layout = RopeLayout::rotate_half;

  bool operator==(const RopeConfig&) const = default;
};

/// What differs from layer to layer.
struct LayerConfig {
  index_t window = 0;       // keys a query sees, its own included; 0: all
  bool local_rope = false;  // rotates with `rope_local` instead of `rope`

  bool operator==(const LayerConfig&) const = default;
};

struct ModelConfig {
  std::string architecture;  // model_type of Hugging Face: "llama", "gemma3_text", "rapt_gpt", ...

  index_t vocab_size = 0;
  index_t d_model = 0;
  index_t layers = 0;
  index_t heads = 0;
  index_t kv_heads = 0;
  index_t head_dim = 0;  // heads * head_dim need not be d_model
  index_t ffn_dim = 0;
  index_t max_position = 0;

  NormKind norm = NormKind::rms;
  double norm_eps = 1e-5;
  bool norm_plus_one = false;  // the norms multiply by 1 + w (Gemma in safetensors)
  bool post_norms = false;     // a norm on the output of attention and feed-forward (Gemma 2, 3)
  QkNorm qk_norm = QkNorm::none;
  Activation activation = Activation::silu;

  bool tie_embeddings = false;
  bool qkv_bias = false;
  bool out_bias = false;
  bool mlp_bias = false;
  bool sinks = false;  // a learned sink logit per head

  double embedding_scale = 1.0;
  double query_scale = 0.0;        // 0: 1/sqrt(head_dim)
  double attention_softcap = 0.0;  // 0: none
  double logit_softcap = 0.0;      // 0: none

  RopeConfig rope;                       // global layers
  RopeConfig rope_local;                 // layers with local_rope
  std::vector<LayerConfig> layer_types;  // [layers]

  std::int32_t bos_id = -1;           // -1: none
  std::vector<std::int32_t> eos_ids;  // any of them ends a text
  std::int32_t pad_id = -1;           // -1: none

  DType dtype = DType::f32;  // what the weights are stored in; f32 where a file mixes types

  index_t group() const { return heads / kv_heads; }
  const RopeConfig& rope_of(index_t layer) const {
    return layer_types[static_cast<std::size_t>(layer)].local_rope ? rope_local : rope;
  }
  index_t window_of(index_t layer) const {
    return layer_types[static_cast<std::size_t>(layer)].window;
  }

  bool operator==(const ModelConfig&) const = default;
};

}  // namespace rapt
