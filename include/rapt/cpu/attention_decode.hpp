// Attention for few query rows (up to 16 of a group, as in decoding): every key row is read once
// for all query heads of its group, straight from the cache, and nothing is packed.
//
//   for 64 keys at a time:
//     s[r][j] = dot(q_r, k_j)          vectors along head_dim; R rows x J keys of accumulators
//     e, m, l: online softmax          as in cpu/attention_forward.hpp
//     o[r] += e[r][j] v_j              R rows x N vectors of accumulators, all keys in one go
//
// Long rows of keys are cut into splits by length alone (flash-decoding); a split leaves o, m and
// l, and merge_row joins them in order, so threads never change a result. Bound by reading K and V:
// 4 R FLOP for each element. Keys that no row sees are left out before anything of them is read.
//
// Sources: Dao et al. 2023, "Flash-Decoding" (blog); merge rule: Hong et al. 2023,
// arXiv:2311.01282.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

inline constexpr index_t kDecodeKeys = 64;  // keys of a step; row addresses are padded to it

/// s[i][j] = dot(q_i, k_j), kRows rows of q [dim padded with zeros] and kKeys keys.
template <int kRows, int kKeys, class A, class T>
inline void dot_tile(A* s, index_t s_step, const A* q, index_t q_step, const T* const* keys,
                     index_t dim) {
  using V = Vec<A>;
  constexpr int kDots = kRows * kKeys;
  static_assert(kDots % V::kLanes == 0);
  V acc[kDots];
#pragma GCC unroll 32
  for (int i = 0; i < kDots; ++i) acc[i] = V::zero();
  const index_t whole = dim / V::kLanes * V::kLanes;
  const auto step = [&](index_t t, auto load) {
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      const V k = load(keys[j] + t);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i)
        acc[i * kKeys + j] = fma(V::load(q + i * q_step + t), k, acc[i * kKeys + j]);
    }
  };
  for (index_t t = 0; t < whole; t += V::kLanes) step(t, [](const T* p) { return V::load(p); });
  if (whole < dim) step(whole, [=](const T* p) { return V::load(p, dim - whole); });
  A sums[kDots];
  for (int c = 0; c < kDots; c += V::kLanes) {
    V part[V::kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) part[i] = acc[c + i];
    V::sums(part).store(sums + c);
  }
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kKeys; ++j) s[i * s_step + j] = sums[i * kKeys + j];
}

/// Scores of `rows` rows and of the n keys (addresses padded to a whole step).
template <class A, class T>
[[gnu::noinline]] void dot_keys(A* s, index_t s_step, const A* q, index_t q_step, index_t rows,
                                const T* const* keys, index_t n, index_t dim) {
  constexpr int kLanes = Vec<A>::kLanes, kDots = kLanes < 8 ? 8 : kLanes;
  const auto over_keys = [&]<int kRows>(index_t i) {
    constexpr int kKeys = kDots / kRows;
    for (index_t j = 0; j < n; j += kKeys)
      dot_tile<kRows, kKeys>(s + i * s_step + j, s_step, q + i * q_step, q_step, keys + j, dim);
  };
  index_t i = 0;
  for (; i + 4 <= rows; i += 4) over_keys.template operator()<4>(i);
  if (rows & 2) over_keys.template operator()<2>(i), i += 2;
  if (rows & 1) over_keys.template operator()<1>(i);
}

/// o_i[t, t + kVecs vectors) = f_i o_i + sum_j e_ij v_j. kMixed: rows see different keys, and a
/// hidden value's bits are cleared before it is multiplied.
template <int kRows, int kVecs, bool kMixed, class A, class T>
inline void weigh_tile(A* o, index_t o_step, const A* factor, const A* e, index_t e_step,
                       const mask_int<A>* seen, const T* const* values, index_t n, index_t t,
                       index_t lanes) {
  using V = Vec<A>;
  V acc[kRows][kVecs];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v)
      acc[i][v] = V::load(o + i * o_step + t + v * V::kLanes) * V::broadcast(factor[i]);
  }
  const auto add = [&](index_t j, auto load) {
    V x[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) x[v] = load(values[j] + t + v * V::kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const V eij = V::broadcast(e[i * e_step + j]);
      V mask = V::zero();
      if constexpr (kMixed) {
        mask_int<A> repeated[V::kLanes];
        for (int c = 0; c < V::kLanes; ++c) repeated[c] = seen[i * e_step + j];
        mask = V::load_mask(repeated);
      }
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v)
        acc[i][v] = fma(eij, kMixed ? bit_and(x[v], mask) : x[v], acc[i][v]);
    }
  };
  if (lanes >= V::kLanes) {
    for (index_t j = 0; j < n; ++j) add(j, [](const T* p) { return V::load(p); });
  } else {
    for (index_t j = 0; j < n; ++j) add(j, [=](const T* p) { return V::load(p, lanes); });
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) acc[i][v].store(o + i * o_step + t + v * V::kLanes);
  }
}

