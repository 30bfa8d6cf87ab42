// A model whose weights are packed computes what it did, and keeps what it knows.
#include <gtest/gtest.h>

#include <cstring>

#include "rapt/nn/transformer.hpp"

namespace rapt::nn {
namespace {

ModelConfig small_config(bool tied) {
  ModelConfig config;
  config.vocab_size = 67;
  config.d_model = 40;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 10;
  config.ffn_dim = 56;
  config.tie_embeddings = tied;
  return config;
}

TEST(Prepack, LogitsAndParametersStay) {
  for (const bool tied : {true, false}) {
    Transformer<float> model(small_config(tied));
    Philox random(3);
    model.initialize(random, 0.2);
    Tensor<std::int32_t, 2> ids({2, 17});
    for (index_t i = 0; i < ids.size(); ++i)
      ids.data()[i] = static_cast<std::int32_t>((i * 29 + 5) % 67);
    const auto want = model.forward(ids);
    std::vector<Tensor<float, 1>> before;
    for (const auto& p : model.parameters()) before.emplace_back(to<float>(p.values));

    model.prepack();
    index_t packed = 0;
    for (const auto& slot : model.weights()) packed += slot.weight->is_packed();
    EXPECT_EQ(packed, 2 * 4 + !tied);  // qkv, out, gate_up, down of each layer, and the head
    const auto got = model.forward(ids);
    for (index_t i = 0; i < want.size(); ++i)
      ASSERT_NEAR(got.data()[i], want.data()[i], 2e-5 * (1 + std::abs(want.data()[i])));
    auto cache = model.make_cache(2, 32);  // a prompt, and single tokens
    model.forward(ids.slice(1, 0, 15), cache);
    for (index_t t = 15; t < 17; ++t) {
      const auto step = model.forward(ids.slice(1, t, t + 1), cache);
      for (index_t b = 0; b < 2; ++b)
        for (index_t v = 0; v < 67; ++v)
          ASSERT_NEAR(step(b, 0, v), want(b, t, v), 2e-5 * (1 + std::abs(want(b, t, v))));
    }

    const auto after = model.parameters();
    for (std::size_t i = 0; i < after.size(); ++i)
      EXPECT_EQ(std::memcmp(after[i].values.data(), before[i].data(), before[i].bytes()), 0)
          << after[i].name;
    for (const auto& slot : model.weights()) EXPECT_FALSE(slot.weight->is_packed());
  }
}

}  // namespace
}  // namespace rapt::nn
