// Gradients against finite differences, in double.
//
//   df/dw  ~  (8 (f(w + h) - f(w - h)) - (f(w + 2h) - f(w - 2h))) / 12h        error O(h^4)
//
// A tensor passes when the largest difference is below 1e-6 of its largest gradient.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "rapt/core/parameter.hpp"
#include "rapt/core/random.hpp"
#include "rapt/core/tape.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt::test {

/// The gradient of loss() in up to `samples` elements of `values`, spread evenly, against
/// `gradient`. What the gradient's largest element is, is taken over all of them.
template <class Loss>
void expect_gradient(const std::string& name, TensorView<double, 1> values,
                     TensorView<const double, 1> gradient, Loss&& loss, index_t samples = 24) {
  ASSERT_EQ(values.size(), gradient.size()) << name;
  double largest = 0;
  for (index_t i = 0; i < gradient.size(); ++i) largest = std::max(largest, std::abs(gradient(i)));
  const index_t step = std::max<index_t>(1, values.size() / samples);
  constexpr double h = 1e-3;
  for (index_t i = 0; i < values.size(); i += step) {
    const double before = values(i);
    const auto at = [&](double offset) {
      values(i) = before + offset;
      return loss();
    };
    const double want = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h);
    values(i) = before;
    largest = std::max(largest, std::abs(want));
    ASSERT_LE(std::abs(gradient(i) - want), 1e-6 * largest + 1e-10)
        << name << "[" << i << "] is " << gradient(i) << ", expected " << want;
  }
  // What all keys of a head share, the softmax does not see: a key's bias without rotation.
  if (!name.ends_with("k_proj.bias")) {
    EXPECT_GT(largest, 1e-8) << name << " has no gradient";
  }
}

/// The same for every parameter of a module whose backward has run once.
template <class Loss>
void expect_parameter_gradients(const Parameters<double, Cpu>& parameters, Loss&& loss,
                                index_t samples = 24) {
  for (const auto& p : parameters) {
    ASSERT_TRUE(p.gradient) << p.name;
    expect_gradient(p.name, p.values, p.gradient, loss, samples);
  }
}

template <class T>
void randomize(const Parameters<T, Cpu>& parameters, double stddev = 0.4, std::uint64_t seed = 5) {
  Philox random(seed);
  for (const auto& p : parameters) fill_normal(p.values, random, stddev);
}

template <std::size_t Rank>
Tensor<double, Rank> normal(Shape<Rank> shape, std::uint64_t seed) {
  Tensor<double, Rank> x(shape);
  Philox random(seed);
  fill_normal(x, random);
  return x;
}

/// sum of a * b
template <std::size_t Rank>
double dot(const Tensor<double, Rank>& a, const Tensor<double, Rank>& b) {
  EXPECT_EQ(a.shape(), b.shape());
  double sum = 0;
  for (index_t i = 0; i < a.size(); ++i) sum += a.data()[i] * b.data()[i];
  return sum;
}

template <class T, std::size_t Rank>
TensorView<T, 1> flat(Tensor<T, Rank>& x) {
  return x.reshape(Shape<1>{x.size()});
}

/// A module of x [batch, seq, d_model], trained once: forward on the tape gives the bits of forward
/// without, x and every parameter have the gradients of finite differences, a second backward adds
/// them again.
template <class M, class Call>
void expect_module_gradients(M& module, Tensor<double, 3> x, index_t out_dim, const Call& call) {
  module.require_gradients();
  const auto parameters = module.parameters();
  const Shape<3> out_shape{x.extent(0), x.extent(1), out_dim};
  const auto dy = normal(out_shape, 77);
  Tensor<double, 3> y(out_shape), dx(x.shape());
  Tape<> tape;
  module.forward(y, x, tape, call);
  const auto plain = module.forward(x, call);
  for (index_t i = 0; i < y.size(); ++i) ASSERT_EQ(y.data()[i], plain.data()[i]);
  module.backward(dx, dy, tape);
  EXPECT_TRUE(tape.empty());

  const auto loss = [&] { return dot(module.forward(x, call), dy); };
  expect_gradient("x", flat(x), flat(dx), loss);
  expect_parameter_gradients(parameters, loss);

  std::vector<Tensor<double, 1>> once;
  for (const auto& p : parameters) once.push_back(clone(p.gradient));
  module.forward(y, x, tape, call);
  module.backward({}, dy, tape);
  for (std::size_t k = 0; k < parameters.size(); ++k)
    for (index_t i = 0; i < once[k].size(); ++i)
      EXPECT_NEAR(parameters[k].gradient(i), 2 * once[k](i), 1e-12 + 1e-12 * std::abs(once[k](i)));
}

}  // namespace rapt::test
