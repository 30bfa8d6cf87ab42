// The dot product of bfloat16 pairs and the matrix registers of AMX in plain loops, for machines
// that have neither: the kernels for those that do are tested anywhere, rounding included but for
// subnormal numbers, which the instructions flush.
//
// Source: Intel Architecture Instruction Set Extensions Programming Reference, VDPBF16PS,
// TDPBF16PS.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "rapt/cpu/simd.hpp"
#include "rapt/cpu/simd/amx.hpp"
#include "rapt/cpu/simd/amx_parts.hpp"

#if !defined(RAPT_BFLOAT16_DOT)
namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// As cpu/simd/avx512.hpp has it.
template <>
struct Vec<Bfloat16Pair> {
  static constexpr int kLanes = Vec<float>::kLanes;
  Bfloat16Pair v[kLanes];

  static Vec zero() { return {}; }
  static Vec load(const Bfloat16Pair* p) {
    Vec x;
    std::copy_n(p, kLanes, x.v);
    return x;
  }
  static Vec load_pairs(const bfloat16* p, index_t elements) {
    Vec x{};
    for (index_t i = 0; i < std::min<index_t>(elements, 2 * kLanes); ++i)
      (i % 2 == 0 ? x.v[i / 2].even : x.v[i / 2].odd) = p[i];
    return x;
  }
  static Vec broadcast_quad(const bfloat16* p) {
    Vec x;
    for (int i = 0; i < kLanes; ++i) x.v[i] = {p[i % 4 * 2], p[i % 4 * 2 + 1]};
    return x;
  }
  static Vec load_quads(const bfloat16* p) { return load_pairs(p, 2 * kLanes); }
  static Vec broadcast(const bfloat16& first) {
    Vec x;
    std::fill_n(x.v, kLanes, Bfloat16Pair{first, (&first)[1]});
    return x;
  }
  static Vec interleave(const bfloat16* even, const bfloat16* odd, index_t n) {
    Vec x{};
    for (index_t i = 0; i < n; ++i) x.v[i] = {even[i], odd == nullptr ? bfloat16{} : odd[i]};
    return x;
  }
  static void pair_rows(const bfloat16* first, const bfloat16* second, Vec& low, Vec& high) {
    low = interleave(first, second, kLanes);
    high = interleave(first + kLanes, second == nullptr ? second : second + kLanes, kLanes);
  }
  static void order_rows(Vec<float>&, Vec<float>&) {}
  static Vec load_mask(const std::int32_t* p) {
    Vec x;
    std::memcpy(x.v, p, sizeof x.v);
    return x;
  }
  friend Vec bit_and(Vec a, const Vec& mask) {
    std::int32_t bits[kLanes], of_mask[kLanes];
    std::memcpy(bits, a.v, sizeof a.v), std::memcpy(of_mask, mask.v, sizeof mask.v);
    for (int i = 0; i < kLanes; ++i) bits[i] &= of_mask[i];
    std::memcpy(a.v, bits, sizeof a.v);
    return a;
  }
  static Vec narrow(Vec<float> first, Vec<float> second) {
    bfloat16 numbers[2 * kLanes];
    first.store(numbers), second.store(numbers + kLanes);
    return load_pairs(numbers, 2 * kLanes);
  }
  static Vec narrow_pairs(Vec<float> even, Vec<float> odd) {
    bfloat16 numbers[2 * kLanes];
    even.store(numbers), odd.store(numbers + kLanes);
    return interleave(numbers, numbers + kLanes, kLanes);
  }
  template <int kParts>
  static void store_parts(Bfloat16Pair* p, index_t step, Vec<float> even, Vec<float> odd) {
    for (int part = 0; part < kParts; ++part) {
      bfloat16 numbers[2 * kLanes];
      even.store(numbers), odd.store(numbers + kLanes);
      interleave(numbers, numbers + kLanes, kLanes).store(p + part * step);
      even = even - Vec<float>::load(numbers), odd = odd - Vec<float>::load(numbers + kLanes);
    }
  }
  void store(Bfloat16Pair* p) const { std::copy_n(v, kLanes, p); }
  void store(bfloat16* p) const {
    for (int i = 0; i < kLanes; ++i) p[2 * i] = v[i].even, p[2 * i + 1] = v[i].odd;
  }

