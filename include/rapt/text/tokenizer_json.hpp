// Hugging Face's tokenizer.json, read (text/write_tokenizer_json.hpp writes it).
//
//   part            read                                                          else
//   model           BPE (byte-level, or on characters with byte_fallback),        refused
//                   WordPiece
//   normalizer      NFC NFD NFKC NFKD Lowercase StripAccents Strip Prepend         refused
//                   Replace BertNormalizer Sequence
//   pre_tokenizer   ByteLevel Split Digits Whitespace WhitespaceSplit Punctuation  refused
//                   BertPreTokenizer CharDelimiterSplit Metaspace Sequence
//   post_processor  TemplateProcessing BertProcessing RobertaProcessing ByteLevel  refused
//                   Sequence (their tokens around a single text)
//   decoder         ByteLevel ByteFallback Fuse Replace Strip Metaspace WordPiece  refused
//                   Sequence
//   truncation, padding: ignored; a caller decides on both
//
// "Refused" is a FormatError that names the part: half a tokenizer gives wrong ids, not an error.
// The file is not trusted: sizes, ids and types are checked, and memory stays in proportion to the
// file.
//
// Source: github.com/huggingface/tokenizers (the files of its serialization).
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/text/bert.hpp"
#include "rapt/text/tokenizer.hpp"

namespace rapt {
namespace detail {

/// Reads one tokenizer.json. All access to the JSON goes through helpers that name what is wrong.
class TokenizerJsonReader {
 public:
  TokenizerJsonReader(std::string_view json, std::string source) : source_(std::move(source)) {
    constexpr std::size_t kLargest = std::size_t{512} << 20;
    if (json.size() > kLargest) fail("has ", json.size(), " bytes, expected at most ", kLargest);
    try {
      root_ = Json::parse(json.begin(), json.end());
    } catch (const Json::exception& error) {
      fail("is no JSON: ", error.what());
    }
    if (!root_.is_object()) fail("is no JSON object");
  }

  TokenizerData read() {
    const Json& model = object(root_, "model", "the file");
    read_vocabulary(model);
    read_added();
    fill_types();
    if (const Json* normalizer = optional(root_, "normalizer")) read_normalizer(*normalizer, 0);
    if (const Json* pre = optional(root_, "pre_tokenizer")) read_pre_tokenizer(*pre, 0);
    read_model(model);
    if (const Json* post = optional(root_, "post_processor")) read_post_processor(*post, 0);
    if (const Json* decoder = optional(root_, "decoder")) read_decoder(*decoder, 0);
    return std::move(data_);
  }

 private:
  using Json = nlohmann::json;
  static constexpr int kMaxDepth = 16;

  template <class... Parts>
  [[noreturn]] void fail(const Parts&... parts) const {
    throw FormatError(text(source_, ": ", parts...));
  }

  // ---- access ----

