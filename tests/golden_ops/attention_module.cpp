// op attention_module, kind `attention`: one layer, a prefill and single decode steps through its
// cache, then what the cache holds.
#include "golden_ops/case.hpp"
#include "golden_ops/rope_config.hpp"
#include "rapt/modules/attention.hpp"

namespace rapt::golden {
namespace {

/// Positions, padding and hidden states of the whole run [batch, prefill + steps].
struct Sequence {
  Tensor<float, 3> prefill, decode;
  Tensor<std::int32_t, 2> positions, mask;  // mask: empty where nothing is padded
  index_t total() const { return prefill.extent(1) + decode.extent(1); }
  bool padded(index_t b, index_t t) const { return !mask.empty() && mask(b, t) == 0; }
};

AttentionConfig module_config(const Case& c) {
  AttentionConfig config;
  config.d_model = c.setting<index_t>("hidden_size");
  config.heads = c.setting<index_t>("heads");
  config.kv_heads = c.setting<index_t>("kv_heads");
  config.head_dim = c.setting<index_t>("head_dim");
  config.value_dim = c.setting<index_t>("v_head_dim", 0);
  config.window = c.setting<index_t>("window", 0);
  config.sink_tokens = c.setting<index_t>("sink_tokens", 0);
  if (c.setting<std::string>("rope_layout", "none") != "none" &&
      c.setting<index_t>("rotary_dim", -1) != 0)
    config.rope = rope_settings(c, "rope_theta", "rope_scaling", "rope_layout");
  config.scale = c.setting("scale", 0.0);
  config.softcap = c.setting("softcap", 0.0);
  config.qkv_bias = c.has("weights.q_proj.bias");
  config.out_bias = c.has("weights.o_proj.bias");
  config.sinks = c.setting("has_sinks", false);
  config.output_gate = c.setting("output_gate", false);
  const std::string norm = c.setting<std::string>("qk_norm", "none");
  if (norm != "none" && norm != "head" && norm != "flat") throw Unsupported{"qk_norm " + norm};
  config.qk_norm = norm == "head" ? QkNorm::head : norm == "flat" ? QkNorm::flat : QkNorm::none;
  config.norm_eps = c.setting("eps", config.norm_eps);
  config.norm_plus_one = c.setting("norm_plus_one", false);
  return config;
}

/// Every stored weight must have a parameter of the module, and the other way round.
template <class Module>
void load_weights(Case& c, Module& module) {
  std::vector<std::string> stored = c.names_with_prefix("weights.");
  for (const auto& p : module.parameters("weights.")) {
    if (!c.has(p.name)) throw Failure("the case has no " + p.name);
    if (p.shape != c.shape(p.name))
      throw Failure(p.name + " is " + detail::shape_text(c.shape(p.name)) + ", the module's is " +
                    detail::shape_text(p.shape));
    copy(p.values, c.input_as<float>(p.name, p.values.shape()));
    std::erase(stored, p.name);
  }
  if (!stored.empty()) throw Failure("the module has no parameter " + stored.front());
}

/// What a call over tokens [begin, begin + x.extent(1)) brings: positions and mask of a padded
/// batch or of positions that are not 0, 1, 2, ...
struct CallInputs {
  Tensor<std::int32_t, 2> positions, mask;
  AttentionCall<float, Cpu> call() const {
    AttentionCall<float, Cpu> out;
    if (!positions.empty()) out.positions = positions;
    if (!mask.empty()) out.key_mask = mask;
    return out;
  }
};

CallInputs call_inputs(const Sequence& s, index_t begin, index_t end) {
  CallInputs inputs;
  bool counts_from_zero = true;
  for (index_t b = 0; b < s.positions.extent(0); ++b)
    for (index_t t = 0; t < s.positions.extent(1); ++t)
      counts_from_zero = counts_from_zero && s.positions(b, t) == t;
  if (!counts_from_zero) inputs.positions = clone(s.positions.slice(1, begin, end));
  if (!s.mask.empty()) inputs.mask = clone(s.mask.slice(1, begin, end));
  return inputs;
}

/// Prefill and decode through `cache`; `how` names the cache where a tensor is compared again.
template <class Module, class Cache>
void run_through(Case& c, const Module& module, Cache& cache, const Sequence& s,
                 const std::string& how) {
  const auto compare = [&](const std::string& name, const Tensor<float, 3>& got, index_t begin) {
    const index_t width = got.extent(2), seq = got.extent(1);
    const Case::Where kept = [&](index_t i) {
      return !s.padded(i / width / seq, begin + i / width % seq);
    };
    if (how.empty())
      c.expect(name, got, kept);
    else
      c.expect_again(name, how, got, kept);
  };
  const index_t prefill = s.prefill.extent(1), steps = s.decode.extent(1);
  compare("prefill.output", module.forward(s.prefill, cache, call_inputs(s, 0, prefill).call()), 0);
  Tensor<float, 3> decoded({s.decode.extent(0), steps, module.out_dim()});
  for (index_t t = 0; t < steps; ++t) {
    const auto inputs = call_inputs(s, prefill + t, prefill + t + 1);
    copy(decoded.slice(1, t, t + 1),
         module.forward(clone(s.decode.slice(1, t, t + 1)), cache, inputs.call()));
  }
  compare("decode.output", decoded, prefill);
}

/// cache.keys and cache.values: `row(t)` says where the library keeps stored row t.
template <class Cache, class Row>
void compare_cache(Case& c, const Cache& cache, const Sequence& s, Row row) {
  const index_t first = c.setting<index_t>("cache_first_position", 0);
  const auto compare = [&](const std::string& name, TensorView<const float, 4> held) {
    if (!c.has(name)) return;
    const auto& shape = c.shape(name);
    if (shape.size() != 4) throw Failure(name + " has not rank 4");
    Tensor<float, 4> got({held.extent(0), shape[1], held.extent(2), held.extent(3)});
    for (index_t t = 0; t < shape[1]; ++t)
      copy(got.slice(1, t, t + 1), held.slice(1, row(first + t), row(first + t) + 1));
    const index_t width = got.extent(2) * got.extent(3);
    c.expect(name, got, [&](index_t i) {
      return !s.padded(i / width / shape[1], first + i / width % shape[1]);
    });
  };
  compare("cache.keys", cache.keys());
  compare("cache.values", cache.values());
}

}  // namespace

void run_attention_module(Case& c) {
  const std::string kind = c.setting<std::string>("kind");
  if (kind != "attention") throw Unsupported{"attention of kind " + kind};
  if (c.setting("block_indexer", false)) throw Unsupported{"attention with a block_indexer"};
  if (!c.setting("causal", true)) throw Unsupported{"a cached module that is not causal"};

  Sequence s;
  s.prefill = c.input<float, 3>("prefill.hidden_states");
  s.decode = c.input<float, 3>("decode.hidden_states");
  s.positions = c.input<std::int32_t, 2>("position_ids");
  if (c.has("attention_mask")) s.mask = c.input<std::int32_t, 2>("attention_mask");
  const index_t batch = s.prefill.extent(0);
  const AttentionConfig config = module_config(c);
  if (c.has("rope.inv_freq"))
    c.expect("rope.inv_freq",
             inverse_frequencies(config.rope.value_or(Rope{}), config.head_dim, s.total()));

  if (config.window > 0) {
    SlidingWindowAttention<float> module(config);
    load_weights(c, module);
    auto ring = module.make_cache(batch);
    run_through(c, module, ring, s, "");
    const auto positions = ring.positions();
    compare_cache(c, ring, s, [&](index_t position) {
      for (index_t slot = 0; slot < positions.extent(1); ++slot)
        if (positions(0, slot) == position) return slot;
      throw Failure("the cache does not hold position " + detail::text(position));
    });
    auto full = module.make_full_cache(batch, s.total());
    run_through(c, module, full, s, "in a cache of every token");
  } else {
    Attention<float> module(config);
    load_weights(c, module);
    auto cache = module.make_cache(batch, s.total());
    run_through(c, module, cache, s, "");
    compare_cache(c, cache, s, [](index_t position) { return position; });
  }
}

}  // namespace rapt::golden
