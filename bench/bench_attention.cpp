// attention() and its gradient. Bound by arithmetic: for each pair that the mask lets see each
// other, 4 heads head_dim FLOP forward and 2.5 times that backward, so read peak_share, the part of
// this machine's own fp32 FMA peak (of all threads at once), that the best iteration reached.
#include <limits>

#include "bench_case.hpp"
#include "rapt/attention/attention.hpp"
#include "rapt/attention/backward.hpp"
#include "rapt/core/random.hpp"

namespace rapt::bench {
namespace {

/// Queries at kv_len - q_len + i; each sees the keys up to its own that are less than `window`
/// away.
double visible_pairs(index_t q_len, index_t kv_len, index_t window) {
  double pairs = 0;
  for (index_t i = 0; i < q_len; ++i)
    pairs += static_cast<double>(std::clamp<index_t>(kv_len - q_len + i + 1, 0, window));
  return pairs;
}

template <class T, class Mask>
void measure(benchmark::State& state, const Case& c, const Mask& mask, double pairs) {
  const index_t batch = c.number("batch"), heads = c.number("heads");
  const index_t kv_heads = c.number("kv_heads"), dim = c.number("head_dim");
  const index_t q_len = c.number("q_len"), kv_len = c.number("kv_len");
  const auto threads = static_cast<int>(c.number("threads"));
  Tensor<T, 4> q({batch, q_len, heads, dim}), k({batch, kv_len, kv_heads, dim});
  const bool forward = c.text("pass") != "backward", backward = c.text("pass") != "forward";
  Tensor<T, 4> v(k.shape()), out(q.shape()), dout, dq, dk, dv;
  Tensor<float, 3> logsumexp;
  Philox random(1);
  fill_normal(q, random), fill_normal(k, random), fill_normal(v, random);
  AttentionOptions<Tensor<T, 4>> options;
  if (backward) {
    dout = dq = q, dk = k, dv = v;
    fill_normal(dout, random);
    logsumexp = Tensor<float, 3>({batch, heads, q_len});
    options.logsumexp = logsumexp;
    attention(out, q, k, v, mask, Identity{}, options);
  }
  const int before = num_threads();
  set_num_threads(threads);
  const double flop = (4.0 * (forward ? 1 : 0) + 10.0 * (backward ? 1 : 0)) *
                      static_cast<double>(batch * heads * dim) * pairs;
  measure_against_peak(state, threads, flop, [&] {
    if (forward) attention(out, q, k, v, mask, Identity{}, options);
    if (backward) attention_backward(dq, dk, dv, dout, q, k, v, out, logsumexp, mask);
    benchmark::DoNotOptimize(backward ? dq.data() : out.data());
  });
  set_num_threads(before);
  const auto rate = [&](double amount) {
    return benchmark::Counter(amount, benchmark::Counter::kIsIterationInvariantRate);
  };
  const int moved = (forward ? 1 : 0) + (backward ? 2 : 0);  // how often each tensor is
  state.counters["bytes/s"] =
      rate(moved * static_cast<double>(q.bytes() + k.bytes() + v.bytes() + out.bytes()));
  state.counters["tokens/s"] = rate(static_cast<double>(batch * q_len));
}

template <class T>
void with_mask(benchmark::State& state, const Case& c) {
  const std::string& mask = c.text("mask");
  const index_t q_len = c.number("q_len"), kv_len = c.number("kv_len");
  constexpr index_t kEndless = std::numeric_limits<index_t>::max();
  if (mask == "full") {
    measure<T>(state, c, Full{}, static_cast<double>(q_len) * static_cast<double>(kv_len));
  } else if (mask == "causal") {
    measure<T>(state, c, Causal{}, visible_pairs(q_len, kv_len, kEndless));
  } else {
    const index_t window = std::atoll(mask.c_str() + 6);
    if (mask.rfind("window", 0) != 0 || window < 1)
      c.refuse("mask", "full, causal or windowN with a positive N");
    measure<T>(state, c, Causal{} & SlidingWindow{window}, visible_pairs(q_len, kv_len, window));
  }
}

void run(benchmark::State& state, const Case& c) {
  const std::string& pass = c.text("pass");
  if (pass != "forward" && pass != "backward" && pass != "both")
    c.refuse("pass", "forward, backward or both");
  const std::string& dtype = c.text("dtype");
  if (dtype == "fp32")
    with_mask<float>(state, c);
  else if (dtype == "bf16")
    with_mask<bfloat16>(state, c);
  else if (dtype == "fp16")
    with_mask<half>(state, c);
  else
    c.refuse("dtype", "fp32, bf16 or fp16");
}

std::string name_of_case(const char* pass, const char* dtype, index_t heads, index_t kv_heads,
                         index_t dim, index_t len, const char* mask, int threads,
                         index_t batch = 1) {
  const std::string n = std::to_string(len);
  return std::string("attention/pass:") + pass + "/dtype:" + dtype +
         "/batch:" + std::to_string(batch) + "/heads:" + std::to_string(heads) +
         "/kv_heads:" + std::to_string(kv_heads) + "/head_dim:" + std::to_string(dim) +
         "/q_len:" + n + "/kv_len:" + n + "/mask:" + mask + "/threads:" + std::to_string(threads);
}

}  // namespace
}  // namespace rapt::bench

