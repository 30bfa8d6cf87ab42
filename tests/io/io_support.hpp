// What the tests of files share: where data lies, a scratch folder, and a writer of GGUF bytes that
// knows nothing of the reader.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rapt::test {

namespace fs = std::filesystem;

/// The first of $variable, fallbacks... that holds `file`.
inline std::optional<fs::path> find_data(const char* variable, const char* fallback,
                                         const std::string& file) {
  if (const char* folder = std::getenv(variable))
    if (fs::exists(fs::path(folder) / file)) return fs::path(folder) / file;
  if (fs::exists(fs::path(fallback) / file)) return fs::path(fallback) / file;
  return std::nullopt;
}
/// Reference data: $RAPT_GOLDEN or tests/golden.
inline std::optional<fs::path> golden(const std::string& file) {
  return find_data("RAPT_GOLDEN", "tests/golden", file);
}
/// Real models: $RAPT_MODELS or models/.
inline std::optional<fs::path> real_model(const std::string& file) {
  return find_data("RAPT_MODELS", "models", file);
}
/// Files beside the tests; tests run in the root of the sources.
inline fs::path test_data(const std::string& file) { return fs::path("tests/io/data") / file; }

/// A folder of its own for each test, removed afterwards.
class ScratchFolder {
 public:
  ScratchFolder() {
    std::string name = (fs::temp_directory_path() / "rapt_io_test_XXXXXX").string();
    if (!::mkdtemp(name.data())) throw std::runtime_error("cannot create " + name);
    path_ = name;
  }
  ScratchFolder(const ScratchFolder&) = delete;
  ScratchFolder& operator=(const ScratchFolder&) = delete;
  ~ScratchFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  fs::path operator/(const std::string& name) const { return path_ / name; }
  const fs::path& path() const { return path_; }
  /// Names of everything inside.
  std::vector<std::string> content() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(path_))
      names.push_back(entry.path().filename().string());
    return names;
  }

 private:
  fs::path path_;
};

/// Bytes put together by hand.
class Bytes {
 public:
  template <class T>
  requires std::is_arithmetic_v<T> Bytes& put(T value) {
    const auto* p = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), p, p + sizeof value);
    return *this;
  }
  Bytes& text(std::string_view s) {
    const auto* p = reinterpret_cast<const std::byte*>(s.data());
    bytes_.insert(bytes_.end(), p, p + s.size());
    return *this;
  }
  /// A string of GGUF: length, then characters.
  Bytes& string(std::string_view s) { return put(std::uint64_t{s.size()}).text(s); }
  Bytes& pad(std::size_t alignment) {
    while (bytes_.size() % alignment != 0) bytes_.push_back(std::byte{0});
    return *this;
  }
  std::size_t size() const { return bytes_.size(); }
  std::span<const std::byte> span() const { return bytes_; }
  std::vector<std::byte>& data() { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

inline std::span<const std::byte> as_bytes(std::string_view s) {
  return {reinterpret_cast<const std::byte*>(s.data()), s.size()};
}

/// A GGUF file: entries and tensors are collected, then written out.
class GgufBuilder {
 public:
  template <class T>
  GgufBuilder& scalar(const std::string& key, std::uint32_t type, T value) {
    entries_.string(key).put(type).put(value);
    ++entry_count_;
    return *this;
  }
  GgufBuilder& u32(const std::string& key, std::uint32_t value) { return scalar(key, 4, value); }
  GgufBuilder& f32(const std::string& key, float value) { return scalar(key, 6, value); }
  GgufBuilder& string(const std::string& key, std::string_view value) {
    entries_.string(key).put(std::uint32_t{8}).string(value);
    ++entry_count_;
    return *this;
  }
  GgufBuilder& strings(const std::string& key, const std::vector<std::string>& values) {
    entries_.string(key)
        .put(std::uint32_t{9})
        .put(std::uint32_t{8})
        .put(std::uint64_t{values.size()});
    for (const std::string& value : values) entries_.string(value);
    ++entry_count_;
    return *this;
  }
  /// Anything, already encoded: type, then value.
  GgufBuilder& raw_entry(const std::string& key, const Bytes& encoded) {
    entries_.string(key);
    entries_.data().insert(entries_.data().end(), encoded.span().begin(), encoded.span().end());
    ++entry_count_;
    return *this;
  }
  /// ne: the contiguous axis first.
  GgufBuilder& tensor(const std::string& name, const std::vector<std::uint64_t>& ne,
                      std::uint32_t type, std::span<const std::byte> bytes) {
    tensors_.string(name).put(static_cast<std::uint32_t>(ne.size()));
    for (const std::uint64_t n : ne) tensors_.put(n);
    tensors_.put(type).put(std::uint64_t{data_.size()});
    ++tensor_count_;
    data_.data().insert(data_.data().end(), bytes.begin(), bytes.end());
    data_.pad(32);
    return *this;
  }
  GgufBuilder& f32_tensor(const std::string& name, const std::vector<std::uint64_t>& ne,
                          const std::vector<float>& values) {
    return tensor(name, ne, 0, std::as_bytes(std::span(values)));
  }
  /// One tensor's row of the table as it stands, for tests that lie.
  Bytes& table() { return tensors_; }

  Bytes build(std::uint32_t version = 3) const {
    Bytes out;
    out.text("GGUF").put(version).put(tensor_count_).put(entry_count_);
    append(out, entries_);
    append(out, tensors_);
    out.pad(32);
    append(out, data_);
    return out;
  }

  std::uint64_t tensor_count_ = 0, entry_count_ = 0;

 private:
  static void append(Bytes& to, const Bytes& from) {
    to.data().insert(to.data().end(), from.span().begin(), from.span().end());
  }
  Bytes entries_, tensors_, data_;
};

}  // namespace rapt::test
