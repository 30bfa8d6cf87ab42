// Choosing the next token from a row of logits.
//
//   z  [vocab] ── repetition, frequency and presence penalties ── temperature ── top-k ── top-p
//                 ── min-p ──> softmax ──> draw
//
//   penalty r       z < 0 ? z·r : z / r          once for each distinct id already there
//   counts          z - count·f - (count > 0)·p  (frequency f, presence p)
//   temperature T   z / T;  T = 0: argmax, the lowest id on ties, and no stage but the penalties
//   top-k           keep z >= the k-th largest: tokens equal to it all stay
//   top-p           keep the best tokens as long as the probability before each is < p
//   min-p           keep probability >= min_p · the largest
//   draw            u uniform in [0, 1): the smallest id whose cumulative probability > u · total,
//                   summed in double over the kept tokens in the order of their ids
//
// A dropped token's logit is -inf, so later stages see what is left, renormalized. This is the
// order of Hugging Face transformers; another one can be given (llama.cpp applies temperature
// last).
//
//   Philox random(seed);
//   std::int32_t id = sample(logits, previous, {.temperature = 0.7, .top_p = 0.9}, random);
//
// Errors: ValueError for a parameter out of range, logits that are all -inf, +inf or NaN, or an id
// outside the vocabulary.
//
// Source: Holtzman et al. 2020, arXiv:1904.09751 (top-p); Nguyen et al. 2024, arXiv:2407.01082
// (min-p); Keskar et al. 2019, arXiv:1909.05858 (repetition penalty).
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"
#include "rapt/core/random.hpp"

namespace rapt {

struct SamplingParams {
  double temperature = 1.0;         // 0: greedy
  index_t top_k = 0;                // 0, or at least the vocabulary's size: off
  double top_p = 1.0;               // 1: off
  double min_p = 0.0;               // 0: off
  double repetition_penalty = 1.0;  // 1: off
  double frequency_penalty = 0.0;
  double presence_penalty = 0.0;
};

enum class SamplingStage { repetition_penalty, temperature, top_k, top_p, min_p };

/// The order of Hugging Face transformers.
inline constexpr std::array<SamplingStage, 5> kSamplingOrder = {
    SamplingStage::repetition_penalty, SamplingStage::temperature, SamplingStage::top_k,
    SamplingStage::top_p, SamplingStage::min_p};

/// "top_k" and so on.
inline SamplingStage sampling_stage(std::string_view name) {
  if (name == "repetition_penalty") return SamplingStage::repetition_penalty;
  if (name == "temperature") return SamplingStage::temperature;
  if (name == "top_k") return SamplingStage::top_k;
  if (name == "top_p") return SamplingStage::top_p;
  if (name == "min_p") return SamplingStage::min_p;
  throw ValueError(detail::text("sampling: order names ", name,
                                ", expected repetition_penalty, temperature, top_k, top_p, min_p"));
}

/// Throws ValueError naming a parameter that is out of range.
inline void check_sampling(const SamplingParams& params) {
  const auto refuse = [](const char* name, auto value, const char* expected) {
    throw ValueError(detail::text("sampling: ", name, " is ", value, ", expected ", expected));
  };
  const auto finite = [](double x) { return std::isfinite(x); };
  if (!finite(params.temperature) || params.temperature < 0)
    refuse("temperature", params.temperature, "0 or more");
  if (params.top_k < 0) refuse("top_k", params.top_k, "0 or more");
  if (!(params.top_p >= 0 && params.top_p <= 1)) refuse("top_p", params.top_p, "0 ... 1");
  if (!(params.min_p >= 0 && params.min_p <= 1)) refuse("min_p", params.min_p, "0 ... 1");
  if (!finite(params.repetition_penalty) || params.repetition_penalty <= 0)
    refuse("repetition_penalty", params.repetition_penalty, "more than 0");
  if (!finite(params.frequency_penalty))
    refuse("frequency_penalty", params.frequency_penalty, "a finite number");
  if (!finite(params.presence_penalty))
    refuse("presence_penalty", params.presence_penalty, "a finite number");
}

namespace detail {

inline constexpr float kDropped = -std::numeric_limits<float>::infinity();

/// The largest logit; throws when no token can be chosen.
inline float check_logits(std::span<const float> logits) {
  float best = kDropped;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == -kDropped)
      throw ValueError(text("sampling: the logit of token ", i, " is ", logits[i],
                            ", expected a finite number or -inf"));
    best = std::max(best, logits[i]);
  }
  if (best == kDropped)
    throw ValueError(
        text("sampling: all ", logits.size(), " logits are -inf, expected at least one token"));
  return best;
}

/// Subtracts, divides: what earlier tokens do to the logits.
inline void apply_penalties(std::span<float> logits, std::span<const std::int32_t> previous,
                            const SamplingParams& params) {
  if (params.repetition_penalty == 1 && params.frequency_penalty == 0 &&
      params.presence_penalty == 0)
    return;
  std::unordered_map<std::int32_t, index_t> counts;
  for (const std::int32_t id : previous) {
    if (id < 0 || static_cast<std::size_t>(id) >= logits.size())
      throw ValueError(text("sampling: a previous id is ", id, ", expected 0 ... ",
                            static_cast<index_t>(logits.size()) - 1));
    ++counts[id];
  }
  const auto penalty = static_cast<float>(params.repetition_penalty);
  for (const auto& [id, count] : counts) {
    float& z = logits[static_cast<std::size_t>(id)];
    z = z < 0 ? z * penalty : z / penalty;
    z -= static_cast<float>(static_cast<double>(count) * params.frequency_penalty +
                            params.presence_penalty);
  }
}

