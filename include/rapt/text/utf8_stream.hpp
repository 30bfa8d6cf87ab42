// Printing a text while it is being made, token by token.
//
// A token may end in the middle of a UTF-8 character, and a stop string may begin in one token and
// end three later. Utf8Stream passes on what can no longer change and keeps the rest:
//
//   Utf8Stream stream({"\nUser:"});
//   while (!stream.stopped()) std::cout << stream.push(tokenizer.piece(next())) << std::flush;
//   std::cout << stream.finish();
//
// What comes out is always valid UTF-8; bytes that are none become U+FFFD, exactly as
// to_valid_utf8() gives for the whole text. A stop string is not part of the output, nor is
// anything after it; of several the one that is complete first counts (the longest, should two end
// there), so the output does not depend on how the text was cut into tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/text/unicode.hpp"

namespace rapt {

class Utf8Stream {
 public:
  explicit Utf8Stream(std::vector<std::string> stop_strings = {})
      : stops_(std::move(stop_strings)) {
    for (const std::string& stop : stops_)
      if (stop.empty()) throw ValueError("Utf8Stream: a stop string is empty");
  }

  /// Takes bytes and gives the text that is certain now, perhaps none. After a stop string:
  /// nothing.
  std::string push(std::string_view bytes) {
    if (stopped_) return {};
    held_ += bytes;
    std::size_t certain = held_.size();
    const std::size_t stop = find_stop(certain);
    if (stop != std::string::npos) {
      stopped_ = true;
      std::string out = to_valid_utf8(std::string_view(held_).substr(0, stop));
      held_.clear();
      return out;
    }
    return release(certain);
  }

  /// The rest, when no more bytes come: half a character becomes U+FFFD.
  std::string finish() {
    std::string out = to_valid_utf8(held_);
    held_.clear();
    return out;
  }

  /// True once a stop string was seen.
  bool stopped() const { return stopped_; }

 private:
  /// Where the first stop string begins; npos where none is complete, and then in `certain` how
  /// much of the text cannot be part of one.
  std::size_t find_stop(std::size_t& certain) const {
    const std::string_view text = held_;
    std::size_t begin = std::string::npos, end = std::string::npos;
    for (const std::string& stop : stops_) {
      const std::size_t at = text.find(stop);
      if (at == std::string::npos) continue;
      if (at + stop.size() < end || (at + stop.size() == end && at < begin)) {
        begin = at;
        end = at + stop.size();
      }
    }
    if (begin != std::string::npos) return begin;
    for (const std::string& stop : stops_) {
      // The longest end of the text that begins this stop string.
      for (std::size_t n = std::min(stop.size() - 1, text.size()); n > 0; --n)
        if (text.substr(text.size() - n) == std::string_view(stop).substr(0, n)) {
          certain = std::min(certain, text.size() - n);
          break;
        }
    }
    return begin;
  }

  /// Gives the first `certain` bytes, less an unfinished character at their end.
  std::string release(std::size_t certain) {
    // Only the last three bytes can begin a character that `certain` cuts.
    std::size_t end = certain;
    for (std::size_t back = 1; back <= 3 && back <= certain; ++back) {
      const std::size_t at = certain - back;
      if ((held_[at] & 0xC0) == 0x80) continue;
      const detail::Utf8Char c =
          detail::first_char(std::string_view(held_).substr(at, certain - at));
      if (!c.valid && c.truncated && c.length == certain - at) end = at;
      break;
    }
    std::string out = to_valid_utf8(std::string_view(held_).substr(0, end));
    held_.erase(0, end);
    return out;
  }

  std::vector<std::string> stops_;
  std::string held_;
  bool stopped_ = false;
};

}  // namespace rapt
