// RollingKvCache: the last `window` tokens in a ring, and the first `sink_tokens` for good.
//
//   slot of position p      p                                          p < sink_tokens
//                           sink_tokens + (p - sink_tokens) % window   else
//
//   position   0 1 2 3 | ... evicted ... | n-4 n-3 n-2 n-1         sink_tokens = 4, window = 4
//   slot       0 1 2 3 |                 |  a ring of 4 slots
//
//   keys    [layers][batch, sink_tokens + window, kv_heads, head_dim]       values alike
//   bytes = layers * batch * (sink_tokens + window) * kv_heads * (head_dim + value_dim) * sizeof(T)
//
// It never overflows: length() counts every token seen. Right for a layer whose mask is
// Causal & (SlidingWindow{window} | SinkTokens{sink_tokens}): what was evicted is what nobody sees.
//
// One token is written into the ring and attends to the slots as they lie: softmax does not mind
// the order, and masks get each slot's true position. A chunk of several tokens must not overwrite
// keys that its own first queries still see, so it attends to [sinks, old ring in order, chunk] in
// scratch, and its tail enters the ring; until the step is complete the overwritten ring is kept
// aside, so that a step that fails can be undone. Truncating to a length whose window is no longer
// whole throws ValueError: once tokens have been evicted, only the newest one can be taken back.
//
// Sources: rolling buffer: Jiang et al. 2023, arXiv:2310.06825; first tokens kept: Xiao et al.
// 2023, arXiv:2309.17453.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "rapt/cache/cache.hpp"
#include "rapt/cache/footprint.hpp"
#include "rapt/core/convert.hpp"
#include "rapt/core/ops/append_to_cache.hpp"

namespace rapt {

struct RollingKvCacheShape {
  index_t layers = 1;
  index_t batch = 1;
  index_t window = 1;  // tokens kept, the newest included
  index_t sink_tokens = 0;
  index_t kv_heads = 1;
  index_t head_dim = 1;
  index_t value_dim = 0;  // 0: head_dim
};

template <class T = float, class B = Cpu>
class RollingKvCache {
 public:
  using value_type = T;
  using backend_type = B;

  /// Throws ShapeError naming an extent that makes no sense.
  explicit RollingKvCache(RollingKvCacheShape shape, B backend = {})
      : shape_(shape), backend_(backend) {
    if (shape_.value_dim == 0) shape_.value_dim = shape_.head_dim;
    if (shape_.window < 1 || shape_.window > INT32_MAX)
      throw ShapeError(
          detail::text("rolling_kv_cache: window is ", shape_.window, ", expected 1 to 2^31 - 1"));
    if (shape_.sink_tokens < 0 || shape_.sink_tokens > INT32_MAX)
      throw ShapeError(detail::text("rolling_kv_cache: sink_tokens is ", shape_.sink_tokens,
                                    ", expected 0 to 2^31 - 1"));
    detail::check_cache_dims("rolling_kv_cache", shape_.layers, shape_.batch, slots(),
                             shape_.kv_heads, shape_.head_dim, shape_.value_dim);
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      keys_.emplace_back(Shape{shape_.batch, slots(), shape_.kv_heads, shape_.head_dim}, backend);
      values_.emplace_back(Shape{shape_.batch, slots(), shape_.kv_heads, shape_.value_dim},
                           backend);
    }
    lengths_.assign(static_cast<std::size_t>(shape_.batch), 0);
    reached_ = lengths_;
    positions_ = Tensor<std::int32_t, 2>(Shape{shape_.batch, slots()});
    reset();
  }

  index_t layers() const { return shape_.layers; }
  index_t batch() const { return shape_.batch; }
  index_t window() const { return shape_.window; }
  index_t sink_tokens() const { return shape_.sink_tokens; }
  index_t kv_heads() const { return shape_.kv_heads; }
  index_t head_dim() const { return shape_.head_dim; }
  index_t value_dim() const { return shape_.value_dim; }
  /// Tokens that are kept at most: sink_tokens + window.
  index_t slots() const { return shape_.sink_tokens + shape_.window; }
  B backend() const { return backend_; }

  /// Tokens seen: of the longest row, of one row, of every row (host).
  index_t length() const { return longest(lengths_); }
  index_t length(index_t row) const { return lengths_[checked_row(row)]; }
  TensorView<const std::int32_t, 1> offsets() const {
    return {lengths_.data(), Shape<1>{shape_.batch}};
  }
  /// Slots in use.
  index_t kept() const { return std::min(longest(reached_), slots()); }
  /// See KvCache::rope_length.
  index_t rope_length(index_t seq) const { return length() > 0 ? first_length_ : seq; }

