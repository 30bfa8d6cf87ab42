// Checks that the front ends of the operations share. They run before anything is written.
#pragma once

#include <concepts>

#include "rapt/core/backend.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

/// Tensors of one element type on one backend, as one call needs them.
template <class First, class... Rest>
concept SameElements = (std::same_as<element_t<First>, element_t<Rest>> && ...) &&
                       (std::same_as<backend_t<First>, backend_t<Rest>> && ...);

/// Holds sums of products of the others' elements: in their type, or unrounded.
template <class Out, class First, class... Rest>
concept HoldsSumsOf = SameElements<First, Rest...> &&
    std::same_as<backend_t<Out>, backend_t<First>> &&
    (std::same_as<element_t<Out>, element_t<First>> ||
     std::same_as<element_t<Out>, accumulate_t<element_t<First>>>);

/// Can be written and holds sums of the elements of another tensor, unrounded.
template <class X, std::size_t Rank, class Of>
concept SumsLike = WritableTensorLike<X, Rank> && std::same_as<backend_t<X>, backend_t<Of>> &&
    std::same_as<element_t<X>, accumulate_t<element_t<Of>>>;

/// Token ids.
template <class X, std::size_t Rank>
concept IdsLike = TensorLike<X, Rank> && std::same_as<element_t<X>, std::int32_t>;

/// A tensor that operations take as rows of its last axis.
template <class X>
concept HasRows = 2 <= rank_v<X>&& rank_v<X> <= 4;

/// Out can be written, and all are rows of one rank and one element type.
template <class Out, class... In>
concept RowsLike = HasRows<Out> && WritableTensorLike<Out, rank_v<Out>> &&
                   (TensorLike<In, rank_v<Out>>&&...) &&
                   SameElements<Out, In...>;

namespace detail {

/// Throws ShapeError unless neighbours along one of the two axes lie side by side.
template <class T, class B>
void check_one_contiguous_axis(std::string_view operation, std::string_view name,
                               const TensorView<T, 2, B>& x) {
  const bool along_rows = x.extent(1) <= 1 || x.stride(1) == 1;
  const bool along_columns = x.extent(0) <= 1 || x.stride(0) == 1;
  if (!along_rows && !along_columns && !x.empty())
    throw ShapeError(text(operation, ": ", name, " has strides ", shape_text(x.strides()),
                          ", expected 1 along one of its axes"));
}

/// Throws ShapeError unless neighbours along the last axis lie side by side.
template <class T, std::size_t Rank, class B>
void check_last_axis(std::string_view operation, std::string_view argument,
                     const TensorView<T, Rank, B>& view) {
  if (view.extent(Rank - 1) > 1 && view.stride(Rank - 1) != 1 && !view.empty())
    throw ShapeError(text(operation, ": ", argument, " has stride ", view.stride(Rank - 1),
                          " along its last axis, expected 1"));
}

/// Throws ShapeError where a wanted tensor is missing (a default-constructed view).
template <class T, std::size_t Rank, class B>
void check_present(std::string_view operation, std::string_view argument,
                   const TensorView<T, Rank, B>& view) {
  if (!view && !view.empty())
    throw ShapeError(
        text(operation, ": ", argument, " is absent, expected ", shape_text(view.shape())));
}

/// Throws ShapeError unless an optional vector is absent or [n].
template <class T, class B>
void check_vector(std::string_view operation, std::string_view argument,
                  const TensorView<T, 1, B>& view, index_t n, std::string_view axes) {
  if (!view) return;
  check_shape(operation, argument, view.shape(), Shape{n}, axes);
  check_last_axis(operation, argument, view);
}

/// The tensor as rows of its last axis, [rows, n], without a copy.
template <class T, std::size_t Rank, class B>
TensorView<T, 2, B> as_rows(const TensorView<T, Rank, B>& view) {
  if constexpr (Rank == 2) {
    return view;
  } else {
    index_t rows = 1;
    for (std::size_t axis = 0; axis + 1 < Rank; ++axis) rows *= view.extent(axis);
    return view.reshape(Shape{rows, view.extent(Rank - 1)});
  }
}

/// Throws ValueError unless `value` is finite and at least `least`.
inline void check_at_least(std::string_view operation, std::string_view argument, double value,
                           double least) {
  if (!(value >= least) || !(value - value == 0))
    throw ValueError(text(operation, ": ", argument, " is ", value,
                          ", expected a finite number of at least ", least));
}

}  // namespace detail
}  // namespace rapt
