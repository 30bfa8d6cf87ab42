// A mask made of runs that differ from head to head.
#pragma once

#include "rapt/mask/mask.hpp"

namespace rapt::test {

/// Head h sees some 11 h keys up to the query; odd heads do not see the query's own, and head 0
/// nothing at all.
struct WindowOfHead {
  constexpr PositionRange visible_range(index_t, index_t h, index_t q) const {
    return {q + 1 - 11 * h, q + 1 - h % 2};
  }
  constexpr bool operator()(index_t b, index_t h, index_t q, index_t kv) const {
    const PositionRange run = visible_range(b, h, q);
    return kv >= run.begin && kv < run.end;
  }
};
static_assert(RangeMask<WindowOfHead>);

}  // namespace rapt::test
