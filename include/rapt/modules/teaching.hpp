// The teaching forms: attention step by step, from one head to many, without an output projection.
//
//   SelfAttention             one head, every token sees every token
//                             Q = x W_q^T, K = x W_k^T, V = x W_v^T;  y = softmax(Q K^T / sqrt(d))
//                             V
//   CausalAttention           the same, but a token sees itself and the past only
//   MultiHeadAttentionStack   several causal heads side by side, each with weights of its own:
//                             y = [head_0(x), head_1(x), ...]
//
//   x [batch, seq, d_in]     y [batch, seq, d_out], of the stack [batch, seq, heads * d_out]
//
// The stack computes what MultiHeadAttention computes with its weights in one matrix, slowly: each
// head reads x again, and the matrix products are thin. It is here to be compared with.
#pragma once

#include <string>
#include <vector>

#include "rapt/core/ops/add.hpp"
#include "rapt/modules/attention.hpp"

namespace rapt {

/// One head of width d_out over inputs of width d_in.
struct SingleHeadConfig {
  index_t d_in = 0;
  index_t d_out = 0;  // 0: d_in
  bool qkv_bias = false;

  AttentionConfig attention() const {
    return {.d_model = d_in,
            .heads = 1,
            .head_dim = d_out > 0 ? d_out : d_in,
            .qkv_bias = qkv_bias,
            .out_projection = false};
  }
};

/// One head; every token sees every token. No cache: the past would have to see the future.
template <class T = float, class B = Cpu>
class SelfAttention {
 public:
  explicit SelfAttention(SingleHeadConfig config, B backend = {})
      : attention_(config.attention(), Full{}, backend) {}

  template <TensorLike<3> X>
  Tensor<T, 3, B> forward(const X& x, const AttentionCall<T, B>& call = {}) const {
    return attention_.forward(x, call);
  }
  /// Saving for backward(); see Attention.
  void forward(TensorView<T, 3, B> out, TensorView<const T, 3, B> x, Tape<B>& tape,
               const AttentionCall<T, B>& call = {}) const {
    attention_.forward(out, x, tape, call);
  }
  void backward(TensorView<T, 3, B> dx, TensorView<const T, 3, B> dy, Tape<B>& tape) {
    attention_.backward(dx, dy, tape);
  }
  void initialize(Philox& random, double stddev = 0.02) { attention_.initialize(random, stddev); }
  void require_gradients() { attention_.require_gradients(); }
  Parameters<T, B> parameters(const std::string& prefix = "") {
    return attention_.parameters(prefix);
  }

 private:
  Attention<T, B, Full> attention_;
};

/// One head; a token sees itself and the past.
template <class T = float, class B = Cpu>
class CausalAttention : public Attention<T, B> {
 public:
  explicit CausalAttention(SingleHeadConfig config, B backend = {})
      : Attention<T, B>(config.attention(), Causal{}, backend) {}
};

struct StackConfig {
  index_t d_in = 0;
  index_t d_out = 0;  // of each head; 0: d_in / heads
  index_t heads = 1;
  bool qkv_bias = false;
};

/// Causal heads side by side.
template <class T = float, class B = Cpu>
class MultiHeadAttentionStack {
 public:
  /// Throws ShapeError where heads does not divide d_in and d_out is not given.
  explicit MultiHeadAttentionStack(StackConfig config, B backend = {}) : config_(config) {
    if (config_.heads < 1)
      throw ShapeError(detail::text("multi_head_attention_stack: heads is ", config_.heads,
                                    ", expected at least 1"));
    if (config_.d_out == 0) {
      if (config_.d_in % config_.heads != 0)
        throw ShapeError(detail::text("multi_head_attention_stack: heads is ", config_.heads,
                                      ", expected a divisor of ", config_.d_in, " = d_in"));
      config_.d_out = config_.d_in / config_.heads;
    }
    for (index_t h = 0; h < config_.heads; ++h)
      heads_.emplace_back(SingleHeadConfig{config_.d_in, config_.d_out, config_.qkv_bias}, backend);
  }

  index_t heads() const { return config_.heads; }
  index_t out_dim() const { return config_.heads * config_.d_out; }

  /// The heads are the cache's layers: one key/value head each.
  KvCache<T, B> make_cache(index_t batch, index_t capacity) const {
    return KvCache<T, B>({.layers = config_.heads,
                          .batch = batch,
                          .capacity = capacity,
                          .kv_heads = 1,
                          .head_dim = config_.d_out},
                         heads_.front().backend());
  }

  template <TensorLike<3> X>
  Tensor<T, 3, B> forward(const X& x, const AttentionCall<T, B>& call = {}) const {
    NoCache none;
    return forward(x, none, call);
  }
  template <TensorLike<3> X, class C>
  requires(KeyValueCache<C> ||
           std::same_as<C, NoCache>) Tensor<T, 3, B> forward(const X& x, C& cache,
                                                             AttentionCall<T, B> call = {})
  const {
    const auto view = as_const_view(x);
    auto out = Tensor<T, 3, B>::uninitialized(Shape{view.extent(0), view.extent(1), out_dim()},
                                              view.backend());
    for (index_t h = 0; h < config_.heads; ++h) {
      call.layer = h;
      const auto y = heads_[static_cast<std::size_t>(h)].forward(view, cache, call);
      copy(out.slice(2, h * config_.d_out, (h + 1) * config_.d_out), y);
    }
    return out;
  }

  /// Saving for backward(): every head saves x, as every head reads it.
  void forward(TensorView<T, 3, B> out, TensorView<const T, 3, B> x, Tape<B>& tape,
               const AttentionCall<T, B>& call = {}) const {
    detail::check_shape("multi_head_attention_stack", "out", out.shape(),
                        Shape{x.extent(0), x.extent(1), out_dim()}, "[batch, seq, heads * d_out]");
    for (index_t h = 0; h < config_.heads; ++h)
      heads_[static_cast<std::size_t>(h)].forward(of_head(out, h), x, tape, call);
  }
  /// dx = the sum of the heads' gradients, from the last head to the first; it may be absent.
  void backward(TensorView<T, 3, B> dx, TensorView<const T, 3, B> dy, Tape<B>& tape) {
    detail::check_shape("multi_head_attention_stack", "dy", dy.shape(),
                        Shape{dy.extent(0), dy.extent(1), out_dim()},
                        "[batch, seq, heads * d_out]");
    Scratch<B> scratch(dy.backend());
    for (index_t h = config_.heads; h-- > 0;) {
      const bool first = h + 1 == config_.heads;
      const auto of_this = first || !dx ? dx : scratch.template tensor<T>(dx.shape());
      heads_[static_cast<std::size_t>(h)].backward(of_this, of_head(dy, h), tape);
      if (dx && !first) add(dx, of_this);
    }
  }

  void initialize(Philox& random, double stddev = 0.02) {
    for (auto& head : heads_) head.initialize(random, stddev);
  }
  void require_gradients() {
    for (auto& head : heads_) head.require_gradients();
  }
  Parameters<T, B> parameters(const std::string& prefix = "") {
    Parameters<T, B> out;
    for (std::size_t h = 0; h < heads_.size(); ++h)
      detail::append_parameters(out, heads_[h].parameters(detail::text(prefix, "heads.", h, ".")));
    return out;
  }

 private:
  template <class E>
  TensorView<E, 3, B> of_head(TensorView<E, 3, B> y, index_t h) const {
    return y.slice(2, h * config_.d_out, (h + 1) * config_.d_out);
  }

  StackConfig config_;
  std::vector<CausalAttention<T, B>> heads_;
};

}  // namespace rapt
