// The few names every other header stands on: the index type and the host/device mark.
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

namespace rapt {

/// Extents, strides and positions. Signed, because a query may stand before the first key
/// (q_len > kv_len gives negative positions), and 64-bit, because batch * heads * seq * dim
/// passes 2^31 in ordinary use.
using index_t = std::int64_t;

}  // namespace rapt
