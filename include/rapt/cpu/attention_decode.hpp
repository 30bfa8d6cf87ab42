// Attention for few query rows (up to 16 of a group, as in decoding): every key row is read once
// for all query heads of its group, straight from the cache, and nothing is packed.
//
//   for 64 keys at a time:
//     s[r][j] = dot(q_r, k_j)          vectors along head_dim; R rows x J keys of accumulators
//     e, m, l: online softmax          as in cpu/attention_forward.hpp
//     o[r] += e[r][j] v_j              R rows x N vectors of accumulators, all keys in one go
//
// Keys and values of bfloat16 are multiplied in pairs where dot products of pairs are faster than
// multiply-adds: neighbouring dims of a key, neighbouring keys for values, whose weights are
// rounded to bfloat16 as in cpu/attention_product.hpp.
//
// Codes of 8 bits are read as they are: the scale of a key multiplies its scores, that of a value
// its weights (l sums them unscaled), so that neither costs anything for each channel.
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

inline constexpr index_t kDecodeKeys = 64;  // most keys of a tile; row addresses are padded to it
inline constexpr index_t kTileBytes = 262144;  // most bytes of a tile: two fit the second level
inline constexpr index_t kKeysOfStep = 8;      // whose values are weighed in a step of TilePrefetch

/// Whether the instruction set has what dot_quads needs.
template <class V>
inline constexpr bool kSumsQuads = requires(const V& x) {
  V::quad_sums(x, x, x, x);
};

/// Two vectors of a row at a time, in the order that is cheapest to convert to. Queries, keys,
/// values and outputs all pass here, so the order never shows; order() restores it.
template <class A, class T>
struct VectorPair {
  using V = Vec<A>;
  using Factor = A;  // an element of Q or of the weights
  using Weight = A;
  using Quads = V;  // see dot_quads
  static constexpr bool kHasQuads = std::is_same_v<A, T> && kSumsQuads<V>;
  static constexpr index_t kLength = 2 * V::kLanes, kKeys = 1;  // of which a value's vectors hold
  V first, second;

  static VectorPair load(const T* p) {
    VectorPair x;
    if constexpr (requires { V::load_even_odd(p, x.first, x.second); }) {
      V::load_even_odd(p, x.first, x.second);
    } else {
      x.first = load_lanes<A>(p, V::kLanes), x.second = load_lanes<A>(p + V::kLanes, V::kLanes);
    }
    return x;
  }
  static VectorPair load_query(const A* q) { return {V::load(q), V::load(q + V::kLanes)}; }
  static V dot(const VectorPair& q, const VectorPair& k, V sum) {
    return fma(q.second, k.second, fma(q.first, k.first, sum));
  }
  static VectorPair load_values(const T* const* rows, index_t, index_t t) {
    return load(rows[0] + t);
  }
  static V load_values(const T* const* rows, index_t, index_t t, index_t lanes) {
    return load_lanes<A>(rows[0] + t, lanes);
  }
  static void order(V& first, V& second) {
    if constexpr (requires(const T* p) { V::load_even_odd(p, first, second); })
      V::interleave(first, second);
  }
};

/// As many elements of a row of bfloat16 as pairs. Values are pairs of two rows.
template <class Unit>
struct PairedRow {
  using V = Vec<float>;
  using U = Vec<Unit>;
  using Factor = bfloat16;
  using Weight = Unit;
  using Quads = U;
  static constexpr bool kHasQuads = kSumsQuads<V>;
  static constexpr index_t kLength = 2 * V::kLanes, kKeys = 2;
  struct Values {
    U first, second;
  };

  static U load(const bfloat16* p) { return U::load_pairs(p, kLength); }
  static U load(const bfloat16* p, index_t n) { return U::load_pairs(p, n); }
  static U load_query(const bfloat16* q) { return U::load_pairs(q, kLength); }
  static V dot(const U& q, const U& k, V sum) { return fma(q, k, sum); }
  /// Of n rows, at least one: what a second would bring is 0.
  static Values load_values(const bfloat16* const* rows, index_t n, index_t t) {
    Values x;
    U::pair_rows(rows[0] + t, n > 1 ? rows[1] + t : nullptr, x.first, x.second);
    return x;
  }
  static U load_values(const bfloat16* const* rows, index_t n, index_t t, index_t lanes) {
    return U::interleave(rows[0] + t, n > 1 ? rows[1] + t : nullptr,
                         std::min<index_t>(lanes, V::kLanes));
  }
  static void order(V& first, V& second) { U::order_rows(first, second); }
};