  index_t bytes() const {
    return shape_.layers * shape_.batch * slots() * shape_.kv_heads *
           (shape_.head_dim + shape_.value_dim) * static_cast<index_t>(sizeof(T));
  }
  /// Bytes of the tables beside keys and values.
  index_t bookkeeping_bytes() const {
    return static_cast<index_t>(sizeof(std::int32_t)) *
           (positions_.size() + next_positions_.size() +
            static_cast<index_t>(plan_.size() + lengths_.size() + reached_.size()));
  }
  /// The lens, at `context` tokens (cache/footprint.hpp).
  Footprint footprint(index_t context) const {
    return rapt::footprint(KvGeometry{.layers = shape_.layers,
                                      .kv_heads = shape_.kv_heads,
                                      .head_dim = shape_.head_dim,
                                      .value_dim = shape_.value_dim,
                                      .element_bytes = static_cast<index_t>(sizeof(T)),
                                      .window = shape_.window,
                                      .sink_tokens = shape_.sink_tokens,
                                      .batch = shape_.batch},
                           context);
  }

  /// A ring is never full; positions end at 2^31 - 1.
  void check_room(index_t batch, index_t seq) const {
    if (batch != shape_.batch)
      throw ShapeError(detail::text("rolling_kv_cache: batch of the tokens is ", batch,
                                    ", expected ", shape_.batch, " = batch of the cache"));
    if (seq > INT32_MAX - length())
      throw CapacityError(detail::text("rolling_kv_cache: it has seen ", length(),
                                       " tokens and cannot take ", seq,
                                       " more: positions end at 2^31 - 1"));
  }

  /// As KvCache::append.
  CacheStep<T, B> append(Scratch<B>& scratch, index_t layer, TensorView<const T, 4, B> k,
                         TensorView<const T, 4, B> v,
                         TensorView<const std::int32_t, 2> key_mask = {}) {
    const index_t seq = k.extent(1), end = length() + seq;
    order_.check("rolling_kv_cache.append", layer, shape_.layers, seq);
    detail::check_append<T, B>("rolling_kv_cache.append", k, v, key_mask, shape_.batch,
                               shape_.kv_heads, shape_.head_dim, shape_.value_dim);
    check_room(shape_.batch, seq);
    if (layer == 0) {
      undo();
      plan(key_mask, seq);
    }

    const bool evicts = end > slots();
    CacheStep<T, B> step;
    if (!evicts || seq == 1) {
      write(scratch, layer, k, v);
      const index_t held = std::min(end, slots());
      step.keys = as_const_view(keys_[index(layer)]).slice(1, 0, held);
      step.values = as_const_view(values_[index(layer)]).slice(1, 0, held);
      if (evicts || padded_ || ragged())
        step.kv_positions = host_rows(scratch, as_const_view(next_positions_).slice(1, 0, held));
    } else {
      read_before_write(scratch, layer, k, v, key_mask, step);
      if (length() > 0) keep_aside(layer);
      write(scratch, layer, k, v);
    }
    if (step.kv_positions) step.q_positions = query_positions(scratch, seq);
    order_.advance(layer, shape_.layers, seq);
    if (layer == shape_.layers - 1) commit(seq);
    return step;
  }

  /// Keys and values as they lie in their slots [batch, kept(), kv_heads, dim].
  TensorView<const T, 4, B> keys(index_t layer = 0) const {
    return stored(keys_, old_keys_, layer).slice(1, 0, kept());
  }
  TensorView<const T, 4, B> values(index_t layer = 0) const {
    return stored(values_, old_values_, layer).slice(1, 0, kept());
  }
  /// Position of each slot [batch, kept()]; -1: padding, or nothing.
  TensorView<const std::int32_t, 2> positions() const {
    return as_const_view(positions_).slice(1, 0, kept());
  }

