// What a call of attention() may ask for besides q, k, v, a mask and a score modifier, and the
// plain struct in which a backend receives all of it.
//
// Element types: T is the type of q and out, and of k and v unless these are quantised; acc =
// accumulate_t<T> (double for double, else float).
#pragma once

#include <cstdint>
#include <type_traits>

#include "rapt/core/dtype.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

namespace detail {

template <class T, class B>
struct AttentionOptionsOf {
  using Acc = accumulate_t<T>;

  /// Factor on q·k; 0 means the default, 1/sqrt(head_dim).
  Acc scale = 0;
  /// Learned sink logits [heads]: one more term of each softmax sum, without a value.
  /// It is not scaled, capped or masked. Source: gpt-oss.
  TensorView<const T, 1, B> sink_logits{};
  /// Out: log of the softmax denominator [batch, heads, q_len], natural log, without the sink;
  /// minus infinity for a query that sees no key. Ragged: [1, heads, total_q].
  TensorView<Acc, 3, B> logsumexp{};
  /// Out: the same with the sink logit included (the sink logit itself for a query without keys).
  TensorView<Acc, 3, B> logsumexp_with_sink{};
  /// Keys of each row [batch], at most kv_len; query i of row b stands at kv_lengths[b] - q_len +
  /// i.
  TensorView<const std::int32_t, 1, B> kv_lengths{};
  /// Ragged batch: prefix sums [sequences + 1] over the packed tokens of q (and of k). batch is
  /// then 1; masks, positions and the index b are those of the sequence.
  TensorView<const std::int32_t, 1, B> cu_seqlens_q{};
  TensorView<const std::int32_t, 1, B> cu_seqlens_k{};
  /// Paged keys and values: k and v are pools [blocks, block_size, kv_heads, dim], and key j of row
  /// b lies in block block_table[b, j / block_size]. kv_lengths must be given.
  TensorView<const std::int32_t, 2, B> block_table{};
  /// Positions that masks and scores see instead of the aligned ones [batch, q_len], [batch,
  /// kv_len]: ring buffers, left padding. A key at a negative position is invisible.
  TensorView<const std::int32_t, 2, B> q_positions{};
  TensorView<const std::int32_t, 2, B> kv_positions{};
  /// Scales of k and v that hold codes of 8 bits [batch, kv_len, kv_heads], of pages [blocks,
  /// block_size, kv_heads]: a row of k stands for k_scales times its codes. Absent: 1.
  TensorView<const float, 3, B> k_scales{};
  TensorView<const float, 3, B> v_scales{};
  /// Out: the softmax weights [batch, heads, q_len, kv_len], for teaching and pictures.
  TensorView<Acc, 4, B> probabilities{};
};

}  // namespace detail

/// Options of a call whose queries are of type Q (a Tensor or a TensorView):
///
///   attention(out, q, k, v, Causal{}, SoftCap{50}, {.scale = 0.125f, .logsumexp = lse});
template <class Q>
using AttentionOptions = detail::AttentionOptionsOf<element_t<Q>, backend_t<Q>>;

/// A checked call as a backend sees it. Absent options have data() == nullptr. Keys and values are
/// stored as S: T, or codes of 8 bits.
template <class T, class B, class S = T>
struct AttentionArgs : detail::AttentionOptionsOf<T, B> {
  using Element = T;
  using Stored = S;
  TensorView<T, 4, B> out{};      // [batch, q_len, heads, value_dim]
  TensorView<const T, 4, B> q{};  // [batch, q_len, heads, head_dim]
  TensorView<const S, 4, B> k{};  // [batch, kv_len, kv_heads, head_dim], or a pool of pages
  TensorView<const S, 4, B> v{};  // [batch, kv_len, kv_heads, value_dim], or a pool of pages
};

}  // namespace rapt
