// The gradient of attention on the CPU: one pass over the tiles that are seen, with recomputation.
//
//   for each key head of a sequence, in parts:                  dK = dV = 0
//     for each chunk of queries (all heads of a group):
//       dq, dK += , dV +=                                       cpu/attention_backward_unit.hpp
//   parts added in order
//   dv = dV;  dk = scale dK
//
//                 queries ->
//          unit 0   unit 1   unit 2   unit 3    GQA is reduced in place: the heads of a group add
//         +--------+--------+--------+--------+ to one dK and dV. Causal work grows with the unit,
//    keys | part 0 | part 1 | part 1 | part 0 | so parts take units to and fro.
//         +--------+--------+--------+--------+
//
// Memory O(chunk + kv_len) in the accumulation type for each part of the work. A call of few
// sequences and heads is cut into parts by shape alone: parts own query chunks and sum dK and dV of
// their own, which are added in order at the end. So a result does not depend on the number of
// threads.
//
// S, P, L, D and the products: cpu/attention_backward_unit.hpp.
//
// With a sink z the weights are P = w exp(s - L0), L0 the logsumexp without it and w = exp(L0 - L):
// w joins dO, and the sink needs nothing else in the tiles. A gradient dL0 of L0 joins D:
//
//   dZ = exp(s - L0) (w dP - D'),    D' = w (D - dL) - dL0
//
// Source: Dao 2023, arXiv:2307.08691, algorithm 2.
#pragma once

#include <algorithm>
#include <type_traits>

#include "rapt/attention/backward_options.hpp"
#include "rapt/attention/sequences.hpp"
#include "rapt/core/backend.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/cpu/attention_backward_product.hpp"
#include "rapt/cpu/attention_backward_unit.hpp"
#include "rapt/cpu/simd.hpp"

