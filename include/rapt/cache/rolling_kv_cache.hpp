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
// One token is written into the ring and attends to the slots as they lie: softmax does not mind the
// order, and masks get each slot's true position. A chunk of several tokens must not overwrite keys
// that its own first queries still see, so it attends to [sinks, old ring in order, chunk] in scratch,
// and its tail enters the ring. Truncating works while nothing has been evicted; later it throws
// ValueError, because the older tokens are gone.
//
// Sources: rolling buffer: Jiang et al. 2023, arXiv:2310.06825; first tokens kept: Xiao et al. 2023,
// arXiv:2309.17453.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "rapt/cache/cache.hpp"
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
      throw ShapeError(detail::text("rolling_kv_cache: window is ", shape_.window,
                                    ", expected 1 to 2^31 - 1"));
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
    offsets_.assign(static_cast<std::size_t>(shape_.batch), 0);
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

  /// Tokens seen; rows advance together.
  index_t length() const { return length_; }
  index_t length(index_t) const { return length_; }
  /// Tokens that are kept now.
  index_t kept() const { return std::min(length_, slots()); }
  TensorView<const std::int32_t, 1> offsets() const {
    return {offsets_.data(), Shape<1>{shape_.batch}};
  }
  /// See KvCache::rope_length.
  index_t rope_length(index_t seq) const { return length_ > 0 ? first_length_ : seq; }

  index_t bytes() const {
    return shape_.layers * shape_.batch * slots() * shape_.kv_heads *
           (shape_.head_dim + shape_.value_dim) * static_cast<index_t>(sizeof(T));
  }

  /// A ring is never full; positions end at 2^31 - 1.
  void check_room(index_t batch, index_t seq) const {
    if (batch != shape_.batch)
      throw ShapeError(detail::text("rolling_kv_cache: batch of the tokens is ", batch,
                                    ", expected ", shape_.batch, " = batch of the cache"));
    if (seq > INT32_MAX - length_)
      throw CapacityError(detail::text("rolling_kv_cache: it has seen ", length_,
                                       " tokens and cannot take ", seq,
                                       " more: positions end at 2^31 - 1"));
  }

  /// As KvCache::append.
  CacheStep<T, B> append(Scratch<B>& scratch, index_t layer, TensorView<const T, 4, B> k,
                         TensorView<const T, 4, B> v,
                         TensorView<const std::int32_t, 2> key_mask = {}) {
    detail::check_append<T, B>("rolling_kv_cache", k, v, key_mask, layer, shape_.layers,
                               shape_.batch, shape_.kv_heads, shape_.head_dim, shape_.value_dim);
    const index_t seq = k.extent(1);
    check_room(k.extent(0), seq);
    if (layer == 0) plan(key_mask, seq);

    const index_t end = length_ + seq;
    const bool evicts = end > slots();
    CacheStep<T, B> step;
    if (!evicts || seq == 1) {
      write(scratch, layer, k, v);
      const index_t held = std::min(end, slots());
      step.keys = as_const_view(keys_[index(layer)]).slice(1, 0, held);
      step.values = as_const_view(values_[index(layer)]).slice(1, 0, held);
      if (evicts || padded_)
        step.kv_positions = host_rows(scratch, as_const_view(next_positions_).slice(1, 0, held));
    } else {
      read_before_write(scratch, layer, k, v, key_mask, step);
      write(scratch, layer, k, v);
    }
    if (step.kv_positions) step.q_positions = query_positions(scratch, seq);
    if (layer == shape_.layers - 1) commit(seq);
    return step;
  }

  /// Keys and values as they lie in their slots [batch, kept(), kv_heads, dim].
  TensorView<const T, 4, B> keys(index_t layer = 0) const {
    return keys_.at(index(layer)).slice(1, 0, kept());
  }
  TensorView<const T, 4, B> values(index_t layer = 0) const {
    return values_.at(index(layer)).slice(1, 0, kept());
  }
  /// Position of each slot [batch, kept()]; -1: padding.
  TensorView<const std::int32_t, 2> positions() const {
    return positions_.slice(1, 0, kept());
  }

  /// Forgets all tokens from position `length` on. Throws ValueError where that needs tokens which
  /// are no longer kept.
  void truncate(index_t length) {
    check_truncate(length);
    if (length == length_) return;
    if (length == 0) return reset();
    for (index_t b = 0; b < shape_.batch; ++b)
      for (index_t slot = length; slot < slots(); ++slot) positions_(b, slot) = -1;
    set_length(length);
  }
  void check_truncate(index_t length) const {
    if (length < 0 || length > length_)
      throw ValueError(detail::text("rolling_kv_cache.truncate: length is ", length,
                                    ", expected 0 to ", length_, " = tokens seen"));
    if (length != length_ && length != 0 && length_ > slots())
      throw ValueError(detail::text("rolling_kv_cache.truncate: length is ", length, ", but of ",
                                    length_, " tokens seen only ", slots(),
                                    " are kept: the older ones are gone"));
  }
  void reset() {
    fill_positions();
    padded_ = false;
    first_length_ = 0;
    set_length(0);
  }
  RollingKvCache fork() const { return *this; }

 private:
  static std::size_t index(index_t layer) { return static_cast<std::size_t>(layer); }
  index_t slot_of(index_t position) const {
    const index_t s = shape_.sink_tokens;
    return position < s ? position : s + (position - s) % shape_.window;
  }
  void fill_positions() {
    for (index_t i = 0; i < positions_.size(); ++i) positions_.data()[i] = -1;
    next_positions_ = positions_;
  }
  void set_length(index_t length) {
    length_ = length;
    std::fill(offsets_.begin(), offsets_.end(), static_cast<std::int32_t>(length));
  }

  /// Decides, once for all layers of a step, where each token goes (-1: nowhere) and what the slots
  /// will hold.
  void plan(TensorView<const std::int32_t, 2> key_mask, index_t seq) {
    std::copy_n(positions_.data(), positions_.size(), next_positions_.data());
    plan_.resize(static_cast<std::size_t>(shape_.batch * seq));
    const index_t end = length_ + seq;
    for (index_t b = 0; b < shape_.batch; ++b)
      for (index_t i = 0; i < seq; ++i) {
        const index_t p = length_ + i;
        const bool keep = p < shape_.sink_tokens || p >= end - shape_.window;
        const index_t slot = keep ? slot_of(p) : -1;
        plan_[static_cast<std::size_t>(b * seq + i)] = static_cast<std::int32_t>(slot);
        const bool token = !key_mask || key_mask(b, i) != 0;
        padded_ = padded_ || !token;
        if (keep) next_positions_(b, slot) = token ? static_cast<std::int32_t>(p) : -1;
      }
  }

  void write(Scratch<B>& scratch, index_t layer, TensorView<const T, 4, B> k,
             TensorView<const T, 4, B> v) {
    const TensorView<const std::int32_t, 2> host(plan_.data(), Shape{k.extent(0), k.extent(1)});
    const auto slots = detail::on_backend(scratch, backend_, host);
    append_to_cache(keys_[index(layer)], k, slots);
    append_to_cache(values_[index(layer)], v, slots);
  }

  /// [sinks, old ring in order of position, chunk] in scratch; an empty cache needs no copy.
  void read_before_write(Scratch<B>& scratch, index_t layer, TensorView<const T, 4, B> k,
                         TensorView<const T, 4, B> v, TensorView<const std::int32_t, 2> key_mask,
                         CacheStep<T, B>& step) {
    const index_t batch = shape_.batch, seq = k.extent(1);
    if (length_ == 0 && !padded_) {
      step.keys = k;
      step.values = v;
      return;
    }
    const index_t sinks = std::min(length_, shape_.sink_tokens);
    // The oldest key that the first query of the chunk still sees.
    const index_t first = std::max(sinks, length_ - shape_.window + 1);
    const index_t old = sinks + std::max<index_t>(length_ - first, 0), total = old + seq;

    auto keys = scratch.template tensor<T>(Shape{batch, total, shape_.kv_heads, shape_.head_dim});
    auto values =
        scratch.template tensor<T>(Shape{batch, total, shape_.kv_heads, shape_.value_dim});
    const auto gather = [&](auto to, auto ring, auto chunk) {
      copy(to.slice(1, 0, sinks), ring.slice(1, 0, sinks));
      index_t at = sinks;
      for (index_t p = first; p < length_;) {  // at most two runs: to the ring's end, and from its start
        const index_t slot = slot_of(p);
        const index_t run = std::min(length_ - p, slots() - slot);
        copy(to.slice(1, at, at + run), ring.slice(1, slot, slot + run));
        at += run;
        p += run;
      }
      copy(to.slice(1, at, at + seq), chunk);
    };
    gather(keys, as_const_view(keys_[index(layer)]), k);
    gather(values, as_const_view(values_[index(layer)]), v);
    step.keys = keys;
    step.values = values;

    const auto fill = [&](TensorView<std::int32_t, 2> out) {
      for (index_t b = 0; b < batch; ++b) {
        index_t at = 0;
        for (index_t p = 0; p < sinks; ++p) out(b, at++) = positions_(b, p);
        for (index_t p = first; p < length_; ++p) out(b, at++) = positions_(b, slot_of(p));
        for (index_t i = 0; i < seq; ++i)
          out(b, at++) =
              !key_mask || key_mask(b, i) != 0 ? static_cast<std::int32_t>(length_ + i) : -1;
      }
    };
    step.kv_positions = made_on_host(scratch, Shape{batch, total}, fill);
  }

  TensorView<const std::int32_t, 2, B> query_positions(Scratch<B>& scratch, index_t seq) const {
    return made_on_host(scratch, Shape{shape_.batch, seq}, [&](TensorView<std::int32_t, 2> out) {
      for (index_t b = 0; b < out.extent(0); ++b)
        for (index_t i = 0; i < seq; ++i) out(b, i) = static_cast<std::int32_t>(length_ + i);
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

  void commit(index_t seq) {
    if (length_ == 0) first_length_ = seq;
    positions_.swap(next_positions_);
    set_length(length_ + seq);
  }

  RollingKvCacheShape shape_;
  B backend_;
  std::vector<Tensor<T, 4, B>> keys_, values_;
  Tensor<std::int32_t, 2> positions_, next_positions_;  // [batch, slots]; -1: empty or padding
  std::vector<std::int32_t> plan_;                      // [batch, seq]
  std::vector<std::int32_t> offsets_;
  index_t length_ = 0, first_length_ = 0;
  bool padded_ = false;
};

static_assert(KeyValueCache<RollingKvCache<float, Cpu>>);

}  // namespace rapt
