// A regular expression over UTF-8, and the cutting of text by it.
//
// Tokenizer files are written for Oniguruma (Hugging Face) or Rust; PCRE2 reads the same patterns
// once the few differences are translated:
//
//   \s \S   White_Space of Unicode: PCRE2 would add U+180E, which left that class in Unicode 6.3
//   \w \W   alphabetic characters, marks, decimal digits, connectors (Unicode TS 18); PCRE2 takes
//           letters, numbers of all kinds and the underscore
//   $ ^     at every line, as in Oniguruma's default syntax
//   [a[b]]  nested sets and && do not exist in PCRE2: refused, not misread
//
// Patterns come from files and may be hostile: matching is bounded, and a pattern that needs more
// is a FormatError. \p{...} follows the Unicode version of the PCRE2 installed (10.42: Unicode 14);
// a character assigned later may be cut elsewhere than by the tokenizer's own library.
//
// A Pattern is immutable; a Matcher holds what one thread needs to search with it.
#pragma once

#ifndef PCRE2_CODE_UNIT_WIDTH
#define PCRE2_CODE_UNIT_WIDTH 8
#endif
#include <pcre2.h>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/text/unicode.hpp"

namespace rapt::detail {

/// A stretch of text, [begin, end) in bytes.
struct Span {
  std::size_t begin, end;
};

/// What becomes of the matches of a splitting pattern (the names of Hugging Face).
enum class SplitBehavior { removed, isolated, merged_with_previous, merged_with_next, contiguous };

/// `pattern` in PCRE2's words; `from` names the source in errors.
inline std::string to_pcre2(std::string_view pattern, std::string_view from) {
  constexpr std::string_view space = "\\t-\\r\\x{85}\\p{Z}";
  // Oniguruma's table of Latin-1 counts superscripts and fractions as well, Unicode does not.
  constexpr std::string_view word =
      "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}";
  std::string out;
  bool in_class = false;
  for (std::size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's' || next == 'w') {
        out += in_class ? text(next == 's' ? space : word)
                        : text("[", next == 's' ? space : word, "]");
      } else if ((next == 'S' || next == 'W') && !in_class) {
        out += text("[^", next == 'S' ? space : word, "]");
      } else {
        out += {c, next};
      }
      continue;
    }
    if (in_class && (c == '[' || (c == '&' && pattern.substr(i, 2) == "&&")) &&
        pattern.substr(i, 2) != "[:")
      throw FormatError(text(from, ": the pattern ", pattern,
                             " uses nested sets or &&, which this library does not read"));
    if (in_class && c == '[') {  // a POSIX class: copied whole
      const std::size_t close = pattern.find(":]", i);
      if (close == std::string_view::npos)
        throw FormatError(text(from, ": the pattern ", pattern, " has an open [: class"));
      out += pattern.substr(i, close + 2 - i);
      i = close + 1;
      continue;
    }
    if (c == '[' && !in_class) {
      in_class = true;
      out += c;
      if (i + 1 < pattern.size() && pattern[i + 1] == '^') out += pattern[++i];
      if (i + 1 < pattern.size() && pattern[i + 1] == ']') {  // a first ] is a literal
        ++i;
        out += "\\]";
      }
      continue;
    }
    if (c == ']' && in_class) in_class = false;
    out += c;
  }
  return out;
}

