// Trains a language model from text files.
//
//   build/examples/train --data shakespeare.txt --out run --steps 2000 --attention gqa
//   build/examples/train --out run --resume                       # goes on where it stopped
//   build/examples/generate --model run/latest --prompt "ROMEO:"
//
//   run/tokenizer.json   learned from the data (or --tokenizer)      run/tokens.bin   the data as
//   ids run/log.jsonl        a line a step                               run/loss.svg     its
//   picture run/latest/          the model as a Hugging Face folder, with the trainer's state
//   beside it
//
// SIGTERM or Ctrl-C finishes the step, saves and ends with code 0. A run that was killed at any
// moment goes on with --resume from its last checkpoint, bit for bit as if it had not been.
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "program.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/text/generate.hpp"
#include "rapt/text/load_tokenizer.hpp"
#include "rapt/text/write_tokenizer_json.hpp"
#include "rapt/train/bpe_trainer.hpp"
#include "rapt/train/log.hpp"
#include "rapt/train/trainer.hpp"

namespace {

using namespace rapt;
namespace fs = std::filesystem;
using nlohmann::json;

std::atomic<bool> stopping{false};

/// The first signal ends the run after its step, a second one ends the program.
extern "C" void on_signal(int signal) {
  stopping = true;
  std::signal(signal, SIG_DFL);
}

struct Flags {
  std::vector<std::string> data, decay;
  std::string out;
  bool resume = false, json = false, decay_all = false, recompute = false, warmup_from_one = false;
  bool untied = false;
  index_t steps = 1000, stop_after = 0, checkpoint_every = 250, batch = 16, seq = 256,
          accumulate = 1, warmup = 100;
  std::string accumulation = "tokens", packing = "packed", schedule = "cosine";
  double lr = 1e-3, min_lr = 1e-4, cycles = 0.5, weight_decay = 0.1, beta1 = 0.9, beta2 = 0.95,
         eps = 1e-8, clip = 1.0;
  std::uint64_t seed = 42;
  std::string dtype = "fp32";
  int threads = 0;
  std::string attention = "gqa", form = "llama";
  index_t d_model = 256, layers = 6, heads = 8, kv_heads = 0, head_dim = 0, ffn = 0, window = 128,
          vocab = 1024, max_position = 0;
  double rope_theta = 10000;
  std::string tokenizer = "bpe", document_separator;
  double validation = 0.05;
  index_t validate_every = 100, validation_sequences = 64;
  index_t sample_every = 0, sample_tokens = 64;
  std::string sample_prompt = "\n";
};

/// A JSON object of flags by their names without dashes: {"d-model": 128, "data": ["a.txt"]}.
class JsonConfig : public CLI::Config {
 public:
  std::string to_config(const CLI::App*, bool, bool, std::string) const override { return {}; }
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    const json object = json::parse(input, nullptr, false);
    if (!object.is_object()) throw CLI::ConversionError("the file is no JSON object", "--config");
    std::vector<CLI::ConfigItem> found;
    for (const auto& [key, value] : object.items()) {
      CLI::ConfigItem item;
      item.name = key;
      std::replace(item.name.begin(), item.name.end(), '_', '-');
      item.inputs = texts(value, key);
      found.push_back(std::move(item));
    }
    return found;
  }

  static std::vector<std::string> texts(const json& value, const std::string& key) {
    std::vector<std::string> out;
    for (const json& one : value.is_array() ? value : json::array({value})) {
      if (one.is_string())
        out.push_back(one.get<std::string>());
      else if (one.is_boolean() || one.is_number())
        out.push_back(one.dump());
      else
        throw CLI::ConversionError(one.dump() + " is no text, number, true or false", key);
    }
    return out;
  }
};

// ---- the model ----

