// Embedding: out[b, s, :] = scale * table[ids[b, s], :], and the tied output projection.
//
//   table [vocab, d_model]     ids [batch, seq], int32     out [batch, seq, d_model]
#pragma once

#include <string>

#include "rapt/core/parameter.hpp"
#include "rapt/core/tape.hpp"
#include "rapt/core/weight.hpp"

namespace rapt::nn {

template <class T = float, class B = Cpu>
class Embedding {
 public:
  Embedding(index_t vocab, index_t width, double scale = 1.0, B backend = {},
            WeightStorage storage = WeightStorage::zeros)
      : scale_(scale), table_(Shape{vocab, width}, backend, storage) {}

  index_t vocab() const { return table_.out(); }
  index_t width() const { return table_.in(); }

  /// Throws ValueError naming an id outside the table; nothing is written then.
  void forward(TensorView<T, 3, B> out, TensorView<const std::int32_t, 2, B> ids) const {
    table_.look_up(out, ids, static_cast<accumulate_t<T>>(scale_));
  }
  Tensor<T, 3, B> forward(TensorView<const std::int32_t, 2, B> ids) const {
    auto out =
        Tensor<T, 3, B>::uninitialized(Shape{ids.extent(0), ids.extent(1), width()}, ids.backend());
    forward(out, ids);
    return out;
  }
  /// logits = x table^T: the tied language-model head (without the scale).
  void project(TensorView<T, 2, B> logits, TensorView<const T, 2, B> x) const {
    table_.multiply(logits, x);
  }

  /// The same, with ids saved for backward().
  void forward(TensorView<T, 3, B> out, TensorView<const std::int32_t, 2, B> ids,
               Tape<B>& tape) const {
    forward(out, ids);
    detail::save(tape, ids);
  }
  /// Gradient of the table: scale * dy[b, s, :] is added to row ids[b, s], where there is one.
  void backward(TensorView<const T, 3, B> dy, Tape<B>& tape) {
    backward(dy, tape.template pop<std::int32_t>(Shape{dy.extent(0), dy.extent(1)}));
  }
  void backward(TensorView<const T, 3, B> dy, TensorView<const std::int32_t, 2, B> ids) {
    if (!table_gradient_.empty())
      embedding_backward(table_gradient_, dy, ids, static_cast<accumulate_t<T>>(scale_));
  }
  /// Gradients of project(): dx = dlogits table, the table's += dlogits^T x: a tied table collects
  /// both of its uses. dx may be x.
  void project_backward(TensorView<T, 2, B> dx, TensorView<const T, 2, B> dlogits,
                        TensorView<const T, 2, B> x) {
    if (!table_gradient_.empty())
      matmul(table_gradient_, dlogits.transpose(), x, {.accumulate = true});
    if (dx) table_.multiply_back(dx, dlogits);
  }

  void initialize(Philox& random, double stddev = 0.02) {
    detail::fill_weight(table_, random, stddev);
  }

  /// A gradient for the table, 0 at first: from now on backward() adds to it.
  void require_gradients() { detail::make_gradient(table_gradient_, table_); }

  Parameters<T, B> parameters(const std::string& prefix = "") {
    Parameters<T, B> out;
    if (!table_.is_quantized())
      out.push_back({prefix + "weight", table_.view(), table_gradient_.view()});
    return out;
  }
  WeightSlots<T, B> weights(const std::string& prefix = "") {
    return {{&table_, {{prefix + "weight", vocab()}}}};
  }

 private:
  double scale_;
  Weight<T, B> table_;
  Tensor<accumulate_t<T>, 2, B> table_gradient_;  // empty until require_gradients()
};

}  // namespace rapt::nn
