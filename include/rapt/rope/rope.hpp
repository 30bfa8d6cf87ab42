// Rotary position embedding: which channels of a head turn, how fast, and in which layout.
//
//   phi[p, k] = p * omega[k]                  k = 0 .. r/2 - 1,  r = rotary_dim
//   (x, y)  ->  a * (x cos phi - y sin phi,  y cos phi + x sin phi)
//
//   omega  [r/2]  inverse frequencies; theta^(-2k/r) before scaling
//   a             attention factor; 1 but for yarn and longrope. q·k is scaled by a^2
//
// Pairs (x, y), by RopeLayout: rotate_half channels (k, k + r/2) · interleaved channels (2k, 2k +
// 1) · interleaved_to_half reads (2k, 2k + 1) and writes (k, k + r/2). Channels that do not turn
// pass through.
//
// Scalings (omega' from omega; f = factor, L0 = original_max_position, L = length of the sequence):
//
//   standard      omega
//   linear        omega / f
//   dynamic       theta' = theta * (f L/L0 - (f - 1))^(r/(r-2)),  L = max(L, L0),  L0 =
//   max_position yarn          omega * ((1 - ramp[k]) + ramp[k] / f); ramp climbs between beta_fast
//   and beta_slow llama3        omega for wavelengths below L0/high_freq_factor, omega / f above
//   L0/low_freq_factor longrope      omega / long_factor[k] where L > L0, else omega /
//   short_factor[k] proportional  theta^(-2k/head_dim) / f for the first partial_factor of the
//   pairs, 0 for the others
//
// dynamic and longrope depend on the length: it is taken when a sequence starts, and kept, because
// keys that are already cached were turned by the old frequencies.
//
// A setting that makes no sense throws ValueError (ShapeError for one that does not fit head_dim).
//
// Sources: Su et al. 2021, arXiv:2104.09864; linear: Chen et al. 2023, arXiv:2306.15595; yarn: Peng
// et al. 2023, arXiv:2309.00071; longrope: Ding et al. 2024, arXiv:2402.13753; llama3:
// arXiv:2407.21783. The formulas are those of transformers' modeling_rope_utils.py, whose
// checkpoints they serve.
#pragma once

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>
#include <vector>

#include "rapt/core/backend.hpp"
#include "rapt/core/error.hpp"

namespace rapt {

enum class RopeKind { standard, linear, dynamic, yarn, llama3, longrope, proportional };

/// Which end of a head turns when rotary_dim < head_dim (DeepSeek V4 turns the trailing channels).
enum class RopeSlice { leading, trailing };

/// Plain settings; a zero means "not given" where the comment says so.
///
///   Rope{.theta = 500000, .kind = RopeKind::llama3, .factor = 8, .original_max_position = 8192}
struct Rope {
  double theta = 10000;
  RopeKind kind = RopeKind::standard;
  double factor = 0;  // not given: max_position / original_max_position (yarn, longrope)
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  index_t original_max_position = 0;
  index_t max_position = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  bool truncate = true;                         // yarn: the ramp begins and ends on whole pairs
  std::optional<double> attention_factor = {};  // not given: yarn's and longrope's own
  double mscale = 0;                            // yarn, with mscale_all_dim; 0: not given
  double mscale_all_dim = 0;
  std::vector<float> short_factor = {};  // longrope [r/2]
  std::vector<float> long_factor = {};   // longrope [r/2]
  index_t rotary_dim = 0;                // 0: head_dim * partial_factor
  double partial_factor = 1;
  RopeLayout layout = RopeLayout::rotate_half;
  RopeSlice slice = RopeSlice::leading;

