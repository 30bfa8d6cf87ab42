// Gradients of the layers of a block, and of the block, against finite differences in double.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "rapt/nn/block.hpp"
#include "rapt/nn/embedding.hpp"
#include "support/gradients.hpp"

namespace rapt::test {
namespace {

using nn::Block;
using nn::Embedding;
using nn::GatedMlp;
using nn::Linear;
using nn::Norm;

/// A layer of rows: forward on the tape, backward, finite differences of x and of every parameter.
template <class Layer>
void check(Layer& layer, index_t in, index_t out) {
  layer.require_gradients();
  auto x = normal(Shape{5, in}, 1);
  const auto dy = normal(Shape{5, out}, 2);
  Tensor<double, 2> y(dy.shape()), plain(dy.shape()), dx(x.shape());
  Tape<> tape;
  layer.forward(y, x, tape);
  layer.backward(dx, dy, tape);
  EXPECT_TRUE(tape.empty());
  const auto loss = [&] {
    layer.forward(plain, x);
    return dot(plain, dy);
  };
  EXPECT_EQ(dot(y, dy), loss());
  expect_gradient("x", flat(x), flat(dx), loss);
  expect_parameter_gradients(layer.parameters(), loss);
}

TEST(LayerGradient, Linear) {
  for (const bool bias : {false, true})
    for (const index_t out : {1, 9}) {
      Linear<double> layer(7, out, bias);
      randomize(layer.parameters());
      check(layer, 7, out);
    }
}

TEST(LayerGradient, Norms) {
  for (const bool plus_one : {false, true}) {
    Norm<double> rms(9, {.kind = NormKind::rms, .plus_one = plus_one});
    randomize(rms.parameters());
    check(rms, 9, 9);
  }
  Norm<double> layer(9, {.kind = NormKind::layer});
  randomize(layer.parameters());
  check(layer, 9, 9);
}

TEST(LayerGradient, GatedMlp) {
  for (const Activation activation :
       {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::sigmoid})
    for (const bool bias : {false, true}) {
      GatedMlp<double> layer(6, 11, activation, bias);
      randomize(layer.parameters());
      check(layer, 6, 6);
    }
}

TEST(LayerGradient, EmbeddingAddsUpRepeatedIds) {
  Embedding<double> layer(5, 4, 1.5);
  randomize(layer.parameters());
  layer.require_gradients();
  Tensor<std::int32_t, 2> ids(Shape{2, 3});
  for (index_t i = 0; i < 6; ++i) ids.data()[i] = static_cast<std::int32_t>(i * i % 4);  // not 4
  const auto dy = normal(Shape{2, 3, 4}, 1);
  Tensor<double, 3> y(dy.shape());
  Tape<> tape;
  layer.forward(y, ids, tape);
  layer.backward(dy, tape);
  EXPECT_TRUE(tape.empty());
  const auto p = layer.parameters();
  expect_parameter_gradients(p, [&] { return dot(layer.forward(ids), dy); });
  for (index_t c = 0; c < 4; ++c) EXPECT_EQ(p[0].gradient(4 * 4 + c), 0.0);
}

TEST(LayerGradient, TiedProjection) {
  Embedding<double> layer(5, 4, 1.5);
  randomize(layer.parameters());
  layer.require_gradients();
  auto x = normal(Shape{3, 4}, 1);
  const auto dlogits = normal(Shape{3, 5}, 2);
  Tensor<double, 2> logits(dlogits.shape()), dx(x.shape());
  layer.project_backward(dx, dlogits, x);
  const auto loss = [&] {
    layer.project(logits, x);
    return dot(logits, dlogits);
  };
  expect_gradient("x", flat(x), flat(dx), loss);
  expect_parameter_gradients(layer.parameters(), loss);
}

std::vector<ModelConfig> models() {
  ModelConfig plain;
  plain.d_model = 8;
  plain.layers = 1;
  plain.heads = 2;
  plain.kv_heads = 1;
  plain.head_dim = 4;
  plain.ffn_dim = 10;
  plain.vocab_size = 3;
  plain.max_position = 16;
  plain.layer_types.resize(1);
  std::vector<ModelConfig> out = {plain, plain, plain};
  out[1].post_norms = out[1].norm_plus_one = true;
  out[1].qk_norm = QkNorm::head;
  out[1].attention_softcap = 2;
  out[1].activation = Activation::gelu_tanh;
  out[1].layer_types[0].window = 2;
  out[2].norm = NormKind::layer;
  out[2].qkv_bias = out[2].out_bias = out[2].mlp_bias = out[2].sinks = true;
  return out;
}

TEST(LayerGradient, Block) {
  for (const ModelConfig& model : models()) {
    Block<double> block(model, 0);
    randomize(block.parameters());
    block.require_gradients();
    auto x = normal(Shape{2, 5, 8}, 1);
    const auto dy = normal(x.shape(), 2);
    Scratch<> scratch;
    const auto context = block.attention().context(scratch, 2, 5, {});
    Tape<> tape;
    auto h = clone(x), dh = clone(dy);
    block.record(h, tape, context);
    block.backward(dh, tape, context);
    EXPECT_TRUE(tape.empty());
    const auto loss = [&] {
      auto y = clone(x);
      NoCache none;
      block.forward(y, none, {});
      return dot(y, dy);
    };
    EXPECT_EQ(dot(h, dy), loss());
    expect_gradient("x", flat(x), flat(dh), loss);
    expect_parameter_gradients(block.parameters(), loss);
  }
}

template <class E, class F>
void expect_text(F&& f, const std::string& part) {
  EXPECT_THAT(f, testing::ThrowsMessage<E>(testing::HasSubstr(part)));
}

TEST(LayerGradient, NamesWhatDoesNotFit) {
  Linear<double> layer(3, 4);
  Tensor<double, 2> x(Shape{2, 3}), y(Shape{2, 4}), longer(Shape{5, 4});
  Tape<> tape;
  layer.forward(y, x, tape);
  expect_text<ShapeError>([&] { layer.backward(x, longer, tape); },
                          "tape: the last pushed is f64 [2, 3], expected f64 [5, 3]");
  expect_text<ShapeError>([&] { layer.backward(y, y, tape); },
                          "linear backward: dx is [2, 4], expected [2, 3] = [rows, in]");
  Norm<double> norm(3, {});
  expect_text<ShapeError>([&] { norm.forward(y, y, tape); },
                          "norm: x is [2, 4], expected [2, 3] = [rows, n]");
  EXPECT_TRUE(tape.empty());
}

}  // namespace
}  // namespace rapt::test
