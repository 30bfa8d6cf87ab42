// Copies between shapes in memory, element types and backends.
//
//   copy(to, from);                    strided on both sides, converting, across backends
//   auto b = to<bfloat16>(t);          a new row-major tensor of another element type
//   auto d = to(Cuda{}, t);            a new row-major tensor on another backend
//
// Narrowing rounds to nearest even (core/dtype.hpp).
#pragma once

#include "rapt/core/backend.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

/// to[...] = from[...]. Throws ShapeError when the shapes differ.
template <class To, class From>
  requires(rank_v<To> == rank_v<From> && rank_v<To> > 0)
void copy(To&& to, const From& from) {
  constexpr std::size_t kRank = rank_v<To>;
  using TB = backend_t<To>;
  using FB = backend_t<From>;
  using TT = element_t<To>;
  using FT = element_t<From>;
  auto t = as_view(to);
  const auto f = as_const_view(from);
  detail::check_shape("copy", "from", f.shape(), t.shape(), "the shape of `to`");
  if (t.empty()) return;
  if constexpr (std::same_as<TB, FB>) {
    if constexpr (std::same_as<TT, FT>) {
      if (t.is_contiguous() && f.is_contiguous()) {
        BackendTraits<TB>::copy(t.backend(), t.data(), f.data(),
                                static_cast<std::size_t>(t.size()) * sizeof(TT));
        return;
      }
    }
    BackendTraits<TB>::copy_elements(t.backend(), t, f);
  } else if constexpr (std::same_as<FB, Cpu>) {
    // Convert on the host, cross once, spread on the device.
    Tensor<TT, kRank> host = Tensor<TT, kRank>::uninitialized(t.shape());
    copy(host, f);
    if (t.is_contiguous()) {
      BackendTraits<TB>::copy_from_host(t.backend(), t.data(), host.data(), host.bytes());
    } else {
      auto device = Tensor<TT, kRank, TB>::uninitialized(t.shape(), t.backend());
      BackendTraits<TB>::copy_from_host(t.backend(), device.data(), host.data(), host.bytes());
      copy(t, device);
      BackendTraits<TB>::synchronize(t.backend());
    }
  } else {
    static_assert(std::same_as<TB, Cpu>, "copy between two devices goes through the host");
    Tensor<FT, kRank> host = Tensor<FT, kRank>::uninitialized(f.shape());
    if (f.is_contiguous()) {
      BackendTraits<FB>::copy_to_host(f.backend(), host.data(), f.data(), host.bytes());
    } else {
      auto device = Tensor<FT, kRank, FB>::uninitialized(f.shape(), f.backend());
      copy(device, f);
      BackendTraits<FB>::copy_to_host(f.backend(), host.data(), device.data(), host.bytes());
    }
    copy(t, host);
  }
}

/// A new tensor with the elements of x as T, on x's backend.
template <class T, class X>
  requires(rank_v<X> > 0)
Tensor<T, rank_v<X>, backend_t<X>> to(const X& x) {
  const auto view = as_view(x);
  auto out = Tensor<T, rank_v<X>, backend_t<X>>::uninitialized(view.shape(), view.backend());
  copy(out, view);
  return out;
}

/// A new tensor with the elements of x, on `backend`.
template <class B, class X>
  requires(rank_v<X> > 0 && rank_v<B> == 0)
Tensor<element_t<X>, rank_v<X>, B> to(B backend, const X& x) {
  const auto view = as_view(x);
  auto out = Tensor<element_t<X>, rank_v<X>, B>::uninitialized(view.shape(), backend);
  copy(out, view);
  return out;
}

/// A new row-major tensor with the elements of x: x itself made contiguous.
template <class X>
  requires(rank_v<X> > 0)
Tensor<element_t<X>, rank_v<X>, backend_t<X>> clone(const X& x) {
  return to<element_t<X>>(x);
}

}  // namespace rapt

#include "rapt/cpu/copy.hpp"
