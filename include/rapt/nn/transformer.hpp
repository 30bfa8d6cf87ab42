// Transformer: a decoder-only language model, assembled from a ModelConfig.
//
//   h = embedding_scale * E[ids]                       [batch, seq, d_model]
//   for each layer: h = block(h)                       nn/block.hpp
//   h = norm(h);  logits = h W^T                       W = E when tied
//   logits = c tanh(logits / c)                        where logit_softcap = c > 0 (Gemma 2)
//
// One class for the GPT of LayerNorms and SwiGLU, Llama, SmolLM2, Mistral, Qwen 2 and 3, Gemma 2
// and 3: what differs is configuration, layer by layer. Parameters carry Hugging Face's names, so
// that a checkpoint is a loop over parameters() (nn/checkpoint.hpp).
//
//   auto cache = model.make_cache(batch, capacity);
//   auto logits = model.forward(prompt, cache);        // prefill [batch, seq, vocab]
//   auto next = model.forward(token, cache);           // decode  [batch, 1, vocab]
//   auto all = model.forward(prompt);                  // without a cache: the same logits
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "rapt/core/ops/softcap.hpp"
#include "rapt/core/tape.hpp"
#include "rapt/io/model_config.hpp"
#include "rapt/nn/block.hpp"
#include "rapt/nn/embedding.hpp"
#include "rapt/nn/linear.hpp"
#include "rapt/nn/norm.hpp"
#include "rapt/nn/transformer_cache.hpp"

namespace rapt::nn {

/// What a call may bring besides ids; see AttentionCall.
template <class T, class B>
struct TransformerCall {
  TensorView<const std::int32_t, 2> positions{};  // [batch, seq]; absent: they continue the cache
  TensorView<const std::int32_t, 2> key_mask{};   // [batch, seq], 0: padding
  /// Documents packed into rows [batch, seq], without a cache; see TrainingCall.
  TensorView<const std::int32_t, 2> document_ids{};
  /// Called after the embedding (layer -1) and after each block with the residual stream
  /// [batch, seq, d_model]: for looking inside.
  void (*observe)(void* context, index_t layer, TensorView<const T, 3, B> h) = nullptr;
  void* observe_context = nullptr;
};

/// The loss of some tokens; sum / tokens is the mean that logs show.
struct TokenLoss {
  double sum = 0;      // of the cross-entropies of the tokens that count
  index_t tokens = 0;  // how many count: those whose target is not ignore_index

  double mean() const { return tokens > 0 ? sum / static_cast<double>(tokens) : 0; }
  TokenLoss& operator+=(const TokenLoss& other) {
    sum += other.sum;
    tokens += other.tokens;
    return *this;
  }
};

/// What a training step may bring besides ids and targets. Host views, as ids are.
struct TrainingCall {
  /// A target of this value does not count: padding, prompts.
  std::int32_t ignore_index = -100;
  /// Gradients are those of scale * TokenLoss::sum: 1 / (tokens of all micro-batches of a step),
  /// times the loss scale of a model in half.
  double scale = 1;
  /// Documents packed into rows [batch, seq]: a token sees its own run of equal ids only, and
  /// positions restart where a run begins.
  TensorView<const std::int32_t, 2> document_ids{};
  /// Rotary positions [batch, seq]; absent: 0, 1, ... of each row or document.
  TensorView<const std::int32_t, 2> positions{};
  /// Saves the input of each block only and runs the block again in the backward pass.
  bool recompute = false;
};

template <class T = float, class B = Cpu>
class Transformer {
 public:
  using Cache = TransformerCache<T, B>;
  using Call = TransformerCall<T, B>;

  /// Zero weights, norms of 1. Throws ShapeError or ValueError naming a setting that does not fit.
  explicit Transformer(ModelConfig config, B backend = {},
                       WeightStorage storage = WeightStorage::zeros);

  const ModelConfig& config() const { return config_; }
  B backend() const { return backend_; }

  /// Global layers keep `capacity` tokens, local layers their window; see nn/transformer_cache.hpp.
  Cache make_cache(index_t batch, index_t capacity) const {
    return Cache(config_, batch, capacity, backend_);
  }
  /// A cache of another element type: half under fp32 activations halves what a decoded token
  /// reads.
  template <class E>
  TransformerCache<E, B> make_cache_of(index_t batch, index_t capacity) const {
    return TransformerCache<E, B>(config_, batch, capacity, backend_);
  }

