// The lens: what an attention mechanism keeps, writes and reads while it decodes.
//
//   G kv_heads, d head_dim, dv value_dim, e bytes of an element, n tokens of context (the query's
//   own included), W window, S sink tokens:
//
//   kept tokens           n                              dense
//                         min(n, W + S)                  rolling window
//   stored per token      layers G (d + dv) e            as much is written for each new token
//   stored                batch kept G (d + dv) e layers
//   read per query        kept G (d + dv) e layers       one decode step of one sequence
//   multiply-adds         2 H (d + dv) kept layers FLOP  H query heads: 2 for q.k and 2 for p.v, d
//   = dv
//
// Reading dominates decoding, so a mechanism is as fast as its bytes per query are few: fewer
// key/value heads (G), fewer tokens (W), smaller elements (e). FLOP per byte grows with H / G, not
// with H.
//
//   auto lens = footprint(KvGeometry{.layers = 32, .heads = 32, .kv_heads = 8, .head_dim = 128,
//                                    .element_bytes = 2}, 8192);
//   lens.bytes_per_token;      // 131072
//   lens.bytes_read_per_query  // 1 GiB
//
// Footprints of layers of different kinds add up: footprint(local, n) + footprint(global, n).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <iterator>
#include <string>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"

namespace rapt {

/// What one mechanism keeps at a context of some tokens, for all its layers together.
struct Footprint {
  std::string mechanism;  // "GQA", "window 4096", ...
  std::string projected;  // what each token is projected to
  std::string cached;     // what is kept of it, and its shape
  index_t layers = 0;
  index_t batch = 1;
  index_t context = 0;          // tokens seen, the query's own included
  index_t kept_tokens = 0;      // of them still cached; of the layer that keeps most
  index_t bytes_per_token = 0;  // stored for one more token that is kept
  index_t bytes_stored = 0;     // at this context, all rows of the batch
  index_t bytes_written_per_token = 0;
  index_t bytes_read_per_query = 0;  // one decode step of one row at this context
  index_t flops_per_query = 0;       // in attention itself, without projections

  /// The mean over layers, exact where they are alike.
  index_t bytes_per_token_per_layer() const { return layers == 0 ? 0 : bytes_per_token / layers; }
  /// FLOP for each byte read; a machine that offers more than this waits for memory.
  double intensity() const {
    return bytes_read_per_query == 0
               ? 0.0
               : static_cast<double>(flops_per_query) / static_cast<double>(bytes_read_per_query);
  }

