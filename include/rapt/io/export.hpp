// Writes a model as a Hugging Face folder: config.json and model.safetensors.
//
//   export_model(WeightFile::open("model.gguf"), "out", DType::bf16);
//
// GGUF's conventions are undone, so that transformers and rapt load the result alike:
//
//   llama    rows of W_q and W_k (and their biases) go back from interleaved to half-split,
//            HF_row(h, half · D/2 + i) = GGUF_row(h, 2 i + half)
//   gemma*   norm weights lose the 1 that the converter added
//
// Values pass through float (double where the file holds doubles) and are rounded once, to `dtype`.
// Rows are streamed: memory stays at a few megabytes. model.safetensors appears whole or not at
// all, and config.json comes last: a folder without it is not finished.
//
// Errors: FormatError for a tensor that Hugging Face has no name for, ValueError for a config that
// its config.json cannot express, IoError from writing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/io/atomic_file.hpp"
#include "rapt/io/read_config.hpp"
#include "rapt/io/safetensors.hpp"
#include "rapt/io/weights.hpp"

namespace rapt {

/// Called before each tensor: its name, its number from 0, and how many there are.
using ExportProgress = std::function<void(std::string_view name, std::size_t i, std::size_t n)>;

namespace detail {

inline bool ends_with(std::string_view s, std::string_view end) {
  return s.size() >= end.size() && s.substr(s.size() - end.size()) == end;
}

/// Row of a GGUF llama projection that becomes row `row` of the half-split one.
inline index_t interleaved_row(index_t row, index_t head_dim) {
  const index_t head = row / head_dim, channel = row % head_dim, pairs = head_dim / 2;
  return head * head_dim + 2 * (channel % pairs) + channel / pairs;
}

/// How one tensor is changed on its way.
struct ExportRule {
  index_t head_dim = 0;  // not 0: rows are reordered
  double add = 0;        // to every value
};

template <class T>
void export_tensor(const WeightFile& weights, const std::string& name, const ExportRule& rule,
                   SafetensorsWriter& out) {
  const std::vector<index_t>& shape = weights.shape(name);
  std::vector<T> values;
  if (shape.size() < 2) {
    values.resize(static_cast<std::size_t>(weights.elements(name)));
    weights.read(name, std::span<T>(values));
    if (rule.head_dim != 0) {  // a bias
      const std::vector<T> source = values;
      for (std::size_t i = 0; i < values.size(); ++i)
        values[i] = source[static_cast<std::size_t>(
            interleaved_row(static_cast<index_t>(i), rule.head_dim))];
    }
    if (rule.add != 0)
      for (T& value : values) value = static_cast<T>(value + static_cast<T>(rule.add));
    return out.write(values);
  }
  const index_t rows = shape[0], row = rows > 0 ? weights.elements(name) / rows : 0;
  if (row == 0) return;
  const index_t step = rule.head_dim != 0 ? 1 : std::max<index_t>(1, (index_t{1} << 18) / row);
  for (index_t begin = 0; begin < rows; begin += step) {
    const index_t count = std::min(step, rows - begin);
    values.resize(static_cast<std::size_t>(count * row));
    const index_t from = rule.head_dim != 0 ? interleaved_row(begin, rule.head_dim) : begin;
    weights.read_rows(name, from, std::span<T>(values));
    out.write(values);
  }
}

}  // namespace detail

/// Writes `folder`/model.safetensors and `folder`/config.json; the folder is created.
inline void export_model(const WeightFile& weights, const std::filesystem::path& folder,
                         DType dtype, const ExportProgress& progress = {}) {
  if (dtype != DType::f32 && dtype != DType::f64 && dtype != DType::f16 && dtype != DType::bf16)
    throw ValueError(detail::text("export_model: dtype is ", name_of(dtype),
                                  ", expected f32, f64, f16 or bf16"));
  ModelConfig config = weights.config();
  const bool interleaved = config.rope.layout == RopeLayout::interleaved;
  const bool gemma = config.post_norms;
  const bool subtract = gemma && !config.norm_plus_one;
  if (interleaved && config.rope.partial_factor != 1.0)
    throw ValueError(detail::text("export_model: rotary channels are ", config.rope.partial_factor,
                                  " of head_dim, expected all of them to reorder the rows"));
  config.rope.layout = RopeLayout::rotate_half;
  config.norm_plus_one = gemma;
  config.dtype = dtype;
  const std::string config_json = write_model_config(config);  // refuses before anything is written

  std::vector<std::string> names = weights.names();
  std::sort(names.begin(), names.end());
  std::vector<TensorSpec> specs;
  for (const std::string& name : names) {
    if (name.rfind("model.", 0) != 0 && name.rfind("lm_head.", 0) != 0)
      throw FormatError(detail::text(weights.source(), ": tensor ", detail::printable(name),
                                     " has no counterpart in a Hugging Face checkpoint"));
    const TensorInfo& info = weights.info(name);
    if (info.shape.size() > 2)
      throw FormatError(detail::text(weights.source(), ": tensor ", detail::printable(name), " is ",
                                     detail::shape_text(info.shape), ", expected rank 1 or 2"));
    specs.push_back({name, dtype, info.shape});
  }

  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error)
    throw IoError(detail::text(folder.string(), ": cannot create the folder: ", error.message()));
  SafetensorsWriter out(folder / "model.safetensors", std::move(specs), {{"format", "pt"}});
  for (std::size_t i = 0; i < names.size(); ++i) {
    const std::string& name = names[i];
    if (progress) progress(name, i, names.size());
    detail::ExportRule rule;
    if (interleaved && (name.find(".q_proj.") != std::string::npos ||
                        name.find(".k_proj.") != std::string::npos)) {
      const std::vector<index_t>& shape = weights.shape(name);
      rule.head_dim = config.head_dim;
      if (shape.empty() || shape[0] % config.head_dim != 0 || config.head_dim % 2 != 0)
        throw FormatError(detail::text(weights.source(), ": tensor ", detail::printable(name),
                                       " is ", detail::shape_text(shape),
                                       ", expected whole heads of ", config.head_dim, " rows"));
    }
    if (subtract && detail::ends_with(name, "norm.weight")) rule.add = -1;
    if (weights.dtype(name) == DType::f64)
      detail::export_tensor<double>(weights, name, rule, out);
    else
      detail::export_tensor<float>(weights, name, rule, out);
  }
  out.finish();
  write_file(folder / "config.json", config_json);
}

}  // namespace rapt
