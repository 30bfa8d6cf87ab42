// The training half of nn::Transformer: the loss, and its gradients.
//
//   L = sum over tokens of  logsumexp(z_t) - z_t[target_t]          z_t = logits of position t
//   dz_t = scale (softmax(z_t) - onehot(target_t))                  0 where the target is ignored
//   dz_t *= 1 - (z_t / c)^2                                         where logits are soft-capped
//   dE (or dW) += dz^T hidden;  dhidden = dz W                      then norm, blocks, embedding
//
// Logits exist for some rows at a time (kHeadBytes, cut by shape alone), and their gradient takes
// their place: no [tokens, vocab] tensor is ever whole. Rows are taken in their order, so results
// do not depend on the number of threads. A piece in which no target counts is left out.
//
// A block saves its activations on the tape, or, with TrainingCall::recompute, its input alone and
// runs again when its backward comes: memory for one more forward pass. Both give the same bits.
//
//   saved per token and layer, in T       2 d_model + (2 heads + 2 kv_heads) head_dim + 2 ffn_dim
//                                         + 2 d_model with post-norms
//   with recompute                        d_model
//
// Sources: Chen et al. 2016, arXiv:1604.06174 (recomputation); Wijmans et al. 2024,
// arXiv:2411.09009 (the loss without the whole of the logits).
#pragma once

#include <algorithm>

#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/ops/softcap.hpp"
#include "rapt/nn/transformer.hpp"

