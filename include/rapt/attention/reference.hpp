// The oracle: attention as three plain loops, in the order of the equation and without cleverness.
// Every kernel on every backend is compared with it; start reading here.
//
//   z_ij = score(scale * dot(q_i, k_j))          for the keys j that the mask lets query i see
//   P_ij = exp(z_ij) / (sum_j exp(z_ij) + exp(sink))
//   o_i  = sum_j P_ij v_j
//   L_i  = log sum_j exp(z_ij)                   and with the sink inside, on request
//
//   out [batch, q_len, heads, value_dim]    q [batch, q_len, heads, head_dim]
//   k   [batch, kv_len, kv_heads, head_dim] v [batch, kv_len, kv_heads, value_dim]
//
// Query head h reads key/value head h / (heads / kv_heads). Query i stands at position
// kv_len - q_len + i, so the last query sits on the last key. A query that sees no key gives out =
// 0 and L = -inf (with a sink: L = sink); a key that is not seen is never read, be it NaN.
//
// Where k and v hold codes of 8 bits, k_j and v_j are dequantised as they are read: scale times
// code.
//
// The arguments are those of attention(), all of AttentionOptions included. Arithmetic runs in
// accumulate_t<T>, or in the type named first: reference_attention<double>(out, q, k, v).
//
// Time O(batch heads q_len kv_len (head_dim + value_dim)), memory O(kv_len (head_dim + value_dim)).
//
// Sources: Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1; heads in groups: Ainslie et al.
// 2023, arXiv:2305.13245; sink logits: gpt-oss, arXiv:2508.10925.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <type_traits>
#include <vector>

#include "rapt/attention/options.hpp"
#include "rapt/core/error.hpp"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

namespace rapt {
namespace detail {

/// One sequence of a call, a batch row or a stretch of the packed tokens: where its tokens lie, and
/// at which positions they stand.
template <class Options>
struct ReferenceSequence {
  const Options& options;
  index_t b;            // what masks and scores are told
  index_t row = 0;      // index on the batch axis
  index_t q_begin = 0;  // first query and first key on the token axis
  index_t k_begin = 0;
  index_t q_len;
  index_t kv_len;
  index_t block_size;  // of paged keys

  ReferenceSequence(const Options& all, index_t n, index_t q_tokens, index_t k_tokens)
      : options(all), b(n), q_len(q_tokens), kv_len(k_tokens), block_size(k_tokens) {
    if (options.cu_seqlens_q) {
      q_begin = options.cu_seqlens_q(n);
      q_len = options.cu_seqlens_q(n + 1) - q_begin;
    } else {
      row = n;
    }
    if (options.cu_seqlens_k) {
      k_begin = options.cu_seqlens_k(n);
      kv_len = options.cu_seqlens_k(n + 1) - k_begin;
    }
    if (options.kv_lengths) kv_len = options.kv_lengths(n);
  }

  struct Place {
    index_t row, at;
  };
  /// First two indices of key j in k and v.
  Place place_of_key(index_t j) const {
    if (!options.block_table) return {row, k_begin + j};
    return {options.block_table(b, j / block_size), j % block_size};
  }
  index_t position_of_query(index_t i) const {
    return options.q_positions ? options.q_positions(row, q_begin + i) : kv_len - q_len + i;
  }
  index_t position_of_key(index_t j) const {
    return options.kv_positions ? options.kv_positions(row, k_begin + j) : j;
  }
};

/// Keys or values of one head of a sequence, dequantised. A row is read when it is first asked for,
/// once for all queries: a key that nobody sees is never touched.
template <class Real, class Rows, class Scales>
class ReferenceRows {
 public:
  ReferenceRows(const Rows& rows, const Scales& scales, index_t keys)
      : rows_(rows), scales_(scales), read_(static_cast<std::size_t>(keys)) {}

  /// Row j, which lies at `place`, of head g.
  template <class Place>
  const std::vector<Real>& operator()(index_t j, const Place& place, index_t g) {
    std::vector<Real>& row = read_[static_cast<std::size_t>(j)];
    if (row.empty()) {
      row.resize(static_cast<std::size_t>(rows_.extent(3)));
      for (index_t t = 0; t < rows_.extent(3); ++t) {
        const Real element = convert<Real>(rows_(place.row, place.at, g, t));
        row[static_cast<std::size_t>(t)] =
            scales_ ? Real(scales_(place.row, place.at, g)) * element : element;
      }
    }
    return row;
  }
  /// Another head's rows come next.
  void forget() {
    for (std::vector<Real>& row : read_) row.clear();
  }