inline void keep_top_k(std::span<float> logits, index_t k) {
  if (k <= 0 || static_cast<std::size_t>(k) >= logits.size()) return;
  std::vector<float> sorted(logits.begin(), logits.end());
  const auto kth = sorted.begin() + static_cast<std::ptrdiff_t>(k) - 1;
  std::nth_element(sorted.begin(), kth, sorted.end(), std::greater<float>());
  for (float& z : logits)
    if (z < *kth) z = kDropped;
}

/// Ids of tokens that are not dropped.
inline std::vector<std::int32_t> kept_ids(std::span<const float> logits) {
  std::vector<std::int32_t> ids;
  for (std::size_t i = 0; i < logits.size(); ++i)
    if (logits[i] != kDropped) ids.push_back(static_cast<std::int32_t>(i));
  return ids;
}

inline void keep_top_p(std::span<float> logits, double p, float largest) {
  if (p >= 1) return;
  const auto at = [&](std::int32_t id) { return logits[static_cast<std::size_t>(id)]; };
  std::vector<std::int32_t> ids = kept_ids(logits);
  double total = 0;
  for (const std::int32_t id : ids) total += std::exp(static_cast<double>(at(id) - largest));
  // Best first; the lower id on ties. Sorted in growing prefixes: the nucleus is mostly small.
  const auto better = [&](std::int32_t a, std::int32_t b) {
    return at(a) > at(b) || (at(a) == at(b) && a < b);
  };
  std::size_t sorted = 0, keep = 0;
  double before = 0;
  while (keep < ids.size() && (keep == 0 || before < p * total)) {
    if (keep == sorted) {
      const std::size_t next = std::min(ids.size(), std::max<std::size_t>(64, 4 * sorted));
      std::partial_sort(ids.begin() + static_cast<std::ptrdiff_t>(sorted),
                        ids.begin() + static_cast<std::ptrdiff_t>(next), ids.end(), better);
      sorted = next;
    }
    before += std::exp(static_cast<double>(at(ids[keep]) - largest));
    ++keep;
  }
  for (std::size_t i = keep; i < ids.size(); ++i)
    logits[static_cast<std::size_t>(ids[i])] = kDropped;
}

inline void keep_min_p(std::span<float> logits, double min_p, float largest) {
  if (min_p <= 0) return;
  for (float& z : logits)
    if (std::exp(static_cast<double>(z - largest)) < min_p) z = kDropped;
}

}  // namespace detail

/// Applies the stages to one row of logits in place; dropped tokens become -inf.
/// `previous`: the ids of prompt and output so far, for the penalties.
inline void process_logits(std::span<float> logits, std::span<const std::int32_t> previous,
                           const SamplingParams& params,
                           std::span<const SamplingStage> order = kSamplingOrder) {
  check_sampling(params);
  detail::check_logits(logits);
  for (const SamplingStage stage : order) {
    if (stage == SamplingStage::repetition_penalty) {
      detail::apply_penalties(logits, previous, params);
      continue;
    }
    if (params.temperature == 0) continue;  // greedy: nothing else can change the argmax
    switch (stage) {
      case SamplingStage::temperature:
        if (params.temperature != 1)
          for (float& z : logits) z /= static_cast<float>(params.temperature);
        break;
      case SamplingStage::top_k:
        detail::keep_top_k(logits, params.top_k);
        break;
      case SamplingStage::top_p:
        detail::keep_top_p(logits, params.top_p, detail::check_logits(logits));
        break;
      case SamplingStage::min_p:
        detail::keep_min_p(logits, params.min_p, detail::check_logits(logits));
        break;
      case SamplingStage::repetition_penalty:
        break;
    }
  }
}

/// The id of the largest logit; the lowest id on ties.
inline std::int32_t argmax(std::span<const float> logits) {
  const float best = detail::check_logits(logits);
  std::size_t id = 0;
  while (logits[id] != best) ++id;
  return static_cast<std::int32_t>(id);
}

/// probabilities = softmax(logits); -inf gives 0. The two may be one.
inline void softmax(std::span<float> probabilities, std::span<const float> logits) {
  if (probabilities.size() != logits.size())
    throw ShapeError(detail::text("softmax: probabilities is [", probabilities.size(),
                                  "], expected [", logits.size(), "] = [vocab]"));
  const float best = detail::check_logits(logits);
  double total = 0;
  for (const float z : logits) total += std::exp(static_cast<double>(z - best));
  for (std::size_t i = 0; i < logits.size(); ++i)
    probabilities[i] = static_cast<float>(std::exp(static_cast<double>(logits[i] - best)) / total);
}

/// Draws from the softmax of processed logits with u in [0, 1).
inline std::int32_t draw(std::span<const float> logits, double u) {
  const float best = detail::check_logits(logits);
  std::vector<double> weights(logits.size());
  double total = 0;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (logits[i] != detail::kDropped) weights[i] = std::exp(static_cast<double>(logits[i] - best));
    total += weights[i];
  }
  double cumulative = 0;
  std::size_t last = 0;  // rounding may leave the sum short of u * total
  for (std::size_t i = 0; i < logits.size(); ++i) {
    if (weights[i] <= 0) continue;
    cumulative += weights[i];
    last = i;
    if (cumulative > u * total) break;
  }
  return static_cast<std::int32_t>(last);
}

/// Processes a row of logits in place and chooses a token. With temperature 0 nothing is drawn from
/// `random`; otherwise one uniform number, whatever the logits: runs stay in step.
inline std::int32_t sample(std::span<float> logits, std::span<const std::int32_t> previous,
                           const SamplingParams& params, Philox& random,
                           std::span<const SamplingStage> order = kSamplingOrder) {
  process_logits(logits, previous, params, order);
  if (params.temperature == 0) return argmax(logits);
  return draw(logits, random.uniform());
}

}  // namespace rapt
