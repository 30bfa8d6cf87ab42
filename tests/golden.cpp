// golden: runs every case of golden folders against the library.
//
//   golden [--op OP] [--case TEXT] [--json] DIR...
//
// Each DIR holds index.json; the format is described by the README.md beside the committed data in
// tests/golden/. A folder named by RAPT_GOLDEN is run too. One line a case,
//
//   op case max_error tolerance ok|forward|FAIL|unsupported
//
// where max_error is the error of the element that used the largest share of its tolerance, and
// tolerance is what that element was allowed; then "N passed, N failed, N skipped". `forward`: all
// forward tensors hold, and the gradients that are stored too are not built yet (passed).
// `unsupported`: the library does not have the mechanism yet (skipped).
//
// Exit code 0, 1 when a case failed, 2 for bad usage or a folder that cannot be read.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "golden_ops/case.hpp"

namespace rapt::golden {
namespace {

constexpr const char* kUsage =
    "usage: golden [options] DIR...\n"
    "\n"
    "Runs every case of each golden folder (index.json), and of the folder RAPT_GOLDEN if set.\n"
    "\n"
    "  --op OP      only cases of this op (repeatable)\n"
    "  --case TEXT  only cases whose name contains TEXT (repeatable)\n"
    "  --json       one JSON object per line instead of text\n"
    "  --help       this text\n";

struct Options {
  std::vector<std::string> ops, cases, folders;
  bool json = false;
};

struct Totals {
  int passed = 0, failed = 0, skipped = 0;
};

/// Bad usage or input: the message goes to stderr, the exit code is 2.
struct Refused {
  std::string what;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= argc) throw Refused{std::string(flag) + " needs a value"};
      return argv[++i];
    };
    if (flag == "--help") {
      std::fputs(kUsage, stdout);
      std::exit(0);
    } else if (flag == "--op") {
      options.ops.push_back(value());
    } else if (flag == "--case") {
      options.cases.push_back(value());
    } else if (flag == "--json") {
      options.json = true;
    } else if (flag.size() > 1 && flag[0] == '-') {
      throw Refused{"unknown option " + std::string(flag) + " (see --help)"};
    } else {
      options.folders.emplace_back(flag);
    }
  }
  if (const char* more = std::getenv("RAPT_GOLDEN"); more != nullptr && *more != '\0')
    options.folders.emplace_back(more);
  if (options.folders.empty()) throw Refused{"no golden folder is given (see --help)"};
  return options;
}

Json read_index(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "index.json";
  std::ifstream stream(path);
  if (!stream) throw Refused{path.string() + ": cannot be read"};
  Json index = Json::parse(stream, nullptr, false);
  if (index.is_discarded()) throw Refused{path.string() + ": is no JSON"};
  if (!index.is_object() || !index.contains("cases") || !index.at("cases").is_array())
    throw Refused{path.string() + ": has no list `cases`"};
  for (const Json& entry : index.at("cases"))
    for (const char* key : {"case", "file", "op"})
      if (!entry.is_object() || !entry.contains(key) || !entry.at(key).is_string())
        throw Refused{path.string() + ": a case has no text `" + key + "`"};
  return index;
}

struct Result {
  std::string verdict;  // ok, forward, FAIL or unsupported
  std::string reason;   // of FAIL and unsupported
  Comparison comparison;
};

Result run_case(const std::filesystem::path& folder, const Json& entry) {
  const auto handler = handlers().find(entry.at("op").get<std::string>());
  if (handler == handlers().end()) return {"unsupported", "no such operation yet", {}};
  Result result;
  try {
    Case golden(folder, entry);
    try {
      handler->second(golden);
      golden.finish();
      result.verdict = golden.has_gradients() ? "forward" : "ok";
    } catch (const Unsupported& unsupported) {
      return {"unsupported", unsupported.what, {}};
    } catch (const std::exception& e) {
      result.verdict = "FAIL";
      result.reason = e.what();
    }
    result.comparison = golden.comparison();
    if (!golden.comparison().mismatch.empty()) {
      result.verdict = "FAIL";
      result.reason = golden.comparison().mismatch;
    }
  } catch (const std::exception& e) {  // the case itself cannot be read
    result.verdict = "FAIL";
    result.reason = e.what();
  }
  return result;
}

void print(const Options& options, const Json& entry, const Result& result) {
  const std::string op = entry.at("op"), name = entry.at("case");
  const Comparison& c = result.comparison;
  const bool compared = c.share >= 0;
  if (options.json) {
    // JSON has no infinity: such an error is a text.
    const auto number = [](double x) -> Json {
      if (std::isfinite(x)) return x;
      return std::isnan(x) ? "nan" : "inf";
    };
    Json line = {{"op", op}, {"case", name}, {"result", result.verdict}};
    if (compared) {
      line["max_error"] = number(c.error);
      line["tolerance"] = number(c.allowed);
      line["tensor"] = c.tensor;
    }
    if (!result.reason.empty()) line["reason"] = result.reason;
    std::printf("%s\n", line.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  } else if (compared) {
    std::printf("%s %s %.3g %.3g %s\n", op.c_str(), name.c_str(), c.error, c.allowed,
                result.verdict.c_str());
  } else {
    std::printf("%s %s - - %s\n", op.c_str(), name.c_str(), result.verdict.c_str());
  }
  std::fflush(stdout);
  if (result.verdict == "FAIL" && !options.json)
    std::fprintf(stderr, "%s: %s\n", name.c_str(), result.reason.c_str());
}

bool wanted(const Options& options, const Json& entry) {
  const std::string op = entry.at("op"), name = entry.at("case");
  const auto any = [](const std::vector<std::string>& list, auto&& fits) {
    if (list.empty()) return true;
    for (const auto& item : list)
      if (fits(item)) return true;
    return false;
  };
  return any(options.ops, [&](const std::string& o) { return o == op; }) &&
         any(options.cases,
             [&](const std::string& text) { return name.find(text) != std::string::npos; });
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  std::vector<std::pair<std::string, Json>> indices;  // all are read before anything runs
  for (const auto& folder : options.folders) indices.emplace_back(folder, read_index(folder));
  Totals totals;
  for (const auto& [folder, index] : indices)
    for (const Json& entry : index.at("cases")) {
      if (!wanted(options, entry)) continue;
      const Result result = run_case(folder, entry);
      print(options, entry, result);
      ++(result.verdict == "FAIL"          ? totals.failed
         : result.verdict == "unsupported" ? totals.skipped
                                           : totals.passed);
    }
  if (totals.passed + totals.failed + totals.skipped == 0) throw Refused{"no case was selected"};
  if (options.json)
    std::printf("{\"passed\":%d,\"failed\":%d,\"skipped\":%d}\n", totals.passed, totals.failed,
                totals.skipped);
  else
    std::printf("%d passed, %d failed, %d skipped\n", totals.passed, totals.failed, totals.skipped);
  return totals.failed > 0 ? 1 : 0;
}

}  // namespace
}  // namespace rapt::golden

int main(int argc, char** argv) {
  try {
    return rapt::golden::run(argc, argv);
  } catch (const rapt::golden::Refused& refused) {
    std::fprintf(stderr, "golden: %s\n", refused.what.c_str());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "golden: %s\n", e.what());
    return 1;
  }
}