ModelConfig model_config(const Flags& flags, index_t vocab) {
  ModelConfig c;
  const bool gemma = flags.form == "gemma3", gpt = flags.form == "gpt";
  const bool windowed = flags.attention == "swa";
  c.vocab_size = vocab;
  c.d_model = flags.d_model;
  c.layers = flags.layers;
  c.heads = flags.heads;
  c.head_dim = flags.head_dim;
  if (c.head_dim == 0) {
    if (flags.d_model % flags.heads != 0)
      throw ValueError(detail::text("--d-model is ", flags.d_model, ", expected a multiple of ",
                                    flags.heads, " = --heads (or give --head-dim)"));
    c.head_dim = flags.d_model / flags.heads;
  }
  if (c.head_dim % 2 != 0)
    throw ValueError(detail::text("--head-dim is ", c.head_dim, ", expected an even number"));
  const auto expect_kv = [&](index_t wanted) {
    if (flags.kv_heads != 0 && flags.kv_heads != wanted)
      throw ValueError(detail::text("--kv-heads is ", flags.kv_heads, ", expected ", wanted,
                                    " = --attention ", flags.attention));
    c.kv_heads = wanted;
  };
  if (flags.attention == "mha") {
    expect_kv(flags.heads);
  } else if (flags.attention == "mqa") {
    expect_kv(1);
  } else {
    c.kv_heads = flags.kv_heads;
    if (c.kv_heads == 0)
      c.kv_heads = flags.heads % 4 == 0   ? flags.heads / 4
                   : flags.heads % 2 == 0 ? flags.heads / 2
                                          : 1;
    if (flags.heads % c.kv_heads != 0)
      throw ValueError(detail::text("--kv-heads is ", c.kv_heads, ", expected a divisor of ",
                                    flags.heads, " = --heads"));
  }
  // The usual 8/3 of the width, in whole vectors.
  c.ffn_dim = flags.ffn > 0 ? flags.ffn : (flags.d_model * 8 / 3 + 31) / 32 * 32;
  c.max_position = std::max(flags.max_position, flags.seq);
  c.tie_embeddings = !flags.untied;
  c.rope.theta = flags.rope_theta;
  c.layer_types.assign(static_cast<std::size_t>(flags.layers),
                       {windowed ? flags.window : 0, false});
  c.architecture = flags.form;
  if (flags.form == "llama" && windowed) c.architecture = "mistral";  // whose config has a window
  if (flags.form == "qwen3") c.qk_norm = QkNorm::head;
  if (flags.form == "qwen3" || gemma) c.norm_eps = 1e-6;
  if (gpt) {
    c.architecture = "rapt_gpt";
    c.norm = NormKind::layer;
  }
  if (gemma) {
    c.architecture = "gemma3_text";
    c.norm_plus_one = c.post_norms = true;
    c.qk_norm = QkNorm::head;
    c.activation = Activation::gelu_tanh;
    c.tie_embeddings = true;
    c.embedding_scale = std::sqrt(static_cast<double>(flags.d_model));
    c.query_scale = 1.0 / std::sqrt(static_cast<double>(c.head_dim));
    c.rope_local.theta = flags.rope_theta;
    for (index_t layer = 0; layer < flags.layers; ++layer)  // five local layers, then a global one
      c.layer_types[static_cast<std::size_t>(layer)] =
          (layer + 1) % 6 == 0 && !windowed ? LayerConfig{} : LayerConfig{flags.window, true};
  }
  c.bos_id = 0;
  c.eos_ids = {0};
  return c;
}

// ---- the data ----

