// Tensor and TensorView: numbers with a shape.
//
//   Tensor<T, Rank, B>      owns its elements: 64-byte aligned, row-major, on backend B
//   TensorView<T, Rank, B>  borrows them: any strides; T may be const; trivially copyable, so a
//                           CUDA kernel takes it by value
//
// The rank is part of the type, so a wrong rank does not compile; extents are checked when a call
// starts. Element (i, j, ...) lies at data()[i * stride(0) + j * stride(1) + ...]; strides count
// elements. A default-constructed view has data() == nullptr and means "absent".
//
//   Tensor<float, 4> q({batch, seq, heads, head_dim});      // zeros
//   auto first = q.slice(1, 0, 8);                          // [batch, 8, heads, head_dim], no copy
//   q(0, 3, 1, 5) = 2.f;
#pragma once

#include <array>
#include <cassert>
#include <concepts>
#include <cstddef>
#include <limits>
#include <span>
#include <string>
#include <type_traits>
#include <utility>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"

namespace rapt {

inline namespace RAPT_SIMD {

/// The CPU backend: a tag without state. Its memory and operations are BackendTraits<Cpu>. One type
/// for each instruction set (core/config.hpp), so tensors pass only between files built alike:
/// where they do not, the linker names the two.
struct Cpu {
  friend constexpr bool operator==(Cpu, Cpu) { return true; }
};

}  // namespace RAPT_SIMD

/// What a backend must provide; see core/backend.hpp.
template <class B>
struct BackendTraits;

namespace detail {

/// An extent of any integer type. A lone number becomes an Extent but not, by itself, a Shape<1>:
/// that keeps `Tensor<float, 1> t({5})` a shape in braces and nothing else.
struct Extent {
  index_t value;
  template <std::integral I>
  RAPT_HOST_DEVICE constexpr Extent(I extent) : value(static_cast<index_t>(extent)) {}
};

}  // namespace detail

/// Extents of a tensor: exactly Rank integers of any integer type, in braces. Fewer do not compile.
template <std::size_t Rank>
struct Shape {
  static_assert(Rank >= 1, "a shape has at least one axis");
  index_t extents[Rank];

  template <class... I>
  requires(Rank > 1 && sizeof...(I) == Rank && (std::integral<I> && ...)) RAPT_HOST_DEVICE
      constexpr Shape(I... extent)
      : extents{static_cast<index_t>(extent)...} {}
  RAPT_HOST_DEVICE constexpr Shape(detail::Extent extent) requires(Rank == 1)
      : extents{extent.value} {}
  RAPT_HOST_DEVICE constexpr Shape() : extents{} {}

