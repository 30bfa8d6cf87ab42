// PackedMatrix: the second factor of a matrix product in the order in which the backend reads it.
//
//   PackedMatrix<float> packed(w.transpose());     b [k, n], once
//   matmul(y, x, packed);                          y [m, n] = x [m, k] b, for any m
//   packed.unpack(w.transpose());                  the elements back, exactly
//
// A product packs its factors as it goes, which a prompt of a few dozen tokens does not earn back:
// a weight that stays the same is packed ahead. One packed copy serves one row, read at the speed
// of memory, and a thousand; it takes no more bytes than the elements, but for the last columns,
// which fill up whole registers. Values, 16-bit ones too, are kept as they are.
#pragma once

#include "rapt/core/ops/matmul.hpp"

namespace rapt {

/// A backend that multiplies with packed matrices. On others a weight stays as it is.
template <class B, class T = float>
concept PacksMatrices = requires(B b, TensorView<T, 2, B> out, TensorView<const T, 2, B> in,
                                 TensorView<T, 1, B> packed, TensorView<const T, 1, B> from,
                                 MatmulOptions<T, B> options) {
  { BackendTraits<B>::template packed_size<T>(b, index_t{}, index_t{}) } -> std::same_as<index_t>;
  BackendTraits<B>::pack(b, packed, in);
  BackendTraits<B>::unpack(b, out, from);
  BackendTraits<B>::packed_matmul(b, out, in, from, options);
};

template <class T, class B = Cpu>
class PackedMatrix {
 public:
  PackedMatrix() = default;
  explicit PackedMatrix(TensorView<const T, 2, B> b) requires PacksMatrices<B, T>
      : shape_(b.shape()),
        memory_(Tensor<T, 1, B>::uninitialized(
            Shape{BackendTraits<B>::template packed_size<T>(b.backend(), b.extent(0), b.extent(1))},
            b.backend())) {
    detail::check_one_contiguous_axis("packed_matrix", "b", b);
    BackendTraits<B>::pack(b.backend(), memory_.view(), b);
  }

  /// [k, n]
  Shape<2> shape() const { return shape_; }
  bool empty() const { return memory_.empty(); }
  index_t bytes() const { return static_cast<index_t>(memory_.bytes()); }
  TensorView<const T, 1, B> memory() const { return memory_.view(); }

  /// Throws ShapeError where b is not of this shape or has no contiguous axis.
  void unpack(TensorView<T, 2, B> b) const requires PacksMatrices<B, T> {
    detail::check_shape("packed_matrix.unpack", "b", b.shape(), shape_, "[k, n]");
    BackendTraits<B>::unpack(b.backend(), b, memory());
  }

 private:
  Shape<2> shape_{};
  Tensor<T, 1, B> memory_;
};

/// out = a b (+ bias) (+ out), as matmul() of core/ops/matmul.hpp.
template <WritableTensorLike<2> Out, TensorLike<2> A, class T, class B>
requires PacksMatrices<B, T> && std::same_as<element_t<A>, T> && HoldsSumsOf<Out, A>
void matmul(Out&& out, const A& a, const PackedMatrix<T, B>& b,
            const MatmulOptions<T, B>& options = {}) {
  const auto o = as_view(out);
  const auto av = as_const_view(a);
  const index_t m = av.extent(0), k = b.shape()[0], n = b.shape()[1];
  detail::check_shape("matmul", "a", av.shape(), Shape{m, k}, "[m, k]");
  detail::check_shape("matmul", "out", o.shape(), Shape{m, n}, "[m, n]");
  detail::check_vector("matmul", "bias", options.bias, n, "[n]");
  detail::check_last_axis("matmul", "out", o);
  detail::check_one_contiguous_axis("matmul", "a", av);
  BackendTraits<B>::packed_matmul(o.backend(), o, av, b.memory(), options);
}

}  // namespace rapt
