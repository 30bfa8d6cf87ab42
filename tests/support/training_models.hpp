// Small models of every family, and batches for them: what tests of training share.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "rapt/nn/transformer.hpp"

namespace rapt::test {

inline ModelConfig small_model() {
  ModelConfig model;
  model.vocab_size = 17;
  model.d_model = 12;
  model.layers = 2;
  model.heads = 4;
  model.kv_heads = 2;
  model.head_dim = 4;
  model.ffn_dim = 14;
  model.max_position = 64;
  model.layer_types.resize(2);
  return model;
}

/// Llama; the GPT of LayerNorms with biases; Gemma 3 (post-norms, norms of 1 + w, QK-norm, two
/// ropes, tied); Gemma 2 (both soft-caps); Qwen 3; gpt-oss (sinks, biases).
inline std::vector<std::pair<std::string, ModelConfig>> model_families() {
  std::vector<std::pair<std::string, ModelConfig>> out;
  const auto with = [&](const char* name, auto change) {
    ModelConfig model = small_model();
    change(model);
    out.emplace_back(name, model);
  };
  with("llama", [](ModelConfig&) {});
  with("gpt", [](ModelConfig& m) {
    m.norm = NormKind::layer;
    m.kv_heads = 4;
    m.qkv_bias = m.out_bias = m.mlp_bias = true;
  });
  with("gemma3", [](ModelConfig& m) {
    m.tie_embeddings = m.post_norms = m.norm_plus_one = true;
    m.qk_norm = QkNorm::head;
    m.activation = Activation::gelu_tanh;
    m.layer_types = {{3, true}, {0, false}};
    m.rope_local.theta = 100;
    m.embedding_scale = 3.5;
  });
  with("gemma2", [](ModelConfig& m) {
    m.tie_embeddings = m.post_norms = m.norm_plus_one = true;
    m.attention_softcap = 2;
    m.logit_softcap = 3;
    m.query_scale = 0.4;
    m.layer_types = {{3, false}, {0, false}};
  });
  with("qwen3", [](ModelConfig& m) {
    m.qk_norm = QkNorm::head;
    m.heads = 2;
    m.kv_heads = 1;
  });
  with("gpt_oss", [](ModelConfig& m) {
    m.sinks = m.qkv_bias = m.out_bias = true;
    m.layer_types = {{2, false}, {0, false}};
  });
  return out;
}

/// Ids, what each position predicts (a few do not count), and documents packed into rows.
struct Batch {
  Tensor<std::int32_t, 2> ids, targets, documents;

  Batch(index_t batch, index_t seq, std::int32_t vocab, std::uint64_t seed = 3)
      : ids(Shape{batch, seq}), targets(Shape{batch, seq}), documents(Shape{batch, seq}) {
    Philox random(seed);
    const auto n = static_cast<std::uint64_t>(vocab);
    for (index_t b = 0; b < batch; ++b)
      for (index_t i = 0; i < seq; ++i) {
        ids(b, i) = static_cast<std::int32_t>(random.below(n));
        targets(b, i) = random.below(5) == 0 ? -100 : static_cast<std::int32_t>(random.below(n));
        documents(b, i) = i == 0                 ? static_cast<std::int32_t>(b)
                          : random.below(3) == 0 ? documents(b, i - 1) + 1
                                                 : documents(b, i - 1);
      }
  }
  index_t counted() const {
    index_t n = 0;
    for (index_t i = 0; i < targets.size(); ++i) n += targets.data()[i] != -100;
    return n;
  }
};

template <class T>
nn::Transformer<T> random_transformer(const ModelConfig& config, double stddev = 0.3,
                                      std::uint64_t seed = 5) {
  nn::Transformer<T> model(config);
  Philox random(seed);
  for (const auto& p : model.parameters()) fill_normal(p.values, random, stddev);
  model.require_gradients();
  return model;
}

/// Every gradient of a model, side by side.
template <class T>
std::vector<double> gradients_of(nn::Transformer<T>& model) {
  std::vector<double> out;
  for (const auto& p : model.parameters())
    for (index_t i = 0; i < p.gradient.size(); ++i)
      out.push_back(static_cast<double>(p.gradient(i)));
  return out;
}

}  // namespace rapt::test
