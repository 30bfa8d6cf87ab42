// RMSNorm and LayerNorm, along the last axis.
//
//   rms_norm    y = x / sqrt(mean(x^2) + eps) * w          or * (1 + w) with plus_one (Gemma)
//   layer_norm  y = (x - mean(x)) / sqrt(var(x) + eps) * w + b        var divides by n
//
//   x, y [..., n], rank 2 to 4, rows at any stride; y may be x    w, b [n], absent: 1 and 0
//
// Statistics and the product with w run in accumulate_t<T>; the result is rounded once.
//
// Gradients, from dy and x alone (the statistics are computed again); r = 1 / sqrt(.. + eps) as
// above, a = dy * (w or 1 + w), h = x r or (x - mean(x)) r, means along the row:
//
//   rms_norm_backward    dx = r (a - h mean(a h))              dw += sum over rows of dy h
//   layer_norm_backward  dx = r (a - mean(a) - h mean(a h))    dw the same, db += sum of dy
//
//   dx [..., n], may be dy or x    dw, db [n] accumulate_t<T>, added to; absent: not wanted
//
// Sources: Zhang, Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

namespace detail {

template <class Y, class X, class W>
void check_norm(std::string_view operation, const Y& y, const X& x, const W& weight, double eps) {
  constexpr std::size_t kRank = X::kRank;
  check_shape(operation, "y", y.shape(), x.shape(), "the shape of x");
  check_vector(operation, "weight", weight, x.extent(kRank - 1), "[the last axis of x]");
  check_last_axis(operation, "x", x);
  check_last_axis(operation, "y", y);
  check_at_least(operation, "eps", eps, 0);
}

template <class Dx, class Dw, class Dy, class X, class W>
void check_norm_backward(std::string_view operation, const Dx& dx, const Dw& dweight, const Dy& dy,
                         const X& x, const W& weight, double eps) {
  constexpr std::size_t kRank = X::kRank;
  check_shape(operation, "dy", dy.shape(), x.shape(), "the shape of x");
  check_shape(operation, "dx", dx.shape(), x.shape(), "the shape of x");
  check_vector(operation, "weight", weight, x.extent(kRank - 1), "[the last axis of x]");
  check_vector(operation, "dweight", dweight, x.extent(kRank - 1), "[the last axis of x]");
  check_last_axis(operation, "x", x);
  check_last_axis(operation, "dy", dy);
  check_last_axis(operation, "dx", dx);
  check_at_least(operation, "eps", eps, 0);
}

}  // namespace detail

template <class Y, class X, class T = element_t<Y>, class B = backend_t<Y>>
requires(
    rank_v<X> >= 2 && rank_v<X> <= 4 && WritableTensorLike<Y, rank_v<X>> &&
    SameElements<Y, X>) void rms_norm(Y&& y, const X& x,
                                      std::type_identity_t<TensorView<const T, 1, B>> weight = {},
                                      double eps = 1e-6, bool plus_one = false) {
  auto yv = as_view(y);
  const auto xv = as_const_view(x);
  detail::check_norm("rms_norm", yv, xv, weight, eps);
  BackendTraits<B>::rms_norm(yv.backend(), yv, xv, weight, eps, plus_one);
}

template <class Y, class X, class T = element_t<Y>, class B = backend_t<Y>>
requires(
    rank_v<X> >= 2 && rank_v<X> <= 4 && WritableTensorLike<Y, rank_v<X>> &&
    SameElements<Y, X>) void layer_norm(Y&& y, const X& x,
                                        std::type_identity_t<TensorView<const T, 1, B>> weight = {},
                                        std::type_identity_t<TensorView<const T, 1, B>> bias = {},
                                        double eps = 1e-5) {
  auto yv = as_view(y);
  const auto xv = as_const_view(x);
  detail::check_norm("layer_norm", yv, xv, weight, eps);
  detail::check_vector("layer_norm", "bias", bias, xv.extent(rank_v<X> - 1),
                       "[the last axis of x]");
  BackendTraits<B>::layer_norm(yv.backend(), yv, xv, weight, bias, eps);
}

template <class Dx, class Dy, class X, class T = element_t<Dx>, class A = accumulate_t<T>,
          class B = backend_t<Dx>>
requires RowsLike<Dx, Dy, X>
void rms_norm_backward(Dx&& dx, std::type_identity_t<TensorView<A, 1, B>> dweight, const Dy& dy,
                       const X& x, std::type_identity_t<TensorView<const T, 1, B>> weight = {},
                       double eps = 1e-6, bool plus_one = false) {
  const auto dxv = as_view(dx);
  const auto dyv = as_const_view(dy), xv = as_const_view(x);
  detail::check_norm_backward("rms_norm_backward", dxv, dweight, dyv, xv, weight, eps);
  BackendTraits<B>::rms_norm_backward(dxv.backend(), dxv, dweight, dyv, xv, weight, eps, plus_one);
}

template <class Dx, class Dy, class X, class T = element_t<Dx>, class A = accumulate_t<T>,
          class B = backend_t<Dx>>
requires RowsLike<Dx, Dy, X>
void layer_norm_backward(Dx&& dx, std::type_identity_t<TensorView<A, 1, B>> dweight,
                         std::type_identity_t<TensorView<A, 1, B>> dbias, const Dy& dy, const X& x,
                         std::type_identity_t<TensorView<const T, 1, B>> weight = {},
                         double eps = 1e-5) {
  const auto dxv = as_view(dx);
  const auto dyv = as_const_view(dy), xv = as_const_view(x);
  detail::check_norm_backward("layer_norm_backward", dxv, dweight, dyv, xv, weight, eps);
  detail::check_vector("layer_norm_backward", "dbias", dbias, xv.extent(rank_v<X> - 1),
                       "[the last axis of x]");
  BackendTraits<B>::layer_norm_backward(dxv.backend(), dxv, dweight, dbias, dyv, xv, weight, eps);
}

}  // namespace rapt

#include "rapt/cpu/norm.hpp"
