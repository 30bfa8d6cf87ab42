// The gradients of the row-wise operations: against plain loops in double over the values that the
// element type holds, and against finite differences of the operations themselves, in double.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <vector>

#include "core/rows.hpp"
#include "rapt/core/ops/column_sum.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/ops/embedding.hpp"
#include "rapt/core/ops/gated_activation.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/core/ops/softcap.hpp"

namespace rapt::test {
namespace {

const std::vector<index_t> kWidths = {1, 3, 8, 17, 33, 64, 577};
const std::vector<Activation> kActivations = {Activation::silu, Activation::gelu_tanh,
                                              Activation::gelu_erf, Activation::sigmoid};

template <class T>
struct Gradients : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(Gradients, Elements);

template <class T, std::size_t Rank>
Tensor<T, Rank> normal(Shape<Rank> shape, Philox& random, double stddev = 1) {
  Tensor<T, Rank> out(shape);
  fill_normal(out, random, stddev);
  return out;
}

/// f(x) changes by gradient(i) * step when x(i) does: central differences, to 1e-6 of the largest.
template <std::size_t Rank>
void expect_gradient(const Tensor<double, Rank>& gradient, Tensor<double, Rank>& x,
                     const std::function<double()>& f, const char* name) {
  constexpr double kStep = 1e-5;
  ASSERT_EQ(gradient.shape(), x.shape());
  double most = 1e-3;
  for (index_t i = 0; i < x.size(); ++i) most = std::max(most, std::abs(gradient.data()[i]));
  for (index_t i = 0; i < x.size(); ++i) {
    const double before = x.data()[i];
    x.data()[i] = before + kStep;
    const double above = f();
    x.data()[i] = before - kStep;
    const double below = f();
    x.data()[i] = before;
    ASSERT_NEAR(gradient.data()[i], (above - below) / (2 * kStep), 1e-6 * most) << name << " " << i;
  }
}

template <std::size_t Rank>
double dot(const Tensor<double, Rank>& a, const Tensor<double, Rank>& b) {
  double sum = 0;
  for (index_t i = 0; i < a.size(); ++i) sum += a.data()[i] * b.data()[i];
  return sum;
}

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

TYPED_TEST(Gradients, NormsMatchTheOracle) {
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

TYPED_TEST(Gradients, NormsLeaveOutWhatIsNotWanted) {
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

TYPED_TEST(Gradients, NormsWorkInPlaceOnHeadsOfAFusedProjection) {
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

TEST(NormGradients, AreThoseOfFiniteDifferences) {
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

TEST(NormGradients, OfRowsOfZeroAreFinite) {
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

// ---- elementwise ----

double activated(double x, Activation kind) {
  switch (kind) {
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::gelu_erf:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::sigmoid:
      break;
  }
  return 1 / (1 + std::exp(-x));
}

double slope(double x, Activation kind) {
  const double s = 1 / (1 + std::exp(-x));
  switch (kind) {
    case Activation::silu:
      return s * (1 + x * (1 - s));
    case Activation::gelu_tanh: {
      const double k = std::sqrt(2 / M_PI), t = std::tanh(k * (x + 0.044715 * x * x * x));
      return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * k * (1 + 3 * 0.044715 * x * x);
    }
    case Activation::gelu_erf:
      return 0.5 * (1 + std::erf(x / std::sqrt(2.0))) +
             x * std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
    case Activation::sigmoid:
      break;
  }
  return s * (1 - s);
}

TYPED_TEST(Gradients, GatedActivationsMatchTheOracle) {
  using T = TypeParam;
  Philox random(5);
  for (const index_t n : kWidths)
    for (const Activation kind : kActivations) {
      SCOPED_TRACE(testing::Message() << n << " activation " << int(kind));
      Rows<T> gate(3, n, random, 3), up(3, n, random), dout(3, n, random);
      Rows<T> dgate(3, n, random), dup(3, n, random);
      gated_activation_backward(dgate.view, dup.view, dout.view, gate.view, up.view, kind);
      for (index_t i = 0; i < 3; ++i)
        for (index_t j = 0; j < n; ++j) {
          const double g = double(gate.view(i, j)), u = double(up.view(i, j)),
                       d = double(dout.view(i, j));
          const double want_gate = d * u * slope(g, kind), want_up = d * activated(g, kind);
          ASSERT_NEAR(double(dgate.view(i, j)), want_gate, tolerance<T>(want_gate, std::abs(d * u)))
              << g;
          ASSERT_NEAR(double(dup.view(i, j)), want_up, tolerance<T>(want_up, std::abs(d))) << g;
        }
      // In place, over any two of the three: the same bits.
      const Tensor<T, 2> want_gate = clone(dgate.view), want_up = clone(dup.view);
      for (const int over : {0, 1, 2}) {
        Tensor<T, 2> g = clone(gate.view), u = clone(up.view), d = clone(dout.view);
        Tensor<T, 2>& to_gate = over == 0 ? g : over == 1 ? d : u;
        Tensor<T, 2>& to_up = over == 0 ? u : over == 1 ? g : d;
        gated_activation_backward(to_gate, to_up, d, g, u, kind);
        ASSERT_EQ(std::memcmp(to_gate.data(), want_gate.data(), want_gate.bytes()), 0) << over;
        ASSERT_EQ(std::memcmp(to_up.data(), want_up.data(), want_up.bytes()), 0) << over;
      }
    }
}

TYPED_TEST(Gradients, ActivationsOfExtremeGatesHaveSlopesZeroAndOne) {
  using T = TypeParam;
  const std::vector<float> gates = {-60000, -100, -20, 20, 100, 60000};
  Tensor<T, 2> gate({1, 6}), one({1, 6}), dgate({1, 6}), dup({1, 6});
  fill(one, 1);
  for (index_t j = 0; j < 6; ++j) gate(0, j) = T(gates[std::size_t(j)]);
  for (const Activation kind : kActivations) {
    gated_activation_backward(dgate, dup, one, gate, one, kind);
    for (index_t j = 0; j < 6; ++j)
      EXPECT_NEAR(double(dgate(0, j)), j < 3 || kind == Activation::sigmoid ? 0 : 1, 1e-7) << j;
  }
}

TEST(ActivationGradients, KeepTheirTailsAndLargestGates) {
  Tensor<float, 2> gate({1, 3}), one({1, 3}), dgate({1, 3}), dup({1, 3});
  fill(one, 1);
  gate(0, 0) = -1e38f;
  gate(0, 1) = 1e38f;
  gate(0, 2) = -30;
  for (const Activation kind : kActivations) {
    gated_activation_backward(dgate, dup, one, gate, one, kind);
    EXPECT_EQ(dgate(0, 0), 0) << int(kind);
    EXPECT_EQ(dgate(0, 1), kind == Activation::sigmoid ? 0 : 1) << int(kind);
  }
  gated_activation_backward(dgate, dup, one, gate, one, Activation::sigmoid);
  EXPECT_FLOAT_EQ(dgate(0, 2), float(std::exp(-30.0)));
}

TEST(ActivationGradients, AreThoseOfFiniteDifferences) {
  Philox random(6);
  for (const Activation kind : kActivations) {
    auto gate = normal<double>(Shape{2, 2, 3, 5}, random),
         up = normal<double>(gate.shape(), random);
    const auto dout = normal<double>(gate.shape(), random);
    Tensor<double, 4> out(gate.shape()), dgate(gate.shape()), dup(gate.shape());
    const auto f = [&] {
      gated_activation(out, gate, up, kind);
      return dot(dout, out);
    };
    gated_activation_backward(dgate, dup, dout, gate, up, kind);
    expect_gradient(dgate, gate, f, "dgate");
    expect_gradient(dup, up, f, "dup");
  }
}

TYPED_TEST(Gradients, SoftcapMatchesTheOracle) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(7);
  for (const index_t n : kWidths) {
    Rows<T> y(3, n, random), dy(3, n, random), dx(3, n, random);
    for (index_t j = 0; j < n; ++j) y.view(1, j) = T(30.0);  // capped: no slope
    softcap_backward(dx.view, dy.view, y.view, A{30});
    for (index_t i = 0; i < 3; ++i)
      for (index_t j = 0; j < n; ++j) {
        const double want = double(dy.view(i, j)) * (1 - std::pow(double(y.view(i, j)) / 30, 2));
        ASSERT_NEAR(double(dx.view(i, j)), want, tolerance<T>(want)) << n << " " << i;
      }
    const Tensor<T, 2> want = clone(dx.view);
    Tensor<T, 2> over_dy = clone(dy.view), over_y = clone(y.view);
    softcap_backward(over_dy, over_dy, y.view, A{30});
    softcap_backward(over_y, dy.view, over_y, A{30});
    EXPECT_EQ(std::memcmp(over_dy.data(), want.data(), want.bytes()), 0);
    EXPECT_EQ(std::memcmp(over_y.data(), want.data(), want.bytes()), 0);
  }
}

TEST(SoftcapGradient, IsThatOfFiniteDifferences) {
  Philox random(8);
  auto x = normal<double>(Shape{3, 13}, random, 2);
  const auto dy = normal<double>(x.shape(), random);
  Tensor<double, 2> y = x, dx(x.shape());
  softcap(y, 1.5);
  softcap_backward(dx, dy, y, 1.5);
  const auto f = [&] {
    Tensor<double, 2> capped = x;
    softcap(capped, 1.5);
    return dot(dy, capped);
  };
  expect_gradient(dx, x, f, "dx");
}

// ---- embedding ----

TYPED_TEST(Gradients, EmbeddingAddsTheRowsOfEachId) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(9);
  for (const index_t n : kWidths) {
    const auto wide = normal<T>(Shape{2, 7, n + 2}, random);
    const auto dy = wide.view().slice(2, 1, n + 1);
    Tensor<std::int32_t, 2> ids({2, 7});
    for (index_t i = 0; i < 14; ++i) ids(i / 7, i % 7) = static_cast<std::int32_t>(i * i % 5);
    auto dtable = normal<A>(Shape{6, n}, random);
    const auto before = dtable;
    embedding_backward(dtable, dy, ids, A{3});
    for (index_t row = 0; row < 6; ++row)
      for (index_t j = 0; j < n; ++j) {
        double want = double(before(row, j));
        for (index_t i = 0; i < 14; ++i)
          if (ids(i / 7, i % 7) == row) want += 3 * double(dy(i / 7, i % 7, j));
        ASSERT_NEAR(double(dtable(row, j)), want, tolerance<A>(want, 20)) << row << " " << j;
      }
  }
}

TEST(EmbeddingGradient, RefusesAnIdOutsideTheTableBeforeWriting) {
  Tensor<float, 2> dtable({4, 2});
  Tensor<float, 3> dy({1, 2, 2}), narrow({1, 2, 1});
  fill(dy, 1);
  Tensor<std::int32_t, 2> ids({1, 2});
  ids(0, 1) = 4;
  EXPECT_THAT([&] { embedding_backward(dtable, dy, ids); },
              testing::ThrowsMessage<ValueError>(
                  "embedding_backward: ids[0, 1] is 4, expected 0 to 3, the rows of dtable"));
  EXPECT_EQ(dtable(0, 0), 0);
  EXPECT_THAT([&] { embedding_backward(dtable, narrow, ids); },
              testing::ThrowsMessage<ShapeError>("embedding_backward: dy is [1, 2, 1], expected "
                                                 "[1, 2, 2] = [batch, seq, the last axis of "
                                                 "dtable]"));
}

// ---- loss ----

TYPED_TEST(Gradients, CrossEntropyMatchesTheOracle) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(10);
  for (const index_t vocab : {1, 2, 7, 50, 577, 1031})
    for (const double smoothing : {0.0, 0.1, 1.0}) {
      SCOPED_TRACE(testing::Message() << vocab << " smoothing " << smoothing);
      Rows<T> logits(6, vocab, random, 4), dlogits(6, vocab, random);
      Tensor<std::int32_t, 1> targets(Shape{6});
      for (index_t i = 0; i < 6; ++i) targets(i) = static_cast<std::int32_t>(i * 3 % vocab);
      targets(2) = -100;
      const A scale = A(64);
      const CrossEntropyOptions options{.label_smoothing = smoothing};
      Tensor<A, 1> loss(Shape{6}), loss_want(Shape{6});
      cross_entropy(loss_want, logits.view, targets, options);
      cross_entropy_backward(dlogits.view, logits.view, targets, scale, options);
      for (index_t i = 0; i < 6; ++i) {
        double most = double(logits.view(i, 0)), sum = 0;
        for (index_t j = 0; j < vocab; ++j) most = std::max(most, double(logits.view(i, j)));
        for (index_t j = 0; j < vocab; ++j) sum += std::exp(double(logits.view(i, j)) - most);
        for (index_t j = 0; j < vocab; ++j) {
          const double wanted = (j == targets(i) ? 1 - smoothing : 0) + smoothing / double(vocab);
          const double p = std::exp(double(logits.view(i, j)) - most) / sum;
          const double want = i == 2 ? 0 : 64 * (p - wanted);
          ASSERT_NEAR(double(dlogits.view(i, j)), want, tolerance<T>(want, 4)) << i << " " << j;
        }
      }
      // The fused form: the same bits, in the place of the logits.
      const Tensor<T, 2> want = clone(dlogits.view);
      cross_entropy_with_gradient(loss, logits.view, targets, scale, options);
      EXPECT_EQ(std::memcmp(clone(logits.view).data(), want.data(), want.bytes()), 0);
      for (index_t i = 0; i < 6; ++i)
        ASSERT_NEAR(double(loss(i)), double(loss_want(i)), sizeof(A) == 4 ? 2e-6 : 1e-13);
    }
}

TEST(CrossEntropyGradient, IsThatOfFiniteDifferences) {
  Philox random(11);
  for (const double smoothing : {0.0, 0.3}) {
    auto z = normal<double>(Shape{4, 9}, random, 2);
    Tensor<std::int32_t, 1> targets(Shape{4});
    for (index_t i = 0; i < 4; ++i) targets(i) = static_cast<std::int32_t>(2 * i);
    targets(1) = -100;
    const CrossEntropyOptions options{.label_smoothing = smoothing, .reduction = Reduction::sum};
    Tensor<double, 2> dz(z.shape());
    cross_entropy_backward(dz, z, targets, 0.5, options);
    expect_gradient(
        dz, z, [&] { return 0.5 * cross_entropy(z, targets, options); }, "dlogits");
  }
}

TEST(CrossEntropyGradient, IsStableForExtremeLogits) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Tensor<float, 2> z({3, 19});
  fill(z, -3e38);
  z(0, 4) = 3e38f;
  z(1, 0) = z(1, 1) = 1e4f;
  for (index_t j = 0; j < 19; ++j) z(2, j) = -kInfinity;  // masked vocabulary but for two ids
  z(2, 3) = z(2, 18) = 0;
  Tensor<std::int32_t, 1> targets(Shape{3});
  targets(0) = 4;
  targets(1) = 1;
  targets(2) = 18;
  Tensor<float, 1> loss(Shape{3});
  cross_entropy_with_gradient(loss, z, targets, 1.f);
  EXPECT_EQ(loss(0), 0);
  EXPECT_FLOAT_EQ(loss(1), 0.69314718f);
  EXPECT_FLOAT_EQ(loss(2), 0.69314718f);
  for (index_t j = 0; j < 19; ++j) {
    EXPECT_EQ(z(0, j), 0);
    EXPECT_EQ(z(1, j), j == 0 ? 0.5f : j == 1 ? -0.5f : 0);
    EXPECT_EQ(z(2, j), j == 3 ? 0.5f : j == 18 ? -0.5f : 0);
  }
}

TEST(CrossEntropyGradient, NamesWhatItRefusesBeforeWriting) {
  Tensor<float, 2> z({2, 3}), wide({2, 4});
  fill(z, 2);
  Tensor<std::int32_t, 1> targets(Shape{2}), three(Shape{3});
  Tensor<float, 1> loss(Shape{2}), loss3(Shape{3});
  targets(1) = 3;
  EXPECT_THAT([&] { cross_entropy_with_gradient(loss, z, targets, 1.f); },
              testing::ThrowsMessage<ValueError>("cross_entropy_with_gradient: targets[1] is 3, "
                                                 "expected 0 to 2 or -100 = ignore_index"));
  EXPECT_EQ(z(0, 0), 2);
  EXPECT_THAT([&] { cross_entropy_backward(z, z, targets, 1.f); },
              testing::ThrowsMessage<ValueError>("cross_entropy_backward: targets[1] is 3, "
                                                 "expected 0 to 2 or -100 = ignore_index"));
  EXPECT_THAT([&] { cross_entropy_backward(wide, z, targets, 1.f); },
              testing::ThrowsMessage<ShapeError>("cross_entropy_backward: dlogits is [2, 4], "
                                                 "expected [2, 3] = the shape of logits"));
  EXPECT_THAT([&] { cross_entropy_backward(z, z, three, 1.f); },
              testing::ThrowsMessage<ShapeError>(
                  "cross_entropy_backward: targets is [3], expected [2] = [rows]"));
  EXPECT_THAT([&] { cross_entropy_with_gradient(loss3, z, targets, 1.f); },
              testing::ThrowsMessage<ShapeError>(
                  "cross_entropy_with_gradient: loss is [3], expected [2] = [rows]"));
}

// ---- sums ----

TYPED_TEST(Gradients, ColumnSumMatchesTheOracle) {
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

TYPED_TEST(Gradients, DoNotDependOnTheNumberOfThreads) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  Philox random(13);
  const auto x = normal<T>(Shape{301, 577}, random), dy = normal<T>(x.shape(), random);
  const auto w = normal<T>(Shape<1>{577}, random);
  Tensor<T, 2> dx(x.shape()), other(x.shape());
  Tensor<std::int32_t, 2> ids({1, 301});
  Tensor<std::int32_t, 1> targets({301});
  for (index_t i = 0; i < 301; ++i) ids(0, i) = targets(i) = static_cast<std::int32_t>(i * 7 % 23);
  Tensor<A, 2> sums({3, 577}), table({23, 577});
  const auto row = [&](index_t i) { return sums.view().select(0, i); };
  expect_same_with_any_threads<A>(sums, [&] {
    rms_norm_backward(dx, row(0), dy, x, w);
    layer_norm_backward(dx, row(1), row(2), dy, x, w);
  });
  expect_same_with_any_threads<T>(dx, [&] { layer_norm_backward(dx, {}, {}, dy, x, w); });
  expect_same_with_any_threads<A>(sums, [&] { column_sum(row(0), x); });
  expect_same_with_any_threads<A>(table, [&] {
    embedding_backward(table, dy.view().reshape(Shape{1, 301, 577}), ids);
  });
  expect_same_with_any_threads<T>(
      dx, [&] { gated_activation_backward(dx, other, dy, x, x, Activation::silu); });
  expect_same_with_any_threads<T>(dx, [&] { cross_entropy_backward(dx, x, targets, A{1}); });
}

// ---- refusals, nothing ----

TEST(GradientErrors, NameTheArgumentAndTheShape) {
  Tensor<float, 2> x({3, 4}), other({3, 5}), y({3, 4}), z({3, 4});
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
  EXPECT_THAT(
      [&] { gated_activation_backward(x, y, other, x, y, Activation::silu); },
      testing::ThrowsMessage<ShapeError>(
          "gated_activation_backward: dout is [3, 5], expected [3, 4] = the shape of gate"));
  EXPECT_THAT([&] { gated_activation_backward(x, x, y, y, z, Activation::silu); },
              testing::ThrowsMessage<ValueError>("gated_activation_backward: dup is dgate, "
                                                 "expected two tensors that do not overlap"));
  EXPECT_THAT([&] { softcap_backward(x, y, z, 0.f); },
              testing::ThrowsMessage<ValueError>(
                  "softcap_backward: cap is 0, expected a finite number above 0"));
  EXPECT_THAT([&] { softcap_backward(x, other, z, 1.f); },
              testing::ThrowsMessage<ShapeError>(
                  "softcap_backward: dy is [3, 5], expected [3, 4] = the shape of y"));
  EXPECT_THAT([&] { column_sum(five, x); },
              testing::ThrowsMessage<ShapeError>(
                  "column_sum: out is [5], expected [4] = [the last axis of x]"));
}

TYPED_TEST(Gradients, OfNothingAreLegal) {
  using T = TypeParam;
  using A = accumulate_t<T>;
  for (const auto& shape : {Shape{0, 4}, Shape{3, 0}}) {
    Tensor<T, 2> x(shape), y(shape);
    Tensor<A, 1> sums({shape[1]});
    fill(sums, 7);
    rms_norm_backward(x, sums, x, x);
    layer_norm_backward(x, sums, sums, x, x);
    gated_activation_backward(x, y, x, x, y, Activation::silu);
    softcap_backward(x, x, x, A{1});
    column_sum(sums, x, true);
    for (index_t j = 0; j < sums.size(); ++j) EXPECT_EQ(double(sums(j)), 7);
    column_sum(sums, x);
    for (index_t j = 0; j < sums.size(); ++j) EXPECT_EQ(double(sums(j)), 0);
  }
  Tensor<T, 2> logits({0, 4});
  cross_entropy_backward(logits, logits, Tensor<std::int32_t, 1>({0}), A{1});
  Tensor<A, 2> table({2, 5});
  embedding_backward(table, Tensor<T, 3>({0, 3, 5}), Tensor<std::int32_t, 2>({0, 3}));
}

}  // namespace
}  // namespace rapt::test
