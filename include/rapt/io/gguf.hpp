// GGUF: the model files of llama.cpp. Metadata, a table of tensors, and their blocks, read in
// place.
//
//   "GGUF" | version u32 | tensors u64 | metadata entries u64
//   entries: key string | type u32 | value          string = length u64, bytes; array = element
//                                                   type u32, count u64, elements
//   tensors: name string | rank u32 | ne u64 × rank | type u32 | offset u64
//   padding to `general.alignment` (32) | data, each tensor on a multiple of the alignment
//
// ne[0] is the contiguous axis, so a matrix that maps 576 inputs to 192 outputs is ne = [576, 192];
// TensorInfo::shape is the reverse, [192, 576] = [out, in], as Hugging Face has it.
//
//   GgufFile file = GgufFile::open("model.gguf");
//   file.integer("llama.block_count")          file.find("tokenizer.chat_template")->string()
//   file.read("blk.0.attn_q.weight", std::span<float>(w));     // dequantised
//
// Versions 2 and 3, little-endian. A file is not trusted: counts are checked against the bytes that
// are left before anything is allocated, arithmetic on sizes is checked, tensors may not overlap or
// reach past the end, names may not repeat. Errors: FormatError naming the file, the entry and the
// value. A tensor of a type that rapt cannot read (ggml_blocks.hpp) is refused by name when read.
//
// Source: github.com/ggml-org/ggml, docs/gguf.md.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/io/byte_reader.hpp"
#include "rapt/io/ggml_blocks.hpp"
#include "rapt/io/mapped_file.hpp"
#include "rapt/io/safetensors.hpp"

namespace rapt {

enum class GgufType : std::uint32_t {
  u8 = 0,
  i8 = 1,
  u16 = 2,
  i16 = 3,
  u32 = 4,
  i32 = 5,
  f32 = 6,
  boolean = 7,
  string = 8,
  array = 9,
  u64 = 10,
  i64 = 11,
  f64 = 12,
};

namespace detail {

struct GgufTypeInfo {
  std::string_view name;
  std::size_t bytes;  // of one value; the least where the size varies
};
inline constexpr std::array<GgufTypeInfo, 13> kGgufTypes = {{{"UINT8", 1},
                                                             {"INT8", 1},
                                                             {"UINT16", 2},
                                                             {"INT16", 2},
                                                             {"UINT32", 4},
                                                             {"INT32", 4},
                                                             {"FLOAT32", 4},
                                                             {"BOOL", 1},
                                                             {"STRING", 8},
                                                             {"ARRAY", 12},
                                                             {"UINT64", 8},
                                                             {"INT64", 8},
                                                             {"FLOAT64", 8}}};

inline std::string_view gguf_type_name(GgufType type) {
  return kGgufTypes[static_cast<std::size_t>(type)].name;
}

}  // namespace detail

/// One metadata value; it borrows the file's bytes.
class GgufValue {
 public:
  GgufType type() const { return type_; }
  bool is_array() const { return type_ == GgufType::array; }
  /// Of an array.
  GgufType element_type() const { return element_type_; }
  std::uint64_t count() const { return count_; }

  /// Any integer type or bool; a float type only where its value is whole.
  std::int64_t integer() const {
    std::int64_t out;
    if (!to_integer(type_, bytes_.data(), &out)) throw_type("an integer");
    return out;
  }
  double number() const {
    double out;
    if (!to_number(type_, bytes_.data(), &out)) throw_type("a number");
    return out;
  }
  bool boolean() const {
    if (type_ != GgufType::boolean) throw_type("a BOOL");
    return bytes_[0] != std::byte{0};
  }
  std::string_view string() const {
    if (type_ != GgufType::string) throw_type("a STRING");
    return detail::as_text(bytes_);
  }

  /// The elements of an array of integers, numbers or strings.
  std::vector<std::int64_t> integers() const {
    return elements<std::int64_t>(to_integer, "integers");
  }
  std::vector<double> numbers() const { return elements<double>(to_number, "numbers"); }
  std::vector<std::string_view> strings() const {
    if (!is_array() || element_type_ != GgufType::string) throw_type("an array of STRING");
    std::vector<std::string_view> out;
    out.reserve(static_cast<std::size_t>(count_));  // the parser has seen 8 bytes of each
    detail::ByteReader reader(bytes_, key_);
    for (std::uint64_t i = 0; i < count_; ++i) {
      const auto length = reader.take_value<std::uint64_t>("a string");
      out.push_back(detail::as_text(reader.take(length, "a string")));
    }
    return out;
  }

