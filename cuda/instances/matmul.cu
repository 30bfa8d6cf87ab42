#include "rapt/cuda/matmul.cuh"

namespace rapt {

template void BackendTraits<Cuda>::matmul(Cuda, TensorView<float, 2, Cuda>,
                                          TensorView<const float, 2, Cuda>,
                                          TensorView<const float, 2, Cuda>,
                                          const MatmulOptions<float, Cuda>&);
template void BackendTraits<Cuda>::matmul(Cuda, TensorView<double, 2, Cuda>,
                                          TensorView<const double, 2, Cuda>,
                                          TensorView<const double, 2, Cuda>,
                                          const MatmulOptions<double, Cuda>&);
template void BackendTraits<Cuda>::matmul(Cuda, TensorView<half, 2, Cuda>,
                                          TensorView<const half, 2, Cuda>,
                                          TensorView<const half, 2, Cuda>,
                                          const MatmulOptions<half, Cuda>&);
template void BackendTraits<Cuda>::matmul(Cuda, TensorView<bfloat16, 2, Cuda>,
                                          TensorView<const bfloat16, 2, Cuda>,
                                          TensorView<const bfloat16, 2, Cuda>,
                                          const MatmulOptions<bfloat16, Cuda>&);
template void BackendTraits<Cuda>::matmul(Cuda, TensorView<float, 2, Cuda>,
                                          TensorView<const half, 2, Cuda>,
                                          TensorView<const half, 2, Cuda>,
                                          const MatmulOptions<half, Cuda>&);
template void BackendTraits<Cuda>::matmul(Cuda, TensorView<float, 2, Cuda>,
                                          TensorView<const bfloat16, 2, Cuda>,
                                          TensorView<const bfloat16, 2, Cuda>,
                                          const MatmulOptions<bfloat16, Cuda>&);

}  // namespace rapt
