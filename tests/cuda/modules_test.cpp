// Modules and a whole model, written once: on the CUDA backend they give what they give on the CPU,
// cached and uncached, prefill and decode.
#include <array>

#include "rapt/modules/attention.hpp"
#include "rapt/nn/transformer.hpp"
#include "support/cuda_test.hpp"

namespace rapt::test {
namespace {

template <class T>
struct CudaModules : CudaTypedTest<T> {};
using ModuleTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(CudaModules, ModuleTypes);

/// Random weights of one module into its twin on the other backend.
template <class From, class To>
void share_weights(From& from, To& to) {
  Philox random(11);
  auto sources = from.parameters();
  auto targets = to.parameters();
  ASSERT_EQ(sources.size(), targets.size());
  for (std::size_t i = 0; i < sources.size(); ++i) {
    ASSERT_EQ(sources[i].name, targets[i].name);
    fill_normal(sources[i].values, random, 0.2);
    copy(targets[i].values, sources[i].values);
  }
}

/// forward() without a cache, then a prefill and decode steps with one, on both backends.
template <class T, class OnCpu, class OnCuda, class MakeCache>
void expect_same_with_cache(const OnCpu& on_cpu, const OnCuda& on_cuda, MakeCache make_cache) {
  const auto tolerance = tolerance_of<T>() * 20;
  const index_t width = on_cpu.d_model();
  const auto x = gaussian<T>(Shape{2, 9, width}, 1);
  const auto gx = on_gpu(x);
  const auto want = on_cpu.forward(x);
  expect_close(to(Cpu{}, on_cuda.forward(gx)), want, tolerance, "uncached");

  auto cpu_cache = make_cache(on_cpu);
  auto cuda_cache = make_cache(on_cuda);
  for (const auto [begin, end] : {std::array<index_t, 2>{0, 5}, {5, 6}, {6, 8}, {8, 9}}) {
    SCOPED_TRACE(testing::Message() << "tokens " << begin << " to " << end);
    const auto y = on_cuda.forward(gx.view().slice(1, begin, end), cuda_cache);
    expect_close(to(Cpu{}, y), on_cpu.forward(x.view().slice(1, begin, end), cpu_cache), tolerance,
                 "against the CPU");
    expect_close(to(Cpu{}, y), want.view().slice(1, begin, end), tolerance, "against uncached");
  }
  EXPECT_EQ(cuda_cache.length(), 9);
}

TYPED_TEST(CudaModules, GroupedQueryAttentionWithACacheEqualsTheCpu) {
  using T = TypeParam;
  AttentionConfig config{
      .d_model = 48, .heads = 6, .kv_heads = 2, .head_dim = 20, .rope = Rope{.theta = 10000.f}};
  const auto check = [&] {
    GroupedQueryAttention<T> on_cpu(config);
    GroupedQueryAttention<T, Cuda> on_cuda(config);
    share_weights(on_cpu, on_cuda);
    expect_same_with_cache<T>(on_cpu, on_cuda,
                              [](const auto& module) { return module.make_cache(2, 12); });
  };
  check();
  config.qkv_bias = config.out_bias = config.sinks = true;
  config.qk_norm = QkNorm::head;
  config.softcap = 2;
  config.value_dim = 12;
  check();
}

TYPED_TEST(CudaModules, SlidingWindowAttentionWithARingEqualsTheCpu) {
  using T = TypeParam;
  AttentionConfig config{
      .d_model = 32, .heads = 4, .kv_heads = 2, .window = 3, .rope = Rope{.theta = 10000.f}};
  SlidingWindowAttention<T> on_cpu(config);
  SlidingWindowAttention<T, Cuda> on_cuda(config);
  share_weights(on_cpu, on_cuda);
  expect_same_with_cache<T>(on_cpu, on_cuda,
                            [](const auto& module) { return module.make_cache(2, 12); });
}

ModelConfig small_model(bool gemma) {
  ModelConfig model;
  model.vocab_size = 50;
  model.d_model = 32;
  model.layers = 3;
  model.heads = 4;
  model.kv_heads = 2;
  model.head_dim = 16;
  model.ffn_dim = 40;
  model.max_position = 64;
  model.layer_types.assign(3, {});
  if (gemma) {
    for (const std::size_t layer : {0u, 1u})
      model.layer_types[layer] = {.window = 4, .local_rope = true};
    model.rope_local.theta = 1000;
    model.norm_plus_one = model.post_norms = model.tie_embeddings = true;
    model.qk_norm = QkNorm::head;
    model.activation = Activation::gelu_tanh;
    model.embedding_scale = 5;
    model.attention_softcap = 4;
    model.logit_softcap = 3;
  }
  return model;
}

TYPED_TEST(CudaModules, TransformersEqualTheCpu) {
  using T = TypeParam;
  for (const bool gemma : {false, true}) {
    SCOPED_TRACE(gemma ? "local and global layers" : "llama");
    nn::Transformer<T> on_cpu(small_model(gemma));
    nn::Transformer<T, Cuda> on_cuda(small_model(gemma));
    share_weights(on_cpu, on_cuda);
    const auto ids = whole_numbers(Shape{2, 10}, 3, 0, 49);
    const auto tolerance = tolerance_of<T>() * 200;  // three layers of weights of 0.2
    const auto want = on_cpu.forward(ids);
    expect_close(to(Cpu{}, on_cuda.forward(ids)), want, tolerance, "uncached");
    auto cache = on_cuda.make_cache(2, 16);
    for (const auto [begin, end] : {std::array<index_t, 2>{0, 6}, {6, 7}, {7, 8}, {8, 10}}) {
      const auto host = to<std::int32_t>(ids.view().slice(1, begin, end));
      expect_close(to(Cpu{}, on_cuda.forward(host, cache)), want.view().slice(1, begin, end),
                   tolerance, "cached");
    }
    EXPECT_EQ(cache.length(), 10);
  }
}

}  // namespace
}  // namespace rapt::test
