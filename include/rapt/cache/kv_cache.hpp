// KvCache: the keys and values of every token seen, compact.
//
//   keys    [layers][batch, capacity, kv_heads, head_dim]
//   values  [layers][batch, capacity, kv_heads, value_dim]      allocated once
//
//   bytes = layers * batch * capacity * kv_heads * (head_dim + value_dim) * sizeof(T)
//
// Only the kv_heads that exist are stored: query heads of a group share them when they read. Token
// n of a row lies in slot n. Keys are stored as attention multiplies them: normed and rotated.
//
// Rows may have different lengths (truncate one of them); padding appended under a key_mask keeps
// its slot but is never seen. A full cache throws CapacityError and stays as it was.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "rapt/cache/cache.hpp"
#include "rapt/cache/footprint.hpp"
#include "rapt/core/convert.hpp"
#include "rapt/core/ops/append_to_cache.hpp"

namespace rapt {

struct KvCacheShape {
  index_t layers = 1;
  index_t batch = 1;
  index_t capacity = 0;  // tokens of a row
  index_t kv_heads = 1;
  index_t head_dim = 1;
  index_t value_dim = 0;  // 0: head_dim
};

template <class T = float, class B = Cpu>
class KvCache {
 public:
  using value_type = T;
  using backend_type = B;

  /// Throws ShapeError naming an extent that makes no sense.
  explicit KvCache(KvCacheShape shape, B backend = {}) : shape_(shape), backend_(backend) {
    if (shape_.value_dim == 0) shape_.value_dim = shape_.head_dim;
    detail::check_cache_dims("kv_cache", shape_.layers, shape_.batch, shape_.capacity,
                             shape_.kv_heads, shape_.head_dim, shape_.value_dim);
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      keys_.emplace_back(storage_shape(shape_.capacity, shape_.head_dim), backend);
      values_.emplace_back(storage_shape(shape_.capacity, shape_.value_dim), backend);
    }
    lengths_.assign(static_cast<std::size_t>(shape_.batch), 0);
    ends_ = lengths_;
  }

  index_t layers() const { return shape_.layers; }
  index_t batch() const { return shape_.batch; }
  index_t capacity() const { return shape_.capacity; }
  index_t kv_heads() const { return shape_.kv_heads; }
  index_t head_dim() const { return shape_.head_dim; }
  index_t value_dim() const { return shape_.value_dim; }
  B backend() const { return backend_; }

  /// Tokens seen: of the longest row, of one row, of every row (host).
  index_t length() const {
    return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
  }
  index_t length(index_t row) const { return lengths_[checked_row(row)]; }
  TensorView<const std::int32_t, 1> offsets() const {
    return {lengths_.data(), Shape<1>{shape_.batch}};
  }
  /// Length that the sequence started with (its first append): what a rope that depends on the
  /// length is computed for, then and ever after. `seq` is the length of the append about to be
  /// made.
  index_t rope_length(index_t seq) const { return length() > 0 ? first_length_ : seq; }

  /// Bytes of keys and values, used or not.
  index_t bytes() const {
    return shape_.layers * shape_.batch * shape_.capacity * shape_.kv_heads *
           (shape_.head_dim + shape_.value_dim) * static_cast<index_t>(sizeof(T));
  }

  /// Bytes of the tables beside them.
  index_t bookkeeping_bytes() const {
    return static_cast<index_t>(sizeof(std::int32_t)) *
           (static_cast<index_t>(lengths_.size() + ends_.size()) + positions_.size());
  }

  /// Throws CapacityError unless `seq` more tokens fit in every row, ShapeError for another batch.
  void check_room(index_t batch, index_t seq) const {
    if (batch != shape_.batch)
      throw ShapeError(detail::text("kv_cache: batch of the tokens is ", batch, ", expected ",
                                    shape_.batch, " = batch of the cache"));
    for (index_t row = 0; row < shape_.batch; ++row) {
      const index_t used = lengths_[static_cast<std::size_t>(row)];
      if (seq > shape_.capacity - used)
        throw CapacityError(detail::text("kv_cache: row ", row, " holds ", used, " of ",
                                         shape_.capacity, " tokens and cannot take ", seq,
                                         " more; nothing was appended"));
    }
  }

