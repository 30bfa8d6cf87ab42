// Text to token ids and back, with the tokenizer of a model.
//
//   echo '"Hello, world"' | tokenize --model model.gguf            [19556, 28, 905]
//   echo '[19556, 28, 905]' | tokenize --model model.gguf --decode  "Hello, world"
//
// One JSON string a line on stdin, one JSON array of ids a line on stdout, in step: a program may
// write a line and read its answer. A line that is not what it should be ends the program (exit
// code 2) and names its number. Bytes that are no UTF-8 pass into the tokenizer as they are; coming
// out of
// --decode they are U+FFFD, since JSON has no other way to say them.
#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <vector>

#include "program.hpp"
#include "rapt/core/error.hpp"
#include "rapt/text/load_tokenizer.hpp"

namespace {

using nlohmann::json;

/// A JSON string that may hold raw bytes, which the JSON parser would refuse: they are kept apart
/// under private characters while it works.
std::string parse_string(const std::string& line) {
  std::string text;
  const auto value = json::parse(line, nullptr, false);
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_discarded() || rapt::detail::valid_prefix(line) == line.size())
    throw rapt::ValueError("expected a JSON string");
  // Bytes that are no UTF-8 travel as U+DC00 + byte would in Python: here as a marker that the line
  // does not contain.
  std::string marker = "\x01";
  std::string escaped, bytes;
  do {
    marker += 'x';
  } while (line.find(marker) != std::string::npos);
  rapt::detail::for_each_run(line, [&](std::string_view run, bool valid) {
    if (valid) {
      escaped += run;
      return;
    }
    for (const char byte : run) {
      escaped += "\\u0001" + marker.substr(1) + "\\u0001";
      bytes += byte;
    }
  });
  const auto with_markers = json::parse(escaped, nullptr, false);
  if (!with_markers.is_string()) throw rapt::ValueError("expected a JSON string");
  const auto& marked = with_markers.get_ref<const std::string&>();
  marker += '\x01';
  std::size_t at = 0;
  for (const char byte : bytes) {
    const std::size_t next = marked.find(marker, at);
    text += marked.substr(at, next - at);
    text += byte;
    at = next + marker.size();
  }
  return text + marked.substr(at);
}

std::vector<std::int32_t> parse_ids(const std::string& line) {
  const auto value = json::parse(line, nullptr, false);
  if (!value.is_array()) throw rapt::ValueError("expected a JSON array of ids");
  std::vector<std::int32_t> ids;
  for (const json& id : value) {
    if (!id.is_number_integer() || id < 0 || id > 0x7FFFFFFF)
      throw rapt::ValueError("an id is " + id.dump(-1, ' ', false, json::error_handler_t::replace) +
                             ", expected an integer from 0");
    ids.push_back(id.get<std::int32_t>());
  }
  return ids;
}

void run(const std::string& model, bool decode, bool special, bool bos) {
  const rapt::Tokenizer tokenizer = rapt::load_tokenizer(model);
  std::string line;
  for (std::size_t number = 1; std::getline(std::cin, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    try {
      if (decode) {
        const std::string text = rapt::to_valid_utf8(tokenizer.decode(parse_ids(line)));
        std::cout << json(text).dump() << std::endl;
      } else {
        const auto ids =
            tokenizer.encode(parse_string(line), {.parse_special = special, .add_bos = bos});
        std::cout << json(ids).dump() << std::endl;
      }
    } catch (const std::exception& error) {
      throw rapt::ValueError("line " + std::to_string(number) + ": " + error.what());
    }
    if (!std::cout) throw std::runtime_error("cannot write to stdout");
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::string model;
  bool decode = false, special = false, bos = false, as_json = false;
  return rapt::example::run_program(
      "tokenize",
      "Text to token ids and back: one JSON string a line in, one JSON array a line out.", argc,
      argv, [&](CLI::App& app) {
        app.add_option("--model", model, "GGUF file, Hugging Face folder or tokenizer.json")
            ->required();
        app.add_flag("--decode", decode, "The other way: arrays of ids in, strings out");
        app.add_flag("--special", special, "Read special tokens in the text");
        app.add_flag("--bos", bos, "Begin with BOS where the model's file asks for it");
        app.add_flag("--json", as_json, "Accepted: the output is JSON already");
        return [&] { run(model, decode, special, bos); };
      });
}
