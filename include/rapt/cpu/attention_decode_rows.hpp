// The inner loops of a decode step in vector registers: a few rows of queries against rows of keys
// and of values where they lie in a cache, converted as they are loaded.
//
//   dot_keys       s[i][j] = dot(q_i, k_j)                     of one head
//   weigh_values   o_i = factor_i o_i + sum_j e_ij v_j         of one head
//   dot_tokens, weigh_tokens                                   of all heads, token by token
//
//   q [rows, head_dim]     k, v [keys, dim], by the address of each row (DecodeKeys, DecodeTokens)
//   s, e [rows, kDecodeKeys] up to a multiple of four rows     o [rows, value_dim]
//
// Both ways add in the same order, so that the bits do not depend on which one runs. Row says how a
// row is held: two vectors of numbers (VectorPair), or pairs of bfloat16 (PairedRow). TilePrefetch
// and is_far bring nearer what comes from memory.
//
// Source: the two products of Vaswani et al. 2017, arXiv:1706.03762, section 3.2.1; the factor that
// rescales o is the online softmax of Milakov and Gimelshein 2018, arXiv:1805.02867.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "rapt/cpu/attention_tile.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

inline constexpr index_t kDecodeKeys = 128;  // most keys of a tile; row addresses are padded to it
inline constexpr index_t kKeysOfStep = 8;    // whose values are weighed in a step of TilePrefetch

/// Rows of s [rows, kDecodeKeys] of a head, as kernels write it: they are given four at a time.
constexpr index_t score_rows(index_t rows) { return round_up(rows, index_t{4}); }

/// Rows of keys or of values of one head: rows[j] + offset, addresses padded to kDecodeKeys.
template <class T>
struct DecodeKeys {
  const T* const* rows;
  index_t offset, n;
  index_t step;  // elements from a row to the next; 0 if they follow no pattern
};

/// Rows of all heads of each token: rows[j] + h head_step, and the tile that comes next (addresses
/// padded to kDecodeKeys). Where they come from memory they are read in the order in which they
/// lie, a few tokens at a time: a processor fetches one such stream ahead by itself, several heads'
/// hardly. The lines `distance` tokens ahead are asked for besides.
template <class T>
struct DecodeTokens {
  const T* const* rows;
  const T* const* next;
  index_t head_step, heads, n, distance;
  index_t step;  // elements from a token to the next; 0 if they follow no pattern

  /// Tokens j, j + 1, ..., j + count - 1 of head h, `distance` further on. (Inlined: a function
  /// that only prefetches does nothing as far as a compiler can see, and it leaves out the call.)
  [[gnu::always_inline]] void fetch_ahead(index_t j, index_t count, index_t h, index_t dim) const {
    for (index_t i = j + distance; i < j + distance + count; ++i)
      prefetch_row((i < n ? rows[i] : next[std::min(i - n, kDecodeKeys - 1)]) + h * head_step, dim);
  }
};

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

