#include "rapt/cuda/norm.cuh"

namespace rapt {

template void BackendTraits<Cuda>::rms_norm_backward(
    Cuda, TensorView<float, 2, Cuda>, TensorView<float, 1, Cuda>, TensorView<const float, 2, Cuda>,
    TensorView<const float, 2, Cuda>, TensorView<const float, 1, Cuda>, double, bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<float, 2, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<const float, 2, Cuda>,
                                                       TensorView<const float, 2, Cuda>,
                                                       TensorView<const float, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(
    Cuda, TensorView<float, 3, Cuda>, TensorView<float, 1, Cuda>, TensorView<const float, 3, Cuda>,
    TensorView<const float, 3, Cuda>, TensorView<const float, 1, Cuda>, double, bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<float, 3, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<const float, 3, Cuda>,
                                                       TensorView<const float, 3, Cuda>,
                                                       TensorView<const float, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(
    Cuda, TensorView<float, 4, Cuda>, TensorView<float, 1, Cuda>, TensorView<const float, 4, Cuda>,
    TensorView<const float, 4, Cuda>, TensorView<const float, 1, Cuda>, double, bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<float, 4, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<const float, 4, Cuda>,
                                                       TensorView<const float, 4, Cuda>,
                                                       TensorView<const float, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(Cuda, TensorView<double, 2, Cuda>,
                                                     TensorView<double, 1, Cuda>,
                                                     TensorView<const double, 2, Cuda>,
                                                     TensorView<const double, 2, Cuda>,
                                                     TensorView<const double, 1, Cuda>, double,
                                                     bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<double, 2, Cuda>,
                                                       TensorView<double, 1, Cuda>,
                                                       TensorView<double, 1, Cuda>,
                                                       TensorView<const double, 2, Cuda>,
                                                       TensorView<const double, 2, Cuda>,
                                                       TensorView<const double, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(Cuda, TensorView<double, 3, Cuda>,
                                                     TensorView<double, 1, Cuda>,
                                                     TensorView<const double, 3, Cuda>,
                                                     TensorView<const double, 3, Cuda>,
                                                     TensorView<const double, 1, Cuda>, double,
                                                     bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<double, 3, Cuda>,
                                                       TensorView<double, 1, Cuda>,
                                                       TensorView<double, 1, Cuda>,
                                                       TensorView<const double, 3, Cuda>,
                                                       TensorView<const double, 3, Cuda>,
                                                       TensorView<const double, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(Cuda, TensorView<double, 4, Cuda>,
                                                     TensorView<double, 1, Cuda>,
                                                     TensorView<const double, 4, Cuda>,
                                                     TensorView<const double, 4, Cuda>,
                                                     TensorView<const double, 1, Cuda>, double,
                                                     bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<double, 4, Cuda>,
                                                       TensorView<double, 1, Cuda>,
                                                       TensorView<double, 1, Cuda>,
                                                       TensorView<const double, 4, Cuda>,
                                                       TensorView<const double, 4, Cuda>,
                                                       TensorView<const double, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(Cuda, TensorView<half, 2, Cuda>,
                                                     TensorView<float, 1, Cuda>,
                                                     TensorView<const half, 2, Cuda>,
                                                     TensorView<const half, 2, Cuda>,
                                                     TensorView<const half, 1, Cuda>, double, bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<half, 2, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<const half, 2, Cuda>,
                                                       TensorView<const half, 2, Cuda>,
                                                       TensorView<const half, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(Cuda, TensorView<half, 3, Cuda>,
                                                     TensorView<float, 1, Cuda>,
                                                     TensorView<const half, 3, Cuda>,
                                                     TensorView<const half, 3, Cuda>,
                                                     TensorView<const half, 1, Cuda>, double, bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<half, 3, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<const half, 3, Cuda>,
                                                       TensorView<const half, 3, Cuda>,
                                                       TensorView<const half, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(Cuda, TensorView<half, 4, Cuda>,
                                                     TensorView<float, 1, Cuda>,
                                                     TensorView<const half, 4, Cuda>,
                                                     TensorView<const half, 4, Cuda>,
                                                     TensorView<const half, 1, Cuda>, double, bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<half, 4, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<const half, 4, Cuda>,
                                                       TensorView<const half, 4, Cuda>,
                                                       TensorView<const half, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                     TensorView<float, 1, Cuda>,
                                                     TensorView<const bfloat16, 2, Cuda>,
                                                     TensorView<const bfloat16, 2, Cuda>,
                                                     TensorView<const bfloat16, 1, Cuda>, double,
                                                     bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<const bfloat16, 2, Cuda>,
                                                       TensorView<const bfloat16, 2, Cuda>,
                                                       TensorView<const bfloat16, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(Cuda, TensorView<bfloat16, 3, Cuda>,
                                                     TensorView<float, 1, Cuda>,
                                                     TensorView<const bfloat16, 3, Cuda>,
                                                     TensorView<const bfloat16, 3, Cuda>,
                                                     TensorView<const bfloat16, 1, Cuda>, double,
                                                     bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<bfloat16, 3, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<const bfloat16, 3, Cuda>,
                                                       TensorView<const bfloat16, 3, Cuda>,
                                                       TensorView<const bfloat16, 1, Cuda>, double);
template void BackendTraits<Cuda>::rms_norm_backward(Cuda, TensorView<bfloat16, 4, Cuda>,
                                                     TensorView<float, 1, Cuda>,
                                                     TensorView<const bfloat16, 4, Cuda>,
                                                     TensorView<const bfloat16, 4, Cuda>,
                                                     TensorView<const bfloat16, 1, Cuda>, double,
                                                     bool);
template void BackendTraits<Cuda>::layer_norm_backward(Cuda, TensorView<bfloat16, 4, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<float, 1, Cuda>,
                                                       TensorView<const bfloat16, 4, Cuda>,
                                                       TensorView<const bfloat16, 4, Cuda>,
                                                       TensorView<const bfloat16, 1, Cuda>, double);

}  // namespace rapt
