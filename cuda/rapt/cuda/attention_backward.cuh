// The gradient of attention on the GPU, in kernels that each own what they write: the readable form
// that faster ones are tested against. Any shape up to 576 channels, any mask and score; no
// atomics, so a result repeats bit for bit. With the symbols of attention/backward.hpp, L0 the
// logsumexp without the sink, w = exp(L0 - L) and D' = w (D - dL) - dL0:
//
//   backward_of_rows     warp per query row      w, D' and the row's share of dsink
//   backward_of_queries  warp per query row      for each key j it sees:
//                                                  p = exp(z - L0);  dz = p (w dout.v_j - D')
//                                                  dq += dz score'(s) k_j
//   backward_of_keys     warp per key row        for each query i that sees it, of each head of the
//                        and key head            group: dv += w p dout_i;  dk += dz score'(s) q_i
//   backward_of_sinks    warp per head           sums the rows' shares
//   backward_of_bias     warp per table row      sums dz over the sequences and heads that share it
//   backward_of_relative_bias   warp per entry   sums dz over the pairs of its distance
//
// Lane t owns channels t, t + 32, ... of a warp's vectors. Scores and dout.v are computed once for
// the queries and once for the keys. Traffic: K and V once per query row, Q and dout once per key
// row of each group, so this is bound by bandwidth.
//
// Source: Dao 2023, arXiv:2307.08691, algorithm 2, with an owner for dq instead of atomic adds.
#pragma once

#include <cmath>
#include <limits>

#include "rapt/attention/backward_options.hpp"
#include "rapt/attention/sequences.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/cuda/attention_forward.cuh"
#include "rapt/mask/bias_gradient.hpp"

namespace rapt::cuda {

/// This lane's channels of a row.
template <int kPerLane, class A>
struct LaneChannels {
  A x[kPerLane];

