// Calls that are refused: the type of the error, its text, and that nothing was written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/problem.hpp"

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using Options = AttentionOptions<Tensor<float, 4>>;

struct Call {
  Tensor<float, 4> out, q, k, v;
  Options options{};

  Call() : out({2, 8, 4, 16}), q({2, 8, 4, 16}), k({2, 12, 2, 16}), v({2, 12, 2, 16}) {
    for (index_t n = 0; n < out.size(); ++n) out.data()[n] = 5;
  }
  template <class Error, class Mask = Causal, class Score = Identity>
  void expect_refused(const char* message, Mask mask = {}, Score score = {}) {
    EXPECT_THAT([&] { attention(out, q, k, v, mask, score, options); },
                ThrowsMessage<Error>(HasSubstr(message)));
    for (index_t n = 0; n < out.size(); ++n) ASSERT_EQ(out.data()[n], 5) << "written";
  }
};

TEST(Errors, NameTheWrongShape) {
  Call call;
  call.v = Tensor<float, 4>({2, 11, 2, 16});
  call.expect_refused<ShapeError>(
      "attention: v is [2, 11, 2, 16], expected [2, 12, 2, 16] = [batch, kv_len, kv_heads, "
      "value_dim]");
  call.v = Tensor<float, 4>({2, 12, 1, 16});
  call.expect_refused<ShapeError>("attention: v is [2, 12, 1, 16], expected [2, 12, 2, 16]");
  call.v = Tensor<float, 4>({2, 12, 2, 8});
  call.expect_refused<ShapeError>(
      "attention: out is [2, 8, 4, 16], expected [2, 8, 4, 8] = [batch, q_len, heads, value_dim]");

  call = Call();
  call.k = Tensor<float, 4>({1, 12, 2, 16});
  call.expect_refused<ShapeError>(
      "attention: k is [1, 12, 2, 16], expected [2, 12, 2, 16] = [batch, kv_len, kv_heads, "
      "head_dim]");
  call.k = Tensor<float, 4>({2, 12, 2, 15});
  call.expect_refused<ShapeError>("attention: k is [2, 12, 2, 15], expected [2, 12, 2, 16]");
}

TEST(Errors, HeadsMustDivide) {
  Call call;
  call.k = call.v = Tensor<float, 4>({2, 12, 3, 16});
  call.expect_refused<ShapeError>(
      "attention: q has 4 heads and k has 3 kv_heads, expected heads to be a multiple of kv_heads");
  call.k = call.v = Tensor<float, 4>({2, 12, 0, 16});
  call.expect_refused<ShapeError>("k has 0 kv_heads");
}

TEST(Errors, AnEmptyHeadIsRefused) {
  Call call;
  call.q = Tensor<float, 4>({2, 8, 4, 0});
  call.k = Tensor<float, 4>({2, 12, 2, 0});
  call.expect_refused<ShapeError>(
      "attention: q is [2, 8, 4, 0], expected a head_dim of at least 1");
}

TEST(Errors, OptionsHaveShapes) {
  Call call;
  Tensor<float, 1> sinks({3});
  call.options = {.sink_logits = sinks};
  call.expect_refused<ShapeError>("attention: sink_logits is [3], expected [4] = [heads]");
  Tensor<float, 3> rows({2, 8, 4});
  call.options = {.logsumexp = rows};
  call.expect_refused<ShapeError>(
      "attention: logsumexp is [2, 8, 4], expected [2, 4, 8] = [batch, heads, q_len]");
  call.options = {.logsumexp_with_sink = rows};
  call.expect_refused<ShapeError>("attention: logsumexp_with_sink is [2, 8, 4]");
  Tensor<float, 4> weights({2, 4, 8, 11});
  call.options = {.probabilities = weights};
  call.expect_refused<ShapeError>(
      "attention: probabilities is [2, 4, 8, 11], expected [2, 4, 8, 12] = [batch, heads, q_len, "
      "kv_len]");
  Tensor<std::int32_t, 2> positions({2, 9});
  call.options = {.q_positions = positions};
  call.expect_refused<ShapeError>("attention: q_positions is [2, 9], expected [2, 8]");
  call.options = {.kv_positions = positions};
  call.expect_refused<ShapeError>("attention: kv_positions is [2, 9], expected [2, 12]");
}

TEST(Errors, LengthsAreWithinTheKeys) {
  Call call;
  auto lengths = list({12, 13});
  call.options = {.kv_lengths = lengths};
  call.expect_refused<ValueError>("attention: kv_lengths[1] is 13, expected 0 to 12 = kv_len");
  lengths(1) = -1;
  call.expect_refused<ValueError>("attention: kv_lengths[1] is -1, expected 0 to 12 = kv_len");
  const auto three = list({1, 1, 1});
  call.options = {.kv_lengths = three};
  call.expect_refused<ShapeError>("attention: kv_lengths is [3], expected [2] = [batch]");
}

