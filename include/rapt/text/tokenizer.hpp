// Tokenizer: text to ids and back, for every kind of tokenizer that rapt reads.
//
//   rapt::Tokenizer tokenizer = rapt::load_tokenizer("model.gguf");       //
//   text/load_tokenizer.hpp std::vector<std::int32_t> ids = tokenizer.encode("Hello", {.add_bos =
//   true}); std::string text = tokenizer.decode(ids);
//
// Text is bytes. Valid UTF-8 is tokenized as the model's own tokenizer does it; other bytes become
// byte tokens where the vocabulary has them, so decode(encode(x)) == x for any x when a byte-level
// vocabulary holds all 256 bytes and nothing normalizes. What a vocabulary cannot say becomes its
// unknown token, or nothing where the model defines none (as in the reference implementations).
//
// Special tokens ("<|im_end|>") are read as such only when asked: text from strangers must not be
// able to close a turn. Tokens that a file calls user-defined are always cut out, longest first.
//
// A Tokenizer is an immutable value: copies share their tables, and any number of threads may use
// one. Errors: FormatError for data that does not fit together, ValueError for an id outside the
// vocabulary.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/text/bpe.hpp"
#include "rapt/text/normalizer.hpp"
#include "rapt/text/pre_tokenizer.hpp"
#include "rapt/text/token_index.hpp"
#include "rapt/text/tokenizer_data.hpp"
#include "rapt/text/unicode.hpp"

namespace rapt {

struct EncodeOptions {
  bool parse_special = false;  // read special tokens in the text
  bool add_bos = false;        // begin with the file's BOS (or [CLS]), where the file asks for one
  bool add_eos = false;        // end with its EOS (or [SEP]), where the file asks for one
  // With parse_special: stretches in which special tokens are not read, in ascending order. A chat
  // keeps its users' words here, so that they cannot close their turn.
  std::span<const TextRange> literal = {};
};

struct DecodeOptions {
  bool skip_special = false;  // leave special tokens out instead of writing them
};

namespace detail {

/// The names that models of all families give to the end of a text or a turn.
inline bool names_end_of_turn(std::string_view token) {
  if (token.size() < 5 || token[0] != '<') return false;
  for (const std::string_view name :
       {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
        "<|eom_id|>", "<EOT>", "<|return|>", "<｜end▁of▁sentence｜>"})
    if (token == name) return true;
  return false;
}

/// The tables behind a Tokenizer.
class TokenizerTables {
 public:
  explicit TokenizerTables(TokenizerData d) : data(std::move(d)) {
    check();
    index_all();
    add_merges();
    list_added();
    list_ends();
  }

  std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options) const {
    Encoding run{{}, {}, {}};
    if (options.add_bos) run.ids = prefix;
    bool at_start = true;
    // What an added token leaves is normalized, searched for the tokens that want that, and
    // encoded.
    const auto encode_normal = [&](std::string_view part) {
      if (normalizer_.empty()) return encode_text(part, at_start, run);
      const std::string normal = normalizer_(part, run.matcher);
      // Ranges mean nothing in normalized text: with some, special tokens are no longer read here.
      const bool special = options.parse_special && options.literal.empty();
      cut_added(
          normal, special ? normal_all_ : normal_always_, normal_always_, {}, run,
          [&](std::string_view rest) { encode_text(rest, at_start, run); }, at_start);
    };
    cut_added(text, options.parse_special ? raw_all_ : raw_always_, raw_always_, options.literal,
              run, encode_normal, at_start);
    if (options.add_eos) run.ids.insert(run.ids.end(), suffix.begin(), suffix.end());
    return std::move(run.ids);
  }

  bool valid(std::int32_t id) const {
    return id >= 0 && static_cast<std::size_t>(id) < data.tokens.size();
  }
  TokenType type(std::int32_t id) const { return data.types[static_cast<std::size_t>(id)]; }
  bool special(std::int32_t id) const {
    return type(id) == TokenType::control || type(id) == TokenType::unknown;
  }
  std::int32_t find(std::string_view token) const { return all_.find(data.tokens, token); }