 private:
  friend class GgufFile;

  static bool to_integer(GgufType type, const std::byte* p, std::int64_t* out) {
    const auto load = [&](auto value) {
      std::memcpy(&value, p, sizeof value);
      if constexpr (std::is_same_v<decltype(value), std::uint64_t>)
        if (value > INT64_MAX) return false;
      *out = static_cast<std::int64_t>(value);
      return true;
    };
    switch (type) {
      case GgufType::u8:
        return load(std::uint8_t{});
      case GgufType::i8:
        return load(std::int8_t{});
      case GgufType::u16:
        return load(std::uint16_t{});
      case GgufType::i16:
        return load(std::int16_t{});
      case GgufType::u32:
        return load(std::uint32_t{});
      case GgufType::i32:
        return load(std::int32_t{});
      case GgufType::u64:
        return load(std::uint64_t{});
      case GgufType::i64:
        return load(std::int64_t{});
      case GgufType::boolean:
        *out = *p != std::byte{0};
        return true;
      case GgufType::f32:
      case GgufType::f64: {
        double number;
        if (!to_number(type, p, &number) || std::abs(number) > 0x1p53 ||
            number != std::floor(number))
          return false;
        *out = static_cast<std::int64_t>(number);
        return true;
      }
      case GgufType::string:
      case GgufType::array:
        break;
    }
    return false;
  }

  static bool to_number(GgufType type, const std::byte* p, double* out) {
    if (type == GgufType::f32) {
      float value;
      std::memcpy(&value, p, sizeof value);
      *out = value;
      return true;
    }
    if (type == GgufType::f64) {
      std::memcpy(out, p, sizeof *out);
      return true;
    }
    std::int64_t integer;
    if (type == GgufType::boolean || !to_integer(type, p, &integer)) return false;
    *out = static_cast<double>(integer);
    return true;
  }

  template <class T, class F>
  std::vector<T> elements(F convert, std::string_view what) const {
    if (!is_array()) throw_type(detail::text("an array of ", what));
    std::vector<T> out(static_cast<std::size_t>(count_));
    const std::size_t step = detail::kGgufTypes[static_cast<std::size_t>(element_type_)].bytes;
    for (std::size_t i = 0; i < out.size(); ++i)
      if (!convert(element_type_, bytes_.data() + i * step, &out[i]))
        throw_type(detail::text("an array of ", what));
    return out;
  }

  [[noreturn]] void throw_type(std::string_view expected) const {
    throw FormatError(detail::text(
        detail::printable(key_), " is ", is_array() ? "an array of " : "a ",
        detail::gguf_type_name(is_array() ? element_type_ : type_), ", expected ", expected));
  }

  std::string_view key_;
  GgufType type_ = GgufType::u8;
  GgufType element_type_ = GgufType::u8;
  std::uint64_t count_ = 0;
  std::span<const std::byte> bytes_;  // a scalar, a string's characters, or an array's elements
};

class GgufFile {
 public:
  static GgufFile open(const std::filesystem::path& path) {
    GgufFile file(path.string());
    file.mapping_ = std::make_shared<const MappedFile>(path);
    file.parse(file.mapping_->bytes());
    return file;
  }

  /// Reads bytes that the caller keeps alive. `source` begins every error message.
  static GgufFile from_bytes(std::span<const std::byte> bytes, std::string source) {
    GgufFile file(std::move(source));
    file.parse(bytes);
    return file;
  }

  /// Whether bytes begin like a GGUF file.
  static bool has_magic(std::span<const std::byte> bytes) {
    return detail::as_text(bytes.first(std::min<std::size_t>(bytes.size(), 4))) == "GGUF";
  }

  const std::string& source() const { return source_; }
  std::uint32_t version() const { return version_; }
  std::uint64_t alignment() const { return alignment_; }

  // ---- metadata ----

