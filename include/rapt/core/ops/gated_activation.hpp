// The gate of a gated feed-forward layer.
//
//   out = act(gate) * up      act: silu (SwiGLU), gelu_tanh (GeGLU), gelu_erf, sigmoid
//
//   out, gate, up [..., n], rank 2 to 4; out may be gate or up. Gate and up may be the two halves
//   of one projection [rows, 2 n].
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

}  // namespace rapt

#include "rapt/cpu/gated_activation.hpp"
