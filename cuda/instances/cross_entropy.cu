#include "rapt/cuda/cross_entropy.cuh"

namespace rapt {

template void BackendTraits<Cuda>::cross_entropy<float>(Cuda,
                                                        TensorView<accumulate_t<float>, 1, Cuda>,
                                                        TensorView<const float, 2, Cuda>,
                                                        TensorView<const std::int32_t, 1, Cuda>,
                                                        std::int32_t, double);
template void BackendTraits<Cuda>::cross_entropy<double>(Cuda,
                                                         TensorView<accumulate_t<double>, 1, Cuda>,
                                                         TensorView<const double, 2, Cuda>,
                                                         TensorView<const std::int32_t, 1, Cuda>,
                                                         std::int32_t, double);
template void BackendTraits<Cuda>::cross_entropy<half>(Cuda,
                                                       TensorView<accumulate_t<half>, 1, Cuda>,
                                                       TensorView<const half, 2, Cuda>,
                                                       TensorView<const std::int32_t, 1, Cuda>,
                                                       std::int32_t, double);
template void BackendTraits<Cuda>::cross_entropy<bfloat16>(
    Cuda, TensorView<accumulate_t<bfloat16>, 1, Cuda>, TensorView<const bfloat16, 2, Cuda>,
    TensorView<const std::int32_t, 1, Cuda>, std::int32_t, double);
template void BackendTraits<Cuda>::cross_entropy_backward<float>(
    Cuda, TensorView<float, 1, Cuda>, TensorView<float, 2, Cuda>, TensorView<const float, 2, Cuda>,
    TensorView<const std::int32_t, 1, Cuda>, std::int32_t, double, accumulate_t<float>);
template void BackendTraits<Cuda>::cross_entropy_backward<double>(
    Cuda, TensorView<double, 1, Cuda>, TensorView<double, 2, Cuda>,
    TensorView<const double, 2, Cuda>, TensorView<const std::int32_t, 1, Cuda>, std::int32_t,
    double, accumulate_t<double>);
template void BackendTraits<Cuda>::cross_entropy_backward<half>(
    Cuda, TensorView<float, 1, Cuda>, TensorView<half, 2, Cuda>, TensorView<const half, 2, Cuda>,
    TensorView<const std::int32_t, 1, Cuda>, std::int32_t, double, accumulate_t<half>);
template void BackendTraits<Cuda>::cross_entropy_backward<bfloat16>(
    Cuda, TensorView<float, 1, Cuda>, TensorView<bfloat16, 2, Cuda>,
    TensorView<const bfloat16, 2, Cuda>, TensorView<const std::int32_t, 1, Cuda>, std::int32_t,
    double, accumulate_t<bfloat16>);

}  // namespace rapt