  /// Keys in the order of the file.
  const std::vector<std::string>& keys() const { return keys_; }
  /// Null where there is no such key.
  const GgufValue* find(std::string_view key) const {
    const auto found = values_.find(std::string(key));
    return found == values_.end() ? nullptr : &found->second;
  }
  /// Throws FormatError naming a missing key.
  const GgufValue& value(std::string_view key) const {
    if (const GgufValue* v = find(key)) return *v;
    throw FormatError(detail::text(source_, ": has no metadata ", detail::printable(key)));
  }
  // The value of a key, named in the error where it has another type; with a second argument, that
  // where the key is missing.
  std::int64_t integer(std::string_view key) const { return ask(key, &GgufValue::integer); }
  std::int64_t integer(std::string_view key, std::int64_t otherwise) const {
    return find(key) ? integer(key) : otherwise;
  }
  double number(std::string_view key) const { return ask(key, &GgufValue::number); }
  double number(std::string_view key, double otherwise) const {
    return find(key) ? number(key) : otherwise;
  }
  bool boolean(std::string_view key) const { return ask(key, &GgufValue::boolean); }
  bool boolean(std::string_view key, bool otherwise) const {
    return find(key) ? boolean(key) : otherwise;
  }
  std::string_view string(std::string_view key) const { return ask(key, &GgufValue::string); }
  std::string_view string(std::string_view key, std::string_view otherwise) const {
    return find(key) ? string(key) : otherwise;
  }

  // ---- tensors ----

  /// Names in the order of the file.
  const std::vector<std::string>& names() const { return names_; }
  bool has(std::string_view name) const { return index_.count(std::string(name)) != 0; }
  const TensorInfo& info(std::string_view name) const { return tensors_[find_tensor(name)]; }
  const GgmlTypeInfo& type(std::string_view name) const { return *types_[find_tensor(name)]; }

  /// Copies all elements into `out`, dequantised and converted to T.
  template <class T>
  void read(std::string_view name, std::span<T> out) const {
    const TensorInfo& t = info(name);
    if (static_cast<index_t>(out.size()) != t.elements())
      throw ShapeError(detail::text("read: out has ", out.size(), " elements, expected ",
                                    t.elements(), " of tensor ", detail::printable(t.name), " ",
                                    detail::shape_text(t.shape)));
    read_blocks(name, t.bytes, out.data());
  }

  /// Copies rows [begin, begin + n) of the contiguous axis, counted over all other axes;
  /// out.size() = n rows.
  template <class T>
  void read_rows(std::string_view name, index_t begin, std::span<T> out) const {
    const TensorInfo& t = info(name);
    const index_t row = t.shape.empty() ? 1 : t.shape.back();
    const index_t rows = row > 0 ? t.elements() / row : 0;
    const auto size = static_cast<index_t>(out.size());
    const index_t count = row > 0 ? size / row : 0;
    if (begin < 0 || count * row != size || begin > rows || count > rows - begin)
      throw ShapeError(detail::text("read_rows: ", size, " elements from row ", begin,
                                    ", expected whole rows within tensor ",
                                    detail::printable(t.name), " ", detail::shape_text(t.shape)));
    const std::size_t row_bytes = rows > 0 ? t.bytes.size() / static_cast<std::size_t>(rows) : 0;
    read_blocks(name,
                t.bytes.subspan(static_cast<std::size_t>(begin) * row_bytes,
                                static_cast<std::size_t>(count) * row_bytes),
                out.data());
  }

 private:
  static constexpr int kMaxDepth = 4;  // of arrays in arrays
  static constexpr std::uint32_t kMaxRank = 4;

  explicit GgufFile(std::string source) : source_(std::move(source)) {}

  [[noreturn]] void fail(std::string_view what) const {
    throw FormatError(detail::text(source_, ": ", what));
  }

  template <class R>
  R ask(std::string_view key, R (GgufValue::*getter)() const) const {
    const GgufValue& v = value(key);
    try {
      return (v.*getter)();
    } catch (const FormatError& error) {
      fail(error.what());
    }
  }

  std::size_t find_tensor(std::string_view name) const {
    const auto found = index_.find(std::string(name));
    if (found == index_.end()) detail::throw_missing(source_, name);
    return found->second;
  }

  void parse(std::span<const std::byte> bytes) {
    detail::ByteReader reader(bytes, source_);
    if (!has_magic(bytes)) fail("does not begin with \"GGUF\"");
    reader.take(4, "the magic");
    version_ = reader.take_value<std::uint32_t>("the version");
    if (version_ != 2 && version_ != 3) {
      // In a big-endian file the version's only set byte is the last one.
      fail(detail::text("has version ", version_, ", expected 2 or 3",
                        (version_ & 0xffffu) == 0 ? " (is it a big-endian file?)" : ""));
    }
    const auto tensors = reader.take_value<std::uint64_t>("the number of tensors");
    const auto entries = reader.take_value<std::uint64_t>("the number of metadata entries");
    // The least that an entry (empty key, type, one byte) and a tensor (empty name, rank 0) take.
    check_count("metadata entries", entries, reader.remaining() / 13);
    check_count("tensors", tensors, reader.remaining() / 24);

    for (std::uint64_t i = 0; i < entries; ++i) parse_entry(reader);
    parse_alignment();
    parse_tensors(reader, tensors);
  }

