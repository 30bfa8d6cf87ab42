// attention() for one new token, or a few, against a cache. Bound by reading K and V once: read
// bytes/s, and peak_share, the part of the rate at which the cores in use read as many bytes
// (measured between the iterations, on the next keys and values) and does nothing with them.
// Medians.
//
//   state   hot: one cache, over and over       cold: as many caches as it takes to leave every
//           level below the last
//   cache   contiguous: rows one after the other       rolling: a ring, with its slots' positions
//           paged: pages of 16 tokens in a shuffled order
//   dtype   fp32, bf16, fp16: of all; int8, fp8_e4m3, fp8_e5m2: of keys and values, beside fp32 and
//           with a scale for each token and head, whose bytes count
#include "bench_case.hpp"
#include "rapt/attention/attention.hpp"
#include "rapt/core/quantize.hpp"
#include "rapt/core/random.hpp"

namespace rapt::bench {
namespace {

/// Queries of T, keys and values of S.
template <class T, class S = T>
void decode(benchmark::State& state, const Case& c) {
  const index_t batch = c.number("batch"), heads = c.number("heads");
  const index_t kv_heads = c.number("kv_heads"), dim = c.number("head_dim");
  const index_t q_len = c.number("q_len"), kv_len = c.number("kv_len");
  const auto threads = static_cast<int>(c.number("threads"));
  const std::string &cache = c.text("cache"), &mask = c.text("mask");
  if (cache != "contiguous" && cache != "rolling" && cache != "paged")
    c.refuse("cache", "contiguous, rolling or paged");
  if (c.text("state") != "hot" && c.text("state") != "cold") c.refuse("state", "hot or cold");
  index_t window = kv_len;
  if (mask != "causal") {
    window =
        std::min(kv_len, index_t{std::atoll(mask.c_str() + std::min<std::size_t>(6, mask.size()))});
    if (mask.rfind("window", 0) != 0 || window < 1)
      c.refuse("mask", "causal or windowN with a positive N");
  }

  constexpr index_t kPage = 16;
  const index_t pages = (kv_len + kPage - 1) / kPage;
  const Shape<4> shape = cache == "paged" ? Shape<4>{batch * pages, kPage, kv_heads, dim}
                                          : Shape<4>{batch, kv_len, kv_heads, dim};
  Tensor<T, 4> q({batch, q_len, heads, dim}), out(q.shape());
  Philox random(1);
  fill_normal(q, random);
  constexpr bool kScaled = QuantizedElement<S>;
  const Shape<3> scales_shape{shape[0], shape[1], kScaled ? kv_heads : 0};
  const std::size_t bytes = 2 * (static_cast<std::size_t>(shape.size()) * sizeof(S) +
                                 static_cast<std::size_t>(scales_shape.size()) * sizeof(float));
  const std::size_t copies =
      c.text("state") == "hot" ? 1 : std::max<std::size_t>(2, (256u << 20) / bytes);
  std::vector<Tensor<S, 4>> keys(copies, Tensor<S, 4>(shape)), values;
  std::vector<Tensor<float, 3>> k_scales(copies, Tensor<float, 3>(scales_shape)), v_scales;
  if constexpr (kScaled) {
    Tensor<float, 4> x(shape);
    fill_normal(x, random);
    quantize_rows(keys[0], k_scales[0], x);
  } else {
    fill_normal(keys[0], random);
  }
  for (Tensor<S, 4>& k : keys) k = keys[0];
  for (Tensor<float, 3>& scales : k_scales) scales = k_scales[0];
  values = keys, v_scales = k_scales;

  AttentionOptions<Tensor<T, 4>> options;
  Tensor<std::int32_t, 1> lengths({batch});
  Tensor<std::int32_t, 2> table({batch, pages}), q_positions({batch, q_len});
  Tensor<std::int32_t, 2> kv_positions({batch, kv_len});
  for (index_t b = 0; b < batch; ++b) {
    lengths(b) = static_cast<std::int32_t>(kv_len);
    for (index_t n = 0; n < pages;
         ++n)  // 7919 is a prime: every page once, far from the one before
      table(b, n) = static_cast<std::int32_t>(b * pages + (n * 7919 % pages));
    if (pages % 7919 == 0)
      for (index_t n = 0; n < pages; ++n) table(b, n) = static_cast<std::int32_t>(b * pages + n);
    for (index_t i = 0; i < q_len; ++i)
      q_positions(b, i) = static_cast<std::int32_t>(2 * kv_len - q_len + i);
    for (index_t j = 0; j < kv_len; ++j)  // the ring's oldest token is in its middle
      kv_positions(b, j) = static_cast<std::int32_t>(kv_len + (j + kv_len / 2) % kv_len);
  }
  if (cache == "paged") {
    options.kv_lengths = lengths;
    options.block_table = table;
  } else if (cache == "rolling") {
    options.q_positions = q_positions;
    options.kv_positions = kv_positions;
  }

  const int before = num_threads();
  set_num_threads(threads);
  Times reading, attending;
  std::size_t at = 0;
  const auto next = [&] { at = at + 1 == copies ? 0 : at + 1; };
  const auto seconds_to_read = [&](const auto& x) {
    if (x.empty()) return 0.;
    return static_cast<double>(x.bytes()) / read_rate(x.data(), x.bytes(), threads);
  };
  for (auto _ : state) {
    if constexpr (kScaled) options.k_scales = k_scales[at], options.v_scales = v_scales[at];
    const double start = work_seconds(threads);
    if (window < kv_len)
      attention(out, q, keys[at], values[at], Causal{} & SlidingWindow{window}, Identity{},
                options);
    else
      attention(out, q, keys[at], values[at], Causal{}, Identity{}, options);
    benchmark::DoNotOptimize(out.data());
    const double took = work_seconds(threads) - start;
    state.SetIterationTime(took);
    attending.add(took);
    next();
    reading.add(seconds_to_read(keys[at]) + seconds_to_read(values[at]) +
                seconds_to_read(k_scales[at]) + seconds_to_read(v_scales[at]));
    next();
  }
  set_num_threads(before);
  const double seen =
      static_cast<double>(bytes) * static_cast<double>(window) / static_cast<double>(kv_len);
  const auto rate = [&](double amount) {
    return benchmark::Counter(amount, benchmark::Counter::kIsIterationInvariantRate);
  };
  state.counters["FLOP/s"] = rate(4.0 * static_cast<double>(batch * q_len * heads * dim * window));
  state.counters["bytes/s"] = rate(seen);
  state.counters["tokens/s"] = rate(static_cast<double>(batch * q_len));
  const double part = seen / static_cast<double>(bytes);
  state.counters["peak"] = static_cast<double>(bytes) / reading.median();
  state.counters["peak_share"] = part * reading.median() / attending.median();
}

void run(benchmark::State& state, const Case& c) {
  const std::string& dtype = c.text("dtype");
  if (dtype == "fp32")
    decode<float>(state, c);
  else if (dtype == "bf16")
    decode<bfloat16>(state, c);
  else if (dtype == "fp16")
    decode<half>(state, c);
  else if (dtype == "int8")
    decode<float, std::int8_t>(state, c);
  else if (dtype == "fp8_e4m3")
    decode<float, float8_e4m3>(state, c);
  else if (dtype == "fp8_e5m2")
    decode<float, float8_e5m2>(state, c);
  else
    c.refuse("dtype", "fp32, bf16, fp16, int8, fp8_e4m3 or fp8_e5m2");
}

std::string name_of_case(const char* dtype, int heads, int kv_heads, int dim, int kv_len,
                         const char* cache, const char* temperature, int q_len = 1,
                         int threads = 1) {
  return std::string("decode/dtype:") + dtype + "/batch:1/heads:" + std::to_string(heads) +
         "/kv_heads:" + std::to_string(kv_heads) + "/head_dim:" + std::to_string(dim) +
         "/q_len:" + std::to_string(q_len) + "/kv_len:" + std::to_string(kv_len) +
         "/mask:causal/cache:" + cache + "/state:" + temperature +
         "/threads:" + std::to_string(threads);
}

}  // namespace
}  // namespace rapt::bench

