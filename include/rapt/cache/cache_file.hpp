// Caches in files: a long prompt is read once, and every later run begins behind it.
//
//   save(cache, "prompt.safetensors");
//   auto cache = model.make_cache(batch, capacity);
//   load(cache, "prompt.safetensors");               // goes on where the other stood
//
// One safetensors file, written atomically, with what is in use of every layer:
//
//   keys.<layer>, values.<layer>  [batch, kept, kv_heads, dim]   in the cache's element type
//   lengths [batch], first_length [1]   positions [batch, kept]   reached [batch] (rings)
//
// The cache of a whole model has parts; their names begin with "part.<n>.". Loading wants a cache
// of the same kind, layers, batch, heads and sizes, and room for the tokens; the capacity and the
// element type may differ. Errors: IoError; FormatError naming the file and what does not fit, and
// then the cache is as it was.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rapt/cache/cache.hpp"
#include "rapt/core/convert.hpp"
#include "rapt/io/safetensors.hpp"

namespace rapt {

/// A cache that is made of others, each with some of the layers: the one of a whole model.
template <class C>
concept CacheOfParts = requires(C c, index_t layer) {
  { c.index_in_group(layer) } -> std::same_as<index_t>;
  { c.fork() } -> std::same_as<C>;
};

template <class C>
concept SavedCache = KeyValueCache<C> || CacheOfParts<C>;

namespace detail {

/// f(prefix of its names, part) for every part, or for the cache itself.
template <class C, class F>
void for_each_part(C& cache, F f) {
  if constexpr (CacheOfParts<std::remove_const_t<C>>) {
    index_t parts = 0;
    for (index_t layer = 0; layer < cache.layers(); ++layer)
      if (cache.index_in_group(layer) == 0)  // the first layer of a part
        cache.visit(layer, [&](auto& part) { f(text("part.", parts++, "."), part); });
  } else {
    f(std::string(), cache);
  }
}

/// Throws FormatError unless tensor `name` of `file` has exactly this shape.
template <std::size_t Rank>
void expect_shape(const SafetensorsFile& file, const std::string& name, const Shape<Rank>& shape) {
  const auto& found = file.info(name).shape;
  if (!std::equal(found.begin(), found.end(), shape.begin(), shape.end()))
    throw FormatError(text(file.source(), ": tensor ", name, " is ", shape_text(found),
                           ", expected ", shape_text(shape), " for this cache"));
}

template <class C>
CacheState read_cache_state(const SafetensorsFile& file, const std::string& prefix,
                            const C& cache) {
  CacheState state;
  const auto rows = [&](const std::string& name) {
    expect_shape(file, name, Shape{cache.batch()});
    std::vector<std::int32_t> out(static_cast<std::size_t>(cache.batch()));
    file.read(name, std::span<std::int32_t>(out));
    return out;
  };
  state.lengths = rows(prefix + "lengths");
  if (file.has(prefix + "reached")) state.reached = rows(prefix + "reached");
  if (file.has(prefix + "positions"))
    state.positions = file.load<std::int32_t, 2>(prefix + "positions");
  expect_shape(file, prefix + "first_length", Shape<1>{1});
  file.read(prefix + "first_length", std::span<index_t>(&state.first_length, 1));
  return state;
}

template <class C>
void read_cache(const SafetensorsFile& file, const std::string& prefix, C& cache) {
  const CacheState state = read_cache_state(file, prefix, cache);
  try {
    cache.restore(state);
  } catch (const std::invalid_argument& error) {
    throw FormatError(text(file.source(), ": ", error.what()));
  }
  index_t tensors = 0;
  cache.visit([&](const std::string& name, auto view) {
    ++tensors;
    expect_shape(file, prefix + name, view.shape());
    using T = typename decltype(view)::value_type;
    copy(view, file.load<T, 4>(prefix + name));
  });
  if (const std::string next = text(prefix, "keys.", tensors / 2); file.has(next))
    throw FormatError(text(file.source(), ": has tensor ", next, ", expected ", tensors / 2,
                           " layers for this cache"));
}

}  // namespace detail

/// Writes what the cache holds; an interrupted save leaves the file that was there.
template <SavedCache C>
void save(const C& cache, const std::filesystem::path& path) {
  std::vector<TensorSpec> specs;
  const auto extents = [](const auto& view) {
    return std::vector<index_t>(view.shape().begin(), view.shape().end());
  };
  detail::for_each_part(cache, [&](const std::string& prefix, const auto& part) {
    const CacheState state = part.state();
    specs.push_back({prefix + "lengths", DType::i32, {part.batch()}});
    specs.push_back({prefix + "first_length", DType::i64, {1}});
    if (!state.reached.empty()) specs.push_back({prefix + "reached", DType::i32, {part.batch()}});
    if (!state.positions.empty())
      specs.push_back({prefix + "positions", DType::i32, extents(state.positions)});
    part.visit([&](const std::string& name, auto view) {
      using T = typename decltype(view)::value_type;
      specs.push_back({prefix + name, dtype_of<T>, extents(view)});
    });
  });
  SafetensorsWriter writer(path, std::move(specs), {{"format", "rapt.cache"}});
  detail::for_each_part(cache, [&](const std::string&, const auto& part) {
    const CacheState state = part.state();
    writer.write(state.lengths);
    writer.write(std::span<const index_t>(&state.first_length, 1));
    if (!state.reached.empty()) writer.write(state.reached);
    if (!state.positions.empty()) writer.write(as_const_view(state.positions));
    part.visit([&](const std::string&, auto view) {
      if constexpr (std::same_as<typename decltype(view)::backend_type, Cpu>)
        writer.write(view);
      else
        writer.write(as_const_view(to(Cpu{}, view)));
    });
  });
  writer.finish();
}

/// Makes `cache` hold what the file holds.
template <SavedCache C>
void load(C& cache, const std::filesystem::path& path) {
  const SafetensorsFile file = SafetensorsFile::open(path);
  C loaded = cache.fork();  // so that a file that does not fit changes nothing
  detail::for_each_part(loaded, [&](const std::string& prefix, auto& part) {
    detail::read_cache(file, prefix, part);
  });
  cache = std::move(loaded);
}

}  // namespace rapt
