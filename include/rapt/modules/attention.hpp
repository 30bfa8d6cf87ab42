// Attention: projections, heads, rotation, cache and output projection around attention().
//
//   q = x W_q^T (+ b_q)     k = x W_k^T (+ b_k)     v = x W_v^T (+ b_v)        one fused product
//   q, k = norm(q), norm(k)          QkNorm::head per head, QkNorm::flat over all heads; RMSNorm
//   q, k = RoPE(q), RoPE(k)          where a rope is set
//   a = attention(q, K, V, mask)     K, V: k, v, or all that the cache holds
//   a = a * sigmoid(gate)            where output_gate is set (gate: a second half of W_q's heads)
//   y = a W_o^T (+ b_o)
//
//   x, y [batch, seq, d_model]
//   W_q [heads * head_dim, d_model]       W_k [kv_heads * head_dim, d_model]
//   W_v [kv_heads * value_dim, d_model]   W_o [d_model, heads * value_dim]
//
// Query head h reads key/value head h / (heads / kv_heads):
//
//   kv_heads = heads   multi-head attention (MHA)        Vaswani et al. 2017, arXiv:1706.03762
//   kv_heads = 1       multi-query attention (MQA)       Shazeer 2019, arXiv:1911.02150
//   between            grouped-query attention (GQA)     Ainslie et al. 2023, arXiv:2305.13245
//
// With a cache, forward() appends the new keys and values and attends over everything the cache
// holds: a prefill followed by decode steps gives what one uncached forward gives.
#pragma once

#include <concepts>
#include <optional>
#include <string>

#include "rapt/attention/attention.hpp"
#include "rapt/cache/footprint.hpp"
#include "rapt/cache/kv_cache.hpp"
#include "rapt/cache/rolling_kv_cache.hpp"
#include "rapt/core/kinds.hpp"
#include "rapt/core/ops/gated_activation.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/core/ops/rope.hpp"
#include "rapt/core/parameter.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/core/tape.hpp"
#include "rapt/core/weight.hpp"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"
#include "rapt/modules/attention_config.hpp"
#include "rapt/modules/documents.hpp"
#include "rapt/rope/table.hpp"

namespace rapt {

template <class T = float, class B = Cpu, AttentionMask Mask = Causal>
class Attention {
 public:
  using value_type = T;
  using backend_type = B;
  using Call = AttentionCall<T, B>;

  /// Zero weights, norms of 1. Throws ShapeError or ValueError naming a setting that does not fit.
  explicit Attention(AttentionConfig config, Mask mask = {}, B backend = {},
                     WeightStorage storage = WeightStorage::zeros)
      : config_(detail::checked_config(std::move(config))),
        mask_(std::move(mask)),
        backend_(backend),
        qkv_weight_(Shape{q_rows() + k_rows() + v_rows(), config_.d_model}, backend, storage),
        qkv_bias_(Shape<1>{config_.qkv_bias ? q_rows() + k_rows() + v_rows() : 0}, backend),
        out_weight_(Shape{config_.out_projection ? config_.d_model : 0, heads() * value_dim()},
                    backend, storage),
        out_bias_(Shape<1>{config_.out_bias ? config_.d_model : 0}, backend),
        q_norm_(Shape<1>{norm_width(config_.heads)}, backend),
        k_norm_(Shape<1>{norm_width(config_.kv_heads)}, backend),
        sinks_(Shape<1>{config_.sinks ? config_.heads : 0}, backend) {
    if (config_.rope) rope_.emplace(*config_.rope, head_dim());
    reset_norms();
  }

  const AttentionConfig& config() const { return config_; }
  const Mask& mask() const { return mask_; }
  B backend() const { return backend_; }
  index_t d_model() const { return config_.d_model; }
  index_t heads() const { return config_.heads; }
  index_t kv_heads() const { return config_.kv_heads; }
  index_t head_dim() const { return config_.head_dim; }
  index_t value_dim() const { return config_.value_dim; }
  /// Width of y: d_model, or the heads side by side where there is no output projection.
  index_t out_dim() const {
    return config_.out_projection ? config_.d_model : heads() * value_dim();
  }

