// The gradient of an attention call compared with the oracle in double precision.
#pragma once

#include "attention/problem.hpp"
#include "rapt/attention/backward.hpp"
#include "rapt/attention/reference_backward.hpp"
#include "rapt/core/convert.hpp"

namespace rapt::test {

/// What a backward call writes, filled with garbage first; parameter gradients begin at 0.
template <class T>
struct Gradients {
  using A = accumulate_t<T>;
  Tensor<T, 4> dq, dk, dv;
  Tensor<A, 1> dsinks;
  Tensor<A, 4> dbias;
  Tensor<A, 2> drelative_bias;

  template <class Q, class K, class V>
  Gradients(const Q& q, const K& k, const V& v)
      : dq(q.shape()), dk(k.shape()), dv(v.shape()), dsinks({q.extent(2)}) {
    for (auto* t : {&dq, &dk, &dv})
      for (index_t n = 0; n < t->size(); ++n) t->data()[n] = T(1e4f);
  }
};

/// The options of a backward call that the forward call had too.
template <class T>
AttentionOptions<Tensor<T, 4>> forward_options(
    const AttentionBackwardOptions<Tensor<T, 4>>& options) {
  AttentionOptions<Tensor<T, 4>> forward;
  forward.scale = options.scale;
  forward.sink_logits = options.sink_logits;
  forward.kv_lengths = options.kv_lengths;
  forward.cu_seqlens_q = options.cu_seqlens_q;
  forward.cu_seqlens_k = options.cu_seqlens_k;
  forward.q_positions = options.q_positions;
  forward.kv_positions = options.kv_positions;
  return forward;
}

/// attention() and then attention_backward() with a random dout. `exact`: a better out, if given.
template <class T, class Q, class K, class V, class Mask, class Score>
void run_backward(Gradients<T>& got, const Tensor<T, 4>& dout, const Q& q, const K& k, const V& v,
                  Mask mask, Score score, AttentionBackwardOptions<Tensor<T, 4>> options = {},
                  const Tensor<double, 4>* exact = nullptr) {
  Tensor<T, 4> out(dout.shape());
  Tensor<accumulate_t<T>, 3> lse({q.extent(0), q.extent(2), q.extent(1)});
  auto forward = forward_options<T>(options);
  forward.logsumexp = lse;
  attention(out, q, k, v, mask, score, forward);
  if (exact != nullptr) out = to<T>(*exact);
  if (options.sink_logits) options.dsinks = got.dsinks;
  if (!got.dbias.empty()) options.dbias = got.dbias;
  if (!got.drelative_bias.empty()) options.drelative_bias = got.drelative_bias;
  attention_backward(got.dq, got.dk, got.dv, dout, q, k, v, out, lse, mask, score, options);
}

/// Gradients grow with the size of dout, and terms cancel: the tolerance is a share of the largest
/// gradient beside the usual ones.
template <class Got, class Want>
void expect_gradient_close(const Got& got, const Want& want, Tolerance tolerance,
                           const char* name) {
  double largest = 0;
  for (index_t n = 0; n < want.size(); ++n)
    largest = std::max(largest, std::abs(static_cast<double>(want.data()[n])));
  tolerance.absolute += tolerance.relative * largest;
  expect_close(got, want, tolerance, name);
}

template <class Q, class K, class V, class Mask = Causal, class Score = Identity>
void expect_backward_matches(const Q& q, const K& k, const V& v, Mask mask = {}, Score score = {},
                             AttentionBackwardOptions<Tensor<element_t<Q>, 4>> options = {},
                             Shape<4> bias = {}, Shape<2> relative = {}) {
  using T = element_t<Q>;
  const auto dout = normal<T>(Shape<4>{q.extent(0), q.extent(1), q.extent(2), v.extent(3)}, 77);
  Gradients<T> got(q, k, v);
  Gradients<double> want(q, k, v);
  got.dbias = Tensor<accumulate_t<T>, 4>(bias);
  want.dbias = Tensor<double, 4>(bias);
  got.drelative_bias = Tensor<accumulate_t<T>, 2>(relative);
  want.drelative_bias = Tensor<double, 2>(relative);

  AttentionBackwardOptions<Tensor<double, 4>> wide;
  Tensor<double, 1> sinks;
  Tensor<double, 3> dlse, dlse_with_sink;
  if (options.sink_logits) {
    wide.sink_logits = sinks = doubles(options.sink_logits);
    wide.dsinks = want.dsinks;
  }
  if (options.dlogsumexp) wide.dlogsumexp = dlse = doubles(options.dlogsumexp);
  if (options.dlogsumexp_with_sink)
    wide.dlogsumexp_with_sink = dlse_with_sink = doubles(options.dlogsumexp_with_sink);
  wide.scale = static_cast<double>(options.scale);
  wide.kv_lengths = options.kv_lengths;
  wide.cu_seqlens_q = options.cu_seqlens_q;
  wide.cu_seqlens_k = options.cu_seqlens_k;
  wide.q_positions = options.q_positions;
  wide.kv_positions = options.kv_positions;
  if (!want.dbias.empty()) wide.dbias = want.dbias;
  if (!want.drelative_bias.empty()) wide.drelative_bias = want.drelative_bias;
  // In bfloat16 the weights are rounded before their product: an error of out, not of backward.
  Tensor<double, 4> out(dout.shape());
  if (std::is_same_v<T, bfloat16>)
    reference_attention(out, doubles(q), doubles(k), doubles(v), mask, score,
                        forward_options<double>(wide));
  run_backward(got, dout, q, k, v, mask, score, options,
               std::is_same_v<T, bfloat16> ? &out : nullptr);
  reference_attention_backward(want.dq, want.dk, want.dv, doubles(dout), doubles(q), doubles(k),
                               doubles(v), mask, score, wide);

  const Tolerance close = tolerance_of<T>();
  expect_gradient_close(got.dq, want.dq, close, "dq");
  expect_gradient_close(got.dk, want.dk, close, "dk");
  expect_gradient_close(got.dv, want.dv, close, "dv");
  expect_gradient_close(got.dsinks, want.dsinks, close, "dsinks");
  expect_gradient_close(got.dbias, want.dbias, close, "dbias");
  expect_gradient_close(got.drelative_bias, want.drelative_bias, close, "drelative_bias");
}

template <class T, class Mask = Causal, class Score = Identity>
void expect_backward_matches(const Problem<T>& p, Mask mask = {}, Score score = {},
                             AttentionBackwardOptions<Tensor<T, 4>> options = {},
                             Shape<4> bias = {}, Shape<2> relative = {}) {
  expect_backward_matches(p.q, p.k, p.v, mask, score, options, bias, relative);
}

}  // namespace rapt::test
