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

  /// y = mlp(x), with x and W_gate x, W_up x saved for backward(): 2 hidden + d_model numbers a
  /// row. What W_down multiplies is made again there.
  void forward(TensorView<T, 2, B> y, TensorView<const T, 2, B> x, Tape<B>& tape) const {
    detail::check_shape("gated_mlp", "x", x.shape(), Shape{x.extent(0), d_model()},
                        "[rows, d_model]");
    detail::check_shape("gated_mlp", "y", y.shape(), x.shape(), "the shape of x");
    detail::save(tape, x);
    record(y, x, tape);
  }
  /// dx = the gradient of x; the parameters' are added to, where there are any. dx may be absent.
  void backward(TensorView<T, 2, B> dx, TensorView<const T, 2, B> dy, Tape<B>& tape) {
    const auto saved = pop(tape, dy.extent(0));
    backward(dx, dy, tape.template pop<T>(Shape{dy.extent(0), d_model()}), saved);
  }

  /// The same for a caller who has x, or makes it again, when backward comes. record() adds to y
  /// where `accumulate` is set; backward() overwrites `saved`, which pop() took from the tape.
  void record(TensorView<T, 2, B> y, TensorView<const T, 2, B> x, Tape<B>& tape,
              bool accumulate = false) const {
    const auto both = tape.template push<T>(Shape{x.extent(0), 2 * hidden_});
    gate_up_.forward(both, x);
    Scratch<B> scratch(x.backend());
    const auto mid = activate(scratch, both);
    if (accumulate)
      down_.accumulate(y, mid);
    else
      down_.forward(y, mid);
  }
  TensorView<T, 2, B> pop(Tape<B>& tape, index_t rows) const {
    return tape.template pop<T>(Shape{rows, 2 * hidden_});
  }
  void backward(TensorView<T, 2, B> dx, TensorView<const T, 2, B> dy, TensorView<const T, 2, B> x,
                TensorView<T, 2, B> saved) {
    Scratch<B> scratch(x.backend());
    const auto mid = activate(scratch, saved);
    down_.backward(mid, dy, mid);
    const auto gate = saved.slice(1, 0, hidden_), up = saved.slice(1, hidden_, 2 * hidden_);
    gated_activation_backward(gate, up, mid, gate, up, activation_);
    gate_up_.backward(dx, saved, x);
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
    return activate(scratch, both);
  }
  /// act(gate) * up, in dense rows for the down projection: the product reads them many times.
  TensorView<T, 2, B> activate(Scratch<B>& scratch, TensorView<const T, 2, B> both) const {
    auto mid = scratch.template tensor<T>(Shape{both.extent(0), hidden_});
    gated_activation(mid, both.slice(1, 0, hidden_), both.slice(1, hidden_, 2 * hidden_),
                     activation_);
    return mid;
  }

  index_t hidden_;
  Activation activation_;
  Linear<T, B> gate_up_, down_;
};

}  // namespace rapt::nn
