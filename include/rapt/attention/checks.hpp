// What attention() and attention_backward() ask of a call before anything is written. Each message
// begins with the operation's name and names the argument, its value and what was expected.
#pragma once

#include <concepts>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "rapt/attention/options.hpp"
#include "rapt/attention/sequences.hpp"
#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt::detail {

/// A piece of an error's text. Made out of line, because checks are many and run once a call.
struct TextPiece {
  std::string text;
  [[gnu::noinline, gnu::cold]] TextPiece(const char* s) : text(s) {}
  [[gnu::noinline, gnu::cold]] TextPiece(index_t n) : text(std::to_string(n)) {}
  template <std::size_t Rank>
  [[gnu::noinline, gnu::cold]] TextPiece(const Shape<Rank>& shape) : text(shape_text(shape)) {}
};

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

/// Lengths and tables in a GPU's memory are not read back to be checked: a call must not wait.
template <class B>
inline constexpr bool values_are_checked = std::same_as<B, Cpu>;

/// The checks of one call, by the name of its operation.
struct AttentionChecks {
  const char* operation;

  /// Throws Error "<operation>: <pieces>".
  template <class Error>
  [[noreturn, gnu::noinline, gnu::cold]] void refuse(
      std::initializer_list<TextPiece> pieces) const {
    std::string message = operation;
    message += ": ";
    for (const TextPiece& piece : pieces) message += piece.text;
    throw Error(message);
  }

  template <std::size_t Rank>
  [[gnu::noinline]] void shape(const char* argument, const Shape<Rank>& got,
                               const Shape<Rank>& wanted, const char* axes) const {
    if (got != wanted)
      refuse<ShapeError>({argument, " is ", got, ", expected ", wanted, " = ", axes});
  }

  template <class View>
  void last_axis(const char* argument, const View& view) const {
    constexpr std::size_t kLast = View::kRank - 1;
    if (view.extent(kLast) > 1 && view.stride(kLast) != 1)
      refuse<ShapeError>(
          {argument, " has strides ", view.strides(), ", expected a last stride of 1"});
  }

  /// q, k and v fit each other.
  template <class Args>
  void inputs(const Args& args) const {
    const auto& q = args.q;
    const auto& k = args.k;
    const auto& v = args.v;
    const index_t batch = q.extent(0), heads = q.extent(2), dim = q.extent(3);
    const index_t kv_heads = k.extent(2), value_dim = v.extent(3);
    if (dim < 1)
      refuse<ShapeError>({"q is ", q.shape(),
                          ", expected a head_dim of at least 1 = [batch, q_len, heads, head_dim]"});
    if (args.block_table) {
      shape("k", k.shape(), {k.extent(0), k.extent(1), kv_heads, dim},
            "[blocks, block_size, kv_heads, head_dim]");
      shape("v", v.shape(), {k.extent(0), k.extent(1), kv_heads, value_dim},
            "[blocks, block_size, kv_heads, value_dim]");
    } else {
      shape("k", k.shape(), {batch, k.extent(1), kv_heads, dim},
            "[batch, kv_len, kv_heads, head_dim]");
      shape("v", v.shape(), {batch, k.extent(1), kv_heads, value_dim},
            "[batch, kv_len, kv_heads, value_dim]");
    }
    if (heads > 0 && (kv_heads < 1 || heads % kv_heads != 0))
      refuse<ShapeError>({"q has ", heads, " heads and k has ", kv_heads,
                          " kv_heads, expected heads to be a multiple of kv_heads"});
    last_axis("q", q);
    last_axis("k", k);
    last_axis("v", v);
  }

  /// The scales of `codes` (k or v) lie as its rows do, and only codes have them.
  template <class Scales, class Codes, class Args>
  void scales(const char* name, const Scales& given, const char* of, const Codes& codes,
              const Args& args) const {
    if (!given) return;
    if constexpr (std::same_as<typename Args::Stored, typename Args::Element>) {
      refuse<ValueError>({name, " is ", given.shape(), ", expected none with a ", of,
                          " of q's element type: scales are those of 8-bit codes"});
    } else {
      shape(name, given.shape(), {codes.extent(0), codes.extent(1), codes.extent(2)},
            args.block_table ? "[blocks, block_size, kv_heads]" : "[batch, kv_len, kv_heads]");
    }
  }

  /// What is written has memory of its own.
  template <class Written, class Read>
  void apart(const char* written, const Written& to, const char* read, const Read& from) const {
    if (overlap(to, from))
      refuse<ValueError>({written, " overlaps ", read, ", expected memory of its own"});
  }

  /// Prefix sums that start at 0, never fall and end inside `total`.
  template <class View>
  void cu_seqlens(const char* name, const View& cu, index_t total, const char* total_name) const {
    if (cu.extent(0) < 1)
      refuse<ShapeError>({name, " is ", cu.shape(), ", expected at least [1] = [sequences + 1]"});
    if constexpr (!values_are_checked<typename View::backend_type>) return;
    if (cu(0) != 0) refuse<ValueError>({name, "[0] is ", cu(0), ", expected 0"});
    for (index_t s = 1; s < cu.extent(0); ++s)
      if (cu(s) < cu(s - 1) || cu(s) > total)
        refuse<ValueError>({name, "[", s, "] is ", cu(s), ", expected ", cu(s - 1), " to ", total,
                            " = ", total_name});
  }

