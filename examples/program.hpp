// What the example programs share: exit codes, a progress bar, and the model under --dtype and
// --backend.
//
//   int main(int argc, char** argv) {
//     return rapt::example::run_program("perplexity", argc, argv, [](CLI::App& app) { ... });
//   }
//
// Exit codes: 0; 2 for bad usage or input, a missing file or device included, with one clear line
// on stderr; 1 for anything else. Results go to stdout, progress and notes to stderr.
#pragma once

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <exception>
#include <functional>
#include <new>
#include <string>
#include <utility>

#include "rapt/core/error.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/nn/checkpoint.hpp"

#if __has_include("rapt/cuda/backend.hpp")
#include "rapt/cuda/backend.hpp"
#endif

namespace rapt::example {

/// One line on stderr, redrawn in place; silent where stderr is no terminal.
class Progress {
 public:
  explicit Progress(std::string what) : what_(std::move(what)), shown_(::isatty(2) != 0) {}
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void operator()(index_t done, index_t total) {
    if (!shown_ || total <= 0) return;
    const auto now = std::chrono::steady_clock::now();
    if (done < total && now - last_ < std::chrono::milliseconds(50)) return;
    last_ = now;
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(done * kWidth / total);
    std::fprintf(stderr, "\r%s [%s%s] %3d %%", what_.c_str(),
                 std::string(static_cast<std::size_t>(filled), '#').c_str(),
                 std::string(static_cast<std::size_t>(kWidth - filled), ' ').c_str(),
                 static_cast<int>(done * 100 / total));
    drawn_ = true;
    if (done == total) clear();
  }

 private:
  void clear() {
    if (drawn_) std::fputs("\r\033[K", stderr);
    drawn_ = false;
  }

  std::string what_;
  bool shown_, drawn_ = false;
  std::chrono::steady_clock::time_point last_{};
};

/// Runs body() and turns what it throws into an exit code and one line on stderr.
inline int guarded(const char* program, const std::function<void()>& body) {
  const auto fail = [&](int code, const char* what) {
    std::fprintf(stderr, "%s: %s\n", program, what);
    return code;
  };
  try {
    body();
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      return fail(1, "writing to stdout failed");
    return 0;
  } catch (const std::invalid_argument& e) {  // ShapeError, ValueError
    return fail(2, e.what());
  } catch (const std::length_error& e) {  // CapacityError
    return fail(2, e.what());
  } catch (const FormatError& e) {
    return fail(2, e.what());
  } catch (const IoError& e) {
    return fail(2, e.what());
  } catch (const DeviceError& e) {
    return fail(2, e.what());
  } catch (const std::bad_alloc&) {
    return fail(1, "out of memory");
  } catch (const std::exception& e) {
    return fail(1, e.what());
  }
}

/// Parses the flags that `declare` has added, then runs what it returned.
inline int run_program(const char* name, const char* about, int argc, char** argv,
                       const std::function<std::function<void()>(CLI::App&)>& declare) {
  CLI::App app{about, name};
  app.option_defaults()->always_capture_default();
  const std::function<void()> body = declare(app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    std::fputs(app.help().c_str(), stdout);
    return 0;
  } catch (const CLI::ParseError& e) {
    std::fprintf(stderr, "%s: %s (--help lists the flags)\n", name, e.what());
    return 2;
  }
  return guarded(name, body);
}

/// --dtype and --backend, as far as a program computes with a model.
struct ComputeFlags {
  std::string dtype = "fp32", backend = "cpu", quantized = "auto";
  int threads = 0;

  void declare(CLI::App& app) {
    app.add_option("--dtype", dtype, "Element type of weights, activations and cache")
        ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
    app.add_option("--backend", backend, "Where to compute")->check(CLI::IsMember({"cpu", "cuda"}));
    app.add_option(
           "--quantized", quantized,
           "Compute on a file's quantized blocks where there are kernels for them (auto), or "
           "on dequantized weights (off)")
        ->check(CLI::IsMember({"auto", "off"}));
    app.add_option("--threads", threads, "CPU threads; 0: one per core")
        ->check(CLI::Range(0, 4096));
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

/// The model of a file, with a progress bar.
template <class T, class B>
nn::Transformer<T, B> load_model(const WeightFile& file, B backend) {
  Progress progress("loading");
  return nn::load_transformer<T, B>(file, backend,
                                    [&](index_t done, index_t total) { progress(done, total); });
}

}  // namespace rapt::example
