// One training step of a language model: forward, cross-entropy, backward, clipping, AdamW. Bound
// by arithmetic: about 6 FLOP for each parameter that multiplies and each token, and attention's
// own; read tokens/s, and peak_share, those FLOP against this machine's fp32 FMA peak.
//
// The models are Llama's form (RMSNorm, SwiGLU, rotary, tied embeddings). fp16 and bf16 keep fp32
// masters, gradients and moments.
#include <vector>

#include "bench_case.hpp"
#include "model_shape.hpp"
#include "rapt/core/random.hpp"
#include "rapt/nn/training.hpp"
#include "rapt/train/optimizer.hpp"

namespace rapt::bench {
namespace {

/// FLOP of one step: 2 for each weight and token in each of three products (the output, the
/// gradient of the input, the gradient of the weight), and attention's 4 head_dim for each visible
/// pair, 3.5 times (backward: five products where forward has two).
double step_flop(const ModelConfig& m, index_t batch, index_t seq) {
  const double d = static_cast<double>(m.d_model), rows = static_cast<double>(batch * seq);
  const double heads = static_cast<double>(m.heads * m.head_dim);
  const double kv = static_cast<double>(m.kv_heads * m.head_dim);
  const double layer = d * (heads + 2 * kv) + heads * d + 3 * d * static_cast<double>(m.ffn_dim);
  const double weights =
      static_cast<double>(m.layers) * layer + d * static_cast<double>(m.vocab_size);
  const double pairs = static_cast<double>(batch) * 0.5 * static_cast<double>(seq * (seq + 1));
  return 6 * weights * rows + 3.5 * 4 * heads * pairs * static_cast<double>(m.layers);
}

template <class T>
void step(benchmark::State& state, const Case& c) {
  const index_t batch = c.number("batch"), seq = c.number("seq");
  const auto threads = static_cast<int>(c.number("threads"));
  ModelConfig config = model_of(c);
  config.architecture = "llama";
  const int before = num_threads();
  set_num_threads(threads);
  nn::Transformer<T> model(config);
  Philox random(1);
  model.initialize(random);
  model.require_gradients();
  const auto parameters = model.parameters();
  train::AdamW<T> optimizer(parameters);
  Tensor<std::int32_t, 2> text({batch, seq + 1});
  for (std::int32_t& id : std::span(text.data(), static_cast<std::size_t>(text.size())))
    id = static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(config.vocab_size)));
  const auto ids = clone(text.slice(1, 0, seq)), targets = clone(text.slice(1, 1, seq + 1));
  // A power of two keeps half's gradients above its subnormals, as a loss scaler would.
  const double loss_scale = sizeof(T) == 2 && std::is_same_v<T, half> ? 1024 : 1;
  const nn::TrainingCall call{.scale = loss_scale / static_cast<double>(batch * seq),
                              .recompute = c.text("recompute") == "1"};
  Tape<> tape;
  double loss = 0;
  const double flop = step_flop(config, batch, seq);
  measure_against_peak(state, threads, flop, [&] {
    zero_gradients(parameters);
    loss = model.forward_backward(ids, targets, tape, call).mean();
    const double norm = optimizer.gradient_norm() / loss_scale;
    optimizer.step(1e-3, train::clip_scale(norm, 1.0) / loss_scale);
  });
  set_num_threads(before);
  const auto rate = [](double amount) {
    return benchmark::Counter(amount, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["tokens/s"] = rate(static_cast<double>(batch * seq));
  state.counters["FLOP/s"] = rate(flop);
  state.counters["loss"] = loss;
  state.counters["activation_bytes"] = static_cast<double>(tape.peak_bytes());
}

void run(benchmark::State& state, const Case& c) {
  const std::string& dtype = c.text("dtype");
  if (c.text("recompute") != "0" && c.text("recompute") != "1") c.refuse("recompute", "0 or 1");
  if (dtype == "fp32")
    step<float>(state, c);
  else if (dtype == "bf16")
    step<bfloat16>(state, c);
  else if (dtype == "fp16")
    step<half>(state, c);
  else
    c.refuse("dtype", "fp32, bf16 or fp16");
}

}  // namespace
}  // namespace rapt::bench

int main(int argc, char** argv) {
  using namespace rapt::bench;
  const auto name = [](const char* dtype, int threads, const char* more) {
    return std::string("training/dtype:") + dtype +
           "/d_model:256/layers:6/heads:8/kv_heads:2/vocab:4096/batch:4/seq:256/threads:" +
           std::to_string(threads) + more;
  };
  const std::vector<std::string> cases = {name("fp32", 1, ""), name("bf16", 1, ""),
                                          name("fp16", 1, ""), name("fp32", 2, ""),
                                          name("fp32", 1, "/recompute:1")};
  return main_of(argc, argv, cases, [](const std::string& case_name) {
    const Case c(case_name, {{"dtype", "fp32"},
                             {"d_model", "256"},
                             {"layers", "6"},
                             {"heads", "8"},
                             {"kv_heads", "2"},
                             {"vocab", "4096"},
                             {"batch", "4"},
                             {"seq", "256"},
                             {"recompute", "0"},
                             {"threads", "1"}});
    benchmark::RegisterBenchmark(case_name.c_str(), [c](benchmark::State& state) { run(state, c); })
        ->UseManualTime()
        ->Unit(benchmark::kMillisecond);
  });
}
