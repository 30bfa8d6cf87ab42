#include <rapt/rapt.hpp>

int second() {
  rapt::GroupedQueryAttention<float> attention({.d_model = 64, .heads = 4, .kv_heads = 2});
  rapt::Philox random(1);
  attention.initialize(random);
  rapt::Tensor<float, 3> x({1, 3, 64});
  rapt::fill_normal(x, random);
  return attention.forward(x).extent(2) == 64 ? 0 : 2;
}