TEST(Errors, PackedSequencesGrowAndFit) {
  Call call;
  const auto two = list({0, 8});
  call.options = {.cu_seqlens_q = two, .cu_seqlens_k = two};
  call.expect_refused<ShapeError>(
      "attention: q is [2, 8, 4, 16], expected a batch of 1 with cu_seqlens_q");

  call.out = call.q = Tensor<float, 4>({1, 8, 4, 16});
  for (index_t n = 0; n < call.out.size(); ++n) call.out.data()[n] = 5;
  call.k = call.v = Tensor<float, 4>({1, 12, 2, 16});
  const auto falls = list({0, 5, 4}), beyond = list({0, 5, 9}), late = list({1, 5, 8}),
             good = list({0, 5, 8});
  call.options = {.cu_seqlens_q = falls, .cu_seqlens_k = good};
  call.expect_refused<ValueError>("attention: cu_seqlens_q[2] is 4, expected 5 to 8");
  call.options = {.cu_seqlens_q = beyond, .cu_seqlens_k = good};
  call.expect_refused<ValueError>("attention: cu_seqlens_q[2] is 9, expected 5 to 8");
  call.options = {.cu_seqlens_q = late, .cu_seqlens_k = good};
  call.expect_refused<ValueError>("attention: cu_seqlens_q[0] is 1, expected 0");
  call.options = {.cu_seqlens_q = good, .cu_seqlens_k = two};
  call.expect_refused<ShapeError>("attention: cu_seqlens_k is [2], expected [3] = [sequences + 1]");
  call.options = {.cu_seqlens_q = good};
  call.expect_refused<ValueError>("attention: cu_seqlens_k is absent");
  call.options = {.cu_seqlens_k = good};
  call.expect_refused<ValueError>("attention: cu_seqlens_q is absent");
}

TEST(Errors, PagesAreInThePool) {
  Call call;
  auto table = integers(Shape<2>{2, 1}, 1, 0, 1);
  const auto lengths = list({12, 3});
  call.options = {.block_table = table};
  call.expect_refused<ValueError>(
      "attention: kv_lengths is absent, expected one beside block_table");
  call.options = {.kv_lengths = lengths, .block_table = table};
  table(1, 0) = 2;
  call.expect_refused<ValueError>(
      "attention: block_table[1, 0] is 2, expected 0 to 1 = a block of the pool");
}

TEST(Errors, MasksAndScoresAreBoundBeforeAnythingIsWritten) {
  Call call;
  const auto map = integers(Shape<4>{1, 1, 1, 1}, 1, 1, 1);
  call.expect_refused<ShapeError>("BlockSparse: map is [1, 1, 1, 1]", BlockSparse<>{map, 4});
  call.expect_refused<ValueError>("SlidingWindow: window is 0", Causal{} & SlidingWindow{0});
  call.expect_refused<ValueError>("SoftCap: cap is 0", Causal{}, SoftCap{0});
  Tensor<std::int32_t, 2> positions({2, 8});
  call.options = {.q_positions = positions};
  const auto big = integers(Shape<4>{1, 1, 12, 12}, 1, 1, 1);
  call.expect_refused<ValueError>("attention: q_positions is given, expected none beside a mask",
                                  DenseMask<>{big});
}

TEST(Errors, StridesAndOverlapAreRefused) {
  Call call;
  Tensor<float, 4> transposed({2, 8, 16, 4});
  EXPECT_THAT([&] { attention(call.out, transposed.transpose(), call.k, call.v); },
              ThrowsMessage<ShapeError>(HasSubstr("attention: q has strides [512, 64, 1, 4]")));
  EXPECT_THAT([&] { attention(call.q, call.q, call.k, call.v); },
              ThrowsMessage<ValueError>(HasSubstr("attention: out overlaps q")));
}

TEST(Errors, NothingToDoIsNoError) {
  for (const auto& shape : {Shape<4>{0, 8, 4, 16}, {2, 0, 4, 16}, {2, 8, 0, 16}}) {
    Tensor<float, 4> q(shape), out(shape), k({shape[0], 12, 2, 16}), v(k);
    EXPECT_NO_THROW(attention(out, q, k, v));
  }
  Tensor<float, 4> q({1, 3, 2, 4}), k({1, 0, 1, 4}), out(q);
  EXPECT_NO_THROW(attention(out, q, k, k));
}

// A wrong element type, rank or backend does not compile.
template <class Out, class Q>
concept Attends = requires(Out& out, const Q& q) {
  attention(out, q, q, q);
};
static_assert(Attends<Tensor<float, 4>, Tensor<float, 4>>);
static_assert(!Attends<Tensor<float, 3>, Tensor<float, 4>>);
static_assert(!Attends<const Tensor<float, 4>, Tensor<float, 4>>);

}  // namespace
}  // namespace rapt::test