  /// Layers of two kinds in one model, at one context and batch.
  Footprint& operator+=(const Footprint& other) {
    const auto join = [](std::string& mine, const std::string& theirs) {
      if (mine.empty())
        mine = theirs;
      else if (!theirs.empty() && mine.find(theirs) == std::string::npos)
        mine += " + " + theirs;
    };
    join(mechanism, other.mechanism);
    join(projected, other.projected);
    join(cached, other.cached);
    batch = layers == 0 ? other.batch : batch;
    layers += other.layers;
    context = std::max(context, other.context);
    kept_tokens = std::max(kept_tokens, other.kept_tokens);
    bytes_per_token += other.bytes_per_token;
    bytes_stored += other.bytes_stored;
    bytes_written_per_token += other.bytes_written_per_token;
    bytes_read_per_query += other.bytes_read_per_query;
    flops_per_query += other.flops_per_query;
    return *this;
  }
  friend Footprint operator+(Footprint a, const Footprint& b) { return a += b; }
};

/// Sizes of a mechanism that caches keys and values by head. 0 means the default that is named.
struct KvGeometry {
  index_t layers = 1;
  index_t heads = 0;  // query heads; 0: kv_heads
  index_t kv_heads = 1;
  index_t head_dim = 1;
  index_t value_dim = 0;      // 0: head_dim
  index_t element_bytes = 4;  // of what is cached
  index_t window = 0;         // keys that stay; 0: all
  index_t sink_tokens = 0;    // first keys that stay beside a window
  index_t batch = 1;
};

/// See the formulas above. Throws ValueError for sizes that make no sense.
inline Footprint footprint(const KvGeometry& g, index_t context) {
  const auto at_least = [](const char* what, index_t value, index_t least) {
    if (value < least)
      throw ValueError(
          detail::text("footprint: ", what, " is ", value, ", expected at least ", least));
  };
  at_least("layers", g.layers, 0);
  at_least("heads", g.heads, 0);
  at_least("kv_heads", g.kv_heads, 1);
  at_least("head_dim", g.head_dim, 1);
  at_least("value_dim", g.value_dim, 0);
  at_least("element_bytes", g.element_bytes, 1);
  at_least("window", g.window, 0);
  at_least("sink_tokens", g.sink_tokens, 0);
  at_least("batch", g.batch, 0);
  at_least("context", context, 0);
  const index_t heads = g.heads > 0 ? g.heads : g.kv_heads;
  const index_t value_dim = g.value_dim > 0 ? g.value_dim : g.head_dim;
  if (heads % g.kv_heads != 0)
    throw ValueError(detail::text("footprint: heads is ", heads, ", expected a multiple of ",
                                  g.kv_heads, " = kv_heads"));

  Footprint f;
  f.mechanism = heads == 1            ? "single head"
                : g.kv_heads == heads ? "MHA"
                : g.kv_heads == 1     ? "MQA"
                                      : "GQA";
  if (g.window > 0) f.mechanism += detail::text(", window ", g.window);
  if (g.window > 0 && g.sink_tokens > 0)
    f.mechanism += detail::text(" + ", g.sink_tokens, " sink tokens");
  f.projected = detail::text("q ", heads, "x", g.head_dim, ", k ", g.kv_heads, "x", g.head_dim,
                             ", v ", g.kv_heads, "x", value_dim);
  f.layers = g.layers;
  f.batch = g.batch;
  f.context = context;
  // context - window first: window may be as large as an index_t can be.
  f.kept_tokens =
      g.window > 0 && context - g.window > g.sink_tokens ? g.window + g.sink_tokens : context;
  f.cached =
      detail::text("k [", g.batch, ", ", f.kept_tokens, ", ", g.kv_heads, ", ", g.head_dim,
                   "], v [", g.batch, ", ", f.kept_tokens, ", ", g.kv_heads, ", ", value_dim, "]");
  f.bytes_per_token = g.layers * g.kv_heads * (g.head_dim + value_dim) * g.element_bytes;
  f.bytes_stored = g.batch * f.kept_tokens * f.bytes_per_token;
  f.bytes_written_per_token = f.bytes_per_token;
  f.bytes_read_per_query = f.kept_tokens * f.bytes_per_token;
  f.flops_per_query = 2 * g.layers * heads * (g.head_dim + value_dim) * f.kept_tokens;
  return f;
}

/// 1048576 -> "1 MiB", 1536 -> "1.5 KiB": at most one decimal.
inline std::string human_bytes(index_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) value /= 1024, ++unit;
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  std::string number = text;
  if (number.ends_with(".0")) number.resize(number.size() - 2);
  return number + " " + kUnits[unit];
}

/// The head of a table of footprints, two lines of Markdown, and one line of it.
inline std::string footprint_table_head() {
  return "| mechanism | projected per token | cached per layer | per token and layer | per token "
         "| stored | read per query | FLOP/byte |\n|---|---|---|--:|--:|--:|--:|--:|\n";
}
inline std::string footprint_table_row(const Footprint& f) {
  char intensity[32];
  std::snprintf(intensity, sizeof intensity, "%.1f", f.intensity());
  return detail::text("| ", f.mechanism, " | ", f.projected, " | ", f.cached, " | ",
                      human_bytes(f.bytes_per_token_per_layer()), " | ",
                      human_bytes(f.bytes_per_token), " | ", human_bytes(f.bytes_stored), " | ",
                      human_bytes(f.bytes_read_per_query), " | ", intensity, " |\n");
}

}  // namespace rapt
