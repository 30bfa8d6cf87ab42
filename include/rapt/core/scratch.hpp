// Scratch memory for the length of a call: a stack of bytes per backend and thread, or share of a
// parallel loop (core/parallel.hpp).
//
//   Scratch<B> scratch(backend);
//   auto qkv = scratch.template tensor<T>(Shape{rows, width});      // uninitialized view
//                                                                   // released with `scratch`
//
// A decode step asks for the same buffers again and again; after the first step the stack is one
// block that fits them all, so nothing is allocated on the heap. Scratches nest, innermost first;
// a view must not outlive the scratch it came from.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "rapt/core/parallel.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

namespace detail {

/// A stack made of blocks: a request that does not fit opens a new block; when the stack runs
/// empty, several blocks are replaced by one as large as all of them.
template <class B>
class Arena {
 public:
  struct Mark {
    std::size_t block, used;
  };

  explicit Arena(B backend) : backend_(backend) {}
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release_blocks(); }

  static Arena& of(B backend) {
    static constexpr char kKey = 0;  // whose address names this type
    auto& values = ShareStorage::current().values;
    for (const ShareStorage::Value& value : values) {
      if (value.key != &kKey) continue;
      Arena& arena = *static_cast<Arena*>(value.value.get());
      if (arena.backend_ == backend) return arena;
    }
    values.push_back({&kKey, std::make_shared<Arena>(backend)});
    return *static_cast<Arena*>(values.back().value.get());
  }

  Mark mark() const { return {block_, used_}; }

  void* allocate(std::size_t bytes) {
    bytes = (std::max<std::size_t>(bytes, 1) + kAlignment - 1) / kAlignment * kAlignment;
    while (block_ < blocks_.size() && used_ + bytes > blocks_[block_].bytes) {
      ++block_;
      used_ = 0;
    }
    if (block_ == blocks_.size()) {
      const std::size_t last = blocks_.empty() ? 0 : blocks_.back().bytes;
      const std::size_t size = std::max({bytes, 2 * last, std::size_t{1} << 16});
      blocks_.reserve(blocks_.size() + 1);
      blocks_.push_back({BackendTraits<B>::allocate(backend_, size), size});
      used_ = 0;
    }
    void* out = static_cast<char*>(blocks_[block_].data) + used_;
    used_ += bytes;
    return out;
  }

  void release(Mark mark) {
    block_ = mark.block;
    used_ = mark.used;
    if (block_ == 0 && used_ == 0 && blocks_.size() > 1) {
      std::size_t total = 0;
      for (const Block& block : blocks_) total += block.bytes;
      release_blocks();
      blocks_.push_back({BackendTraits<B>::allocate(backend_, total), total});
    }
  }

 private:
  static constexpr std::size_t kAlignment = 256;  // a cache line for the CPU, a segment for a GPU
  struct Block {
    void* data;
    std::size_t bytes;
  };

  void release_blocks() {
    // Work that still reads the blocks may be queued on a device.
    if (!blocks_.empty()) BackendTraits<B>::synchronize(backend_);
    for (const Block& block : blocks_)
      BackendTraits<B>::deallocate(backend_, block.data, block.bytes);
    blocks_.clear();
    block_ = used_ = 0;
  }

  B backend_;
  std::vector<Block> blocks_;
  std::size_t block_ = 0, used_ = 0;
};

}  // namespace detail

/// The part of the scratch stack that belongs to the current call.
template <class B = Cpu>
class Scratch {
 public:
  explicit Scratch(B backend = {})
      : backend_(backend), arena_(detail::Arena<B>::of(backend)), mark_(arena_.mark()) {}
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { arena_.release(mark_); }

  /// Uninitialized, aligned for any kernel, row-major. Throws ShapeError on an absurd shape and
  /// std::bad_alloc when memory runs out.
  template <class T, std::size_t Rank>
  TensorView<T, Rank, B> tensor(Shape<Rank> shape) {
    const auto n = static_cast<std::size_t>(detail::checked_size(shape, sizeof(T)));
    return {static_cast<T*>(arena_.allocate(n * sizeof(T))), shape, backend_};
  }

 private:
  B backend_;
  detail::Arena<B>& arena_;
  typename detail::Arena<B>::Mark mark_;
};

}  // namespace rapt
