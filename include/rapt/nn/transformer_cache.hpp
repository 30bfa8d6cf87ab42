// The cache of a whole model: every token for global layers, a ring of the window for local ones.
//
//   global layers                 one KvCache [layers][batch, capacity, kv_heads, head_dim]
//   local layers of window w      one RollingKvCache [layers][batch, w, kv_heads, head_dim] for
//                                 each w; a KvCache where w >= capacity: a ring would be larger
//
//   bytes = sum over the parts. Gemma 3 270M at 32k tokens: 3 global layers of 18 keep 32768
//   tokens, 15 local ones keep 512.
#pragma once

#include <optional>
#include <utility>
#include <vector>

#include "rapt/cache/kv_cache.hpp"
#include "rapt/cache/rolling_kv_cache.hpp"
#include "rapt/io/model_config.hpp"

namespace rapt::nn {

template <class T = float, class B = Cpu>
class TransformerCache {
 public:
  using value_type = T;
  using backend_type = B;

  TransformerCache(const ModelConfig& model, index_t batch, index_t capacity, B backend = {})
      : batch_(batch), capacity_(capacity) {
    std::vector<std::pair<index_t, index_t>> windows;  // window, layers
    index_t global = 0;
    for (index_t layer = 0; layer < model.layers; ++layer) {
      const index_t window = model.window_of(layer);
      if (window == 0 || window >= capacity) {
        places_.push_back({-1, global++});
        continue;
      }
      std::size_t group = 0;
      while (group < windows.size() && windows[group].first != window) ++group;
      if (group == windows.size()) windows.push_back({window, 0});
      places_.push_back({static_cast<int>(group), windows[group].second++});
    }
    if (global > 0)
      full_.emplace(KvCacheShape{.layers = global,
                                 .batch = batch,
                                 .capacity = capacity,
                                 .kv_heads = model.kv_heads,
                                 .head_dim = model.head_dim},
                    backend);
    for (const auto& [window, layers] : windows)
      rings_.emplace_back(RollingKvCacheShape{.layers = layers,
                                              .batch = batch,
                                              .window = window,
                                              .kv_heads = model.kv_heads,
                                              .head_dim = model.head_dim},
                          backend);
  }

  index_t layers() const { return static_cast<index_t>(places_.size()); }
  index_t batch() const { return batch_; }
  index_t capacity() const { return capacity_; }
  /// Tokens seen, of the longest row; of every row (host [batch]).
  index_t length() const { return full_ ? full_->length() : rings_.front().length(); }
  TensorView<const std::int32_t, 1> offsets() const {
    return full_ ? full_->offsets() : rings_.front().offsets();
  }
  index_t rope_length(index_t seq) const {
    return full_ ? full_->rope_length(seq) : rings_.front().rope_length(seq);
  }
  /// Bytes of keys and values of all layers.
  index_t bytes() const {
    index_t total = full_ ? full_->bytes() : 0;
    for (const auto& ring : rings_) total += ring.bytes();
    return total;
  }
  /// Bytes of keys and values that one decoded token reads now.
  index_t bytes_read_per_token() const {
    index_t total = 0;
    for (std::size_t layer = 0; layer < places_.size(); ++layer)
      visit(static_cast<index_t>(layer), [&](const auto& part) {
        total += part.batch() * part.keys().extent(1) * part.kv_heads() *
                 (part.head_dim() + part.value_dim()) * static_cast<index_t>(sizeof(T));
      });
    return total;
  }

  /// Throws CapacityError unless `seq` more tokens fit, ShapeError for another batch.
  void check_room(index_t batch, index_t seq) const {
    if (batch != batch_)
      throw ShapeError(detail::text("transformer cache: batch of the tokens is ", batch,
                                    ", expected ", batch_, " = batch of the cache"));
    if (seq > capacity_ - length())
      throw CapacityError(detail::text("transformer cache: it holds ", length(), " of ", capacity_,
                                       " tokens and cannot take ", seq,
                                       " more; nothing was appended"));
  }

  /// f(part) with the cache that holds `layer`; its layer in there is index_in_group(layer).
  template <class F>
  void visit(index_t layer, F&& f) {
    const Place place = places_.at(static_cast<std::size_t>(layer));
    if (place.ring < 0)
      f(*full_);
    else
      f(rings_[static_cast<std::size_t>(place.ring)]);
  }
  template <class F>
  void visit(index_t layer, F&& f) const {
    const Place place = places_.at(static_cast<std::size_t>(layer));
    if (place.ring < 0)
      f(*full_);
    else
      f(rings_[static_cast<std::size_t>(place.ring)]);
  }
  index_t index_in_group(index_t layer) const {
    return places_.at(static_cast<std::size_t>(layer)).index;
  }

  /// Forgets tokens from position `length` on. Throws ValueError where a ring no longer keeps what
  /// that needs; nothing is truncated then.
  void truncate(index_t length) {
    for (const auto& ring : rings_) ring.check_truncate(length);
    if (full_) full_->truncate(length);
    for (auto& ring : rings_) ring.truncate(length);
  }
  void reset() {
    if (full_) full_->reset();
    for (auto& ring : rings_) ring.reset();
  }
  TransformerCache fork() const { return *this; }

 private:
  struct Place {
    int ring;  // -1: the full cache
    index_t index;
  };
  index_t batch_ = 0, capacity_ = 0;
  std::vector<Place> places_;
  std::optional<KvCache<T, B>> full_;
  std::vector<RollingKvCache<T, B>> rings_;
};

}  // namespace rapt::nn
