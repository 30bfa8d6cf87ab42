// A benchmark's name is its case: attention/pass:forward/dtype:fp32/.../threads:1. What the
// benchmarks of attention share: reading such a name, the machine's own peaks, and the main
// program.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "rapt/core/parallel.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::bench {

/// key:value parts of a name, with defaults for the keys that are missing.
class Case {
 public:
  std::string name;

  Case(std::string full_name, std::map<std::string, std::string> defaults)
      : name(std::move(full_name)), values_(std::move(defaults)) {
    for (std::size_t at = name.find('/'); at != std::string::npos;) {
      const std::size_t end = name.find('/', at + 1);
      const std::string part = name.substr(at + 1, end == std::string::npos ? end : end - at - 1);
      const std::size_t colon = part.find(':');
      if (colon == std::string::npos || !values_.contains(part.substr(0, colon)))
        fail("case '" + name + "' has '" + part + "', expected key:value with one of" + keys());
      values_[part.substr(0, colon)] = part.substr(colon + 1);
      at = end;
    }
  }

  const std::string& text(const std::string& key) const { return values_.at(key); }
  index_t number(const std::string& key) const {
    const std::string& value = values_.at(key);
    char* end = nullptr;
    const long long n = std::strtoll(value.c_str(), &end, 10);
    if (value.empty() || *end != '\0' || n < 1)
      fail("case '" + name + "' has " + key + ":" + value + ", expected a positive number");
    return n;
  }
  /// Ends the program: the value is none of those that exist.
  [[noreturn]] void refuse(const std::string& key, const std::string& expected) const {
    fail("case '" + name + "' has " + key + ":" + values_.at(key) + ", expected " + expected);
  }
  [[noreturn]] static void fail(const std::string& message) {
    std::fprintf(stderr, "%s\n", message.c_str());
    std::exit(2);
  }

 private:
  std::string keys() const {
    std::string out;
    for (const auto& [key, value] : values_) out += " " + key;
    return out;
  }
  std::map<std::string, std::string> values_;
};

inline double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// The time that this thread has run: on a shared machine the wall clock counts others' work too.
inline double thread_seconds() {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  timespec t{};
  if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0)
    return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
#endif
  return seconds();
}

/// The clock of a benchmark: of one thread its own time, of several the wall's.
inline double work_seconds(int threads) { return threads == 1 ? thread_seconds() : seconds(); }

/// Seconds that f(0), ..., f(threads - 1) take at once, one on each thread of a pool of so many.
template <class F>
double seconds_at_once(int threads, F f) {
  const double start = work_seconds(threads);
  parallel_for(threads, f);
  return work_seconds(threads) - start;
}

/// Lanes of multiply-adds a second on so many threads, times 2: twelve independent chains of
/// multiply(sum) on each, from zero.
template <class Multiply>
double chain_rate(int threads, Multiply multiply) {
  using V = cpu::Vec<float>;
  constexpr int kChains = 12, kSteps = 30000;
  double best = 1e9;
  for (int round = 0; round < 7; ++round)
    best = std::min(best, seconds_at_once(threads, [&](index_t) {
                      V sums[kChains];
                      for (V& s : sums) s = V::zero();
                      for (int n = 0; n < kSteps; ++n) {
#pragma GCC unroll 12
                        for (int i = 0; i < kChains; ++i) sums[i] = multiply(sums[i]);
                      }
                      V total = V::zero();
                      for (const V& s : sums) total = total + s;
                      benchmark::DoNotOptimize(sum(total));
                    }));
  return 2.0 * kChains * V::kLanes * kSteps * threads / best;
}

/// fp32 FLOP a second of that many cores at once.
inline double fma_peak(int threads = 1) {
  using V = cpu::Vec<float>;
  const V a = V::broadcast(0.999f), b = V::broadcast(1e-3f);
  return chain_rate(threads, [=](V s) { return fma(s, a, b); });
}