  TokenizerData data;
  std::vector<std::string> pieces;  // the bytes that each token stands for
  std::vector<std::int32_t> prefix, suffix, ends;

 private:
  struct Encoding {
    std::vector<std::int32_t> ids;
    Matcher matcher;
    std::vector<BpeSymbol> symbols;  // of the piece at hand
  };

  static std::string quote(std::string_view token) {
    return to_valid_utf8(token.substr(0, 64)) + (token.size() > 64 ? "..." : "");
  }

  void check() {
    const std::size_t count = data.tokens.size();
    if (count == 0 || count > std::size_t{1} << 30)
      throw FormatError(text("tokenizer: the vocabulary has ", count, " tokens"));
    if (data.types.empty()) data.types.assign(count, TokenType::normal);
    if (data.types.size() != count)
      throw FormatError(text("tokenizer: ", data.types.size(), " token types, expected ", count));
    if (data.kind == TokenizerKind::score_bpe && data.scores.size() != count)
      throw FormatError(text("tokenizer: ", data.scores.size(), " scores, expected ", count));
    for (const float score : data.scores)
      if (score != score) throw FormatError("tokenizer: a token's score is NaN");
    const auto in_range = [&](std::int32_t id, const char* what) {
      if (!valid(id))
        throw FormatError(text("tokenizer: ", what, " is ", id, ", expected 0 ... ", count - 1));
    };
    const auto optional_id = [&](std::int32_t id, const char* what) {
      if (id != -1) in_range(id, what);
    };
    optional_id(data.bos, "the BOS token");
    optional_id(data.eos, "the EOS token");
    optional_id(data.unk, "the unknown token");
    optional_id(data.pad, "the padding token");
    for (const std::int32_t id : data.prefix) in_range(id, "a token before the text");
    for (const std::int32_t id : data.suffix) in_range(id, "a token after the text");
    for (const std::int32_t id : data.end_of_generation) in_range(id, "an end token");
    for (const AddedToken& token : data.added) in_range(token.id, "an added token");
    prefix = data.prefix;
    suffix = data.suffix;
    if (prefix.empty() && data.add_bos && data.bos >= 0) prefix = {data.bos};
    if (suffix.empty() && data.add_eos && data.eos >= 0) suffix = {data.eos};
  }

  /// The bytes of `<0xNN>`, or -1.
  static int byte_of_token(std::string_view token) {
    const auto digit = [](char c) {
      return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
    };
    if (token.size() != 6 || token.substr(0, 3) != "<0x" || token[5] != '>') return -1;
    const int high = digit(token[3]), low = digit(token[4]);
    return high < 0 || low < 0 ? -1 : 16 * high + low;
  }

  std::string piece_of(std::size_t id) const {
    const std::string& token = data.tokens[id];
    const TokenType kind = data.types[id];
    const int byte = kind == TokenType::byte || data.byte_fallback ? byte_of_token(token) : -1;
    if (byte >= 0) return std::string(1, static_cast<char>(byte));
    if (kind == TokenType::control || kind == TokenType::unknown) return token;
    switch (data.kind) {
      case TokenizerKind::byte_bpe: {
        std::string bytes;
        return kind == TokenType::normal && from_byte_alphabet(token, bytes) ? bytes : token;
      }
      case TokenizerKind::score_bpe:
        return replace_all(token, kMetaspace, " ");
      case TokenizerKind::word_piece:
        if (kind == TokenType::user_defined) return token;
        return token.starts_with(data.continuing_prefix) && !data.continuing_prefix.empty()
                   ? token.substr(data.continuing_prefix.size())
                   : " " + token;
      case TokenizerKind::bpe:
        break;
    }
    std::string piece = token;
    for (const auto& [from, to] : data.decode_replacements) piece = replace_all(piece, from, to);
    return piece;
  }

