// Oracles: the values of io/ggml_blocks.hpp's dequantize(), and plain loops over the same codes.
#include "rapt/core/ops/quantized_matmul.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "rapt/core/random.hpp"
#include "rapt/core/weight.hpp"
#include "rapt/io/quantized_blocks.hpp"
#include "support/int8_tiles.hpp"

namespace rapt {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

const BlockFormat kAll[] = {BlockFormat::q4_0, BlockFormat::q4_1, BlockFormat::q5_0,
                            BlockFormat::q5_1, BlockFormat::q8_0, BlockFormat::q4_k,
                            BlockFormat::q5_k, BlockFormat::q6_k};

std::string name_of(BlockFormat format) { return std::string(block_format(format).name); }

/// Rows of a file's tensor: random bits for codes, scales of a sensible size.
struct Rows {
  std::vector<std::byte> bytes;
  std::vector<float> values;  // [rows, columns], dequantized
};

template <class Block>
Rows rows_of(index_t rows, index_t columns, Philox& random) {
  Rows out;
  const auto count = static_cast<std::size_t>(rows * columns / Block::kWeights);
  std::vector<Block> blocks(count);
  out.values.resize(count * Block::kWeights);
  for (std::size_t i = 0; i < count; ++i) {
    auto* raw = reinterpret_cast<unsigned char*>(&blocks[i]);
    for (std::size_t b = 0; b < sizeof(Block); ++b)
      raw[b] = static_cast<unsigned char>(255.99 * random.uniform());
    blocks[i].d = half(static_cast<float>(0.02 * random.normal()));
    if constexpr (requires { blocks[i].m; })
      blocks[i].m = half(static_cast<float>(0.05 * random.normal()));
    dequantize(blocks[i], out.values.data() + i * Block::kWeights);
  }
  const auto* begin = reinterpret_cast<const std::byte*>(blocks.data());
  out.bytes.assign(begin, begin + count * sizeof(Block));
  return out;
}

Rows random_rows(BlockFormat format, index_t rows, index_t columns, Philox& random) {
  switch (format) {
    case BlockFormat::q4_0:
      return rows_of<BlockQ4_0>(rows, columns, random);
    case BlockFormat::q4_1:
      return rows_of<BlockQ4_1>(rows, columns, random);
    case BlockFormat::q5_0:
      return rows_of<BlockQ5_0>(rows, columns, random);
    case BlockFormat::q5_1:
      return rows_of<BlockQ5_1>(rows, columns, random);
    case BlockFormat::q8_0:
      return rows_of<BlockQ8_0>(rows, columns, random);
    case BlockFormat::q4_k:
      return rows_of<BlockQ4_K>(rows, columns, random);
    case BlockFormat::q5_k:
      return rows_of<BlockQ5_K>(rows, columns, random);
    case BlockFormat::q6_k:
      return rows_of<BlockQ6_K>(rows, columns, random);
  }
  return {};
}

/// A matrix and the values that it stands for.
struct Problem {
  QuantizedMatrix matrix;
  std::vector<float> values;

