// A tokenizer written as Hugging Face's tokenizer.json, in a form that `tokenizers` and
// transformers load (text/tokenizer_json.hpp reads it).
//
//   write_file("tokenizer.json", tokenizer_json_text(data));
//
//   byte-level BPE               its merges as they are
//   BPE by score (SentencePiece) the merges that amount to it
//   WordPiece, ...               refused: FormatError
//
// Source: github.com/huggingface/tokenizers (the files of its serialization).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/text/tokenizer.hpp"

namespace rapt {
namespace detail {

/// The merges that amount to merging by score: every cut of a token into two tokens, best score
/// first. (Tokens of equal score merge leftmost first by score, but in the order of the file by
/// merges: a vocabulary with many equal scores may differ in rare cases.)
inline std::vector<std::pair<std::string, std::string>> merges_of_scores(
    const TokenizerData& data) {
  const TokenIndex index(data.tokens, [&](std::int32_t id) {
    return data.types.empty() || data.types[static_cast<std::size_t>(id)] == TokenType::normal;
  });
  struct Merge {
    float score;
    std::int32_t token, left, right;
  };
  std::vector<Merge> merges;
  for (std::size_t id = 0; id < data.tokens.size(); ++id) {
    const std::string_view token = data.tokens[id];
    if (!data.types.empty() && data.types[id] != TokenType::normal) continue;
    for (std::size_t cut = 1; cut < token.size(); ++cut) {
      if ((token[cut] & 0xC0) == 0x80) continue;
      const std::int32_t left = index.find(data.tokens, token.substr(0, cut));
      const std::int32_t right = index.find(data.tokens, token.substr(cut));
      if (left >= 0 && right >= 0)
        merges.push_back({data.scores[id], static_cast<std::int32_t>(id), left, right});
    }
  }
  std::sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    if (a.score != b.score) return a.score > b.score;
    if (a.token != b.token) return a.token < b.token;
    return a.left != b.left ? a.left < b.left : a.right < b.right;
  });
  std::vector<std::pair<std::string, std::string>> out;
  out.reserve(merges.size());
  for (const Merge& merge : merges)
    out.emplace_back(data.tokens[static_cast<std::size_t>(merge.left)],
                     data.tokens[static_cast<std::size_t>(merge.right)]);
  return out;
}

}  // namespace detail

