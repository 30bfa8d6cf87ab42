// The kernels for machines with dot products of bfloat16 pairs or matrix registers, on either in
// plain loops (support/bfloat16_pairs.hpp): attention/product_cases.hpp, and few rows.
#include <string>
#include <vector>

#include "rapt/attention/attention.hpp"
#include "support/bfloat16_pairs.hpp"

namespace rapt::test {
namespace {

using Element = bfloat16;
enum class Through { dot_products, matrix_registers } through;
std::vector<Through> through_all() { return {Through::dot_products, Through::matrix_registers}; }
std::string name_of(Through by) {
  return by == Through::dot_products ? "DotProducts" : "MatrixRegisters";
}

template <class Args, class Mask, class Score>
void forward(const Args& args, const Mask& mask, const Score& score) {
  using Dot = cpu::VectorProduct<bfloat16, cpu::Bfloat16Pair>;
  if (through == Through::matrix_registers)
    cpu::AttentionForward<Args, Mask, Score, cpu::AmxProduct<EmulatedTiles>>(args, mask, score)
        .run();
  else
    cpu::AttentionForward<Args, Mask, Score, Dot>(args, mask, score).run();
}

}  // namespace
}  // namespace rapt::test

#include "attention/product_cases.hpp"

namespace rapt::test {
namespace {

TEST_P(AttentionProducts, FewRows) {
  unsigned seed = 0;
  for (const index_t q_len : {1, 2, 3})
    for (const auto& [heads, kv_heads] :
         {std::pair<index_t, index_t>{1, 1}, {4, 1}, {6, 2}, {5, 1}})
      for (const auto& [head_dim, value_dim] :
           {std::pair<index_t, index_t>{1, 3}, {8, 32}, {64, 64}, {77, 45}, {130, 128}})
        for (const index_t kv_len : {1, 2, 15, 64, 65, 700}) {
          const Sizes sizes{.q_len = q_len,
                            .kv_len = kv_len,
                            .heads = heads,
                            .kv_heads = kv_heads,
                            .head_dim = head_dim,
                            .value_dim = value_dim};
          SCOPED_TRACE(testing::Message() << sizes);
          const Problem<bfloat16> p(sizes, ++seed);
          expect_matches_oracle(p, Window{40});
          expect_matches_oracle(p, AnyMask{Causal{}}, SoftCap{2.0}, Options{.scale = -0.3f});
          if (HasFatalFailure()) return;
        }
}

// Three and four rows of a head take matrix registers between 64 KiB and 4 MiB of keys and values,
// vectors below and above.
TEST_P(AttentionProducts, FewRowsOfShortAndLongCaches) {
  for (const index_t kv_len : {127, 128, 129, 8191, 8192})
    for (const index_t heads : {6, 8, 10}) {
      const Sizes sizes{
          .q_len = 1, .kv_len = kv_len, .heads = heads, .kv_heads = 2, .head_dim = 64};
      SCOPED_TRACE(testing::Message() << sizes);
      expect_matches_oracle(Problem<bfloat16>(sizes), AnyMask{Causal{}});
    }
}

}  // namespace
}  // namespace rapt::test
