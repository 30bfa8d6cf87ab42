// The learning rate of a step: linear warmup, then constant, linear or cosine.
//
//   s < W       lr * s / W                       (warmup_from_one: lr * (s + 1) / W)
//   constant    lr
//   linear      min_lr + (lr - min_lr) (1 - p)                         p = (s - W) / (T - W)
//   cosine      min_lr + (lr - min_lr) (1 + cos(2 pi cycles p)) / 2    cycles = 1/2: one descent
//   s >= T      min_lr for linear and cosine     (hold_at_end = false: cosine goes on turning)
//
//   s = 0, 1, ... the step; W = warmup, T = steps
//
// transformers starts from s / W, so its first step has rate 0, and its cosine rises again beyond
// T; the first is the default here, the second an option.
//
// Errors: ValueError naming a setting that is out of range.
// Source: Loshchilov, Hutter 2016, arXiv:1608.03983, equation 5 with linear warmup.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"

namespace rapt::train {

enum class ScheduleKind { constant, linear, cosine };

struct Schedule {
  ScheduleKind kind = ScheduleKind::cosine;
  double lr = 3e-4;     // the highest rate
  double min_lr = 0;    // where linear and cosine end
  index_t warmup = 0;   // W
  index_t steps = 1;    // T, the warmup included
  double cycles = 0.5;  // of the cosine between W and T
  bool warmup_from_one = false;
  bool hold_at_end = true;

  /// Throws ValueError unless lr >= min_lr >= 0, 0 <= W, 1 <= T and cycles > 0.
  void check() const {
    if (!(lr >= 0) || !std::isfinite(lr))
      throw ValueError(rapt::detail::text("schedule: lr is ", lr, ", expected at least 0"));
    if (!(min_lr >= 0 && min_lr <= lr))
      throw ValueError(
          rapt::detail::text("schedule: min_lr is ", min_lr, ", expected 0 to lr = ", lr));
    if (warmup < 0)
      throw ValueError(rapt::detail::text("schedule: warmup is ", warmup, ", expected at least 0"));
    if (steps < 1)
      throw ValueError(rapt::detail::text("schedule: steps is ", steps, ", expected at least 1"));
    if (!(cycles > 0) || !std::isfinite(cycles))
      throw ValueError(
          rapt::detail::text("schedule: cycles is ", cycles, ", expected more than 0"));
  }

  /// The rate of step s, counted from 0.
  double operator()(index_t s) const {
    if (s < warmup)
      return lr * static_cast<double>(s + (warmup_from_one ? 1 : 0)) / static_cast<double>(warmup);
    if (kind == ScheduleKind::constant) return lr;
    if (s >= steps && (hold_at_end || kind == ScheduleKind::linear)) return min_lr;
    const double p =
        static_cast<double>(s - warmup) / static_cast<double>(std::max<index_t>(1, steps - warmup));
    const double share = kind == ScheduleKind::linear
                             ? 1 - p
                             : 0.5 * (1 + std::cos(2 * 3.14159265358979323846 * cycles * p));
    return min_lr + (lr - min_lr) * std::max(0.0, share);
  }
};

inline ScheduleKind parse_schedule_kind(std::string_view name) {
  if (name == "constant") return ScheduleKind::constant;
  if (name == "linear") return ScheduleKind::linear;
  if (name == "cosine") return ScheduleKind::cosine;
  throw ValueError(
      rapt::detail::text("schedule: kind is \"", name, "\", expected constant, linear or cosine"));
}

}  // namespace rapt::train
