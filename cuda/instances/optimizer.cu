#include "rapt/cuda/optimizer.cuh"

namespace rapt {

template void BackendTraits<Cuda>::adamw_step<float>(Cuda, TensorView<float, 1, Cuda>,
                                                     TensorView<float, 1, Cuda>,
                                                     TensorView<float, 1, Cuda>,
                                                     TensorView<const float, 1, Cuda>,
                                                     TensorView<float, 1, Cuda>, const AdamWStep&);
template double BackendTraits<Cuda>::sum_of_squares(Cuda, TensorView<const float, 1, Cuda>);
template void BackendTraits<Cuda>::scale_in_place<float>(Cuda, TensorView<float, 1, Cuda>,
                                                         accumulate_t<float>);
template void BackendTraits<Cuda>::adamw_step<double>(
    Cuda, TensorView<double, 1, Cuda>, TensorView<double, 1, Cuda>, TensorView<double, 1, Cuda>,
    TensorView<const double, 1, Cuda>, TensorView<double, 1, Cuda>, const AdamWStep&);
template double BackendTraits<Cuda>::sum_of_squares(Cuda, TensorView<const double, 1, Cuda>);
template void BackendTraits<Cuda>::scale_in_place<double>(Cuda, TensorView<double, 1, Cuda>,
                                                          accumulate_t<double>);
template void BackendTraits<Cuda>::adamw_step<half>(Cuda, TensorView<float, 1, Cuda>,
                                                    TensorView<float, 1, Cuda>,
                                                    TensorView<float, 1, Cuda>,
                                                    TensorView<const float, 1, Cuda>,
                                                    TensorView<half, 1, Cuda>, const AdamWStep&);
template double BackendTraits<Cuda>::sum_of_squares(Cuda, TensorView<const half, 1, Cuda>);
template void BackendTraits<Cuda>::scale_in_place<half>(Cuda, TensorView<half, 1, Cuda>,
                                                        accumulate_t<half>);
template void BackendTraits<Cuda>::adamw_step<bfloat16>(
    Cuda, TensorView<float, 1, Cuda>, TensorView<float, 1, Cuda>, TensorView<float, 1, Cuda>,
    TensorView<const float, 1, Cuda>, TensorView<bfloat16, 1, Cuda>, const AdamWStep&);
template double BackendTraits<Cuda>::sum_of_squares(Cuda, TensorView<const bfloat16, 1, Cuda>);
template void BackendTraits<Cuda>::scale_in_place<bfloat16>(Cuda, TensorView<bfloat16, 1, Cuda>,
                                                            accumulate_t<bfloat16>);

}  // namespace rapt
