// GGUF: metadata, tensors, dequantisation. Oracle of the values: gguf-py, by make_vectors.py.
#include "rapt/io/gguf.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io_support.hpp"
#include "rapt/io/safetensors.hpp"

namespace rapt::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

GgufFile parse(const Bytes& bytes) { return GgufFile::from_bytes(bytes.span(), "f"); }

void expect_refused(const Bytes& bytes, const std::string& message) {
  EXPECT_THAT([&] { parse(bytes); }, ThrowsMessage<FormatError>(HasSubstr(message)));
}

// ---- values ----

void compare_with_vectors(const SafetensorsFile& vectors) {
  int types = 0;
  for (const GgmlTypeInfo& type : kGgmlTypes) {
    const std::string name(type.name);
    if (!vectors.has(name + ".raw")) continue;
    ++types;
    SCOPED_TRACE(name);
    const TensorInfo& raw = vectors.info(name + ".raw");
    const auto wanted = vectors.load<float, 2>(name + ".f32");
    const auto rows = static_cast<std::uint64_t>(wanted.extent(0));
    const auto row = static_cast<std::uint64_t>(wanted.extent(1));
    GgufBuilder builder;
    builder.tensor("t", {row, rows}, static_cast<std::uint32_t>(type.type), raw.bytes);
    const Bytes bytes = builder.build();
    const GgufFile file = parse(bytes);
    ASSERT_EQ(file.info("t").bytes.size(), raw.bytes.size());

    std::vector<float> got(rows * row);
    file.read("t", std::span<float>(got));
    for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], wanted.data()[i]) << i;

    std::vector<half> last(row);  // the last row alone, converted
    file.read_rows("t", static_cast<index_t>(rows) - 1, std::span<half>(last));
    for (std::size_t i = 0; i < row; ++i)
      ASSERT_EQ(last[i].bits, half(wanted.data()[(rows - 1) * row + i]).bits) << i;
  }
  EXPECT_GE(types, 2);
}

TEST(GgmlBlocks, EqualGgufPyBitForBit) {
  const auto vectors = SafetensorsFile::open(test_data("ggml_vectors.safetensors"));
  EXPECT_EQ(vectors.names().size(), 20u) << "ten types, raw and f32";
  compare_with_vectors(vectors);
}

TEST(GgmlBlocks, EqualTheReferenceRowsOfSmolLM2) {
  const auto path = golden("models/smollm2-135m/dequant.safetensors");
  if (!path) GTEST_SKIP() << "models/smollm2-135m is not in RAPT_GOLDEN or tests/golden";
  compare_with_vectors(SafetensorsFile::open(*path));
}

void compare_with_sums(const std::string& model_file, const std::string& reference) {
  const auto model = real_model(model_file);
  const auto path = golden("models/" + reference + "/tensors.json");
  if (!model) GTEST_SKIP() << model_file << " is not in RAPT_MODELS or models/";
  if (!path) GTEST_SKIP() << reference << " is not in RAPT_GOLDEN or tests/golden";
  const GgufFile file = GgufFile::open(*model);
  std::ifstream stream(*path);
  const auto tensors = nlohmann::json::parse(stream);
  ASSERT_EQ(tensors.size(), file.names().size());
  std::vector<float> values;
  for (const auto& tensor : tensors) {
    const auto name = tensor["name"].get<std::string>();
    const TensorInfo& info = file.info(name);
    ASSERT_EQ(info.dtype_name, tensor["type"].get<std::string>()) << name;
    ASSERT_EQ(info.bytes.size(), tensor["bytes"].get<std::size_t>()) << name;
    values.resize(static_cast<std::size_t>(info.elements()));
    file.read(name, std::span<float>(values));
    double sum = 0, abs_sum = 0, sq_sum = 0;
    for (const float x : values) {
      sum += x;
      abs_sum += std::fabs(x);
      sq_sum += static_cast<double>(x) * x;
    }
    const double scale = tensor["abs_sum"].get<double>();
    ASSERT_NEAR(sum, tensor["sum"].get<double>(), 1e-9 * scale) << name;
    ASSERT_NEAR(abs_sum, scale, 1e-9 * scale) << name;
    ASSERT_NEAR(sq_sum, tensor["sq_sum"].get<double>(), 1e-9 * sq_sum) << name;
    const auto first = tensor["first8"].get<std::vector<float>>();
    const auto last = tensor["last8"].get<std::vector<float>>();
    for (std::size_t i = 0; i < 8; ++i) {
      ASSERT_EQ(values[i], first[i]) << name;
      ASSERT_EQ(values[values.size() - 8 + i], last[i]) << name;
    }
  }
}

