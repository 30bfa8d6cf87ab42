// The weights of a model, whatever they lie in: a Hugging Face folder, a .safetensors file or GGUF.
//
//   WeightFile weights = WeightFile::open("models/smollm2");
//   const ModelConfig& config = weights.config();
//   weights.read("model.layers.0.self_attn.q_proj.weight", std::span<float>(w));
//
// Tensors have the names and shapes of Hugging Face ([out, in] for a projection), and are converted
// or dequantised while they are read; the file is mapped, so reading one layer touches one layer.
// Values are those of the file: config() says how they are meant (config().rope.layout is
// interleaved for a GGUF of architecture llama, config().norm_plus_one false for GGUF's Gemma).
//
// Errors: IoError for what cannot be opened, FormatError naming a tensor that is missing or of a
// type that cannot be read.
#pragma once

#include <algorithm>
#include <cstdint>
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
#include "rapt/io/gguf.hpp"
#include "rapt/io/gguf_config.hpp"
#include "rapt/io/mapped_file.hpp"
#include "rapt/io/model_config.hpp"
#include "rapt/io/read_config.hpp"
#include "rapt/io/safetensors.hpp"

namespace rapt {

class WeightFile {
 public:
  /// `path`: a folder with config.json and safetensors (or with a single .gguf), a .safetensors
  /// file with config.json beside it, or a GGUF file, known by its first bytes.
  static WeightFile open(const std::filesystem::path& path) {
    namespace fs = std::filesystem;
    WeightFile file(path);
    if (fs::is_directory(path)) {
      if (!fs::exists(path / "config.json")) {
        if (const auto gguf = single_gguf(path)) return open(*gguf);
        throw IoError(path.string() + ": has no config.json");
      }
      file.open_safetensors(path, path);
    } else {
      auto mapping = std::make_shared<const MappedFile>(path);
      if (GgufFile::has_magic(mapping->bytes()))
        file.open_gguf(path);
      else
        file.open_safetensors(path, path.has_parent_path() ? path.parent_path() : ".");
    }
    return file;
  }

  const ModelConfig& config() const { return config_; }
  const std::string& source() const { return source_; }
  /// The GGUF file, for its tokenizer and its blocks; null for safetensors.
  const GgufFile* gguf() const { return gguf_.get(); }
  /// The folder of config.json, where a tokenizer lies too; empty for GGUF.
  const std::filesystem::path& folder() const { return folder_; }

  const std::vector<std::string>& names() const { return names_; }
  bool has(std::string_view name) const { return stored_.count(std::string(name)) != 0; }
  /// Shape, dtype and bytes as stored; `info(name).name` is the file's own name.
  const TensorInfo& info(std::string_view name) const {
    const std::string& own = stored_name(name);
    return gguf_ ? gguf_->info(own) : safetensors_->info(own);
  }
  const std::vector<index_t>& shape(std::string_view name) const { return info(name).shape; }
  index_t elements(std::string_view name) const { return info(name).elements(); }
  /// Empty for quantised blocks.
  std::optional<DType> dtype(std::string_view name) const { return info(name).dtype; }

  /// Throws one FormatError that names those of `names` that the file lacks.
  void require(std::span<const std::string> names) const {
    std::string missing;
    std::size_t count = 0;
    for (const std::string& name : names)
      if (!has(name) && ++count <= 3) missing += (count > 1 ? ", " : "") + detail::printable(name);
    if (count > 3) missing += detail::text(" and ", count - 3, " more");
    if (count > 0) throw FormatError(detail::text(source_, ": has no tensor named ", missing));
  }

  /// All elements, converted to T; out.size() must be their number.
  template <class T>
  void read(std::string_view name, std::span<T> out) const {
    const std::string& own = stored_name(name);
    if (gguf_)
      gguf_->read(own, out);
    else
      safetensors_->read(own, out);
  }

  /// Rows [begin, begin + n) of a matrix, n = out.size() / in; a vector is one row in GGUF and
  /// rows of one element in safetensors, so ask for matrices only.
  template <class T>
  void read_rows(std::string_view name, index_t begin, std::span<T> out) const {
    const std::string& own = stored_name(name);
    if (gguf_)
      gguf_->read_rows(own, begin, out);
    else
      safetensors_->read_rows(own, begin, out);
  }

  /// Checks the shape and reads; the error names tensor, shape and what was wanted.
  template <class T, std::size_t Rank>
  Tensor<T, Rank> load(std::string_view name, const Shape<Rank>& wanted) const {
    const TensorInfo& t = info(name);
    const auto extents = std::span<const index_t>(wanted.begin(), Rank);
    if (!std::equal(t.shape.begin(), t.shape.end(), extents.begin(), extents.end()))
      throw FormatError(detail::text(source_, ": tensor ", detail::printable(t.name), " is ",
                                     detail::shape_text(t.shape), ", expected ",
                                     detail::shape_text(wanted)));
    auto out = Tensor<T, Rank>::uninitialized(wanted);
    read(name, std::span<T>(out.data(), static_cast<std::size_t>(out.size())));
    return out;
  }

 private:
  explicit WeightFile(const std::filesystem::path& path) : source_(path.string()) {}

  static std::optional<std::filesystem::path> single_gguf(const std::filesystem::path& folder) {
    std::optional<std::filesystem::path> found;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      if (entry.path().extension() != ".gguf") continue;
      if (found) return std::nullopt;  // which one is meant?
      found = entry.path();
    }
    return found;
  }

  void open_gguf(const std::filesystem::path& path) {
    gguf_ = std::make_shared<const GgufFile>(GgufFile::open(path));
    config_ = model_config_from_gguf(*gguf_);
    const std::string architecture(gguf_->string("general.architecture"));
    for (const std::string& own : gguf_->names()) {
      if (own == "rope_freqs.weight") continue;  // part of config().rope
      add(hugging_face_name(own, architecture), own);
    }
  }

  void open_safetensors(const std::filesystem::path& path, const std::filesystem::path& folder) {
    folder_ = folder;
    config_ = read_model_config(folder / "config.json");
    safetensors_ = std::make_shared<const SafetensorsFolder>(SafetensorsFolder::open(path));
    for (const std::string& own : safetensors_->names()) add(plain_name(own), own);
  }

  /// Multimodal checkpoints keep the language model under a prefix, base models drop "model.".
  static std::string plain_name(const std::string& own) {
    for (const std::string_view prefix : {"language_model.model.", "model.language_model."})
      if (own.compare(0, prefix.size(), prefix) == 0) return "model." + own.substr(prefix.size());
    if (own.compare(0, 23, "language_model.lm_head.") == 0) return own.substr(15);
    for (const std::string_view prefix : {"layers.", "embed_tokens.", "norm."})
      if (own.compare(0, prefix.size(), prefix) == 0) return "model." + own;
    return own;
  }

  void add(std::string name, const std::string& own) {
    if (!stored_.emplace(name, own).second)
      throw FormatError(detail::text(source_, ": two tensors stand for ", detail::printable(name)));
    names_.push_back(std::move(name));
  }

  const std::string& stored_name(std::string_view name) const {
    const auto found = stored_.find(std::string(name));
    if (found == stored_.end()) detail::throw_missing(source_, name);
    return found->second;
  }

  std::string source_;
  std::filesystem::path folder_;
  ModelConfig config_;
  std::shared_ptr<const GgufFile> gguf_;
  std::shared_ptr<const SafetensorsFolder> safetensors_;
  std::vector<std::string> names_;
  std::unordered_map<std::string, std::string> stored_;  // Hugging Face name -> the file's own
};

}  // namespace rapt
