// Oracle: Hugging Face's `tokenizers` on a megabyte of mixed Unicode (make_reference.py), and a
// naive byte-pair merge below.
#include "rapt/text/tokenizer.hpp"

#include <gmock/gmock.h>

#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "rapt/core/random.hpp"
#include "rapt/text/load_tokenizer.hpp"
#include "text/reference_text.hpp"

namespace rapt::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;
using Ids = std::vector<std::int32_t>;

/// A byte-level vocabulary of 256 bytes, `merges`, and the control token <|end|>.
TokenizerData bytes_and(const std::vector<std::pair<std::string, std::string>>& merges) {
  TokenizerData data;
  for (int b = 0; b < 256; ++b)
    data.tokens.push_back(detail::to_byte_alphabet(std::string(1, static_cast<char>(b))));
  for (const auto& [left, right] : merges) data.tokens.push_back(left + right);
  data.types.assign(data.tokens.size(), TokenType::normal);
  data.tokens.push_back("<|end|>");
  data.types.push_back(TokenType::control);
  data.merges = merges;
  data.pre = "gpt-2";
  return data;
}

const nlohmann::json& hashes() {
  static const auto json = nlohmann::json::parse(read_text(reference_path("hashes.json")));
  return json;
}

/// Compares every line, and the first 64 with the tokens around the text.
void expect_reference_ids(const std::string& name, const Tokenizer& tokenizer) {
  const std::string ids = hashes().at(name).at("ids"), full = hashes().at(name).at("full");
  int wrong = 0;
  for (int i = 0; i < kReferenceLines && wrong < 3; ++i) {
    const std::string line = reference_line(i);
    const auto at = static_cast<std::size_t>(i) * 8;
    const auto got = tokenizer.encode(line, {.parse_special = true});
    if (hash_ids(got) != ids.substr(at, 8)) {
      ++wrong;
      ADD_FAILURE() << name << ": line " << i;
    }
    if (at < full.size()) {
      EXPECT_EQ(hash_ids(tokenizer.encode(
                    line, {.parse_special = true, .add_bos = true, .add_eos = true})),
                full.substr(at, 8))
          << name << ": line " << i;
    }
  }
}

struct ReferenceTokenizer : testing::TestWithParam<const char*> {};

TEST_P(ReferenceTokenizer, GivesTheIdsOfTokenizersOnAMegabyte) {
  expect_reference_ids(GetParam(),
                       load_tokenizer(reference_path(std::string(GetParam()) + ".json")));
}

INSTANTIATE_TEST_SUITE_P(Made, ReferenceTokenizer,
                         testing::Values("gpt2", "gpt2_prefix_space", "smollm", "llama3", "qwen2",
                                         "deepseek", "tekken", "added", "llama2", "metaspace_first",
                                         "metaspace_never", "bert", "cut_whitespace",
                                         "cut_whitespace_split", "cut_punctuation", "cut_previous",
                                         "cut_invert"),
                         [](const auto& test) { return std::string(test.param); });

TEST(ReferenceText, IsTheOneOfTheScript) {
  std::string all;
  for (int i = 0; i < kReferenceLines; ++i) all += reference_line(i);
  const std::vector<std::int32_t> bytes(
      reinterpret_cast<const unsigned char*>(all.data()),
      reinterpret_cast<const unsigned char*>(all.data()) + all.size());
  EXPECT_EQ(hash_ids(bytes), hashes().at("text").get<std::string>());
  EXPECT_GT(all.size(), 1u << 20);
}