TEST(GgufRealModels, SmolLM2HasTheReferenceSums) {
  compare_with_sums("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m");
}
TEST(GgufRealModels, Gemma3HasTheReferenceSums) {
  compare_with_sums("gemma-3-270m-q4_k_m.gguf", "gemma3-270m");
}

TEST(Gguf, RefusesATypeItCannotReadByName) {
  GgufBuilder builder;
  builder.tensor("t", {256}, 10, std::vector<std::byte>(84));
  const Bytes bytes = builder.build();
  const GgufFile file = parse(bytes);
  EXPECT_EQ(file.info("t").dtype_name, "Q2_K");
  std::vector<float> out(256);
  EXPECT_THAT([&] { file.read("t", std::span<float>(out)); },
              ThrowsMessage<FormatError>(
                  "f: tensor t has type Q2_K, expected one of F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, "
                  "Q8_0, Q4_K, Q5_K, Q6_K, I8, I16, I32, I64, F64, BF16"));
}

// ---- a file of another writer ----

TEST(Gguf, ReadsEveryMetadataTypeOfGgufPy) {
  const GgufFile file = GgufFile::open(test_data("metadata.gguf"));
  EXPECT_EQ(file.version(), 3u);
  EXPECT_EQ(file.alignment(), 32u);
  EXPECT_EQ(file.string("general.architecture"), "llama");
  EXPECT_EQ(file.integer("test.u8"), 200);
  EXPECT_EQ(file.integer("test.i8"), -100);
  EXPECT_EQ(file.integer("test.u16"), 60000);
  EXPECT_EQ(file.integer("test.i16"), -30000);
  EXPECT_EQ(file.integer("test.u32"), 4000000000);
  EXPECT_EQ(file.integer("test.i32"), -2000000000);
  EXPECT_EQ(file.integer("test.i64"), -(std::int64_t{1} << 62));
  EXPECT_EQ(file.number("test.f32"), 0.5);
  EXPECT_EQ(file.number("test.f64"), 1e-300);
  EXPECT_TRUE(file.boolean("test.bool"));
  EXPECT_EQ(file.string("test.string"),
            "gr\xc3\xbc\xc3\x9f"
            "e\n\xe4\xbd\xa0");
  EXPECT_THAT(file.value("test.strings").strings(), ElementsAre("a", "",
                                                                "gr\xc3\xbc\xc3\x9f"
                                                                "e"));
  EXPECT_THAT(file.value("test.i32s").integers(), ElementsAre(1, -2, 3));
  EXPECT_THAT(file.value("test.f32s").numbers(), ElementsAre(0.25, -1.5));
  EXPECT_THAT(file.value("test.bools").integers(), ElementsAre(1, 0));
  EXPECT_EQ(file.integer("test.missing", 7), 7);
  EXPECT_EQ(file.find("test.missing"), nullptr);

  EXPECT_THAT([&] { file.integer("test.u64"); },
              ThrowsMessage<FormatError>(HasSubstr("test.u64 is a UINT64, expected an integer")));
  EXPECT_THAT(
      [&] { file.integer("test.string"); },
      ThrowsMessage<FormatError>(HasSubstr("test.string is a STRING, expected an integer")));
  EXPECT_THAT(
      [&] { file.string("test.i32s"); },
      ThrowsMessage<FormatError>(HasSubstr("test.i32s is an array of INT32, expected a STRING")));
  EXPECT_THAT([&] { file.value("test.i32s").strings(); },
              ThrowsMessage<FormatError>(HasSubstr("expected an array of STRING")));
  EXPECT_THAT([&] { file.value("no.such"); },
              ThrowsMessage<FormatError>(HasSubstr("has no metadata no.such")));

  EXPECT_THAT(file.info("cube").shape, ElementsAre(2, 3, 4));
  std::vector<float> cube(24);
  file.read("cube", std::span<float>(cube));
  EXPECT_EQ(cube[23], 23.f);
  std::vector<float> two_rows(8);
  file.read_rows("cube", 4, std::span<float>(two_rows));
  EXPECT_EQ(two_rows[0], 16.f);
  std::vector<double> vector(2);
  file.read("vector", std::span<double>(vector));
  EXPECT_EQ(vector[1], -2.5);
  std::vector<std::int32_t> integers(4);
  file.read("integers", std::span<std::int32_t>(integers));
  EXPECT_THAT(integers, ElementsAre(1, -1, 7, 300));
  std::vector<float> quantised(64);
  file.read("quantised", std::span<float>(quantised));
  EXPECT_NEAR(quantised[63], 1.f, 0.01f);
}

