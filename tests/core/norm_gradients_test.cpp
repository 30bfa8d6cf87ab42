// The gradients of the norms and of a bias: against plain loops in double over the values that the
// element type holds, and against finite differences of the norms themselves, in double.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "core/rows.hpp"
#include "rapt/core/ops/column_sum.hpp"
#include "rapt/core/ops/norm.hpp"

namespace rapt::test {
namespace {

template <class T>
struct NormGradients : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(NormGradients, Elements);

const std::vector<index_t> kWidths = {1, 3, 8, 17, 33, 64, 577};

// ---- norms ----

/// dx [rows, n], dw, db [n] of rms_norm (centred false) or layer_norm.
struct NormOracle {
  std::vector<std::vector<double>> dx;
  std::vector<double> dw, db;

  template <class T>
  NormOracle(TensorView<const T, 2> dy, TensorView<const T, 2> x, const std::vector<double>& weight,
             double eps, bool centred)
      : dx(std::size_t(x.extent(0)), std::vector<double>(std::size_t(x.extent(1)))),
        dw(std::size_t(x.extent(1))),
        db(std::size_t(x.extent(1))) {
    const index_t n = x.extent(1);
    const double count = double(n);
    for (index_t i = 0; i < x.extent(0); ++i) {
      double mean = 0, squares = 0, mean_a = 0, mean_ah = 0;
      for (index_t j = 0; j < n && centred; ++j) mean += double(x(i, j)) / count;
      for (index_t j = 0; j < n; ++j) squares += std::pow(double(x(i, j)) - mean, 2);
      const double r = 1 / std::sqrt(squares / count + eps);
      const auto h = [&](index_t j) { return (double(x(i, j)) - mean) * r; };
      const auto a = [&](index_t j) { return double(dy(i, j)) * weight[std::size_t(j)]; };
      for (index_t j = 0; j < n; ++j) {
        mean_a += centred ? a(j) / count : 0;
        mean_ah += a(j) * h(j) / count;
      }
      for (index_t j = 0; j < n; ++j) {
        dx[std::size_t(i)][std::size_t(j)] = r * (a(j) - mean_a - h(j) * mean_ah);
        dw[std::size_t(j)] += double(dy(i, j)) * h(j);
        db[std::size_t(j)] += double(dy(i, j));
      }
    }
  }
};

TYPED_TEST(NormGradients, NormsMatchTheOracle) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  constexpr index_t kRows = 37;
  constexpr double kEps = 1e-3;
  Philox random(1);
  for (const index_t n : kWidths)
    for (const bool layer : {false, true})
      for (const bool plus_one : {false, true})
        for (const bool has_weight : {true, false}) {
          if (layer && plus_one) continue;
          SCOPED_TRACE(testing::Message()
                       << n << (layer ? " layer" : " rms") << plus_one << " weight " << has_weight);
          Rows<T> x(kRows, n, random, 2), dy(kRows, n, random), dx(kRows, n, random);
          const auto weight = normal<T>(Shape<1>{n}, random);
          TensorView<const T, 1> w;
          if (has_weight) w = weight;
          auto dw = normal<A>(Shape<1>{n}, random), db = normal<A>(Shape<1>{n}, random);
          const auto dw_before = dw, db_before = db;
          if (layer)
            layer_norm_backward(dx.view, dw, db, dy.view, x.view, w, kEps);
          else
            rms_norm_backward(dx.view, dw, dy.view, x.view, w, kEps, plus_one);

          std::vector<double> factors;
          for (index_t j = 0; j < n; ++j)
            factors.push_back(has_weight ? double(weight(j)) + (plus_one ? 1 : 0) : 1);
          const NormOracle want(as_const_view(dy.view), as_const_view(x.view), factors, kEps,
                                layer);
          for (index_t j = 0; j < n; ++j) {
            const auto at = std::size_t(j);
            // Of a row of one, layer_norm's dx is 0, the difference of equal numbers.
            for (index_t i = 0; i < kRows; ++i)
              ASSERT_NEAR(double(dx.view(i, j)), want.dx[std::size_t(i)][at],
                          tolerance<T>(want.dx[std::size_t(i)][at], n == 1 ? 100 : 10))
                  << i << " " << j;
            ASSERT_NEAR(double(dw(j)), double(dw_before(j)) + want.dw[at],
                        tolerance<A>(want.dw[at], kRows));
            if (layer) {
              ASSERT_NEAR(double(db(j)), double(db_before(j)) + want.db[at],
                          tolerance<A>(want.db[at], kRows));
            }
          }
        }
}

TYPED_TEST(NormGradients, NormsLeaveOutWhatIsNotWanted) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(2);
  const auto x = normal<T>(Shape{9, 41}, random), dy = normal<T>(Shape{9, 41}, random);
  const auto w = normal<T>(Shape<1>{41}, random);
  Tensor<T, 2> want(x.shape()), dx(x.shape());
  Tensor<A, 1> dw({41}), db({41}), alone({41});
  const auto expect_equal = [](const auto& a, const auto& b) {
    EXPECT_EQ(std::memcmp(a.data(), b.data(), a.bytes()), 0);
  };
  rms_norm_backward(want, dw, dy, x, w);
  rms_norm_backward(dx, {}, dy, x, w);
  expect_equal(dx, want);
  dw = Tensor<A, 1>({41});
  layer_norm_backward(want, dw, db, dy, x, w);
  layer_norm_backward(dx, {}, {}, dy, x, w);
  expect_equal(dx, want);
  layer_norm_backward(dx, alone, {}, dy, x, w);
  expect_equal(alone, dw);
  alone = Tensor<A, 1>({41});
  layer_norm_backward(dx, {}, alone, dy, x, w);
  expect_equal(alone, db);
}

