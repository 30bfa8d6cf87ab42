// What every cache of keys and values promises, and what attention reads from one.
//
// A step appends the same tokens to every layer, in order 0 .. layers - 1; the cache counts them when
// the last layer has them. A step that fails on the way leaves the cache as it was.
//
//   auto step = cache.append(scratch, layer, k, v, key_mask);     // k, v [batch, seq, kv_heads, dim]
//   attention(out, q, step.keys, step.values, mask, score, {.kv_lengths = step.kv_lengths, ...});
#pragma once

#include <concepts>
#include <cstdint>
#include <vector>

#include "rapt/core/scratch.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

/// Keys and values to attend over after an append: options of attention() that are absent mean what
/// they mean there.
template <class T, class B>
struct CacheStep {
  TensorView<const T, 4, B> keys{};                       // [batch, kv_len, kv_heads, head_dim]
  TensorView<const T, 4, B> values{};                     // [batch, kv_len, kv_heads, value_dim]
  TensorView<const std::int32_t, 1, B> kv_lengths{};      // rows of different lengths
  TensorView<const std::int32_t, 2, B> q_positions{};     // keys out of order, or with a gap
  TensorView<const std::int32_t, 2, B> kv_positions{};    // the same, or padding (-1)
};

/// A cache of keys and values: KvCache, RollingKvCache, ...
template <class C>
concept KeyValueCache = requires(C c, const C k, index_t n) {
  typename C::value_type;
  typename C::backend_type;
  { k.layers() } -> std::same_as<index_t>;
  { k.batch() } -> std::same_as<index_t>;
  { k.length() } -> std::same_as<index_t>;        // tokens seen; of the longest row
  { k.bytes() } -> std::same_as<index_t>;         // of keys and values, allocated
  { k.offsets() } -> std::same_as<TensorView<const std::int32_t, 1>>;  // tokens seen, by row
  k.check_room(n, n);                             // throws CapacityError where a step would not fit
  c.truncate(n);
  c.reset();
};

/// Stands in for a cache where there is none.
struct NoCache {};

namespace detail {

/// A host array where backend B can read it: itself on the CPU, else a copy in scratch.
template <class B, std::size_t Rank>
TensorView<const std::int32_t, Rank, B> on_backend(
    Scratch<B>& scratch, B backend, TensorView<const std::int32_t, Rank> host) {
  if constexpr (std::same_as<B, Cpu>) {
    (void)scratch, (void)backend;
    return host;
  } else {
    auto out = scratch.template tensor<std::int32_t>(host.shape());
    BackendTraits<B>::copy_from_host(backend, out.data(), host.data(),
                                     static_cast<std::size_t>(host.size()) * sizeof(std::int32_t));
    return out;
  }
}

inline void check_cache_dims(const char* name, index_t layers, index_t batch, index_t tokens,
                             index_t kv_heads, index_t head_dim, index_t value_dim) {
  const auto check = [&](const char* what, index_t value, index_t least) {
    if (value < least)
      throw ShapeError(
          text(name, ": ", what, " is ", value, ", expected at least ", least));
  };
  check("layers", layers, 1);
  check("batch", batch, 0);
  check("capacity", tokens, 0);
  check("kv_heads", kv_heads, 1);
  check("head_dim", head_dim, 1);
  check("value_dim", value_dim, 1);
  if (tokens > INT32_MAX)
    throw ShapeError(text(name, ": capacity is ", tokens, ", expected at most 2^31 - 1"));
}

/// The shapes of one append; throws ShapeError naming what does not fit.
template <class T, class B>
void check_append(const char* name, TensorView<const T, 4, B> k, TensorView<const T, 4, B> v,
                  TensorView<const std::int32_t, 2> key_mask, index_t layer, index_t layers,
                  index_t batch, index_t kv_heads, index_t head_dim, index_t value_dim) {
  if (layer < 0 || layer >= layers)
    throw ValueError(text(name, ": layer is ", layer, ", expected 0 to ", layers - 1));
  const index_t seq = k.extent(1);
  check_shape(text(name, ".append"), "k", k.shape(), Shape{batch, seq, kv_heads, head_dim},
              "[batch, seq, kv_heads, head_dim]");
  check_shape(text(name, ".append"), "v", v.shape(), Shape{batch, seq, kv_heads, value_dim},
              "[batch, seq, kv_heads, value_dim]");
  if (key_mask)
    check_shape(text(name, ".append"), "key_mask", key_mask.shape(), Shape{batch, seq},
                "[batch, seq]");
}

}  // namespace detail
}  // namespace rapt
