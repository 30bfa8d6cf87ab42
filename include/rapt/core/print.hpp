// Tensors as text, for looking at them: to_string(t) and os << t.
//
//   to_string(t)   "[2, 3]\n[[1, 2, 3],\n [4, 5, 6]]": shape first; long axes are shortened to their
//                  first and last three entries.
#pragma once

#include <ostream>
#include <string>

#include "rapt/core/convert.hpp"

namespace rapt {

namespace detail {

template <class T, std::size_t Rank>
void print_into(std::string& out, TensorView<const T, Rank> t, std::size_t indent) {
  constexpr index_t kEdge = 3;
  out += '[';
  for (index_t i = 0; i < t.extent(0); ++i) {
    if (t.extent(0) > 2 * kEdge + 1 && i == kEdge) {
      out += Rank == 1 ? ", ..." : ",\n" + std::string(indent + 1, ' ') + "...";
      i = t.extent(0) - kEdge - 1;
      continue;
    }
    if (i > 0) out += Rank == 1 ? ", " : ",\n" + std::string(indent + 1, ' ');
    if constexpr (Rank == 1) {
      if constexpr (std::is_integral_v<T>)
        out += std::to_string(t(i));
      else
        out += to_text(convert<double>(t(i)));
    } else {
      print_into(out, t.select(0, i), indent + 1);
    }
  }
  out += ']';
}

}  // namespace detail

template <class X>
  requires(rank_v<X> > 0)
std::string to_string(const X& x) {
  const auto host = to(Cpu{}, as_view(x));
  std::string out = detail::shape_text(host.shape()) + "\n";
  detail::print_into(out, as_const_view(host), 0);
  return out;
}

template <class X>
  requires(rank_v<X> > 0)
std::ostream& operator<<(std::ostream& os, const X& x) {
  return os << to_string(x);
}

}  // namespace rapt
