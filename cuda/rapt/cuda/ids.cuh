// Finds the first id that is out of range, before anything is written by it.
//
//   bad(i)  =  ids[i] != ignored  and not (least <= ids[i] < end)
//
//   One thread per id; a bad one at flat index i raises a counter on the device to (count - i), so
//   the largest value names the first bad id whatever the order of the threads. The host waits for
//   the answer: one round trip.
#pragma once

#include <cstdint>

#include "rapt/core/scratch.hpp"
#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

/// What ids may be: least, ..., end - 1, and `ignored` (by default no 32-bit number).
struct IdRange {
  index_t least, end;
  index_t ignored = index_t{1} << 40;
};

template <class Id>
__global__ void find_bad_id_thread_per_id(TensorView<const Id, 2, Cuda> ids, IdRange range,
                                          unsigned long long* found) {
  const index_t columns = ids.extent(1), count = ids.size();
  for (index_t i = first_element(); i < count; i += element_step()) {
    const index_t id = ids(i / columns, i % columns);
    if (id != range.ignored && (id < range.least || id >= range.end))
      atomic_max(found, static_cast<unsigned long long>(count - i));
  }
}

struct BadId {
  bool found;
  index_t row, column;
  std::int32_t id;
};

inline BadId find_bad_id(Cuda backend, TensorView<const std::int32_t, 2, Cuda> ids, IdRange range) {
  using Traits = BackendTraits<Cuda>;
  if (ids.empty()) return {false, 0, 0, 0};
  Scratch<Cuda> scratch(backend);
  auto* found = scratch.template tensor<unsigned long long>(Shape{1}).data();
  Traits::fill_zero(backend, found, sizeof *found);
  launch("find_bad_id_thread_per_id", find_bad_id_thread_per_id<std::int32_t>,
         element_launch(ids.size()), backend, ids, range, found);
  unsigned long long answer = 0;
  Traits::copy_to_host(backend, &answer, found, sizeof answer);
  if (answer == 0) return {false, 0, 0, 0};
  const index_t i = ids.size() - static_cast<index_t>(answer);
  BadId bad{true, i / ids.extent(1), i % ids.extent(1), 0};
  Traits::copy_to_host(backend, &bad.id,
                       ids.data() + bad.row * ids.stride(0) + bad.column * ids.stride(1),
                       sizeof bad.id);
  return bad;
}

}  // namespace rapt::cuda
