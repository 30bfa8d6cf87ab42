// Attention over keys and values of int8 codes.
#include <cstdint>

#include "rapt/core/dtype.hpp"

namespace rapt {
using Codes = std::int8_t;
}  // namespace rapt

#include "attention_forward_codes.cuh"
