// The products of a decode step over int8 codes (cpu/attention_decode_int8.hpp) in matrix
// registers. Four rows r of queries at a time are three digits d each:
//
//   S^T  16 keys x 12 columns    K, a key's dims side by side, is a left factor as it lies;
//                                Q^T [dim / 4][16 columns][4 dims], column 4 d + r, the right one
//   O    12 rows x 16 dims       digits of weights, row 4 d + r [64 keys], are the left factor;
//                                V, four keys of a dim side by side [16][16 dims][4], the right one
//
// For 64 dims, four rows, a key and its value that is two cycles of products, where dot products of
// vectors take 12. What is left is to put scores in order, to pack values, and to store tiles. The
// sums are exact, and weights have the same digits, as there.
//
// Shapes as there: q [heads, rows, dim] of T, keys and values int8 [tokens, heads, dim], s and o of
// fp32. Keys that follow no pattern, or are no multiple of 16 keys and 64 dims, are copied first.
// Token by token (DecodeTokens), values are packed in the order in which they lie.
//
// Source: the instructions, TDPBSSD and TDPBUSD, in Intel 64 and IA-32 Architectures Software
// Developer's Manual, volume 1, chapter 18.
#pragma once

#include <algorithm>
#include <cstdint>

#include "rapt/cpu/attention_decode_int8.hpp"
#include "rapt/cpu/simd/amx_int8.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

/// T: of queries and outputs, summed in fp32. Tiles: AmxQuads, or what a test puts in its place.
template <class T, class Q = Quads, class Tiles = AmxQuads>
class AmxInt8Decode : public DigitDecode<T, Q> {
  using Base = DigitDecode<T, Q>;
  using Base::kBytes, Base::kDigits, Base::kLanes, Base::kPowers, Base::kRows;
  using Base::rows_, Base::groups_, Base::dim_, Base::value_dim_, Base::blocks_, Base::row_;
  using typename Base::Scale, typename Base::V;
  static constexpr index_t kGroup = 16;                // rows of a tile
  static constexpr index_t kColumns = 16;              // of a tile
  static constexpr int kQuads = 16;                    // of a step of a product
  static constexpr index_t kStep = 4 * kQuads;         // bytes of it
  static constexpr index_t kTile = kGroup * kStep;     // bytes
  static constexpr index_t kSums = kGroup * kColumns;  // of a product
  static constexpr index_t kBatch = 8;                 // products in the first cache
  static_assert(kLanes == kColumns && kBytes == kStep);

 public:
  using Exact = Int8Decode<T, Q>;
  /// Of one row most of a register is empty. With up to four and short keys, vectors read what
  /// comes from memory faster (1.1 times at 2 MiB).
  static bool serves(index_t rows, index_t dim, index_t bytes) {
    return (rows > kRows || (rows >= 2 && (dim >= 128 || bytes < 1048576))) && amx_granted();
  }

  AmxInt8Decode(Scratch<Cpu>& scratch, index_t heads, index_t rows, index_t dim, index_t value_dim)
      : Base(scratch, heads, rows, dim, value_dim),
        chunks_(ceil_div(dim, kStep)),
        values_step_((heads * 4 * blocks_ + 1) * kStep) {
    const index_t parts = heads * groups_;
    // What is not written is multiplied all the same: by zeros, or into sums that nobody reads.
    const auto bytes = [&](index_t n) { return scratch.tensor<std::uint8_t>(Shape<1>{n}).data(); };
    q_ = bytes(parts * chunks_ * kTile);
    digits_ = scratch.tensor<std::int8_t>(Shape<1>{kRows * kDigits * chunks_ * kStep}).data();
    w_ = bytes(parts * kGroup * kDecodeKeys);
    values_ = bytes(kDecodeKeys / kKeys * values_step_);
    copy_ = scratch.tensor<std::int8_t>(Shape<1>{heads * kDecodeKeys * chunks_ * kStep}).data();
    sums_ = scratch.tensor<std::int32_t>(Shape<1>{kBatch * kSums}).data();
    steps_ = scratch.tensor<float>(Shape<1>{parts * kDigits * kLanes}).data();
    weight_steps_ = scratch.tensor<float>(Shape<1>{heads * rows}).data();
    std::fill_n(steps_, parts * kDigits * kLanes, 0.f);
  }