TYPED_TEST(NormGradients, NormsWorkInPlaceOnHeadsOfAFusedProjection) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(3);
  const auto fused = normal<T>(Shape{6, 3 * 4 * 16}, random);
  const auto k = fused.view().slice(1, 64, 128).reshape(Shape{2, 3, 4, 16});
  const auto dy = normal<T>(Shape{2, 3, 4, 16}, random);
  const auto w = normal<T>(Shape<1>{16}, random);
  for (const bool layer : {false, true}) {
    Tensor<T, 4> want(dy.shape()), over_dy = dy;
    auto over_fused = fused;
    const auto over_x = over_fused.slice(1, 64, 128).reshape(Shape{2, 3, 4, 16});
    Tensor<A, 1> dw({16}), dw_want({16}), db({16});
    const auto run = [&](auto&& dx, auto& sums, const auto& g, const auto& x) {
      sums = Tensor<A, 1>({16});
      if (layer)
        layer_norm_backward(dx, sums, db, g, x, w);
      else
        rms_norm_backward(dx, sums, g, x, w, 1e-6, true);
    };
    run(want, dw_want, dy, k);
    run(over_dy, dw, over_dy, k);
    EXPECT_EQ(std::memcmp(over_dy.data(), want.data(), want.bytes()), 0);
    EXPECT_EQ(std::memcmp(dw.data(), dw_want.data(), dw.bytes()), 0);
    run(over_x, dw, dy, over_x);
    EXPECT_EQ(std::memcmp(clone(over_x).data(), want.data(), want.bytes()), 0);
    EXPECT_EQ(std::memcmp(dw.data(), dw_want.data(), dw.bytes()), 0);
    for (index_t i = 0; i < 6; ++i)  // the neighbours are untouched
      for (const index_t j : {0, 63, 128, 191})
        EXPECT_EQ(double(over_fused(i, j)), double(fused(i, j)));
  }
}

TEST(NormGradient, AreThoseOfFiniteDifferences) {
  Philox random(4);
  for (const bool layer : {false, true})
    for (const bool plus_one : {false, true}) {
      if (layer && plus_one) continue;
      auto x = normal<double>(Shape{2, 3, 11}, random);
      const auto dy = normal<double>(x.shape(), random);
      auto w = normal<double>(Shape<1>{11}, random), b = normal<double>(Shape<1>{11}, random);
      Tensor<double, 3> y(x.shape()), dx(x.shape());
      Tensor<double, 1> dw({11}), db({11});
      const auto f = [&] {
        if (layer)
          layer_norm(y, x, w, b, 1e-3);
        else
          rms_norm(y, x, w, 1e-3, plus_one);
        return dot(dy, y);
      };
      if (layer)
        layer_norm_backward(dx, dw, db, dy, x, w, 1e-3);
      else
        rms_norm_backward(dx, dw, dy, x, w, 1e-3, plus_one);
      expect_gradient(dx, x, f, "dx");
      expect_gradient(dw, w, f, "dweight");
      if (layer) expect_gradient(db, b, f, "dbias");
    }
}

TEST(NormGradient, ScalesWithTinyAndLargeRows) {
  // Without eps, y(c x) = y(x): the gradient at c x is that at x over c, bit for bit for powers
  // of 2.
  Philox random(14);
  const auto x = normal<float>(Shape{1, 50}, random), dy = normal<float>(x.shape(), random);
  for (const bool layer : {false, true})
    for (const float c : {0x1p-40f, 0x1p50f}) {
      Tensor<float, 2> scaled(x.shape()), dx(x.shape()), want(x.shape());
      Tensor<float, 1> dw({50}), dw_want({50});
      for (index_t j = 0; j < 50; ++j) scaled(0, j) = c * x(0, j);
      if (layer) {
        layer_norm_backward(want, dw_want, {}, dy, x, {}, 0);
        layer_norm_backward(dx, dw, {}, dy, scaled, {}, 0);
      } else {
        rms_norm_backward(want, dw_want, dy, x, {}, 0);
        rms_norm_backward(dx, dw, dy, scaled, {}, 0);
      }
      for (index_t j = 0; j < 50; ++j) {
        EXPECT_EQ(dx(0, j) * c, want(0, j)) << j;
        EXPECT_EQ(dw(j), dw_want(j)) << j;
      }
    }
}