  /// Forgets all tokens from position `length` on. Throws ValueError, and changes nothing, where a
  /// query that comes next would miss tokens which are no longer kept.
  void truncate(index_t length) {
    check_truncate(length);
    if (length == 0) return reset();
    for (index_t row = 0; row < shape_.batch; ++row) cut(row, std::min(length, this->length(row)));
  }
  /// The same for one row.
  void truncate(index_t row, index_t length) {
    check_truncate_row(checked_row(row), length);
    cut(row, length);
  }
  void check_truncate(index_t length) const {
    if (length < 0 || length > this->length())
      throw ValueError(detail::text("rolling_kv_cache.truncate: length is ", length,
                                    ", expected 0 to ", this->length(), " = tokens seen"));
    for (std::size_t row = 0; row < lengths_.size(); ++row)
      check_truncate_row(row, std::min<index_t>(length, lengths_[row]));
  }
  void reset() {
    old_keys_.clear();
    old_values_.clear();
    order_ = {};
    std::fill_n(positions_.data(), positions_.size(), -1);
    next_positions_ = positions_;
    padded_ = false;
    first_length_ = 0;
    std::fill(lengths_.begin(), lengths_.end(), 0);
    std::fill(reached_.begin(), reached_.end(), 0);
  }
  RollingKvCache fork() const { return *this; }

  // ---- what a file holds (cache/cache_file.hpp) ----