TEST(Gguf, CopiesAndMovesStayValid) {
  auto first = std::make_unique<GgufFile>(GgufFile::open(test_data("metadata.gguf")));
  const GgufFile copy = *first;
  first.reset();
  EXPECT_EQ(copy.string("general.architecture"), "llama");
  EXPECT_THAT([&] { copy.integer("test.string"); },
              ThrowsMessage<FormatError>(HasSubstr("test.string is a STRING")));
  std::vector<float> matrix(6);
  copy.read("matrix", std::span<float>(matrix));
  EXPECT_EQ(matrix[5], 5.f);
}

TEST(Gguf, ReadsVersion2AndNestedArrays) {
  GgufBuilder builder;
  Bytes nested;  // [[1, 2], ["x"]]
  nested.put(std::uint32_t{9}).put(std::uint32_t{9}).put(std::uint64_t{2});
  nested.put(std::uint32_t{4}).put(std::uint64_t{2}).put(std::uint32_t{1}).put(std::uint32_t{2});
  nested.put(std::uint32_t{8}).put(std::uint64_t{1}).string("x");
  builder.raw_entry("nested", nested).u32("after", 5);
  const Bytes bytes = builder.build(2);
  const GgufFile file = parse(bytes);
  EXPECT_EQ(file.value("nested").element_type(), GgufType::array);
  EXPECT_EQ(file.value("nested").count(), 2u);
  EXPECT_EQ(file.integer("after"), 5);
  EXPECT_THAT(file.keys(), ElementsAre("nested", "after"));
}

TEST(Gguf, WholeNumbersMayBeStoredAsFloats) {
  GgufBuilder builder;
  builder.f32("whole", 8.f).f32("half", 0.5f).scalar("i64", 11, std::int64_t{3});
  const Bytes bytes = builder.build();
  const GgufFile file = parse(bytes);
  EXPECT_EQ(file.integer("whole"), 8);
  EXPECT_EQ(file.number("i64"), 3.0);
  EXPECT_THROW(file.integer("half"), FormatError);
}

// ---- hostile files ----

TEST(Gguf, RefusesBrokenBeginnings) {
  EXPECT_THROW(GgufFile::from_bytes({}, "f"), FormatError);
  expect_refused(Bytes().text("GGU"), "does not begin with \"GGUF\"");
  expect_refused(Bytes().text("GGUF"), "the version at offset 4 needs 4 bytes, but 0 are left");
  expect_refused(GgufBuilder().build(1), "has version 1, expected 2 or 3");
  expect_refused(GgufBuilder().build(0x03000000), "big-endian");
  expect_refused(GgufBuilder().build(4), "has version 4");
}

TEST(Gguf, RefusesHugeCountsBeforeAllocating) {
  GgufBuilder tensors;
  tensors.tensor_count_ = UINT64_MAX;
  expect_refused(tensors.build(), "claims 18446744073709551615 tensors");
  GgufBuilder entries;
  entries.entry_count_ = std::uint64_t{1} << 40;
  expect_refused(entries.build(), "claims 1099511627776 metadata entries");

  const auto array = [](std::uint32_t type, std::uint64_t count) {
    GgufBuilder builder;
    builder.raw_entry("a", Bytes().put(std::uint32_t{9}).put(type).put(count));
    return builder.build();
  };
  for (const std::uint32_t type : {0u, 4u, 8u, 9u, 12u})
    for (const std::uint64_t count :
         {std::uint64_t{1000}, std::uint64_t{1} << 61, UINT64_MAX, UINT64_MAX / 8 + 1})
      expect_refused(array(type, count), "metadata a claims");
  GgufBuilder string;
  string.raw_entry("a", Bytes().put(std::uint32_t{8}).put(UINT64_MAX));
  expect_refused(string.build(), "needs 18446744073709551615 bytes");
}

