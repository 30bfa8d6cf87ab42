#include "rapt/cuda/embedding.cuh"

namespace rapt {

template void BackendTraits<Cuda>::embedding<float>(Cuda, TensorView<float, 3, Cuda>,
                                                    TensorView<const float, 2, Cuda>,
                                                    TensorView<const std::int32_t, 2, Cuda>,
                                                    accumulate_t<float>);
template void BackendTraits<Cuda>::embedding<double>(Cuda, TensorView<double, 3, Cuda>,
                                                     TensorView<const double, 2, Cuda>,
                                                     TensorView<const std::int32_t, 2, Cuda>,
                                                     accumulate_t<double>);
template void BackendTraits<Cuda>::embedding<half>(Cuda, TensorView<half, 3, Cuda>,
                                                   TensorView<const half, 2, Cuda>,
                                                   TensorView<const std::int32_t, 2, Cuda>,
                                                   accumulate_t<half>);
template void BackendTraits<Cuda>::embedding<bfloat16>(Cuda, TensorView<bfloat16, 3, Cuda>,
                                                       TensorView<const bfloat16, 2, Cuda>,
                                                       TensorView<const std::int32_t, 2, Cuda>,
                                                       accumulate_t<bfloat16>);
template void BackendTraits<Cuda>::embedding_backward<float>(
    Cuda, TensorView<float, 2, Cuda>, TensorView<const float, 3, Cuda>,
    TensorView<const std::int32_t, 2, Cuda>, accumulate_t<float>);
template void BackendTraits<Cuda>::embedding_backward<double>(
    Cuda, TensorView<double, 2, Cuda>, TensorView<const double, 3, Cuda>,
    TensorView<const std::int32_t, 2, Cuda>, accumulate_t<double>);
template void BackendTraits<Cuda>::embedding_backward<half>(Cuda, TensorView<float, 2, Cuda>,
                                                            TensorView<const half, 3, Cuda>,
                                                            TensorView<const std::int32_t, 2, Cuda>,
                                                            accumulate_t<half>);
template void BackendTraits<Cuda>::embedding_backward<bfloat16>(
    Cuda, TensorView<float, 2, Cuda>, TensorView<const bfloat16, 3, Cuda>,
    TensorView<const std::int32_t, 2, Cuda>, accumulate_t<bfloat16>);

}  // namespace rapt
