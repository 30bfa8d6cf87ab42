// Every operation of BackendTraits<Cuda> but attention against plain loops in double precision,
// over odd sizes, all element types and strided views. Each loop shares no code with the kernels.
#include <gmock/gmock.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "rapt/core/ops/add.hpp"
#include "rapt/core/ops/append_to_cache.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/ops/embedding.hpp"
#include "rapt/core/ops/gated_activation.hpp"
#include "rapt/core/ops/matmul.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/core/ops/rope.hpp"
#include "rapt/core/ops/softcap.hpp"
#include "support/cuda_test.hpp"

namespace rapt::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

template <class T>
struct CudaOperations : CudaTypedTest<T> {};
TYPED_TEST_SUITE(CudaOperations, ElementTypes);
struct CudaMemory : CudaTest {};

template <class T>
double at(const T& x) {
  return static_cast<double>(x);
}

// ---- memory and copies ----

TEST_F(CudaMemory, TensorsStartAtZeroAndCopyDeep) {
  const Tensor<float, 2, Cuda> zeros({3, 5});
  const auto home = to(Cpu{}, zeros);
  for (index_t i = 0; i < home.size(); ++i) EXPECT_EQ(home.data()[i], 0.f);

  const auto x = gaussian<float>(Shape{4, 7}, 1);
  auto a = on_gpu(x);
  auto b = a;
  fill(a, 2.0);
  expect_close(to(Cpu{}, b), x, {0, 0});
  EXPECT_EQ(to(Cpu{}, a)(3, 6), 2.f);
}

TEST_F(CudaMemory, StridedConvertingCopiesMatchTheCpu) {
  const auto x = gaussian<float>(Shape{3, 4, 5, 6}, 2);
  const auto gpu = on_gpu(x);
  const auto check = [&](auto type, const auto& host, const auto& device) {
    using To = decltype(type);
    expect_close(to(Cpu{}, to<To>(device)), to<To>(host), {0, 0});
  };
  const auto check_types = [&](const auto& host, const auto& device) {
    check(float{}, host, device);
    check(double{}, host, device);
    check(half{}, host, device);
    check(bfloat16{}, host, device);
  };
  check_types(x, gpu);
  check_types(x.view().transpose(), gpu.view().transpose());
  check_types(x.view().transpose(0, 2).slice(1, 1, 3), gpu.view().transpose(0, 2).slice(1, 1, 3));
  check_types(x.view().select(1, 2), gpu.view().select(1, 2));
  check_types(x.view().select(0, 1).select(2, 3), gpu.view().select(0, 1).select(2, 3));
  check_types(x.view().slice(0, 1, 1), gpu.view().slice(0, 1, 1));  // nothing to copy
}

TEST_F(CudaMemory, CopiesIntoStridedViewsLeaveTheRest) {
  Tensor<std::int32_t, 2, Cuda> all({4, 6});
  const auto ids = whole_numbers(Shape{4, 3}, 3, 1, 9);
  copy(all.view().slice(1, 2, 5), ids);
  const auto home = to(Cpu{}, all);
  for (index_t i = 0; i < 4; ++i)
    for (index_t j = 0; j < 6; ++j) EXPECT_EQ(home(i, j), j >= 2 && j < 5 ? ids(i, j - 2) : 0);
}

TEST_F(CudaMemory, AMissingDeviceIsADeviceErrorThatSaysSo) {
  const Cuda missing{.device = 99};
  const auto allocate = [&] { return Tensor<float, 1, Cuda>(Shape<1>{4}, missing); };
  const auto here = detail::text("this machine has ", cuda_device_count(), " CUDA devices");
  EXPECT_THAT(allocate, ThrowsMessage<DeviceError>(AllOf(HasSubstr("device 99"), HasSubstr(here))));
}

// ---- matmul ----

/// out = a b (+ bias) (+ out), whatever the strides.
template <class T>
Tensor<T, 2> plain_matmul(TensorView<const T, 2> a, TensorView<const T, 2> b,
                          const Tensor<T, 1>* bias, const Tensor<T, 2>* before) {
  Tensor<T, 2> out({a.extent(0), b.extent(1)});
  for (index_t i = 0; i < out.extent(0); ++i)
    for (index_t j = 0; j < out.extent(1); ++j) {
      double sum = 0;
      for (index_t l = 0; l < a.extent(1); ++l) sum += at(a(i, l)) * at(b(l, j));
      if (bias != nullptr) sum += at((*bias)(j));
      if (before != nullptr) sum += at((*before)(i, j));
      out(i, j) = T(sum);
    }
  return out;
}

