// Attention over keys and values of fp8 (e5m2) codes.
#include <cstdint>

#include "rapt/core/dtype.hpp"

namespace rapt {
using Codes = float8_e5m2;
}  // namespace rapt

#include "attention_forward_codes.cuh"
