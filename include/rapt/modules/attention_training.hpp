// The training half of the attention module: forward that saves, backward.
//
//   dM = dY W_o           dW_o += dY^T M            M: heads side by side, gated
//   dM, dgate             through M = A sigmoid(gate)
//   dq, dk, dv            attention_backward(), from A and its logsumexp
//   dq, dk = RoPE^-1      the rotation by the negative angle
//   dq, dk                through their norms, from q and k as they were before
//   dx = [dq dk dv] W_qkv           dW_qkv += [dq dk dv]^T x
//
// Saved, for each token: x (unless the caller has it), the fused q, k, v, A and one logsumexp a
// head. q, k, v are saved as attention reads them, rotated; where q and k are normed they are saved
// before it, since the norm's gradient needs its input, and normed and turned once more in
// backward: two cheap passes instead of a second copy of q and k. What the gate multiplies is made
// again likewise.
//
// Source: Dao et al. 2022, arXiv:2205.14135, section 3.1 (gradients from the logsumexp).
#pragma once

#include "rapt/attention/backward.hpp"
#include "rapt/core/ops/column_sum.hpp"
#include "rapt/core/ops/gated_activation.hpp"
#include "rapt/core/ops/matmul.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/modules/attention.hpp"

namespace rapt {

template <class T, class B, AttentionMask Mask>
AttentionContext<T, B> Attention<T, B, Mask>::context(Scratch<B>& scratch, index_t batch,
                                                      index_t seq, const Call& call) const {
  const auto make = [&](Scratch<Cpu>& host) {
    Context out;
    out.probabilities = call.probabilities;
    out.cu_seqlens = call.cu_seqlens;
    auto positions = call.positions;
    if (call.document_ids && !out.cu_seqlens) {
      const PackedDocuments packed = packed_documents(host, call.document_ids);
      out.cu_seqlens = detail::on_backend(scratch, backend_, packed.cu_seqlens);
      if (!positions) positions = packed.positions;
    }
    if (call.key_mask) out.kv_positions = masked_positions(call.key_mask, scratch);
    out.angles = call.angles.cos ? call.angles : angles(scratch, batch, seq, positions, {}, seq);
    return out;
  };
  if constexpr (std::same_as<B, Cpu>) {
    return make(scratch);
  } else {
    Scratch<Cpu> host;
    return make(host);
  }
}

template <class T, class B, AttentionMask Mask>
void Attention<T, B, Mask>::record(TensorView<T, 3, B> out, TensorView<const T, 3, B> x,
                                   Tape<B>& tape, const Context& call) const {
  const index_t batch = x.extent(0), seq = x.extent(1);
  if (counts_in_cache())
    throw ValueError(
        "attention: sink_positions is in_cache, expected absolute: keys that turn again with every "
        "token have no gradient here");
  const auto qkv = tape.template push<T>(Shape{batch, seq, qkv_rows()});
  const auto merged = tape.template push<T>(Shape{batch, seq, heads(), value_dim()});
  const auto logsumexp = tape.template push<accumulate_t<T>>(
      call.cu_seqlens ? Shape{1, heads(), batch * seq} : Shape{batch, heads(), seq});
  if (x.empty()) return;

  Scratch<B> scratch(backend_);
  project(qkv, x);
  const Parts parts = parts_of(qkv);
  const auto [q, k] = normed(parts, scratch);
  rotate(q, k, call.angles);
  attend_uncached(merged, q, k, parts.v, call, logsumexp);
  TensorView<const T, 4, B> gated = merged;
  if (config_.output_gate) {
    const auto both = scratch.template tensor<T>(merged.shape());
    copy(both, parts.gate);
    gated_activation(both, both, merged, Activation::sigmoid);
    gated = both;
  }
  if (config_.out_projection)
    project_out(out, gated);
  else
    copy(out, gated.reshape(out.shape()));
}

template <class T, class B, AttentionMask Mask>
typename Attention<T, B, Mask>::Saved Attention<T, B, Mask>::pop(Tape<B>& tape) {
  Saved saved;
  saved.logsumexp = tape.template pop<accumulate_t<T>, 3>();
  saved.merged = tape.template pop<T, 4>();
  saved.qkv = tape.template pop<T, 3>();
  return saved;
}

template <class T, class B, AttentionMask Mask>
void Attention<T, B, Mask>::backward(TensorView<T, 3, B> dx, TensorView<const T, 3, B> dy,
                                     TensorView<const T, 3, B> x, const Saved& saved,
                                     const Context& call) {
  const index_t batch = x.extent(0), seq = x.extent(1), rows = batch * seq;
  detail::check_shape("attention backward", "x", x.shape(), Shape{batch, seq, d_model()},
                      "[batch, seq, d_model]");
  detail::check_shape("attention backward", "dy", dy.shape(), Shape{batch, seq, out_dim()},
                      "[batch, seq, out_dim]");
  detail::check_shape("attention backward", "what forward saved", saved.qkv.shape(),
                      Shape{batch, seq, qkv_rows()}, "[batch, seq, q, k and v side by side]");
  if (dx) detail::check_shape("attention backward", "dx", dx.shape(), x.shape(), "the shape of x");
  if (x.empty()) return;

  Scratch<B> scratch(backend_);
  const Parts parts = parts_of(saved.qkv);
  const auto dqkv = scratch.template tensor<T>(saved.qkv.shape());
  const Parts gradients = parts_of(dqkv);

  // The output projection, and the gate before it.
  TensorView<T, 4, B> gate{}, gated = saved.merged;
  if (config_.output_gate) {
    gate = scratch.template tensor<T>(gated.shape());
    gated = scratch.template tensor<T>(gated.shape());
    copy(gate, parts.gate);
    gated_activation(gated, gate, saved.merged, Activation::sigmoid);
  }
  TensorView<const T, 4, B> dmerged;
  if (config_.out_projection) {
    const auto dy_rows = dy.reshape(Shape{rows, d_model()});
    const Shape merged_rows{rows, heads() * value_dim()};
    add_products(gradients_.out_weight, gradients_.out_bias, dy_rows, gated.reshape(merged_rows));
    const auto through = scratch.template tensor<T>(gated.shape());
    out_weight_.multiply_back(through.reshape(merged_rows), dy_rows);
    dmerged = through;
  } else {
    dmerged = dy.reshape(gated.shape());
  }
  if (config_.output_gate) {
    // The gated heads have served: their place takes the gradient of the heads.
    gated_activation_backward(gate, gated, dmerged, gate, saved.merged, Activation::sigmoid);
    copy(gradients.gate, gate);
    dmerged = gated;
  }

  const auto [q, k] = normed(parts, scratch);
  if (config_.qk_norm != QkNorm::none) rotate(q, k, call.angles);
  attend_backward(gradients, dmerged, q, k, parts.v, saved, call);

  if (rope_) {
    rope(gradients.q, call.angles.cos, call.angles.sin, rope_->options(true));
    rope(gradients.k, call.angles.cos, call.angles.sin, rope_->options(true));
  }
  as_normed([&](auto view) {
    const auto through = [&](auto dy_and_dx, auto before, const auto& weight, auto& dweight) {
      rms_norm_backward(view(dy_and_dx), dweight, view(dy_and_dx), view(before), weight,
                        config_.norm_eps, config_.norm_plus_one);
    };
    through(gradients.q, parts.q, q_norm_, gradients_.q_norm);
    through(gradients.k, parts.k, k_norm_, gradients_.k_norm);
  });

  const auto dqkv_rows = dqkv.reshape(Shape{rows, qkv_rows()});
  const Shape x_rows{rows, d_model()};
  add_products(gradients_.qkv_weight, gradients_.qkv_bias, dqkv_rows, x.reshape(x_rows));
  if (dx) qkv_weight_.multiply_back(dx.reshape(x_rows), dqkv_rows);
}

template <class T, class B, AttentionMask Mask>
void Attention<T, B, Mask>::attend_backward(const Parts& gradients,
                                            TensorView<const T, 4, B> dmerged,
                                            TensorView<T, 4, B> q, TensorView<T, 4, B> k,
                                            TensorView<T, 4, B> v, const Saved& saved,
                                            const Context& call) {
  AttentionBackwardOptions<TensorView<T, 4, B>> options;
  options.scale = static_cast<accumulate_t<T>>(config_.scale);
  options.kv_positions = call.kv_positions;
  options.cu_seqlens_q = options.cu_seqlens_k = call.cu_seqlens;
  if (config_.sinks) {
    options.sink_logits = sinks_.view();
    options.dsinks = gradients_.sinks.view();
  }
  const auto run = [&](const auto& score) {
    attention_backward(sequences(gradients.q, call), sequences(gradients.k, call),
                       sequences(gradients.v, call), sequences(dmerged, call), sequences(q, call),
                       sequences(k, call), sequences(v, call), sequences(saved.merged, call),
                       saved.logsumexp, mask_, score, options);
  };
  if (config_.softcap > 0)
    run(SoftCap{config_.softcap});
  else
    run(Identity{});
}

// ---- x and the context on the tape, too ----

template <class T, class B, AttentionMask Mask>
void Attention<T, B, Mask>::forward(TensorView<T, 3, B> out, TensorView<const T, 3, B> x,
                                    Tape<B>& tape, const Call& call) const {
  const index_t batch = x.extent(0), seq = x.extent(1);
  detail::check_shape("attention", "x", x.shape(), Shape{batch, seq, d_model()},
                      "[batch, seq, d_model]");
  detail::check_shape("attention", "out", out.shape(), Shape{batch, seq, out_dim()},
                      "[batch, seq, out_dim]");
  check_call(call, batch, seq, false);
  const std::size_t before = tape.size();
  try {
    Scratch<B> scratch(backend_);
    const Context used = context(scratch, batch, seq, call);
    const auto saved_x = detail::save(tape, x);
    detail::save(tape, used.angles.cos);
    detail::save(tape, used.angles.sin);
    detail::save(tape, used.kv_positions);
    detail::save(tape, used.cu_seqlens);
    if (out.is_contiguous()) {
      record(out, saved_x, tape, used);
    } else {
      const auto dense = scratch.template tensor<T>(out.shape());
      record(dense, saved_x, tape, used);
      copy(out, dense);
    }
  } catch (...) {
    tape.truncate(before);
    throw;
  }
}

template <class T, class B, AttentionMask Mask>
void Attention<T, B, Mask>::backward(TensorView<T, 3, B> dx, TensorView<const T, 3, B> dy,
                                     Tape<B>& tape) {
  const Saved saved = pop(tape);
  Context used;
  const auto present = [](auto view) { return view.empty() ? decltype(view){} : view; };
  used.cu_seqlens = present(tape.template pop<std::int32_t, 1>());
  used.kv_positions = present(tape.template pop<std::int32_t, 2>());
  used.angles.sin = tape.template pop<accumulate_t<T>, 3>();
  used.angles.cos = tape.template pop<accumulate_t<T>, 3>();
  const TensorView<const T, 3, B> x = tape.template pop<T, 3>();
  if (dy.is_contiguous() && dx.is_contiguous()) return backward(dx, dy, x, saved, used);
  Scratch<B> scratch(backend_);
  const auto dense_dy = scratch.template tensor<T>(dy.shape());
  copy(dense_dy, dy);
  const auto dense_dx = dx ? scratch.template tensor<T>(dx.shape()) : dx;
  backward(dense_dx, dense_dy, x, saved, used);
  if (dx) copy(dx, dense_dx);
}

}  // namespace rapt