/// The same of bfloat16 pairs by the machine's dot product (not by its matrix registers); the fp32
/// peak where it has none.
template <bool kDot = cpu::kBfloat16Dot>
double bf16_dot_peak(int threads = 1) {
  if constexpr (kDot) {
    using Pairs = cpu::Vec<std::conditional_t<kDot, cpu::Bfloat16Pair, float>>;
    const bfloat16 ones[2] = {bfloat16(1.f), bfloat16(1.f)};
    const bfloat16 halves[2] = {bfloat16(.5f), bfloat16(.5f)};
    const Pairs a = Pairs::broadcast(ones[0]), b = Pairs::broadcast(halves[0]);
    return 2 * chain_rate(threads, [=](cpu::Vec<float> s) { return fma(a, b, s); });
  } else {
    return fma_peak(threads);
  }
}

/// Bytes a second of that many cores that only read them, a part each.
inline double read_rate(const void* data, std::size_t bytes, int threads = 1) {
  using V = cpu::Vec<float>;
  const std::size_t n = bytes / sizeof(float) / static_cast<std::size_t>(threads);
  const std::size_t step = 8 * V::kLanes;
  const double took = seconds_at_once(threads, [&](index_t thread) {
    const float* p = static_cast<const float*>(data) + static_cast<std::size_t>(thread) * n;
    V sums[8];
    for (V& s : sums) s = V::zero();
    for (std::size_t i = 0; i + step <= n; i += step) {
#pragma GCC unroll 8
      for (std::size_t c = 0; c < 8; ++c) sums[c] = max(sums[c], V::load(p + i + c * V::kLanes));
    }
    V total = V::zero();
    for (const V& s : sums) total = total + s;
    benchmark::DoNotOptimize(sum(total));
  });
  return static_cast<double>(bytes) / took;
}

/// The times of a benchmark's iterations, measured by us: best and median beside Google Benchmark's
/// mean.
class Times {
 public:
  void add(double t) { times_.push_back(t), total_ += t; }
  double total() const { return total_; }
  double best() const { return *std::min_element(times_.begin(), times_.end()); }
  double median() const {
    std::vector<double> sorted = times_;
    const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
    std::nth_element(sorted.begin(), middle, sorted.end());
    return *middle;
  }

 private:
  std::vector<double> times_;
  double total_ = 0;
};

/// Runs `work` in the loop of `state` and measures the peak beside it, again and again: both slow
/// down together. The share is that of the best iteration, of the median peak. A first run, whose
/// memory is still the system's, is not measured.
template <class Work>
void measure_against_peak(benchmark::State& state, int threads, double flop, Work work,
                          double (*peak_of)(int) = fma_peak) {
  Times times;
  Times peaks;
  work();
  peaks.add(peak_of(threads));
  double next = 0.05;
  for (auto _ : state) {
    const double start = work_seconds(threads);
    work();
    const double took = work_seconds(threads) - start;
    state.SetIterationTime(took);
    times.add(took);
    if (times.total() > next) {
      peaks.add(peak_of(threads));
      next = times.total() + 0.05;
    }
  }
  peaks.add(peak_of(threads));
  const double peak = peaks.median();
  state.counters["FLOP/s"] =
      benchmark::Counter(flop, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["peak"] = peak;
  state.counters["peak_share"] = flop / (times.best() * peak);
  state.counters["median_share"] = flop / (times.median() * peak);
}

/// Takes --case NAME out of the arguments, registers those cases, or the built-in ones, and runs.
template <class Register>
int main_of(int argc, char** argv, const std::vector<std::string>& built_in, Register add) {
  std::vector<std::string> names;
  std::vector<char*> rest;
  for (int i = 0; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--help") {
      std::printf("%s [--case NAME]... [flags of Google Benchmark]\n\nNAME is like\n  %s\n\n",
                  argv[0], built_in.front().c_str());
    }
    if (argument == "--case") {
      if (++i == argc) Case::fail("--case has no value, expected the name of a case");
      names.emplace_back(argv[i]);
    } else if (argument.rfind("--case=", 0) == 0) {
      names.push_back(argument.substr(7));
    } else {
      rest.push_back(argv[i]);
    }
  }
  for (const std::string& name : names.empty() ? built_in : names) add(name);
  int count = static_cast<int>(rest.size());
  benchmark::Initialize(&count, rest.data());
  if (benchmark::ReportUnrecognizedArguments(count, rest.data())) return 2;
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}

}  // namespace rapt::bench
