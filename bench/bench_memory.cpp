// What a model costs in bytes, by the number of its key/value heads: computed from the shapes and
// measured on the model, which must agree.
//
//   parameters   sizeof(T) P           gradients  sizeof(acc) P      optimizer  2 sizeof(acc) P,
//   and
//                                      a master of acc for 16-bit weights
//   cache        2 layers kv_len kv_heads head_dim sizeof(T)
//   activations  what the tape holds at most in a step of batch x seq tokens; with recompute:1 each
//                block's input and one block's worth
//
// Counters *_bytes are measured, computed_* are the formulas. The time is that of one training
// step. The default sizes are those of a GPT whose table (fp32 weights, 16-bit cache of 512 tokens)
// reads 190.6 MB and 8 MB for MHA, 182.6 and 4 for GQA with 4 heads, 176.6 and 1 for MQA; see
// docs/training.md.
#include "bench_case.hpp"
#include "rapt/train/trainer.hpp"

namespace rapt::bench {
namespace {

template <class T>
void memory(benchmark::State& state, const Case& c) {
  ModelConfig config;
  config.architecture = "llama";
  config.vocab_size = c.number("vocab");
  config.d_model = c.number("d_model");
  config.layers = c.number("layers");
  config.heads = c.number("heads");
  config.kv_heads = c.number("kv_heads");
  config.head_dim = config.d_model / config.heads;
  config.ffn_dim = c.number("ffn");
  config.tie_embeddings = true;
  config.layer_types.resize(static_cast<std::size_t>(config.layers));
  const index_t batch = c.number("batch"), seq = c.number("seq");
  const auto threads = static_cast<int>(c.number("threads"));
  config.max_position = seq;
  set_num_threads(threads);
  if (c.text("recompute") != "0" && c.text("recompute") != "1") c.refuse("recompute", "0 or 1");

  nn::Transformer<T> model(config);
  Philox random(1);
  model.initialize(random);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(4 * batch * seq + 1));
  for (auto& id : ids)
    id = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(config.vocab_size)));
  train::Dataset data(train::TokenSpan(ids, config.vocab_size), {.seq = seq});
  train::TrainerOptions options;
  options.batch = batch;
  options.recompute = c.text("recompute") == "1";
  train::Trainer<T> trainer(model, data, options);
  for (auto _ : state) trainer.step();

  using A = accumulate_t<T>;
  index_t parameters = 0, gradients = 0;
  for (const auto& p : model.parameters()) {
    parameters += p.values.size() * static_cast<index_t>(sizeof(T));
    gradients += p.gradient.size() * static_cast<index_t>(sizeof(A));
  }
  const auto put = [&](const char* name, auto bytes) {
    state.counters[name] = static_cast<double>(bytes);
  };
  put("parameter_bytes", parameters);
  put("gradient_bytes", gradients);
  put("optimizer_bytes", trainer.optimizer().bytes());
  put("activation_bytes", trainer.activation_bytes());
  put("cache_bytes", model.make_cache(batch, seq).bytes());
  put("cache_bytes_16_bit", nn::Transformer<half>(config).make_cache(batch, seq).bytes());

  // The shapes alone. d = d_model, k = kv_heads head_dim, f = ffn.
  const index_t d = config.d_model, q = config.heads * config.head_dim,
                k = config.kv_heads * config.head_dim, f = config.ffn_dim, layers = config.layers;
  const index_t count =
      config.vocab_size * d + layers * (2 * d * q + 2 * d * k + 3 * d * f + 2 * d) + d;
  put("computed_parameters", count);
  put("computed_cache_bytes", 2 * layers * batch * seq * k * static_cast<index_t>(sizeof(T)));
  const index_t tokens = batch * seq;
  // A block saves its input and what its feed-forward starts from, q, k, v and the output of
  // attention, the logsumexp in acc, gate and up; recomputed blocks their input, and one block the
  // rest.
  const index_t block = 2 * d + 2 * q + 2 * k + 2 * f, once = options.recompute ? 1 : layers;
  put("computed_activation_bytes",
      tokens * static_cast<index_t>(sizeof(T)) * (layers * d + once * (block - d)) +
          tokens * static_cast<index_t>(sizeof(A)) * once * config.heads);
  state.SetItemsProcessed(state.iterations() * tokens);
}

void add(const std::string& name) {
  const Case c(name, {{"dtype", "fp32"},
                      {"vocab", "50257"},
                      {"d_model", "512"},
                      {"layers", "8"},
                      {"heads", "8"},
                      {"kv_heads", "8"},
                      {"ffn", "1365"},
                      {"batch", "1"},
                      {"seq", "512"},
                      {"recompute", "0"},
                      {"threads", "1"}});
  const std::string& dtype = c.text("dtype");
  auto* const run = dtype == "fp32"   ? memory<float>
                    : dtype == "bf16" ? memory<bfloat16>
                    : dtype == "fp16" ? memory<half>
                                      : nullptr;
  if (run == nullptr) c.refuse("dtype", "fp32, bf16 or fp16");
  benchmark::RegisterBenchmark(name.c_str(), [run, c](benchmark::State& s) { run(s, c); })
      ->Unit(benchmark::kMillisecond)
      ->Iterations(1);
}

}  // namespace
}  // namespace rapt::bench

int main(int argc, char** argv) {
  std::vector<std::string> cases;
  for (const char* recompute : {"0", "1"})
    for (const char* kv_heads : {"8", "4", "1"})
      cases.push_back(
          std::string("memory/dtype:fp32/vocab:50257/d_model:512/layers:8/heads:8/kv_heads:") +
          kv_heads + "/ffn:1365/batch:1/seq:512/recompute:" + recompute + "/threads:1");
  return rapt::bench::main_of(argc, argv, cases, rapt::bench::add);
}
