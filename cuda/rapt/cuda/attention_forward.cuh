// Attention on the GPU, one warp per query row: the readable kernel that faster ones are tested
// against and that takes every shape: any head_dim and value_dim up to 576, any mask and score.
//
//   p = position of the query;  m = -inf, l = 0, o = 0
//   for each tile of 32 keys, unless classify says skip:
//     lane t asks the mask about key j0 + t; for each key j that is visible:
//       s  = score(scale * dot(q, k_j))
//       m' = max(m, s);  c = exp(m - m');  e = exp(s - m')
//       o  = o * c + e * v_j;  l = l * c + e;  m = m'
//   out = o / l;  lse = m + log l           with a sink z: out = o / (l + exp(z - m))
//
// Keys and values may be codes of 8 bits: the scale of a key multiplies its s, that of a value its
// e.
//
//   grid: one block of 32 threads per (sequence, query, head). Lane t owns channels t, t + 32, ...
//   of q and o; registers per lane: 2 * kPerLane. Shared memory: none.
//   Traffic: K and V once per query row, so this is bound by bandwidth from q_len = 1 upward.
//
// A query that sees no key gets zeros and lse = -inf. A score of -inf is a key not seen.
//
// Source: Milakov, Gimelshein 2018, arXiv:1805.02867, algorithm 3.
#pragma once

#include <cmath>
#include <limits>

#include "rapt/attention/options.hpp"
#include "rapt/core/convert.hpp"
#include "rapt/cuda/reduce.cuh"
#include "rapt/mask/concept.hpp"

