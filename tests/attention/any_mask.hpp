// Masks and scores by the name of one type, so that a test of many compiles one kernel.
#pragma once

#include <functional>

#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

namespace rapt::test {

struct AnyMask {
  std::function<bool(index_t, index_t, index_t, index_t)> visible;
  std::function<TileVerdict(index_t, index_t, PositionRange, PositionRange)> judge;
  std::function<AnyMask(const CallShape&)> bound;

  // In this order: whether AnyMask is a mask depends on its constructors.
  template <class M>
  requires(!std::same_as<M, AnyMask> && AttentionMask<M>) AnyMask(M mask)
      : visible(mask),
        judge([=](index_t b, index_t h, PositionRange q, PositionRange kv) {
          return rapt::classify(mask, b, h, q, kv);
        }),
        bound([=](const CallShape& call) { return AnyMask(bind_call(mask, call)); }) {}

  bool operator()(index_t b, index_t h, index_t q, index_t kv) const {
    return visible(b, h, q, kv);
  }
  TileVerdict classify(index_t b, index_t h, PositionRange q, PositionRange kv) const {
    return judge(b, h, q, kv);
  }
  AnyMask bind(const CallShape& call) const { return bound(call); }
};

struct AnyScore {
  using Number = Dual<double>;
  std::function<double(double, index_t, index_t, index_t, index_t)> value;
  std::function<Number(Number, index_t, index_t, index_t, index_t)> dual;

  // In this order: whether AnyScore is a modifier depends on its constructors.
  template <class F>
  requires(!std::same_as<F, AnyScore> && ScoreModifier<F>) AnyScore(F score)
      : value(score), dual(score) {}

  template <class S>
  S operator()(S s, index_t b, index_t h, index_t q, index_t kv) const {
    if constexpr (std::same_as<S, Number>)
      return dual(s, b, h, q, kv);
    else
      return static_cast<S>(value(static_cast<double>(s), b, h, q, kv));
  }
};
static_assert(DifferentiableScore<AnyScore, double>);

}  // namespace rapt::test
