// The gradient of attention: dq, dk and dv from dout, recomputed from the saved logsumexp, without
// a matrix of probabilities. With z_ij the modified score and L_i the logsumexp of
// attention/attention.hpp (with the sink, where there is one), over the keys j visible to i:
//
//   P_ij  = exp(z_ij - L_i)                   D_i  = dot(dout_i, out_i)
//   dz_ij = P_ij (dot(dout_i, v_j) - D_i)     du_ij = dz_ij d score / d s
//   dv_j  = sum_{h, i} P_ij dout_i            dq_i  = scale sum_j du_ij k_j
//   dk_j  = scale sum_{h, i} du_ij q_i        dsink_h = - sum_{b, i} exp(sink_h - L_i) D_i
//
//   dout, out  [batch, q_len, heads, value_dim]     dq as q  [batch, q_len, heads, head_dim]
//   logsumexp  [batch, heads, q_len] (acc, no sink) dk as k  [batch, kv_len, kv_heads, head_dim]
//                                                   dv as v  [batch, kv_len, kv_heads, value_dim]
//
// The sums over h run over the query heads of a key head's group: dk and dv have kv_heads heads.
// Mask, score and options are those of the forward call, which also gives logsumexp:
//
//   attention(out, q, k, v, mask, score, {.logsumexp = lse});
//   attention_backward(dq, dk, dv, dout, q, k, v, out, lse, mask, score);
//
// A modifier is differentiated with a dual number (mask/dual.hpp): write it as a formula in s. If
// the loss also depends on a logsumexp, its gradient is an option: D_i becomes D_i - dlogsumexp_i.
// dq, dk and dv are written whole, zeros for tokens outside every sequence; gradients of parameters
// (dsinks, dbias, drelative_bias) are added to. A query that sees no key has zero gradients, and
// what a mask hides is never multiplied. Views may be strided as long as their last axis is
// contiguous; what is written overlaps nothing else.
//
// Time 2.5 times the forward's. Results do not depend on the number of threads.
//
// Errors, all before anything is written: ShapeError for extents that do not fit, ValueError for
// lengths, tables and combinations of options that do not.
//
// Sources: Dao 2023, arXiv:2307.08691, algorithm 2; sink logits: gpt-oss model card,
// arXiv:2508.10925. Kernel: cpu/attention_backward.hpp.
#pragma once

#include <cmath>
#include <concepts>

#include "rapt/attention/backward_options.hpp"
#include "rapt/attention/checks.hpp"
#include "rapt/core/backend.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/mask/bias_gradient.hpp"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

