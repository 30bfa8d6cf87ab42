// Models from files and back: every parameter by its Hugging Face name.
//
//   auto model = nn::load_transformer<float>("models/smollm2");   // folder, .safetensors or GGUF
//   nn::save_transformer(model, "out", DType::bf16);              // config.json, model.safetensors
//
// Weights are converted (or dequantised) to T while they are read, straight into the model. With
// QuantizedWeights::automatic those matrices that the file stores in blocks, all parts of a fused
// one, stay blocks where the backend multiplies with them: they are repacked, once, and the file's
// own pages are not kept. Errors: IoError, FormatError naming a tensor that is missing, of another
// shape or of an unreadable type.
#pragma once

#include <algorithm>
#include <array>
#include <filesystem>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rapt/core/convert.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/io/quantized_blocks.hpp"
#include "rapt/io/read_config.hpp"
#include "rapt/io/safetensors.hpp"
#include "rapt/io/weights.hpp"
#include "rapt/nn/transformer.hpp"

namespace rapt {

/// (parameters done, parameters in all), after each one.
using LoadProgress = std::function<void(index_t, index_t)>;

/// What becomes of a file's quantized blocks: multiplied as they are where that is possible, or
/// dequantized.
enum class QuantizedWeights { automatic, off };

namespace detail {

template <class File>
void check_stored_shape(const File& file, const std::string& name,
                        std::span<const index_t> wanted) {
  const auto& shape = file.info(name).shape;
  if (!std::equal(shape.begin(), shape.end(), wanted.begin(), wanted.end()))
    throw FormatError(text(file.source(), ": tensor ", name, " is ",
                           shape_text(std::span<const index_t>(shape)), ", expected ",
                           shape_text(wanted)));
}

}  // namespace detail

/// Gives each weight that has no elements yet the blocks of the file, or room for elements where a
/// part of it is stored otherwise.
template <class T, class B>
requires MultipliesBlocks<B, T>
void load_blocks(const WeightSlots<T, B>& slots, const WeightFile& file) {
  std::vector<std::string> names;
  for (const auto& slot : slots)
    for (const auto& part : slot.parts) names.push_back(part.name);
  file.require(names);
  for (const auto& slot : slots)
    for (const auto& part : slot.parts)
      detail::check_stored_shape(file, part.name, std::array{part.rows, slot.weight->in()});
  for (const auto& slot : slots) {
    const auto format_of = [&](const auto& part) -> std::optional<BlockFormat> {
      if (file.gguf() == nullptr) return std::nullopt;
      return block_format_of(file.gguf()->type(file.info(part.name).name).type);
    };
    if (!std::all_of(slot.parts.begin(), slot.parts.end(), format_of)) {
      slot.weight->allocate();
      continue;
    }
    QuantizedMatrix blocks(slot.weight->in());
    for (const auto& part : slot.parts)
      append_blocks(blocks, *format_of(part), file.info(part.name).bytes);
    slot.weight->hold(std::move(blocks));
  }
}

/// Reads every parameter from a file that has a tensor of its name and shape (a WeightFile, or a
/// SafetensorsFile). All names and shapes are checked before the first is read.
template <class T, class B, class File>
void load_parameters(Parameters<T, B> parameters, const File& file,
                     const LoadProgress& progress = {}) {
  std::vector<std::string> names;
  for (const auto& p : parameters) names.push_back(p.name);
  if constexpr (requires { file.require(names); }) file.require(names);
  for (const auto& p : parameters) detail::check_stored_shape(file, p.name, p.shape);
  index_t done = 0;
  const auto total = static_cast<index_t>(parameters.size());
  for (auto& p : parameters) {
    if constexpr (std::same_as<B, Cpu>) {
      file.read(p.name, std::span<T>(p.values.data(), static_cast<std::size_t>(p.values.size())));
    } else {
      auto host = Tensor<T, 1>::uninitialized(p.values.shape());
      file.read(p.name, std::span<T>(host.data(), static_cast<std::size_t>(host.size())));
      copy(p.values, host);
    }
    if (progress) progress(++done, total);
  }
}

/// Writes every parameter into one safetensors file, as `dtype`; atomically, so that an interrupted
/// save leaves what was there.
template <class T, class B>
void save_parameters(Parameters<T, B> parameters, const std::filesystem::path& path,
                     DType dtype = dtype_of<T>) {
  std::vector<TensorSpec> specs;
  for (const auto& p : parameters) specs.push_back({p.name, dtype, p.shape});
  SafetensorsWriter writer(path, std::move(specs), {{"format", "pt"}});
  for (const auto& p : parameters) writer.write(as_const_view(to(Cpu{}, p.values)));
  writer.finish();
}

/// Save and load of one module's own parameters.
template <class M>
requires requires(M m) { m.parameters(); }
void save(M& module, const std::filesystem::path& path) {
  save_parameters(module.parameters(), path);
}
template <class M>
requires requires(M m) { m.parameters(); }
void load(M& module, const std::filesystem::path& path) {
  load_parameters(module.parameters(), SafetensorsFile::open(path));
}

namespace nn {

/// The model in `file`, with elements of type T on `backend`.
template <class T = float, class B = Cpu>
Transformer<T, B> load_transformer(const WeightFile& file, B backend = {},
                                   const LoadProgress& progress = {},
                                   QuantizedWeights quantized = QuantizedWeights::off) {
  if constexpr (MultipliesBlocks<B, T>)
    if (quantized == QuantizedWeights::automatic) {
      Transformer<T, B> model(file.config(), backend, WeightStorage::none);
      load_blocks(model.weights(), file);
      load_parameters(model.parameters(), file, progress);
      return model;
    }
  Transformer<T, B> model(file.config(), backend);
  load_parameters(model.parameters(), file, progress);
  return model;
}
template <class T = float, class B = Cpu>
Transformer<T, B> load_transformer(const std::filesystem::path& path, B backend = {},
                                   const LoadProgress& progress = {},
                                   QuantizedWeights quantized = QuantizedWeights::off) {
  return load_transformer<T, B>(WeightFile::open(path), backend, progress, quantized);
}

/// A Hugging Face folder: model.safetensors as `dtype`, then config.json. The folder is made where
/// it is missing. Throws ValueError for a model that holds quantized blocks: it has no elements to
/// save.
template <class T, class B>
void save_transformer(Transformer<T, B>& model, const std::filesystem::path& folder,
                      DType dtype = dtype_of<T>) {
  if (model.is_quantized())
    throw ValueError(
        "save_transformer: model holds quantized blocks, expected one loaded with "
        "QuantizedWeights::off");
  std::filesystem::create_directories(folder);
  save_parameters(model.parameters(), folder / "model.safetensors", dtype);
  ModelConfig config = model.config();
  config.dtype = dtype;
  write_file(folder / "config.json", write_model_config(config));
}

}  // namespace nn
}  // namespace rapt