struct RealModel : testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(RealModel, GivesTheReferenceIds) {
  const auto [name, file] = GetParam();
  const auto path = model_path(file);
  if (path.empty()) GTEST_SKIP() << file << " is not in RAPT_MODELS or models/";
  const Tokenizer tokenizer = load_tokenizer(path);
  const auto reference =
      nlohmann::json::parse(read_text(reference_path(std::string(name) + ".tokens.json")));
  const auto hex = [](std::string_view bytes) {
    std::string out;
    char digits[3];
    for (const char c : bytes) {
      std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(c));
      out += digits;
    }
    return out;
  };
  const auto check = [&](const nlohmann::json& entry, bool truncated) {
    const std::string text = entry.at("text");
    const auto expect = [&](const char* key, EncodeOptions options) {
      if (!entry.contains(key)) return;
      const Ids want = entry.at(key);
      Ids got = tokenizer.encode(text, options);
      if (truncated && got.size() > want.size()) got.resize(want.size());
      EXPECT_EQ(got, want) << key << " of " << entry.at("text").dump();
    };
    expect("ids", {});
    expect("ids_special", {.parse_special = true});
    expect("ids_full", {.parse_special = true, .add_bos = true});
    expect("ids_eval", {.parse_special = true, .add_bos = true});
    if (entry.contains("detok_hex")) {
      EXPECT_EQ(hex(tokenizer.decode(entry.at("ids_special").get<Ids>())), entry.at("detok_hex"));
    }
    if (entry.contains("pieces_hex")) {
      const Ids ids = entry.at("ids_eval");
      for (std::size_t i = 0; i < ids.size(); ++i)
        EXPECT_EQ(hex(tokenizer.piece(ids[i])), entry.at("pieces_hex")[i]);
    }
  };
  for (const auto& entry : reference.at("cases")) check(entry, false);
  for (const auto& [prompt, entry] : reference.at("prompts").items()) check(entry, prompt == "p64");
  expect_reference_ids(name, tokenizer);
}

INSTANTIATE_TEST_SUITE_P(
    Files, RealModel,
    testing::Values(std::pair("smollm2-135m", "SmolLM2-135M-Instruct.Q4_1.gguf"),
                    std::pair("gemma3-270m", "gemma-3-270m-q4_k_m.gguf")),
    [](const auto& test) { return std::string(test.param.first).substr(0, 6); });