  /// A cache for `capacity` tokens of `batch` sequences: compact kv_heads.
  KvCache<T, B> make_cache(index_t batch, index_t capacity) const {
    return KvCache<T, B>({.batch = batch,
                          .capacity = capacity,
                          .kv_heads = kv_heads(),
                          .head_dim = head_dim(),
                          .value_dim = value_dim()},
                         backend_);
  }

  /// What this layer's cache keeps and what a decoded token reads at a context
  /// (cache/footprint.hpp).
  Footprint footprint(index_t context, index_t batch = 1) const {
    return rapt::footprint(KvGeometry{.heads = heads(),
                                      .kv_heads = kv_heads(),
                                      .head_dim = head_dim(),
                                      .value_dim = value_dim(),
                                      .element_bytes = static_cast<index_t>(sizeof(T)),
                                      .window = config_.window < context ? config_.window : 0,
                                      .sink_tokens = config_.sink_tokens,
                                      .batch = batch},
                           context);
  }

  /// y = attention of x alone.
  template <TensorLike<3> X>
  Tensor<T, 3, B> forward(const X& x, const Call& call = {}) const {
    NoCache none;
    return forward(x, none, call);
  }
  /// y = attention of x and of everything the cache holds; x joins the cache. Throws CapacityError
  /// where it does not fit; the cache is then as it was.
  template <TensorLike<3> X, class C>
  requires(KeyValueCache<C> ||
           std::same_as<C, NoCache>) Tensor<T, 3, B> forward(const X& x, C& cache,
                                                             const Call& call = {})
  const {
    const auto view = as_const_view(x);
    auto out =
        Tensor<T, 3, B>::uninitialized(Shape{view.extent(0), view.extent(1), out_dim()}, backend_);
    forward(out, view, cache, call);
    return out;
  }
  /// The same into `out` [batch, seq, out_dim], which may not be x; allocates nothing once scratch
  /// has grown.
  template <WritableTensorLike<3> Out, TensorLike<3> X, class C>
  requires(KeyValueCache<C> || std::same_as<C, NoCache>) void forward(Out&& out, const X& x,
                                                                      C& cache,
                                                                      const Call& call = {}) const {
    run(as_view(out), as_const_view(x), cache, call);
  }

  // ---- training: modules/attention_training.hpp, which this file ends by including ----

  using Context = AttentionContext<T, B>;
  /// What backward needs besides x.
  struct Saved {
    TensorView<T, 3, B> qkv;                      // [batch, seq, widths of q (and gate), k, v]
    TensorView<T, 4, B> merged;                   // [batch, seq, heads, value_dim], ungated
    TensorView<accumulate_t<T>, 3, B> logsumexp;  // [batch, heads, seq]
  };

  /// forward() without a cache, saving on the tape what backward() needs. Where sink_positions is
  /// in_cache there is none.
  void forward(TensorView<T, 3, B> out, TensorView<const T, 3, B> x, Tape<B>& tape,
               const Call& call = {}) const;
  /// dx = the gradient of x, from dy [batch, seq, out_dim]; gradients of parameters are added to,
  /// where require_gradients() made them. dx may be absent.
  void backward(TensorView<T, 3, B> dx, TensorView<const T, 3, B> dy, Tape<B>& tape);

  /// The same for a caller who has x, or makes it again, when backward comes; x, out, dx and dy
  /// have no gaps. `context` is made once for a forward and its backward.
  Context context(Scratch<B>& scratch, index_t batch, index_t seq, const Call& call) const;
  void record(TensorView<T, 3, B> out, TensorView<const T, 3, B> x, Tape<B>& tape,
              const Context& context) const;
  static Saved pop(Tape<B>& tape);
  void backward(TensorView<T, 3, B> dx, TensorView<const T, 3, B> dy, TensorView<const T, 3, B> x,
                const Saved& saved, const Context& context);