TYPED_TEST(CudaOperations, MatmulMatchesPlainLoops) {
  using T = TypeParam;
  for (const auto [m, n, k] : {std::array<index_t, 3>{1, 1, 1},
                               {1, 17, 33},
                               {5, 16, 16},
                               {17, 31, 15},
                               {33, 3, 70},
                               {16, 24, 40},
                               {8, 64, 128},
                               {4, 4, 0}})
    for (const bool a_transposed : {false, true})
      for (const bool b_transposed : {false, true})
        for (const bool with_bias : {false, true})
          for (const bool accumulate : {false, true}) {
            SCOPED_TRACE(testing::Message()
                         << m << "x" << n << "x" << k << " transposed " << a_transposed
                         << b_transposed << " bias " << with_bias << " accumulate " << accumulate);
            const auto a = gaussian<T>(a_transposed ? Shape{k, m} : Shape{m, k}, 1);
            const auto b = gaussian<T>(b_transposed ? Shape{n, k} : Shape{k, n}, 2);
            const auto bias = gaussian<T>(Shape<1>{n}, 3);
            const auto before = gaussian<T>(Shape{m, n}, 4);
            const auto ga = on_gpu(a), gb = on_gpu(b);
            const auto gbias = on_gpu(bias);
            auto out = on_gpu(before);
            const auto view = [](const auto& x, bool transposed) {
              return transposed ? x.view().transpose() : x.view();
            };
            MatmulOptions<T, Cuda> options{.accumulate = accumulate};
            if (with_bias) options.bias = gbias.view();
            matmul(out, view(ga, a_transposed), view(gb, b_transposed), options);
            const auto plain = [&](const Tensor<T, 1>* add, const Tensor<T, 2>* start) {
              return plain_matmul<T>(view(a, a_transposed), view(b, b_transposed), add, start);
            };
            const auto product = plain(nullptr, nullptr);
            // The vendor's library rounds a product of 16-bit factors before it adds to it.
            const double half_ulp = sizeof(T) != 2 || (!with_bias && !accumulate) ? 0
                                    : std::is_same_v<T, half>                     ? 1.0 / 2048
                                                                                  : 1.0 / 256;
            const auto tolerance = [&](index_t at_entry) {
              Tolerance close = tolerance_of<T>() * 8;
              close.absolute += half_ulp * std::abs(at(product.data()[at_entry]));
              return close;
            };
            expect_close(to(Cpu{}, out),
                         plain(with_bias ? &bias : nullptr, accumulate ? &before : nullptr),
                         tolerance);
          }
}

TYPED_TEST(CudaOperations, MatmulCanLeaveSumsOf16BitFactorsUnrounded) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  const auto dy = gaussian<T>(Shape{70, 17}, 1), x = gaussian<T>(Shape{70, 33}, 2);
  const auto before = gaussian<A>(Shape{17, 33}, 3);
  auto dw = on_gpu(before);
  const auto gdy = on_gpu(dy), gx = on_gpu(x);
  matmul(dw, gdy.view().transpose(), gx, {.accumulate = true});
  Tensor<A, 2> want(before.shape());
  for (index_t i = 0; i < 17; ++i)
    for (index_t j = 0; j < 33; ++j) {
      double sum = at(before(i, j));
      for (index_t l = 0; l < 70; ++l) sum += at(dy(l, i)) * at(x(l, j));
      want(i, j) = static_cast<A>(sum);
    }
  expect_close(to(Cpu{}, dw), want, tolerance_of<A>() * 8);
}

TYPED_TEST(CudaOperations, MatmulTakesSlicesOfWiderTensors) {
  using T = TypeParam;
  const auto wide_a = gaussian<T>(Shape{9, 40}, 1), wide_b = gaussian<T>(Shape{23, 50}, 2);
  const auto a = wide_a.view().slice(1, 3, 26), b = wide_b.view().slice(1, 7, 38);
  const auto ga = on_gpu(wide_a), gb = on_gpu(wide_b);
  Tensor<T, 2, Cuda> wide_out({9, 64});
  matmul(wide_out.view().slice(1, 5, 36), ga.view().slice(1, 3, 26), gb.view().slice(1, 7, 38));
  const auto home = to(Cpu{}, wide_out);
  expect_close(home.view().slice(1, 5, 36), plain_matmul<T>(a, b, nullptr, nullptr),
               tolerance_of<T>() * 8);
  for (index_t i = 0; i < 9; ++i) {
    EXPECT_EQ(at(home(i, 4)), 0);
    EXPECT_EQ(at(home(i, 36)), 0);
  }
}

