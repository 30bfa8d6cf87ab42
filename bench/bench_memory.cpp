// Where the memory of a model goes: parameters, KV cache, activations, gradients and optimiser
// state of MHA, GQA and MQA of one size, each computed from the shapes and measured.
//
//   parameters     P elements                                     E = elements of a weight, e bytes
//   kv_cache       2 layers batch seq kv_heads head_dim e         a decode step reads it once
//   activations    what a training step keeps for its backward pass, batch x seq tokens:
//                  tokens layers (2 d_model + 2 (heads + kv_heads) head_dim + 2 ffn) e, and each
//                  query's logsumexp in fp32
//   gradients      4 P        optimizer   8 P, and 4 P of masters where weights have 16 bits
//
// measured: parameters, gradients and optimiser by the heap that they hold (operator new is
// counted), the cache by cache.bytes(), activations by the tape's peak. heap_peak is everything
// that one training step has on the heap at once, buffers that are reused included.
//
// Times are those of the one training step that is measured: this benchmark is about bytes.
#include <atomic>
#include <cstdlib>
#include <new>
#include <vector>

#include "bench_case.hpp"
#include "model_shape.hpp"
#include "rapt/core/random.hpp"
#include "rapt/nn/training.hpp"
#include "rapt/train/optimizer.hpp"

namespace {

// Bytes asked of operator new and not given back. The size lies in front of each block.
std::atomic<std::int64_t> heap_bytes{0}, heap_peak{0};

void* counted_allocate(std::size_t size, std::size_t alignment) {
  const std::size_t head = std::max<std::size_t>(alignment, 64);
  void* const block = std::aligned_alloc(head, (size + 2 * head - 1) / head * head);
  if (block == nullptr) throw std::bad_alloc();
  *static_cast<std::size_t*>(block) = size;
  const std::int64_t now = heap_bytes += static_cast<std::int64_t>(size);
  for (std::int64_t peak = heap_peak; peak < now && !heap_peak.compare_exchange_weak(peak, now);) {
  }
  return static_cast<char*>(block) + head;
}

void counted_free(void* pointer, std::size_t alignment) noexcept {
  if (pointer == nullptr) return;
  void* const block = static_cast<char*>(pointer) - std::max<std::size_t>(alignment, 64);
  heap_bytes -= static_cast<std::int64_t>(*static_cast<std::size_t*>(block));
  std::free(block);
}

}  // namespace

void* operator new(std::size_t size) { return counted_allocate(size, 64); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return counted_allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* pointer) noexcept { counted_free(pointer, 64); }
void operator delete(void* pointer, std::size_t) noexcept { counted_free(pointer, 64); }
void operator delete(void* pointer, std::align_val_t alignment) noexcept {
  counted_free(pointer, static_cast<std::size_t>(alignment));
}
void operator delete(void* pointer, std::size_t, std::align_val_t alignment) noexcept {
  counted_free(pointer, static_cast<std::size_t>(alignment));
}

