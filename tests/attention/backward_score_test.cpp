// The gradient through score modifiers, and the gradients of their tables, against the oracle.
#include <gtest/gtest.h>

#include "attention/any_mask.hpp"
#include "attention/backward_problem.hpp"

namespace rapt::test {
namespace {

const Sizes kSizes{2, 50, 70, 4, 2, 12};

void expect_matches(const Problem<double>& p, AnyScore score) {
  expect_backward_matches(p, Causal{}, std::move(score));
}

TEST(BackwardScore, SoftCap) {
  for (const double cap : {0.5, 1.5, 50.0}) expect_matches(Problem<double>(kSizes), SoftCap{cap});
}

TEST(BackwardScore, Alibi) {
  const auto slopes = alibi_slopes<double>(4);
  expect_matches(Problem<double>(kSizes), Alibi{slopes});
}

TEST(BackwardScore, Lambda) {
  expect_matches(Problem<double>(kSizes), [](auto s, index_t, index_t h, index_t i, index_t j) {
    using std::sin;
    return s + sin(s * 0.5) + 0.01 * static_cast<double>((h + i - j) % 5);
  });
}

/// A bias between two other modifiers: `then` of one type, whatever they are.
template <class Bias>
auto between(AnyScore before, Bias bias, AnyScore after) {
  return then(std::move(before), bias, std::move(after));
}

TEST(BackwardScore, AdditiveBias) {
  const Problem<double> p(kSizes);
  for (const Shape<4>& shape : {Shape<4>{2, 4, 50, 70}, Shape<4>{1, 4, 50, 70},
                                Shape<4>{2, 1, 50, 70}, Shape<4>{1, 1, 50, 70}}) {
    const auto table = normal<double>(shape, 8);
    const AdditiveBias bias{table};
    SCOPED_TRACE(detail::shape_text(shape));
    expect_backward_matches(p, Causal{}, between(Identity{}, bias, Identity{}), {}, shape);
    expect_backward_matches(p, Causal{}, between(SoftCap{2}, bias, Identity{}), {}, shape);
    expect_backward_matches(p, Causal{}, between(Identity{}, bias, SoftCap{2}), {}, shape);
    if (shape[0] > 1) continue;
    const auto lengths = list({70, 33});
    expect_backward_matches(p, Causal{}, between(SoftCap{2}, bias, Identity{}),
                            {.kv_lengths = lengths}, shape);
  }
}

TEST(BackwardScore, RelativeBias) {
  const Problem<double> p(kSizes);
  for (const Shape<2>& shape : {Shape<2>{4, 21}, Shape<2>{1, 301}, Shape<2>{4, 1}}) {
    const auto table = normal<double>(shape, 8);
    const RelativeBias bias{table};
    SCOPED_TRACE(detail::shape_text(shape));
    expect_backward_matches(p, Causal{}, between(Identity{}, bias, Identity{}), {}, {}, shape);
    expect_backward_matches(p, Causal{}, between(SoftCap{2}, bias, SoftCap{3}), {}, {}, shape);
  }
}

}  // namespace
}  // namespace rapt::test