  void set_query(index_t h, index_t r, const T* from, float factor) {
    const Scale scale = this->scale_query(from, factor);
    const index_t part = h * groups_ + r / kRows, row = r % kRows;
    for (index_t t = 0; t < dim_; t += kLanes) {
      std::int8_t* const to = digits_ + row * chunks_ * kStep + t;
      const index_t digit = kRows * chunks_ * kStep;
      Q::store_signed_digits(V::load(row_ + t) * V::broadcast(scale.to_digits), to, to + digit,
                             to + 2 * digit);
    }
    for (index_t d = 0; d < kDigits; ++d)
      for (index_t i = row; i < kLanes; i += kRows)
        steps_[(part * kDigits + d) * kLanes + i] = scale.step * kPowers[d];
    if (row + 1 < kRows && r + 1 < rows_) return;
    // Rows of quads become columns.
    for (index_t t = 0; t < chunks_; ++t) {
      Q quads[kColumns];
#pragma GCC unroll 16
      for (index_t i = 0; i < kColumns; ++i)
        quads[i] = i < kRows * kDigits ? Q::load(digits_ + (i * chunks_ + t) * kStep) : Q::zero();
      Q::transpose(quads);
#pragma GCC unroll 16
      for (index_t i = 0; i < kColumns; ++i)
        quads[i].store(q_ + (part * chunks_ + t) * kTile + i * kStep);
    }
  }

  [[gnu::noinline]] void scores(index_t h, float* s, const DecodeKeys<std::int8_t>& keys,
                                TilePrefetch& next) {
    Keys k{keys.rows[0] + keys.offset, keys.step, 0};
    if (!as_they_lie(keys.step, keys.n)) {
      for (index_t j = 0; j < keys.n; ++j) copy_key(0, j, keys.rows[j] + keys.offset);
      k = copied();
    }
    const auto reads = [&](index_t, index_t) __attribute__((always_inline)) { next.step(); };
    multiply_keys(s, h, 1, keys.n, k, reads);
  }

  [[gnu::noinline]] void accumulate(index_t h, float*, const float* factors, const float* s,
                                    const mask_int<float>*, const DecodeKeys<std::int8_t>& values,
                                    TilePrefetch& next) {
    store_weights_of(h, s, values.n);
    for (index_t j = 0; j < values.n; j += kKeys) {
      next.step();
      pack_values(h, j, values.rows + j, values.offset);
    }
    weigh(h, factors, values.n);
  }

  static constexpr bool kInOrder = true;
  [[gnu::noinline]] void scores(float* s, const DecodeTokens<std::int8_t>& keys) {
    Keys k{keys.rows[0], keys.step, keys.head_step};
    const bool copies = !as_they_lie(keys.step, keys.n);
    if (copies) {
      for (index_t j = 0; j < keys.n; ++j)
        for (index_t h = 0; h < keys.heads; ++h) {
          keys.fetch_ahead(j, 1, h, dim_);
          copy_key(h, j, keys.rows[j] + h * keys.head_step);
        }
      k = copied();
    }
    const auto reads = [&](index_t j, index_t h) __attribute__((always_inline)) {
      if (!copies) keys.fetch_ahead(j, kGroup, h, dim_);
    };
    multiply_keys(s, 0, keys.heads, keys.n, k, reads);
  }
  [[gnu::noinline]] void accumulate(float*, index_t, const float* factors, const float* s,
                                    const DecodeTokens<std::int8_t>& values) {
    for (index_t h = 0; h < values.heads; ++h)
      store_weights_of(h, s + h * groups_ * kRows * kDecodeKeys, values.n);
    for (index_t j = 0; j < values.n; j += kKeys)
      for (index_t h = 0; h < values.heads; ++h) {
        values.fetch_ahead(j, kKeys, h, value_dim_);
        pack_values(h, j, values.rows + j, h * values.head_step);
      }
    for (index_t h = 0; h < values.heads; ++h) weigh(h, factors + h * rows_, values.n);
  }

