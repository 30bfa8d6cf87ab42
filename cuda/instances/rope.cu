#include "rapt/cuda/rope.cuh"

namespace rapt {

template void BackendTraits<Cuda>::rope<float>(Cuda, TensorView<float, 4, Cuda>,
                                               TensorView<const float, 4, Cuda>,
                                               TensorView<const accumulate_t<float>, 3, Cuda>,
                                               TensorView<const accumulate_t<float>, 3, Cuda>,
                                               const RopeOptions&);
template void BackendTraits<Cuda>::rope<double>(Cuda, TensorView<double, 4, Cuda>,
                                                TensorView<const double, 4, Cuda>,
                                                TensorView<const accumulate_t<double>, 3, Cuda>,
                                                TensorView<const accumulate_t<double>, 3, Cuda>,
                                                const RopeOptions&);
template void BackendTraits<Cuda>::rope<half>(Cuda, TensorView<half, 4, Cuda>,
                                              TensorView<const half, 4, Cuda>,
                                              TensorView<const accumulate_t<half>, 3, Cuda>,
                                              TensorView<const accumulate_t<half>, 3, Cuda>,
                                              const RopeOptions&);
template void BackendTraits<Cuda>::rope<bfloat16>(Cuda, TensorView<bfloat16, 4, Cuda>,
                                                  TensorView<const bfloat16, 4, Cuda>,
                                                  TensorView<const accumulate_t<bfloat16>, 3, Cuda>,
                                                  TensorView<const accumulate_t<bfloat16>, 3, Cuda>,
                                                  const RopeOptions&);

}  // namespace rapt