/// Whether what p points at must come from memory, by the time that a read of it takes. The limit
/// lies between what a last level cache needs (50 to 150 ticks of the time stamp counter, what it
/// takes to read that included) and memory (200 and more); where it errs, only time is lost. Where
/// there is no such counter: always.
inline bool is_far(const void* p) {
#if defined(__x86_64__)
  constexpr std::uint64_t kTicks = 150;
  const auto ticks = [] {  // once all before it is done, and before anything else begins
    std::uint32_t low, high;
    asm volatile("lfence\n\trdtsc\n\tlfence" : "=a"(low), "=d"(high) : : "memory");
    return std::uint64_t{high} << 32 | low;
  };
  const std::uint64_t start = ticks();
  static_cast<void>(*static_cast<const volatile char*>(p));
  return ticks() - start > kTicks;
#else
  return p != nullptr;
#endif
}

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
/// keys. A sum's bits do not depend on how many are taken at once.
template <int kRows, int kKeys, class Row, class A, class T>
[[gnu::always_inline]] inline void dot_tile(A* s, index_t s_step, const typename Row::Factor* q,
                                            index_t q_step, const T* const* keys, index_t offset,
                                            index_t dim) {
  using V = Vec<A>;
  constexpr int kDots = kRows * kKeys;
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
    step(t, [&](int j) { return Row::load(keys[j] + offset + t); });
  if constexpr (requires { Row::load(keys[0], dim); }) {
    if (t < dim) step(t, [&](int j) { return Row::load(keys[j] + offset + t, dim - t); });
  } else {
    for (; t < dim; t += V::kLanes) {
#pragma GCC unroll 16
      for (int j = 0; j < kKeys; ++j) {
        const V k = load_lanes<A>(keys[j] + offset + t, dim - t);
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i)
          acc[i * kKeys + j] = fma(V::load(q + i * q_step + t), k, acc[i * kKeys + j]);
      }
    }
  }
  A sums[ceil_div(kDots, V::kLanes) * V::kLanes];
  for (int c = 0; c < kDots; c += V::kLanes) {
    V part[V::kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < V::kLanes; ++i) part[i] = c + i < kDots ? acc[c + i] : V::zero();
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
/// (AVX2: two rows a vector, two vectors.) kKeys keys share a load of q. Left to choose, g++ reads
/// it again for each of them, and loads bound the loop: fma_in_place.
template <int kKeys, class Row, class A, class T>
[[gnu::noinline]] void dot_quads(A* s, index_t s_step, const typename Row::Factor* quads,
                                 const DecodeKeys<T>& keys, index_t dim, TilePrefetch& next) {
  using V = Vec<A>;
  using Q = typename Row::Quads;
  constexpr index_t kLength = 16 / static_cast<index_t>(sizeof(T));
  constexpr int kVectors = 16 / V::kLanes;
  for (index_t j = 0; j < keys.n; j += kKeys) {
    for (int part = 0; part < kKeys; part += 4) next.step();
    const T* const* const rows = keys.rows + j;
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
        for (int v = 0; v < kVectors; ++v) acc[v][i] = fma_in_place(q[v], k, acc[v][i]);
      }
    };
    index_t t = 0;
    for (; t + kLength <= dim; t += kLength)
      step(t, [&](int i) { return Q::broadcast_quad(rows[i] + keys.offset + t); });
    if (t < dim)
      step(t, [&](int i) {
        T rest[kLength] = {};
        std::copy_n(rows[i] + keys.offset + t, dim - t, rest);
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

/// Dot products that dot_tile takes at once.
template <class A>
inline constexpr int kDotsOfTile = Vec<A>::kLanes < 8 ? 8 : Vec<A>::kLanes;

/// Scores of `rows` rows and of the n keys (addresses padded to a whole step). `next` is brought
/// nearer meanwhile. `quads`: the rows again, four at a time as set_quads leaves them, if Row has
/// them.
template <class Row, class A, class T>
[[gnu::noinline]] void dot_keys(A* s, index_t s_step, const typename Row::Factor* q, index_t q_step,
                                [[maybe_unused]] const typename Row::Factor* quads, index_t rows,
                                const DecodeKeys<T>& keys, index_t dim, TilePrefetch& next) {
  constexpr int kDots = kDotsOfTile<A>;
  const auto over_keys = [&]<int kRows>(index_t i) {
    constexpr int kKeys = kDots / kRows;
    for (index_t j = 0; j < keys.n; j += kKeys) {
      next.step();
      dot_tile<kRows, kKeys, Row>(s + i * s_step + j, s_step, q + i * q_step, q_step, keys.rows + j,
                                  keys.offset, dim);
    }
  };
  index_t i = 0;
  for (; i + 4 <= rows; i += 4) {
    if constexpr (Row::kHasQuads) {
      // Keys whole pages apart share the sets of the first cache: eight would fill them.
      const bool collide =
          keys.step != 0 && keys.step * static_cast<index_t>(sizeof(T)) % 4096 == 0;
      constexpr int kKeys = Vec<A>::kRegisters >= 32 ? 8 : 4;
      if (kKeys > 4 && collide)
        dot_quads<4, Row>(s + i * s_step, s_step, quads + i * q_step, keys, dim, next);
      else
        dot_quads<kKeys, Row>(s + i * s_step, s_step, quads + i * q_step, keys, dim, next);
    } else {
      over_keys.template operator()<4>(i);
    }
  }
  if (rows & 2) over_keys.template operator()<2>(i), i += 2;
  if (rows & 1) over_keys.template operator()<1>(i);
}

/// o_i[t, t + kVecs vectors) = f_i o_i + sum_j e_ij v_j, o in the order of Row. kMixed: rows see
/// different keys, and a hidden value's bits are cleared before it is multiplied.
template <int kRows, int kVecs, bool kMixed, class Row, class A, class T>
inline void weigh_tile(A* o, index_t o_step, const A* factor, const typename Row::Factor* e,
                       index_t e_step, const mask_int<A>* seen, index_t seen_step,
                       const DecodeKeys<T>& values, index_t t, index_t lanes, TilePrefetch& next) {
  using V = Vec<A>;
  using U = Vec<typename Row::Weight>;
  V acc[kRows][kVecs];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v)
      acc[i][v] = V::load(o + i * o_step + t + v * V::kLanes) * V::broadcast(factor[i]);
  }
  const index_t n = values.n, at = values.offset + t;
  for (index_t j = 0; j < n; j += Row::kKeys) {
    if (j % kKeysOfStep == 0) next.step();
    U x[kVecs];
    if constexpr (kVecs % 2 == 0) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v += 2) {
        const auto pair = Row::load_values(values.rows + j, n - j, at + v * V::kLanes);
        x[v] = pair.first, x[v + 1] = pair.second;
      }
    } else {
      x[0] = Row::load_values(values.rows + j, n - j, at, lanes);
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
                                    const mask_int<A>* seen, index_t rows,
                                    const DecodeKeys<T>& values, index_t dim, TilePrefetch& next) {
  using V = Vec<A>;
  constexpr index_t kLanes = V::kLanes;
  constexpr auto vectors_for = [](index_t r) {
    return V::kRegisters >= 32 ? (r >= 3 ? 4 : 8) : r >= 3 ? 2 : 4;
  };
  const auto over_dims = [&]<int kRows>(index_t i) {
    constexpr int kVecs = vectors_for(kRows);
    index_t t = 0;
    const auto tile = [&]<int kN>() {
      weigh_tile<kRows, kN, kMixed, Row>(o + i * o_step, o_step, factor + i, e + i * e_step, e_step,
                                         seen + i * kDecodeKeys, kDecodeKeys, values, t, dim - t,
                                         next);
    };
    for (; t + kVecs * kLanes <= dim; t += kVecs * kLanes) tile.template operator()<kVecs>();
    for (; t + 2 * kLanes <= dim; t += 2 * kLanes) tile.template operator()<2>();
    for (; t < dim; t += kLanes) tile.template operator()<1>();
  };
  index_t i = 0;
  for (; i + 4 <= rows; i += 4) over_dims.template operator()<4>(i);
  switch (rows - i) {
    case 3:
      return over_dims.template operator()<3>(i);
    case 2:
      return over_dims.template operator()<2>(i);
    case 1:
      return over_dims.template operator()<1>(i);
  }
}

/// Tokens of which one head is taken after the other. More would be as many streams; of fewer, each
/// load of q and of o would serve less.
inline constexpr int kTokensOfStep = 4;

/// dot_keys of all heads, token by token: s [heads, score_rows(rows), kDecodeKeys].
/// n is a multiple of kTokensOfStep.
template <class Row, class A, class T>
[[gnu::noinline]] void dot_tokens(A* s, const typename Row::Factor* q, index_t q_step,
                                  [[maybe_unused]] const typename Row::Factor* quads, index_t rows,
                                  const DecodeTokens<T>& keys, index_t dim) {
  [[maybe_unused]] TilePrefetch none;
  const index_t whole = rows / 4 * 4, head_step = score_rows(rows) * kDecodeKeys;
  for (index_t j = 0; j < keys.n; j += kTokensOfStep)
    for (index_t h = 0; h < keys.heads; ++h) {
      keys.fetch_ahead(j, kTokensOfStep, h, dim);
      const DecodeKeys<T> some{keys.rows + j, h * keys.head_step, kTokensOfStep, 0};
      A* const to = s + h * head_step + j;
      const auto tile = [&]<int kRows, int kKeys>(index_t row, int first) {
        dot_tile<kRows, kKeys, Row>(to + row * kDecodeKeys + first, kDecodeKeys,
                                    q + (h * rows + row) * q_step, q_step, some.rows + first,
                                    some.offset, dim);
      };
      for (index_t row = 0; row < whole; row += 4) {
        if constexpr (Row::kHasQuads) {
          dot_quads<kTokensOfStep, Row>(to + row * kDecodeKeys, kDecodeKeys,
                                        quads + (h * whole + row) * q_step, some, dim, none);
        } else {
          constexpr int kKeys = kDotsOfTile<A> / 4;
          static_assert(kTokensOfStep % kKeys == 0);
          for (int i = 0; i < kTokensOfStep; i += kKeys) tile.template operator()<4, kKeys>(row, i);
        }
      }
      if (rows & 2) tile.template operator()<2, kTokensOfStep>(whole, 0);
      if (rows & 1) tile.template operator()<1, kTokensOfStep>(whole + (rows & 2), 0);
    }
}

/// o_i += sum_j e_ij v_j of kTokensOfStep keys, all dims. A function of its own: the loops over
/// tokens and heads around it would take the registers that hold its addresses.
template <int kRows, class Row, class A, class T>
[[gnu::noinline]] void weigh_step(A* o, index_t o_step, const typename Row::Factor* e,
                                  index_t e_step, const T* const* rows, index_t offset,
                                  index_t dim) {
  using V = Vec<A>;
  using U = Vec<typename Row::Weight>;
  constexpr index_t kLanes = V::kLanes;
  constexpr int kUnits = kTokensOfStep / Row::kKeys, kVecs = V::kRegisters >= 32 ? 4 : 2;
  U w[kRows][kUnits];
  A* to[kRows];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    to[i] = o + i * o_step;
#pragma GCC unroll 4
    for (int j = 0; j < kUnits; ++j) w[i][j] = U::broadcast(e[i * e_step + j * Row::kKeys]);
  }
  const T* from[kTokensOfStep];
#pragma GCC unroll 4
  for (int j = 0; j < kTokensOfStep; ++j) from[j] = rows[j] + offset;
  const auto weigh = [&]<int kN>(index_t t) __attribute__((always_inline)) {
    U x[kUnits][kN];
#pragma GCC unroll 4
    for (int j = 0; j < kUnits; ++j) {
      const T* const* const unit = from + j * Row::kKeys;
      if constexpr (kN % 2 == 0) {
#pragma GCC unroll 4
        for (int v = 0; v < kN; v += 2) {
          const auto pair = Row::load_values(unit, Row::kKeys, t + v * kLanes);
          x[j][v] = pair.first, x[j][v + 1] = pair.second;
        }
      } else {
        x[j][0] = Row::load_values(unit, Row::kKeys, t, dim - t);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < kN; ++v) {
        V sum = V::load(to[i] + t + v * kLanes);
#pragma GCC unroll 4
        for (int j = 0; j < kUnits; ++j) sum = fma(w[i][j], x[j][v], sum);
        sum.store(to[i] + t + v * kLanes);
      }
    }
  };
  index_t t = 0;
  for (; t + kVecs * kLanes <= dim; t += kVecs * kLanes) weigh.template operator()<kVecs>(t);
  if constexpr (kVecs > 2)
    if (t + 2 * kLanes <= dim) weigh.template operator()<2>(t), t += 2 * kLanes;
  for (; t < dim; t += kLanes) weigh.template operator()<1>(t);
}

