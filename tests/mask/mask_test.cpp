// Masks: the table of positions each makes visible, their composition, and their verdicts on tiles,
// which are compared with asking about every pair.
#include "rapt/mask/mask.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>
#include <vector>

#include "rapt/core/random.hpp"

namespace rapt::test {
namespace {

constexpr index_t kMax = std::numeric_limits<index_t>::max();

/// Rows of '#' and '.', one for each query position of `q`.
template <class M>
std::string picture(const M& mask, PositionRange q, PositionRange kv, index_t b = 0,
                    index_t h = 0) {
  std::string out;
  for (index_t i = q.begin; i < q.end; ++i) {
    for (index_t j = kv.begin; j < kv.end; ++j) out += mask(b, h, i, j) ? '#' : '.';
    if (i + 1 < q.end) out += ' ';
  }
  return out;
}

/// What asking about every pair says.
template <class M>
TileVerdict truth(const M& mask, index_t b, index_t h, PositionRange q, PositionRange kv) {
  bool any = false, all = true;
  for (index_t i = q.begin; i < q.end; ++i)
    for (index_t j = kv.begin; j < kv.end; ++j) {
      const bool visible = mask(b, h, i, j);
      any = any || visible;
      all = all && visible;
    }
  return !any ? TileVerdict::skip : all ? TileVerdict::full : TileVerdict::partial;
}

enum class Promise { cautious, exact };

/// Random rectangles with queries in [q_low, q_high) and keys in [0, kv_high).
template <class M>
void expect_verdicts_hold(const M& mask, Promise promise, PositionRange q_in, PositionRange kv_in,
                          index_t batch = 1, index_t heads = 1) {
  Philox random(7);
  const auto pick = [&](index_t low, index_t high) {
    return low + static_cast<index_t>(random() % static_cast<std::uint32_t>(high - low));
  };
  int decided = 0;
  for (int round = 0; round < 1500; ++round) {
    PositionRange q, kv;
    q.begin = pick(q_in.begin, q_in.end);
    q.end = std::min(q_in.end, q.begin + pick(1, 14));
    kv.begin = pick(kv_in.begin, kv_in.end);
    kv.end = std::min(kv_in.end, kv.begin + pick(1, 14));
    const index_t b = pick(0, batch), h = pick(0, heads);
    const TileVerdict said = classify(mask, b, h, q, kv), is = truth(mask, b, h, q, kv);
    const auto where = [&] {
      return testing::Message() << "queries [" << q.begin << ", " << q.end << "), keys ["
                                << kv.begin << ", " << kv.end << "), row " << b << ", head " << h;
    };
    if (said != TileVerdict::partial || promise == Promise::exact) {
      ASSERT_EQ(said, is) << where();
    }
    decided += said != TileVerdict::partial;
  }
  if (promise == Promise::exact) {
    EXPECT_GT(decided, 0);
  }
}

template <class M>
void expect_exact(const M& mask) {
  expect_verdicts_hold(mask, Promise::exact, {-20, 60}, {0, 60});
}
template <class M>
void expect_cautious(const M& mask) {
  expect_verdicts_hold(mask, Promise::cautious, {-20, 60}, {0, 60});
}

TEST(Mask, FullSeesEverything) {
  EXPECT_EQ(picture(Full{}, {-1, 2}, {0, 3}), "### ### ###");
  expect_exact(Full{});
}

TEST(Mask, CausalSeesUpToItself) {
  EXPECT_EQ(picture(Causal{}, {-1, 3}, {0, 4}), ".... #... ##.. ###.");
  expect_exact(Causal{});
}

TEST(Mask, SlidingWindowLooksBothWaysAndUnderCausalLeavesTheLastKeys) {
  EXPECT_EQ(picture(SlidingWindow{2}, {0, 4}, {0, 5}), "##... ###.. .###. ..###");
  EXPECT_EQ(picture(Causal{} & SlidingWindow{2}, {0, 4}, {0, 5}), "#.... ##... .##.. ..##.");
  EXPECT_EQ(picture(Causal{} & SlidingWindow{1}, {0, 3}, {0, 3}), "#.. .#. ..#");
  for (const index_t window : {1, 2, 3, 7, 100}) {
    expect_exact(SlidingWindow{window});
    expect_exact(Causal{} & SlidingWindow{window});
  }
}

TEST(Mask, SlidingWindowOfTheLargestNumberDoesNotOverflow) {
  constexpr SlidingWindow window{kMax};
  EXPECT_TRUE(window(0, 0, -1000, 1000));
  EXPECT_TRUE(window(0, 0, kMax - 1, 0));
  EXPECT_FALSE(window(0, 0, kMax, -kMax));
  EXPECT_EQ(classify(window, 0, 0, {-5, kMax - 10}, {0, 64}), TileVerdict::full);
  EXPECT_EQ(classify(window, 0, 0, {kMax - 1, kMax}, {-kMax, -kMax + 1}), TileVerdict::skip);
  EXPECT_EQ(classify(Causal{} & window, 0, 0, {0, 64}, {64, 128}), TileVerdict::skip);
  expect_exact(window);
}

TEST(Mask, ChunkedLocalStaysInItsChunkAndIsCausal) {
  EXPECT_EQ(picture(ChunkedLocal{2}, {-1, 5}, {0, 5}), "..... #.... ##... ..#.. ..##. ....#");
  for (const index_t chunk : {index_t{1}, index_t{2}, index_t{5}, index_t{64}, kMax})
    expect_exact(ChunkedLocal{chunk});
}

TEST(Mask, SinkTokensAreTheFirstKeys) {
  EXPECT_EQ(picture(SinkTokens{2}, {0, 1}, {0, 4}), "##..");
  EXPECT_EQ(picture(Causal{} & (SlidingWindow{1} | SinkTokens{1}), {0, 4}, {0, 4}),
            "#... ##.. #.#. #..#");
  for (const index_t tokens : {index_t{0}, index_t{1}, index_t{9}, kMax})
    expect_exact(SinkTokens{tokens});
  expect_cautious(Causal{} & (SlidingWindow{5} | SinkTokens{4}));
}

TEST(Mask, PrefixLmSeesItsRowsPrefixWhole) {
  const std::vector<std::int32_t> lengths = {3, 0};
  const PrefixLm mask{TensorView<const std::int32_t, 1>(std::span(lengths))};
  EXPECT_EQ(picture(mask, {0, 4}, {0, 5}, 0), "###.. ###.. ###.. ####.");
  EXPECT_EQ(picture(mask, {0, 4}, {0, 5}, 1), "#.... ##... ###.. ####.");
  expect_verdicts_hold(mask, Promise::exact, {-20, 60}, {0, 60}, 2);
}

TEST(Mask, SameDocumentJudgesTilesRightlyWhateverTheOrderOfIds) {
  Tensor<std::int32_t, 2> ids({2, 40});
  Philox random(3);
  for (index_t i = 0; i < 40; ++i) {
    ids(0, i) = static_cast<std::int32_t>(i / 7);             // grows
    ids(1, i) = static_cast<std::int32_t>(random() % 3) - 1;  // does not
  }
  const SameDocument mask{ids};
  EXPECT_EQ(picture(mask, {5, 9}, {5, 9}), "##.. ##.. ..## ..##");
  expect_verdicts_hold(mask, Promise::cautious, {-3, 45}, {0, 45}, 2);
  expect_verdicts_hold(Causal{} & mask, Promise::cautious, {-3, 45}, {0, 45}, 2);
  const SameDocument growing{as_const_view(ids).slice(0, 0, 1), true};
  expect_verdicts_hold(growing, Promise::exact, {0, 40}, {0, 40}, 2);
  EXPECT_FALSE(mask(0, 0, -1, 0));  // a query before the first token belongs to no document
  EXPECT_FALSE(mask(0, 0, 40, 39));
}

TEST(Mask, BlockSparseIsReadByTheRowOfTheCall) {
  Tensor<std::int32_t, 4> map({1, 2, 2, 3});
  map(0, 0, 0, 0) = map(0, 0, 1, 1) = map(0, 1, 1, 2) = 1;
  const auto mask =
      bind_call(BlockSparse{map, 2}, CallShape{.q_len = 3, .kv_len = 5, .batch = 4, .heads = 2});
  EXPECT_EQ(mask.row_offset, 2);
  EXPECT_EQ(picture(mask, {2, 5}, {0, 5}, 3, 0), "##... ##... ..##.");
  EXPECT_EQ(picture(mask, {2, 5}, {0, 5}, 0, 1), "..... ..... ....#");
  expect_verdicts_hold(mask, Promise::exact, {2, 5}, {0, 5}, 4, 2);
}

TEST(Mask, DenseMaskTakesBoolsAndIntegers) {
  Tensor<bool, 4> table({2, 1, 3, 4});
  table(0, 0, 0, 1) = table(1, 0, 2, 3) = true;
  const auto mask = bind_call(Causal{} & DenseMask{table}, 3, 4);
  EXPECT_EQ(picture(mask, {1, 4}, {0, 4}, 0, 5), ".#.. .... ....");
  EXPECT_EQ(picture(mask, {1, 4}, {0, 4}, 1, 5), ".... .... ...#");
  Tensor<std::uint8_t, 4> bytes({1, 1, 20, 30});
  Philox random(5);
  for (index_t i = 0; i < 20; ++i)
    for (index_t j = 0; j < 30; ++j)
      bytes(0, 0, i, j) = i / 5 == j / 5 || random() % 8 == 0 ? 2 : 0;
  expect_verdicts_hold(bind_call(DenseMask{bytes}, 20, 30), Promise::exact, {10, 30}, {0, 30});
}

TEST(Mask, VerdictAlgebraIsSound) {
  const auto odd = [](index_t, index_t, index_t q, index_t kv) { return (q + kv) % 2 == 1; };
  expect_exact(~Causal{});
  expect_exact(~~SlidingWindow{3});
  expect_cautious(~(Causal{} & SlidingWindow{6}));
  expect_cautious(ChunkedLocal{8} | SlidingWindow{3} | SinkTokens{2});
  expect_cautious((Causal{} & odd) | SinkTokens{3});
  expect_cautious(odd & Causal{});
  expect_cautious(~SinkTokens{3} & ~as_mask(odd) & Causal{});
  EXPECT_EQ(classify(Causal{} & odd, 0, 0, {0, 4}, {4, 8}), TileVerdict::skip);
  EXPECT_EQ(classify(Full{} | as_mask(odd), 0, 0, {0, 4}, {4, 8}), TileVerdict::full);
  EXPECT_EQ(classify(odd, 0, 0, {0, 4}, {4, 8}), TileVerdict::partial);
  EXPECT_EQ(classify(Full{}, 0, 0, {4, 4}, {0, 8}), TileVerdict::skip);  // nothing to see
}

TEST(Mask, CausalWindowIsExactThoughComposed) {
  for (const index_t window : {1, 4, 17}) expect_exact(SlidingWindow{window} & Causal{});
}

struct Foreign {
  friend int operator&(Foreign, Foreign) { return 1; }
  friend int operator|(Causal, Foreign) { return 2; }
  bool operator()(index_t, index_t, index_t, index_t) { return true; }  // not const: no mask
};
template <class L, class R>
concept Conjoins = requires(L l, R r) {
  l& r;
};

TEST(Mask, OperatorsLeaveForeignTypesAlone) {
  const auto f = [](auto, auto, auto, auto) { return true; };
  static_assert(!AttentionMask<Foreign>);
  static_assert(!Conjoins<Causal, int>);
  static_assert(!Conjoins<decltype(f), decltype(f)>);
  static_assert(Conjoins<Causal, decltype(f)> && Conjoins<decltype(f), Causal>);
  EXPECT_EQ(Foreign{} & Foreign{}, 1);
  EXPECT_EQ(Causal{} | Foreign{}, 2);
  EXPECT_TRUE((as_mask(f) & f)(0, 0, 0, 0));
}

TEST(Mask, WantsExactlyBool) {
  static_assert(!AttentionMask<TensorView<float, 4>>);
  static_assert(!AttentionMask<TensorView<bool, 4>>);  // returns a reference
  static_assert(!AttentionMask<decltype([](auto, auto, auto, auto) { return 1; })>);
  static_assert(AttentionMask<decltype([](auto, auto, auto i, auto j) { return j <= i; })>);
  static_assert(AttentionMask<bool (*)(index_t, index_t, index_t, index_t)>);
}

TEST(Mask, MasksAreConstexprAndPlainData) {
  static_assert((Causal{} & SlidingWindow{4})(0, 0, 5, 2));
  static_assert(classify(Causal{} & ~SinkTokens{4}, 0, 0, {8, 12}, {4, 8}) == TileVerdict::full);
  static_assert(std::is_trivially_copyable_v<And<Causal, Or<SlidingWindow, SinkTokens>>>);
  static_assert(std::is_trivially_copyable_v<And<SameDocument<>, And<DenseMask<>, BlockSparse<>>>>);
  static_assert(reads_call_row<Not<DenseMask<>>> && !reads_call_row<And<Causal, Full>>);
}

TEST(Mask, BlockMaskDecidesTilesOfALambda) {
  const auto stripes = [](index_t, index_t h, index_t q, index_t kv) {
    return kv <= q && (q / 16 + h) % 2 == 0 && kv / 16 != 1;
  };
  const auto mask = make_block_mask(stripes, 1, 2, 50, 70, 16);  // queries stand at 20 ... 69
  static_assert(AttentionMask<decltype(mask)>);
  EXPECT_EQ(mask.verdicts().shape(), (Shape{1, 2, 4, 5}));
  expect_verdicts_hold(mask, Promise::cautious, {20, 70}, {0, 70}, 1, 2);
  int decided = 0;
  for (index_t i = 0; i < 4; ++i)
    for (index_t j = 0; j < 5; ++j) {
      const PositionRange q{20 + 16 * i, std::min<index_t>(70, 36 + 16 * i)},
          kv{16 * j, std::min<index_t>(70, 16 * j + 16)};
      EXPECT_EQ(classify(mask, 0, 1, q, kv), truth(stripes, 0, 1, q, kv));
      decided += classify(mask, 0, 1, q, kv) != TileVerdict::partial;
    }
  EXPECT_GT(decided, 5);
  // Beyond the map nothing is known; a tile there must not be skipped.
  EXPECT_EQ(classify(mask, 0, 1, {60, 90}, {0, 16}), TileVerdict::partial);
  EXPECT_EQ(classify(mask, 0, 1, {0, 30}, {0, 16}), TileVerdict::partial);

  const auto bound =
      bind_call(Causal{} & mask, CallShape{.q_len = 50, .kv_len = 70, .batch = 3, .heads = 2});
  static_assert(std::is_trivially_copyable_v<std::remove_cv_t<decltype(bound)>>);
  expect_verdicts_hold(bound, Promise::cautious, {20, 70}, {0, 70}, 3, 2);
}

TEST(Mask, BlockMaskOfATableServesOnlyTheCallItWasBuiltFor) {
  Tensor<std::uint8_t, 4> table({1, 1, 32, 32});
  for (index_t i = 0; i < 32; ++i)
    for (index_t j = 0; j < 32; ++j) table(0, 0, i, j) = i >= 16 ? 1 : 0;
  const auto mask = make_block_mask(DenseMask{table}, 1, 1, 32, 32, 16);
  const auto same = bind_call(mask, 32, 32), other = bind_call(mask, 16, 32);
  EXPECT_EQ(same.verdicts(0, 0, 1, 0), TileVerdict::full);
  // With 16 queries, row 0 stands at position 16 and is row 0 of the table: not visible.
  EXPECT_FALSE(other(0, 0, 16, 0));
  EXPECT_EQ(classify(other, 0, 0, {16, 32}, {0, 16}), TileVerdict::skip);
}

TEST(Mask, BindRefusesWhatDoesNotFitTheCall) {
  using testing::HasSubstr;
  using testing::ThrowsMessage;
  const CallShape call{.q_len = 8, .kv_len = 12, .batch = 2, .heads = 4};
  Tensor<std::int32_t, 4> small({2, 3, 8, 12}), rows({2, 1, 7, 12});
  Tensor<std::int32_t, 2> ids({2, 11});
  Tensor<std::int32_t, 1> lengths({3});
  EXPECT_THAT(
      [&] { bind_call(DenseMask{small}, call); },
      ThrowsMessage<ShapeError>("DenseMask: table is [2, 3, 8, 12], expected [1 or 2, 1 or 4, "
                                "8, 12] = [batch, heads, q_len, kv_len]"));
  EXPECT_THAT([&] { bind_call(Causal{} & ~DenseMask{rows}, call); },
              ThrowsMessage<ShapeError>(HasSubstr("[2, 1, 7, 12]")));
  EXPECT_THAT(
      [&] {
        bind_call(BlockSparse{small, 1}, call);
      },
      ThrowsMessage<ShapeError>(HasSubstr("BlockSparse: map is")));
  EXPECT_THAT(
      [&] {
        bind_call(BlockSparse{small, 0}, call);
      },
      ThrowsMessage<ValueError>(HasSubstr("block_size is 0")));
  EXPECT_THAT([&] { bind_call(SameDocument{ids}, call); },
              ThrowsMessage<ShapeError>(HasSubstr("document_ids is [2, 11]")));
  EXPECT_NO_THROW(bind_call(PrefixLm{lengths}, call));
  EXPECT_THAT(
      [&] {
        bind_call(PrefixLm{lengths}, CallShape{8, 12, 4, 4});
      },
      ThrowsMessage<ShapeError>(HasSubstr("lengths is for 3 rows")));
  EXPECT_THAT([&] { bind_call(Causal{} & SlidingWindow{0}, call); },
              ThrowsMessage<ValueError>("SlidingWindow: window is 0, expected at least 1"));
  EXPECT_THAT([&] { bind_call(ChunkedLocal{0}, call); },
              ThrowsMessage<ValueError>(HasSubstr("chunk is 0")));
  EXPECT_THAT([&] { bind_call(SinkTokens{-1}, call); },
              ThrowsMessage<ValueError>(HasSubstr("tokens is -1")));
}

/// The run that a mask gives is what asking about every pair says.
template <RangeMask M>
void expect_run(const M& mask, index_t b = 0) {
  for (index_t q = -3; q < 20; ++q) {
    const PositionRange run = mask.visible_range(b, 0, q);
    for (index_t kv = 0; kv < 24; ++kv)
      ASSERT_EQ(run.begin <= kv && kv < run.end, mask(b, 0, q, kv)) << "q " << q << " kv " << kv;
  }
}

TEST(Mask, RunsOfKeysAreWhatAQuerySees) {
  Tensor<std::int32_t, 1> lengths({2});
  lengths(0) = 0, lengths(1) = 7;
  expect_run(Full{});
  expect_run(Causal{});
  for (const index_t n : {index_t{1}, index_t{4}, kMax}) {
    expect_run(SlidingWindow{n});
    expect_run(Causal{} & SlidingWindow{n});
    expect_run(ChunkedLocal{n});
    expect_run(SinkTokens{n});
    expect_run(Causal{} & (SinkTokens{n} & SlidingWindow{5}));
  }
  for (const index_t b : {0, 1}) expect_run(PrefixLm{lengths}, b);
  static_assert(!RangeMask<Or<SlidingWindow, SinkTokens>>);
}

/// Of every range of keys: what the mask says is one run is what asking about every pair says.
/// Returns how many of all ranges and queries it knows.
template <class M>
int expect_runs(const M& mask) {
  int known = 0;
  for (index_t q = -3; q < 20; ++q)
    for (index_t begin = 0; begin < 12; ++begin)
      for (index_t end = begin; end <= 12; ++end) {
        PositionRange run;
        if (!visible_run(mask, 0, 0, q, {begin, end}, run)) continue;
        ++known;
        for (index_t kv = begin; kv < end; ++kv)
          EXPECT_EQ(run.begin <= kv && kv < run.end, mask(0, 0, q, kv))
              << "q " << q << " kv " << kv << " of " << begin << ", " << end;
        EXPECT_TRUE(run.empty() || (begin <= run.begin && run.end <= end));
      }
  return known;
}

TEST(Mask, RunsOfRangesAreWhatAQuerySees) {
  constexpr int kAll = 23 * 90;  // queries times ranges
  const auto odd = [](index_t, index_t, index_t, index_t kv) { return kv % 2 == 1; };
  for (const index_t n : {index_t{1}, index_t{4}, kMax}) {
    EXPECT_EQ(expect_runs(Causal{} & SlidingWindow{n}), kAll);
    EXPECT_EQ(expect_runs(Causal{} & (SlidingWindow{n} | SinkTokens{0})), kAll);
    const int some = expect_runs(Causal{} & (SlidingWindow{n} | SinkTokens{2}));
    EXPECT_GT(some, kAll / 2);
    EXPECT_TRUE(n > 1 || some < kAll);  // first tokens, a gap, and a window
    expect_runs((ChunkedLocal{5} | SinkTokens{n}) & (SlidingWindow{3} | Causal{}));
  }
  EXPECT_EQ(expect_runs(Causal{} & odd), 0);
  EXPECT_EQ(expect_runs(SinkTokens{3} | ~Causal{}), 0);
}

}  // namespace
}  // namespace rapt::test
