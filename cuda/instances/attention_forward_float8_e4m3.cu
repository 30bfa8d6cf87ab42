// Attention over keys and values of fp8 (e4m3) codes.
#include <cstdint>

#include "rapt/core/dtype.hpp"

namespace rapt {
using Codes = float8_e4m3;
}  // namespace rapt

#include "attention_forward_codes.cuh"