  Problem(std::vector<std::pair<BlockFormat, index_t>> parts, index_t columns, Philox& random)
      : matrix(columns) {
    for (const auto& [format, rows] : parts) {
      const Rows made = random_rows(format, rows, columns, random);
      append_blocks(matrix, format, made.bytes);
      values.insert(values.end(), made.values.begin(), made.values.end());
    }
  }
  const float* row(index_t j) const { return values.data() + j * matrix.columns(); }
};

float multiply_add(float a, float b, float c) {
  if (std::string(cpu::isa()) != "portable") return std::fma(a, b, c);
  volatile float product = a * b;
  return product + c;
}

/// The codes and scales of one row: w = d q + m.
struct Affine {
  std::vector<int> q;
  std::vector<float> d, m;  // per 16 columns
};

Affine unpacked(BlockFormat format, const Rows& rows, index_t row, index_t columns) {
  Affine out;
  const auto take = [&]<class Block>(const Block*) {
    const index_t per_row = columns / Block::kWeights;
    for (index_t i = 0; i < columns / 32; ++i) {
      Block block;
      std::memcpy(&block,
                  rows.bytes.data() + (row * per_row + i * 32 / Block::kWeights) *
                                          static_cast<index_t>(sizeof(Block)),
                  sizeof block);
      const UnpackedBlock u = detail::unpack(block, i % (Block::kWeights / 32));
      const BlockFormatInfo& info = block_format(format);
      for (const std::uint8_t code : u.codes) out.q.push_back(code);
      for (int h = 0; h < 2; ++h) {
        float d(u.d), m(u.m);
        if (format == BlockFormat::q6_k)
          d *= static_cast<float>(static_cast<std::int8_t>(h == 0 ? u.s : u.t));
        else if (info.super)
          d *= static_cast<float>(u.s), m *= -static_cast<float>(u.t);
        out.d.push_back(d);
        out.m.push_back(info.has_min ? m : d * -static_cast<float>(1 << (info.bits - 1)));
      }
    }
  };
  switch (format) {
    case BlockFormat::q4_0:
      take(static_cast<const BlockQ4_0*>(nullptr));
      break;
    case BlockFormat::q4_1:
      take(static_cast<const BlockQ4_1*>(nullptr));
      break;
    case BlockFormat::q5_0:
      take(static_cast<const BlockQ5_0*>(nullptr));
      break;
    case BlockFormat::q5_1:
      take(static_cast<const BlockQ5_1*>(nullptr));
      break;
    case BlockFormat::q8_0:
      take(static_cast<const BlockQ8_0*>(nullptr));
      break;
    case BlockFormat::q4_k:
      take(static_cast<const BlockQ4_K*>(nullptr));
      break;
    case BlockFormat::q5_k:
      take(static_cast<const BlockQ5_K*>(nullptr));
      break;
    case BlockFormat::q6_k:
      take(static_cast<const BlockQ6_K*>(nullptr));
      break;
  }
  return out;
}

/// The integer product in plain loops, with the roundings that the kernel's header states.
float oracle(const Affine& w, const float* x, bool halves) {
  const auto blocks = w.q.size() / 32;
  float sum = 0;
  for (std::size_t b = 0; b < blocks; ++b) {
    float amax = 0;
    for (std::size_t i = 0; i < 32; ++i) amax = std::max(amax, std::abs(x[32 * b + i]));
    const bool zero = !(amax > 1e-35f);
    const float step = zero ? 0.f : amax / 127.f, inverse = zero ? 0.f : 127.f / amax;
    int products[2] = {}, codes[2] = {};
    for (std::size_t i = 0; i < 32; ++i) {
      const int code = static_cast<int>(std::nearbyint(x[32 * b + i] * inverse));
      products[i / 16] += code * w.q[32 * b + i];
      codes[i / 16] += code;
    }
    const float* d = w.d.data() + 2 * b;
    const float* m = w.m.data() + 2 * b;
    if (halves) {
      for (int h = 0; h < 2; ++h)
        sum = multiply_add(static_cast<float>(products[h]), d[h] * step, sum);
      for (int h = 0; h < 2; ++h)
        sum = multiply_add(m[h], step * static_cast<float>(codes[h]), sum);
    } else {
      sum = multiply_add(static_cast<float>(products[0] + products[1]), d[0] * step, sum);
      sum = multiply_add(m[0], step * static_cast<float>(codes[0] + codes[1]), sum);
    }
  }
  return sum;
}

/// What rounding x to 8 bits may change: half a step, times |w|, in each term.
double bound(const Problem& w, index_t row, const float* x) {
  double total = 0;
  for (index_t b = 0; b < w.matrix.columns() / 32; ++b) {
    double amax = 0, weights = 0;
    for (index_t i = 32 * b; i < 32 * b + 32; ++i) {
      amax = std::max(amax, std::abs(static_cast<double>(x[i])));
      weights += std::abs(static_cast<double>(w.row(row)[i]));
    }
    total += amax / 254 * weights;
  }
  return total;
}

TEST(QuantizedMatrix, RowsAreTheValuesOfTheFileBitForBit) {
  for (const BlockFormat format : kAll) {
    SCOPED_TRACE(name_of(format));
    Philox random(3);
    const Problem w({{format, 19}}, 512, random);
    std::vector<float> row(512);
    for (index_t j = 0; j < 19; ++j) {
      w.matrix.dequantize_row(j, row.data());
      for (index_t i = 0; i < 512; ++i)
        ASSERT_EQ(row[static_cast<std::size_t>(i)], w.row(j)[i]) << "row " << j << " column " << i;
    }
  }
}

TEST(QuantizedMatrix, TakesTheBytesOfTheFileAndASixtyFourthMore) {
  for (const BlockFormat format : kAll) {
    Philox random(4);
    const Rows rows = random_rows(format, 32, 512, random);
    QuantizedMatrix matrix(512);
    append_blocks(matrix, format, rows.bytes);
    const auto file = static_cast<index_t>(rows.bytes.size());
    if (block_format(format).super)  // scales of 6 bits become bytes
      EXPECT_LE(matrix.bytes(), file + file / 32) << name_of(format);
    else
      EXPECT_EQ(matrix.bytes(), file) << name_of(format);
  }
}

TEST(QuantizedMatmul, MatchesPlainLoopsOverTheSameCodesExactly) {
  for (const BlockFormat format : kAll)
    for (const index_t columns : {256, 768})
      for (const index_t rows : {1, 16, 37}) {
        SCOPED_TRACE(name_of(format) + " columns " + std::to_string(columns) + " rows " +
                     std::to_string(rows));
        Philox random(static_cast<std::uint64_t>(columns + rows));
        const Rows made = random_rows(format, rows, columns, random);
        QuantizedMatrix matrix(columns);
        append_blocks(matrix, format, made.bytes);
        std::vector<Affine> unpacked_rows;
        for (index_t j = 0; j < rows; ++j)
          unpacked_rows.push_back(unpacked(format, made, j, columns));
        for (index_t m = 1; m <= 20; ++m) {
          Tensor<float, 2> x(Shape{m, columns}), y(Shape{m, rows});
          fill_normal(x, random, 3.0);
          quantized_matmul(y, x, matrix);
          for (index_t i = 0; i < m; ++i)
            for (index_t j = 0; j < rows; ++j)
              ASSERT_EQ(y(i, j), oracle(unpacked_rows[static_cast<std::size_t>(j)],
                                        x.data() + i * columns, format == BlockFormat::q6_k))
                  << "m " << m << " at " << i << ", " << j;
        }
      }
}

// The largest codes on both sides, with one sign or with any: no sum on the way may saturate.
TEST(QuantizedMatmul, TheLargestCodesAreMultipliedExactly) {
  constexpr index_t kColumns = 512, kRows = 19;
  for (const BlockFormat format : kAll)
    for (const bool alternate : {false, true})
      for (const index_t m : {1, 2, 4, 6, 12, 25, 49}) {
        SCOPED_TRACE(name_of(format) + (alternate ? " alternating m " : " m ") + std::to_string(m));
        const int top = (1 << block_format(format).bits) - 1;
        UnpackedBlock block{};
        for (std::uint8_t& code : block.codes) code = static_cast<std::uint8_t>(top);
        block.d = half(1.f);
        block.s = block.t = 1;
        QuantizedMatrix w(kColumns);
        w.append(format, kRows, [&](index_t, index_t) { return block; });
        Tensor<float, 2> x(Shape{m, kColumns}), y(Shape{m, kRows});
        for (index_t i = 0; i < m; ++i)
          for (index_t l = 0; l < kColumns; ++l)
            x(i, l) = i % 2 == 0 || (alternate && l % 32 > 3) ? 127.f : -127.f;
        quantized_matmul(y, x, w);
        const BlockFormatInfo& info = block_format(format);
        const float weight = static_cast<float>(info.has_min ? top : top - (top + 1) / 2);
        for (index_t i = 0; i < m; ++i) {
          float codes = 0;
          for (index_t l = 0; l < kColumns; ++l) codes += x(i, l);
          for (index_t j = 0; j < kRows; ++j) ASSERT_EQ(y(i, j), weight * codes) << i << ", " << j;
        }
      }
}

template <class T>
struct QuantizedProduct : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(QuantizedProduct, Elements);

template <class T>
constexpr double kRounding = sizeof(T) == 8                ? 1e-7
                             : std::is_same_v<T, half>     ? 0x1p-10
                             : std::is_same_v<T, bfloat16> ? 0x1p-7
                                                           : 1e-6;

TYPED_TEST(QuantizedProduct, StaysWithinTheStatedErrorOfTheValues) {
  using T = TypeParam;
  Philox random(11);
  // Five formats in one fused product, none of whose parts fills its last panel.
  const Problem w({{BlockFormat::q5_0, 33},
                   {BlockFormat::q8_0, 7},
                   {BlockFormat::q4_k, 20},
                   {BlockFormat::q6_k, 1},
                   {BlockFormat::q4_1, 17}},
                  512, random);
  const index_t n = w.matrix.rows(), k = 512;
  Tensor<T, 1> bias(Shape{n});
  fill_normal(bias, random);
  for (const index_t m : {1, 2, 5, 13, 30, 51})
    for (const bool accumulate : {false, true})
      for (const bool has_bias : {false, true})
        for (const BlockInput input : {BlockInput::int8, BlockInput::exact}) {
          Tensor<T, 2> x_memory(Shape{m, k + 24}), y_memory(Shape{m, n + 9});
          fill_normal(x_memory, random);
          fill_normal(y_memory, random);
          const Tensor<T, 2> before = y_memory;
          const auto x = x_memory.slice(1, 0, k);
          const auto y = y_memory.slice(1, 0, n);
          MatmulOptions<T, Cpu> options{.accumulate = accumulate};
          if (has_bias) options.bias = bias;
          quantized_matmul(y, x, w.matrix, options, input);
          for (index_t i = 0; i < m; ++i) {
            std::vector<float> row(static_cast<std::size_t>(k));
            for (index_t l = 0; l < k; ++l)
              row[static_cast<std::size_t>(l)] = static_cast<float>(x(i, l));
            for (index_t j = 0; j < n; ++j) {
              double want = accumulate ? static_cast<double>(before(i, j)) : 0.0, size = 1;
              if (has_bias) want += static_cast<double>(bias(j));
              for (index_t l = 0; l < k; ++l) {
                const double term = static_cast<double>(x(i, l)) * static_cast<double>(w.row(j)[l]);
                want += term;
                size += std::abs(term);
              }
              const double allowed =
                  size * kRounding<T> + (input == BlockInput::int8 ? bound(w, j, row.data()) : 0.0);
              ASSERT_NEAR(static_cast<double>(y(i, j)), want, allowed)
                  << "m " << m << " at " << i << ", " << j;
            }
          }
          for (index_t i = 0; i < m; ++i)
            for (index_t j = n; j < n + 9; ++j)
              ASSERT_EQ(static_cast<double>(y_memory(i, j)), static_cast<double>(before(i, j)))
                  << "written beyond the row";
        }
}

TEST(QuantizedMatmul, NeitherThreadsNorTheNumberOfRowsChangeABit) {
  Philox random(12);
  const Problem w({{BlockFormat::q4_1, 200}, {BlockFormat::q8_0, 90}}, 320, random);
  const index_t n = w.matrix.rows();
  Tensor<float, 2> x(Shape{77, 320}), want(Shape{77, n});
  fill_normal(x, random);
  const int threads = num_threads();
  for (index_t i = 0; i < 77; ++i)
    quantized_matmul(want.slice(0, i, i + 1), x.slice(0, i, i + 1), w.matrix);
  for (const int count : {1, 2, 3, 7}) {
    set_num_threads(count);
    Tensor<float, 2> y(Shape{77, n});
    quantized_matmul(y, x, w.matrix);
    for (index_t i = 0; i < y.size(); ++i) ASSERT_EQ(y.data()[i], want.data()[i]) << count;
  }
  set_num_threads(threads);
}

TYPED_TEST(QuantizedProduct, MatrixRegistersGiveTheSameBits) {
  using T = TypeParam;
  Philox random(17);
  for (const BlockFormat format : kAll) {
    SCOPED_TRACE(name_of(format));
    // 11 blocks, which fill no batch of products, or 16; a last panel of 5 rows; rows of x left
    // over for smaller tiles.
    const index_t columns = block_format(format).super ? 512 : 352, n = 37;
    const Problem w({{format, 20}, {format, 17}}, columns, random);
    std::vector<float> bias(static_cast<std::size_t>(n));
    for (float& b : bias) b = static_cast<float>(random.normal());
    Tensor<T, 2> x(Shape{70, columns});
    fill_normal(x, random);
    for (const bool accumulate : {false, true})
      for (const index_t m : {48, 70}) {
        Tensor<T, 2> y(Shape{m, n}), want(Shape{m, n});
        fill_normal(y, random);
        want = y;
        Scratch<Cpu> scratch;
        const auto rows = std::as_const(x).slice(0, 0, m);
        const float* added = accumulate ? bias.data() : nullptr;
        cpu::QuantizedProduct<test::EmulatedQuads, T>(y, w.matrix, added, accumulate, scratch)
            .run(rows);
        cpu::QuantizedProduct<cpu::NoTiles, T>(want, w.matrix, added, accumulate, scratch)
            .run(rows);
        for (index_t i = 0; i < y.size(); ++i)
          ASSERT_EQ(static_cast<double>(y.data()[i]), static_cast<double>(want.data()[i]))
              << "m " << m << " at " << i / n << ", " << i % n;
      }
  }
}

TEST(QuantizedMatmul, ZerosTinyNumbersAndNotANumber) {
  Philox random(13);
  const Problem w({{BlockFormat::q8_0, 5}}, 64, random);
  Tensor<float, 2> x(Shape{4, 64}), y(Shape{4, 5});
  for (index_t l = 0; l < 64; ++l) x(1, l) = 1e-38f;
  for (index_t l = 0; l < 64; ++l) x(2, l) = x(3, l) = 1;
  x(2, 40) = std::numeric_limits<float>::quiet_NaN();
  x(3, 3) = -std::numeric_limits<float>::infinity();
  quantized_matmul(y, x, w.matrix);
  for (index_t j = 0; j < 5; ++j) {
    EXPECT_EQ(y(0, j), 0.f);
    EXPECT_EQ(y(1, j), 0.f);
    EXPECT_TRUE(std::isnan(y(2, j)));
    EXPECT_TRUE(std::isnan(y(3, j)));
  }
}

TEST(QuantizedMatmul, NoRowsGiveNothing) {
  Philox random(14);
  const Problem w({{BlockFormat::q4_0, 3}}, 32, random);
  Tensor<float, 2> x(Shape{0, 32}), y(Shape{0, 3});
  quantized_matmul(y, x, w.matrix);
}

TYPED_TEST(QuantizedProduct, EmbeddingGivesScaledRows) {
  using T = TypeParam;
  Philox random(15);
  const Problem w({{BlockFormat::q8_0, 21}}, 96, random);
  Tensor<std::int32_t, 2> ids(Shape{2, 3});
  for (index_t i = 0; i < 6; ++i) ids.data()[i] = static_cast<std::int32_t>(i * 4 % 21);
  Tensor<T, 3> out(Shape{2, 3, 96});
  quantized_embedding(out, w.matrix, ids, accumulate_t<T>{2});
  for (index_t i = 0; i < 6; ++i)
    for (index_t l = 0; l < 96; ++l)
      ASSERT_EQ(static_cast<float>(out.data()[i * 96 + l]),
                static_cast<float>(convert<T>(2 * w.row(ids.data()[i])[l])));
  ids(1, 1) = 21;
  EXPECT_THAT([&] { quantized_embedding(out, w.matrix, ids); },
              ThrowsMessage<ValueError>(HasSubstr("ids[1, 1] is 21, expected 0 to 20")));
}

TEST(QuantizedMatmul, NamesTheWrongShape) {
  Philox random(16);
  const Problem w({{BlockFormat::q4_0, 3}}, 32, random);
  Tensor<float, 2> x(Shape{2, 64}), y(Shape{2, 3}), narrow(Shape{2, 32}), wide(Shape{2, 4});
  EXPECT_THAT(
      [&] { quantized_matmul(y, x, w.matrix); },
      ThrowsMessage<ShapeError>(HasSubstr("x is [2, 64], expected [2, 32] = [m, columns]")));
  EXPECT_THAT([&] { quantized_matmul(wide, narrow, w.matrix); },
              ThrowsMessage<ShapeError>(HasSubstr("out is [2, 4], expected [2, 3] = [m, rows]")));
  EXPECT_THAT([] { QuantizedMatrix(0); },
              ThrowsMessage<ShapeError>(HasSubstr("columns is 0, expected at least 1")));
  QuantizedMatrix odd(96);
  EXPECT_THAT([&] { append_blocks(odd, BlockFormat::q4_k, std::vector<std::byte>(144)); },
              ThrowsMessage<ShapeError>(HasSubstr("expected whole rows of 96 weights of Q4_K")));
  EXPECT_THAT([&] { append_blocks(odd, BlockFormat::q8_0, std::vector<std::byte>(101)); },
              ThrowsMessage<ShapeError>(HasSubstr("bytes is [101]")));
  EXPECT_THAT(
      [&] { odd.append(BlockFormat::q6_k, 1, [](index_t, index_t) { return UnpackedBlock{}; }); },
      ThrowsMessage<ShapeError>(HasSubstr("columns is 96, expected a multiple of 256")));
}

TEST(Weight, HoldsElementsOrBlocks) {
  Philox random(17);
  const Problem w({{BlockFormat::q5_1, 40}, {BlockFormat::q4_0, 8}}, 64, random);
  Weight<float> dense(Shape{48, 64}), blocks(Shape{48, 64}, Cpu{}, WeightStorage::none);
  std::copy(w.values.begin(), w.values.end(), dense.view().data());
  EXPECT_EQ(blocks.bytes(), 0);
  blocks.hold(w.matrix);
  EXPECT_TRUE(blocks.is_quantized());
  EXPECT_FALSE(dense.is_quantized());
  EXPECT_EQ(dense.bytes(), 48 * 64 * 4);
  EXPECT_EQ(blocks.bytes(), w.matrix.bytes());
  Tensor<float, 2> x(Shape{3, 64}), y(Shape{3, 48}), z(Shape{3, 48});
  fill_normal(x, random);
  dense.multiply(y, x);
  blocks.multiply(z, x);
  for (index_t i = 0; i < 3; ++i)
    for (index_t j = 0; j < 48; ++j)
      EXPECT_NEAR(y(i, j), z(i, j), 1e-5 + bound(w, j, x.data() + i * 64));
  Weight<float> other(Shape{64, 48});
  EXPECT_THAT([&] { other.hold(w.matrix); },
              ThrowsMessage<ShapeError>(HasSubstr("blocks is [48, 64], expected [64, 48]")));
}

}  // namespace
}  // namespace rapt
