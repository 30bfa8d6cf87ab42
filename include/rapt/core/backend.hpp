// The backend trait: what a machine must provide so that every module, cache and model of rapt runs
// on it. Modules are written once, against BackendTraits<B>; `Cpu` is here, `Cuda` in
// cuda/rapt/cuda/backend.hpp.
//
// A backend is a small value (`Cpu{}`, `Cuda{device, stream}`) that tensors carry along.
// BackendTraits<B> holds static functions, the backend value first:
//
//   memory       allocate, deallocate, copy, copy_from_host, copy_to_host, fill_zero, synchronize
//   operations   output first, then inputs, then options; shapes are the callee's to trust: the
//                checked front ends are core/ops/*.hpp and attention/attention.hpp
//
// An operation is declared here and defined in a header of its own, cpu/<operation>.hpp, which the
// front end includes: a program that only attends never parses Eigen.
// T is one element type for all tensors of a call (float, double, half, bfloat16); arithmetic runs
// in accumulate_t<T>. Views may be strided; the last axis is contiguous unless said otherwise.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

#include "rapt/core/config.hpp"
#include "rapt/core/dtype.hpp"
#include "rapt/core/huge_pages.hpp"
#include "rapt/core/kinds.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

/// Bias [n] (absent: none); accumulate: out is added to instead of overwritten. T is the element
/// type of the factors.
template <class T, class B>
struct MatmulOptions {
  TensorView<const T, 1, B> bias{};
  bool accumulate = false;
};

/// The rotated channels are [offset, offset + 2 * cos.extent(2)) of each head; the others pass
/// through. `inverse` turns by the negative angle, which is the gradient.
struct RopeOptions {
  RopeLayout layout = RopeLayout::rotate_half;
  index_t offset = 0;
  bool inverse = false;
};

/// One step of AdamW; core/ops/optimizer.hpp gives the formula.
struct AdamWStep {
  double lr = 1e-3;
  double beta1 = 0.9, beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0;
  index_t step = 1;           // t = 1, 2, ...: this step's own number
  double gradient_scale = 1;  // on the gradient before all else: 1 / loss scale, clipping
};

inline namespace RAPT_SIMD {
class QuantizedMatrix;  // core/quantized_matrix.hpp
}
enum class BlockInput : std::uint8_t;  // core/ops/quantized_matmul.hpp

template <>
struct BackendTraits<Cpu> {
  static constexpr std::size_t kAlignment = 64;

  template <class T>
  static constexpr bool supports = Element<T>;

  // ---- memory ----

