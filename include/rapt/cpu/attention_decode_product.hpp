// The products of attention for few rows (cpu/attention_decode.hpp): dot products of all rows of a
// head with up to 128 keys, and sums of their values.
//
//   s[r][j] = dot(q_r, k_j)                 vectors along head_dim: R rows x J keys of accumulators
//   o[r]    = f_r o[r] + sum e[r][j] v_j    R rows x N vectors of accumulators, all keys in one go
//
// A product holds the queries of some heads, `rows` each, s is [rows, kDecodeKeys], o of a head
// [rows, value_step], value_dim rounded up to whole vectors:
//
//   Weight                        what scores become (soften_row)
//   set_query(h, r, q, factor)    row r of head h, one after the other
//   kScalesQueries                whether factor may be any number; else it is 1 or -1
//   begin(h, o)                   o = 0
//   scores(h, s, keys, next)      whole vectors of a row may be written, and rows up to a multiple
//                                 of four; `next` is brought nearer
//   accumulate(h, o, factors, s, seen, values, next)
//                                 seen [rows, kDecodeKeys] if rows see different keys, else null
//   finish(h, o)                  o is in order; false if it could not be, because of values that
//                                 are not finite (until then a product may keep it elsewhere)
//   scores(s, keys), accumulate(o, o_head_step, factors, s, values)
//                                 the same of all heads, token by token, with the same bits; where
//                                 kInOrder
//   steps(n)                      how often TilePrefetch is asked for n keys, or a little less
//   serves(rows, dim, bytes)      whether to take it for so many rows of a head, dims of a key, and
//                                 bytes of keys and values
//   Exact                         what to use if not, or where finish() says so; perhaps itself
//
// Keys and values of bfloat16 are multiplied in pairs where dot products of pairs are faster than
// multiply-adds: neighbouring dims of a key, neighbouring keys for values, whose weights are
// rounded to bfloat16 as in cpu/attention_product.hpp.
//
// Source: Dao et al. 2023, "Flash-Decoding" (blog), for the split that this is the inside of.
#pragma once

#include <algorithm>

#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_decode_rows.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

/// By the vector registers. Unit: accumulate_t<T>, or Bfloat16Pair.
template <class T, class Stored, class Unit>
class VectorDecode {
  using A = accumulate_t<T>;
  using V = Vec<A>;
  using Row = DecodeRow<A, Stored, Unit>;
  using Factor = typename Row::Factor;

 public:
  using Weight = typename Row::Weight;
  static constexpr bool kScalesQueries = std::is_same_v<Factor, A>;
  using Exact = VectorDecode;
  static constexpr bool serves(index_t, index_t, index_t) { return true; }

  VectorDecode(Scratch<Cpu>& scratch, index_t heads, index_t rows, index_t dim, index_t value_dim)
      : rows_(rows),
        dot_rows_(rows % 4 == 3 ? rows + 1 : rows),
        dim_(dim),
        value_dim_(value_dim),
        q_step_(round_up(dim, Row::kLength)),
        value_step_(round_up(value_dim, V::kLanes)) {
    q_ = scratch.tensor<Factor>(Shape<3>{heads, dot_rows_, q_step_}).data();
    if (Row::kHasQuads)
      quads_ = scratch.tensor<Factor>(Shape<3>{heads, whole_rows(), q_step_}).data();
  }

  void set_query(index_t h, index_t r, const T* from, A factor) {
    const V f = V::broadcast(factor);
    Factor* const to = query(h, r);
    index_t t = 0;
    if constexpr (std::is_same_v<Factor, A> && std::is_same_v<Stored, T>) {  // else in order
      for (; t + Row::kLength <= dim_; t += Row::kLength) {
        const Row x = Row::load(from + t);
        (x.first * f).store(to + t);
        (x.second * f).store(to + t + V::kLanes);
      }
    }
    std::fill(to + t, to + q_step_, Factor(0));
    for (; t < dim_; t += V::kLanes) (load_lanes<A>(from + t, dim_ - t) * f).store(to + t);
    const bool pads = r + 1 == rows_ && rows_ < dot_rows_;
    if (pads) std::fill_n(query(h, rows_), q_step_, Factor(0));
    if constexpr (Row::kHasQuads) {
      const index_t first = r / 4 * 4;
      if (r % 4 == 3 || pads) set_quads(quads_of(h) + first * q_step_, query(h, first), q_step_);
    }
  }

  void begin(index_t, A* o) { std::fill_n(o, rows_ * value_step_, A(0)); }

  void scores(index_t h, A* s, const DecodeKeys<Stored>& keys, TilePrefetch& next) const {
    dot_keys<Row>(s, kDecodeKeys, query(h, 0), q_step_, quads_of(h), dot_rows_, keys, dim_, next);
  }

  void accumulate(index_t, A* o, const A* factors, const A* s, const mask_int<A>* seen,
                  const DecodeKeys<Stored>& values, TilePrefetch& next) {
    const auto weigh =
        seen ? weigh_values<true, Row, A, Stored> : weigh_values<false, Row, A, Stored>;
    weigh(o, value_step_, factors, reinterpret_cast<const Factor*>(s), kWeightStep, seen, rows_,
          values, value_dim_, next);
  }

  static constexpr bool kInOrder = true;
  /// s [heads, score_rows(rows), kDecodeKeys]; a multiple of kTokensOfStep keys.
  void scores(A* s, const DecodeTokens<Stored>& keys) const {
    dot_tokens<Row>(s, query(0, 0), q_step_, quads_of(0), dot_rows_, keys, dim_);
  }
  /// factors [heads, rows].
  void accumulate(A* o, index_t o_head_step, const A* factors, const A* s,
                  const DecodeTokens<Stored>& values) const {
    weigh_tokens<Row>(o, o_head_step, value_step_, factors, reinterpret_cast<const Factor*>(s),
                      score_rows(rows_) * kWeightStep, kWeightStep, rows_, values, value_dim_);
  }

  bool finish(index_t, A* o) const {
    for (index_t r = 0; r < rows_; ++r) {
      A* const row = o + r * value_step_;
      for (index_t t = 0; t + Row::kLength <= value_dim_; t += Row::kLength) {
        V first = V::load(row + t), second = V::load(row + t + V::kLanes);
        Row::order(first, second);
        first.store(row + t), second.store(row + t + V::kLanes);
      }
    }
    return true;
  }

  index_t steps(index_t n) const {
    return n * rows_ / V::kLanes +
           ceil_div(rows_, 4) * (value_dim_ / (4 * V::kLanes)) * ceil_div(n, kKeysOfStep);
  }

 private:
  static constexpr index_t kWeightStep =  // of a row of scores that became weights
      kDecodeKeys * static_cast<index_t>(sizeof(A) / sizeof(Factor));

  Factor* query(index_t h, index_t r) const { return q_ + (h * dot_rows_ + r) * q_step_; }
  index_t whole_rows() const { return dot_rows_ / 4 * 4; }
  Factor* quads_of(index_t h) const { return quads_ + h * whole_rows() * q_step_; }

  // Three rows left over are four to the dot products, the last one zeros: in one go, not in two.
  const index_t rows_, dot_rows_, dim_, value_dim_, q_step_, value_step_;
  Factor* q_;                // [heads, dot_rows, q_step]
  Factor* quads_ = nullptr;  // the same of each four rows, as dot_quads reads them
};

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
