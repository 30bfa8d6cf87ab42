// A tokenizer by path: a GGUF file, a Hugging Face folder, or a tokenizer.json alone.
//
//   tokenizer.json          the tokenizer
//   tokenizer_config.json   bos_token, eos_token, pad_token, add_bos_token, chat_template
//   chat_template.jinja     the chat template, where it has a file of its own
//   generation_config.json, config.json   eos_token_id: the tokens that end a text
//
// Only tokenizer.json must be there. Errors: IoError for a file that cannot be read, FormatError
// naming the file and what is wrong in it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "rapt/core/error.hpp"
#include "rapt/io/gguf.hpp"
#include "rapt/io/mapped_file.hpp"
#include "rapt/text/gguf_tokenizer.hpp"
#include "rapt/text/tokenizer.hpp"
#include "rapt/text/tokenizer_json.hpp"

namespace rapt {
namespace detail {

/// A JSON object of a model's folder; null where there is no such file.
inline nlohmann::json read_folder_json(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return nullptr;
  const MappedFile file(path);
  const std::string_view bytes = as_text(file.bytes());
  auto json = nlohmann::json::parse(bytes.begin(), bytes.end(), nullptr, false);
  if (!json.is_object()) throw FormatError(text(path.string(), ": is no JSON object"));
  return json;
}

/// A token that a config gives as a string or as an object with its content; -1 where it has none.
inline std::int32_t token_of_config(const TokenizerData& data, const nlohmann::json& config,
                                    const char* key) {
  const auto found = config.find(key);
  if (found == config.end()) return -1;
  const nlohmann::json* value = &*found;
  if (value->is_object() && value->contains("content")) value = &value->at("content");
  if (!value->is_string()) return -1;
  const auto& token = value->get_ref<const std::string&>();
  for (std::size_t id = 0; id < data.tokens.size(); ++id)
    if (data.tokens[id] == token) return static_cast<std::int32_t>(id);
  return -1;
}

/// What the other files of a folder add to tokenizer.json.
inline void read_folder_configs(TokenizerData& data, const std::filesystem::path& folder) {
  const auto in_range = [&](std::int64_t id) {
    return id >= 0 && static_cast<std::size_t>(id) < data.tokens.size();
  };
  const nlohmann::json config = read_folder_json(folder / "tokenizer_config.json");
  if (config.is_object()) {
    data.bos = token_of_config(data, config, "bos_token");
    data.eos = token_of_config(data, config, "eos_token");
    data.pad = token_of_config(data, config, "pad_token");
    // transformers lets this key overrule the post-processor.
    if (const auto add = config.find("add_bos_token"); add != config.end() && add->is_boolean()) {
      data.add_bos = add->get<bool>();
      if (!data.add_bos && data.prefix.size() == 1 && data.prefix[0] == data.bos)
        data.prefix.clear();
    }
    const auto chat = config.find("chat_template");
    if (chat != config.end() && chat->is_string()) data.chat_template = chat->get<std::string>();
    if (chat != config.end() && chat->is_array())  // several, by name
      for (const nlohmann::json& entry : *chat)
        if (entry.is_object() && entry.value("name", nlohmann::json()) == "default" &&
            entry.contains("template") && entry.at("template").is_string())
          data.chat_template = entry.at("template").get<std::string>();
  }
  if (const auto jinja = folder / "chat_template.jinja"; std::filesystem::exists(jinja)) {
    const MappedFile file(jinja);
    data.chat_template = as_text(file.bytes());
  }
  if (data.bos < 0 && data.prefix.size() == 1) data.bos = data.prefix[0];
  for (const char* name : {"generation_config.json", "config.json"}) {
    const nlohmann::json json = read_folder_json(folder / name);
    if (!json.is_object() || !json.contains("eos_token_id")) continue;
    nlohmann::json ids = json.at("eos_token_id");
    if (!ids.is_array()) ids = nlohmann::json::array({ids});
    for (const nlohmann::json& id : ids) {
      if (!id.is_number_integer() || !in_range(id.get<std::int64_t>())) continue;
      data.end_of_generation.push_back(id.get<std::int32_t>());
      if (data.eos < 0) data.eos = id.get<std::int32_t>();
    }
    break;  // generation_config.json is the one that generation follows
  }
}

}  // namespace detail

/// The tokenizer of a model: a GGUF file, a folder with tokenizer.json, or a tokenizer.json.
inline Tokenizer load_tokenizer(const std::filesystem::path& path) {
  const bool folder = std::filesystem::is_directory(path);
  const std::filesystem::path file_path = folder ? path / "tokenizer.json" : path;
  const MappedFile file(file_path);
  if (!folder && GgufFile::has_magic(file.bytes())) return gguf_tokenizer(GgufFile::open(path));
  const std::string source = file_path.string();
  if (!folder && path.extension() != ".json")
    throw FormatError(detail::text(
        source, ": is no GGUF file, expected a GGUF file, a folder or a tokenizer.json"));
  TokenizerData data = tokenizer_json_data(detail::as_text(file.bytes()), source);
  if (folder) detail::read_folder_configs(data, path);
  if (data.bos < 0 && !data.prefix.empty()) data.bos = data.prefix[0];
  try {
    return Tokenizer(std::move(data));
  } catch (const FormatError& error) {
    throw FormatError(detail::text(source, ": ", error.what()));
  }
}

}  // namespace rapt