  void check_count(std::string_view what, std::uint64_t count, std::uint64_t limit) const {
    if (count > limit)
      fail(detail::text("claims ", count, " ", what, ", more than its size allows"));
  }

  std::string_view parse_string(detail::ByteReader& reader, std::string_view what) const {
    const auto length = reader.take_value<std::uint64_t>(what);
    return detail::as_text(reader.take(length, what));
  }

  GgufType parse_type(detail::ByteReader& reader, std::string_view key) const {
    const auto type = reader.take_value<std::uint32_t>("a metadata type");
    if (type >= detail::kGgufTypes.size())
      fail(detail::text("metadata ", detail::printable(key), " has the unknown type ", type));
    return static_cast<GgufType>(type);
  }

  void parse_entry(detail::ByteReader& reader) {
    const std::string_view key = parse_string(reader, "a metadata key");
    const GgufType type = parse_type(reader, key);
    const auto [place, is_new] = values_.try_emplace(std::string(key));
    if (!is_new) fail(detail::text("metadata ", detail::printable(key), " is given twice"));
    GgufValue& value = place->second;
    value.key_ = key;
    value.type_ = type;
    if (type == GgufType::string) {
      const auto text = parse_string(reader, key);
      value.bytes_ = std::as_bytes(std::span(text.data(), text.size()));
    } else if (type == GgufType::array) {
      value.element_type_ = parse_type(reader, key);
      value.count_ = reader.take_value<std::uint64_t>("the length of an array");
      value.bytes_ = parse_elements(reader, key, value.element_type_, value.count_, 0);
    } else {
      value.bytes_ = reader.take(detail::kGgufTypes[static_cast<std::size_t>(type)].bytes, key);
    }
    keys_.emplace_back(key);
  }

  /// Steps over the elements of an array and returns their bytes.
  std::span<const std::byte> parse_elements(detail::ByteReader& reader, std::string_view key,
                                            GgufType type, std::uint64_t count, int depth) const {
    if (depth >= kMaxDepth)
      fail(detail::text("metadata ", detail::printable(key), " nests arrays more than ",
                        int{kMaxDepth}, " deep"));
    const std::size_t least = detail::kGgufTypes[static_cast<std::size_t>(type)].bytes;
    if (count > reader.remaining() / least)
      fail(detail::text("metadata ", detail::printable(key), " claims ", count,
                        " elements, more than the file holds"));
    detail::ByteReader start = reader;
    const std::size_t begin = reader.offset();
    if (type == GgufType::string) {
      for (std::uint64_t i = 0; i < count; ++i) parse_string(reader, key);
    } else if (type == GgufType::array) {
      for (std::uint64_t i = 0; i < count; ++i) {
        const GgufType inner = parse_type(reader, key);
        const auto length = reader.take_value<std::uint64_t>("the length of an array");
        parse_elements(reader, key, inner, length, depth + 1);
      }
    } else {
      reader.take(count * least, key);
    }
    return start.take(reader.offset() - begin, key);
  }

  void parse_alignment() {
    const std::int64_t alignment = integer("general.alignment", 32);
    if (alignment <= 0 || !std::has_single_bit(static_cast<std::uint64_t>(alignment)) ||
        alignment > (std::int64_t{1} << 30))
      fail(detail::text("general.alignment is ", alignment, ", expected a power of two"));
    alignment_ = static_cast<std::uint64_t>(alignment);
  }

  void parse_tensors(detail::ByteReader& reader, std::uint64_t count) {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> places;  // offset, size
    for (std::uint64_t i = 0; i < count; ++i) {
      std::string name(parse_string(reader, "a tensor's name"));
      if (!index_.emplace(name, tensors_.size()).second)
        fail(detail::text("tensor ", detail::printable(name), " is named twice"));
      places.push_back(parse_tensor(reader, name));
      names_.push_back(std::move(name));
    }
    if (count == 0) return;

    const std::uint64_t padding = (alignment_ - reader.offset() % alignment_) % alignment_;
    if (padding > reader.remaining()) fail("ends before the data of its tensors");
    reader.take(padding, "the padding before the data");
    const auto data = reader.take(reader.remaining(), "the data");

    std::vector<std::size_t> order(tensors_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return places[a] < places[b]; });
    std::uint64_t end = 0;
    for (const std::size_t i : order) {
      const auto [offset, size] = places[i];
      const std::string name = "tensor " + detail::printable(names_[i]);
      if (offset % alignment_ != 0)
        fail(detail::text(name, " has offset ", offset, ", expected a multiple of ", alignment_));
      if (offset > data.size() || size > data.size() - offset)
        fail(detail::text(name, " needs ", size, " bytes at offset ", offset,
                          " of the data, which has ", data.size(), " (is the file cut short?)"));
      if (offset < end) fail(detail::text(name, " overlaps another at offset ", offset));
      end = offset + size;
      tensors_[i].bytes =
          data.subspan(static_cast<std::size_t>(offset), static_cast<std::size_t>(size));
    }
  }

