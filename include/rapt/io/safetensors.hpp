// safetensors: named tensors in one file, read in place and written row by row.
//
//   [ N: u64 ][ JSON header, N bytes ][ data ]                              all little-endian
//   header: {"__metadata__": {"key": "text", ...},
//            "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}
//   offsets count from the end of the header; tensors fill the data without gap or overlap
//
//   SafetensorsFile    one file, mapped: names() info(name) tensor<T, Rank>(name) read(name, out)
//   SafetensorsFolder  a file, or a folder with model.safetensors, or with shards and
//                      model.safetensors.index.json: the same questions
//   SafetensorsWriter  header first, then values in the order declared, then finish(); atomic
//
// A file is not trusted: the header is at most 100 MB, every size is checked before it is used, and
// a broken file is refused with FormatError naming the file, the tensor and the value. Nothing is
// allocated beyond the size of the header.
//
// Source: github.com/huggingface/safetensors, README "Format" and src/tensor.rs (its checks).
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "rapt/core/backend.hpp"
#include "rapt/core/dtype.hpp"
#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/io/atomic_file.hpp"
#include "rapt/io/byte_reader.hpp"
#include "rapt/io/json_cursor.hpp"
#include "rapt/io/mapped_file.hpp"

namespace rapt {

/// One tensor of a file.
struct TensorInfo {
  std::string name;
  std::string dtype_name;      // as the file spells it: "F32", "BF16", "Q4_K", ...
  std::optional<DType> dtype;  // empty: no element type of rapt, so it cannot be viewed
  std::vector<index_t> shape;  // outermost first, as in Hugging Face; empty: a scalar
  std::span<const std::byte> bytes;

  index_t elements() const {
    index_t n = 1;
    for (const index_t extent : shape) n *= extent;
    return n;
  }
};

namespace detail {

struct SafetensorsType {
  std::string_view name;
  std::size_t bytes;
  std::optional<DType> dtype;
};

inline constexpr std::array<SafetensorsType, 15> kSafetensorsTypes = {{
    {"F64", 8, DType::f64},
    {"F32", 4, DType::f32},
    {"F16", 2, DType::f16},
    {"BF16", 2, DType::bf16},
    {"F8_E4M3", 1, DType::f8_e4m3},
    {"F8_E5M2", 1, DType::f8_e5m2},
    {"I64", 8, DType::i64},
    {"I32", 4, DType::i32},
    {"I16", 2, DType::i16},
    {"I8", 1, DType::i8},
    {"U8", 1, DType::u8},
    {"BOOL", 1, DType::boolean},
    {"U16", 2, std::nullopt},
    {"U32", 4, std::nullopt},
    {"U64", 8, std::nullopt},
}};

inline std::string_view safetensors_name(DType dtype) {
  for (const auto& type : kSafetensorsTypes)
    if (type.dtype == dtype) return type.name;
  return "?";
}

/// out[i] = values[i], from bytes of any alignment, one conversion of rapt::convert each.
template <class To, class From>
void convert_bytes(std::span<const std::byte> bytes, To* out) {
  const std::size_t n = bytes.size() / sizeof(From);
  if constexpr (std::is_same_v<To, From>) {
    if (n > 0) std::memcpy(out, bytes.data(), n * sizeof(From));
  } else if constexpr (std::is_same_v<From, bool>) {
    for (std::size_t i = 0; i < n; ++i) out[i] = convert<To>(bytes[i] != std::byte{0});
  } else {
    for (std::size_t i = 0; i < n; ++i) {
      From value;
      std::memcpy(&value, bytes.data() + i * sizeof(From), sizeof(From));
      out[i] = convert<To>(value);
    }
  }
}

template <class To>
void convert_bytes(DType from, std::span<const std::byte> bytes, To* out) {
  switch (from) {
    case DType::f64:
      return convert_bytes<To, double>(bytes, out);
    case DType::f32:
      return convert_bytes<To, float>(bytes, out);
    case DType::f16:
      return convert_bytes<To, half>(bytes, out);
    case DType::bf16:
      return convert_bytes<To, bfloat16>(bytes, out);
    case DType::f8_e4m3:
      return convert_bytes<To, float8_e4m3>(bytes, out);
    case DType::f8_e5m2:
      return convert_bytes<To, float8_e5m2>(bytes, out);
    case DType::i64:
      return convert_bytes<To, std::int64_t>(bytes, out);
    case DType::i32:
      return convert_bytes<To, std::int32_t>(bytes, out);
    case DType::i16:
      return convert_bytes<To, std::int16_t>(bytes, out);
    case DType::i8:
      return convert_bytes<To, std::int8_t>(bytes, out);
    case DType::u8:
      return convert_bytes<To, std::uint8_t>(bytes, out);
    case DType::boolean:
      return convert_bytes<To, bool>(bytes, out);
  }
}

inline std::string shape_text(const std::vector<index_t>& shape) {
  return shape_text(std::span<const index_t>(shape));
}

[[noreturn]] inline void throw_missing(std::string_view source, std::string_view name) {
  throw FormatError(text(source, ": has no tensor named ", printable(name, 200)));
}

inline DType readable_dtype(std::string_view source, const TensorInfo& info) {
  if (info.dtype) return *info.dtype;
  throw FormatError(text(source, ": tensor ", printable(info.name), " has dtype ", info.dtype_name,
                         ", which rapt cannot read"));
}

}  // namespace detail

class SafetensorsFile {
 public:
  /// Maps a file and checks its header.
  static SafetensorsFile open(const std::filesystem::path& path) {
    SafetensorsFile file(path.string());
    file.mapping_ = std::make_shared<const MappedFile>(path);
    file.parse(file.mapping_->bytes());
    return file;
  }

