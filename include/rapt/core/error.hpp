// What rapt throws. Every message names the operation, the argument, its value and what was wanted:
//
//   attention: v is [2, 96, 2, 64], expected [2, 128, 2, 64] = [batch, kv_len, kv_heads, value_dim]
//
//   ShapeError     std::invalid_argument   an extent or a rank does not fit
//   ValueError     std::invalid_argument   a number, a name or a flag does not fit
//   CapacityError  std::length_error       a cache is full; it is left as it was
//   FormatError    std::runtime_error      a file's content is broken or unsupported
//   IoError        std::runtime_error      the system refused to open, read, map or write
//   DeviceError    std::runtime_error      a GPU call failed, or there is no device
#pragma once

#include <concepts>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <string_view>

#include "rapt/core/config.hpp"

namespace rapt {

struct ShapeError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
struct ValueError : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};
struct CapacityError : std::length_error {
  using std::length_error::length_error;
};
struct FormatError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct IoError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
struct DeviceError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {

inline std::string to_text(std::string_view s) { return std::string(s); }
inline std::string to_text(const char* s) { return s; }
inline std::string to_text(bool b) { return b ? "true" : "false"; }
template <std::integral I>
std::string to_text(I i) {
  return std::to_string(i);
}
template <std::floating_point F>
std::string to_text(F f) {
  char buffer[40];
  std::snprintf(buffer, sizeof buffer, "%.9g", static_cast<double>(f));
  return buffer;
}

/// The parts one after the other: text("head_dim is ", 7, ", expected an even number").
template <class... Parts>
std::string text(const Parts&... parts) {
  std::string out;
  (out.append(to_text(parts)), ...);
  return out;
}

}  // namespace detail
}  // namespace rapt
