// The products of attention for few rows (cpu/attention_decode.hpp) over int8 codes, by integer dot
// products: codes are never turned into floats. Queries and weights become whole numbers of 24
// bits, three digits of 8, relative to the largest of their row (weights: of the tile), so that
// they are as good as fp32:
//
//   q = step (d0 + 256 d1 + 65536 d2)      s = step sum_i 256^i dot(d_i, k)
//   w = step (d0 + 256 d1 + 65536 d2)      o = f o + step sum_i 256^i sum_j d_ij v_j
//
// The sums are exact. The instruction (vpdpbusd) multiplies unsigned bytes by signed ones. Weights
// are not negative, and their digits are 0 to 255. Those of queries are -128 to 127: keys are taken
// plus 128, and a sum begins at minus 128 times the sum of its digits.
//
//   scores    q   row 0, dims t.. | row 1 | row 2 | row 3      16 bytes each, a digit at a time
//             k   key j, dims t.. | the same, four times       four lanes of a row are left to sum
//   values    v   dim t of keys j to j + 3, side by side; w    a digit of the weights of these four
//
// q [heads, rows, dim] of T, keys and values int8 [tokens, heads, dim], s and w of fp32; four rows
// at a time. For 64 dims, four rows, a key and its value that is 24 dot products of 64 bytes, where
// multiply-adds of fp32 are 32 and turning codes into floats is 16 more. Rows whose largest query
// or weight is below 1e-30 count as 0.
//
// Source: the instruction, VPDPBUSD, in Intel's Architecture Instruction Set Extensions Programming
// Reference; sums digit by digit are schoolbook multiplication.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "rapt/cpu/attention_decode_product.hpp"
#include "rapt/cpu/int8.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

/// Whether the instruction set has what Int8Decode needs.
template <class Q>
inline constexpr bool kDecodesInt8 = requires(const std::int8_t* p) {
  Q::repeat16(p);
};

/// What products by digits share: scales of digits, sums of the values, which numbers they are good
/// for. Q: integer vectors, as Quads.
template <class T, class Q>
class DigitDecode {
 protected:
  using V = Vec<accumulate_t<T>>;  // of float
  static constexpr index_t kLanes = V::kLanes, kRows = 4, kDigits = 3;
  static constexpr index_t kBytes = 4 * kLanes;    // of a vector
  static constexpr float kMostSigned = 8.3e6f;     // three digits up to 127 hold more
  static constexpr float kMostUnsigned = 1.67e7f;  // three digits up to 255
  static constexpr float kLeast = 1e-30f;          // less is 0: kMost / kLeast is a number
  static constexpr float kPowers[kDigits] = {1, 256, 65536};

 public:
  using Weight = float;
  static constexpr bool kScalesQueries = true;

  void begin(index_t h, float*) {
    std::fill_n(sums_of(h * groups_, 0), groups_ * kRows * blocks_ * kBytes, 0.f);
  }

  /// False if a query is not finite, or a weight infinite or negative.
  bool finish(index_t h, float* o) const {
    const index_t step = round_up(value_dim_, kLanes);
    for (index_t r = 0; r < rows_; ++r) {
      const float* const sums = sums_of(h * groups_ + r / kRows, r % kRows);
      // Quad (a, b) of a block of 4 x 4 quads lies at (b, a): see Quads::interleave_half.
      for (index_t t = 0; t < step; t += kLanes)
        V::gather_quads(sums + t / kBytes * kBytes + t % kBytes / 4, kLanes)
            .store(o + r * step + t);
    }
    return exact_;
  }

 protected:
  DigitDecode(Scratch<Cpu>& scratch, index_t heads, index_t rows, index_t dim, index_t value_dim)
      : rows_(rows),
        groups_(ceil_div(rows, kRows)),
        dim_(dim),
        value_dim_(value_dim),
        blocks_(ceil_div(value_dim, kBytes)) {
    o_ = scratch.tensor<float>(Shape<1>{heads * groups_ * kRows * blocks_ * kBytes}).data();
    row_ = scratch.tensor<float>(Shape<1>{round_up(dim, kLanes)}).data();
  }

