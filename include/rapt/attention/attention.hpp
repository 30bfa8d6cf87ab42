// Attention: each query reads the values of the keys it sees, weighted by a softmax of its scores.
//
//   s_ij = score(scale * dot(Q[b,i,h,:], K[b,j,g,:]), b, h, p_i, j)       g = h / (heads /
//   kv_heads) O[b,i,h,:] = sum_j exp(s_ij - L_i) V[b,j,g,:],   L_i = log sum_j exp(s_ij)     j
//   visible to i
//
//   out      [batch, q_len, heads, value_dim]        k  [batch, kv_len, kv_heads, head_dim]
//   q        [batch, q_len, heads, head_dim]         v  [batch, kv_len, kv_heads, value_dim]
//
// Query i stands at position p_i = kv_len - q_len + i. What it sees is the mask's answer (Causal by
// default; mask/mask.hpp), what happens to a score before the softmax the modifier's
// (mask/score.hpp); lambdas are either. Everything else is an option (attention/options.hpp):
//
//   attention(out, q, k, v);
//   attention(out, q, k, v, Causal{} & SlidingWindow{512});
//   attention(out, q, k, v, Causal{}, SoftCap{50}, {.scale = 0.125f, .logsumexp = lse});
//
// A query that sees no key yields zeros and a logsumexp of minus infinity; the logsumexp with a
// sink is then the sink logit. What a mask hides is never multiplied: a NaN in a hidden value stays
// there. All views may be strided as long as their last axis is contiguous. Out may not overlap an
// input. Ragged calls write only the rows that cu_seqlens cover.
//
// Errors, all before anything is written: ShapeError for extents that do not fit, ValueError for
// lengths, tables and combinations of options that do not.
//
// Sources: Vaswani et al. 2017, arXiv:1706.03762; grouped heads: Ainslie et al. 2023,
// arXiv:2305.13245; sink logits: gpt-oss model card, arXiv:2508.10925. Kernel:
// cpu/attention_forward.hpp.
#pragma once

#include <cmath>
#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <utility>

#include "rapt/attention/options.hpp"
#include "rapt/attention/sequences.hpp"
#include "rapt/core/backend.hpp"
#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"

