// From text to batches: the BPE trainer against Hugging Face's, token files, the order of a data
// set.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "io/io_support.hpp"
#include "rapt/text/tokenizer_json.hpp"
#include "rapt/text/write_tokenizer_json.hpp"
#include "rapt/train/bpe_trainer.hpp"
#include "rapt/train/dataset.hpp"
#include "rapt/train/token_file.hpp"

namespace rapt::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;
using train::Batch;
using train::BpeTrainer;
using train::Dataset;
using train::DatasetOptions;
using train::Packing;
using train::TokenFile;
using train::TokenFileWriter;
using train::TokenSpan;
using Ids = std::vector<std::int32_t>;

// The reference: vocabulary and merges that tokenizers 0.23.3 learns from the same text with
// BpeTrainer(vocab_size=..., special_tokens=["<|endoftext|>"],
// initial_alphabet=ByteLevel.alphabet()).
TEST(BpeTrainer, LearnsTheMergesThatHuggingFaceLearns) {
  const auto reference = nlohmann::json::parse(read_file("tests/train/data/bpe_trainer.json"));
  BpeTrainer trainer;
  trainer.add(reference.at("text").get<std::string>());
  const TokenizerData data = trainer.train(reference.at("vocab_size").get<index_t>());
  EXPECT_EQ(data.tokens, reference.at("vocab").get<std::vector<std::string>>());
  ASSERT_EQ(data.merges.size(), reference.at("merges").size());
  for (std::size_t i = 0; i < data.merges.size(); ++i) {
    EXPECT_EQ(data.merges[i].first, reference.at("merges")[i][0].get<std::string>()) << i;
    EXPECT_EQ(data.merges[i].second, reference.at("merges")[i][1].get<std::string>()) << i;
  }
}

TEST(BpeTrainer, ATextInPartsGivesTheSameVocabulary) {
  const auto reference = nlohmann::json::parse(read_file("tests/train/data/bpe_trainer.json"));
  const auto text = reference.at("text").get<std::string>();
  BpeTrainer whole, parts;
  whole.add(text);
  const std::size_t cut = text.find('\n');
  parts.add(std::string_view(text).substr(0, cut));
  parts.add(std::string_view(text).substr(cut));
  EXPECT_EQ(whole.train(300).merges, parts.train(300).merges);
}

TEST(BpeTrainer, ItsTokenizerIsReadBackAndLosesNoByte) {
  std::string text;
  for (int i = 0; i < 256; ++i) text += static_cast<char>(i);
  text += "the cat and the hat and the bat";
  for (const index_t vocab : {train::kByteVocabulary, index_t{270}}) {
    BpeTrainer trainer;
    trainer.add(text);
    const TokenizerData data = trainer.train(vocab);
    const Tokenizer tokenizer = tokenizer_from_json(tokenizer_json_text(data));
    EXPECT_EQ(tokenizer.vocab_size(), vocab);
    EXPECT_EQ(tokenizer.find("<|endoftext|>"), 0);
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
    if (vocab == train::kByteVocabulary)
      EXPECT_EQ(tokenizer.encode(text).size(), text.size());
    else
      EXPECT_LT(tokenizer.encode(text).size(), text.size());
    // The end of a text is no text: whoever writes it gets its letters.
    EXPECT_GT(tokenizer.encode("<|endoftext|>").size(), 1u);
  }
}

TEST(BpeTrainer, ShortTextsGiveSmallVocabulariesAndBadSizesAreRefused) {
  BpeTrainer trainer;
  trainer.add("ab ab");
  EXPECT_EQ(trainer.train(1000).tokens.size(), 259u);  // "ab" and " ab" is all there is
  EXPECT_EQ(BpeTrainer().train(1000).tokens.size(), 257u);
  EXPECT_THAT([&] { trainer.train(256); },
              ThrowsMessage<ValueError>(HasSubstr("vocab_size is 256, expected 257 to")));
}

