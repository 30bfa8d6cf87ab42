// cross_entropy on the CPU (core/backend.hpp): the loss of every row.
//
//   loss = log sum_j exp(z_j) - (1 - e) z_t - e mean_j(z_j)
//
// computed as log sum_j exp(z_j - m) + (m - (1 - e) z_t - e mean), m = max z, so that logits of any
// size neither overflow nor cancel.
#pragma once

#include "rapt/cpu/rows.hpp"

namespace rapt {

template <class T>
void BackendTraits<Cpu>::cross_entropy(Cpu, TensorView<accumulate_t<T>, 1> loss,
                                       TensorView<const T, 2> logits,
                                       TensorView<const std::int32_t, 1> targets,
                                       std::int32_t ignore_index, double smoothing) {
  using A = accumulate_t<T>;
  const index_t vocab = logits.extent(1);
  for (index_t i = 0; i < targets.extent(0); ++i)
    if (const std::int32_t t = targets(i); t != ignore_index && (t < 0 || t >= vocab))
      throw ValueError(detail::text("cross_entropy: targets[", i, "] is ", t, ", expected 0 to ",
                                    vocab - 1, " or ", ignore_index, " = ignore_index"));
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
      double wanted = static_cast<double>(z[t]);
      if (smoothing != 0) {  // where it is 0, the mean must not bring in 0 * -inf
        double mean = 0;
        for (index_t j = 0; j < vocab; ++j) mean += static_cast<double>(z[j]);
        wanted = (1 - smoothing) * wanted + smoothing * mean / static_cast<double>(vocab);
      }
      const double sum = cpu::row_sum_of_exp(z, vocab, m);
      loss(i) = static_cast<A>(std::log(sum) + (static_cast<double>(m) - wanted));
    }
  });
}

}  // namespace rapt
