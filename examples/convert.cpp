// GGUF -> Hugging Face folder: dequantises a model and undoes GGUF's conventions, so that rapt,
// transformers and anything else that reads safetensors can load it.
//
//   build/examples/convert --model model.gguf --out folder [--dtype fp32|bf16|fp16]
//
// Without --dtype the weights keep the type of the file (fp32 where it is quantised: the values are
// then exactly those that the file stands for). A Hugging Face folder is accepted too, to change
// its type; its tokenizer files come along. Files appear whole or not at all.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "program.hpp"
#include "rapt/io/atomic_file.hpp"
#include "rapt/io/export.hpp"
#include "rapt/io/weights.hpp"
#include "rapt/text/gguf_tokenizer.hpp"
#include "rapt/text/write_tokenizer_json.hpp"

namespace {

/// One line on a terminal that is written over; nothing elsewhere.
void show_progress(std::string_view name, std::size_t i, std::size_t n) {
  static const bool terminal = ::isatty(STDERR_FILENO) != 0;
  if (!terminal) return;
  std::fprintf(stderr, "\r\033[K%3zu%%  %.*s", 100 * i / n, static_cast<int>(name.size()),
               name.data());
  if (i + 1 == n) std::fprintf(stderr, "\r\033[K");
}

/// tokenizer.json and tokenizer_config.json from what the GGUF file says of its tokenizer. A kind
/// that tokenizer.json has no words for is left out with a note: the weights are whole without it.
void write_tokenizer(const rapt::GgufFile& gguf, const std::filesystem::path& to) try {
  if (!gguf.find("tokenizer.ggml.model")) return;
  const rapt::TokenizerData data = rapt::gguf_tokenizer_data(gguf);
  const std::string text = rapt::tokenizer_json_text(data);
  nlohmann::ordered_json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                                   {"add_bos_token", data.add_bos},
                                   {"add_eos_token", data.add_eos}};
  const auto token = [&](const char* key, std::int32_t id) {
    if (id >= 0 && static_cast<std::size_t>(id) < data.tokens.size())
      config[key] = data.tokens[static_cast<std::size_t>(id)];
  };
  token("bos_token", data.bos);
  token("eos_token", data.eos);
  token("unk_token", data.unk);
  token("pad_token", data.pad);
  if (!data.chat_template.empty()) config["chat_template"] = data.chat_template;
  rapt::write_file(to / "tokenizer.json", text);
  rapt::write_file(to / "tokenizer_config.json", config.dump(2) + "\n");
} catch (const rapt::FormatError& error) {
  std::fprintf(stderr, "note: no tokenizer.json: %s\n", error.what());
}

/// What transformers keeps beside the weights.
void copy_tokenizer(const std::filesystem::path& from, const std::filesystem::path& to) {
  namespace fs = std::filesystem;
  if (fs::weakly_canonical(from) == fs::weakly_canonical(to)) return;
  for (const char* name :
       {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json",
        "generation_config.json", "chat_template.jinja", "vocab.json", "merges.txt"})
    if (fs::exists(from / name)) rapt::write_file(to / name, rapt::read_file(from / name));
}

}  // namespace

int main(int argc, char** argv) {
  std::string model, out, dtype_name;
  bool json = false;
  const std::map<std::string, rapt::DType> dtypes = {
      {"fp32", rapt::DType::f32}, {"bf16", rapt::DType::bf16}, {"fp16", rapt::DType::f16}};
  return rapt::example::run_program(
      "convert", "Converts a GGUF file (or a Hugging Face folder) to a Hugging Face folder.", argc,
      argv, [&](CLI::App& app) {
        app.add_option("--model", model, "GGUF file or Hugging Face folder")->required();
        app.add_option("--out", out, "folder to write; created if need be")->required();
        app.add_option("--dtype", dtype_name, "fp32, bf16 or fp16; default: as in the file")
            ->check(CLI::IsMember(dtypes));
        app.add_flag("--json", json, "Print one JSON object");
        return [&] {
          const auto weights = rapt::WeightFile::open(model);
          const rapt::ModelConfig& config = weights.config();
          const rapt::DType dtype = dtype_name.empty() ? config.dtype : dtypes.at(dtype_name);
          std::fprintf(stderr, "%s: %s, %lld layers, %zu tensors -> %s as %s\n", model.c_str(),
                       config.architecture.c_str(), static_cast<long long>(config.layers),
                       weights.names().size(), out.c_str(), rapt::name_of(dtype));
          rapt::export_model(weights, out, dtype, show_progress);
          if (weights.gguf())
            write_tokenizer(*weights.gguf(), out);
          else
            copy_tokenizer(weights.folder(), out);
          if (json)
            std::printf("%s\n", nlohmann::json{{"architecture", config.architecture},
                                               {"tensors", weights.names().size()},
                                               {"dtype", rapt::name_of(dtype)},
                                               {"out", out}}
                                    .dump()
                                    .c_str());
        };
      });
}