  RAPT_HOST_DEVICE constexpr index_t operator[](std::size_t axis) const { return extents[axis]; }
  RAPT_HOST_DEVICE constexpr index_t& operator[](std::size_t axis) { return extents[axis]; }
  RAPT_HOST_DEVICE constexpr const index_t* begin() const { return extents; }
  RAPT_HOST_DEVICE constexpr const index_t* end() const { return extents + Rank; }
  /// Number of elements; checked sizes come from `checked_size`.
  RAPT_HOST_DEVICE constexpr index_t size() const {
    index_t n = 1;
    for (index_t e : extents) n *= e;
    return n;
  }
  friend constexpr bool operator==(const Shape& a, const Shape& b) {
    for (std::size_t i = 0; i < Rank; ++i)
      if (a.extents[i] != b.extents[i]) return false;
    return true;
  }
};
template <class... I>
Shape(I...) -> Shape<sizeof...(I)>;

namespace detail {

/// "[2, 96, 2, 64]"
inline std::string shape_text(std::span<const index_t> extents) {
  std::string out = "[";
  for (std::size_t i = 0; i < extents.size(); ++i) {
    if (i > 0) out += ", ";
    out += std::to_string(extents[i]);
  }
  return out + "]";
}
template <std::size_t Rank>
std::string shape_text(const Shape<Rank>& shape) {
  return shape_text(std::span<const index_t>(shape.extents, Rank));
}

/// Number of elements of `shape`; throws ShapeError on a negative extent or where the elements
/// times `element_size` do not fit in 63 bits.
template <std::size_t Rank>
index_t checked_size(const Shape<Rank>& shape, std::size_t element_size) {
  index_t n = 1;
  bool empty = false;
  for (const index_t e : shape) {
    if (e < 0)
      throw ShapeError(
          text("tensor: shape is ", shape_text(shape), ", expected no negative extent"));
    empty = empty || e == 0;
  }
  if (empty) return 0;
  const index_t limit =
      std::numeric_limits<index_t>::max() / static_cast<index_t>(element_size ? element_size : 1);
  for (const index_t e : shape) {
    if (n > limit / e)
      throw ShapeError(text("tensor: shape is ", shape_text(shape), " of ", element_size,
                            "-byte elements, which passes 2^63 bytes"));
    n *= e;
  }
  return n;
}

/// Throws ShapeError "<operation>: <argument> is <got>, expected <wanted> = <axes>".
template <std::size_t Rank>
void check_shape(std::string_view operation, std::string_view argument, const Shape<Rank>& got,
                 const Shape<Rank>& wanted, std::string_view axes) {
  if (got == wanted) return;
  throw ShapeError(text(operation, ": ", argument, " is ", shape_text(got), ", expected ",
                        shape_text(wanted), " = ", axes));
}

template <std::size_t Rank>
RAPT_HOST_DEVICE constexpr Shape<Rank> row_major_strides(const Shape<Rank>& shape) {
  Shape<Rank> strides;
  index_t step = 1;
  for (std::size_t axis = Rank; axis-- > 0;) {
    strides[axis] = step;
    step *= shape[axis];
  }
  return strides;
}

}  // namespace detail

template <class T, std::size_t Rank, class B = Cpu>
class TensorView {
 public:
  using value_type = std::remove_const_t<T>;
  using element_type = T;
  using backend_type = B;
  static constexpr std::size_t kRank = Rank;

  /// Absent: no data, every extent 0.
  constexpr TensorView() = default;
  /// Row-major view of foreign memory.
  RAPT_HOST_DEVICE constexpr TensorView(T* data, Shape<Rank> shape, B backend = {})
      : data_(data), shape_(shape), strides_(detail::row_major_strides(shape)), backend_(backend) {}
  RAPT_HOST_DEVICE constexpr TensorView(T* data, Shape<Rank> shape, Shape<Rank> strides,
                                        B backend = {})
      : data_(data), shape_(shape), strides_(strides), backend_(backend) {}
  /// A span is a view of rank 1.
  template <class U, std::size_t Extent>
  requires(Rank == 1 && std::same_as<B, Cpu> &&
           std::convertible_to<U (*)[], T (*)[]>) constexpr TensorView(std::span<U, Extent> span)
      : TensorView(span.data(), Shape<1>{static_cast<index_t>(span.size())}) {}

  RAPT_HOST_DEVICE constexpr T* data() const { return data_; }
  RAPT_HOST_DEVICE constexpr const Shape<Rank>& shape() const { return shape_; }
  RAPT_HOST_DEVICE constexpr const Shape<Rank>& strides() const { return strides_; }
  RAPT_HOST_DEVICE constexpr index_t extent(std::size_t axis) const { return shape_[axis]; }
  RAPT_HOST_DEVICE constexpr index_t stride(std::size_t axis) const { return strides_[axis]; }
  RAPT_HOST_DEVICE constexpr index_t size() const { return shape_.size(); }
  RAPT_HOST_DEVICE constexpr bool empty() const { return size() == 0; }
  RAPT_HOST_DEVICE constexpr B backend() const { return backend_; }
  RAPT_HOST_DEVICE constexpr explicit operator bool() const { return data_ != nullptr; }

