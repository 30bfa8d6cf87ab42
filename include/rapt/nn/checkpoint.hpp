// Models from files and back: every parameter by its Hugging Face name.
//
//   auto model = nn::load_transformer<float>("models/smollm2");        // folder, .safetensors,
//   GGUF nn::save_transformer(model, "out", DType::bf16);                   // config.json,
//   model.safetensors
//
// Weights are converted (or dequantised) to T while they are read, straight into the model. Errors:
// IoError, FormatError naming a tensor that is missing, of another shape or of an unreadable type.
#pragma once

#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rapt/core/convert.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/io/read_config.hpp"
#include "rapt/io/safetensors.hpp"
#include "rapt/io/weights.hpp"
#include "rapt/nn/transformer.hpp"

namespace rapt {

/// (parameters done, parameters in all), after each one.
using LoadProgress = std::function<void(index_t, index_t)>;

/// Reads every parameter from a file that has a tensor of its name and shape (a WeightFile, or a
/// SafetensorsFile). All names and shapes are checked before the first is read.
template <class T, class B, class File>
void load_parameters(Parameters<T, B> parameters, const File& file,
                     const LoadProgress& progress = {}) {
  std::vector<std::string> names;
  for (const auto& p : parameters) names.push_back(p.name);
  if constexpr (requires { file.require(names); }) file.require(names);
  for (const auto& p : parameters) {
    const auto& shape = file.info(p.name).shape;
    if (!std::equal(shape.begin(), shape.end(), p.shape.begin(), p.shape.end()))
      throw FormatError(detail::text(file.source(), ": tensor ", p.name, " is ",
                                     detail::shape_text(std::span<const index_t>(shape)),
                                     ", expected ",
                                     detail::shape_text(std::span<const index_t>(p.shape))));
  }
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
                                   const LoadProgress& progress = {}) {
  Transformer<T, B> model(file.config(), backend);
  load_parameters(model.parameters(), file, progress);
  return model;
}
template <class T = float, class B = Cpu>
Transformer<T, B> load_transformer(const std::filesystem::path& path, B backend = {},
                                   const LoadProgress& progress = {}) {
  return load_transformer<T, B>(WeightFile::open(path), backend, progress);
}

/// A Hugging Face folder: model.safetensors as `dtype`, then config.json. The folder is made where
/// it is missing.
template <class T, class B>
void save_transformer(Transformer<T, B>& model, const std::filesystem::path& folder,
                      DType dtype = dtype_of<T>) {
  std::filesystem::create_directories(folder);
  save_parameters(model.parameters(), folder / "model.safetensors", dtype);
  ModelConfig config = model.config();
  config.dtype = dtype;
  write_file(folder / "config.json", write_model_config(config));
}

}  // namespace nn
}  // namespace rapt