  /// Writes k and v behind what `layer` holds, and gives all of it to attend over. key_mask [batch,
  /// seq]: 0 marks padding. The last layer ends the step.
  CacheStep<T, B> append(Scratch<B>& scratch, index_t layer, TensorView<const T, 4, B> k,
                         TensorView<const T, 4, B> v,
                         TensorView<const std::int32_t, 2> key_mask = {}) {
    const index_t batch = shape_.batch, seq = k.extent(1);
    order_.check("kv_cache.append", layer, shape_.layers, seq);
    detail::check_append<T, B>("kv_cache.append", k, v, key_mask, batch, shape_.kv_heads,
                               shape_.head_dim, shape_.value_dim);
    check_room(batch, seq);
    const auto at = static_cast<std::size_t>(layer);

    Scratch<Cpu> host;
    auto slots = host.tensor<std::int32_t>(Shape{batch, seq});
    index_t kv_len = 0;
    bool ragged = false;
    for (index_t b = 0; b < batch; ++b) {
      const std::int32_t start = lengths_[static_cast<std::size_t>(b)];
      ends_[static_cast<std::size_t>(b)] = start + static_cast<std::int32_t>(seq);
      ragged = ragged || start != lengths_[0];
      kv_len = std::max<index_t>(kv_len, start + seq);
      for (index_t i = 0; i < seq; ++i) slots(b, i) = start + static_cast<std::int32_t>(i);
    }
    if (layer == 0) mark_padding(key_mask, slots);

    const auto device_slots = detail::on_backend(scratch, backend_, as_const_view(slots));
    append_to_cache(keys_[at], k, device_slots);
    append_to_cache(values_[at], v, device_slots);

    CacheStep<T, B> step;
    step.keys = as_const_view(keys_[at]).slice(1, 0, kv_len);
    step.values = as_const_view(values_[at]).slice(1, 0, kv_len);
    if (ragged)
      step.kv_lengths = detail::on_backend(
          scratch, backend_, TensorView<const std::int32_t, 1>(ends_.data(), Shape<1>{batch}));
    if (!positions_.empty()) {
      if constexpr (std::same_as<B, Cpu>) {
        step.kv_positions = as_const_view(positions_).slice(1, 0, kv_len);
      } else {
        auto dense = host.tensor<std::int32_t>(Shape{batch, kv_len});
        copy(dense, positions_.slice(1, 0, kv_len));
        step.kv_positions = detail::on_backend(scratch, backend_, as_const_view(dense));
      }
    }
    order_.advance(layer, shape_.layers, seq);
    if (layer == shape_.layers - 1) {
      if (length() == 0) first_length_ = seq;
      lengths_ = ends_;
    }
    return step;
  }

  /// What is kept of one layer [batch, length(), kv_heads, dim].
  TensorView<const T, 4, B> keys(index_t layer = 0) const {
    return keys_.at(static_cast<std::size_t>(layer)).slice(1, 0, length());
  }
  TensorView<const T, 4, B> values(index_t layer = 0) const {
    return values_.at(static_cast<std::size_t>(layer)).slice(1, 0, length());
  }

  /// Position of each token kept [batch, length()]; -1: padding, or beyond the end of a shorter
  /// row.
  Tensor<std::int32_t, 2> positions() const {
    const index_t longest = length();
    auto out = Tensor<std::int32_t, 2>::uninitialized(Shape{shape_.batch, longest});
    for (index_t b = 0; b < shape_.batch; ++b)
      for (index_t i = 0; i < longest; ++i)
        out(b, i) = i >= length(b)       ? -1
                    : positions_.empty() ? static_cast<std::int32_t>(i)
                                         : positions_(b, i);
    return out;
  }
  /// The lens, at `context` tokens (cache/footprint.hpp).
  Footprint footprint(index_t context) const {
    return rapt::footprint(KvGeometry{.layers = shape_.layers,
                                      .kv_heads = shape_.kv_heads,
                                      .head_dim = shape_.head_dim,
                                      .value_dim = shape_.value_dim,
                                      .element_bytes = static_cast<index_t>(sizeof(T)),
                                      .batch = shape_.batch},
                           context);
  }