  static void* allocate(Cpu, std::size_t bytes) { return detail::allocate_host(bytes, kAlignment); }
  static void deallocate(Cpu, void* pointer, std::size_t bytes) noexcept {
    detail::deallocate_host(pointer, bytes, kAlignment);
  }
  static void copy(Cpu, void* to, const void* from, std::size_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  static void copy_from_host(Cpu backend, void* to, const void* from, std::size_t bytes) {
    copy(backend, to, from, bytes);
  }
  static void copy_to_host(Cpu backend, void* to, const void* from, std::size_t bytes) {
    copy(backend, to, from, bytes);
  }
  static void fill_zero(Cpu, void* pointer, std::size_t bytes) {
    if (bytes > 0) std::memset(pointer, 0, bytes);
  }
  static void synchronize(Cpu) {}

  // ---- operations; acc stands for accumulate_t<T> ----

  /// to[...] = from[...], both strided on every axis, any two element types.   cpu/copy.hpp
  template <class To, class From, std::size_t Rank>
  static void copy_elements(Cpu, TensorView<To, Rank> to, TensorView<const From, Rank> from);

  /// out[m,n] = a[m,k] b[k,n] (+ bias[n]) (+ out). Each of a and b is contiguous along one of its
  /// two axes, whichever; out along its last. k = 0 gives zeros (plus bias). Out is T or acc: a
  /// weight gradient is summed over calls without being rounded.               cpu/matmul.hpp
  template <class Out, class T>
  static void matmul(Cpu, TensorView<Out, 2> out, TensorView<const T, 2> a,
                     TensorView<const T, 2> b, const MatmulOptions<T, Cpu>& options);

  /// Elements of b [k, n] packed, packing and unpacking it, and matmul with it: see
  /// core/packed_matrix.hpp. A backend may lack these four: weights stay as they are there.
  ///                                                                           cpu/matmul.hpp
  template <class T>
  static index_t packed_size(Cpu, index_t k, index_t n);
  template <class T>
  static void pack(Cpu, TensorView<T, 1> to, TensorView<const T, 2> b);
  template <class T>
  static void unpack(Cpu, TensorView<T, 2> b, TensorView<const T, 1> from);
  template <class Out, class T>
  static void packed_matmul(Cpu, TensorView<Out, 2> out, TensorView<const T, 2> a,
                            TensorView<const T, 1> packed, const MatmulOptions<T, Cpu>& options);

  /// out[m,rows] = x[m,columns] w^T (+ bias) (+ out), w in quantized blocks. A backend may lack
  /// this and the next: a model is dequantized for it then.             cpu/quantized_matmul.hpp
  template <class T>
  static void quantized_matmul(Cpu, TensorView<T, 2> out, TensorView<const T, 2> x,
                               const QuantizedMatrix& w, const MatmulOptions<T, Cpu>& options,
                               BlockInput input);

  /// embedding() with a table of quantized blocks.                      cpu/quantized_matmul.hpp
  template <class T>
  static void quantized_embedding(Cpu, TensorView<T, 3> out, const QuantizedMatrix& w,
                                  TensorView<const std::int32_t, 2> ids, accumulate_t<T> scale);

  /// y = x / sqrt(mean(x^2) + eps) * (weight or 1 + weight), along the last axis; y may be x.
  /// weight [n]; absent: 1.                                                    cpu/norm.hpp
  template <class T, std::size_t Rank>
  static void rms_norm(Cpu, TensorView<T, Rank> y, TensorView<const T, Rank> x,
                       TensorView<const T, 1> weight, double eps, bool plus_one);

  /// y = (x - mean) / sqrt(var + eps) * weight + bias; weight, bias may be absent. cpu/norm.hpp
  template <class T, std::size_t Rank>
  static void layer_norm(Cpu, TensorView<T, Rank> y, TensorView<const T, Rank> x,
                         TensorView<const T, 1> weight, TensorView<const T, 1> bias, double eps);

  /// Gradients of rms_norm from dy: into dx, which may be dy or x, and added to dweight [n], which
  /// may be absent. The statistics are computed again from x.                  cpu/norm.hpp
  template <class T, std::size_t Rank>
  static void rms_norm_backward(Cpu, TensorView<T, Rank> dx, TensorView<accumulate_t<T>, 1> dweight,
                                TensorView<const T, Rank> dy, TensorView<const T, Rank> x,
                                TensorView<const T, 1> weight, double eps, bool plus_one);

  /// The same of layer_norm; dbias [n] is added to like dweight.               cpu/norm.hpp
  template <class T, std::size_t Rank>
  static void layer_norm_backward(Cpu, TensorView<T, Rank> dx,
                                  TensorView<accumulate_t<T>, 1> dweight,
                                  TensorView<accumulate_t<T>, 1> dbias,
                                  TensorView<const T, Rank> dy, TensorView<const T, Rank> x,
                                  TensorView<const T, 1> weight, double eps);

  /// out[i,:] = act(gate[i,:]) * up[i,:]; out may be gate or up.   cpu/gated_activation.hpp
  template <class T>
  static void gated_activation(Cpu, TensorView<T, 2> out, TensorView<const T, 2> gate,
                               TensorView<const T, 2> up, Activation activation);

  /// dgate = dout * up * act'(gate), dup = dout * act(gate); each may be dout, gate or up, but not
  /// the other.                                                    cpu/gated_activation.hpp
  template <class T>
  static void gated_activation_backward(Cpu, TensorView<T, 2> dgate, TensorView<T, 2> dup,
                                        TensorView<const T, 2> dout, TensorView<const T, 2> gate,
                                        TensorView<const T, 2> up, Activation activation);

  /// out[b,s,:] = scale * table[ids[b,s],:]; an id outside the table throws ValueError before
  /// anything is written.                                                      cpu/embedding.hpp
  template <class T>
  static void embedding(Cpu, TensorView<T, 3> out, TensorView<const T, 2> table,
                        TensorView<const std::int32_t, 2> ids, accumulate_t<T> scale);

  /// dtable[ids[b,s],:] += scale * dy[b,s,:], in the order of b, s; refuses ids as embedding does.
  ///                                                                           cpu/embedding.hpp
  template <class T>
  static void embedding_backward(Cpu, TensorView<accumulate_t<T>, 2> dtable,
                                 TensorView<const T, 3> dy, TensorView<const std::int32_t, 2> ids,
                                 accumulate_t<T> scale);

  /// Rotates x[b,s,h,:] into out (may be x) by cos, sin [batch or 1, seq, r/2], which already
  /// hold the attention factor.                                                cpu/rope.hpp
  template <class T>
  static void rope(Cpu, TensorView<T, 4> out, TensorView<const T, 4> x,
                   TensorView<const accumulate_t<T>, 3> cos,
                   TensorView<const accumulate_t<T>, 3> sin, const RopeOptions& options);

  /// cache[b, slots[b,i], g, :] = x[b,i,g,:]; a negative slot is skipped. cpu/append_to_cache.hpp
  template <class T>
  static void append_to_cache(Cpu, TensorView<T, 4> cache, TensorView<const T, 4> x,
                              TensorView<const std::int32_t, 2> slots);

  /// x = cap * tanh(x / cap), in place.                                        cpu/softcap.hpp
  template <class T>
  static void softcap(Cpu, TensorView<T, 2> x, accumulate_t<T> cap);

  /// dx = dy * (1 - (y / cap)^2), from the capped y; dx may be dy or y.        cpu/softcap.hpp
  template <class T>
  static void softcap_backward(Cpu, TensorView<T, 2> dx, TensorView<const T, 2> dy,
                               TensorView<const T, 2> y, accumulate_t<T> cap);

  /// out += x: the residual stream.                                            cpu/add.hpp
  template <class T>
  static void add(Cpu, TensorView<T, 2> out, TensorView<const T, 2> x);

  /// loss[i] = logsumexp(logits[i,:]) - (1 - smoothing) logits[i, t] - smoothing mean(logits[i,:]),
  /// t = targets[i]; 0 where t == ignore_index. A target outside the vocabulary throws ValueError.
  ///                                                                           cpu/cross_entropy.hpp
  template <class T>
  static void cross_entropy(Cpu, TensorView<accumulate_t<T>, 1> loss, TensorView<const T, 2> logits,
                            TensorView<const std::int32_t, 1> targets, std::int32_t ignore_index,
                            double smoothing);

  /// dlogits[i,:] = scale * (softmax(logits[i,:]) - the wanted distribution), 0 where the target is
  /// ignored; dlogits may be logits. loss [rows] as above, or absent. cpu/cross_entropy.hpp
  template <class T>
  static void cross_entropy_backward(Cpu, TensorView<accumulate_t<T>, 1> loss,
                                     TensorView<T, 2> dlogits, TensorView<const T, 2> logits,
                                     TensorView<const std::int32_t, 1> targets,
                                     std::int32_t ignore_index, double smoothing,
                                     accumulate_t<T> scale);

  /// out[j] = sum_i x[i,j] (+ out[j]): the gradient of a bias.                 cpu/column_sum.hpp
  template <class T>
  static void column_sum(Cpu, TensorView<accumulate_t<T>, 1> out, TensorView<const T, 2> x,
                         bool accumulate);

  /// One step of AdamW on parameters kept in acc; values [n], where present, receives them rounded
  /// to T.                                                                     cpu/optimizer.hpp
  template <class T>
  static void adamw_step(Cpu, TensorView<accumulate_t<T>, 1> master,
                         TensorView<accumulate_t<T>, 1> first,
                         TensorView<accumulate_t<T>, 1> second,
                         TensorView<const accumulate_t<T>, 1> gradient, TensorView<T, 1> values,
                         const AdamWStep& step);

  /// sum_i x[i]^2, in double; infinite or NaN where an element is.             cpu/optimizer.hpp
  template <class T>
  static double sum_of_squares(Cpu, TensorView<const T, 1> x);

  /// x *= factor.                                                              cpu/optimizer.hpp
  template <class T>
  static void scale_in_place(Cpu, TensorView<T, 1> x, accumulate_t<T> factor);

  /// Attention of attention/attention.hpp: Args is AttentionArgs<T, Cpu>, with a third argument
  /// where keys and values are 8-bit codes. The decode path is chosen inside, by shape.
  ///                                                             cpu/attention_forward.hpp
  template <class Args, class Mask, class Score>
  static void attention_forward(Cpu, const Args& args, const Mask& mask, const Score& score);

  /// Gradient of attention of attention/backward.hpp: Args is AttentionBackwardArgs<T, Cpu>.
  ///                                                             cpu/attention_backward.hpp
  template <class Args, class Mask, class Score>
  static void attention_backward(Cpu, const Args& args, const Mask& mask, const Score& score);
};

namespace detail {

template <class B>
concept BackendMemory = std::copyable<B> && std::default_initializable<B> &&
    requires(B b, void* p, const void* c, std::size_t n) {
  { BackendTraits<B>::allocate(b, n) } -> std::same_as<void*>;
  BackendTraits<B>::deallocate(b, p, n);
  BackendTraits<B>::copy(b, p, c, n);
  BackendTraits<B>::copy_from_host(b, p, c, n);
  BackendTraits<B>::copy_to_host(b, p, c, n);
  BackendTraits<B>::fill_zero(b, p, n);
  BackendTraits<B>::synchronize(b);
};

template <class B, class T, class A = accumulate_t<T>>
concept BackendOperations = requires(B b, TensorView<T, 2, B> out, TensorView<const T, 2, B> in,
                                     TensorView<T, 3, B> out3, TensorView<T, 4, B> out4,
                                     TensorView<const T, 4, B> in4, TensorView<const T, 1, B> w,
                                     TensorView<const A, 3, B> angle, TensorView<A, 1, B> loss,
                                     TensorView<const std::int32_t, 1, B> targets,
                                     TensorView<const std::int32_t, 2, B> ids,
                                     MatmulOptions<T, B> matmul_options, RopeOptions rope_options) {
  BackendTraits<B>::copy_elements(b, out, in);
  BackendTraits<B>::matmul(b, out, in, in, matmul_options);
  BackendTraits<B>::rms_norm(b, out, in, w, 1e-6, false);
  BackendTraits<B>::rms_norm(b, out4, in4, w, 1e-6, false);
  BackendTraits<B>::layer_norm(b, out, in, w, w, 1e-6);
  BackendTraits<B>::gated_activation(b, out, in, in, Activation::silu);
  BackendTraits<B>::embedding(b, out3, in, ids, A{1});
  BackendTraits<B>::rope(b, out4, in4, angle, angle, rope_options);
  BackendTraits<B>::append_to_cache(b, out4, in4, ids);
  BackendTraits<B>::softcap(b, out, A{1});
  BackendTraits<B>::add(b, out, in);
  BackendTraits<B>::cross_entropy(b, loss, in, targets, std::int32_t{-100}, 0.0);
};

/// Gradients of the operations, and the optimiser's own.
template <class B, class T, class A = accumulate_t<T>>
concept BackendTraining = requires(B b, TensorView<T, 2, B> out, TensorView<const T, 2, B> in,
                                   TensorView<T, 4, B> out4, TensorView<const T, 3, B> in3,
                                   TensorView<const T, 4, B> in4, TensorView<const T, 1, B> w,
                                   TensorView<A, 1, B> sums, TensorView<A, 2, B> table,
                                   TensorView<const A, 1, B> gradient,
                                   TensorView<const std::int32_t, 1, B> targets,
                                   TensorView<const std::int32_t, 2, B> ids,
                                   TensorView<T, 1, B> values) {
  BackendTraits<B>::matmul(b, table, in, in, MatmulOptions<T, B>{.accumulate = true});
  BackendTraits<B>::rms_norm_backward(b, out, sums, in, in, w, 1e-6, false);
  BackendTraits<B>::rms_norm_backward(b, out4, sums, in4, in4, w, 1e-6, false);
  BackendTraits<B>::layer_norm_backward(b, out, sums, sums, in, in, w, 1e-6);
  BackendTraits<B>::gated_activation_backward(b, out, out, in, in, in, Activation::silu);
  BackendTraits<B>::embedding_backward(b, table, in3, ids, A{1});
  BackendTraits<B>::softcap_backward(b, out, in, in, A{1});
  BackendTraits<B>::cross_entropy_backward(b, sums, out, in, targets, std::int32_t{-100}, 0.0,
                                           A{1});
  BackendTraits<B>::column_sum(b, sums, in, true);
  BackendTraits<B>::adamw_step(b, sums, sums, sums, gradient, values, AdamWStep{});
  { BackendTraits<B>::sum_of_squares(b, gradient) } -> std::same_as<double>;
  BackendTraits<B>::scale_in_place(b, sums, A{1});
};

}  // namespace detail

/// A machine that rapt's modules run on: memory and every operation. The error a compiler prints
/// for an incomplete backend names the operation that is missing.
template <class B>
concept Backend = detail::BackendMemory<B> && detail::BackendOperations<B, float> &&
    detail::BackendTraining<B, float> && detail::BackendTraining<B, bfloat16>;

static_assert(Backend<Cpu>);

}  // namespace rapt