/// Unit is A or Bfloat16Pair.
template <class A, class T, class Unit>
using DecodeRow = std::conditional_t<std::is_same_v<Unit, A>, VectorPair<A, T>, PairedRow<Unit>>;

/// Brings a tile of keys and of values nearer, a few lines at a time, while another one is worked
/// on: in the order in which they lie, all heads of a token, because rows of one head lie apart
/// (which memory and the hardware's prefetchers serve at half the rate), and spread over the work,
/// because a core waits for its loads once it has asked for more lines than it keeps track of (24
/// on Zen 3).
class TilePrefetch {
 public:
  /// Of n rows, `bytes` of each.
  template <class T>
  void add(const T* const* rows, index_t n, index_t bytes) {
    if (n <= 0 || bytes <= 0) return;
    index_t runs = n;
    const auto address = [&](index_t j) { return reinterpret_cast<std::uintptr_t>(rows[j]); };
    if (address(n - 1) - address(0) == static_cast<std::uintptr_t>((n - 1) * bytes))
      runs = 1, bytes *= n;  // without gaps: one long row
    parts_[count_++] = {reinterpret_cast<const char* const*>(rows), runs, bytes};
    lines_ += runs * ceil_div(bytes, kLine);
  }
  /// The work ahead is `steps` steps long.
  void spread(index_t steps) { of_step_ = ceil_div(lines_, std::max<index_t>(1, steps)); }

  void step() {
    for (index_t left = of_step_; left > 0 && part_ < count_;) {
      const Part& part = parts_[part_];
      const char* const row = part.rows[row_];
      const index_t end = std::min(part.bytes, at_ + left * kLine);
      for (; at_ < end; at_ += kLine, --left) __builtin_prefetch(row + at_, 0, 2);
      if (at_ < part.bytes) return;
      at_ = 0;
      if (++row_ == part.n) row_ = 0, ++part_;
    }
  }

 private:
  static constexpr index_t kLine = 64;
  struct Part {
    const char* const* rows;
    index_t n, bytes;
  };
  Part parts_[2];
  index_t count_ = 0, lines_ = 0, of_step_ = 0, part_ = 0, row_ = 0, at_ = 0;
};

/// s[i][j] = dot(q_i, k_j), kRows rows of q [in the order of Row, padded with zeros] and kKeys
/// keys.
template <int kRows, int kKeys, class Row, class A, class T>
[[gnu::always_inline]] inline void dot_tile(A* s, index_t s_step, const typename Row::Factor* q,
                                            index_t q_step, const T* const* keys, index_t dim) {
  using V = Vec<A>;
  constexpr int kDots = kRows * kKeys;
  static_assert(kDots % V::kLanes == 0);
  V acc[kDots];
#pragma GCC unroll 32
  for (int i = 0; i < kDots; ++i) acc[i] = V::zero();
  const auto step = [&](index_t t, auto load) {
    if constexpr (kRows >= kKeys) {  // the keys of a step in registers, each of q's loaded once
      decltype(load(0)) k[kKeys];
#pragma GCC unroll 4
      for (int j = 0; j < kKeys; ++j) k[j] = load(j);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const auto qi = Row::load_query(q + i * q_step + t);
#pragma GCC unroll 4
        for (int j = 0; j < kKeys; ++j) acc[i * kKeys + j] = Row::dot(qi, k[j], acc[i * kKeys + j]);
      }
    } else {
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) {
        const auto k = load(j);
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i)
          acc[i * kKeys + j] = Row::dot(Row::load_query(q + i * q_step + t), k, acc[i * kKeys + j]);
      }
    }
  };
  index_t t = 0;
  for (; t + Row::kLength <= dim; t += Row::kLength)
    step(t, [&](int j) { return Row::load(keys[j] + t); });
  if constexpr (requires { Row::load(keys[0], dim); }) {
    if (t < dim) step(t, [&](int j) { return Row::load(keys[j] + t, dim - t); });
  } else {
    for (; t < dim; t += V::kLanes) {
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) {
        const V k = load_lanes<A>(keys[j] + t, dim - t);
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i)
          acc[i * kKeys + j] = fma(V::load(q + i * q_step + t), k, acc[i * kKeys + j]);
      }
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

