// Text generation with a language model.
//
//   generate --model model.gguf --prompt "The capital of France is" --max-new-tokens 16
//   generate --model folder --prompt A --prompt B --json      a batch: one JSON object a prompt
//   generate --model model.gguf --chat                        a conversation on the terminal
//
// Only the generated text goes to stdout, streamed as it is made; never half a UTF-8 character.
// Ctrl-C ends the text where it is. --stats tells what the cache is worth.
#include "rapt/text/generate.hpp"

#include <atomic>
#include <csignal>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "model.hpp"
#include "rapt/text/chat.hpp"
#include "rapt/text/load_tokenizer.hpp"
#include "rapt/text/utf8_stream.hpp"

namespace {

using namespace rapt;
using Ids = std::vector<std::int32_t>;

std::atomic<bool> interrupted{false};

/// The first Ctrl-C ends the text, a second one the program.
extern "C" void on_interrupt(int) {
  interrupted = true;
  std::signal(SIGINT, SIG_DFL);
}
void catch_interrupt() {
  interrupted = false;
  std::signal(SIGINT, on_interrupt);
}

struct Flags {
  std::string model, prompt_file, logits_file, system;
  std::vector<std::string> prompts, stops;
  std::vector<std::int32_t> ids;
  SamplingParams sampling{.temperature = 0.7, .top_p = 0.95};
  index_t max_new_tokens = 128, context = 0;
  std::uint64_t seed = 42;
  bool special = false, no_cache = false, chat = false, stats = false, json = false;
  example::ComputeFlags compute;
};

void check_utf8(const std::string& flag, const std::string& text) {
  const std::size_t valid = detail::valid_prefix(text);
  if (valid != text.size())
    throw ValueError(detail::text(flag, " is no valid UTF-8 from byte ", valid, " on"));
}

double per_second(index_t count, double seconds) {
  return seconds > 0 ? static_cast<double>(count) / seconds : 0.0;
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// One run of the model over some prompts.
template <class T, class B>
class Run {
 public:
  Run(const Flags& flags, const WeightFile& file, B backend)
      : flags_(flags),
        tokenizer_(
            load_tokenizer(file.gguf() ? std::filesystem::path(flags.model) : file.folder())),
        model_(example::load_model<T>(
            file, backend,
            flags.logits_file.empty() ? flags.compute.blocks() : QuantizedWeights::off)),
        random_(flags.seed) {
    options_.sampling = flags.sampling;
    options_.max_new_tokens = flags.max_new_tokens;
    options_.cancel = &interrupted;
    const auto ends = tokenizer_.end_of_generation();
    options_.end_ids.assign(ends.begin(), ends.end());
    options_.end_ids.insert(options_.end_ids.end(), file.config().eos_ids.begin(),
                            file.config().eos_ids.end());
  }

  void once() {
    with_cache([this](auto element) { this->template once_with<decltype(element)>(); });
  }
  /// A conversation: the cache keeps what was said, so each turn feeds only what is new.
  void chat() {
    with_cache([this](auto element) { this->template chat_with<decltype(element)>(); });
  }

 private:
  /// f(E{}) with the element type of the cache: that of the activations, but half where weights are
  /// quantized blocks and activations fp32.
  template <class F>
  void with_cache(F&& f) {
    if constexpr (std::is_same_v<T, float> && MultipliesBlocks<B, T>)
      if (model_.is_quantized()) return f(half{});
    f(T{});
  }

  template <class E>
  void once_with() {
    const std::vector<Ids> prompts = prompt_ids();
    index_t longest = 0;
    for (const Ids& ids : prompts) {
      if (ids.empty()) throw ValueError("the prompt is empty, expected at least one token");
      longest = std::max(longest, static_cast<index_t>(ids.size()));
    }
    const index_t room = capacity(longest);
    if (!flags_.logits_file.empty()) save_logits(prompts);
    Session<T, B, E> session(model_, static_cast<index_t>(prompts.size()), room, !flags_.no_cache);
    catch_interrupt();

    const double start = now();
    std::vector<std::string> texts(prompts.size());
    GenerateResult result;
    result.ids.resize(prompts.size());
    double prefill_seconds = 0;
    if (flags_.max_new_tokens > 0) {
      {
        example::Progress progress("reading the prompt");
        session.feed(prompts, [&](index_t done, index_t total) { progress(done, total); });
      }
      prefill_seconds = now() - start;
      std::vector<Utf8Stream> streams(prompts.size(), Utf8Stream(flags_.stops));
      const bool stream = !flags_.json && prompts.size() == 1;
      const auto print = [&](std::size_t row, const std::string& piece) {
        texts[row] += piece;
        if (stream) std::cout << piece << std::flush;
      };
      result = generate(session, options_, random_, [&](index_t row, std::int32_t id) {
        const auto at = static_cast<std::size_t>(row);
        print(at, streams[at].push(tokenizer_.piece(id)));
        return !streams[at].stopped();
      });
      for (std::size_t row = 0; row < prompts.size(); ++row) print(row, streams[row].finish());
    }
    report(prompts, texts, result, session, prefill_seconds);
  }

  template <class E>
  void chat_with() {
    ChatSession chat(tokenizer_, ChatFormat::detect(tokenizer_.chat_template()), flags_.system);
    const index_t room = capacity(1, /*whole=*/true);
    Session<T, B, E> session(model_, 1, room, !flags_.no_cache);
    const bool terminal = ::isatty(0) != 0;
    std::string line;
    for (;;) {
      if (terminal) std::fputs("> ", stderr);
      std::signal(SIGINT, SIG_DFL);  // nothing is being said: Ctrl-C leaves
      if (!std::getline(std::cin, line)) break;
      check_utf8("the message", line);
      Ids ids = chat.user_turn(line);
      if (session.length() + static_cast<index_t>(ids.size()) >= room) {
        std::fprintf(stderr, "(the context of %lld tokens is full: the conversation begins anew)\n",
                     static_cast<long long>(room));
        session.reset();
        chat.reset();
        ids = chat.user_turn(line);
      }
      catch_interrupt();
      session.feed({ids});
      Utf8Stream stream(flags_.stops);
      const GenerateResult result =
          generate(session, options_, random_, [&](index_t, std::int32_t id) {
            std::cout << stream.push(tokenizer_.piece(id)) << std::flush;
            return !stream.stopped();
          });
      std::cout << stream.finish() << std::endl;
      // After a limit, a stop or Ctrl-C the last token was printed but not fed yet.
      if (result.last_unfed && session.length() < room) session.feed({{result.ids[0].back()}});
    }
    if (terminal) std::fputs("\n", stderr);
  }

  std::vector<Ids> prompt_ids() const {
    if (!flags_.ids.empty()) {
      for (const std::int32_t id : flags_.ids)
        if (id < 0 || id >= model_.config().vocab_size)
          throw ValueError(
              detail::text("--ids has ", id, ", expected 0 to ", model_.config().vocab_size - 1));
      return {flags_.ids};
    }
    std::vector<std::string> texts = flags_.prompts;
    if (!flags_.prompt_file.empty()) {
      const MappedFile file(flags_.prompt_file);
      texts.emplace_back(detail::as_text(file.bytes()));
    }
    std::vector<Ids> out;
    for (const std::string& text : texts) {
      if (flags_.chat) {
        ChatSession chat(tokenizer_, ChatFormat::detect(tokenizer_.chat_template()), flags_.system);
        out.push_back(chat.user_turn(text));
      } else {
        out.push_back(tokenizer_.encode(text, {.parse_special = flags_.special, .add_bos = true}));
      }
    }
    return out;
  }

  /// Tokens to make room for: prompt and output, as far as the model's positions go.
  index_t capacity(index_t prompt, bool whole = false) const {
    const index_t most = model_.config().max_position;
    index_t limit = flags_.context > 0 ? flags_.context : most;
    if (whole && flags_.context == 0) limit = most > 0 ? std::min<index_t>(most, 4096) : 4096;
    if (limit > 0 && prompt > limit)
      throw CapacityError(detail::text("the prompt has ", prompt, " tokens, expected at most ",
                                       limit, ", the ",
                                       flags_.context > 0 ? "--context" : "model's context"));
    if (whole) return limit;
    const index_t wanted = prompt + flags_.max_new_tokens;
    return limit > 0 ? std::min(limit, wanted) : wanted;
  }

  void save_logits(const std::vector<Ids>& prompts) const {
    if (prompts.size() != 1)
      throw ValueError(detail::text("--logits takes one prompt, not ", prompts.size()));
    const Ids& ids = prompts[0];
    const auto n = static_cast<index_t>(ids.size());
    SafetensorsWriter out(
        flags_.logits_file,
        {{"ids", DType::i32, {n}}, {"logits", DType::f32, {n, model_.config().vocab_size}}});
    out.write(std::span<const std::int32_t>(ids));
    example::Progress progress("logits");
    visit_logits(model_, ids, [&](index_t first, auto z) {
      out.write(as_const_view(to(Cpu{}, z)));
      progress(first + z.extent(0), n);
    });
    out.finish();
  }

  template <class E>
  void report(const std::vector<Ids>& prompts, const std::vector<std::string>& texts,
              const GenerateResult& result, Session<T, B, E>& session, double prefill_seconds) {
    const auto rows = static_cast<index_t>(prompts.size());
    index_t prompt_tokens = 0;
    for (const Ids& ids : prompts) prompt_tokens += static_cast<index_t>(ids.size());
    const double prefill_rate = per_second(prompt_tokens, prefill_seconds);
    // The first token comes out of the prefill; each step after it runs the model once.
    const double decode_rate =
        per_second(rows * std::max<index_t>(result.steps - 1, 0), result.seconds);
    for (std::size_t row = 0; row < prompts.size(); ++row) {
      if (flags_.json) {
        const nlohmann::json object = {{"ids", prompts[row]},
                                       {"generated_ids", result.ids[row]},
                                       {"text", texts[row]},
                                       {"prefill_seconds", prefill_seconds},
                                       {"decode_seconds", result.seconds},
                                       {"prefill_tokens_per_second", prefill_rate},
                                       {"tokens_per_second", decode_rate},
                                       {"cache_bytes", session.cache_bytes()}};
        std::cout << object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
      } else if (prompts.size() > 1) {
        std::cout << "[" << row << "] " << texts[row] << "\n";
      } else if (flags_.max_new_tokens > 0) {
        std::cout << "\n";
      }
    }
    std::cout << std::flush;
    if (!std::cout) throw std::runtime_error("writing to stdout failed");
    if (result.cancelled) std::fputs("(interrupted)\n", stderr);
    if (result.full)
      std::fprintf(stderr, "(ended at the context's %lld tokens)\n",
                   static_cast<long long>(session.capacity()));
    if (flags_.stats && session.length() > 0) print_stats(session, prefill_rate, decode_rate);
  }

  template <class E>
  void print_stats(Session<T, B, E>& session, double prefill_rate, double decode_rate) {
    std::fprintf(stderr, "prefill   %10.1f tokens/s\ndecode    %10.1f tokens/s %s\n", prefill_rate,
                 decode_rate, session.cached() ? "with the cache" : "without a cache");
    if (!session.cached()) return;
    // What a token costs without a cache at this length: the whole text, once.
    std::vector<Ids> whole;
    for (index_t row = 0; row < session.batch(); ++row)
      whole.emplace_back(session.text(row).begin(), session.text(row).end());
    Session<T, B, E> uncached(model_, session.batch(), session.capacity(), false);
    const double start = now();
    uncached.feed(whole);
    const double rate = per_second(session.batch(), now() - start);
    std::fprintf(stderr,
                 "          %10.1f tokens/s without it, at %lld tokens\n"
                 "weights   %10lld bytes read for a token%s\n"
                 "cache     %10lld bytes, %lld of them read for the next token\n",
                 rate, static_cast<long long>(session.length()),
                 static_cast<long long>(model_.weight_bytes_per_token()),
                 model_.is_quantized() ? ", in quantized blocks" : "",
                 static_cast<long long>(session.cache_bytes()),
                 static_cast<long long>(session.cache_bytes_read_per_token()));
  }

  const Flags& flags_;
  Tokenizer tokenizer_;
  nn::Transformer<T, B> model_;
  Philox random_;
  GenerateOptions options_;
};

}  // namespace

int main(int argc, char** argv) {
  Flags flags;
  return example::run_program(
      "generate", "Generates text with a language model.", argc, argv, [&](CLI::App& app) {
        app.add_option("--model", flags.model,
                       "GGUF file or Hugging Face folder; default: the model that comes with rapt");
        auto* prompt =
            app.add_option("--prompt", flags.prompts, "Text to continue; several make a batch")
                ->take_all()
                ->expected(1);
        auto* prompt_file =
            app.add_option("--prompt-file", flags.prompt_file, "The text is in this file")
                ->excludes(prompt);
        app.add_option("--ids", flags.ids, "Token ids instead of a text: 1,2,3")
            ->delimiter(',')
            ->excludes(prompt)
            ->excludes(prompt_file);
        app.add_flag("--special", flags.special, "Parse special tokens in the text");
        app.add_flag("--chat", flags.chat,
                     "Speak in the model's chat format; without a prompt, a conversation");
        app.add_option("--system", flags.system, "The system turn of --chat");
        app.add_option("--max-new-tokens", flags.max_new_tokens, "Tokens to generate at most")
            ->check(CLI::NonNegativeNumber);
        app.add_option("--temperature", flags.sampling.temperature, "0: greedy")
            ->check(CLI::NonNegativeNumber);
        app.add_option("--top-k", flags.sampling.top_k, "Keep the k best tokens; 0: all")
            ->check(CLI::NonNegativeNumber);
        app.add_option("--top-p", flags.sampling.top_p, "Keep the best tokens of this probability")
            ->check(CLI::Range(0.0, 1.0));
        app.add_option("--min-p", flags.sampling.min_p,
                       "Keep tokens of this share of the best one's probability")
            ->check(CLI::Range(0.0, 1.0));
        app.add_option("--repetition-penalty", flags.sampling.repetition_penalty, "1: none")
            ->check(CLI::PositiveNumber);
        app.add_option("--seed", flags.seed, "Of the random draws");
        app.add_option("--stop", flags.stops, "End the text before this string; repeatable")
            ->take_all()
            ->expected(1);
        app.add_option("--context", flags.context,
                       "Tokens of prompt and output at most; 0: what the model can")
            ->check(CLI::NonNegativeNumber);
        app.add_option("--logits", flags.logits_file,
                       "Save the prompt's ids and logits to this safetensors file");
        app.add_flag("--no-cache", flags.no_cache, "Run the whole text again for every token");
        app.add_flag("--stats", flags.stats, "Speed and cache bytes on stderr");
        app.add_flag("--json", flags.json, "Print one JSON object a prompt");
        flags.compute.declare(app);
        return [&] {
          for (const std::string& text : flags.prompts) check_utf8("--prompt", text);
          for (const std::string& text : flags.stops) check_utf8("--stop", text);
          const bool conversation =
              flags.chat && flags.prompts.empty() && flags.prompt_file.empty() && flags.ids.empty();
          if (!conversation && flags.prompts.empty() && flags.prompt_file.empty() &&
              flags.ids.empty())
            throw ValueError("--prompt, --prompt-file, --ids or --chat is required");
          if (flags.model.empty()) flags.model = example::embedded_model();
          flags.compute.apply();
          const WeightFile file = WeightFile::open(flags.model);
          example::with_backend(flags.compute, [&](auto element, auto backend) {
            Run<decltype(element), decltype(backend)> run(flags, file, backend);
            if (conversation)
              run.chat();
            else
              run.once();
          });
        };
      });
}
