// The optimiser's operations on the CPU (core/backend.hpp), bound by memory traffic: AdamW reads
// four numbers a parameter and writes three.
#pragma once

#include <array>

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

template <class T, class A = accumulate_t<T>>
void adamw(A* master, A* first, A* second, const A* gradient, T* values, index_t n,
           const AdamWStep& step) {
  using V = Vec<A>;
  const auto constant = [](double x) { return V::broadcast(static_cast<A>(x)); };
  const double t = static_cast<double>(step.step);
  const double m_bias = 1 - std::pow(step.beta1, t), v_bias = 1 - std::pow(step.beta2, t);
  const V scale = constant(step.gradient_scale), decay = constant(-step.lr * step.weight_decay);
  const V keep_m = constant(step.beta1), take_m = constant(1 - step.beta1);
  const V keep_v = constant(step.beta2), take_v = constant(1 - step.beta2);
  const V rate = constant(-step.lr / m_bias), v_unbiased = constant(1 / v_bias);
  const V eps = constant(step.eps);
  for_row_ranges(n, 1, [&](index_t begin, index_t end) {
    by_vectors<A>(end - begin, [&](index_t at, auto lanes) {
      const index_t i = begin + at;
      const V g = lanes.load(gradient + i) * scale;
      const V m = fma(keep_m, lanes.load(first + i), take_m * g);
      const V v = fma(keep_v, lanes.load(second + i), take_v * g * g);
      V theta = lanes.load(master + i);
      theta = fma(decay, theta, theta);
      theta = fma(rate, m / (sqrt(v * v_unbiased) + eps), theta);
      lanes.store(first + i, m);
      lanes.store(second + i, v);
      lanes.store(master + i, theta);
      if (values != nullptr) lanes.store(values + i, theta);
    });
  });
}

/// In double, by blocks whose sums are added in their order.
template <class T>
double squares(const T* x, index_t n) {
  constexpr index_t kBlock = 8192;
  constexpr int kLanes = 16;
  const index_t blocks = (n + kBlock - 1) / kBlock;
  Scratch<Cpu> scratch;
  double* sums = scratch.template tensor<double>(Shape{blocks}).data();
  parallel_for(blocks, [&](index_t block) {
    const index_t end = std::min(n, (block + 1) * kBlock);
    std::array<double, kLanes> lanes{};
    index_t i = block * kBlock;
    for (; i + kLanes <= end; i += kLanes)
      for (int lane = 0; lane < kLanes; ++lane) {
        const double value = static_cast<double>(x[i + lane]);
        lanes[static_cast<std::size_t>(lane)] += value * value;
      }
    for (; i < end; ++i) lanes[0] += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    double sum = 0;
    for (const double lane : lanes) sum += lane;
    sums[block] = sum;
  });
  double total = 0;
  for (index_t block = 0; block < blocks; ++block) total += sums[block];
  return total;
}

template <class T>
void multiply(T* x, index_t n, accumulate_t<T> factor) {
  using A = accumulate_t<T>;
  const Vec<A> f = Vec<A>::broadcast(factor);
  for_row_ranges(n, 1, [&](index_t begin, index_t end) {
    by_vectors<A>(end - begin,
                  [&](index_t i, auto v) { v.store(x + begin + i, v.load(x + begin + i) * f); });
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T>
void BackendTraits<Cpu>::adamw_step(Cpu, TensorView<accumulate_t<T>, 1> master,
                                    TensorView<accumulate_t<T>, 1> first,
                                    TensorView<accumulate_t<T>, 1> second,
                                    TensorView<const accumulate_t<T>, 1> gradient,
                                    TensorView<T, 1> values, const AdamWStep& step) {
  cpu::adamw(master.data(), first.data(), second.data(), gradient.data(), values.data(),
             master.extent(0), step);
}

template <class T>
double BackendTraits<Cpu>::sum_of_squares(Cpu, TensorView<const T, 1> x) {
  return cpu::squares(x.data(), x.extent(0));
}

template <class T>
void BackendTraits<Cpu>::scale_in_place(Cpu, TensorView<T, 1> x, accumulate_t<T> factor) {
  cpu::multiply(x.data(), x.extent(0), factor);
}

}  // namespace rapt
