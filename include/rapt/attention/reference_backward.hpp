// The oracle of the gradient: attention_backward() as plain loops over the equations of
// attention/backward.hpp. It recomputes the forward pass for itself and shares no code with a
// kernel; every kernel on every backend is compared with it.
//
//   P_ij = exp(z_ij) / (sum_j exp(z_ij) + exp(sink))                  as in attention/reference.hpp
//   dP_ij = dot(dout_i, v_j),   D_i = sum_j P_ij dP_ij - dL_i
//   dz_ij = P_ij (dP_ij - D_i),   dsink = - P_sink D_i
//
// and what follows from dz_ij by the chain rule. The arguments are those of attention_backward();
// out and logsumexp are not read, because the oracle trusts nobody. Arithmetic runs in
// accumulate_t<T>, or in the type named first. A logsumexp without the sink that the loss depends
// on adds P0_ij dL0_i to dz_ij, P0 the weights without the sink.
//
// Time O(batch heads q_len kv_len (head_dim + value_dim)), memory O(k + v + dq + dk + dv).
//
// Source: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1, and the chain rule.
#pragma once

#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "rapt/attention/backward_options.hpp"
#include "rapt/attention/reference.hpp"
#include "rapt/mask/bias_gradient.hpp"

namespace rapt {

template <class Acc = void, WritableTensorLike<4> Dq, WritableTensorLike<4> Dk,
          WritableTensorLike<4> Dv, TensorLike<4> Dout, TensorLike<4> Q, TensorLike<4> K,
          TensorLike<4> V, AttentionMask Mask = Causal, ScoreModifier Score = Identity>
void reference_attention_backward(Dq&& dq, Dk&& dk, Dv&& dv, const Dout& dout, const Q& q,
                                  const K& k, const V& v, Mask mask = {}, Score score = {},
                                  AttentionBackwardOptions<Q> options = {}) {
  using T = element_t<Q>;
  using Stored = accumulate_t<T>;
  using Real = std::conditional_t<std::is_void_v<Acc>, Stored, Acc>;
  constexpr Real kMinusInfinity = -std::numeric_limits<Real>::infinity();

  const index_t heads = q.extent(2), group = heads / k.extent(2);
  const index_t head_dim = q.extent(3), value_dim = v.extent(3);
  const Real scale = options.scale != 0 && options.scale == options.scale
                         ? Real(options.scale)
                         : 1 / std::sqrt(Real(head_dim));
  // The walk over sequences of attention/reference.hpp reads the forward call's options.
  AttentionOptions<Q> forward;
  forward.kv_lengths = options.kv_lengths;
  forward.cu_seqlens_q = options.cu_seqlens_q;
  forward.cu_seqlens_k = options.cu_seqlens_k;
  forward.q_positions = options.q_positions;
  forward.kv_positions = options.kv_positions;
  const index_t sequences = options.cu_seqlens_q ? options.cu_seqlens_q.extent(0) - 1 : q.extent(0);

  Tensor<Real, 4> sum_q(q.shape()), sum_k(k.shape()), sum_v(v.shape());  // zeros
  for (index_t n = 0; n < sequences; ++n) {
    const detail::ReferenceSequence s(forward, n, q.extent(1), k.extent(1));
    const CallShape call{.q_len = s.q_len, .kv_len = s.kv_len, .batch = sequences, .heads = heads};
    const auto visible = bind_call(mask, call);
    const auto modified = bind_call(score, call);
    const auto keys = static_cast<std::size_t>(s.kv_len);
    std::vector<Real> u(keys), p(keys), p_without(keys);  // of one query: scale q k, weights
    std::vector<Real> dp(keys), q_i(static_cast<std::size_t>(head_dim));
    std::vector<Real> dout_i(static_cast<std::size_t>(value_dim));
    auto k_rows = detail::reference_rows<Real>(k, forward.k_scales, s.kv_len);
    auto v_rows = detail::reference_rows<Real>(v, forward.v_scales, s.kv_len);

    for (index_t h = 0; h < heads; ++h) {
      const index_t g = h / group;
      if (h % group == 0) k_rows.forget(), v_rows.forget();
      const Real sink =
          options.sink_logits ? convert<Real>(options.sink_logits(h)) : kMinusInfinity;

      for (index_t i = 0; i < s.q_len; ++i) {
        const index_t token = s.q_begin + i, at_q = s.position_of_query(i);
        const auto seen = [&](index_t j) {
          const index_t at_k = s.position_of_key(j);
          return at_k >= 0 && visible(s.b, h, at_q, at_k);
        };

        for (index_t t = 0; t < head_dim; ++t)
          q_i[static_cast<std::size_t>(t)] = convert<Real>(q(s.row, token, h, t));
        for (index_t e = 0; e < value_dim; ++e)
          dout_i[static_cast<std::size_t>(e)] = convert<Real>(dout(s.row, token, h, e));

        for (index_t j = 0; j < s.kv_len; ++j) {
          const auto c = static_cast<std::size_t>(j);
          p[c] = kMinusInfinity;
          if (!seen(j)) continue;
          const std::vector<Real>& k_j = k_rows(j, s.place_of_key(j), g);
          u[c] = scale * std::inner_product(q_i.begin(), q_i.end(), k_j.begin(), Real(0));
          p[c] = static_cast<Real>(modified(u[c], s.b, h, at_q, s.position_of_key(j)));
        }
        p_without = p;
        const Real without = detail::reference_softmax(p_without, kMinusInfinity).logsumexp;
        Real with = without;
        if (sink == kMinusInfinity)
          p = p_without;
        else
          with = detail::reference_softmax(p, sink).logsumexp_with_sink;
        if (with == kMinusInfinity) continue;

        // dP and D.
        Real d = 0, upstream = 0, upstream_with = 0;
        for (index_t j = 0; j < s.kv_len; ++j) {
          const auto c = static_cast<std::size_t>(j);
          if (!seen(j)) continue;
          const std::vector<Real>& v_j = v_rows(j, s.place_of_key(j), g);
          dp[c] = std::inner_product(dout_i.begin(), dout_i.end(), v_j.begin(), Real(0));
          if (p[c] != 0) d += p[c] * dp[c];
        }
        if (options.dlogsumexp && without != kMinusInfinity)
          upstream = Real(options.dlogsumexp(s.row, h, token));
        if (options.dlogsumexp_with_sink)
          upstream_with = Real(options.dlogsumexp_with_sink(s.row, h, token));
        d -= upstream_with;
        if (options.dsinks) options.dsinks(h) -= static_cast<Stored>(std::exp(sink - with) * d);

        for (index_t j = 0; j < s.kv_len; ++j) {
          const auto c = static_cast<std::size_t>(j);
          const index_t at_k = s.position_of_key(j), key = s.k_begin + j;
          if (!seen(j) || p_without[c] == 0) continue;
          const Real dz = p[c] * (dp[c] - d) + p_without[c] * upstream;
          const Real du = dz * score_derivative(modified, u[c], s.b, h, at_q, at_k);
          const std::vector<Real>& k_j = k_rows(j, s.place_of_key(j), g);
          for (index_t t = 0; t < head_dim; ++t) {
            sum_q(s.row, token, h, t) += scale * du * k_j[static_cast<std::size_t>(t)];
            sum_k(s.row, key, g, t) += scale * du * q_i[static_cast<std::size_t>(t)];
          }
          for (index_t e = 0; e < value_dim; ++e)
            sum_v(s.row, key, g, e) += p[c] * dout_i[static_cast<std::size_t>(e)];
          if constexpr (detail::bias_count<true, decltype(modified)> == 1) {
            if (options.dbias)
              detail::bias_entry(detail::bias_in<true>(modified), options.dbias, s.b, h, at_q,
                                 at_k) +=
                  static_cast<Stored>(
                      dz * detail::bias_derivative<true>(modified, u[c], s.b, h, at_q, at_k));
          }
          if constexpr (detail::bias_count<false, decltype(modified)> == 1) {
            if (options.drelative_bias)
              options.drelative_bias(
                  detail::shared_index(options.drelative_bias.extent(0), h),
                  detail::bias_column(detail::bias_in<false>(modified), at_q, at_k)) +=
                  static_cast<Stored>(
                      dz * detail::bias_derivative<false>(modified, u[c], s.b, h, at_q, at_k));
          }
        }
      }
    }
  }

  const auto store = [](auto&& to, const Tensor<Real, 4>& from) {
    const auto out = as_view(to);
    for (index_t b = 0; b < from.extent(0); ++b)
      for (index_t i = 0; i < from.extent(1); ++i)
        for (index_t h = 0; h < from.extent(2); ++h)
          for (index_t t = 0; t < from.extent(3); ++t)
            out(b, i, h, t) = convert<T>(from(b, i, h, t));
  };
  store(dq, sum_q);
  store(dk, sum_k);
  store(dv, sum_v);
}

}  // namespace rapt
