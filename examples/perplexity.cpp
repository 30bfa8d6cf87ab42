// Perplexity of a text under a model.
//
//   perplexity --model model.gguf --file text.txt
//
//   nll_t = -log p(id_{t+1} | id_0 .. id_t) = logsumexp(z_t) - z_t[id_{t+1}],  z_t = logits of row
//   t mean_nll = mean of nll_t;  perplexity = exp(mean_nll)
//
// One window over the whole text, or with --stride N windows of the model's context (--window) that
// step by N: each scores only the tokens that no window before it has scored. Special tokens in the
// text are not parsed; a BOS begins each window where the model's file asks for one. Logits are
// made a few rows at a time, so a large vocabulary needs little memory.
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/text/generate.hpp"
#include "rapt/text/load_tokenizer.hpp"

namespace {

using namespace rapt;
using example::Progress;

struct Flags {
  std::string model, file, ids_file;
  index_t stride = 0, window = 0;
  bool json = false;
  example::ComputeFlags compute;
};

std::string read_text(const std::string& path) {
  const MappedFile file(path);
  return std::string(detail::as_text(file.bytes()));
}

std::vector<std::int32_t> read_ids(const std::string& path) {
  const auto parsed = nlohmann::json::parse(read_text(path), nullptr, false);
  if (!parsed.is_array()) throw FormatError(path + ": expected a JSON array of ids");
  std::vector<std::int32_t> ids;
  for (const auto& id : parsed) {
    if (!id.is_number_integer() || id < 0 || id > INT32_MAX)
      throw FormatError(path + ": an id is " + id.dump() + ", expected an integer from 0");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

/// Sum of -log p(ids[t + 1]) for t from `first` on; rows before are context only.
template <class T, class B>
double window_nll(const nn::Transformer<T, B>& model, std::span<const std::int32_t> ids,
                  index_t first) {
  double total = 0;
  visit_logits(
      model, ids.first(ids.size() - 1),  // the last id is only predicted
      [&](index_t t, auto z) {
        const TensorView<const std::int32_t, 1> targets(ids.data() + t + 1, Shape<1>{z.extent(0)});
        Tensor<accumulate_t<T>, 1> loss(Shape<1>{z.extent(0)});
        cross_entropy(loss, to(Cpu{}, z), targets);
        for (index_t i = 0; i < loss.extent(0); ++i) total += static_cast<double>(loss(i));
      },
      first);
  return total;
}

template <class T, class B>
void measure(const Flags& flags, const WeightFile& file, B backend) {
  std::vector<std::int32_t> ids;
  std::optional<std::int32_t> bos;
  if (!flags.ids_file.empty()) {
    ids = read_ids(flags.ids_file);
  } else {
    const Tokenizer tokenizer =
        load_tokenizer(file.gguf() ? std::filesystem::path(flags.model) : file.folder());
    ids = tokenizer.encode(read_text(flags.file));
    if (tokenizer.add_bos()) bos = tokenizer.bos();
  }
  const auto with_bos = [&](index_t begin, index_t end) {
    std::vector<std::int32_t> part;
    if (bos) part.push_back(*bos);
    part.insert(part.end(), ids.begin() + begin, ids.begin() + end);
    return part;
  };
  const auto n = static_cast<index_t>(ids.size());
  if (n + (bos ? 1 : 0) < 2)
    throw ValueError(detail::text("the text has ", n, " tokens, expected at least 2"));

  const auto model = example::load_model<T>(file, backend);
  const index_t context = flags.window > 0 ? flags.window
                          : flags.stride > 0 && file.config().max_position > 0
                              ? file.config().max_position
                              : n;
  const index_t stride = flags.stride > 0 ? flags.stride : context;
  if (stride > context)
    throw ValueError(detail::text("--stride is ", stride, ", expected at most ", context,
                                  " = tokens of a window"));
  Progress progress("scoring");
  double total = 0;
  index_t count = 0, scored = 0;  // ids[0, scored) have been predicted or are the start
  for (index_t begin = 0; scored < n; begin += stride) {
    const index_t end = std::min(n, begin + context);
    const auto part = with_bos(begin, end);
    const index_t extra = bos ? 1 : 0;
    // The first id to score sits at `scored`; its logits are one row before.
    const index_t first = std::max<index_t>(scored - begin + extra - 1, 0);
    const auto predictions = static_cast<index_t>(part.size()) - 1 - first;
    if (predictions > 0) {
      total += window_nll(model, part, first);
      count += predictions;
    }
    scored = end;
    progress(scored, n);
    if (end == n) break;
  }
  const double mean = total / static_cast<double>(count);
  if (flags.json)
    std::printf("%s\n", nlohmann::json{{"tokens", count + 1},
                                       {"predictions", count},
                                       {"mean_nll", mean},
                                       {"perplexity", std::exp(mean)}}
                            .dump()
                            .c_str());
  else
    std::printf("tokens %lld  mean_nll %.6f  perplexity %.4f\n", static_cast<long long>(count + 1),
                mean, std::exp(mean));
}

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  return example::run_program(
      "perplexity", "Mean negative log likelihood and perplexity of a text under a model.", argc,
      argv, [&](CLI::App& app) {
        app.add_option("--model", flags.model, "GGUF file or Hugging Face folder")->required();
        auto* text = app.add_option("--file", flags.file, "Text, UTF-8");
        app.add_option("--ids-file", flags.ids_file, "A JSON array of ids instead of a text")
            ->excludes(text);
        app.add_option("--stride", flags.stride,
                       "Step of overlapping windows; 0: one window over everything")
            ->check(CLI::NonNegativeNumber);
        app.add_option("--window", flags.window,
                       "Tokens of a window with --stride; 0: the model's context")
            ->check(CLI::NonNegativeNumber);
        app.add_flag("--json", flags.json, "Print one JSON object");
        flags.compute.declare(app);
        return [&] {
          if (flags.file.empty() && flags.ids_file.empty())
            throw ValueError("--file or --ids-file is required");
          flags.compute.apply();
          const WeightFile file = WeightFile::open(flags.model);
          example::with_backend(flags.compute, [&](auto element, auto backend) {
            measure<decltype(element)>(flags, file, backend);
          });
        };
      });
}
