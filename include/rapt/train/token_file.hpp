// A text as token ids on disk, mapped and read in place.
//
//   [ header, 64 bytes ][ ids: tokens x width bytes ]                       all little-endian
//   header  magic "rapttok\0" · version u32 = 1 · width u32 = 2 or 4 (bytes of an id)
//           tokens u64 · validation_begin u64 · vocab u64 · separator i64 (-1: none)
//           tokenizer u64 (fingerprint of the tokenizer.json that made it) · zeros
//
//   ids [0, validation_begin) are for training, the rest for validation
//   a separator begins a document: it belongs to the document after it
//
//   TokenFileWriter out("tokens.bin", {.vocab = 1024, .separator = 0});
//   out.write(ids); ... out.begin_validation(); out.write(more); out.finish();
//   TokenFile file("tokens.bin");     file.training()[i]     file.validation().size()
//
// A file is not trusted: the header is checked against the file's size when it is opened, and every
// id against `vocab` when it is read. Errors: FormatError naming the file, the field and its value;
// IoError.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"
#include "rapt/io/atomic_file.hpp"
#include "rapt/io/mapped_file.hpp"

namespace rapt::train {

/// FNV-1a of 64 bits: tells one tokenizer or text from another, not friend from foe.
inline std::uint64_t fingerprint(std::string_view bytes) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const char c : bytes) {
    hash ^= static_cast<unsigned char>(c);
    hash *= 0x100000001B3u;
  }
  return hash;
}

struct TokenFileHeader {
  index_t tokens = 0;
  index_t validation_begin = 0;
  index_t vocab = 0;
  std::int32_t separator = -1;  // -1: none
  std::uint64_t tokenizer = 0;  // its fingerprint
  index_t width() const { return vocab > 65536 ? 4 : 2; }
};

namespace detail {

inline constexpr std::size_t kTokenHeader = 64;
inline constexpr char kTokenMagic[8] = {'r', 'a', 'p', 't', 't', 'o', 'k', '\0'};

inline std::string token_header_bytes(const TokenFileHeader& header) {
  std::string out(kTokenHeader, '\0');
  std::size_t at = 0;
  const auto put = [&](auto value) {
    std::memcpy(out.data() + at, &value, sizeof value);
    at += sizeof value;
  };
  std::memcpy(out.data(), kTokenMagic, sizeof kTokenMagic);
  at = sizeof kTokenMagic;
  put(std::uint32_t{1});
  put(static_cast<std::uint32_t>(header.width()));
  put(static_cast<std::uint64_t>(header.tokens));
  put(static_cast<std::uint64_t>(header.validation_begin));
  put(static_cast<std::uint64_t>(header.vocab));
  put(std::int64_t{header.separator});
  put(header.tokenizer);
  return out;
}

}  // namespace detail

/// A stretch of a token file.
class TokenSpan {
 public:
  TokenSpan() = default;
  TokenSpan(const std::byte* data, index_t size, index_t width, index_t vocab,
            const std::string* source)
      : data_(data), size_(size), width_(width), vocab_(vocab), source_(source) {}
  /// Ids in memory, checked when they are read.
  TokenSpan(std::span<const std::int32_t> ids, index_t vocab)
      : data_(reinterpret_cast<const std::byte*>(ids.data())),
        size_(static_cast<index_t>(ids.size())),
        width_(4),
        vocab_(vocab) {}

  index_t size() const { return size_; }
  index_t vocab() const { return vocab_; }

  /// Id i. Throws FormatError naming an id outside the vocabulary.
  std::int32_t operator[](index_t i) const {
    std::uint32_t id = 0;
    if (width_ == 2) {
      std::uint16_t narrow = 0;
      std::memcpy(&narrow, data_ + 2 * i, 2);
      id = narrow;
    } else {
      std::memcpy(&id, data_ + 4 * i, 4);
    }
    if (id >= static_cast<std::uint64_t>(vocab_)) refuse(i, id);
    return static_cast<std::int32_t>(id);
  }

 private:
  [[noreturn]] void refuse(index_t i, std::uint32_t id) const {
    throw FormatError(rapt::detail::text(source_ ? *source_ : "tokens", ": token ", i, " is ", id,
                                         ", expected 0 to ", vocab_ - 1));
  }

  const std::byte* data_ = nullptr;
  index_t size_ = 0, width_ = 2, vocab_ = 0;
  const std::string* source_ = nullptr;
};