namespace rapt::cuda {

inline constexpr index_t kMostChannels = 576;  // head_dim and value_dim of latent attention

/// Where one query row stands: its sequence, its place in q and where that sequence's keys lie.
struct QueryRow {
  index_t b, h, i;           // sequence, head, query within the sequence
  index_t batch, token;      // the row's place on the first two axes of q, out and logsumexp
  index_t q_len, kv_len;     // of this sequence
  index_t k_batch, k_first;  // key j is k[k_batch, k_first + j] (without a block table)
  bool covered;  // false: packed tokens behind the last sequence, which stay as they are
};

/// The sequence of a packed token: the last b with starts[b] <= token.
__device__ inline index_t sequence_of(const TensorView<const std::int32_t, 1, Cuda>& starts,
                                      index_t token) {
  index_t low = 0, high = starts.extent(0) - 1;
  while (high - low > 1) {
    const index_t middle = (low + high) / 2;
    if (starts(middle) <= token)
      low = middle;
    else
      high = middle;
  }
  return low;
}

template <class Args>
__device__ QueryRow query_row(const Args& args, index_t row) {
  const index_t heads = args.q.extent(2), tokens = args.q.extent(1);
  QueryRow at{};
  at.h = row % heads;
  at.token = row / heads % tokens;
  at.batch = row / heads / tokens;
  at.covered = true;
  if (!args.cu_seqlens_q) {
    at.b = at.k_batch = at.batch;
    at.i = at.token;
    at.q_len = tokens;
    at.kv_len = args.k.extent(1);
  } else {
    const auto& q_starts = args.cu_seqlens_q;
    at.b = sequence_of(q_starts, at.token);
    at.covered = at.token < q_starts(at.b + 1);
    at.i = at.token - q_starts(at.b);
    at.q_len = q_starts(at.b + 1) - q_starts(at.b);
    if (const auto& k_starts = args.cu_seqlens_k) {
      at.k_first = k_starts(at.b);
      at.kv_len = k_starts(at.b + 1) - k_starts(at.b);
    }
  }
  if (args.kv_lengths) at.kv_len = args.kv_lengths(at.b);
  return at;
}

/// The channels of key j of a row's sequence, in keys or values, or its scale; paged or not.
template <class Args, class T, std::size_t Rank>
__device__ const T* key_row(const Args& args, const TensorView<const T, Rank, Cuda>& keys,
                            const QueryRow& at, index_t j, index_t g) {
  if (args.block_table) {
    const index_t block_size = keys.extent(1);
    return keys.data() + args.block_table(at.b, j / block_size) * keys.stride(0) +
           j % block_size * keys.stride(1) + g * keys.stride(2);
  }
  return keys.data() + at.k_batch * keys.stride(0) + (at.k_first + j) * keys.stride(1) +
         g * keys.stride(2);
}

/// The scale of key j in `scales`; 1 where there are none.
template <class A, class Args>
__device__ A scale_of(const Args& args, const TensorView<const float, 3, Cuda>& scales,
                      const QueryRow& at, index_t j, index_t g) {
  return scales ? static_cast<A>(*key_row(args, scales, at, j, g)) : A{1};
}

template <int kPerLane, class T, class S, class Mask, class Score>
__global__ void attend_warp_per_row(AttentionArgs<T, Cuda, S> args, Mask mask, Score score,
                                    index_t first_row, index_t rows) {
  using A = accumulate_t<T>;
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  const index_t head_dim = args.q.extent(3), value_dim = args.out.extent(3);
  const int lane = lane_index();

  for (index_t row = block_index(); row < rows; row += grid_size()) {
    const QueryRow at = query_row(args, first_row + row);
    if (!at.covered) continue;
    const index_t g = at.h / (args.q.extent(2) / args.k.extent(2));
    const index_t q_pos = args.q_positions ? index_t{args.q_positions(at.batch, at.token)}
                                           : at.kv_len - at.q_len + at.i;
    const T* q_row = row_of(args.q, first_row + row);
    A q[kPerLane], o[kPerLane];  // this lane's channels of q and of the running output
    for (int t = 0; t < kPerLane; ++t) {
      const int c = lane + kWarp * t;
      q[t] = c < head_dim ? static_cast<A>(q_row[c]) : A{0};
      o[t] = A{0};
    }

    A m = kNothing, l = 0;
    for (index_t j0 = 0; j0 < at.kv_len; j0 += kWarp) {
      const index_t j = j0 + lane, end = j0 + kWarp < at.kv_len ? j0 + kWarp : at.kv_len;
      if (args.probabilities && j < end)
        args.probabilities(at.batch, at.h, at.token, at.k_first + j) = kNothing;
      const TileVerdict verdict = args.kv_positions
                                      ? TileVerdict::partial
                                      : classify(mask, at.b, at.h, {q_pos, q_pos + 1}, {j0, end});
      if (verdict == TileVerdict::skip) continue;

      index_t kv_pos = j;  // of this lane's key
      if (args.kv_positions && j < end) kv_pos = args.kv_positions(at.k_batch, at.k_first + j);
      bool visible = j < end && kv_pos >= 0;
      if (visible && verdict == TileVerdict::partial) visible = mask(at.b, at.h, q_pos, kv_pos);
      const unsigned seen = ballot(visible);

      for (int key = 0; key < kWarp; ++key) {
        // Skip, do not score with a sentinel: a finite "-inf" can beat a real, very negative score.
        if ((seen >> key & 1u) == 0) continue;
        const S* k_row = key_row(args, args.k, at, j0 + key, g);
        A s = 0;
        for (int t = 0; t < kPerLane; ++t) {
          const int c = lane + kWarp * t;
          if (c < head_dim) s += q[t] * static_cast<A>(k_row[c]);
        }
        s = warp_sum(s) * args.scale;
        if constexpr (QuantizedElement<S>) s *= scale_of<A>(args, args.k_scales, at, j0 + key, g);
        s = score(s, at.b, at.h, q_pos, shuffle(kv_pos, key));
        if (s == kNothing) continue;
        if (args.probabilities && lane == key)
          args.probabilities(at.batch, at.h, at.token, at.k_first + j) = s;

        const A m_new = s > m ? s : m, c_old = std::exp(m - m_new), e = std::exp(s - m_new);
        const S* v_row = key_row(args, args.v, at, j0 + key, g);
        A scaled = e;
        if constexpr (QuantizedElement<S>)
          scaled *= scale_of<A>(args, args.v_scales, at, j0 + key, g);
        for (int t = 0; t < kPerLane; ++t) {
          const int c = lane + kWarp * t;
          o[t] = o[t] * c_old + (c < value_dim ? scaled * static_cast<A>(v_row[c]) : A{0});
        }
        l = l * c_old + e;
        m = m_new;
      }
    }

    // The sink is one more term of the sum, without a value.
    const A sink = args.sink_logits ? static_cast<A>(args.sink_logits(at.h)) : kNothing;
    const A top = sink > m ? sink : m;
    const A sum = top == kNothing ? A{0} : l * std::exp(m - top) + std::exp(sink - top);
    const A weight = l > 0 ? std::exp(m - top) / sum : A{0};  // of exp(s - m); no key: zeros
    T* out_row = row_of(args.out, first_row + row);
    for (int t = 0; t < kPerLane; ++t)
      if (const int c = lane + kWarp * t; c < value_dim) out_row[c] = static_cast<T>(o[t] * weight);
    if (args.probabilities) {  // each lane returns to the scores that it stored
      for (index_t j = lane; j < at.kv_len; j += kWarp) {
        A& x = args.probabilities(at.batch, at.h, at.token, at.k_first + j);
        x = x == kNothing ? A{0} : std::exp(x - m) * weight;
      }
      for (index_t other = lane; other < args.probabilities.extent(3); other += kWarp)
        if (other < at.k_first || other >= at.k_first + at.kv_len)
          args.probabilities(at.batch, at.h, at.token, other) = A{0};
    }
    if (lane == 0 && args.logsumexp)
      args.logsumexp(at.batch, at.h, at.token) = l > 0 ? m + std::log(l) : kNothing;
    if (lane == 0 && args.logsumexp_with_sink)
      args.logsumexp_with_sink(at.batch, at.h, at.token) = sum > 0 ? top + std::log(sum) : kNothing;
  }
}

template <class T, class S, class Mask, class Score>
void attend_rows(Cuda backend, const AttentionArgs<T, Cuda, S>& args, const Mask& mask,
                 const Score& score, index_t first_row, index_t rows) {
  const index_t dim = args.q.extent(3) > args.out.extent(3) ? args.q.extent(3) : args.out.extent(3);
  if (dim > kMostChannels)
    throw ShapeError(detail::text("attention: head_dim or value_dim is ", dim,
                                  ", expected at most ", kMostChannels, " on a GPU"));
  const LaunchShape shape{blocks_for(rows), kWarp};
  const auto run = [&](auto kernel) {
    launch("attend_warp_per_row", kernel, shape, backend, args, mask, score, first_row, rows);
  };
  if (dim <= 4 * kWarp)
    run(attend_warp_per_row<4, T, S, Mask, Score>);
  else
    run(attend_warp_per_row<kMostChannels / kWarp, T, S, Mask, Score>);
}

}  // namespace rapt::cuda