  /// The lens over all layers: what the cache keeps and what a decoded token reads at a context.
  Footprint footprint(index_t context, index_t batch = 1) const {
    Footprint total;
    for (const auto& block : blocks_) total += block.attention().footprint(context, batch);
    return total;
  }

  /// h [batch, seq, d_model] = the normed residual stream after the last block: what the output
  /// matrix multiplies. With a cache the new tokens are appended to it. Throws CapacityError when
  /// it is full, ValueError for an id outside the vocabulary; the cache is then as it was.
  void hidden(TensorView<T, 3, B> h, TensorView<const std::int32_t, 2> ids, Cache& cache,
              const Call& call = {}) const {
    cache.check_room(ids.extent(0), ids.extent(1));
    run(h, ids, &cache, call);
  }
  template <class E>
  requires(!std::same_as<E, T>) void hidden(TensorView<T, 3, B> h,
                                            TensorView<const std::int32_t, 2> ids,
                                            TransformerCache<E, B>& cache,
                                            const Call& call = {}) const {
    cache.check_room(ids.extent(0), ids.extent(1));
    run(h, ids, &cache, call);
  }
  void hidden(TensorView<T, 3, B> h, TensorView<const std::int32_t, 2> ids,
              const Call& call = {}) const {
    run(h, ids, static_cast<Cache*>(nullptr), call);
  }

  /// logits [rows, vocab] of rows of hidden() [rows, d_model].
  void logits(TensorView<T, 2, B> out, TensorView<const T, 2, B> h) const {
    if (head_)
      head_->forward(out, h);
    else
      embedding_.project(out, h);
    if (config_.logit_softcap > 0)
      softcap(out, static_cast<accumulate_t<T>>(config_.logit_softcap));
  }

  /// Logits of every token [batch, seq, vocab].
  Tensor<T, 3, B> forward(TensorView<const std::int32_t, 2> ids, Cache& cache,
                          const Call& call = {}) const {
    cache.check_room(ids.extent(0), ids.extent(1));
    return all_logits(ids, &cache, call);
  }
  Tensor<T, 3, B> forward(TensorView<const std::int32_t, 2> ids, const Call& call = {}) const {
    return all_logits(ids, nullptr, call);
  }

  /// Cross-entropy of next-token prediction: targets[b, t] [batch, seq] is the id that position t
  /// predicts. Logits are formed a few rows at a time, never as a whole. This and the next are
  /// defined in nn/training.hpp.
  TokenLoss loss(TensorView<const std::int32_t, 2> ids, TensorView<const std::int32_t, 2> targets,
                 const TrainingCall& call = {}) const;

  /// The same, and the gradients of call.scale * sum added to every parameter's gradient
  /// (require_gradients() before the first call, zero_gradients() before each step).
  TokenLoss forward_backward(TensorView<const std::int32_t, 2> ids,
                             TensorView<const std::int32_t, 2> targets, Tape<B>& tape,
                             const TrainingCall& call = {});

  /// Gradients for all parameters, 0 at first: from now on forward_backward() adds to them.
  void require_gradients() {
    embedding_.require_gradients();
    for (auto& block : blocks_) block.require_gradients();
    norm_.require_gradients();
    if (head_) head_->require_gradients();
  }

  /// Weights N(0, 0.02), projections into the residual stream N(0, 0.02 / sqrt(2 layers)), norms 1.
  void initialize(Philox& random, double stddev = 0.02);

  /// Every weight once (a tied head has none of its own), under Hugging Face's names.
  Parameters<T, B> parameters();
  /// The matrices alone, for a loader that may bring quantized blocks; parameters() has those that
  /// hold elements.
  WeightSlots<T, B> weights();
  /// Packs the matrices of the projections, for a model that only runs: views of them taken before
  /// end here, and the next parameters() brings their elements back. The embedding table stays: its
  /// rows are looked up. A second call packs nothing.
  void prepack() {
    for (const auto& slot : weights())
      if (slot.weight != embedding_.weights().front().weight) slot.weight->pack();
  }
  bool is_quantized() {
    for (const auto& slot : weights())
      if (slot.weight->is_quantized()) return true;
    return false;
  }
  /// Bytes of matrices that a decoded token reads: all of them, and one row of an embedding table
  /// that is no output matrix too.
  index_t weight_bytes_per_token() {
    index_t total = 0;
    for (const auto& slot : weights()) total += slot.weight->bytes();
    if (head_)
      total -= embedding_.weights().front().weight->bytes() * (embedding_.vocab() - 1) /
               embedding_.vocab();
    return total;
  }

