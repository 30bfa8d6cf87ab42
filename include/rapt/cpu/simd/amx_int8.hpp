// Intel's matrix tiles: sums of products of bytes, 16 rows x 16 columns of int32, over quads of
// bytes (cpu/quantized_matmul_amx.hpp, cpu/attention_decode_int8_amx.hpp).
//
//   8 tile registers
//            b: 6 | 7         quads x 16 columns
//   a: 4 | 5    0   1         16 rows                 each of four products in its own sums:
//               2   3                                 one begins before another one ends
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include "rapt/cpu/simd/amx.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// Of the bytes of a and of b.
enum class AmxSigns { signed_unsigned, signed_signed, unsigned_signed };

/// A step of a product: 16 rows of quads of a, quads of 16 columns of b.
struct AmxOperands {
  const void *a, *b;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

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

  /// For i < n, with {a, b} = operands(i, step):
  ///   to[i][r][c] = sum over step < steps, q < kQuads (at most 16), t < 4 of
  ///                 a[r][4 q + t] b[q][c][t]
  /// r, c < 16; rows of a lie a_stride bytes apart, quads of b b_stride. Four are under way at a
  /// time: each is stored while the next ones are multiplied. Steps: index_t, or a constant of it.
  template <int kQuads, AmxSigns kSigns, class Steps, class Operands>
  void multiply(std::int32_t* to, index_t n, Steps steps, index_t a_stride, index_t b_stride,
                const Operands& operands) {
    configure(kQuads);
    const auto a_bytes = static_cast<std::size_t>(a_stride);
    const auto b_bytes = static_cast<std::size_t>(b_stride);
    // What was written must be there by now: the instructions below do not say what they read.
    asm volatile("" : : : "memory");
    index_t i = 0;
    for (; i + 4 <= n; i += 4) {
      unrolled<4>([&](auto k) __attribute__((always_inline)) {
        clear<k>();
        add<k, kSigns>(operands(i + k, 0), a_bytes, b_bytes);
        if (k < 2 ? i > 0 : steps == 1) store<(k + 2) % 4>(to + kProduct * (i + k - 2));
      });
      if (steps == 1) continue;
      for (index_t step = 1; step < steps; ++step)
        unrolled<4>([&](auto k) __attribute__((always_inline)) {
          add<k, kSigns>(operands(i + k, step), a_bytes, b_bytes);
        });
      store<0>(to + kProduct * i);
      store<1>(to + kProduct * (i + 1));
    }
    if (i > 0) {
      store<2>(to + kProduct * (i - 2));
      store<3>(to + kProduct * (i - 1));
    }
    for (; i < n; ++i) {
      clear<0>();
      for (index_t step = 0; step < steps; ++step)
        add<0, kSigns>(operands(i, step), a_bytes, b_bytes);
      store<0>(to + kProduct * i);
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

  // (The intrinsics take names of registers as literals alone.)
  template <int kTile>
  static void clear() {
    asm volatile("tilezero {%%tmm%c0|tmm%c0}" : : "i"(kTile));
  }
  template <int kTile>
  static void load(const void* p, std::size_t stride) {
    asm volatile("tileloadd {(%1,%2,1), %%tmm%c0|tmm%c0, [%1+%2*1]}"
                 :
                 : "i"(kTile), "r"(p), "r"(stride));
  }
  template <int kTile>
  static void store(std::int32_t* p) {
    asm volatile("tilestored {%%tmm%c0, (%1,%2,1)|[%1+%2*1], tmm%c0}"
                 :
                 : "i"(kTile), "r"(p), "r"(std::size_t{64})
                 : "memory");
  }
  template <int kTile, AmxSigns kSigns>
  static void add(const AmxOperands& operands, std::size_t a_stride, std::size_t b_stride) {
    constexpr int kA = 4 + kTile % 2, kB = 6 + kTile % 2;
    load<kA>(operands.a, a_stride);
    load<kB>(operands.b, b_stride);
    if constexpr (kSigns == AmxSigns::signed_unsigned)
      asm volatile("tdpbsud {%%tmm%c2, %%tmm%c1, %%tmm%c0|tmm%c0, tmm%c1, tmm%c2}"
                   :
                   : "i"(kTile), "i"(kA), "i"(kB));
    else if constexpr (kSigns == AmxSigns::signed_signed)
      asm volatile("tdpbssd {%%tmm%c2, %%tmm%c1, %%tmm%c0|tmm%c0, tmm%c1, tmm%c2}"
                   :
                   : "i"(kTile), "i"(kA), "i"(kB));
    else
      asm volatile("tdpbusd {%%tmm%c2, %%tmm%c1, %%tmm%c0|tmm%c0, tmm%c1, tmm%c2}"
                   :
                   : "i"(kTile), "i"(kA), "i"(kB));
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
  template <int kQuads, AmxSigns kSigns, class... Arguments>
  void multiply(const Arguments&...) {}  // never called
};
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

#endif
