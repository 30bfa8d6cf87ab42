// embedding on the CPU (core/backend.hpp): rows of a table, by id.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::embedding(Cpu, TensorView<T, 3> out, TensorView<const T, 2> table,
                                   TensorView<const std::int32_t, 2> ids, accumulate_t<T> scale) {
  using A = accumulate_t<T>;
  const index_t seq = ids.extent(1), n = table.extent(1);
  for (index_t b = 0; b < ids.extent(0); ++b)
    for (index_t s = 0; s < seq; ++s)
      if (const index_t id = ids(b, s); id < 0 || id >= table.extent(0))
        throw ValueError(detail::text("embedding: ids[", b, ", ", s, "] is ", id,
                                      ", expected 0 to ", table.extent(0) - 1,
                                      ", the rows of table"));
  cpu::for_row_ranges(ids.extent(0) * seq, n, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      const T* from = table.data() + index_t{ids(i / seq, i % seq)} * table.stride(0);
      T* to = cpu::row_at(out, i);
      if (scale == A{1})
        std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
      else
        for (index_t j = 0; j < n; ++j) to[j] = static_cast<T>(static_cast<A>(from[j]) * scale);
    }
  });
}

}  // namespace rapt
