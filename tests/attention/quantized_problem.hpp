// Inputs of an attention call over keys and values of 8-bit codes.
#pragma once

#include "attention/any_mask.hpp"
#include "attention/problem.hpp"
#include "rapt/core/quantize.hpp"

namespace rapt::test {

/// Normal numbers, quantised a row at a time.
template <class S>
struct Rows {
  Tensor<S, 4> codes;
  Tensor<float, 3> scales;

  Rows(Shape<4> shape, unsigned seed) : codes(shape), scales({shape[0], shape[1], shape[2]}) {
    quantize_rows(codes, scales, normal<float>(shape, seed));
  }
  /// What they stand for.
  Tensor<float, 4> values() const {
    Tensor<float, 4> x(codes.shape());
    const auto s = scales.view();
    dequantize(x, codes,
               TensorView<const float, 4>(s.data(), {s.extent(0), s.extent(1), s.extent(2), 1}));
    return x;
  }
};

template <class T, class S>
struct Cached {
  using Options = AttentionOptions<Tensor<T, 4>>;
  Tensor<T, 4> q;
  Rows<S> k, v;

  explicit Cached(const Sizes& s, unsigned seed = 1)
      : q(normal<T>(Shape<4>{s.batch, s.q_len, s.heads, s.head_dim}, seed)),
        k({s.batch, s.kv_len, s.kv_heads, s.head_dim}, seed + 1000),
        v({s.batch, s.kv_len, s.kv_heads, s.values()}, seed + 2000) {}

  template <class Score = Identity>
  void expect_matches(AnyMask mask = Causal{}, Score score = {}, Options options = {},
                      bool probabilities = false, double factor = 1) const {
    options.k_scales = k.scales;
    options.v_scales = v.scales;
    expect_matches_oracle(q, k.codes, v.codes, mask, score, options, probabilities, factor);
  }
};

}  // namespace rapt::test
