// Caches saved and loaded: the loaded one goes on as the other does; a file that does not fit is
// refused and changes nothing.
#include "rapt/cache/cache_file.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "rapt/cache/kv_cache.hpp"
#include "rapt/cache/rolling_kv_cache.hpp"
#include "rapt/core/random.hpp"
#include "rapt/nn/transformer_cache.hpp"

namespace rapt::test {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;
using testing::ThrowsMessage;

struct CacheFile : testing::Test {
  fs::path folder;
  void SetUp() override {
    folder = fs::path(testing::TempDir()) /
             (std::string("rapt_cache_") +
              testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(folder);
    fs::create_directories(folder);
  }
  void TearDown() override { fs::remove_all(folder); }
};

/// Appends `seq` random tokens to every layer; the same seed, the same tokens.
template <class C>
void append(C& cache, index_t seq, std::uint64_t seed,
            TensorView<const std::int32_t, 2> key_mask = {}) {
  using T = typename C::value_type;
  Philox random(seed);
  for (index_t layer = 0; layer < cache.layers(); ++layer) {
    Tensor<T, 4> k({cache.batch(), seq, cache.kv_heads(), cache.head_dim()});
    Tensor<T, 4> v({cache.batch(), seq, cache.kv_heads(), cache.value_dim()});
    fill_normal(k, random);
    fill_normal(v, random);
    Scratch<> scratch;
    cache.append(scratch, layer, as_const_view(k), as_const_view(v), key_mask);
  }
}

template <class C>
void expect_same(const C& a, const C& b) {
  ASSERT_EQ(a.length(), b.length());
  for (index_t row = 0; row < a.batch(); ++row) EXPECT_EQ(a.length(row), b.length(row));
  const auto pa = a.positions(), pb = b.positions();
  ASSERT_EQ(pa.shape(), pb.shape());
  for (index_t i = 0; i < pa.extent(0); ++i)
    for (index_t j = 0; j < pa.extent(1); ++j) EXPECT_EQ(pa(i, j), pb(i, j));
  for (index_t layer = 0; layer < a.layers(); ++layer)
    for (const auto& [x, y] :
         {std::pair(a.keys(layer), b.keys(layer)), std::pair(a.values(layer), b.values(layer))})
      for (index_t i = 0; i < x.extent(0); ++i)
        for (index_t j = 0; j < x.extent(1); ++j)
          for (index_t g = 0; g < x.extent(2); ++g)
            for (index_t e = 0; e < x.extent(3); ++e)
              ASSERT_EQ(convert<float>(x(i, j, g, e)), convert<float>(y(i, j, g, e)));
}

template <class C, class Shape>
void expect_round_trip(const fs::path& path, const Shape& shape) {
  for (const index_t seq : {0, 3, 9}) {
    C cache(shape), other(shape);
    Tensor<std::int32_t, 2> mask({2, 3});
    mask(0, 2) = mask(1, 0) = mask(1, 1) = mask(1, 2) = 1;
    if (seq > 0) append(cache, 3, 1, mask);
    if (seq > 3) append(cache, seq - 3, 2);
    if (seq > 3) cache.truncate(1, seq - 1);
    append(other, 2, 9);  // what it held before is gone
    save(cache, path);
    load(other, path);
    expect_same(cache, other);
    EXPECT_EQ(cache.rope_length(1), other.rope_length(1));
    append(cache, 4, 3);
    append(other, 4, 3);
    expect_same(cache, other);
  }
}

constexpr KvCacheShape kFull{
    .layers = 2, .batch = 2, .capacity = 16, .kv_heads = 2, .head_dim = 3, .value_dim = 5};
constexpr RollingKvCacheShape kRing{
    .layers = 2, .batch = 2, .window = 4, .sink_tokens = 1, .kv_heads = 2, .head_dim = 3};

TEST_F(CacheFile, EveryCacheGoesOnWhereItStood) {
  expect_round_trip<KvCache<float>>(folder / "full", kFull);
  expect_round_trip<KvCache<bfloat16>>(folder / "bf16", kFull);
  expect_round_trip<RollingKvCache<float>>(folder / "ring", kRing);
}

TEST_F(CacheFile, CapacityAndElementTypeMayDiffer) {
  KvCache<float> cache(kFull);
  append(cache, 6, 1);
  save(cache, folder / "c");
  KvCacheShape shape = kFull;
  shape.capacity = 6;
  KvCache<double> other(shape);
  load(other, folder / "c");
  EXPECT_EQ(other.keys(1)(1, 5, 1, 2), static_cast<double>(cache.keys(1)(1, 5, 1, 2)));
}

TEST_F(CacheFile, RefusesACacheOfAnotherShape) {
  KvCache<float> cache(kFull);
  append(cache, 6, 1);
  const fs::path path = folder / "c.safetensors";
  save(cache, path);
  const auto expect_refused = [&](KvCacheShape shape, const std::string& what) {
    KvCache<float> other(shape);
    append(other, 2, 7);
    KvCache<float> before = other.fork();
    EXPECT_THAT([&] { load(other, path); }, ThrowsMessage<FormatError>(HasSubstr(what)));
    expect_same(other, before);
  };
  auto shape = kFull;
  shape.capacity = 5;
  expect_refused(shape, "c.safetensors: kv_cache.restore: a length is 6, expected 0 to 5");
  shape = kFull;
  shape.batch = 3;
  expect_refused(shape, "tensor lengths is [2], expected [3]");
  shape = kFull;
  shape.kv_heads = 1;
  expect_refused(shape, "tensor keys.0 is [2, 6, 2, 3], expected [2, 6, 1, 3]");
  shape = kFull;
  shape.layers = 1;
  expect_refused(shape, "has tensor keys.1, expected 1 layers");
  shape.layers = 3;
  expect_refused(shape, "has no tensor named keys.2");
  RollingKvCache<float> ring(kRing);
  EXPECT_THROW(load(ring, path), FormatError);
  EXPECT_THROW(load(cache, folder / "missing"), IoError);
}

TEST_F(CacheFile, CacheOfAWholeModelHasParts) {
  ModelConfig model;
  model.layers = 5;
  model.kv_heads = 2;
  model.head_dim = 3;
  model.layer_types.resize(5);
  for (const std::size_t local : {0u, 2u, 3u}) model.layer_types[local].window = 4;
  nn::TransformerCache<float> cache(model, 2, 20), other(model, 2, 24);
  const auto fill_in = [](auto& whole, index_t seq, std::uint64_t seed) {
    detail::for_each_part(whole,
                          [&](const std::string&, auto& part) { append(part, seq, seed++); });
  };
  fill_in(cache, 9, 1);
  save(cache, folder / "model");
  load(other, folder / "model");
  EXPECT_EQ(other.length(), 9);
  EXPECT_EQ(other.capacity(), 24);
  fill_in(cache, 2, 7);
  fill_in(other, 2, 7);
  int parts = 0;
  for (const index_t layer : {0, 1})
    cache.visit(layer, [&](const auto& a) {
      other.visit(layer, [&](const auto& b) {
        if constexpr (std::same_as<decltype(a), decltype(b)>) {
          expect_same(a, b);
          ++parts;
        }
      });
    });
  EXPECT_EQ(parts, 2);
}

TEST_F(CacheFile, CorruptFilesAreRefused) {
  RollingKvCache<float> cache(kRing);
  append(cache, 9, 1);
  const fs::path path = folder / "c";
  save(cache, path);
  std::ifstream in(path, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), {});
  Philox random(5);
  for (int round = 0; round < 300; ++round) {
    std::string broken = bytes;
    for (std::uint32_t n = random() % 3 + 1; n > 0; --n)
      broken[random() % broken.size()] = static_cast<char>(random());
    if (random() % 4 == 0) broken.resize(random() % broken.size());
    std::ofstream(path, std::ios::binary) << broken;
    RollingKvCache<float> other(kRing);
    try {
      load(other, path);  // a changed number is no error
      append(other, 3, 2);
    } catch (const FormatError&) {
      EXPECT_EQ(other.length(), 0);
    }
  }
}

}  // namespace
}  // namespace rapt::test