  const RollingKvCacheShape& shape() const { return shape_; }
  CacheState state() const {
    CacheState state{.lengths = lengths_, .reached = reached_, .first_length = first_length_};
    state.positions = Tensor<std::int32_t, 2>(positions().shape());
    copy(state.positions, positions());
    return state;
  }
  /// Takes over another cache's state; keys and values are then to be filled in through visit().
  /// Throws ShapeError or ValueError, and changes nothing, where it does not fit.
  void restore(const CacheState& state) {
    constexpr const char* kName = "rolling_kv_cache.restore";
    detail::check_state(kName, state, state.reached, shape_.batch, slots(), INT32_MAX);
    for (std::size_t row = 0; row < lengths_.size(); ++row) {
      if (state.lengths[row] > state.reached[row])
        throw ValueError(detail::text(kName, ": a length is ", state.lengths[row],
                                      ", expected at most ", state.reached[row],
                                      " = the most tokens that row has seen"));
      for (index_t slot = 0; slot < state.positions.extent(1); ++slot)
        if (const index_t p = state.positions(row, slot);
            p < -1 || p >= state.lengths[row] || (p >= 0 && slot_of(p) != slot))
          throw ValueError(detail::text(kName, ": position of slot ", slot, " is ", p,
                                        ", expected one below ", state.lengths[row],
                                        " that belongs there"));
    }
    if (state.positions.empty() && longest(state.reached) > 0)
      throw ValueError(detail::text(kName, ": positions are absent, expected those of ",
                                    std::min(longest(state.reached), slots()), " slots"));
    reset();
    lengths_ = state.lengths;
    reached_ = state.reached;
    first_length_ = state.first_length;
    if (kept() > 0) copy(positions_.slice(1, 0, kept()), state.positions);
    for (index_t b = 0; b < shape_.batch; ++b)
      for (index_t slot = 0; slot < kept(); ++slot) padded_ = padded_ || positions_(b, slot) < 0;
  }
  /// f(name, view) for the slots in use of every layer.
  template <class F>
  void visit(F&& f) {
    undo();
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      f(detail::text("keys.", layer), keys_[index(layer)].slice(1, 0, kept()));
      f(detail::text("values.", layer), values_[index(layer)].slice(1, 0, kept()));
    }
  }
  template <class F>
  void visit(F&& f) const {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      f(detail::text("keys.", layer), keys(layer));
      f(detail::text("values.", layer), values(layer));
    }
  }

 private:
  static std::size_t index(index_t layer) { return static_cast<std::size_t>(layer); }
  static index_t longest(const std::vector<std::int32_t>& lengths) {
    return lengths.empty() ? 0 : *std::max_element(lengths.begin(), lengths.end());
  }
  std::size_t checked_row(index_t row) const {
    if (row < 0 || row >= shape_.batch)
      throw ValueError(
          detail::text("rolling_kv_cache: row is ", row, ", expected 0 to ", shape_.batch - 1));
    return static_cast<std::size_t>(row);
  }
  index_t slot_of(index_t position) const {
    const index_t s = shape_.sink_tokens;
    return position < s ? position : s + (position - s) % shape_.window;
  }
  bool ragged() const {
    return std::any_of(lengths_.begin(), lengths_.end(),
                       [&](std::int32_t n) { return n != lengths_.front(); });
  }

  /// The next query, at position `length`, sees from length - window + 1 on; a ring that has
  /// reached n tokens keeps from n - window on.
  void check_truncate_row(std::size_t row, index_t length) const {
    const index_t seen = lengths_[row], reached = reached_[row];
    if (length < 0 || length > seen)
      throw ValueError(detail::text("rolling_kv_cache.truncate: length is ", length,
                                    ", expected 0 to ", seen, " = tokens of row ", row));
    if (length == seen || length == 0 || reached <= slots() || length >= reached - 1) return;
    throw ValueError(detail::text("rolling_kv_cache.truncate: length is ", length, ", expected ",
                                  reached - 1, " or 0: of ", reached, " tokens seen only ", slots(),
                                  " are kept"));
  }
  void cut(index_t row, index_t length) {
    undo();
    for (index_t slot = 0; slot < slots(); ++slot)
      if (positions_(row, slot) >= length) positions_(row, slot) = -1;
    lengths_[index(row)] = static_cast<std::int32_t>(length);
    if (length == 0) reached_[index(row)] = 0;
  }

  /// Decides, once for all layers of a step, where each token goes (-1: nowhere) and what the slots
  /// will hold.
  void plan(TensorView<const std::int32_t, 2> key_mask, index_t seq) {
    std::copy_n(positions_.data(), positions_.size(), next_positions_.data());
    plan_.resize(static_cast<std::size_t>(shape_.batch * seq));
    for (index_t b = 0; b < shape_.batch; ++b) {
      const index_t length = lengths_[index(b)], end = length + seq;
      for (index_t i = 0; i < seq; ++i) {
        const index_t p = length + i;
        const bool keep = p < shape_.sink_tokens || p >= end - shape_.window;
        const index_t slot = keep ? slot_of(p) : -1;
        plan_[static_cast<std::size_t>(b * seq + i)] = static_cast<std::int32_t>(slot);
        const bool token = !key_mask || key_mask(b, i) != 0;
        padded_ = padded_ || !token;
        if (keep) next_positions_(b, slot) = token ? static_cast<std::int32_t>(p) : -1;
      }
      // A single token overwrites the oldest at once, which no later query at its position misses.
      if (seq == 1 && end > slots())
        reached_[index(b)] = std::max(reached_[index(b)], static_cast<std::int32_t>(end));
    }
  }

  void write(Scratch<B>& scratch, index_t layer, TensorView<const T, 4, B> k,
             TensorView<const T, 4, B> v) {
    const TensorView<const std::int32_t, 2> host(plan_.data(), Shape{k.extent(0), k.extent(1)});
    const auto slots = detail::on_backend(scratch, backend_, host);
    append_to_cache(keys_[index(layer)], k, slots);
    append_to_cache(values_[index(layer)], v, slots);
  }

  /// Tokens of row b that a chunk still reads: the first `sinks`, and [first, length) of the ring.
  struct OldTokens {
    index_t sinks, first, length;
    index_t count() const { return sinks + length - first; }
  };
  OldTokens old_tokens(index_t b) const {
    const index_t length = lengths_[index(b)], sinks = std::min(length, shape_.sink_tokens);
    // The oldest key that the first query of the chunk still sees.
    return {sinks, std::min(length, std::max(sinks, length - shape_.window + 1)), length};
  }

  /// [sinks, old ring in order of position, chunk] in scratch, a shorter row filled up with
  /// positions of -1; an empty cache needs no copy.
  void read_before_write(Scratch<B>& scratch, index_t layer, TensorView<const T, 4, B> k,
                         TensorView<const T, 4, B> v, TensorView<const std::int32_t, 2> key_mask,
                         CacheStep<T, B>& step) {
    const index_t batch = shape_.batch, seq = k.extent(1);
    if (length() == 0 && !padded_) {
      step.keys = k;
      step.values = v;
      return;
    }
    index_t total = 0;
    for (index_t b = 0; b < batch; ++b) total = std::max(total, old_tokens(b).count() + seq);
    auto keys = scratch.template tensor<T>(Shape{batch, total, shape_.kv_heads, shape_.head_dim});
    auto values =
        scratch.template tensor<T>(Shape{batch, total, shape_.kv_heads, shape_.value_dim});
    // Rows of one length are copied together.
    const index_t together = ragged() ? 1 : batch;
    const auto gather = [&](auto to, auto ring, auto chunk) {
      for (index_t b = 0; b < batch; b += together) {
        const auto rows = [&](auto all, index_t begin, index_t end) {
          return all.slice(0, b, b + together).slice(1, begin, end);
        };
        const OldTokens old = old_tokens(b);
        copy(rows(to, 0, old.sinks), rows(ring, 0, old.sinks));
        index_t at = old.sinks;
        for (index_t p = old.first; p < old.length;) {  // two runs at most: the ring has one seam
          const index_t slot = slot_of(p), run = std::min(old.length - p, slots() - slot);
          copy(rows(to, at, at + run), rows(ring, slot, slot + run));
          at += run;
          p += run;
        }
        copy(rows(to, at, at + seq), rows(chunk, 0, seq));
      }
    };
    gather(keys, as_const_view(keys_[index(layer)]), k);
    gather(values, as_const_view(values_[index(layer)]), v);
    step.keys = keys;
    step.values = values;

    step.kv_positions =
        made_on_host(scratch, Shape{batch, total}, [&](TensorView<std::int32_t, 2> out) {
          for (index_t b = 0; b < batch; ++b) {
            const OldTokens old = old_tokens(b);
            index_t at = 0;
            for (index_t p = 0; p < old.sinks; ++p) out(b, at++) = positions_(b, p);
            for (index_t p = old.first; p < old.length; ++p)
              out(b, at++) = positions_(b, slot_of(p));
            for (index_t i = 0; i < seq; ++i)
              out(b, at++) =
                  !key_mask || key_mask(b, i) != 0 ? static_cast<std::int32_t>(old.length + i) : -1;
            while (at < total) out(b, at++) = -1;
          }
        });
  }

  TensorView<const std::int32_t, 2, B> query_positions(Scratch<B>& scratch, index_t seq) const {
    return made_on_host(scratch, Shape{shape_.batch, seq}, [&](TensorView<std::int32_t, 2> out) {
      for (index_t b = 0; b < out.extent(0); ++b)
        for (index_t i = 0; i < seq; ++i)
          out(b, i) = lengths_[index(b)] + static_cast<std::int32_t>(i);
    });
  }
  TensorView<const std::int32_t, 2, B> host_rows(Scratch<B>& scratch,
                                                 TensorView<const std::int32_t, 2> rows) const {
    if constexpr (std::same_as<B, Cpu>)
      return rows;
    else
      return made_on_host(scratch, rows.shape(),
                          [&](TensorView<std::int32_t, 2> out) { copy(out, rows); });
  }
  template <class Fill>
  TensorView<const std::int32_t, 2, B> made_on_host(Scratch<B>& scratch, Shape<2> shape,
                                                    Fill fill) const {
    if constexpr (std::same_as<B, Cpu>) {
      auto out = scratch.template tensor<std::int32_t>(shape);
      fill(out);
      return out;
    } else {
      Scratch<Cpu> host;
      auto out = host.tensor<std::int32_t>(shape);
      fill(out);
      return detail::on_backend(scratch, backend_, as_const_view(out));
    }
  }

  void keep_aside(index_t layer) {
    if (old_keys_.empty()) {
      old_keys_.resize(keys_.size());
      old_values_.resize(values_.size());
    }
    old_keys_[index(layer)] = keys_[index(layer)];
    old_values_[index(layer)] = values_[index(layer)];
  }
  /// What a layer holds as long as the running step is not complete.
  static const Tensor<T, 4, B>& stored(const std::vector<Tensor<T, 4, B>>& now,
                                       const std::vector<Tensor<T, 4, B>>& old, index_t layer) {
    const std::size_t at = index(layer);
    return at < old.size() && !old[at].empty() ? old[at] : now.at(at);
  }
  /// Takes back a step that has not reached the last layer.
  void undo() {
    for (std::size_t layer = 0; layer < old_keys_.size(); ++layer) {
      if (old_keys_[layer].empty()) continue;
      keys_[layer] = std::move(old_keys_[layer]);
      values_[layer] = std::move(old_values_[layer]);
    }
    old_keys_.clear();
    old_values_.clear();
    order_ = {};
  }

  void commit(index_t seq) {
    if (length() == 0) first_length_ = seq;
    positions_.swap(next_positions_);
    for (std::size_t row = 0; row < lengths_.size(); ++row) {
      lengths_[row] += static_cast<std::int32_t>(seq);
      reached_[row] = std::max(reached_[row], lengths_[row]);
    }
    old_keys_.clear();
    old_values_.clear();
  }

  RollingKvCacheShape shape_;
  B backend_;
  std::vector<Tensor<T, 4, B>> keys_, values_;
  std::vector<Tensor<T, 4, B>> old_keys_, old_values_;  // of layers that a running chunk overwrote
  Tensor<std::int32_t, 2> positions_, next_positions_;  // [batch, slots]; -1: empty or padding
  std::vector<std::int32_t> plan_;                      // [batch, seq] slots of the running step
  std::vector<std::int32_t> lengths_, reached_;         // by row: tokens seen; most since empty
  index_t first_length_ = 0;
  bool padded_ = false;
  detail::StepOrder order_;
};

static_assert(KeyValueCache<RollingKvCache<float, Cpu>>);

}  // namespace rapt
