// The register tiles of attention: the part of the kernel that knows neither masks nor lengths.
//
//   multiply    C[rows, n] = A[rows, depth] B[depth, n]     or C = f C + A B, f one factor a row
//               (the inner loop: cpu/register_tile.hpp)
//
//          B: a panel of kVectors registers, packed so that row k follows row k - 1
//          +---------+---------+
//      A   | b[k][0] | b[k][1] |        6 rows x 2 vectors of accumulators (AVX-512, NEON: x 4),
//   a[0][k]|  acc    |  acc    |        each A element broadcast once, each B vector loaded once
//    ...   |         |         |        for 6 rows
//   a[5][k]|  acc    |  acc    |
//          +---------+---------+
//
// It serves both products: S = Q K^T with K packed transposed, [dim][keys of the panel], and
// O = f O + P V with V packed as it lies, [keys][dims of the panel]. Packing also converts elements
// of 16 bits, and codes of 8 bits times their scales, so a tile of K and V is all that ever exists
// of them in float. (With AVX-512, 10 loads stand beside 24 multiply-adds, which two ports take 12
// cycles for: the loads hide.)
//
// The online softmax of a tile of scores: row_top, raise_rows, soften_row. The running maximum m is
// a score, and e = 2^((s - m) unit): the difference is taken before the product, so that the
// largest weight is exactly 1 and m + log l keeps its last bit where scores are large.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "rapt/core/config.hpp"
#include "rapt/cpu/register_tile.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Sizes of the tiles for sums of type A.
template <class A>
struct AttentionTiling {
  static constexpr int kLanes = Vec<A>::kLanes;
  static constexpr int kVectors = Vec<A>::kRegisters >= 32 ? 4 : 2;  // of a panel
  static constexpr int kPanel = kVectors * kLanes;                   // columns of a panel
  static constexpr int kGroup = 6;                                   // rows of a register tile
  static constexpr int kRowTile = 8 * kGroup;                        // rows that share a score tile
  static constexpr int kKeyTile = 128;                               // keys packed at a time
  static constexpr int kPanels = kKeyTile / kPanel;
  static_assert(kKeyTile % kPanel == 0 && kRowTile % kLanes == 0);
};

namespace detail {

constexpr index_t ceil_div(index_t n, index_t unit) { return (n + unit - 1) / unit; }
constexpr index_t round_up(index_t n, index_t unit) { return (n + unit - 1) / unit * unit; }

/// Elements of A that one unit of a panel is multiplied with.
template <class Unit>
inline constexpr index_t kUnitElements = std::is_same_v<Unit, Bfloat16Pair> ? 2 : 1;

/// What a sum begins with: 0, what is there, or that times its row's factor.
enum class Start { zero, add, scale };

/// kRows x kVecs accumulators over `depth` steps. Rows of A lie a_step apart. E and Unit are A, or
/// bfloat16 and pairs of them.
template <int kRows, int kVecs, Start kStart, class A, class E, class Unit>
[[gnu::noinline]] void multiply_tile(A* c, index_t c_step, const A* factor, const E* a,
                                     index_t a_step, const Unit* b, index_t depth) {
  using V = Vec<A>;
  V acc[kRows][kVecs];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      acc[i][v] = kStart == Start::zero ? V::zero() : V::load(c + i * c_step + v * V::kLanes);
      if constexpr (kStart == Start::scale) acc[i][v] = acc[i][v] * V::broadcast(factor[i]);
    }
  }
  add_products<Lie::by_rows, RegisterSteps<4>>(acc, a, a_step, b, AttentionTiling<A>::kPanel,
                                               depth);
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) acc[i][v].store(c + i * c_step + v * V::kLanes);
  }
}

/// The same for 1 to kVectors vectors.
template <int kRows, Start kStart, class A, class E, class Unit>
inline void multiply_rows(int vectors, A* c, index_t c_step, const A* factor, const E* a,
                          index_t a_step, const Unit* b, index_t depth) {
  constexpr int kVectors = AttentionTiling<A>::kVectors;
  if (vectors == kVectors)
    multiply_tile<kRows, kVectors, kStart>(c, c_step, factor, a, a_step, b, depth);
  else if (vectors == 1)
    multiply_tile<kRows, 1, kStart>(c, c_step, factor, a, a_step, b, depth);
  else if constexpr (kVectors > 2) {
    if (vectors == 2)
      multiply_tile<kRows, 2, kStart>(c, c_step, factor, a, a_step, b, depth);
    else
      multiply_tile<kRows, 3, kStart>(c, c_step, factor, a, a_step, b, depth);
  }
}

