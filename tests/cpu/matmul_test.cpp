// Oracle: three loops in double over the values that the element type holds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>
#include <vector>

#include "rapt/core/packed_matrix.hpp"
#include "rapt/core/random.hpp"
#include "support/tolerance.hpp"

namespace rapt {
namespace {

/// A matrix with one axis contiguous and a gap after each line.
template <class T>
struct Strided {
  Tensor<T, 1> memory;
  TensorView<T, 2> view;

  Strided(index_t rows, index_t columns, bool by_rows, index_t gap, Philox& random)
      : memory(Shape{(by_rows ? rows : columns) * ((by_rows ? columns : rows) + gap) + 1}) {
    fill_uniform(memory, random, -1, 1);
    const index_t line = (by_rows ? columns : rows) + gap;
    view = {memory.data(), Shape{rows, columns}, by_rows ? Shape{line, 1} : Shape{1, line}};
  }
};

template <class T>
double relative_rounding() {
  return std::is_same_v<T, half> ? 0x1p-11 : std::is_same_v<T, bfloat16> ? 0x1p-8 : 0;
}

template <class T>
struct Matmul : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(Matmul, Elements);

template <class T, class Out = T>
void expect_product(index_t m, index_t n, index_t k, bool a_rows, bool b_rows, bool has_bias,
                    bool accumulate, index_t gap) {
  SCOPED_TRACE(testing::Message() << "m " << m << " n " << n << " k " << k << " a_rows " << a_rows
                                  << " b_rows " << b_rows << " bias " << has_bias << " accumulate "
                                  << accumulate << " gap " << gap);
  Philox random(static_cast<std::uint64_t>(m * 10007 + n * 101 + k));
  Strided<T> a(m, k, a_rows, gap, random), b(k, n, b_rows, gap, random);
  Strided<Out> out(m, n, true, gap, random), before = out;
  Tensor<T, 1> bias(Shape{n});
  fill_uniform(bias, random, -1, 1);
  MatmulOptions<T, Cpu> options{.accumulate = accumulate};
  if (has_bias) options.bias = bias;
  Tensor<Out, 1> packed_memory = before.memory;
  const TensorView<Out, 2> packed(packed_memory.data(), Shape{m, n}, out.view.strides());
  matmul(out.view, a.view, b.view, options);
  matmul(packed, a.view, PackedMatrix<T>(b.view), options);

  constexpr double kSumError = sizeof(accumulate_t<T>) == 8 ? 1e-14 : 2e-6;
  const auto exact_a = test::doubles(a.view), exact_b = test::doubles(b.view.transpose());
  for (index_t i = 0; i < m; ++i) {
    for (index_t j = 0; j < n; ++j) {
      const double start = accumulate ? static_cast<double>(before.memory(i * (n + gap) + j)) : 0.0;
      double want = start + (has_bias ? static_cast<double>(bias(j)) : 0.0);
      double size = std::abs(start) + 1;
      for (index_t l = 0; l < k; ++l) {
        const double term = exact_a.data()[i * k + l] * exact_b.data()[j * k + l];
        want += term;
        size += std::abs(term);
      }
      const double tolerance = kSumError * size + relative_rounding<Out>() * std::abs(want);
      ASSERT_NEAR(static_cast<double>(out.view(i, j)), want, tolerance) << i << ", " << j;
      ASSERT_NEAR(static_cast<double>(packed(i, j)), want, tolerance)
          << "packed " << i << ", " << j;
    }
    for (index_t j = n; j < n + gap; ++j)  // nothing is written between the rows
      for (const auto& memory : {out.memory, packed_memory})
        ASSERT_EQ(static_cast<double>(memory(i * (n + gap) + j)),
                  static_cast<double>(before.memory(i * (n + gap) + j)));
  }
}

TYPED_TEST(Matmul, MatchesTheOracleInEveryLayout) {
  for (const auto& [m, n, k] : std::vector<std::tuple<index_t, index_t, index_t>>{{1, 1, 1},
                                                                                  {1, 7, 5},
                                                                                  {1, 100, 33},
                                                                                  {2, 65, 64},
                                                                                  {3, 9, 130},
                                                                                  {4, 33, 17},
                                                                                  {5, 1, 3},
                                                                                  {5, 5, 5},
                                                                                  {7, 130, 31},
                                                                                  {33, 17, 65},
                                                                                  {61, 77, 130}})
    for (const bool a_rows : {true, false})
      for (const bool b_rows : {true, false})
        for (const bool has_bias : {true, false})
          for (const bool accumulate : {true, false})
            expect_product<TypeParam>(m, n, k, a_rows, b_rows, has_bias, accumulate, m % 2 * 3);
}

TYPED_TEST(Matmul, CrossesTileAndPanelBorders) {
  for (const bool b_rows : {true, false}) {
    expect_product<TypeParam>(5, 500, 1100, true, b_rows, true, false, 1);
    expect_product<TypeParam>(400, 391, 20, b_rows, b_rows, true, true, 0);
    expect_product<TypeParam>(530, 50, 33, !b_rows, b_rows, false, true, 1);
    expect_product<TypeParam>(14, 100, 2210, b_rows, !b_rows, true, b_rows, 0);
    expect_product<TypeParam>(1, 3000, 600, true, b_rows, true, true, 0);
    expect_product<TypeParam>(14, 515, 2047, true, b_rows, b_rows, true, 1);  // rows pages apart
  }
}

TYPED_TEST(Matmul, SumsOf16BitFactorsCanStayUnrounded) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for (const bool a_rows : {true, false})  // false, true: a weight gradient dy^T x
    for (const bool b_rows : {true, false})
      for (const bool accumulate : {true, false}) {
        expect_product<T, A>(1, 70, 33, a_rows, b_rows, false, accumulate, 1);
        expect_product<T, A>(3, 9, 130, a_rows, b_rows, true, accumulate, 0);
        expect_product<T, A>(61, 77, 130, a_rows, b_rows, true, accumulate, 2);
        expect_product<T, A>(200, 195, 530, a_rows, b_rows, false, accumulate, 0);
        expect_product<T, A>(7, 5, 0, a_rows, b_rows, false, accumulate, 0);
      }
}

TYPED_TEST(Matmul, EmptyExtentsAreLegal) {
  expect_product<TypeParam>(0, 3, 4, true, true, true, false, 0);
  expect_product<TypeParam>(3, 0, 4, true, true, false, false, 0);
  for (const index_t m : {1, 3, 9})
    for (const bool accumulate : {true, false}) {  // an empty sum: the bias alone
      expect_product<TypeParam>(m, 4, 0, true, true, true, accumulate, 0);
      expect_product<TypeParam>(m, 4, 0, true, false, false, accumulate, 1);
    }
}

TYPED_TEST(Matmul, DoesNotDependOnTheNumberOfThreads) {
  const int threads = num_threads();
  for (const auto& [m, n, k] : std::vector<std::tuple<index_t, index_t, index_t>>{
           {1, 1500, 300}, {3, 700, 65}, {500, 800, 70}, {130, 150, 1100}}) {
    Philox random(7);
    Tensor<TypeParam, 2> a({m, k}), w({n, k});
    fill_uniform(a, random, -1, 1);
    fill_uniform(w, random, -1, 1);
    set_num_threads(1);
    Tensor<TypeParam, 2> want({m, n});
    matmul(want, a, w.transpose());
    Tensor<TypeParam, 2> want_packed({m, n});
    const PackedMatrix<TypeParam> packed(w.transpose());
    matmul(want_packed, a, packed);
    for (const int t : {2, 3, 7}) {
      set_num_threads(t);
      Tensor<TypeParam, 2> got({m, n});
      matmul(got, a, w.transpose());
      EXPECT_EQ(std::memcmp(got.data(), want.data(), want.bytes()), 0) << t << " threads, m " << m;
      matmul(got, a, packed);
      EXPECT_EQ(std::memcmp(got.data(), want_packed.data(), want.bytes()), 0)
          << t << " threads, packed, m " << m;
    }
  }
  set_num_threads(threads);
}

TYPED_TEST(Matmul, RowsOfADecodeStepDoNotDependOnTheirNeighbours) {
  // Up to four rows share the pass over b; each is summed as if it were alone.
  Philox random(8);
  Tensor<TypeParam, 2> a({4, 203}), w({77, 203}), all({4, 77}), one({1, 77});
  fill_uniform(a, random, -1, 1);
  fill_uniform(w, random, -1, 1);
  matmul(all, a, w.transpose());
  for (index_t i = 0; i < 4; ++i) {
    matmul(one, a.slice(0, i, i + 1), w.transpose());
    EXPECT_EQ(std::memcmp(one.data(), &all(i, 0), one.bytes()), 0) << i;
  }
}

TYPED_TEST(Matmul, PackedAheadOrOnTheWayIsTheSame) {
  for (const auto& [m, n, k] : std::vector<std::tuple<index_t, index_t, index_t>>{
           {13, 49, 31}, {64, 96, 64}, {150, 100, 1100}, {40, 20, 2070}}) {
    Philox random(9);
    Tensor<TypeParam, 2> a({m, k}), w({n, k}), plain({m, n}), packed({m, n});
    fill_uniform(a, random, -1, 1);
    fill_uniform(w, random, -1, 1);
    matmul(plain, a, w.transpose());
    matmul(packed, a, PackedMatrix<TypeParam>(w.transpose()));
    EXPECT_EQ(std::memcmp(packed.data(), plain.data(), plain.bytes()), 0) << m;
  }
}

TYPED_TEST(Matmul, PackedOnceForManyRowsIsTheSame) {
  // b of more than 2 MiB, and of more than 8: packed once, the latter in two strips.
  constexpr index_t kSize = sizeof(accumulate_t<TypeParam>);
  for (const auto& [m, n, k] : std::vector<std::tuple<index_t, index_t, index_t>>{
           {1030, 1300, 901 / kSize}, {520, 5200, 1640 / kSize}})
    for (const bool by_rows : {true, false}) {
      SCOPED_TRACE(testing::Message() << "m " << m << " n " << n << " k " << k << " " << by_rows);
      Philox random(11);
      Strided<TypeParam> a(m, k, by_rows, 1, random), b(k, n, !by_rows, 1, random);
      Tensor<TypeParam, 1> bias(Shape{n});
      fill_uniform(bias, random, -1, 1);
      Tensor<TypeParam, 2> plain({m, n}), packed({m, n});
      fill_uniform(plain, random, -1, 1);
      packed = plain;
      matmul(plain, a.view, b.view, {.bias = bias, .accumulate = true});
      matmul(packed, a.view, PackedMatrix<TypeParam>(b.view), {.bias = bias, .accumulate = true});
      EXPECT_EQ(std::memcmp(packed.data(), plain.data(), plain.bytes()), 0);
    }
}

TYPED_TEST(Matmul, PackedMatricesGiveTheirElementsBack) {
  for (const bool by_rows : {true, false})
    for (const auto& [k, n] :
         std::vector<std::pair<index_t, index_t>>{{1, 1}, {7, 50}, {130, 97}}) {
      Philox random(10);
      Strided<TypeParam> b(k, n, by_rows, 2, random), back(k, n, !by_rows, 1, random);
      const PackedMatrix<TypeParam> packed(b.view);
      EXPECT_EQ(packed.shape(), (Shape{k, n}));
      // No more than the elements, but for whole registers of columns and an even k.
      EXPECT_LE(packed.bytes(), (k + 1) * (n + 15) * static_cast<index_t>(sizeof(TypeParam)));
      packed.unpack(back.view);
      for (index_t i = 0; i < k; ++i)
        for (index_t j = 0; j < n; ++j)
          ASSERT_EQ(static_cast<double>(back.view(i, j)), static_cast<double>(b.view(i, j)));
    }
}

TEST(MatmulErrors, NameTheWrongArgument) {
  Tensor<float, 2> a({3, 4}), b({5, 6}), out({3, 6}), b4({4, 6}), small({2, 6});
  Tensor<float, 1> bias({5});
  EXPECT_THAT([&] { matmul(out, a, b); },
              testing::ThrowsMessage<ShapeError>("matmul: b is [5, 6], expected [4, 6] = [k, n]"));
  EXPECT_THAT(
      [&] { matmul(small, a, b4); },
      testing::ThrowsMessage<ShapeError>("matmul: out is [2, 6], expected [3, 6] = [m, n]"));
  EXPECT_THAT([&] { matmul(out, a, b4, {.bias = bias}); },
              testing::ThrowsMessage<ShapeError>("matmul: bias is [5], expected [6] = [n]"));
  Tensor<float, 3> wide({4, 6, 2});
  EXPECT_THAT([&] { matmul(out, a, wide.select(2, 0)); },
              testing::ThrowsMessage<ShapeError>(
                  "matmul: b has strides [12, 2], expected 1 along one of its axes"));
  Tensor<float, 2> turned({6, 3});
  EXPECT_THAT([&] { matmul(turned.transpose(), a, b4); },
              testing::ThrowsMessage<ShapeError>(
                  "matmul: out has stride 3 along its last axis, expected 1"));
  const PackedMatrix<float> packed(b4);
  EXPECT_THAT([&] { matmul(out, turned, packed); },
              testing::ThrowsMessage<ShapeError>("matmul: a is [6, 3], expected [6, 4] = [m, k]"));
  EXPECT_THAT(
      [&] { matmul(small, a, packed); },
      testing::ThrowsMessage<ShapeError>("matmul: out is [2, 6], expected [3, 6] = [m, n]"));
  EXPECT_THAT([&] { packed.unpack(b); }, testing::ThrowsMessage<ShapeError>(
                                             "packed_matrix.unpack: b is [5, 6], expected [4, 6] = "
                                             "[k, n]"));
}

}  // namespace
}  // namespace rapt
