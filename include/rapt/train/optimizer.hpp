// AdamW over the parameters of a module, and clipping by the global norm of their gradients.
//
//   n = sqrt(sum of g^2 over all parameters)       g *= min(1, max_norm / (n + 1e-6))
//
//   theta -= lr * weight_decay * theta             decoupled from the gradient
//   m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
//   theta -= lr * (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)        t = 1, 2, ...
//
//   AdamW optimizer(model.parameters(), {.weight_decay = 0.1});    after model.require_gradients()
//   const double norm = optimizer.gradient_norm();
//   optimizer.step(lr, clip_scale(norm, 1.0));
//
// m, v and, for half and bfloat16, a master copy of theta are kept in accumulate_t<T> (float;
// double for double): an update below half an ulp of a bfloat16 weight is not lost, it gathers in
// the master, and the weight is the master rounded. Norms, biases and embeddings do not decay, all
// other parameters do; rules change that by name, the first that matches wins:
//
//   {.weight_decay = 0.1, .rules = {{"*.k_proj.*", 0.01}, {"model.embed_tokens.*", 0.1}}}
//
// Errors: ValueError for a setting out of range or a parameter without a gradient.
// Sources: Kingma, Ba 2014, arXiv:1412.6980; Loshchilov, Hutter 2017, arXiv:1711.05101,
// algorithm 2.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "rapt/core/convert.hpp"
#include "rapt/core/ops/optimizer.hpp"
#include "rapt/core/parameter.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt::train {

/// Weight decay of the parameters whose name matches: `*` stands for any characters.
struct DecayRule {
  std::string pattern;
  double weight_decay = 0;
};

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.95, eps = 1e-8;
  double weight_decay = 0.1;
  bool decay_all = false;          // norms, biases and embeddings too
  std::vector<DecayRule> rules{};  // the first that matches a name wins over the two above
};

/// Whether `name` matches `pattern`, in which `*` stands for any characters.
inline bool matches(std::string_view pattern, std::string_view name) {
  std::size_t p = 0, n = 0, star = std::string_view::npos, back = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      back = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++back;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

/// What gradients are multiplied by so that their norm is at most max_norm; 1 for max_norm <= 0 (no
/// clipping) and for a norm that is not finite, which is for the caller to skip.
inline double clip_scale(double norm, double max_norm) {
  if (!(max_norm > 0) || !std::isfinite(norm)) return 1;
  return std::min(1.0, max_norm / (norm + 1e-6));
}

/// The norm of all gradients together: squares are summed in double, in the order of parameters.
template <class T, class B>
double gradient_norm(const Parameters<T, B>& parameters) {
  double sum = 0;
  for (const auto& p : parameters)
    if (p.gradient) sum += sum_of_squares(p.gradient);
  return std::sqrt(sum);
}

/// Scales all gradients so that their norm is at most max_norm; returns the norm before. A step
/// needs no such pass: AdamW::step() takes the factor.
template <class T, class B>
double clip_gradients(const Parameters<T, B>& parameters, double max_norm) {
  const double norm = gradient_norm(parameters);
  const auto factor = static_cast<accumulate_t<T>>(clip_scale(norm, max_norm));
  if (factor != 1)
    for (const auto& p : parameters)
      if (p.gradient) scale_in_place(p.gradient, factor);
  return norm;
}

template <class T, class B = Cpu>
class AdamW {
 public:
  using A = accumulate_t<T>;
  static constexpr bool kHasMaster = !std::is_same_v<A, T>;

  /// A parameter with what the optimiser keeps for it.
  struct Slot {
    Parameter<T, B> parameter;
    double weight_decay = 0;
    Tensor<A, 1, B> first, second;  // m, v
    Tensor<A, 1, B> master;         // empty where T is A
  };

  explicit AdamW(const Parameters<T, B>& parameters, AdamWOptions options = {})
      : options_(std::move(options)) {
    const auto check = [](const char* name, double value, double low, double high) {
      if (!(value >= low && value < high))
        throw ValueError(rapt::detail::text("adamw: ", name, " is ", value, ", expected ", low,
                                            " to less than ", high));
    };
    check("beta1", options_.beta1, 0, 1);
    check("beta2", options_.beta2, 0, 1);
    check("eps", options_.eps, 0, 1);
    check("weight_decay", options_.weight_decay, 0, HUGE_VAL);
    for (const DecayRule& rule : options_.rules)
      check(rule.pattern.c_str(), rule.weight_decay, 0, HUGE_VAL);
    slots_.reserve(parameters.size());
    for (const auto& p : parameters) {
      if (!p.gradient)
        throw ValueError(rapt::detail::text(
            "adamw: parameter ", p.name, " has no gradient, expected require_gradients() before"));
      const auto shape = p.values.shape();
      const auto backend = p.values.backend();
      slots_.push_back({p, decay_of(p), Tensor<A, 1, B>(shape, backend),
                        Tensor<A, 1, B>(shape, backend),
                        Tensor<A, 1, B>(kHasMaster ? shape : Shape<1>{0}, backend)});
    }
    read_masters();
  }

  const AdamWOptions& options() const { return options_; }
  std::vector<Slot>& slots() { return slots_; }
  const std::vector<Slot>& slots() const { return slots_; }

  /// Steps taken so far: t of the next step is one more.
  index_t steps() const { return steps_; }
  void set_steps(index_t steps) { steps_ = steps; }

  /// See rapt::train::gradient_norm.
  double gradient_norm() const {
    double sum = 0;
    for (const Slot& slot : slots_) sum += sum_of_squares(slot.parameter.gradient);
    return std::sqrt(sum);
  }

  /// One step with gradients gradient_scale * g: the clip scale over the loss scale.
  void step(double lr, double gradient_scale = 1) {
    ++steps_;
    AdamWStep now;
    now.lr = lr;
    now.beta1 = options_.beta1;
    now.beta2 = options_.beta2;
    now.eps = options_.eps;
    now.gradient_scale = gradient_scale;
    now.step = steps_;
    for (Slot& slot : slots_) {
      now.weight_decay = slot.weight_decay;
      if constexpr (kHasMaster)
        adamw_step(slot.master, slot.first, slot.second, slot.parameter.gradient,
                   slot.parameter.values, now);
      else
        adamw_step(slot.parameter.values, slot.first, slot.second, slot.parameter.gradient, now);
    }
  }

  /// Takes the masters from the weights: after weights were loaded or initialised.
  void read_masters() {
    if constexpr (kHasMaster)
      for (Slot& slot : slots_) copy(slot.master, to<A>(slot.parameter.values));
  }
  /// The weights from the masters: after masters were loaded.
  void write_weights() {
    if constexpr (kHasMaster)
      for (Slot& slot : slots_) copy(slot.parameter.values, to<T>(slot.master));
  }

  /// Bytes of moments and masters.
  index_t bytes() const {
    index_t n = 0;
    for (const Slot& slot : slots_)
      n += slot.first.size() + slot.second.size() + slot.master.size();
    return n * static_cast<index_t>(sizeof(A));
  }

 private:
  double decay_of(const Parameter<T, B>& p) const {
    for (const DecayRule& rule : options_.rules)
      if (matches(rule.pattern, p.name)) return rule.weight_decay;
    const bool embedding = p.name.find("embed_tokens.") != std::string::npos;
    return options_.decay_all || (p.shape.size() > 1 && !embedding) ? options_.weight_decay : 0;
  }

  AdamWOptions options_;
  std::vector<Slot> slots_;
  index_t steps_ = 0;
};

}  // namespace rapt::train
