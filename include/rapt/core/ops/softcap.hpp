// Soft cap of logits, in place: x = cap * tanh(x / cap), which lies inside (-cap, cap).
//
//   dx = dy * (1 - (y / cap)^2)        the gradient, from the capped value y; dx may be dy or y
//
//   x, y, dx, dy [..., n], rank 2 to 4        Source: Gemma 2, arXiv:2408.00118, section 2.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

namespace detail {

template <class A>
void check_cap(std::string_view operation, A cap) {
  if (!(cap > 0) || !(cap - cap == 0))
    throw ValueError(text(operation, ": cap is ", cap, ", expected a finite number above 0"));
}

}  // namespace detail

template <class X>
requires(rank_v<X> >= 2 && rank_v<X> <= 4 &&
         WritableTensorLike<X, rank_v<X>>) void softcap(X&& x, accumulate_t<element_t<X>> cap) {
  const auto xv = as_view(x);
  detail::check_cap("softcap", cap);
  detail::check_last_axis("softcap", "x", xv);
  BackendTraits<backend_t<X>>::softcap(xv.backend(), detail::as_rows(xv), cap);
}

template <class Dx, class Dy, class Y>
requires RowsLike<Dx, Dy, Y>
void softcap_backward(Dx&& dx, const Dy& dy, const Y& y, accumulate_t<element_t<Dx>> cap) {
  const auto dxv = as_view(dx);
  const auto dyv = as_const_view(dy), yv = as_const_view(y);
  detail::check_cap("softcap_backward", cap);
  detail::check_shape("softcap_backward", "dy", dyv.shape(), yv.shape(), "the shape of y");
  detail::check_shape("softcap_backward", "dx", dxv.shape(), yv.shape(), "the shape of y");
  detail::check_last_axis("softcap_backward", "y", yv);
  detail::check_last_axis("softcap_backward", "dy", dyv);
  detail::check_last_axis("softcap_backward", "dx", dxv);
  BackendTraits<backend_t<Dx>>::softcap_backward(dxv.backend(), detail::as_rows(dxv),
                                                 detail::as_rows(dyv), detail::as_rows(yv), cap);
}

}  // namespace rapt

#include "rapt/cpu/softcap.hpp"