/// Merges the leftmost pair of the lowest rank, one at a time, by scanning everything.
Ids naive_bpe(const TokenizerData& data, std::string_view text) {
  std::map<std::string, std::int32_t> ids;
  for (std::size_t i = 0; i < data.tokens.size(); ++i)
    ids.emplace(data.tokens[i], static_cast<std::int32_t>(i));
  std::vector<std::string> symbols;
  for (const char c : text) symbols.push_back(detail::to_byte_alphabet(std::string(1, c)));
  for (;;) {
    std::size_t best_rank = data.merges.size(), best = 0;
    for (std::size_t i = 0; i + 1 < symbols.size(); ++i)
      for (std::size_t rank = 0; rank < best_rank; ++rank)
        if (data.merges[rank] == std::pair(symbols[i], symbols[i + 1])) {
          best_rank = rank;
          best = i;
        }
    if (best_rank == data.merges.size()) break;
    symbols[best] += symbols[best + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  Ids out;
  for (const auto& symbol : symbols) out.push_back(ids.at(symbol));
  return out;
}

TEST(Bpe, EqualsTheNaiveMergeForShortAndLongPieces) {
  TokenizerData data = bytes_and({{"a", "b"},
                                  {"b", "a"},
                                  {"ab", "a"},
                                  {"a", "a"},
                                  {"aa", "b"},
                                  {"ab", "ab"},
                                  {"abab", "ba"},
                                  {"ba", "b"},
                                  {"b", "b"}});
  data.pre.clear();
  const Tokenizer tokenizer(data);
  Philox random(3);
  for (int round = 0; round < 400; ++round) {
    std::string text;
    for (std::uint64_t n = random.below(round < 300 ? 70 : 300); n > 0; --n)
      text += "aabbbc"[random.below(6)];
    EXPECT_EQ(tokenizer.encode(text), naive_bpe(data, text)) << text;
  }
}

TEST(Bpe, AMegabyteWithoutABlankTakesNoQuadraticTime) {
  TokenizerData data = bytes_and({{"a", "a"}, {"aa", "aa"}, {"aaaa", "aaaa"}});
  const std::string text(std::size_t{1} << 20, 'a');
  EXPECT_EQ(Tokenizer(data).encode(text).size(), text.size() / 8);
}

TEST(Tokenizer, AnyBytesMakeTheRoundTrip) {
  const Tokenizer gpt2 = load_tokenizer(reference_path("gpt2.json"));
  const Tokenizer llama = load_tokenizer(reference_path("llama2.json"));
  const Tokenizer plain{bytes_and({{"a", "b"}, {"\xC4\xA0", "a"}})};
  Philox random(1);
  for (int round = 0; round < 300; ++round) {
    std::string text;
    for (std::uint64_t n = random.below(200); n > 0; --n)
      text += random.below(2) ? static_cast<char>(random.below(256))
                              : reference_line(static_cast<int>(random.below(9)))[random.below(99)];
    EXPECT_EQ(gpt2.decode(gpt2.encode(text)), text);
    EXPECT_EQ(llama.decode(llama.encode(text)), text);
    EXPECT_EQ(plain.decode(plain.encode(text)), text);
  }
}

TEST(Tokenizer, ReadsSpecialTokensOnlyWhenAsked) {
  const Tokenizer tokenizer{bytes_and({})};
  const std::int32_t end = tokenizer.find("<|end|>");
  EXPECT_THAT(tokenizer.encode("a<|end|>", {.parse_special = true}), ElementsAre('a', end));
  EXPECT_EQ(tokenizer.encode("a<|end|>").size(), 8u);
  EXPECT_EQ(tokenizer.decode({'a', end}), "a<|end|>");
  EXPECT_EQ(tokenizer.decode({'a', end}, {.skip_special = true}), "a");
  EXPECT_TRUE(tokenizer.ends_generation(end));
}

TEST(Tokenizer, KeepsSpecialTokensOutOfLiteralRanges) {
  const Tokenizer tokenizer{bytes_and({})};
  const std::int32_t end = tokenizer.find("<|end|>");
  const std::string text = "<|end|><|end|><|end|>";
  const TextRange middle[] = {{7, 14}};
  Ids want = {end};
  for (const char c : std::string_view("<|end|>")) want.push_back(c);
  want.push_back(end);
  EXPECT_EQ(tokenizer.encode(text, {.parse_special = true, .literal = middle}), want);
  const TextRange inside[] = {{2, 3}, {20, 21}};  // one byte of a token is enough
  EXPECT_EQ(tokenizer.encode(text, {.parse_special = true, .literal = inside}).size(), 15u);
}

TEST(Tokenizer, LeavesOutWhatTheVocabularyCannotSayOrSaysUnknown) {
  TokenizerData data = bytes_and({});
  data.tokens[4] = "unused";
  data.types[4] = TokenType::unused;
  EXPECT_THAT(Tokenizer(data).encode("a\x04z"), ElementsAre('a', 'z'));
  data.unk = 256;
  EXPECT_THAT(Tokenizer(data).encode("a\x04z"), ElementsAre('a', 256, 'z'));
}

TEST(Tokenizer, MergesByScoreAndFallsBackToBytes) {
  TokenizerData data;
  data.kind = TokenizerKind::score_bpe;
  data.add_space_prefix = data.decode_strips_space = true;
  data.tokens = {"<unk>", "<s>", "</s>"};
  for (int b = 0; b < 256; ++b) {
    char name[8];
    std::snprintf(name, sizeof name, "<0x%02X>", b);
    data.tokens.emplace_back(name);
  }
  data.types.assign(3, TokenType::control);
  data.types.resize(data.tokens.size(), TokenType::byte);
  data.scores.assign(data.tokens.size(), 0.f);
  const std::int32_t first = static_cast<std::int32_t>(data.tokens.size());
  float score = 0;
  for (const char* token : {"\xE2\x96\x81", "a", "b", "ab",
                            "\xE2\x96\x81"
                            "a",
                            "ba"}) {
    data.tokens.emplace_back(token);
    data.types.push_back(TokenType::normal);
    data.scores.push_back(score -= 1);
  }
  data.bos = 1;
  data.unk = 0;
  data.add_bos = true;
  const Tokenizer tokenizer(data);
  EXPECT_THAT(tokenizer.encode("ab", {.add_bos = true}), ElementsAre(1, first, first + 3));
  EXPECT_THAT(tokenizer.encode("aba"), ElementsAre(first, first + 3, first + 1));
  EXPECT_THAT(tokenizer.encode("\xC3\xA9"), ElementsAre(first, 3 + 0xC3, 3 + 0xA9));
  EXPECT_THAT(tokenizer.encode(""), ElementsAre());
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("ab \xFF b")), "ab \xFF b");
}