  void index_all() {
    const std::size_t count = data.tokens.size();
    all_ = TokenIndex(data.tokens, [](std::int32_t) { return true; });
    byte_ids_.fill(-1);
    pieces.reserve(count);
    const bool byte_level = data.kind == TokenizerKind::byte_bpe;
    for (std::size_t id = 0; id < count; ++id) {
      pieces.push_back(piece_of(id));
      const bool is_byte = byte_level
                               ? data.types[id] == TokenType::normal && pieces[id].size() == 1
                               : (data.types[id] == TokenType::byte || data.byte_fallback) &&
                                     byte_of_token(data.tokens[id]) >= 0;
      if (!is_byte) continue;
      std::int32_t& slot = byte_ids_[static_cast<unsigned char>(pieces[id][0])];
      if (slot < 0) slot = static_cast<std::int32_t>(id);
    }
    // What a piece of text may become: byte-level tokens by their bytes, others as they are
    // spelled.
    model_ = TokenIndex(byte_level ? pieces : data.tokens, [&](std::int32_t id) {
      return !special(id) && type(id) != TokenType::byte;
    });
    normalizer_ = Normalizer(data.normalizers);
    std::vector<PreTokenizerStep> steps = data.pre_tokenizers;
    if (!data.pre.empty())
      for (std::string& pattern : split_patterns(data.pre)) {
        PreTokenizerStep step{};
        step.kind = PreTokenizerStep::Kind::split;
        step.pattern = std::move(pattern);
        steps.push_back(std::move(step));
      }
    pre_tokenizer_ = PreTokenizer(steps, "tokenizer: pre-tokenizer");
  }

  void add_merges() {
    if (data.kind != TokenizerKind::byte_bpe && data.kind != TokenizerKind::bpe) return;
    merges_ = MergeTable(data.merges.size());
    std::uint32_t rank = 0;
    for (const auto& [left, right] : data.merges) {
      const std::int32_t a = find(left), b = find(right), joined = find(left + right);
      if (a < 0 || b < 0 || joined < 0)
        throw FormatError(text("tokenizer: merge ", rank, " is ", quote(left), " ", quote(right),
                               ", expected two tokens whose join is a token"));
      merges_.add(a, b, rank++, joined);
    }
  }

  void list_added() {
    if (data.added.empty()) {  // GGUF marks them by type
      for (std::size_t id = 0; id < data.tokens.size(); ++id) {
        const TokenType kind = data.types[id];
        if (kind != TokenType::control && kind != TokenType::user_defined &&
            kind != TokenType::unknown)
          continue;
        AddedToken token;
        token.id = static_cast<std::int32_t>(id);
        token.content = data.tokens[id];
        token.special = kind != TokenType::user_defined;
        data.added.push_back(std::move(token));
      }
    }
    for (std::size_t i = 0; i < data.added.size(); ++i) {
      const AddedToken& token = data.added[i];
      Matcher matcher;
      const bool late = token.normalized && !normalizer_.empty();
      const std::string content = late ? normalizer_(token.content, matcher) : token.content;
      const auto put = [&](std::string_view spelling) {
        (late ? normal_all_ : raw_all_).insert(spelling, static_cast<std::int32_t>(i));
        if (!token.special)
          (late ? normal_always_ : raw_always_).insert(spelling, static_cast<std::int32_t>(i));
      };
      put(content);
      // SentencePiece files spell blanks as U+2581; in the text they are still blanks.
      if (data.kind == TokenizerKind::score_bpe && content.find(kMetaspace) != std::string::npos)
        put(replace_all(content, kMetaspace, " "));
    }
  }

