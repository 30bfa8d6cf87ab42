// embedding on the GPU: out[b,s,:] = scale * table[ids[b,s],:]. Ids are checked first (ids.cuh);
// then one thread per element, bound by memory traffic.
#pragma once

#include "rapt/cuda/ids.cuh"

namespace rapt::cuda {

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

}  // namespace rapt