// ---- norms ----

TYPED_TEST(CudaOperations, NormsMatchPlainLoops) {
  using T = TypeParam;
  for (const index_t n : {1, 5, 32, 129, 300})
    for (const bool with_weight : {false, true})
      for (const bool plus_one : {false, true}) {
        SCOPED_TRACE(testing::Message()
                     << n << " weight " << with_weight << " plus_one " << plus_one);
        const auto wide = gaussian<T>(Shape{3, 5, n + 4}, 5);
        const auto x = wide.view().slice(2, 2, n + 2).transpose(0, 1);  // rows at odd strides
        const auto weight = gaussian<T>(Shape<1>{n}, 6), bias = gaussian<T>(Shape<1>{n}, 7);
        const auto gwide = on_gpu(wide);
        const auto gx = gwide.view().slice(2, 2, n + 2).transpose(0, 1);
        const auto gweight = on_gpu(weight), gbias = on_gpu(bias);
        TensorView<const T, 1, Cuda> w, b;
        if (with_weight) w = gweight.view(), b = gbias.view();
        Tensor<T, 3, Cuda> rms(x.shape()), layer(x.shape());
        rms_norm(rms, gx, w, 1e-5, plus_one);
        layer_norm(layer, gx, w, b, 1e-5);

        Tensor<T, 3> want_rms(x.shape()), want_layer(x.shape());
        for (index_t i = 0; i < 5; ++i)
          for (index_t j = 0; j < 3; ++j) {
            double squares = 0, sum = 0, variance = 0;
            for (index_t c = 0; c < n; ++c)
              squares += at(x(i, j, c)) * at(x(i, j, c)), sum += at(x(i, j, c));
            const double count = static_cast<double>(n), mean = sum / count;
            for (index_t c = 0; c < n; ++c) variance += std::pow(at(x(i, j, c)) - mean, 2) / count;
            for (index_t c = 0; c < n; ++c) {
              const double factor = with_weight ? at(weight(c)) + (plus_one ? 1 : 0) : 1;
              want_rms(i, j, c) = T(at(x(i, j, c)) / std::sqrt(squares / count + 1e-5) * factor);
              want_layer(i, j, c) = T((at(x(i, j, c)) - mean) / std::sqrt(variance + 1e-5) *
                                          (with_weight ? at(weight(c)) : 1) +
                                      (with_weight ? at(bias(c)) : 0));
            }
          }
        expect_close(to(Cpu{}, rms), want_rms, tolerance_of<T>() * 4, "rms_norm");
        expect_close(to(Cpu{}, layer), want_layer, tolerance_of<T>() * 4, "layer_norm");
      }
}

TYPED_TEST(CudaOperations, NormsWorkInPlace) {
  using T = TypeParam;
  auto x = on_gpu(gaussian<T>(Shape{4, 37}, 8));
  auto y = Tensor<T, 2, Cuda>(x.shape());
  rms_norm(y, x);
  rms_norm(x, x);
  expect_close(to(Cpu{}, x), to(Cpu{}, y), {0, 0});
}

// ---- elementwise ----

double activated(double x, Activation activation) {
  switch (activation) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::sigmoid:
      return 1 / (1 + std::exp(-x));
  }
  return 0;
}

TYPED_TEST(CudaOperations, GatedActivationsMatchTheirFormulas) {
  using T = TypeParam;
  const auto fused = gaussian<T>(Shape{5, 2 * 131}, 9);
  for (const auto activation :
       {Activation::silu, Activation::gelu_tanh, Activation::gelu_erf, Activation::sigmoid}) {
    const auto gfused = on_gpu(fused);
    Tensor<T, 2, Cuda> out({5, 131});
    gated_activation(out, gfused.view().slice(1, 0, 131), gfused.view().slice(1, 131, 262),
                     activation);
    Tensor<T, 2> want({5, 131});
    for (index_t i = 0; i < 5; ++i)
      for (index_t j = 0; j < 131; ++j)
        want(i, j) = T(activated(at(fused(i, j)), activation) * at(fused(i, 131 + j)));
    expect_close(to(Cpu{}, out), want, tolerance_of<T>() * 2);
  }
}

