// One decoder block of a language model, on the residual stream h.
//
//   pre-norm (GPT, Llama, Mistral, Qwen)        h += attention(norm_1(h));  h += mlp(norm_2(h))
//   with post-norms (Gemma 2, Gemma 3)          h += post_1(attention(norm_1(h)));
//                                               h += post_2(mlp(norm_2(h)))
//
//   h [batch, seq, d_model], changed in place
//
// Every layer uses one mask type, Causal & SlidingWindow{window}: a global layer is a window wider
// than any sequence, so layers of both kinds are one kernel.
#pragma once

#include <limits>
#include <optional>
#include <string>

#include "rapt/core/ops/add.hpp"
#include "rapt/io/model_config.hpp"
#include "rapt/modules/attention.hpp"
#include "rapt/nn/gated_mlp.hpp"
#include "rapt/nn/norm.hpp"

namespace rapt::nn {

/// RopeConfig of a model file as the rope room's settings.
inline Rope make_rope(const RopeConfig& config, index_t max_position) {
  Rope rope;
  rope.theta = config.theta;
  rope.kind = [&] {
    if (config.kind == "default") return RopeKind::standard;
    if (config.kind == "linear") return RopeKind::linear;
    if (config.kind == "dynamic") return RopeKind::dynamic;
    if (config.kind == "yarn") return RopeKind::yarn;
    if (config.kind == "llama3") return RopeKind::llama3;
    if (config.kind == "longrope") return RopeKind::longrope;
    if (config.kind == "proportional") return RopeKind::proportional;
    throw ValueError(detail::text("rope: kind is \"", config.kind,
                                  "\", expected default, linear, dynamic, yarn, llama3, ",
                                  "longrope or proportional"));
  }();
  rope.factor = config.factor;
  rope.low_freq_factor = config.low_freq_factor;
  rope.high_freq_factor = config.high_freq_factor;
  rope.original_max_position =
      config.original_max_position > 0 ? config.original_max_position : max_position;
  rope.max_position = max_position;
  rope.beta_fast = config.beta_fast;
  rope.beta_slow = config.beta_slow;
  rope.truncate = config.truncate;
  if (config.attention_factor != 0) rope.attention_factor = config.attention_factor;
  rope.mscale = config.mscale;
  rope.mscale_all_dim = config.mscale_all_dim;
  for (const double f : config.short_factor) rope.short_factor.push_back(static_cast<float>(f));
  for (const double f : config.long_factor) rope.long_factor.push_back(static_cast<float>(f));
  rope.partial_factor = config.partial_factor;
  rope.layout = config.layout;
  return rope;
}

/// The attention of one layer of a model.
inline AttentionConfig attention_config(const ModelConfig& model, index_t layer) {
  AttentionConfig config;
  config.d_model = model.d_model;
  config.heads = model.heads;
  config.kv_heads = model.kv_heads;
  config.head_dim = model.head_dim;
  const index_t window = model.window_of(layer);
  config.window = window > 0 ? window : std::numeric_limits<index_t>::max();
  config.rope = make_rope(model.rope_of(layer), model.max_position);
  config.scale = model.query_scale;
  config.softcap = model.attention_softcap;
  config.qkv_bias = model.qkv_bias;
  config.out_bias = model.out_bias;
  config.sinks = model.sinks;
  config.qk_norm = model.qk_norm;
  config.norm_eps = model.norm_eps;
  config.norm_plus_one = model.norm_plus_one;
  return config;
}

template <class T = float, class B = Cpu>
class Block {
 public:
  Block(const ModelConfig& model, index_t layer, B backend = {},
        WeightStorage storage = WeightStorage::zeros)
      : attention_(attention_config(model, layer), backend, storage),
        mlp_(model.d_model, model.ffn_dim, model.activation, model.mlp_bias, backend, storage),
        attention_norm_(model.d_model, norm_config(model), backend),
        mlp_norm_(model.d_model, norm_config(model), backend) {
    if (model.post_norms) {
      post_attention_norm_.emplace(model.d_model, norm_config(model), backend);
      post_mlp_norm_.emplace(model.d_model, norm_config(model), backend);
    }
  }

  /// h changes in place; allocates nothing once scratch has grown. `cache` is a cache of the
  /// attention module (call.layer says which of its layers), or NoCache{}.
  template <class C>
  void forward(TensorView<T, 3, B> h, C& cache, const AttentionCall<T, B>& call) const {
    const index_t batch = h.extent(0), seq = h.extent(1), width = h.extent(2);
    const auto rows = h.reshape(Shape{batch * seq, width});
    Scratch<B> scratch(h.backend());
    auto normed = scratch.template tensor<T>(h.shape());
    auto normed_rows = normed.reshape(rows.shape());
    auto branch = scratch.template tensor<T>(h.shape());
    auto branch_rows = branch.reshape(rows.shape());

    attention_norm_.forward(normed_rows, rows);
    attention_.forward(branch, normed, cache, call);
    if (post_attention_norm_) post_attention_norm_->forward(branch_rows, branch_rows);
    add(rows, branch_rows);

    mlp_norm_.forward(normed_rows, rows);
    if (post_mlp_norm_) {
      mlp_.forward(branch_rows, normed_rows);
      post_mlp_norm_->forward(branch_rows, branch_rows);
      add(rows, branch_rows);
    } else {
      mlp_.accumulate(rows, normed_rows);
    }
  }