  /// Reads bytes that the caller keeps alive. `source` begins every error message.
  static SafetensorsFile from_bytes(std::span<const std::byte> bytes, std::string source) {
    SafetensorsFile file(std::move(source));
    file.parse(bytes);
    return file;
  }

  /// Where the tensors came from: the path.
  const std::string& source() const { return source_; }
  /// Names in the order of the data.
  const std::vector<std::string>& names() const { return names_; }
  bool has(std::string_view name) const { return index_.count(std::string(name)) != 0; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Throws FormatError naming a missing tensor.
  const TensorInfo& info(std::string_view name) const {
    const auto found = index_.find(std::string(name));
    if (found == index_.end()) detail::throw_missing(source_, name);
    return tensors_[found->second];
  }

  /// The tensor in place, without a copy. Absent (data() == nullptr) when the file stores another
  /// dtype than T or the bytes are not aligned for T: then read() it. Lives as long as this object
  /// or a copy of it. A scalar has rank 1 here.
  template <class T, std::size_t Rank>
  TensorView<const T, Rank> tensor(std::string_view name) const {
    const TensorInfo& t = info(name);
    const Shape<Rank> shape = shape_of<Rank>(t);
    if (t.dtype != dtype_of<T>) return {};
    const std::byte* const data = t.bytes.data();
    if (reinterpret_cast<std::uintptr_t>(data) % alignof(T) != 0) return {};
    return {reinterpret_cast<const T*>(data), shape};
  }

  /// A copy as a tensor of T, converted where the file stores another dtype.
  template <class T, std::size_t Rank>
  Tensor<T, Rank> load(std::string_view name) const {
    const TensorInfo& t = info(name);
    auto out = Tensor<T, Rank>::uninitialized(shape_of<Rank>(t));
    read(name, std::span<T>(out.data(), static_cast<std::size_t>(t.elements())));
    return out;
  }

  /// Copies all elements into `out`, converted to T; out.size() must be their number.
  template <class T>
  void read(std::string_view name, std::span<T> out) const {
    const TensorInfo& t = info(name);
    const DType dtype = detail::readable_dtype(source_, t);
    if (static_cast<index_t>(out.size()) != t.elements())
      throw ShapeError(detail::text("read: out has ", out.size(), " elements, expected ",
                                    t.elements(), " of tensor ", detail::printable(t.name), " ",
                                    detail::shape_text(t.shape)));
    detail::convert_bytes(dtype, t.bytes, out.data());
  }

  /// Copies rows [begin, begin + n) of the outermost axis; out.size() = n rows.
  template <class T>
  void read_rows(std::string_view name, index_t begin, std::span<T> out) const {
    const TensorInfo& t = info(name);
    const DType dtype = detail::readable_dtype(source_, t);
    const index_t rows = t.shape.empty() ? 1 : t.shape[0];
    const index_t row = rows > 0 ? t.elements() / rows : 0;
    const auto size = static_cast<index_t>(out.size());
    const index_t count = row > 0 ? size / row : 0;
    if (begin < 0 || count * row != size || begin > rows || count > rows - begin)
      throw ShapeError(detail::text("read_rows: ", size, " elements from row ", begin,
                                    ", expected whole rows within tensor ",
                                    detail::printable(t.name), " ", detail::shape_text(t.shape)));
    const std::size_t row_bytes = static_cast<std::size_t>(row) * size_of(dtype);
    detail::convert_bytes(dtype,
                          t.bytes.subspan(static_cast<std::size_t>(begin) * row_bytes,
                                          static_cast<std::size_t>(count) * row_bytes),
                          out.data());
  }

 private:
  static constexpr std::uint64_t kHeaderLimit = 100'000'000;  // as the reference implementation

  explicit SafetensorsFile(std::string source) : source_(std::move(source)) {}

  template <std::size_t Rank>
  Shape<Rank> shape_of(const TensorInfo& t) const {
    Shape<Rank> shape;
    if (t.shape.size() == Rank) {
      for (std::size_t axis = 0; axis < Rank; ++axis) shape[axis] = t.shape[axis];
    } else if (t.shape.empty() && Rank == 1) {
      shape[0] = 1;
    } else {
      throw ShapeError(detail::text(source_, ": tensor ", detail::printable(t.name), " is ",
                                    detail::shape_text(t.shape), ", expected rank ", Rank));
    }
    return shape;
  }

  [[noreturn]] void fail(std::string_view name, std::string_view what) const {
    throw FormatError(detail::text(source_, ": tensor ", detail::printable(name), ": ", what));
  }

  void parse(std::span<const std::byte> bytes) {
    detail::ByteReader reader(bytes, source_);
    const auto header_size = reader.take_value<std::uint64_t>("the header's length");
    if (header_size > kHeaderLimit)
      throw FormatError(detail::text(source_, ": the header's length is ", header_size,
                                     ", expected at most ", kHeaderLimit,
                                     " (is it a safetensors file?)"));
    const auto header = detail::as_text(reader.take(header_size, "the header"));
    parse_header(header, bytes.subspan(reader.offset()));
  }

  void parse_header(std::string_view header, std::span<const std::byte> data) {
    std::vector<std::pair<std::uint64_t, std::uint64_t>> offsets;
    detail::JsonCursor json(header, source_);
    bool has_metadata = false;
    json.object([&](std::string name) {
      if (name == "__metadata__") {
        if (has_metadata) json.fail("a second __metadata__");
        has_metadata = true;
        json.object([&](std::string key) { metadata_[std::move(key)] = json.string(); });
        return;
      }
      if (!index_.emplace(name, tensors_.size()).second) fail(name, "is named twice in the header");
      TensorInfo info;
      info.name = std::move(name);
      offsets.push_back(parse_entry(json, info));
      tensors_.push_back(std::move(info));
    });
    json.end();
    place(offsets, data);
  }

  /// One {"dtype": …, "shape": …, "data_offsets": …}; returns the offsets.
  std::pair<std::uint64_t, std::uint64_t> parse_entry(detail::JsonCursor& json, TensorInfo& info) {
    std::optional<std::vector<std::uint64_t>> shape, offsets;
    json.object([&](const std::string& key) {
      const auto integers = [&](std::optional<std::vector<std::uint64_t>>& out) {
        if (out) fail(info.name, "has a second " + key);
        out.emplace();
        json.array([&] { out->push_back(json.natural()); });
      };
      if (key == "dtype") {
        if (!info.dtype_name.empty()) fail(info.name, "has a second dtype");
        info.dtype_name = json.string();
      } else if (key == "shape") {
        integers(shape);
      } else if (key == "data_offsets") {
        integers(offsets);
      } else {
        fail(info.name, "has an unknown field " + detail::printable(key));
      }
    });
    if (info.dtype_name.empty() || !shape || !offsets)
      fail(info.name, "lacks one of dtype, shape and data_offsets");

    const auto type =
        std::find_if(detail::kSafetensorsTypes.begin(), detail::kSafetensorsTypes.end(),
                     [&](const auto& t) { return t.name == info.dtype_name; });
    if (type == detail::kSafetensorsTypes.end())
      fail(info.name, "has an unknown dtype " + detail::printable(info.dtype_name));
    info.dtype = type->dtype;

    std::uint64_t size = type->bytes;
    bool empty = false;  // an extent of 0 makes any product 0, but must not hide an overflow
    for (const std::uint64_t extent : *shape) {
      info.shape.push_back(static_cast<index_t>(extent));
      empty = empty || extent == 0;
      if (extent != 0 && (!detail::multiply_checked(size, extent, &size) || size > INT64_MAX))
        fail(info.name, "has shape " + detail::shape_text(info.shape) + " of more than 2^63 bytes");
    }
    if (empty) size = 0;
    if (offsets->size() != 2 || (*offsets)[0] > (*offsets)[1])
      fail(info.name, "has data_offsets that are no [begin, end]");
    const std::uint64_t begin = (*offsets)[0], end = (*offsets)[1];
    if (end - begin != size)
      fail(info.name,
           detail::text("has data_offsets [", begin, ", ", end, "], expected ", size,
                        " bytes = ", info.dtype_name, " ", detail::shape_text(info.shape)));
    return {begin, end};
  }

  /// Sorts the tensors by offset and gives each its bytes.
  void place(const std::vector<std::pair<std::uint64_t, std::uint64_t>>& offsets,
             std::span<const std::byte> data) {
    std::vector<std::size_t> order(tensors_.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::stable_sort(order.begin(), order.end(),
                     [&](std::size_t a, std::size_t b) { return offsets[a] < offsets[b]; });
    std::uint64_t expected = 0;
    std::vector<TensorInfo> sorted;
    sorted.reserve(order.size());
    for (const std::size_t i : order) {
      const auto [begin, end] = offsets[i];
      if (end > data.size())
        fail(tensors_[i].name, detail::text("ends at byte ", end, " of the data, which has ",
                                            data.size(), " (is the file cut short?)"));
      if (begin != expected)
        fail(tensors_[i].name, detail::text(begin < expected ? "overlaps another: it begins"
                                                             : "leaves a gap: it begins",
                                            " at ", begin, ", expected ", expected));
      tensors_[i].bytes =
          data.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin));
      expected = end;
      sorted.push_back(std::move(tensors_[i]));
    }
    if (expected != data.size())
      throw FormatError(
          detail::text(source_, ": has ", data.size() - expected, " bytes after the last tensor"));
    tensors_ = std::move(sorted);
    names_.reserve(tensors_.size());
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      index_[tensors_[i].name] = i;
      names_.push_back(tensors_[i].name);
    }
  }

