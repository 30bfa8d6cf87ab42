// What the example programs share: flags, exit codes, a progress bar. model.hpp adds the model.
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
#include <stdexcept>
#include <string>
#include <utility>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"

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

}  // namespace rapt::example
