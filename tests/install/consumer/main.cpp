#include <rapt/rapt.hpp>

int second();  // in second.cpp, which includes everything once more

int main() {
  rapt::Tensor<float, 4> q({1, 16, 8, 64}), k({1, 16, 2, 64}), v({1, 16, 2, 64}), out({1, 16, 8, 64});
  rapt::Philox random(42);
  for (auto* t : {&q, &k, &v}) rapt::fill_normal(*t, random);
  rapt::attention(out, q, k, v);
  return out(0, 0, 0, 0) == v(0, 0, 0, 0) ? second() : 1;  // the first token sees itself alone
}
