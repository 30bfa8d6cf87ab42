// The second backend: NVIDIA GPUs. Plain C++ that any .cpp may include; link rapt::cuda.
//
//   rapt::Tensor<float, 4, rapt::Cuda> q({1, 16, 8, 64});   // on device 0, its default stream
//   auto k = rapt::to(rapt::Cuda{.device = 1}, host);       // on another device
//
// Work is queued on the backend's stream and runs later; copies to and from the host wait for it.
// Tensors of one call live on one device and are used on one stream.
//
// Memory functions are defined in cuda/instances/runtime.cu. Each operation is defined in
// rapt/cuda/<operation>.cuh and compiled for the usual types by cuda/instances/<operation>*.cu:
// "undefined reference to BackendTraits<Cuda>::attention_forward<..., YourMask, ...>" means that no
// instance file names YourMask; include rapt/cuda/attention_forward.cuh in a .cu of your own.
//
// Errors: DeviceError names the failed call, or says that there is no device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rapt/core/backend.hpp"
#include "rapt/core/convert.hpp"
#include "rapt/core/dtype.hpp"
#include "rapt/core/tensor.hpp"

struct CUstream_st;  // what a cudaStream_t points to

namespace rapt {

/// A GPU and a queue of work on it.
struct Cuda {
  int device = 0;
  CUstream_st* stream = nullptr;  // a cudaStream_t; null: the device's default stream

  friend constexpr bool operator==(const Cuda&, const Cuda&) = default;
};

/// How many GPUs this process can use; 0 without a driver.
int cuda_device_count();

template <>
struct BackendTraits<Cuda> {
  template <class T>
  static constexpr bool supports = Element<T>;

  // ---- memory ----

  static void* allocate(Cuda backend, std::size_t bytes);
  static void deallocate(Cuda backend, void* pointer, std::size_t bytes) noexcept;
  static void copy(Cuda backend, void* to, const void* from, std::size_t bytes);
  static void copy_from_host(Cuda backend, void* to, const void* from, std::size_t bytes);
  static void copy_to_host(Cuda backend, void* to, const void* from, std::size_t bytes);
  static void fill_zero(Cuda backend, void* pointer, std::size_t bytes);
  static void synchronize(Cuda backend);

  // ---- operations: core/backend.hpp says what each computes ----

  template <class To, class From, std::size_t Rank>
  static void copy_elements(Cuda backend, TensorView<To, Rank, Cuda> to,
                            TensorView<const From, Rank, Cuda> from);

  template <class Out, class T>
  static void matmul(Cuda backend, TensorView<Out, 2, Cuda> out, TensorView<const T, 2, Cuda> a,
                     TensorView<const T, 2, Cuda> b, const MatmulOptions<T, Cuda>& options);

  template <class T, std::size_t Rank>
  static void rms_norm(Cuda backend, TensorView<T, Rank, Cuda> y, TensorView<const T, Rank, Cuda> x,
                       TensorView<const T, 1, Cuda> weight, double eps, bool plus_one);

  template <class T, std::size_t Rank>
  static void layer_norm(Cuda backend, TensorView<T, Rank, Cuda> y,
                         TensorView<const T, Rank, Cuda> x, TensorView<const T, 1, Cuda> weight,
                         TensorView<const T, 1, Cuda> bias, double eps);

  template <class T>
  static void gated_activation(Cuda backend, TensorView<T, 2, Cuda> out,
                               TensorView<const T, 2, Cuda> gate, TensorView<const T, 2, Cuda> up,
                               Activation activation);

  template <class T>
  static void embedding(Cuda backend, TensorView<T, 3, Cuda> out,
                        TensorView<const T, 2, Cuda> table,
                        TensorView<const std::int32_t, 2, Cuda> ids, accumulate_t<T> scale);

  template <class T>
  static void rope(Cuda backend, TensorView<T, 4, Cuda> out, TensorView<const T, 4, Cuda> x,
                   TensorView<const accumulate_t<T>, 3, Cuda> cos,
                   TensorView<const accumulate_t<T>, 3, Cuda> sin, const RopeOptions& options);

  template <class T>
  static void append_to_cache(Cuda backend, TensorView<T, 4, Cuda> cache,
                              TensorView<const T, 4, Cuda> x,
                              TensorView<const std::int32_t, 2, Cuda> slots);