int main(int argc, char** argv) {
  using namespace rapt::bench;
  std::vector<std::string> cases;
  for (const char* dtype : {"fp32", "bf16", "fp16", "int8", "fp8_e4m3", "fp8_e5m2"}) {
    cases.push_back(name_of_case(dtype, 8, 2, 64, 2048, "contiguous", "hot"));
    cases.push_back(name_of_case(dtype, 8, 2, 64, 8192, "contiguous", "cold"));
    cases.push_back(name_of_case(dtype, 32, 8, 128, 8192, "contiguous", "cold"));
  }
  for (const char* cache : {"rolling", "paged"}) {
    cases.push_back(name_of_case("fp32", 8, 2, 64, 2048, cache, "hot"));
    cases.push_back(name_of_case("fp32", 8, 2, 64, 8192, cache, "cold"));
    cases.push_back(name_of_case("bf16", 8, 2, 64, 8192, cache, "cold"));
    cases.push_back(name_of_case("int8", 8, 2, 64, 8192, cache, "cold"));
  }
  for (const char* dtype : {"fp32", "bf16"})
    for (const int q_len : {4, 16})
      cases.push_back(name_of_case(dtype, 8, 2, 64, 2048, "contiguous", "hot", q_len));
  cases.push_back(name_of_case("fp32", 8, 2, 64, 8192, "contiguous", "cold", 1, 2));
  return main_of(argc, argv, cases, [](const std::string& name) {
    const Case c(name, {{"pass", "forward"},
                        {"dtype", "fp32"},
                        {"batch", "1"},
                        {"heads", "8"},
                        {"kv_heads", "2"},
                        {"head_dim", "64"},
                        {"q_len", "1"},
                        {"kv_len", "2048"},
                        {"mask", "causal"},
                        {"cache", "contiguous"},
                        {"state", "hot"},
                        {"threads", "1"}});
    benchmark::RegisterBenchmark(name.c_str(), [c](benchmark::State& state) { run(state, c); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  });
}
