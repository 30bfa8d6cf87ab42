// Sums over rows: the gradient of a bias that was added to each of them.
//
//   out[j] = sum_i x[i, j]  (+ out[j] with accumulate)
//
//   x [..., n], rank 2 to 4   out [n] accumulate_t<T>, not rounded
//
// The order of the sums is given by the shape alone, so they do not depend on the number of
// threads. Without rows the sums are 0.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

template <HasRows X, SumsLike<1, X> Out>
void column_sum(Out&& out, const X& x, bool accumulate = false) {
  const auto o = as_view(out);
  const auto xv = as_const_view(x);
  detail::check_shape("column_sum", "out", o.shape(), Shape{xv.extent(rank_v<X> - 1)},
                      "[the last axis of x]");
  detail::check_last_axis("column_sum", "out", o);
  detail::check_last_axis("column_sum", "x", xv);
  BackendTraits<backend_t<X>>::column_sum(xv.backend(), o, detail::as_rows(xv), accumulate);
}

}  // namespace rapt

#include "rapt/cpu/column_sum.hpp"