/// tokenizer.json and tokenizer_config.json in `folder`, learned from the texts or copied.
Tokenizer prepare_tokenizer(const Flags& flags, const std::vector<std::string>& texts,
                            const fs::path& folder) {
  if (flags.tokenizer == "bpe" || flags.tokenizer == "bytes") {
    train::BpeTrainer trainer;
    if (flags.tokenizer == "bpe") {
      example::Progress progress("counting words");
      for (std::size_t i = 0; i < texts.size(); ++i) {
        trainer.add(texts[i]);
        progress(static_cast<index_t>(i + 1), static_cast<index_t>(texts.size()));
      }
    }
    const TokenizerData data =
        trainer.train(flags.tokenizer == "bytes" ? train::kByteVocabulary : flags.vocab);
    write_file(folder / "tokenizer.json", tokenizer_json_text(data));
    const std::string end(train::kEndOfText);
    write_file(folder / "tokenizer_config.json",
               json{{"tokenizer_class", "PreTrainedTokenizerFast"},
                    {"bos_token", end},
                    {"eos_token", end},
                    {"add_bos_token", false},
                    {"clean_up_tokenization_spaces", false}}
                       .dump(2) +
                   "\n");
  } else {
    const fs::path from = flags.tokenizer;
    const fs::path source = fs::is_directory(from) ? from : from.parent_path();
    load_tokenizer(from);  // refuses what it cannot read, by name
    write_file(folder / "tokenizer.json",
               read_file(fs::is_directory(from) ? from / "tokenizer.json" : from));
    if (fs::exists(source / "tokenizer_config.json"))
      write_file(folder / "tokenizer_config.json", read_file(source / "tokenizer_config.json"));
  }
  return load_tokenizer(folder);
}

std::vector<std::string_view> documents_of(std::string_view text, const std::string& separator) {
  std::vector<std::string_view> out;
  while (!separator.empty()) {
    const std::size_t at = text.find(separator);
    if (at == std::string_view::npos) break;
    if (at > 0) out.push_back(text.substr(0, at));
    text.remove_prefix(at + separator.size());
  }
  if (!text.empty()) out.push_back(text);
  return out;
}

/// The texts as ids: of each file the last share is for validation.
void write_tokens(const Flags& flags, const std::vector<std::string>& texts,
                  const Tokenizer& tokenizer, const fs::path& folder) {
  const std::int32_t separator = tokenizer.eos();
  std::vector<std::int32_t> training, validation;
  example::Progress progress("tokenizing");
  for (std::size_t i = 0; i < texts.size(); ++i) {
    std::vector<std::int32_t> ids;
    for (const std::string_view document : documents_of(texts[i], flags.document_separator)) {
      if (separator >= 0) ids.push_back(separator);
      const auto more = tokenizer.encode(document);
      ids.insert(ids.end(), more.begin(), more.end());
    }
    const auto held = static_cast<std::size_t>(flags.validation * static_cast<double>(ids.size()));
    const auto cut = ids.end() - static_cast<std::ptrdiff_t>(held);
    training.insert(training.end(), ids.begin(), cut);
    if (held > 0 && separator >= 0) validation.push_back(separator);
    validation.insert(validation.end(), cut, ids.end());
    progress(static_cast<index_t>(i + 1), static_cast<index_t>(texts.size()));
  }
  train::TokenFileWriter out(
      folder / "tokens.bin",
      {.vocab = tokenizer.vocab_size(),
       .separator = separator,
       .tokenizer = train::fingerprint(read_file(folder / "tokenizer.json"))});
  out.write(training);
  out.begin_validation();
  out.write(validation);
  out.finish();
}

// ---- the run ----

/// A line on stderr while it is a terminal: how far, how good, how fast, how long.
class Bar {
 public:
  explicit Bar(index_t first) : shown_(::isatty(2) != 0), first_(first) {}
  ~Bar() { clear(); }
  void draw(const train::StepReport& r, index_t end) {
    if (!shown_) return;
    tokens_ += static_cast<double>(r.tokens);
    const auto now = std::chrono::steady_clock::now();
    const double seconds = std::chrono::duration<double>(now - start_).count();
    if (r.step < end && now - last_ < std::chrono::milliseconds(100)) return;
    last_ = now;
    constexpr index_t kWidth = 24;
    const auto filled = static_cast<std::size_t>(r.step * kWidth / std::max<index_t>(1, end));
    const auto done = static_cast<double>(r.step - first_);
    const auto left =
        static_cast<long>(seconds / std::max(1.0, done) * static_cast<double>(end - r.step));
    std::fprintf(
        stderr, "\r\033[K%lld/%lld [%s%s] loss %.4f  lr %.2e  %.0f tokens/s  %ld:%02ld:%02ld left",
        static_cast<long long>(r.step), static_cast<long long>(end),
        std::string(filled, '#').c_str(), std::string(kWidth - filled, ' ').c_str(), r.loss, r.lr,
        tokens_ / std::max(1e-9, seconds), left / 3600, left / 60 % 60, left % 60);
    drawn_ = true;
  }
  void clear() {
    if (drawn_) std::fputs("\r\033[K", stderr);
    drawn_ = false;
  }