  /// Cosines and sines for seq tokens of each row that follow `offsets` (host [batch]; absent: 0)
  /// or stand at `positions`. Layers with one rope may share them through AttentionCall::angles.
  RopeAngles<T, B> angles(Scratch<B>& scratch, index_t batch, index_t seq,
                          TensorView<const std::int32_t, 2> positions,
                          TensorView<const std::int32_t, 1> offsets, index_t rope_length) const {
    if (!rope_) return {};
    // Another arena than the device's; on the CPU the rows below die with `scratch`, as the angles
    // do.
    if (positions)
      return rope_->angles(scratch, backend_, positions, length_of(positions, rope_length));
    if (!offsets) return rope_->angles(scratch, backend_, 0, seq, rope_length);
    bool ragged = false;
    for (index_t b = 0; b < batch; ++b) ragged = ragged || offsets(b) != offsets(0);
    if (!ragged)
      return rope_->angles(scratch, backend_, batch > 0 ? offsets(0) : 0, seq, rope_length);
    Scratch<Cpu> host;
    auto rows = host.template tensor<std::int32_t>(Shape{batch, seq});
    for (index_t b = 0; b < batch; ++b)
      for (index_t i = 0; i < seq; ++i) rows(b, i) = offsets(b) + static_cast<std::int32_t>(i);
    if constexpr (std::same_as<B, Cpu>) {
      // The rows must be gone before the angles are laid on the same stack.
      auto kept = scratch.template tensor<accumulate_t<T>>(Shape{2, batch, seq * rope_->pairs()});
      const Shape shape{batch, seq, rope_->pairs()};
      auto cos = kept.select(0, 0).reshape(shape), sin = kept.select(0, 1).reshape(shape);
      rope_->write(cos, sin, as_const_view(rows), rope_length);
      return {cos, sin};
    } else {
      return rope_->angles(scratch, backend_, as_const_view(rows), rope_length);
    }
  }

  /// Projections N(0, stddev), the output projection N(0, residual_stddev), biases and sinks 0,
  /// norms 1.
  void initialize(Philox& random, double stddev, double residual_stddev) {
    detail::fill_weight(qkv_weight_, random, stddev);
    detail::fill_weight(out_weight_, random, residual_stddev);
    for (auto* zero : {&qkv_bias_, &out_bias_, &sinks_})
      if (!zero->empty()) fill(*zero, 0.0);
    reset_norms();
  }
  void initialize(Philox& random, double stddev = 0.02) { initialize(random, stddev, stddev); }

  /// Gradients for all parameters, 0 at first: from now on backward() adds to them.
  void require_gradients() {
    detail::make_gradient(gradients_.qkv_weight, qkv_weight_);
    detail::make_gradient(gradients_.qkv_bias, qkv_bias_);
    detail::make_gradient(gradients_.out_weight, out_weight_);
    detail::make_gradient(gradients_.out_bias, out_bias_);
    detail::make_gradient(gradients_.q_norm, q_norm_);
    detail::make_gradient(gradients_.k_norm, k_norm_);
    detail::make_gradient(gradients_.sinks, sinks_);
  }

  /// q_proj, k_proj, v_proj, o_proj (weight, bias), q_norm, k_norm, sinks: those there are. A
  /// weight that holds quantized blocks is none.
  Parameters<T, B> parameters(const std::string& prefix = "") {
    Parameters<T, B> out;
    const index_t rows[] = {q_rows(), k_rows(), v_rows()};
    const char* const names[] = {"q_proj", "k_proj", "v_proj"};
    index_t begin = 0;
    for (int part = 0; part < 3; ++part) {
      const index_t end = begin + rows[part];
      const auto of_part = [&](auto all) { return all.empty() ? all : all.slice(0, begin, end); };
      if (!qkv_weight_.is_quantized())
        out.push_back({prefix + names[part] + ".weight", of_part(qkv_weight_.view()),
                       of_part(gradients_.qkv_weight.view())});
      if (config_.qkv_bias)
        out.push_back({prefix + names[part] + ".bias", of_part(qkv_bias_.view()),
                       of_part(gradients_.qkv_bias.view())});
      begin = end;
    }
    if (config_.out_projection && !out_weight_.is_quantized())
      out.push_back({prefix + "o_proj.weight", out_weight_.view(), gradients_.out_weight.view()});
    if (config_.out_bias) out.push_back({prefix + "o_proj.bias", out_bias_, gradients_.out_bias});
    if (config_.qk_norm != QkNorm::none) {
      out.push_back({prefix + "q_norm.weight", q_norm_, gradients_.q_norm});
      out.push_back({prefix + "k_norm.weight", k_norm_, gradients_.k_norm});
    }
    if (config_.sinks) out.push_back({prefix + "sinks", sinks_, gradients_.sinks});
    return out;
  }
  /// The matrices alone, for a loader that may bring quantized blocks.
  WeightSlots<T, B> weights(const std::string& prefix = "") {
    WeightSlots<T, B> out{{&qkv_weight_,
                           {{prefix + "q_proj.weight", q_rows()},
                            {prefix + "k_proj.weight", k_rows()},
                            {prefix + "v_proj.weight", v_rows()}}}};
    if (config_.out_projection)
      out.push_back({&out_weight_, {{prefix + "o_proj.weight", config_.d_model}}});
    return out;
  }