  std::string source_;
  std::shared_ptr<const MappedFile> mapping_;
  std::vector<TensorInfo> tensors_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::size_t> index_;
  std::map<std::string, std::string> metadata_;
};

/// The "weight_map" of a model.safetensors.index.json: tensor name to file name. File names must be
/// plain names: a path could lead anywhere.
inline std::map<std::string, std::string> parse_safetensors_index(std::string_view json_text,
                                                                  std::string_view source) {
  std::map<std::string, std::string> files;
  bool found = false;
  detail::JsonCursor json(json_text, source);
  json.object([&](const std::string& key) {
    if (key != "weight_map") return json.skip();
    if (found) json.fail("a second weight_map");
    found = true;
    json.object([&](std::string name) {
      std::string file = json.string();
      const std::string shown = detail::printable(name);
      if (file.empty() || file == "." || file == ".." || file.find('\0') != std::string::npos ||
          file.find_first_of("/\\") != std::string::npos)
        throw FormatError(detail::text(source, ": tensor ", shown, " lies in \"",
                                       detail::printable(file), "\", expected a plain file name"));
      if (!files.emplace(std::move(name), std::move(file)).second)
        throw FormatError(detail::text(source, ": tensor ", shown, " is named twice"));
    });
  });
  json.end();
  if (!found) throw FormatError(detail::text(source, ": has no weight_map"));
  return files;
}