template <bool kMixed, class A, class T>
[[gnu::noinline]] void weigh_values(A* o, index_t o_step, const A* factor, const A* e,
                                    index_t e_step, const mask_int<A>* seen, index_t rows,
                                    const T* const* values, index_t n, index_t dim) {
  constexpr index_t kLanes = Vec<A>::kLanes;
  const auto over_dims = [&]<int kRows>(index_t i) {
    constexpr int kVecs = 8 / kRows;
    index_t t = 0;
    const auto tile = [&]<int kN>(index_t lanes) {
      weigh_tile<kRows, kN, kMixed>(o + i * o_step, o_step, factor + i, e + i * e_step, e_step,
                                    seen + i * e_step, values, n, t, lanes);
    };
    for (; t + kVecs * kLanes <= dim; t += kVecs * kLanes) tile.template operator()<kVecs>(kLanes);
    for (; t < dim; t += kLanes) tile.template operator()<1>(dim - t);
  };
  index_t i = 0;
  for (; i + 4 <= rows; i += 4) over_dims.template operator()<4>(i);
  if (rows & 2) over_dims.template operator()<2>(i), i += 2;
  if (rows & 1) over_dims.template operator()<1>(i);
}

/// The state of a block's rows after keys [kv_begin, kv_end): o [rows, value_step], m (natural
/// units), l.
template <class Args, class Mask, class Score, class A>
void decode_block(const Args& args, const AttentionSequence& seq, const Mask& mask,
                  const Score& score, index_t kv_head, const RowBlock& block, index_t kv_begin,
                  index_t kv_end, A* o, A* m, A* l, Scratch<Cpu>& scratch) {
  using T = typename Args::Element;
  using V = Vec<A>;
  constexpr A kNone = -std::numeric_limits<A>::infinity();
  const index_t rows = block.rows(), dim = args.q.extent(3), value_dim = args.v.extent(3);
  const index_t q_step = round_up(dim, V::kLanes), value_step = round_up(value_dim, V::kLanes);
  const ScoreUnits<A, Score> units{args.scale};
  const RowAddress<T> k_row = row_address(args, args.k, seq, kv_head);
  const RowAddress<T> v_row = row_address(args, args.v, seq, kv_head);

  A* const q = scratch.tensor<A>(Shape<2>{rows, q_step}).data();
  A* const s = scratch.tensor<A>(Shape<2>{rows, kDecodeKeys}).data();
  A* const factor = scratch.tensor<A>(Shape<1>{rows + V::kLanes}).data();
  A* const top = scratch.tensor<A>(Shape<1>{rows + V::kLanes}).data();
  std::fill_n(top, rows + V::kLanes, kNone);
  mask_int<A>* const seen = scratch.tensor<mask_int<A>>(Shape<2>{rows, kDecodeKeys}).data();
  for (index_t r = 0; r < rows; ++r) {
    const T* const from = args.q.data() + seq.row * args.q.stride(0) +
                          (seq.q_begin + block.query_of(r)) * args.q.stride(1) +
                          block.head_of(r) * args.q.stride(2);
    for (index_t t = 0; t < dim; t += V::kLanes)
      (load_lanes<A>(from + t, dim - t) * V::broadcast(units.q_factor())).store(q + r * q_step + t);
    m[r] = kNone, l[r] = 0;
  }
  for (index_t t = 0; t < rows * value_step; ++t) o[t] = 0;

  for (index_t begin = kv_begin; begin < kv_end; begin += kDecodeKeys) {
    const KeySpan keys = keys_of(args, seq, begin, std::min(kDecodeKeys, kv_end - begin));
    const KeyRange range = key_range(keys);
    const TileVerdict verdict = verdict_of(mask, seq.b, block, 0, rows, range);
    if (verdict == TileVerdict::skip) continue;
    report_tile(mask, seq.b, block, 0, rows, range);

    // Addresses of the keys that some row sees, and whether rows differ in what they see.
    index_t index[kDecodeKeys], n = 0;
    bool mixed = false;
    if (verdict == TileVerdict::full) {
      for (; n < keys.count; ++n) index[n] = n;
    } else {
      ask_rows<A>(seen, kDecodeKeys, mask, seq.b, block, 0, rows, keys, range);
      for (index_t j = 0; j < keys.count; ++j) {
        index_t count = 0;
        for (index_t r = 0; r < rows; ++r) count += seen[r * kDecodeKeys + j] != 0;
        if (count == 0) continue;
        mixed = mixed || count < rows;
        for (index_t r = 0; r < rows; ++r)  // n <= j: moves left
          seen[r * kDecodeKeys + n] = seen[r * kDecodeKeys + j];
        index[n++] = j;
      }
      if (n == 0) continue;
    }
    const T *k_rows[kDecodeKeys], *v_rows[kDecodeKeys];
    for (index_t j = 0; j < n; ++j) {
      k_rows[j] = k_row(begin + index[j]);
      v_rows[j] = v_row(begin + index[j]);
    }
    for (index_t j = n; j < kDecodeKeys; ++j) k_rows[j] = k_rows[n - 1];

    dot_keys(s, kDecodeKeys, q, q_step, rows, k_rows, n, dim);
    const index_t whole = round_up(n, V::kLanes);
    for (index_t r = 0; r < rows; ++r) {
      A* const row = s + r * kDecodeKeys;
      if constexpr (!is_identity<Score>) {
        for (index_t j = 0; j < n; ++j)
          if (const index_t p = keys.position(index[j]); p >= 0)
            row[j] = static_cast<A>(
                score(row[j] * units.scale, seq.b, block.head_of(r), block.position_of(r), p));
      }
      if (mixed) {
        for (index_t j = 0; j < n; ++j)
          if (seen[r * kDecodeKeys + j] == 0) row[j] = kNone;
      }
      for (index_t j = n; j < whole; ++j) row[j] = kNone;
      top[r] = largest(row_top(row, 0, whole));
    }
    raise_rows(m, l, factor, top, rows, units.unit());
    for (index_t r = 0; r < rows; ++r)
      l[r] += sum(soften_row(s + r * kDecodeKeys, 0, whole, m[r], units.unit()));
    if (mixed)
      weigh_values<true>(o, value_step, factor, s, kDecodeKeys, seen, rows, v_rows, n, value_dim);
    else
      weigh_values<false>(o, value_step, factor, s, kDecodeKeys, seen, rows, v_rows, n, value_dim);
  }
  for (index_t r = 0; r < rows; ++r) m[r] *= kLn2<A>;
}

/// Row r of `splits` partial results, each [rows, value_step] of o, then m [rows], then l [rows],
/// `step` apart. The sum is left in the first part's o.
template <class A>
RowState<A> merge_row(A* partial, index_t step, index_t splits, index_t rows, index_t r,
                      index_t value_step) {
  using V = Vec<A>;
  const index_t at_m = rows * value_step + r, at_l = at_m + rows;
  A m = -std::numeric_limits<A>::infinity(), l = 0;
  for (index_t t = 0; t < splits; ++t) m = std::max(m, partial[t * step + at_m]);
  A* const o = partial + r * value_step;
  for (index_t t = 0; t < splits; ++t) {
    const A part_l = partial[t * step + at_l];
    const A weight = part_l == 0 ? A(0) : std::exp(partial[t * step + at_m] - m);
    l += weight * part_l;
    const V w = V::broadcast(weight);
    for (index_t c = 0; c < value_step; c += V::kLanes) {
      const V part = V::load(partial + t * step + r * value_step + c);
      (t == 0 ? part * w : fma(part, w, V::load(o + c))).store(o + c);
    }
  }
  return {m, l, o};
}

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
