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
#include <cstring>
#include <limits>

#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_call.hpp"
#include "rapt/cpu/attention_score.hpp"
#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

inline constexpr index_t kDecodeKeys = 64;  // keys of a step; row addresses are padded to it

/// Two vectors of a row at a time, in the order that is cheapest to convert to. Queries, keys,
/// values and outputs all pass here, so the order never shows; ordered() restores it.
template <class A, class T>
struct VectorPair {
  using V = Vec<A>;
  static constexpr index_t kLength = 2 * V::kLanes;
  V first, second;

  static VectorPair load(const T* p) {
    VectorPair x;
    if constexpr (requires { V::load_even_odd(p, x.first, x.second); }) {
      V::load_even_odd(p, x.first, x.second);
    } else {
      x.first = V::load(p), x.second = V::load(p + V::kLanes);
    }
    return x;
  }
  VectorPair ordered() const {
    VectorPair x = *this;
    if constexpr (requires(const T* p) { V::load_even_odd(p, x.first, x.second); })
      V::interleave(x.first, x.second);
    return x;
  }
};

/// Brings the lines of a row nearer while others are worked on: rows of one head lie apart, which
/// the hardware's prefetchers follow badly.
template <class T>
inline void prefetch_row(const T* row, index_t dim) {
  constexpr index_t kLine = 64 / static_cast<index_t>(sizeof(T));
  for (index_t t = 0; t < dim; t += kLine) __builtin_prefetch(row + t, 0, 2);
}

/// s[i][j] = dot(q_i, k_j), kRows rows of q [in pair order, padded with zeros] and kKeys keys.
template <int kRows, int kKeys, class A, class T>
[[gnu::always_inline]] inline void dot_tile(A* s, index_t s_step, const A* q, index_t q_step,
                                            const T* const* keys, index_t dim) {
  using V = Vec<A>;
  using Pair = VectorPair<A, T>;
  constexpr int kDots = kRows * kKeys;
  static_assert(kDots % V::kLanes == 0);
  V acc[kDots];
#pragma GCC unroll 32
  for (int i = 0; i < kDots; ++i) acc[i] = V::zero();
  index_t t = 0;
  for (; t + Pair::kLength <= dim; t += Pair::kLength) {
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      const Pair k = Pair::load(keys[j] + t);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        V& sum = acc[i * kKeys + j];
        sum = fma(V::load(q + i * q_step + t), k.first, sum);
        sum = fma(V::load(q + i * q_step + t + V::kLanes), k.second, sum);
      }
    }
  }
  for (; t < dim; t += V::kLanes) {
#pragma GCC unroll 16
    for (int j = 0; j < kKeys; ++j) {
      const V k = load_lanes<A>(keys[j] + t, dim - t);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i)
        acc[i * kKeys + j] = fma(V::load(q + i * q_step + t), k, acc[i * kKeys + j]);
    }
  }
  A sums[kDots];
  for (int c = 0; c < kDots; c += V::kLanes) {
    V part[V::kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) part[i] = acc[c + i];
    V::sums(part).store(sums + c);
  }
  for (int i = 0; i < kRows; ++i) std::memcpy(s + i * s_step, sums + i * kKeys, kKeys * sizeof(A));
}

/// Scores of `rows` rows and of the n keys (addresses padded to a whole step). Meanwhile the rows
/// `next` are brought nearer.
template <class A, class T>
[[gnu::noinline]] void dot_keys(A* s, index_t s_step, const A* q, index_t q_step, index_t rows,
                                const T* const* keys, index_t n, index_t dim, const T* const* next,
                                index_t next_dim) {
  constexpr int kLanes = Vec<A>::kLanes, kDots = kLanes < 8 ? 8 : kLanes;
  const auto over_keys = [&]<int kRows>(index_t i) {
    constexpr int kKeys = kDots / kRows;
    for (index_t j = 0; j < n; j += kKeys) {
      if (i == 0)
        for (int c = 0; c < kKeys; ++c) prefetch_row(next[j + c], next_dim);
      dot_tile<kRows, kKeys>(s + i * s_step + j, s_step, q + i * q_step, q_step, keys + j, dim);
    }
  };
  index_t i = 0;
  for (; i + 4 <= rows; i += 4) over_keys.template operator()<4>(i);
  if (rows & 2) over_keys.template operator()<2>(i), i += 2;
  if (rows & 1) over_keys.template operator()<1>(i);
}

