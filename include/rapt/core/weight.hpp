// Weight: the matrix of a linear layer as its checkpoint stores it, and the products with it.
//
//   y = x W^T        x [rows, in]    y [rows, out]    W [out, in], row-major
//
//   dense    elements of T: what training, saving and every backend work on
//   packed   the same elements in the order of the backend's product (core/packed_matrix.hpp): for
//            a model that only runs; view() unpacks them again, exactly
//   blocks   the quantized blocks of a file, multiplied as they are where the backend can
//            (core/quantized_matrix.hpp): 4 to 8 bits a weight are read instead of 16 or 32
//
// A weight holds one form at a time; hold() gives up the elements. A loader that will bring either
// starts from WeightStorage::none, so that a large model never exists twice.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "rapt/core/ops/embedding.hpp"
#include "rapt/core/ops/matmul.hpp"
#include "rapt/core/ops/quantized_matmul.hpp"
#include "rapt/core/packed_matrix.hpp"
#include "rapt/core/parameter.hpp"
#include "rapt/core/random.hpp"

namespace rapt {

/// How a weight begins: as zeros, or as a shape that a loader fills.
enum class WeightStorage { zeros, none };

template <class T = float, class B = Cpu>
class Weight {
 public:
  explicit Weight(Shape<2> shape, B backend = {}, WeightStorage storage = WeightStorage::zeros)
      : shape_(shape), backend_(backend) {
    if (storage == WeightStorage::zeros) allocate();
  }

  index_t out() const { return shape_[0]; }
  index_t in() const { return shape_[1]; }
  B backend() const { return backend_; }
  bool empty() const { return shape_.size() == 0; }
  bool is_quantized() const { return !blocks_.empty(); }
  const QuantizedMatrix& blocks() const { return blocks_; }

  bool is_packed() const { return !packed_.empty(); }

  /// The elements [out, in], to read and to change: a packed weight becomes dense again. Absent
  /// where the weight holds blocks.
  TensorView<T, 2, B> view() {
    if constexpr (PacksMatrices<B, T>) {
      if (is_packed()) {
        dense_ = Tensor<T, 2, B>::uninitialized(shape_, backend_);
        packed_.unpack(dense_.transpose());
        packed_ = {};
      }
    }
    return dense_.view();
  }
  /// Absent where the weight is packed or holds blocks.
  TensorView<const T, 2, B> view() const { return dense_.view(); }

  /// Zeros, in elements.
  void allocate() {
    blocks_ = {};
    packed_ = {};
    dense_ = Tensor<T, 2, B>(shape_, backend_);
  }
  /// Packs the elements and gives them up; views of them end here. Does nothing where the weight
  /// holds none, and on a backend that does not pack.
  void pack() {
    if constexpr (PacksMatrices<B, T>) {
      if (dense_.empty()) return;
      packed_ = PackedMatrix<T, B>(std::as_const(dense_).transpose());
      dense_ = {};
    }
  }
  /// Takes the blocks and gives up the elements. Throws ShapeError for another shape.
  void hold(QuantizedMatrix blocks) requires MultipliesBlocks<B, T> {
    if (blocks.rows() != out() || blocks.columns() != in())
      throw ShapeError(detail::text("weight.hold: blocks is ",
                                    detail::shape_text(Shape{blocks.rows(), blocks.columns()}),
                                    ", expected ", detail::shape_text(shape_), " = [out, in]"));
    blocks_ = std::move(blocks);
    packed_ = {};
    dense_ = {};
  }

  /// y = x W^T (+ bias) (+ y); allocates nothing.
  void multiply(TensorView<T, 2, B> y, TensorView<const T, 2, B> x,
                const MatmulOptions<T, B>& options = {}) const {
    if constexpr (MultipliesBlocks<B, T>)
      if (is_quantized()) return quantized_matmul(y, x, blocks_, options);
    if constexpr (PacksMatrices<B, T>)
      if (is_packed()) return matmul(y, x, packed_, options);
    matmul(y, x, view().transpose(), options);
  }
  /// dx = dy W: the gradient of x. Throws ValueError where the weight is packed or holds blocks.
  void multiply_back(TensorView<T, 2, B> dx, TensorView<const T, 2, B> dy) const {
    expect_elements("backward");
    matmul(dx, dy, view());
  }
  /// y[b, s, :] = scale W[ids[b, s], :]: the matrix as an embedding table. Throws ValueError where
  /// the weight is packed: its rows lie scattered.
  void look_up(TensorView<T, 3, B> y, TensorView<const std::int32_t, 2, B> ids,
               accumulate_t<T> scale) const {
    if constexpr (MultipliesBlocks<B, T>)
      if (is_quantized()) return quantized_embedding(y, blocks_, ids, scale);
    expect_elements("embedding");
    embedding(y, view(), ids, scale);
  }

  /// Bytes that a product with one row of x reads.
  index_t bytes() const {
    return blocks_.bytes() + packed_.bytes() + static_cast<index_t>(dense_.bytes());
  }

 private:
  void expect_elements(const char* operation) const {
    if (is_quantized() || is_packed())
      throw ValueError(detail::text(operation, ": a weight ", detail::shape_text(shape_),
                                    is_packed() ? " is packed" : " holds quantized blocks",
                                    ", expected elements"));
  }

  Shape<2> shape_;
  B backend_;
  Tensor<T, 2, B> dense_;
  PackedMatrix<T, B> packed_;
  QuantizedMatrix blocks_;
};

/// A weight and the tensors of a checkpoint that it is made of, one below the other: the fused
/// projection of q, k and v has three. What a loader fills.
template <class T, class B>
struct WeightSlot {
  struct Part {
    std::string name;
    index_t rows;
  };
  Weight<T, B>* weight;
  std::vector<Part> parts;
};

template <class T, class B>
using WeightSlots = std::vector<WeightSlot<T, B>>;

namespace detail {

/// N(0, stddev) in the elements.
template <class T, class B>
void fill_weight(Weight<T, B>& weight, Philox& random, double stddev) {
  if (weight.is_quantized()) weight.allocate();
  if (!weight.empty()) fill_normal(weight.view(), random, stddev);
}

/// Throws ValueError where the weight holds blocks, which nothing can be learned into.
template <class T, class B>
void make_gradient(Tensor<accumulate_t<T>, 2, B>& gradient, const Weight<T, B>& weight) {
  if (weight.is_quantized())
    throw ValueError(text("require_gradients: a weight ",
                          shape_text(Shape{weight.out(), weight.in()}),
                          " holds quantized blocks, expected elements"));
  if (gradient.shape() != Shape{weight.out(), weight.in()})
    gradient = Tensor<accumulate_t<T>, 2, B>(Shape{weight.out(), weight.in()}, weight.backend());
}

}  // namespace detail
}  // namespace rapt
