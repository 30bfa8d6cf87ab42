// Gradients of the attention module against finite differences in double, for every option that a
// module has, with and without windows, padding and packed documents.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rapt/modules/attention.hpp"
#include "support/gradients.hpp"

namespace rapt::test {
namespace {

constexpr index_t kBatch = 2, kSeq = 7, kWidth = 12;

/// Every option that a module has, one after the other, then many together.
std::vector<AttentionConfig> configs() {
  const AttentionConfig plain = {.d_model = kWidth, .heads = 4, .kv_heads = 2, .rope = Rope{}};
  // A head_dim of 3 cannot turn as a whole: heads of 4.
  std::vector<AttentionConfig> out;
  const auto with = [&](auto change) {
    out.push_back(plain);
    out.back().head_dim = 4;
    change(out.back());
  };
  with([](auto&) {});
  with([](auto& c) { c.rope.reset(); });
  with([](auto& c) { c.qkv_bias = c.out_bias = true; });
  with([](auto& c) {
    c.qk_norm = QkNorm::head;
    c.norm_plus_one = true;
  });
  with([](auto& c) { c.qk_norm = QkNorm::flat; });
  with([](auto& c) { c.softcap = 1.5; });
  with([](auto& c) { c.sinks = true; });
  with([](auto& c) { c.output_gate = true; });
  with([](auto& c) {
    c.head_dim = 6;
    c.value_dim = 5;
    c.scale = 0.3;
  });
  with([](auto& c) { c.out_projection = false; });
  with([](auto& c) { c.rope = Rope{.layout = RopeLayout::interleaved_to_half}; });
  with([](auto& c) {
    c.rope = Rope{.partial_factor = 0.5, .layout = RopeLayout::interleaved};
    c.kv_heads = 1;
  });
  with([](auto& c) {
    c.kv_heads = 4;
    c.sinks = c.qkv_bias = c.out_bias = c.output_gate = true;
    c.softcap = 2;
    c.qk_norm = QkNorm::head;
  });
  with([](auto& c) {
    c.output_gate = true;
    c.out_projection = false;
  });
  return out;
}

template <class M>
void check(M& module, const AttentionCall<double, Cpu>& call = {}) {
  randomize(module.parameters());
  expect_module_gradients(module, normal(Shape{kBatch, kSeq, kWidth}, 1), module.out_dim(), call);
}

TEST(AttentionGradient, EveryOption) {
  int number = 0;
  for (const AttentionConfig& config : configs()) {
    SCOPED_TRACE(number++);
    GroupedQueryAttention<double> module(config);
    check(module);
  }
}

TEST(AttentionGradient, NamedForms) {
  MultiHeadAttention<double> mha({.d_model = kWidth, .heads = 3, .rope = Rope{}});
  check(mha);
  MultiQueryAttention<double> mqa({.d_model = kWidth, .heads = 3, .rope = Rope{}});
  check(mqa);
}

TEST(AttentionGradient, WindowsAndSinkTokens) {
  for (const index_t window : {2, 3, 30})
    for (const index_t sink_tokens : {0, 2}) {
      SlidingWindowAttention<double> module({.d_model = kWidth,
                                             .heads = 3,
                                             .kv_heads = 1,
                                             .window = window,
                                             .sink_tokens = sink_tokens,
                                             .rope = Rope{},
                                             .softcap = window == 3 ? 2.0 : 0.0});
      check(module);
    }
}

TEST(AttentionGradient, AWindowOfOneMovesOnlyTheValues) {
  SlidingWindowAttention<double> module({.d_model = kWidth, .heads = 3, .window = 1});
  randomize(module.parameters());
  module.require_gradients();
  const auto x = normal(Shape{kBatch, kSeq, kWidth}, 1);
  Tensor<double, 3> y(x.shape()), dx(x.shape());
  Tape<> tape;
  module.forward(y, x, tape);
  module.backward(dx, x, tape);
  for (const auto& p : module.parameters())
    for (index_t i = 0; i < p.gradient.size(); ++i) {
      if (p.name == "q_proj.weight" || p.name == "k_proj.weight") {
        EXPECT_NEAR(p.gradient(i), 0, 1e-12) << p.name;
      } else {
        EXPECT_NE(p.gradient(i), 0.0) << p.name;
      }
    }
}

/// Rows of padding and documents, as a collator makes them.
struct Rows {
  Tensor<std::int32_t, 2> mask{Shape{kBatch, kSeq}}, positions{Shape{kBatch, kSeq}},
      documents{Shape{kBatch, kSeq}};
  Rows() {
    const int ids[kBatch][kSeq] = {{4, 4, 4, 1, 1, 9, 9}, {4, 7, 7, 7, 7, 7, 8}};
    for (index_t b = 0; b < kBatch; ++b)
      for (index_t i = 0; i < kSeq; ++i) {
        const index_t pad = 2 * b;  // left padding of the second row
        mask(b, i) = i >= pad;
        positions(b, i) = static_cast<std::int32_t>(std::max<index_t>(0, i - pad));
        documents(b, i) = ids[b][i];
      }
  }
};

TEST(AttentionGradient, PaddedKeysAndPositions) {
  const Rows rows;
  for (const bool norm : {false, true}) {
    GroupedQueryAttention<double> module({.d_model = kWidth,
                                          .heads = 3,
                                          .kv_heads = 1,
                                          .rope = Rope{},
                                          .qk_norm = norm ? QkNorm::head : QkNorm::none});
    check(module, {.positions = rows.positions, .key_mask = rows.mask});
  }
}

TEST(AttentionGradient, PackedDocuments) {
  const Rows rows;
  for (const index_t window : {2, 30}) {
    SlidingWindowAttention<double> module({.d_model = kWidth,
                                           .heads = 4,
                                           .kv_heads = 2,
                                           .head_dim = 4,
                                           .window = window,
                                           .sink_tokens = window == 2 ? 1 : 0,
                                           .rope = Rope{},
                                           .sinks = true});
    check(module, {.document_ids = rows.documents});
  }
}

TEST(AttentionGradient, PackedDocumentsAreComputedAsIfAlone) {
  const Rows rows;
  SlidingWindowAttention<double> module(
      {.d_model = kWidth, .heads = 3, .window = 2, .sink_tokens = 1, .rope = Rope{}});
  randomize(module.parameters());
  const auto x = normal(Shape{kBatch, kSeq, kWidth}, 1);
  const auto packed = module.forward(x, {.document_ids = rows.documents});
  for (index_t b = 0; b < kBatch; ++b)
    for (index_t begin = 0; begin < kSeq;) {
      index_t end = begin + 1;
      while (end < kSeq && rows.documents(b, end) == rows.documents(b, begin)) ++end;
      const auto alone = module.forward(clone(x.slice(0, b, b + 1).slice(1, begin, end)));
      for (index_t i = begin; i < end; ++i)
        for (index_t c = 0; c < kWidth; ++c)
          EXPECT_NEAR(packed(b, i, c), alone(0, i - begin, c), 1e-14);
      begin = end;
    }
}

TEST(AttentionGradient, StridedViewsAndOneToken) {
  GroupedQueryAttention<double> module(
      {.d_model = kWidth, .heads = 3, .kv_heads = 1, .rope = Rope{}});
  randomize(module.parameters());
  module.require_gradients();
  const auto wide = normal(Shape{kBatch, kSeq + 3, kWidth}, 1);
  for (const auto& [begin, end] : {std::pair<index_t, index_t>{1, kSeq + 1}, {2, 3}}) {
    const Shape shape{kBatch, end - begin, kWidth};
    const auto x = wide.slice(1, begin, end);
    const auto dense_x = clone(x);
    Tensor<double, 3> y(wide.shape()), dx(wide.shape()), dense_y(shape), dense_dx(shape);
    Tape<> tape;
    module.forward(y.slice(1, begin, end), x, tape);
    module.backward(dx.slice(1, begin, end), wide.slice(1, 0, end - begin), tape);
    module.forward(dense_y, dense_x, tape);
    module.backward(dense_dx, clone(wide.slice(1, 0, end - begin)), tape);
    for (index_t b = 0; b < kBatch; ++b)
      for (index_t i = begin; i < end; ++i)
        for (index_t c = 0; c < kWidth; ++c) {
          EXPECT_EQ(y(b, i, c), dense_y(b, i - begin, c));
          EXPECT_EQ(dx(b, i, c), dense_dx(b, i - begin, c));
        }
  }
}

TEST(AttentionGradient, NothingIsLegal) {
  GroupedQueryAttention<double> module({.d_model = kWidth, .heads = 3});
  module.require_gradients();
  Tape<> tape;
  for (const Shape<3> shape : {Shape{0, 3, kWidth}, Shape{2, 0, kWidth}}) {
    Tensor<double, 3> x(shape), y(shape), dx(shape);
    module.forward(y, x, tape);
    module.backward(dx, y, tape);
    EXPECT_TRUE(tape.empty());
  }
  EXPECT_EQ(module.parameters()[0].gradient(0), 0.0);
}

TEST(AttentionGradient, FrozenModulesGiveDxAlone) {
  GroupedQueryAttention<double> module({.d_model = kWidth, .heads = 3, .sinks = true});
  randomize(module.parameters());
  auto x = normal(Shape{1, 4, kWidth}, 1);
  const auto dy = normal(x.shape(), 2);
  Tensor<double, 3> y(x.shape()), dx(x.shape());
  Tape<> tape;
  module.forward(y, x, tape);
  module.backward(dx, dy, tape);
  expect_gradient("x", flat(x), flat(dx), [&] { return dot(module.forward(x), dy); });
  EXPECT_FALSE(module.parameters()[0].gradient);
}

template <class E, class F>
void expect_text(F&& f, const std::string& part) {
  EXPECT_THAT(f, testing::ThrowsMessage<E>(testing::HasSubstr(part)));
}

TEST(AttentionGradient, NamesWhatDoesNotFit) {
  GroupedQueryAttention<double> module({.d_model = kWidth, .heads = 3});
  Tensor<double, 3> x(Shape{2, 3, kWidth}), y(x.shape()), other(Shape{2, 4, kWidth});
  const Rows rows;
  Tape<> tape;
  expect_text<ShapeError>([&] { module.forward(y, other, tape); },
                          "out is [2, 3, 12], expected [2, 4, 12]");
  expect_text<ShapeError>([&] { module.forward(y, x, tape, {.document_ids = rows.documents}); },
                          "document_ids is [2, 7], expected [2, 3] = [batch, seq]");
  expect_text<ValueError>(
      [&] {
        Tensor<double, 3> z(Shape{kBatch, kSeq, kWidth}), out(z.shape());
        module.forward(out, z, tape, {.key_mask = rows.mask, .document_ids = rows.documents});
      },
      "key_mask is given, expected none beside document_ids");
  EXPECT_TRUE(tape.empty());
  expect_text<ValueError>([&] { module.backward(x, y, tape); }, "tape: nothing is left");
  module.forward(y, x, tape);
  expect_text<ShapeError>([&] { module.backward(other, other, tape); },
                          "dy is [2, 4, 12], expected [2, 3, 12] = [batch, seq, out_dim]");

  SlidingWindowAttention<double> streaming({.d_model = kWidth,
                                            .heads = 3,
                                            .window = 2,
                                            .sink_tokens = 1,
                                            .sink_positions = SinkPositions::in_cache});
  tape.clear();
  expect_text<ValueError>([&] { streaming.forward(y, x, tape); }, "sink_positions is in_cache");
  EXPECT_TRUE(tape.empty());
}

}  // namespace
}  // namespace rapt::test