  /// Null where the key is missing or null.
  static const Json* optional(const Json& from, const char* key) {
    const auto found = from.find(key);
    return found == from.end() || found->is_null() ? nullptr : &*found;
  }
  const Json& required(const Json& from, const char* key, std::string_view where) const {
    if (!from.is_object()) fail(where, " is no object");
    const Json* value = optional(from, key);
    if (!value) fail(where, " has no ", key);
    return *value;
  }
  const Json& object(const Json& from, const char* key, std::string_view where) const {
    const Json& value = required(from, key, where);
    if (!value.is_object()) fail(where, ": ", key, " is no object");
    return value;
  }
  const Json& array(const Json& from, const char* key, std::string_view where) const {
    const Json& value = required(from, key, where);
    if (!value.is_array()) fail(where, ": ", key, " is no array");
    return value;
  }
  const std::string& as_string(const Json& value, std::string_view what) const {
    if (!value.is_string()) fail(what, " is no string");
    return value.get_ref<const std::string&>();
  }
  const std::string& string(const Json& from, const char* key, std::string_view where) const {
    return as_string(required(from, key, where), text(where, ": ", key));
  }
  std::string string(const Json& from, const char* key, std::string_view where,
                     std::string_view otherwise) const {
    return optional(from, key) ? string(from, key, where) : std::string(otherwise);
  }
  bool flag(const Json& from, const char* key, std::string_view where, bool otherwise) const {
    const Json* value = optional(from, key);
    if (!value) return otherwise;
    if (!value->is_boolean()) fail(where, ": ", key, " is no boolean");
    return value->get<bool>();
  }
  std::int32_t as_id(const Json& value, std::string_view what) const {
    if (!value.is_number_integer()) fail(what, " has an id that is no integer");
    // A large unsigned number would wrap if it were read as signed.
    const std::uint64_t id = value.get<std::uint64_t>();
    if ((value.is_number_integer() && !value.is_number_unsigned()) || id > 0x3FFFFFFF)
      fail(what, " has the id ", value.dump(), ", expected 0 ... 2^30 - 1");
    return static_cast<std::int32_t>(id);
  }
  std::int64_t count(const Json& from, const char* key, std::string_view where,
                     std::int64_t otherwise) const {
    const Json* value = optional(from, key);
    if (!value) return otherwise;
    if (!value->is_number_unsigned() || value->get<std::uint64_t>() > 0x7FFFFFFF)
      fail(where, ": ", key, " is ", value->dump(), ", expected 0 ... 2^31 - 1");
    return static_cast<std::int64_t>(value->get<std::uint64_t>());
  }
  static std::string quote(std::string_view token) {
    return to_valid_utf8(token.substr(0, 64)) + (token.size() > 64 ? "..." : "");
  }

  // ---- tokens ----

  void put(std::int32_t id, const std::string& token) {
    const auto place = static_cast<std::size_t>(id);
    // Files leave gaps, but a vocabulary that is nearly all gap is an attack on memory.
    if (place >= limit_)
      fail("token ", quote(token), " has the id ", id, " in a vocabulary of ", limit_ / 4,
           " tokens");
    if (place >= data_.tokens.size()) {
      data_.tokens.resize(place + 1);
      taken_.resize(place + 1, false);
    }
    if (taken_[place] && data_.tokens[place] != token)
      fail("tokens ", quote(data_.tokens[place]), " and ", quote(token), " have the same id ", id);
    taken_[place] = true;
    data_.tokens[place] = token;
  }

  void read_vocabulary(const Json& model) {
    const Json& vocab = object(model, "vocab", "the model");
    const Json* added = optional(root_, "added_tokens");
    if (added && !added->is_array()) fail("added_tokens is no array");
    limit_ = 4 * (vocab.size() + (added ? added->size() : 0)) + 1024;
    for (const auto& [token, id] : vocab.items())
      put(as_id(id, text("token ", quote(token))), token);
  }

  void read_added() {
    const Json* added = optional(root_, "added_tokens");
    if (!added) return;
    for (const Json& entry : *added) {
      AddedToken token;
      token.content = string(entry, "content", "an added token");
      const std::string where = text("added token ", quote(token.content));
      token.id = as_id(required(entry, "id", where), where);
      token.special = flag(entry, "special", where, false);
      token.normalized = flag(entry, "normalized", where, !token.special);
      token.lstrip = flag(entry, "lstrip", where, false);
      token.rstrip = flag(entry, "rstrip", where, false);
      token.single_word = flag(entry, "single_word", where, false);
      put(token.id, token.content);
      data_.added.push_back(std::move(token));
    }
  }

  void fill_types() {
    if (data_.tokens.empty()) fail("the vocabulary is empty");
    data_.types.assign(data_.tokens.size(), TokenType::normal);
    for (std::size_t id = 0; id < taken_.size(); ++id)
      if (!taken_[id]) data_.types[id] = TokenType::unused;
    for (const AddedToken& token : data_.added)
      data_.types[static_cast<std::size_t>(token.id)] =
          token.special ? TokenType::control : TokenType::user_defined;
  }

  std::int32_t id_of(std::string_view token, std::string_view what) const {
    for (std::size_t id = 0; id < data_.tokens.size(); ++id)
      if (taken_[id] && data_.tokens[id] == token) return static_cast<std::int32_t>(id);
    fail(what, " is ", quote(token), ", which is no token");
  }

  // ---- model ----

