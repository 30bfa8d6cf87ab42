// Decoding reads keys that come from memory token by token, those that are near head by head: the
// bits are the same, product by product and call by call.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "attention/quantized_problem.hpp"
#include "support/bfloat16_pairs.hpp"
#include "support/int8_tiles.hpp"

namespace rapt::test {
namespace {

using cpu::detail::kDecodeKeys;

template <class T, class Stored_, class Unit,
          class Product_ = cpu::detail::VectorDecode<T, Stored_, Unit>>
struct Kind {
  using Element = T;
  using Stored = Stored_;
  using Product = Product_;
};

/// int8 in matrix registers, if the machine has the vectors around them.
template <class T, class Q = cpu::Quads>
auto int8_tiles() {
  if constexpr (cpu::detail::kDecodesInt8<Q>)
    return Kind<T, std::int8_t, float, cpu::detail::AmxInt8Decode<T, Q, EmulatedQuads>>{};
  else
    return Kind<T, std::int8_t, float>{};
}

template <class Kind>
struct DecodeOrder : testing::Test {};
using Kinds =
    testing::Types<Kind<float, float, float>, Kind<double, double, double>, Kind<half, half, float>,
                   Kind<bfloat16, bfloat16, float>, Kind<bfloat16, bfloat16, cpu::Bfloat16Pair>,
                   Kind<float, std::int8_t, float>, Kind<half, float8_e4m3, float>,
                   decltype(int8_tiles<float>()), decltype(int8_tiles<half>())>;
TYPED_TEST_SUITE(DecodeOrder, Kinds);

/// Numbers, or codes.
template <class S>
Tensor<S, 4> rows_of(Shape<4> shape, unsigned seed) {
  if constexpr (QuantizedElement<S>) {
    Tensor<S, 4> codes(shape);
    Tensor<float, 3> scales({shape[0], shape[1], shape[2]});
    quantize_rows(codes, scales, normal<float>(shape, seed));
    return codes;
  } else {
    return normal<S>(shape, seed);
  }
}

/// Scores and weighed values of `heads` heads, `rows` rows each, and n keys, by both ways.
template <class Kind>
void expect_the_same_bits(index_t rows, index_t heads, index_t dim, index_t value_dim, index_t n,
                          bool pattern) {
  SCOPED_TRACE(testing::Message() << rows << " rows, " << heads << " heads, dims " << dim << "/"
                                  << value_dim << ", " << n << " keys, " << pattern);
  using T = typename Kind::Element;
  using S = typename Kind::Stored;
  using A = accumulate_t<T>;
  using Product = typename Kind::Product;
  Scratch<Cpu> scratch;
  // Sums may be the product's own until it is done.
  Product product(scratch, heads, rows, dim, value_dim),
      in_order(scratch, heads, rows, dim, value_dim);
  const auto q = normal<T>(Shape<3>{heads, rows, dim}, 1);
  for (index_t h = 0; h < heads; ++h)
    for (index_t r = 0; r < rows; ++r) {
      product.set_query(h, r, &q(h, r, 0), A(0.5));
      in_order.set_query(h, r, &q(h, r, 0), A(0.5));
    }
  const auto k = rows_of<S>({1, n, heads, dim}, 2);
  const auto v = rows_of<S>({1, n, heads, value_dim}, 3);
  const S *k_rows[kDecodeKeys], *v_rows[kDecodeKeys];
  for (index_t j = 0; j < kDecodeKeys; ++j) {
    k_rows[j] = &k(0, std::min(j, n - 1), 0, 0);
    v_rows[j] = &v(0, std::min(j, n - 1), 0, 0);
  }

  const index_t score_rows = (rows + 3) / 4 * 4, lanes = cpu::Vec<A>::kLanes;
  const index_t value_step = (value_dim + lanes - 1) / lanes * lanes;
  Tensor<A, 3> s({heads, score_rows, kDecodeKeys}), s_in_order(s.shape());
  Tensor<A, 3> o({heads, rows, value_step}), o_in_order(o.shape());
  for (index_t i = 0; i < s.size(); ++i) s.data()[i] = s_in_order.data()[i] = 0;
  for (index_t i = 0; i < o.size(); ++i) o.data()[i] = o_in_order.data()[i] = 0;
  Tensor<A, 2> factors({heads, rows});
  for (index_t i = 0; i < factors.size(); ++i) factors.data()[i] = i % 2 == 0 ? A(0.3) : A(1);

  cpu::detail::TilePrefetch none;
  for (index_t h = 0; h < heads; ++h) {
    product.begin(h, &o(h, 0, 0));
    in_order.begin(h, &o_in_order(h, 0, 0));
    product.scores(h, &s(h, 0, 0), {k_rows, h * dim, n, pattern ? heads * dim : 0}, none);
  }
  in_order.scores(s_in_order.data(), {k_rows, k_rows, dim, heads, n, 5, pattern ? heads * dim : 0});
  for (index_t h = 0; h < heads; ++h)
    for (index_t r = 0; r < rows; ++r)
      ASSERT_EQ(
          std::memcmp(&s(h, r, 0), &s_in_order(h, r, 0), static_cast<std::size_t>(n) * sizeof(A)),
          0)
          << h << " " << r;

  for (index_t h = 0; h < heads; ++h)
    for (index_t r = 0; r < rows; ++r) {
      std::fill(&s(h, r, 0) + n, &s(h, r, 0) + kDecodeKeys, A(-1e30));
      cpu::detail::soften_row<typename Product::Weight, false>(
          &s(h, r, 0), index_t{0}, (n + lanes - 1) / lanes * lanes,
          *std::max_element(&s(h, r, 0), &s(h, r, 0) + n), A(0.01));
    }
  for (int twice = 0; twice < 2; ++twice) {
    for (index_t h = 0; h < heads; ++h)
      product.accumulate(h, &o(h, 0, 0), factors.data() + h * rows, &s(h, 0, 0), nullptr,
                         {v_rows, h * value_dim, n, pattern ? heads * value_dim : 0}, none);
    in_order.accumulate(o_in_order.data(), rows * value_step, factors.data(), s.data(),
                        {v_rows, v_rows, value_dim, heads, n, 5, pattern ? heads * value_dim : 0});
  }
  for (index_t h = 0; h < heads; ++h) {
    EXPECT_TRUE(product.finish(h, &o(h, 0, 0)));
    EXPECT_TRUE(in_order.finish(h, &o_in_order(h, 0, 0)));
  }
  EXPECT_EQ(std::memcmp(o.data(), o_in_order.data(), o.bytes()), 0);
}

TYPED_TEST(DecodeOrder, HeadByHeadOrTokenByTokenTheBitsAreTheSame) {
  for (const index_t rows : {1, 2, 3, 4, 5, 6, 7, 8, 16})
    for (const auto& [dim, value_dim] : {std::pair<index_t, index_t>{64, 64}, {20, 100}, {5, 33}})
      for (const index_t n : {4, 60, 128})
        for (const bool pattern : {true, false})
          expect_the_same_bits<TypeParam>(rows, 3, dim, value_dim, n, pattern);
  expect_the_same_bits<TypeParam>(4, 2, 128, 256, 128, true);
}

/// Out of every cache, so that the next call finds its keys in memory (where the processor can say
/// so; others take any keys for far).
template <class View>
void leave_caches([[maybe_unused]] const View& x) {
#if defined(__x86_64__)
  const char* const p = reinterpret_cast<const char*>(x.data());
  for (std::size_t n = 0; n < x.bytes(); n += 64) __builtin_ia32_clflush(p + n);
  __builtin_ia32_mfence();
#endif
}

template <class T, class Mask, class Score>
void expect_the_same_far_and_near(const Sizes& sizes, Mask mask, Score score) {
  SCOPED_TRACE(testing::Message() << sizes);
  const Problem<T> p(sizes);
  Tensor<T, 4> far({sizes.batch, sizes.q_len, sizes.heads, sizes.values()}), near(far.shape());
  leave_caches(p.k);
  leave_caches(p.v);
  attention(far, p.q, p.k, p.v, mask, score);
  for (int n = 0; n < 2; ++n) attention(near, p.q, p.k, p.v, mask, score);
  EXPECT_EQ(std::memcmp(far.data(), near.data(), far.bytes()), 0);
  expect_matches_oracle(p, mask, score);
}

std::vector<Sizes> sizes_far_and_near() {
  std::vector<Sizes> all;
  for (const index_t kv_len : {5, 130, 1000})
    for (const auto& [heads, kv_heads] :
         {std::pair<index_t, index_t>{8, 2}, {9, 3}, {16, 2}, {4, 4}, {6, 3}, {10, 2}, {12, 2}})
      all.push_back({.batch = 2,
                     .q_len = 1,
                     .kv_len = kv_len,
                     .heads = heads,
                     .kv_heads = kv_heads,
                     .head_dim = 64,
                     .value_dim = 48});
  return all;
}

TEST(DecodeFrom, MemoryOrCachesTheBitsAreTheSame) {
  for (const Sizes& sizes : sizes_far_and_near()) {
    expect_the_same_far_and_near<float>(sizes, Causal{}, Identity{});
    expect_the_same_far_and_near<bfloat16>(sizes, Causal{} & SlidingWindow{300}, Identity{});
    expect_the_same_far_and_near<half>(sizes, Causal{}, SoftCap{3});
  }
}

TEST(DecodeFrom, MemoryOrCachesTheBitsOfCodesAreTheSame) {
  for (const Sizes& sizes : sizes_far_and_near()) {
    SCOPED_TRACE(testing::Message() << sizes);
    const Cached<float, std::int8_t> call(sizes);
    Tensor<float, 4> far({sizes.batch, 1, sizes.heads, sizes.values()}), near(far.shape());
    const auto attend = [&](Tensor<float, 4>& out) {
      attention(out, call.q, call.k.codes, call.v.codes, Causal{}, Identity{},
                {.k_scales = call.k.scales, .v_scales = call.v.scales});
    };
    leave_caches(call.k.codes);
    leave_caches(call.v.codes);
    attend(far);
    for (int n = 0; n < 2; ++n) attend(near);
    EXPECT_EQ(std::memcmp(far.data(), near.data(), far.bytes()), 0);
  }
}

template <class S>
void expect_logsumexp_without_values() {
  const auto q = normal<float>(Shape<4>{1, 1, 8, 64}, 1);
  const auto k = rows_of<S>({1, 500, 2, 64}, 2), v = rows_of<S>({1, 500, 2, 16}, 3);
  const Tensor<S, 4> no_values({1, 500, 2, 0});
  Tensor<float, 4> out({1, 1, 8, 16}), nothing({1, 1, 8, 0});
  Tensor<float, 3> want({1, 8, 1}), got(want.shape());
  attention(out, q, k, v, Causal{}, Identity{}, {.logsumexp = want});
  for (const bool far : {false, true}) {
    if (far) leave_caches(k);
    attention(nothing, q, k, no_values, Causal{}, Identity{}, {.logsumexp = got});
    EXPECT_EQ(std::memcmp(got.data(), want.data(), got.bytes()), 0) << far;
  }
}

TEST(DecodeFrom, MemoryWhereValuesHaveNoDims) {
  expect_logsumexp_without_values<float>();
  expect_logsumexp_without_values<std::int8_t>();
}

}  // namespace
}  // namespace rapt::test
