// Cutting a text into the pieces that a tokenizer's model sees one by one, and the split patterns
// that GGUF files name but do not contain.
//
// A chain of patterns cuts what the one before left. Matches and what lies between them are pieces,
// so a pattern need not cover every character; bytes that are no UTF-8 are pieces of their own.
//
// The patterns are data of the models: each family's tokenizer.json states them.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/text/pattern.hpp"
#include "rapt/text/tokenizer_data.hpp"

namespace rapt {

/// The pattern of GPT-2, which Hugging Face's ByteLevel applies too.
inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

/// The chain of split patterns behind a GGUF name (tokenizer.ggml.pre).
/// Throws FormatError on a name it does not know: a wrong cut would not fail, only tokenize badly.
inline std::vector<std::string> split_patterns(std::string_view name) {
  const auto is = [&](auto... names) { return ((name == names) || ...); };
  const std::string gpt2(kGpt2Pattern);
  // Contractions, then words with one leading sign, `digits` numbers, signs, blanks.
  const auto gpt4 = [](std::string_view digits, std::string_view letters = "\\p{L}",
                       std::string_view not_signs = "\\s\\p{L}\\p{N}") {
    return detail::text("(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[", letters, "]+|",
                        digits, "| ?[^", not_signs, "]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+");
  };
  // Words that begin a capital of their own (o200k and its relatives).
  const auto cased = [](std::string_view contraction, std::string_view digits) {
    const std::string upper = "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]",
                      lower = "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]", lead = "[^\\r\\n\\p{L}\\p{N}]?";
    return detail::text(lead, upper, "*", lower, "+", contraction, "|", lead, upper, "+", lower,
                        "*", contraction, "|", digits,
                        "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+");
  };
  constexpr std::string_view kContraction = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?";

  if (is("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling",
         "roberta-bpe", "gigachat", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de",
         "jina-v2-code", "a.x-4.0", "mellum", "modern-bert", "exaone4"))
    return {gpt2};
  if (is("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"))
    return {"\\p{N}", gpt2};
  if (is("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
         "dbrx", "smaug-bpe", "chatglm-bpe", "glm4"))
    return {gpt4("\\p{N}{1,3}")};
  if (is("qwen2", "stablelm2", "deepseek-r1-qwen", "kormo", "megrez", "hunyuan", "solar-open",
         "grok-2"))
    return {gpt4("\\p{N}")};
  if (is("qwen35")) return {gpt4("\\p{N}", "\\p{L}\\p{M}", "\\s\\p{L}\\p{M}\\p{N}")};
  if (is("deepseek-v3", "hunyuan-dense", "joyai-llm"))
    return {"\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?"
            "[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"};
  if (is("deepseek-llm"))
    return {"[\\r\\n]",
            "\\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-"
            "ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚ"
            "Ḁ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\\x{1f7d}ᾀ-ᾴᾶ-ᾼ\\x{1fbe}ῂ-ῄῆ-ῌῐ-\\x{1fd3}ῖ-\\x{1fdb}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-"
            "ℓℕℙ-ℝℤ"
            "\\x{2126}ℨ\\x{212a}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-"
            "ｚ"
            "\\x{10400}-\\x{1044f}\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}"
            "\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}\\x{1e900}-\\x{1e943}]+",
            "\\s?[!-/:-~！-／：-～‘-‟　-。]+",
            "\\s+$",
            "[一-龥ࠀ-一가-퟿]+",
            "\\p{N}+"};
  if (is("deepseek-coder"))
    return {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+", "\\p{N}"};
  if (is("falcon")) return {"[\\p{P}$+<=>\\^~|`]+", gpt2, "[0-9][0-9][0-9]"};
  if (is("default")) return {"[\\p{P}$+<=>\\^~|]+", gpt2, "\\p{N}+", "[0-9][0-9][0-9]"};
  if (is("tekken")) return {cased("", "\\p{N}")};
  if (is("gpt-4o", "llama4", "minimax-m2")) return {cased(kContraction, "\\p{N}{1,3}")};
  if (is("bloom", "poro-chat", "gpt3-finnish")) return {" ?[^(\\s|.,!?…。，、।۔،)]+"};
  if (is("viking")) return {" ?[^(\\s|.,!?…。，、।۔،)]+", "\\p{N}"};
  throw FormatError(detail::text("tokenizer: tokenizer.ggml.pre is ", name,
                                 ", expected a known split pattern (gpt-2, smollm, llama-bpe, "
                                 "qwen2, deepseek-v3, tekken, ...)"));
}

namespace detail {

/// A text and its cuts; steps that insert characters rewrite both.
struct Pieces {
  std::string text;
  std::vector<Span> spans;
  std::string_view operator[](std::size_t i) const {
    return std::string_view(text).substr(spans[i].begin, spans[i].end - spans[i].begin);
  }
};

class PreTokenizer {
 public:
  PreTokenizer() = default;
  PreTokenizer(const std::vector<PreTokenizerStep>& steps, std::string_view from) {
    for (const PreTokenizerStep& step : steps) {
      const bool cuts = step.kind == Kind::split;
      const bool meta = step.kind == Kind::metaspace && step.split;
      steps_.push_back({step, std::nullopt});
      if (cuts || meta)
        steps_.back().pattern.emplace(cuts ? std::string_view(step.pattern) : kMetaspace, from);
    }
  }

  /// Cuts `text`. `at_start`: no token stands before it.
  Pieces operator()(std::string text, bool at_start, Matcher& matcher) const {
    Pieces pieces{std::move(text), {}};
    if (!pieces.text.empty()) pieces.spans.push_back({0, pieces.text.size()});
    std::vector<Span> cut;
    for (const Compiled& compiled : steps_) {
      const PreTokenizerStep& step = compiled.step;
      if (step.kind == Kind::prefix_space) {
        rewrite(pieces, [](std::string_view piece, std::size_t, std::string& out) {
          if (!piece.starts_with(' ')) out += ' ';
          out += piece;
        });
        continue;
      }
      if (step.kind == Kind::metaspace) {
        using Prepend = PreTokenizerStep::Prepend;
        rewrite(pieces, [&](std::string_view piece, std::size_t i, std::string& out) {
          const bool prepend = step.prepend == Prepend::always ||
                               (step.prepend == Prepend::first && at_start && i == 0);
          if (prepend && !piece.starts_with(' ') && !piece.starts_with(kMetaspace))
            out += kMetaspace;
          out += replace_all(piece, " ", kMetaspace);
        });
        if (!step.split) continue;
      }
      const bool meta = step.kind == Kind::metaspace;
      cut.clear();
      for (const Span& span : pieces.spans)
        split_by(*compiled.pattern, meta ? SplitBehavior::merged_with_next : step.behavior,
                 !meta && step.invert, pieces.text, span, matcher, cut);
      pieces.spans.swap(cut);
    }
    return pieces;
  }

 private:
  using Kind = PreTokenizerStep::Kind;
  struct Compiled {
    PreTokenizerStep step;
    std::optional<Pattern> pattern;
  };

  template <class F>
  static void rewrite(Pieces& pieces, F f) {
    Pieces fresh;
    fresh.text.reserve(pieces.text.size() + pieces.spans.size());
    for (std::size_t i = 0; i < pieces.spans.size(); ++i) {
      const std::size_t begin = fresh.text.size();
      f(pieces[i], i, fresh.text);
      fresh.spans.push_back({begin, fresh.text.size()});
    }
    pieces = std::move(fresh);
  }

  std::vector<Compiled> steps_;
};

}  // namespace detail
}  // namespace rapt