  void read_model(const Json& model) {
    std::string type = string(model, "type", "the model", "");
    if (type.empty()) type = optional(model, "merges") ? "BPE" : "WordPiece";  // early files
    if (type == "WordPiece") {
      if (byte_level_) fail("a WordPiece model with a ByteLevel pre-tokenizer");
      data_.kind = TokenizerKind::word_piece;
      data_.continuing_prefix = string(model, "continuing_subword_prefix", "the model", "##");
      data_.max_word_chars =
          static_cast<std::int32_t>(count(model, "max_input_chars_per_word", "the model", 100));
      data_.unk = id_of(string(model, "unk_token", "the model", "[UNK]"), "unk_token");
      data_.decode_strips_space = true;
      return;
    }
    if (type != "BPE") fail("the model is ", quote(type), ", expected BPE or WordPiece");
    data_.kind = byte_level_ ? TokenizerKind::byte_bpe : TokenizerKind::bpe;
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!string(model, key, "the model", "").empty())
        fail("the model has ", key, ", which this library does not read");
    if (const Json* dropout = optional(model, "dropout"))
      if (!dropout->is_number() || dropout->get<double>() != 0)
        fail("the model has dropout ", dropout->dump(), ", expected none");
    const std::string unk = string(model, "unk_token", "the model", "");
    if (!unk.empty()) data_.unk = id_of(unk, "unk_token");
    data_.drop_unknown = unk.empty();
    data_.fuse_unknown = flag(model, "fuse_unk", "the model", false);
    data_.byte_fallback = flag(model, "byte_fallback", "the model", false) && !byte_level_;
    data_.ignore_merges = flag(model, "ignore_merges", "the model", false);
    const Json& merges = array(model, "merges", "the model");
    data_.merges.reserve(merges.size());
    for (std::size_t i = 0; i < merges.size(); ++i) {
      const Json& merge = merges[i];
      const std::string what = text("merge ", i);
      if (merge.is_array() && merge.size() == 2) {
        data_.merges.emplace_back(as_string(merge[0], what), as_string(merge[1], what));
        continue;
      }
      const std::string& both = as_string(merge, what);
      const std::size_t blank = both.find(' ');
      if (blank == std::string::npos || both.find(' ', blank + 1) != std::string::npos)
        fail(what, " is ", quote(both), ", expected two tokens and a space");
      data_.merges.emplace_back(both.substr(0, blank), both.substr(blank + 1));
    }
  }

  // ---- normalizer ----

  const std::string& type_of(const Json& part, const char* what, int depth) const {
    if (depth > kMaxDepth) fail(what, ": sequences are nested too deeply");
    return string(part, "type", text("a ", what));
  }

  /// {"String": ...} or {"Regex": ...} as a regular expression.
  std::string pattern_of(const Json& part, std::string_view where) const {
    const Json& pattern = object(part, "pattern", where);
    if (optional(pattern, "String")) return quote_pattern(string(pattern, "String", where));
    return string(pattern, "Regex", where);
  }

  void read_normalizer(const Json& part, int depth) {
    using Kind = NormalizerStep::Kind;
    const std::string& type = type_of(part, "normalizer", depth);
    const std::string where = text("normalizer ", quote(type));
    NormalizerStep step{};
    if (type == "Sequence") {
      for (const Json& inner : array(part, "normalizers", where)) read_normalizer(inner, depth + 1);
      return;
    }
    if (type == "BertNormalizer") {
      const bool lower = flag(part, "lowercase", where, true);
      add_bert_steps(data_, flag(part, "clean_text", where, true),
                     flag(part, "handle_chinese_chars", where, true),
                     flag(part, "strip_accents", where, lower), lower);
      return;
    }
    if (type == "NFC")
      step.kind = Kind::nfc;
    else if (type == "NFD")
      step.kind = Kind::nfd;
    else if (type == "NFKC")
      step.kind = Kind::nfkc;
    else if (type == "NFKD")
      step.kind = Kind::nfkd;
    else if (type == "Lowercase")
      step.kind = Kind::lowercase;
    else if (type == "StripAccents")
      step.kind = Kind::strip_accents;
    else if (type == "Strip") {
      step.kind = Kind::strip;
      step.left = flag(part, "strip_left", where, true);
      step.right = flag(part, "strip_right", where, true);
    } else if (type == "Prepend") {
      step.kind = Kind::prepend;
      step.content = string(part, "prepend", where);
    } else if (type == "Replace") {
      step.kind = Kind::replace;
      step.pattern = pattern_of(part, where);
      step.content = string(part, "content", where);
    } else {
      fail("the normalizer ", quote(type), " is not supported");
    }
    data_.normalizers.push_back(std::move(step));
  }