/// And for 1 to kGroup rows: 6, or what is left as 4 + 2 + 1.
template <Start kStart, class A, class E, class Unit>
[[gnu::noinline]] void multiply_some(int rows, int vectors, A* c, index_t c_step, const A* factor,
                                     const E* a, index_t a_step, const Unit* b, index_t depth) {
  const auto some = [&]<int kRows>() {
    multiply_rows<kRows, kStart>(vectors, c, c_step, factor, a, a_step, b, depth);
    c += kRows * c_step, a += kRows * a_step, factor += kRows;
  };
  if (rows == AttentionTiling<A>::kGroup)
    return some.template operator()<AttentionTiling<A>::kGroup>();
  if (rows & 4) some.template operator()<4>();
  if (rows & 2) some.template operator()<2>();
  if (rows & 1) some.template operator()<1>();
}

/// 1 to kGroup rows and 1 to kVectors vectors. Nearly all tiles are whole: these are called without
/// a detour, which would cost as much as two steps. Nearly all factors are 1: after a few tiles a
/// row's maximum hardly moves.
template <Start kStart, class A, class E, class Unit>
inline void multiply(int rows, int vectors, A* c, index_t c_step, const A* factor, const E* a,
                     index_t a_step, const Unit* b, index_t depth) {
  constexpr int kGroup = AttentionTiling<A>::kGroup, kVectors = AttentionTiling<A>::kVectors;
  if (rows == kGroup && vectors == kVectors) {
    if constexpr (kStart == Start::scale)
      if (std::all_of(factor, factor + kGroup, [](A f) { return f == 1; }))
        return multiply_tile<kGroup, kVectors, Start::add>(c, c_step, factor, a, a_step, b, depth);
    multiply_tile<kGroup, kVectors, kStart>(c, c_step, factor, a, a_step, b, depth);
  } else {
    multiply_some<kStart>(rows, vectors, c, c_step, factor, a, a_step, b, depth);
  }
}

/// Lanes [0, n) of p, converted; a whole load where the row is long enough.
template <class A, class T>
inline Vec<A> load_lanes(const T* p, index_t n) {
  if constexpr (requires { Vec<A>::load(p, n); }) {
    return n >= Vec<A>::kLanes ? Vec<A>::load(p) : Vec<A>::load(p, n);
  } else {  // codes of 8 bits beside double
    A lanes[Vec<A>::kLanes] = {};
    for (index_t i = 0; i < std::min<index_t>(n, Vec<A>::kLanes); ++i) lanes[i] = convert<A>(p[i]);
    return Vec<A>::load(lanes);
  }
}
template <class A, class T>
inline void store_lanes(Vec<A> x, T* p, index_t n) {
  if (n >= Vec<A>::kLanes)
    x.store(p);
  else
    x.store(p, n);
}

/// Brings the lines of a row nearer while others are worked on.
template <bool kToWrite = false, class T>
[[gnu::always_inline]] inline void prefetch_row(const T* row, index_t dim) {
  constexpr index_t kLine = 64 / static_cast<index_t>(sizeof(T));
  for (index_t t = 0; t < dim; t += kLine) __builtin_prefetch(row + t, kToWrite ? 1 : 0, 2);
}
/// How many rows ahead, where neighbours lie too far apart for the processor to see a pattern.
inline constexpr index_t kScatteredAhead = 8;

/// load_lanes of row j of codes of 8 bits, times the row's scale; of other rows the same, and there
/// need not be scales.
template <class A, class T>
inline Vec<A> load_scaled(const T* p, index_t n, [[maybe_unused]] const float* scales,
                          [[maybe_unused]] index_t j) {
  if constexpr (QuantizedElement<T>)
    return load_lanes<A>(p, n) * Vec<A>::broadcast(static_cast<A>(scales[j]));
  else
    return load_lanes<A>(p, n);
}

/// Keys rows[0..n), times scales[0..n) where they are codes of 8 bits, into panels
/// [kPanels][dim][kPanel], transposed; keys beyond n read as zero up to a whole vector.
template <class A, class T>
[[gnu::noinline]] void pack_keys(A* packed, const T* const* rows, index_t n, index_t dim,
                                 const float* scales = nullptr) {
  using V = Vec<A>;
  constexpr index_t kLanes = V::kLanes, kPanel = AttentionTiling<A>::kPanel;
  for (index_t key = 0; key < n; key += kLanes) {
    A* const to = packed + key / kPanel * kPanel * dim + key % kPanel;
    for (index_t t = 0; t < dim; t += kLanes) {
      const index_t left = dim - t;
      V block[V::kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < V::kLanes; ++i)
        block[i] =
            key + i < n ? load_scaled<A>(rows[key + i] + t, left, scales, key + i) : V::zero();
      V::transpose(block);
#pragma GCC unroll 16
      for (int i = 0; i < V::kLanes; ++i)  // of known length: the block stays in registers
        if (i < left) block[i].store(to + (t + i) * kPanel);
    }
  }
}