 private:
  bool shown_, drawn_ = false;
  index_t first_;
  double tokens_ = 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now(), last_{};
};

train::TrainerOptions trainer_options(const Flags& flags) {
  train::TrainerOptions o;
  o.batch = flags.batch;
  o.accumulate = flags.accumulate;
  o.accumulation = flags.accumulation == "tokens" ? train::Accumulation::by_tokens
                                                  : train::Accumulation::by_micro_batch;
  o.schedule = {.kind = train::parse_schedule_kind(flags.schedule),
                .lr = flags.lr,
                .min_lr = std::min(flags.min_lr, flags.lr),
                .warmup = flags.warmup,
                .steps = flags.steps,
                .cycles = flags.cycles,
                .warmup_from_one = flags.warmup_from_one};
  o.optimizer = {.beta1 = flags.beta1,
                 .beta2 = flags.beta2,
                 .eps = flags.eps,
                 .weight_decay = flags.weight_decay,
                 .decay_all = flags.decay_all};
  for (const std::string& rule : flags.decay) {
    const std::size_t at = rule.rfind('=');
    char* end = nullptr;
    const double value = at == std::string::npos ? 0 : std::strtod(rule.c_str() + at + 1, &end);
    if (end == nullptr || *end != '\0' || end == rule.c_str() + at + 1)
      throw ValueError("--decay is '" + rule + "', expected PATTERN=NUMBER");
    o.optimizer.rules.push_back({rule.substr(0, at), value});
  }
  o.clip = flags.clip;
  o.recompute = flags.recompute;
  o.seed = flags.seed;
  return o;
}

/// Everything that the result depends on but the model, which its config.json states.
std::map<std::string, std::string> settings_of(const Flags& flags, const fs::path& tokens) {
  std::map<std::string, std::string> out;
  const auto number = [](double v) { return json(v).dump(); };
  for (const auto& [name, value] : {std::pair<const char*, index_t>{"batch", flags.batch},
                                    {"seq", flags.seq},
                                    {"accumulate", flags.accumulate},
                                    {"steps", flags.steps},
                                    {"warmup", flags.warmup}})
    out[name] = std::to_string(value);
  for (const auto& [name, value] : {std::pair<const char*, double>{"lr", flags.lr},
                                    {"min-lr", flags.min_lr},
                                    {"cycles", flags.cycles},
                                    {"weight-decay", flags.weight_decay},
                                    {"beta1", flags.beta1},
                                    {"beta2", flags.beta2},
                                    {"eps", flags.eps},
                                    {"clip", flags.clip}})
    out[name] = number(value);
  out["seed"] = std::to_string(flags.seed);
  out["schedule"] = flags.schedule;
  out["accumulation"] = flags.accumulation;
  out["packing"] = flags.packing;
  out["warmup-from-one"] = flags.warmup_from_one ? "true" : "false";
  out["decay-all"] = flags.decay_all ? "true" : "false";
  for (const std::string& rule : flags.decay)
    out["decay"] += (out["decay"].empty() ? "" : " ") + rule;
  char hash[20];
  std::snprintf(hash, sizeof hash, "%016llx",
                static_cast<unsigned long long>(train::fingerprint(read_file(tokens))));
  out["data"] = hash;
  return out;
}