TYPED_TEST(CudaOperations, SoftcapAndAddWorkOnStridedRows) {
  using T = TypeParam;
  const auto wide = gaussian<T>(Shape{6, 80}, 10);
  const auto x = gaussian<T>(Shape{6, 77}, 11);
  auto gwide = on_gpu(wide);
  softcap(gwide.view().slice(1, 2, 79), accumulate_t<T>{1.5});
  add(gwide.view().slice(1, 2, 79), on_gpu(x));
  const auto home = to(Cpu{}, gwide);
  for (index_t i = 0; i < 6; ++i)
    for (index_t j = 0; j < 80; ++j) {
      double want = at(wide(i, j));
      if (j >= 2 && j < 79) want = at(T(at(T(1.5 * std::tanh(want / 1.5))) + at(x(i, j - 2))));
      EXPECT_TRUE(is_close(at(home(i, j)), want, tolerance_of<T>() * 4)) << i << ", " << j;
    }
}

// ---- embedding, cache ----

TYPED_TEST(CudaOperations, EmbeddingGathersScaledRows) {
  using T = TypeParam;
  const auto table = gaussian<T>(Shape{11, 45}, 12);
  const auto ids = whole_numbers(Shape{3, 7}, 13, 0, 10);
  Tensor<T, 3, Cuda> out({3, 7, 45});
  embedding(out, on_gpu(table), on_gpu(ids), accumulate_t<T>{2});
  const auto home = to(Cpu{}, out);
  for (index_t b = 0; b < 3; ++b)
    for (index_t s = 0; s < 7; ++s)
      for (index_t c = 0; c < 45; ++c) ASSERT_EQ(at(home(b, s, c)), 2 * at(table(ids(b, s), c)));
}

TYPED_TEST(CudaOperations, EmbeddingNamesTheFirstIdOutsideTheTableAndWritesNothing) {
  using T = TypeParam;
  const auto table = on_gpu(gaussian<T>(Shape{11, 5}, 12));
  auto ids = whole_numbers(Shape{3, 70}, 13, 0, 10);
  ids(1, 66) = 11;
  ids(2, 0) = -4;
  Tensor<T, 3, Cuda> out({3, 70, 5});
  EXPECT_THAT([&] { embedding(out, table, on_gpu(ids)); },
              ThrowsMessage<ValueError>(
                  "embedding: ids[1, 66] is 11, expected 0 to 10, the rows of table"));
  const auto home = to(Cpu{}, out);
  for (index_t i = 0; i < home.size(); ++i) ASSERT_EQ(at(home.data()[i]), 0);
}

TYPED_TEST(CudaOperations, AppendWritesTheSlotsOfEachRow) {
  using T = TypeParam;
  const auto x = gaussian<T>(Shape{2, 3, 2, 9}, 14);
  Tensor<std::int32_t, 2> slots({2, 3});
  index_t token = 0;
  for (const int slot : {4, 0, -1, 1, 5, 2}) slots.data()[token++] = slot;
  Tensor<T, 4, Cuda> cache({2, 6, 2, 9});
  append_to_cache(cache, on_gpu(x), on_gpu(slots));
  Tensor<T, 4> want({2, 6, 2, 9});
  for (index_t b = 0; b < 2; ++b)
    for (index_t s = 0; s < 3; ++s)
      for (index_t g = 0; g < 2; ++g)
        for (index_t c = 0; c < 9; ++c)
          if (slots(b, s) >= 0) want(b, slots(b, s), g, c) = x(b, s, g, c);
  expect_close(to(Cpu{}, cache), want, {0, 0});

  slots(1, 1) = 6;
  EXPECT_THAT([&] { append_to_cache(cache, on_gpu(x), on_gpu(slots)); },
              ThrowsMessage<ValueError>(
                  "append_to_cache: slots[1, 1] is 6, expected at most 5, the last slot of cache"));
}

// ---- rope ----

