// Oracle for what is read: tokenizer_test.cpp. Here: what is refused, what is written, and 10,000
// files with seeded damage, none of which may crash.
#include "rapt/text/tokenizer_json.hpp"

#include <gmock/gmock.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "rapt/core/random.hpp"
#include "rapt/text/load_tokenizer.hpp"
#include "rapt/text/write_tokenizer_json.hpp"
#include "text/reference_text.hpp"

namespace rapt::test {
namespace {

using nlohmann::json;
using testing::HasSubstr;
using testing::ThrowsMessage;

json small() {
  return json::parse(R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2},
      "merges": ["a b"]}, "added_tokens": [{"id": 3, "content": "<e>", "special": true}],
      "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": null})");
}

void expect_refused(const json& file, const char* why) {
  EXPECT_THAT([&] { tokenizer_from_json(file.dump(), "t.json"); },
              ThrowsMessage<FormatError>(testing::AllOf(HasSubstr("t.json"), HasSubstr(why))));
}

TEST(TokenizerJson, ReadsBothFormsOfMerges) {
  json file = small();
  const auto want = tokenizer_from_json(file.dump()).encode("abba");
  file["model"]["merges"] = json::array({json::array({"a", "b"})});
  EXPECT_EQ(tokenizer_from_json(file.dump()).encode("abba"), want);
  EXPECT_EQ(want, (std::vector<std::int32_t>{2, 1, 0}));
}

TEST(TokenizerJson, RefusesByNameWhatItCannotDo) {
  const auto with = [](const char* pointer, json value) {
    json file = small();
    file[json::json_pointer(pointer)] = std::move(value);
    return file;
  };
  expect_refused(with("/model/type", "Unigram"), "the model is Unigram, expected BPE or WordPiece");
  expect_refused(with("/normalizer", {{"type", "Precompiled"}}),
                 "the normalizer Precompiled is not supported");
  expect_refused(with("/pre_tokenizer", {{"type", "UnicodeScripts"}}),
                 "the pre-tokenizer UnicodeScripts is not supported");
  expect_refused(with("/decoder", {{"type", "CTC"}}), "the decoder CTC is not supported");
  expect_refused(with("/post_processor", {{"type", "Odd"}}),
                 "the post-processor Odd is not supported");
  expect_refused(with("/model/dropout", 0.1), "dropout 0.1");
  expect_refused(with("/model/end_of_word_suffix", "</w>"), "end_of_word_suffix");
  expect_refused(with("/model/merges", {"a zz"}), "merge 0 is a zz");
  expect_refused(with("/model/merges", {"ab"}), "merge 0 is ab, expected two tokens and a space");
  expect_refused(with("/model/merges", 3), "merges is no array");
  expect_refused(with("/model/vocab", json::object()), "");
  expect_refused(with("/model/vocab/c", 2), "have the same id 2");
  expect_refused(with("/model/vocab/c", 1000000000), "has the id 1000000000 in a vocabulary of");
  expect_refused(with("/model/vocab/c", -1), "has the id -1, expected 0");
  expect_refused(with("/model/vocab/c", 1.5), "has an id that is no integer");
  expect_refused(
      with("/pre_tokenizer",
           {{"type", "Split"}, {"pattern", {{"Regex", "(a"}}}, {"behavior", "Isolated"}}),
      "does not compile");
  expect_refused(
      with("/post_processor", {{"type", "BertProcessing"}, {"sep", {"x", 9}}, {"cls", {"x", 0}}}),
      "a token after the text is 9, expected 0 ... 3");
  EXPECT_THAT([] { tokenizer_from_json("{", "t.json"); },
              ThrowsMessage<FormatError>(HasSubstr("t.json: is no JSON")));
  EXPECT_THAT([] { tokenizer_from_json("[]"); }, ThrowsMessage<FormatError>(HasSubstr("object")));
}

TEST(TokenizerJson, DeepNestingIsAnErrorNotACrash) {
  json nested = {{"type", "NFC"}};
  for (int i = 0; i < 100; ++i) nested = {{"type", "Sequence"}, {"normalizers", {nested}}};
  json file = small();
  file["normalizer"] = nested;
  expect_refused(file, "nested too deeply");
  std::string deep = "{\"model\":";
  for (int i = 0; i < 200000; ++i) deep += '[';
  EXPECT_THROW(tokenizer_from_json(deep), FormatError);
}

TEST(TokenizerJson, WhatIsWrittenReadsBackAlike) {
  for (const char* name : {"gpt2", "gpt2_prefix_space", "smollm", "llama3", "qwen2", "deepseek"}) {
    const Tokenizer first = load_tokenizer(reference_path(std::string(name) + ".json"));
    const Tokenizer again = tokenizer_from_json(tokenizer_json_text(first.data()));
    const EncodeOptions options{.parse_special = true, .add_bos = true, .add_eos = true};
    for (int i = 0; i < 40; ++i) {
      const std::string line = reference_line(i);
      EXPECT_EQ(first.encode(line, options), again.encode(line, options)) << name;
      EXPECT_EQ(again.decode(again.encode(line)), first.decode(first.encode(line))) << name;
    }
  }
}

TEST(TokenizerJson, AGgufVocabularyIsWrittenAsMerges) {
  for (const char* file : {"SmolLM2-135M-Instruct.Q4_1.gguf", "gemma-3-270m-q4_k_m.gguf"}) {
    const auto path = model_path(file);
    if (path.empty()) GTEST_SKIP() << file << " is not in RAPT_MODELS or models/";
    const Tokenizer first = load_tokenizer(path);
    const Tokenizer again = tokenizer_from_json(tokenizer_json_text(first.data()));
    for (int i = 0; i < 100; ++i) {
      const std::string line = reference_line(i);
      EXPECT_EQ(first.encode(line, {.parse_special = true, .add_bos = true}),
                again.encode(line, {.parse_special = true, .add_bos = true}));
      EXPECT_EQ(again.decode(again.encode(line)), first.decode(first.encode(line)));
    }
  }
}