 private:
  // Rows of the fused weight: [q (and gate, head by head), k, v].
  index_t q_width() const { return config_.head_dim * (config_.output_gate ? 2 : 1); }
  index_t q_rows() const { return config_.heads * q_width(); }
  index_t k_rows() const { return config_.kv_heads * config_.head_dim; }
  index_t v_rows() const { return config_.kv_heads * config_.value_dim; }
  index_t qkv_rows() const { return q_rows() + k_rows() + v_rows(); }
  index_t norm_width(index_t norm_heads) const {
    switch (config_.qk_norm) {
      case QkNorm::none:
        return 0;
      case QkNorm::head:
        return config_.head_dim;
      case QkNorm::flat:
        return norm_heads * config_.head_dim;
    }
    return 0;
  }
  void reset_norms() {
    for (auto* norm : {&q_norm_, &k_norm_})
      if (!norm->empty()) fill(*norm, config_.norm_plus_one ? 0.0 : 1.0);
  }

  /// A rope that depends on the length takes the largest position where positions are given.
  static index_t length_of(TensorView<const std::int32_t, 2> positions, index_t rope_length) {
    index_t length = rope_length;
    for (index_t b = 0; b < positions.extent(0); ++b)
      for (index_t i = 0; i < positions.extent(1); ++i)
        length = std::max<index_t>(length, index_t{positions(b, i)} + 1);
    return length;
  }

  template <class C>
  void run(TensorView<T, 3, B> out, TensorView<const T, 3, B> x, C& cache, const Call& call) const {
    const index_t batch = x.extent(0), seq = x.extent(1);
    detail::check_shape("attention", "x", x.shape(), Shape{batch, seq, d_model()},
                        "[batch, seq, d_model]");
    detail::check_shape("attention", "out", out.shape(), Shape{batch, seq, out_dim()},
                        "[batch, seq, out_dim]");
    check_call(call, batch, seq, !std::same_as<C, NoCache>);
    if constexpr (!std::same_as<C, NoCache>) cache.check_room(batch, seq);
    if (out.empty()) return;

    Scratch<B> scratch(backend_);
    if (!x.is_contiguous() || !out.is_contiguous()) {
      // Products want rows at one stride: a slice of longer sequences is gathered and spread.
      auto dense_x = scratch.template tensor<T>(x.shape());
      auto dense_out = scratch.template tensor<T>(out.shape());
      copy(dense_x, x);
      run(dense_out, as_const_view(dense_x), cache, call);
      copy(out, dense_out);
      return;
    }
    auto qkv = scratch.template tensor<T>(Shape{batch, seq, qkv_rows()});
    project(qkv, x);
    const auto [q, gate, k, v] = parts_of(qkv);
    normalize(q, q, q_norm_);
    normalize(k, k, k_norm_);

    auto merged = config_.out_projection
                      ? scratch.template tensor<T>(Shape{batch, seq, heads(), value_dim()})
                      : out.reshape(Shape{batch, seq, heads(), value_dim()});
    if (counts_in_cache())
      attend_in_cache(merged, q, k, v, cache, call);
    else
      attend(merged, q, k, v, cache, call, scratch);

    if (config_.output_gate) {
      // Heads of the gate lie between those of q: gathered, the two are plain rows.
      auto dense_gate = scratch.template tensor<T>(merged.shape());
      copy(dense_gate, gate);
      gated_activation(merged, dense_gate, merged, Activation::sigmoid);
    }
    if (config_.out_projection) project_out(out, merged);
  }

