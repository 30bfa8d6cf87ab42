// UTF-8 by hand, and the byte alphabet of GPT-2.
//
// Text that reaches a tokenizer is bytes: usually UTF-8, sometimes a file cut in the middle of a
// character, sometimes no text at all. Everything here therefore works on "runs": stretches of
// valid UTF-8, on which Unicode rules apply, and stretches that are not, which pass through
// untouched.
//
// Valid is what Unicode says: shortest form, no surrogates, at most U+10FFFF. An invalid stretch is
// cut as Python and browsers cut it (the "maximal subpart" of Unicode 15, table 3-8), so a decoder
// prints as many U+FFFD as they do.
//
// Source: The Unicode Standard 15.0, section 3.9; Radford et al. 2019 (GPT-2), encoder.py, for the
// alphabet.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace rapt::detail {

struct Utf8Char {
  char32_t code;       // meaningless when not valid
  std::size_t length;  // bytes to step over; at least 1 unless the text is empty
  bool valid;
  bool truncated;  // not valid, but only because the text ends: more bytes could complete it
};

/// The character at the start of `text`.
inline Utf8Char first_char(std::string_view text) {
  if (text.empty()) return {0, 0, false, true};
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return {lead, 1, true, false};
  if (lead < 0xC2 || lead > 0xF4) return {0, 1, false, false};
  const std::size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte's range rules out overlong forms, surrogates and codes above U+10FFFF.
  const unsigned low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  char32_t code = lead & (0xFFu >> (length + 1));
  for (std::size_t i = 1; i < length; ++i) {
    if (i == text.size()) return {0, i, false, true};
    const unsigned next = byte(i);
    if (next < (i == 1 ? low : 0x80) || next > (i == 1 ? high : 0xBF)) return {0, i, false, false};
    code = (code << 6) | (next & 0x3F);
  }
  return {code, length, true, false};
}

inline void append_utf8(std::string& out, char32_t code) {
  const auto put = [&](unsigned byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | (code >> 6));
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | (code >> 12));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | (code >> 18));
    put(0x80 | ((code >> 12) & 0x3F));
    put(0x80 | ((code >> 6) & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

/// Bytes at the start of `text` that are valid UTF-8.
inline std::size_t valid_prefix(std::string_view text) {
  std::size_t at = 0;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Char c = first_char(text.substr(at));
    if (!c.valid) break;
    at += c.length;
  }
  return at;
}

/// Calls f(run, is_valid) for each run of `text`, in order; runs are not empty.
template <class F>
void for_each_run(std::string_view text, F f) {
  while (!text.empty()) {
    const std::size_t good = valid_prefix(text);
    if (good > 0) f(text.substr(0, good), true);
    std::size_t bad = good;
    while (bad < text.size()) {
      const Utf8Char c = first_char(text.substr(bad));
      if (c.valid) break;
      bad += c.length;
    }
    if (bad > good) f(text.substr(good, bad - good), false);
    text.remove_prefix(bad);
  }
}

/// A byte of text as a symbol of GPT-2's alphabet: printable Latin-1 stands for itself, the other
/// 68 bytes are U+0100 ... U+0143 in order, so that a vocabulary file shows no blanks or controls.
inline const std::array<char32_t, 256>& byte_alphabet() {
  static const auto table = [] {
    std::array<char32_t, 256> t{};
    char32_t next = 256;
    for (unsigned b = 0; b < 256; ++b) {
      const bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      t[b] = prints ? char32_t{b} : next++;
    }
    return t;
  }();
  return table;
}

/// The byte that a symbol of the alphabet stands for, or -1.
inline int byte_of_symbol(char32_t symbol) {
  static const auto table = [] {
    std::array<std::int16_t, 0x144> t{};
    t.fill(-1);
    for (unsigned b = 0; b < 256; ++b) t[byte_alphabet()[b]] = static_cast<std::int16_t>(b);
    return t;
  }();
  return symbol < table.size() ? table[symbol] : -1;
}

/// Bytes written in the alphabet: what a vocabulary file holds.
inline std::string to_byte_alphabet(std::string_view bytes) {
  std::string out;
  for (const char c : bytes) append_utf8(out, byte_alphabet()[static_cast<unsigned char>(c)]);
  return out;
}

/// The bytes of a token written in the alphabet; false when it holds a character outside it.
inline bool from_byte_alphabet(std::string_view token, std::string& bytes) {
  bytes.clear();
  while (!token.empty()) {
    const Utf8Char c = first_char(token);
    const int byte = c.valid ? byte_of_symbol(c.code) : -1;
    if (byte < 0) return false;
    bytes.push_back(static_cast<char>(byte));
    token.remove_prefix(c.length);
  }
  return true;
}

/// `text` with every occurrence of `from` replaced.
inline std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  if (from.empty()) return std::string(text);
  std::string out;
  out.reserve(text.size());
  for (;;) {
    const std::size_t at = text.find(from);
    out.append(text.substr(0, at));
    if (at == std::string_view::npos) return out;
    out.append(to);
    text.remove_prefix(at + from.size());
  }
}

inline constexpr std::string_view kMetaspace = "\xE2\x96\x81";  // U+2581, SentencePiece's blank

}  // namespace rapt::detail

namespace rapt {

/// `bytes` as valid UTF-8: what is none becomes U+FFFD, as many as Python's errors="replace" gives.
inline std::string to_valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    const std::size_t good = detail::valid_prefix(bytes);
    out.append(bytes.substr(0, good));
    bytes.remove_prefix(good);
    if (bytes.empty()) break;
    out.append("\xEF\xBF\xBD");
    bytes.remove_prefix(detail::first_char(bytes).length);
  }
  return out;
}

}  // namespace rapt
