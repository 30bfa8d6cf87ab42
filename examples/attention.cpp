// The forms of attention side by side: what goes in, what comes out, what a cache keeps.
//
//   attention                all forms, then the stack of heads against the fused form, timed
//   attention --gqa --swa    these forms only
//
// x [batch, seq, d_model] holds the same random tokens for every form (--seed).
#include <chrono>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "program.hpp"
#include "rapt/rapt.hpp"

namespace {

using namespace rapt;

struct Flags {
  index_t batch = 2, seq = 64, d_model = 256, heads = 8, kv_heads = 2, window = 16;
  std::uint64_t seed = 42;
  int threads = 0;
  bool json = false;
};

struct Form {
  const char* flag;   // --self-attn
  const char* about;  // for --help
  std::function<void(const Flags&, const Tensor<float, 3>&)> run;
  bool wanted = false;
};

std::string shape_of(const Tensor<float, 3>& t) { return detail::shape_text(t.shape()); }

double seconds_of(const std::function<void()>& work) {
  work();  // weights and scratch are in memory from here on
  double best = 1e30;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    work();
    best = std::min(
        best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

/// One line a form: shapes, parameters, and the cache's bytes for --seq tokens of the batch.
void print(const Flags& flags, const char* name, const Tensor<float, 3>& x,
           const Tensor<float, 3>& y, index_t parameters, index_t cache_bytes) {
  if (flags.json) {
    nlohmann::json line = {{"form", name},
                           {"input", {x.extent(0), x.extent(1), x.extent(2)}},
                           {"output", {y.extent(0), y.extent(1), y.extent(2)}},
                           {"parameters", parameters}};
    if (cache_bytes >= 0) line["cache_bytes"] = cache_bytes;
    std::printf("%s\n", line.dump().c_str());
    return;
  }
  std::printf("%-15s %s -> %s  %8lld parameters", name, shape_of(x).c_str(), shape_of(y).c_str(),
              static_cast<long long>(parameters));
  if (cache_bytes >= 0) std::printf("  cache %8lld bytes", static_cast<long long>(cache_bytes));
  std::printf("\n");
}

/// Runs a module with and without its cache: the first half as a prompt, then token by token.
template <class M, class C>
void show(const Flags& flags, const char* name, M& module, C cache, const Tensor<float, 3>& x) {
  Philox random(flags.seed);
  module.initialize(random);
  const auto y = module.forward(x);
  module.forward(x.slice(1, 0, flags.seq / 2), cache);
  for (index_t t = flags.seq / 2; t < flags.seq; ++t) module.forward(x.slice(1, t, t + 1), cache);
  print(flags, name, x, y, parameter_count(module.parameters()), cache.bytes());
}

AttentionConfig config_of(const Flags& flags) {
  return {.d_model = flags.d_model, .heads = flags.heads, .rope = Rope{}};
}

std::vector<Form> forms() {
  return {
      {"--self-attn", "One head; every token sees every token",
       [](const Flags& f, const Tensor<float, 3>& x) {
         SelfAttention<float> module({.d_in = f.d_model, .d_out = f.d_model / f.heads});
         Philox random(f.seed);
         module.initialize(random);
         const auto y = module.forward(x);
         print(f, "self_attn", x, y, parameter_count(module.parameters()), -1);
       }},
      {"--causal-attn", "One head; a token sees the past",
       [](const Flags& f, const Tensor<float, 3>& x) {
         CausalAttention<float> module({.d_in = f.d_model, .d_out = f.d_model / f.heads});
         show(f, "causal_attn", module, module.make_cache(f.batch, f.seq), x);
       }},
      {"--mha", "Multi-head attention as a stack of causal heads",
       [](const Flags& f, const Tensor<float, 3>& x) {
         MultiHeadAttentionStack<float> module({.d_in = f.d_model, .heads = f.heads});
         show(f, "mha", module, module.make_cache(f.batch, f.seq), x);
       }},
      {"--efficient-mha", "Multi-head attention with fused QKV",
       [](const Flags& f, const Tensor<float, 3>& x) {
         MultiHeadAttention<float> module(config_of(f));
         show(f, "efficient_mha", module, module.make_cache(f.batch, f.seq), x);
       }},
      {"--gqa", "Grouped-query attention: --kv-heads key/value heads",
       [](const Flags& f, const Tensor<float, 3>& x) {
         AttentionConfig config = config_of(f);
         config.kv_heads = f.kv_heads;
         GroupedQueryAttention<float> module(config);
         show(f, "gqa", module, module.make_cache(f.batch, f.seq), x);
       }},
      {"--mqa", "Multi-query attention: one key/value head",
       [](const Flags& f, const Tensor<float, 3>& x) {
         MultiQueryAttention<float> module(config_of(f));
         show(f, "mqa", module, module.make_cache(f.batch, f.seq), x);
       }},
      {"--swa", "Sliding-window attention: the last --window keys",
       [](const Flags& f, const Tensor<float, 3>& x) {
         AttentionConfig config = config_of(f);
         config.kv_heads = f.kv_heads;
         config.window = f.window;
         SlidingWindowAttention<float> module(config);
         show(f, "swa", module, module.make_cache(f.batch), x);
       }},
  };
}

/// The same heads, one by one and in one product.
void compare(const Flags& flags, const Tensor<float, 3>& x) {
  Philox random(flags.seed);
  MultiHeadAttentionStack<float> stack({.d_in = flags.d_model, .heads = flags.heads});
  MultiHeadAttention<float> fused(
      {.d_model = flags.d_model, .heads = flags.heads, .out_projection = false});
  stack.initialize(random);
  fused.initialize(random);
  const double slow = seconds_of([&] { stack.forward(x); });
  const double fast = seconds_of([&] { fused.forward(x); });
  if (flags.json)
    std::printf(
        "%s\n",
        nlohmann::json{{"stack_seconds", slow}, {"fused_seconds", fast}, {"ratio", slow / fast}}
            .dump()
            .c_str());
  else
    std::printf("stack of heads %.3f ms, fused %.3f ms: %.1f times as fast\n", slow * 1e3,
                fast * 1e3, slow / fast);
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  std::vector<Form> all = forms();
  return example::run_program(
      "attention", "The forms of attention: shapes, parameters, cache bytes.", argc, argv,
      [&](CLI::App& app) {
        for (Form& form : all) {
          const std::string dashes = form.flag;
          std::string underscores = dashes;
          std::replace(underscores.begin() + 2, underscores.end(), '-', '_');
          app.add_flag(dashes == underscores ? dashes : dashes + "," + underscores, form.wanted,
                       form.about);
        }
        app.add_option("--batch", flags.batch, "Sequences")->check(CLI::PositiveNumber);
        app.add_option("--seq", flags.seq, "Tokens of each")->check(CLI::PositiveNumber);
        app.add_option("--d-model,--d_model", flags.d_model, "Width of the input")
            ->check(CLI::PositiveNumber);
        app.add_option("--heads", flags.heads, "Query heads")->check(CLI::PositiveNumber);
        app.add_option("--kv-heads,--kv_heads", flags.kv_heads,
                       "Key/value heads of --gqa and --swa")
            ->check(CLI::PositiveNumber);
        app.add_option("--window", flags.window, "Keys a token sees in --swa")
            ->check(CLI::PositiveNumber);
        app.add_option("--seed", flags.seed, "Of weights and input");
        app.add_option("--threads", flags.threads, "CPU threads; 0: one per core")
            ->check(CLI::Range(0, 4096));
        app.add_flag("--json", flags.json, "Print one JSON object a line");
        return [&] {
          if (flags.threads > 0) set_num_threads(flags.threads);
          if (flags.d_model % flags.heads != 0)
            throw ShapeError(detail::text("--heads is ", flags.heads, ", expected a divisor of ",
                                          flags.d_model, " = --d-model"));
          Philox random(flags.seed);
          Tensor<float, 3> x(Shape{flags.batch, flags.seq, flags.d_model});
          fill_normal(x, random);
          const bool some =
              std::any_of(all.begin(), all.end(), [](const Form& form) { return form.wanted; });
          for (const Form& form : all)
            if (form.wanted || !some) form.run(flags, x);
          if (!some) compare(flags, x);
        };
      });
}