template <class T>
class Run {
 public:
  Run(const Flags& flags, const std::string& flags_json, bool resumed)
      : flags_(flags),
        flags_json_(flags_json),
        out_(flags.out),
        tokenizer_(load_tokenizer(out_)),
        file_(out_ / "tokens.bin"),
        training_(file_.training(), options(true)),
        model_(resumed ? nn::load_transformer<T>(out_ / "latest")
                       : first_model(flags, tokenizer_.vocab_size())),
        trainer_(model_, training_, trainer_options(flags)) {
    if (file_.header().vocab != model_.config().vocab_size)
      throw ValueError(detail::text(file_.source(), ": vocab is ", file_.header().vocab,
                                    ", expected ", model_.config().vocab_size, " = the model's"));
    if (file_.validation().size() > 1) validation_.emplace(file_.validation(), options(false));
    trainer_.set_settings(settings_of(flags, out_ / "tokens.bin"));
    if (resumed) trainer_.load(out_ / "latest");
  }

  void train() {
    const index_t first = trainer_.state().step;
    const index_t end =
        flags_.stop_after > 0 ? std::min(flags_.steps, flags_.stop_after) : flags_.steps;
    train::TrainingLog log(out_ / "log.jsonl", first);
    std::fprintf(
        stderr, "%s parameters, %s training tokens, %s\n",
        std::to_string(parameter_count(model_.parameters())).c_str(),
        std::to_string(file_.training().size()).c_str(),
        first > 0 ? ("going on after step " + std::to_string(first)).c_str() : "from the start");
    index_t saved = first;
    train::StepReport last;
    double seconds = 0, tokens = 0;
    {
      Bar bar(first);
      while (trainer_.state().step < end && !stopping) {
        last = trainer_.step();
        log.step(last);
        seconds += last.seconds;
        tokens += static_cast<double>(last.tokens);
        bar.draw(last, end);
        const auto due = [&](index_t every) { return every > 0 && last.step % every == 0; };
        if (due(flags_.validate_every)) validate(log, last.step);
        if (due(flags_.sample_every)) {
          bar.clear();
          sample(last.step);
        }
        if (due(flags_.checkpoint_every)) {
          save();
          saved = last.step;
        }
      }
    }
    const index_t step = trainer_.state().step;
    if (!(flags_.validate_every > 0 && step % flags_.validate_every == 0) && step > first)
      validate(log, step);
    if (saved != step || !fs::exists(out_ / "latest")) save();
    write_file(out_ / "loss.svg",
               train::loss_curve_svg(train::read_training_log(out_ / "log.jsonl"),
                                     detail::text(model_.config().architecture, " ",
                                                  flags_.attention, ", ", step, " steps")));
    if (stopping)
      std::fprintf(stderr, "(stopped after step %lld, saved)\n", static_cast<long long>(step));
    const double rate = seconds > 0 ? tokens / seconds : 0;
    if (flags_.json) {
      json object = {{"step", step},
                     {"tokens", trainer_.state().tokens},
                     {"seconds", seconds},
                     {"tokens_per_second", rate},
                     {"activation_bytes", trainer_.activation_bytes()},
                     {"optimizer_bytes", trainer_.optimizer().bytes()}};
      object["loss"] = std::isfinite(last.loss) && step > first ? json(last.loss) : json(nullptr);
      object["validation_loss"] =
          std::isfinite(validation_loss_) ? json(validation_loss_) : json(nullptr);
      std::cout << object.dump() << std::endl;
    } else if (step > first) {
      std::fprintf(stderr, "step %lld: loss %.4f, validation %.4f, %.0f tokens/s\n",
                   static_cast<long long>(step), last.loss, validation_loss_, rate);
    }
  }

