// Intel's matrix tiles for numbers in parts of bfloat16 (cpu/float_parts.hpp): sums of up to 32
// rows x 32 columns.
//
//   8 tile registers of 16 rows x 64 bytes
//              b: 6 | 7         one part of 16 pairs (columns) x 16 units of k each
//   a: 4           0   1        one part of 16 rows x 16 units of k each
//      5           2   3
//
// Six of the nine pairs of three parts are multiplied, or all four of two, in an order in which
// each but the first loads one part anew: 14 loads for 24 products, or 10 for 16 (8 for 12, or 6
// for 8, where b has one part). Loads count: while another program runs on the core's second
// thread, loads and products take turns.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include <type_traits>

#include "rapt/core/dtype.hpp"
#include "rapt/cpu/simd/amx.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// A tile of a factor in parts: 32 rows, or columns, and 32 elements of k a block. Sizes of parts
/// and halves are in pairs of bfloat16.
struct PartTile {
  static constexpr index_t kRows = 32, kDepth = 32;
  static constexpr index_t kUnits = kDepth / 2;         // pairs of a row
  static constexpr index_t kHalf = kRows / 2 * kUnits;  // 16 rows or columns of a part
  static constexpr index_t kPart = 2 * kHalf;
};

/// A number of T is the sum of so many parts of bfloat16.
template <class T>
inline constexpr int kPartsOf = std::is_same_v<T, float>  ? 3
                                : std::is_same_v<T, half> ? 2
                                                          : 1;

/// Blocks of such tiles: kLeft parts of T by kRight of S.
template <class T, class S = T>
struct PartsOf : PartTile {
  static constexpr int kLeft = kPartsOf<T>, kRight = kPartsOf<S>;
  static_assert(kLeft == kRight || kRight == 1);
  static constexpr index_t kLeftBlock = kLeft * kPart, kBlock = kRight * kPart;
};

/// A left factor: where in it a row, a part and a block begin. Right factors are blocks one behind
/// the other.
template <class Parts, class Unit>
struct LeftParts {
  Unit* data;
  index_t row = Parts::kUnits, part = Parts::kPart, block = Parts::kLeftBlock;

  LeftParts from_row(index_t r) const { return {data + r * row, row, part, block}; }
};

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)

/// The tile registers of this thread, while the object lives.
class AmxPartTiles {
 public:
  AmxPartTiles() {
    AmxShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, 16, 64);
    shapes.load();
  }
  AmxPartTiles(const AmxPartTiles&) = delete;
  AmxPartTiles& operator=(const AmxPartTiles&) = delete;
  ~AmxPartTiles() { _tile_release(); }

  /// to[rows, columns] = a b (+ to) over `blocks` blocks of k; rows and columns up to 32, 16 or 32
  /// of which are read and written.
  template <class Parts>
  void multiply(index_t rows, index_t columns, bool add, float* to, index_t stride,
                const LeftParts<Parts, Bfloat16Pair>& a, const Bfloat16Pair* b, index_t blocks) {
    if (rows > 16)
      columns > 16 ? run<true, true>(add, to, stride, a, b, blocks)
                   : run<true, false>(add, to, stride, a, b, blocks);
    else
      columns > 16 ? run<false, true>(add, to, stride, a, b, blocks)
                   : run<false, false>(add, to, stride, a, b, blocks);
  }

 private:
  template <bool kRows2, bool kColumns2, class Parts>
  [[gnu::noinline]] static void run(bool add, float* to, index_t stride,
                                    const LeftParts<Parts, Bfloat16Pair>& left,
                                    const Bfloat16Pair* b, index_t blocks) {
    constexpr index_t kPart = Parts::kPart, kHalf = Parts::kHalf;
    constexpr int kLeft = Parts::kLeft, kRight = Parts::kRight;
    constexpr bool kBoth = kRows2 && kColumns2;
    const Bfloat16Pair* a = left.data;
    const index_t second = 16 * left.row, part = left.part;
    const auto row_bytes = static_cast<std::size_t>(left.row) * sizeof(Bfloat16Pair);
    const auto bytes = static_cast<std::size_t>(stride) * sizeof(float);
    float* const to2 = to + 16 * stride;
    asm volatile("" : : : "memory");  // as in AmxTiles
    if (add) {
      _tile_loadd(0, to, bytes);
      if constexpr (kColumns2) _tile_loadd(1, to + 16, bytes);
      if constexpr (kRows2) _tile_loadd(2, to2, bytes);
      if constexpr (kBoth) _tile_loadd(3, to2 + 16, bytes);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (index_t i = 0; i < blocks; ++i, a += left.block, b += Parts::kBlock) {
      const auto by_a = [&](index_t p) __attribute__((always_inline)) {
        _tile_loadd(4, a + p * part, row_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (kColumns2) _tile_dpbf16ps(1, 4, 7);
        if constexpr (kRows2) _tile_loadd(5, a + p * part + second, row_bytes);
        if constexpr (kRows2) _tile_dpbf16ps(2, 5, 6);
        if constexpr (kBoth) _tile_dpbf16ps(3, 5, 7);
      };
      const auto by_b = [&](index_t p) __attribute__((always_inline)) {
        _tile_loadd(6, b + p * kPart, 64);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (kRows2) _tile_dpbf16ps(2, 5, 6);
        if constexpr (kColumns2) _tile_loadd(7, b + p * kPart + kHalf, 64);
        if constexpr (kColumns2) _tile_dpbf16ps(1, 4, 7);
        if constexpr (kBoth) _tile_dpbf16ps(3, 5, 7);
      };
      _tile_loadd(6, b, 64);
      if constexpr (kColumns2) _tile_loadd(7, b + kHalf, 64);
      if constexpr (kLeft > 2) by_a(2);   // a2 b0
      if constexpr (kLeft > 1) by_a(1);   // a1 b0
      if constexpr (kRight > 1) by_b(1);  // a1 b1
      by_a(0);                            // a0 b1, or a0 b0 where b has one part
      if constexpr (kRight > 1) by_b(0);  // a0 b0
      if constexpr (kRight > 2) by_b(2);  // a0 b2
    }
    _tile_stored(0, to, bytes);
    if constexpr (kColumns2) _tile_stored(1, to + 16, bytes);
    if constexpr (kRows2) _tile_stored(2, to2, bytes);
    if constexpr (kBoth) _tile_stored(3, to2 + 16, bytes);
  }
};

#else

struct AmxPartTiles {
  template <class... Arguments>
  void multiply(const Arguments&...) {}  // never called
};

#endif

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
