// The products of a decode step in matrix registers, keys and values read as they lie in the cache
// (cpu/attention_decode_product.hpp says what a product is). Rows of bfloat16, R queries a head:
//
//   S^T  16 keys x 16 rows        K, a key's dims side by side, are a left factor as they are;
//                                 Q^T, pairs of dims [dim / 2][16 rows], is the right one
//   O    16 rows x 16 pairs       V, a value's dims side by side, is a right factor of one key a
//        of dims                  unit: of its pairs of dims. Rows of P are pairs (p, 0), which
//                                 leave the even dims, and (0, p), which leave the odd ones
//
//        P   row 0 (p 0)(p 0)...      V   (v0 v1)(v2 v3)...  key 0      O   row 0 even dims
//            row 1 (p 0)(p 0)...          (v0 v1)(v2 v3)...  key 1          row 1 even dims
//            row 8 (0 p)(0 p)...                                            row 0 odd dims
//
// So nothing is packed or widened, and half the products are by 0. One of those is NaN where a
// value is not finite: then finish() says so, and the item is done again by Exact. What does not
// lie in a pattern (pages, gaps), or is no multiple of 16 keys and 32 dims, is copied first.
//
// Source: the instruction, tdpbf16ps, as in cpu/simd/amx.hpp; reading values unpacked is our own.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_decode_product.hpp"
#include "rapt/cpu/attention_pairs.hpp"
#include "rapt/cpu/simd.hpp"
#include "rapt/cpu/simd/amx.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

/// to[r] = column r of `from`, rows of 16 numbers, 16 of them; for 4 columns.
template <class V = Vec<float>>
void turn_quads(float* to, index_t to_step, const float* from) {
  if constexpr (requires { V::gather_quads(from, 0); }) {
    V quads[4];  // quad k of the i-th: row 4 k + i
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) quads[i] = V::gather_quads(from + i * 16, 4 * 16);
    V::transpose_quads(quads);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) quads[i].store(to + i * to_step);
  } else {
    for (index_t r = 0; r < 4; ++r)
      for (index_t i = 0; i < 16; ++i) to[r * to_step + i] = from[i * 16 + r];
  }
}

/// Tiles: AmxTiles, or what a test puts in its place.
template <class Tiles = AmxTiles, class Unit = Bfloat16Pair>
class AmxDecode {
  using V = Vec<float>;
  static constexpr index_t kGroup = 16;    // keys of a step
  static constexpr index_t kColumns = 16;  // of a matrix register
  static constexpr index_t kVectors = 3;   // pairs of 16 dims that are multiplied together
  static_assert(kGroup == Tiles::kUnits && 2 * kGroup == Tiles::kRows);

 public:
  using Weight = Unit;
  static constexpr bool kScalesQueries = false;
  using Exact = VectorDecode<bfloat16, bfloat16, float>;
  /// Of fewer than three rows, most of a register would be empty. With up to four, a short cache
  /// does not pay for setting the registers up, and one that comes from memory is read faster token
  /// by token, which vectors do: 1.2 times from 4 MiB on.
  static constexpr bool serves(index_t rows, index_t, index_t bytes) {
    return rows > 4 || (rows >= 3 && bytes > 65536 && bytes < 4194304);
  }

  AmxDecode(Scratch<Cpu>& scratch, index_t heads, index_t rows, index_t dim, index_t value_dim)
      : rows_(rows),
        dim_(dim),
        value_dim_(value_dim),
        dim_step_(round_up(dim, kPairStep)),
        pairs_(round_up(value_dim, kPairStep) / 2),
        tile_rows_(rows <= kGroup / 2 ? kGroup : 2 * kGroup) {
    const index_t wide = std::max(dim_step_, 2 * pairs_);
    q_ = scratch.tensor<Unit>(Shape<3>{heads, dim_step_ / 2, kColumns}).data();
    o_ = scratch.tensor<float>(Shape<3>{heads, tile_rows_, pairs_}).data();
    p_ = scratch.tensor<Unit>(Shape<2>{tile_rows_, kDecodeKeys}).data();
    s_ = scratch.tensor<float>(Shape<2>{kDecodeKeys, kColumns}).data();
    copy_ = scratch.tensor<bfloat16>(Shape<2>{kDecodeKeys, wide}).data();
    clear(q_, heads * dim_step_ / 2 * kColumns);
    clear(p_, tile_rows_ * kDecodeKeys);
  }

  void set_query(index_t h, index_t r, const bfloat16* q, float factor) {
    bfloat16 row[2 * V::kLanes];
    for (index_t t = 0; t < dim_; t += V::kLanes) {
      const index_t left = std::min<index_t>(dim_ - t, V::kLanes);
      (load_lanes<float>(q + t, left) * V::broadcast(factor)).store(row);  // 0 beyond the last dim
      for (index_t i = 0; i < left; i += 2)
        std::memcpy(q_ + (h * dim_step_ / 2 + (t + i) / 2) * kColumns + r, row + i, sizeof(Unit));
    }
  }

  void begin(index_t h, float*) { std::fill_n(sums_of(h), tile_rows_ * pairs_, 0.f); }