  void check_call(const Call& call, index_t batch, index_t seq, bool cached) const {
    const auto check = [&](const char* name, const auto& view) {
      if (view)
        detail::check_shape("attention", name, view.shape(), Shape{batch, seq}, "[batch, seq]");
    };
    check("positions", call.positions);
    check("key_mask", call.key_mask);
    check("document_ids", call.document_ids);
    if (!call.document_ids && !call.cu_seqlens) return;
    const auto refuse = [](const char* name, const char* why) {
      throw ValueError(
          detail::text("attention: ", name, " given, expected none beside document_ids", why));
    };
    if (cached) refuse("a cache is", ": it holds one sequence a row");
    if (call.key_mask) refuse("key_mask is", ": padding is a document of its own");
    if (call.probabilities) refuse("probabilities are", "");
    if (counts_in_cache()) refuse("sink_positions in_cache are", "");
  }
  bool counts_in_cache() const {
    return config_.sink_positions == SinkPositions::in_cache && config_.sink_tokens > 0;
  }

  /// qkv = x [W_q W_k W_v]^T (+ b), all in one product.
  void project(TensorView<T, 3, B> qkv, TensorView<const T, 3, B> x) const {
    const index_t rows = x.extent(0) * x.extent(1);
    MatmulOptions<T, B> options;
    if (config_.qkv_bias) options.bias = qkv_bias_.view();
    qkv_weight_.multiply(qkv.reshape(Shape{rows, qkv_rows()}), x.reshape(Shape{rows, d_model()}),
                         options);
  }
  /// out = merged W_o^T (+ b).
  void project_out(TensorView<T, 3, B> out, TensorView<const T, 4, B> merged) const {
    const index_t rows = out.extent(0) * out.extent(1);
    MatmulOptions<T, B> options;
    if (config_.out_bias) options.bias = out_bias_.view();
    out_weight_.multiply(out.reshape(Shape{rows, d_model()}),
                         merged.reshape(Shape{rows, heads() * value_dim()}), options);
  }

  /// Views into the fused result, no copies: [batch, seq, heads, dim].
  struct Parts {
    TensorView<T, 4, B> q, gate, k, v;  // gate: no channels where there is none
  };
  Parts parts_of(TensorView<T, 3, B> qkv) const {
    const auto part = [&](index_t begin, index_t n, index_t dim) {
      return qkv.slice(2, begin, begin + n * dim)
          .reshape(Shape{qkv.extent(0), qkv.extent(1), n, dim});
    };
    const auto q_and_gate = part(0, heads(), q_width());
    return {.q = q_and_gate.slice(3, 0, head_dim()),
            .gate = q_and_gate.slice(3, head_dim(), q_width()),
            .k = part(q_rows(), kv_heads(), head_dim()),
            .v = part(q_rows() + k_rows(), kv_heads(), value_dim())};
  }

  /// x [batch, seq, heads, dim] as the norm of q and k sees it: f(view) with heads apart or merged.
  template <class F>
  void as_normed(F&& f) const {
    const auto merge = [](auto x) {
      return x.reshape(Shape{x.extent(0), x.extent(1), x.extent(2) * x.extent(3)});
    };
    if (config_.qk_norm == QkNorm::head) f([](auto x) { return x; });
    if (config_.qk_norm == QkNorm::flat) f(merge);
  }
  void normalize(TensorView<T, 4, B> y, TensorView<const T, 4, B> x,
                 const Tensor<T, 1, B>& weight) const {
    as_normed([&](auto view) {
      rms_norm(view(y), view(x), weight, config_.norm_eps, config_.norm_plus_one);
    });
  }