  template <class... I>
  requires(sizeof...(I) == Rank && (std::integral<I> && ...)) RAPT_HOST_DEVICE constexpr T&
  operator()(I... index) const {
    return data_[offset(index...)];
  }
  template <class... I>
  requires(sizeof...(I) == Rank && (std::integral<I> && ...)) RAPT_HOST_DEVICE constexpr index_t
      offset(I... index) const {
    std::size_t axis = 0;
    index_t at = 0;
    ((assert(static_cast<index_t>(index) >= 0 && static_cast<index_t>(index) < shape_[axis]),
      at += static_cast<index_t>(index) * strides_[axis++]),
     ...);
    return at;
  }

  // A template, because nvcc warns of a plain operator that a view of const could never use.
  template <class U>
  requires(!std::is_const_v<T> && std::same_as<U, const T>) RAPT_HOST_DEVICE constexpr
  operator TensorView<U, Rank, B>() const {
    return {data_, shape_, strides_, backend_};
  }
  constexpr TensorView view() const { return *this; }

  /// Row-major without gaps (axes of extent 1 do not matter; an empty view is contiguous).
  RAPT_HOST_DEVICE constexpr bool is_contiguous() const {
    index_t step = 1;
    if (empty()) return true;
    for (std::size_t axis = Rank; axis-- > 0;) {
      if (shape_[axis] != 1 && strides_[axis] != step) return false;
      step *= shape_[axis];
    }
    return true;
  }

  /// Indices [begin, end) of one axis.
  constexpr TensorView slice(std::size_t axis, index_t begin, index_t end) const {
    if (axis >= Rank || begin < 0 || end < begin || end > shape_[axis])
      throw ShapeError(detail::text("slice: axis ", axis, " range is [", begin, ", ", end,
                                    "), expected a range inside ", detail::shape_text(shape_)));
    TensorView out = *this;
    out.shape_[axis] = end - begin;
    if (data_ != nullptr && end > begin) out.data_ += begin * strides_[axis];
    return out;
  }

  /// One index of one axis; the axis disappears.
  constexpr TensorView<T, Rank - 1, B> select(std::size_t axis, index_t index) const
      requires(Rank >= 2) {
    if (axis >= Rank || index < 0 || index >= shape_[axis])
      throw ShapeError(detail::text("select: index ", index, " of axis ", axis,
                                    ", expected one inside ", detail::shape_text(shape_)));
    Shape<Rank - 1> shape, strides;
    for (std::size_t from = 0, to = 0; from < Rank; ++from) {
      if (from == axis) continue;
      shape[to] = shape_[from];
      strides[to++] = strides_[from];
    }
    return {data_ + index * strides_[axis], shape, strides, backend_};
  }

  constexpr TensorView transpose(std::size_t a, std::size_t b) const {
    if (a >= Rank || b >= Rank)
      throw ShapeError(detail::text("transpose: axes are ", a, " and ", b, ", expected axes of ",
                                    detail::shape_text(shape_)));
    TensorView out = *this;
    std::swap(out.shape_[a], out.shape_[b]);
    std::swap(out.strides_[a], out.strides_[b]);
    return out;
  }
  /// The last two axes change places.
  constexpr TensorView transpose() const requires(Rank >= 2) {
    return transpose(Rank - 2, Rank - 1);
  }

  /// The same elements in another shape, where the strides allow it without a copy (axes may be
  /// merged only when they lie without a gap; splitting an axis is always possible). Throws
  /// ShapeError otherwise.
  template <std::size_t R2>
  constexpr TensorView<T, R2, B> reshape(Shape<R2> wanted) const {
    const index_t n = detail::checked_size(wanted, sizeof(T));
    if (n != size())
      throw ShapeError(detail::text("reshape: shape is ", detail::shape_text(wanted),
                                    ", expected as many elements as ", detail::shape_text(shape_)));
    Shape<R2> strides = detail::row_major_strides(wanted);
    if (n == 0 || is_contiguous()) return {data_, wanted, strides, backend_};
    // Walk both shapes from the left: groups of axes with equal products must match, and inside a
    // group the old axes must lie without a gap.
    std::size_t from = 0, to = 0;
    while (from < Rank && to < R2) {
      index_t old_count = shape_[from], new_count = wanted[to];
      const std::size_t first = from, new_first = to;
      while (old_count != new_count) {
        if (old_count < new_count)
          old_count *= shape_[++from];
        else
          new_count *= wanted[++to];
      }
      // Axes of extent 1 lie anywhere: their strides mean nothing (a transposed [B, 1, H, D]).
      index_t gapless = strides_[from] * shape_[from];
      for (std::size_t axis = from; axis-- > first;) {
        if (shape_[axis] == 1) continue;
        if (strides_[axis] != gapless)
          throw ShapeError(detail::text("reshape: a view of shape ", detail::shape_text(shape_),
                                        " and strides ", detail::shape_text(strides_),
                                        " has gaps and cannot become ", detail::shape_text(wanted),
                                        " without a copy"));
        gapless *= shape_[axis];
      }
      index_t step = strides_[from];
      for (std::size_t axis = to + 1; axis-- > new_first;) {
        strides[axis] = step;
        step *= wanted[axis];
      }
      ++from;
      ++to;
    }
    return {data_, wanted, strides, backend_};
  }

