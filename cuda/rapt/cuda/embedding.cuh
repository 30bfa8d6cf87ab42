// embedding on the GPU: out[b,s,:] = scale * table[ids[b,s],:]. Ids are checked first (ids.cuh);
// then one thread per element, bound by memory traffic. The gradient adds the tokens of an id in
// their order, without atomics.
#pragma once

#include "rapt/cuda/ids.cuh"

namespace rapt::cuda {

inline constexpr int kEmbeddingThreads = 128;

template <class T>
__global__ void embedding_thread_per_element(TensorView<T, 3, Cuda> out,
                                             TensorView<const T, 2, Cuda> table,
                                             TensorView<const std::int32_t, 2, Cuda> ids,
                                             accumulate_t<T> scale) {
  using A = accumulate_t<T>;
  const index_t seq = out.extent(1), n = out.extent(2), elements = out.size();
  for (index_t e = first_element(); e < elements; e += element_step()) {
    const index_t b = e / n / seq, s = e / n % seq, j = e % n;
    out(b, s, j) = static_cast<T>(static_cast<A>(table(ids(b, s), j)) * scale);
  }
}

/// dtable[id,:] += scale * dy of every token with that id, in the order of the tokens. One block
/// per token; the first token of an id owns its row, the others have nothing to do. Thread t owns
/// columns t, t + block, ...; the ids are read tokens^2 / 2 times, from the caches.
template <class T>
__global__ void embedding_gradient_block_per_token(TensorView<accumulate_t<T>, 2, Cuda> dtable,
                                                   TensorView<const T, 3, Cuda> dy,
                                                   TensorView<const std::int32_t, 2, Cuda> ids,
                                                   accumulate_t<T> scale) {
  using A = accumulate_t<T>;
  const index_t seq = ids.extent(1), tokens = ids.size(), n = dtable.extent(1);
  const auto id_of = [&](index_t token) { return ids(token / seq, token % seq); };
  for (index_t token = block_index(); token < tokens; token += grid_size()) {
    const std::int32_t id = id_of(token);
    int came_before = 0;
    for (index_t other = thread_index(); other < token; other += block_size())
      if (id_of(other) == id) came_before = 1;
    if (block_max(came_before) > 0) continue;  // the whole block agrees
    for (index_t j = thread_index(); j < n; j += block_size()) {
      A sum = dtable(id, j);
      for (index_t other = token; other < tokens; ++other)
        if (id_of(other) == id) sum += scale * static_cast<A>(dy(other / seq, other % seq, j));
      dtable(id, j) = sum;
    }
  }
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::embedding(Cuda backend, TensorView<T, 3, Cuda> out,
                                    TensorView<const T, 2, Cuda> table,
                                    TensorView<const std::int32_t, 2, Cuda> ids,
                                    accumulate_t<T> scale) {
  if (const auto bad = cuda::find_bad_id(backend, ids, {0, table.extent(0)}); bad.found)
    throw ValueError(detail::text("embedding: ids[", bad.row, ", ", bad.column, "] is ", bad.id,
                                  ", expected 0 to ", table.extent(0) - 1, ", the rows of table"));
  cuda::launch("embedding_thread_per_element", cuda::embedding_thread_per_element<T>,
               cuda::element_launch(out.size()), backend, out, table, ids, scale);
}

template <class T>
void BackendTraits<Cuda>::embedding_backward(Cuda backend,
                                             TensorView<accumulate_t<T>, 2, Cuda> dtable,
                                             TensorView<const T, 3, Cuda> dy,
                                             TensorView<const std::int32_t, 2, Cuda> ids,
                                             accumulate_t<T> scale) {
  if (const auto bad = cuda::find_bad_id(backend, ids, {0, dtable.extent(0)}); bad.found)
    throw ValueError(detail::text("embedding_backward: ids[", bad.row, ", ", bad.column, "] is ",
                                  bad.id, ", expected 0 to ", dtable.extent(0) - 1,
                                  ", the rows of dtable"));
  cuda::launch("embedding_gradient_block_per_token", cuda::embedding_gradient_block_per_token<T>,
               {cuda::blocks_for(ids.size()), cuda::kEmbeddingThreads, cuda::kReduceBytes<int>},
               backend, dtable, dy, ids, scale);
}

}  // namespace rapt
