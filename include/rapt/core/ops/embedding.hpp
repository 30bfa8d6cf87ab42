// Embedding: rows of a table, by token id.
//
//   out[b, s, :] = scale * table[ids[b, s], :]         scale: sqrt(d_model) in Gemma, else 1
//
//   out [batch, seq, n]   table [vocab, n]   ids [batch, seq] int32
//
//   dtable[ids[b, s], :] += scale * dy[b, s, :]        the gradient, in the order of the tokens
//
//   dtable [vocab, n] accumulate_t<T>   dy [batch, seq, n]
//
// An id outside the table throws ValueError before anything is written.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

template <WritableTensorLike<3> Out, TensorLike<2> Table, TensorLike<2> Ids>
requires(SameElements<Out, Table>&& std::same_as<element_t<Ids>, std::int32_t>) void embedding(
    Out&& out, const Table& table, const Ids& ids, accumulate_t<element_t<Out>> scale = 1) {
  const auto o = as_view(out);
  const auto t = as_const_view(table);
  const auto i = as_const_view(ids);
  detail::check_shape("embedding", "out", o.shape(), Shape{i.extent(0), i.extent(1), t.extent(1)},
                      "[batch, seq, the last axis of table]");
  detail::check_last_axis("embedding", "table", t);
  detail::check_last_axis("embedding", "out", o);
  BackendTraits<backend_t<Out>>::embedding(o.backend(), o, t, i, scale);
}

template <TensorLike<3> Dy, SumsLike<2, Dy> Dtable, IdsLike<2> Ids>
void embedding_backward(Dtable&& dtable, const Dy& dy, const Ids& ids,
                        accumulate_t<element_t<Dy>> scale = 1) {
  const auto t = as_view(dtable);
  const auto d = as_const_view(dy);
  const auto i = as_const_view(ids);
  detail::check_shape("embedding_backward", "dy", d.shape(),
                      Shape{i.extent(0), i.extent(1), t.extent(1)},
                      "[batch, seq, the last axis of dtable]");
  detail::check_last_axis("embedding_backward", "dtable", t);
  detail::check_last_axis("embedding_backward", "dy", d);
  BackendTraits<backend_t<Dtable>>::embedding_backward(t.backend(), t, d, i, scale);
}

}  // namespace rapt

#include "rapt/cpu/embedding.hpp"