  void list_ends() {
    const auto add = [&](std::int32_t id) {
      if (id < 0) return;
      for (const std::int32_t known : ends)
        if (known == id) return;
      ends.push_back(id);
    };
    add(data.eos);
    for (const std::int32_t id : data.end_of_generation) add(id);
    // Files often name one end token where the model was trained on several.
    for (std::size_t id = 0; id < data.tokens.size(); ++id)
      if ((data.types[id] == TokenType::control || data.types[id] == TokenType::user_defined) &&
          names_end_of_turn(data.tokens[id]))
        add(static_cast<std::int32_t>(id));
  }

  static bool word_char_before(std::string_view text, std::size_t at) {
    if (at == 0) return false;
    std::size_t start = at - 1;
    while (start > 0 && at - start < 4 && (text[start] & 0xC0) == 0x80) --start;
    const Utf8Char c = first_char(text.substr(start, at - start));
    return c.valid && is_letter_or_number(c.code);
  }
  static bool word_char_at(std::string_view text, std::size_t at) {
    const Utf8Char c = first_char(text.substr(at));
    return c.valid && is_letter_or_number(c.code);
  }

  /// Gives the stretches between added tokens to on_text, and the tokens' ids to run. Where a match
  /// reaches into a `literal` range, only those of `in_literal` count.
  template <class OnText>
  void cut_added(std::string_view text, const TokenTrie& tokens, const TokenTrie& in_literal,
                 std::span<const TextRange> literal, Encoding& run, OnText on_text,
                 bool& at_start) const {
    std::size_t done = 0;
    if (!tokens.empty()) {
      for (std::size_t at = 0; at < text.size();) {
        TokenTrie::Match match = tokens.longest_at(text.substr(at));
        if (match.value >= 0) {
          while (!literal.empty() && literal.front().end <= at) literal = literal.subspan(1);
          if (!literal.empty() && literal.front().begin < at + match.length)
            match = in_literal.longest_at(text.substr(at));
        }
        if (match.value < 0) {
          ++at;
          continue;
        }
        const AddedToken& token = data.added[static_cast<std::size_t>(match.value)];
        std::size_t begin = at, end = at + match.length;
        if (token.single_word && (word_char_before(text, begin) || word_char_at(text, end))) {
          ++at;
          continue;
        }
        while (token.lstrip && begin > done) {
          std::size_t start = begin - 1;
          while (start > done && begin - start < 4 && (text[start] & 0xC0) == 0x80) --start;
          const Utf8Char c = first_char(text.substr(start, begin - start));
          if (!c.valid || c.length != begin - start || !is_white_space(c.code)) break;
          begin = start;
        }
        while (token.rstrip && end < text.size()) {
          const Utf8Char c = first_char(text.substr(end));
          if (!c.valid || !is_white_space(c.code)) break;
          end += c.length;
        }
        if (begin > done) on_text(text.substr(done, begin - done));
        run.ids.push_back(token.id);
        at_start = false;
        done = at = end;
      }
    }
    if (done < text.size()) on_text(text.substr(done));
  }

  void encode_text(std::string_view part, bool& at_start, Encoding& run) const {
    if (part.empty()) return;
    std::string text(part);
    if (data.kind == TokenizerKind::score_bpe) {
      // Parts are maximal: whatever stands before one is the start of the text or an added token.
      if (data.add_space_prefix) text.insert(0, " ");
      text = replace_all(text, " ", kMetaspace);
    }
    const Pieces pieces_of_text = pre_tokenizer_(std::move(text), at_start, run.matcher);
    at_start = false;
    for (std::size_t i = 0; i < pieces_of_text.spans.size(); ++i)
      encode_piece(pieces_of_text[i], run);
  }

