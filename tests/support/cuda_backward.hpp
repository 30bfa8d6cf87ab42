// attention_backward() on the CUDA backend compared with the oracle in double precision.
#pragma once

#include <algorithm>
#include <cmath>

#include "rapt/attention/attention.hpp"
#include "rapt/attention/backward.hpp"
#include "rapt/attention/reference_backward.hpp"
#include "support/cuda_test.hpp"

namespace rapt::test {

/// The options of a call, in host memory; empty: absent.
template <class T>
struct HostBackwardOptions {
  using A = accumulate_t<T>;
  double scale = 0;
  Tensor<T, 1> sinks{};
  Tensor<std::int32_t, 1> kv_lengths{}, cu_q{}, cu_k{};
  Tensor<std::int32_t, 2> q_positions{}, kv_positions{};
  Tensor<A, 3> dlogsumexp{}, dlogsumexp_with_sink{};
  Shape<4> bias{};      // of the score's AdditiveBias, if its gradient is wanted
  Shape<2> relative{};  // of its RelativeBias
};

/// The tolerance is a share of the largest gradient beside the usual ones: terms cancel, and D is
/// summed from an output that was rounded.
template <class Got, class Want>
void expect_gradient_close(const Got& got, const Want& want, Tolerance tolerance,
                           const char* name) {
  double largest = 0;
  for (index_t n = 0; n < want.size(); ++n)
    largest = std::max(largest, std::abs(static_cast<double>(want.data()[n])));
  tolerance.absolute += tolerance.relative * largest;
  expect_close(to(Cpu{}, got), want, tolerance, name);
}

/// The oracle reads the host's mask and score, the kernels those of the device. The kernels get out
/// and logsumexp from the CPU's attention().
template <class T, class HostMask, class Mask, class HostScore, class Score>
void expect_backward_matches(TensorView<const T, 4> q, TensorView<const T, 4> k,
                             TensorView<const T, 4> v, const HostMask& host_mask, const Mask& mask,
                             const HostScore& host_score, const Score& score,
                             const HostBackwardOptions<T>& host = {}) {
  using A = accumulate_t<T>;
  const Shape<4> out_shape{q.extent(0), q.extent(1), q.extent(2), v.extent(3)};
  const Shape<3> rows{q.extent(0), q.extent(2), q.extent(1)};
  const auto give = [](auto& option, const auto& tensor) {
    if (!tensor.empty()) option = tensor.view();
  };

  AttentionOptions<Tensor<T, 4>> forward{.scale = static_cast<A>(host.scale)};
  Tensor<T, 4> out(out_shape);
  Tensor<A, 3> lse(rows);
  forward.logsumexp = lse;
  give(forward.sink_logits, host.sinks);
  give(forward.kv_lengths, host.kv_lengths);
  give(forward.cu_seqlens_q, host.cu_q);
  give(forward.cu_seqlens_k, host.cu_k);
  give(forward.q_positions, host.q_positions);
  give(forward.kv_positions, host.kv_positions);
  reference_attention<double>(out, q, k, v, host_mask, host_score, forward);

  const auto dout = gaussian<T>(out_shape, 77);
  Tensor<T, 4> want_dq(q.shape()), want_dk(k.shape()), want_dv(v.shape());
  Tensor<A, 1> want_dsinks(Shape<1>{host.sinks.extent(0)});
  Tensor<A, 4> want_dbias(host.bias);
  Tensor<A, 2> want_drelative(host.relative);
  AttentionBackwardOptions<Tensor<T, 4>> options{.scale = static_cast<A>(host.scale)};
  give(options.sink_logits, host.sinks);
  give(options.kv_lengths, host.kv_lengths);
  give(options.cu_seqlens_q, host.cu_q);
  give(options.cu_seqlens_k, host.cu_k);
  give(options.q_positions, host.q_positions);
  give(options.kv_positions, host.kv_positions);
  give(options.dlogsumexp, host.dlogsumexp);
  give(options.dlogsumexp_with_sink, host.dlogsumexp_with_sink);
  if (!want_dsinks.empty()) options.dsinks = want_dsinks;
  if (!want_dbias.empty()) options.dbias = want_dbias;
  if (!want_drelative.empty()) options.drelative_bias = want_drelative;
  reference_attention_backward<double>(want_dq, want_dk, want_dv, dout, q, k, v, host_mask,
                                       host_score, options);

  const auto gq = to(Cuda{}, q), gk = to(Cuda{}, k), gv = to(Cuda{}, v);
  const auto gout = on_gpu(out), gdout = on_gpu(dout);
  const auto glse = on_gpu(lse);
  const auto sinks = on_gpu(host.sinks);
  const auto kv_lengths = on_gpu(host.kv_lengths), cu_q = on_gpu(host.cu_q),
             cu_k = on_gpu(host.cu_k);
  const auto q_positions = on_gpu(host.q_positions), kv_positions = on_gpu(host.kv_positions);
  const auto dlse = on_gpu(host.dlogsumexp), dlse_sink = on_gpu(host.dlogsumexp_with_sink);
  Tensor<T, 4, Cuda> dq(q.shape()), dk(k.shape()), dv(v.shape());
  Tensor<A, 1, Cuda> dsinks(want_dsinks.shape());
  Tensor<A, 4, Cuda> dbias(host.bias);
  Tensor<A, 2, Cuda> drelative(host.relative);
  AttentionBackwardOptions<Tensor<T, 4, Cuda>> on_device{.scale = static_cast<A>(host.scale)};
  give(on_device.sink_logits, sinks);
  give(on_device.kv_lengths, kv_lengths);
  give(on_device.cu_seqlens_q, cu_q);
  give(on_device.cu_seqlens_k, cu_k);
  give(on_device.q_positions, q_positions);
  give(on_device.kv_positions, kv_positions);
  give(on_device.dlogsumexp, dlse);
  give(on_device.dlogsumexp_with_sink, dlse_sink);
  if (!dsinks.empty()) on_device.dsinks = dsinks;
  if (!dbias.empty()) on_device.dbias = dbias;
  if (!drelative.empty()) on_device.drelative_bias = drelative;
  attention_backward(dq, dk, dv, gdout, gq, gk, gv, gout, glse, mask, score, on_device);

  expect_gradient_close(dq, want_dq, tolerance_of<T>() * 4, "dq");
  expect_gradient_close(dk, want_dk, tolerance_of<T>() * 4, "dk");
  expect_gradient_close(dv, want_dv, tolerance_of<T>() * 4, "dv");
  expect_gradient_close(dsinks, want_dsinks, tolerance_of<T>() * 4, "dsinks");
  expect_gradient_close(dbias, want_dbias, tolerance_of<T>() * 4, "dbias");
  expect_gradient_close(drelative, want_drelative, tolerance_of<T>() * 4, "drelative_bias");
}

}  // namespace rapt::test