  /// Rotates q and k, appends k and v, attends.
  template <class C>
  void attend(TensorView<T, 4, B> merged, TensorView<T, 4, B> q, TensorView<T, 4, B> k,
              TensorView<T, 4, B> v, C& cache, const Call& call, Scratch<B>& scratch) const {
    constexpr bool kCached = !std::same_as<C, NoCache>;
    const index_t batch = q.extent(0), seq = q.extent(1);
    if constexpr (kCached) {
      rotate(q, k,
             rope_ && !call.angles.cos ? angles(scratch, batch, seq, call.positions,
                                                cache.offsets(), cache.rope_length(seq))
                                       : call.angles);
      if constexpr (std::same_as<typename C::value_type, T>)
        attend_step(merged, q, cache.append(scratch, call.layer, k, v, call.key_mask), call);
      else
        attend_as_stored(merged, q, k, v, cache, call, scratch);
    } else {
      const Context uncached = context(scratch, batch, seq, call);
      rotate(q, k, uncached.angles);
      attend_uncached(merged, q, k, v, uncached);
    }
  }

  void rotate(TensorView<T, 4, B> q, TensorView<T, 4, B> k, const RopeAngles<T, B>& turn) const {
    if (!rope_) return;
    rope(q, turn.cos, turn.sin, rope_->options());
    rope(k, turn.cos, turn.sin, rope_->options());
  }

  /// A cache of another element type, as a rule a narrower one: q, k and v are rounded to it, and
  /// the kernel of that type attends.
  template <class C>
  void attend_as_stored(TensorView<T, 4, B> merged, TensorView<const T, 4, B> q,
                        TensorView<const T, 4, B> k, TensorView<const T, 4, B> v, C& cache,
                        const Call& call, Scratch<B>& scratch) const {
    using E = typename C::value_type;
    const auto as_stored = [&](const auto& x) {
      auto out = scratch.template tensor<E>(x.shape());
      copy(out, x);
      return out;
    };
    const auto out = scratch.template tensor<E>(merged.shape());
    const auto stored_q = as_stored(q), stored_k = as_stored(k), stored_v = as_stored(v);
    AttentionOptions<TensorView<E, 4, B>> options;
    if (config_.sinks) options.sink_logits = as_stored(sinks_);
    attend_step(out, as_const_view(stored_q),
                cache.append(scratch, call.layer, stored_k, stored_v, call.key_mask), call,
                options);
    copy(merged, out);
  }

  template <class E>
  void attend_step(TensorView<E, 4, B> merged, std::type_identity_t<TensorView<const E, 4, B>> q,
                   const CacheStep<E, B>& step, const Call& call,
                   AttentionOptions<TensorView<E, 4, B>> options = {}) const {
    options.kv_lengths = step.kv_lengths;
    options.q_positions = step.q_positions;
    options.kv_positions = step.kv_positions;
    options.probabilities = call.probabilities;
    attend_with(merged, q, step.keys, step.values, options);
  }
  void attend_uncached(TensorView<T, 4, B> merged, TensorView<const T, 4, B> q,
                       TensorView<const T, 4, B> k, TensorView<const T, 4, B> v,
                       const Context& call,
                       TensorView<accumulate_t<T>, 3, B> logsumexp = {}) const {
    AttentionOptions<TensorView<T, 4, B>> options;
    options.kv_positions = call.kv_positions;
    options.cu_seqlens_q = options.cu_seqlens_k = call.cu_seqlens;
    options.probabilities = call.probabilities;
    options.logsumexp = logsumexp;
    attend_with(sequences(merged, call), sequences(q, call), sequences(k, call), sequences(v, call),
                options);
  }
  /// Packed documents are one row of all tokens to the kernel, cut by cu_seqlens.
  template <class E>
  static TensorView<E, 4, B> sequences(TensorView<E, 4, B> x, const Context& call) {
    if (!call.cu_seqlens) return x;
    return x.reshape(Shape{1, x.extent(0) * x.extent(1), x.extent(2), x.extent(3)});
  }

