#include "rapt/cuda/copy.cuh"

namespace rapt {

template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 1, Cuda>,
                                                 TensorView<const float, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 1, Cuda>,
                                                 TensorView<const double, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 1, Cuda>,
                                                 TensorView<const half, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 1, Cuda>,
                                                 TensorView<const bfloat16, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int8_t, 1, Cuda>,
                                                 TensorView<const std::int8_t, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float8_e4m3, 1, Cuda>,
                                                 TensorView<const float8_e4m3, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float8_e5m2, 1, Cuda>,
                                                 TensorView<const float8_e5m2, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::uint8_t, 1, Cuda>,
                                                 TensorView<const std::uint8_t, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int32_t, 1, Cuda>,
                                                 TensorView<const std::int32_t, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int64_t, 1, Cuda>,
                                                 TensorView<const std::int64_t, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bool, 1, Cuda>,
                                                 TensorView<const bool, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 1, Cuda>,
                                                 TensorView<const double, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 1, Cuda>,
                                                 TensorView<const half, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 1, Cuda>,
                                                 TensorView<const bfloat16, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 1, Cuda>,
                                                 TensorView<const float, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 1, Cuda>,
                                                 TensorView<const half, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 1, Cuda>,
                                                 TensorView<const bfloat16, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 1, Cuda>,
                                                 TensorView<const float, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 1, Cuda>,
                                                 TensorView<const double, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 1, Cuda>,
                                                 TensorView<const bfloat16, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 1, Cuda>,
                                                 TensorView<const float, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 1, Cuda>,
                                                 TensorView<const double, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 1, Cuda>,
                                                 TensorView<const half, 1, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 2, Cuda>,
                                                 TensorView<const float, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 2, Cuda>,
                                                 TensorView<const double, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 2, Cuda>,
                                                 TensorView<const half, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                 TensorView<const bfloat16, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int8_t, 2, Cuda>,
                                                 TensorView<const std::int8_t, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float8_e4m3, 2, Cuda>,
                                                 TensorView<const float8_e4m3, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float8_e5m2, 2, Cuda>,
                                                 TensorView<const float8_e5m2, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::uint8_t, 2, Cuda>,
                                                 TensorView<const std::uint8_t, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int32_t, 2, Cuda>,
                                                 TensorView<const std::int32_t, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int64_t, 2, Cuda>,
                                                 TensorView<const std::int64_t, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bool, 2, Cuda>,
                                                 TensorView<const bool, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 2, Cuda>,
                                                 TensorView<const double, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 2, Cuda>,
                                                 TensorView<const half, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 2, Cuda>,
                                                 TensorView<const bfloat16, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 2, Cuda>,
                                                 TensorView<const float, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 2, Cuda>,
                                                 TensorView<const half, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 2, Cuda>,
                                                 TensorView<const bfloat16, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 2, Cuda>,
                                                 TensorView<const float, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 2, Cuda>,
                                                 TensorView<const double, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 2, Cuda>,
                                                 TensorView<const bfloat16, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                 TensorView<const float, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                 TensorView<const double, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                 TensorView<const half, 2, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 3, Cuda>,
                                                 TensorView<const float, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 3, Cuda>,
                                                 TensorView<const double, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 3, Cuda>,
                                                 TensorView<const half, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 3, Cuda>,
                                                 TensorView<const bfloat16, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int8_t, 3, Cuda>,
                                                 TensorView<const std::int8_t, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float8_e4m3, 3, Cuda>,
                                                 TensorView<const float8_e4m3, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float8_e5m2, 3, Cuda>,
                                                 TensorView<const float8_e5m2, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::uint8_t, 3, Cuda>,
                                                 TensorView<const std::uint8_t, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int32_t, 3, Cuda>,
                                                 TensorView<const std::int32_t, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int64_t, 3, Cuda>,
                                                 TensorView<const std::int64_t, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bool, 3, Cuda>,
                                                 TensorView<const bool, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 3, Cuda>,
                                                 TensorView<const double, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 3, Cuda>,
                                                 TensorView<const half, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 3, Cuda>,
                                                 TensorView<const bfloat16, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 3, Cuda>,
                                                 TensorView<const float, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 3, Cuda>,
                                                 TensorView<const half, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 3, Cuda>,
                                                 TensorView<const bfloat16, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 3, Cuda>,
                                                 TensorView<const float, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 3, Cuda>,
                                                 TensorView<const double, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 3, Cuda>,
                                                 TensorView<const bfloat16, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 3, Cuda>,
                                                 TensorView<const float, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 3, Cuda>,
                                                 TensorView<const double, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 3, Cuda>,
                                                 TensorView<const half, 3, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 4, Cuda>,
                                                 TensorView<const float, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 4, Cuda>,
                                                 TensorView<const double, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 4, Cuda>,
                                                 TensorView<const half, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 4, Cuda>,
                                                 TensorView<const bfloat16, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int8_t, 4, Cuda>,
                                                 TensorView<const std::int8_t, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float8_e4m3, 4, Cuda>,
                                                 TensorView<const float8_e4m3, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float8_e5m2, 4, Cuda>,
                                                 TensorView<const float8_e5m2, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::uint8_t, 4, Cuda>,
                                                 TensorView<const std::uint8_t, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int32_t, 4, Cuda>,
                                                 TensorView<const std::int32_t, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<std::int64_t, 4, Cuda>,
                                                 TensorView<const std::int64_t, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bool, 4, Cuda>,
                                                 TensorView<const bool, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 4, Cuda>,
                                                 TensorView<const double, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 4, Cuda>,
                                                 TensorView<const half, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<float, 4, Cuda>,
                                                 TensorView<const bfloat16, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 4, Cuda>,
                                                 TensorView<const float, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 4, Cuda>,
                                                 TensorView<const half, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<double, 4, Cuda>,
                                                 TensorView<const bfloat16, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 4, Cuda>,
                                                 TensorView<const float, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 4, Cuda>,
                                                 TensorView<const double, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<half, 4, Cuda>,
                                                 TensorView<const bfloat16, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 4, Cuda>,
                                                 TensorView<const float, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 4, Cuda>,
                                                 TensorView<const double, 4, Cuda>);
template void BackendTraits<Cuda>::copy_elements(Cuda, TensorView<bfloat16, 4, Cuda>,
                                                 TensorView<const half, 4, Cuda>);

}  // namespace rapt