 private:
  T* data_ = nullptr;
  Shape<Rank> shape_{};
  Shape<Rank> strides_{};
  [[no_unique_address]] B backend_{};
};

template <class T, std::size_t Rank, class B = Cpu>
class Tensor {
 public:
  static_assert(std::is_trivially_copyable_v<T> && !std::is_const_v<T>,
                "a tensor owns plain, non-const elements");
  using value_type = T;
  using element_type = T;
  using backend_type = B;
  static constexpr std::size_t kRank = Rank;
  static constexpr std::size_t kAlignment = 64;

  /// Empty: every extent 0.
  Tensor() = default;
  /// Zeros. Throws ShapeError on a negative or absurd shape, std::bad_alloc when memory runs out.
  explicit Tensor(Shape<Rank> shape, B backend = {}) : Tensor(uninitialized(shape, backend)) {
    if (storage_ != nullptr) BackendTraits<B>::fill_zero(backend_, storage_, bytes());
  }
  static Tensor uninitialized(Shape<Rank> shape, B backend = {}) {
    Tensor out;
    const index_t n = detail::checked_size(shape, sizeof(T));
    out.shape_ = shape;
    out.backend_ = backend;
    if (n > 0)
      out.storage_ = static_cast<T*>(
          BackendTraits<B>::allocate(backend, static_cast<std::size_t>(n) * sizeof(T)));
    return out;
  }
  Tensor(const Tensor& other) : Tensor(uninitialized(other.shape_, other.backend_)) {
    if (storage_ != nullptr) BackendTraits<B>::copy(backend_, storage_, other.storage_, bytes());
  }
  Tensor(Tensor&& other) noexcept { swap(other); }
  Tensor& operator=(const Tensor& other) {
    if (this != &other) {
      Tensor copy(other);
      swap(copy);
    }
    return *this;
  }
  Tensor& operator=(Tensor&& other) noexcept {
    Tensor taken(std::move(other));
    swap(taken);
    return *this;
  }
  ~Tensor() {
    if (storage_ != nullptr) BackendTraits<B>::deallocate(backend_, storage_, bytes());
  }

  T* data() { return storage_; }
  const T* data() const { return storage_; }
  const Shape<Rank>& shape() const { return shape_; }
  Shape<Rank> strides() const { return detail::row_major_strides(shape_); }
  index_t extent(std::size_t axis) const { return shape_[axis]; }
  index_t stride(std::size_t axis) const { return strides()[axis]; }
  index_t size() const { return shape_.size(); }
  bool empty() const { return size() == 0; }
  std::size_t bytes() const { return static_cast<std::size_t>(size()) * sizeof(T); }
  B backend() const { return backend_; }

  template <class... I>
  requires(sizeof...(I) == Rank && (std::integral<I> && ...)) T& operator()(I... index) {
    return view()(index...);
  }
  template <class... I>
  requires(sizeof...(I) == Rank && (std::integral<I> && ...)) const T& operator()(
      I... index) const {
    return view()(index...);
  }

  TensorView<T, Rank, B> view() { return {storage_, shape_, backend_}; }
  TensorView<const T, Rank, B> view() const { return {storage_, shape_, backend_}; }
  operator TensorView<T, Rank, B>() { return view(); }
  operator TensorView<const T, Rank, B>() const { return view(); }

