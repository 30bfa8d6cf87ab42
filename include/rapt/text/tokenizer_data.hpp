// What a tokenizer is made of, as plain data: every file format is read into this, and Tokenizer is
// built from it.
//
//   text ── normalizers ──> text ── pre_tokenizers ──> pieces ── model ──> ids ── prefix, suffix
//        └─ added tokens are cut out first: special ones when asked for, the others always
//
//   kind        the model, and how `tokens` are spelled
//   byte_bpe    BPE by merge rank on bytes; tokens are in GPT-2's byte alphabet (text/unicode.hpp)
//   bpe         BPE by merge rank on characters, with or without fallback to bytes
//   score_bpe   BPE by score (SentencePiece): the pair whose joined token scores highest merges
//   first word_piece  longest match from the left, continuations marked by a prefix (BERT)
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "rapt/text/pattern.hpp"

namespace rapt {

/// A stretch of a text: bytes [begin, end).
using TextRange = detail::Span;

enum class TokenizerKind { byte_bpe, bpe, score_bpe, word_piece };

/// GGUF's token types.
enum class TokenType : std::int8_t {
  normal = 1,
  unknown = 2,
  control = 3,       // matched in text only when special tokens are parsed
  user_defined = 4,  // matched in text always, before the model runs
  unused = 5,
  byte = 6  // <0xNN>
};

/// A token that is cut out of the text before the model runs.
struct AddedToken {
  std::int32_t id = 0;
  std::string content;
  bool special = true;       // only when special tokens are parsed
  bool normalized = false;   // looked for after the normalizers, not before
  bool lstrip = false;       // takes the blanks on its left with it
  bool rstrip = false;       // ... on its right
  bool single_word = false;  // not next to a letter, number or underscore
};

/// One step of text normalization.
struct NormalizerStep {
  enum class Kind {
    nfc,
    nfd,
    nfkc,
    nfkd,
    lowercase,
    strip_accents,        // removes combining marks (after NFD)
    strip,                // blanks at the ends: `left`, `right`
    prepend,              // `content` before a text that is not empty
    replace,              // matches of `pattern` by `content`
    clean_text,           // BERT: drops controls, blanks become spaces
    space_chinese_chars,  // BERT: blanks around ideographs
  };
  Kind kind;
  bool left = true, right = true;
  std::string pattern, content;  // pattern is a regular expression
};

/// One step of cutting text into the pieces that the model sees.
struct PreTokenizerStep {
  enum class Kind {
    split,         // by `pattern`, `behavior`, `invert`
    prefix_space,  // a space before each piece that has none (ByteLevel's add_prefix_space)
    metaspace,     // blanks become U+2581, and `split` cuts before them
  };
  enum class Prepend { always, first, never };
  Kind kind;
  std::string pattern;
  detail::SplitBehavior behavior = detail::SplitBehavior::isolated;
  bool invert = false;
  Prepend prepend = Prepend::always;  // metaspace: a blank before the text
  bool split = true;                  // metaspace
};

struct TokenizerData {
  TokenizerKind kind = TokenizerKind::byte_bpe;
  std::vector<std::string> tokens;                          // by id, as the file spells them
  std::vector<float> scores;                                // score_bpe: one a token
  std::vector<TokenType> types;                             // one a token, or empty: all normal
  std::vector<std::pair<std::string, std::string>> merges;  // best first, as the file spells them
  std::vector<AddedToken> added;

  std::string pre;  // name of GGUF's split pattern; empty: `pre_tokenizers` says it
  std::vector<NormalizerStep> normalizers;
  std::vector<PreTokenizerStep> pre_tokenizers;

  bool add_space_prefix =
      false;  // score_bpe: a blank before text that starts or follows an added token
  bool byte_fallback = false;         // bpe: a character without a token becomes <0xNN> tokens
  bool ignore_merges = false;         // bpe: a piece that is a token is that token
  bool fuse_unknown = false;          // neighbouring unknowns become one
  std::string continuing_prefix;      // word_piece: "##"
  std::int32_t max_word_chars = 100;  // word_piece: a longer word is unknown

  std::vector<std::pair<std::string, std::string>> decode_replacements;  // in tokens, when decoding
  bool decode_strips_space = false;  // a decoded text loses one leading space

  std::int32_t bos = -1, eos = -1, unk = -1, pad = -1;  // -1: there is none
  bool drop_unknown = false;                 // an unknown piece gives no id even where unk exists
  bool add_bos = false, add_eos = false;     // what the file asks for
  std::vector<std::int32_t> prefix, suffix;  // instead of bos and eos, where a file lists more
  std::vector<std::int32_t> end_of_generation;  // beside eos and the usual end-of-turn tokens
  std::string chat_template;
};

}  // namespace rapt
