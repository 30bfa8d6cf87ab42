// The training step, written once: on the CUDA backend it gives the losses and the gradients that
// it gives on the CPU, packed documents and recomputed blocks included.
#include "support/cuda_test.hpp"
#include "support/training_models.hpp"

namespace rapt::test {
namespace {

template <class T>
struct CudaTraining : CudaTypedTest<T> {};
using TrainingTypes = testing::Types<float, double>;
TYPED_TEST_SUITE(CudaTraining, TrainingTypes);

TYPED_TEST(CudaTraining, StepsEqualTheCpu) {
  using T = TypeParam;
  for (const auto& [name, config] : model_families()) {
    SCOPED_TRACE(name);
    auto on_cpu = random_transformer<T>(config);
    nn::Transformer<T, Cuda> on_cuda(config);
    const auto want = on_cpu.parameters();
    const auto got = [&] {
      on_cuda.require_gradients();
      return on_cuda.parameters();
    }();
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) copy(got[i].values, want[i].values);

    const Batch batch(2, 5, static_cast<std::int32_t>(config.vocab_size));
    for (const bool packed : {false, true}) {
      nn::TrainingCall call{.scale = 0.25, .recompute = packed};
      if (packed) call.document_ids = batch.documents;
      zero_gradients(want);
      zero_gradients(got);
      Tape<> cpu_tape;
      Tape<Cuda> cuda_tape;
      const auto loss = on_cpu.forward_backward(batch.ids, batch.targets, cpu_tape, call);
      const auto same = on_cuda.forward_backward(batch.ids, batch.targets, cuda_tape, call);
      EXPECT_TRUE(cuda_tape.empty());
      EXPECT_EQ(same.tokens, loss.tokens);
      const auto tolerance = tolerance_of<T>() * 50;  // two layers, forward and backward
      EXPECT_NEAR(same.sum, loss.sum, tolerance.relative * loss.sum);
      EXPECT_NEAR(on_cuda.loss(batch.ids, batch.targets, call).sum, loss.sum,
                  tolerance.relative * loss.sum);
      for (std::size_t i = 0; i < got.size(); ++i)
        expect_close(to(Cpu{}, got[i].gradient), want[i].gradient, tolerance, got[i].name.c_str());
    }
  }
}

}  // namespace
}  // namespace rapt::test
