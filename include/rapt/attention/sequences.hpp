// How a call of attention() falls into sequences: the rows of a batch, or stretches of packed
// tokens. Plain arithmetic on AttentionArgs, shared by the checks and by the kernels of every
// backend.
#pragma once

#include "rapt/attention/options.hpp"
#include "rapt/core/config.hpp"
#include "rapt/mask/concept.hpp"

namespace rapt::detail {

/// Keys that one row may have: the extent of k, or what its row of the block table can address.
template <class Args>
index_t key_capacity(const Args& args) {
  return args.block_table ? args.block_table.extent(1) * args.k.extent(1) : args.k.extent(1);
}

template <class Args>
index_t sequence_count(const Args& args) {
  return args.cu_seqlens_q ? args.cu_seqlens_q.extent(0) - 1 : args.q.extent(0);
}

/// One sequence of a call: a row of the batch, or a stretch of packed tokens.
struct AttentionSequence {
  index_t b;                 // index that masks and scores see; row of block_table
  index_t row;               // batch index into q, out, logsumexp, positions and unpaged k, v
  index_t q_begin, q_len;    // rows [q_begin, q_begin + q_len) of q
  index_t kv_begin, kv_len;  // keys [kv_begin, kv_begin + kv_len) of k and v
};

template <class Args>
AttentionSequence sequence_at(const Args& args, index_t s) {
  AttentionSequence seq{s, s, 0, args.q.extent(1), 0, args.k.extent(1)};
  if (args.cu_seqlens_q) {
    seq.row = 0;
    seq.q_begin = args.cu_seqlens_q(s);
    seq.q_len = args.cu_seqlens_q(s + 1) - seq.q_begin;
  }
  if (args.cu_seqlens_k) {
    seq.kv_begin = args.cu_seqlens_k(s);
    seq.kv_len = args.cu_seqlens_k(s + 1) - seq.kv_begin;
  } else if (args.kv_lengths) {
    seq.kv_len = args.kv_lengths(s);
  }
  return seq;
}

template <class Args>
CallShape call_shape_of(const Args& args, const AttentionSequence& seq) {
  return {.q_len = seq.q_len,
          .kv_len = seq.kv_len,
          .batch = sequence_count(args),
          .heads = args.q.extent(2)};
}

/// Do the sequences of this call differ in length? Then masks and scores are bound to each.
template <class Args>
bool lengths_differ(const Args& args) {
  return args.cu_seqlens_q || args.kv_lengths;
}

}  // namespace rapt::detail