/// Values rows[0..n), scaled likewise, into panels [ceil(dim / kPanel)][kKeyTile][kPanel]; dims
/// beyond `dim` are zero up to a whole vector. Says whether all of them are finite.
template <class A, class T>
[[gnu::noinline]] bool pack_values(A* packed, const T* const* rows, index_t n, index_t dim,
                                   const float* scales = nullptr) {
  using V = Vec<A>;
  using Tiling = AttentionTiling<A>;
  V difference = V::zero();  // x - x: 0, or NaN for an infinity or a NaN
  for (index_t j = 0; j < n; ++j) {
    const T* const row = rows[j];
    for (index_t t = 0; t < dim; t += V::kLanes) {
      const V x = load_scaled<A>(row + t, dim - t, scales, j);
      difference = difference + (x - x);
      x.store(packed + (t / Tiling::kPanel * Tiling::kKeyTile + j) * Tiling::kPanel +
              t % Tiling::kPanel);
    }
  }
  return sum(difference) == A(0);
}

/// Lanes [0, n) are all ones, the others zero; any n.
template <class A>
inline Vec<A> first_lanes(index_t n) {
  constexpr int kLanes = Vec<A>::kLanes;
  struct Edge {
    mask_int<A> bits[2 * kLanes] = {};
    constexpr Edge() {
      for (int i = 0; i < kLanes; ++i) bits[i] = -1;
    }
  };
  static constexpr Edge kEdge;
  return Vec<A>::load_mask(kEdge.bits + (kLanes - std::clamp<index_t>(n, 0, kLanes)));
}

/// Lane by lane the largest of columns [begin, end) of a row of scores; whole vectors. Two at a
/// time, since each waits for the one before.
template <class A>
inline Vec<A> row_top(const A* s, index_t begin, index_t end) {
  using V = Vec<A>;
  V top = V::broadcast(-std::numeric_limits<A>::infinity()), other = top;
  index_t j = begin;
  for (; end - j > V::kLanes; j += 2 * V::kLanes) {
    top = max(top, V::load(s + j));
    other = max(other, V::load(s + j + V::kLanes));
  }
  if (j < end) top = max(top, V::load(s + j));
  return max(top, other);
}

/// For n rows (arrays padded to a whole vector): m' = max(m, top), factor = exp2((m - m') unit), l
/// times factor. `unit` turns a score into an exponent of 2.
template <class A>
inline void raise_rows(A* m, A* l, A* factor, const A* top, index_t n, A unit) {
  using V = Vec<A>;
  for (index_t r = 0; r < n; r += V::kLanes) {
    const index_t left = n - r;
    const V before = load_lanes<A>(m + r, left);
    const V after = max(before, V::load(top + r));
    // Minus infinity minus itself is NaN, so the reference is a finite number.
    const V reference = max(after, V::broadcast(std::numeric_limits<A>::lowest()));
    const V f = exp2_flushed((before - reference) * V::broadcast(unit));
    f.store(factor + r);
    store_lanes(after, m + r, left);
    store_lanes(load_lanes<A>(l + r, left) * f, l + r, left);
  }
}

/// e = exp2((s - m) unit) over columns [begin, end) of a row; whole vectors. Returns their sum,
/// lane by lane. The weights take the place of the row: numbers of A, or, for Weight =
/// Bfloat16Pair, of bfloat16 in its first half, rounded after they are summed (and a vector of
/// zeros more where the vectors are odd in number). kExponents: unit is 1.
template <class Weight, bool kExponents, class A>
inline Vec<A> soften_row(A* s, index_t begin, index_t end, A m, [[maybe_unused]] A unit) {
  using V = Vec<A>;
  const V reference = V::broadcast(std::max(m, std::numeric_limits<A>::lowest()));
  [[maybe_unused]] const V u = V::broadcast(unit);
  V total = V::zero();
  const auto soften = [&](index_t j) {
    V x = V::load(s + j) - reference;
    if constexpr (!kExponents) x = x * u;
    const V e = std::is_same_v<Weight, A> ? exp2_flushed(x) : exp2_coarse(x);
    total = total + e;
    return e;
  };
  if constexpr (std::is_same_v<Weight, A>) {
    for (index_t j = begin; j < end; j += V::kLanes) soften(j).store(s + j);
  } else {
    bfloat16* const weights = reinterpret_cast<bfloat16*>(s);
    for (index_t j = begin; j < end; j += 2 * V::kLanes) {
      const V first = soften(j), second = j + V::kLanes < end ? soften(j + V::kLanes) : V::zero();
      Vec<Weight>::narrow(first, second).store(weights + j);  // not beyond what was read
    }
  }
  return total;
}

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
