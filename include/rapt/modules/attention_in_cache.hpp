// The attention module with positions counted inside the cache (SinkPositions::in_cache).
//
//   kept tokens                the first `sink_tokens`   | the newest `window`, oldest first
//   positions they turn by     0 ... sink_tokens - 1     | sink_tokens ... sink_tokens + window - 1
//
// No distance passes sink_tokens + window, however long the text. Keys enter the cache unrotated,
// and each step rotates what is kept by its place. While nothing is evicted these are the ordinary
// positions, and a chunk goes in one piece; from then on every token shifts them, and goes alone.
//
// Source: StreamingLLM, Xiao et al. 2023, arXiv:2309.17453, section 3.2.
#pragma once

#include "rapt/modules/attention.hpp"

namespace rapt {

template <class T, class B, AttentionMask Mask>
template <class C>
void Attention<T, B, Mask>::attend_in_cache(TensorView<T, 4, B> merged, TensorView<T, 4, B> q,
                                            TensorView<T, 4, B> k, TensorView<T, 4, B> v, C& cache,
                                            const Call& call) const {
  if constexpr (std::same_as<C, NoCache>) {
    RollingKvCache<T, B> rolling = make_rolling_cache(q.extent(0));
    attend_in_cache(merged, q, k, v, rolling, call);
  } else if constexpr (!std::same_as<C, RollingKvCache<T, B>>) {
    throw ValueError(
        "attention: the cache keeps every token, expected a RollingKvCache where sink_positions is "
        "in_cache");
  } else {
    if (call.positions || call.probabilities)
      throw ValueError(
          "attention: positions or probabilities are given, expected neither where "
          "sink_positions is in_cache");
    if (cache.layers() != 1)
      throw ValueError(detail::text("attention: the cache has ", cache.layers(),
                                    " layers, expected 1 where sink_positions is in_cache: a chunk "
                                    "goes in token by token"));
    const index_t seq = q.extent(1);
    for (index_t begin = 0; begin < seq;) {
      const index_t whole = std::min(seq - begin, cache.slots() - cache.length());
      const index_t end = begin + std::max<index_t>(whole, 1);
      Scratch<B> scratch(backend_);
      const auto rows = [&](auto t) { return t.slice(1, begin, end); };
      const index_t first = cache.length();
      CacheStep<T, B> step =
          cache.append(scratch, call.layer, rows(k), rows(v),
                       call.key_mask ? call.key_mask.slice(1, begin, end) : call.key_mask);
      const index_t total = first + (end - begin);
      const index_t oldest = std::max(config_.sink_tokens, total - cache.window());
      const auto place = [&](index_t p) {
        return p < config_.sink_tokens ? p : config_.sink_tokens + (p - oldest);
      };
      auto turned = scratch.template tensor<T>(step.keys.shape());
      copy(turned, step.keys);
      if (rope_) {
        const auto query = rows(q);
        rotate_by(
            query, [&](index_t, index_t i) { return place(first + i); }, scratch);
        rotate_by(
            turned,
            [&](index_t, index_t slot) {
              // The newest position that lies in this slot.
              if (slot < config_.sink_tokens || total <= cache.slots()) return place(slot);
              const index_t ring = slot - config_.sink_tokens;
              const index_t newest = total - 1 - config_.sink_tokens;
              return place(config_.sink_tokens + newest - (newest - ring) % cache.window());
            },
            scratch);
      }
      step.keys = turned;
      attend_step(rows(merged), rows(q), step, call);
      begin = end;
    }
  }
}

/// Rotates x [batch, n, heads, dim] with row i at position place(b, i), alike in every sequence.
template <class T, class B, AttentionMask Mask>
template <class Place>
void Attention<T, B, Mask>::rotate_by(TensorView<T, 4, B> x, Place place,
                                      Scratch<B>& scratch) const {
  const Shape<2> shape{1, x.extent(1)};
  const auto turn = [&](TensorView<std::int32_t, 2> rows) {
    for (index_t i = 0; i < x.extent(1); ++i) rows(0, i) = static_cast<std::int32_t>(place(0, i));
    const auto by = rope_->angles(scratch, backend_, as_const_view(rows));
    rapt::rope(x, by.cos, by.sin, rope_->options());
  };
  // On the CPU both live on one stack, and the angles must not outlive the rows below them.
  if constexpr (std::same_as<B, Cpu>) {
    turn(scratch.template tensor<std::int32_t>(shape));
  } else {
    Scratch<Cpu> host;
    turn(host.template tensor<std::int32_t>(shape));
  }
}

}  // namespace rapt
