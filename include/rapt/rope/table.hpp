// Cosines and sines of the positions of a call, as the `rope` operation takes them.
//
//   cos[b, s, k] = a cos(p omega[k])    sin[b, s, k] = a sin(p omega[k])    p = positions[b, s]
//
//   cos, sin [1 or batch, seq, r/2]   float, or double for models in double
//
// Angles are formed in double, so that position 10^6 is as exact as position 1. A RopeTable is
// read-only while calls run and can be shared by threads; `reserve` keeps the rows of the positions
// from 0 ready, other positions are computed on the spot. Writing angles allocates nothing on the
// heap. Negative positions (padding) turn backwards.
//
// The kinds that depend on the length take `seq_len`, the length the sequence started with; 0 means
// one within their limit.
#pragma once

#include <cmath>
#include <utility>

#include "rapt/core/convert.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/rope/rope.hpp"

namespace rapt {

template <class A = float>
class RopeTable {
 public:
  template <class B>
  struct Angles {
    TensorView<const A, 3, B> cos{}, sin{};
  };

  /// Throws ValueError or ShapeError where a setting makes no sense for heads of this size.
  RopeTable(Rope rope, index_t head_dim) : rope_(std::move(rope)), head_dim_(head_dim) {
    RopeFrequencies frequencies = rope_frequencies(rope_, head_dim_);
    inverse_ = std::move(frequencies.inverse);
    attention_factor_ = frequencies.attention_factor;
  }

  const Rope& rope() const { return rope_; }
  index_t head_dim() const { return head_dim_; }
  /// r/2, the last extent of cos and sin.
  index_t pairs() const { return static_cast<index_t>(inverse_.size()); }
  double attention_factor() const { return attention_factor_; }
  /// What a call of the `rope` operation needs besides cos and sin.
  RopeOptions options(bool inverse = false) const {
    return rope_options(rope_, head_dim_, inverse);
  }

  /// Positions [0, reserved()) are looked up.
  index_t reserved() const { return rows_; }
  /// Keeps at least `rows` positions ready; grows by half at least, so one more position at a time
  /// is cheap. Not while another thread writes angles.
  void reserve(index_t rows) {
    if (rows <= rows_ || pairs() == 0) return;
    rows = std::max(rows, rows_ + rows_ / 2);
    auto cos = Tensor<A, 3>::uninitialized(Shape{1, rows, pairs()});
    auto sin = Tensor<A, 3>::uninitialized(Shape{1, rows, pairs()});
    write(cos, sin, 0);  // from the old rows as far as they reach
    cos_.swap(cos);
    sin_.swap(sin);
    rows_ = rows;
  }

  /// Positions first, first + 1, ...; every row of the batch alike.
  void write(TensorView<A, 3> cos, TensorView<A, 3> sin, index_t first, index_t seq_len = 0) const {
    write_at(
        cos, sin, [first](index_t, index_t s) { return first + s; }, seq_len);
  }
  /// Positions of each token [1 or batch, seq].
  void write(TensorView<A, 3> cos, TensorView<A, 3> sin,
             TensorView<const std::int32_t, 2> positions, index_t seq_len = 0) const {
    detail::check_shape("rope", "positions", positions.shape(), Shape{cos.extent(0), cos.extent(1)},
                        "[batch, seq] of cos");
    write_at(
        cos, sin, [&](index_t b, index_t s) { return index_t{positions(b, s)}; }, seq_len);
  }

  /// The same in scratch memory of any backend, which lives as long as `scratch`.
  template <class B>
  Angles<B> angles(Scratch<B>& scratch, B backend, index_t first, index_t seq,
                   index_t seq_len = 0) const {
    return angles_of(scratch, backend, Shape{1, seq, pairs()},
                     [&](auto cos, auto sin) { write(cos, sin, first, seq_len); });
  }
  template <class B>
  Angles<B> angles(Scratch<B>& scratch, B backend, TensorView<const std::int32_t, 2> positions,
                   index_t seq_len = 0) const {
    return angles_of(scratch, backend, Shape{positions.extent(0), positions.extent(1), pairs()},
                     [&](auto cos, auto sin) { write(cos, sin, positions, seq_len); });
  }

 private:
  template <class B, class Write>
  Angles<B> angles_of(Scratch<B>& scratch, B, Shape<3> shape, Write write) const {
    auto cos = scratch.template tensor<A>(shape), sin = scratch.template tensor<A>(shape);
    if constexpr (std::same_as<B, Cpu>) {
      write(cos, sin);
    } else {
      Scratch<Cpu> host;
      const auto host_cos = host.template tensor<A>(shape),
                 host_sin = host.template tensor<A>(shape);
      write(host_cos, host_sin);
      copy(cos, host_cos);
      copy(sin, host_sin);
    }
    return {cos, sin};
  }

  template <class Position>
  void write_at(TensorView<A, 3> cos, TensorView<A, 3> sin, Position position,
                index_t seq_len) const {
    const index_t batch = cos.extent(0), seq = cos.extent(1), n = pairs();
    detail::check_shape("rope", "cos", cos.shape(), Shape{batch, seq, n},
                        "[batch, seq, rotary_dim / 2]");
    detail::check_shape("rope", "sin", sin.shape(), cos.shape(), "the shape of cos");
    if (cos.empty()) return;
    Scratch<Cpu> scratch;
    const double* inverse = inverse_.data();
    // The rows kept ready are those of a short sequence.
    index_t ready = rows_;
    if (depends_on_length(rope_) && seq_len > detail::rope_length_limit(rope_)) {
      double* own = scratch.tensor<double>(Shape{n}).data();
      write_inverse_frequencies(own, rope_, head_dim_, seq_len);
      inverse = own;
      ready = 0;
    }
    const double factor = attention_factor_;
    const auto write_row = [&](index_t i) {
      const index_t b = i / seq, s = i % seq, p = position(b, s);
      A* c = cos.data() + b * cos.stride(0) + s * cos.stride(1);
      A* d = sin.data() + b * sin.stride(0) + s * sin.stride(1);
      if (p >= 0 && p < ready) {
        std::copy_n(cos_.data() + p * n, n, c);
        std::copy_n(sin_.data() + p * n, n, d);
        return;
      }
      for (index_t k = 0; k < n; ++k) {
        const double angle = static_cast<double>(p) * inverse[k];
        c[k] = static_cast<A>(factor * std::cos(angle));
        d[k] = static_cast<A>(factor * std::sin(angle));
      }
    };
    constexpr index_t kRowsPerTask = 16;
    parallel_for((batch * seq + kRowsPerTask - 1) / kRowsPerTask, [&](index_t task) {
      const index_t end = std::min(batch * seq, (task + 1) * kRowsPerTask);
      for (index_t i = task * kRowsPerTask; i < end; ++i) write_row(i);
    });
  }

  Rope rope_;
  index_t head_dim_;
  std::vector<double> inverse_;
  double attention_factor_ = 1;
  Tensor<A, 3> cos_, sin_;  // [1, rows_, pairs]
  index_t rows_ = 0;
};

}  // namespace rapt