/// Scores of four rows and n keys. A quad is 16 bytes: a vector holds the same quad of dims of
/// several rows (set_quads), and is multiplied by that of a key, repeated. So four lanes of a row
/// are left to be summed, not a whole vector, which would take as long as the products.
///
///   q   row 0, dims t.. | row 1, dims t.. | row 2, dims t.. | row 3, dims t..
///   k   key j, dims t.. | the same        | the same        | the same
///
/// (AVX2: two rows a vector, two vectors.)
template <class Row, class A, class T>
[[gnu::noinline]] void dot_quads(A* s, index_t s_step, const typename Row::Factor* quads,
                                 const T* const* keys, index_t n, index_t dim, TilePrefetch& next) {
  using V = Vec<A>;
  using Q = typename Row::Quads;
  constexpr index_t kLength = 16 / static_cast<index_t>(sizeof(T));
  constexpr int kVectors = 16 / V::kLanes, kKeys = V::kRegisters >= 32 ? 8 : 4;
  for (index_t j = 0; j < n; j += kKeys) {
    for (int part = 0; part < kKeys; part += 4) next.step();
    V acc[kVectors][kKeys];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) acc[v][i] = V::zero();
    }
    const auto step = [&](index_t t, auto load) {
      Q q[kVectors];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v)
        q[v] = Q::load_quads(quads + 4 * t + v * (4 / kVectors) * kLength);
#pragma GCC unroll 8
      for (int i = 0; i < kKeys; ++i) {
        const Q k = load(i);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) acc[v][i] = fma(q[v], k, acc[v][i]);
      }
    };
    index_t t = 0;
    for (; t + kLength <= dim; t += kLength)
      step(t, [&](int i) { return Q::broadcast_quad(keys[j + i] + t); });
    if (t < dim)
      step(t, [&](int i) {
        T rest[kLength] = {};
        std::copy_n(keys[j + i] + t, dim - t, rest);
        return Q::broadcast_quad(rest);
      });
#pragma GCC unroll 2
    for (int i = 0; i < kKeys; i += 4) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        A sums[V::kLanes];
        V::quad_sums(acc[v][i], acc[v][i + 1], acc[v][i + 2], acc[v][i + 3]).store(sums);
#pragma GCC unroll 4
        for (int row = 0; row < 4 / kVectors; ++row)
          std::memcpy(s + (v * (4 / kVectors) + row) * s_step + j + i, sums + 4 * row,
                      4 * sizeof(A));
      }
    }
  }
}

/// Four rows of q, `dim` elements and zeros up to `q_step`, as dot_quads reads them.
template <class Factor>
void set_quads(Factor* quads, const Factor* q, index_t q_step) {
  constexpr index_t kLength = 16 / static_cast<index_t>(sizeof(Factor));
  for (index_t t = 0; t < q_step; t += kLength)
    for (index_t row = 0; row < 4; ++row)
      std::copy_n(q + row * q_step + t, kLength, quads + 4 * t + row * kLength);
}

/// Scores of `rows` rows and of the n keys (addresses padded to a whole step). `next` is brought
/// nearer meanwhile. `quads`: the rows again, four at a time as set_quads leaves them, if Row has
/// them.
template <class Row, class A, class T>
[[gnu::noinline]] void dot_keys(A* s, index_t s_step, const typename Row::Factor* q, index_t q_step,
                                [[maybe_unused]] const typename Row::Factor* quads, index_t rows,
                                const T* const* keys, index_t n, index_t dim, TilePrefetch& next) {
  constexpr int kLanes = Vec<A>::kLanes, kDots = kLanes < 8 ? 8 : kLanes;
  const auto over_keys = [&]<int kRows>(index_t i) {
    constexpr int kKeys = kDots / kRows;
    for (index_t j = 0; j < n; j += kKeys) {
      next.step();
      dot_tile<kRows, kKeys, Row>(s + i * s_step + j, s_step, q + i * q_step, q_step, keys + j,
                                  dim);
    }
  };
  index_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    if constexpr (Row::kHasQuads)
      dot_quads<Row>(s + i * s_step, s_step, quads + i * q_step, keys, n, dim, next);
    else
      over_keys.template operator()<4>(i);
  }
  if (rows & 2) over_keys.template operator()<2>(i), i += 2;
  if (rows & 1) over_keys.template operator()<1>(i);
}