  /// One row of the table; returns offset and size in bytes.
  std::pair<std::uint64_t, std::uint64_t> parse_tensor(detail::ByteReader& reader,
                                                       const std::string& name) {
    const auto complain = [&](const auto&... parts) {
      fail(detail::text("tensor ", detail::printable(name), " ", parts...));
    };
    const auto rank = reader.take_value<std::uint32_t>("a tensor's rank");
    if (rank > kMaxRank) complain("has ", rank, " axes, expected at most ", kMaxRank);
    TensorInfo info;
    info.name = name;
    std::array<std::uint64_t, kMaxRank> ne{1, 1, 1, 1};
    for (std::uint32_t axis = 0; axis < rank; ++axis) {
      ne[axis] = reader.take_value<std::uint64_t>("a tensor's extents");
      if (ne[axis] > INT64_MAX) complain("has an extent of ", ne[axis]);
      info.shape.insert(info.shape.begin(), static_cast<index_t>(ne[axis]));
    }
    const auto number = reader.take_value<std::uint32_t>("a tensor's type");
    const GgmlTypeInfo* const type = find_ggml_type(number);
    if (!type) {
      complain("has the unknown type ", number);
      return {};
    }
    if (ne[0] % type->block != 0)
      complain("has rows of ", ne[0], ", expected a multiple of ", type->block, ", the block of ",
               type->name);
    std::uint64_t size = ne[0] / type->block, elements = ne[0];
    bool fits = detail::multiply_checked(size, type->bytes, &size);
    for (std::uint32_t axis = 1; axis < kMaxRank; ++axis)
      fits = fits && detail::multiply_checked(size, ne[axis], &size) &&
             detail::multiply_checked(elements, ne[axis], &elements) && elements <= INT64_MAX;
    if (!fits)
      complain("is ", detail::shape_text(info.shape), " of ", type->name,
               ", which passes 2^63 elements");
    info.dtype_name = type->name;
    info.dtype = type->dtype;
    const auto offset = reader.take_value<std::uint64_t>("a tensor's offset");
    tensors_.push_back(std::move(info));
    types_.push_back(type);
    return {offset, size};
  }

  template <class T>
  void read_blocks(std::string_view name, std::span<const std::byte> bytes, T* out) const {
    const GgmlTypeInfo& info = type(name);
    if (info.dtype) return detail::convert_bytes(*info.dtype, bytes, out);
    switch (info.type) {
      case GgmlType::q4_0:
        return detail::dequantize_blocks<BlockQ4_0>(bytes, out);
      case GgmlType::q4_1:
        return detail::dequantize_blocks<BlockQ4_1>(bytes, out);
      case GgmlType::q5_0:
        return detail::dequantize_blocks<BlockQ5_0>(bytes, out);
      case GgmlType::q5_1:
        return detail::dequantize_blocks<BlockQ5_1>(bytes, out);
      case GgmlType::q8_0:
        return detail::dequantize_blocks<BlockQ8_0>(bytes, out);
      case GgmlType::q4_k:
        return detail::dequantize_blocks<BlockQ4_K>(bytes, out);
      case GgmlType::q5_k:
        return detail::dequantize_blocks<BlockQ5_K>(bytes, out);
      case GgmlType::q6_k:
        return detail::dequantize_blocks<BlockQ6_K>(bytes, out);
      default:
        break;
    }
    fail(detail::text("tensor ", detail::printable(name), " has type ", info.name,
                      ", expected one of ", readable_ggml_types()));
  }

  std::string source_;
  std::shared_ptr<const MappedFile> mapping_;
  std::uint32_t version_ = 0;
  std::uint64_t alignment_ = 32;
  std::unordered_map<std::string, GgufValue> values_;
  std::vector<std::string> keys_, names_;
  std::vector<TensorInfo> tensors_;
  std::vector<const GgmlTypeInfo*> types_;
  std::unordered_map<std::string, std::size_t> index_;
};

}  // namespace rapt
