// The lens: worked examples of published models, and what the formulas promise about themselves.
#include "rapt/cache/footprint.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

namespace rapt::test {
namespace {

constexpr index_t kKiB = 1024, kMiB = 1024 * kKiB, kGiB = 1024 * kMiB;

TEST(Footprint, Llama3With8BillionParameters) {
  const KvGeometry g{.layers = 32, .heads = 32, .kv_heads = 8, .head_dim = 128, .element_bytes = 2};
  const Footprint f = footprint(g, 8192);
  EXPECT_EQ(f.bytes_per_token_per_layer(), 4096);
  EXPECT_EQ(f.bytes_per_token, 128 * kKiB);
  EXPECT_EQ(f.bytes_written_per_token, 128 * kKiB);
  EXPECT_EQ(f.bytes_stored, 1 * kGiB);
  EXPECT_EQ(f.bytes_read_per_query, 1 * kGiB);
  EXPECT_EQ(f.bytes_read_per_query / g.layers, 32 * kMiB);
  EXPECT_EQ(f.flops_per_query, 32 * 4 * 32 * index_t{128} * 8192);  // 4 H d n for each layer
  EXPECT_DOUBLE_EQ(f.intensity(), 2.0 * 4 / 2);                     // 2 r / e
  auto mha = g, mqa = g;
  mha.kv_heads = 32, mqa.kv_heads = 1;
  EXPECT_EQ(footprint(mha, 8192).bytes_stored, 4 * kGiB);
  EXPECT_EQ(footprint(mqa, 8192).bytes_stored, kGiB / 8);
}

TEST(Footprint, SmolLM2With135MillionParameters) {
  const Footprint f = footprint({.layers = 30, .heads = 9, .kv_heads = 3, .head_dim = 64}, 1);
  EXPECT_EQ(f.bytes_per_token_per_layer(), 1536);
  EXPECT_EQ(f.bytes_per_token, 46080);
}

TEST(Footprint, Mistral7BNeverKeepsMoreThanItsWindow) {
  const KvGeometry g{.layers = 32,
                     .heads = 32,
                     .kv_heads = 8,
                     .head_dim = 128,
                     .element_bytes = 2,
                     .window = 4096};
  for (const index_t n : {4096, 4097, 1000000}) EXPECT_EQ(footprint(g, n).bytes_stored, 512 * kMiB);
  EXPECT_EQ(footprint(g, 100).kept_tokens, 100);
}

TEST(Footprint, GptOss20BHasLayersOfTwoKinds) {
  const KvGeometry full{
      .layers = 12, .heads = 64, .kv_heads = 8, .head_dim = 64, .element_bytes = 2};
  auto windowed = full;
  windowed.window = 128;
  const index_t n = 131072;
  const Footprint wide = footprint(full, n), narrow = footprint(windowed, n), model = wide + narrow;
  EXPECT_EQ(wide.bytes_per_token_per_layer(), 2048);
  EXPECT_EQ(wide.bytes_stored, 3 * kGiB);
  EXPECT_EQ(narrow.bytes_stored, 3 * kMiB);
  EXPECT_EQ(model.bytes_stored, 3 * kGiB + 3 * kMiB);
  EXPECT_EQ(model.layers, 24);
  EXPECT_EQ(model.bytes_per_token_per_layer(), 2048);
  EXPECT_EQ(model.bytes_per_token, 24 * 2048);
  EXPECT_EQ(model.kept_tokens, n);
  EXPECT_EQ(model.mechanism, "GQA + GQA, window 128");
}

TEST(Footprint, TableOfHeadCountsAtFixedWidth) {  // d_model 512, 8 heads of 64, 256 tokens, fp32
  const auto bytes = [](index_t kv_heads) {
    return footprint({.heads = 8, .kv_heads = kv_heads, .head_dim = 64}, 256).bytes_stored;
  };
  EXPECT_EQ(bytes(8), 1048576);
  EXPECT_EQ(bytes(2), 262144);
  EXPECT_EQ(bytes(1), 131072);
}

TEST(Footprint, WindowAndSinkTokensKeepWhatTheySee) {
  const KvGeometry g{.kv_heads = 2, .head_dim = 8, .value_dim = 4, .window = 16, .sink_tokens = 4};
  const index_t token = 2 * (8 + 4) * 4;
  for (const index_t n : {0, 1, 16, 19, 20})
    EXPECT_EQ(footprint(g, n).bytes_read_per_query, n * token);
  for (const index_t n : {20, 21, 500}) EXPECT_EQ(footprint(g, n).bytes_read_per_query, 20 * token);
  auto endless = g;
  endless.window = std::numeric_limits<index_t>::max();
  EXPECT_EQ(footprint(endless, 1000).kept_tokens, 1000);
}

TEST(Footprint, BatchStoresButDoesNotReadMore) {
  KvGeometry g{.kv_heads = 2, .head_dim = 8, .batch = 3};
  const Footprint three = footprint(g, 10);
  g.batch = 1;
  const Footprint one = footprint(g, 10);
  EXPECT_EQ(three.bytes_stored, 3 * one.bytes_stored);
  EXPECT_EQ(three.bytes_read_per_query, one.bytes_read_per_query);
}

TEST(Footprint, PrintsATable) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_bytes(kGiB), "1 GiB");
  EXPECT_EQ(
      footprint_table_row(footprint({.heads = 8, .kv_heads = 2, .head_dim = 64}, 256)),
      "| GQA | q 8x64, k 2x64, v 2x64 | k [1, 256, 2, 64], v [1, 256, 2, 64] | 1 KiB | 1 KiB | "
      "256 KiB | 256 KiB | 2.0 |\n");
}

TEST(Footprint, RefusesSizesWithoutMeaning) {
  EXPECT_THAT([] { footprint({.heads = 9, .kv_heads = 2, .head_dim = 64}, 1); },
              testing::ThrowsMessage<ValueError>(
                  "footprint: heads is 9, expected a multiple of 2 = kv_heads"));
  EXPECT_THROW(footprint({.head_dim = 0}, 1), ValueError);
  EXPECT_THROW(footprint({.head_dim = 8}, -1), ValueError);
}

}  // namespace
}  // namespace rapt::test