  template <class T>
  static void softcap(Cuda backend, TensorView<T, 2, Cuda> x, accumulate_t<T> cap);

  template <class T>
  static void add(Cuda backend, TensorView<T, 2, Cuda> out, TensorView<const T, 2, Cuda> x);

  template <class T>
  static void cross_entropy(Cuda backend, TensorView<accumulate_t<T>, 1, Cuda> loss,
                            TensorView<const T, 2, Cuda> logits,
                            TensorView<const std::int32_t, 1, Cuda> targets,
                            std::int32_t ignore_index, double smoothing);

  template <class T, std::size_t Rank>
  static void rms_norm_backward(Cuda backend, TensorView<T, Rank, Cuda> dx,
                                TensorView<accumulate_t<T>, 1, Cuda> dweight,
                                TensorView<const T, Rank, Cuda> dy,
                                TensorView<const T, Rank, Cuda> x,
                                TensorView<const T, 1, Cuda> weight, double eps, bool plus_one);

  template <class T, std::size_t Rank>
  static void layer_norm_backward(Cuda backend, TensorView<T, Rank, Cuda> dx,
                                  TensorView<accumulate_t<T>, 1, Cuda> dweight,
                                  TensorView<accumulate_t<T>, 1, Cuda> dbias,
                                  TensorView<const T, Rank, Cuda> dy,
                                  TensorView<const T, Rank, Cuda> x,
                                  TensorView<const T, 1, Cuda> weight, double eps);

  template <class T>
  static void gated_activation_backward(Cuda backend, TensorView<T, 2, Cuda> dgate,
                                        TensorView<T, 2, Cuda> dup,
                                        TensorView<const T, 2, Cuda> dout,
                                        TensorView<const T, 2, Cuda> gate,
                                        TensorView<const T, 2, Cuda> up, Activation activation);

  template <class T>
  static void embedding_backward(Cuda backend, TensorView<accumulate_t<T>, 2, Cuda> dtable,
                                 TensorView<const T, 3, Cuda> dy,
                                 TensorView<const std::int32_t, 2, Cuda> ids,
                                 accumulate_t<T> scale);

  template <class T>
  static void softcap_backward(Cuda backend, TensorView<T, 2, Cuda> dx,
                               TensorView<const T, 2, Cuda> dy, TensorView<const T, 2, Cuda> y,
                               accumulate_t<T> cap);

  template <class T>
  static void cross_entropy_backward(Cuda backend, TensorView<accumulate_t<T>, 1, Cuda> loss,
                                     TensorView<T, 2, Cuda> dlogits,
                                     TensorView<const T, 2, Cuda> logits,
                                     TensorView<const std::int32_t, 1, Cuda> targets,
                                     std::int32_t ignore_index, double smoothing,
                                     accumulate_t<T> scale);

  template <class T>
  static void column_sum(Cuda backend, TensorView<accumulate_t<T>, 1, Cuda> out,
                         TensorView<const T, 2, Cuda> x, bool accumulate);

  template <class T>
  static void adamw_step(Cuda backend, TensorView<accumulate_t<T>, 1, Cuda> master,
                         TensorView<accumulate_t<T>, 1, Cuda> first,
                         TensorView<accumulate_t<T>, 1, Cuda> second,
                         TensorView<const accumulate_t<T>, 1, Cuda> gradient,
                         TensorView<T, 1, Cuda> values, const AdamWStep& step);

  template <class T>
  static double sum_of_squares(Cuda backend, TensorView<const T, 1, Cuda> x);

  template <class T>
  static void scale_in_place(Cuda backend, TensorView<T, 1, Cuda> x, accumulate_t<T> factor);

  /// Args is AttentionArgs<T, Cuda>, or AttentionArgs<T, Cuda, S> with keys and values of 8-bit
  /// codes.
  template <class Args, class Mask, class Score>
  static void attention_forward(Cuda backend, const Args& args, const Mask& mask,
                                const Score& score);

  /// Args is AttentionBackwardArgs<T, Cuda>.
  template <class Args, class Mask, class Score>
  static void attention_backward(Cuda backend, const Args& args, const Mask& mask,
                                 const Score& score);
};

static_assert(Backend<Cuda>);

}  // namespace rapt
