// A map of tile verdicts around any mask, so that whole tiles of a lambda are skipped or run free.
//
//   auto even = [](index_t, index_t, index_t q, index_t kv) { return kv <= q && (q / 64) % 2 == 0;
//   }; auto mask = make_block_mask(even, /*batch=*/1, /*heads=*/1, q_len, kv_len, /*block=*/64);
//   attention(out, q, k, v, mask);
//
// The map is computed once, by asking the mask about every pair (O(batch heads q_len kv_len), in
// parallel), and serves every call and layer that has the same positions. batch and heads are 1 for
// a mask that does not look at them. Row 0 stands at position kv_len - q_len, as in a call of these
// lengths; a tile that reaches beyond the map is `partial`.
//
// BlockMask owns its map and shares it between copies. Attention runs on what bind_call makes of
// it: BlockMapped, the mask beside a plain view of the map, which also crosses to the GPU (there
// the caller uploads the map and writes BlockMapped{mask, view, block, q_begin} himself).
#pragma once

#include <memory>
#include <utility>

#include "rapt/core/parallel.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/mask/by_row.hpp"

namespace rapt {

namespace detail {

/// The exact verdict of a rectangle: the mask's own where it is decided, else by asking about pairs
/// until two answers differ.
template <AttentionMask M>
constexpr TileVerdict verdict_by_asking(const M& mask, index_t b, index_t h, PositionRange q,
                                        PositionRange kv) {
  const TileVerdict own = classify(mask, b, h, q, kv);
  if (own != TileVerdict::partial) return own;
  const bool first = mask(b, h, q.begin, kv.begin);
  for (index_t i = q.begin; i < q.end; ++i)
    for (index_t j = kv.begin; j < kv.end; ++j)
      if (mask(b, h, i, j) != first) return TileVerdict::partial;
  return first ? TileVerdict::full : TileVerdict::skip;
}

}  // namespace detail

/// A mask beside the verdicts of its blocks.
template <AttentionMask M, class B = Cpu>
struct BlockMapped {
  using composable_mask = void;
  static constexpr bool kReadsCallRow = reads_call_row<M>;
  M mask;
  TensorView<const TileVerdict, 4, B> verdicts;  // [batch | 1, heads | 1, q blocks, kv blocks]
  index_t block;
  index_t q_begin;  // position of the first row of the map

  RAPT_HOST_DEVICE constexpr bool operator()(index_t b, index_t h, index_t q_pos,
                                             index_t kv_pos) const {
    return mask(b, h, q_pos, kv_pos);
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t b, index_t h, PositionRange q,
                                                  PositionRange kv) const {
    const TileVerdict own = rapt::classify(mask, b, h, q, kv);
    if (own != TileVerdict::partial || q.begin < q_begin || kv.begin < 0) return own;
    const index_t row_end = (q.last() - q_begin) / block + 1, column_end = kv.last() / block + 1;
    if (row_end > verdicts.extent(2) || column_end > verdicts.extent(3)) return own;

    b = detail::shared_index(verdicts.extent(0), b);
    h = detail::shared_index(verdicts.extent(1), h);
    const index_t row = (q.begin - q_begin) / block, column = kv.begin / block;
    const TileVerdict first = verdicts(b, h, row, column);
    for (index_t i = row; i < row_end; ++i)
      for (index_t j = column; j < column_end; ++j)
        if (verdicts(b, h, i, j) != first) return TileVerdict::partial;
    return first;
  }
  constexpr auto bind(const CallShape& call) const {
    return rapt::BlockMapped<decltype(bind_call(mask, call)), B>{bind_call(mask, call), verdicts,
                                                                 block, q_begin};
  }
};

/// Owner of a block map and of the mask it was computed from.
template <AttentionMask M>
class BlockMask {
 public:
  using composable_mask = void;
  static constexpr bool kReadsCallRow = reads_call_row<M>;

  /// `mask` is bound to the call that the verdicts were computed for.
  BlockMask(M mask, Tensor<TileVerdict, 4> verdicts, index_t block, CallShape built_for)
      : mask_(std::move(mask)),
        verdicts_(std::make_shared<const Tensor<TileVerdict, 4>>(std::move(verdicts))),
        block_(block),
        built_for_(built_for) {}

  bool operator()(index_t b, index_t h, index_t q_pos, index_t kv_pos) const {
    return view()(b, h, q_pos, kv_pos);
  }
  TileVerdict classify(index_t b, index_t h, PositionRange q, PositionRange kv) const {
    return view().classify(b, h, q, kv);
  }
  /// The plain form that kernels take. A table read by rows means something else in a call of other
  /// lengths, so there the map is left out.
  auto bind(const CallShape& call) const {
    detail::check_rows("make_block_mask", "the map", verdicts_->extent(0), call.batch);
    detail::check_rows("make_block_mask", "the map", verdicts_->extent(1), call.heads);
    auto bound = view().bind(call);
    if (reads_call_row<M> && (call.q_len != built_for_.q_len || call.kv_len != built_for_.kv_len))
      bound.verdicts = {};
    return bound;
  }

  BlockMapped<M> view() const {
    return {mask_, verdicts_->view(), block_, built_for_.kv_len - built_for_.q_len};
  }
  /// [batch | 1, heads | 1, ceil(q_len / block), ceil(kv_len / block)]
  TensorView<const TileVerdict, 4> verdicts() const { return verdicts_->view(); }
  index_t block() const { return block_; }

 private:
  M mask_;
  std::shared_ptr<const Tensor<TileVerdict, 4>> verdicts_;
  index_t block_;
  CallShape built_for_;
};

/// Asks `mask` about every pair and keeps one verdict for each block of `block` x `block`.
template <AttentionMask M>
auto make_block_mask(M mask, index_t batch, index_t heads, index_t q_len, index_t kv_len,
                     index_t block = 64) {
  if (block < 1)
    throw ValueError(detail::text("make_block_mask: block is ", block, ", expected at least 1"));
  const CallShape call{.q_len = q_len, .kv_len = kv_len};
  const auto bound = bind_call(mask, call);
  const index_t rows = (q_len + block - 1) / block, columns = (kv_len + block - 1) / block;
  Tensor<TileVerdict, 4> verdicts({batch, heads, rows, columns});
  const index_t q_begin = kv_len - q_len;

  parallel_for(batch * heads * rows, [&](index_t task) {
    const index_t b = task / (heads * rows), h = task / rows % heads, row = task % rows;
    const index_t q0 = row * block;
    const PositionRange q{q_begin + q0, q_begin + (q0 + block < q_len ? q0 + block : q_len)};
    for (index_t column = 0; column < columns; ++column) {
      const index_t kv0 = column * block;
      const PositionRange kv{kv0, kv0 + block < kv_len ? kv0 + block : kv_len};
      verdicts(b, h, row, column) = detail::verdict_by_asking(bound, b, h, q, kv);
    }
  });
  return BlockMask<std::remove_cvref_t<decltype(bound)>>(bound, std::move(verdicts), block, call);
}

}  // namespace rapt