TEST(Tokenizer, RefusesDataThatDoesNotFitTogether) {
  const auto refused = [](auto change, const char* why) {
    TokenizerData data = bytes_and({{"a", "b"}});
    change(data);
    EXPECT_THAT([&] { Tokenizer t(data); }, ThrowsMessage<FormatError>(HasSubstr(why)));
  };
  refused([](auto& d) { d.merges = {{"a", "zz"}}; }, "merge 0 is a zz");
  refused([](auto& d) { d.bos = 258; }, "the BOS token is 258, expected 0 ... 257");
  refused([](auto& d) { d.types.pop_back(); }, "257 token types, expected 258");
  refused([](auto& d) { d.kind = TokenizerKind::score_bpe; }, "0 scores, expected 258");
  refused([](auto& d) { d.pre = "no-such"; }, "tokenizer.ggml.pre is no-such");
  refused([](auto& d) { d.tokens.clear(); }, "the vocabulary has 0 tokens");
  EXPECT_THAT([] { Tokenizer(bytes_and({})).piece(-1); },
              ThrowsMessage<ValueError>(HasSubstr("id is -1, expected 0 ... 256")));
}

TEST(SplitPatterns, EveryNameCompiles) {
  for (const char* name :
       {"gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "deepseek-v3", "deepseek-llm",
        "deepseek-coder", "falcon", "default", "tekken", "gpt-4o", "bloom", "viking"})
    for (const std::string& pattern : split_patterns(name))
      EXPECT_NO_THROW(detail::Pattern(pattern, name)) << name;
}

TEST(Pattern, RefusesWhatPcre2WouldMisread) {
  const auto refused = [](const char* pattern, const char* why) {
    EXPECT_THAT([&] { detail::Pattern(pattern, "p"); }, ThrowsMessage<FormatError>(HasSubstr(why)));
  };
  refused("[a&&[^b]]", "nested sets");
  refused("[a[b]]", "nested sets");
  refused("(a", "does not compile");
  refused("\xFF", "expected UTF-8");
}

TEST(Pattern, APatternThatExplodesIsAnErrorNotAHang) {
  TokenizerData data = bytes_and({});
  data.pre.clear();
  PreTokenizerStep step{};
  step.kind = PreTokenizerStep::Kind::split;
  step.pattern = "(a|aa)+(a|aa)+[x-z]";
  data.pre_tokenizers = {step};
  const Tokenizer tokenizer(data);
  EXPECT_THAT([&] { tokenizer.encode(std::string(4000, 'a')); },
              ThrowsMessage<FormatError>(HasSubstr("fails on this text")));
}

TEST(TokenTrie, FindsTheLongest) {
  detail::TokenTrie trie;
  trie.insert("ab", 1);
  trie.insert("abcd", 2);
  trie.insert("b", 3);
  trie.insert("abx", 4);
  trie.insert("ab", 9);
  EXPECT_EQ(trie.longest_at("abcx").value, 1);
  EXPECT_EQ(trie.longest_at("abcd").value, 2);
  EXPECT_EQ(trie.longest_at("abx").length, 3u);
  EXPECT_EQ(trie.longest_at("cab").value, -1);
  EXPECT_EQ(trie.longest_at("a").value, -1);
}

}  // namespace
}  // namespace rapt::test
