// Masks from a table that is read by the row of the call, i = q_pos - (kv_len - q_len), and not by
// the query's position: a caller who built the table for one call thinks in its rows and columns.
//
//   BlockSparse{map, block_size}   visible when map[b, h, i / block_size, j / block_size] != 0
//   DenseMask{table}               visible when table[b, h, i, j] != 0
//
//   map    [batch | 1, heads | 1, ceil(q_len / block_size), ceil(kv_len / block_size)]
//   table  [batch | 1, heads | 1, q_len, kv_len]
//
// Elements are bool or any integer. Neither is causal by itself: Causal{} & BlockSparse{map, 64}.
// A kernel sees them through bind_call, which sets `row_offset` = kv_len - q_len and refuses a
// table that does not cover the call (ShapeError).
//
// Verdicts are read from the table: exact, at the cost of scanning the tile's entries, and the scan
// of a mixed tile stops at the first entry that differs.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>

#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/mask/compose.hpp"

namespace rapt {
namespace detail {

/// Entries [row] x [column] of one head's table: skip when all are zero, full when none is.
template <class T, class B>
RAPT_HOST_DEVICE constexpr TileVerdict verdict_of_entries(const TensorView<const T, 4, B>& table,
                                                          index_t b, index_t h, PositionRange row,
                                                          PositionRange column) {
  const bool first = table(b, h, row.begin, column.begin) != T{};
  for (index_t i = row.begin; i < row.end; ++i)
    for (index_t j = column.begin; j < column.end; ++j)
      if ((table(b, h, i, j) != T{}) != first) return TileVerdict::partial;
  return first ? TileVerdict::full : TileVerdict::skip;
}

/// Index into an axis of extent 1 or of one entry for each.
RAPT_HOST_DEVICE constexpr index_t shared_index(index_t extent, index_t index) {
  return extent == 1 ? 0 : index;
}

/// Throws unless a table [batch | 1, heads | 1, rows, columns] covers the call.
template <class View>
void check_table(std::string_view owner, std::string_view name, const View& table,
                 const CallShape& call, index_t rows, index_t columns, std::string_view axes) {
  const auto covers = [](index_t got, index_t wanted) {
    return got == 1 || (wanted == 0 ? got > 0 : got >= wanted);
  };
  if (covers(table.extent(0), call.batch) && covers(table.extent(1), call.heads) &&
      table.extent(2) >= rows && table.extent(3) >= columns)
    return;
  const auto wanted = [](index_t n) { return n == 0 ? std::string("any") : text("1 or ", n); };
  throw ShapeError(text(owner, ": ", name, " is ", shape_text(table.shape()), ", expected [",
                        wanted(call.batch), ", ", wanted(call.heads), ", ", rows, ", ", columns,
                        "] = ", axes));
}

}  // namespace detail

/// Whole blocks of rows and keys are visible or not.
template <class T = std::int32_t, class B = Cpu>
requires std::integral<T>
struct BlockSparse {
  using composable_mask = void;
  static constexpr bool kReadsCallRow = true;
  TensorView<const T, 4, B> map;
  index_t block_size;
  index_t row_offset = 0;  // position of row 0; set by bind

  RAPT_HOST_DEVICE constexpr bool operator()(index_t b, index_t h, index_t q_pos,
                                             index_t kv_pos) const {
    return map(detail::shared_index(map.extent(0), b), detail::shared_index(map.extent(1), h),
               (q_pos - row_offset) / block_size, kv_pos / block_size) != T{};
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t b, index_t h, PositionRange q,
                                                  PositionRange kv) const {
    return detail::verdict_of_entries(
        map, detail::shared_index(map.extent(0), b), detail::shared_index(map.extent(1), h),
        {(q.begin - row_offset) / block_size, (q.last() - row_offset) / block_size + 1},
        {kv.begin / block_size, kv.last() / block_size + 1});
  }
  BlockSparse bind(const CallShape& call) const {
    if (block_size < 1)
      throw ValueError(
          detail::text("BlockSparse: block_size is ", block_size, ", expected at least 1"));
    const auto blocks = [this](index_t n) {
      return n / block_size + (n % block_size != 0 ? 1 : 0);
    };
    detail::check_table("BlockSparse", "map", map, call, blocks(call.q_len), blocks(call.kv_len),
                        "[batch, heads, ceil(q_len / block_size), ceil(kv_len / block_size)]");
    return {map, block_size, call.kv_len - call.q_len};
  }
};
template <TensorLike<4> X, std::integral I>
BlockSparse(const X&, I) -> BlockSparse<element_t<X>, backend_t<X>>;
static_assert(AttentionMask<BlockSparse<>>);

/// One entry for every pair.
template <class T = std::int32_t, class B = Cpu>
requires std::integral<T>
struct DenseMask {
  using composable_mask = void;
  static constexpr bool kReadsCallRow = true;
  TensorView<const T, 4, B> table;
  index_t row_offset = 0;  // position of row 0; set by bind

  RAPT_HOST_DEVICE constexpr bool operator()(index_t b, index_t h, index_t q_pos,
                                             index_t kv_pos) const {
    return table(detail::shared_index(table.extent(0), b), detail::shared_index(table.extent(1), h),
                 q_pos - row_offset, kv_pos) != T{};
  }
  RAPT_HOST_DEVICE constexpr TileVerdict classify(index_t b, index_t h, PositionRange q,
                                                  PositionRange kv) const {
    return detail::verdict_of_entries(table, detail::shared_index(table.extent(0), b),
                                      detail::shared_index(table.extent(1), h),
                                      {q.begin - row_offset, q.end - row_offset}, kv);
  }
  DenseMask bind(const CallShape& call) const {
    detail::check_table("DenseMask", "table", table, call, call.q_len, call.kv_len,
                        "[batch, heads, q_len, kv_len]");
    return {table, call.kv_len - call.q_len};
  }
};
template <TensorLike<4> X>
DenseMask(const X&) -> DenseMask<element_t<X>, backend_t<X>>;
static_assert(AttentionMask<DenseMask<>>);

}  // namespace rapt