  auto& block(index_t layer) { return blocks_.at(static_cast<std::size_t>(layer)); }
  const auto& block(index_t layer) const { return blocks_.at(static_cast<std::size_t>(layer)); }

 private:
  static ModelConfig checked(ModelConfig config);

  template <class C>
  void run(TensorView<T, 3, B> h, TensorView<const std::int32_t, 2> ids, C* cache,
           const Call& call) const;

  std::size_t rope_of(index_t layer) const {
    return config_.layer_types[static_cast<std::size_t>(layer)].local_rope ? 1 : 0;
  }
  /// What a call without a cache means to the layers, for each of the two ropes.
  void make_contexts(AttentionContext<T, B> (&contexts)[2], Scratch<B>& scratch, index_t batch,
                     index_t seq, const AttentionCall<T, B>& call) const;

  /// ids live on the host; the table where the model is.
  TensorView<const std::int32_t, 2, B> on_backend(TensorView<const std::int32_t, 2> ids,
                                                  Scratch<B>& scratch) const {
    if constexpr (std::same_as<B, Cpu>) {
      (void)scratch;
      return ids;
    } else {
      auto device_ids = scratch.template tensor<std::int32_t>(ids.shape());
      copy(device_ids, ids);
      return device_ids;
    }
  }

  Tensor<T, 3, B> all_logits(TensorView<const std::int32_t, 2> ids, Cache* cache,
                             const Call& call) const;

  // ---- training: nn/training.hpp ----

  void check_training(TensorView<const std::int32_t, 2> ids,
                      TensorView<const std::int32_t, 2> targets, const TrainingCall& call) const;
  template <class F>
  TokenLoss over_head_rows(TensorView<const std::int32_t, 2> targets, std::int32_t ignore_index,
                           F&& f) const;

  ModelConfig config_;
  B backend_;
  Embedding<T, B> embedding_;
  std::vector<Block<T, B>> blocks_;
  Norm<T, B> norm_;
  std::optional<Linear<T, B>> head_;
};

// Outside of the class, because functions in it are inline, and whoever sees those compiles them
// again, `extern template` (cpu/instances/transformer.hpp) or not.

template <class T, class B>
Transformer<T, B>::Transformer(ModelConfig config, B backend, WeightStorage storage)
    : config_(checked(std::move(config))),
      backend_(backend),
      embedding_(config_.vocab_size, config_.d_model, config_.embedding_scale, backend, storage),
      norm_(config_.d_model,
            {.kind = config_.norm, .eps = config_.norm_eps, .plus_one = config_.norm_plus_one},
            backend) {
  blocks_.reserve(static_cast<std::size_t>(config_.layers));
  for (index_t layer = 0; layer < config_.layers; ++layer)
    blocks_.emplace_back(config_, layer, backend, storage);
  if (!config_.tie_embeddings)
    head_.emplace(config_.d_model, config_.vocab_size, false, backend, storage);
}

template <class T, class B>
void Transformer<T, B>::initialize(Philox& random, double stddev) {
  const double residual = stddev / std::sqrt(2.0 * static_cast<double>(config_.layers));
  embedding_.initialize(random, stddev);
  for (auto& block : blocks_) block.initialize(random, stddev, residual);
  norm_.initialize();
  if (head_) head_->initialize(random, stddev);
}

template <class T, class B>
Parameters<T, B> Transformer<T, B>::parameters() {
  Parameters<T, B> out = embedding_.parameters("model.embed_tokens.");
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer)
    detail::append_parameters(out,
                              blocks_[layer].parameters(detail::text("model.layers.", layer, ".")));
  detail::append_parameters(out, norm_.parameters("model.norm."));
  if (head_) detail::append_parameters(out, head_->parameters("lm_head."));
  return out;
}

template <class T, class B>
WeightSlots<T, B> Transformer<T, B>::weights() {
  WeightSlots<T, B> out = embedding_.weights("model.embed_tokens.");
  for (std::size_t layer = 0; layer < blocks_.size(); ++layer)
    detail::append_parameters(out,
                              blocks_[layer].weights(detail::text("model.layers.", layer, ".")));
  if (head_) detail::append_parameters(out, head_->weights("lm_head."));
  return out;
}