  /// Forgets all tokens from position `length` on; more than the longest row holds: ValueError.
  void truncate(index_t length) {
    check_truncate(length, this->length());
    for (auto& l : lengths_) l = std::min(l, static_cast<std::int32_t>(length));
  }
  /// The same for one row.
  void truncate(index_t row, index_t length) {
    check_truncate(length, this->length(row));
    lengths_[checked_row(row)] = static_cast<std::int32_t>(length);
  }
  /// Empty again; the memory stays.
  void reset() {
    std::fill(lengths_.begin(), lengths_.end(), 0);
    positions_ = {};
    first_length_ = 0;
  }
  /// Room for `capacity` tokens, contents kept. Throws ValueError where they would not fit.
  void grow(index_t capacity) {
    if (capacity < length())
      throw ValueError(detail::text("kv_cache: capacity is ", capacity, ", expected at least ",
                                    length(), " = tokens held"));
    KvCacheShape shape = shape_;
    shape.capacity = capacity;
    KvCache grown(shape, backend_);
    const index_t kept = length();
    for (std::size_t layer = 0; layer < keys_.size(); ++layer) {
      copy(grown.keys_[layer].slice(1, 0, kept), keys_[layer].slice(1, 0, kept));
      copy(grown.values_[layer].slice(1, 0, kept), values_[layer].slice(1, 0, kept));
    }
    if (!positions_.empty()) {
      grown.make_positions();
      copy(grown.positions_.slice(1, 0, kept), positions_.slice(1, 0, kept));
    }
    grown.lengths_ = lengths_;
    grown.first_length_ = first_length_;
    *this = std::move(grown);
  }
  /// An independent copy: two continuations of one prompt.
  KvCache fork() const { return *this; }

  // ---- what a file holds (cache/cache_file.hpp) ----

  const KvCacheShape& shape() const { return shape_; }
  CacheState state() const {
    CacheState state{.lengths = lengths_, .first_length = first_length_};
    if (!positions_.empty()) state.positions = positions();
    return state;
  }
  /// Takes over another cache's state; keys and values are then to be filled in through visit().
  /// Throws ShapeError or ValueError, and changes nothing, where it does not fit.
  void restore(const CacheState& state) {
    detail::check_state("kv_cache.restore", state, state.lengths, shape_.batch, shape_.capacity,
                        shape_.capacity);
    for (index_t b = 0; b < state.positions.extent(0); ++b)
      for (index_t i = 0; i < state.positions.extent(1); ++i)
        if (const index_t p = state.positions(b, i); p != -1 && p != i)
          throw ValueError(detail::text("kv_cache.restore: position of slot ", i, " is ", p,
                                        ", expected ", i, " or -1"));
    reset();
    lengths_ = state.lengths;
    first_length_ = state.first_length;
    if (state.positions.empty()) return;
    make_positions();
    copy(positions_.slice(1, 0, length()), state.positions);
  }
  /// f(name, view) for what is kept of every layer.
  template <class F>
  void visit(F&& f) {
    for (index_t layer = 0; layer < shape_.layers; ++layer) {
      const auto at = static_cast<std::size_t>(layer);
      f(detail::text("keys.", layer), keys_[at].slice(1, 0, length()));
      f(detail::text("values.", layer), values_[at].slice(1, 0, length()));
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
  Shape<4> storage_shape(index_t capacity, index_t dim) const {
    return {shape_.batch, capacity, shape_.kv_heads, dim};
  }
  std::size_t checked_row(index_t row) const {
    if (row < 0 || row >= shape_.batch)
      throw ValueError(
          detail::text("kv_cache: row is ", row, ", expected 0 to ", shape_.batch - 1));
    return static_cast<std::size_t>(row);
  }
  static void check_truncate(index_t length, index_t held) {
    if (length < 0 || length > held)
      throw ValueError(detail::text("kv_cache.truncate: length is ", length, ", expected 0 to ",
                                    held, " = tokens held"));
  }
  void make_positions() {
    positions_ = Tensor<std::int32_t, 2>(Shape{shape_.batch, shape_.capacity});
    for (index_t b = 0; b < shape_.batch; ++b)
      for (index_t i = 0; i < shape_.capacity; ++i) positions_(b, i) = static_cast<std::int32_t>(i);
  }
  /// Slot s of row b stands at position s, or at -1 where it holds padding. The table exists once a
  /// mask has been given.
  void mark_padding(TensorView<const std::int32_t, 2> key_mask,
                    TensorView<const std::int32_t, 2> slots) {
    if (!key_mask && positions_.empty()) return;
    if (positions_.empty()) make_positions();
    for (index_t b = 0; b < slots.extent(0); ++b)
      for (index_t i = 0; i < slots.extent(1); ++i)
        positions_(b, slots(b, i)) = !key_mask || key_mask(b, i) != 0 ? slots(b, i) : -1;
  }

  KvCacheShape shape_;
  B backend_;
  std::vector<Tensor<T, 4, B>> keys_, values_;
  std::vector<std::int32_t> lengths_, ends_;
  Tensor<std::int32_t, 2> positions_;
  index_t first_length_ = 0;
  detail::StepOrder order_;
};

static_assert(KeyValueCache<KvCache<float, Cpu>>);

}  // namespace rapt
