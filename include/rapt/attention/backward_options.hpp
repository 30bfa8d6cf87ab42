// What a call of attention_backward() may ask for besides the tensors, a mask and a score modifier,
// and the plain struct in which a backend receives all of it.
//
// Element types: T is the type of q, k, v and their gradients; acc = accumulate_t<T> (double for
// double, else float), the type of logsumexps and of the gradients of parameters.
#pragma once

#include <cstdint>

#include "rapt/core/dtype.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

namespace detail {

template <class T, class B>
struct AttentionBackwardOptionsOf {
  using Acc = accumulate_t<T>;

  /// Factor on q·k, as in the forward call; 0 means the default, 1/sqrt(head_dim).
  Acc scale = 0;
  /// Learned sink logits [heads] of the forward call.
  TensorView<const T, 1, B> sink_logits{};
  /// What the forward call wrote beside sink_logits [batch, heads, q_len]; absent: computed from
  /// logsumexp and the sinks.
  TensorView<const Acc, 3, B> logsumexp_with_sink{};
  /// Lengths, packed sequences and positions of the forward call (attention/options.hpp).
  TensorView<const std::int32_t, 1, B> kv_lengths{};
  TensorView<const std::int32_t, 1, B> cu_seqlens_q{};
  TensorView<const std::int32_t, 1, B> cu_seqlens_k{};
  TensorView<const std::int32_t, 2, B> q_positions{};
  TensorView<const std::int32_t, 2, B> kv_positions{};
  /// Gradients of the loss with respect to the two logsumexps that the forward call returned
  /// [batch, heads, q_len]; absent: 0.
  TensorView<const Acc, 3, B> dlogsumexp{};
  TensorView<const Acc, 3, B> dlogsumexp_with_sink{};
  /// Gradients of parameters, which are added to: of the sink logits [heads], of the table of the
  /// score's AdditiveBias and of the table of its RelativeBias, each in the shape of its table.
  TensorView<Acc, 1, B> dsinks{};
  TensorView<Acc, 4, B> dbias{};
  TensorView<Acc, 2, B> drelative_bias{};
};

}  // namespace detail

/// Options of a call whose queries are of type Q (a Tensor or a TensorView).
template <class Q>
using AttentionBackwardOptions = detail::AttentionBackwardOptionsOf<element_t<Q>, backend_t<Q>>;

/// A checked call as a backend sees it. Absent options have data() == nullptr.
template <class T, class B>
struct AttentionBackwardArgs : detail::AttentionBackwardOptionsOf<T, B> {
  using Element = T;
  using Acc = accumulate_t<T>;
  TensorView<T, 4, B> dq{};                 // [batch, q_len, heads, head_dim]
  TensorView<T, 4, B> dk{};                 // [batch, kv_len, kv_heads, head_dim]
  TensorView<T, 4, B> dv{};                 // [batch, kv_len, kv_heads, value_dim]
  TensorView<const T, 4, B> dout{};         // [batch, q_len, heads, value_dim]
  TensorView<const T, 4, B> q{};            // [batch, q_len, heads, head_dim]
  TensorView<const T, 4, B> k{};            // [batch, kv_len, kv_heads, head_dim]
  TensorView<const T, 4, B> v{};            // [batch, kv_len, kv_heads, value_dim]
  TensorView<const T, 4, B> out{};          // [batch, q_len, heads, value_dim]
  TensorView<const Acc, 3, B> logsumexp{};  // [batch, heads, q_len], without the sink
  /// Always absent: there is no gradient through pages. Here so that the walk over sequences
  /// (attention/sequences.hpp) reads both kinds of call.
  TensorView<const std::int32_t, 2, B> block_table{};
};

}  // namespace rapt