  index_t steps(index_t n) const { return ceil_div(n, kGroup) + ceil_div(n, kKeys); }

 private:
  static constexpr index_t kKeys = 4;  // values that are packed together

  /// Rows of keys: of key j of head h at first + j step + h head_step.
  struct Keys {
    const std::int8_t* first;
    index_t step, head_step;
  };
  bool as_they_lie(index_t step, index_t n) const {
    return step != 0 && n % kGroup == 0 && dim_ % kStep == 0;
  }
  Keys copied() const { return {copy_, chunks_ * kStep, kDecodeKeys * chunks_ * kStep}; }
  void copy_key(index_t h, index_t j, const std::int8_t* key) {
    std::int8_t* const to = copy_ + (h * kDecodeKeys + j) * chunks_ * kStep;
    for (index_t t = 0; t < dim_; t += kStep)
      Q::load(key + t, std::min(kStep, dim_ - t)).store(to + t);
  }

  /// Scores of heads [h, h + heads) and n keys. reads(j, head) comes before keys j to j + 15 are
  /// read.
  template <class Reads>
  [[gnu::always_inline]] void multiply_keys(float* s, index_t h, index_t heads, index_t n,
                                            const Keys& keys, const Reads& reads) {
    struct Product {
      const std::int8_t* a;
      index_t j, head, group;
    };
    Product batch[kBatch];
    index_t count = 0;
    const auto flush = [&]() __attribute__((always_inline)) {
      const auto operands = [&](index_t i, index_t chunk) __attribute__((always_inline)) {
        const Product& x = batch[i];
        if (chunk == 0 && x.group == 0) reads(x.j, x.head);
        const index_t part = (h + x.head) * groups_ + x.group;
        return AmxOperands{x.a + chunk * kStep, q_ + (part * chunks_ + chunk) * kTile};
      };
      tiles_.template multiply<kQuads, AmxSigns::signed_signed>(sums_, count, chunks_, keys.step,
                                                                kStep, operands);
      for (index_t i = 0; i < count; ++i) {
        const Product& x = batch[i];
        order_scores(s + (x.head * groups_ + x.group) * kRows * kDecodeKeys + x.j,
                     sums_ + i * kSums, (h + x.head) * groups_ + x.group);
      }
      count = 0;
    };
    for (index_t j = 0; j < n; j += kGroup)
      for (index_t head = 0; head < heads; ++head)
        for (index_t group = 0; group < groups_; ++group) {
          batch[count++] = {keys.first + j * keys.step + head * keys.head_step, j, head, group};
          if (count == kBatch) flush();
        }
    if (count > 0) flush();
  }

