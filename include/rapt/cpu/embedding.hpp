// embedding on the CPU (core/backend.hpp): rows of a table, by id. In its gradient a task owns a
// strip of columns and walks all tokens, so that an id that comes twice is summed in their order.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

inline void check_ids(const char* operation, const char* table,
                      TensorView<const std::int32_t, 2> ids, index_t rows) {
  for (index_t b = 0; b < ids.extent(0); ++b)
    for (index_t s = 0; s < ids.extent(1); ++s)
      if (const index_t id = ids(b, s); id < 0 || id >= rows)
        throw ValueError(rapt::detail::text(operation, ": ids[", b, ", ", s, "] is ", id,
                                            ", expected 0 to ", rows - 1, ", the rows of ", table));
}

template <class T, class A>
void add_rows_by_id(TensorView<A, 2> table, TensorView<const T, 3> dy,
                    TensorView<const std::int32_t, 2> ids, A scale) {
  constexpr index_t kColumns = 64;
  const index_t seq = ids.extent(1), n = table.extent(1);
  const Vec<A> factor = Vec<A>::broadcast(scale);
  parallel_for((n + kColumns - 1) / kColumns, [&](index_t task) {
    const index_t first = task * kColumns, columns = std::min(kColumns, n - first);
    for (index_t b = 0; b < ids.extent(0); ++b)
      for (index_t s = 0; s < seq; ++s) {
        const T* from = dy.data() + b * dy.stride(0) + s * dy.stride(1) + first;
        A* to = table.data() + index_t{ids(b, s)} * table.stride(0) + first;
        by_vectors<A>(columns, [&](index_t j, auto v) {
          v.store(to + j, fma(factor, v.load(from + j), v.load(to + j)));
        });
      }
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T>
void BackendTraits<Cpu>::embedding(Cpu, TensorView<T, 3> out, TensorView<const T, 2> table,
                                   TensorView<const std::int32_t, 2> ids, accumulate_t<T> scale) {
  using A = accumulate_t<T>;
  cpu::check_ids("embedding", "table", ids, table.extent(0));
  const index_t seq = ids.extent(1), n = table.extent(1);
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

template <class T>
void BackendTraits<Cpu>::embedding_backward(Cpu, TensorView<accumulate_t<T>, 2> dtable,
                                            TensorView<const T, 3> dy,
                                            TensorView<const std::int32_t, 2> ids,
                                            accumulate_t<T> scale) {
  cpu::check_ids("embedding_backward", "dtable", ids, dtable.extent(0));
  cpu::add_rows_by_id(dtable, dy, ids, scale);
}

}  // namespace rapt
