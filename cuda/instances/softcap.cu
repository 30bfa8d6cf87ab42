#include "rapt/cuda/softcap.cuh"

namespace rapt {

template void BackendTraits<Cuda>::softcap<float>(Cuda, TensorView<float, 2, Cuda>,
                                                  accumulate_t<float>);
template void BackendTraits<Cuda>::softcap<double>(Cuda, TensorView<double, 2, Cuda>,
                                                   accumulate_t<double>);
template void BackendTraits<Cuda>::softcap<half>(Cuda, TensorView<half, 2, Cuda>,
                                                 accumulate_t<half>);
template void BackendTraits<Cuda>::softcap<bfloat16>(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                     accumulate_t<bfloat16>);
template void BackendTraits<Cuda>::softcap_backward<float>(Cuda, TensorView<float, 2, Cuda>,
                                                           TensorView<const float, 2, Cuda>,
                                                           TensorView<const float, 2, Cuda>,
                                                           accumulate_t<float>);
template void BackendTraits<Cuda>::softcap_backward<double>(Cuda, TensorView<double, 2, Cuda>,
                                                            TensorView<const double, 2, Cuda>,
                                                            TensorView<const double, 2, Cuda>,
                                                            accumulate_t<double>);
template void BackendTraits<Cuda>::softcap_backward<half>(Cuda, TensorView<half, 2, Cuda>,
                                                          TensorView<const half, 2, Cuda>,
                                                          TensorView<const half, 2, Cuda>,
                                                          accumulate_t<half>);
template void BackendTraits<Cuda>::softcap_backward<bfloat16>(Cuda, TensorView<bfloat16, 2, Cuda>,
                                                              TensorView<const bfloat16, 2, Cuda>,
                                                              TensorView<const bfloat16, 2, Cuda>,
                                                              accumulate_t<bfloat16>);

}  // namespace rapt
