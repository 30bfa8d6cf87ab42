// real_models: rapt against the reference values of real checkpoints.
//
//   real_models [--models DIR] [--golden DIR] [--model NAME] [--quick] [--threads N]
//
//   smollm2-135m   SmolLM2-135M-Instruct.Q4_1.gguf
//   gemma3-270m    gemma-3-270m-q4_k_m.gguf
//
// Weights are looked for in DIR, RAPT_MODELS, models/ and ${XDG_CACHE_HOME:-~/.cache}/rapt; a model
// whose file is nowhere is skipped with a message. Reference values lie in DIR/models/NAME: DIR,
// RAPT_GOLDEN, or tests/golden, whose README files say how they were made. One line a check,
//
//   model check max_error tolerance ok|FAIL
//
// Exit code 0, 1 when a check failed, 2 for bad usage, 77 when no model was there.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/io/safetensors.hpp"
#include "rapt/nn/checkpoint.hpp"
#include "rapt/text/generate.hpp"
#include "rapt/text/load_tokenizer.hpp"

namespace rapt::real_models {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using Model = nn::Transformer<float>;

// What the README of each checkpoint asks of computation in fp32.
constexpr double kLogit = 1e-3, kLogsumexp = 2e-3, kNll = 2e-3, kMeanNll = 1e-4;
// The residual stream is compared relative to its largest element: Gemma's reaches thousands.
constexpr double kTrace = 2e-5;

struct Checkpoint {
  const char* name;
  const char* file;
};
constexpr Checkpoint kCheckpoints[] = {
    {"smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf"},
    {"gemma3-270m", "gemma-3-270m-q4_k_m.gguf"},
};

struct Options {
  std::vector<fs::path> models, golden;
  std::string only;
  bool quick = false;
};

struct BadUsage {
  std::string what;
};

/// Prints one line a check and remembers whether one failed.
class Report {
 public:
  explicit Report(std::string model) : model_(std::move(model)) {}

  void check(const std::string& what, double error, double tolerance,
             const std::string& note = "") {
    const bool ok = error <= tolerance;  // false for NaN
    std::printf("%s %s %.3g %.3g %s%s%s\n", model_.c_str(), what.c_str(), error, tolerance,
                ok ? "ok" : "FAIL", note.empty() ? "" : "  # ", note.c_str());
    std::fflush(stdout);
    failed_ = failed_ || !ok;
  }
  /// Exact things: the number of differences must be 0.
  void exact(const std::string& what, index_t differences, const std::string& note = "") {
    check(what, static_cast<double>(differences), 0, note);
  }
  void error(const std::string& what) {
    std::fprintf(stderr, "%s: %s\n", model_.c_str(), what.c_str());
    failed_ = true;
  }
  bool failed() const { return failed_; }

 private:
  std::string model_;
  bool failed_ = false;
};

/// The largest of |got - want|; NaN once there is one.
class Largest {
 public:
  void add(double got, double want) {
    const double d = std::fabs(got - want);
    if (!(d <= value_)) value_ = d;
  }
  double value() const { return value_; }