 private:
  train::DatasetOptions options(bool shuffle) const {
    return {.seq = flags_.seq,
            .packing = flags_.packing == "packed" ? train::Packing::packed : train::Packing::padded,
            .shuffle = shuffle,
            .seed = flags_.seed,
            .separator = file_.header().separator};
  }
  static nn::Transformer<T> first_model(const Flags& flags, index_t vocab) {
    nn::Transformer<T> model(model_config(flags, vocab));
    Philox random(flags.seed);
    model.initialize(random);
    return model;
  }

  void save() {
    trainer_.save(out_ / "latest", [&](const fs::path& folder) {
      for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
        if (fs::exists(out_ / name)) write_file(folder / name, read_file(out_ / name));
      write_file(folder / "train.json", flags_json_);
    });
  }

  void validate(train::TrainingLog& log, index_t step) {
    if (!validation_) return;
    const auto start = std::chrono::steady_clock::now();
    const index_t count = std::min(
        flags_.validation_sequences > 0 ? flags_.validation_sequences : validation_->sequences(),
        validation_->sequences());
    const nn::TokenLoss loss = trainer_.evaluate(*validation_, count);
    validation_loss_ = loss.mean();
    log.validation(step, validation_loss_, loss.tokens,
                   std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }

  void sample(index_t step) {
    const auto ids = tokenizer_.encode(flags_.sample_prompt);
    if (ids.empty()) return;
    const index_t room = std::min(static_cast<index_t>(ids.size()) + flags_.sample_tokens,
                                  model_.config().max_position);
    if (static_cast<index_t>(ids.size()) >= room) return;
    Session<T> session(model_, 1, room);
    session.feed({ids});
    GenerateOptions options;
    options.sampling = {.temperature = 0.8, .top_p = 0.95};
    options.max_new_tokens = flags_.sample_tokens;
    std::string text;
    generate(session, options, trainer_.random(), [&](index_t, std::int32_t id) {
      text += tokenizer_.piece(id);
      return true;
    });
    std::fprintf(stderr, "-- step %lld: %s%s\n", static_cast<long long>(step),
                 flags_.sample_prompt.c_str(), to_valid_utf8(text).c_str());
  }

  const Flags& flags_;
  std::string flags_json_;
  fs::path out_;
  Tokenizer tokenizer_;
  train::TokenFile file_;
  train::Dataset training_;
  std::optional<train::Dataset> validation_;
  nn::Transformer<T> model_;
  train::Trainer<T> trainer_;
  double validation_loss_ = std::nan("");
};

/// All flags as a --config file, for the run that resumes.
std::string flags_text(const CLI::App& app) {
  json object = json::object();
  for (const CLI::Option* option : app.get_options()) {
    const std::string name = option->get_lnames().empty() ? "" : option->get_lnames()[0];
    if (name.empty() || name == "help" || name == "config" || name == "resume" || name == "out" ||
        name == "stop-after" || name == "threads" || name == "json" || name == "data")
      continue;
    if (option->count() > 0) {
      const auto& results = option->results();
      object[name] = results.size() == 1 ? json(results[0]) : json(results);
    } else if (const std::string value = option->get_default_str();
               !value.empty() && option->get_items_expected_max() == 1) {
      object[name] = value;  // what this version takes where nothing is given
    }
  }
  return object.dump(2) + "\n";
}

/// Flags that were not given take the value that the checkpoint's run had.
void take_flags(CLI::App& app, const fs::path& path) {
  const json object = json::parse(read_file(path), nullptr, false);
  if (!object.is_object()) throw FormatError(path.string() + ": is no JSON object");
  for (const auto& [name, value] : object.items()) {
    CLI::Option* option = app.get_option_no_throw("--" + name);
    if (option == nullptr) throw FormatError(path.string() + ": has an unknown flag " + name);
    if (option->count() > 0) continue;
    for (const std::string& text : JsonConfig::texts(value, name)) option->add_result(text);
    try {
      option->run_callback();
    } catch (const CLI::Error& e) {
      throw FormatError(path.string() + ": " + e.what());
    }
  }
}

void train_model(CLI::App& app, Flags& flags) {
  std::signal(SIGINT, on_signal);
  std::signal(SIGTERM, on_signal);
  const fs::path out = flags.out, latest = out / "latest";
  std::error_code error;
  fs::create_directories(out, error);
  if (error) throw IoError(out.string() + ": cannot create the folder: " + error.message());
  bool resumed = false;
  if (flags.resume) {
    resumed = recover_folder(latest);
    if (resumed)
      take_flags(app, latest / "train.json");
    else
      std::fputs("no checkpoint yet: beginning from the start\n", stderr);
  } else if (fs::exists(latest) || fs::exists(detail::beside(latest, ".old"))) {
    throw ValueError("--out is " + out.string() +
                     ", which holds a run: --resume goes on with it, another folder begins anew");
  }
  if (flags.threads > 0) set_num_threads(flags.threads);
  if (!resumed) {
    if (flags.data.empty()) throw ValueError("--data is required: text files to learn from");
    model_config(flags, 257);  // refuses flags that do not fit before the data is read
    trainer_options(flags).schedule.check();
    std::vector<std::string> texts;
    for (const std::string& file : flags.data) texts.push_back(read_file(file));
    write_tokens(flags, texts, prepare_tokenizer(flags, texts, out), out);
  }
  const std::string text = flags_text(app);
  if (flags.dtype == "bf16")
    Run<bfloat16>(flags, text, resumed).train();
  else if (flags.dtype == "fp16")
    Run<half>(flags, text, resumed).train();
  else
    Run<float>(flags, text, resumed).train();
}

}  // namespace