  // ---- pre-tokenizer ----

  SplitBehavior behavior_of(const std::string& name, std::string_view where) const {
    if (name == "Removed") return SplitBehavior::removed;
    if (name == "Isolated") return SplitBehavior::isolated;
    if (name == "MergedWithPrevious") return SplitBehavior::merged_with_previous;
    if (name == "MergedWithNext") return SplitBehavior::merged_with_next;
    if (name == "Contiguous") return SplitBehavior::contiguous;
    fail(where, ": the behavior ", quote(name), " is not supported");
  }

  void add_split(std::string pattern, SplitBehavior behavior, bool invert = false) {
    PreTokenizerStep step{};
    step.kind = PreTokenizerStep::Kind::split;
    step.pattern = std::move(pattern);
    step.behavior = behavior;
    step.invert = invert;
    data_.pre_tokenizers.push_back(std::move(step));
  }

  PreTokenizerStep::Prepend prepend_of(const Json& part, std::string_view where) const {
    using Prepend = PreTokenizerStep::Prepend;
    const std::string scheme = string(part, "prepend_scheme", where, "");
    if (scheme == "always") return Prepend::always;
    if (scheme == "first") return Prepend::first;
    if (scheme == "never") return Prepend::never;
    if (!scheme.empty()) fail(where, ": prepend_scheme is ", quote(scheme));
    return flag(part, "add_prefix_space", where, true) ? Prepend::always : Prepend::never;
  }

  void check_metaspace(const Json& part, std::string_view where) const {
    const std::string mark = string(part, "replacement", where, kMetaspace);
    if (mark != kMetaspace) fail(where, ": replacement is ", quote(mark), ", expected U+2581");
  }

  void read_pre_tokenizer(const Json& part, int depth) {
    const std::string& type = type_of(part, "pre-tokenizer", depth);
    const std::string where = text("pre-tokenizer ", quote(type));
    if (type == "Sequence") {
      for (const Json& inner : array(part, "pretokenizers", where))
        read_pre_tokenizer(inner, depth + 1);
      return;
    }
    // What follows ByteLevel would see its alphabet instead of the text.
    if (byte_level_) fail(where, " follows ByteLevel, expected ByteLevel last");
    if (type == "ByteLevel") {
      byte_level_ = true;
      if (flag(part, "add_prefix_space", where, true)) {
        PreTokenizerStep step{};
        step.kind = PreTokenizerStep::Kind::prefix_space;
        data_.pre_tokenizers.push_back(std::move(step));
      }
      if (flag(part, "use_regex", where, true))
        add_split(std::string(kGpt2Pattern), SplitBehavior::isolated);
    } else if (type == "Split") {
      add_split(pattern_of(part, where), behavior_of(string(part, "behavior", where), where),
                flag(part, "invert", where, false));
    } else if (type == "Digits") {
      add_split(flag(part, "individual_digits", where, false) ? "\\p{N}" : "\\p{N}+",
                SplitBehavior::isolated);
    } else if (type == "Whitespace") {
      const std::string word = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}";
      add_split(text("[", word, "]+|[^", word, "\\s]+"), SplitBehavior::removed, true);
    } else if (type == "WhitespaceSplit") {
      add_split("\\s", SplitBehavior::removed);
    } else if (type == "Punctuation") {
      add_split("[\\p{P}!-/:-@\\[-`{-~]",
                behavior_of(string(part, "behavior", where, "Isolated"), where));
    } else if (type == "BertPreTokenizer") {
      add_bert_pre_tokenizer(data_);
    } else if (type == "CharDelimiterSplit") {
      add_split(quote_pattern(string(part, "delimiter", where)), SplitBehavior::removed);
    } else if (type == "Metaspace") {
      check_metaspace(part, where);
      PreTokenizerStep step{};
      step.kind = PreTokenizerStep::Kind::metaspace;
      step.prepend = prepend_of(part, where);
      step.split = flag(part, "split", where, true);
      data_.pre_tokenizers.push_back(std::move(step));
    } else {
      fail("the pre-tokenizer ", quote(type), " is not supported");
    }
  }

