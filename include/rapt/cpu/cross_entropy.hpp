// cross_entropy on the CPU (core/backend.hpp): the loss of every row, and its gradient.
//
//   loss = log sum_j exp(z_j) - (1 - e) z_t - e mean_j(z_j)
//
// computed as log sum_j exp(z_j - m) + (m - (1 - e) z_t - e mean), m = max z, so that logits of any
// size neither overflow nor cancel. The gradient keeps the exponentials of a row where it goes, in
// accumulate_t<T>, and scales them in a last pass:
//
//   dz_j = scale (exp(z_j - m) / sum - e / n),   dz_t less scale (1 - e)
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

namespace cpu {
inline namespace RAPT_SIMD {

inline void check_targets(const char* operation, TensorView<const std::int32_t, 1> targets,
                          index_t vocab, std::int32_t ignore_index) {
  for (index_t i = 0; i < targets.extent(0); ++i)
    if (const std::int32_t t = targets(i); t != ignore_index && (t < 0 || t >= vocab))
      throw ValueError(rapt::detail::text(operation, ": targets[", i, "] is ", t,
                                          ", expected 0 to ", vocab - 1, " or ", ignore_index,
                                          " = ignore_index"));
}

/// What a row's loss is beside log sum: m - (1 - e) z_t - e mean(z).
template <class A>
double loss_without_log(const A* z, index_t n, std::int32_t target, double smoothing, A m) {
  double wanted = static_cast<double>(z[target]);
  if (smoothing != 0) {  // where it is 0, the mean must not bring in 0 * -inf
    double mean = 0;
    for (index_t j = 0; j < n; ++j) mean += static_cast<double>(z[j]);
    wanted = (1 - smoothing) * wanted + smoothing * mean / static_cast<double>(n);
  }
  return static_cast<double>(m) - wanted;
}

/// e[i] = exp(x[i] - shift), which may be x, and their sum, as row_sum_of_exp adds them up.
template <class A>
double exponentials_of_row(A* e, const A* x, index_t n, A shift) {
  using V = Vec<A>;
  constexpr index_t kBlock = 512;
  const V m = V::broadcast(shift);
  double total = 0;
  for (index_t at = 0; at < n; at += kBlock) {
    const index_t count = std::min(kBlock, n - at);
    V block = V::zero();
    index_t i = at;
    for (; i + V::kLanes <= at + count; i += V::kLanes) {
      const V v = exp_flushed(V::load(x + i) - m);
      v.store(e + i);
      block = block + v;
    }
    total += static_cast<double>(sum(block));
    for (; i < at + count; ++i) total += static_cast<double>(e[i] = std::exp(x[i] - shift));
  }
  return total;
}

template <class T, class A = accumulate_t<T>>
void cross_entropy_gradient(TensorView<A, 1> loss, TensorView<T, 2> dlogits,
                            TensorView<const T, 2> logits,
                            TensorView<const std::int32_t, 1> targets, std::int32_t ignore_index,
                            double smoothing, A scale) {
  constexpr bool kInPlace = std::is_same_v<A, T>;
  const index_t n = logits.extent(1);
  for_row_ranges(logits.extent(0), 4 * n, [&](index_t begin, index_t end) {
    Scratch<Cpu> scratch;
    A* buffer = scratch.template tensor<A>(Shape{kInPlace ? 1 : n}).data();
    for (index_t i = begin; i < end; ++i) {
      T* to = row_at(dlogits, i);
      const std::int32_t t = targets(i);
      if (t == ignore_index) {
        std::fill_n(to, n, T(A{0}));
        if (loss) loss(i) = 0;
        continue;
      }
      const A* z = arithmetic_row(row_at(logits, i), buffer, n);
      A* e = buffer;
      if constexpr (kInPlace) e = to;
      const A m = row_max(z, n);
      // Before the exponentials take the place of the logits.
      const double rest = loss ? loss_without_log(z, n, t, smoothing, m) : 0.0;
      const double sum = exponentials_of_row(e, z, n, m);
      if (loss) loss(i) = static_cast<A>(std::log(sum) + rest);
      const double spread = static_cast<double>(scale) * smoothing / static_cast<double>(n);
      const double of_target =
          static_cast<double>(scale) * (static_cast<double>(e[t]) / sum - (1 - smoothing)) - spread;
      const Vec<A> factor = Vec<A>::broadcast(static_cast<A>(static_cast<double>(scale) / sum)),
                   less = Vec<A>::broadcast(static_cast<A>(spread));
      by_vectors<A>(n, [&](index_t j, auto v) { v.store(to + j, v.load(e + j) * factor - less); });
      to[t] = static_cast<T>(static_cast<A>(of_target));
    }
  });
}

}  // namespace RAPT_SIMD
}  // namespace cpu

template <class T>
void BackendTraits<Cpu>::cross_entropy(Cpu, TensorView<accumulate_t<T>, 1> loss,
                                       TensorView<const T, 2> logits,
                                       TensorView<const std::int32_t, 1> targets,
                                       std::int32_t ignore_index, double smoothing) {
  using A = accumulate_t<T>;
  const index_t vocab = logits.extent(1);
  cpu::check_targets("cross_entropy", targets, vocab, ignore_index);
  cpu::for_row_ranges(logits.extent(0), 4 * vocab, [&](index_t begin, index_t end) {
    Scratch<Cpu> scratch;
    A* buffer = scratch.template tensor<A>(Shape{std::is_same_v<A, T> ? 1 : vocab}).data();
    for (index_t i = begin; i < end; ++i) {
      const std::int32_t t = targets(i);
      if (t == ignore_index) {
        loss(i) = 0;
        continue;
      }
      const A* z = cpu::arithmetic_row(logits.data() + i * logits.stride(0), buffer, vocab);
      const A m = cpu::row_max(z, vocab);
      const double rest = cpu::loss_without_log(z, vocab, t, smoothing, m);
      loss(i) = static_cast<A>(std::log(cpu::row_sum_of_exp(z, vocab, m)) + rest);
    }
  });
}

template <class T>
void BackendTraits<Cpu>::cross_entropy_backward(Cpu, TensorView<accumulate_t<T>, 1> loss,
                                                TensorView<T, 2> dlogits,
                                                TensorView<const T, 2> logits,
                                                TensorView<const std::int32_t, 1> targets,
                                                std::int32_t ignore_index, double smoothing,
                                                accumulate_t<T> scale) {
  cpu::check_targets(loss ? "cross_entropy_with_gradient" : "cross_entropy_backward", targets,
                     logits.extent(1), ignore_index);
  cpu::cross_entropy_gradient(loss, dlogits, logits, targets, ignore_index, smoothing, scale);
}

}  // namespace rapt
