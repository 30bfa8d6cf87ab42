// Gradients of the attention module under every form of mask, and of the teaching forms, against
// finite differences in double.
#include <gtest/gtest.h>

#include "rapt/modules/teaching.hpp"
#include "support/gradients.hpp"

namespace rapt::test {
namespace {

constexpr index_t kBatch = 2, kSeq = 6, kWidth = 8;

template <class Mask>
void check(Mask mask) {
  Attention<double, Cpu, Mask> module(
      {.d_model = kWidth, .heads = 2, .kv_heads = 1, .rope = Rope{}}, mask);
  randomize(module.parameters());
  expect_module_gradients(module, normal(Shape{kBatch, kSeq, kWidth}, 1), kWidth,
                          AttentionCall<double, Cpu>{});
}

TEST(MaskGradient, FullCausalAndChunks) {
  check(Full{});
  check(Causal{});
  check(ChunkedLocal{4});
}

TEST(MaskGradient, Prefix) {
  Tensor<std::int32_t, 1> lengths(Shape{kBatch});
  lengths(0) = 3;
  check(PrefixLm{lengths});
}

TEST(MaskGradient, SameDocumentIsWhatPackingGives) {
  Tensor<std::int32_t, 2> ids(Shape{kBatch, kSeq});
  for (index_t i = 0; i < ids.size(); ++i) ids.data()[i] = static_cast<std::int32_t>(i / 4);
  const auto mask = Causal{} & SameDocument{ids};
  check(mask);

  Attention<double, Cpu, std::remove_const_t<decltype(mask)>> masked(
      {.d_model = kWidth, .heads = 2}, mask);
  GroupedQueryAttention<double> packed({.d_model = kWidth, .heads = 2});
  randomize(masked.parameters());
  randomize(packed.parameters());
  const auto x = normal(Shape{kBatch, kSeq, kWidth}, 1);
  const auto a = masked.forward(x), b = packed.forward(x, {.document_ids = ids});
  for (index_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a.data()[i], b.data()[i], 1e-14);
}

TEST(MaskGradient, DenseMasksAndLambdas) {
  Tensor<bool, 4> visible(Shape{kBatch, 1, kSeq, kSeq});
  for (index_t i = 0; i < visible.size(); ++i) visible.data()[i] = i % 3 != 1;
  check(DenseMask{visible});
  check([](index_t, index_t, index_t i, index_t j) { return j <= i && (i - j) % 2 == 0; });
}

TEST(MaskGradient, TeachingForms) {
  const AttentionCall<double, Cpu> call;
  const auto x = normal(Shape{kBatch, kSeq, kWidth}, 1);
  SelfAttention<double> self({.d_in = kWidth, .d_out = 5, .qkv_bias = true});
  randomize(self.parameters());
  expect_module_gradients(self, x, 5, call);
  CausalAttention<double> causal({.d_in = kWidth, .d_out = 5});
  randomize(causal.parameters());
  expect_module_gradients(causal, x, 5, call);
  MultiHeadAttentionStack<double> stack({.d_in = kWidth, .heads = 4, .qkv_bias = true});
  randomize(stack.parameters());
  expect_module_gradients(stack, x, kWidth, call);
}

}  // namespace
}  // namespace rapt::test