/// o_i[t, t + kVecs vectors) = f_i o_i + sum_j e_ij v_j, o in pair order. kMixed: rows see
/// different keys, and a hidden value's bits are cleared before it is multiplied.
template <int kRows, int kVecs, bool kMixed, bool kPrefetch, class A, class T>
inline void weigh_tile(A* o, index_t o_step, const A* factor, const A* e, index_t e_step,
                       const mask_int<A>* seen, const T* const* values, index_t n, index_t t,
                       index_t lanes, const T* const* next, index_t next_dim) {
  using V = Vec<A>;
  using Pair = VectorPair<A, T>;
  V acc[kRows][kVecs];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v)
      acc[i][v] = V::load(o + i * o_step + t + v * V::kLanes) * V::broadcast(factor[i]);
  }
  for (index_t j = 0; j < n; ++j) {
    if constexpr (kPrefetch) prefetch_row(next[j], next_dim);
    V x[kVecs];
    if constexpr (kVecs % 2 == 0) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v += 2) {
        const Pair pair = Pair::load(values[j] + t + v * V::kLanes);
        x[v] = pair.first, x[v + 1] = pair.second;
      }
    } else {
      x[0] = load_lanes<A>(values[j] + t, lanes);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const V eij = V::broadcast(e[i * e_step + j]);
      if constexpr (kMixed) {
        mask_int<A> repeated[V::kLanes];
        for (int c = 0; c < V::kLanes; ++c) repeated[c] = seen[i * e_step + j];
        const V mask = V::load_mask(repeated);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) acc[i][v] = fma(eij, bit_and(x[v], mask), acc[i][v]);
      } else {
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) acc[i][v] = fma(eij, x[v], acc[i][v]);
      }
    }
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
                                    const T* const* values, index_t n, index_t dim,
                                    const T* const* next, index_t next_dim) {
  using V = Vec<A>;
  constexpr index_t kLanes = V::kLanes;
  const auto over_dims = [&]<int kRows>(index_t i) {
    constexpr int kVecs = V::kRegisters >= 32 ? (kRows == 4 ? 4 : 8) : kRows == 4 ? 2 : 4;
    index_t t = 0;
    const auto tile = [&]<int kN>() {
      const auto call = [&]<bool kPrefetch>() {
        weigh_tile<kRows, kN, kMixed, kPrefetch>(o + i * o_step, o_step, factor + i, e + i * e_step,
                                                 e_step, seen + i * e_step, values, n, t, dim - t,
                                                 next, next_dim);
      };
      if (i == 0 && t == 0)
        call.template operator()<true>();
      else
        call.template operator()<false>();
    };
    for (; t + kVecs * kLanes <= dim; t += kVecs * kLanes) tile.template operator()<kVecs>();
    for (; t + 2 * kLanes <= dim; t += 2 * kLanes) tile.template operator()<2>();
    for (; t < dim; t += kLanes) tile.template operator()<1>();
  };
  index_t i = 0;
  for (; i + 4 <= rows; i += 4) over_dims.template operator()<4>(i);
  if (rows & 2) over_dims.template operator()<2>(i), i += 2;
  if (rows & 1) over_dims.template operator()<1>(i);
}

/// Addresses of rows [begin, begin + n) of one head.
template <class T>
inline void row_addresses(const T** rows, const RowAddress<T>& at, index_t begin, index_t n) {
  if (at.table == nullptr) {
    const T* row = at.base + begin * at.stride;
    for (index_t j = 0; j < n; ++j, row += at.stride) rows[j] = row;
  } else {
    for (index_t j = 0; j < n; ++j) rows[j] = at(begin + j);
  }
}

/// The rows of kv_heads heads of keys from kv_head on, against keys [kv_begin, kv_end). Rows of a
/// token's heads lie side by side, so all heads take a tile before the next one is touched.
/// `block` is that of the first head. Each head leaves o [rows, value_step], m (natural units)
/// [rows], l [rows], `state_step` after the head before.
template <class Args, class Mask, class Score, class A>
class DecodeItem {
  using T = typename Args::Element;
  using V = Vec<A>;
  using Pair = VectorPair<A, T>;
  static constexpr A kNone = -std::numeric_limits<A>::infinity();