TEST(TokenFile, HoldsIdsOfTwoOrFourBytes) {
  const ScratchFolder folder;
  for (const index_t vocab : {index_t{1000}, index_t{100000}}) {
    TokenFileWriter out(folder / "t", {.vocab = vocab, .separator = 5, .tokenizer = 77});
    out.write(Ids{1, 2, 999});
    out.begin_validation();
    out.write(Ids{static_cast<std::int32_t>(vocab - 1)});
    out.finish();
    const TokenFile file(folder / "t");
    EXPECT_EQ(file.header().tokens, 4);
    EXPECT_EQ(file.header().separator, 5);
    EXPECT_EQ(file.header().tokenizer, 77u);
    EXPECT_EQ(file.training().size(), 3);
    EXPECT_EQ(file.training()[2], 999);
    EXPECT_EQ(file.validation()[0], vocab - 1);
  }
}

TEST(TokenFile, EveryBrokenHeaderIsRefusedByName) {
  const ScratchFolder folder;
  TokenFileWriter out(folder / "t", {.vocab = 100});
  out.write(Ids{1, 2, 3});
  out.finish();
  const std::string good = read_file(folder / "t");
  const auto refused = [&](std::string bytes, const std::string& part) {
    write_file(folder / "bad", bytes);
    EXPECT_THAT([&] { TokenFile(folder / "bad"); }, ThrowsMessage<FormatError>(HasSubstr(part)));
  };
  const auto with = [&](std::size_t at, auto value) {
    std::string bytes = good;
    std::memcpy(bytes.data() + at, &value, sizeof value);
    return bytes;
  };
  refused("", "is no token file");
  refused(std::string(64, 'x'), "is no token file");
  refused(good.substr(0, good.size() - 1), "cut short");
  refused(good + "xx", "holds 8 bytes of ids, expected 3 x 2");
  refused(with(8, std::uint32_t{2}), "version is 2, expected 1");
  refused(with(12, std::uint32_t{0}), "width is 0, expected 2");
  refused(with(16, ~std::uint64_t{0}), "cut short");
  refused(with(24, std::uint64_t{4}), "validation_begin is 4, expected at most tokens = 3");
  refused(with(32, std::uint64_t{0}), "vocab is 0");
  refused(with(32, ~std::uint64_t{0}), "vocab is 18446744073709551615");
  refused(with(40, std::int64_t{100}), "separator is 100, expected -1 to 99");
  // An id beyond the vocabulary is met when it is read.
  write_file(folder / "bad", with(64 + 2, std::uint16_t{100}));
  const TokenFile file(folder / "bad");
  EXPECT_EQ(file.training()[0], 1);
  EXPECT_THAT([&] { (void)file.training()[1]; },
              ThrowsMessage<FormatError>(HasSubstr("token 1 is 100, expected 0 to 99")));
  // Every byte of the header turned over: refused or harmless, never a crash.
  for (std::size_t i = 0; i < 64; ++i) {
    std::string bytes = good;
    bytes[i] = static_cast<char>(~bytes[i]);
    write_file(folder / "bad", bytes);
    try {
      const TokenFile fuzzed(folder / "bad");
      for (index_t t = 0; t < fuzzed.training().size(); ++t) (void)fuzzed.training()[t];
    } catch (const FormatError&) {
    }
  }
}

Ids counting(index_t n) {
  Ids out(static_cast<std::size_t>(n));
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<std::int32_t>(i);
  return out;
}

TEST(Dataset, EveryEpochShowsEveryChunkOnceInAnOrderOfItsOwn) {
  const Ids ids = counting(1003);
  Dataset data(TokenSpan(ids, 2000), {.seq = 10, .seed = 7});
  EXPECT_EQ(data.sequences(), 99);
  std::vector<Ids> orders;
  for (index_t epoch = 0; epoch < 3; ++epoch) {
    std::set<std::int32_t> starts, offsets;
    Ids order;
    for (index_t n = 0; n < 99; ++n) {
      Batch batch(1, 10);
      data.fill(batch, epoch * 99 + n);
      EXPECT_EQ(batch.valid, 10);
      EXPECT_TRUE(batch.one_document);
      for (index_t t = 0; t < 10; ++t) {
        EXPECT_EQ(batch.ids(0, t), batch.ids(0, 0) + t);
        EXPECT_EQ(batch.targets(0, t), batch.ids(0, t) + 1);
      }
      starts.insert(batch.ids(0, 0));
      offsets.insert(batch.ids(0, 0) % 10);
      order.push_back(batch.ids(0, 0));
    }
    EXPECT_EQ(starts.size(), 99u);
    EXPECT_EQ(offsets.size(), 1u);
    orders.push_back(order);
  }
  EXPECT_NE(orders[0], orders[1]);
  EXPECT_NE(orders[1], orders[2]);
}

