// The program whose time to compile is measured.
#include <rapt/attention/attention.hpp>

#include <cstdio>

int main() {
  rapt::Tensor<float, 4> q({1, 16, 8, 64}), k({1, 16, 2, 64}), v({1, 16, 2, 64}), out({1, 16, 8, 64});
  for (rapt::index_t i = 0; i < 16; ++i) q(0, i, 0, 0) = k(0, i, 0, 0) = v(0, i, 0, 0) = 1.f;
  rapt::attention(out, q, k, v);
  std::printf("%g\n", out(0, 15, 7, 63));
}
