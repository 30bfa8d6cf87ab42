// The model of an example program under --dtype, --backend and --threads.
#pragma once

#include <filesystem>
#include <string>

#include "program.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/nn/checkpoint.hpp"

#if __has_include("rapt/cuda/backend.hpp")
#include "rapt/cuda/backend.hpp"
#endif

namespace rapt::example {

/// --dtype and --backend, as far as a program computes with a model.
struct ComputeFlags {
  std::string dtype, backend = "cpu", quantized = "auto";
  int threads = 0;

  void declare(CLI::App& app) {
    app.add_option(
           "--dtype", dtype,
           "Element type of weights, activations and cache; unless given fp32, and fp16 for "
           "the cache beside quantized blocks")
        ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
    app.add_option("--backend", backend, "Where to compute")->check(CLI::IsMember({"cpu", "cuda"}));
    app.add_option(
           "--quantized", quantized,
           "Compute on a file's quantized blocks where there are kernels for them (auto), or "
           "on dequantized weights (off, and wherever exact values are asked for: --dtype fp32, "
           "--logits, perplexity)")
        ->check(CLI::IsMember({"auto", "off"}));
    app.add_option("--threads", threads, "CPU threads; 0: one per core")
        ->check(CLI::Range(0, 4096));
  }
  /// What --quantized comes to: fp32 by name means exact values.
  QuantizedWeights blocks() const {
    return quantized == "auto" && dtype != "fp32" ? QuantizedWeights::automatic
                                                  : QuantizedWeights::off;
  }
  void apply() const {
    if (threads > 0) set_num_threads(threads);
  }
};

/// f(T{}, backend) with the types that the flags name.
template <class F>
void with_backend(const ComputeFlags& flags, F&& f) {
  const auto with_type = [&](auto backend) {
    if (flags.dtype == "bf16")
      f(bfloat16{}, backend);
    else if (flags.dtype == "fp16")
      f(half{}, backend);
    else
      f(float{}, backend);
  };
  if (flags.backend == "cpu") return with_type(Cpu{});
#if __has_include("rapt/cuda/backend.hpp")
  if (cuda_device_count() == 0)
    throw DeviceError("--backend is cuda, but this machine has no CUDA device");
  with_type(Cuda{});
#else
  throw DeviceError("--backend is cuda, but this program was built without CUDA (RAPT_CUDA=ON)");
#endif
}

/// The model that comes with rapt (examples/model/), for programs that were given none.
inline std::string embedded_model() {
  namespace fs = std::filesystem;
  std::error_code ignored;
  const fs::path program = fs::read_symlink("/proc/self/exe", ignored);  // build/examples/generate
  for (const fs::path& folder :
       {fs::path(RAPT_EMBEDDED_MODEL),
        program.parent_path().parent_path().parent_path() / "examples/model"})
    if (fs::exists(folder / "config.json")) return folder.string();
  throw IoError(std::string(RAPT_EMBEDDED_MODEL) +
                ": the embedded model is not there; --model PATH names another");
}

/// The model of a file, to run: packed, with a progress bar.
template <class T, class B>
nn::Transformer<T, B> load_model(const WeightFile& file, B backend,
                                 QuantizedWeights quantized = QuantizedWeights::off) {
  Progress progress("loading");
  auto model = nn::load_transformer<T, B>(
      file, backend, [&](index_t done, index_t total) { progress(done, total); }, quantized);
  model.prepack();
  return model;
}

}  // namespace rapt::example