TEST(NormGradient, OfRowsOfZeroAreFinite) {
  Tensor<float, 2> x({2, 20}), dy({2, 20}), dx({2, 20});
  Tensor<float, 1> dw({20}), db({20});
  fill(dy, 1);
  rms_norm_backward(dx, dw, dy, x, {}, 1e-6);
  EXPECT_FLOAT_EQ(dx(0, 3), 1e3f);  // dy / sqrt(eps)
  EXPECT_EQ(dw(3), 0);
  layer_norm_backward(dx, dw, db, dy, x, {}, 1e-6);
  EXPECT_EQ(dx(1, 19), 0);
  EXPECT_EQ(db(19), 2);
}

// ---- sums ----

TYPED_TEST(NormGradients, ColumnSumMatchesTheOracle) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(12);
  for (const index_t n : kWidths)
    for (const index_t rows : {0, 1, 5, 1000})
      for (const bool accumulate : {false, true}) {
        Rows<T> x(rows, n, random);
        auto out = normal<A>(Shape<1>{n}, random);
        const auto before = out;
        column_sum(out, x.view, accumulate);
        for (index_t j = 0; j < n; ++j) {
          double want = accumulate ? double(before(j)) : 0, size = 1;
          for (index_t i = 0; i < rows; ++i) {
            want += double(x.view(i, j));
            size += std::abs(double(x.view(i, j)));
          }
          ASSERT_NEAR(double(out(j)), want, tolerance<A>(want, size)) << n << " " << rows;
        }
      }
}

TYPED_TEST(NormGradients, DoNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(13);
  const auto x = normal<T>(Shape{301, 577}, random), dy = normal<T>(x.shape(), random);
  const auto w = normal<T>(Shape<1>{577}, random);
  Tensor<T, 2> dx(x.shape());
  Tensor<A, 2> sums({3, 577});
  const auto row = [&](index_t i) { return sums.view().select(0, i); };
  expect_same_with_any_threads<A>(sums, [&] {
    rms_norm_backward(dx, row(0), dy, x, w);
    layer_norm_backward(dx, row(1), row(2), dy, x, w);
  });
  expect_same_with_any_threads<T>(dx, [&] { layer_norm_backward(dx, {}, {}, dy, x, w); });
  expect_same_with_any_threads<A>(sums, [&] { column_sum(row(0), x); });
}

// ---- refusals, nothing ----

TEST(NormGradientErrors, NameTheArgumentAndTheShape) {
  Tensor<float, 2> x({3, 4}), other({3, 5});
  Tensor<float, 1> five(Shape{5});
  EXPECT_THAT([&] { rms_norm_backward(other, {}, x, x); },
              testing::ThrowsMessage<ShapeError>(
                  "rms_norm_backward: dx is [3, 5], expected [3, 4] = the shape of x"));
  EXPECT_THAT([&] { rms_norm_backward(x, {}, other, x); },
              testing::ThrowsMessage<ShapeError>(
                  "rms_norm_backward: dy is [3, 5], expected [3, 4] = the shape of x"));
  EXPECT_THAT([&] { rms_norm_backward(x, five, x, x); },
              testing::ThrowsMessage<ShapeError>(
                  "rms_norm_backward: dweight is [5], expected [4] = [the last axis of x]"));
  EXPECT_THAT([&] { layer_norm_backward(x, {}, five, x, x); },
              testing::ThrowsMessage<ShapeError>(
                  "layer_norm_backward: dbias is [5], expected [4] = [the last axis of x]"));
  EXPECT_THAT([&] { layer_norm_backward(x, {}, {}, x, x, {}, -1); },
              testing::ThrowsMessage<ValueError>(
                  "layer_norm_backward: eps is -1, expected a finite number of at least 0"));
  EXPECT_THAT([&] { column_sum(five, x); },
              testing::ThrowsMessage<ShapeError>(
                  "column_sum: out is [5], expected [4] = [the last axis of x]"));
}

TYPED_TEST(NormGradients, OfNothingAreLegal) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for (const auto& shape : {Shape{0, 4}, Shape{3, 0}}) {
    Tensor<T, 2> x(shape);
    Tensor<A, 1> sums({shape[1]});
    fill(sums, 7);
    rms_norm_backward(x, sums, x, x);
    layer_norm_backward(x, sums, sums, x, x);
    column_sum(sums, x, true);
    for (index_t j = 0; j < sums.size(); ++j) EXPECT_EQ(double(sums(j)), 7);
    column_sum(sums, x);
    for (index_t j = 0; j < sums.size(); ++j) EXPECT_EQ(double(sums(j)), 0);
  }
}

}  // namespace
}  // namespace rapt::test
