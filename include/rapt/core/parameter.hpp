// A module's weights by name: what checkpoints save and load, and what an optimiser steps over.
//
//   for (auto& p : module.parameters("model.layers.0.self_attn."))
//     p.name       "model.layers.0.self_attn.q_proj.weight"
//     p.values     [size]   the elements, row-major
//     p.shape      {512, 512}
//     p.gradient   [size]   its gradient in accumulate_t<T>, after module.require_gradients()
//
// A parameter may be a part of a larger tensor (the rows of q inside a fused QKV weight): names and
// shapes are the checkpoint's, the memory is the module's.
#pragma once

#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "rapt/core/random.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

template <class T, class B = Cpu>
struct Parameter {
  std::string name;
  TensorView<T, 1, B> values;
  std::vector<index_t> shape;
  /// What backward() adds to; absent before the module's require_gradients().
  TensorView<accumulate_t<T>, 1, B> gradient{};

  /// A vector, a matrix, ...: any contiguous view. `its_gradient` has its shape, or is absent.
  template <std::size_t Rank>
  Parameter(std::string parameter_name, TensorView<T, Rank, B> view,
            std::type_identity_t<TensorView<accumulate_t<T>, Rank, B>> its_gradient = {})
      : name(std::move(parameter_name)),
        values(flat(view)),
        shape(view.shape().begin(), view.shape().end()),
        gradient(its_gradient ? flat(its_gradient) : TensorView<accumulate_t<T>, 1, B>{}) {
    if (!view.is_contiguous())
      throw ShapeError(detail::text("parameter: ", name, " is a view with gaps, expected ",
                                    "contiguous elements"));
    if (gradient)
      detail::check_shape("parameter", name + "'s gradient", its_gradient.shape(), view.shape(),
                          "the shape of its values");
  }
  template <std::size_t Rank>
  Parameter(std::string parameter_name, Tensor<T, Rank, B>& tensor)
      : Parameter(std::move(parameter_name), tensor.view()) {}
  template <std::size_t Rank>
  Parameter(std::string parameter_name, Tensor<T, Rank, B>& tensor,
            Tensor<accumulate_t<T>, Rank, B>& its_gradient)
      : Parameter(std::move(parameter_name), tensor.view(), its_gradient.view()) {}

 private:
  template <class E, std::size_t Rank>
  static TensorView<E, 1, B> flat(TensorView<E, Rank, B> view) {
    return {view.data(), Shape<1>{view.size()}, view.backend()};
  }
};

template <class T, class B>
using Parameters = std::vector<Parameter<T, B>>;

/// Number of elements of all parameters.
template <class T, class B>
index_t parameter_count(const Parameters<T, B>& parameters) {
  index_t n = 0;
  for (const auto& p : parameters) n += p.values.size();
  return n;
}

/// Every gradient there is becomes 0: at the start of an optimiser's step.
template <class T, class B>
void zero_gradients(const Parameters<T, B>& parameters) {
  for (const auto& p : parameters)
    if (p.gradient)
      BackendTraits<B>::fill_zero(
          p.gradient.backend(), p.gradient.data(),
          static_cast<std::size_t>(p.gradient.size()) * sizeof(accumulate_t<T>));
}

namespace detail {

/// A gradient for `values`: zeros of its shape, unless there is one already.
template <class T, std::size_t Rank, class B>
void make_gradient(Tensor<accumulate_t<T>, Rank, B>& gradient, const Tensor<T, Rank, B>& values) {
  if (gradient.shape() == values.shape()) return;
  gradient = Tensor<accumulate_t<T>, Rank, B>(values.shape(), values.backend());
}

/// parameters += more
template <class P>
void append_parameters(std::vector<P>& parameters, std::vector<P> more) {
  for (auto& p : more) parameters.push_back(std::move(p));
}

}  // namespace detail
}  // namespace rapt