 public:
  DecodeItem(const Args& args, const AttentionSequence& seq, const Mask& mask, const Score& score,
             index_t kv_head, index_t kv_heads, const RowBlock& block, A* state, index_t state_step,
             Scratch<Cpu>& scratch)
      : args_(args),
        seq_(seq),
        mask_(mask),
        score_(score),
        kv_heads_(kv_heads),
        block_(block),
        units_{args.scale},
        rows_(block.rows()),
        dim_(args.q.extent(3)),
        value_dim_(args.v.extent(3)),
        q_step_(round_up(dim_, V::kLanes)),
        value_step_(round_up(value_dim_, V::kLanes)),
        state_(state),
        state_step_(state_step),
        k_row_(row_address(args, args.k, seq, kv_head)),
        v_row_(row_address(args, args.v, seq, kv_head)) {
    q_ = scratch.tensor<A>(Shape<3>{kv_heads, rows_, q_step_}).data();
    s_ = scratch.tensor<A>(Shape<2>{rows_, kDecodeKeys}).data();
    factors_ = scratch.tensor<A>(Shape<1>{rows_ + V::kLanes}).data();
    tops_ = scratch.tensor<A>(Shape<1>{rows_ + V::kLanes}).data();
    seen_ = scratch.tensor<mask_int<A>>(Shape<2>{rows_, kDecodeKeys}).data();
    std::fill_n(tops_, rows_ + V::kLanes, kNone);
    for (index_t h = 0; h < kv_heads; ++h) load_queries(h);
  }

  void run(index_t kv_begin, index_t kv_end) {
    for (index_t h = 0; h < kv_heads_; ++h) {
      std::fill_n(o_of(h), rows_ * value_step_, A(0));
      std::fill_n(m_of(h), rows_, kNone);
      std::fill_n(m_of(h) + rows_, rows_, A(0));
    }
    index_t count = std::min(kDecodeKeys, kv_end - kv_begin);
    row_addresses(k_tile_, k_row_, kv_begin, count);
    for (index_t begin = kv_begin; begin < kv_end; begin += kDecodeKeys) {
      const index_t next = begin + kDecodeKeys, next_count = std::min(kDecodeKeys, kv_end - next);
      row_addresses(v_tile_, v_row_, begin, count);
      if (next_count > 0) row_addresses(k_next_, k_row_, next, next_count);
      const KeySpan keys = keys_of(args_, seq_, begin, count);
      const KeyRange range = key_range(keys);
      for (index_t h = 0; h < kv_heads_; ++h) {
        // While values are weighed, the keys that come next are fetched.
        const bool here = h + 1 < kv_heads_;
        attend(h, keys, range, here ? k_tile_ : k_next_, here ? h + 1 : 0,
               here ? count : std::max<index_t>(next_count, 0));
      }
      count = next_count;
      std::copy_n(k_next_, std::max<index_t>(count, 0), k_tile_);
    }
    for (index_t h = 0; h < kv_heads_; ++h) finish(h);
  }

 private:
  A* o_of(index_t h) const { return state_ + h * state_step_; }
  A* m_of(index_t h) const { return o_of(h) + rows_ * value_step_; }
  RowBlock block_of(index_t h) const {
    RowBlock block = block_;
    block.head += h * block.heads;
    return block;
  }

  void load_queries(index_t h) {
    const RowBlock block = block_of(h);
    const V factor = V::broadcast(units_.q_factor());
    for (index_t r = 0; r < rows_; ++r) {
      const T* const from = args_.q.data() + seq_.row * args_.q.stride(0) +
                            (seq_.q_begin + block.query_of(r)) * args_.q.stride(1) +
                            block.head_of(r) * args_.q.stride(2);
      A* const to = q_ + (h * rows_ + r) * q_step_;
      index_t t = 0;
      for (; t + Pair::kLength <= dim_; t += Pair::kLength) {
        const Pair x = Pair::load(from + t);
        (x.first * factor).store(to + t);
        (x.second * factor).store(to + t + V::kLanes);
      }
      for (; t < dim_; t += V::kLanes) (load_lanes<A>(from + t, dim_ - t) * factor).store(to + t);
    }
  }