template <class T, class B>
ModelConfig Transformer<T, B>::checked(ModelConfig config) {
  const auto positive = [](const char* name, index_t value) {
    if (value < 1)
      throw ShapeError(detail::text("transformer: ", name, " is ", value, ", expected at least 1"));
  };
  positive("vocab_size", config.vocab_size);
  positive("d_model", config.d_model);
  positive("layers", config.layers);
  positive("ffn_dim", config.ffn_dim);
  positive("heads", config.heads);
  if (config.kv_heads == 0) config.kv_heads = config.heads;
  if (config.head_dim == 0) config.head_dim = config.d_model / config.heads;
  if (config.layer_types.empty())
    config.layer_types.resize(static_cast<std::size_t>(config.layers));
  if (static_cast<index_t>(config.layer_types.size()) != config.layers)
    throw ShapeError(detail::text("transformer: layer_types is [", config.layer_types.size(),
                                  "], expected [", config.layers, "] = [layers]"));
  return config;
}

template <class T, class B>
template <class C>
void Transformer<T, B>::run(TensorView<T, 3, B> h, TensorView<const std::int32_t, 2> ids, C* cache,
                            const Call& call) const {
  const index_t batch = ids.extent(0), seq = ids.extent(1);
  detail::check_shape("transformer", "h", h.shape(), Shape{batch, seq, config_.d_model},
                      "[batch, seq, d_model]");
  if (seq == 0 || batch == 0) return;
  if (cache != nullptr && call.document_ids)
    throw ValueError(
        "transformer: document_ids are given, expected none beside a cache: it holds one "
        "sequence a row");
  const auto check = [&](const char* name, const auto& view) {
    if (view) detail::check_shape("transformer", name, view.shape(), ids.shape(), "[batch, seq]");
  };
  check("positions", call.positions);
  check("key_mask", call.key_mask);
  check("document_ids", call.document_ids);
  Scratch<B> scratch(backend_);
  embedding_.forward(h, on_backend(ids, scratch));
  if (call.observe != nullptr) call.observe(call.observe_context, -1, h);

  AttentionCall<T, B> attention_call;
  attention_call.positions = call.positions;
  attention_call.key_mask = call.key_mask;
  attention_call.document_ids = call.document_ids;
  // Layers turn by one of two ropes: the angles of each are computed once.
  AttentionContext<T, B> contexts[2];
  if (cache == nullptr) make_contexts(contexts, scratch, batch, seq, attention_call);
  for (index_t layer = 0; layer < config_.layers; ++layer) {
    const auto& block = blocks_[static_cast<std::size_t>(layer)];
    AttentionContext<T, B>& context = contexts[rope_of(layer)];
    if (cache != nullptr && !context.angles.cos)
      context.angles = block.attention().angles(scratch, batch, seq, call.positions,
                                                cache->offsets(), cache->rope_length(seq));
    attention_call.angles = context.angles;
    attention_call.cu_seqlens = context.cu_seqlens;
    if (cache != nullptr) {
      attention_call.layer = cache->index_in_group(layer);
      cache->visit(layer, [&](auto& part) { block.forward(h, part, attention_call); });
    } else {
      NoCache none;
      block.forward(h, none, attention_call);
    }
    if (call.observe != nullptr) call.observe(call.observe_context, layer, h);
  }
  const auto rows = h.reshape(Shape{batch * seq, config_.d_model});
  norm_.forward(rows, rows);
}

template <class T, class B>
void Transformer<T, B>::make_contexts(AttentionContext<T, B> (&contexts)[2], Scratch<B>& scratch,
                                      index_t batch, index_t seq,
                                      const AttentionCall<T, B>& call) const {
  bool made[2] = {false, false};
  for (index_t layer = 0; layer < config_.layers; ++layer)
    if (const std::size_t kind = rope_of(layer); !made[kind]) {
      const auto& attention = blocks_[static_cast<std::size_t>(layer)].attention();
      contexts[kind] = attention.context(scratch, batch, seq, call);
      made[kind] = true;
    }
}

template <class T, class B>
Tensor<T, 3, B> Transformer<T, B>::all_logits(TensorView<const std::int32_t, 2> ids, Cache* cache,
                                              const Call& call) const {
  const index_t batch = ids.extent(0), seq = ids.extent(1);
  auto out = Tensor<T, 3, B>::uninitialized(Shape{batch, seq, config_.vocab_size}, backend_);
  auto h = Tensor<T, 3, B>::uninitialized(Shape{batch, seq, config_.d_model}, backend_);
  run(h, ids, cache, call);
  logits(out.reshape(Shape{batch * seq, config_.vocab_size}),
         h.reshape(Shape{batch * seq, config_.d_model}));
  return out;
}

}  // namespace rapt::nn

#include "rapt/nn/training.hpp"
#ifdef RAPT_USE_INSTANCES
#include "rapt/cpu/instances/transformer.hpp"
#endif
