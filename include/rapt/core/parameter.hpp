// A module's weights by name: what checkpoints save and load, and what an optimiser steps over.
//
//   for (auto& p : module.parameters("model.layers.0.self_attn."))
//     p.name       "model.layers.0.self_attn.q_proj.weight"
//     p.values     [size]   the elements, row-major
//     p.shape      {512, 512}
//
// A parameter may be a part of a larger tensor (the rows of q inside a fused QKV weight): names and
// shapes are the checkpoint's, the memory is the module's.
#pragma once

#include <string>
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

  /// A vector, a matrix, ...: any contiguous view.
  template <std::size_t Rank>
  Parameter(std::string parameter_name, TensorView<T, Rank, B> view)
      : name(std::move(parameter_name)),
        values(view.data(), Shape<1>{view.size()}, view.backend()),
        shape(view.shape().begin(), view.shape().end()) {
    if (!view.is_contiguous())
      throw ShapeError(detail::text("parameter: ", name, " is a view with gaps, expected ",
                                    "contiguous elements"));
  }
  template <std::size_t Rank>
  Parameter(std::string parameter_name, Tensor<T, Rank, B>& tensor)
      : Parameter(std::move(parameter_name), tensor.view()) {}
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

namespace detail {

/// parameters += more
template <class P>
void append_parameters(std::vector<P>& parameters, std::vector<P> more) {
  for (auto& p : more) parameters.push_back(std::move(p));
}

}  // namespace detail
}  // namespace rapt
