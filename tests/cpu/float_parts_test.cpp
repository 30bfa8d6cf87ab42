// Products of fp32 in three parts of bfloat16 and of half in two, on matrix registers in plain
// loops (support/bfloat16_pairs.hpp) and, where this machine has them, on its own. Oracle: loops in
// double.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <tuple>
#include <type_traits>
#include <vector>

#include "rapt/core/random.hpp"
#include "rapt/cpu/gemm_parts.hpp"
#include "support/bfloat16_pairs.hpp"

namespace rapt::test {
namespace {

template <class T, class O, class Tiles>
struct Gemm : cpu::PartsGemm<T, O, Tiles> {
  using cpu::PartsGemm<T, O, Tiles>::PartsGemm;
  using Element = T;
  using Out = O;
};
template <class T, class Out = T>
using Emulated = Gemm<T, Out, EmulatedPartTiles>;
template <class T, class Out = T>
using Own = Gemm<T, Out, cpu::AmxPartTiles>;

struct Call {
  index_t m, n, k;
  bool a_rows = true, b_rows = true, packed = false, has_bias = false, accumulate = false;
};
std::ostream& operator<<(std::ostream& out, const Call& c) {
  return out << c.m << " x " << c.k << " x " << c.n << ", a by " << (c.a_rows ? "rows" : "columns")
             << ", b by " << (c.b_rows ? "rows" : "columns") << (c.packed ? ", packed" : "")
             << (c.has_bias ? ", bias" : "") << (c.accumulate ? ", accumulate" : "");
}

/// A call's factors, and what it should give.
template <class Product>
struct Factors {
  using T = typename Product::Element;
  using Out = typename Product::Out;
  Call call;
  Tensor<T, 1> a, b, packed;
  Tensor<float, 1> bias;
  Tensor<Out, 1> out;

  explicit Factors(const Call& c)
      : call(c), a(Shape{c.m * c.k}), b(Shape{c.k * c.n}), bias(Shape{c.n}), out(Shape{c.m * c.n}) {
    Philox random(static_cast<std::uint64_t>(c.m * 10007 + c.n * 101 + c.k));
    fill_normal(a, random), fill_normal(b, random), fill_normal(bias, random);
    fill_normal(out, random);
  }
  cpu::MatrixRef<T> left() const { return {a.data(), call.a_rows ? call.k : call.m, call.a_rows}; }
  cpu::MatrixRef<T> right() const { return {b.data(), call.b_rows ? call.n : call.k, call.b_rows}; }

  template <class By = Product>
  Tensor<Out, 1> run() {
    Tensor<Out, 1> to = out;
    cpu::ProductWeights<T> weights{right()};
    if (call.packed) {
      packed = Tensor<T, 1>(Shape{cpu::packed_size<T>(call.k, call.n)});
      cpu::pack_columns<T>(packed.data(), right(), call.k, call.n);
      weights = {.packed = packed.data()};
    }
    By(TensorView<Out, 2>(to.data(), Shape{call.m, call.n}), left(), weights, call.k,
       call.has_bias ? bias.data() : nullptr, call.accumulate)
        .run();
    return to;
  }