  /// How numbers up to `top` become digits, and digits numbers.
  struct Scale {
    float to_digits = 0, step = 0;

    Scale(float top, float most) {
      if (top >= kLeast) to_digits = most / top, step = top / most;
    }
  };

  /// row_ = factor * from, zeros beyond the last dim, and how it becomes digits.
  Scale scale_query(const T* from, float factor) {
    V most = V::zero(), difference = V::zero();  // x - x: 0, or NaN for an infinity or a NaN
    for (index_t t = 0; t < dim_; t += kLanes) {
      const V x = load_lanes<float>(from + t, dim_ - t) * V::broadcast(factor);
      x.store(row_ + t);
      most = max(most, max(x, V::zero() - x));
      difference = difference + (x - x);
    }
    exact_ = exact_ && sum(difference) == 0;
    return Scale(largest(most), kMostSigned);
  }

  /// What the lowest digit of n weights (whole vectors) is worth: NaN if a weight is. store(f)
  /// writes the digits of w * f and says whether a number was negative.
  template <class Store>
  float store_weights(const float* w, index_t n, const Store& store) {
    const Scale scale(largest(row_top(w, index_t{0}, n)), kMostUnsigned);
    if (!store(V::broadcast(scale.to_digits))) return scale.step;
    // Weights that are negative, as scales may be, infinite, or not numbers: these make their own
    // row so, the others are for Exact. (Digits of 0, and of what is no number, are 0.)
    store(V::zero());
    if (std::any_of(w, w + n, [](float x) { return x != x; }))
      return std::numeric_limits<float>::quiet_NaN();
    exact_ = false;
    return 0;
  }

  /// [blocks][4 quads of dims][16], in the order of Quads::interleave_half.
  float* sums_of(index_t part, index_t row) const {
    return o_ + (part * kRows + row) * blocks_ * kBytes;
  }

  /// o f + step times the sums of the three digits.
  static void add_digits(float* o, const Q (&digits)[kDigits], float step, float factor) {
    const V total = fma(to_float(digits[2]), V::broadcast(kPowers[2]),
                        fma(to_float(digits[1]), V::broadcast(kPowers[1]), to_float(digits[0])));
    fma(total, V::broadcast(step), V::load(o) * V::broadcast(factor)).store(o);
  }

  const index_t rows_, groups_, dim_, value_dim_, blocks_;
  float* o_;    // [heads][groups][rows][blocks of 64 dims]
  float* row_;  // a query
  bool exact_ = true;
};

/// T: of queries and outputs, summed in fp32.
template <class T, class Q = Quads>
class Int8Decode : public DigitDecode<T, Q> {
  using Base = DigitDecode<T, Q>;
  using Base::kBytes, Base::kDigits, Base::kLanes, Base::kPowers, Base::kRows;
  using Base::rows_, Base::groups_, Base::dim_, Base::value_dim_, Base::blocks_, Base::row_;
  using typename Base::Scale, typename Base::V;
  static constexpr index_t kChunk = 16;  // bytes of a row in a vector
  static_assert(kBytes == kRows * kChunk);

 public:
  using Exact = VectorDecode<T, std::int8_t, float>;
  /// Of fewer rows, most of a vector would be empty.
  static constexpr bool serves(index_t rows, index_t, index_t) { return rows >= 3; }

  Int8Decode(Scratch<Cpu>& scratch, index_t heads, index_t rows, index_t dim, index_t value_dim)
      : Base(scratch, heads, rows, dim, value_dim), chunks_(ceil_div(dim, kChunk)) {
    const index_t parts = heads * groups_;
    q_ = scratch.tensor<std::int8_t>(Shape<1>{parts * chunks_ * kDigits * kBytes}).data();
    starts_ = scratch.tensor<std::int32_t>(Shape<1>{parts * kDigits * kLanes}).data();
    steps_ = scratch.tensor<float>(Shape<1>{parts * kDigits * kLanes}).data();
    w_ = scratch.tensor<std::uint8_t>(Shape<1>{kRows * kRowBytes}).data();
    std::fill_n(q_, parts * chunks_ * kDigits * kBytes, std::int8_t{0});
    std::fill_n(starts_, parts * kDigits * kLanes, 0);
    std::fill_n(steps_, parts * kDigits * kLanes, 0.f);
  }

