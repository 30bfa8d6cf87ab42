// Backward calls that are refused: the type of the error, its text, and that nothing was written.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "attention/backward_problem.hpp"

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

struct BackwardErrors : testing::Test {
  Tensor<float, 4> q{{2, 8, 4, 16}}, k{{2, 12, 2, 16}}, v{{2, 12, 2, 8}};
  Tensor<float, 4> out{{2, 8, 4, 8}}, dout{{2, 8, 4, 8}};
  Tensor<float, 4> dq{{2, 8, 4, 16}}, dk{{2, 12, 2, 16}}, dv{{2, 12, 2, 8}};
  Tensor<float, 3> lse{{2, 4, 8}};
  AttentionBackwardOptions<Tensor<float, 4>> options{};

  template <class Error, class Mask = Causal, class Score = Identity>
  void expect_refused(const char* message, Mask mask = {}, Score score = {}) {
    for (auto* t : {&dq, &dk, &dv})
      for (index_t n = 0; n < t->size(); ++n) t->data()[n] = 5;
    EXPECT_THAT(
        [&] { attention_backward(dq, dk, dv, dout, q, k, v, out, lse, mask, score, options); },
        ThrowsMessage<Error>(HasSubstr(message)));
    for (auto* t : {&dq, &dk, &dv})
      for (index_t n = 0; n < t->size(); ++n) ASSERT_EQ(t->data()[n], 5) << "written";
  }
};

TEST_F(BackwardErrors, NameTheWrongShape) {
  dq = Tensor<float, 4>({2, 8, 4, 8});
  expect_refused<ShapeError>(
      "attention_backward: dq is [2, 8, 4, 8], expected [2, 8, 4, 16] = the shape of q");
  dq = Tensor<float, 4>(q.shape());
  dk = Tensor<float, 4>({2, 12, 4, 16});
  expect_refused<ShapeError>(
      "attention_backward: dk is [2, 12, 4, 16], expected [2, 12, 2, 16] = the shape of k");
  dk = Tensor<float, 4>(k.shape());
  dv = Tensor<float, 4>(k.shape());
  expect_refused<ShapeError>("attention_backward: dv is [2, 12, 2, 16], expected [2, 12, 2, 8]");
  dv = Tensor<float, 4>(v.shape());
  dout = Tensor<float, 4>({2, 8, 4, 16});
  expect_refused<ShapeError>(
      "attention_backward: dout is [2, 8, 4, 16], expected [2, 8, 4, 8] = [batch, q_len, heads, "
      "value_dim]");
  dout = out;
  out = Tensor<float, 4>({2, 7, 4, 8});
  expect_refused<ShapeError>("attention_backward: out is [2, 7, 4, 8], expected [2, 8, 4, 8]");
  out = dout;
  lse = Tensor<float, 3>({2, 8, 4});
  expect_refused<ShapeError>(
      "attention_backward: logsumexp is [2, 8, 4], expected [2, 4, 8] = [batch, heads, q_len]");
  lse = Tensor<float, 3>({2, 4, 8});
  k = Tensor<float, 4>({2, 12, 3, 16});
  v = Tensor<float, 4>({2, 12, 3, 8});
  expect_refused<ShapeError>(
      "attention_backward: q has 4 heads and k has 3 kv_heads, expected heads to be a multiple of "
      "kv_heads");
}

TEST_F(BackwardErrors, WhatIsWrittenOverlapsNothing) {
  const auto refuse = [&](auto&& x, auto&& y, auto&& z, const char* message) {
    EXPECT_THAT([&] { attention_backward(x, y, z, dout, q, k, v, out, lse); },
                ThrowsMessage<ValueError>(HasSubstr(message)));
  };
  refuse(q, dk, dv, "attention_backward: dq overlaps q, expected memory of its own");
  refuse(dq, k, dv, "attention_backward: dk overlaps k, expected memory of its own");
  refuse(dq, dk, v, "attention_backward: dv overlaps v, expected memory of its own");
  Tensor<float, 4> same({2, 12, 2, 16});
  v = Tensor<float, 4>(k.shape());
  out = dout = Tensor<float, 4>(q.shape());
  refuse(dq, same, same, "attention_backward: dk overlaps dv, expected memory of its own");
}

TEST_F(BackwardErrors, OptionsFitTheCall) {
  const Tensor<float, 3> rows({2, 8, 4});
  options = {.dlogsumexp = rows};
  expect_refused<ShapeError>("attention_backward: dlogsumexp is [2, 8, 4], expected [2, 4, 8]");
  Tensor<float, 1> sinks({4}), three({3});
  options = {.dsinks = sinks};
  expect_refused<ValueError>(
      "attention_backward: sink_logits is absent, expected one beside dsinks");
  options = {.sink_logits = sinks, .dsinks = three};
  expect_refused<ShapeError>("attention_backward: dsinks is [3], expected [4] = [heads]");
  options = {.logsumexp_with_sink = lse};
  expect_refused<ValueError>(
      "attention_backward: sink_logits is absent, expected one beside logsumexp_with_sink");
  const auto lengths = list({12, 13});
  options = {.kv_lengths = lengths};
  expect_refused<ValueError>("attention_backward: kv_lengths[1] is 13, expected 0 to 12 = kv_len");
  options = {};
  expect_refused<ValueError>("SlidingWindow: window is 0, expected at least 1", SlidingWindow{0});
}

TEST_F(BackwardErrors, GradientsOfTablesNeedTheirTable) {
  Tensor<float, 4> table({1, 4, 8, 12}), wrong({1, 1, 8, 12});
  Tensor<float, 2> relative({4, 9});
  options = {.dbias = table};
  expect_refused<ValueError>(
      "attention_backward: dbias is given, expected a score that holds one AdditiveBias, and it "
      "holds 0");
  options = {.dbias = wrong};
  expect_refused<ShapeError>(
      "attention_backward: dbias is [1, 1, 8, 12], expected [1, 4, 8, 12] = the shape of the table "
      "of AdditiveBias",
      Causal{}, AdditiveBias{table});
  options = {.drelative_bias = relative};
  expect_refused<ValueError>(
      "attention_backward: drelative_bias is given, expected a score that holds one RelativeBias");
}

}  // namespace
}  // namespace rapt::test
