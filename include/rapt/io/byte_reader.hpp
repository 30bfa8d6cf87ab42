// Reads little-endian values off a span of untrusted bytes. Every step is checked against what is
// left, with arithmetic that cannot overflow; a step too far throws FormatError naming the file,
// the thing being read and the offset.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "rapt/core/error.hpp"

namespace rapt::detail {

static_assert(std::endian::native == std::endian::little,
              "model files are little-endian and are read by copying memory");

/// a * b, or false where it passes 2^64.
constexpr bool multiply_checked(std::uint64_t a, std::uint64_t b, std::uint64_t* product) {
  if (b != 0 && a > UINT64_MAX / b) return false;
  *product = a * b;
  return true;
}

class ByteReader {
 public:
  /// `source` begins every message: a path.
  ByteReader(std::span<const std::byte> bytes, std::string_view source)
      : bytes_(bytes), source_(source) {}

  std::size_t offset() const { return offset_; }
  std::size_t remaining() const { return bytes_.size() - offset_; }

  std::span<const std::byte> take(std::uint64_t size, std::string_view what) {
    if (size > remaining())
      throw FormatError(text(source_, ": ", what, " at offset ", offset_, " needs ", size,
                             " bytes, but ", remaining(), " are left"));
    const auto taken = bytes_.subspan(offset_, static_cast<std::size_t>(size));
    offset_ += taken.size();
    return taken;
  }

  template <class T>
  requires std::is_trivially_copyable_v<T> T take_value(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
  std::string_view source_;
  std::size_t offset_ = 0;
};

inline std::string_view as_text(std::span<const std::byte> bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A name from a file as it can be shown in a message: cut, and without control bytes.
inline std::string printable(std::string_view s, std::size_t limit = 80) {
  std::string out;
  for (const char c : s.substr(0, limit)) {
    const auto u = static_cast<unsigned char>(c);
    out += u < 0x20 || u == 0x7f ? '?' : c;
  }
  if (s.size() > limit) out += "...";
  return out;
}

}  // namespace rapt::detail