  // ---- post-processor ----

  void read_post_processor(const Json& part, int depth) {
    const std::string& type = type_of(part, "post-processor", depth);
    const std::string where = text("post-processor ", quote(type));
    if (type == "Sequence") {
      for (const Json& inner : array(part, "processors", where))
        read_post_processor(inner, depth + 1);
    } else if (type == "BertProcessing" || type == "RobertaProcessing") {
      const auto token = [&](const char* key) {
        const Json& pair = array(part, key, where);
        if (pair.size() != 2) fail(where, ": ", key, " is no pair of token and id");
        return as_id(pair[1], where);
      };
      data_.prefix.push_back(token("cls"));
      data_.suffix.push_back(token("sep"));
    } else if (type == "TemplateProcessing") {
      bool before = true;
      for (const Json& item : array(part, "single", where)) {
        if (item.is_object() && optional(item, "Sequence")) {
          before = false;
          continue;
        }
        const std::string& name = string(object(item, "SpecialToken", where), "id", where);
        const Json& entry = object(object(part, "special_tokens", where), name.c_str(), where);
        for (const Json& id : array(entry, "ids", where))
          (before ? data_.prefix : data_.suffix).push_back(as_id(id, where));
      }
    } else if (type != "ByteLevel") {
      fail("the post-processor ", quote(type), " is not supported");
    }
  }

  // ---- decoder ----

  void read_decoder(const Json& part, int depth) {
    const std::string& type = type_of(part, "decoder", depth);
    const std::string where = text("decoder ", quote(type));
    if (type == "Sequence") {
      for (const Json& inner : array(part, "decoders", where)) read_decoder(inner, depth + 1);
    } else if (type == "Replace") {
      const Json& pattern = object(part, "pattern", where);
      data_.decode_replacements.emplace_back(string(pattern, "String", where),
                                             string(part, "content", where));
    } else if (type == "Strip") {
      const std::string content = string(part, "content", where);
      const std::int64_t start = count(part, "start", where, 0),
                         stop = count(part, "stop", where, 0);
      if (content != " " || start > 1 || stop != 0)
        fail(where, " removes more than one leading space, which is not supported");
      if (start == 1) data_.decode_strips_space = true;
    } else if (type == "Metaspace") {
      check_metaspace(part, where);
      data_.decode_replacements.emplace_back(kMetaspace, " ");
      if (prepend_of(part, where) != PreTokenizerStep::Prepend::never)
        data_.decode_strips_space = true;
    } else if (type == "ByteLevel") {
      if (!byte_level_) fail("a ByteLevel decoder without a ByteLevel pre-tokenizer");
    } else if (type != "ByteFallback" && type != "Fuse" && type != "WordPiece") {
      fail("the decoder ", quote(type), " is not supported");
    }
  }

  std::string source_;
  Json root_;
  TokenizerData data_;
  std::vector<bool> taken_;
  std::size_t limit_ = 0;
  bool byte_level_ = false;
};

}  // namespace detail

/// What a tokenizer.json holds; `source` begins every error message. The ids of BOS and EOS stand
/// in other files (text/load_tokenizer.hpp).
inline TokenizerData tokenizer_json_data(std::string_view json,
                                         std::string source = "tokenizer.json") {
  return detail::TokenizerJsonReader(json, std::move(source)).read();
}

/// The tokenizer of a tokenizer.json.
inline Tokenizer tokenizer_from_json(std::string_view json, std::string source = "tokenizer.json") {
  TokenizerData data = tokenizer_json_data(json, source);
  try {
    return Tokenizer(std::move(data));
  } catch (const FormatError& error) {
    throw FormatError(detail::text(source, ": ", error.what()));
  }
}

}  // namespace rapt