TYPED_TEST(CudaOperations, RopeTurnsPairsInEveryLayoutAndPlace) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  constexpr index_t kBatch = 2, kSeq = 3, kHeads = 2, kDim = 150;
  for (const auto layout :
       {RopeLayout::rotate_half, RopeLayout::interleaved, RopeLayout::interleaved_to_half})
    for (const index_t pairs : {1, 20, 75})
      for (const index_t offset : {index_t{0}, kDim - 2 * pairs})
        for (const index_t rows : {index_t{1}, kBatch})
          for (const bool inverse : {false, true})
            for (const bool in_place : {false, true}) {
              SCOPED_TRACE(testing::Message()
                           << "layout " << static_cast<int>(layout) << " pairs " << pairs
                           << " offset " << offset << " rows " << rows << " inverse " << inverse
                           << " in place " << in_place);
              const auto x = gaussian<T>(Shape{kBatch, kSeq, kHeads, kDim}, 15);
              const auto cos = gaussian<A>(Shape{rows, kSeq, pairs}, 16),
                         sin = gaussian<A>(Shape{rows, kSeq, pairs}, 17);
              auto gx = on_gpu(x);
              Tensor<T, 4, Cuda> out(x.shape());
              const RopeOptions options{.layout = layout, .offset = offset, .inverse = inverse};
              if (in_place)
                rope(gx, on_gpu(cos), on_gpu(sin), options);
              else
                rope(out, gx, on_gpu(cos), on_gpu(sin), options);

              auto want = x;
              for (index_t b = 0; b < kBatch; ++b)
                for (index_t s = 0; s < kSeq; ++s)
                  for (index_t h = 0; h < kHeads; ++h)
                    for (index_t k = 0; k < pairs; ++k) {
                      index_t near[2] = {2 * k, 2 * k + 1}, far[2] = {k, k + pairs};
                      const index_t* read = layout == RopeLayout::rotate_half ? far : near;
                      const index_t* write = layout == RopeLayout::interleaved ? near : far;
                      if (inverse) std::swap(read, write);
                      const double c = at(cos(rows == 1 ? 0 : b, s, k));
                      const double n = at(sin(rows == 1 ? 0 : b, s, k)) * (inverse ? -1 : 1);
                      const double u = at(x(b, s, h, offset + read[0])),
                                   w = at(x(b, s, h, offset + read[1]));
                      want(b, s, h, offset + write[0]) = T(u * c - w * n);
                      want(b, s, h, offset + write[1]) = T(w * c + u * n);
                    }
              expect_close(to(Cpu{}, in_place ? gx : out), want, tolerance_of<T>() * 4);
            }
}

// ---- cross entropy ----

TYPED_TEST(CudaOperations, CrossEntropyMatchesPlainLoops) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for (const index_t vocab : {1, 40, 700})
    for (const double smoothing : {0.0, 0.1}) {
      auto logits = gaussian<T>(Shape{6, vocab}, 18);
      for (index_t j = 0; j < vocab; ++j)
        logits(2, j) = T(at(logits(2, j)) * 50 + 300);  // far from 0
      auto targets = whole_numbers(Shape<1>{6}, 19, 0, static_cast<int>(vocab) - 1);
      targets(4) = -100;
      Tensor<A, 1, Cuda> loss(Shape<1>{6});
      cross_entropy(loss, on_gpu(logits), on_gpu(targets), {.label_smoothing = smoothing});
      Tensor<double, 1> want(Shape<1>{6});
      for (index_t i = 0; i < 6; ++i) {
        if (targets(i) == -100) continue;
        double most = -1e300, sum = 0, mean = 0;
        for (index_t j = 0; j < vocab; ++j) most = std::max(most, at(logits(i, j)));
        for (index_t j = 0; j < vocab; ++j)
          sum += std::exp(at(logits(i, j)) - most),
              mean += at(logits(i, j)) / static_cast<double>(vocab);
        want(i) =
            most + std::log(sum) - (1 - smoothing) * at(logits(i, targets(i))) - smoothing * mean;
      }
      expect_close(to(Cpu{}, loss), want, tolerance_of<A>() * 10);
    }
}

TYPED_TEST(CudaOperations, CrossEntropyNamesATargetOutsideTheVocabulary) {
  using T = TypeParam;
  const auto logits = on_gpu(gaussian<T>(Shape{3, 9}, 20));
  Tensor<std::int32_t, 1> targets(Shape<1>{3});
  targets(1) = 9;
  EXPECT_THAT([&] { cross_entropy(logits, on_gpu(targets)); },
              ThrowsMessage<ValueError>(
                  "cross_entropy: targets[1] is 9, expected 0 to 8 or -100 = ignore_index"));
}

TYPED_TEST(CudaOperations, NothingIsDoneToNothing) {
  using T = TypeParam;
  Tensor<T, 2, Cuda> empty({0, 8}), rows({3, 8});
  Tensor<T, 2, Cuda> weights({8, 8});
  matmul(empty, empty, weights);
  rms_norm(empty, empty);
  add(empty, empty);
  softcap(empty, accumulate_t<T>{1});
  gated_activation(empty, empty, empty, Activation::silu);
  Tensor<T, 3, Cuda> out({0, 0, 8});
  embedding(out, rows, Tensor<std::int32_t, 2, Cuda>({0, 0}));
}

}  // namespace
}  // namespace rapt::test
