#include "rapt/cuda/column_sum.cuh"

namespace rapt {

template void BackendTraits<Cuda>::column_sum<float>(Cuda, TensorView<float, 1, Cuda>,
                                                     TensorView<const float, 2, Cuda>, bool);
template void BackendTraits<Cuda>::column_sum<double>(Cuda, TensorView<double, 1, Cuda>,
                                                      TensorView<const double, 2, Cuda>, bool);
template void BackendTraits<Cuda>::column_sum<half>(Cuda, TensorView<float, 1, Cuda>,
                                                    TensorView<const half, 2, Cuda>, bool);
template void BackendTraits<Cuda>::column_sum<bfloat16>(Cuda, TensorView<float, 1, Cuda>,
                                                        TensorView<const bfloat16, 2, Cuda>, bool);

}  // namespace rapt
