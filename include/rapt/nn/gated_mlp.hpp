// The gated feed-forward layer: SwiGLU (act = silu) and GeGLU (act = gelu).
//
//   y = W_down ( act(W_gate x) * (W_up x) )
//
//   x, y [rows, d_model]     W_gate, W_up [hidden, d_model]     W_down [d_model, hidden]
//
// W_gate and W_up are one fused matrix [2 * hidden, d_model] in memory: x is read once.
//
// Source: Shazeer 2020, arXiv:2002.05202.
#pragma once

#include <string>

#include "rapt/core/ops/gated_activation.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/nn/linear.hpp"

namespace rapt::nn {

template <class T = float, class B = Cpu>
class GatedMlp {
 public:
  GatedMlp(index_t d_model, index_t hidden, Activation activation = Activation::silu,
           bool bias = false, B backend = {}, WeightStorage storage = WeightStorage::zeros)
      : hidden_(hidden),
        activation_(activation),
        gate_up_(d_model, 2 * hidden, bias, backend, storage),
        down_(hidden, d_model, bias, backend, storage) {}

  index_t d_model() const { return gate_up_.in(); }
  index_t hidden() const { return hidden_; }

  /// y = mlp(x); y may not be x. Allocates nothing once scratch has grown.
  void forward(TensorView<T, 2, B> y, TensorView<const T, 2, B> x) const {
    Scratch<B> scratch(x.backend());
    down_.forward(y, activated(scratch, x));
  }
  /// y += mlp(x): straight into the residual stream.
  void accumulate(TensorView<T, 2, B> y, TensorView<const T, 2, B> x) const {
    Scratch<B> scratch(x.backend());
    down_.accumulate(y, activated(scratch, x));
  }
  template <std::size_t Rank>
  Tensor<T, Rank, B> forward(const Tensor<T, Rank, B>& x) const {
    auto y = Tensor<T, Rank, B>::uninitialized(x.shape(), x.backend());
    const index_t width = x.extent(Rank - 1), rows = width > 0 ? x.size() / width : 0;
    forward(y.reshape(Shape{rows, width}), x.reshape(Shape{rows, width}));
    return y;
  }

  /// Weights N(0, stddev); the down projection, which ends in the residual stream, by
  /// residual_stddev.
  void initialize(Philox& random, double stddev = 0.02, double residual_stddev = 0.02) {
    gate_up_.initialize(random, stddev);
    down_.initialize(random, residual_stddev);
  }

  /// Gradients for all parameters, 0 at first: from now on backward() adds to them.
  void require_gradients() {
    gate_up_.require_gradients();
    down_.require_gradients();
  }

  /// gate_proj, up_proj, down_proj.
  Parameters<T, B> parameters(const std::string& prefix = "") {
    Parameters<T, B> out;
    const auto half = [&](const char* name, index_t begin) {
      const auto rows = [&](auto view) {
        return view.empty() ? view : view.slice(0, begin, begin + hidden_);
      };
      if (!gate_up_.weight().empty())
        out.push_back(
            {prefix + name + ".weight", rows(gate_up_.weight()), rows(gate_up_.weight_gradient())});
      if (!gate_up_.bias().empty())
        out.push_back(
            {prefix + name + ".bias", rows(gate_up_.bias()), rows(gate_up_.bias_gradient())});
    };
    half("gate_proj", 0);
    half("up_proj", hidden_);
    detail::append_parameters(out, down_.parameters(prefix + "down_proj."));
    return out;
  }
  WeightSlots<T, B> weights(const std::string& prefix = "") {
    WeightSlots<T, B> out{gate_up_.weights(
        {{prefix + "gate_proj.weight", hidden_}, {prefix + "up_proj.weight", hidden_}})};
    detail::append_parameters(out, down_.weights(prefix + "down_proj."));
    return out;
  }

 private:
  TensorView<const T, 2, B> activated(Scratch<B>& scratch, TensorView<const T, 2, B> x) const {
    auto both = scratch.template tensor<T>(Shape{x.extent(0), 2 * hidden_});
    gate_up_.forward(both, x);
    // Dense rows for the down projection: the product reads them many times.
    auto mid = scratch.template tensor<T>(Shape{x.extent(0), hidden_});
    gated_activation(mid, both.slice(1, 0, hidden_), both.slice(1, hidden_, 2 * hidden_),
                     activation_);
    return mid;
  }

  index_t hidden_;
  Activation activation_;
  Linear<T, B> gate_up_, down_;
};

}  // namespace rapt::nn