  bool operator==(const Rope&) const = default;
};

struct RopeFrequencies {
  std::vector<double> inverse;  // omega [r/2], radians per position
  double attention_factor = 1;  // a, to be multiplied into cos and sin
};

/// yarn's 0.1 c ln(s) + 1. DeepSeek multiplies its softmax scale by yarn_mscale(f,
/// mscale_all_dim)^2.
inline double yarn_mscale(double factor, double c = 1) {
  return factor <= 1 ? 1.0 : 0.1 * c * std::log(factor) + 1.0;
}

/// Whether the frequencies depend on the length of the sequence.
inline bool depends_on_length(const Rope& rope) {
  return rope.kind == RopeKind::dynamic || rope.kind == RopeKind::longrope;
}

namespace detail {

/// f, from the positions where it is not given.
inline double rope_factor(const Rope& rope) {
  if (rope.factor == 0 && rope.original_max_position > 0 && rope.max_position > 0)
    return static_cast<double>(rope.max_position) / static_cast<double>(rope.original_max_position);
  return rope.factor;
}

/// L0 of the length-dependent kinds; transformers reads max_position_embeddings for dynamic.
inline index_t rope_length_limit(const Rope& rope) {
  if (rope.kind == RopeKind::dynamic && rope.max_position > 0) return rope.max_position;
  return rope.original_max_position;
}

[[noreturn]] inline void refuse_rope(std::string_view name, double value, std::string_view wanted) {
  throw ValueError(text("rope: ", name, " is ", value, ", expected ", wanted));
}
inline void check_rope_positive(std::string_view name, double value, std::string_view kind) {
  if (!(value > 0) || !std::isfinite(value))
    refuse_rope(name, value, text("a finite number above 0 for ", kind));
}
inline void check_rope_list(std::string_view name, const std::vector<float>& list, index_t pairs) {
  if (static_cast<index_t>(list.size()) != pairs)
    throw ShapeError(
        text("rope: ", name, " is [", list.size(), "], expected [", pairs, "] = [rotary_dim / 2]"));
  for (const float x : list) check_rope_positive(name, static_cast<double>(x), "longrope");
}

}  // namespace detail

/// r: how many channels of a head turn. Proportional lists all of them, some with frequency 0.
inline index_t rotary_dim(const Rope& rope, index_t head_dim) {
  if (head_dim < 1)
    throw ShapeError(detail::text("rope: head_dim is ", head_dim, ", expected at least 1"));
  if (rope.rotary_dim < 0 || rope.rotary_dim > head_dim)
    throw ShapeError(detail::text("rope: rotary_dim is ", rope.rotary_dim, ", expected 0 (all) to ",
                                  head_dim, " = head_dim"));
  if (!(rope.partial_factor >= 0 && rope.partial_factor <= 1))
    detail::refuse_rope("partial_factor", rope.partial_factor, "0 to 1");
  index_t r = head_dim;
  if (rope.kind != RopeKind::proportional)
    r = rope.rotary_dim > 0
            ? rope.rotary_dim
            : static_cast<index_t>(static_cast<double>(head_dim) * rope.partial_factor);
  if (r % 2 != 0)
    throw ShapeError(detail::text("rope: rotary_dim is ", r, " of head_dim ", head_dim,
                                  ", expected an even number"));
  return r;
}

/// What a call of the `rope` operation needs besides cos and sin.
inline RopeOptions rope_options(const Rope& rope, index_t head_dim, bool inverse = false) {
  const index_t r = rotary_dim(rope, head_dim);
  return {.layout = rope.layout,
          .offset = rope.slice == RopeSlice::trailing ? head_dim - r : 0,
          .inverse = inverse};
}

/// Throws where a setting makes no sense for heads of this size.
inline void check_rope(const Rope& rope, index_t head_dim) {
  using detail::check_rope_positive, detail::refuse_rope;
  const index_t pairs = rotary_dim(rope, head_dim) / 2;
  check_rope_positive("theta", rope.theta, "the base");
  if (rope.original_max_position < 0)
    refuse_rope("original_max_position", static_cast<double>(rope.original_max_position),
                "0 (not given) or more");
  if (rope.max_position < 0)
    refuse_rope("max_position", static_cast<double>(rope.max_position), "0 (not given) or more");
  if (rope.attention_factor)
    check_rope_positive("attention_factor", *rope.attention_factor, "cos and sin");

  const double factor = detail::rope_factor(rope);
  switch (rope.kind) {
    case RopeKind::standard:
      break;
    case RopeKind::linear:
      check_rope_positive("factor", factor, "linear");
      break;
    case RopeKind::proportional:
      if (rope.factor != 0) check_rope_positive("factor", factor, "proportional");
      break;
    case RopeKind::dynamic:
      // Below 1 the base could become negative for a long sequence.
      if (!(factor >= 1) || !std::isfinite(factor))
        refuse_rope("factor", factor, "a finite number of at least 1 for dynamic");
      if (detail::rope_length_limit(rope) < 1)
        refuse_rope("max_position", 0, "at least 1 for dynamic");
      if (pairs == 1) refuse_rope("rotary_dim", 2, "at least 4 for dynamic");
      break;
    case RopeKind::yarn:
      check_rope_positive("factor", factor, "yarn");
      if (rope.original_max_position < 1)
        refuse_rope("original_max_position", 0, "at least 1 for yarn");
      if (!(rope.theta > 1)) refuse_rope("theta", rope.theta, "more than 1 for yarn");
      check_rope_positive("beta_fast", rope.beta_fast, "yarn");
      check_rope_positive("beta_slow", rope.beta_slow, "yarn");
      if (rope.beta_fast < rope.beta_slow)
        refuse_rope("beta_fast", rope.beta_fast,
                    detail::text("at least ", rope.beta_slow, " = beta_slow"));
      break;
    case RopeKind::llama3:
      check_rope_positive("factor", factor, "llama3");
      check_rope_positive("low_freq_factor", rope.low_freq_factor, "llama3");
      if (!(rope.high_freq_factor > rope.low_freq_factor) || !std::isfinite(rope.high_freq_factor))
        refuse_rope("high_freq_factor", rope.high_freq_factor,
                    detail::text("more than ", rope.low_freq_factor, " = low_freq_factor"));
      if (rope.original_max_position < 1)
        refuse_rope("original_max_position", 0, "at least 1 for llama3");
      break;
    case RopeKind::longrope:
      detail::check_rope_list("short_factor", rope.short_factor, pairs);
      detail::check_rope_list("long_factor", rope.long_factor, pairs);
      // ln(L0) divides the attention factor.
      if (rope.original_max_position < 2)
        refuse_rope("original_max_position", static_cast<double>(rope.original_max_position),
                    "at least 2 for longrope");
      if (!rope.attention_factor && rope.factor == 0 && rope.max_position == 0)
        refuse_rope("max_position", 0, "at least 1 for longrope without a factor");
      if (rope.factor != 0) check_rope_positive("factor", factor, "longrope");
      break;
    default:
      throw ValueError(detail::text("rope: kind is ", static_cast<int>(rope.kind),
                                    ", expected one of RopeKind's names"));
  }
}

/// a: the factor on cos and sin.
inline double rope_attention_factor(const Rope& rope) {
  if (rope.attention_factor) return *rope.attention_factor;
  const double factor = detail::rope_factor(rope);
  if (rope.kind == RopeKind::yarn) {
    if (rope.mscale != 0 && rope.mscale_all_dim != 0)
      return yarn_mscale(factor, rope.mscale) / yarn_mscale(factor, rope.mscale_all_dim);
    return yarn_mscale(factor);
  }
  if (rope.kind == RopeKind::longrope && factor > 1)
    return std::sqrt(1 +
                     std::log(factor) / std::log(static_cast<double>(rope.original_max_position)));
  return 1;
}

/// omega'[k] into `inverse` [r/2]. `seq_len`: length of the sequence, for the kinds that depend on
/// it; 0 means one within L0. The settings must have passed check_rope. Allocates nothing.
inline void write_inverse_frequencies(double* inverse, const Rope& rope, index_t head_dim,
                                      index_t seq_len) {
  const index_t pairs = rotary_dim(rope, head_dim) / 2;
  const double r = static_cast<double>(2 * pairs);
  const double factor = detail::rope_factor(rope);
  const double limit = static_cast<double>(rope.original_max_position);  // L0

  double theta = rope.theta;
  if (rope.kind == RopeKind::dynamic) {
    const double l0 = static_cast<double>(detail::rope_length_limit(rope));
    const double length = std::max(static_cast<double>(seq_len), l0);
    theta *= std::pow(factor * length / l0 - (factor - 1), r / (r - 2));
  }
  for (index_t k = 0; k < pairs; ++k)
    inverse[k] = std::pow(theta, -2.0 * static_cast<double>(k) / r);

  switch (rope.kind) {
    case RopeKind::standard:
    case RopeKind::dynamic:
      break;
    case RopeKind::linear:
      for (index_t k = 0; k < pairs; ++k) inverse[k] /= factor;
      break;
    case RopeKind::yarn: {
      // The pair that turns n times within L0 positions.
      const auto pair_of = [&](double turns) {
        return r * std::log(limit / (2 * std::numbers::pi * turns)) / (2 * std::log(theta));
      };
      double low = pair_of(rope.beta_fast), high = pair_of(rope.beta_slow);
      if (rope.truncate) low = std::floor(low), high = std::ceil(high);
      // r - 1 although pairs end at r/2 - 1: as the released checkpoints were trained.
      low = std::max(low, 0.0);
      high = std::min(high, r - 1);
      if (low == high) high += 0.001;
      for (index_t k = 0; k < pairs; ++k) {
        const double ramp = std::clamp((static_cast<double>(k) - low) / (high - low), 0.0, 1.0);
        inverse[k] *= (1 - ramp) + ramp / factor;
      }
      break;
    }
    case RopeKind::llama3:
      for (index_t k = 0; k < pairs; ++k) {
        const double wavelength = 2 * std::numbers::pi / inverse[k];
        const double s = (limit / wavelength - rope.low_freq_factor) /
                         (rope.high_freq_factor - rope.low_freq_factor);
        // s >= 1: short waves, as they were; s <= 0: long ones, slowed down; a blend between.
        const double keep = std::clamp(s, 0.0, 1.0);
        inverse[k] *= (1 - keep) / factor + keep;
      }
      break;
    case RopeKind::longrope: {
      const auto& list =
          seq_len > rope.original_max_position ? rope.long_factor : rope.short_factor;
      for (index_t k = 0; k < pairs; ++k)
        inverse[k] /= static_cast<double>(list[static_cast<std::size_t>(k)]);
      break;
    }
    case RopeKind::proportional: {
      const index_t turning =
          rope.rotary_dim > 0
              ? rope.rotary_dim / 2
              : static_cast<index_t>(rope.partial_factor * static_cast<double>(head_dim)) / 2;
      for (index_t k = 0; k < pairs; ++k)
        inverse[k] = k < turning ? inverse[k] / (factor != 0 ? factor : 1.0) : 0.0;
      break;
    }
  }
}

/// The inverse frequencies and the attention factor, in double precision.
inline RopeFrequencies rope_frequencies(const Rope& rope, index_t head_dim, index_t seq_len = 0) {
  check_rope(rope, head_dim);
  RopeFrequencies out;
  out.inverse.resize(static_cast<std::size_t>(rotary_dim(rope, head_dim) / 2));
  write_inverse_frequencies(out.inverse.data(), rope, head_dim, seq_len);
  out.attention_factor = rope_attention_factor(rope);
  return out;
}

}  // namespace rapt
