// matmul() in the shapes of models: y = x W^T, and the two products of its gradient.
//
//   layout:weight            y [m, n] = x [m, k] w^T          w [n, k]      packed:1: ahead of time
//   layout:input_gradient    dx [m, n] = dy [m, k] w          w [k, n]
//   layout:weight_gradient   dw [m, n] += dy^T x              dy [k, m], x [k, n]; k tokens
//
// Many rows are bound by arithmetic: read peak_share, the part of the fp32 FMA peak (bf16: of the
// bfloat16 dot product's peak, which the matrix registers of some machines exceed). One to 16 rows
// are bound by reading w: read read_share, the rate at which w is read as a part of the rate at
// which the cores in use read as many bytes, measured in between. state:cold turns through copies
// of w that no cache holds together. library:eigen is Eigen's product of the same views, for
// comparison.
#include <deque>

#include "bench_case.hpp"
#include "rapt/core/packed_matrix.hpp"
#include "rapt/core/random.hpp"
#include "rapt/cpu/eigen.hpp"

namespace rapt::bench {
namespace {

constexpr std::size_t kColdBytes = std::size_t{96} << 20;

template <class T>
void eigen_matmul(TensorView<T, 2> out, TensorView<const T, 2> a, TensorView<const T, 2> b) {
  auto o = eigen_map(out);
  const bool a_rows = a.stride(1) == 1, b_rows = b.stride(1) == 1;
  const auto am = eigen_map(a_rows ? a : a.transpose());
  const auto bm = eigen_map(b_rows ? b : b.transpose());
  if (a_rows && b_rows)
    o.noalias() += am * bm;
  else if (a_rows)
    o.noalias() += am * bm.transpose();
  else
    o.noalias() += am.transpose() * bm;
}

template <class T>
void run_of(benchmark::State& state, const Case& c) {
  using A = accumulate_t<T>;
  const index_t m = c.number("m"), k = c.number("k"), n = c.number("n");
  const auto threads = static_cast<int>(c.number("threads"));
  const std::string &layout = c.text("layout"), &library = c.text("library");
  const bool weight = layout == "weight", gradient = layout == "weight_gradient";
  if (!weight && !gradient && layout != "input_gradient")
    c.refuse("layout", "weight, input_gradient or weight_gradient");
  if (library != "rapt" && (library != "eigen" || !std::is_same_v<A, T>))
    c.refuse("library", "rapt, or eigen with fp32 or fp64");
  const bool packed = c.text("packed") == "1";

  Philox random(1);
  Tensor<T, 2> a_memory(gradient ? Shape{k, m} : Shape{m, k});
  Tensor<T, 2> b_memory(weight ? Shape{n, k} : Shape{k, n});
  fill_normal(a_memory, random);
  fill_normal(b_memory, random);
  const TensorView<const T, 2> a =
      gradient ? std::as_const(a_memory).transpose() : std::as_const(a_memory).view();
  const std::size_t copies =
      c.text("state") == "cold" ? 1 + kColdBytes / std::max<std::size_t>(1, b_memory.bytes()) : 1;
  std::deque<Tensor<T, 2>> plain;
  std::deque<PackedMatrix<T>> ahead;
  const auto view_of = [&](const Tensor<T, 2>& memory) {
    return weight ? memory.transpose() : memory.view();
  };
  for (std::size_t i = 0; i < copies; ++i) {
    plain.push_back(b_memory);
    if (packed) ahead.emplace_back(view_of(plain.back()));
  }
  Tensor<T, 2> out({m, n});
  Tensor<A, 2> dw(gradient ? Shape{m, n} : Shape<2>{});

  const int before = num_threads();
  set_num_threads(threads);
  std::size_t turn = 0;
  Times reading;
  const double bytes = static_cast<double>(k * n) * sizeof(T);
  const auto multiply = [&] {
    const auto b = view_of(plain[turn]);
    if constexpr (std::is_same_v<A, T>)
      if (library == "eigen") return eigen_matmul<T>(gradient ? dw.view() : out.view(), a, b);
    if (gradient)
      matmul(dw, a, b, {.accumulate = true});
    else if (packed)
      matmul(out, a, ahead[turn]);
    else
      matmul(out, a, b);
  };
  const double flop =
      2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  measure_against_peak(
      state, threads, flop,
      [&] {
        multiply();
        benchmark::DoNotOptimize(out.data());
        turn = (turn + 1) % copies;
      },
      std::is_same_v<T, bfloat16> ? bf16_dot_peak<> : fma_peak);
  if (m <= 16) {  // the same turns again, each beside a read of the same bytes
    Times products;
    for (std::size_t i = 0; i < std::max<std::size_t>(50, 2 * copies); ++i) {
      double start = work_seconds(threads);
      multiply();
      products.add(work_seconds(threads) - start);
      turn = (turn + 1) % copies;
      const void* next = packed ? static_cast<const void*>(ahead[turn].memory().data())
                                : static_cast<const void*>(plain[turn].data());
      reading.add(bytes / read_rate(next, static_cast<std::size_t>(bytes), threads));
      turn = (turn + 1) % copies;
    }
    state.counters["read_share"] = reading.median() / products.median();
  }
  set_num_threads(before);
  state.counters["bytes/s"] = benchmark::Counter(
      bytes + static_cast<double>(a_memory.bytes() + (gradient ? 2 * dw.bytes() : out.bytes())),
      benchmark::Counter::kIsIterationInvariantRate);
}

void run(benchmark::State& state, const Case& c) {
  const std::string& dtype = c.text("dtype");
  if (dtype == "fp32") return run_of<float>(state, c);
  if (dtype == "fp64") return run_of<double>(state, c);
  if (dtype == "bf16") return run_of<bfloat16>(state, c);
  if (dtype == "fp16") return run_of<half>(state, c);
  c.refuse("dtype", "fp32, fp64, bf16 or fp16");
}

std::string name_of(const std::string& dtype, int m, int k, int n, const std::string& layout,
                    int packed, const std::string& more = "") {
  return "matmul/dtype:" + dtype + "/m:" + std::to_string(m) + "/k:" + std::to_string(k) +
         "/n:" + std::to_string(n) + "/layout:" + layout + "/packed:" + std::to_string(packed) +
         more + "/threads:1";
}

}  // namespace
}  // namespace rapt::bench