namespace rapt::bench {
namespace {

template <class T>
void account(benchmark::State& state, const Case& c) {
  const index_t batch = c.number("batch"), seq = c.number("seq");
  const ModelConfig config = model_of(c, c.number("ffn"));
  const auto count = [&](const char* name, double computed, double measured) {
    state.counters[std::string(name) + "_computed"] = computed;
    state.counters[std::string(name) + "_measured"] = measured;
  };
  const auto held = [before = heap_bytes.load()]() mutable {
    const std::int64_t now = heap_bytes, grown = now - before;
    before = now;
    return static_cast<double>(grown);
  };

  // The weights in numbers: tied embedding, q, k, v, o, gate, up, down, two norms of two vectors.
  const index_t d = config.d_model, width = config.heads * config.head_dim;
  const index_t kv_width = config.kv_heads * config.head_dim;
  const index_t layer =
      d * (width + 2 * kv_width) + width * d + 3 * d * config.ffn_dim + 2 * (2 * d);
  const auto weights = static_cast<double>(config.vocab_size * d + config.layers * layer + 2 * d);
  const auto element = static_cast<double>(sizeof(T));

  nn::Transformer<T> model(config);
  count("parameters", weights * element, held());
  Philox random(1);
  model.initialize(random);
  {
    const auto cache = model.make_cache(batch, seq);
    count("kv_cache", static_cast<double>(model.footprint(seq, batch).bytes_stored),
          static_cast<double>(cache.bytes()));
  }
  (void)held();
  model.require_gradients();
  count("gradients", weights * sizeof(float), held());
  const auto parameters = model.parameters();
  (void)held();
  train::AdamW<T> optimizer(parameters);
  count("optimizer", weights * sizeof(float) * (sizeof(T) == 2 ? 3 : 2), held());

  Tensor<std::int32_t, 2> ids({batch, seq}), targets({batch, seq});
  for (auto* tensor : {&ids, &targets})
    for (index_t i = 0; i < tensor->size(); ++i)
      tensor->data()[i] =
          static_cast<std::int32_t>(random.below(static_cast<std::uint64_t>(config.vocab_size)));
  Tape<> tape;
  heap_peak = heap_bytes.load();
  for (auto _ : state) {
    zero_gradients(parameters);
    model.forward_backward(
        ids, targets, tape,
        {.scale = 1.0 / static_cast<double>(batch * seq), .recompute = c.text("recompute") == "1"});
    optimizer.step(1e-3);
  }
  const auto tokens = static_cast<double>(batch * seq);
  const double saved =
      c.text("recompute") == "1"
          ? static_cast<double>(d) * element
          : static_cast<double>(2 * d + 2 * (width + kv_width) + 2 * config.ffn_dim) * element +
                static_cast<double>(config.heads) * sizeof(float);
  count("activations", tokens * static_cast<double>(config.layers) * saved,
        static_cast<double>(tape.peak_bytes()));
  state.counters["heap_peak"] = static_cast<double>(heap_peak.load());
}

void run(benchmark::State& state, const Case& c) {
  const std::string& dtype = c.text("dtype");
  if (c.text("recompute") != "0" && c.text("recompute") != "1") c.refuse("recompute", "0 or 1");
  if (dtype == "fp32")
    account<float>(state, c);
  else if (dtype == "bf16")
    account<bfloat16>(state, c);
  else
    c.refuse("dtype", "fp32 or bf16");
}

}  // namespace
}  // namespace rapt::bench

int main(int argc, char** argv) {
  using namespace rapt::bench;
  const auto name = [](const char* dtype, int kv_heads, const char* more = "") {
    return std::string("memory/dtype:") + dtype +
           "/d_model:512/layers:8/heads:8/kv_heads:" + std::to_string(kv_heads) +
           "/ffn:2048/vocab:32000/batch:1/seq:512" + more;
  };
  const std::vector<std::string> cases = {name("fp32", 8),
                                          name("fp32", 4),
                                          name("fp32", 1),
                                          name("bf16", 8),
                                          name("bf16", 4),
                                          name("bf16", 1),
                                          name("fp32", 8, "/recompute:1")};
  return main_of(argc, argv, cases, [](const std::string& case_name) {
    const Case c(case_name, {{"dtype", "fp32"},
                             {"d_model", "512"},
                             {"layers", "8"},
                             {"heads", "8"},
                             {"kv_heads", "8"},
                             {"ffn", "2048"},
                             {"vocab", "32000"},
                             {"batch", "1"},
                             {"seq", "512"},
                             {"recompute", "0"}});
    benchmark::RegisterBenchmark(case_name.c_str(), [c](benchmark::State& state) { run(state, c); })
        ->Iterations(1)
        ->UseRealTime()
        ->Unit(benchmark::kMillisecond);
  });
}
