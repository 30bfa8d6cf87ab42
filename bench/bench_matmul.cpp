// matmul() in the shapes of models: y = x W^T, and the two products of its gradient.
//
//   layout:weight            y [m, n] = x [m, k] w^T          w [n, k]      packed:1: ahead of time
//   layout:input_gradient    dx [m, n] = dy [m, k] w          w [k, n]
//   layout:weight_gradient   dw [m, n] += dy^T x              dy [k, m], x [k, n]; k tokens
//
// Many rows are bound by arithmetic: read peak_share, the part of the fp32 FMA peak (bf16: of the
// bfloat16 dot product's peak); the matrix registers of some machines exceed both. One to 16 rows
// are bound by reading w: read read_share, the rate at which w is read as a part of the rate at
// which the cores in use read as many bytes, measured in between. state:cold turns through copies
// of w that no cache holds together. library:eigen is Eigen's product of the same views, for
// comparison. dtype:q4_1 and the other formats of GGUF are quantized_matmul(): x is fp32 and
// rounded to 8 bits on the way, P is still that of fp32.
#include <deque>

#include "bench_case.hpp"
#include "rapt/core/ops/quantized_matmul.hpp"
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

/// multiply(turn) with the copies of w in turn; and of few rows, beside a read of a copy's bytes,
/// which begin at weights(turn).
template <class Multiply, class Weights>
void measure(benchmark::State& state, const Case& c, double bytes, std::size_t copies,
             double (*peak)(int), Multiply multiply, Weights weights) {
  const auto threads = static_cast<int>(c.number("threads"));
  const double flop = 2.0 * static_cast<double>(c.number("m")) *
                      static_cast<double>(c.number("n")) * static_cast<double>(c.number("k"));
  std::size_t turn = 0;
  measure_against_peak(
      state, threads, flop,
      [&] {
        multiply(turn);
        benchmark::ClobberMemory();
        turn = (turn + 1) % copies;
      },
      peak);
  if (c.number("m") > 16) return;
  Times products, reading;  // the same turns again
  for (std::size_t i = 0; i < std::max<std::size_t>(50, 2 * copies); ++i) {
    const double start = work_seconds(threads);
    multiply(turn);
    products.add(work_seconds(threads) - start);
    turn = (turn + 1) % copies;
    reading.add(bytes / read_rate(weights(turn), static_cast<std::size_t>(bytes), threads));
    turn = (turn + 1) % copies;
  }
  state.counters["read_share"] = reading.median() / products.median();
}

std::size_t copies_of(const Case& c, std::size_t bytes) {
  return c.text("state") == "cold" ? 1 + kColdBytes / std::max<std::size_t>(1, bytes) : 1;
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
  const std::size_t copies = copies_of(c, b_memory.bytes());
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
  const double bytes = static_cast<double>(k * n) * sizeof(T);
  const auto multiply = [&](std::size_t turn) {
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
  measure(state, c, bytes, copies, std::is_same_v<T, bfloat16> ? bf16_dot_peak<> : fma_peak,
          multiply, [&](std::size_t turn) {
            return packed ? static_cast<const void*>(ahead[turn].memory().data())
                          : static_cast<const void*>(plain[turn].data());
          });
  set_num_threads(before);
  state.counters["bytes/s"] = benchmark::Counter(
      bytes + static_cast<double>(a_memory.bytes() + (gradient ? 2 * dw.bytes() : out.bytes())),
      benchmark::Counter::kIsIterationInvariantRate);
}

/// w as blocks of a GGUF file, their codes and scales arbitrary.
void run_blocks(benchmark::State& state, const Case& c, BlockFormat format) {
  const index_t m = c.number("m"), k = c.number("k"), n = c.number("n");
  for (const auto& [key, only] :
       {std::pair{"layout", "weight"}, {"packed", "0"}, {"library", "rapt"}})
    if (c.text(key) != only) c.refuse(key, std::string(only) + " with blocks");
  if (const int block = block_format(format).super ? 256 : 32; k % block != 0)
    c.refuse("k", "a multiple of " + std::to_string(block) + ", the block of this format");
  Philox random(1);
  Tensor<float, 2> x({m, k}), out({m, n});
  fill_normal(x, random);
  const int largest = (1 << block_format(format).bits) - 1;
  const auto unpack = [&](index_t row, index_t column) {
    UnpackedBlock block{{}, half(0.01f), half(0.02f), 7, 9};
    auto bits = static_cast<std::uint32_t>(row * 7919 + column);
    for (std::uint8_t& code : block.codes) {
      bits = bits * 1664525u + 1013904223u;
      code = static_cast<std::uint8_t>(bits >> 16 & static_cast<std::uint32_t>(largest));
    }
    return block;
  };
  std::deque<QuantizedMatrix> w(1, QuantizedMatrix(k));
  w[0].append(format, n, unpack);
  const index_t bytes = w[0].bytes();
  const std::size_t copies = copies_of(c, static_cast<std::size_t>(bytes));
  while (w.size() < copies) w.push_back(w[0]);

  const int before = num_threads();
  set_num_threads(static_cast<int>(c.number("threads")));
  measure(
      state, c, static_cast<double>(bytes), copies, fma_peak,
      [&](std::size_t turn) { quantized_matmul(out, x, w[turn]); },
      [&](std::size_t turn) -> const void* { return w[turn].parts()[0].panels.data(); });
  set_num_threads(before);
  state.counters["bytes/s"] =
      benchmark::Counter(static_cast<double>(bytes) + static_cast<double>(x.bytes() + out.bytes()),
                         benchmark::Counter::kIsIterationInvariantRate);
}

/// As in --case: q4_1 for Q4_1.
std::string dtype_of(const BlockFormatInfo& info) {
  std::string name(info.name);
  for (char& letter : name)
    if (letter >= 'A' && letter <= 'Z') letter = static_cast<char>(letter - 'A' + 'a');
  return name;
}

void run(benchmark::State& state, const Case& c) {
  const std::string& dtype = c.text("dtype");
  if (dtype == "fp32") return run_of<float>(state, c);
  if (dtype == "fp64") return run_of<double>(state, c);
  if (dtype == "bf16") return run_of<bfloat16>(state, c);
  if (dtype == "fp16") return run_of<half>(state, c);
  std::string formats;
  for (std::size_t i = 0; i < kBlockFormats.size(); ++i) {
    const std::string name = dtype_of(kBlockFormats[i]);
    if (dtype == name) return run_blocks(state, c, static_cast<BlockFormat>(i));
    formats += ", " + name;
  }
  c.refuse("dtype", "fp32, fp64, bf16, fp16" + formats);
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
  for (const auto& info : rapt::kBlockFormats) {
    const std::string dtype = dtype_of(info);
    cases.push_back(name_of(dtype, 512, 768, 1536, "weight", 0));
    for (const int m : {1, 4, 16})
      cases.push_back(name_of(dtype, m, 768, 1536, "weight", 0, "/state:cold"));
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