  void scores(index_t h, float* s, const DecodeKeys<bfloat16>& keys, TilePrefetch& next) {
    static constexpr float kZeros[kColumns] = {};
    const Rows k = rows_of(keys, dim_);
    for (index_t j = 0; j < keys.n; j += Tiles::kRows) {
      next.step();
      tiles_.multiply(keys.n - j > kGroup ? 2 * kGroup : kGroup, 1, s_ + j * kColumns, kColumns,
                      kZeros, 0, k.first + j * k.step, k.step, q_ + h * dim_step_ / 2 * kColumns,
                      kColumns, dim_step_ / 2);
    }
    for (index_t j = 0; j < keys.n; j += kGroup) {
      next.step();
      for (index_t r = 0; r < rows_; r += 4)  // of the rows beyond the last, q is zeros
        turn_quads(s + r * kDecodeKeys + j, kDecodeKeys, s_ + j * kColumns + r);
    }
  }

  void accumulate(index_t h, float*, const float* factors, const float* s, const mask_int<float>*,
                  const DecodeKeys<bfloat16>& values, TilePrefetch& next) {
    using U = Vec<Unit>;
    static constexpr bfloat16 kZeros[U::kLanes] = {};
    const index_t half = tile_rows_ / 2, n = round_up(values.n, kGroup);
    const index_t weighed = round_up(values.n, V::kLanes);  // beyond it, s is nothing
    float* const o = sums_of(h);
    for (index_t r = 0; r < rows_; ++r) {
      const auto* const weights = reinterpret_cast<const bfloat16*>(s + r * kDecodeKeys);
      Unit *const even = p_ + r * kDecodeKeys, *const odd = even + half * kDecodeKeys;
      for (index_t j = 0; j < n; j += U::kLanes) {
        next.step();
        const U zero = U::zero();
        (j < weighed ? U::interleave(weights + j, nullptr, U::kLanes) : zero).store(even + j);
        (j < weighed ? U::interleave(kZeros, weights + j, U::kLanes) : zero).store(odd + j);
      }
      if (factors[r] != 1)
        for (index_t t = 0; t < pairs_; t += V::kLanes)
          for (float* const row : {o + r * pairs_, o + (half + r) * pairs_})
            (V::load(row + t) * V::broadcast(factors[r])).store(row + t);
    }
    const Rows v = rows_of(values, value_dim_);
    for (index_t t = 0; t < pairs_; t += kVectors * kColumns) {
      next.step();
      const index_t vectors = std::min(kVectors, (pairs_ - t) / kColumns);
      tiles_.multiply(tile_rows_, vectors, o + t, pairs_, o + t, pairs_,
                      reinterpret_cast<const bfloat16*>(p_), 2 * kDecodeKeys,
                      reinterpret_cast<const Unit*>(v.first) + t, v.step / 2, n);
    }
  }

  bool finish(index_t h, float* o) const {
    const index_t step = round_up(value_dim_, V::kLanes);
    V difference = V::zero();  // x - x: 0, or NaN for an infinity or a NaN
    for (index_t r = 0; r < rows_; ++r) {
      const float* const even = sums_of(h) + r * pairs_;
      const float* const odd = even + tile_rows_ / 2 * pairs_;
      float* const row = o + r * step;
      for (index_t t = 0; t < step; t += V::kLanes) {
        const V x = interleaved(even + t / 2, odd + t / 2);
        x.store(row + t);
        difference = difference + (x - x);
      }
    }
    return sum(difference) == 0;
  }

  index_t steps(index_t n) const {
    return ceil_div(n, 2 * kGroup) + ceil_div(n, kGroup) + rows_ * ceil_div(n, V::kLanes) +
           ceil_div(pairs_, kVectors * kColumns);
  }

 private:
  /// Whole groups of keys and whole steps of dims, `step` elements from one to the next.
  struct Rows {
    const bfloat16* first;
    index_t step;
  };
  Rows rows_of(const DecodeKeys<bfloat16>& keys, index_t dim) const {
    const bfloat16* const first = keys.rows[0] + keys.offset;
    if (keys.step != 0 && keys.step % 2 == 0 && keys.n % kGroup == 0 && dim % kPairStep == 0 &&
        reinterpret_cast<std::uintptr_t>(first) % alignof(float) == 0)
      return {first, keys.step};
    const index_t step = round_up(dim, kPairStep);
    for (index_t j = 0; j < round_up(keys.n, kGroup); ++j) {
      bfloat16* const to = copy_ + j * step;
      bfloat16* const end = j < keys.n ? std::copy_n(keys.rows[j] + keys.offset, dim, to) : to;
      std::fill(end, to + step, bfloat16{});
    }
    return {copy_, step};
  }

  static void clear(Unit* p, index_t n) {
    std::memset(static_cast<void*>(p), 0, static_cast<std::size_t>(n) * sizeof(Unit));
  }
  /// even[0], odd[0], even[1], ...
  static V interleaved(const float* even, const float* odd) {
    float row[V::kLanes];
    for (int i = 0; i < V::kLanes / 2; ++i) row[2 * i] = even[i], row[2 * i + 1] = odd[i];
    return V::load(row);
  }
  float* sums_of(index_t h) const { return o_ + h * tile_rows_ * pairs_; }

  const index_t rows_, dim_, value_dim_, dim_step_, pairs_, tile_rows_;
  Unit* q_;         // [heads][dim_step / 2][columns]
  float* o_;        // [heads][tile_rows][pairs]: rows of even dims, then, from the half on, of odd
  Unit* p_;         // [tile_rows][kDecodeKeys], likewise
  float* s_;        // [kDecodeKeys][columns]
  bfloat16* copy_;  // of a tile of keys, or of values
  mutable Tiles tiles_;
};

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
