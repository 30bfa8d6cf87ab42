// The tokenizer inside a GGUF file.
//
//   tokenizer.ggml.model   gpt2   byte-level BPE; tokenizer.ggml.pre names the split pattern
//                          llama  SentencePiece's BPE by score; blanks are U+2581, bytes <0xNN>
//                          bert   WordPiece; words begin with U+2581 instead of "##" inside them
//
// Other models (t5, rwkv, ...) are refused by name. Keys that a file leaves out have the values
// that llama.cpp gives them, since files are written against it.
//
// Source: github.com/ggml-org/ggml, docs/gguf.md, "Tokenizer".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/io/gguf.hpp"
#include "rapt/text/bert.hpp"
#include "rapt/text/tokenizer.hpp"

namespace rapt {

/// Reads the vocabulary and the rules of a GGUF file.
inline TokenizerData gguf_tokenizer_data(const GgufFile& file) {
  const std::string& source = file.source();
  const auto fail = [&](const auto&... what) {
    throw FormatError(detail::text(source, ": ", what...));
  };
  TokenizerData data;
  const std::string_view model = file.string("tokenizer.ggml.model");
  if (model == "gpt2")
    data.kind = TokenizerKind::byte_bpe;
  else if (model == "llama")
    data.kind = TokenizerKind::score_bpe;
  else if (model == "bert")
    data.kind = TokenizerKind::word_piece;
  else
    fail("tokenizer.ggml.model is ", detail::printable(model), ", expected gpt2, llama or bert");

  for (const std::string_view token : file.value("tokenizer.ggml.tokens").strings())
    data.tokens.emplace_back(token);
  const auto count = static_cast<std::int64_t>(data.tokens.size());
  data.types.assign(data.tokens.size(), TokenType::normal);
  if (const GgufValue* value = file.find("tokenizer.ggml.token_type")) {
    const std::vector<std::int64_t> types = value->integers();
    if (types.size() != data.tokens.size())
      fail("tokenizer.ggml.token_type has ", types.size(), " entries, expected ", count);
    for (std::size_t id = 0; id < types.size(); ++id) {
      if (types[id] < 0 || types[id] > 6)
        fail("tokenizer.ggml.token_type of token ", id, " is ", types[id], ", expected 1 ... 6");
      if (types[id] > 0) data.types[id] = static_cast<TokenType>(types[id]);
    }
  }

  // Some files mark the tokens that end a turn as ordinary text. Read in the text of a stranger
  // they would end his turn for him, so they are control tokens whatever the file says, "</s>"
  // included, which is a tag of HTML in Gemma's vocabulary. llama.cpp does the same.
  for (std::size_t id = 0; id < data.tokens.size(); ++id) {
    TokenType& type = data.types[id];
    if (type != TokenType::normal && type != TokenType::user_defined) continue;
    if (data.tokens[id] == "</s>" || detail::names_end_of_turn(data.tokens[id]))
      type = TokenType::control;
  }

  const auto id_of = [&](std::string_view key, std::int64_t otherwise) {
    const std::int64_t id = file.integer(key, otherwise < count ? otherwise : -1);
    // Some converters write -1 (or its unsigned form) for "there is none".
    if (id == -1 || id == 0xFFFFFFFF) return std::int32_t{-1};
    if (id < 0 || id >= count) fail(key, " is ", id, ", expected 0 ... ", count - 1);
    return static_cast<std::int32_t>(id);
  };
  const bool by_score = data.kind == TokenizerKind::score_bpe;
  data.bos = id_of("tokenizer.ggml.bos_token_id", by_score ? 1 : -1);
  data.eos = id_of("tokenizer.ggml.eos_token_id", by_score ? 2 : -1);
  data.unk = id_of("tokenizer.ggml.unknown_token_id", by_score ? 0 : -1);
  data.pad = id_of("tokenizer.ggml.padding_token_id", -1);
  for (const std::string_view key : {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"})
    if (const std::int32_t id = id_of(key, -1); id >= 0) data.end_of_generation.push_back(id);
  data.chat_template = file.string("tokenizer.chat_template", "");

  std::string pre(file.string("tokenizer.ggml.pre", "default"));
  bool bos_by_default = by_score;
  switch (data.kind) {
    case TokenizerKind::byte_bpe: {
      data.pre = pre;
      for (const std::string_view name : {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1",
                                          "pixtral", "midm-2.0", "lfm2"})
        if (pre == name) data.ignore_merges = bos_by_default = true;
      if (pre == "tekken") data.ignore_merges = bos_by_default = true;
      if (pre == "gpt-4o" || pre == "llama4" || pre == "minimax-m2") data.ignore_merges = true;
      // The models were trained on composed text; GGUF does not say so.
      if (pre == "qwen2" || pre == "qwen35") {
        NormalizerStep nfc{};
        nfc.kind = NormalizerStep::Kind::nfc;
        data.normalizers.push_back(nfc);
      }
      data.drop_unknown = true;
      const std::vector<std::string_view> merges = file.value("tokenizer.ggml.merges").strings();
      data.merges.reserve(merges.size());
      for (std::size_t i = 0; i < merges.size(); ++i) {
        const std::size_t blank = merges[i].find(' ', 1);
        if (blank == std::string_view::npos || blank + 1 == merges[i].size())
          fail("tokenizer.ggml.merges: entry ", i, " is ", detail::printable(merges[i]),
               ", expected two tokens and a space");
        data.merges.emplace_back(merges[i].substr(0, blank), merges[i].substr(blank + 1));
      }
      if (file.boolean("tokenizer.ggml.add_space_prefix", false)) {
        PreTokenizerStep step{};
        step.kind = PreTokenizerStep::Kind::prefix_space;
        data.pre_tokenizers.push_back(step);
      }
      break;
    }
    case TokenizerKind::score_bpe: {
      const std::vector<double> scores = file.value("tokenizer.ggml.scores").numbers();
      for (const double score : scores) data.scores.push_back(static_cast<float>(score));
      data.add_space_prefix = file.boolean("tokenizer.ggml.add_space_prefix", true);
      data.decode_strips_space = data.add_space_prefix;
      break;
    }
    case TokenizerKind::word_piece: {
      data.continuing_prefix = "##";
      data.decode_strips_space = true;
      for (std::size_t id = 0; id < data.tokens.size(); ++id) {
        std::string& token = data.tokens[id];
        if (data.types[id] != TokenType::normal) continue;
        if (token.starts_with(detail::kMetaspace))
          token.erase(0, detail::kMetaspace.size());
        else
          token.insert(0, "##");
      }
      detail::add_bert_steps(data, true, true, true, true);
      detail::add_bert_pre_tokenizer(data);
      const std::int32_t cls = id_of("tokenizer.ggml.cls_token_id", data.bos);
      // The misspelt key is the one that files carry.
      std::int32_t sep = id_of("tokenizer.ggml.seperator_token_id", -1);
      if (sep < 0) sep = id_of("tokenizer.ggml.separator_token_id", data.eos);
      if (cls >= 0) data.prefix = {cls};
      if (sep >= 0) data.suffix = {sep};
      break;
    }
    case TokenizerKind::bpe:
      break;
  }
  data.add_bos = file.boolean("tokenizer.ggml.add_bos_token", bos_by_default);
  data.add_eos = file.boolean("tokenizer.ggml.add_eos_token", false);
  return data;
}

/// The tokenizer of an open GGUF file.
inline Tokenizer gguf_tokenizer(const GgufFile& file) {
  try {
    return Tokenizer(gguf_tokenizer_data(file));
  } catch (const FormatError& error) {
    const std::string what = error.what();
    if (what.starts_with(file.source())) throw;
    throw FormatError(detail::text(file.source(), ": ", what));
  }
}

}  // namespace rapt