  void set_query(index_t h, index_t r, const T* from, float factor) {
    const Scale scale = this->scale_query(from, factor);
    const index_t part = h * groups_ + r / kRows, row = r % kRows;
    for (index_t t = 0; t < chunks_; ++t) {
      std::int8_t* const to = q_ + (part * chunks_ + t) * kDigits * kBytes + row * kChunk;
      Q::store_signed_digits(V::load(row_ + t * kChunk) * V::broadcast(scale.to_digits), to,
                             to + kBytes, to + 2 * kBytes);
    }
    for (index_t d = 0; d < kDigits; ++d)
      std::fill_n(steps_ + (part * kDigits + d) * kLanes + row * 4, 4, scale.step * kPowers[d]);
    if (row + 1 < kRows && r + 1 < rows_) return;
    for (index_t d = 0; d < kDigits; ++d) {
      Q digits = Q::zero();
      for (index_t t = 0; t < chunks_; ++t)
        digits =
            dot(digits, Q::bytes(1), Q::load(q_ + ((part * chunks_ + t) * kDigits + d) * kBytes));
      std::int32_t* const starts = starts_ + (part * kDigits + d) * kLanes;
      digits.store(starts);
      for (index_t i = 0; i < kLanes; ++i) starts[i] *= -128;
    }
  }

  [[gnu::noinline]] void scores(index_t h, float* s, const DecodeKeys<std::int8_t>& keys,
                                TilePrefetch& next) const {
    for (index_t g = 0; g < groups_; ++g)
      for (index_t j = 0; j < keys.n; j += kKeys) {
        next.step();
        score_keys(s + g * kRows * kDecodeKeys + j, h * groups_ + g, keys.rows + j, keys.offset);
      }
  }

  [[gnu::noinline]] void accumulate(index_t h, float*, const float* factors, const float* s,
                                    const mask_int<float>*, const DecodeKeys<std::int8_t>& values,
                                    TilePrefetch& next) {
    for (index_t g = 0; g < groups_; ++g) {
      const index_t first = g * kRows, rows = std::min(kRows, rows_ - first);
      float steps[kRows] = {};
      for (index_t r = 0; r < rows; ++r)
        steps[r] = digits_of_weights(w_ + r * kRowBytes, s + (first + r) * kDecodeKeys,
                                     round_up(values.n, kLanes));  // beyond n they are 0
      for (index_t r = rows; r < kRows; ++r) std::fill_n(w_ + r * kRowBytes, kRowBytes, 0);
      for (index_t block = 0; block < blocks_; ++block)
        for (const bool high : {false, true})
          weigh_half(h * groups_ + g, block, high, rows, factors + first, steps, values, next);
    }
  }

  index_t steps(index_t n) const {
    return groups_ * (ceil_div(n, kKeys) + 2 * blocks_ * ceil_div(n, kKeysOfStep));
  }

 private:
  static constexpr int kKeys = 4;                        // of a step
  static constexpr index_t kRowBytes = 4 * kDecodeKeys;  // [keys / 4][digits, 0][4 keys]

  float digits_of_weights(std::uint8_t* to, const float* w, index_t n) {
    return this->store_weights(w, n, [=](V factor) {
      Q all = Q::zero();
      for (index_t j = 0; j < n; j += kLanes)
        all = all | Q::store_digits(V::load(w + j) * factor, to + 4 * j);
      return Q::any_negative(all);
    });
  }