  void encode_piece(std::string_view piece, Encoding& run) const {
    if (piece.size() > 0x7FFFFFFFu)
      throw ValueError(
          text("encode: a piece of text has ", piece.size(), " bytes, expected less than 2^31"));
    if (data.kind == TokenizerKind::word_piece) return encode_word(piece, run);
    if (data.ignore_merges) {
      const std::int32_t whole = find_model(piece);
      if (whole >= 0) {
        run.ids.push_back(whole);
        return;
      }
    }
    start_symbols(piece, run.symbols);
    if (data.kind == TokenizerKind::score_bpe) {
      merge_with_heap<float>(run.symbols, [&](const BpeSymbol& left, const BpeSymbol& right) {
        const std::int32_t id = find_model(piece.substr(left.begin, left.length + right.length));
        return BpeJoin<float>{id < 0 ? 0.f : -data.scores[static_cast<std::size_t>(id)], id};
      });
    } else {
      merge_by_scan<std::uint32_t>(run.symbols, [&](const BpeSymbol& left, const BpeSymbol& right) {
        const MergeTable::Rule rule = merges_.find(left.id, right.id);
        return BpeJoin<std::uint32_t>{rule.rank, rule.joined};
      });
    }
    for (const BpeSymbol& symbol : run.symbols) {
      if (symbol.id >= 0) {
        run.ids.push_back(symbol.id);
        continue;
      }
      bool known = true;  // an unknown character by score: its bytes, or the unknown token
      const std::string_view bytes = piece.substr(symbol.begin, symbol.length);
      for (const char c : bytes) known = known && byte_ids_[static_cast<unsigned char>(c)] >= 0;
      if (known)
        for (const char c : bytes) run.ids.push_back(byte_ids_[static_cast<unsigned char>(c)]);
      else if (data.unk >= 0 && !data.drop_unknown)
        run.ids.push_back(data.unk);
    }
  }

  std::int32_t find_model(std::string_view piece) const {
    return model_.find(data.kind == TokenizerKind::byte_bpe ? pieces : data.tokens, piece);
  }

  /// The symbols that merging starts from: bytes or characters.
  void start_symbols(std::string_view piece, std::vector<BpeSymbol>& symbols) const {
    symbols.clear();
    const auto unknown = [&](std::size_t begin, std::size_t length) {
      if (data.unk < 0 || data.drop_unknown) return;
      if (data.fuse_unknown && !symbols.empty() && symbols.back().id == data.unk)
        symbols.back().length += static_cast<std::uint32_t>(length);
      else
        symbols.push_back(
            {data.unk, static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(length)});
    };
    if (data.kind == TokenizerKind::byte_bpe) {
      for (std::size_t i = 0; i < piece.size(); ++i) {
        const std::int32_t id = byte_ids_[static_cast<unsigned char>(piece[i])];
        if (id >= 0)
          symbols.push_back({id, static_cast<std::uint32_t>(i), 1});
        else
          unknown(i, 1);
      }
      return;
    }
    for (std::size_t i = 0; i < piece.size();) {
      const Utf8Char c = first_char(piece.substr(i));
      const std::size_t length = c.valid ? c.length : 1;
      const std::int32_t id = c.valid ? find_model(piece.substr(i, length)) : -1;
      if (id >= 0 || data.kind == TokenizerKind::score_bpe) {
        symbols.push_back({id, static_cast<std::uint32_t>(i), static_cast<std::uint32_t>(length)});
      } else {
        bool bytes = data.byte_fallback;
        for (std::size_t j = 0; j < length; ++j)
          bytes = bytes && byte_ids_[static_cast<unsigned char>(piece[i + j])] >= 0;
        for (std::size_t j = 0; bytes && j < length; ++j)
          symbols.push_back({byte_ids_[static_cast<unsigned char>(piece[i + j])],
                             static_cast<std::uint32_t>(i + j), 1});
        if (!bytes) unknown(i, length);
      }
      i += length;
    }
  }