/// A tokenizer.json with the same rules. Throws FormatError for kinds other than byte-level BPE and
/// BPE by score, and for steps that the format has no name for.
inline std::string tokenizer_json_text(const TokenizerData& data) {
  using Json = nlohmann::ordered_json;
  const bool byte_level = data.kind == TokenizerKind::byte_bpe;
  if (!byte_level && data.kind != TokenizerKind::score_bpe)
    throw FormatError("tokenizer_json_text: expected byte-level BPE or BPE by score");
  const auto type_of = [&](std::size_t id) {
    return data.types.empty() ? TokenType::normal : data.types[id];
  };

  Json vocab = Json::object(), added = Json::array();
  std::vector<AddedToken> marked = data.added;
  const bool by_type = marked.empty();
  // Ids in the vocabulary must be complete; tokens that are no text are listed in both places.
  std::vector<std::pair<std::string, std::size_t>> entries;
  for (std::size_t id = 0; id < data.tokens.size(); ++id) {
    if (type_of(id) != TokenType::unused) entries.emplace_back(data.tokens[id], id);
    const bool control = type_of(id) == TokenType::control || type_of(id) == TokenType::unknown;
    if (by_type && (control || type_of(id) == TokenType::user_defined)) {
      AddedToken token;
      token.id = static_cast<std::int32_t>(id);
      token.content = byte_level ? data.tokens[id]
                                 : detail::replace_all(data.tokens[id], detail::kMetaspace, " ");
      token.special = control;
      marked.push_back(std::move(token));
    }
  }
  // ordered_json looks for an equal key before it inserts: filled through its vector, in one go.
  auto& members = vocab.get_ref<Json::object_t&>();
  members.reserve(entries.size());
  for (const auto& [token, id] : entries)
    static_cast<std::vector<std::pair<const std::string, Json>>&>(members).emplace_back(token, id);
  for (const AddedToken& token : marked)
    added.push_back({{"id", token.id},
                     {"content", token.content},
                     {"single_word", token.single_word},
                     {"lstrip", token.lstrip},
                     {"rstrip", token.rstrip},
                     {"normalized", token.normalized},
                     {"special", token.special}});

  Json normalizers = Json::array();
  for (const NormalizerStep& step : data.normalizers) {
    using Kind = NormalizerStep::Kind;
    switch (step.kind) {
      case Kind::nfc:
        normalizers.push_back({{"type", "NFC"}});
        break;
      case Kind::nfd:
        normalizers.push_back({{"type", "NFD"}});
        break;
      case Kind::nfkc:
        normalizers.push_back({{"type", "NFKC"}});
        break;
      case Kind::nfkd:
        normalizers.push_back({{"type", "NFKD"}});
        break;
      case Kind::lowercase:
        normalizers.push_back({{"type", "Lowercase"}});
        break;
      case Kind::strip_accents:
        normalizers.push_back({{"type", "StripAccents"}});
        break;
      case Kind::strip:
        normalizers.push_back(
            {{"type", "Strip"}, {"strip_left", step.left}, {"strip_right", step.right}});
        break;
      case Kind::prepend:
        normalizers.push_back({{"type", "Prepend"}, {"prepend", step.content}});
        break;
      case Kind::replace:
        normalizers.push_back({{"type", "Replace"},
                               {"pattern", {{"Regex", step.pattern}}},
                               {"content", step.content}});
        break;
      case Kind::clean_text:
      case Kind::space_chinese_chars:
        throw FormatError("tokenizer_json_text: BERT's normalization has no place in a BPE file");
    }
  }

  Json pre = Json::array();
  bool prefix_space = false;
  const auto split = [&](const std::string& pattern, const char* behavior, bool invert) {
    pre.push_back({{"type", "Split"},
                   {"pattern", {{"Regex", pattern}}},
                   {"behavior", behavior},
                   {"invert", invert}});
  };
  for (const PreTokenizerStep& step : data.pre_tokenizers) {
    static constexpr const char* kBehaviors[] = {"Removed", "Isolated", "MergedWithPrevious",
                                                 "MergedWithNext", "Contiguous"};
    if (step.kind == PreTokenizerStep::Kind::prefix_space)
      prefix_space = true;
    else if (step.kind == PreTokenizerStep::Kind::split)
      split(step.pattern, kBehaviors[static_cast<int>(step.behavior)], step.invert);
    else
      throw FormatError("tokenizer_json_text: Metaspace has no place in a byte-level file");
  }
  if (!data.pre.empty())
    for (const std::string& pattern : split_patterns(data.pre)) split(pattern, "Isolated", false);

  Json decoder;
  if (byte_level) {
    // A space in front comes before the cut, which the format can say for GPT-2's pattern only.
    const bool whole = prefix_space && pre.size() == 1 && pre[0]["behavior"] == "Isolated" &&
                       pre[0]["pattern"]["Regex"] == kGpt2Pattern;
    if (prefix_space && !whole)
      throw FormatError("tokenizer_json_text: a space before the text needs GPT-2's split pattern");
    if (whole) pre.clear();
    pre.push_back({{"type", "ByteLevel"},
                   {"add_prefix_space", prefix_space},
                   {"trim_offsets", true},
                   {"use_regex", whole}});
    decoder = {{"type", "ByteLevel"},
               {"add_prefix_space", true},
               {"trim_offsets", true},
               {"use_regex", true}};
  } else {
    const std::string mark(detail::kMetaspace);
    if (data.add_space_prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", mark}});
    normalizers.push_back({{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", mark}});
    Json decoders = Json::array();
    decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", mark}}}, {"content", " "}});
    decoders.push_back({{"type", "ByteFallback"}});
    decoders.push_back({{"type", "Fuse"}});
    if (data.decode_strips_space)
      decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
    decoder = {{"type", "Sequence"}, {"decoders", decoders}};
  }

  std::vector<std::int32_t> prefix = data.prefix, suffix = data.suffix;
  if (prefix.empty() && data.add_bos && data.bos >= 0) prefix = {data.bos};
  if (suffix.empty() && data.add_eos && data.eos >= 0) suffix = {data.eos};
  Json post;
  if (!prefix.empty() || !suffix.empty()) {
    Json single = Json::array(), special = Json::object();
    const auto name = [&](std::int32_t id) {
      const std::string& token = data.tokens.at(static_cast<std::size_t>(id));
      special[token] = {
          {"id", token}, {"ids", Json::array({id})}, {"tokens", Json::array({token})}};
      single.push_back({{"SpecialToken", {{"id", token}, {"type_id", 0}}}});
    };
    for (const std::int32_t id : prefix) name(id);
    single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
    for (const std::int32_t id : suffix) name(id);
    Json pair = single;
    pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
    post = {{"type", "TemplateProcessing"},
            {"single", single},
            {"pair", pair},
            {"special_tokens", special}};
  }

  Json merges = Json::array();
  for (const auto& [left, right] : byte_level ? data.merges : detail::merges_of_scores(data))
    merges.push_back(Json::array({left, right}));
  const bool has_unk = data.unk >= 0 && !data.drop_unknown;
  Json model = {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", has_unk ? Json(data.tokens.at(static_cast<std::size_t>(data.unk)))
                                      : Json(nullptr)},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", data.fuse_unknown || !byte_level},
                {"byte_fallback", !byte_level},
                {"ignore_merges", data.ignore_merges},
                {"vocab", std::move(vocab)},
                {"merges", std::move(merges)}};
  const auto sequence = [](const char* key, Json steps) {
    if (steps.empty()) return Json(nullptr);
    if (steps.size() == 1) return Json(steps[0]);
    return Json{{"type", "Sequence"}, {key, std::move(steps)}};
  };
  Json root = {{"version", "1.0"},
               {"truncation", nullptr},
               {"padding", nullptr},
               {"added_tokens", std::move(added)},
               {"normalizer", sequence("normalizers", std::move(normalizers))},
               {"pre_tokenizer", sequence("pretokenizers", std::move(pre))},
               {"post_processor", std::move(post)},
               {"decoder", std::move(decoder)},
               {"model", std::move(model)}};
  return root.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace rapt