/// A checkpoint of one file or of several shards.
class SafetensorsFolder {
 public:
  /// `path`: a .safetensors file, an index, or a folder that holds model.safetensors or
  /// model.safetensors.index.json.
  static SafetensorsFolder open(const std::filesystem::path& path) {
    namespace fs = std::filesystem;
    SafetensorsFolder folder(path.string());
    if (!fs::is_directory(path)) {
      if (path.extension() == ".json")
        folder.open_shards(path);
      else
        folder.add(SafetensorsFile::open(path));
    } else if (fs::exists(path / "model.safetensors")) {
      folder.add(SafetensorsFile::open(path / "model.safetensors"));
    } else if (fs::exists(path / "model.safetensors.index.json")) {
      folder.open_shards(path / "model.safetensors.index.json");
    } else {
      throw IoError(path.string() +
                    ": has neither model.safetensors nor model.safetensors.index.json");
    }
    return folder;
  }

  const std::string& source() const { return source_; }
  const std::vector<std::string>& names() const { return names_; }
  bool has(std::string_view name) const { return index_.count(std::string(name)) != 0; }
  const TensorInfo& info(std::string_view name) const { return file_of(name).info(name); }

  template <class T, std::size_t Rank>
  TensorView<const T, Rank> tensor(std::string_view name) const {
    return file_of(name).tensor<T, Rank>(name);
  }
  template <class T, std::size_t Rank>
  Tensor<T, Rank> load(std::string_view name) const {
    return file_of(name).load<T, Rank>(name);
  }
  template <class T>
  void read(std::string_view name, std::span<T> out) const {
    file_of(name).read(name, out);
  }
  template <class T>
  void read_rows(std::string_view name, index_t begin, std::span<T> out) const {
    file_of(name).read_rows(name, begin, out);
  }