TEST(Dataset, TheOrderIsAFunctionOfSeedAndPosition) {
  const Ids ids = counting(500);
  const auto rows = [&](std::uint64_t seed, index_t first, index_t count) {
    Dataset data(TokenSpan(ids, 500), {.seq = 7, .seed = seed});
    Ids out;
    for (index_t n = first; n < first + count; n += 4) {
      Batch batch(4, 7);
      data.fill(batch, n);
      for (index_t r = 0; r < 4; ++r) out.push_back(batch.ids(r, 0));
    }
    return out;
  };
  const Ids whole = rows(3, 0, 200);
  EXPECT_EQ(Ids(whole.begin() + 120, whole.end()), rows(3, 120, 80));
  EXPECT_NE(whole, rows(4, 0, 200));
}

TEST(Dataset, PackedDocumentsAreToldApart) {
  const Ids ids = {0, 11, 12, 13, 0, 21, 22, 0, 31};
  Dataset data(TokenSpan(ids, 40), {.seq = 8, .shuffle = false, .separator = 0});
  Batch batch(1, 8);
  data.fill(batch, 0);
  EXPECT_THAT(std::vector<int>(batch.ids.data(), batch.ids.data() + 8),
              ElementsAre(0, 11, 12, 13, 0, 21, 22, 0));
  EXPECT_THAT(std::vector<int>(batch.targets.data(), batch.targets.data() + 8),
              ElementsAre(11, 12, 13, 0, 21, 22, 0, 31));
  EXPECT_THAT(std::vector<int>(batch.document_ids.data(), batch.document_ids.data() + 8),
              ElementsAre(0, 0, 0, 0, 1, 1, 1, 2));
  EXPECT_FALSE(batch.one_document);
}

TEST(Dataset, PaddedRowsHoldOneDocument) {
  const Ids ids = {0, 11, 12, 13, 14, 15, 0, 21, 22, 0, 31};
  Dataset data(TokenSpan(ids, 40),
               {.seq = 4, .packing = Packing::padded, .shuffle = false, .separator = 0});
  ASSERT_EQ(data.sequences(), 4);
  Batch batch(4, 4);
  data.fill(batch, 0);
  const auto row = [](const Tensor<std::int32_t, 2>& x, index_t r) {
    return std::vector<int>(x.data() + 4 * r, x.data() + 4 * r + 4);
  };
  EXPECT_THAT(row(batch.ids, 0), ElementsAre(0, 11, 12, 13));
  EXPECT_THAT(row(batch.ids, 1), ElementsAre(14, 0, 0, 0));
  EXPECT_THAT(row(batch.targets, 1), ElementsAre(15, -100, -100, -100));
  EXPECT_THAT(row(batch.ids, 2), ElementsAre(0, 21, 0, 0));
  EXPECT_THAT(row(batch.document_ids, 2), ElementsAre(0, 0, -1, -1));
  EXPECT_EQ(batch.valid, 4 + 1 + 2 + 1);
}

TEST(Dataset, ShortDataIsPaddedAndNoDataIsRefused) {
  const Ids ids = {5, 6, 7};
  Dataset data(TokenSpan(ids, 10), {.seq = 8});
  Batch batch(2, 8);
  data.fill(batch, 0);
  EXPECT_EQ(batch.valid, 4);
  EXPECT_EQ(batch.targets(1, 1), 7);
  EXPECT_EQ(batch.targets(1, 2), -100);
  const Ids one = {5};
  EXPECT_THAT([&] { Dataset(TokenSpan(one, 10), {.seq = 8}); },
              ThrowsMessage<ValueError>(HasSubstr("the data has 1 tokens, expected at least 2")));
  EXPECT_THAT([&] { Dataset(TokenSpan(ids, 10), {.seq = 0}); },
              ThrowsMessage<ValueError>(HasSubstr("seq is 0")));
}

}  // namespace
}  // namespace rapt::test