  auto slice(std::size_t axis, index_t begin, index_t end) {
    return view().slice(axis, begin, end);
  }
  auto slice(std::size_t axis, index_t begin, index_t end) const {
    return view().slice(axis, begin, end);
  }
  auto select(std::size_t axis, index_t index) { return view().select(axis, index); }
  auto select(std::size_t axis, index_t index) const { return view().select(axis, index); }
  auto transpose(std::size_t a, std::size_t b) { return view().transpose(a, b); }
  auto transpose(std::size_t a, std::size_t b) const { return view().transpose(a, b); }
  auto transpose() { return view().transpose(); }
  auto transpose() const { return view().transpose(); }
  template <std::size_t R2>
  auto reshape(Shape<R2> shape) {
    return view().reshape(shape);
  }
  template <std::size_t R2>
  auto reshape(Shape<R2> shape) const {
    return view().reshape(shape);
  }

  void swap(Tensor& other) noexcept {
    std::swap(storage_, other.storage_);
    std::swap(shape_, other.shape_);
    std::swap(backend_, other.backend_);
  }

 private:
  T* storage_ = nullptr;
  Shape<Rank> shape_{};
  [[no_unique_address]] B backend_{};
};

namespace detail {

template <class X>
struct TensorTraits {
  static constexpr std::size_t kRank = 0;
};
template <class T, std::size_t Rank, class B>
struct TensorTraits<TensorView<T, Rank, B>> {
  using Value = std::remove_const_t<T>;
  using Back = B;
  static constexpr std::size_t kRank = Rank;
  static constexpr bool kWritable = !std::is_const_v<T>;
};
template <class T, std::size_t Rank, class B>
struct TensorTraits<Tensor<T, Rank, B>> {
  using Value = T;
  using Back = B;
  static constexpr std::size_t kRank = Rank;
  static constexpr bool kWritable = true;
};
template <class T, std::size_t Rank, class B>
struct TensorTraits<const Tensor<T, Rank, B>> : TensorTraits<Tensor<T, Rank, B>> {
  static constexpr bool kWritable = false;
};
template <class T, std::size_t Rank, class B>
struct TensorTraits<const TensorView<T, Rank, B>> : TensorTraits<TensorView<T, Rank, B>> {};

}  // namespace detail

/// A Tensor or a TensorView of the given rank.
template <class X, std::size_t Rank>
concept TensorLike = detail::TensorTraits<std::remove_reference_t<X>>::kRank == Rank;
/// One whose elements may be written: a non-const Tensor or a view of non-const elements.
template <class X, std::size_t Rank>
concept WritableTensorLike =
    TensorLike<X, Rank> && detail::TensorTraits<std::remove_reference_t<X>>::kWritable;

/// Element type (never const), backend and rank of a Tensor or a TensorView.
template <class X>
using element_t = typename detail::TensorTraits<std::remove_cvref_t<X>>::Value;
template <class X>
using backend_t = typename detail::TensorTraits<std::remove_cvref_t<X>>::Back;
template <class X>
inline constexpr std::size_t rank_v = detail::TensorTraits<std::remove_cvref_t<X>>::kRank;

/// The view of a Tensor or of a view.
template <class T, std::size_t Rank, class B>
constexpr TensorView<T, Rank, B> as_view(TensorView<T, Rank, B> view) {
  return view;
}
template <class T, std::size_t Rank, class B>
TensorView<T, Rank, B> as_view(Tensor<T, Rank, B>& tensor) {
  return tensor.view();
}
template <class T, std::size_t Rank, class B>
TensorView<const T, Rank, B> as_view(const Tensor<T, Rank, B>& tensor) {
  return tensor.view();
}
/// The read-only view of a Tensor or of a view.
template <class X>
constexpr auto as_const_view(const X& x) {
  return TensorView<const element_t<X>, rank_v<X>, backend_t<X>>(as_view(x));
}

}  // namespace rapt

#include "rapt/core/backend.hpp"