  friend Vec<float> fma(const Vec& a, const Vec& b, Vec<float> c) {
    float sums[kLanes];
    c.store(sums);
    for (int i = 0; i < kLanes; ++i) {
      sums[i] = std::fma(float(a.v[i].odd), float(b.v[i].odd), sums[i]);
      sums[i] = std::fma(float(a.v[i].even), float(b.v[i].even), sums[i]);
    }
    return Vec<float>::load(sums);
  }
  static void transpose(Vec (&a)[kLanes]) {
    for (int i = 0; i < kLanes; ++i)
      for (int j = i + 1; j < kLanes; ++j) std::swap(a[i].v[j], a[j].v[i]);
  }
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
#endif

namespace rapt::test {

/// As AmxTiles (cpu/simd/amx.hpp). Throws where the registers would have to be configured anew.
class EmulatedTiles {
 public:
  static constexpr index_t kRows = 32, kUnits = 16;

  void multiply(index_t rows, index_t vectors, float* to, index_t to_stride, const float* start,
                index_t start_stride, const bfloat16* a, index_t a_stride,
                const cpu::Bfloat16Pair* b, index_t b_stride, index_t depth) {
    if (rows != 16 && rows != kRows) throw std::logic_error("not a tile of 16 or 32 rows");
    if (vectors < 1 || vectors > 3 || depth % kUnits != 0) throw std::logic_error("not a tile");
    const index_t columns = 16 * vectors;
    float sums[kRows][48];
    for (index_t i = 0; i < rows; ++i)
      for (index_t c = 0; c < columns; ++c) sums[i][c] = start[i * start_stride + c];
    for (index_t u = 0; u < depth; u += kUnits)
      for (index_t i = 0; i < rows; ++i)
        add(sums[i], a + i * a_stride + 2 * u, b + u * b_stride, b_stride, columns);
    for (index_t i = 0; i < rows; ++i)
      for (index_t c = 0; c < columns; ++c) to[i * to_stride + c] = sums[i][c];
  }

 private:
  /// One instruction: 32 elements of k, even and odd ones apart.
  static void add(float* sums, const bfloat16* a, const cpu::Bfloat16Pair* b, index_t b_stride,
                  index_t columns) {
    float even[48] = {}, odd[48] = {};
    for (index_t k = 0; k < kUnits; ++k) {
      const float a_even = float(a[2 * k]), a_odd = float(a[2 * k + 1]);
      for (index_t c = 0; c < columns; ++c) {
        even[c] = std::fma(a_even, float(b[k * b_stride + c].even), even[c]);
        odd[c] = std::fma(a_odd, float(b[k * b_stride + c].odd), odd[c]);
      }
    }
    for (index_t c = 0; c < columns; ++c) sums[c] += even[c] + odd[c];
  }
};

/// As AmxPartTiles (cpu/simd/amx_parts.hpp), the parts one pair after the other.
class EmulatedPartTiles {
 public:
  template <class Parts>
  void multiply(index_t rows, index_t columns, bool add, float* to, index_t stride,
                const cpu::LeftParts<Parts, cpu::Bfloat16Pair>& a, const cpu::Bfloat16Pair* b,
                index_t blocks) {
    if (rows < 1 || rows > Parts::kRows || columns < 1 || columns > Parts::kRows)
      throw std::logic_error("not a tile");
    rows = rows > 16 ? 32 : 16, columns = columns > 16 ? 32 : 16;
    for (index_t i = 0; i < rows; ++i)
      for (index_t c = 0; c < columns; ++c) {
        float sum = add ? to[i * stride + c] : 0.f;
        for (index_t block = 0; block < blocks; ++block)
          for (const auto& [of_a, of_b] : {std::pair{2, 0}, {1, 0}, {1, 1}, {0, 1}, {0, 0}, {0, 2}})
            if (of_a < Parts::kLeft && of_b < Parts::kRight)
              sum += product(
                  a.data + block * a.block + of_a * a.part + i * a.row,
                  b + block * Parts::kBlock + of_b * Parts::kPart + c / 16 * Parts::kHalf + c % 16);
        to[i * stride + c] = sum;
      }
  }

 private:
  /// One instruction: 16 pairs of a row and of a column.
  static float product(const cpu::Bfloat16Pair* a, const cpu::Bfloat16Pair* b) {
    float even = 0, odd = 0;
    for (index_t u = 0; u < cpu::PartTile::kUnits; ++u) {
      even = std::fma(float(a[u].even), float(b[u * 16].even), even);
      odd = std::fma(float(a[u].odd), float(b[u * 16].odd), odd);
    }
    return even + odd;
  }
};

}  // namespace rapt::test