  __device__ LaneChannels() {
    for (A& channel : x) channel = A{0};
  }
  template <class T>
  __device__ LaneChannels(const T* row, index_t dim) : LaneChannels() {
    add(A{1}, row, dim);
  }
  template <class T>
  __device__ void add(A factor, const T* row, index_t dim) {
    for (int t = 0; t < kPerLane; ++t)
      if (const int c = lane_index() + kWarp * t; c < dim) x[t] += factor * static_cast<A>(row[c]);
  }
  /// Dot product with another row, in every lane.
  template <class T>
  __device__ A dot(const T* row, index_t dim) const {
    A sum = 0;
    for (int t = 0; t < kPerLane; ++t)
      if (const int c = lane_index() + kWarp * t; c < dim) sum += x[t] * static_cast<A>(row[c]);
    return warp_sum(sum);
  }
  template <class T>
  __device__ void store(A factor, T* row, index_t dim) const {
    for (int t = 0; t < kPerLane; ++t)
      if (const int c = lane_index() + kWarp * t; c < dim) row[c] = static_cast<T>(factor * x[t]);
  }
};

/// What backward_of_rows leaves for the other kernels: numbers of each query row, rows counted over
/// [batch, q_len, heads].
template <class A>
struct RowScalars {
  TensorView<A, 1, Cuda> weight, delta, sink;  // w, D', - exp(sink - L) (D - dL)
};

/// A query row and a key: the weight without the sink, and the gradients of the score after and
/// before the modifier.
template <class A>
struct PairGradient {
  A p, dz, du;
};
template <class A, class Score>
__device__ PairGradient<A> pair_gradient(const Score& score, A s, A dp, A lse, A weight, A delta,
                                         index_t b, index_t h, index_t q_pos, index_t kv_pos) {
  const Dual<A> z = score(Dual<A>{s, A{1}}, b, h, q_pos, kv_pos);
  const A p = std::exp(z.value - lse);
  if (p == A{0}) return {};  // be its derivative what it may
  const A dz = p * (weight * dp - delta);
  return {p, dz, dz * z.derivative};
}

template <class Args>
__device__ index_t position_of_query(const Args& args, const QueryRow& at) {
  return args.q_positions ? index_t{args.q_positions(at.batch, at.token)}
                          : at.kv_len - at.q_len + at.i;
}
template <class Args>
__device__ index_t position_of_key(const Args& args, const QueryRow& at, index_t j) {
  return args.kv_positions ? index_t{args.kv_positions(at.k_batch, at.k_first + j)} : j;
}
template <class Args, class Mask>
__device__ bool sees(const Args& args, const Mask& mask, const QueryRow& at, index_t q_pos,
                     index_t j) {
  const index_t kv_pos = position_of_key(args, at, j);
  return kv_pos >= 0 && mask(at.b, at.h, q_pos, kv_pos);
}

template <int kPerLane, class T>
__global__ void backward_of_rows(AttentionBackwardArgs<T, Cuda> args,
                                 RowScalars<accumulate_t<T>> scalars) {
  using A = accumulate_t<T>;
  constexpr A kNothing = -std::numeric_limits<A>::infinity();
  const index_t rows = scalars.weight.extent(0), value_dim = args.v.extent(3);
  for (index_t row = block_index(); row < rows; row += grid_size()) {
    const QueryRow at = query_row(args, row);
    A weight = 0, delta = 0, sink_share = 0;
    if (at.covered) {
      const A lse = args.logsumexp(at.batch, at.h, at.token);
      const A sink = args.sink_logits ? static_cast<A>(args.sink_logits(at.h)) : kNothing;
      const A top = sink > lse ? sink : lse;
      const A whole = args.logsumexp_with_sink ? args.logsumexp_with_sink(at.batch, at.h, at.token)
                      : top == kNothing
                          ? kNothing
                          : top + std::log(std::exp(lse - top) + std::exp(sink - top));
      A d = args.dlogsumexp_with_sink ? -args.dlogsumexp_with_sink(at.batch, at.h, at.token) : A{0};
      if (lse != kNothing) {  // sees something
        const LaneChannels<kPerLane, A> dout(row_of(args.dout, row), value_dim);
        d += dout.dot(row_of(args.out, row), value_dim);
        weight = std::exp(lse - whole);
        delta = weight * d;
        if (args.dlogsumexp) delta -= args.dlogsumexp(at.batch, at.h, at.token);
      }
      if (whole != kNothing) sink_share = -std::exp(sink - whole) * d;
    }
    if (lane_index() == 0) {
      scalars.weight(row) = weight;
      scalars.delta(row) = delta;
      if (scalars.sink) scalars.sink(row) = sink_share;
    }
  }
}

/// Calls f(j, s, dp) for each key j that a query row sees, all lanes together.
template <int kPerLane, class Args, class Mask, class F>
__device__ void for_each_key(const Args& args, const Mask& mask, const QueryRow& at, index_t row,
                             F f) {
  using A = typename Args::Acc;
  const index_t head_dim = args.q.extent(3), value_dim = args.v.extent(3);
  const index_t g = at.h / (args.q.extent(2) / args.k.extent(2));
  const index_t q_pos = position_of_query(args, at);
  const LaneChannels<kPerLane, A> q(row_of(args.q, row), head_dim);
  const LaneChannels<kPerLane, A> dout(row_of(args.dout, row), value_dim);
  for (index_t j0 = 0; j0 < at.kv_len; j0 += kWarp) {
    const index_t j = j0 + lane_index(), end = j0 + kWarp < at.kv_len ? j0 + kWarp : at.kv_len;
    if (!args.kv_positions &&
        classify(mask, at.b, at.h, {q_pos, q_pos + 1}, {j0, end}) == TileVerdict::skip)
      continue;
    const unsigned seen = ballot(j < end && sees(args, mask, at, q_pos, j));
    for (int key = 0; key < kWarp; ++key) {
      if ((seen >> key & 1u) == 0) continue;
      const A s = q.dot(key_row(args, args.k, at, j0 + key, g), head_dim) * args.scale;
      f(j0 + key, s, dout.dot(key_row(args, args.v, at, j0 + key, g), value_dim));
    }
  }
}

template <int kPerLane, class T, class Mask, class Score>
__global__ void backward_of_queries(AttentionBackwardArgs<T, Cuda> args, Mask mask, Score score,
                                    RowScalars<accumulate_t<T>> scalars, index_t first_row,
                                    index_t rows) {
  using A = accumulate_t<T>;
  const index_t head_dim = args.q.extent(3);
  for (index_t n = block_index(); n < rows; n += grid_size()) {
    const index_t row = first_row + n;
    const QueryRow at = query_row(args, row);
    if (!at.covered) continue;
    const A lse = args.logsumexp(at.batch, at.h, at.token);
    LaneChannels<kPerLane, A> dq;
    if (lse != -std::numeric_limits<A>::infinity()) {
      const index_t q_pos = position_of_query(args, at);
      const index_t g = at.h / (args.q.extent(2) / args.k.extent(2));
      for_each_key<kPerLane>(args, mask, at, row, [&](index_t j, A s, A dp) {
        const auto pair = pair_gradient(score, s, dp, lse, scalars.weight(row), scalars.delta(row),
                                        at.b, at.h, q_pos, position_of_key(args, at, j));
        if (pair.du != A{0}) dq.add(pair.du, key_row(args, args.k, at, j, g), head_dim);
      });
    }
    dq.store(args.scale, row_of(args.dq, row), head_dim);
  }
}

/// Where key `token` of batch row `batch` stands: its sequence, by that sequence's first query.
template <class Args>
__device__ QueryRow sequence_of_key(const Args& args, index_t batch, index_t token, index_t* j) {
  QueryRow at{};
  at.batch = at.b = at.k_batch = batch;
  at.q_len = args.q.extent(1);
  at.kv_len = args.kv_lengths ? index_t{args.kv_lengths(batch)} : args.k.extent(1);
  if (args.cu_seqlens_k) {
    at.b = sequence_of(args.cu_seqlens_k, token);
    at.token = args.cu_seqlens_q(at.b);
    at.q_len = args.cu_seqlens_q(at.b + 1) - at.token;
    at.k_first = args.cu_seqlens_k(at.b);
    at.kv_len = args.cu_seqlens_k(at.b + 1) - at.k_first;
  }
  *j = token - at.k_first;
  at.covered = *j < at.kv_len;
  return at;
}

template <int kPerLane, class T, class Mask, class Score>
__global__ void backward_of_keys(AttentionBackwardArgs<T, Cuda> args, Mask mask, Score score,
                                 RowScalars<accumulate_t<T>> scalars, index_t first_row,
                                 index_t rows) {
  using A = accumulate_t<T>;
  const index_t head_dim = args.q.extent(3), value_dim = args.v.extent(3);
  const index_t heads = args.q.extent(2), kv_heads = args.k.extent(2), group = heads / kv_heads;
  const index_t tokens = args.q.extent(1);
  for (index_t n = block_index(); n < rows; n += grid_size()) {
    const index_t row = first_row + n, g = row % kv_heads;
    index_t j = 0;
    const QueryRow sequence = sequence_of_key(args, row / kv_heads / args.k.extent(1),
                                              row / kv_heads % args.k.extent(1), &j);
    if (!sequence.covered) continue;
    const index_t kv_pos = position_of_key(args, sequence, j);
    const LaneChannels<kPerLane, A> k(row_of(args.k, row), head_dim);
    const LaneChannels<kPerLane, A> v(row_of(args.v, row), value_dim);
    LaneChannels<kPerLane, A> dk, dv;
    for (index_t h = g * group; kv_pos >= 0 && h < (g + 1) * group; ++h) {
      for (index_t i0 = 0; i0 < sequence.q_len; i0 += kWarp) {
        QueryRow at = sequence;  // of this lane's query
        at.h = h;
        at.i = i0 + lane_index();
        at.token = sequence.token + at.i;
        const index_t end = i0 + kWarp < sequence.q_len ? i0 + kWarp : sequence.q_len;
        const index_t before = sequence.kv_len - sequence.q_len;
        if (!args.q_positions && classify(mask, at.b, h, {before + i0, before + end},
                                          {kv_pos, kv_pos + 1}) == TileVerdict::skip)
          continue;
        const index_t q_pos = at.i < end ? position_of_query(args, at) : index_t{0};
        const unsigned seen = ballot(at.i < end && sees(args, mask, at, q_pos, j));
        for (int query = 0; query < kWarp; ++query) {
          if ((seen >> query & 1u) == 0) continue;
          const index_t token = sequence.token + i0 + query;
          const index_t q_row = (sequence.batch * tokens + token) * heads + h;
          const A lse = args.logsumexp(sequence.batch, h, token);
          if (lse == -std::numeric_limits<A>::infinity()) continue;
          const T* const q = row_of(args.q, q_row);
          const T* const dout = row_of(args.dout, q_row);
          const A s = k.dot(q, head_dim) * args.scale, dp = v.dot(dout, value_dim);
          const A weight = scalars.weight(q_row);
          const auto pair = pair_gradient(score, s, dp, lse, weight, scalars.delta(q_row), at.b, h,
                                          shuffle(q_pos, query), kv_pos);
          if (pair.p == A{0}) continue;
          dk.add(pair.du, q, head_dim);
          dv.add(weight * pair.p, dout, value_dim);
        }
      }
    }
    dk.store(args.scale, row_of(args.dk, row), head_dim);
    dv.store(A{1}, row_of(args.dv, row), value_dim);
  }
}

template <class T>
__global__ void backward_of_sinks(AttentionBackwardArgs<T, Cuda> args,
                                  RowScalars<accumulate_t<T>> scalars) {
  using A = accumulate_t<T>;
  const index_t heads = args.q.extent(2);
  for (index_t h = block_index(); h < heads; h += grid_size()) {
    A sum = 0;
    for (index_t row = h + lane_index() * heads; row < scalars.sink.extent(0); row += kWarp * heads)
      sum += scalars.sink(row);
    sum = warp_sum(sum);
    if (lane_index() == 0) args.dsinks(h) += sum;
  }
}

/// Calls f(at, row, lse) for each covered query row whose batch row and head a table's row stands
/// for: all of them where the table has one row for all. `first_row` and `rows` limit them.
template <class Args, class F>
__device__ void for_each_sharing(const Args& args, index_t first_row, index_t rows, F f) {
  for (index_t row = first_row; row < first_row + rows; ++row) {
    const QueryRow at = query_row(args, row);
    if (!at.covered) continue;
    const auto lse = args.logsumexp(at.batch, at.h, at.token);
    if (lse != -std::numeric_limits<typename Args::Acc>::infinity()) f(at, row, lse);
  }
}

template <int kPerLane, class T, class Mask, class Score>
__global__ void backward_of_bias(AttentionBackwardArgs<T, Cuda> args, Mask mask, Score score,
                                 RowScalars<accumulate_t<T>> scalars, index_t first_row,
                                 index_t rows) {
  using A = accumulate_t<T>;
  const auto& table = args.dbias;
  const index_t entries = table.extent(0) * table.extent(1) * table.extent(2);
  for (index_t n = block_index(); n < entries; n += grid_size()) {
    const index_t i = n % table.extent(2), th = n / table.extent(2) % table.extent(1);
    const index_t tb = n / table.extent(2) / table.extent(1);
    for_each_sharing(args, first_row, rows, [&](const QueryRow& at, index_t row, A lse) {
      if (at.i != i || detail::shared_index(table.extent(0), at.b) != tb ||
          detail::shared_index(table.extent(1), at.h) != th)
        return;
      const index_t q_pos = position_of_query(args, at);
      for_each_key<kPerLane>(args, mask, at, row, [&](index_t j, A s, A dp) {
        const index_t kv_pos = position_of_key(args, at, j);
        const auto pair = pair_gradient(score, s, dp, lse, scalars.weight(row), scalars.delta(row),
                                        at.b, at.h, q_pos, kv_pos);
        if (lane_index() == 0 && pair.p != A{0})
          table(tb, th, i, kv_pos) +=
              pair.dz * detail::bias_derivative<true>(score, s, at.b, at.h, q_pos, kv_pos);
      });
    });
  }
}

template <int kPerLane, class T, class Mask, class Score>
__global__ void backward_of_relative_bias(AttentionBackwardArgs<T, Cuda> args, Mask mask,
                                          Score score, RowScalars<accumulate_t<T>> scalars,
                                          index_t first_row, index_t rows) {
  using A = accumulate_t<T>;
  const auto& table = args.drelative_bias;
  const auto& bias = detail::bias_in<false>(score);
  const index_t entries = table.extent(0) * table.extent(1);
  for (index_t n = block_index(); n < entries; n += grid_size()) {
    const index_t column = n % table.extent(1), th = n / table.extent(1);
    A sum = 0;
    for_each_sharing(args, first_row, rows, [&](const QueryRow& at, index_t row, A lse) {
      if (detail::shared_index(table.extent(0), at.h) != th) return;
      const index_t q_pos = position_of_query(args, at);
      // Only pairs of this entry's distance, and of them only what the mask shows.
      const auto of_entry = [&](index_t b, index_t h, index_t q, index_t kv) {
        return detail::bias_column(bias, q, kv) == column && mask(b, h, q, kv);
      };
      for_each_key<kPerLane>(args, of_entry, at, row, [&](index_t j, A s, A dp) {
        const index_t kv_pos = position_of_key(args, at, j);
        const auto pair = pair_gradient(score, s, dp, lse, scalars.weight(row), scalars.delta(row),
                                        at.b, at.h, q_pos, kv_pos);
        if (pair.p != A{0})
          sum += pair.dz * detail::bias_derivative<false>(score, s, at.b, at.h, q_pos, kv_pos);
      });
    });
    if (lane_index() == 0) table(th, column) += sum;
  }
}

/// Zeros for rows that belong to no sequence.
template <class T>
__global__ void clear_rows(TensorView<T, 4, Cuda> view, index_t rows) {
  for (index_t row = block_index(); row < rows; row += grid_size())
    for (index_t c = thread_index(); c < view.extent(3); c += block_size())
      row_of(view, row)[c] = T{};
}

/// Rows [first_row, first_row + rows) of q and their keys, [first_key, first_key + keys) of k.
template <int kPerLane, class T, class Mask, class Score>
void backward_rows(Cuda backend, const AttentionBackwardArgs<T, Cuda>& args, const Mask& mask,
                   const Score& score, const RowScalars<accumulate_t<T>>& scalars,
                   index_t first_row, index_t rows, index_t first_key, index_t keys) {
  launch("backward_of_queries", backward_of_queries<kPerLane, T, Mask, Score>,
         {blocks_for(rows), kWarp}, backend, args, mask, score, scalars, first_row, rows);
  launch("backward_of_keys", backward_of_keys<kPerLane, T, Mask, Score>, {blocks_for(keys), kWarp},
         backend, args, mask, score, scalars, first_key, keys);
  if constexpr (detail::bias_count<true, Score> == 1) {
    const auto& table = args.dbias;
    if (table)
      launch("backward_of_bias", backward_of_bias<kPerLane, T, Mask, Score>,
             {blocks_for(table.extent(0) * table.extent(1) * table.extent(2)), kWarp}, backend,
             args, mask, score, scalars, first_row, rows);
  }
  if constexpr (detail::bias_count<false, Score> == 1) {
    if (args.drelative_bias)
      launch("backward_of_relative_bias", backward_of_relative_bias<kPerLane, T, Mask, Score>,
             {blocks_for(args.drelative_bias.size()), kWarp}, backend, args, mask, score, scalars,
             first_row, rows);
  }
}

template <int kPerLane, class T, class Mask, class Score>
void backward(Cuda backend, const AttentionBackwardArgs<T, Cuda>& args, const Mask& mask,
              const Score& score) {
  using A = accumulate_t<T>;
  const index_t batch = args.q.extent(0), tokens = args.q.extent(1), heads = args.q.extent(2);
  const index_t kv_tokens = args.k.extent(1), kv_heads = args.k.extent(2);
  const index_t rows = batch * tokens * heads;
  Scratch<Cuda> scratch(backend);
  RowScalars<A> scalars{
      scratch.template tensor<A>(Shape<1>{rows}), scratch.template tensor<A>(Shape<1>{rows}), {}};
  if (args.dsinks) scalars.sink = scratch.template tensor<A>(Shape<1>{rows});
  launch("backward_of_rows", backward_of_rows<kPerLane, T>, {blocks_for(rows), kWarp}, backend,
         args, scalars);
  if (args.dsinks)
    launch("backward_of_sinks", backward_of_sinks<T>, {blocks_for(heads), kWarp}, backend, args,
           scalars);

  if constexpr (reads_call_row<Mask> || reads_call_row<Score>) {
    // Bound and launched sequence by sequence where their lengths differ, as in the forward pass.
    if (detail::lengths_differ(args)) {
      const auto on_host = [](auto view) {
        return view ? to(Cpu{}, view) : Tensor<std::int32_t, 1>();
      };
      const auto lengths = on_host(args.kv_lengths);
      const auto q_starts = on_host(args.cu_seqlens_q), k_starts = on_host(args.cu_seqlens_k);
      const index_t sequences = detail::sequence_count(args);
      for (index_t b = 0; b < sequences; ++b) {
        index_t first = b * tokens, q_len = tokens, first_key = b * kv_tokens, kv_len = kv_tokens;
        if (args.cu_seqlens_q) {
          first = q_starts(b), q_len = q_starts(b + 1) - first;
          first_key = k_starts(b), kv_len = k_starts(b + 1) - first_key;
        }
        if (args.kv_lengths) kv_len = lengths(b);
        const CallShape call{q_len, kv_len, sequences, heads};
        backward_rows<kPerLane>(backend, args, bind_call(mask, call), bind_call(score, call),
                                scalars, first * heads, q_len * heads, first_key * kv_heads,
                                kv_len * kv_heads);
      }
      return;
    }
  }
  backward_rows<kPerLane>(backend, args, mask, score, scalars, index_t{0}, rows, index_t{0},
                          batch * kv_tokens * kv_heads);
}

}  // namespace rapt::cuda

