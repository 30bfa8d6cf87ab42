#include "rapt/cuda/append_to_cache.cuh"

namespace rapt {

template void BackendTraits<Cuda>::append_to_cache(Cuda, TensorView<float, 4, Cuda>,
                                                   TensorView<const float, 4, Cuda>,
                                                   TensorView<const std::int32_t, 2, Cuda>);
template void BackendTraits<Cuda>::append_to_cache(Cuda, TensorView<double, 4, Cuda>,
                                                   TensorView<const double, 4, Cuda>,
                                                   TensorView<const std::int32_t, 2, Cuda>);
template void BackendTraits<Cuda>::append_to_cache(Cuda, TensorView<half, 4, Cuda>,
                                                   TensorView<const half, 4, Cuda>,
                                                   TensorView<const std::int32_t, 2, Cuda>);
template void BackendTraits<Cuda>::append_to_cache(Cuda, TensorView<bfloat16, 4, Cuda>,
                                                   TensorView<const bfloat16, 4, Cuda>,
                                                   TensorView<const std::int32_t, 2, Cuda>);

}  // namespace rapt