namespace rapt::cpu {
inline namespace RAPT_SIMD {

/// The whole call: see the top of the file. `mask` and `score` are bound to the call, and bound
/// again to each sequence where lengths differ.
template <class Args, class Mask, class Score,
          class Product = BackwardProduct<typename Args::Element>>
class AttentionBackward {
  using T = typename Args::Element;
  using A = accumulate_t<T>;
  using V = Vec<A>;
  using Unit = BackwardUnit<Args, Mask, Score, Product>;
  using Tiling = BackwardTiling<A>;
  static constexpr index_t kKeyTile = Tiling::kKeyTile, kRowTile = Tiling::kRowTile;
  static constexpr index_t kChunkRows = 768;                // enough that packing keys is cheap
  static constexpr index_t kChunkBytes = index_t{1} << 20;  // of the packed rows: within the cache
  static constexpr index_t kItems = 8;                      // parts of a call, for a few threads
  static constexpr index_t kRowsOfPart = 2048;              // fewer, and joining dK and dV shows

 public:
  AttentionBackward(const Args& args, const Mask& mask, const Score& score)
      : args_(args), mask_(mask), score_(score) {}

  void run() {
    const index_t heads = args_.q.extent(2), kv_heads = args_.k.extent(2);
    sequences_ = rapt::detail::sequence_count(args_);
    if (rapt::detail::lengths_differ(args_) || heads == 0) {  // not every row is some sequence's
      clear(args_.dq);
      clear(args_.dk);
      clear(args_.dv);
    }
    if (sequences_ == 0 || heads == 0) return;
    group_ = heads / kv_heads;
    k_step_ = Tiling::row_step(args_.q.extent(3));
    v_step_ = Tiling::row_step(args_.v.extent(3));

    Scratch<Cpu> scratch;
    first_item_ = scratch.tensor<index_t>(Shape<1>{sequences_ + 1}).data();
    first_sum_ = scratch.tensor<index_t>(Shape<1>{sequences_ + 1}).data();
    first_touched_ = scratch.tensor<index_t>(Shape<1>{sequences_ + 1}).data();
    first_item_[0] = first_sum_[0] = first_touched_[0] = 0;
    double work = 0;  // multiply-adds, were nothing masked
    for (index_t s = 0; s < sequences_; ++s) {
      const AttentionSequence seq = rapt::detail::sequence_at(args_, s);
      const index_t items = kv_heads * cut_of(seq).parts;
      const bool shared = cut_of(seq).parts > 1;
      first_item_[s + 1] = first_item_[s] + items;
      first_sum_[s + 1] = first_sum_[s] + (shared ? items * sum_size(seq) : 0);
      first_touched_[s + 1] = first_touched_[s] + items * key_tiles(seq);
      work += static_cast<double>(seq.q_len) * static_cast<double>(seq.kv_len);
    }
    work *= static_cast<double>(heads * (args_.q.extent(3) + args_.v.extent(3)));
    const index_t items = first_item_[sequences_];
    const auto zeros = [&](bool wanted, index_t n) -> A* {
      if (!wanted) return nullptr;
      A* const data = scratch.tensor<A>(Shape<1>{n}).data();
      std::fill_n(data, n, A(0));
      return data;
    };
    sums_ = scratch.tensor<A>(Shape<1>{first_sum_[sequences_]}).data();
    touched_ = scratch.tensor<unsigned char>(Shape<1>{first_touched_[sequences_]}).data();
    std::fill_n(touched_, first_touched_[sequences_], static_cast<unsigned char>(0));
    dsinks_ = zeros(bool(args_.dsinks), items * group_);
    bias_columns_ = args_.drelative_bias ? args_.drelative_bias.extent(1) : 0;
    dbias_ = zeros(bool(args_.drelative_bias), items * group_ * bias_columns_);

    // A table that sequences or heads share is added to in order.
    const bool in_order =
        args_.dbias && (args_.dbias.extent(0) < sequences_ || args_.dbias.extent(1) < heads);
    constexpr double kWorthThreads = 1 << 17;  // below, waking a thread costs more than it does
    const auto loop = [&](index_t n, bool serial, auto f) {
      if (serial) {
        for (index_t i = 0; i < n; ++i) f(i);
      } else {
        parallel_for(n, f);
      }
    };
    loop(items, in_order || work < kWorthThreads, [this](index_t item) { run_item(item); });
    if (first_sum_[sequences_] > 0)
      loop(items, work < kWorthThreads, [this](index_t item) { join_parts(item); });
    join_parameters();
  }

 private:
  /// One part of one key head of one sequence.
  struct Item {
    AttentionSequence seq;
    BackwardCut cut;
    index_t kv_head, part;
    index_t sum, touched;  // where its sums and flags begin
  };

  BackwardCut cut_of(const AttentionSequence& seq) const {
    BackwardCut cut{};
    const index_t row_bytes = (2 * k_step_ + v_step_) * static_cast<index_t>(sizeof(A));
    const index_t most_rows = std::max(kRowTile, std::min(kChunkRows, kChunkBytes / row_bytes));
    cut.heads = std::min(group_, std::max<index_t>(1, most_rows / kRowTile));
    cut.head_blocks = (group_ + cut.heads - 1) / cut.heads;
    cut.queries = std::max(kRowTile, most_rows / cut.heads / kRowTile * kRowTile);
    cut.queries = std::clamp<index_t>(seq.q_len, 1, cut.queries);
    cut.query_blocks = (seq.q_len + cut.queries - 1) / cut.queries;
    const index_t wanted =
        std::min(kItems / (sequences_ * args_.k.extent(2)), seq.q_len * group_ / kRowsOfPart);
    cut.parts = std::clamp<index_t>(wanted, 1, std::max<index_t>(1, cut.units()));
    return cut;
  }
  static index_t key_tiles(const AttentionSequence& seq) {
    return (seq.kv_len + kKeyTile - 1) / kKeyTile;
  }
  index_t sum_size(const AttentionSequence& seq) const { return seq.kv_len * (k_step_ + v_step_); }

  Item locate(index_t item) const {
    index_t s = 0;
    for (index_t end = sequences_; end - s > 1;) {
      const index_t middle = (s + end) / 2;
      (first_item_[middle] <= item ? s : end) = middle;
    }
    Item at{rapt::detail::sequence_at(args_, s), {}, 0, 0, 0, 0};
    at.cut = cut_of(at.seq);
    const index_t local = item - first_item_[s];
    at.part = local % at.cut.parts;
    at.kv_head = local / at.cut.parts;
    at.sum = first_sum_[s] + (at.cut.parts > 1 ? local * sum_size(at.seq) : 0);
    at.touched = first_touched_[s] + local * key_tiles(at.seq);
    return at;
  }

  template <class F>
  F bound(const F& f, const AttentionSequence& seq) const {
    static_assert(std::is_same_v<decltype(bind_call(f, CallShape{})), F>,
                  "binding a mask or score that is bound already gives the same type");
    if (!rapt::detail::lengths_differ(args_)) return f;
    return bind_call(f, rapt::detail::call_shape_of(args_, seq));
  }

  BackwardSums<A> sums_of(index_t item, const Item& at, A* sums) const {
    BackwardSums<A> out{sums, sums + at.seq.kv_len * k_step_, touched_ + at.touched, nullptr,
                        nullptr};
    if (dsinks_ != nullptr) out.dsinks = dsinks_ + item * group_;
    if (dbias_ != nullptr) out.dbias = dbias_ + item * group_ * bias_columns_;
    return out;
  }

  void run_item(index_t item) const {
    Scratch<Cpu> scratch;
    const Item at = locate(item);
    const bool alone = at.cut.parts == 1;
    A* const own = alone ? scratch.tensor<A>(Shape<1>{sum_size(at.seq)}).data() : sums_ + at.sum;
    const BackwardSums<A> sums = sums_of(item, at, own);
    const Mask mask = bound(mask_, at.seq);
    const Score score = bound(score_, at.seq);
    Unit unit(args_, at.seq, mask, score, at.kv_head, group_, at.cut, sums, scratch);
    for (index_t u = 0; u < at.cut.units(); ++u) {
      if (at.cut.part_of(u) != at.part) continue;
      const index_t head = u % at.cut.head_blocks * at.cut.heads;
      const index_t begin = u / at.cut.head_blocks * at.cut.queries;
      unit.run(head, std::min(at.cut.heads, group_ - head), begin,
               std::min(at.cut.queries, at.seq.q_len - begin));
    }
    if (alone)
      for (index_t tile = 0; tile < key_tiles(at.seq); ++tile) store_keys(at, tile, sums);
  }

  /// Item `part` of a key head joins every parts-th tile of its keys, the parts in order.
  void join_parts(index_t item) const {
    const Item at = locate(item);
    if (at.cut.parts == 1) return;
    const index_t first = item - at.part, tiles = key_tiles(at.seq);
    const BackwardSums<A> to = sums_of(first, locate(first), sums_ + locate(first).sum);
    for (index_t tile = at.part; tile < tiles; tile += at.cut.parts) {
      const index_t j = tile * kKeyTile, n = std::min(kKeyTile, at.seq.kv_len - j);
      for (index_t part = 1; part < at.cut.parts; ++part) {
        const Item other = locate(first + part);
        const BackwardSums<A> from = sums_of(first + part, other, sums_ + other.sum);
        if (from.touched[tile] == 0) continue;
        add(to.dk + j * k_step_, from.dk + j * k_step_, n * k_step_, to.touched[tile] == 0);
        add(to.dv + j * v_step_, from.dv + j * v_step_, n * v_step_, to.touched[tile] == 0);
        to.touched[tile] = 1;
      }
      store_keys(at, tile, to);
    }
  }
  static void add(A* to, const A* from, index_t n, bool first) {
    for (index_t t = 0; t < n; t += V::kLanes)
      (first ? V::load(from + t) : V::load(to + t) + V::load(from + t)).store(to + t);
  }

  /// dk = scale dK and dv = dV of a tile of keys; zeros where nobody saw it.
  void store_keys(const Item& at, index_t tile, const BackwardSums<A>& sums) const {
    const index_t begin = tile * kKeyTile, end = std::min(begin + kKeyTile, at.seq.kv_len);
    const bool touched = sums.touched[tile] != 0;
    const auto store = [&](const auto& view, const A* from, index_t step, A factor) {
      const index_t dim = view.extent(3);
      for (index_t j = begin; j < end; ++j) {
        T* const to = view.data() + at.seq.row * view.stride(0) +
                      (at.seq.kv_begin + j) * view.stride(1) + at.kv_head * view.stride(2);
        for (index_t t = 0; t < dim; t += V::kLanes)
          detail::store_lanes(
              touched ? V::load(from + j * step + t) * V::broadcast(factor) : V::zero(), to + t,
              dim - t);
      }
    };
    store(args_.dk, sums.dk, k_step_, args_.scale);
    store(args_.dv, sums.dv, v_step_, A(1));
  }

  /// Gradients of sinks and of a relative bias, items in order.
  void join_parameters() const {
    if (dsinks_ == nullptr && dbias_ == nullptr) return;
    for (index_t item = 0; item < first_item_[sequences_]; ++item) {
      const Item at = locate(item);
      for (index_t h = 0; h < group_; ++h) {
        const index_t head = at.kv_head * group_ + h;
        if (dsinks_ != nullptr) args_.dsinks(head) += dsinks_[item * group_ + h];
        const index_t row = args_.drelative_bias && args_.drelative_bias.extent(0) == 1 ? 0 : head;
        for (index_t c = 0; c < bias_columns_; ++c)
          args_.drelative_bias(row, c) += dbias_[(item * group_ + h) * bias_columns_ + c];
      }
    }
  }

  template <class View>
  static void clear(const View& view) {
    for (index_t b = 0; b < view.extent(0); ++b)
      for (index_t i = 0; i < view.extent(1); ++i)
        for (index_t h = 0; h < view.extent(2); ++h)
          std::fill_n(view.data() + view.offset(b, i, h, index_t{0}), view.extent(3), T{});
  }

  const Args& args_;
  const Mask& mask_;
  const Score& score_;
  index_t sequences_ = 0, group_ = 1, k_step_ = 0, v_step_ = 0, bias_columns_ = 0;
  index_t *first_item_ = nullptr, *first_sum_ = nullptr, *first_touched_ = nullptr;
  A *sums_ = nullptr, *dsinks_ = nullptr, *dbias_ = nullptr;
  unsigned char* touched_ = nullptr;
};

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu

namespace rapt {

template <class Args, class Mask, class Score>
void BackendTraits<Cpu>::attention_backward(Cpu, const Args& args, const Mask& mask,
                                            const Score& score) {
  if constexpr (cpu::kAmx && std::is_same_v<typename Args::Element, bfloat16>)
    if (cpu::amx_granted())
      return cpu::AttentionBackward<Args, Mask, Score, cpu::PairBackward<cpu::AmxTiles>>(args, mask,
                                                                                         score)
          .run();
  cpu::AttentionBackward<Args, Mask, Score>(args, mask, score).run();
}

}  // namespace rapt

#ifdef RAPT_USE_INSTANCES
#include "rapt/cpu/instances/attention_backward.hpp"
#endif