namespace rapt {

template <class Args, class Mask, class Score>
void BackendTraits<Cuda>::attention_backward(Cuda backend, const Args& args, const Mask& mask,
                                             const Score& score) {
  using T = typename Args::Element;
  const index_t head_dim = args.q.extent(3), value_dim = args.v.extent(3);
  const index_t dim = head_dim > value_dim ? head_dim : value_dim;
  if (dim > cuda::kMostChannels)
    throw ShapeError(detail::text("attention_backward: head_dim or value_dim is ", dim,
                                  ", expected at most ", cuda::kMostChannels, " on a GPU"));
  if (detail::lengths_differ(args) || args.q.size() == 0) {
    const auto clear = [&](const auto& view) {
      const index_t rows = cuda::rows_of(view);
      cuda::launch("clear_rows", cuda::clear_rows<T>, {cuda::blocks_for(rows), cuda::kWarp},
                   backend, view, rows);
    };
    clear(args.dq);
    clear(args.dk);
    clear(args.dv);
    if (args.q.size() == 0) return;
  }
  if (dim <= 4 * cuda::kWarp)
    cuda::backward<4>(backend, args, mask, score);
  else
    cuda::backward<cuda::kMostChannels / cuda::kWarp>(backend, args, mask, score);
}

}  // namespace rapt