TEST(TokenizerJson, AFolderAddsItsOtherFiles) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("rapt_tokenizer_folder_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  const auto put = [&](const char* name, const std::string& text) {
    std::ofstream(folder / name, std::ios::binary) << text;
  };
  put("tokenizer.json", small().dump());
  put("tokenizer_config.json", R"({"bos_token": {"content": "<e>"}, "eos_token": "b",
      "add_bos_token": true, "chat_template": "<|im_start|>"})");
  put("generation_config.json", R"({"eos_token_id": [3, 1, 99]})");
  const Tokenizer tokenizer = load_tokenizer(folder);
  EXPECT_EQ(tokenizer.bos(), 3);
  EXPECT_EQ(tokenizer.eos(), 1);
  EXPECT_EQ(tokenizer.chat_template(), "<|im_start|>");
  EXPECT_EQ(tokenizer.encode("a", {.add_bos = true}), (std::vector<std::int32_t>{3, 0}));
  EXPECT_TRUE(tokenizer.ends_generation(3));
  EXPECT_TRUE(tokenizer.ends_generation(1));
  put("tokenizer_config.json", "[");
  EXPECT_THAT([&] { load_tokenizer(folder); }, ThrowsMessage<FormatError>(HasSubstr("no JSON")));
  std::filesystem::remove_all(folder);
  EXPECT_THROW(load_tokenizer(folder), IoError);
}

/// Every place in a JSON value, as pointers.
void collect(const json& value, const json::json_pointer& at,
             std::vector<json::json_pointer>& out) {
  out.push_back(at);
  if (value.is_object())
    for (const auto& [key, inner] : value.items()) collect(inner, at / key, out);
  if (value.is_array())
    for (std::size_t i = 0; i < value.size(); ++i) collect(value[i], at / i, out);
}

/// A file with fewer tokens, so that thousands of variants are cheap.
json shrunk(const std::string& name) {
  json file = json::parse(read_text(reference_path(name)));
  json& model = file["model"];
  for (auto it = model["vocab"].begin(); it != model["vocab"].end();)
    it = it.value() > 270 ? model["vocab"].erase(it) : std::next(it);
  if (model.contains("merges"))
    model["merges"].get_ref<json::array_t&>().resize(
        std::min<std::size_t>(4, model["merges"].size()));
  return file;
}

TEST(TokenizerJson, TenThousandDamagedFilesNeverCrash) {
  Philox random(2026);
  int read = 0, refused = 0;
  const auto attempt = [&](const std::string& text) {
    try {
      const Tokenizer tokenizer = tokenizer_from_json(text);
      const auto ids =
          tokenizer.encode("Hello <s>\xFF 12\n\xC3\xA9", {.parse_special = true, .add_bos = true});
      tokenizer.decode(ids);
      ++read;
    } catch (const FormatError&) {
      ++refused;
    }
  };
  const char* names[] = {"gpt2.json",      "llama3.json",          "added.json",
                         "llama2.json",    "metaspace_first.json", "bert.json",
                         "cut_invert.json"};
  for (const char* name : names) {
    const json file = shrunk(name);
    const std::string text = file.dump();
    std::vector<json::json_pointer> places;
    collect(file, json::json_pointer(), places);
    // Damage in the structure is most interesting outside the vocabulary.
    std::vector<json::json_pointer> structure;
    for (const auto& place : places)
      if (place.to_string().find("/vocab/") == std::string::npos) structure.push_back(place);
    for (int i = 0; i < 1430; ++i) {
      if (i % 2 == 0) {  // bytes
        std::string bytes = text;
        for (std::uint64_t n = 1 + random.below(4); n > 0 && !bytes.empty(); --n) {
          const std::size_t at = random.below(bytes.size());
          switch (random.below(4)) {
            case 0:
              bytes[at] = static_cast<char>(random.below(256));
              break;
            case 1:
              bytes.resize(at);
              break;
            case 2:
              bytes.erase(at, random.below(64));
              break;
            default:
              bytes.insert(at, bytes.substr(random.below(bytes.size()), 16));
              break;
          }
        }
        attempt(bytes);
        continue;
      }
      json damaged = file;  // values
      const auto& from = random.below(4) ? structure : places;
      const json replacements[] = {nullptr,
                                   true,
                                   -1,
                                   4294967295u,
                                   1e300,
                                   18446744073709551615u,
                                   "",
                                   "\xE2\x96\x81",
                                   "Sequence",
                                   "ByteLevel",
                                   "(",
                                   "a*",
                                   json::array(),
                                   json::object(),
                                   json::array({json::array()}),
                                   {{"type", "Split"}},
                                   {{"Regex", "(?=(a|aa)+$)"}}};
      const auto& place = from[random.below(from.size())];
      if (place.empty()) continue;
      damaged[place] = random.below(3) ? replacements[random.below(std::size(replacements))]
                                       : file[places[random.below(places.size())]];
      attempt(damaged.dump(-1, ' ', false, json::error_handler_t::replace));
    }
  }
  EXPECT_GT(read, 500);
  EXPECT_GT(refused, 2000);
  RecordProperty("read", read);
  RecordProperty("refused", refused);
}

}  // namespace
}  // namespace rapt::test
