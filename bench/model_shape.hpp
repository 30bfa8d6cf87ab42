// The language models that the benchmarks build: the GPT of LayerNorms and SwiGLU in any size.
#pragma once

#include "bench_case.hpp"
#include "rapt/io/model_config.hpp"

namespace rapt::bench {

/// Two thirds of 4 d_model, the width that gives SwiGLU the parameters of a plain layer of
/// 4 d_model, rounded up to a multiple of 64.
inline index_t ffn_width(index_t d_model) { return (8 * d_model / 3 + 63) / 64 * 64; }

/// The model of a case with the keys d_model, layers, heads, kv_heads, vocab and seq (its context);
/// tied embeddings. ffn 0: ffn_width(d_model).
inline ModelConfig model_of(const Case& c, index_t ffn = 0) {
  ModelConfig config;
  config.architecture = "rapt_gpt";
  config.vocab_size = c.number("vocab");
  config.d_model = c.number("d_model");
  config.layers = c.number("layers");
  config.heads = c.number("heads");
  config.kv_heads = c.number("kv_heads");
  config.head_dim = config.d_model / config.heads;
  config.ffn_dim = ffn > 0 ? ffn : ffn_width(config.d_model);
  config.max_position = c.number("seq");
  config.tie_embeddings = true;
  return config;
}

}  // namespace rapt::bench
