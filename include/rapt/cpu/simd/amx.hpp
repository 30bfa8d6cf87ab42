// Intel's matrix tiles: sums of up to 32 rows x 3 vectors of products of bfloat16 pairs.
//
//   8 tile registers of 16 rows x 64 bytes
//        b: 7 | 7 | 7        one vector of 16 pairs (columns) x 16 units of k, loaded in turn
//   a: 6      0   1   2      rows [0, h)              6: h rows x 16 units of k
//      6      3   4   5      rows [rows - h, rows)    h = half the rows: the two may share one
//
// The panels are those that vdpbf16ps reads (cpu/gemm.hpp). A tile adds the products of 32
// elements of k at a time, even and odd ones apart; what is left of k is multiplied by vdpbf16ps.
//
// The operating system must grant the registers: amx_granted() asks once.
//
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.
#pragma once

#include "rapt/cpu/simd.hpp"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

namespace rapt::cpu {
inline namespace RAPT_SIMD {

inline constexpr bool kAmx = true;

/// Whether this process may use the tiles.
inline bool amx_granted() {
  static const bool granted = [] {
    constexpr long kRequestPermission = 0x1023, kTileData = 18;  // of arch_prctl
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return granted;
}

/// Shapes of the eight tile registers, as ldtilecfg reads them.
struct alignas(64) AmxShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};

  void set(int tile, index_t tile_rows, index_t bytes) {
    rows[tile] = static_cast<std::uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<std::uint16_t>(bytes);
  }
  void load() const {
    // g++ 12 tells its optimiser that ldtilecfg reads 8 of the 64 bytes: all must be stored before.
    asm volatile("" : : "r"(this) : "memory");
    _tile_loadconfig(this);
  }
};

/// The tile registers of this thread, while the object lives.
class AmxTiles {
 public:
  static constexpr index_t kRows = 32, kUnits = 16;

  AmxTiles() = default;
  AmxTiles(const AmxTiles&) = delete;
  AmxTiles& operator=(const AmxTiles&) = delete;
  ~AmxTiles() {
    if (height_ > 0) _tile_release();
  }

  /// The arguments of a TileKernel, but units of b lie b_stride pairs apart; depth is a multiple of
  /// kUnits.
  void multiply(index_t rows, index_t vectors, float* to, index_t to_stride, const float* start,
                index_t start_stride, const bfloat16* a, index_t a_stride, const Bfloat16Pair* b,
                index_t b_stride, index_t depth) {
    const bool halves = rows > 16;
    configure(halves ? (rows + 1) / 2 : rows);
    const index_t second = rows - height_;
    const auto run = [&]<int kVectors>(std::integral_constant<int, kVectors>) {
      if (halves)
        multiply<kVectors, true>(to, to_stride, start, start_stride, a, a_stride, b, b_stride,
                                 depth, second);
      else
        multiply<kVectors, false>(to, to_stride, start, start_stride, a, a_stride, b, b_stride,
                                  depth, 0);
    };
    if (vectors == 3)
      run(std::integral_constant<int, 3>{});
    else if (vectors == 2)
      run(std::integral_constant<int, 2>{});
    else
      run(std::integral_constant<int, 1>{});
  }

 private:
  void configure(index_t height) {
    if (height == height_) return;
    AmxShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, tile == 7 ? 16 : height, 64);
    shapes.load();
    height_ = height;
  }

  template <int kVectors, bool kHalves>
  static void multiply(float* to, index_t to_stride, const float* start, index_t start_stride,
                       const bfloat16* a, index_t a_stride, const Bfloat16Pair* b, index_t b_stride,
                       index_t depth, index_t second) {
    const auto row_bytes = [](index_t elements, std::size_t size) {
      return static_cast<std::size_t>(elements) * size;
    };
    const std::size_t start_bytes = row_bytes(start_stride, sizeof(float));
    const std::size_t to_bytes = row_bytes(to_stride, sizeof(float));
    const std::size_t a_bytes = row_bytes(a_stride, sizeof(bfloat16));
    const std::size_t b_bytes = row_bytes(b_stride, sizeof(Bfloat16Pair));
    const float* const start2 = start + second * start_stride;
    // Nor does g++ 12 say that tileloadd reads memory: what was written must be there by now.
    asm volatile("" : : : "memory");
    _tile_loadd(0, start, start_bytes);
    if constexpr (kVectors > 1) _tile_loadd(1, start + 16, start_bytes);
    if constexpr (kVectors > 2) _tile_loadd(2, start + 32, start_bytes);
    if constexpr (kHalves) {
      _tile_loadd(3, start2, start_bytes);
      if constexpr (kVectors > 1) _tile_loadd(4, start2 + 16, start_bytes);
      if constexpr (kVectors > 2) _tile_loadd(5, start2 + 32, start_bytes);
    }
    const bfloat16* const a2 = a + second * a_stride;
    for (index_t u = 0; u < depth; u += kUnits) {
      const Bfloat16Pair* const bu = b + u * b_stride;
      _tile_loadd(6, a + 2 * u, a_bytes);
      _tile_loadd(7, bu, b_bytes);
      _tile_dpbf16ps(0, 6, 7);
      if constexpr (kVectors > 1) {
        _tile_loadd(7, bu + 16, b_bytes);
        _tile_dpbf16ps(1, 6, 7);
      }
      if constexpr (kVectors > 2) {
        _tile_loadd(7, bu + 32, b_bytes);
        _tile_dpbf16ps(2, 6, 7);
      }
      if constexpr (kHalves) {
        _tile_loadd(6, a2 + 2 * u, a_bytes);
        if constexpr (kVectors > 2) _tile_dpbf16ps(5, 6, 7);
        if constexpr (kVectors > 1) {
          if constexpr (kVectors > 2) _tile_loadd(7, bu + 16, b_bytes);
          _tile_dpbf16ps(4, 6, 7);
          _tile_loadd(7, bu, b_bytes);
        }
        _tile_dpbf16ps(3, 6, 7);
      }
    }
    _tile_stored(0, to, to_bytes);
    if constexpr (kVectors > 1) _tile_stored(1, to + 16, to_bytes);
    if constexpr (kVectors > 2) _tile_stored(2, to + 32, to_bytes);
    if constexpr (kHalves) {
      float* const to2 = to + second * to_stride;
      _tile_stored(3, to2, to_bytes);
      if constexpr (kVectors > 1) _tile_stored(4, to2 + 16, to_bytes);
      if constexpr (kVectors > 2) _tile_stored(5, to2 + 32, to_bytes);
    }
  }

  index_t height_ = 0;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

#else

namespace rapt::cpu {
inline namespace RAPT_SIMD {
inline constexpr bool kAmx = false;
inline bool amx_granted() { return false; }
struct AmxTiles {
  static constexpr index_t kRows = 32, kUnits = 16;
  template <class... Arguments>
  void multiply(const Arguments&...) {}  // never called
};
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

#endif
