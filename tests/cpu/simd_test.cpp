// The vector wrapper, lane by lane against the scalar operation. Runs for whichever instruction set
// the test was built for.
#include "rapt/cpu/simd.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

namespace rapt::test {
namespace {

using cpu::Vec;

template <class T>
struct Simd : testing::Test {
  static constexpr int kLanes = Vec<T>::kLanes;

  /// What the vector holds.
  static std::vector<T> lanes(Vec<T> x) {
    std::vector<T> out(kLanes);
    x.store(out.data());
    return out;
  }
  /// first, first + step, ...
  static std::vector<T> ramp(T first, T step = 1, int n = kLanes) {
    std::vector<T> out(static_cast<std::size_t>(n));
    for (int i = 0; i < n; ++i) out[static_cast<std::size_t>(i)] = first + step * static_cast<T>(i);
    return out;
  }
};
using Numbers = testing::Types<float, double>;
TYPED_TEST_SUITE(Simd, Numbers);

TEST(SimdName, IsOfTheKnownOnes) {
  const std::string name = cpu::isa();
  const std::string family = name.substr(0, name.find('_'));
  EXPECT_TRUE(family == "avx512" || family == "avx2" || family == "neon" || family == "portable");
  for (const char* extension : {"", "_bf16", "_amx", "_vnni", "_bf16_vnni", "_amx_vnni", "_dot"})
    if (name == family + extension) return;
  ADD_FAILURE() << name;
}

TYPED_TEST(Simd, LoadsAndStoresPartsOfAVector) {
  using V = Vec<TypeParam>;
  const auto source = this->ramp(1);
  for (int n = 0; n <= V::kLanes; ++n) {
    const auto got = this->lanes(V::load(source.data(), n));
    std::vector<TypeParam> stored(V::kLanes, -1);
    V::load(source.data()).store(stored.data(), n);
    for (int i = 0; i < V::kLanes; ++i) {
      const auto at = static_cast<std::size_t>(i);
      EXPECT_EQ(got[at], i < n ? source[at] : 0);
      EXPECT_EQ(stored[at], i < n ? source[at] : -1);
    }
  }
}

TYPED_TEST(Simd, ComputesWhatTheScalarsDo) {
  using V = Vec<TypeParam>;
  const auto a = this->ramp(TypeParam(-1.75), TypeParam(0.75)), b = this->ramp(3, -1);
  const V x = V::load(a.data()), y = V::load(b.data());
  const auto expect = [&](V got, auto f) {
    const auto values = this->lanes(got);
    for (std::size_t i = 0; i < values.size(); ++i) EXPECT_EQ(values[i], f(a[i], b[i])) << i;
  };
  using T = TypeParam;
  expect(x + y, [](T p, T q) { return p + q; });
  expect(x - y, [](T p, T q) { return p - q; });
  expect(x * y, [](T p, T q) { return p * q; });
  expect(y / x, [](T p, T q) { return q / p; });
  expect(fma(x, y, x), [](T p, T q) { return p * q + p; });
  expect(fma_in_place(x, y, x), [](T p, T q) { return p * q + p; });
  expect(max(x, y), [](T p, T q) { return p > q ? p : q; });
  expect(min(x, y), [](T p, T q) { return p < q ? p : q; });
  expect(sqrt(max(x, y)), [](T p, T q) { return std::sqrt(std::max(p, q)); });
  expect(round(x), [](T p, T) { return std::nearbyint(p); });
  expect(pow2(round(x)), [](T p, T) { return std::exp2(std::nearbyint(p)); });

  T total = 0, most = a[0];
  for (const T value : a) total += value, most = std::max(most, value);
  EXPECT_EQ(sum(x), total);
  EXPECT_EQ(largest(x), most);
}

TYPED_TEST(Simd, SelectsAndClearsByMask) {
  using V = Vec<TypeParam>;
  cpu::mask_int<TypeParam> bits[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i) bits[i] = i % 2 == 0 ? -1 : 0;
  const V mask = V::load_mask(bits);
  const V nan = V::broadcast(std::numeric_limits<TypeParam>::quiet_NaN());
  const auto selected = this->lanes(select(mask, V::broadcast(1), nan));
  const auto cleared = this->lanes(bit_and(nan, mask));
  for (int i = 0; i < V::kLanes; ++i) {
    const auto at = static_cast<std::size_t>(i);
    EXPECT_EQ(std::isnan(selected[at]), i % 2 != 0);
    EXPECT_EQ(std::isnan(cleared[at]), i % 2 == 0);
    if (i % 2 != 0) {
      EXPECT_EQ(cleared[at], 0);
    }
  }
}

TYPED_TEST(Simd, TransposesAndSums) {
  using V = Vec<TypeParam>;
  V rows[V::kLanes];
  for (int i = 0; i < V::kLanes; ++i)
    rows[i] = V::load(this->ramp(static_cast<TypeParam>(100 * i)).data());
  const auto sums = this->lanes(V::sums(rows));
  V::transpose(rows);
  for (int i = 0; i < V::kLanes; ++i) {
    const auto row = this->lanes(rows[i]);
    for (int j = 0; j < V::kLanes; ++j)
      EXPECT_EQ(row[static_cast<std::size_t>(j)], static_cast<TypeParam>(100 * j + i));
    EXPECT_EQ(sums[static_cast<std::size_t>(i)],
              static_cast<TypeParam>(V::kLanes * (100 * i) + V::kLanes * (V::kLanes - 1) / 2));
  }
}

template <class T>
double ulps(T got, double want) {
  const T near = static_cast<T>(want);
  const T gap = std::nextafter(std::abs(near), std::numeric_limits<T>::infinity()) - std::abs(near);
  return std::abs(static_cast<double>(got) - want) / static_cast<double>(gap);
}

TYPED_TEST(Simd, ExponentialsAreGoodToTwoUlps) {
  using V = Vec<TypeParam>;
  using T = TypeParam;
  const T low = sizeof(T) == 4 ? T(-87) : T(-708), high = sizeof(T) == 4 ? T(88) : T(709);
  double worst_exp = 0, worst_exp2 = 0, worst_flushed = 0;
  for (int n = 0; n < 20000; ++n) {
    const T x = low + (high - low) * static_cast<T>(n) / 20000;
    const T y = x / 20;  // and many close to 0
    for (const T value : {x, y}) {
      const long double exact = value;
      worst_exp = std::max(worst_exp, ulps(this->lanes(exp(V::broadcast(value)))[0],
                                           static_cast<double>(std::exp(exact))));
      worst_exp2 = std::max(worst_exp2, ulps(this->lanes(exp2(V::broadcast(value)))[0],
                                             static_cast<double>(std::exp2(exact))));
      if (value > 0) continue;
      worst_flushed = std::max({worst_flushed,
                                ulps(this->lanes(exp2_flushed(V::broadcast(value)))[0],
                                     static_cast<double>(std::exp2(exact))),
                                ulps(this->lanes(exp_flushed(V::broadcast(value)))[0],
                                     static_cast<double>(std::exp(exact)))});
    }
  }
  EXPECT_LE(worst_exp, 2);
  EXPECT_LE(worst_exp2, 2);
  EXPECT_LE(worst_flushed, 2);
}

TYPED_TEST(Simd, TheCoarseExponentialIsGoodTo18Bits) {
  using V = Vec<TypeParam>;
  for (double x = -125; x <= 0; x += 0.00137) {
    const auto value = static_cast<TypeParam>(x);
    const double got = static_cast<double>(this->lanes(exp2_coarse(V::broadcast(value)))[0]);
    const double want = std::exp2(static_cast<double>(value));
    ASSERT_NEAR(got, want, want / (1 << 18)) << x;
  }
}

TYPED_TEST(Simd, ExponentialsKeepTheirEdges) {
  using V = Vec<TypeParam>;
  using T = TypeParam;
  const T inf = std::numeric_limits<T>::infinity();
  const auto at = [&](auto f, T x) { return this->lanes(f(V::broadcast(x)))[0]; };
  const auto exponential = [](V x) { return exp(x); };
  const auto power = [](V x) { return exp2(x); };
  const auto flushed = [](V x) { return exp2_flushed(x); };
  const auto exponential_flushed = [](V x) { return exp_flushed(x); };
  const auto coarse = [](V x) { return exp2_coarse(x); };
  for (const T x : {-inf, T(-1e30), T(-2000)}) {
    EXPECT_EQ(at(exponential, x), 0);
    EXPECT_EQ(at(power, x), 0);
    EXPECT_EQ(at(flushed, x), 0);
    EXPECT_EQ(at(exponential_flushed, x), 0);
    EXPECT_EQ(at(coarse, x), 0);
  }
  EXPECT_EQ(at(exponential, 0), 1);
  EXPECT_EQ(at(power, 0), 1);
  EXPECT_EQ(at(flushed, 0), 1);
  EXPECT_EQ(at(coarse, 0), 1);
  EXPECT_EQ(at(exponential_flushed, 0), 1);
  EXPECT_EQ(at(exponential, inf), inf);
  EXPECT_EQ(at(power, T(3000)), inf);
  const T smallest = std::numeric_limits<T>::denorm_min();
  EXPECT_EQ(at(power, std::log2(smallest)), smallest);
  EXPECT_EQ(at(flushed, std::log2(smallest)), 0);
  EXPECT_EQ(at(exponential_flushed, std::log(smallest)), 0);
  const T nan = std::numeric_limits<T>::quiet_NaN();
  for (const T value :
       {at(exponential, nan), at(power, nan), at(flushed, nan), at(exponential_flushed, nan)})
    EXPECT_TRUE(std::isnan(value));
}

template <class H>
void expect_conversions_of_every_code() {
  using V = Vec<float>;
  for (unsigned code = 0; code < 0x10000u; code += V::kLanes) {
    H codes[V::kLanes], back[V::kLanes], part[V::kLanes];
    for (int i = 0; i < V::kLanes; ++i)
      codes[i] = H::from_bits(static_cast<std::uint16_t>(code + static_cast<unsigned>(i)));
    float values[V::kLanes];
    const V loaded = V::load(codes);
    loaded.store(values);
    loaded.store(back);
    V::load(codes, V::kLanes - 1).store(part, V::kLanes - 1);
    for (int i = 0; i < V::kLanes; ++i) {
      const float want = static_cast<float>(codes[i]);
      if (std::isnan(want)) {
        ASSERT_TRUE(std::isnan(values[i]) && std::isnan(static_cast<float>(back[i])));
        continue;
      }
      ASSERT_EQ(values[i], want) << code;
      ASSERT_EQ(back[i].bits, codes[i].bits) << code;
      if (i < V::kLanes - 1) {
        ASSERT_EQ(part[i].bits, codes[i].bits) << code;
      }
    }
  }
}

TEST(SimdConversions, HalfIsExact) { expect_conversions_of_every_code<half>(); }
TEST(SimdConversions, Bfloat16IsExact) { expect_conversions_of_every_code<bfloat16>(); }

template <class S>
void expect_every_code(auto code_of) {
  using V = Vec<float>;
  for (int first = 0; first < 256; first += V::kLanes) {
    S codes[V::kLanes];
    for (int i = 0; i < V::kLanes; ++i) codes[i] = code_of(first + i);
    for (int n = 0; n <= V::kLanes; ++n) {
      float values[V::kLanes];
      (n == V::kLanes ? V::load(codes) : V::load(codes, n)).store(values);
      for (int i = 0; i < V::kLanes; ++i) {
        const float want = i < n ? static_cast<float>(codes[i]) : 0.f;
        if (std::isnan(want))
          ASSERT_TRUE(std::isnan(values[i])) << first + i;
        else
          ASSERT_EQ(std::memcmp(&values[i], &want, sizeof want), 0) << first + i;  // -0 too
      }
    }
  }
}

TEST(SimdConversions, CodesOf8BitsAreExact) {
  const auto byte = [](int code) { return static_cast<std::uint8_t>(code); };
  expect_every_code<std::int8_t>([&](int code) { return static_cast<std::int8_t>(byte(code)); });
  expect_every_code<float8_e4m3>([&](int code) { return float8_e4m3::from_bits(byte(code)); });
  expect_every_code<float8_e5m2>([&](int code) { return float8_e5m2::from_bits(byte(code)); });
}

TEST(SimdConversions, NarrowingRoundsAsTheScalarTypesDo) {
  using V = Vec<float>;
  unsigned state = 12345;
  for (int n = 0; n < 20000; ++n) {
    float values[V::kLanes];
    for (float& value : values) {
      state = state * 1664525u + 1013904223u;
      const std::uint32_t bits = state ^ (n % 2 ? 0u : state << 13);
      std::memcpy(&value, &bits, sizeof value);
      if (n % 3 == 0) value = static_cast<float>(half(value)) * 1.00048828125f;  // near ties
    }
    half halves[V::kLanes];
    bfloat16 brains[V::kLanes];
    V::load(values).store(halves);
    V::load(values).store(brains);
    for (int i = 0; i < V::kLanes; ++i) {
      if (std::isnan(values[i])) {
        EXPECT_TRUE(std::isnan(static_cast<float>(halves[i])));
        EXPECT_TRUE(std::isnan(static_cast<float>(brains[i])));
        continue;
      }
      ASSERT_EQ(halves[i].bits, half(values[i]).bits) << values[i];
      ASSERT_EQ(brains[i].bits, bfloat16(values[i]).bits) << values[i];
    }
  }
}

}  // namespace
}  // namespace rapt::test
