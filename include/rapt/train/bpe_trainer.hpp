// Learns a byte-level BPE vocabulary from a text.
//
//   pieces = the text cut by GPT-2's pattern, each with how often it occurs
//   symbols = the 256 bytes
//   until the vocabulary is full: the pair of neighbouring symbols that occurs most often becomes a
//   symbol of its own (of equal pairs the one with the smaller left id, then the smaller right id)
//
//   BpeTrainer trainer;
//   trainer.add(text);                                    // as often as there are texts
//   TokenizerData data = trainer.train(/*vocab_size=*/4096);
//   write_file("tokenizer.json", tokenizer_json_text(data));
//
// Ids: <|endoftext|> is 0, then the 256 bytes in the order of GPT-2's alphabet, then the joined
// symbols, best first; so a vocabulary of 257 has no merges and says one token a byte. The result
// depends on the text and the size alone, and the merges are those of Hugging Face's
// `BpeTrainer(vocab_size, special_tokens=["<|endoftext|>"],
// initial_alphabet=ByteLevel.alphabet())`. A text with too few pairs gives a smaller vocabulary.
//
// Time O(pairs log pairs) after one pass over the text: a joined pair is looked for only in the
// pieces that hold it, and counts are changed where they change.
//
// Errors: ValueError for a vocabulary below 257 or above 2^24.
// Source: Sennrich, Haddow, Birch 2016, arXiv:1508.07909, algorithm 1; bytes as in GPT-2.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"
#include "rapt/text/pattern.hpp"
#include "rapt/text/pre_tokenizer.hpp"
#include "rapt/text/tokenizer_data.hpp"
#include "rapt/text/unicode.hpp"

namespace rapt::train {

inline constexpr std::string_view kEndOfText = "<|endoftext|>";
inline constexpr index_t kByteVocabulary = 257;  // the bytes and the end of a text

class BpeTrainer {
 public:
  BpeTrainer() : pattern_(kGpt2Pattern, "bpe_trainer") {}

  /// Counts the pieces of a text, which may be any bytes.
  void add(std::string_view text) {
    // No piece goes on over a blank that follows a visible sign, so long texts go by in slices.
    while (!text.empty()) {
      std::size_t end = std::min(text.size(), kSlice);
      if (end < text.size()) {
        std::size_t cut = end;
        while (cut > 0 && !(blank(text[cut]) && text[cut - 1] > ' ' && text[cut - 1] < 127)) --cut;
        if (cut > 0) end = cut;
      }
      const std::string_view slice = text.substr(0, end);
      spans_.clear();
      rapt::detail::split_by(pattern_, rapt::detail::SplitBehavior::isolated, false, slice,
                             {0, slice.size()}, matcher_, spans_);
      for (const auto& span : spans_)
        ++counts_[std::string(slice.substr(span.begin, span.end - span.begin))];
      text.remove_prefix(end);
    }
  }

  /// The vocabulary of the texts so far.
  TokenizerData train(index_t vocab_size) {
    if (vocab_size < kByteVocabulary || vocab_size > (index_t{1} << 24))
      throw ValueError(rapt::detail::text("bpe_trainer: vocab_size is ", vocab_size, ", expected ",
                                          kByteVocabulary, " to ", index_t{1} << 24));
    TokenizerData data;
    data.kind = TokenizerKind::byte_bpe;
    data.pre = "gpt-2";
    data.bos = data.eos = 0;
    AddedToken end;
    end.id = 0;
    end.content = kEndOfText;
    data.added.push_back(end);
    data.tokens.emplace_back(kEndOfText);
    std::array<std::int32_t, 256> byte_id{};
    for (const auto& [symbol, byte] : ordered_alphabet()) {
      byte_id[byte] = static_cast<std::int32_t>(data.tokens.size());
      std::string token;
      rapt::detail::append_utf8(token, symbol);
      data.tokens.push_back(std::move(token));
    }
    data.types.assign(data.tokens.size(), TokenType::normal);
    data.types[0] = TokenType::control;

    std::vector<Word> words = sorted_words(byte_id);
    merge(words, vocab_size, data);
    return data;
  }

 private:
  static constexpr std::size_t kSlice = std::size_t{1} << 20;
  static bool blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }
  struct Word {
    std::vector<std::int32_t> symbols;
    std::int64_t count;
  };
  using Pair = std::uint64_t;  // left id, right id
  static Pair pair_of(std::int32_t left, std::int32_t right) {
    return (Pair{static_cast<std::uint32_t>(left)} << 32) | static_cast<std::uint32_t>(right);
  }
  struct Candidate {
    std::int64_t count;
    Pair pair;
    /// The queue's top is the largest: more often, then the smaller pair.
    bool operator<(const Candidate& other) const {
      return count != other.count ? count < other.count : pair > other.pair;
    }
  };
  struct PairUse {
    std::int64_t count = 0;
    std::unordered_set<std::uint32_t> words;
  };