TEST(Gguf, RefusesDeepNesting) {
  Bytes nested;
  nested.put(std::uint32_t{9});
  for (int i = 0; i < 5000; ++i) nested.put(std::uint32_t{9}).put(std::uint64_t{1});
  nested.put(std::uint32_t{0}).put(std::uint64_t{0});
  GgufBuilder builder;
  builder.raw_entry("a", nested);
  expect_refused(builder.build(), "nests arrays more than 4 deep");
}

TEST(Gguf, RefusesBadMetadata) {
  expect_refused(GgufBuilder().u32("a", 1).u32("a", 2).build(), "metadata a is given twice");
  expect_refused(GgufBuilder().scalar("a", 13, 0).build(), "metadata a has the unknown type 13");
  for (const std::uint32_t alignment : {0u, 3u, 48u, 0x80000000u})
    expect_refused(GgufBuilder().u32("general.alignment", alignment).build(),
                   "general.alignment is " + std::to_string(alignment));
  expect_refused(GgufBuilder().string("general.alignment", "32").build(),
                 "general.alignment is a STRING");
}

TEST(Gguf, RefusesBadTensors) {
  const auto table = [](const std::string& name, const std::vector<std::uint64_t>& ne,
                        std::uint32_t type, std::uint64_t offset) {
    GgufBuilder builder;
    builder.f32_tensor("first", {2}, {1, 2});
    builder.table().string(name).put(static_cast<std::uint32_t>(ne.size()));
    for (const std::uint64_t n : ne) builder.table().put(n);
    builder.table().put(type).put(offset);
    ++builder.tensor_count_;
    Bytes bytes = builder.build();
    bytes.data().resize(bytes.size() + 64);
    return bytes;
  };
  EXPECT_NO_THROW(parse(table("t", {2}, 0, 32)));
  expect_refused(table("first", {2}, 0, 32), "tensor first is named twice");
  expect_refused(table("t", {2}, 0, 33), "has offset 33, expected a multiple of 32");
  expect_refused(table("t", {2}, 0, 0), "overlaps another at offset 0");
  expect_refused(table("t", {20}, 0, 32), "needs 80 bytes at offset 32 of the data, which has ");
  expect_refused(table("t", {2}, 0, UINT64_MAX - 31), "(is the file cut short?)");
  expect_refused(table("t", {2}, 5, 32), "has the unknown type 5");
  expect_refused(table("t", {2}, 1000, 32), "has the unknown type 1000");
  expect_refused(table("t", {33}, 2, 32), "has rows of 33, expected a multiple of 32");
  expect_refused(table("t", {1, 1, 1, 1, 1}, 0, 32), "has 5 axes");
  expect_refused(table("t", {UINT64_MAX}, 0, 32), "has an extent of 18446744073709551615");
  expect_refused(table("t", {std::uint64_t{1} << 40, std::uint64_t{1} << 40}, 0, 32),
                 "passes 2^63 elements");
  expect_refused(table("t", {std::uint64_t{1} << 62, 4}, 24, 32), "passes 2^63 elements");
  Bytes cut = GgufBuilder().f32_tensor("t", {2}, {1, 2}).build();
  cut.data().resize(60);  // the table ends at 57, the data would begin at 64
  expect_refused(cut, "ends before the data");
}

TEST(Gguf, ReadsKnowTheirBounds) {
  const Bytes bytes = GgufBuilder().f32_tensor("t", {3, 2}, {0, 1, 2, 3, 4, 5}).build();
  const GgufFile file = parse(bytes);
  std::vector<float> out(6);
  file.read_rows("t", 1, std::span<float>(out).first(3));
  EXPECT_EQ(out[0], 3.f);
  EXPECT_THAT([&] { file.read("t", std::span<float>(out).first(5)); },
              ThrowsMessage<ShapeError>("read: out has 5 elements, expected 6 of tensor t [2, 3]"));
  EXPECT_THROW(file.read_rows("t", 1, std::span<float>(out)), ShapeError);
  EXPECT_THROW(file.read_rows("t", -1, std::span<float>(out).first(3)), ShapeError);
  EXPECT_THROW(file.read_rows("t", INT64_MAX, std::span<float>(out).first(3)), ShapeError);
  EXPECT_THROW(file.read_rows("t", 0, std::span<float>(out).first(4)), ShapeError);
  EXPECT_THAT([&] { file.info("u"); }, ThrowsMessage<FormatError>("f: has no tensor named u"));
}

}  // namespace
}  // namespace rapt::test