int main(int argc, char** argv) {
  using namespace rapt::bench;
  std::vector<std::string> cases;
  for (const char* dtype : {"fp32", "bf16", "fp16"})
    for (const int packed : {1, 0}) {
      cases.push_back(name_of(dtype, 512, 576, 1536, "weight", packed));
      cases.push_back(name_of(dtype, 512, 1536, 576, "weight", packed));
      for (const int m : {1, 4, 16})
        cases.push_back(name_of(dtype, m, 576, 1536, "weight", packed, "/state:cold"));
    }
  for (const char* dtype : {"fp32", "bf16"})
    for (const int width : {256, 512, 1024}) {
      cases.push_back(name_of(dtype, 1024, width, width, "weight", 0));
      cases.push_back(name_of(dtype, 1024, width, width, "input_gradient", 0));
      cases.push_back(name_of(dtype, width, 1024, width, "weight_gradient", 0));
    }
  cases.push_back(name_of("fp32", 1024, 256, 4096, "weight", 0));
  for (const char* layout : {"weight", "input_gradient", "weight_gradient"})
    cases.push_back(name_of("fp32", 1024, 1024, 1024, layout, 0, "/library:eigen"));
  cases.push_back(name_of("fp32", 512, 576, 1536, "weight", 0, "/library:eigen"));
  return main_of(argc, argv, cases, [](const std::string& name) {
    const Case c(name, {{"dtype", "fp32"},
                        {"m", "512"},
                        {"k", "576"},
                        {"n", "1536"},
                        {"layout", "weight"},
                        {"packed", "0"},
                        {"state", "hot"},
                        {"library", "rapt"},
                        {"threads", "1"}});
    benchmark::RegisterBenchmark(name.c_str(), [c](benchmark::State& state) { run(state, c); })
        ->UseManualTime()
        ->Unit(benchmark::kMicrosecond);
  });
}
