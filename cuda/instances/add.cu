#include "rapt/cuda/add.cuh"

namespace rapt {

template void BackendTraits<Cuda>::add(Cuda, TensorView<float, 2, Cuda>,
                                       TensorView<const float, 2, Cuda>);
template void BackendTraits<Cuda>::add(Cuda, TensorView<double, 2, Cuda>,
                                       TensorView<const double, 2, Cuda>);
template void BackendTraits<Cuda>::add(Cuda, TensorView<half, 2, Cuda>,
                                       TensorView<const half, 2, Cuda>);
template void BackendTraits<Cuda>::add(Cuda, TensorView<bfloat16, 2, Cuda>,
                                       TensorView<const bfloat16, 2, Cuda>);

}  // namespace rapt