/// o_i[t, t + kVecs vectors) = f_i o_i + sum_j e_ij v_j, o in the order of Row. kMixed: rows see
/// different keys, and a hidden value's bits are cleared before it is multiplied.
template <int kRows, int kVecs, bool kMixed, class Row, class A, class T>
inline void weigh_tile(A* o, index_t o_step, const A* factor, const typename Row::Factor* e,
                       index_t e_step, const mask_int<A>* seen, index_t seen_step,
                       const T* const* values, index_t n, index_t t, index_t lanes,
                       TilePrefetch& next) {
  using V = Vec<A>;
  using U = Vec<typename Row::Weight>;
  V acc[kRows][kVecs];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v)
      acc[i][v] = V::load(o + i * o_step + t + v * V::kLanes) * V::broadcast(factor[i]);
  }
  for (index_t j = 0; j < n; j += Row::kKeys) {
    if (j % kKeysOfStep == 0) next.step();
    U x[kVecs];
    if constexpr (kVecs % 2 == 0) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v += 2) {
        const auto pair = Row::load_values(values + j, n - j, t + v * V::kLanes);
        x[v] = pair.first, x[v + 1] = pair.second;
      }
    } else {
      x[0] = Row::load_values(values + j, n - j, t, lanes);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const U eij = U::broadcast(e[i * e_step + j]);
      if constexpr (kMixed) {
        mask_int<A> repeated[V::kLanes];
        for (int c = 0; c < V::kLanes; ++c) repeated[c] = seen[i * seen_step + j];
        if constexpr (Row::kKeys == 2) {  // the bits of the first key are the lower ones
          const mask_int<A> second = j + 1 < n ? seen[i * seen_step + j + 1] : 0;
          for (int c = 0; c < V::kLanes; ++c)
            repeated[c] = static_cast<mask_int<A>>((repeated[c] & 0xffff) | (second & ~0xffff));
        }
        const U mask = U::load_mask(repeated);
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

/// The weights of all rows and the values of n keys; `seen` has rows of kDecodeKeys.
template <bool kMixed, class Row, class A, class T>
[[gnu::noinline]] void weigh_values(A* o, index_t o_step, const A* factor,
                                    const typename Row::Factor* e, index_t e_step,
                                    const mask_int<A>* seen, index_t rows, const T* const* values,
                                    index_t n, index_t dim, TilePrefetch& next) {
  using V = Vec<A>;
  constexpr index_t kLanes = V::kLanes;
  constexpr auto vectors_for = [](index_t r) {
    return V::kRegisters >= 32 ? (r >= 4 ? 4 : 8) : r >= 4 ? 2 : 4;
  };
  const auto over_dims = [&]<int kRows>(index_t i) {
    constexpr int kVecs = vectors_for(kRows);
    index_t t = 0;
    const auto tile = [&]<int kN>() {
      weigh_tile<kRows, kN, kMixed, Row>(o + i * o_step, o_step, factor + i, e + i * e_step, e_step,
                                         seen + i * kDecodeKeys, kDecodeKeys, values, n, t, dim - t,
                                         next);
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

/// The rows of kv_heads heads of keys from kv_head on, against keys [kv_begin, kv_end). Rows of a
/// token's heads lie side by side, so all heads take a tile before the next one is touched.
/// `block` is that of the first head. Each head leaves o [rows, value_step], m (natural units)
/// [rows], l [rows], `state_step` after the head before. Unit: A, or Bfloat16Pair.
template <class Args, class Mask, class Score, class A, class Unit>
class DecodeItem {
  using T = typename Args::Element;
  using S = typename Args::Stored;
  using V = Vec<A>;
  using Row = DecodeRow<A, S, Unit>;
  using Factor = typename Row::Factor;
  static constexpr bool kScaled = QuantizedElement<S>;
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
        q_step_(round_up(dim_, Row::kLength)),
        value_step_(round_up(value_dim_, V::kLanes)),
        state_(state),
        state_step_(state_step),
        k_row_(row_address(args, args.k, seq, kv_head)),
        v_row_(row_address(args, args.v, seq, kv_head)),
        k_scale_(row_address(args, args.k_scales, seq, kv_head)),
        v_scale_(row_address(args, args.v_scales, seq, kv_head)) {
    q_ = scratch.tensor<Factor>(Shape<3>{kv_heads, rows_, q_step_}).data();
    if (Row::kHasQuads)
      quads_ = scratch.tensor<Factor>(Shape<3>{kv_heads, rows_ / 4 * 4, q_step_}).data();
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
    const index_t tile = tile_keys();
    index_t count = std::min(tile, kv_end - kv_begin);
    row_addresses(k_tile_, k_row_, kv_begin, count);
    row_addresses(v_tile_, v_row_, kv_begin, count);
    for (index_t begin = kv_begin; begin < kv_end; begin += tile) {
      // The tile that comes next may be that of the next split, most likely this thread's too.
      const index_t next = begin + tile, next_count = std::min(tile, seq_.kv_len - next);
      TilePrefetch nearer;
      if (next_count > 0) {
        row_addresses(k_next_, k_row_, next, next_count);
        row_addresses(v_next_, v_row_, next, next_count);
        nearer.add(k_next_, next_count, bytes_of_token(args_.k));
        nearer.add(v_next_, next_count, bytes_of_token(args_.v));
        nearer.spread(kv_heads_ * steps_of_head(count));
      }
      if constexpr (kScaled) {
        if (args_.k_scales) row_addresses(k_scales_, k_scale_, begin, count);
        if (args_.v_scales) row_addresses(v_scales_, v_scale_, begin, count);
      }
      const KeySpan keys = keys_of(args_, seq_, begin, count);
      const KeyRange range = key_range(keys);
      for (index_t h = 0; h < kv_heads_; ++h) attend(h, keys, range, nearer);
      count = std::min(tile, kv_end - next);
      std::copy_n(k_next_, std::max<index_t>(count, 0), k_tile_);
      std::copy_n(v_next_, std::max<index_t>(count, 0), v_tile_);
    }
    for (index_t h = 0; h < kv_heads_; ++h) finish(h);
  }

 private:
  /// From the first to the last element of a token's heads, where they lie side by side; else of
  /// one head, whose rows then follow one another.
  template <class View>
  index_t bytes_of_token(const View& rows) const {
    const index_t dim = rows.extent(3), apart = rows.stride(2);
    return ((apart >= dim && apart < 2 * dim ? (kv_heads_ - 1) * apart : 0) + dim) *
           static_cast<index_t>(sizeof(S));
  }
  index_t tile_keys() const {
    const index_t keys = kTileBytes / (bytes_of_token(args_.k) + bytes_of_token(args_.v));
    return std::clamp<index_t>(keys / 16 * 16, 16, kDecodeKeys);
  }
  /// Steps of TilePrefetch that a head and n keys take, or some fewer.
  index_t steps_of_head(index_t n) const {
    return n * rows_ / V::kLanes +
           ceil_div(rows_, 4) * (value_dim_ / (4 * V::kLanes)) * ceil_div(n, kKeysOfStep);
  }

  Factor* quads_of(index_t h) const { return quads_ + h * (rows_ / 4 * 4) * q_step_; }
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
      Factor* const to = q_ + (h * rows_ + r) * q_step_;
      index_t t = 0;
      if constexpr (std::is_same_v<Factor, A> && std::is_same_v<S, T>) {  // else they are in order
        for (; t + Row::kLength <= dim_; t += Row::kLength) {
          const Row x = Row::load(from + t);
          (x.first * factor).store(to + t);
          (x.second * factor).store(to + t + V::kLanes);
        }
      }
      std::fill(to + t, to + q_step_, Factor(0));
      for (; t < dim_; t += V::kLanes) (load_lanes<A>(from + t, dim_ - t) * factor).store(to + t);
    }
    if constexpr (Row::kHasQuads)
      for (index_t r = 0; r + 4 <= rows_; r += 4)
        set_quads(quads_of(h) + r * q_step_, q_ + (h * rows_ + r) * q_step_, q_step_);
  }

  /// s[r][i] *= scale of key index[i] of head h, whole vectors of n columns; `seen`: but 0 where a
  /// row does not see the key, whose scale may be anything.
  void multiply_scales(const float* const* of_first_head, index_t head_step, index_t h,
                       const index_t* index, index_t n, const mask_int<A>* seen) const {
    A scales[kDecodeKeys];
    const index_t whole = round_up(n, V::kLanes), offset = h * head_step;
    for (index_t i = 0; i < n; ++i) scales[i] = static_cast<A>(of_first_head[index[i]][offset]);
    std::fill(scales + n, scales + whole, A(0));
    for (index_t r = 0; r < rows_; ++r) {
      A* const row = s_ + r * kDecodeKeys;
      for (index_t i = 0; i < whole; i += V::kLanes) {
        const V x = V::load(row + i) * V::load(scales + i);
        (seen == nullptr ? x : bit_and(x, V::load_mask(seen + r * kDecodeKeys + i))).store(row + i);
      }
    }
  }

  /// One head and one tile of keys, while the next one is brought nearer.
  void attend(index_t h, const KeySpan& keys, const KeyRange& range, TilePrefetch& next) {
    const RowBlock block = block_of(h);
    const TileVerdict verdict = verdict_of(mask_, seq_.b, block, 0, rows_, range);
    if (verdict == TileVerdict::skip) return;
    report_tile(mask_, seq_.b, block, 0, rows_, range);

    // Addresses of the keys that some row sees, and whether rows differ in what they see.
    const S *k_rows[kDecodeKeys], *v_rows[kDecodeKeys];
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
    A *const o = o_of(h), *const m = m_of(h), *const l = m + rows_;
    dot_keys<Row>(s_, kDecodeKeys, q_ + h * rows_ * q_step_, q_step_, quads_of(h), rows_, k_rows, n,
                  dim_, next);
    if constexpr (kScaled) {
      if (args_.k_scales)
        multiply_scales(k_scales_, args_.k_scales.stride(2), h, index, n, nullptr);
    }
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
      l[r] += sum(
          soften_row<typename Row::Weight>(s_ + r * kDecodeKeys, 0, whole, m[r], units_.unit()));
    if constexpr (kScaled) {
      if (args_.v_scales)
        multiply_scales(v_scales_, args_.v_scales.stride(2), h, index, n, mixed ? seen_ : nullptr);
    }
    const auto weigh = mixed ? weigh_values<true, Row, A, S> : weigh_values<false, Row, A, S>;
    weigh(o, value_step_, factors_, reinterpret_cast<const Factor*>(s_),
          kDecodeKeys * static_cast<index_t>(sizeof(A) / sizeof(Factor)), seen_, rows_, v_rows, n,
          value_dim_, next);
  }

  /// Natural units, and the order of the output.
  void finish(index_t h) const {
    for (index_t r = 0; r < rows_; ++r) {
      m_of(h)[r] *= units_.natural();
      A* const row = o_of(h) + r * value_step_;
      for (index_t t = 0; t + Row::kLength <= value_dim_; t += Row::kLength) {
        V first = V::load(row + t), second = V::load(row + t + V::kLanes);
        Row::order(first, second);
        first.store(row + t), second.store(row + t + V::kLanes);
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
  // Of the first head:
  const RowAddress<S> k_row_, v_row_;
  const RowAddress<float> k_scale_, v_scale_;
  const S *k_tile_[kDecodeKeys], *v_tile_[kDecodeKeys];
  const S *k_next_[kDecodeKeys], *v_next_[kDecodeKeys];
  const float *k_scales_[kDecodeKeys], *v_scales_[kDecodeKeys];
  Factor* q_;                // [kv_heads, rows, q_step]
  Factor* quads_ = nullptr;  // the same of each four rows, as dot_quads reads them
  A *s_, *factors_, *tops_;  // s [rows, kDecodeKeys]
  mask_int<A>* seen_;        // [rows, kDecodeKeys]
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
