// Attention in half by products of two parts of bfloat16: attention/parts_cases.hpp.
#include "rapt/core/dtype.hpp"

namespace rapt::test {
using Element = half;
}

#include "attention/parts_cases.hpp"