namespace rapt {
namespace detail {

/// Logits that are held at once.
inline constexpr index_t kHeadBytes = index_t{16} << 20;

/// Rows of logits that are formed at once: enough that their sum, a pass over the whole gradient of
/// the output matrix, is worth its memory traffic.
constexpr index_t head_rows(index_t vocab, std::size_t element_size) {
  const index_t fit = kHeadBytes / (vocab * static_cast<index_t>(element_size));
  return std::clamp<index_t>(fit / 64 * 64, 128, 1024);
}

}  // namespace detail

namespace nn {

template <class T, class B>
void Transformer<T, B>::check_training(TensorView<const std::int32_t, 2> ids,
                                       TensorView<const std::int32_t, 2> targets,
                                       const TrainingCall& call) const {
  detail::check_shape("transformer", "targets", targets.shape(), ids.shape(),
                      "[batch, seq] of ids");
  const auto check = [&](const char* name, const auto& view) {
    if (view) detail::check_shape("transformer", name, view.shape(), ids.shape(), "[batch, seq]");
  };
  check("positions", call.positions);
  check("document_ids", call.document_ids);
  for (index_t b = 0; b < targets.extent(0); ++b)
    for (index_t t = 0; t < targets.extent(1); ++t) {
      const std::int32_t target = targets(b, t);
      if (target != call.ignore_index && (target < 0 || target >= config_.vocab_size))
        throw ValueError(detail::text("transformer: targets[", b, ", ", t, "] is ", target,
                                      ", expected 0 to ", config_.vocab_size - 1, " or ",
                                      call.ignore_index, " = ignore_index"));
    }
}

/// f(begin, end, losses, targets) for every piece of rows in which a target counts; the sum of the
/// losses that f wrote, in the order of the rows.
template <class T, class B>
template <class F>
TokenLoss Transformer<T, B>::over_head_rows(TensorView<const std::int32_t, 2> targets,
                                            std::int32_t ignore_index, F&& f) const {
  const index_t rows = targets.size(), seq = targets.extent(1);
  Scratch<B> scratch(backend_);
  const auto losses = scratch.template tensor<accumulate_t<T>>(Shape{rows});
  const auto add_up = [&](TensorView<std::int32_t, 1> flat, auto&& losses_on_host) {
    for (index_t i = 0; i < rows; ++i) flat(i) = targets(i / seq, i % seq);
    const auto here = detail::on_backend(scratch, backend_, as_const_view(flat));
    const index_t step = detail::head_rows(config_.vocab_size, sizeof(T));
    for (index_t begin = 0; begin < rows; begin += step) {
      const index_t end = std::min(rows, begin + step);
      const auto* const first = flat.data();
      const bool any = !std::all_of(first + begin, first + end,
                                    [&](std::int32_t t) { return t == ignore_index; });
      f(begin, end, any, losses.slice(0, begin, end), here.slice(0, begin, end));
    }
    TokenLoss total;
    const auto known = losses_on_host();
    for (index_t i = 0; i < rows; ++i)
      if (flat(i) != ignore_index) {
        total.sum += static_cast<double>(known(i));
        ++total.tokens;
      }
    return total;
  };
  if constexpr (std::same_as<B, Cpu>) {
    return add_up(scratch.template tensor<std::int32_t>(Shape{rows}), [&] { return losses; });
  } else {
    Scratch<Cpu> host;
    return add_up(host.template tensor<std::int32_t>(Shape{rows}), [&] {
      const auto known = host.template tensor<accumulate_t<T>>(Shape{rows});
      copy(known, losses);
      return known;
    });
  }
}

template <class T, class B>
TokenLoss Transformer<T, B>::loss(TensorView<const std::int32_t, 2> ids,
                                  TensorView<const std::int32_t, 2> targets,
                                  const TrainingCall& call) const {
  check_training(ids, targets, call);
  if (ids.empty()) return {};
  Scratch<B> scratch(backend_);
  const auto h = scratch.template tensor<T>(Shape{ids.extent(0), ids.extent(1), config_.d_model});
  Call forward_call;
  forward_call.positions = call.positions;
  forward_call.document_ids = call.document_ids;
  hidden(h, ids, forward_call);
  const auto rows = h.reshape(Shape{ids.size(), config_.d_model});
  return over_head_rows(
      targets, call.ignore_index,
      [&](index_t begin, index_t end, bool any, auto losses, auto wanted) {
        if (!any) return;
        Scratch<B> piece(backend_);
        const auto z = piece.template tensor<T>(Shape{end - begin, config_.vocab_size});
        logits(z, rows.slice(0, begin, end));
        cross_entropy(losses, z, wanted, {.ignore_index = call.ignore_index});
      });
}

template <class T, class B>
TokenLoss Transformer<T, B>::forward_backward(TensorView<const std::int32_t, 2> ids,
                                              TensorView<const std::int32_t, 2> targets,
                                              Tape<B>& tape, const TrainingCall& call) {
  check_training(ids, targets, call);
  if (ids.empty()) return {};
  const index_t batch = ids.extent(0), seq = ids.extent(1);
  const auto rows_of = [&](auto x) { return x.reshape(Shape{batch * seq, config_.d_model}); };
  Scratch<B> scratch(backend_);
  const auto h = scratch.template tensor<T>(Shape{batch, seq, config_.d_model});
  const auto dh = scratch.template tensor<T>(h.shape());
  const auto ids_here = on_backend(ids, scratch);
  embedding_.forward(h, ids_here);

  AttentionCall<T, B> attention_call;
  attention_call.positions = call.positions;
  attention_call.document_ids = call.document_ids;
  AttentionContext<T, B> contexts[2];
  make_contexts(contexts, scratch, batch, seq, attention_call);
  const std::size_t before = tape.size();
  try {
    for (index_t layer = 0; layer < config_.layers; ++layer) {
      const auto& block = blocks_[static_cast<std::size_t>(layer)];
      const AttentionContext<T, B>& context = contexts[rope_of(layer)];
      if (call.recompute) {
        detail::save(tape, h);
        NoCache none;
        attention_call.angles = context.angles;
        attention_call.cu_seqlens = context.cu_seqlens;
        block.forward(h, none, attention_call);
      } else {
        block.record(h, tape, context);
      }
    }

    // dh holds the head's input, and piece by piece its gradient.
    norm_.forward(rows_of(dh), rows_of(h));
    const auto cap = static_cast<accumulate_t<T>>(config_.logit_softcap);
    const TokenLoss total = over_head_rows(
        targets, call.ignore_index,
        [&](index_t begin, index_t end, bool any, auto losses, auto wanted) {
          const auto x = rows_of(dh).slice(0, begin, end);
          if (!any) {
            BackendTraits<B>::fill_zero(backend_, x.data(),
                                        static_cast<std::size_t>(x.size()) * sizeof(T));
            return;
          }
          Scratch<B> piece(backend_);
          const auto z = piece.template tensor<T>(Shape{end - begin, config_.vocab_size});
          logits(z, x);
          // The cap's gradient is read from the capped logits: they stay beside their gradient.
          const auto dz = cap > 0 ? piece.template tensor<T>(z.shape()) : z;
          if (cap > 0) copy(dz, z);
          cross_entropy_with_gradient(losses, dz, wanted, static_cast<accumulate_t<T>>(call.scale),
                                      {.ignore_index = call.ignore_index});
          if (cap > 0) softcap_backward(dz, dz, z, cap);
          if (head_)
            head_->backward(x, dz, x);
          else
            embedding_.project_backward(x, dz, x);
        });
    norm_.backward(rows_of(dh), rows_of(dh), rows_of(h));

    for (index_t layer = config_.layers; layer-- > 0;) {
      auto& block = blocks_[static_cast<std::size_t>(layer)];
      const AttentionContext<T, B>& context = contexts[rope_of(layer)];
      if (call.recompute) {
        copy(h, tape.template pop<T>(h.shape()));
        block.record(h, tape, context);
      }
      block.backward(dh, tape, context);
    }
    embedding_.backward(dh, ids_here);
    return total;
  } catch (...) {
    tape.truncate(before);
    throw;
  }
}

}  // namespace nn
}  // namespace rapt
