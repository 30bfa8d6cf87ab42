// Tensors as text.
#include "rapt/core/print.hpp"

#include <gtest/gtest.h>

#include <sstream>

namespace rapt::test {

TEST(Print, ShowsTheShapeAndTheElements) {
  Tensor<std::int32_t, 2> t({2, 3});
  for (int i = 0; i < 6; ++i) t.data()[i] = i + 1;
  EXPECT_EQ(to_string(t), "[2, 3]\n[[1, 2, 3],\n [4, 5, 6]]");
  EXPECT_EQ(to_string(t.transpose()), "[3, 2]\n[[1, 4],\n [2, 5],\n [3, 6]]");
}

TEST(Print, ShortensLongAxes) {
  Tensor<std::int64_t, 1> seven({7}), eight({8});
  for (int i = 0; i < 7; ++i) seven(i) = i;
  for (int i = 0; i < 8; ++i) eight(i) = i;
  EXPECT_EQ(to_string(seven), "[7]\n[0, 1, 2, 3, 4, 5, 6]");
  EXPECT_EQ(to_string(eight), "[8]\n[0, 1, 2, ..., 5, 6, 7]");
  Tensor<std::int8_t, 2> tall({9, 1});
  EXPECT_EQ(to_string(tall), "[9, 1]\n[[0],\n [0],\n [0],\n ...,\n [0],\n [0],\n [0]]");
}

TEST(Print, WritesSmallFloatsByTheirValue) {
  Tensor<bfloat16, 1> t({2});
  t(0) = bfloat16(1.5f);
  t(1) = bfloat16(-2.f);
  std::ostringstream out;
  out << t << ' ' << t.slice(0, 0, 1);
  EXPECT_EQ(out.str(), "[2]\n[1.5, -2] [1]\n[1.5]");
}

TEST(Print, ShowsEmptyTensors) {
  EXPECT_EQ(to_string(Tensor<float, 2>({2, 0})), "[2, 0]\n[[],\n []]");
  EXPECT_EQ(to_string(TensorView<const float, 1>()), "[0]\n[]");
}

}  // namespace rapt::test
