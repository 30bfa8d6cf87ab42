// BERT's way of preparing text, shared by the readers of tokenizer.json and GGUF.
//
// Source: Devlin et al. 2018, arXiv:1810.04805, and its tokenization.py.
#pragma once

#include "rapt/text/tokenizer_data.hpp"

namespace rapt::detail {

/// Clean text, blanks around ideographs, accents off, lower case: those that are asked for.
inline void add_bert_steps(TokenizerData& data, bool clean, bool chinese, bool accents,
                           bool lowercase) {
  using Kind = NormalizerStep::Kind;
  const auto add = [&](Kind kind) {
    NormalizerStep step{};
    step.kind = kind;
    data.normalizers.push_back(step);
  };
  if (clean) add(Kind::clean_text);
  if (chinese) add(Kind::space_chinese_chars);
  if (accents) {
    add(Kind::nfd);
    add(Kind::strip_accents);
  }
  if (lowercase) add(Kind::lowercase);
}

/// Blanks separate, signs stand alone.
inline void add_bert_pre_tokenizer(TokenizerData& data) {
  PreTokenizerStep blanks{};
  blanks.kind = PreTokenizerStep::Kind::split;
  blanks.pattern = "\\s+";
  blanks.behavior = SplitBehavior::removed;
  PreTokenizerStep signs = blanks;
  signs.pattern = "[\\p{P}!-/:-@\\[-`{-~]";
  signs.behavior = SplitBehavior::isolated;
  data.pre_tokenizers.push_back(blanks);
  data.pre_tokenizers.push_back(signs);
}

}  // namespace rapt::detail