int main(int argc, char** argv) {
  Flags f;
  return example::run_program(
      "train", "Trains a language model from text files.", argc, argv, [&](CLI::App& app) {
        const auto add = [&](const char* name, auto& value, const char* what) {
          return app.add_option(name, value, what);
        };
        app.set_config("--config", "", "JSON object of flags by name; flags given here win");
        app.config_formatter(std::make_shared<JsonConfig>());
        app.allow_config_extras(CLI::config_extras_mode::error);
        add("--data", f.data, "Text files to learn from; each is a document of its own")
            ->check(CLI::ExistingFile);
        add("--out", f.out, "Folder of the run")->required();
        app.add_flag("--resume", f.resume, "Go on from the last checkpoint in --out");
        add("--steps", f.steps, "Steps of the schedule")->check(CLI::PositiveNumber);
        add("--stop-after", f.stop_after,
            "Stop after this step, schedule unchanged; 0: run to the end")
            ->check(CLI::NonNegativeNumber);
        add("--checkpoint-every", f.checkpoint_every, "Steps between checkpoints; 0: at the end")
            ->check(CLI::NonNegativeNumber);
        add("--batch", f.batch, "Sequences of a micro-batch")->check(CLI::PositiveNumber);
        add("--seq", f.seq, "Tokens of a sequence")->check(CLI::PositiveNumber);
        add("--accumulate", f.accumulate, "Micro-batches of a step")->check(CLI::PositiveNumber);
        add("--accumulation", f.accumulation,
            "Weigh every token alike (tokens) or every micro-batch (micro)")
            ->check(CLI::IsMember({"tokens", "micro"}));
        add("--lr", f.lr, "Highest learning rate")->check(CLI::NonNegativeNumber);
        add("--min-lr", f.min_lr, "Rate at the end (at most --lr)")->check(CLI::NonNegativeNumber);
        add("--warmup", f.warmup, "Steps of linear warmup")->check(CLI::NonNegativeNumber);
        app.add_flag("--warmup-from-one", f.warmup_from_one, "The first step has a rate above 0");
        add("--schedule", f.schedule, "After the warmup")
            ->check(CLI::IsMember({"constant", "linear", "cosine"}));
        add("--cycles", f.cycles, "Of the cosine; 0.5: one descent")->check(CLI::PositiveNumber);
        add("--weight-decay", f.weight_decay, "Of matrices; norms, biases, embeddings have none")
            ->check(CLI::NonNegativeNumber);
        add("--decay", f.decay, "PATTERN=NUMBER: weight decay of parameters by name; repeatable");
        app.add_flag("--decay-all", f.decay_all, "Weight decay of every parameter");
        add("--beta1", f.beta1, "AdamW")->check(CLI::Range(0.0, 1.0));
        add("--beta2", f.beta2, "AdamW")->check(CLI::Range(0.0, 1.0));
        add("--eps", f.eps, "AdamW")->check(CLI::Range(0.0, 1.0));
        add("--clip", f.clip, "Largest gradient norm; 0: none")->check(CLI::NonNegativeNumber);
        add("--seed", f.seed, "Of weights, data order and samples");
        add("--dtype", f.dtype, "Weights and activations; masters of bf16 and fp16 stay fp32")
            ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
        add("--threads", f.threads, "CPU threads; 0: one per core")->check(CLI::Range(0, 4096));
        app.add_flag("--recompute", f.recompute, "Run blocks again instead of saving activations");
        add("--attention", f.attention, "mha, gqa, mqa, or swa: gqa in a sliding window")
            ->check(CLI::IsMember({"mha", "gqa", "mqa", "swa"}));
        add("--form", f.form, "Family whose config.json the model gets")
            ->check(CLI::IsMember({"llama", "mistral", "qwen3", "gemma3", "gpt"}));
        add("--d-model", f.d_model, "Width of the residual stream")->check(CLI::PositiveNumber);
        add("--layers", f.layers, "Blocks")->check(CLI::PositiveNumber);
        add("--heads", f.heads, "Query heads")->check(CLI::PositiveNumber);
        add("--kv-heads", f.kv_heads, "Key/value heads; 0: a quarter of --heads")
            ->check(CLI::NonNegativeNumber);
        add("--head-dim", f.head_dim, "Width of a head; 0: d-model / heads")
            ->check(CLI::NonNegativeNumber);
        add("--ffn", f.ffn, "Width of the feed-forward; 0: 8/3 of d-model")
            ->check(CLI::NonNegativeNumber);
        add("--window", f.window, "Keys of a windowed layer")->check(CLI::PositiveNumber);
        add("--vocab", f.vocab, "Tokens that --tokenizer bpe learns")
            ->check(CLI::Range(index_t{257}, index_t{1} << 24));
        add("--max-position", f.max_position, "Context that config.json states; 0: --seq")
            ->check(CLI::NonNegativeNumber);
        add("--rope-theta", f.rope_theta, "Base of the rotary embedding")
            ->check(CLI::PositiveNumber);
        app.add_flag("--untied", f.untied, "An output matrix of its own");
        add("--tokenizer", f.tokenizer, "bpe (learned), bytes, or a tokenizer.json or its folder");
        add("--document-separator", f.document_separator, "Text that ends a document in a file");
        add("--packing", f.packing, "Rows run over documents (packed) or hold one (padded)")
            ->check(CLI::IsMember({"packed", "padded"}));
        add("--validation", f.validation, "Share of each file kept for validation")
            ->check(CLI::Range(0.0, 0.9));
        add("--validate-every", f.validate_every, "Steps between validations; 0: at the end")
            ->check(CLI::NonNegativeNumber);
        add("--validation-sequences", f.validation_sequences, "Sequences of a validation; 0: all")
            ->check(CLI::NonNegativeNumber);
        add("--sample-every", f.sample_every, "Steps between sampled texts; 0: none")
            ->check(CLI::NonNegativeNumber);
        add("--sample-prompt", f.sample_prompt, "What a sampled text begins with");
        add("--sample-tokens", f.sample_tokens, "Tokens of a sampled text")
            ->check(CLI::PositiveNumber);
        app.add_flag("--json", f.json, "Print one JSON object at the end");
        return [&] { train_model(app, f); };
      });
}
