// Soft cap of logits, in place: x = cap * tanh(x / cap), which lies inside (-cap, cap).
//
//   x [..., n], rank 2 to 4        Source: Gemma 2, arXiv:2408.00118, section 2.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

template <class X>
requires(rank_v<X> >= 2 && rank_v<X> <= 4 &&
         WritableTensorLike<X, rank_v<X>>) void softcap(X&& x, accumulate_t<element_t<X>> cap) {
  const auto xv = as_view(x);
  if (!(cap > 0) || !(cap - cap == 0))
    throw ValueError(detail::text("softcap: cap is ", cap, ", expected a finite number above 0"));
  detail::check_last_axis("softcap", "x", xv);
  BackendTraits<backend_t<X>>::softcap(xv.backend(), detail::as_rows(xv), cap);
}

}  // namespace rapt

#include "rapt/cpu/softcap.hpp"
