// What the tests of row-wise operations share: strided rows, tolerances, finite differences, and
// the same bits with any number of threads.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <type_traits>

#include "rapt/core/parallel.hpp"
#include "rapt/core/random.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt::test {

/// What one rounding of the result, and arithmetic in accumulate_t<T> before it, may cost.
template <class T>
double tolerance(double want, double size = 1) {
  const double rounding = std::is_same_v<T, half>       ? 0x1p-11
                          : std::is_same_v<T, bfloat16> ? 0x1p-8
                                                        : 0;
  const double arithmetic = std::is_same_v<T, double> ? 1e-13 : 1e-6;
  return rounding * std::abs(want) + arithmetic * (std::abs(want) + size) +
         (std::is_same_v<T, half> ? 0x1p-24 : 0);
}

/// A tensor whose rows have a gap after them, and which lies inside a larger one.
template <class T>
struct Rows {
  Tensor<T, 3> memory;
  TensorView<T, 2> view;
  Rows(index_t rows, index_t n, Philox& random, double stddev = 1)
      : memory(Shape{rows + 1, 2, n + 3}) {
    fill_normal(memory, random, stddev);
    view = memory.slice(0, 0, rows).select(1, 1).slice(1, 1, n + 1);
  }
};

/// Runs `call` with 1 thread and with more; expects the same bits in `out`.
template <class T>
void expect_same_with_any_threads(Tensor<T, 2>& out, const std::function<void()>& call) {
  const int before = num_threads();
  set_num_threads(1);
  std::memset(static_cast<void*>(out.data()), 0, out.bytes());
  call();
  const Tensor<T, 2> want = out;
  for (const int threads : {2, 3, 7}) {
    set_num_threads(threads);
    std::memset(static_cast<void*>(out.data()), 0, out.bytes());
    call();
    EXPECT_EQ(std::memcmp(out.data(), want.data(), want.bytes()), 0) << threads << " threads";
  }
  set_num_threads(before);
}

template <class T, std::size_t Rank>
Tensor<T, Rank> normal(Shape<Rank> shape, Philox& random, double stddev = 1) {
  Tensor<T, Rank> out(shape);
  fill_normal(out, random, stddev);
  return out;
}

/// f(x) changes by gradient(i) * step when x(i) does: central differences, to 1e-6 of the largest.
template <std::size_t Rank>
void expect_gradient(const Tensor<double, Rank>& gradient, Tensor<double, Rank>& x,
                     const std::function<double()>& f, const char* name) {
  constexpr double kStep = 1e-5;
  ASSERT_EQ(gradient.shape(), x.shape());
  double most = 1e-3;
  for (index_t i = 0; i < x.size(); ++i) most = std::max(most, std::abs(gradient.data()[i]));
  for (index_t i = 0; i < x.size(); ++i) {
    const double before = x.data()[i];
    x.data()[i] = before + kStep;
    const double above = f();
    x.data()[i] = before - kStep;
    const double below = f();
    x.data()[i] = before;
    ASSERT_NEAR(gradient.data()[i], (above - below) / (2 * kStep), 1e-6 * most) << name << " " << i;
  }
}

template <std::size_t Rank>
double dot(const Tensor<double, Rank>& a, const Tensor<double, Rank>& b) {
  double sum = 0;
  for (index_t i = 0; i < a.size(); ++i) sum += a.data()[i] * b.data()[i];
  return sum;
}

}  // namespace rapt::test