  void encode_word(std::string_view word, Encoding& run) const {
    std::size_t chars = 0;
    for (std::size_t i = 0; i < word.size(); i += first_char(word.substr(i)).length) ++chars;
    const std::size_t first = run.ids.size();
    bool known =
        chars <= static_cast<std::size_t>(data.max_word_chars < 0 ? 0 : data.max_word_chars);
    std::string candidate;
    for (std::size_t begin = 0; known && begin < word.size();) {
      std::size_t end = word.size();
      std::int32_t id = -1;
      for (; end > begin; --end) {
        if (end < word.size() && (word[end] & 0xC0) == 0x80) continue;  // inside a character
        candidate = begin == 0 ? std::string() : data.continuing_prefix;
        candidate += word.substr(begin, end - begin);
        id = find_model(candidate);
        if (id >= 0) break;
      }
      known = id >= 0;
      if (known) run.ids.push_back(id);
      begin = end;
    }
    if (known) return;
    run.ids.resize(first);
    if (data.unk >= 0) run.ids.push_back(data.unk);
  }

  TokenIndex all_, model_;
  std::array<std::int32_t, 256> byte_ids_{};
  MergeTable merges_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  TokenTrie raw_always_, raw_all_, normal_always_, normal_all_;  // values: index into data.added
};

}  // namespace detail

class Tokenizer {
 public:
  explicit Tokenizer(TokenizerData data)
      : tables_(std::make_shared<const detail::TokenizerTables>(std::move(data))) {}

  std::vector<std::int32_t> encode(std::string_view text, EncodeOptions options = {}) const {
    return tables_->encode(text, options);
  }

  /// The bytes that the ids stand for; special tokens are written out. They need not be UTF-8: see
  /// to_valid_utf8() and Utf8Stream.
  std::string decode(std::span<const std::int32_t> ids, DecodeOptions options = {}) const {
    std::string out;
    bool start = tables_->data.decode_strips_space;
    for (const std::int32_t id : ids) {
      std::string_view bytes = piece(id);
      const bool special = tables_->special(id);
      if (special && options.skip_special) continue;
      if (start && !special) {
        if (bytes.starts_with(' ')) bytes.remove_prefix(1);
        start = false;
      }
      out += bytes;
    }
    return out;
  }
  std::string decode(std::initializer_list<std::int32_t> ids, DecodeOptions options = {}) const {
    return decode(std::span<const std::int32_t>(ids.begin(), ids.size()), options);
  }

  /// The bytes of one token; part of a character, perhaps.
  std::string_view piece(std::int32_t id) const {
    if (!tables_->valid(id))
      throw ValueError(detail::text("decode: id is ", id, ", expected 0 ... ", vocab_size() - 1));
    return tables_->pieces[static_cast<std::size_t>(id)];
  }

  /// The id of a token as the file spells it ("<|im_end|>"), or -1.
  std::int32_t find(std::string_view token) const { return tables_->find(token); }

  std::int32_t vocab_size() const { return static_cast<std::int32_t>(tables_->data.tokens.size()); }
  std::int32_t bos() const { return tables_->data.bos; }  // -1: the vocabulary has none
  std::int32_t eos() const { return tables_->data.eos; }
  std::int32_t unk() const { return tables_->data.unk; }
  std::int32_t pad() const { return tables_->data.pad; }
  /// True where encode() with add_bos puts something before the text.
  bool add_bos() const { return !tables_->prefix.empty(); }
  bool add_eos() const { return !tables_->suffix.empty(); }

  /// Tokens after which a model has said what it wanted: EOS and the ends of a turn.
  std::span<const std::int32_t> end_of_generation() const { return tables_->ends; }
  bool ends_generation(std::int32_t id) const {
    for (const std::int32_t end : tables_->ends)
      if (end == id) return true;
    return false;
  }
  bool is_special(std::int32_t id) const { return tables_->valid(id) && tables_->special(id); }

  /// The file's chat template (Jinja), empty where it has none; see text/chat.hpp.
  const std::string& chat_template() const { return tables_->data.chat_template; }
  const TokenizerData& data() const { return tables_->data; }

 private:
  std::shared_ptr<const detail::TokenizerTables> tables_;
};

}  // namespace rapt
