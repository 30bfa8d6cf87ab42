// Walks through untrusted JSON text without building a tree: enough for the header of a
// safetensors file and for the index of a sharded one, whose outline is fixed. It needs no
// package, so caches and modules can save themselves wherever rapt compiles.
//
//   JsonCursor json(header, path);
//   json.object([&](std::string key) { ... json.integer() ... });
//
// Strict JSON (RFC 8259): no comments, no trailing commas, UTF-8 strings, numbers read only where
// an integer is due; nesting of skipped values is limited. Errors: FormatError "<source>: JSON at
// byte <n>: <what>".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "rapt/core/error.hpp"

namespace rapt::detail {

/// `s` as a JSON string, quotes included. Bytes above 0x7f are passed through.
inline std::string json_quote(std::string_view s) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : s) {
    const auto u = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (u < 0x20) {
      out += "\\u00";
      out += kHex[u >> 4];
      out += kHex[u & 15];
    } else {
      out += c;
    }
  }
  return out + '"';
}

/// Whether `s` is well-formed UTF-8: shortest form, no surrogates, at most U+10FFFF.
inline bool is_utf8(std::string_view s) {
  for (std::size_t i = 0; i < s.size();) {
    const auto lead = static_cast<unsigned char>(s[i]);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    const std::size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || s.size() - i < length) return false;
    std::uint32_t code = lead & (0x7fu >> length);
    for (std::size_t j = 1; j < length; ++j) {
      const auto next = static_cast<unsigned char>(s[i + j]);
      if ((next & 0xc0) != 0x80) return false;
      code = code << 6 | (next & 0x3fu);
    }
    if (length == 3 && (code < 0x800 || (code >= 0xd800 && code < 0xe000))) return false;
    if (length == 4 && (code < 0x10000 || code > 0x10ffff)) return false;
    i += length;
  }
  return true;
}

class JsonCursor {
 public:
  JsonCursor(std::string_view text, std::string_view source) : text_(text), source_(source) {}

  /// Calls f(key) for every member; f must consume the value.
  template <class F>
  void object(F f) {
    expect('{');
    if (accept('}')) return;
    do {
      std::string key = string();
      expect(':');
      f(std::move(key));
    } while (accept(','));
    expect('}');
  }

  /// Calls f() for every element; f must consume it.
  template <class F>
  void array(F f) {
    expect('[');
    if (accept(']')) return;
    do {
      f();
    } while (accept(','));
    expect(']');
  }

  std::string string() {
    expect('"');
    std::string out;
    for (;;) {
      if (at_ >= text_.size()) fail("a string that does not end");
      const char c = text_[at_++];
      if (c == '"') break;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character inside a string");
      if (c == '\\') {
        escape(out);
      } else {
        out += c;
      }
    }
    if (!is_utf8(out)) fail("a string that is not UTF-8");
    return out;
  }