int main(int argc, char** argv) {
  using namespace rapt::bench;
  std::vector<std::string> cases;
  for (const rapt::index_t len : {2048, 128, 512, 8192})
    cases.push_back(name_of_case("forward", "fp32", 8, 2, 64, len, "causal", 1));
  cases.push_back(name_of_case("forward", "fp32", 8, 2, 64, 2048, "full", 1));
  cases.push_back(name_of_case("forward", "fp32", 8, 8, 64, 2048, "causal", 1));
  cases.push_back(name_of_case("forward", "fp32", 8, 2, 128, 2048, "causal", 1));
  cases.push_back(name_of_case("forward", "fp32", 8, 2, 64, 4096, "window512", 1));
  cases.push_back(name_of_case("forward", "bf16", 8, 2, 64, 2048, "causal", 1));
  cases.push_back(name_of_case("forward", "bf16", 8, 2, 128, 2048, "causal", 1));
  cases.push_back(name_of_case("forward", "fp16", 8, 2, 64, 2048, "causal", 1));
  cases.push_back(name_of_case("forward", "fp32", 8, 2, 64, 2048, "causal", 2));
  cases.push_back(name_of_case("forward", "fp32", 8, 2, 64, 32, "causal", 1, 16));
  for (const char* dtype : {"fp32", "bf16"})
    for (const rapt::index_t len : {512, 2048})
      cases.push_back(name_of_case("both", dtype, 8, 2, 64, len, "causal", 1));
  cases.push_back(name_of_case("backward", "fp32", 8, 2, 64, 2048, "causal", 1));
  cases.push_back(name_of_case("backward", "fp32", 8, 2, 128, 2048, "causal", 1));
  cases.push_back(name_of_case("backward", "fp32", 8, 8, 64, 2048, "causal", 1));
  cases.push_back(name_of_case("backward", "fp32", 8, 2, 64, 4096, "window512", 1));
  cases.push_back(name_of_case("backward", "fp32", 8, 2, 64, 2048, "causal", 2));
  return main_of(argc, argv, cases, [](const std::string& name) {
    const Case c(name, {{"pass", "forward"},
                        {"dtype", "fp32"},
                        {"batch", "1"},
                        {"heads", "8"},
                        {"kv_heads", "2"},
                        {"head_dim", "64"},
                        {"q_len", "2048"},
                        {"kv_len", "2048"},
                        {"mask", "causal"},
                        {"threads", "1"}});
    benchmark::RegisterBenchmark(name.c_str(), [c](benchmark::State& state) { run(state, c); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  });
}
