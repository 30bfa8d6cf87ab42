// op sdpa: attention() and its gradient with every mask, score and option of the cases, chosen at
// run time.
#include <optional>

#include "golden_ops/case.hpp"
#include "rapt/attention/attention.hpp"
#include "rapt/attention/backward.hpp"

namespace rapt::golden {
namespace {

/// A mask that is there or not: absent, everything is visible. One composition of these is one
/// instance of the kernel for all cases.
template <AttentionMask M>
struct MaybeMask {
  using composable_mask = void;
  static constexpr bool kReadsCallRow = reads_call_row<M>;
  std::optional<M> mask;

  bool operator()(index_t b, index_t h, index_t q_pos, index_t kv_pos) const {
    return !mask || (*mask)(b, h, q_pos, kv_pos);
  }
  TileVerdict classify(index_t b, index_t h, PositionRange q, PositionRange kv) const {
    return mask ? rapt::classify(*mask, b, h, q, kv) : TileVerdict::full;
  }
  MaybeMask bind(const CallShape& call) const {
    if (!mask) return *this;
    return {bind_call(*mask, call)};
  }
};

/// A score modifier that is there or not.
template <ScoreModifier F>
struct MaybeScore {
  static constexpr bool kReadsCallRow = reads_call_row<F>;
  std::optional<F> score;

  template <class S>
  S operator()(S s, index_t b, index_t h, index_t q_pos, index_t kv_pos) const {
    return score ? static_cast<S>((*score)(s, b, h, q_pos, kv_pos)) : s;
  }
  MaybeScore bind(const CallShape& call) const {
    if (!score) return *this;
    return {bind_call(*score, call)};
  }
};

using Window = decltype(SlidingWindow{1} | SinkTokens{0});

/// Rows of the call that belong to one document, as a table: with kv_lens, row i is not position i.
Tensor<std::int32_t, 4> document_table(const Tensor<std::int32_t, 2>& ids) {
  const index_t batch = ids.extent(0), seq = ids.extent(1);
  Tensor<std::int32_t, 4> table({batch, 1, seq, seq});
  for (index_t b = 0; b < batch; ++b)
    for (index_t i = 0; i < seq; ++i)
      for (index_t j = 0; j < seq; ++j) table(b, 0, i, j) = ids(b, i) == ids(b, j) ? 1 : 0;
  return table;
}

}  // namespace

void run_sdpa(Case& c) {
  const bool varlen = c.setting("varlen", false);
  // Packed tokens [total, heads, dim] are one row of a batch.
  const auto load = [&](const char* name) {
    if (!varlen) return c.input<float, 4>(name);
    const auto& shape = c.shape(name);
    if (shape.size() != 3) throw Failure(std::string(name) + " has not rank 3 with varlen");
    return c.input_as<float>(name, Shape(1, shape[0], shape[1], shape[2]));
  };
  const auto q = load("q"), k = load("k"), v = load("v");
  const index_t batch = q.extent(0), q_len = q.extent(1), heads = q.extent(2);

  MaybeMask<Causal> causal;
  if (c.setting("causal", false)) causal.mask = Causal{};
  MaybeMask<Window> window;
  if (const auto w = c.setting<index_t>("window", 0); w > 0)
    window.mask = SlidingWindow{w} | SinkTokens{c.setting<index_t>("sink_tokens", 0)};
  MaybeMask<BlockSparse<std::int32_t>> blocks;
  Tensor<std::int32_t, 4> block_map, table, document_rows;
  if (c.has("block_mask")) {
    block_map = c.input<std::int32_t, 4>("block_mask");
    blocks.mask = BlockSparse<std::int32_t>{block_map, c.setting<index_t>("block_size")};
  }
  MaybeMask<DenseMask<std::int32_t>> dense, by_document_row;
  if (c.has("mask")) {
    table = c.input<std::int32_t, 4>("mask");
    dense.mask = DenseMask<std::int32_t>{table};
  }
  MaybeMask<SameDocument<>> documents;
  Tensor<std::int32_t, 2> document_ids;
  if (c.has("doc_ids")) {
    document_ids = c.input<std::int32_t, 2>("doc_ids");
    if (c.has("kv_lens")) {
      document_rows = document_table(document_ids);
      by_document_row.mask = DenseMask<std::int32_t>{document_rows};
    } else {
      documents.mask = SameDocument<>{document_ids};
    }
  }

  MaybeScore<SoftCap> softcap;
  if (const double cap = c.setting("softcap", 0.0); cap > 0) softcap.score = SoftCap{cap};
  MaybeScore<Alibi<float>> alibi;
  Tensor<float, 1> slopes;
  if (c.setting("has_alibi", false)) {
    slopes = c.input<float, 1>("alibi_slopes");
    alibi.score = Alibi<float>{slopes};
  }
  MaybeScore<AdditiveBias<float>> bias;
  Tensor<float, 4> bias_table;
  if (c.has("attn_bias")) {
    bias_table = c.input<float, 4>("attn_bias");
    bias.score = AdditiveBias<float>{bias_table};
  }

  AttentionOptions<Tensor<float, 4>> options;
  options.scale = static_cast<float>(c.setting<double>("scale"));
  Tensor<float, 1> sinks;
  if (c.setting("has_sinks", false)) {
    sinks = c.input<float, 1>("sinks");
    options.sink_logits = sinks;
  }
  Tensor<std::int32_t, 1> kv_lengths, cu_seqlens_q, cu_seqlens_k;
  if (c.has("kv_lens")) {
    kv_lengths = c.input<std::int32_t, 1>("kv_lens");
    options.kv_lengths = kv_lengths;
  }
  if (varlen) {
    cu_seqlens_q = c.input<std::int32_t, 1>("cu_seqlens_q");
    cu_seqlens_k = c.input<std::int32_t, 1>("cu_seqlens_k");
    options.cu_seqlens_q = cu_seqlens_q;
    options.cu_seqlens_k = cu_seqlens_k;
  }

  Tensor<float, 4> out({batch, q_len, heads, v.extent(3)});
  Tensor<float, 3> lse({batch, heads, q_len}), lse_with_sink({batch, heads, q_len});
  options.logsumexp = lse;
  options.logsumexp_with_sink = lse_with_sink;
  const auto mask = causal & window & documents & blocks & dense & by_document_row;
  const auto score = then(softcap, alibi, bias);
  attention(out, q, k, v, mask, score, options);

  c.expect("out", out);
  c.expect("lse", lse);
  if (c.has("lse_with_sink")) c.expect("lse_with_sink", lse_with_sink);

  if (!c.has("dout")) return;
  const auto dout = load("dout");
  Tensor<float, 4> dq(q.shape()), dk(k.shape()), dv(v.shape());
  Tensor<float, 1> dsinks({heads});
  AttentionBackwardOptions<Tensor<float, 4>> backward;
  backward.scale = options.scale;
  backward.sink_logits = options.sink_logits;
  backward.kv_lengths = options.kv_lengths;
  backward.cu_seqlens_q = options.cu_seqlens_q;
  backward.cu_seqlens_k = options.cu_seqlens_k;
  if (c.has("dsinks")) backward.dsinks = dsinks;
  attention_backward(dq, dk, dv, dout, q, k, v, out, lse, mask, score, backward);
  c.expect("dq", dq);
  c.expect("dk", dk);
  c.expect("dv", dv);
  if (c.has("dsinks")) c.expect("dsinks", dsinks);
}

}  // namespace rapt::golden
