// Text normalization, step by step, as tokenizer files ask for it (NormalizerStep).
//
// Steps see valid UTF-8 only; bytes that are none pass between them untouched. Case and composition
// follow utf8proc's Unicode tables. Lower case is by character, without context: a capital sigma at
// a word's end becomes the ordinary small one, as in the reference implementations.
//
// Source: Unicode Standard Annex 15 (normalization forms); Devlin et al. 2018, arXiv:1810.04805,
// and its tokenization.py (clean_text, ideographs, accents).
#pragma once

#include <utf8proc.h>

#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/text/pattern.hpp"
#include "rapt/text/tokenizer_data.hpp"
#include "rapt/text/unicode.hpp"

namespace rapt::detail {

inline bool is_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

inline bool is_letter_or_number(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return false;
  }
}

/// Control, format, private or surrogate: what BERT's clean_text drops.
inline bool is_other(char32_t c) {
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(c))) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CS:
      return true;
    default:
      return false;
  }
}

/// The ideographs that BERT separates by blanks.
inline bool is_cjk(char32_t c) {
  return (c >= 0x4E00 && c <= 0x9FFF) || (c >= 0x3400 && c <= 0x4DBF) ||
         (c >= 0x20000 && c <= 0x2A6DF) || (c >= 0x2A700 && c <= 0x2B73F) ||
         (c >= 0x2B740 && c <= 0x2B81F) || (c >= 0x2B820 && c <= 0x2CEAF) ||
         (c >= 0xF900 && c <= 0xFAFF) || (c >= 0x2F800 && c <= 0x2FA1F);
}

/// utf8proc's rewriting of valid UTF-8.
inline std::string map_utf8(std::string_view text, int options) {
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t length =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                   static_cast<utf8proc_option_t>(options | UTF8PROC_STABLE));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(mapped, &std::free);
  if (length == UTF8PROC_ERROR_NOMEM) throw std::bad_alloc();
  if (length < 0)
    throw FormatError(detail::text("tokenizer: normalization fails: ", utf8proc_errmsg(length)));
  return std::string(reinterpret_cast<const char*>(mapped), static_cast<std::size_t>(length));
}

/// f(out, c) for every character c of valid UTF-8.
template <class F>
std::string map_chars(std::string_view text, F f) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const Utf8Char c = first_char(text);
    f(out, c.code);
    text.remove_prefix(c.length);
  }
  return out;
}

class Normalizer {
 public:
  Normalizer() = default;
  explicit Normalizer(const std::vector<NormalizerStep>& steps) {
    for (const NormalizerStep& step : steps) {
      steps_.push_back({step, std::nullopt});
      if (step.kind == NormalizerStep::Kind::replace)
        steps_.back().pattern.emplace(step.pattern, "tokenizer: normalizer Replace");
    }
  }

  bool empty() const { return steps_.empty(); }

  std::string operator()(std::string_view input, Matcher& matcher) const {
    std::string text(input);
    for (const Compiled& compiled : steps_) text = apply(compiled, std::move(text), matcher);
    return text;
  }

 private:
  using Kind = NormalizerStep::Kind;
  struct Compiled {
    NormalizerStep step;
    std::optional<Pattern> pattern;
  };

  static std::string apply(const Compiled& compiled, std::string text, Matcher& matcher) {
    const NormalizerStep& step = compiled.step;
    if (step.kind == Kind::prepend) return text.empty() ? text : step.content + text;
    if (step.kind == Kind::strip) return strip(std::move(text), step.left, step.right);
    if (valid_prefix(text) == text.size()) return apply_to_run(compiled, text, matcher);
    std::string out;
    for_each_run(text, [&](std::string_view run, bool valid) {
      if (valid)
        out += apply_to_run(compiled, run, matcher);
      else
        out += run;
    });
    return out;
  }

  static std::string apply_to_run(const Compiled& compiled, std::string_view text,
                                  Matcher& matcher) {
    switch (compiled.step.kind) {
      case Kind::nfc:
        return map_utf8(text, UTF8PROC_COMPOSE);
      case Kind::nfd:
        return map_utf8(text, UTF8PROC_DECOMPOSE);
      case Kind::nfkc:
        return map_utf8(text, UTF8PROC_COMPOSE | UTF8PROC_COMPAT);
      case Kind::nfkd:
        return map_utf8(text, UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT);
      case Kind::lowercase:
        return map_chars(text, [](std::string& out, char32_t c) {
          append_utf8(out, c == 0x130 ? U'i'
                                      : static_cast<char32_t>(
                                            utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
          if (c == 0x130) append_utf8(out, 0x307);  // the one letter whose lower case is two
        });
      case Kind::strip_accents:
        return map_chars(text, [](std::string& out, char32_t c) {
          if (utf8proc_category(static_cast<utf8proc_int32_t>(c)) != UTF8PROC_CATEGORY_MN)
            append_utf8(out, c);
        });
      case Kind::clean_text:
        return map_chars(text, [](std::string& out, char32_t c) {
          if (c == 0xFFFD || (is_other(c) && c != '\t' && c != '\n' && c != '\r')) return;
          append_utf8(out, is_white_space(c) ? U' ' : c);
        });
      case Kind::space_chinese_chars:
        return map_chars(text, [](std::string& out, char32_t c) {
          if (is_cjk(c)) out += ' ';
          append_utf8(out, c);
          if (is_cjk(c)) out += ' ';
        });
      case Kind::replace: {
        std::string out;
        std::size_t done = 0, from = 0;
        Span match{};
        while (from <= text.size() && matcher.find(*compiled.pattern, text, from, match)) {
          out += text.substr(done, match.begin - done);
          out += compiled.step.content;
          done = from = match.end;
          if (match.begin == match.end) {
            if (from == text.size()) break;
            from += first_char(text.substr(from)).length;
          }
        }
        out += text.substr(done);
        return out;
      }
      case Kind::strip:
      case Kind::prepend:
        break;  // done by apply(): they see the text's ends, not a run's
    }
    return std::string(text);
  }

  static std::string strip(std::string text, bool left, bool right) {
    std::size_t begin = 0, end = text.size();
    while (left && begin < end) {
      const Utf8Char c = first_char(std::string_view(text).substr(begin, end - begin));
      if (!c.valid || !is_white_space(c.code)) break;
      begin += c.length;
    }
    while (right && begin < end) {
      std::size_t start = end - 1;  // back to the first byte of the last character
      while (start > begin && end - start < 4 && (text[start] & 0xC0) == 0x80) --start;
      const Utf8Char c = first_char(std::string_view(text).substr(start, end - start));
      if (!c.valid || c.length != end - start || !is_white_space(c.code)) break;
      end = start;
    }
    return text.substr(begin, end - begin);
  }

  std::vector<Compiled> steps_;
};

}  // namespace rapt::detail
