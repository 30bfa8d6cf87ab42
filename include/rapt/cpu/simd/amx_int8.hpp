// Intel's matrix tiles: sums of products of bytes, 16 rows x 16 columns of int32, over as many
// quads as a block of quantized weights has (cpu/quantized_matmul_amx.hpp).
//
//   8 tile registers
//            b: 6 | 7         quads x 16 columns, unsigned
//   a: 4 | 5    0   1         16 rows, signed         each of four products in its own sums:
//               2   3                                 one begins before another one ends
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include "rapt/cpu/simd/amx.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AMX_INT8__) && defined(__linux__)

namespace rapt::cpu {
inline namespace RAPT_SIMD {

inline constexpr bool kAmxInt8 = true;

/// The tile registers of this thread, while the object lives.
class AmxQuads {
 public:
  AmxQuads() = default;
  AmxQuads(const AmxQuads&) = delete;
  AmxQuads& operator=(const AmxQuads&) = delete;
  ~AmxQuads() {
    if (quads_ > 0) _tile_release();
  }

  /// For i < n, with {a, b} = operands(i):
  ///   to[i][r][c] = sum over q < kQuads (at most 16), t < 4 of a[r][4 q + t] b[q][c][t]
  /// r, c < 16; rows of a lie a_stride bytes apart. Four are under way at a time: each is stored
  /// while the next ones are multiplied.
  template <int kQuads, class Operands>
  void multiply(std::int32_t* to, index_t n, index_t a_stride, const Operands& operands) {
    configure(kQuads);
    const auto bytes = static_cast<std::size_t>(a_stride);
    // g++ 12 does not say that tileloadd reads memory: what was written must be there by now.
    asm volatile("" : : : "memory");
    index_t i = 0;
    for (; i + 4 <= n; i += 4) {  // (names of registers are literals)
      const auto [a0, b0] = operands(i);
      _tile_zero(0);
      _tile_loadd(4, a0, bytes);
      _tile_loadd(6, b0, 64);
      _tile_dpbsud(0, 4, 6);
      if (i > 0) _tile_stored(2, to + kProduct * (i - 2), 64);
      const auto [a1, b1] = operands(i + 1);
      _tile_zero(1);
      _tile_loadd(5, a1, bytes);
      _tile_loadd(7, b1, 64);
      _tile_dpbsud(1, 5, 7);
      if (i > 0) _tile_stored(3, to + kProduct * (i - 1), 64);
      const auto [a2, b2] = operands(i + 2);
      _tile_zero(2);
      _tile_loadd(4, a2, bytes);
      _tile_loadd(6, b2, 64);
      _tile_dpbsud(2, 4, 6);
      _tile_stored(0, to + kProduct * i, 64);
      const auto [a3, b3] = operands(i + 3);
      _tile_zero(3);
      _tile_loadd(5, a3, bytes);
      _tile_loadd(7, b3, 64);
      _tile_dpbsud(3, 5, 7);
      _tile_stored(1, to + kProduct * (i + 1), 64);
    }
    if (i > 0) {
      _tile_stored(2, to + kProduct * (i - 2), 64);
      _tile_stored(3, to + kProduct * (i - 1), 64);
    }
    for (; i < n; ++i) {
      const auto [a, b] = operands(i);
      _tile_zero(0);
      _tile_loadd(4, a, bytes);
      _tile_loadd(6, b, 64);
      _tile_dpbsud(0, 4, 6);
      _tile_stored(0, to + kProduct * i, 64);
    }
  }

 private:
  static constexpr index_t kProduct = 16 * 16;

  void configure(int quads) {
    if (quads == quads_) return;
    AmxShapes shapes;
    for (int tile = 0; tile < 4; ++tile) shapes.set(tile, 16, 64);
    for (int tile = 4; tile < 6; ++tile) shapes.set(tile, 16, 4 * quads);
    for (int tile = 6; tile < 8; ++tile) shapes.set(tile, quads, 64);
    shapes.load();
    quads_ = quads;
  }

  int quads_ = 0;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

#else

namespace rapt::cpu {
inline namespace RAPT_SIMD {
inline constexpr bool kAmxInt8 = false;
struct AmxQuads {
  template <int kQuads, class... Arguments>
  void multiply(const Arguments&...) {}  // never called
};
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

#endif
