// What tells one attention layer from another, and what a call may bring besides x. The layer:
// modules/attention.hpp.
//
//   Attention<float> layer({.d_model = 512, .heads = 8, .kv_heads = 2, .rope = Rope{}});
//   y = layer.forward(x, cache, {.positions = positions});
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>

#include "rapt/core/error.hpp"
#include "rapt/core/kinds.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/rope/table.hpp"

namespace rapt {

/// Where the first tokens of StreamingLLM stand for the rotation (Xiao et al. 2023, section 3.2).
enum class SinkPositions {
  absolute,  // where they stand in the text
  in_cache,  // positions are counted inside the cache: no distance passes sink_tokens + window
};

/// Everything that tells one attention layer from another. 0 means the default that is named.
struct AttentionConfig {
  index_t d_model = 0;      // width of x and y; must be given
  index_t heads = 1;        // query heads
  index_t kv_heads = 0;     // key/value heads, a divisor of heads; 0: heads
  index_t head_dim = 0;     // of q and k; 0: d_model / heads
  index_t value_dim = 0;    // of v; 0: head_dim
  index_t window = 0;       // SlidingWindowAttention: keys a query sees, its own included
  index_t sink_tokens = 0;  // SlidingWindowAttention: first keys that stay visible
  SinkPositions sink_positions = SinkPositions::absolute;
  std::optional<Rope> rope = {};  // none: no rotation
  double scale = 0;               // of q·k; 0: 1 / sqrt(head_dim)
  double softcap = 0;             // cap * tanh(s / cap) on the scaled scores; 0: none (Gemma 2)
  bool qkv_bias = false;          // Qwen 2, gpt-oss
  bool out_bias = false;          // gpt-oss
  bool sinks = false;             // a learned sink logit per head (gpt-oss)
  bool output_gate = false;       // sigmoid gate on the result (Qwen3-Next)
  bool out_projection = true;     // false: the heads side by side are the result
  QkNorm qk_norm = QkNorm::none;  // head: Qwen 3, Gemma 3; flat: MiniMax M2
  double norm_eps = 1e-6;         // of the norms of q and k
  bool norm_plus_one = false;     // their stored weight is w of (1 + w) (Gemma)
};

namespace detail {

/// The config with its defaults filled in. Throws ShapeError or ValueError naming a setting that
/// does not fit.
inline AttentionConfig checked_config(AttentionConfig c) {
  const auto positive = [](const char* name, index_t value) {
    if (value < 1)
      throw ShapeError(text("attention: ", name, " is ", value, ", expected at least 1"));
  };
  positive("d_model", c.d_model);
  positive("heads", c.heads);
  if (c.kv_heads == 0) c.kv_heads = c.heads;
  positive("kv_heads", c.kv_heads);
  if (c.heads % c.kv_heads != 0)
    throw ShapeError(text("attention: kv_heads is ", c.kv_heads, ", expected a divisor of ",
                          c.heads, " = heads"));
  if (c.head_dim == 0) {
    if (c.d_model % c.heads != 0)
      throw ShapeError(text("attention: heads is ", c.heads, ", expected a divisor of ", c.d_model,
                            " = d_model, or a head_dim"));
    c.head_dim = c.d_model / c.heads;
  }
  positive("head_dim", c.head_dim);
  if (c.value_dim == 0) c.value_dim = c.head_dim;
  positive("value_dim", c.value_dim);
  const auto not_negative = [](const char* name, double value) {
    if (!(value >= 0) || !std::isfinite(value))
      throw ValueError(
          text("attention: ", name, " is ", value, ", expected 0 or a finite number above"));
  };
  not_negative("scale", c.scale);
  not_negative("softcap", c.softcap);
  not_negative("norm_eps", c.norm_eps);
  if (c.out_bias && !c.out_projection)
    throw ValueError("attention: out_bias is true, expected an out_projection to add it to");
  if (c.output_gate && c.value_dim != c.head_dim)
    throw ShapeError(text("attention: value_dim is ", c.value_dim, ", expected ", c.head_dim,
                          " = head_dim where there is an output_gate"));
  return c;
}

}  // namespace detail

/// The cosines and sines of one call [1 or batch, seq, rotary_dim / 2]: layers that turn alike
/// share them.
template <class T, class B>
using RopeAngles = typename RopeTable<accumulate_t<T>>::template Angles<B>;

/// What a forward call may bring besides x. Host views: positions and masks come with the token
/// ids.
template <class T, class B>
struct AttentionCall {
  /// Rotary position of each token [batch, seq]; absent: they continue the cache, from 0.
  TensorView<const std::int32_t, 2> positions{};
  /// 1 for a token, 0 for padding [batch, seq]: nobody sees a padded key. The rows of padded
  /// queries hold nothing of meaning.
  TensorView<const std::int32_t, 2> key_mask{};
  /// Out: the softmax weights [batch, heads, seq, keys].
  TensorView<accumulate_t<T>, 4, B> probabilities{};
  /// Which layer of a multi-layer cache to use.
  index_t layer = 0;
  /// Rotations computed by the caller for many layers; absent: computed here.
  RopeAngles<T, B> angles{};
  /// Documents packed into rows [batch, seq], without a cache: a token attends inside its run of
  /// equal ids, and positions restart where a run begins (modules/documents.hpp).
  TensorView<const std::int32_t, 2> document_ids{};
  /// The same as prefix sums on the backend [documents + 1], computed by the caller for many layers
  /// together with `angles`.
  TensorView<const std::int32_t, 1, B> cu_seqlens{};
};

/// A call without a cache as the kernels take it, on the backend: what forward and backward share.
template <class T, class B>
struct AttentionContext {
  RopeAngles<T, B> angles{};                            // absent: no rotation
  TensorView<const std::int32_t, 2, B> kv_positions{};  // -1: padding; absent: none is
  TensorView<const std::int32_t, 1, B> cu_seqlens{};    // absent: every row is one sequence
  TensorView<accumulate_t<T>, 4, B> probabilities{};    // out, see AttentionCall
};

}  // namespace rapt