  static std::array<std::pair<char32_t, std::size_t>, 256> ordered_alphabet() {
    std::array<std::pair<char32_t, std::size_t>, 256> out;
    for (std::size_t b = 0; b < 256; ++b) out[b] = {rapt::detail::byte_alphabet()[b], b};
    std::sort(out.begin(), out.end());
    return out;
  }

  std::vector<Word> sorted_words(const std::array<std::int32_t, 256>& byte_id) const {
    std::vector<std::pair<std::string, std::int64_t>> sorted(counts_.begin(), counts_.end());
    std::sort(sorted.begin(), sorted.end());  // a hash's order is nobody's business
    std::vector<Word> words;
    words.reserve(sorted.size());
    for (const auto& [piece, count] : sorted) {
      Word word{{}, count};
      for (const char c : piece) word.symbols.push_back(byte_id[static_cast<unsigned char>(c)]);
      words.push_back(std::move(word));
    }
    return words;
  }

  static void merge(std::vector<Word>& words, index_t vocab_size, TokenizerData& data) {
    std::unordered_map<Pair, PairUse> uses;
    std::unordered_map<std::string, std::int32_t> ids;
    for (std::size_t id = 0; id < data.tokens.size(); ++id)
      ids.emplace(data.tokens[id], static_cast<std::int32_t>(id));
    for (std::uint32_t w = 0; w < words.size(); ++w)
      for (std::size_t i = 0; i + 1 < words[w].symbols.size(); ++i) {
        PairUse& use = uses[pair_of(words[w].symbols[i], words[w].symbols[i + 1])];
        use.count += words[w].count;
        use.words.insert(w);
      }
    std::priority_queue<Candidate> queue;
    for (const auto& [pair, use] : uses) queue.push({use.count, pair});

    std::vector<Pair> touched;
    while (static_cast<index_t>(data.tokens.size()) < vocab_size && !queue.empty()) {
      Candidate best = queue.top();
      queue.pop();
      PairUse& use = uses[best.pair];
      if (use.count != best.count) {  // it changed since it was queued
        best.count = use.count;
        if (best.count > 0) queue.push(best);
        continue;
      }
      const auto left = static_cast<std::int32_t>(best.pair >> 32);
      const auto right = static_cast<std::int32_t>(best.pair & 0xFFFFFFFFu);
      const std::string& left_text = data.tokens[static_cast<std::size_t>(left)];
      const std::string& right_text = data.tokens[static_cast<std::size_t>(right)];
      std::string joined_text = left_text + right_text;
      data.merges.emplace_back(left_text, right_text);
      auto [known, fresh] =
          ids.try_emplace(joined_text, static_cast<std::int32_t>(data.tokens.size()));
      const std::int32_t joined = known->second;
      if (fresh) {
        data.tokens.push_back(std::move(joined_text));
        data.types.push_back(TokenType::normal);
      }
      const auto holders = std::move(use.words);
      touched.clear();
      for (const std::uint32_t w : holders) {
        Word& word = words[w];
        const auto count_pairs = [&](std::int64_t sign) {
          for (std::size_t i = 0; i + 1 < word.symbols.size(); ++i) {
            const Pair pair = pair_of(word.symbols[i], word.symbols[i + 1]);
            PairUse& changed = uses[pair];
            changed.count += sign * word.count;
            if (sign > 0 && (word.symbols[i] == joined || word.symbols[i + 1] == joined)) {
              changed.words.insert(w);
              touched.push_back(pair);
            }
          }
        };
        count_pairs(-1);
        std::size_t out = 0;
        for (std::size_t i = 0; i < word.symbols.size(); ++out) {
          const bool here = i + 1 < word.symbols.size() && word.symbols[i] == left &&
                            word.symbols[i + 1] == right;
          word.symbols[out] = here ? joined : word.symbols[i];
          i += here ? 2 : 1;
        }
        word.symbols.resize(out);
        count_pairs(+1);
      }
      // Only pairs with the new symbol can have grown; all others are corrected when they come up.
      std::sort(touched.begin(), touched.end());
      touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
      for (const Pair pair : touched)
        if (const auto count = uses[pair].count; count > 0) queue.push({count, pair});
    }
  }

  rapt::detail::Pattern pattern_;
  rapt::detail::Matcher matcher_;
  std::vector<rapt::detail::Span> spans_;
  std::unordered_map<std::string, std::int64_t> counts_;
};

}  // namespace rapt::train