 private:
  const Rows& rows_;
  const Scales& scales_;
  std::vector<std::vector<Real>> read_;
};
template <class Real, class Rows, class Scales>
auto reference_rows(const Rows& rows, const Scales& scales, index_t keys) {
  return ReferenceRows<Real, Rows, Scales>(rows, scales, keys);
}

/// What a softmax row is divided by, in logarithms.
template <class Real>
struct SoftmaxSums {
  Real logsumexp;            // log sum_j exp(z_j)
  Real logsumexp_with_sink;  // log (sum_j exp(z_j) + exp(sink))
};

/// Turns scores z into softmax weights P, in place. A score of minus infinity is a key that is not
/// seen; it weighs 0.
///
///   m = max(max_j z_j, sink)    l = sum_j exp(z_j - m) + exp(sink - m)    P_j = exp(z_j - m) / l
///
/// by way of exp(z_j - max_j z_j), which the logarithm without the sink is made of.
template <class Real>
SoftmaxSums<Real> reference_softmax(std::vector<Real>& z, Real sink) {
  constexpr Real kMinusInfinity = -std::numeric_limits<Real>::infinity();
  // Subtracting the largest score keeps exp() from overflowing.
  Real largest = kMinusInfinity, sum = 0;
  for (const Real z_j : z) largest = std::max(largest, z_j);
  for (Real& z_j : z) {
    z_j = z_j == kMinusInfinity ? 0 : std::exp(z_j - largest);
    sum += z_j;
  }
  if (sum == 0) return {kMinusInfinity, sink};  // nothing is seen
  // The sink may be larger than every score, so it has its say in what is subtracted.
  const Real m = std::max(largest, sink), raise = std::exp(largest - m);
  const Real l = sum * raise + std::exp(sink - m);
  for (Real& z_j : z) z_j = z_j * raise / l;
  return {largest + std::log(sum), m + std::log(l)};
}

template <class Out, class Q, class K, class V, class Options>
void check_reference_shapes(const Out& out, const Q& q, const K& k, const V& v,
                            const Options& options) {
  constexpr const char* kName = "reference_attention";
  const index_t batch = q.extent(0), heads = q.extent(2), kv_heads = k.extent(2);
  if (kv_heads < 1 || heads % kv_heads != 0)
    throw ShapeError(
        text(kName, ": heads is ", heads, ", expected a multiple of ", kv_heads, " = kv_heads"));
  const index_t rows = options.block_table ? k.extent(0) : batch;
  check_shape(kName, "k", k.shape(), Shape{rows, k.extent(1), kv_heads, q.extent(3)},
              "[batch, kv_len, kv_heads, head_dim]");
  check_shape(kName, "v", v.shape(), Shape{rows, k.extent(1), kv_heads, v.extent(3)},
              "[batch, kv_len, kv_heads, value_dim]");
  if constexpr (!QuantizedElement<element_t<K>>) {
    if (options.k_scales || options.v_scales)
      throw ValueError(text(kName, ": ", options.k_scales ? "k_scales" : "v_scales",
                            " is given, expected none with k and v that are no 8-bit codes"));
  }
  const Shape scales{rows, k.extent(1), kv_heads};
  if (options.k_scales)
    check_shape(kName, "k_scales", options.k_scales.shape(), scales, "[batch, kv_len, kv_heads]");
  if (options.v_scales)
    check_shape(kName, "v_scales", options.v_scales.shape(), scales, "[batch, kv_len, kv_heads]");
  check_shape(kName, "out", out.shape(), Shape{batch, q.extent(1), heads, v.extent(3)},
              "[batch, q_len, heads, value_dim]");
  if (options.cu_seqlens_q && batch != 1)
    throw ShapeError(text(kName, ": batch is ", batch, ", expected 1 with cu_seqlens_q"));
  if (bool(options.cu_seqlens_k) != (options.cu_seqlens_q && !options.block_table))
    throw ValueError(text(kName, ": cu_seqlens_k is ", options.cu_seqlens_k ? "given" : "absent",
                          ", expected one beside cu_seqlens_q unless there is a block_table"));
  if (options.block_table && !options.kv_lengths)
    throw ValueError(text(kName, ": kv_lengths is absent, expected [batch] with a block_table"));
  if (options.kv_lengths) {
    const index_t sequences = options.cu_seqlens_q ? options.cu_seqlens_q.extent(0) - 1 : batch;
    check_shape(kName, "kv_lengths", options.kv_lengths.shape(), Shape{sequences}, "[batch]");
    const index_t pages = options.block_table ? options.block_table.extent(1) : 1;
    for (index_t b = 0; b < sequences; ++b)
      if (options.kv_lengths(b) < 0 || options.kv_lengths(b) > pages * k.extent(1))
        throw ValueError(text(kName, ": kv_lengths[", b, "] is ", options.kv_lengths(b),
                              ", expected 0 to ", pages * k.extent(1)));
  }
}

}  // namespace detail

template <class Acc = void, WritableTensorLike<4> Out, TensorLike<4> Q, TensorLike<4> K,
          TensorLike<4> V, AttentionMask Mask = Causal, ScoreModifier Score = Identity>
void reference_attention(Out&& out, const Q& q, const K& k, const V& v, Mask mask = {},
                         Score score = {}, AttentionOptions<Q> options = {}) {
  using T = element_t<Q>;
  using Real = std::conditional_t<std::is_void_v<Acc>, accumulate_t<T>, Acc>;
  constexpr Real kMinusInfinity = -std::numeric_limits<Real>::infinity();

  detail::check_reference_shapes(out, q, k, v, options);
  if (options.q_positions && (reads_call_row<Mask> || reads_call_row<Score>))
    throw ValueError(
        "reference_attention: q_positions is given, expected none with a table that is read by "
        "rows");
  const index_t heads = q.extent(2), group = heads / k.extent(2);
  const index_t head_dim = q.extent(3), value_dim = v.extent(3);
  const Real scale = options.scale != 0 && options.scale == options.scale
                         ? Real(options.scale)
                         : 1 / std::sqrt(Real(head_dim));
  const index_t sequences = options.cu_seqlens_q ? options.cu_seqlens_q.extent(0) - 1 : q.extent(0);

  for (index_t n = 0; n < sequences; ++n) {
    const detail::ReferenceSequence s(options, n, q.extent(1), k.extent(1));
    const CallShape call{.q_len = s.q_len, .kv_len = s.kv_len, .batch = sequences, .heads = heads};
    const auto visible = bind_call(mask, call);
    const auto modified = bind_call(score, call);
    std::vector<Real> z(static_cast<std::size_t>(s.kv_len));  // scores of one query, then weights
    std::vector<Real> q_i(static_cast<std::size_t>(head_dim));
    std::vector<Real> o_i(static_cast<std::size_t>(value_dim));
    auto keys = detail::reference_rows<Real>(k, options.k_scales, s.kv_len);
    auto values = detail::reference_rows<Real>(v, options.v_scales, s.kv_len);

    for (index_t h = 0; h < heads; ++h) {
      const index_t g = h / group;
      if (h % group == 0) keys.forget(), values.forget();
      const Real sink =
          options.sink_logits ? convert<Real>(options.sink_logits(h)) : kMinusInfinity;

      for (index_t i = 0; i < s.q_len; ++i) {
        const index_t token = s.q_begin + i, p = s.position_of_query(i);
        for (index_t t = 0; t < head_dim; ++t)
          q_i[static_cast<std::size_t>(t)] = convert<Real>(q(s.row, token, h, t));

        for (index_t j = 0; j < s.kv_len; ++j) {
          Real& z_j = z[static_cast<std::size_t>(j)];
          z_j = kMinusInfinity;
          const index_t p_j = s.position_of_key(j);
          if (p_j < 0 || !visible(s.b, h, p, p_j)) continue;
          const std::vector<Real>& k_j = keys(j, s.place_of_key(j), g);
          const Real dot = std::inner_product(q_i.begin(), q_i.end(), k_j.begin(), Real(0));
          z_j = static_cast<Real>(modified(scale * dot, s.b, h, p, p_j));
        }

        const auto sums = detail::reference_softmax(z, sink);

        std::fill(o_i.begin(), o_i.end(), Real(0));
        for (index_t j = 0; j < s.kv_len; ++j) {
          const Real weight = z[static_cast<std::size_t>(j)];
          if (weight == 0) continue;  // a key that is not seen may hold anything, even NaN
          const std::vector<Real>& v_j = values(j, s.place_of_key(j), g);
          for (std::size_t e = 0; e < o_i.size(); ++e) o_i[e] += weight * v_j[e];
        }
        for (index_t e = 0; e < value_dim; ++e)
          as_view(out)(s.row, token, h, e) = convert<T>(o_i[static_cast<std::size_t>(e)]);

        using Stored = accumulate_t<T>;
        if (options.logsumexp)
          options.logsumexp(s.row, h, token) = static_cast<Stored>(sums.logsumexp);
        if (options.logsumexp_with_sink)
          options.logsumexp_with_sink(s.row, h, token) =
              static_cast<Stored>(sums.logsumexp_with_sink);
        for (index_t j = 0; j < options.probabilities.extent(3); ++j) {
          const index_t own = j - s.k_begin;  // packed tokens: the keys of other sequences weigh 0
          options.probabilities(s.row, h, token, j) =
              own >= 0 && own < s.kv_len ? static_cast<Stored>(z[static_cast<std::size_t>(own)])
                                         : 0;
        }
      }
    }
  }
}

}  // namespace rapt