  /// 16 scores of each of four rows.
  [[gnu::always_inline]] void order_scores(float* s, const std::int32_t* sums, index_t part) const {
    V steps[kDigits], x[4];
#pragma GCC unroll 3
    for (int d = 0; d < kDigits; ++d) steps[d] = V::load(steps_ + (part * kDigits + d) * kLanes);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {  // of keys i, 4 + i, 8 + i, 12 + i
      const auto digit = [&](int d) __attribute__((always_inline)) {
        return to_float(Q::gather_quads(sums + i * kColumns + kRows * d, 4 * kColumns));
      };
      x[i] = fma(digit(2), steps[2], fma(digit(1), steps[1], digit(0) * steps[0]));
    }
    V::transpose_quads(x);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) x[r].store(s + r * kDecodeKeys);
  }

  /// Values of keys j to j + 3.
  [[gnu::always_inline]] void pack_values(index_t h, index_t j, const std::int8_t* const* rows,
                                          index_t offset) {
    const index_t quad = j / kKeys % kQuads, place = quad % 4 * 4 + quad / 4;
    std::uint8_t* to = values_of(h, 0) + (j / kStep * kQuads + place) * values_step_;
    for (index_t t = 0; t < value_dim_; t += kBytes) {
      const index_t bytes = std::min(kBytes, value_dim_ - t);
      Q v[kKeys], vectors[4];
#pragma GCC unroll 4
      for (int i = 0; i < kKeys; ++i) v[i] = Q::load(rows[i] + offset + t, bytes);
      Q::interleave_half(v, false, vectors[0], vectors[1]);
      Q::interleave_half(v, true, vectors[2], vectors[3]);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i, to += kStep) vectors[i].store(to);
    }
  }
  std::uint8_t* weights_of(index_t part) const { return w_ + part * kGroup * kDecodeKeys; }
  std::uint8_t* values_of(index_t h, index_t vector) const {
    return values_ + (h * 4 * blocks_ + vector) * kStep;
  }

  void store_weights_of(index_t h, const float* s, index_t n) {
    for (index_t r = 0; r < rows_; ++r)
      weight_steps_[h * rows_ + r] = digits_of_weights(
          weights_of(h * groups_ + r / kRows) + r % kRows * kDecodeKeys, s + r * kDecodeKeys, n);
  }

  /// o of head h.
  void weigh(index_t h, const float* factors, index_t n) {
    const index_t vectors = 4 * blocks_;
    for (index_t first = 0; first < rows_; first += kRows) {
      const index_t rows = std::min(kRows, rows_ - first), part = h * groups_ + first / kRows;
      const std::uint8_t* const weights = weights_of(part);
      const float* const steps = weight_steps_ + h * rows_ + first;
      for (index_t begin = 0; begin < vectors; begin += kBatch) {
        const index_t count = std::min(kBatch, vectors - begin);
        const std::uint8_t* const values = values_of(h, begin);
        const auto operands = [&](index_t i, index_t step) __attribute__((always_inline)) {
          return AmxOperands{weights + step * kStep,
                             values + step * kQuads * values_step_ + i * kStep};
        };
        tiles_.template multiply<kQuads, AmxSigns::unsigned_signed>(
            sums_, count, ceil_div(n, kStep), kDecodeKeys, values_step_, operands);
        for (index_t r = 0; r < rows; ++r) {
          float* const o = this->sums_of(part, r) + begin * kLanes;
          for (index_t i = 0; i < count; ++i) {
            const std::int32_t* const sums = sums_ + i * kSums + r * kColumns;
            constexpr index_t kDigit = kRows * kColumns;
            this->add_digits(o + i * kLanes,
                             {Q::load(sums), Q::load(sums + kDigit), Q::load(sums + 2 * kDigit)},
                             steps[r], factors[first + r]);
          }
        }
      }
    }
  }

  /// The digits of n weights, four rows apart. Beyond n, up to a whole step, 0.
  float digits_of_weights(std::uint8_t* digits, const float* w, index_t n) {
    return this->store_weights(w, round_up(n, kLanes), [=](V factor) {
      Q all = Q::zero();
      for (index_t j = 0; j < n; j += kStep) {
        V x[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i)
          x[i] = j + i * kLanes < n ? V::load(w + j + i * kLanes) * factor : V::zero();
        std::uint8_t* const to = digits + j;
        constexpr index_t kDigit = kRows * kDecodeKeys;
        all = all | Q::store_digits(x, to, to + kDigit, to + 2 * kDigit);
      }
      return Q::any_negative(all);
    });
  }

  const index_t chunks_;       // of 64 dims
  const index_t values_step_;  // bytes; not whole pages, which would share a set of the first cache
  std::uint8_t* q_;            // [heads][groups][chunks][16 quads of dims][16 columns][4]
  std::int8_t* digits_;        // [digits][rows][chunks of 64 dims]: of a group of queries
  float* steps_;               // [heads][groups][digits][four times][rows]: what a digit is worth
  std::uint8_t* w_;            // [heads][groups][16 rows][kDecodeKeys]: digits of weights
  float* weight_steps_;        // [heads][rows]: what the lowest is worth
  // Quads of keys in the order of Quads::store_digits, each [heads][vectors][16 dims][4 keys].
  std::uint8_t* values_;
  std::int8_t* copy_;   // [heads][kDecodeKeys][chunks of 64 dims]
  std::int32_t* sums_;  // [kBatch][16][16]
  Tiles tiles_;
};

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