 private:
  explicit SafetensorsFolder(std::string source) : source_(std::move(source)) {}

  void add(SafetensorsFile file) {
    for (const std::string& name : file.names()) {
      index_[name] = files_.size();
      names_.push_back(name);
    }
    files_.push_back(std::move(file));
  }

  void open_shards(const std::filesystem::path& index_path) {
    const auto weight_map = parse_safetensors_index(read_file(index_path), index_path.string());
    std::map<std::string, std::size_t> opened;
    for (const auto& [name, file_name] : weight_map) {
      const auto found = opened.find(file_name);
      const std::size_t file = found != opened.end() ? found->second : files_.size();
      if (file == files_.size()) {
        files_.push_back(SafetensorsFile::open(index_path.parent_path() / file_name));
        opened[file_name] = file;
      }
      if (!files_[file].has(name)) detail::throw_missing(files_[file].source(), name);
      index_[name] = file;
      names_.push_back(name);
    }
  }

  const SafetensorsFile& file_of(std::string_view name) const {
    const auto found = index_.find(std::string(name));
    if (found == index_.end()) detail::throw_missing(source_, name);
    return files_[found->second];
  }

  std::string source_;
  std::vector<SafetensorsFile> files_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::size_t> index_;  // into files_
};

/// A tensor that is going to be written: everything the header needs.
struct TensorSpec {
  std::string name;
  DType dtype = DType::f32;
  std::vector<index_t> shape;
};

/// Writes a file front to back with a few kilobytes of memory: the tensors are declared first, and
/// their values follow in that order, in as many pieces as the caller likes.
///
///   SafetensorsWriter file("logits.safetensors", {{"ids", DType::i32, {t}},
///                                                 {"logits", DType::f32, {t, vocab}}});
///   file.write(std::span<const std::int32_t>(ids));
///   for (each row) file.write(std::span<const float>(row));    // converted to the declared dtype
///   file.finish();                                             // now the file exists
class SafetensorsWriter {
 public:
  SafetensorsWriter(const std::filesystem::path& path, std::vector<TensorSpec> tensors,
                    const std::map<std::string, std::string>& metadata = {})
      : tensors_(std::move(tensors)), file_(path) {
    std::string header = "{";
    if (!metadata.empty()) {
      header += "\"__metadata__\":{";
      for (const auto& [key, value] : metadata)
        header += quote("a metadata key", key) + ":" + quote("a metadata value", value) + ",";
      header.back() = '}';
      header += ",";
    }
    std::uint64_t offset = 0;
    std::unordered_map<std::string, bool> seen;
    for (const TensorSpec& t : tensors_) {
      if (!seen.emplace(t.name, true).second || t.name == "__metadata__")
        throw ValueError("safetensors: tensor " + t.name + " is declared twice");
      const std::uint64_t size = size_of_tensor(t);
      header += quote("a tensor name", t.name) + ":{\"dtype\":\"" +
                std::string(detail::safetensors_name(t.dtype)) + "\",\"shape\":[";
      for (std::size_t i = 0; i < t.shape.size(); ++i)
        header += (i > 0 ? "," : "") + std::to_string(t.shape[i]);
      header += detail::text("],\"data_offsets\":[", offset, ",", offset + size, "]},");
      offset += size;
    }
    if (header.back() == ',') header.pop_back();
    header += '}';
    header.resize((header.size() + 7) / 8 * 8, ' ');  // the data begins on a multiple of 8
    const std::uint64_t length = header.size();
    file_.write(&length, sizeof length);
    file_.write(header);
    skip_complete();
  }