  template <class E>
  void attend_with(TensorView<E, 4, B> out, TensorView<const E, 4, B> q,
                   TensorView<const E, 4, B> k, TensorView<const E, 4, B> v,
                   AttentionOptions<TensorView<E, 4, B>> options) const {
    options.scale = static_cast<accumulate_t<E>>(config_.scale);
    if constexpr (std::same_as<E, T>)
      if (config_.sinks) options.sink_logits = sinks_.view();
    if (config_.softcap > 0)
      rapt::attention(out, q, k, v, mask_, SoftCap{config_.softcap}, options);
    else
      rapt::attention(out, q, k, v, mask_, Identity{}, options);
  }

  /// q and k as they go on from the projection: normed into scratch, or where they stand.
  std::pair<TensorView<T, 4, B>, TensorView<T, 4, B>> normed(const Parts& parts,
                                                             Scratch<B>& scratch) const {
    if (config_.qk_norm == QkNorm::none) return {parts.q, parts.k};
    const auto both = scratch.template tensor<T>(
        Shape{parts.q.extent(0), parts.q.extent(1), heads() + kv_heads(), head_dim()});
    const auto q = both.slice(2, 0, heads()), k = both.slice(2, heads(), both.extent(2));
    normalize(q, parts.q, q_norm_);
    normalize(k, parts.k, k_norm_);
    return {q, k};
  }
  /// attention_backward() into the parts of the fused gradient.
  void attend_backward(const Parts& gradients, TensorView<const T, 4, B> dmerged,
                       TensorView<T, 4, B> q, TensorView<T, 4, B> k, TensorView<T, 4, B> v,
                       const Saved& saved, const Context& call);
  /// dweight += dy^T x, dbias += the sum of dy's rows; each where there is one.
  static void add_products(Tensor<accumulate_t<T>, 2, B>& dweight,
                           Tensor<accumulate_t<T>, 1, B>& dbias, TensorView<const T, 2, B> dy,
                           TensorView<const T, 2, B> x) {
    if (!dweight.empty()) matmul(dweight, dy.transpose(), x, {.accumulate = true});
    if (!dbias.empty()) column_sum(dbias, dy, true);
  }

  /// Position i of key i, -1 where it is padding.
  TensorView<const std::int32_t, 2, B> masked_positions(TensorView<const std::int32_t, 2> key_mask,
                                                        Scratch<B>& scratch) const {
    const auto fill_in = [&](TensorView<std::int32_t, 2> out) {
      for (index_t b = 0; b < out.extent(0); ++b)
        for (index_t i = 0; i < out.extent(1); ++i)
          out(b, i) = key_mask(b, i) != 0 ? static_cast<std::int32_t>(i) : -1;
    };
    if constexpr (std::same_as<B, Cpu>) {
      auto out = scratch.template tensor<std::int32_t>(key_mask.shape());
      fill_in(out);
      return out;
    } else {
      Scratch<Cpu> host;
      auto out = host.template tensor<std::int32_t>(key_mask.shape());
      fill_in(out);
      return detail::on_backend(scratch, backend_, as_const_view(out));
    }
  }

  // ---- positions inside the cache: modules/attention_in_cache.hpp, included below ----

  template <class C>
  void attend_in_cache(TensorView<T, 4, B> merged, TensorView<T, 4, B> q, TensorView<T, 4, B> k,
                       TensorView<T, 4, B> v, C& cache, const Call& call) const;
  template <class Place>
  void rotate_by(TensorView<T, 4, B> x, Place place, Scratch<B>& scratch) const;

 protected:
  RollingKvCache<T, B> make_rolling_cache(index_t batch) const {
    return RollingKvCache<T, B>({.batch = batch,
                                 .window = config_.window,
                                 .sink_tokens = config_.sink_tokens,
                                 .kv_heads = kv_heads(),
                                 .head_dim = head_dim(),
                                 .value_dim = value_dim()},
                                backend_);
  }

