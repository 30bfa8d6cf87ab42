// Dynamic loss scaling: gradients in fp16 reach down to 6e-8, so the loss is multiplied by a scale
// S before the backward pass and the gradients divided by it in fp32 afterwards.
//
//   a gradient is infinite or NaN   the step is skipped, S = max(S / 2, 1)
//   after `growth_interval` good steps in a row   S = 2 S
//
//   scaler.scale()                  multiply the loss by it
//   if (scaler.update(finite)) ...  take the step; false: leave weights, moments and the step count
//
// S starts at 65536 and stays a power of two, so that scaling and unscaling are exact but for
// overflow and underflow. Disabled (float, double, bfloat16) it is 1, and a gradient that is not
// finite still skips its step.
//
// Source: Micikevicius et al. 2017, arXiv:1710.03740, section 3.2; the constants of PyTorch's
// GradScaler.
#pragma once

#include <algorithm>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"

namespace rapt::train {

struct LossScalerOptions {
  double initial = 65536;
  double growth = 2, backoff = 0.5;
  index_t growth_interval = 2000;
  double maximum = 16777216;  // 2^24: beyond it a loss of 1 is near fp16's end many times over
};

class LossScaler {
 public:
  /// What a checkpoint keeps.
  struct State {
    double scale = 1;
    index_t good_steps = 0;  // since the last change
    index_t skipped = 0;     // steps skipped in all
    friend bool operator==(const State&, const State&) = default;
  };

  explicit LossScaler(bool enabled, LossScalerOptions options = {})
      : options_(options), enabled_(enabled), state_{enabled ? options.initial : 1.0, 0, 0} {
    if (!(options.initial >= 1))
      throw ValueError(
          rapt::detail::text("loss_scaler: initial is ", options.initial, ", expected at least 1"));
    if (options.growth_interval < 1)
      throw ValueError(rapt::detail::text("loss_scaler: growth_interval is ",
                                          options.growth_interval, ", expected at least 1"));
  }

  bool enabled() const { return enabled_; }
  double scale() const { return state_.scale; }

  /// Takes note of a step whose gradients were all finite, or not. True: the step counts.
  bool update(bool finite) {
    if (!finite) {
      ++state_.skipped;
      state_.good_steps = 0;
      if (enabled_) state_.scale = std::max(1.0, state_.scale * options_.backoff);
      return false;
    }
    if (enabled_ && ++state_.good_steps >= options_.growth_interval) {
      state_.scale = std::min(options_.maximum, state_.scale * options_.growth);
      state_.good_steps = 0;
    }
    return true;
  }

  const State& state() const { return state_; }
  /// Throws ValueError for a scale that no run of this scaler has.
  void set_state(const State& state) {
    if (!(state.scale >= 1) || !(state.scale <= 0x1p60) || (!enabled_ && state.scale != 1))
      throw ValueError(rapt::detail::text("loss_scaler: scale is ", state.scale, ", expected ",
                                          enabled_ ? "1 to 2^60" : "1"));
    if (state.good_steps < 0 || state.skipped < 0)
      throw ValueError(rapt::detail::text("loss_scaler: good_steps is ", state.good_steps,
                                          " and skipped ", state.skipped, ", expected at least 0"));
    state_ = state;
  }

 private:
  LossScalerOptions options_;
  bool enabled_;
  State state_;
};

}  // namespace rapt::train
