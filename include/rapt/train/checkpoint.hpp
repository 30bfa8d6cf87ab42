// A training checkpoint: a Hugging Face folder with the trainer's state beside it.
//
//   latest/config.json, model.safetensors      nn::load_transformer, transformers
//   (nn/checkpoint.hpp) latest/tokenizer.json, ...                 whatever the caller adds
//   latest/trainer.safetensors                 exp_avg.<name>, exp_avg_sq.<name>, and for 16-bit
//                                              weights master.<name>; accumulate_t<T>
//   latest/trainer.json                        step, data position, loss scale, random state,
//                                              the settings of the run
//
// Everything that the next step depends on is in it, so a resumed run equals one that never
// stopped, bit for bit. The folder is replaced as a whole (io/atomic_folder.hpp).
//
// Loading checks before it changes anything: all three files must be of one step, of this element
// type, and have every tensor in its shape. Errors: FormatError naming the file, the entry, its
// value and what was expected; IoError.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/random.hpp"
#include "rapt/io/atomic_folder.hpp"
#include "rapt/io/json_cursor.hpp"
#include "rapt/nn/checkpoint.hpp"
#include "rapt/train/loss_scaler.hpp"
#include "rapt/train/optimizer.hpp"

namespace rapt::train {

/// The part of a trainer's state that is no tensor.
struct TrainerState {
  index_t step = 0;             // steps done, those that were skipped included
  index_t optimizer_steps = 0;  // without them
  index_t position = 0;         // sequences of the data consumed
  index_t tokens = 0;           // tokens trained on
  LossScaler::State scaler;
  Philox::State random;                         // of sampled texts
  std::map<std::string, std::string> settings;  // of the run; a resumed run must have the same

