// The matrix registers of AMX-INT8 in plain loops, for machines without them: the kernels for those
// that have them are tested anywhere. The products are exact.
//
// Source: Intel Architecture Instruction Set Extensions Programming Reference, TDPBSSD, TDPBSUD,
// TDPBUSD.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "rapt/cpu/simd/amx_int8.hpp"

namespace rapt::test {

/// As AmxQuads (cpu/simd/amx_int8.hpp).
class EmulatedQuads {
 public:
  template <int kQuads, cpu::AmxSigns kSigns, class Operands>
  void multiply(std::int32_t* to, index_t n, index_t steps, index_t a_stride, index_t b_stride,
                const Operands& operands) {
    using A =
        std::conditional_t<kSigns == cpu::AmxSigns::unsigned_signed, std::uint8_t, std::int8_t>;
    using B =
        std::conditional_t<kSigns == cpu::AmxSigns::signed_unsigned, std::uint8_t, std::int8_t>;
    for (index_t i = 0; i < n; ++i, to += 256) {
      std::fill_n(to, 256, 0);
      for (index_t step = 0; step < steps; ++step) {
        const cpu::AmxOperands of = operands(i, step);
        add<kQuads>(to, static_cast<const A*>(of.a), a_stride, static_cast<const B*>(of.b),
                    b_stride);
      }
    }
  }

 private:
  template <int kQuads, class A, class B>
  static void add(std::int32_t* to, const A* a, index_t a_stride, const B* b, index_t b_stride) {
    for (index_t r = 0; r < 16; ++r)
      for (index_t q = 0; q < kQuads; ++q)
        for (index_t c = 0; c < 16; ++c)
          for (index_t t = 0; t < 4; ++t)
            to[16 * r + c] += a[r * a_stride + 4 * q + t] * b[q * b_stride + 4 * c + t];
  }
};

}  // namespace rapt::test
