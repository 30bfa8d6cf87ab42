// The optimiser's operations on the GPU, bound by memory traffic: one thread per parameter, and for
// the sum of squares one double a thread, joined by blocks, whose sums one more block adds up in
// their order. The number of blocks follows from the size alone, so the sum repeats bit for bit.
#pragma once

#include <cmath>

#include "rapt/core/scratch.hpp"
#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

/// The step of core/ops/optimizer.hpp with everything that is the same for all parameters in it.
template <class A>
struct AdamWFactors {
  A scale, decay, keep_m, take_m, keep_v, take_v, rate, v_unbiased, eps;

  explicit AdamWFactors(const AdamWStep& step) {
    const double t = static_cast<double>(step.step);
    scale = static_cast<A>(step.gradient_scale);
    decay = static_cast<A>(step.lr * step.weight_decay);
    keep_m = static_cast<A>(step.beta1);
    take_m = static_cast<A>(1 - step.beta1);
    keep_v = static_cast<A>(step.beta2);
    take_v = static_cast<A>(1 - step.beta2);
    rate = static_cast<A>(step.lr / (1 - std::pow(step.beta1, t)));
    v_unbiased = static_cast<A>(1 / (1 - std::pow(step.beta2, t)));
    eps = static_cast<A>(step.eps);
  }
};

template <class T>
__global__ void adamw_thread_per_element(TensorView<accumulate_t<T>, 1, Cuda> master,
                                         TensorView<accumulate_t<T>, 1, Cuda> first,
                                         TensorView<accumulate_t<T>, 1, Cuda> second,
                                         TensorView<const accumulate_t<T>, 1, Cuda> gradient,
                                         TensorView<T, 1, Cuda> values,
                                         AdamWFactors<accumulate_t<T>> step) {
  using A = accumulate_t<T>;
  for (index_t i = first_element(); i < master.extent(0); i += element_step()) {
    const A g = gradient(i) * step.scale;
    const A m = step.keep_m * first(i) + step.take_m * g;
    const A v = step.keep_v * second(i) + step.take_v * g * g;
    A theta = master(i);
    theta -= step.decay * theta;
    theta -= step.rate * (m / (std::sqrt(v * step.v_unbiased) + step.eps));
    first(i) = m;
    second(i) = v;
    master(i) = theta;
    if (values) values(i) = static_cast<T>(theta);
  }
}

template <class T>
__global__ void squares_by_block(double* of_blocks, TensorView<const T, 1, Cuda> x) {
  double sum = 0;
  for (index_t i = first_element(); i < x.extent(0); i += element_step()) {
    const double value = static_cast<double>(x(i));
    sum += value * value;
  }
  sum = block_sum(sum);
  if (thread_index() == 0) of_blocks[block_index()] = sum;
}

/// The sum of `count` numbers into the first of them, by one block.
template <class A>
__global__ void join_sums_one_block(A* sums, index_t count) {
  A sum = 0;
  for (index_t i = thread_index(); i < count; i += block_size()) sum += sums[i];
  sum = block_sum(sum);  // ends after every thread has read
  if (thread_index() == 0) sums[0] = sum;
}

template <class T>
__global__ void scale_thread_per_element(TensorView<T, 1, Cuda> x, accumulate_t<T> factor) {
  using A = accumulate_t<T>;
  for (index_t i = first_element(); i < x.extent(0); i += element_step())
    x(i) = static_cast<T>(static_cast<A>(x(i)) * factor);
}

}  // namespace rapt::cuda

namespace rapt {

template <class T>
void BackendTraits<Cuda>::adamw_step(Cuda backend, TensorView<accumulate_t<T>, 1, Cuda> master,
                                     TensorView<accumulate_t<T>, 1, Cuda> first,
                                     TensorView<accumulate_t<T>, 1, Cuda> second,
                                     TensorView<const accumulate_t<T>, 1, Cuda> gradient,
                                     TensorView<T, 1, Cuda> values, const AdamWStep& step) {
  cuda::launch("adamw_thread_per_element", cuda::adamw_thread_per_element<T>,
               cuda::element_launch(master.size()), backend, master, first, second, gradient,
               values, cuda::AdamWFactors<accumulate_t<T>>(step));
}

template <class T>
double BackendTraits<Cuda>::sum_of_squares(Cuda backend, TensorView<const T, 1, Cuda> x) {
  constexpr index_t kMostBlocks = 1024;
  if (x.empty()) return 0;
  auto shape = cuda::element_launch(x.size());
  shape.blocks = shape.blocks < kMostBlocks ? shape.blocks : kMostBlocks;
  shape.shared_bytes = cuda::kReduceBytes<double>;
  Scratch<Cuda> scratch(backend);
  double* sums = scratch.template tensor<double>(Shape{shape.blocks}).data();
  cuda::launch("squares_by_block", cuda::squares_by_block<T>, shape, backend, sums, x);
  cuda::launch("join_sums_one_block", cuda::join_sums_one_block<double>,
               {1, shape.threads, shape.shared_bytes}, backend, sums, shape.blocks);
  double sum = 0;
  copy_to_host(backend, &sum, sums, sizeof sum);
  return sum;
}

template <class T>
void BackendTraits<Cuda>::scale_in_place(Cuda backend, TensorView<T, 1, Cuda> x,
                                         accumulate_t<T> factor) {
  cuda::launch("scale_thread_per_element", cuda::scale_thread_per_element<T>,
               cuda::element_launch(x.size()), backend, x, factor);
}

}  // namespace rapt
