#include "rapt/cuda/gated_activation.cuh"

namespace rapt {

template void BackendTraits<Cuda>::gated_activation(Cuda, TensorView<float, 2, Cuda>,
                                                    TensorView<const float, 2, Cuda>,
                                                    TensorView<const float, 2, Cuda>, Activation);
template void BackendTraits<Cuda>::gated_activation(Cuda, TensorView<double, 2, Cuda>,
                                                    TensorView<const double, 2, Cuda>,
                                                    TensorView<const double, 2, Cuda>, Activation);
template void BackendTraits<Cuda>::gated_activation(Cuda, TensorView<half, 2, Cuda>,
                                                    TensorView<const half, 2, Cuda>,
                                                    TensorView<const half, 2, Cuda>, Activation);
template void BackendTraits<Cuda>::gated_activation(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                    TensorView<const bfloat16, 2, Cuda>,
                                                    TensorView<const bfloat16, 2, Cuda>,
                                                    Activation);
template void BackendTraits<Cuda>::gated_activation_backward(
    Cuda, TensorView<float, 2, Cuda>, TensorView<float, 2, Cuda>, TensorView<const float, 2, Cuda>,
    TensorView<const float, 2, Cuda>, TensorView<const float, 2, Cuda>, Activation);
template void BackendTraits<Cuda>::gated_activation_backward(Cuda, TensorView<double, 2, Cuda>,
                                                             TensorView<double, 2, Cuda>,
                                                             TensorView<const double, 2, Cuda>,
                                                             TensorView<const double, 2, Cuda>,
                                                             TensorView<const double, 2, Cuda>,
                                                             Activation);
template void BackendTraits<Cuda>::gated_activation_backward(
    Cuda, TensorView<half, 2, Cuda>, TensorView<half, 2, Cuda>, TensorView<const half, 2, Cuda>,
    TensorView<const half, 2, Cuda>, TensorView<const half, 2, Cuda>, Activation);
template void BackendTraits<Cuda>::gated_activation_backward(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                             TensorView<bfloat16, 2, Cuda>,
                                                             TensorView<const bfloat16, 2, Cuda>,
                                                             TensorView<const bfloat16, 2, Cuda>,
                                                             TensorView<const bfloat16, 2, Cuda>,
                                                             Activation);

}  // namespace rapt