 private:
  double value_ = 0;
};

std::string bytes_of_hex(const std::string& hex) {
  std::string out;
  for (std::size_t i = 0; i + 1 < hex.size(); i += 2)
    out.push_back(static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return out;
}

// ---- tokenizer ----

void check_tokenizer(Report& report, const fs::path& golden, const Tokenizer& tokenizer) {
  std::ifstream stream(golden / "tokens.json");
  const Json tokens = Json::parse(stream);
  index_t plain = 0, special = 0, full = 0, text = 0, pieces = 0, count = 0;
  std::string first;
  const auto compare = [&](const Json& entry, const char* full_key, bool cut) {
    const auto source = entry.at("text").get<std::string>();
    const auto differs = [&](const char* key, EncodeOptions options, index_t& counter) {
      const auto wanted = entry.at(key).get<std::vector<std::int32_t>>();
      auto ids = tokenizer.encode(source, options);
      if (cut) ids.resize(std::min(ids.size(), wanted.size()));
      if (ids == wanted) return;
      ++counter;
      if (first.empty()) first = std::string(key) + " of " + Json(source).dump().substr(0, 60);
    };
    ++count;
    differs("ids", {}, plain);
    differs("ids_special", {.parse_special = true}, special);
    differs(full_key, {.parse_special = true, .add_bos = true}, full);
  };
  for (const auto& [name, prompt] : tokens.at("prompts").items()) {
    compare(prompt, "ids_eval", name == "p64");  // the first 64 tokens of its text
    const auto ids = prompt.at("ids_eval").get<std::vector<std::int32_t>>();
    for (std::size_t i = 0; i < ids.size(); ++i)
      if (tokenizer.piece(ids[i]) != bytes_of_hex(prompt.at("pieces_hex").at(i))) ++pieces;
  }
  for (const Json& entry : tokens.at("cases")) {
    compare(entry, "ids_full", false);
    const auto ids = entry.at("ids_special").get<std::vector<std::int32_t>>();
    if (tokenizer.decode(ids) != bytes_of_hex(entry.at("detok_hex"))) ++text;
  }
  report.exact("tokenizer/ids", plain, first);
  report.exact("tokenizer/ids_special", special);
  report.exact("tokenizer/ids_full", full);
  report.exact("tokenizer/pieces", pieces);
  report.exact("tokenizer/decode", text, std::to_string(count) + " texts");
}

// ---- tensors ----

void check_tensors(Report& report, const fs::path& golden, const GgufFile& file) {
  const fs::path path = golden / "tensors.json";
  if (!fs::exists(path)) return;
  std::ifstream stream(path);
  const Json list = Json::parse(stream);
  Largest sums, ends;
  for (const Json& entry : list) {
    const auto name = entry.at("name").get<std::string>();
    std::vector<float> values(static_cast<std::size_t>(file.info(name).elements()));
    file.read(name, std::span<float>(values));
    double sum = 0, squares = 0;
    for (const float x : values) {
      sum += static_cast<double>(x);
      squares += static_cast<double>(x) * static_cast<double>(x);
    }
    const double size = entry.at("abs_sum").get<double>() + 1e-30;
    sums.add(sum / size, entry.at("sum").get<double>() / size);
    sums.add(squares / (entry.at("sq_sum").get<double>() + 1e-30), 1);
    for (std::size_t i = 0; i < 8; ++i) {
      ends.add(static_cast<double>(values[i]), entry.at("first8").at(i).get<double>());
      ends.add(static_cast<double>(values[values.size() - 8 + i]),
               entry.at("last8").at(i).get<double>());
    }
  }
  report.check("tensors/sums", sums.value(), 1e-9);
  report.check("tensors/elements", ends.value(), 1e-7, std::to_string(list.size()) + " tensors");
}

// ---- logits ----

/// What the references say of one position, and how far the model is from it.
struct Errors {
  Largest logit, logsumexp, nll;
  index_t top1 = 0;  // positions whose best token differs although the margin is clear
};

/// Calls look(position, logits) for every position, a few rows at a time: all logits of a large
/// vocabulary would be gigabytes. logsumexp[t] is that of position t.
template <class Look>
void for_each_position(const Model& model, std::span<const std::int32_t> text, Look look) {
  const auto n = static_cast<index_t>(text.size());
  const index_t vocab = model.config().vocab_size;
  const TensorView<const std::int32_t, 2> ids(text.data(), {1, n});
  Tensor<float, 3> h({1, n, model.config().d_model});
  model.hidden(h, ids);
  const auto rows = h.select(0, 0);
  constexpr index_t kRows = 64;
  Tensor<float, 2> logits({kRows, vocab});
  Tensor<float, 1> loss({kRows});
  const Tensor<std::int32_t, 1> first({kRows});  // token 0: loss + its logit is the logsumexp
  for (index_t begin = 0; begin < n; begin += kRows) {
    const index_t count = std::min(kRows, n - begin);
    const auto part = logits.slice(0, 0, count);
    model.logits(part, rows.slice(0, begin, begin + count));
    cross_entropy(loss.slice(0, 0, count), part, first.slice(0, 0, count));
    for (index_t i = 0; i < count; ++i)
      look(begin + i, std::span<const float>(&part(i, 0), static_cast<std::size_t>(vocab)),
           static_cast<double>(loss(i)) + static_cast<double>(part(i, 0)));
  }
}

double at(std::span<const float> logits, std::int32_t id) {
  return static_cast<double>(logits[static_cast<std::size_t>(id)]);
}

void check_prompt(Report& report, const Model& model, const SafetensorsFile& golden,
                  const std::string& prompt) {
  const auto ids = golden.load<std::int32_t, 1>(prompt + ".ids");
  const auto top_ids = golden.load<std::int32_t, 2>(prompt + ".pos_top5_ids");
  const auto top_logits = golden.load<float, 2>(prompt + ".pos_top5_logits");
  const auto logsumexp = golden.load<float, 1>(prompt + ".pos_logsumexp");
  const auto next = golden.load<float, 1>(prompt + ".pos_next_logit");
  const std::span<const std::int32_t> text(ids.data(), static_cast<std::size_t>(ids.size()));
  Errors errors;
  Largest last;
  for_each_position(model, text, [&](index_t t, std::span<const float> z, double lse) {
    for (index_t k = 0; k < top_ids.extent(1); ++k)
      errors.logit.add(at(z, top_ids(t, k)), static_cast<double>(top_logits(t, k)));
    errors.logsumexp.add(lse, static_cast<double>(logsumexp(t)));
    const bool clear = static_cast<double>(top_logits(t, 0) - top_logits(t, 1)) > 2 * kLogit;
    if (clear && argmax(z) != top_ids(t, 0)) ++errors.top1;
    if (t + 1 < ids.size()) errors.logit.add(at(z, ids(t + 1)), static_cast<double>(next(t)));
    if (t + 1 < ids.size()) return;
    if (golden.has(prompt + ".top20_ids")) {
      const auto best = golden.load<std::int32_t, 1>(prompt + ".top20_ids");
      const auto values = golden.load<float, 1>(prompt + ".top20_logits");
      for (index_t k = 0; k < best.size(); ++k)
        last.add(at(z, best(k)), static_cast<double>(values(k)));
    }
    if (golden.has(prompt + ".full_logits")) {
      const auto all = golden.load<float, 1>(prompt + ".full_logits");
      for (index_t id = 0; id < all.size(); ++id)
        last.add(at(z, static_cast<std::int32_t>(id)), static_cast<double>(all(id)));
    }
  });
  const std::string note = std::to_string(ids.size()) + " tokens";
  report.check(prompt + "/logits", errors.logit.value(), kLogit, note);
  report.check(prompt + "/logsumexp", errors.logsumexp.value(), kLogsumexp);
  report.exact(prompt + "/top1", errors.top1);
  if (golden.has(prompt + ".top20_ids"))
    report.check(prompt + "/last_logits", last.value(), kLogit,
                 golden.has(prompt + ".full_logits") ? "all of them" : "");
}

/// Greedy continuation through the cache, up to the first step whose margin is not clear.
void check_greedy(Report& report, const Model& model, const SafetensorsFile& golden,
                  const std::string& prompt) {
  if (!golden.has(prompt + ".greedy_ids")) return;
  const auto ids = golden.load<std::int32_t, 1>(prompt + ".ids");
  const auto wanted = golden.load<std::int32_t, 1>(prompt + ".greedy_ids");
  const auto margin = golden.load<float, 1>(prompt + ".greedy_margin");
  index_t clear = 0;
  while (clear < margin.size() && static_cast<double>(margin(clear)) > 2 * kLogit) ++clear;

  Session<float> session(model, 1, ids.size() + clear);
  session.feed({std::vector<std::int32_t>(ids.data(), ids.data() + ids.size())});
  Largest last;
  const auto best = golden.load<std::int32_t, 1>(prompt + ".top20_ids");
  const auto values = golden.load<float, 1>(prompt + ".top20_logits");
  for (index_t k = 0; k < best.size(); ++k)
    last.add(at(session.logits(0), best(k)), static_cast<double>(values(k)));
  report.check(prompt + "/cached_logits", last.value(), kLogit);

  Philox random(0);
  GenerateOptions options;
  options.max_new_tokens = clear;
  options.sampling.temperature = 0;
  const auto result = generate(session, options, random);
  index_t differences = 0;
  for (index_t i = 0; i < clear; ++i)
    if (result.ids[0].at(static_cast<std::size_t>(i)) != wanted(i)) ++differences;
  report.exact(prompt + "/greedy", differences,
               detail::text(clear, " of ", margin.size(), " tokens, ", session.cache_bytes(),
                            " bytes of cache"));
}

void check_perplexity(Report& report, const Model& model, const fs::path& folder,
                      const SafetensorsFile& golden, const Tokenizer& tokenizer) {
  const auto ids = golden.load<std::int32_t, 1>("ppl.ids");
  std::ifstream text_stream(folder / "ppl.txt", std::ios::binary);
  const std::string text((std::istreambuf_iterator<char>(text_stream)),
                         std::istreambuf_iterator<char>());
  const std::vector<std::int32_t> wanted(ids.data(), ids.data() + ids.size());
  report.exact("perplexity/ids", tokenizer.encode(text, {.add_bos = true}) == wanted ? 0 : 1);

  const auto nll = golden.load<float, 1>("ppl.nll");
  std::ifstream json_stream(folder / "ppl.json");
  const double mean = Json::parse(json_stream).at("mean_nll").get<double>();
  Largest worst;
  double sum = 0;
  for_each_position(model, wanted, [&](index_t t, std::span<const float> z, double lse) {
    if (t >= nll.size()) return;
    const double loss = lse - at(z, ids(t + 1));
    worst.add(loss, static_cast<double>(nll(t)));
    sum += loss;
  });
  report.check("perplexity/nll", worst.value(), kNll, std::to_string(nll.size()) + " predictions");
  report.check("perplexity/mean_nll", std::fabs(sum / static_cast<double>(nll.size()) - mean),
               kMeanNll);
}

// ---- on quantized blocks ----

/// Products with activations of 8 bits: not further from the references than twice what another
/// implementation of the same kind is, whose values q8act.safetensors holds, in the mean over a
/// text.
void check_blocks(Report& report, const Model& model, const SafetensorsFile& golden,
                  const SafetensorsFile& peer, const std::string& prompt) {
  const auto ids = golden.load<std::int32_t, 1>(prompt + ".ids");
  const auto logsumexp = golden.load<float, 1>(prompt + ".pos_logsumexp");
  const auto next = golden.load<float, 1>(prompt + ".pos_next_logit");
  const auto peer_logsumexp = peer.load<float, 1>(prompt + ".pos_logsumexp");
  const auto peer_next = peer.load<float, 1>(prompt + ".pos_next_logit");
  const auto top_ids = golden.load<std::int32_t, 2>(prompt + ".pos_top5_ids");
  double own = 0, others = 0;
  index_t agree = 0;
  const std::span<const std::int32_t> text(ids.data(), static_cast<std::size_t>(ids.size()));
  for_each_position(model, text, [&](index_t t, std::span<const float> z, double lse) {
    if (argmax(z) == top_ids(t, 0)) ++agree;
    if (t + 1 == ids.size()) return;
    const auto nll = [](double l, float logit) { return l - static_cast<double>(logit); };
    const double want = nll(static_cast<double>(logsumexp(t)), next(t));
    own += std::fabs(lse - at(z, ids(t + 1)) - want);
    others += std::fabs(nll(static_cast<double>(peer_logsumexp(t)), peer_next(t)) - want);
  });
  const auto n = static_cast<double>(ids.size() - 1);
  report.check("blocks/" + prompt + "/mean_nll_error", own / n, 2 * others / n,
               detail::text("best token as in fp32: ", agree, " of ", ids.size()));
}

/// Perplexity on blocks, within half a percent of the reference in double.
void check_blocks_perplexity(Report& report, const Model& model, const fs::path& folder,
                             const SafetensorsFile& golden) {
  const auto ids = golden.load<std::int32_t, 1>("ppl.ids");
  std::ifstream json_stream(folder / "ppl.json");
  const double want = Json::parse(json_stream).at("mean_nll").get<double>();
  double sum = 0;
  const std::span<const std::int32_t> text(ids.data(), static_cast<std::size_t>(ids.size()));
  for_each_position(model, text, [&](index_t t, std::span<const float> z, double lse) {
    if (t + 1 < ids.size()) sum += lse - at(z, ids(t + 1));
  });
  const double mean = sum / static_cast<double>(ids.size() - 1);
  report.check("blocks/perplexity/mean_nll", std::fabs(mean - want), 5e-3,
               detail::text("mean_nll ", mean, ", reference ", want));
}

/// The residual stream after the embedding and after every block, and what the head multiplies.
void check_trace(Report& report, const Model& model, const fs::path& folder,
                 const SafetensorsFile& golden) {
  const fs::path path = folder / "trace.safetensors";
  if (!fs::exists(path)) return;
  const auto trace = SafetensorsFile::open(path);
  const auto ids = golden.load<std::int32_t, 1>("chat.ids");
  struct Context {
    const SafetensorsFile* trace;
    double worst = 0;
    std::string where;
    void compare(const std::string& name, TensorView<const float, 3> h) {
      const auto want = trace->load<float, 2>(name);
      double largest = 0, error = 0;
      for (index_t i = 0; i < want.extent(0); ++i)
        for (index_t j = 0; j < want.extent(1); ++j) {
          largest = std::max(largest, std::fabs(static_cast<double>(want(i, j))));
          const double d = std::fabs(static_cast<double>(h(0, i, j) - want(i, j)));
          if (!(d <= error)) error = d;
        }
      if (!(error / largest <= worst)) {
        worst = error / largest;
        where = name;
      }
    }
  } context{&trace, 0, {}};
  Model::Call call;
  call.observe_context = &context;
  call.observe = [](void* opaque, index_t layer, TensorView<const float, 3> h) {
    static_cast<Context*>(opaque)->compare(layer < 0 ? "embed" : "layer" + std::to_string(layer),
                                           h);
  };
  Tensor<float, 3> h({1, ids.size(), model.config().d_model});
  model.hidden(h, ids.reshape(Shape{1, ids.size()}), call);
  context.compare("final_norm", h);
  report.check("chat/trace", context.worst, kTrace, "relative, worst at " + context.where);
}

// ---- the program ----

std::optional<fs::path> find(const std::vector<fs::path>& folders, const fs::path& relative) {
  for (const auto& folder : folders)
    if (fs::exists(folder / relative)) return folder / relative;
  return {};
}

Options parse(int argc, char** argv) {
  Options options;
  const auto environment = [](const char* name) -> std::optional<std::string> {
    const char* value = std::getenv(name);
    if (value == nullptr || *value == '\0') return {};
    return std::string(value);
  };
  for (int i = 1; i < argc; ++i) {
    const std::string_view flag = argv[i];
    const auto value = [&]() -> std::string {
      if (i + 1 >= argc) throw BadUsage{std::string(flag) + " needs a value"};
      return argv[++i];
    };
    if (flag == "--help") {
      std::puts(
          "usage: real_models [options]\n"
          "\n"
          "Compares rapt with the reference values of real checkpoints, where their weights are.\n"
          "\n"
          "  --models DIR  where the GGUF files lie (also RAPT_MODELS, models/, the cache folder)\n"
          "  --golden DIR  where models/NAME/ holds the references (also RAPT_GOLDEN, "
          "tests/golden)\n"
          "  --model NAME  only this one: smollm2-135m or gemma3-270m\n"
          "  --quick       without the longest texts\n"
          "  --threads N   threads to use\n"
          "  --help        this text");
      std::exit(0);
    } else if (flag == "--models") {
      options.models.emplace_back(value());
    } else if (flag == "--golden") {
      options.golden.emplace_back(value());
    } else if (flag == "--model") {
      options.only = value();
      if (std::none_of(std::begin(kCheckpoints), std::end(kCheckpoints),
                       [&](const Checkpoint& c) { return options.only == c.name; }))
        throw BadUsage{"--model is " + options.only + ", expected smollm2-135m or gemma3-270m"};
    } else if (flag == "--quick") {
      options.quick = true;
    } else if (flag == "--threads") {
      set_num_threads(std::atoi(value().c_str()));
    } else {
      throw BadUsage{"unknown option " + std::string(flag) + " (see --help)"};
    }
  }
  if (const auto more = environment("RAPT_MODELS")) options.models.emplace_back(*more);
  options.models.emplace_back("models");
  if (const auto cache = environment("XDG_CACHE_HOME"))
    options.models.emplace_back(fs::path(*cache) / "rapt");
  else if (const auto home = environment("HOME"))
    options.models.emplace_back(fs::path(*home) / ".cache" / "rapt");
  if (const auto more = environment("RAPT_GOLDEN")) options.golden.emplace_back(*more);
  options.golden.emplace_back("tests/golden");
  std::error_code ignored;  // beside build/tests/real_models, wherever it is called from
  const fs::path self = fs::read_symlink("/proc/self/exe", ignored);
  if (!self.empty())
    options.golden.push_back(self.parent_path() / ".." / ".." / "tests" / "golden");
  return options;
}

void check(Report& report, const fs::path& weights_path, const fs::path& folder, bool quick) {
  const Tokenizer tokenizer = load_tokenizer(weights_path);
  check_tokenizer(report, folder, tokenizer);
  const WeightFile weights = WeightFile::open(weights_path);
  if (weights.gguf() != nullptr) check_tensors(report, folder, *weights.gguf());
  const auto golden = SafetensorsFile::open(folder / "logits.safetensors");
  if (const fs::path peer = folder / "q8act.safetensors"; fs::exists(peer)) {
    Model blocks = nn::load_transformer<float>(weights, Cpu{}, {}, QuantizedWeights::automatic);
    report.exact(
        "blocks/none_dequantized",
        [&] {
          index_t dense = 0;
          for (const auto& slot : blocks.weights()) dense += slot.weight->is_quantized() ? 0 : 1;
          return dense;
        }(),
        detail::text(blocks.weight_bytes_per_token(), " bytes of weights a token"));
    const auto peer_values = SafetensorsFile::open(peer);
    for (const char* prompt : {"plain", "chat", "code", "long"})
      if (!quick || std::string_view(prompt) != "long")
        check_blocks(report, blocks, golden, peer_values, prompt);
    if (!quick) check_blocks_perplexity(report, blocks, folder, golden);
  }
  const Model model = nn::load_transformer<float>(weights);
  check_trace(report, model, folder, golden);
  for (const char* prompt : {"plain", "chat", "whitespace", "p64", "code", "unicode", "long"}) {
    if (quick && std::string_view(prompt) == "long") continue;
    check_prompt(report, model, golden, prompt);
    check_greedy(report, model, golden, prompt);
  }
  if (!quick) check_perplexity(report, model, folder, golden, tokenizer);
}

int run(int argc, char** argv) {
  const Options options = parse(argc, argv);
  bool any = false, failed = false;
  for (const Checkpoint& checkpoint : kCheckpoints) {
    if (!options.only.empty() && options.only != checkpoint.name) continue;
    const auto weights = find(options.models, checkpoint.file);
    const auto folder =
        find(options.golden, fs::path("models") / checkpoint.name / "logits.safetensors");
    if (!weights || !folder) {
      std::printf("%s: skipped, %s is in none of", checkpoint.name,
                  weights ? "its reference" : checkpoint.file);
      for (const auto& place : weights ? options.golden : options.models)
        std::printf(" %s", place.string().c_str());
      std::printf("\n");
      continue;
    }
    any = true;
    Report report(checkpoint.name);
    try {
      check(report, *weights, folder->parent_path(), options.quick);
    } catch (const std::exception& e) {
      report.error(e.what());
    }
    failed = failed || report.failed();
  }
  return failed ? 1 : any ? 0 : 77;
}

}  // namespace
}  // namespace rapt::real_models

int main(int argc, char** argv) {
  try {
    return rapt::real_models::run(argc, argv);
  } catch (const rapt::real_models::BadUsage& e) {
    std::fprintf(stderr, "real_models: %s\n", e.what.c_str());
    return 2;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "real_models: %s\n", e.what());
    return 2;
  }
}
