// The gate of a gated feed-forward layer.
//
//   out = act(gate) * up      act: silu (SwiGLU), gelu_tanh (GeGLU), gelu_erf, sigmoid
//
//   out, gate, up [..., n], rank 2 to 4; out may be gate or up. Gate and up may be the two halves
//   of one projection [rows, 2 n].
//
//   dgate = dout * up * act'(gate)    dup = dout * act(gate)
//
//   The gradients, from dout, gate and up; each may overwrite one of the three, dgate and dup not
//   the same one. An output gate, out = sigmoid(gate) * x, is Activation::sigmoid with up = x.
//
// Source: Shazeer 2020, arXiv:2002.05202.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

template <class Out, class Gate, class Up>
requires(rank_v<Gate> >= 2 && rank_v<Gate> <= 4 && WritableTensorLike<Out, rank_v<Gate>> &&
         TensorLike<Up, rank_v<Gate>> &&
         SameElements<Out, Gate, Up>) void gated_activation(Out&& out, const Gate& gate,
                                                            const Up& up, Activation activation) {
  const auto o = as_view(out);
  const auto g = as_const_view(gate);
  const auto u = as_const_view(up);
  detail::check_shape("gated_activation", "up", u.shape(), g.shape(), "the shape of gate");
  detail::check_shape("gated_activation", "out", o.shape(), g.shape(), "the shape of gate");
  detail::check_last_axis("gated_activation", "gate", g);
  detail::check_last_axis("gated_activation", "up", u);
  detail::check_last_axis("gated_activation", "out", o);
  BackendTraits<backend_t<Out>>::gated_activation(
      o.backend(), detail::as_rows(o), detail::as_rows(g), detail::as_rows(u), activation);
}

template <class Dgate, class Dup, class Dout, class Gate, class Up>
requires RowsLike<Dgate, Dup, Dout, Gate, Up>
void gated_activation_backward(Dgate&& dgate, Dup&& dup, const Dout& dout, const Gate& gate,
                               const Up& up, Activation activation) {
  const auto dg = as_view(dgate);
  const auto du = as_view(dup);
  const auto o = as_const_view(dout), g = as_const_view(gate), u = as_const_view(up);
  const auto check = [&](std::string_view name, const auto& x) {
    detail::check_shape("gated_activation_backward", name, x.shape(), g.shape(),
                        "the shape of gate");
    detail::check_last_axis("gated_activation_backward", name, x);
  };
  check("gate", g);
  check("up", u);
  check("dout", o);
  check("dgate", dg);
  check("dup", du);
  if (dg.data() == du.data() && !dg.empty())
    throw ValueError(
        "gated_activation_backward: dup is dgate, expected two tensors that do not overlap");
  BackendTraits<backend_t<Dgate>>::gated_activation_backward(
      dg.backend(), detail::as_rows(dg), detail::as_rows(du), detail::as_rows(o),
      detail::as_rows(g), detail::as_rows(u), activation);
}

}  // namespace rapt

#include "rapt/cpu/gated_activation.hpp"
