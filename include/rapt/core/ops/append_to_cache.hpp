// New keys or values into a cache.
//
//   cache[b, slots[b, i], g, :] = x[b, i, g, :]         a negative slot is skipped (padding)
//
//   cache [batch, capacity, kv_heads, dim]   x [batch, seq, kv_heads, dim]   slots [batch, seq]
//   int32
//
// A slot beyond the capacity throws ValueError before anything is written.
#pragma once

#include "rapt/core/ops/checks.hpp"

namespace rapt {

template <WritableTensorLike<4> Cache, TensorLike<4> X, TensorLike<2> Slots>
requires(SameElements<Cache, X>&& std::same_as<
         element_t<Slots>, std::int32_t>) void append_to_cache(Cache&& cache, const X& x,
                                                               const Slots& slots) {
  const auto c = as_view(cache);
  const auto xv = as_const_view(x);
  const auto s = as_const_view(slots);
  detail::check_shape("append_to_cache", "x", xv.shape(),
                      Shape{c.extent(0), xv.extent(1), c.extent(2), c.extent(3)},
                      "[batch, seq, kv_heads, dim]");
  detail::check_shape("append_to_cache", "slots", s.shape(), Shape{xv.extent(0), xv.extent(1)},
                      "[batch, seq]");
  detail::check_last_axis("append_to_cache", "cache", c);
  detail::check_last_axis("append_to_cache", "x", xv);
  BackendTraits<backend_t<Cache>>::append_to_cache(c.backend(), c, xv, s);
}

}  // namespace rapt

#include "rapt/cpu/append_to_cache.hpp"
