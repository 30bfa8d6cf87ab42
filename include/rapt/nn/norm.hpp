// The norms of a block, over the last axis (statistics in accumulate_t<T>):
//
//   rms     y = x / sqrt(mean(x^2) + eps) * w            w or, as Gemma stores it, 1 + w
//   layer   y = (x - mean(x)) / sqrt(var(x) + eps) * w + b       var divides by n
//
//   x, y [rows, n]; y may be x
//
// Sources: Zhang, Sennrich 2019, arXiv:1910.07467; Ba et al. 2016, arXiv:1607.06450.
#pragma once

#include <string>

#include "rapt/core/kinds.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/core/parameter.hpp"
#include "rapt/core/tape.hpp"

namespace rapt::nn {

struct NormConfig {
  NormKind kind = NormKind::rms;
  double eps = 1e-5;
  bool plus_one = false;  // the stored weight is w of (1 + w); rms only
};

template <class T = float, class B = Cpu>
class Norm {
 public:
  /// A norm that does nothing but normalise: weight 1 (or 0 with plus_one), bias 0.
  Norm(index_t width, NormConfig config, B backend = {})
      : config_(config),
        weight_(Shape<1>{width}, backend),
        bias_(Shape<1>{config.kind == NormKind::layer ? width : 0}, backend) {
    if (config.plus_one && config.kind == NormKind::layer)
      throw ValueError("norm: plus_one is true for a layer norm, expected an rms norm");
    initialize();
  }

  void forward(TensorView<T, 2, B> y, TensorView<const T, 2, B> x) const {
    if (config_.kind == NormKind::rms)
      rms_norm(y, x, weight_, config_.eps, config_.plus_one);
    else
      layer_norm(y, x, weight_, bias_, config_.eps);
  }

  /// The same, with x saved for backward(); y may be x.
  void forward(TensorView<T, 2, B> y, TensorView<const T, 2, B> x, Tape<B>& tape) const {
    detail::check_shape("norm", "x", x.shape(), Shape{x.extent(0), weight_.extent(0)}, "[rows, n]");
    detail::check_shape("norm", "y", y.shape(), x.shape(), "the shape of x");
    forward(y, detail::save(tape, x));
  }
  /// dx = the gradient of x; the parameters' are added to, where there are any. dx may be dy.
  void backward(TensorView<T, 2, B> dx, TensorView<const T, 2, B> dy, Tape<B>& tape) {
    backward(dx, dy, tape.template pop<T>(dy.shape()));
  }
  /// The same for a caller who has x: nothing else is needed, the statistics are computed again.
  void backward(TensorView<T, 2, B> dx, TensorView<const T, 2, B> dy, TensorView<const T, 2, B> x) {
    if (config_.kind == NormKind::rms)
      rms_norm_backward(dx, weight_gradient_, dy, x, weight_, config_.eps, config_.plus_one);
    else
      layer_norm_backward(dx, weight_gradient_, bias_gradient_, dy, x, weight_, config_.eps);
  }

  void initialize() {
    fill(weight_, config_.plus_one ? 0.0 : 1.0);
    if (!bias_.empty()) fill(bias_, 0.0);
  }

  const NormConfig& config() const { return config_; }

  /// Gradients for all parameters, 0 at first: from now on backward() adds to them.
  void require_gradients() {
    detail::make_gradient(weight_gradient_, weight_);
    detail::make_gradient(bias_gradient_, bias_);
  }

  /// weight [n] and, for layer, bias [n].
  Parameters<T, B> parameters(const std::string& prefix = "") {
    Parameters<T, B> out;
    out.push_back({prefix + "weight", weight_, weight_gradient_});
    if (!bias_.empty()) out.push_back({prefix + "bias", bias_, bias_gradient_});
    return out;
  }

 private:
  NormConfig config_;
  Tensor<T, 1, B> weight_, bias_;
  Tensor<accumulate_t<T>, 1, B> weight_gradient_, bias_gradient_;  // empty until asked for
};

}  // namespace rapt::nn