 private:
  AttentionConfig config_;
  Mask mask_;
  B backend_;
  std::optional<RopeTable<accumulate_t<T>>> rope_;
  Weight<T, B> qkv_weight_;
  Tensor<T, 1, B> qkv_bias_;
  Weight<T, B> out_weight_;
  Tensor<T, 1, B> out_bias_, q_norm_, k_norm_, sinks_;
  struct Gradients {  // empty until require_gradients()
    Tensor<accumulate_t<T>, 2, B> qkv_weight;
    Tensor<accumulate_t<T>, 1, B> qkv_bias;
    Tensor<accumulate_t<T>, 2, B> out_weight;
    Tensor<accumulate_t<T>, 1, B> out_bias, q_norm, k_norm, sinks;
  };
  Gradients gradients_;
};

/// As many key/value heads as query heads. Throws ShapeError for another kv_heads.
template <class T = float, class B = Cpu>
class MultiHeadAttention : public Attention<T, B> {
 public:
  explicit MultiHeadAttention(AttentionConfig config, B backend = {})
      : Attention<T, B>(checked(std::move(config)), Causal{}, backend) {}

 private:
  static AttentionConfig checked(AttentionConfig config) {
    if (config.kv_heads != 0 && config.kv_heads != config.heads)
      throw ShapeError(detail::text("multi_head_attention: kv_heads is ", config.kv_heads,
                                    ", expected ", config.heads, " = heads"));
    return config;
  }
};

/// kv_heads key/value heads, each shared by heads / kv_heads query heads.
template <class T = float, class B = Cpu>
class GroupedQueryAttention : public Attention<T, B> {
 public:
  explicit GroupedQueryAttention(AttentionConfig config, B backend = {})
      : Attention<T, B>(std::move(config), Causal{}, backend) {}
};

/// One key/value head for all query heads. Throws ShapeError for another kv_heads.
template <class T = float, class B = Cpu>
class MultiQueryAttention : public Attention<T, B> {
 public:
  explicit MultiQueryAttention(AttentionConfig config, B backend = {})
      : Attention<T, B>(checked(std::move(config)), Causal{}, backend) {}

 private:
  static AttentionConfig checked(AttentionConfig config) {
    if (config.kv_heads != 0 && config.kv_heads != 1)
      throw ShapeError(
          detail::text("multi_query_attention: kv_heads is ", config.kv_heads, ", expected 1"));
    config.kv_heads = 1;
    return config;
  }
};

/// Causal attention to the last `window` keys and to the first `sink_tokens`.
using CausalWindow = decltype(Causal{} & (SlidingWindow{1} | SinkTokens{0}));

inline CausalWindow causal_window(index_t window, index_t sink_tokens = 0) {
  return Causal{} & (SlidingWindow{window} | SinkTokens{sink_tokens});
}

/// Each query sees the last `window` keys, its own included, and the first `sink_tokens`; its cache
/// is a ring (RollingKvCache), or a KvCache where the window holds everything.
template <class T = float, class B = Cpu>
class SlidingWindowAttention : public Attention<T, B, CausalWindow> {
 public:
  explicit SlidingWindowAttention(AttentionConfig config, B backend = {},
                                  WeightStorage storage = WeightStorage::zeros)
      : Attention<T, B, CausalWindow>(
            checked(config), causal_window(config.window, config.sink_tokens), backend, storage) {}

  /// `capacity` does not bound a ring: it forgets instead.
  RollingKvCache<T, B> make_cache(index_t batch, index_t = 0) const {
    return this->make_rolling_cache(batch);
  }
  /// A cache that keeps every token, for those who must be able to go back.
  KvCache<T, B> make_full_cache(index_t batch, index_t capacity) const {
    return Attention<T, B, CausalWindow>::make_cache(batch, capacity);
  }

 private:
  static AttentionConfig checked(AttentionConfig config) {
    if (config.window < 1)
      throw ShapeError(detail::text("sliding_window_attention: window is ", config.window,
                                    ", expected at least 1 key"));
    if (config.sink_tokens < 0)
      throw ShapeError(detail::text("sliding_window_attention: sink_tokens is ", config.sink_tokens,
                                    ", expected 0 or more"));
    return config;
  }
};

}  // namespace rapt

#include "rapt/modules/attention_in_cache.hpp"
#include "rapt/modules/attention_training.hpp"
