// Whole models: a prompt, and one new token against what the cache holds.
//
//   model/name:smollm2-135m/weights:blocks/pass:prefill/tokens:512/threads:1    its file in
//   RAPT_MODELS model/name:gqa/weights:fp32/pass:decode/context:64/cached:yes/threads:1     random
//   weights
//
//   name     smollm2-135m, gemma3-270m: skipped where the file is not there
//            mha, gqa, mqa: one size (d_model 512, 8 layers, 8 query heads) with 8, 2, 1 kv heads
//   weights  blocks: the file's quantized blocks, fp32 activations, cache of fp16; fp32, bf16:
//   dequantized, activations of that type cached   no: the whole text runs again for one token
//
// A decoded token is bound by reading the weights and the keys and values once: bytes/s, and
// peak_share, the part of the rate at which the cores in use read as many bytes and does nothing
// with them. A prompt is bound by arithmetic: FLOP/s (two for each weight and token; attention not
// counted), and peak_share of the machine's fp32 multiply-adds, which int8 dot products exceed.
//
// Context grows by the tokens that are decoded, 16 or 48.
#include <filesystem>
#include <memory>
#include <optional>

#include "bench_case.hpp"
#include "rapt/nn/checkpoint.hpp"
#include "rapt/text/generate.hpp"

namespace rapt::bench {
namespace {

struct KnownFile {
  const char *name, *file;
};
constexpr KnownFile kFiles[] = {{"smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf"},
                                {"gemma3-270m", "gemma-3-270m-q4_k_m.gguf"}};

std::optional<std::filesystem::path> find_model(const std::string& file) {
  std::vector<std::filesystem::path> folders;
  if (const char* models = std::getenv("RAPT_MODELS")) folders.emplace_back(models);
  folders.emplace_back("models");
  if (const char* home = std::getenv("HOME"))
    folders.push_back(std::filesystem::path(home) / ".cache" / "rapt");
  for (const auto& folder : folders)
    if (std::filesystem::exists(folder / file)) return folder / file;
  return std::nullopt;
}

/// The model of a case; the last one is kept, so that the cases of one model load it once.
template <class T>
nn::Transformer<T>* model_of(const Case& c) {
  static std::string kept;
  static std::unique_ptr<nn::Transformer<T>> model;
  const std::string& name = c.text("name");
  const std::string key = name + "/" + c.text("weights");
  if (key == kept) return model.get();
  model.reset();
  kept = key;
  const auto quantized =
      c.text("weights") == "blocks" ? QuantizedWeights::automatic : QuantizedWeights::off;
  for (const KnownFile& known : kFiles)
    if (name == known.name) {
      if (const auto path = find_model(known.file)) {
        model = std::make_unique<nn::Transformer<T>>(
            nn::load_transformer<T>(*path, Cpu{}, {}, quantized));
        model->prepack();  // as the programs do
      }
      return model.get();
    }
  ModelConfig config;
  config.vocab_size = 4096;
  config.d_model = 512;
  config.layers = 8;
  config.heads = 8;
  config.kv_heads = name == "mha" ? 8 : name == "gqa" ? 2 : name == "mqa" ? 1 : 0;
  config.ffn_dim = 1536;
  config.tie_embeddings = true;
  if (config.kv_heads == 0) c.refuse("name", "smollm2-135m, gemma3-270m, mha, gqa or mqa");
  if (quantized == QuantizedWeights::automatic) c.refuse("weights", "fp32 or bf16 for this name");
  model = std::make_unique<nn::Transformer<T>>(config);
  Philox random(1);
  model->initialize(random);
  model->prepack();
  return model.get();
}

std::vector<std::int32_t> text_of(index_t tokens, index_t vocab) {
  std::vector<std::int32_t> ids;
  for (index_t i = 0; i < tokens; ++i)
    ids.push_back(static_cast<std::int32_t>((1000 + i * 7) % vocab));
  return ids;
}

template <class T, class E>
void run_model(benchmark::State& state, const Case& c) {
  nn::Transformer<T>* model = model_of<T>(c);
  if (model == nullptr) {
    state.SkipWithError("the model's file is not there: examples/fetch_model.sh fetches it");
    return;
  }
  const bool prefill = c.text("pass") == "prefill", cached = c.text("cached") == "yes";
  if (!prefill && c.text("pass") != "decode") c.refuse("pass", "prefill or decode");
  const index_t vocab = model->config().vocab_size;
  const index_t tokens = c.number("tokens"), context = prefill ? tokens : c.number("context");
  const auto threads = static_cast<int>(c.number("threads"));
  const int before = num_threads();
  set_num_threads(threads);
  const auto weight_bytes = static_cast<double>(model->weight_bytes_per_token());
  const auto rate = [](double amount) {
    return benchmark::Counter(amount, benchmark::Counter::kIsIterationInvariantRate);
  };

  Session<T, Cpu, E> session(*model, 1, context + 256, prefill || cached);
  const auto text = text_of(context, vocab);
  if (prefill) {
    session.feed({text});  // the first one meets memory that is still the system's
    for (auto _ : state) {
      session.reset();
      session.feed({text});
      benchmark::DoNotOptimize(session.logits(0).data());
    }
    double weights = 0;  // without the table: only the last token needs logits
    for (const auto& slot : model->weights())
      weights += static_cast<double>(slot.weight->out() * slot.weight->in());
    weights -= static_cast<double>(vocab * model->config().d_model);
    const double work = 2 * weights * static_cast<double>(tokens);
    state.counters["tokens/s"] = rate(static_cast<double>(tokens));
    state.counters["FLOP/s"] = rate(work);
    const double peak = fma_peak(threads);
    state.counters["peak"] = peak;
    state.counters["peak_share"] = rate(work / peak);
  } else {
    session.feed({text});
    Philox random(1);
    for (auto _ : state) {
      const std::int32_t id =
          sample(session.logits(0), session.text(0), {.temperature = 0}, random);
      session.feed({{id}});
    }
    const auto read =
        weight_bytes + static_cast<double>(cached ? session.cache_bytes_read_per_token() : 0);
    state.counters["tokens/s"] = rate(1);
    state.counters["ms/token"] = benchmark::Counter(
        1e-3, benchmark::Counter::kIsIterationInvariantRate | benchmark::Counter::kInvert);
    state.counters["weight_bytes"] = weight_bytes;
    if (cached) {
      Tensor<float, 1> other(Shape{static_cast<index_t>(read) / 4});  // in pages like the weights'
      double reading = 0;
      for (int round = 0; round < 3; ++round)
        reading = std::max(reading, read_rate(other.data(), other.bytes(), threads));
      state.counters["bytes/s"] = rate(read);
      state.counters["peak"] = reading;
      state.counters["peak_share"] = rate(read / reading);
    }
  }
  set_num_threads(before);
}

void run(benchmark::State& state, const Case& c) {
  const std::string& weights = c.text("weights");
  if (weights == "blocks")
    run_model<float, half>(state, c);
  else if (weights == "fp32")
    run_model<float, float>(state, c);
  else if (weights == "bf16")
    run_model<bfloat16, bfloat16>(state, c);
  else
    c.refuse("weights", "blocks, fp32 or bf16");
}

}  // namespace
}  // namespace rapt::bench