  /// An integer from 0 to 2^63 - 1, without sign, fraction or exponent.
  std::uint64_t natural() {
    space();
    const std::size_t begin = at_;
    std::uint64_t value = 0;
    while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') {
      const auto digit = static_cast<std::uint64_t>(text_[at_++] - '0');
      if (value > (INT64_MAX - digit) / 10) fail("an integer beyond 2^63 - 1");
      value = value * 10 + digit;
    }
    if (at_ == begin) fail("expected an integer that is not negative");
    if (text_[begin] == '0' && at_ - begin > 1) fail("an integer with a leading zero");
    if (at_ < text_.size() && (text_[at_] == '.' || text_[at_] == 'e' || text_[at_] == 'E'))
      fail("expected an integer, found a fraction");
    return value;
  }

  /// Steps over a value of any kind.
  void skip() { skip(0); }

  /// Steps over a value of any kind and returns its text, a string with its quotes.
  std::string_view raw() {
    space();
    const std::size_t begin = at_;
    skip(0);
    return text_.substr(begin, at_ - begin);
  }

  /// Nothing but white space may follow.
  void end() {
    space();
    if (at_ < text_.size()) fail("something after the end of the value");
  }

  [[noreturn]] void fail(std::string_view what) const {
    throw FormatError(detail::text(source_, ": JSON at byte ", at_, ": ", what));
  }

 private:
  static constexpr int kDepth = 64;

  void space() {
    while (at_ < text_.size() &&
           (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
      ++at_;
  }

  bool accept(char c) {
    space();
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }

  void expect(char c) {
    if (!accept(c)) fail(std::string("expected '") + c + "'");
  }

  std::uint32_t hex4() {
    if (text_.size() - at_ < 4) fail("an escape that does not end");
    std::uint32_t value = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                               : -1;
      if (digit < 0) fail("an escape with a digit that is not hexadecimal");
      value = value << 4 | static_cast<std::uint32_t>(digit);
    }
    return value;
  }

  void escape(std::string& out) {
    if (at_ >= text_.size()) fail("an escape that does not end");
    switch (const char c = text_[at_++]) {
      case '"':
      case '\\':
      case '/':
        out += c;
        return;
      case 'b':
        out += '\b';
        return;
      case 'f':
        out += '\f';
        return;
      case 'n':
        out += '\n';
        return;
      case 'r':
        out += '\r';
        return;
      case 't':
        out += '\t';
        return;
      case 'u':
        break;
      default:
        fail("an unknown escape");
    }
    std::uint32_t code = hex4();
    if (code >= 0xd800 && code < 0xdc00) {  // the first half of a surrogate pair
      if (text_.substr(at_, 2) != "\\u") fail("half of a surrogate pair");
      at_ += 2;
      const std::uint32_t low = hex4();
      if (low < 0xdc00 || low >= 0xe000) fail("half of a surrogate pair");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }  // a lone second half becomes three bytes that is_utf8 refuses
    const auto byte = [&out](std::uint32_t b) { out += static_cast<char>(b); };
    if (code < 0x80) {
      byte(code);
    } else if (code < 0x800) {
      byte(0xc0 | code >> 6);
      byte(0x80 | (code & 0x3f));
    } else if (code < 0x10000) {
      byte(0xe0 | code >> 12);
      byte(0x80 | (code >> 6 & 0x3f));
      byte(0x80 | (code & 0x3f));
    } else {
      byte(0xf0 | code >> 18);
      byte(0x80 | (code >> 12 & 0x3f));
      byte(0x80 | (code >> 6 & 0x3f));
      byte(0x80 | (code & 0x3f));
    }
  }

  void skip(int depth) {
    if (depth > kDepth) fail("values nested too deeply");
    space();
    if (at_ >= text_.size()) fail("the text ends where a value is expected");
    switch (text_[at_]) {
      case '{':
        object([&](const std::string&) { skip(depth + 1); });
        return;
      case '[':
        array([&] { skip(depth + 1); });
        return;
      case '"':
        string();
        return;
      default:
        skip_scalar();
    }
  }

  void skip_scalar() {
    for (const std::string_view word : {"true", "false", "null"}) {
      if (text_.substr(at_, word.size()) != word) continue;
      at_ += word.size();
      return;
    }
    const auto digits = [&] {
      const std::size_t first = at_;
      while (at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9') ++at_;
      if (at_ == first) fail("expected a value");
    };
    if (at_ < text_.size() && text_[at_] == '-') ++at_;
    digits();
    if (at_ < text_.size() && text_[at_] == '.') {
      ++at_;
      digits();
    }
    if (at_ < text_.size() && (text_[at_] == 'e' || text_[at_] == 'E')) {
      ++at_;
      if (at_ < text_.size() && (text_[at_] == '+' || text_[at_] == '-')) ++at_;
      digits();
    }
  }

  std::string_view text_, source_;
  std::size_t at_ = 0;
};

}  // namespace rapt::detail