  /// Scores of a group of four rows and of four keys.
  [[gnu::always_inline]] void score_keys(float* s, index_t part, const std::int8_t* const* rows,
                                         index_t offset) const {
    const std::int32_t* const starts = starts_ + part * kDigits * kLanes;
    const std::int8_t* q = q_ + part * chunks_ * kDigits * kBytes;
    const std::int8_t* k[kKeys];
    Q acc[kDigits][kKeys];
#pragma GCC unroll 4
    for (int i = 0; i < kKeys; ++i) {
      k[i] = rows[i] + offset;
#pragma GCC unroll 3
      for (int d = 0; d < kDigits; ++d) acc[d][i] = Q::load(starts + d * kLanes);
    }
    const auto step = [&](const Q(&codes)[kKeys]) __attribute__((always_inline)) {
#pragma GCC unroll 3
      for (int d = 0; d < kDigits; ++d) {
        const Q digits = Q::load(q + d * kBytes);
#pragma GCC unroll 4
        for (int i = 0; i < kKeys; ++i) acc[d][i] = dot_wide(acc[d][i], codes[i], digits);
      }
      q += kDigits * kBytes;
    };
    index_t t = 0;
    for (; t + kChunk <= dim_; t += kChunk) {
      Q codes[kKeys];
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; ++i) codes[i] = Q::repeat16(k[i] + t).plus128();
      step(codes);
    }
    if (t < dim_) {  // what is not there meets digits that are 0
      Q codes[kKeys];
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; ++i) {
        std::int8_t rest[kChunk] = {};
        std::copy_n(k[i] + t, dim_ - t, rest);
        codes[i] = Q::repeat16(rest).plus128();
      }
      step(codes);
    }
    V steps[kDigits], sums[kKeys];
#pragma GCC unroll 3
    for (int d = 0; d < kDigits; ++d) steps[d] = V::load(steps_ + (part * kDigits + d) * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < kKeys; ++i)
      sums[i] = fma(to_float(acc[2][i]), steps[2],
                    fma(to_float(acc[1][i]), steps[1], to_float(acc[0][i]) * steps[0]));
    float four[kLanes];
    V::quad_sums(sums[0], sums[1], sums[2], sums[3]).store(four);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
      std::memcpy(s + r * kDecodeKeys, four + 4 * r, 4 * sizeof(float));
  }

  /// Two of the four vectors of a block of 64 dims: 4 rows x 3 digits x 2 accumulators.
  [[gnu::noinline]] void weigh_half(index_t part, index_t block, bool high, index_t rows,
                                    const float* factors, const float* steps,
                                    const DecodeKeys<std::int8_t>& values,
                                    TilePrefetch& next) const {
    const index_t offset = values.offset + block * kBytes;
    const index_t bytes = std::min(kBytes, value_dim_ - block * kBytes);
    Q acc[kRows][kDigits][2];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int d = 0; d < kDigits; ++d) acc[r][d][0] = acc[r][d][1] = Q::zero();
    }
    const auto step = [&](index_t j, auto load) __attribute__((always_inline)) {
      Q v[kKeys], two[2];
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; ++i) v[i] = load(values.rows[j + i] + offset);
      Q::interleave_half(v, high, two[0], two[1]);
      const std::uint8_t* const w = w_ + 4 * j;
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
        for (int d = 0; d < kDigits; ++d) {
          const Q digits = Q::broadcast(w + r * kRowBytes + d * kKeys);
          acc[r][d][0] = dot_wide(acc[r][d][0], digits, two[0]);
          acc[r][d][1] = dot_wide(acc[r][d][1], digits, two[1]);
        }
      }
    };
    for (index_t j = 0; j < values.n; j += kKeys) {
      if (j % kKeysOfStep == 0) next.step();
      if (bytes == kBytes)
        step(j, [](const std::int8_t* p) { return Q::load(p); });
      else
        step(j, [=](const std::int8_t* p) { return Q::load(p, bytes); });
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      if (r == rows) break;
      float* const o = this->sums_of(part, r) + block * kBytes + (high ? 2 * kLanes : 0);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v)
        this->add_digits(o + v * kLanes, {acc[r][0][v], acc[r][1][v], acc[r][2][v]}, steps[r],
                         factors[r]);
    }
  }

  const index_t chunks_;
  std::int8_t* q_;        // [heads][groups][chunks][digits][rows][16]
  std::int32_t* starts_;  // [heads][groups][digits][rows][4]
  float* steps_;          // likewise: what a digit is worth
  std::uint8_t* w_;       // [rows][kRowBytes]: weights of a group
};

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
