// Linear: y = x W^T (+ b), the projection every layer is made of.
//
//   x [rows, in] or [batch, seq, in]     W [out, in] row-major, as checkpoints store it
//   y [rows, out] or [batch, seq, out]   b [out], where bias is asked for
#pragma once

#include <string>

#include "rapt/core/ops/column_sum.hpp"
#include "rapt/core/parameter.hpp"
#include "rapt/core/tape.hpp"
#include "rapt/core/weight.hpp"

namespace rapt::nn {

template <class T = float, class B = Cpu>
class Linear {
 public:
  /// Zero weights. Throws ShapeError below 1.
  Linear(index_t in, index_t out, bool bias = false, B backend = {},
         WeightStorage storage = WeightStorage::zeros)
      : weight_(Shape{checked("out", out), checked("in", in)}, backend, storage),
        bias_(Shape<1>{bias ? out : 0}, backend) {}

  index_t in() const { return weight_.in(); }
  index_t out() const { return weight_.out(); }

  /// y = x W^T (+ b); allocates nothing. Throws ShapeError where a width does not fit.
  void forward(TensorView<T, 2, B> y, TensorView<const T, 2, B> x) const {
    MatmulOptions<T, B> options;
    if (!bias_.empty()) options.bias = bias_.view();
    weight_.multiply(y, x, options);
  }
  /// y += x W^T: a projection that ends in the residual stream.
  void accumulate(TensorView<T, 2, B> y, TensorView<const T, 2, B> x) const {
    MatmulOptions<T, B> options{.accumulate = true};
    if (!bias_.empty()) options.bias = bias_.view();
    weight_.multiply(y, x, options);
  }
  template <std::size_t Rank>
  Tensor<T, Rank, B> forward(TensorView<const T, Rank, B> x) const {
    Shape<Rank> shape = x.shape();
    shape[Rank - 1] = out();
    auto y = Tensor<T, Rank, B>::uninitialized(shape, x.backend());
    const index_t rows = x.size() / (x.extent(Rank - 1) > 0 ? x.extent(Rank - 1) : 1);
    forward(y.reshape(Shape{rows, out()}), x.reshape(Shape{rows, x.extent(Rank - 1)}));
    return y;
  }
  template <std::size_t Rank>
  Tensor<T, Rank, B> forward(const Tensor<T, Rank, B>& x) const {
    return forward(x.view());
  }

  /// y = x W^T (+ b), with x saved for backward().
  void forward(TensorView<T, 2, B> y, TensorView<const T, 2, B> x, Tape<B>& tape) const {
    forward(y, x);
    detail::save(tape, x);
  }
  /// dx = dy W; where there are gradients, the weight's += dy^T x and the bias's += the sum of dy's
  /// rows. dx may be absent.
  void backward(TensorView<T, 2, B> dx, TensorView<const T, 2, B> dy, Tape<B>& tape) {
    backward(dx, dy, tape.template pop<T>(Shape{dy.extent(0), in()}));
  }
  /// The same for a caller who has x. dx may be x: it is written last.
  void backward(TensorView<T, 2, B> dx, TensorView<const T, 2, B> dy, TensorView<const T, 2, B> x) {
    const index_t rows = dy.extent(0);
    detail::check_shape("linear backward", "dy", dy.shape(), Shape{rows, out()}, "[rows, out]");
    detail::check_shape("linear backward", "x", x.shape(), Shape{rows, in()}, "[rows, in]");
    if (dx) detail::check_shape("linear backward", "dx", dx.shape(), x.shape(), "[rows, in]");
    if (!weight_gradient_.empty())
      matmul(weight_gradient_, dy.transpose(), x, {.accumulate = true});
    if (!bias_gradient_.empty()) column_sum(bias_gradient_, dy, true);
    if (dx) weight_.multiply_back(dx, dy);
  }

  /// Weights N(0, stddev), biases 0.
  void initialize(Philox& random, double stddev = 0.02) {
    detail::fill_weight(weight_, random, stddev);
  }

  /// The elements; absent where quantized blocks were loaded.
  TensorView<T, 2, B> weight() { return weight_.view(); }
  TensorView<const T, 2, B> weight() const { return weight_.view(); }
  TensorView<T, 1, B> bias() { return bias_.view(); }
  TensorView<accumulate_t<T>, 2, B> weight_gradient() { return weight_gradient_.view(); }
  TensorView<accumulate_t<T>, 1, B> bias_gradient() { return bias_gradient_.view(); }

  /// Gradients for all parameters, 0 at first: from now on backward() adds to them.
  void require_gradients() {
    detail::make_gradient(weight_gradient_, weight_);
    detail::make_gradient(bias_gradient_, bias_);
  }

  /// weight [out, in] and, where there is one, bias [out].
  Parameters<T, B> parameters(const std::string& prefix = "") {
    Parameters<T, B> out;
    if (!weight_.is_quantized())
      out.push_back({prefix + "weight", weight_.view(), weight_gradient_.view()});
    if (!bias_.empty()) out.push_back({prefix + "bias", bias_, bias_gradient_});
    return out;
  }
  WeightSlots<T, B> weights(const std::string& prefix = "") {
    return {{&weight_, {{prefix + "weight", out()}}}};
  }
  /// The matrix with the rows of several tensors of a checkpoint, one below the other.
  WeightSlot<T, B> weights(std::vector<typename WeightSlot<T, B>::Part> parts) {
    return {&weight_, std::move(parts)};
  }

 private:
  static index_t checked(const char* name, index_t extent) {
    if (extent < 1)
      throw ShapeError(
          detail::text("linear: ", name, " is ", extent, ", expected a width of at least 1"));
    return extent;
  }

  Weight<T, B> weight_;
  Tensor<T, 1, B> bias_;
  Tensor<accumulate_t<T>, 2, B> weight_gradient_;  // empty until require_gradients()
  Tensor<accumulate_t<T>, 1, B> bias_gradient_;
};

}  // namespace rapt::nn
