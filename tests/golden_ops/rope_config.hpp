// Rope settings out of a case's config.
#pragma once

#include "golden_ops/case.hpp"
#include "rapt/rope/rope.hpp"

namespace rapt::golden {

inline RopeKind rope_kind(const std::string& name) {
  static const std::map<std::string, RopeKind> kinds = {
      {"default", RopeKind::standard}, {"linear", RopeKind::linear},
      {"dynamic", RopeKind::dynamic},  {"yarn", RopeKind::yarn},
      {"llama3", RopeKind::llama3},    {"longrope", RopeKind::longrope}};
  const auto found = kinds.find(name);
  if (found == kinds.end()) throw Unsupported{"rope_type " + name};
  return found->second;
}

inline RopeLayout rope_layout(const std::string& name) {
  static const std::map<std::string, RopeLayout> layouts = {
      {"rotate_half", RopeLayout::rotate_half},
      {"interleaved", RopeLayout::interleaved},
      {"interleaved_to_half", RopeLayout::interleaved_to_half}};
  const auto found = layouts.find(name);
  if (found == layouts.end()) throw Unsupported{"rope layout " + name};
  return found->second;
}

/// `theta_key` and `scaling_key`: the op rope and the modules spell them differently.
inline Rope rope_settings(const Case& c, const char* theta_key, const char* scaling_key,
                          const char* layout_key) {
  Rope rope;
  rope.kind = rope_kind(c.setting<std::string>("rope_type", "default"));
  rope.theta = c.setting<double>(theta_key);
  rope.layout = rope_layout(c.setting<std::string>(layout_key));
  rope.slice = c.setting<std::string>("rotary_slice", "leading") == "trailing" ? RopeSlice::trailing
                                                                               : RopeSlice::leading;
  rope.rotary_dim = c.setting<index_t>("rotary_dim", 0);
  rope.max_position = c.setting<index_t>("max_position_embeddings", 0);
  const Json scaling = c.setting<Json>(scaling_key, Json::object());
  for (const auto& [key, value] : scaling.items()) {
    if (value.is_null()) continue;
    if (key == "factor")
      rope.factor = value;
    else if (key == "original_max_position_embeddings")
      rope.original_max_position = value;
    else if (key == "low_freq_factor")
      rope.low_freq_factor = value;
    else if (key == "high_freq_factor")
      rope.high_freq_factor = value;
    else if (key == "beta_fast")
      rope.beta_fast = value;
    else if (key == "beta_slow")
      rope.beta_slow = value;
    else if (key == "truncate")
      rope.truncate = value;
    else if (key == "attention_factor")
      rope.attention_factor = value.get<double>();
    else if (key == "mscale")
      rope.mscale = value;
    else if (key == "mscale_all_dim")
      rope.mscale_all_dim = value;
    else if (key == "short_factor")
      rope.short_factor = value.get<std::vector<float>>();
    else if (key == "long_factor")
      rope.long_factor = value.get<std::vector<float>>();
    else if (key != "rope_type" && key != "type" && key != "rope_theta")
      throw Unsupported{"rope scaling " + key};
  }
  return rope;
}

/// The inverse frequencies as a tensor.
inline Tensor<double, 1> inverse_frequencies(const Rope& rope, index_t head_dim, index_t seq_len) {
  const RopeFrequencies frequencies = rope_frequencies(rope, head_dim, seq_len);
  Tensor<double, 1> out({frequencies.inverse.size()});
  std::copy(frequencies.inverse.begin(), frequencies.inverse.end(), out.data());
  return out;
}

}  // namespace rapt::golden