  /// Entry (i, j), and the size of its terms.
  std::pair<double, double> want(index_t i, index_t j) const {
    double sum = call.accumulate ? double(out(i * call.n + j)) : 0.0;
    if (call.has_bias) sum += double{bias(j)};
    double size = std::abs(sum);
    for (index_t l = 0; l < call.k; ++l) {
      const double term = double(*left().at(i, l)) * double(*right().at(l, j));
      sum += term, size += std::abs(term);
    }
    return {sum, size};
  }
};

template <class Product>
void expect_product(const Call& call) {
  SCOPED_TRACE(testing::Message() << call);
  Factors<Product> factors(call);
  const auto got = factors.run();
  const double rounding = std::is_same_v<typename Product::Out, half> ? 0x1p-11 : 0;
  for (index_t i = 0; i < call.m; ++i)
    for (index_t j = 0; j < call.n; ++j) {
      const auto [sum, size] = factors.want(i, j);
      ASSERT_NEAR(double(got(i * call.n + j)), sum,
                  2.5e-7 * size + rounding * (std::abs(sum) + 0x1p-14) + 1e-30)
          << i << ", " << j;
    }
}

/// f<Product>() of the machine's own registers, if it has any; of emulated ones, too.
template <class T, class Out = T, class F>
void by_own(F f) {
  if constexpr (cpu::kAmx)
    if (cpu::amx_granted()) f.template operator()<Own<T, Out>>();
}
template <class T, class Out = T, class F>
void by_each(F f) {
  f.template operator()<Emulated<T, Out>>();
  by_own<T, Out>(f);
}

template <class Product>
void expect_every_layout(const std::vector<std::tuple<index_t, index_t, index_t>>& sizes) {
  constexpr bool kPanels = cpu::ProductFormat<float>::kPanel % 16 == 0;
  for (const auto& [m, n, k] : sizes)
    for (int bits = 0; bits < 32; ++bits) {
      const Call call{m,
                      n,
                      k,
                      (bits & 1) != 0,
                      (bits & 2) != 0,
                      (bits & 4) != 0 && kPanels,
                      (bits & 8) != 0,
                      (bits & 16) != 0};
      expect_product<Product>(call);
      if (testing::Test::HasFatalFailure()) return;
    }
}

TEST(FloatParts, MultiplyEverySizeAndLayout) {
  expect_every_layout<Emulated<float>>(
      {{1, 1, 1}, {2, 17, 3}, {17, 2, 33}, {33, 49, 40}, {16, 16, 32}});
  by_own<float>([]<class Product>() {
    expect_every_layout<Product>({{1, 1, 1}, {33, 49, 40}, {70, 100, 70}});
  });
}
TEST(HalfParts, MultiplyEverySizeAndLayout) {
  expect_every_layout<Emulated<half>>({{1, 1, 1}, {17, 2, 33}, {33, 49, 40}});
  expect_every_layout<Emulated<half, float>>({{2, 17, 3}, {16, 16, 32}});
  by_own<half>([]<class Product>() { expect_every_layout<Product>({{1, 1, 1}, {70, 100, 70}}); });
  by_own<half, float>([]<class Product>() { expect_every_layout<Product>({{33, 49, 40}}); });
}

TEST(FloatParts, StripsAndBlocksOfDepth) {
  expect_product<Emulated<float>>({3, 300, 20, true, false, false, true, false});
  expect_product<Emulated<float>>({40, 5, 1200, false, true, false, true, true});
  by_own<float>([]<class Product>() {
    expect_product<Product>({40, 520, 1200, true, false, true, true, false});
    expect_product<Product>({65, 31, 600, false, true, false, false, true});
  });
}
// Sums of half wait in fp32 between blocks of depth.
TEST(HalfParts, StripsAndBlocksOfDepth) {
  constexpr bool kPanels = cpu::ProductFormat<half>::kPanel % 16 == 0;
  constexpr index_t kWide = 32 * cpu::ProductFormat<half>::kPanel + 5;
  expect_product<Emulated<half>>({9, 5, 1900, false, true, false, true, true});
  expect_product<Emulated<half>>({2, kWide, 900, true, true, kPanels, true, true});
  expect_product<Emulated<half, float>>({3, 50, 1800, true, false, false, true, true});
  by_own<half>([]<class Product>() {
    expect_product<Product>({20, 300, 1800, true, false, true, true, false});
    expect_product<Product>({65, 31, 900, false, true, false, false, true});
    expect_product<Product>({3, kWide, 900, true, false, true, true, true});
    expect_product<Product>({2080, 3, 900, true, false, false, true, true});
  });
}

TEST(FloatParts, EmptySumsAreTheBias) {
  const auto check = []<class Product>() {
    expect_product<Product>({3, 4, 0, true, true, false, true, false});
    expect_product<Product>({3, 4, 0, true, true, false, true, true});
    expect_product<Product>({3, 4, 0, true, true, false, false, false});
  };
  by_each<float>(check), by_each<half>(check);
}

TEST(FloatParts, DoNotDependOnTheNumberOfThreads) {
  const int threads = num_threads();
  const auto run = [&]<class Product>(const Call& call) {
    Factors<Product> factors(call);
    set_num_threads(1);
    const auto one = factors.run();
    for (const int n : {2, 3, 7}) {
      set_num_threads(n);
      const auto several = factors.run();
      EXPECT_EQ(std::memcmp(one.data(), several.data(), one.bytes()), 0) << n << ", " << call;
    }
  };
  run.template operator()<Emulated<float>>({40, 300, 40});
  run.template operator()<Emulated<half>>({5, 300, 900});
  const auto large = [&]<class Product>() {
    run.template operator()<Product>({130, 1100, 900, true, false});
  };
  by_own<float>(large), by_own<half>(large);
  set_num_threads(threads);
}

// Not worse than multiply-adds of fp32: the root of the mean square error, in terms of their size.
TEST(FloatParts, AreAsGoodAsMultiplyAdds) {
  const auto check = []<class Product>() {
    using T = typename Product::Element;
    struct MultiplyAdds {
      MultiplyAdds(TensorView<float, 2> out, cpu::MatrixRef<T> a, const cpu::ProductWeights<T>& b,
                   index_t k, const float* bias, bool accumulate)
          : run([=] { cpu::product(out, a, b, k, bias, accumulate); }) {}
      std::function<void()> run;
    };
    for (const index_t k : {64, 500}) {
      Factors<Product> factors({32, 48, k, true, false});
      // Numbers of every size: bits of a product lie far apart.
      Philox random(3);
      const float most = std::is_same_v<T, half> ? 10 : 20;
      fill_uniform(factors.bias, random, -most, most);
      for (index_t i = 0; i < factors.b.size(); ++i)
        factors.b(i) = T(float(factors.b(i)) * std::exp2(std::round(factors.bias(i % 48))));
      const auto error = [&]<class By>() {
        const auto got = factors.template run<By>();
        double squares = 0;
        for (index_t i = 0; i < 32; ++i)
          for (index_t j = 0; j < 48; ++j) {
            const auto [sum, size] = factors.want(i, j);
            squares += std::pow((double{got(i * 48 + j)} - sum) / size, 2);
          }
        return std::sqrt(squares / (32 * 48));
      };
      EXPECT_LT(error.template operator()<Product>(), error.template operator()<MultiplyAdds>());
    }
  };
  by_each<float>(check), by_each<half, float>(check);
}

// A number is the sum of its parts, to the last bit: times 1 it is itself.
TEST(FloatParts, LoseNoBit) {
  by_each<float>([]<class Product>() {
    Factors<Product> factors({64, 16, 32});
    Philox random(5);
    fill_uniform(factors.bias, random, -100, 100);
    for (index_t i = 0; i < 64; ++i)
      for (index_t l = 0; l < 32; ++l)
        factors.a(i * 32 + l) *= std::exp2(std::round(factors.bias((i + l) % 16)));
    const float edges[] = {
        0x1p-100f,       0x1.fffffep127f * 0.99f, -0x1.fffffep100f, 0x1.010101p3f,
        0x1.00ff01p-60f, 0x1.7f8081p7f,           0x1.ff7fffp20f,   0.f};
    for (index_t i = 0; i < 8; ++i) factors.a(i * 32) = edges[i];
    for (index_t l = 0; l < 32; ++l)
      for (index_t j = 0; j < 16; ++j) factors.b(l * 16 + j) = l == 2 * j || (j == 15 && l == 31);
    for (index_t i = 0; i < 8; ++i) factors.a(i * 32 + 30) = 0;
    const auto got = factors.run();
    for (index_t i = 0; i < 64; ++i)
      for (index_t j = 0; j < 15; ++j)
        ASSERT_EQ(got(i * 16 + j), factors.a(i * 32 + 2 * j)) << i << ", " << j;
  });
}
// Every half there is, subnormal ones included.
TEST(HalfParts, LoseNoBit) {
  by_each<half>([]<class Product>() {
    constexpr index_t kFinite = 0x7c00, kSide = 64;
    Factors<Product> factors({2 * kFinite / kSide, kSide, kSide});
    for (index_t i = 0; i < 2 * kFinite; ++i)
      factors.a(i) =
          half::from_bits(static_cast<std::uint16_t>(i < kFinite ? i : i - kFinite + 0x8000));
    for (index_t i = 0; i < kSide * kSide; ++i)
      factors.b(i) = half(i % (kSide + 1) == 0 ? 1.f : 0.f);
    const auto got = factors.run();
    for (index_t i = 0; i < 2 * kFinite; ++i) ASSERT_EQ(float(got(i)), float(factors.a(i))) << i;
  });
}

// What is left of a number close to the smallest ones is subnormal, and counts as 0.
TEST(FloatParts, TinyNumbersStayTiny) {
  by_each<float>([]<class Product>() {
    Factors<Product> factors({40, 40, 64});
    Philox random(9);
    Tensor<float, 1> exponents(factors.a.shape());
    fill_uniform(exponents, random, -149, -100);
    for (index_t i = 0; i < factors.a.size(); ++i)
      factors.a(i) *= std::exp2(std::round(exponents(i)));
    const auto got = factors.run();
    for (index_t i = 0; i < 40; ++i)
      for (index_t j = 0; j < 40; ++j) {
        const auto [sum, size] = factors.want(i, j);
        double of_b = 0;
        for (index_t l = 0; l < 64; ++l) of_b += std::abs(double{factors.b(l * 40 + j)});
        ASSERT_NEAR(double{got(i * 40 + j)}, sum, 2.5e-7 * size + 0x1p-124 * of_b) << i << " " << j;
      }
  });
}

TEST(FloatParts, WhatIsNotFiniteStaysInItsRowAndColumn) {
  const auto check = []<class Product>() {
    using T = typename Product::Element;
    for (const float bad :
         {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::quiet_NaN(),
          std::numeric_limits<float>::quiet_NaN()}) {
      Factors<Product> factors({40, 40, 40});
      factors.a(7 * 40 + 3) = T(bad);
      factors.b(35 * 40 + 38) = T(bad);
      const auto got = factors.run();
      for (index_t i = 0; i < 40; ++i)
        for (index_t j = 0; j < 40; ++j)
          ASSERT_EQ(std::isfinite(float(got(i * 40 + j))), i != 7 && j != 38) << i << ", " << j;
    }
  };
  by_each<float>(check), by_each<half>(check);
}

}  // namespace
}  // namespace rapt::test
