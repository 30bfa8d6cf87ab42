// How close a kernel must come to an oracle in double precision, by element type: an entry passes
// when |got - want| <= absolute + relative |want|; infinities and NaN must be equal.
//
//   float     sums of up to a few thousand terms in float
//   half      one rounding to 11 bits      bfloat16  one rounding to 8 bits, of inputs that are
//   exact double    sums in double; the exponential is good to 1e-16
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <type_traits>

#include "rapt/core/dtype.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt::test {

struct Tolerance {
  double absolute, relative;

  Tolerance operator*(double factor) const { return {absolute * factor, relative * factor}; }
};

/// For results stored as T that were summed in accumulate_t<T>.
template <class T>
constexpr Tolerance tolerance_of() {
  if constexpr (std::is_same_v<T, double>) return {1e-13, 1e-12};
  if constexpr (std::is_same_v<T, half>) return {2e-4, 1.0 / 1024};
  if constexpr (std::is_same_v<T, bfloat16>) return {2e-4, 1.0 / 128};
  return {4e-6, 1e-5};
}

inline bool is_close(double got, double want, Tolerance tolerance) {
  if (std::isnan(want) || std::isinf(want) || !std::isfinite(got))
    return std::isnan(want) ? std::isnan(got) : got == want;
  return std::abs(got - want) <= tolerance.absolute + tolerance.relative * std::abs(want);
}

/// Row n along the last axis, in row-major order.
template <class T, std::size_t Rank, class Backend>
T* row_of(TensorView<T, Rank, Backend> x, index_t n) {
  index_t at = 0;
  for (std::size_t axis = Rank - 1; axis-- > 0;) {
    at += n % x.extent(axis) * x.stride(axis);
    n /= x.extent(axis);
  }
  return x.data() + at;
}

/// A row-major copy as doubles.
template <class X>
auto doubles(const X& x) {
  const auto from = as_const_view(x);
  Tensor<double, rank_v<X>> to(from.shape());
  const index_t last = from.extent(rank_v<X> - 1), step = from.stride(rank_v<X> - 1);
  for (index_t n = 0; n < to.size(); n += last) {
    const auto* const row = row_of(from, n / last);
    for (index_t i = 0; i < last; ++i) to.data()[n + i] = static_cast<double>(row[i * step]);
  }
  return to;
}

/// Every entry of `got` against `want`, entry n in row-major order within tolerance(n); reports the
/// first that is too far off.
template <class Got, class Want, class ToleranceOf>
requires std::is_invocable_v<ToleranceOf, index_t>
void expect_close(const Got& got_tensor, const Want& want_tensor, ToleranceOf tolerance,
                  const char* name = "tensor") {
  constexpr std::size_t kRank = rank_v<Got>;
  const auto got = as_const_view(got_tensor);
  const auto want = as_const_view(want_tensor);
  ASSERT_EQ(got.shape(), want.shape()) << name;
  auto got_row = got.data();
  auto want_row = want.data();
  const index_t last = got.extent(kRank - 1);
  for (index_t n = 0; n < got.size(); ++n) {
    if (n % last == 0) got_row = row_of(got, n / last), want_row = row_of(want, n / last);
    const double g = static_cast<double>(got_row[n % last * got.stride(kRank - 1)]);
    const double w = static_cast<double>(want_row[n % last * want.stride(kRank - 1)]);
    if (is_close(g, w, tolerance(n))) continue;
    FAIL() << name << ": entry " << n << " of " << detail::shape_text(got.shape()) << " is " << g
           << ", expected " << w;
  }
}

template <class Got, class Want>
void expect_close(const Got& got, const Want& want, Tolerance tolerance,
                  const char* name = "tensor") {
  expect_close(
      got, want, [=](index_t) { return tolerance; }, name);
}

}  // namespace rapt::test