int main(int argc, char** argv) {
  using namespace rapt::bench;
  std::vector<std::string> cases;
  for (const char* name : {"smollm2-135m", "gemma3-270m"})
    for (const char* weights : {"blocks", "bf16", "fp32"}) {
      const std::string model = std::string("model/name:") + name + "/weights:" + weights;
      cases.push_back(model + "/pass:prefill/tokens:512/threads:1");
      for (const char* context : {"1", "512", "2048"})
        cases.push_back(model + "/pass:decode/context:" + context + "/threads:1");
    }
  for (const char* context : {"16", "64", "128"})
    for (const char* name : {"mha", "gqa", "mqa"})
      for (const char* cached : {"yes", "no"})
        cases.push_back(std::string("model/name:") + name + "/weights:fp32/pass:decode/context:" +
                        context + "/cached:" + cached + "/threads:1");
  return main_of(argc, argv, cases, [](const std::string& name) {
    const Case c(name, {{"name", "smollm2-135m"},
                        {"weights", "blocks"},
                        {"pass", "decode"},
                        {"tokens", "512"},
                        {"context", "1"},
                        {"cached", "yes"},
                        {"threads", "1"}});
    auto* registered =
        benchmark::RegisterBenchmark(name.c_str(), [c](benchmark::State& state) { run(state, c); });
    registered->Unit(benchmark::kMillisecond)->MeasureProcessCPUTime();
    if (c.text("threads") != "1") registered->UseRealTime();
    if (c.text("pass") == "decode") registered->Iterations(c.text("cached") == "yes" ? 48 : 16);
  });
}
