// Cross-entropy of next-token prediction, and its gradient.
//
//   loss[i] = logsumexp(z_i) - (1 - e) z_i[t_i] - e mean(z_i)        z_i = logits[i, :]
//
//   logits [rows, vocab]   targets [rows] int32   loss [rows] accumulate_t<T>
//
// e is label_smoothing: the wanted distribution is (1 - e) + e/vocab on the target, e/vocab
// elsewhere. A row whose target is ignore_index has loss 0 and does not count in the mean; the mean
// over no row at all is 0. Any other target outside [0, vocab) throws ValueError. Logits of any
// size are stable.
//
//   dlogits[i, j] = scale (exp(z_ij - logsumexp(z_i)) - (1 - e) [j = t_i] - e / vocab)
//
// and 0 in ignored rows. scale is the gradient that arrives at each row's loss: 1 / (tokens that
// count) for a mean, times the loss scale. cross_entropy_with_gradient overwrites the logits with
// their gradient, so that a training step holds one [rows, vocab] and no more.
#pragma once

#include "rapt/core/convert.hpp"
#include "rapt/core/ops/checks.hpp"

namespace rapt {

enum class Reduction {
  mean,  // over the rows that are not ignored
  sum,
};

struct CrossEntropyOptions {
  std::int32_t ignore_index = -100;
  double label_smoothing = 0;
  Reduction reduction = Reduction::mean;
};

namespace detail {

template <class Logits, class Targets>
void check_cross_entropy(std::string_view operation, const Logits& logits, const Targets& targets,
                         double smoothing) {
  check_shape(operation, "targets", targets.shape(), Shape{logits.extent(0)}, "[rows]");
  if (logits.extent(0) > 0 && logits.extent(1) == 0)
    throw ShapeError(text(operation, ": logits is ", shape_text(logits.shape()),
                          ", expected at least one column = [rows, vocab]"));
  if (!(smoothing >= 0 && smoothing <= 1))
    throw ValueError(text(operation, ": label_smoothing is ", smoothing, ", expected 0 to 1"));
  check_last_axis(operation, "logits", logits);
}

}  // namespace detail

/// The loss of every row, into `loss`; `reduction` plays no part.
template <WritableTensorLike<1> Loss, TensorLike<2> Logits, TensorLike<1> Targets>
requires(std::same_as<element_t<Loss>, accumulate_t<element_t<Logits>>>&& std::same_as<
         element_t<Targets>, std::int32_t>) void cross_entropy(Loss&& loss, const Logits& logits,
                                                               const Targets& targets,
                                                               const CrossEntropyOptions& options =
                                                                   {}) {
  const auto l = as_view(loss);
  const auto z = as_const_view(logits);
  const auto t = as_const_view(targets);
  detail::check_cross_entropy("cross_entropy", z, t, options.label_smoothing);
  detail::check_shape("cross_entropy", "loss", l.shape(), Shape{z.extent(0)}, "[rows]");
  BackendTraits<backend_t<Logits>>::cross_entropy(z.backend(), l, z, t, options.ignore_index,
                                                  options.label_smoothing);
}

/// The sum or mean over all rows, added up in double in the order of the rows.
template <TensorLike<2> Logits, TensorLike<1> Targets>
requires std::same_as<element_t<Targets>, std::int32_t> accumulate_t<element_t<Logits>>
cross_entropy(const Logits& logits, const Targets& targets,
              const CrossEntropyOptions& options = {}) {
  using A = accumulate_t<element_t<Logits>>;
  using B = backend_t<Logits>;
  const auto z = as_const_view(logits);
  auto loss = Tensor<A, 1, B>::uninitialized(Shape{z.extent(0)}, z.backend());
  cross_entropy(loss, logits, targets, options);
  const auto add_up = [&](TensorView<const A, 1> rows, TensorView<const std::int32_t, 1> labels) {
    double sum = 0;
    index_t count = 0;
    for (index_t i = 0; i < rows.extent(0); ++i) {
      if (labels(i) == options.ignore_index) continue;
      sum += static_cast<double>(rows(i));
      ++count;
    }
    if (options.reduction == Reduction::sum) return static_cast<A>(sum);
    return static_cast<A>(count == 0 ? 0.0 : sum / static_cast<double>(count));
  };
  if constexpr (std::same_as<B, Cpu>)
    return add_up(loss, as_const_view(targets));
  else
    return add_up(to(Cpu{}, loss), to(Cpu{}, targets));
}

/// The gradient of scale * (sum of the rows' losses); dlogits may be logits.
template <WritableTensorLike<2> Dlogits, TensorLike<2> Logits, IdsLike<1> Targets>
requires SameElements<Dlogits, Logits>
void cross_entropy_backward(Dlogits&& dlogits, const Logits& logits, const Targets& targets,
                            accumulate_t<element_t<Logits>> scale,
                            const CrossEntropyOptions& options = {}) {
  const auto d = as_view(dlogits);
  const auto z = as_const_view(logits);
  const auto t = as_const_view(targets);
  detail::check_cross_entropy("cross_entropy_backward", z, t, options.label_smoothing);
  detail::check_shape("cross_entropy_backward", "dlogits", d.shape(), z.shape(),
                      "the shape of logits");
  detail::check_last_axis("cross_entropy_backward", "dlogits", d);
  BackendTraits<backend_t<Logits>>::cross_entropy_backward(
      z.backend(), {}, d, z, t, options.ignore_index, options.label_smoothing, scale);
}

/// The loss of every row, and the gradient of scale * (their sum) in the place of the logits.
template <WritableTensorLike<2> Logits, SumsLike<1, Logits> Loss, IdsLike<1> Targets>
void cross_entropy_with_gradient(Loss&& loss, Logits&& logits, const Targets& targets,
                                 accumulate_t<element_t<Logits>> scale,
                                 const CrossEntropyOptions& options = {}) {
  const auto l = as_view(loss);
  const auto z = as_view(logits);
  const auto t = as_const_view(targets);
  detail::check_cross_entropy("cross_entropy_with_gradient", z, t, options.label_smoothing);
  detail::check_shape("cross_entropy_with_gradient", "loss", l.shape(), Shape{z.extent(0)},
                      "[rows]");
  BackendTraits<backend_t<Logits>>::cross_entropy_backward(
      z.backend(), l, z, as_const_view(z), t, options.ignore_index, options.label_smoothing, scale);
}

}  // namespace rapt

#include "rapt/cpu/cross_entropy.hpp"