  /// Sinks, positions, lengths and tables.
  template <class Args>
  void options(const Args& args, bool tables_by_row) const {
    const index_t batch = args.q.extent(0), q_len = args.q.extent(1), heads = args.q.extent(2);
    const index_t capacity = key_capacity(args);
    if (args.sink_logits) shape("sink_logits", args.sink_logits.shape(), {heads}, "[heads]");
    if (args.logsumexp)
      shape("logsumexp", args.logsumexp.shape(), {batch, heads, q_len}, "[batch, heads, q_len]");
    if (args.logsumexp_with_sink)
      shape("logsumexp_with_sink", args.logsumexp_with_sink.shape(), {batch, heads, q_len},
            "[batch, heads, q_len]");
    if (args.q_positions)
      shape("q_positions", args.q_positions.shape(), {batch, q_len}, "[batch, q_len]");
    if (args.kv_positions)
      shape("kv_positions", args.kv_positions.shape(), {batch, capacity}, "[batch, kv_len]");
    if (tables_by_row && args.q_positions)
      refuse<ValueError>(
          {"q_positions is given, expected none beside a mask or score that is read by the "
           "row of the call (BlockSparse, DenseMask, AdditiveBias)"});

    if (args.cu_seqlens_q) {
      if (batch != 1)
        refuse<ShapeError>({"q is ", args.q.shape(), ", expected a batch of 1 with cu_seqlens_q"});
      cu_seqlens("cu_seqlens_q", args.cu_seqlens_q, q_len, "packed queries");
      if (args.block_table) {
        if (args.cu_seqlens_k)
          refuse<ValueError>({"cu_seqlens_k is given, expected none beside block_table"});
      } else {
        if (!args.cu_seqlens_k)
          refuse<ValueError>({"cu_seqlens_k is absent, expected one beside cu_seqlens_q"});
        shape("cu_seqlens_k", args.cu_seqlens_k.shape(), args.cu_seqlens_q.shape(),
              "[sequences + 1]");
        cu_seqlens("cu_seqlens_k", args.cu_seqlens_k, args.k.extent(1), "packed keys");
        if (args.kv_lengths)
          refuse<ValueError>({"kv_lengths is given, expected none beside cu_seqlens_k"});
      }
    } else if (args.cu_seqlens_k) {
      refuse<ValueError>({"cu_seqlens_q is absent, expected one beside cu_seqlens_k"});
    }

    constexpr bool kChecked = values_are_checked<decltype(args.q.backend())>;
    const index_t rows = sequence_count(args);
    if (args.kv_lengths) {
      shape("kv_lengths", args.kv_lengths.shape(), {rows}, "[batch]");
      for (index_t b = 0; kChecked && b < rows; ++b)
        if (args.kv_lengths(b) < 0 || args.kv_lengths(b) > capacity)
          refuse<ValueError>({"kv_lengths[", b, "] is ", args.kv_lengths(b), ", expected 0 to ",
                              capacity, " = kv_len"});
    }
    if (args.block_table) {
      if (!args.kv_lengths)
        refuse<ValueError>({"kv_lengths is absent, expected one beside block_table"});
      shape("block_table", args.block_table.shape(), {rows, args.block_table.extent(1)},
            "[batch, max_blocks]");
      const index_t blocks = args.k.extent(0), size = args.k.extent(1);
      for (index_t b = 0; kChecked && b < rows; ++b)
        for (index_t used = 0; used * size < args.kv_lengths(b); ++used)
          if (args.block_table(b, used) < 0 || args.block_table(b, used) >= blocks)
            refuse<ValueError>({"block_table[", b, ", ", used, "] is ", args.block_table(b, used),
                                ", expected 0 to ", blocks - 1, " = a block of the pool"});
    }
  }
};

/// A mask and a score modifier as the call needs them. Binding checks tables against lengths. Where
/// sequences differ in length the kernel binds again, to each; here it is done once for the errors,
/// before anything is written. Returns the shape that the call itself is bound to.
template <class Args, class Mask, class Score>
CallShape checked_call_shape(const Args& args, const Mask& mask, const Score& score) {
  CallShape call{.q_len = args.q.extent(1),
                 .kv_len = key_capacity(args),
                 .batch = sequence_count(args),
                 .heads = args.q.extent(2)};
  if constexpr (values_are_checked<decltype(args.q.backend())>) {
    if (lengths_differ(args)) {
      for (index_t s = call.batch; s-- > 0;) {
        call = call_shape_of(args, sequence_at(args, s));
        (void)bind_call(mask, call);
        (void)bind_call(score, call);
      }
    }
  }
  return call;
}

}  // namespace rapt::detail