class TokenFile {
 public:
  explicit TokenFile(const std::filesystem::path& path) : file_(path), source_(path.string()) {
    const auto bytes = file_.bytes();
    if (bytes.size() < detail::kTokenHeader ||
        std::memcmp(bytes.data(), detail::kTokenMagic, sizeof detail::kTokenMagic) != 0)
      fail("is no token file of rapt");
    std::size_t at = sizeof detail::kTokenMagic;
    const auto take = [&](auto value) {
      std::memcpy(&value, bytes.data() + at, sizeof value);
      at += sizeof value;
      return value;
    };
    const auto version = take(std::uint32_t{});
    const auto width = take(std::uint32_t{});
    const auto tokens = take(std::uint64_t{});
    const auto validation = take(std::uint64_t{});
    const auto vocab = take(std::uint64_t{});
    const auto separator = take(std::int64_t{});
    header_.tokenizer = take(std::uint64_t{});
    using rapt::detail::text;
    if (version != 1) fail(text("version is ", version, ", expected 1"));
    if (vocab < 1 || vocab > (std::uint64_t{1} << 31))
      fail(text("vocab is ", vocab, ", expected 1 to 2^31"));
    header_.vocab = static_cast<index_t>(vocab);
    if (width != static_cast<std::uint32_t>(header_.width()))
      fail(
          text("width is ", width, ", expected ", header_.width(), " for a vocabulary of ", vocab));
    const std::uint64_t room = bytes.size() - detail::kTokenHeader;
    if (room % width != 0 || room / width != tokens)
      fail(text("holds ", room, " bytes of ids, expected ", tokens, " x ", width,
                " (is the file cut short?)"));
    if (validation > tokens)
      fail(text("validation_begin is ", validation, ", expected at most tokens = ", tokens));
    if (separator < -1 || separator >= header_.vocab)
      fail(text("separator is ", separator, ", expected -1 to ", header_.vocab - 1));
    header_.tokens = static_cast<index_t>(tokens);
    header_.validation_begin = static_cast<index_t>(validation);
    header_.separator = static_cast<std::int32_t>(separator);
  }
  TokenFile(const TokenFile&) = delete;
  TokenFile& operator=(const TokenFile&) = delete;

  const TokenFileHeader& header() const { return header_; }
  const std::string& source() const { return source_; }

  /// They live as long as the file.
  TokenSpan training() const { return part(0, header_.validation_begin); }
  TokenSpan validation() const { return part(header_.validation_begin, header_.tokens); }

 private:
  TokenSpan part(index_t begin, index_t end) const {
    return {file_.bytes().data() + detail::kTokenHeader + begin * header_.width(), end - begin,
            header_.width(), header_.vocab, &source_};
  }
  [[noreturn]] void fail(std::string_view what) const {
    throw FormatError(rapt::detail::text(source_, ": ", what));
  }

  MappedFile file_;
  std::string source_;
  TokenFileHeader header_;
};

/// Writes a token file front to back; it appears whole or not at all.
class TokenFileWriter {
 public:
  /// `header`: vocab, separator and tokenizer; the counts are the writer's.
  TokenFileWriter(const std::filesystem::path& path, TokenFileHeader header)
      : path_(path), header_(header) {
    if (header.vocab < 1 || header.vocab > (index_t{1} << 31))
      throw ValueError(
          rapt::detail::text("token file: vocab is ", header.vocab, ", expected 1 to 2^31"));
    header_.tokens = 0;
    header_.validation_begin = -1;
  }

  void write(std::span<const std::int32_t> ids) {
    for (const std::int32_t id : ids) {
      if (id < 0 || id >= header_.vocab)
        throw ValueError(
            rapt::detail::text("token file: id is ", id, ", expected 0 to ", header_.vocab - 1));
      const auto narrow = static_cast<std::uint16_t>(id);
      if (header_.width() == 2)
        bytes_.append(reinterpret_cast<const char*>(&narrow), 2);
      else
        bytes_.append(reinterpret_cast<const char*>(&id), 4);
    }
    header_.tokens += static_cast<index_t>(ids.size());
  }

  /// What follows is for validation.
  void begin_validation() { header_.validation_begin = header_.tokens; }

  const TokenFileHeader& finish() {
    if (header_.validation_begin < 0) header_.validation_begin = header_.tokens;
    AtomicFile file(path_);
    file.write(detail::token_header_bytes(header_));
    file.write(bytes_);
    file.commit();
    return header_;
  }

 private:
  std::filesystem::path path_;
  TokenFileHeader header_;
  std::string bytes_;  // two or four bytes a token: less than the text they came from
};

}  // namespace rapt::train