/// weigh_values of all heads, token by token: o_head_step and e_head_step from a head to the next,
/// factors [heads, rows]. From a step to the next, sums are in the first cache. n is a multiple of
/// kTokensOfStep.
template <class Row, class A, class T>
[[gnu::noinline]] void weigh_tokens(A* o, index_t o_head_step, index_t o_step, const A* factors,
                                    const typename Row::Factor* e, index_t e_head_step,
                                    index_t e_step, index_t rows, const DecodeTokens<T>& values,
                                    index_t dim) {
  using V = Vec<A>;
  for (index_t h = 0; h < values.heads; ++h)
    for (index_t r = 0; r < rows; ++r) {
      const A factor = factors[h * rows + r];
      A* const row = o + h * o_head_step + r * o_step;
      for (index_t t = 0; factor != 1 && t < dim; t += V::kLanes)
        (V::load(row + t) * V::broadcast(factor)).store(row + t);
    }
  for (index_t j = 0; j < values.n; j += kTokensOfStep)
    for (index_t h = 0; h < values.heads; ++h) {
      values.fetch_ahead(j, kTokensOfStep, h, dim);
      A* const to = o + h * o_head_step;
      const typename Row::Factor* const from = e + h * e_head_step + j;
      const index_t offset = h * values.head_step;
      const auto step = [&]<int kRows>(index_t i) {
        weigh_step<kRows, Row>(to + i * o_step, o_step, from + i * e_step, e_step, values.rows + j,
                               offset, dim);
      };
      index_t i = 0;
      for (; i + 4 <= rows; i += 4) step.template operator()<4>(i);
      switch (rows - i) {
        case 3:
          step.template operator()<3>(i);
          break;
        case 2:
          step.template operator()<2>(i);
          break;
        case 1:
          step.template operator()<1>(i);
      }
    }
}

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