  /// One head and one tile of keys; next[j] + its head's offset are the keys to fetch meanwhile.
  void attend(index_t h, const KeySpan& keys, const KeyRange& range, const T* const* next,
              index_t next_head, index_t next_count) {
    const RowBlock block = block_of(h);
    const TileVerdict verdict = verdict_of(mask_, seq_.b, block, 0, rows_, range);
    if (verdict == TileVerdict::skip) return;
    report_tile(mask_, seq_.b, block, 0, rows_, range);

    // Addresses of the keys that some row sees, and whether rows differ in what they see.
    const T *k_rows[kDecodeKeys], *v_rows[kDecodeKeys], *next_rows[kDecodeKeys];
    const index_t k_head = h * args_.k.stride(2), v_head = h * args_.v.stride(2);
    index_t index[kDecodeKeys], n = 0;
    bool mixed = false;
    if (verdict == TileVerdict::full) {
      for (; n < keys.count; ++n) {
        k_rows[n] = k_tile_[n] + k_head, v_rows[n] = v_tile_[n] + v_head;
        index[n] = n;
      }
    } else {
      ask_rows<A>(seen_, kDecodeKeys, mask_, seq_.b, block, 0, rows_, keys, range);
      for (index_t j = 0; j < keys.count; ++j) {
        index_t count = 0;
        for (index_t r = 0; r < rows_; ++r) count += seen_[r * kDecodeKeys + j] != 0;
        if (count == 0) continue;
        mixed = mixed || count < rows_;
        for (index_t r = 0; r < rows_; ++r)  // n <= j: moves left
          seen_[r * kDecodeKeys + n] = seen_[r * kDecodeKeys + j];
        k_rows[n] = k_tile_[j] + k_head, v_rows[n] = v_tile_[j] + v_head;
        index[n++] = j;
      }
      if (n == 0) return;
    }
    for (index_t j = n; j < kDecodeKeys; ++j) k_rows[j] = k_rows[n - 1], v_rows[j] = v_rows[n - 1];
    const index_t offset = next_head * args_.k.stride(2);
    for (index_t j = 0; j < kDecodeKeys; ++j)
      next_rows[j] = j < next_count ? next[j] + offset : v_rows[0];

    A *const o = o_of(h), *const m = m_of(h), *const l = m + rows_;
    dot_keys(s_, kDecodeKeys, q_ + h * rows_ * q_step_, q_step_, rows_, k_rows, n, dim_, v_rows,
             value_dim_);
    const index_t whole = round_up(n, V::kLanes);
    for (index_t r = 0; r < rows_; ++r) {
      A* const row = s_ + r * kDecodeKeys;
      if constexpr (!is_identity<Score>) {
        ScoreRow pairs{seq_.b, block.head_of(r), block.position_of(r), keys};
        for (index_t j = 0; j < n;) {  // keys that nobody sees leave gaps
          index_t end = j + 1;
          while (end < n && index[end] == index[end - 1] + 1) ++end;
          pairs.keys = keys.part(index[j], end - j);
          modify_row(row + j, score_, units_.scale, pairs);
          j = end;
        }
      }
      if (mixed) {
        for (index_t j = 0; j < n; ++j)
          if (seen_[r * kDecodeKeys + j] == 0) row[j] = kNone;
      }
      for (index_t j = n; j < whole; ++j) row[j] = kNone;
      tops_[r] = largest(row_top(row, 0, whole));
    }
    raise_rows(m, l, factors_, tops_, rows_, units_.unit());
    for (index_t r = 0; r < rows_; ++r)
      l[r] += sum(soften_row(s_ + r * kDecodeKeys, 0, whole, m[r], units_.unit()));
    const auto weigh = mixed ? weigh_values<true, A, T> : weigh_values<false, A, T>;
    weigh(o, value_step_, factors_, s_, kDecodeKeys, seen_, rows_, v_rows, n, value_dim_, next_rows,
          next_count > 0 ? dim_ : 0);
  }

  /// Natural units, and the order of the output.
  void finish(index_t h) const {
    for (index_t r = 0; r < rows_; ++r) {
      m_of(h)[r] *= units_.natural();
      A* const row = o_of(h) + r * value_step_;
      for (index_t t = 0; t + Pair::kLength <= value_dim_; t += Pair::kLength) {
        const Pair x = Pair{V::load(row + t), V::load(row + t + V::kLanes)}.ordered();
        x.first.store(row + t), x.second.store(row + t + V::kLanes);
      }
    }
  }

  const Args& args_;
  const AttentionSequence& seq_;
  const Mask& mask_;
  const Score& score_;
  const index_t kv_heads_;
  const RowBlock& block_;
  const ScoreUnits<A, Score> units_;
  const index_t rows_, dim_, value_dim_, q_step_, value_step_;
  A* const state_;
  const index_t state_step_;
  const RowAddress<T> k_row_, v_row_;                                           // of the first head
  const T *k_tile_[kDecodeKeys], *v_tile_[kDecodeKeys], *k_next_[kDecodeKeys];  // of the first head
  A *q_, *s_, *factors_, *tops_;  // q [kv_heads, rows, q_step], s [rows, kDecodeKeys]
  mask_int<A>* seen_;             // [rows, kDecodeKeys]
};

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
