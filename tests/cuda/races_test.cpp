// Hunts races in the kernels. Each kernel runs under many schedules and must give the same bits;
// and each barrier that a kernel says it needs is taken away: the emulator must report the race,
// and where nobody looks for races the result must really change, so the barrier is no ornament.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "rapt/attention/attention.hpp"
#include "rapt/core/ops/column_sum.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/ops/embedding.hpp"
#include "rapt/core/ops/matmul.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/core/ops/rope.hpp"
#include "support/cuda_on_host/emulator.hpp"
#include "support/cuda_test.hpp"

namespace rapt::test {
namespace {

using cuda_on_host::Options;
using cuda_on_host::WithOptions;

using Bits = std::vector<unsigned char>;

template <class T, std::size_t Rank>
Bits bits_of(const Tensor<T, Rank, Cuda>& x) {
  Bits bits(x.bytes());
  BackendTraits<Cuda>::copy_to_host(x.backend(), bits.data(), x.data(), x.bytes());
  return bits;
}

/// A launch of one kernel, and the barriers (counted from 0, as a thread meets them) without which
/// it is wrong. A barrier that only guards the next round of a loop is not needed in the last.
struct Case {
  std::string kernel;
  std::vector<int> barriers_needed;
  std::function<Bits()> run;
};

Bits run_under(const Case& c, const Options& options) {
  const WithOptions changed(options);
  return c.run();
}

std::vector<Case> cases() {
  const auto x = on_gpu(gaussian<float>(Shape{3, 300}, 1));
  const auto w = on_gpu(gaussian<float>(Shape<1>{300}, 2));
  const auto a = on_gpu(gaussian<float>(Shape{20, 40}, 3)),
             b = on_gpu(gaussian<float>(Shape{40, 18}, 4));
  const auto heads = gaussian<float>(Shape{1, 2, 2, 140}, 5);
  const auto cos = on_gpu(gaussian<float>(Shape{1, 2, 70}, 6)),
             sin = on_gpu(gaussian<float>(Shape{1, 2, 70}, 7));
  const auto targets = on_gpu(whole_numbers(Shape<1>{3}, 8, 0, 299));
  const auto ids = on_gpu(whole_numbers(Shape{1, 20}, 11, 0, 3));
  const auto q = on_gpu(gaussian<float>(Shape{1, 5, 4, 40}, 9)),
             k = on_gpu(gaussian<float>(Shape{1, 70, 2, 40}, 10));
  return {
      {"matmul",
       {0, 1, 2, 3, 4},
       [=] {
         Tensor<float, 2, Cuda> out({20, 18});
         matmul(out, a, b);
         return bits_of(out);
       }},
      {"rms_norm",
       {0},
       [=] {
         Tensor<float, 2, Cuda> y({3, 300});
         rms_norm(y, x, w);
         return bits_of(y);
       }},
      {"layer_norm",
       {0, 1, 2},
       [=] {
         Tensor<float, 2, Cuda> y({3, 300});
         layer_norm(y, x, w, w);
         return bits_of(y);
       }},
      {"rope",
       {0},
       [=] {
         auto y = on_gpu(heads);
         rope(y, cos, sin, {.layout = RopeLayout::interleaved_to_half});
         return bits_of(y);
       }},
      {"cross_entropy",
       {0, 1, 2, 3, 4},
       [=] {
         Tensor<float, 1, Cuda> loss(Shape<1>{3});
         cross_entropy(loss, x, targets, {.label_smoothing = 0.1});
         return bits_of(loss);
       }},
      {"cross_entropy_with_gradient",
       {0, 1, 2, 3, 4},
       [=] {
         Tensor<float, 1, Cuda> loss(Shape<1>{3});
         Tensor<float, 2, Cuda> logits = x;
         cross_entropy_with_gradient(loss, logits, targets, 1.f, {.label_smoothing = 0.1});
         Bits bits = bits_of(logits);
         for (const auto byte : bits_of(loss)) bits.push_back(byte);
         return bits;
       }},
      {"column_sum",
       {0},
       [=] {
         Tensor<float, 1, Cuda> out(Shape<1>{40});
         column_sum(out, a);
         return bits_of(out);
       }},
      {"rms_norm_backward",
       {},
       [=] {
         Tensor<float, 2, Cuda> dx = x;
         Tensor<float, 1, Cuda> dweight(Shape<1>{300});
         rms_norm_backward(dx, dweight, dx, x, w);
         Bits bits = bits_of(dx);
         for (const auto byte : bits_of(dweight)) bits.push_back(byte);
         return bits;
       }},
      {"embedding_backward",
       {0},
       [=] {
         Tensor<float, 2, Cuda> dtable({4, 40});
         embedding_backward(dtable, a.view().reshape(Shape{1, 20, 40}), ids);
         return bits_of(dtable);
       }},
      {"attention",
       {},
       [=] {
         Tensor<float, 4, Cuda> out({1, 5, 4, 40}), weights({1, 4, 5, 70});
         AttentionOptions<Tensor<float, 4, Cuda>> options;
         options.probabilities = weights;
         attention(out, q, k, k, Causal{} & SlidingWindow{40}, Identity{}, options);
         Bits bits = bits_of(out);
         for (const auto byte : bits_of(weights)) bits.push_back(byte);
         return bits;
       }},
  };
}

TEST(CudaRaces, EveryScheduleGivesTheSameBits) {
  for (const Case& c : cases()) {
    SCOPED_TRACE(c.kernel);
    const Bits first = run_under(c, {.seed = 1});
    for (std::uint64_t seed = 2; seed <= 25; ++seed)
      ASSERT_EQ(run_under(c, {.seed = seed}), first) << "seed " << seed;
  }
}

TEST(CudaRaces, AMissingBarrierIsReported) {
  for (const Case& c : cases())
    for (const int barrier : c.barriers_needed)
      for (std::uint64_t seed = 1; seed <= 5; ++seed) {
        SCOPED_TRACE(testing::Message()
                     << c.kernel << " without barrier " << barrier << ", seed " << seed);
        EXPECT_THAT([&] { run_under(c, {.seed = seed, .skipped_barrier = barrier}); },
                    testing::ThrowsMessage<DeviceError>(
                        testing::AnyOf(testing::HasSubstr("race on shared memory"),
                                       testing::HasSubstr("is read before it is written"))));
      }
}

TEST(CudaRaces, AMissingBarrierChangesTheResult) {
  for (const Case& c : cases()) {
    const Bits right = run_under(c, {});
    for (const int barrier : c.barriers_needed) {
      bool changed = false;
      for (std::uint64_t seed = 1; !changed && seed <= 200; ++seed)
        changed =
            run_under(c, {.seed = seed, .skipped_barrier = barrier, .checks_shared = false}) !=
            right;
      EXPECT_TRUE(changed) << c.kernel << " without barrier " << barrier;
    }
  }
}

TEST(CudaRaces, TheFirstBadIdIsNamedInEverySchedule) {
  auto ids = whole_numbers(Shape{4, 200}, 11, 0, 9);
  for (const index_t at : {300, 301, 555, 799}) ids.data()[at] = -1;
  const auto table = on_gpu(gaussian<float>(Shape{10, 3}, 12));
  Tensor<float, 3, Cuda> out({4, 200, 3});
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    const WithOptions changed({.seed = seed});
    EXPECT_THAT([&] { embedding(out, table, on_gpu(ids)); },
                testing::ThrowsMessage<ValueError>(testing::HasSubstr("ids[1, 100] is -1")));
  }
}

}  // namespace
}  // namespace rapt::test