/// A literal string as a pattern.
inline std::string quote_pattern(std::string_view literal) {
  std::string out;
  for (const char c : literal) {
    if (std::string_view("\\^$.|?*+()[]{}-#").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

class Pattern {
 public:
  /// Compiles; `from` names the source in errors.
  Pattern(std::string_view source, std::string_view from) : source_(source) {
    constexpr std::size_t kLongest = 1 << 16;
    if (source.size() > kLongest || valid_prefix(source) != source.size())
      throw FormatError(text(from, ": a pattern of ", source.size(),
                             " bytes, expected UTF-8 of at most 65536 bytes"));
    const std::string translated = to_pcre2(source, from);
    const std::unique_ptr<pcre2_compile_context_8, decltype(&pcre2_compile_context_free_8)> context(
        pcre2_compile_context_create_8(nullptr), &pcre2_compile_context_free_8);
    if (!context) throw std::bad_alloc();
    pcre2_set_newline_8(context.get(), PCRE2_NEWLINE_LF);
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(translated.data()), translated.size(),
                                PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_AUTO_CAPTURE |
                                    PCRE2_NEVER_BACKSLASH_C,
                                &error, &offset, context.get()),
                [](pcre2_code_8* code) { pcre2_code_free_8(code); });
    if (!code_) {
      PCRE2_UCHAR8 why[128];
      pcre2_get_error_message_8(error, why, sizeof why);
      throw FormatError(text(from, ": the pattern ", source, " does not compile: ",
                             reinterpret_cast<const char*>(why), " at offset ", offset));
    }
    // Without a JIT (an unusual processor) the interpreter gives the same matches, more slowly.
    pcre2_jit_compile_8(code_.get(), PCRE2_JIT_COMPLETE);
  }

  const std::string& source() const { return source_; }
  const pcre2_code_8* code() const { return code_.get(); }

 private:
  std::string source_;
  std::shared_ptr<pcre2_code_8> code_;
};

/// One thread's working memory for any number of patterns.
class Matcher {
 public:
  Matcher()
      : data_(pcre2_match_data_create_8(1, nullptr), &pcre2_match_data_free_8),
        context_(pcre2_match_context_create_8(nullptr), &pcre2_match_context_free_8),
        stack_(pcre2_jit_stack_create_8(32 * 1024, 8 * 1024 * 1024, nullptr),
               &pcre2_jit_stack_free_8) {
    if (!data_ || !context_) throw std::bad_alloc();
    if (stack_) pcre2_jit_stack_assign_8(context_.get(), nullptr, stack_.get());
    pcre2_set_match_limit_8(context_.get(), 10'000'000);
    pcre2_set_heap_limit_8(context_.get(), 64 * 1024);  // KiB
  }

  /// The first match in subject[from ...]; subject is valid UTF-8 and `from` a character's start.
  bool find(const Pattern& pattern, std::string_view subject, std::size_t from, Span& match) {
    const auto search = [&](std::uint32_t options) {
      return pcre2_match_8(pattern.code(), reinterpret_cast<PCRE2_SPTR8>(subject.data()),
                           subject.size(), from, options, data_.get(), context_.get());
    };
    int rc = search(PCRE2_NO_UTF_CHECK);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) rc = search(PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT);
    if (rc == PCRE2_ERROR_NOMATCH) return false;
    if (rc < 0) {
      PCRE2_UCHAR8 why[128];
      pcre2_get_error_message_8(rc, why, sizeof why);
      throw FormatError(text("tokenizer: the pattern ", pattern.source(),
                             " fails on this text: ", reinterpret_cast<const char*>(why)));
    }
    const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer_8(data_.get());
    // \K in a lookahead can put the start behind the end.
    match = {bounds[0] < bounds[1] ? bounds[0] : bounds[1], bounds[1]};
    if (match.begin < from) match.begin = from;
    return true;
  }

 private:
  std::unique_ptr<pcre2_match_data_8, decltype(&pcre2_match_data_free_8)> data_;
  std::unique_ptr<pcre2_match_context_8, decltype(&pcre2_match_context_free_8)> context_;
  std::unique_ptr<pcre2_jit_stack_8, decltype(&pcre2_jit_stack_free_8)> stack_;
};

/// Cuts piece `whole` of `text` and appends the parts to `out`; empty parts are left out.
/// `invert`: what lies between the matches plays their role.
inline void split_by(const Pattern& pattern, SplitBehavior behavior, bool invert,
                     std::string_view text, Span whole, Matcher& matcher, std::vector<Span>& out) {
  struct Part {
    Span span;
    bool match;
  };
  const bool simple = behavior == SplitBehavior::isolated;  // by far the most common
  std::vector<Part> parts;
  const auto emit = [&](std::size_t begin, std::size_t end, bool match) {
    if (begin == end) return;
    if (simple)
      out.push_back({begin, end});
    else
      parts.push_back({{begin, end}, match != invert});
  };
  // Runs are searched one by one, so that a look-behind cannot read a neighbouring piece, and bytes
  // that are no UTF-8 become parts of their own.
  std::size_t run_begin = whole.begin;
  for_each_run(text.substr(whole.begin, whole.end - whole.begin),
               [&](std::string_view run, bool valid) {
                 std::size_t done = 0, from = 0;
                 Span match{};
                 while (valid && from <= run.size() && matcher.find(pattern, run, from, match)) {
                   emit(run_begin + done, run_begin + match.begin, false);
                   emit(run_begin + match.begin, run_begin + match.end, true);
                   done = match.end;
                   from = match.end;
                   // An empty match cuts without taking anything; step over one character to go on.
                   if (match.begin == match.end) {
                     if (from == run.size()) break;
                     from += first_char(run.substr(from)).length;
                   }
                 }
                 emit(run_begin + done, run_begin + run.size(), false);
                 run_begin += run.size();
               });
  if (simple) return;

  switch (behavior) {
    case SplitBehavior::removed:
      for (const Part& part : parts)
        if (!part.match) out.push_back(part.span);
      break;
    case SplitBehavior::merged_with_previous: {
      bool previous_match = false;
      const std::size_t first = out.size();
      for (const Part& part : parts) {
        if (part.match && !previous_match && out.size() > first)
          out.back().end = part.span.end;
        else
          out.push_back(part.span);
        previous_match = part.match;
      }
      break;
    }
    case SplitBehavior::merged_with_next: {
      bool pending = false;  // the last one of `out` is a match that waits for its successor
      for (const Part& part : parts) {
        if (pending && !part.match)
          out.back().end = part.span.end;
        else
          out.push_back(part.span);
        pending = part.match;
      }
      break;
    }
    case SplitBehavior::contiguous: {
      bool first = true, last_match = false;
      for (const Part& part : parts) {
        if (!first && part.match == last_match)
          out.back().end = part.span.end;
        else
          out.push_back(part.span);
        first = false;
        last_match = part.match;
      }
      break;
    }
    case SplitBehavior::isolated:
      break;
  }
}

}  // namespace rapt::detail
