// The inner loop of every dense product on the CPU: sums that stay in registers.
//
//   sums[i, v] += A[i, 0] B[0, v] + A[i, 1] B[1, v] + ...            in this order
//
//                 B: rows of kVecs vectors
//               +---------+---------+
//        A      | B[k, 0] | B[k, 1] |      each element of A is broadcast once,
//      A[0, k]  |  sums   |  sums   |      each vector of B loaded once for all rows
//       ...     |         |         |
//      A[5, k]  |  sums   |  sums   |
//               +---------+---------+
//
// What a step costs beside its multiply-adds is instructions, and these are scarce where two
// threads share a core: 6 x 2 sums of AVX2 take 6 cycles for 12 multiply-adds, and half of a Zen 3
// issues 18 instructions in that time. So nothing but loads may stand beside them: several steps
// share what moves the pointers, rows are addressed in threes (p, p + step, p + 2 step are one
// register and its index), and a sum is never moved (fma_in_place).
#pragma once

#include <algorithm>
#include <type_traits>

#include "rapt/core/config.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {
namespace detail {

/// How A lies: element (i, k) at a[i * step + k], or [k * step + i].
enum class Lie { by_rows, by_columns };

/// How many rows of B are multiplied at a time, and how many rows before that its lines are asked
/// for (0: not at all).
template <int kSteps, index_t kAhead = 0>
struct RegisterSteps {
  static constexpr int steps = kSteps;
  static constexpr index_t ahead = kAhead;
};

/// sums += A B, depth rows of B deep, at b + k * b_step, vectors side by side. B may be stored in a
/// smaller type than it is multiplied in. E: the type of the sums, or bfloat16; then B is pairs.
/// Step: index_t, or a constant of it.
template <Lie kLie, class Steps, class V, int kRows, int kVecs, class E, class Stored, class Step>
[[gnu::always_inline]] inline void add_products(V (&sums)[kRows][kVecs], const E* a, index_t a_step,
                                                const Stored* b, Step b_step, index_t depth) {
  constexpr bool kPairs = !std::is_same_v<E, typename V::value_type>;
  using U = Vec<std::conditional_t<kPairs, Bfloat16Pair, E>>;
  constexpr index_t kElements = kPairs ? 2 : 1;  // of A, that one row of B is multiplied with
  constexpr bool kByRows = kLie == Lie::by_rows;
  constexpr int kThrees = kByRows ? (kRows + 2) / 3 : 1;
  constexpr int kLine = std::max<int>(1, 64 / static_cast<int>(sizeof(Stored) * V::kLanes));
  const E* of[kThrees];
#pragma GCC unroll 4
  for (int t = 0; t < kThrees; ++t) of[t] = a + 3 * t * a_step;
  const auto step = [&](index_t k) {
    U bk[kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) bk[v] = U::load(b + v * V::kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      const U aik = U::broadcast(kByRows ? of[i / 3][i % 3 * a_step + k * kElements] : of[0][i]);
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) sums[i][v] = fma_in_place(aik, bk[v], sums[i][v]);
    }
    if constexpr (Steps::ahead > 0) {
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; v += kLine)
        __builtin_prefetch(b + Steps::ahead * b_step + v * V::kLanes);
    }
    b += b_step;
    if constexpr (!kByRows) of[0] += a_step;
  };
  const auto advance = [&](index_t k) {
#pragma GCC unroll 4
    for (int t = 0; kByRows && t < kThrees; ++t) of[t] += k * kElements;
  };
  const index_t rest = depth % Steps::steps;
  const Stored* const end = b + (depth - rest) * b_step;
  while (b != end) {
#pragma GCC unroll 4
    for (index_t k = 0; k < Steps::steps; ++k) step(k);
    advance(Steps::steps);
  }
  for (index_t k = 0; k < rest; ++k) {
    step(0);
    advance(1);
  }
}

}  // namespace detail
}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
