// The few names every other header stands on: the index type, the host/device mark, and the name
// of the instruction set that this file is compiled for.
#pragma once

#include <cstddef>
#include <cstdint>

// Marks a function that both a CPU and a GPU may call: masks, score modifiers, views, dtypes.
// Outside a CUDA compiler it is nothing.
#if defined(__CUDACC__)
#define RAPT_HOST_DEVICE __host__ __device__
#else
#define RAPT_HOST_DEVICE
#endif

// Dot products of bfloat16 pairs (vdpbf16ps) are for processors that run them at twice the rate of
// fp32 multiply-adds: AMD's. Intel's run them at half of it and leave bfloat16 to matrix registers;
// where such a processor has none, or a virtual machine hides them, converting to fp32 is up to
// twice as fast. Compilers name the processor family where they are told of it (-march=native).
#if defined(__AVX512BF16__) &&                                                          \
    (defined(__AMX_BF16__) ||                                                           \
     !(defined(__corei7__) || defined(__cooperlake__) || defined(__sapphirerapids__) || \
       defined(__graniterapids__) || defined(__graniterapids_d__) || defined(__diamondrapids__)))
#define RAPT_BFLOAT16_DOT
#endif

// The instruction set, chosen from the target flags as Eigen does: the name of the inline namespace
// around all code that depends on it. The tag type Cpu lives there too, so that every function on
// tensors of the CPU has another name where a file was built with other flags: the linker never
// takes one file's AVX-512 for another file's SSE2.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && \
    defined(__AVX512VL__) && defined(__AVX2__) && defined(__FMA__)
#if defined(__AMX_BF16__) && defined(RAPT_BFLOAT16_DOT) && defined(__AVX512VNNI__)
#define RAPT_SIMD avx512_amx_vnni
#elif defined(__AMX_BF16__) && defined(RAPT_BFLOAT16_DOT)
#define RAPT_SIMD avx512_amx
#elif defined(RAPT_BFLOAT16_DOT) && defined(__AVX512VNNI__)
#define RAPT_SIMD avx512_bf16_vnni
#elif defined(RAPT_BFLOAT16_DOT)
#define RAPT_SIMD avx512_bf16
#elif defined(__AVX512VNNI__)
#define RAPT_SIMD avx512_vnni
#else
#define RAPT_SIMD avx512
#endif
#elif defined(__AVX2__) && defined(__FMA__)
#if defined(__AVXVNNI__)
#define RAPT_SIMD avx2_vnni
#else
#define RAPT_SIMD avx2
#endif
#elif defined(__ARM_NEON) && defined(__aarch64__)
#if defined(__ARM_FEATURE_DOTPROD)
#define RAPT_SIMD neon_dot
#else
#define RAPT_SIMD neon
#endif
#else
#define RAPT_SIMD portable
#endif

namespace rapt {

/// Extents, strides and positions. Signed, because a query may stand before the first key
/// (q_len > kv_len gives negative positions), and 64-bit, because batch * heads * seq * dim
/// passes 2^31 in ordinary use.
using index_t = std::int64_t;

}  // namespace rapt