  friend bool operator==(const TrainerState&, const TrainerState&) = default;
};

namespace detail {

using rapt::detail::text;

/// A number with every digit that it needs to come back the same.
inline std::string number_text(double value) {
  char buffer[40];
  std::snprintf(buffer, sizeof buffer, "%.17g", value);
  return buffer;
}

inline std::string state_json(const TrainerState& state, DType dtype) {
  std::string out = "{\n";
  const auto line = [&](const char* key, const std::string& value) {
    out += text("  \"", key, "\": ", value, ",\n");
  };
  line("format", "\"rapt trainer\"");
  line("version", "1");
  line("dtype", rapt::detail::json_quote(name_of(dtype)));
  line("step", std::to_string(state.step));
  line("optimizer_steps", std::to_string(state.optimizer_steps));
  line("position", std::to_string(state.position));
  line("tokens", std::to_string(state.tokens));
  line("loss_scale", "\"" + number_text(state.scaler.scale) + "\"");
  line("good_steps", std::to_string(state.scaler.good_steps));
  line("skipped_steps", std::to_string(state.scaler.skipped));
  line("random_seed", "\"" + std::to_string(state.random.seed) + "\"");
  line("random_position", "\"" + std::to_string(state.random.position) + "\"");
  out += "  \"settings\": {";
  const char* before = "\n";
  for (const auto& [key, value] : state.settings) {
    out +=
        text(before, "    ", rapt::detail::json_quote(key), ": ", rapt::detail::json_quote(value));
    before = ",\n";
  }
  return out + "\n  }\n}\n";
}

inline TrainerState parse_state(std::string_view json_text, const std::string& source,
                                DType dtype) {
  TrainerState state;
  std::map<std::string, bool> seen;
  rapt::detail::JsonCursor json(json_text, source);
  const auto fail = [&](const std::string& key, const std::string& value, const std::string& want) {
    throw FormatError(
        text(source, ": ", key, " is ", rapt::detail::printable(value), ", expected ", want));
  };
  const auto number = [&] { return static_cast<index_t>(json.natural()); };
  const auto unsigned_text = [&](const std::string& key) {
    const std::string value = json.string();
    char* end = nullptr;
    const unsigned long long out = std::strtoull(value.c_str(), &end, 10);
    if (value.empty() || *end != '\0' || value[0] < '0' || value[0] > '9')
      fail(key, value, "a whole number");
    return static_cast<std::uint64_t>(out);
  };
  json.object([&](const std::string& key) {
    if (seen[key]) json.fail("a second " + rapt::detail::printable(key));
    seen[key] = true;
    if (key == "format") {
      if (const std::string value = json.string(); value != "rapt trainer")
        fail(key, value, "\"rapt trainer\"");
    } else if (key == "version") {
      if (const index_t value = number(); value != 1) fail(key, std::to_string(value), "1");
    } else if (key == "dtype") {
      if (const std::string value = json.string(); value != name_of(dtype))
        fail(key, value, std::string(name_of(dtype)));
    } else if (key == "step") {
      state.step = number();
    } else if (key == "optimizer_steps") {
      state.optimizer_steps = number();
    } else if (key == "position") {
      state.position = number();
    } else if (key == "tokens") {
      state.tokens = number();
    } else if (key == "loss_scale") {
      const std::string value = json.string();
      char* end = nullptr;
      state.scaler.scale = std::strtod(value.c_str(), &end);
      if (value.empty() || *end != '\0' || !(state.scaler.scale >= 1))
        fail(key, value, "a number of at least 1");
    } else if (key == "good_steps") {
      state.scaler.good_steps = number();
    } else if (key == "skipped_steps") {
      state.scaler.skipped = number();
    } else if (key == "random_seed") {
      state.random.seed = unsigned_text(key);
    } else if (key == "random_position") {
      state.random.position = unsigned_text(key);
    } else if (key == "settings") {
      json.object([&](std::string name) { state.settings[std::move(name)] = json.string(); });
    } else {
      json.fail("an unknown entry " + rapt::detail::printable(key));
    }
  });
  json.end();
  for (const char* key :
       {"format", "version", "dtype", "step", "optimizer_steps", "position", "tokens", "loss_scale",
        "good_steps", "skipped_steps", "random_seed", "random_position", "settings"})
    if (!seen[key]) throw FormatError(text(source, ": has no ", key));
  if (state.optimizer_steps > state.step)
    fail("optimizer_steps", std::to_string(state.optimizer_steps),
         "at most step = " + std::to_string(state.step));
  return state;
}

/// Both files of tensors say which step they are of, so that files of two checkpoints do not mix.
inline void check_step(const SafetensorsFile& file, index_t step) {
  const auto found = file.metadata().find("step");
  if (found == file.metadata().end())
    throw FormatError(text(file.source(), ": has no step in its metadata, expected ", step,
                           " as in trainer.json"));
  if (found->second != std::to_string(step))
    throw FormatError(text(file.source(), ": is of step ", rapt::detail::printable(found->second),
                           ", expected ", step, " as in trainer.json"));
}

/// f(name, view) for every tensor that the optimiser keeps.
template <class T, class B, class F>
void for_optimizer_tensors(AdamW<T, B>& optimizer, F f) {
  for (auto& slot : optimizer.slots()) {
    const auto& p = slot.parameter;
    f("exp_avg." + p.name, slot.first.view(), p.shape);
    f("exp_avg_sq." + p.name, slot.second.view(), p.shape);
    if (AdamW<T, B>::kHasMaster) f("master." + p.name, slot.master.view(), p.shape);
  }
}

}  // namespace detail

/// Called with the folder while a checkpoint is being written: for files of the caller's.
using CheckpointFiles = std::function<void(const std::filesystem::path& folder)>;

/// Writes `folder` (say run/latest) with the weights, the optimiser and the state; the folder that
/// was there is replaced when all of it is on the disk.
template <class T, class B>
void save_checkpoint(nn::Transformer<T, B>& model, AdamW<T, B>& optimizer,
                     const TrainerState& state, const std::filesystem::path& folder,
                     const CheckpointFiles& more = {}) {
  using A = accumulate_t<T>;
  ModelConfig config = model.config();
  config.dtype = dtype_of<T>;
  const std::string config_json = write_model_config(config);  // refuses before anything is written
  AtomicFolder fresh(folder);
  const std::string step = std::to_string(state.step);
  {
    const Parameters<T, B> parameters = model.parameters();
    std::vector<TensorSpec> specs;
    for (const auto& p : parameters) specs.push_back({p.name, dtype_of<T>, p.shape});
    SafetensorsWriter out(fresh.path() / "model.safetensors", std::move(specs),
                          {{"format", "pt"}, {"step", step}});
    for (const auto& p : parameters) out.write(as_const_view(to(Cpu{}, p.values)));
    out.finish();
  }
  {
    std::vector<TensorSpec> specs;
    detail::for_optimizer_tensors(optimizer, [&](std::string name, const auto&, const auto& shape) {
      specs.push_back({std::move(name), dtype_of<A>, shape});
    });
    SafetensorsWriter out(fresh.path() / "trainer.safetensors", std::move(specs), {{"step", step}});
    detail::for_optimizer_tensors(optimizer, [&](const std::string&, auto view, const auto&) {
      out.write(as_const_view(to(Cpu{}, view)));
    });
    out.finish();
  }
  write_file(fresh.path() / "config.json", config_json);
  write_file(fresh.path() / "trainer.json", detail::state_json(state, dtype_of<T>));
  if (more) more(fresh.path());
  fresh.commit();
}

/// The state alone; element types must agree. For deciding whether a folder can be resumed.
template <class T>
TrainerState read_trainer_state(const std::filesystem::path& folder) {
  const std::filesystem::path path = folder / "trainer.json";
  return detail::parse_state(read_file(path), path.string(), dtype_of<T>);
}

/// Fills model and optimiser from a checkpoint and returns its state. All is checked first: after
/// an error both are as they were.
template <class T, class B>
TrainerState load_checkpoint(nn::Transformer<T, B>& model, AdamW<T, B>& optimizer,
                             const std::filesystem::path& folder) {
  const TrainerState state = read_trainer_state<T>(folder);
  const auto weights = SafetensorsFile::open(folder / "model.safetensors");
  const auto moments = SafetensorsFile::open(folder / "trainer.safetensors");
  detail::check_step(weights, state.step);
  detail::check_step(moments, state.step);
  std::size_t expected = 0;
  detail::for_optimizer_tensors(optimizer, [&](const std::string& name, const auto& view,
                                               const auto& shape) {
    using E = element_t<decltype(view)>;
    const TensorInfo& info = moments.info(name);
    if (info.dtype != dtype_of<E>)
      throw FormatError(rapt::detail::text(moments.source(), ": tensor ", name, " is ",
                                           info.dtype_name, ", expected ", name_of(dtype_of<E>)));
    if (info.shape != shape)
      throw FormatError(rapt::detail::text(
          moments.source(), ": tensor ", name, " is ", rapt::detail::shape_text(info.shape),
          ", expected ", rapt::detail::shape_text(std::span<const index_t>(shape))));
    ++expected;
  });
  if (moments.names().size() != expected)
    throw FormatError(rapt::detail::text(moments.source(), ": has ", moments.names().size(),
                                         " tensors, expected ", expected));
  for (const auto& p : model.parameters())
    if (weights.info(p.name).dtype != dtype_of<T>)
      throw FormatError(rapt::detail::text(weights.source(), ": tensor ", p.name, " is ",
                                           weights.info(p.name).dtype_name, ", expected ",
                                           name_of(dtype_of<T>)));
  load_parameters(model.parameters(), weights);  // checks all names and shapes before it reads
  detail::for_optimizer_tensors(optimizer, [&](const std::string& name, auto view, const auto&) {
    using E = element_t<decltype(view)>;
    auto host = Tensor<E, 1>::uninitialized(view.shape());
    moments.read(name, std::span<E>(host.data(), static_cast<std::size_t>(host.size())));
    copy(view, host);
  });
  optimizer.set_steps(state.optimizer_steps);
  return state;
}

}  // namespace rapt::train