namespace rapt {

namespace detail {

/// A piece of an error's text. Made out of line, because checks are many and run once a call.
struct TextPiece {
  std::string text;
  [[gnu::noinline, gnu::cold]] TextPiece(const char* s) : text(s) {}
  [[gnu::noinline, gnu::cold]] TextPiece(index_t n) : text(std::to_string(n)) {}
  template <std::size_t Rank>
  [[gnu::noinline, gnu::cold]] TextPiece(const Shape<Rank>& shape) : text(shape_text(shape)) {}
};

/// Throws Error "attention: <pieces>".
template <class Error>
[[noreturn, gnu::noinline, gnu::cold]] inline void refuse_attention(
    std::initializer_list<TextPiece> pieces) {
  std::string message = "attention: ";
  for (const TextPiece& piece : pieces) message += piece.text;
  throw Error(message);
}

template <std::size_t Rank>
[[gnu::noinline]] void check_attention_shape(const char* argument, const Shape<Rank>& got,
                                             const Shape<Rank>& wanted, const char* axes) {
  if (got != wanted)
    refuse_attention<ShapeError>({argument, " is ", got, ", expected ", wanted, " = ", axes});
}

template <class View>
void check_last_axis(const char* argument, const View& view) {
  constexpr std::size_t kLast = View::kRank - 1;
  if (view.extent(kLast) > 1 && view.stride(kLast) != 1)
    refuse_attention<ShapeError>(
        {argument, " has strides ", view.strides(), ", expected a last stride of 1"});
}

/// Two views that are each without gaps and share memory; or that begin at one address.
template <class A, class B>
bool overlap(const A& a, const B& b) {
  if (a.empty() || b.empty()) return false;
  if (static_cast<const void*>(a.data()) == static_cast<const void*>(b.data())) return true;
  if (!a.is_contiguous() || !b.is_contiguous()) return false;
  const auto begin_a = reinterpret_cast<std::uintptr_t>(a.data());
  const auto begin_b = reinterpret_cast<std::uintptr_t>(b.data());
  const auto end_a = begin_a + static_cast<std::uintptr_t>(a.size()) * sizeof(*a.data());
  const auto end_b = begin_b + static_cast<std::uintptr_t>(b.size()) * sizeof(*b.data());
  return begin_a < end_b && begin_b < end_a;
}

template <class Args>
void check_attention_shapes(const Args& args) {
  const auto &q = args.q, &k = args.k, &v = args.v;
  const auto& out = args.out;
  const index_t batch = q.extent(0), q_len = q.extent(1), heads = q.extent(2), dim = q.extent(3);
  const index_t kv_heads = k.extent(2), value_dim = v.extent(3);
  if (dim < 1)
    refuse_attention<ShapeError>(
        {"q is ", q.shape(),
         ", expected a head_dim of at least 1 = [batch, q_len, heads, head_dim]"});
  if (args.block_table) {
    check_attention_shape("k", k.shape(), {k.extent(0), k.extent(1), kv_heads, dim},
                          "[blocks, block_size, kv_heads, head_dim]");
    check_attention_shape("v", v.shape(), {k.extent(0), k.extent(1), kv_heads, value_dim},
                          "[blocks, block_size, kv_heads, value_dim]");
  } else {
    check_attention_shape("k", k.shape(), {batch, k.extent(1), kv_heads, dim},
                          "[batch, kv_len, kv_heads, head_dim]");
    check_attention_shape("v", v.shape(), {batch, k.extent(1), kv_heads, value_dim},
                          "[batch, kv_len, kv_heads, value_dim]");
  }
  if (heads > 0 && (kv_heads < 1 || heads % kv_heads != 0))
    refuse_attention<ShapeError>({"q has ", heads, " heads and k has ", kv_heads,
                                  " kv_heads, expected heads to be a multiple of kv_heads"});
  check_attention_shape("out", out.shape(), {batch, q_len, heads, value_dim},
                        "[batch, q_len, heads, value_dim]");
  check_last_axis("out", out);
  check_last_axis("q", q);
  check_last_axis("k", k);
  check_last_axis("v", v);
  const char* const shared = overlap(out, q)   ? "q"
                             : overlap(out, k) ? "k"
                             : overlap(out, v) ? "v"
                                               : nullptr;
  if (shared != nullptr)
    refuse_attention<ValueError>({"out overlaps ", shared, ", expected memory of its own"});
}

/// Lengths and tables in a GPU's memory are not read back to be checked: a call must not wait.
template <class B>
inline constexpr bool values_are_checked = std::same_as<B, Cpu>;

/// Prefix sums that start at 0, never fall and end inside `total`.
template <class View>
void check_cu_seqlens(const char* name, const View& cu, index_t total, const char* total_name) {
  if (cu.extent(0) < 1)
    refuse_attention<ShapeError>(
        {name, " is ", cu.shape(), ", expected at least [1] = [sequences + 1]"});
  if constexpr (!values_are_checked<typename View::backend_type>) return;
  if (cu(0) != 0) refuse_attention<ValueError>({name, "[0] is ", cu(0), ", expected 0"});
  for (index_t s = 1; s < cu.extent(0); ++s)
    if (cu(s) < cu(s - 1) || cu(s) > total)
      refuse_attention<ValueError>({name, "[", s, "] is ", cu(s), ", expected ", cu(s - 1), " to ",
                                    total, " = ", total_name});
}

template <class Args>
void check_attention_options(const Args& args, bool tables_by_row) {
  const index_t batch = args.q.extent(0), q_len = args.q.extent(1), heads = args.q.extent(2);
  const index_t capacity = key_capacity(args);
  if (args.sink_logits)
    check_attention_shape("sink_logits", args.sink_logits.shape(), {heads}, "[heads]");
  if (args.logsumexp)
    check_attention_shape("logsumexp", args.logsumexp.shape(), {batch, heads, q_len},
                          "[batch, heads, q_len]");
  if (args.logsumexp_with_sink)
    check_attention_shape("logsumexp_with_sink", args.logsumexp_with_sink.shape(),
                          {batch, heads, q_len}, "[batch, heads, q_len]");
  if (args.probabilities)
    check_attention_shape("probabilities", args.probabilities.shape(),
                          {batch, heads, q_len, capacity}, "[batch, heads, q_len, kv_len]");
  if (args.q_positions)
    check_attention_shape("q_positions", args.q_positions.shape(), {batch, q_len},
                          "[batch, q_len]");
  if (args.kv_positions)
    check_attention_shape("kv_positions", args.kv_positions.shape(), {batch, capacity},
                          "[batch, kv_len]");
  if (tables_by_row && args.q_positions)
    refuse_attention<ValueError>(
        {"q_positions is given, expected none beside a mask or score that is read by the "
         "row of the call (BlockSparse, DenseMask, AdditiveBias)"});

  if (args.cu_seqlens_q) {
    if (batch != 1)
      refuse_attention<ShapeError>(
          {"q is ", args.q.shape(), ", expected a batch of 1 with cu_seqlens_q"});
    check_cu_seqlens("cu_seqlens_q", args.cu_seqlens_q, q_len, "packed queries");
    if (args.block_table) {
      if (args.cu_seqlens_k)
        refuse_attention<ValueError>({"cu_seqlens_k is given, expected none beside block_table"});
    } else {
      if (!args.cu_seqlens_k)
        refuse_attention<ValueError>({"cu_seqlens_k is absent, expected one beside cu_seqlens_q"});
      check_attention_shape("cu_seqlens_k", args.cu_seqlens_k.shape(), args.cu_seqlens_q.shape(),
                            "[sequences + 1]");
      check_cu_seqlens("cu_seqlens_k", args.cu_seqlens_k, args.k.extent(1), "packed keys");
      if (args.kv_lengths)
        refuse_attention<ValueError>({"kv_lengths is given, expected none beside cu_seqlens_k"});
    }
  } else if (args.cu_seqlens_k) {
    refuse_attention<ValueError>({"cu_seqlens_q is absent, expected one beside cu_seqlens_k"});
  }

  constexpr bool kChecked = values_are_checked<decltype(args.q.backend())>;
  const index_t rows = sequence_count(args);
  if (args.kv_lengths) {
    check_attention_shape("kv_lengths", args.kv_lengths.shape(), {rows}, "[batch]");
    for (index_t b = 0; kChecked && b < rows; ++b)
      if (args.kv_lengths(b) < 0 || args.kv_lengths(b) > capacity)
        refuse_attention<ValueError>({"kv_lengths[", b, "] is ", args.kv_lengths(b),
                                      ", expected 0 to ", capacity, " = kv_len"});
  }
  if (args.block_table) {
    if (!args.kv_lengths)
      refuse_attention<ValueError>({"kv_lengths is absent, expected one beside block_table"});
    check_attention_shape("block_table", args.block_table.shape(),
                          {rows, args.block_table.extent(1)}, "[batch, max_blocks]");
    const index_t blocks = args.k.extent(0), size = args.k.extent(1);
    for (index_t b = 0; kChecked && b < rows; ++b)
      for (index_t used = 0; used * size < args.kv_lengths(b); ++used)
        if (args.block_table(b, used) < 0 || args.block_table(b, used) >= blocks)
          refuse_attention<ValueError>({"block_table[", b, ", ", used, "] is ",
                                        args.block_table(b, used), ", expected 0 to ", blocks - 1,
                                        " = a block of the pool"});
  }
}

}  // namespace detail

/// See the top of this file. Q, K, V and Out share one element type and one backend.
template <WritableTensorLike<4> Out, TensorLike<4> Q, TensorLike<4> K, TensorLike<4> V,
          AttentionMask Mask = Causal, ScoreModifier Score = Identity>
void attention(Out&& out, const Q& q, const K& k, const V& v, Mask mask = {}, Score score = {},
               AttentionOptions<Q> options = {}) {
  using T = element_t<Q>;
  using B = backend_t<Q>;
  static_assert(Element<T>, "attention computes with float, double, half or bfloat16");
  static_assert(std::same_as<element_t<K>, T> && std::same_as<element_t<V>, T> &&
                    std::same_as<element_t<Out>, T>,
                "out, q, k and v have one element type");
  static_assert(std::same_as<backend_t<K>, B> && std::same_as<backend_t<V>, B> &&
                    std::same_as<backend_t<Out>, B>,
                "out, q, k and v live on one backend");
  AttentionArgs<T, B> args;
  static_cast<detail::AttentionOptionsOf<T, B>&>(args) = options;
  args.out = as_view(out);
  args.q = as_view(q);
  args.k = as_view(k);
  args.v = as_view(v);
  detail::check_attention_shapes(args);
  detail::check_attention_options(args, reads_call_row<Mask> || reads_call_row<Score>);
  if (args.scale == 0 || args.scale != args.scale)
    args.scale = accumulate_t<T>(1) / std::sqrt(static_cast<accumulate_t<T>>(q.extent(3)));

  CallShape call{.q_len = q.extent(1),
                 .kv_len = detail::key_capacity(args),
                 .batch = detail::sequence_count(args),
                 .heads = q.extent(2)};
  if constexpr (detail::values_are_checked<B>) {
    // Binding checks tables against lengths. Where sequences differ in length the kernel binds
    // again, to each; here it is done once for the errors, before anything is written.
    if (detail::lengths_differ(args)) {
      for (index_t s = call.batch; s-- > 0;) {
        call = detail::call_shape_of(args, detail::sequence_at(args, s));
        (void)bind_call(mask, call);
        (void)bind_call(score, call);
      }
    }
  }
  if (args.out.empty() && !args.logsumexp && !args.logsumexp_with_sink) return;
  BackendTraits<B>::attention_forward(args.out.backend(), args, bind_call(mask, call),
                                      bind_call(score, call));
}

}  // namespace rapt

#include "rapt/cpu/attention_forward.hpp"
