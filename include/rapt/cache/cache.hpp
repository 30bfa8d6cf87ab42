// What every cache of keys and values promises, and what attention reads from one.
//
// A step appends the same tokens to every layer, in order 0 .. layers - 1; the cache counts them
// when the last layer has them. A step that fails on the way leaves the cache as it was: the next
// one begins at layer 0 again.
//
//   auto step = cache.append(scratch, layer, k, v, key_mask);     // k, v [batch, seq, kv_heads,
//   dim] attention(out, q, step.keys, step.values, mask, score, {.kv_lengths = step.kv_lengths,
//   ...});
//
// length() counts tokens seen, of the longest row where rows differ. bytes() counts keys and
// values, exactly; the tables of lengths and positions beside them are bookkeeping_bytes(). fork()
// is an independent copy. Saving and loading: cache/cache_file.hpp.
#pragma once

#include <algorithm>
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
  TensorView<const T, 4, B> keys{};                     // [batch, kv_len, kv_heads, head_dim]
  TensorView<const T, 4, B> values{};                   // [batch, kv_len, kv_heads, value_dim]
  TensorView<const std::int32_t, 1, B> kv_lengths{};    // rows of different lengths
  TensorView<const std::int32_t, 2, B> q_positions{};   // keys out of order, or with a gap
  TensorView<const std::int32_t, 2, B> kv_positions{};  // the same, or padding (-1)
};

/// A cache of keys and values: KvCache, RollingKvCache, ...
template <class C>
concept KeyValueCache = requires(C c, const C k, index_t n) {
  typename C::value_type;
  typename C::backend_type;
  { k.layers() } -> std::same_as<index_t>;
  { k.batch() } -> std::same_as<index_t>;
  { k.length() } -> std::same_as<index_t>;  // tokens seen; of the longest row
  { k.bytes() } -> std::same_as<index_t>;   // of keys and values, allocated
  { k.offsets() } -> std::same_as<TensorView<const std::int32_t, 1>>;  // tokens seen, by row
  { k.length(n) } -> std::same_as<index_t>;                            // of row n
  { k.positions() } -> TensorLike<2>;  // of what is kept [batch, kept]; -1: nothing
  { k.keys(n) } -> TensorLike<4>;      // of layer n, as kept
  { k.values(n) } -> TensorLike<4>;
  k.check_room(n, n);  // throws CapacityError where a step would not fit
  c.truncate(n);
  c.truncate(n, n);  // row, length
  c.reset();
  { k.fork() } -> std::same_as<C>;
};

/// Stands in for a cache where there is none.
struct NoCache {};

/// What a cache knows beside its keys and values, as it is saved.
struct CacheState {
  std::vector<std::int32_t> lengths;    // tokens seen, by row
  std::vector<std::int32_t> reached{};  // a ring's: the most tokens seen since it was empty, by row
  Tensor<std::int32_t, 2> positions{};  // of the slots [batch, kept]; empty: slot s holds token s
  index_t first_length = 0;             // of the append that the sequence began with
};

namespace detail {

/// A host array where backend B can read it: itself on the CPU, else a copy in scratch.
template <class B, std::size_t Rank>
TensorView<const std::int32_t, Rank, B> on_backend(Scratch<B>& scratch, B backend,
                                                   TensorView<const std::int32_t, Rank> host) {
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
      throw ShapeError(text(name, ": ", what, " is ", value, ", expected at least ", least));
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

/// Throws unless a saved state fits a cache of `batch` rows with `slots` slots each, of which
/// `used`, by row, hold something.
inline void check_state(const char* operation, const CacheState& state,
                        const std::vector<std::int32_t>& used, index_t batch, index_t slots,
                        index_t capacity) {
  index_t longest = 0;
  for (const auto* lengths : {&state.lengths, &used}) {
    if (static_cast<index_t>(lengths->size()) != batch)
      throw ShapeError(text(operation, ": lengths is [", lengths->size(), "], expected [", batch,
                            "] = [batch]"));
    for (const std::int32_t length : *lengths) {
      if (length < 0 || length > capacity)
        throw ValueError(text(operation, ": a length is ", length, ", expected 0 to ", capacity));
      longest = std::max<index_t>(longest, length);
    }
  }
  if (!state.positions.empty())
    check_shape(operation, "positions", state.positions.shape(),
                Shape{batch, std::min(longest, slots)}, "[batch, kept]");
}

/// The order of the layers within a step.
class StepOrder {
 public:
  /// Throws ValueError unless `layer` begins a step or follows the one before with as many tokens.
  void check(const char* operation, index_t layer, index_t layers, index_t seq) const {
    if (layer < 0 || layer >= layers)
      throw ValueError(text(operation, ": layer is ", layer, ", expected 0 to ", layers - 1));
    if (layer != 0 && layer != next_)
      throw ValueError(text(operation, ": layer is ", layer, ", expected ", next_,
                            ": a step appends to every layer in turn, from 0"));
    if (layer != 0 && seq != seq_)
      throw ShapeError(text(operation, ": seq is ", seq, ", expected ", seq_,
                            " = the tokens of this step in layer 0"));
  }
  /// `layer` has its tokens.
  void advance(index_t layer, index_t layers, index_t seq) {
    next_ = layer + 1 == layers ? 0 : layer + 1;
    seq_ = seq;
  }

 private:
  index_t next_ = 0, seq_ = 0;
};

/// The shapes of one append; throws ShapeError naming what does not fit.
template <class T, class B>
void check_append(const char* operation, TensorView<const T, 4, B> k, TensorView<const T, 4, B> v,
                  TensorView<const std::int32_t, 2> key_mask, index_t batch, index_t kv_heads,
                  index_t head_dim, index_t value_dim) {
  const index_t seq = k.extent(1);
  check_shape(operation, "k", k.shape(), Shape{batch, seq, kv_heads, head_dim},
              "[batch, seq, kv_heads, head_dim]");
  check_shape(operation, "v", v.shape(), Shape{batch, seq, kv_heads, value_dim},
              "[batch, seq, kv_heads, value_dim]");
  if (key_mask)
    check_shape(operation, "key_mask", key_mask.shape(), Shape{batch, seq}, "[batch, seq]");
}

}  // namespace detail
}  // namespace rapt