  /// The next values, which may end one tensor and begin the next.
  template <class T>
  void write(std::span<const T> values) {
    while (!values.empty()) {
      if (current_ == tensors_.size())
        throw ShapeError(detail::text("safetensors: ", values.size(),
                                      " values more than the declared tensors hold"));
      const TensorSpec& t = tensors_[current_];
      const std::uint64_t left = size_of_tensor(t) / size_of(t.dtype) - written_;
      const auto n = static_cast<std::size_t>(std::min<std::uint64_t>(left, values.size()));
      write_as(t.dtype, values.first(n));
      written_ += n;
      values = values.subspan(n);
      skip_complete();
    }
  }
  template <class T>
  void write(const std::vector<T>& values) {
    write(std::span<const T>(values));
  }
  /// A whole view, row-major whatever its strides.
  template <class T, std::size_t Rank>
  void write(const TensorView<T, Rank>& view) {
    using V = std::remove_const_t<T>;
    if (view.size() == 0) return;
    if (view.is_contiguous()) {
      write(std::span<const V>(view.data(), static_cast<std::size_t>(view.size())));
    } else if constexpr (Rank == 1) {
      for (index_t i = 0; i < view.extent(0); ++i) write(std::span<const V>(&view(i), 1));
    } else {
      for (index_t i = 0; i < view.extent(0); ++i) write(view.select(0, i));
    }
  }

  /// The tensor that the next value belongs to; null when all are complete.
  const TensorSpec* current() const {
    return current_ < tensors_.size() ? &tensors_[current_] : nullptr;
  }

  /// Makes the file appear; every declared value must have been written.
  void finish() {
    if (const TensorSpec* t = current())
      throw ShapeError(detail::text("safetensors: tensor ", t->name, " has ", written_,
                                    " values, expected ", size_of_tensor(*t) / size_of(t->dtype),
                                    " = ", detail::shape_text(t->shape)));
    file_.commit();
  }

 private:
  static std::string quote(std::string_view what, std::string_view s) {
    if (!detail::is_utf8(s))
      throw ValueError(
          detail::text("safetensors: ", what, " is not UTF-8: ", detail::printable(s)));
    return detail::json_quote(s);
  }

  static std::uint64_t size_of_tensor(const TensorSpec& t) {
    std::uint64_t size = size_of(t.dtype);
    for (const index_t extent : t.shape)
      if (extent < 0 ||
          !detail::multiply_checked(size, static_cast<std::uint64_t>(extent), &size) ||
          size > INT64_MAX)
        throw ShapeError(detail::text("safetensors: tensor ", t.name, " is ",
                                      detail::shape_text(t.shape),
                                      ", expected extents from 0 and less than 2^63 bytes"));
    return size;
  }

  void skip_complete() {
    while (current_ < tensors_.size() &&
           written_ * size_of(tensors_[current_].dtype) == size_of_tensor(tensors_[current_])) {
      ++current_;
      written_ = 0;
    }
  }

  template <class To, class From>
  void write_converted(std::span<const From> values) {
    if constexpr (std::is_same_v<To, From>) {
      file_.write(values.data(), values.size_bytes());
    } else {
      std::array<To, 1024> piece;
      while (!values.empty()) {
        const std::size_t n = std::min(values.size(), piece.size());
        for (std::size_t i = 0; i < n; ++i) piece[i] = convert<To>(values[i]);
        file_.write(piece.data(), n * sizeof(To));
        values = values.subspan(n);
      }
    }
  }

  template <class T>
  void write_as(DType dtype, std::span<const T> values) {
    switch (dtype) {
      case DType::f64:
        return write_converted<double>(values);
      case DType::f32:
        return write_converted<float>(values);
      case DType::f16:
        return write_converted<half>(values);
      case DType::bf16:
        return write_converted<bfloat16>(values);
      case DType::f8_e4m3:
        return write_converted<float8_e4m3>(values);
      case DType::f8_e5m2:
        return write_converted<float8_e5m2>(values);
      case DType::i64:
        return write_converted<std::int64_t>(values);
      case DType::i32:
        return write_converted<std::int32_t>(values);
      case DType::i16:
        return write_converted<std::int16_t>(values);
      case DType::i8:
        return write_converted<std::int8_t>(values);
      case DType::u8:
        return write_converted<std::uint8_t>(values);
      case DType::boolean:
        return write_converted<bool>(values);
    }
  }

  std::vector<TensorSpec> tensors_;
  AtomicFile file_;
  std::size_t current_ = 0;    // tensor being written
  std::uint64_t written_ = 0;  // its values so far
};

}  // namespace rapt
