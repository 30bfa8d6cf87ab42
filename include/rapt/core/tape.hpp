// Tape: what a forward pass saves for its backward pass, a stack in memory that is kept.
//
//   Tape<> tape;
//   auto saved = tape.push<float>(Shape{rows, width});     // forward: a view to fill
//   auto again = tape.pop<float>(Shape{rows, width});      // backward: the last pushed, checked
//
// No graph: a module's backward() pops what its forward() pushed, in the opposite order, so modules
// run backward in the opposite order too. The tape of one step is empty when its backward is done.
//
//   bytes()        saved now
//   peak_bytes()   the most that was saved at once since reset_peak(): the activations of a step
//   capacity()     bytes held: at least the peak
//
// A view lives until its place is pushed again: what was popped can be read, and overwritten, until
// the next push() or clear(). After the first step nothing is allocated: pages are kept, and when
// the tape has run empty, several are replaced by one that holds the most there was.
//
// Errors: pop() throws ValueError where nothing is left or another element type was pushed,
// ShapeError where another rank or shape was; they name both. The tape is then as it was.
#pragma once

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "rapt/core/convert.hpp"
#include "rapt/core/dtype.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

template <class B = Cpu>
class Tape {
 public:
  explicit Tape(B backend = {}) : backend_(backend) {}
  Tape(const Tape&) = delete;
  Tape& operator=(const Tape&) = delete;
  ~Tape() { release_pages(); }

  B backend() const { return backend_; }

  /// Room for a tensor, uninitialized, row-major, aligned for any kernel.
  template <class T, std::size_t Rank>
  TensorView<T, Rank, B> push(Shape<Rank> shape) {
    static_assert(Rank <= kMaxRank, "a tape keeps tensors of rank 1 to 5");
    const auto n = static_cast<std::size_t>(detail::checked_size(shape, sizeof(T)));
    Entry entry{.type = dtype_of<T>, .rank = Rank, .bytes = rounded(n * sizeof(T))};
    for (std::size_t axis = 0; axis < Rank; ++axis) entry.extents[axis] = shape[axis];
    void* const data = place(entry);
    entries_.push_back(entry);
    bytes_ += entry.bytes;
    peak_ = std::max(peak_, bytes_);
    most_ = std::max(most_, bytes_);
    return {static_cast<T*>(data), shape, backend_};
  }

  /// The tensor pushed last, of any shape.
  template <class T, std::size_t Rank>
  TensorView<T, Rank, B> pop() {
    const Entry& last = checked_last(dtype_of<T>, Rank, nullptr);
    Shape<Rank> shape;
    for (std::size_t axis = 0; axis < Rank; ++axis) shape[axis] = last.extents[axis];
    return take<T>(shape);
  }
  /// The tensor pushed last, which must have this shape.
  template <class T, std::size_t Rank>
  TensorView<T, Rank, B> pop(Shape<Rank> shape) {
    checked_last(dtype_of<T>, Rank, shape.extents);
    return take<T>(shape);
  }

  /// Tensors on the tape.
  std::size_t size() const { return entries_.size(); }
  bool empty() const { return entries_.empty(); }
  /// Forgets everything that was pushed since size() was `size`: after a forward whose backward
  /// will not come. Memory is kept.
  void truncate(std::size_t size) {
    while (entries_.size() > size) drop_last();
  }
  void clear() { truncate(0); }

  std::size_t bytes() const { return bytes_; }
  std::size_t peak_bytes() const { return peak_; }
  void reset_peak() { peak_ = bytes_; }
  std::size_t capacity() const {
    std::size_t total = 0;
    for (const Page& page : pages_) total += page.bytes;
    return total;
  }

 private:
  static constexpr std::size_t kMaxRank = 5;
  static constexpr std::size_t kAlignment = 256;  // a cache line for the CPU, a segment for a GPU
  static constexpr std::size_t kFirstPage = std::size_t{1} << 20;