  /// forward() without a cache, saving for backward(): the residual stream before each half, what
  /// attention and feed-forward save, and what post-norms read. The inputs of the two halves are
  /// not: backward makes them again by one pass of the norm, which is cheaper than the memory.
  void record(TensorView<T, 3, B> h, Tape<B>& tape, const AttentionContext<T, B>& context) const {
    const auto rows = rows_of(h);
    Scratch<B> scratch(h.backend());
    const auto normed = scratch.template tensor<T>(h.shape());
    const auto branch = scratch.template tensor<T>(h.shape());

    detail::save(tape, h);
    const auto attended = post_attention_norm_ ? tape.template push<T>(h.shape()) : branch;
    attention_norm_.forward(rows_of(normed), rows);
    attention_.record(attended, normed, tape, context);
    if (post_attention_norm_) post_attention_norm_->forward(rows_of(branch), rows_of(attended));
    add(rows, rows_of(branch));

    detail::save(tape, h);
    mlp_norm_.forward(rows_of(normed), rows);
    if (post_mlp_norm_) {
      const auto fed = tape.template push<T>(rows.shape());
      mlp_.record(fed, rows_of(normed), tape);
      post_mlp_norm_->forward(rows_of(branch), fed);
      add(rows, rows_of(branch));
    } else {
      mlp_.record(rows, rows_of(normed), tape, /*accumulate=*/true);
    }
  }

  /// dh, the gradient of what forward() left in h, becomes the gradient of what it found there;
  /// gradients of parameters are added to, where there are any.
  void backward(TensorView<T, 3, B> dh, Tape<B>& tape, const AttentionContext<T, B>& context) {
    const auto rows = rows_of(dh);
    Scratch<B> scratch(dh.backend());
    const auto normed = scratch.template tensor<T>(dh.shape());   // the half's input, once more
    const auto branch = scratch.template tensor<T>(dh.shape());   // gradient of its output
    const auto through = scratch.template tensor<T>(dh.shape());  // gradient of its input
    // The branch's gradient is dh, turned back through the post-norm where there is one.
    const auto from_post = [&](auto& norm, TensorView<const T, 2, B> x) {
      norm.backward(rows_of(branch), rows, x);
      return TensorView<const T, 3, B>(branch);
    };
    const auto join = [&](auto& norm, TensorView<const T, 3, B> h) {
      norm.backward(rows_of(through), rows_of(through), rows_of(h));
      add(rows, rows_of(through));
    };

    {
      const auto saved = mlp_.pop(tape, rows.extent(0));
      TensorView<const T, 3, B> dy = dh;
      if (post_mlp_norm_) dy = from_post(*post_mlp_norm_, tape.template pop<T>(rows.shape()));
      const auto h = tape.template pop<T>(dh.shape());
      mlp_norm_.forward(rows_of(normed), rows_of(h));
      mlp_.backward(rows_of(through), rows_of(dy), rows_of(normed), saved);
      join(mlp_norm_, h);
    }
    {
      const auto saved = attention_.pop(tape);
      TensorView<const T, 3, B> dy = dh;
      if (post_attention_norm_)
        dy = from_post(*post_attention_norm_, rows_of(tape.template pop<T>(dh.shape())));
      const auto h = tape.template pop<T>(dh.shape());
      attention_norm_.forward(rows_of(normed), rows_of(h));
      attention_.backward(through, dy, normed, saved, context);
      join(attention_norm_, h);
    }
  }

  auto& attention() { return attention_; }
  const auto& attention() const { return attention_; }

  void initialize(Philox& random, double stddev, double residual_stddev) {
    attention_.initialize(random, stddev, residual_stddev);
    mlp_.initialize(random, stddev, residual_stddev);
    attention_norm_.initialize();
    mlp_norm_.initialize();
    if (post_attention_norm_) post_attention_norm_->initialize();
    if (post_mlp_norm_) post_mlp_norm_->initialize();
  }

  /// Gradients for all parameters, 0 at first: from now on backward() adds to them.
  void require_gradients() {
    attention_.require_gradients();
    mlp_.require_gradients();
    attention_norm_.require_gradients();
    mlp_norm_.require_gradients();
    if (post_attention_norm_) post_attention_norm_->require_gradients();
    if (post_mlp_norm_) post_mlp_norm_->require_gradients();
  }

  /// Under Hugging Face's names: what is called post_attention_layernorm there is the norm before
  /// the feed-forward layer in Llama, and the norm after attention in Gemma.
  Parameters<T, B> parameters(const std::string& prefix = "") {
    Parameters<T, B> out;
    const auto take = [&](auto& part, const char* name) {
      detail::append_parameters(out, part.parameters(prefix + name));
    };
    take(attention_norm_, "input_layernorm.");
    take(attention_, "self_attn.");
    if (post_attention_norm_) {
      take(*post_attention_norm_, "post_attention_layernorm.");
      take(mlp_norm_, "pre_feedforward_layernorm.");
      take(*post_mlp_norm_, "post_feedforward_layernorm.");
    } else {
      take(mlp_norm_, "post_attention_layernorm.");
    }
    take(mlp_, "mlp.");
    return out;
  }
  WeightSlots<T, B> weights(const std::string& prefix = "") {
    WeightSlots<T, B> out = attention_.weights(prefix + "self_attn.");
    detail::append_parameters(out, mlp_.weights(prefix + "mlp."));
    return out;
  }

 private:
  template <class E>
  static TensorView<E, 2, B> rows_of(TensorView<E, 3, B> x) {
    return x.reshape(Shape{x.extent(0) * x.extent(1), x.extent(2)});
  }
  static NormConfig norm_config(const ModelConfig& model) {
    return {.kind = model.norm, .eps = model.norm_eps, .plus_one = model.norm_plus_one};
  }

  SlidingWindowAttention<T, B> attention_;
  GatedMlp<T, B> mlp_;
  Norm<T, B> attention_norm_, mlp_norm_;
  std::optional<Norm<T, B>> post_attention_norm_, post_mlp_norm_;
};

}  // namespace rapt::nn
