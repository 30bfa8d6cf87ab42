// One step of the optimiser, and what it needs of a gradient: its norm, and whether it is finite.
//
//   AdamW, step t = 1, 2, ..., on parameters theta kept in accumulate_t<T>:
//
//   g     = gradient_scale * gradient
//   theta = theta - lr weight_decay theta                               decoupled decay
//   m     = beta1 m + (1 - beta1) g          v = beta2 v + (1 - beta2) g^2
//   theta = theta - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
//
//   master (theta), m, v, gradient [n] accumulate_t<T>   values [n] T: theta rounded, what the
//   model computes with. Without values the master is the model's own tensor (float, double).
//
// gradient_scale holds everything that a gradient is multiplied by before the step: 1 / loss scale,
// and clipping, min(1, c / (norm + 1e-6)) with norm = gradient_scale * sqrt(sum_of_squares) so far.
//
// Source: Loshchilov, Hutter 2019, arXiv:1711.05101, algorithm 2.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

namespace detail {

inline void check_adamw(const AdamWStep& step) {
  const auto check_beta = [](const char* name, double beta) {
    if (!(beta >= 0 && beta < 1))
      throw ValueError(text("adamw_step: ", name, " is ", beta, ", expected 0 or more, below 1"));
  };
  check_at_least("adamw_step", "lr", step.lr, 0);
  check_beta("beta1", step.beta1);
  check_beta("beta2", step.beta2);
  check_at_least("adamw_step", "eps", step.eps, 0);
  check_at_least("adamw_step", "weight_decay", step.weight_decay, 0);
  check_at_least("adamw_step", "gradient_scale", step.gradient_scale, 0);
  if (step.step < 1)
    throw ValueError(text("adamw_step: step is ", step.step, ", expected 1 for the first"));
}

}  // namespace detail

/// The step on master, m and v; `values` receives the rounded parameters where it is present.
template <WritableTensorLike<1> Values, SumsLike<1, Values> Master, SumsLike<1, Values> First,
          SumsLike<1, Values> Second, TensorLike<1> Gradient>
requires SameElements<Master, Gradient>
void adamw_step(Master&& master, First&& m, Second&& v, const Gradient& gradient, Values&& values,
                const AdamWStep& step) {
  const auto theta = as_view(master);
  const auto first = as_view(m), second = as_view(v);
  const auto g = as_const_view(gradient);
  const auto out = as_view(values);
  const auto check = [&](std::string_view name, const auto& x) {
    detail::check_shape("adamw_step", name, x.shape(), theta.shape(), "the shape of master");
    detail::check_last_axis("adamw_step", name, x);
  };
  check("master", theta);
  check("m", first);
  check("v", second);
  check("gradient", g);
  if (out) check("values", out);
  detail::check_adamw(step);
  BackendTraits<backend_t<Master>>::adamw_step(theta.backend(), theta, first, second, g, out, step);
}

/// The step on parameters that are no copy of others.
template <WritableTensorLike<1> Master, WritableTensorLike<1> First, WritableTensorLike<1> Second,
          TensorLike<1> Gradient>
requires SameElements<Master, First, Second, Gradient>
void adamw_step(Master&& master, First&& m, Second&& v, const Gradient& gradient,
                const AdamWStep& step) {
  adamw_step(master, m, v, gradient, TensorView<element_t<Master>, 1, backend_t<Master>>{}, step);
}

/// sum_i x[i]^2 in double, added up in an order given by the size alone. It is infinite or NaN
/// where an element is, and only there: the square of a finite float does not overflow.
template <TensorLike<1> X>
double sum_of_squares(const X& x) {
  const auto xv = as_const_view(x);
  detail::check_last_axis("sum_of_squares", "x", xv);
  return BackendTraits<backend_t<X>>::sum_of_squares(xv.backend(), xv);
}

/// No element is infinite or NaN. (Elements of double count as infinite from 1e154.)
template <TensorLike<1> X>
bool all_finite(const X& x) {
  const double sum = sum_of_squares(x);
  return sum - sum == 0;
}

/// x *= factor
template <WritableTensorLike<1> X>
void scale_in_place(X&& x, accumulate_t<element_t<X>> factor) {
  const auto xv = as_view(x);
  detail::check_last_axis("scale_in_place", "x", xv);
  BackendTraits<backend_t<X>>::scale_in_place(xv.backend(), xv, factor);
}

/// x = 0, for tensors without gaps; fill() of core/random.hpp takes any.
template <class X>
requires WritableTensorLike<X, rank_v<X>>
void zero(X&& x) {
  const auto xv = as_view(x);
  if (!xv.is_contiguous())
    throw ShapeError(detail::text("zero: x is ", detail::shape_text(xv.shape()), " with strides ",
                                  detail::shape_text(xv.strides()), ", expected no gaps"));
  BackendTraits<backend_t<X>>::fill_zero(
      xv.backend(), xv.data(), static_cast<std::size_t>(xv.size()) * sizeof(element_t<X>));
}

}  // namespace rapt

#include "rapt/cpu/optimizer.hpp"