namespace rapt {

template <class Args, class Mask, class Score>
void BackendTraits<Cuda>::attention_forward(Cuda backend, const Args& given, const Mask& mask,
                                            const Score& score) {
  AttentionArgs<typename Args::Element, Cuda, typename Args::Stored> args = given;
  const index_t batch = args.q.extent(0), tokens = args.q.extent(1), heads = args.q.extent(2);
  if (batch * tokens * heads == 0) return;
  using A = accumulate_t<typename Args::Element>;
  if (!(args.scale < 0 || args.scale > 0))  // 0 or NaN: the default
    args.scale = A{1} / std::sqrt(static_cast<A>(args.q.extent(3)));

  if constexpr (reads_call_row<Mask> || reads_call_row<Score>) {
    // What is read by the row of the call must know where each sequence's first row stands: bind
    // and launch sequence by sequence, where their lengths differ.
    if (args.kv_lengths || args.cu_seqlens_q) {
      const auto on_host = [](auto view) {
        return view ? to(Cpu{}, view) : Tensor<std::int32_t, 1>();
      };
      const auto lengths = on_host(args.kv_lengths);
      const auto q_starts = on_host(args.cu_seqlens_q);
      const auto k_starts = on_host(args.cu_seqlens_k);
      const index_t sequences = args.cu_seqlens_q ? q_starts.extent(0) - 1 : batch;
      for (index_t b = 0; b < sequences; ++b) {
        const index_t first = args.cu_seqlens_q ? q_starts(b) : b * tokens;
        const index_t q_len = args.cu_seqlens_q ? q_starts(b + 1) - q_starts(b) : tokens;
        const index_t kv_len = args.kv_lengths ? lengths(b) : k_starts(b + 1) - k_starts(b);
        const CallShape call{q_len, kv_len, sequences, heads};
        cuda::attend_rows(backend, args, bind_call(mask, call), bind_call(score, call),
                          first * heads, q_len * heads);
      }
      return;
    }
  }
  cuda::attend_rows(backend, args, mask, score, 0, batch * tokens * heads);
}

}  // namespace rapt