namespace rapt {

namespace detail {

template <class Args>
void check_backward_shapes(const AttentionChecks& check, const Args& args) {
  const index_t batch = args.q.extent(0), q_len = args.q.extent(1), heads = args.q.extent(2);
  const index_t value_dim = args.v.extent(3);
  const Shape<4> out{batch, q_len, heads, value_dim};
  constexpr const char* kOutAxes = "[batch, q_len, heads, value_dim]";
  check.shape("out", args.out.shape(), out, kOutAxes);
  check.shape("dout", args.dout.shape(), out, kOutAxes);
  check.shape("dq", args.dq.shape(), args.q.shape(), "the shape of q");
  check.shape("dk", args.dk.shape(), args.k.shape(), "the shape of k");
  check.shape("dv", args.dv.shape(), args.v.shape(), "the shape of v");
  const Shape<3> rows{batch, heads, q_len};
  check.shape("logsumexp", args.logsumexp.shape(), rows, "[batch, heads, q_len]");
  if (args.dlogsumexp)
    check.shape("dlogsumexp", args.dlogsumexp.shape(), rows, "[batch, heads, q_len]");
  if (args.dlogsumexp_with_sink)
    check.shape("dlogsumexp_with_sink", args.dlogsumexp_with_sink.shape(), rows,
                "[batch, heads, q_len]");
  check.last_axis("out", args.out);
  check.last_axis("dout", args.dout);
  check.last_axis("dq", args.dq);
  check.last_axis("dk", args.dk);
  check.last_axis("dv", args.dv);

  const auto written = [&](const char* name, const auto& to) {
    check.apart(name, to, "q", args.q);
    check.apart(name, to, "k", args.k);
    check.apart(name, to, "v", args.v);
    check.apart(name, to, "out", args.out);
    check.apart(name, to, "dout", args.dout);
  };
  written("dq", args.dq);
  written("dk", args.dk);
  written("dv", args.dv);
  check.apart("dq", args.dq, "dk", args.dk);
  check.apart("dq", args.dq, "dv", args.dv);
  check.apart("dk", args.dk, "dv", args.dv);
}

/// Gradients of parameters fit what they are the gradient of.
template <class Args, class Score>
void check_parameter_gradients(const AttentionChecks& check, const Args& args, const Score& score) {
  if (args.logsumexp_with_sink && !args.sink_logits)
    check.refuse<ValueError>({"sink_logits is absent, expected one beside logsumexp_with_sink"});
  if (args.dsinks) {
    if (!args.sink_logits)
      check.refuse<ValueError>({"sink_logits is absent, expected one beside dsinks"});
    check.shape("dsinks", args.dsinks.shape(), {args.q.extent(2)}, "[heads]");
  }
  if (args.dbias) {
    if constexpr (bias_count<true, Score> == 1)
      check.shape("dbias", args.dbias.shape(), bias_in<true>(score).table.shape(),
                  "the shape of the table of AdditiveBias");
    else
      check.refuse<ValueError>(
          {"dbias is given, expected a score that holds one AdditiveBias, and it holds ",
           index_t{bias_count<true, Score>}});
  }
  if (args.drelative_bias) {
    if constexpr (bias_count<false, Score> == 1)
      check.shape("drelative_bias", args.drelative_bias.shape(),
                  bias_in<false>(score).table.shape(), "the shape of the table of RelativeBias");
    else
      check.refuse<ValueError>(
          {"drelative_bias is given, expected a score that holds one RelativeBias, and it holds ",
           index_t{bias_count<false, Score>}});
  }
}

}  // namespace detail

/// See the top of this file. All tensors but logsumexp share one element type, all one backend.
template <WritableTensorLike<4> Dq, WritableTensorLike<4> Dk, WritableTensorLike<4> Dv,
          TensorLike<4> Dout, TensorLike<4> Q, TensorLike<4> K, TensorLike<4> V, TensorLike<4> Out,
          TensorLike<3> Lse, AttentionMask Mask = Causal, ScoreModifier Score = Identity>
void attention_backward(Dq&& dq, Dk&& dk, Dv&& dv, const Dout& dout, const Q& q, const K& k,
                        const V& v, const Out& out, const Lse& logsumexp, Mask mask = {},
                        Score score = {}, AttentionBackwardOptions<Q> options = {}) {
  using T = element_t<Q>;
  using A = accumulate_t<T>;
  using B = backend_t<Q>;
  static_assert(Element<T>, "attention computes with float, double, half or bfloat16");
  static_assert(!QuantizedElement<element_t<K>> && !QuantizedElement<element_t<V>>,
                "attention_backward has no gradient for k and v of 8-bit codes: dequantize them");
  static_assert(std::same_as<element_t<K>, T> && std::same_as<element_t<V>, T> &&
                    std::same_as<element_t<Out>, T> && std::same_as<element_t<Dout>, T> &&
                    std::same_as<element_t<Dq>, T> && std::same_as<element_t<Dk>, T> &&
                    std::same_as<element_t<Dv>, T>,
                "q, k, v, out and the gradients of all four have one element type");
  static_assert(std::same_as<element_t<Lse>, A>,
                "logsumexp has the accumulation type: double for double, else float");
  static_assert(std::same_as<backend_t<K>, B> && std::same_as<backend_t<V>, B> &&
                    std::same_as<backend_t<Out>, B> && std::same_as<backend_t<Dout>, B> &&
                    std::same_as<backend_t<Dq>, B> && std::same_as<backend_t<Dk>, B> &&
                    std::same_as<backend_t<Dv>, B> && std::same_as<backend_t<Lse>, B>,
                "all tensors live on one backend");
  static_assert(DifferentiableScore<Score, A>,
                "a score modifier takes a dual number in the backward pass: make it generic in its "
                "first parameter, and call std functions through `using std::exp; exp(s)`");
  AttentionBackwardArgs<T, B> args;
  static_cast<detail::AttentionBackwardOptionsOf<T, B>&>(args) = options;
  args.dq = as_view(dq);
  args.dk = as_view(dk);
  args.dv = as_view(dv);
  args.dout = as_view(dout);
  args.q = as_view(q);
  args.k = as_view(k);
  args.v = as_view(v);
  args.out = as_view(out);
  args.logsumexp = as_view(logsumexp);
  const detail::AttentionChecks check{"attention_backward"};
  check.inputs(args);
  detail::check_backward_shapes(check, args);
  check.options(args, reads_call_row<Mask> || reads_call_row<Score>);
  detail::check_parameter_gradients(check, args, score);
  if (args.scale == 0 || args.scale != args.scale)
    args.scale = A(1) / std::sqrt(static_cast<A>(q.extent(3)));
  const CallShape call = detail::checked_call_shape(args, mask, score);
  BackendTraits<B>::attention_backward(args.dq.backend(), args, bind_call(mask, call),
                                       bind_call(score, call));
}

}  // namespace rapt

#include "rapt/cpu/attention_backward.hpp"
