// One thin wrapper over the integer dot products of the machine, beside Vec (cpu/simd.hpp).
//
//   Quads   kLanes (those of Vec<float>) groups of four bytes, or as many int32
//
//   zero() load(p)          4 kLanes bytes             broadcast(p)      the same four bytes
//   everywhere a.right<n>() a.left<n>()  shifts inside 16 bits: mask away what comes from the
//   neighbour a & b, a | b            bitwise                    bytes(x)          the byte x
//   everywhere dot(s, c, x)            s[i] + sum of c[4 i + t] x[4 i + t] over t = 0..3;  c
//   unsigned, below 128;
//                           x signed, -127 to 127      dot_wide          c up to 255
//   to_float(a)             of int32                   unsigned_lanes(p), signed_lanes(p)   kLanes
//                                                      bytes at p as floats
//   store_int8(p, v)        kLanes floats to the nearest int8
//
// and, with AVX-512 VNNI, what cpu/attention_decode_int8.hpp takes besides: load(p, n), store(p),
// repeat16(p), a.plus128(), interleave_half(), store_signed_digits(), store_digits(),
// any_negative().
//
//   vpdpbusd (AVX-512 VNNI, AVX-VNNI), vpmaddubsw + vpmaddwd (AVX-512 BW, AVX2), sdot (NEON), plain
//   code elsewhere: the sums are exact everywhere, so all machines agree.
#pragma once

#include "rapt/cpu/simd.hpp"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX2__) && defined(__FMA__)
#include "rapt/cpu/simd/int8_avx512.hpp"
#elif defined(__AVX2__) && defined(__FMA__)
#include "rapt/cpu/simd/int8_avx2.hpp"
#elif defined(__ARM_NEON) && defined(__aarch64__)
#include "rapt/cpu/simd/int8_neon.hpp"
#else
#include "rapt/cpu/simd/int8_portable.hpp"
#endif
