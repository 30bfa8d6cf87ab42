// Attention: each query reads the values of the keys it sees, weighted by a softmax of its scores.
//
//   s_ij = score(scale * dot(Q[b,i,h,:], K[b,j,g,:]), b, h, p_i, j),   g = h / (heads / kv_heads)
//   L_i  = log sum_j exp(s_ij)                                        over the keys j visible to i
//   O[b,i,h,:] = sum_j exp(s_ij - L_i) V[b,j,g,:]
//
//   out      [batch, q_len, heads, value_dim]        k  [batch, kv_len, kv_heads, head_dim]
//   q        [batch, q_len, heads, head_dim]         v  [batch, kv_len, kv_heads, value_dim]
//
// Query i stands at position p_i = kv_len - q_len + i. What it sees is the mask's answer (Causal by
// default; mask/mask.hpp), what happens to a score before the softmax the modifier's
// (mask/score.hpp); lambdas are either. Everything else is an option (attention/options.hpp):
//
//   attention(out, q, k, v);
//   attention(out, q, k, v, Causal{} & SlidingWindow{512});
//   attention(out, q, k, v, Causal{}, SoftCap{50}, {.scale = 0.125f, .logsumexp = lse});
//
// k and v may hold codes of 8 bits (int8_t, float8_e4m3, float8_e5m2) beside q and out of any type,
// with a scale for each token and head; nothing of them is ever expanded in memory:
//
//   attention(out, q, k8, v8, Causal{}, Identity{}, {.k_scales = s_k, .v_scales = s_v});
//
//   s_ij = score(scale * s_k[b,j,g] * dot(Q[b,i,h,:], K8[b,j,g,:]), ...)
//   O[b,i,h,:] = sum_j exp(s_ij - L_i) * s_v[b,j,g] * V8[b,j,g,:]
//
// A query that sees no key yields zeros and a logsumexp of minus infinity; the logsumexp with a
// sink is then the sink logit. What a mask hides is never multiplied: a NaN in a hidden value stays
// there. An infinity in q or k gives NaN to a query that sees it where fp32 or half is multiplied
// in matrix registers (cpu/float_parts.hpp). All views may be strided as long as their last axis is
// contiguous. Out may not overlap an input. Ragged calls write only the rows that cu_seqlens cover.
//
// Errors, all before anything is written: ShapeError for extents that do not fit, ValueError for
// lengths, tables and combinations of options that do not.
//
// Sources: Vaswani et al. 2017, arXiv:1706.03762; grouped heads: Ainslie et al. 2023,
// arXiv:2305.13245; sink logits: gpt-oss model card, arXiv:2508.10925. Kernel:
// cpu/attention_forward.hpp.
#pragma once

#include <cmath>
#include <concepts>

#include "rapt/attention/checks.hpp"
#include "rapt/attention/options.hpp"
#include "rapt/core/backend.hpp"
#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

namespace rapt {

/// See the top of this file. Q and Out share one element type, K and V too: that of Q, or one of 8
/// bits. All live on one backend.
template <WritableTensorLike<4> Out, TensorLike<4> Q, TensorLike<4> K, TensorLike<4> V,
          AttentionMask Mask = Causal, ScoreModifier Score = Identity>
void attention(Out&& out, const Q& q, const K& k, const V& v, Mask mask = {}, Score score = {},
               AttentionOptions<Q> options = {}) {
  using T = element_t<Q>;
  using B = backend_t<Q>;
  static_assert(Element<T>, "attention computes with float, double, half or bfloat16");
  using S = element_t<K>;
  static_assert(std::same_as<element_t<Out>, T>, "out and q have one element type");
  static_assert(std::same_as<element_t<V>, S> && (std::same_as<S, T> || QuantizedElement<S>),
                "k and v have one element type: that of q, or int8_t, float8_e4m3 or float8_e5m2");
  static_assert(std::same_as<backend_t<K>, B> && std::same_as<backend_t<V>, B> &&
                    std::same_as<backend_t<Out>, B>,
                "out, q, k and v live on one backend");
  AttentionArgs<T, B, S> args;
  static_cast<detail::AttentionOptionsOf<T, B>&>(args) = options;
  args.out = as_view(out);
  args.q = as_view(q);
  args.k = as_view(k);
  args.v = as_view(v);
  const detail::AttentionChecks check{"attention"};
  check.inputs(args);
  check.shape("out", args.out.shape(), {q.extent(0), q.extent(1), q.extent(2), v.extent(3)},
              "[batch, q_len, heads, value_dim]");
  check.last_axis("out", args.out);
  check.apart("out", args.out, "q", args.q);
  check.apart("out", args.out, "k", args.k);
  check.apart("out", args.out, "v", args.v);
  check.apart("out", args.out, "k_scales", args.k_scales);
  check.apart("out", args.out, "v_scales", args.v_scales);
  check.scales("k_scales", args.k_scales, "k", args.k, args);
  check.scales("v_scales", args.v_scales, "v", args.v, args);
  check.options(args, reads_call_row<Mask> || reads_call_row<Score>);
  if (args.probabilities)
    check.shape("probabilities", args.probabilities.shape(),
                {q.extent(0), q.extent(2), q.extent(1), detail::key_capacity(args)},
                "[batch, heads, q_len, kv_len]");
  if (args.scale == 0 || args.scale != args.scale)
    args.scale = accumulate_t<T>(1) / std::sqrt(static_cast<accumulate_t<T>>(q.extent(3)));
  const CallShape call = detail::checked_call_shape(args, mask, score);
  if (args.out.empty() && !args.logsumexp && !args.logsumexp_with_sink) return;
  BackendTraits<B>::attention_forward(args.out.backend(), args, bind_call(mask, call),
                                      bind_call(score, call));
}

}  // namespace rapt

#include "rapt/cpu/attention_forward.hpp"