  struct Entry {
    DType type{};
    std::size_t rank = 0;
    index_t extents[kMaxRank] = {};
    std::size_t bytes = 0;
    std::size_t page = 0, offset = 0;
  };
  struct Page {
    void* data;
    std::size_t bytes;
  };

  static std::size_t rounded(std::size_t bytes) {
    return (bytes + kAlignment - 1) / kAlignment * kAlignment;
  }

  /// Finds room above the last entry.
  void* place(Entry& entry) {
    if (entries_.empty()) gather_pages();
    std::size_t page = 0, used = 0;
    if (!entries_.empty()) {
      page = entries_.back().page;
      used = entries_.back().offset + entries_.back().bytes;
    }
    while (page < pages_.size() && used + entry.bytes > pages_[page].bytes) {
      ++page;
      used = 0;
    }
    if (page == pages_.size()) {
      // Half as much again as there is: few pages, and little that is never used.
      const std::size_t size = std::max({entry.bytes, capacity() / 2, kFirstPage});
      pages_.reserve(pages_.size() + 1);  // before the memory, which push_back could lose
      pages_.push_back({BackendTraits<B>::allocate(backend_, size), size});
    }
    entry.page = page;
    entry.offset = used;
    return static_cast<char*>(pages_[page].data) + used;
  }

  /// An empty tape in several pages becomes one page that holds the most there ever was.
  void gather_pages() {
    if (pages_.size() < 2) return;
    const std::size_t size = std::max(most_, kFirstPage);
    release_pages();
    pages_.push_back({BackendTraits<B>::allocate(backend_, size), size});
  }

  void release_pages() {
    // Work that still reads the pages may be queued on a device.
    if (!pages_.empty()) BackendTraits<B>::synchronize(backend_);
    for (const Page& page : pages_) BackendTraits<B>::deallocate(backend_, page.data, page.bytes);
    pages_.clear();
  }

  static std::string text_of(DType type, std::size_t rank, const index_t* extents) {
    return detail::text(name_of(type), " ",
                        extents == nullptr
                            ? detail::text("of rank ", rank)
                            : detail::shape_text(std::span<const index_t>(extents, rank)));
  }

  const Entry& checked_last(DType type, std::size_t rank, const index_t* extents) const {
    if (entries_.empty())
      throw ValueError(detail::text("tape: nothing is left, expected ",
                                    text_of(type, rank, extents),
                                    ": a backward has its forward before it"));
    const Entry& last = entries_.back();
    const bool same_shape =
        extents == nullptr ||
        (last.rank == rank && std::equal(extents, extents + rank, last.extents));
    if (last.type == type && last.rank == rank && same_shape) return last;
    const std::string message =
        detail::text("tape: the last pushed is ", text_of(last.type, last.rank, last.extents),
                     ", expected ", text_of(type, rank, extents));
    if (last.type != type) throw ValueError(message);
    throw ShapeError(message);
  }

  template <class T, std::size_t Rank>
  TensorView<T, Rank, B> take(Shape<Rank> shape) {
    const Entry& last = entries_.back();
    void* const data = static_cast<char*>(pages_[last.page].data) + last.offset;
    drop_last();
    return {static_cast<T*>(data), shape, backend_};
  }

  void drop_last() {
    bytes_ -= entries_.back().bytes;
    entries_.pop_back();
  }

  B backend_;
  std::vector<Page> pages_;
  std::vector<Entry> entries_;
  std::size_t bytes_ = 0, peak_ = 0, most_ = 0;
};

namespace detail {

/// A copy of `x` on the tape, row-major; an absent view becomes an empty one.
template <class T, std::size_t Rank, class B>
TensorView<std::remove_const_t<T>, Rank, B> save(Tape<B>& tape, TensorView<T, Rank, B> x) {
  const auto saved = tape.template push<std::remove_const_t<T>>(x.shape());
  copy(saved, x);
  return saved;
}

}  // namespace detail
}  // namespace rapt
