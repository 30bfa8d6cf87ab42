// Residual addition: out += x.
//
//   out, x [..., n], rank 2 to 4. Sums run in accumulate_t<T> and are rounded once.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

template <class Out, class X>
requires(rank_v<X> >= 2 && rank_v<X> <= 4 && WritableTensorLike<Out, rank_v<X>> &&
         SameElements<Out, X>) void add(Out&& out, const X& x) {
  const auto o = as_view(out);
  const auto xv = as_const_view(x);
  detail::check_shape("add", "x", xv.shape(), o.shape(), "the shape of out");
  detail::check_last_axis("add", "out", o);
  detail::check_last_axis("add", "x", xv);
  BackendTraits<backend_t<Out>>::add(o.backend(), detail::as_rows(o), detail::as_rows(xv));
}

}  // namespace rapt

#include "rapt/cpu/add.hpp"
