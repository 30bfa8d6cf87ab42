// Reading and writing safetensors. The corruptions are in corruption_test.cpp.
#include "rapt/io/safetensors.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "io_support.hpp"
#include "rapt/core/random.hpp"

namespace rapt::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

Bytes file_of(std::string_view header, std::size_t data_bytes) {
  Bytes out;
  out.put(std::uint64_t{header.size()}).text(header);
  out.data().resize(out.size() + data_bytes);
  return out;
}

void expect_refused(std::string_view header, std::size_t data_bytes, const std::string& message) {
  const Bytes bytes = file_of(header, data_bytes);
  EXPECT_THAT([&] { SafetensorsFile::from_bytes(bytes.span(), "f"); },
              ThrowsMessage<FormatError>(HasSubstr(message)))
      << header;
}

TEST(Safetensors, WritesWhatItReads) {
  const ScratchFolder folder;
  Tensor<float, 3> x({2, 3, 4});
  Philox random(1);
  fill_normal(x, random);
  const std::vector<std::int32_t> ids = {1, -2, 3};
  SafetensorsWriter writer(folder / "x.safetensors",
                           {{"x", DType::f32, {2, 3, 4}},
                            {"nothing", DType::f32, {0, 7}},
                            {"ids", DType::i32, {3}},
                            {"narrow", DType::bf16, {4, 3}},
                            {"scalar", DType::f64, {}},
                            {"quote\"\\\n\xc3\xbc", DType::boolean, {2}}},
                           {{"format", "pt"}, {"note", "a \"quoted\"\tnote"}});
  EXPECT_EQ(writer.current()->name, "x");
  writer.write(x.view());
  writer.write(ids);
  writer.write(x.select(0, 1).transpose());  // strided, and converted
  EXPECT_EQ(writer.current()->name, "scalar");
  const double pi[] = {3.25};
  writer.write(std::span<const double>(pi));
  const float flags[] = {2.f, 0.f};
  writer.write(std::span<const float>(flags));
  EXPECT_EQ(writer.current(), nullptr);
  writer.finish();

  const auto file = SafetensorsFile::open(folder / "x.safetensors");
  EXPECT_EQ(file.names().size(), 6u);
  EXPECT_EQ(file.metadata().at("note"), "a \"quoted\"\tnote");
  const auto view = file.tensor<float, 3>("x");
  ASSERT_TRUE(view);
  for (index_t i = 0; i < x.size(); ++i) EXPECT_EQ(view.data()[i], x.data()[i]);
  EXPECT_EQ(file.info("nothing").elements(), 0);
  EXPECT_EQ((file.load<std::int64_t, 1>("ids"))(1), -2);
  EXPECT_EQ(file.info("narrow").dtype, DType::bf16);
  EXPECT_FALSE((file.tensor<float, 2>("narrow")));  // another dtype: no view
  const auto narrow = file.load<float, 2>("narrow");
  for (index_t i = 0; i < 4; ++i)
    for (index_t j = 0; j < 3; ++j)
      EXPECT_EQ(narrow(i, j), static_cast<float>(bfloat16(x(1, j, i))));
  EXPECT_EQ((file.load<double, 1>("scalar"))(0), 3.25);
  EXPECT_EQ((file.load<bool, 1>("quote\"\\\n\xc3\xbc"))(0), true);

  std::vector<float> rows(8);
  file.read_rows("x", 1, std::span<float>(rows).first(0));
  std::vector<float> row(12);
  file.read_rows("x", 1, std::span<float>(row));
  EXPECT_EQ(row[5], x(1, 1, 1));
}

TEST(Safetensors, EveryDtypeComesBackInEveryOther) {
  const ScratchFolder folder;
  const std::vector<DType> types = {DType::f64,     DType::f32,     DType::f16, DType::bf16,
                                    DType::f8_e4m3, DType::f8_e5m2, DType::i64, DType::i32,
                                    DType::i16,     DType::i8};
  std::vector<TensorSpec> specs;
  for (const DType type : types) specs.push_back({name_of(type), type, {3}});
  SafetensorsWriter writer(folder / "x", specs);
  const std::vector<double> values = {0, 1, -6};
  for (std::size_t i = 0; i < types.size(); ++i) writer.write(values);
  writer.finish();
  const auto file = SafetensorsFile::open(folder / "x");
  for (const DType type : types) {
    const auto check = [&](auto tag) {
      using T = decltype(tag);
      const auto got = file.load<T, 1>(name_of(type));
      for (std::size_t i = 0; i < 3; ++i)
        EXPECT_EQ(convert<double>(got(i)), values[i]) << name_of(type);
    };
    check(double{});
    check(float{});
    check(half{});
    check(bfloat16{});
    check(std::int64_t{});
    check(std::int8_t{});
  }
}

TEST(Safetensors, UnalignedTensorsAreReadButNotViewed) {
  const Bytes bytes = file_of(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"b":{"dtype":"F32","shape":[2],"data_offsets":[1,9]}})",
      9);
  const auto file = SafetensorsFile::from_bytes(bytes.span(), "f");
  const auto address = reinterpret_cast<std::uintptr_t>(file.info("b").bytes.data());
  const auto view = file.tensor<float, 1>("b");
  EXPECT_EQ(static_cast<bool>(view), address % alignof(float) == 0);
  EXPECT_EQ((file.load<float, 1>("b"))(1), 0.f);
  const auto other = SafetensorsFile::from_bytes(
      file_of(R"({"u":{"dtype":"U32","shape":[1],"data_offsets":[0,4]}})", 4).span(), "f");
  EXPECT_FALSE(other.info("u").dtype.has_value());
}

TEST(Safetensors, NamesAWrongRequest) {
  const Bytes bytes = file_of(
      R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"u":{"dtype":"U32","shape":[1],"data_offsets":[24,28]}})",
      28);
  const auto file = SafetensorsFile::from_bytes(bytes.span(), "f");
  EXPECT_THAT([&] { file.info("b"); }, ThrowsMessage<FormatError>("f: has no tensor named b"));
  EXPECT_THAT([&] { (file.tensor<float, 1>("a")); },
              ThrowsMessage<ShapeError>("f: tensor a is [2, 3], expected rank 1"));
  std::vector<float> out(5);
  EXPECT_THAT([&] { file.read("a", std::span<float>(out)); },
              ThrowsMessage<ShapeError>("read: out has 5 elements, expected 6 of tensor a [2, 3]"));
  EXPECT_THAT([&] { file.read_rows("a", 1, std::span<float>(out)); },
              ThrowsMessage<ShapeError>(HasSubstr("expected whole rows within tensor a [2, 3]")));
  EXPECT_THAT([&] { file.read_rows("a", 2, std::span<float>(out).first(3)); },
              ThrowsMessage<ShapeError>(HasSubstr("3 elements from row 2")));
  EXPECT_THAT([&] { file.read("u", std::span<float>(out).first(1)); },
              ThrowsMessage<FormatError>("f: tensor u has dtype U32, which rapt cannot read"));
}

TEST(Safetensors, RefusesBrokenHeaders) {
  const std::string begin = R"({"a":{"dtype":"F32","shape":)";
  expect_refused(begin + R"([2],"data_offsets":[0,8]})", 8, "expected '}'");
  expect_refused(begin + R"([2],"data_offsets":[0,8]}}x)", 8, "after the end");
  expect_refused(begin + R"([2],"data_offsets":[0,12]}})", 12, "expected 8 bytes = F32 [2]");
  expect_refused(begin + R"([2],"data_offsets":[0,8]}})", 7,
                 "ends at byte 8 of the data, which has 7");
  expect_refused(begin + R"([2],"data_offsets":[0,8]}})", 9, "has 1 bytes after the last tensor");
  expect_refused(begin + R"([2],"data_offsets":[4,12]}})", 12, "leaves a gap");
  expect_refused(begin + R"([2],"data_offsets":[8,0]}})", 8, "no [begin, end]");
  expect_refused(begin + R"([2],"data_offsets":[0]}})", 8, "no [begin, end]");
  expect_refused(begin + R"([-2],"data_offsets":[0,8]}})", 8, "not negative");
  expect_refused(begin + R"([2.0],"data_offsets":[0,8]}})", 8, "found a fraction");
  expect_refused(begin + R"([4611686018427387904,4],"data_offsets":[0,8]}})", 8, "more than 2^63");
  expect_refused(begin + R"([4611686018427387904,4,0],"data_offsets":[0,0]}})", 0,
                 "more than 2^63");
  expect_refused(begin + R"([9223372036854775808],"data_offsets":[0,8]}})", 8, "beyond 2^63 - 1");
  expect_refused(begin + R"([2]}})", 8, "lacks one of");
  expect_refused(begin + R"([2],"shape":[2],"data_offsets":[0,8]}})", 8, "second shape");
  expect_refused(begin + R"([2],"size":3,"data_offsets":[0,8]}})", 8, "unknown field size");
  expect_refused(R"({"a":{"dtype":"Q4_K","shape":[2],"data_offsets":[0,8]}})", 8,
                 "tensor a: has an unknown dtype Q4_K");
  const std::string entry = R"("a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  expect_refused("{" + entry + "," + entry + "}", 8, "named twice");
  expect_refused(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                 R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                 12, "tensor b: overlaps another");
  expect_refused(R"({"__metadata__":{"k":1}})", 0, "expected '\"'");
  expect_refused(R"({"a\ud800":{}})", 0, "surrogate");
  expect_refused("{\"a\xff\":{}}", 0, "not UTF-8");
  expect_refused("[]", 0, "expected '{'");
  EXPECT_THAT([] { SafetensorsFile::from_bytes({}, "f"); },
              ThrowsMessage<FormatError>(
                  "f: the header's length at offset 0 needs 8 bytes, but 0 are left"));
  Bytes huge;
  huge.put(std::uint64_t{1} << 60);
  EXPECT_THAT([&] { SafetensorsFile::from_bytes(huge.span(), "f"); },
              ThrowsMessage<FormatError>(HasSubstr("expected at most 100000000")));
  Bytes cut;
  cut.put(std::uint64_t{1000}).text("{");
  EXPECT_THAT([&] { SafetensorsFile::from_bytes(cut.span(), "f"); },
              ThrowsMessage<FormatError>(HasSubstr("needs 1000 bytes, but 1 are left")));
}

TEST(Safetensors, AcceptsWhatOthersWrite) {
  const Bytes padded =
      file_of("{ \"a\" : {\"data_offsets\":[0,2],\"dtype\":\"F16\",\n\"shape\":[]} }   ", 2);
  EXPECT_EQ(SafetensorsFile::from_bytes(padded.span(), "f").info("a").elements(), 1);
  EXPECT_TRUE(SafetensorsFile::from_bytes(file_of("{}", 0).span(), "f").names().empty());
}

TEST(SafetensorsWriter, RefusesWhatDoesNotFit) {
  const ScratchFolder folder;
  const auto path = folder / "x";
  const std::vector<float> three(3);
  EXPECT_THAT(
      [&] {
        SafetensorsWriter w(path, {{"a", DType::f32, {2}}});
        w.write(three);
      },
      ThrowsMessage<ShapeError>("safetensors: 1 values more than the declared tensors hold"));
  EXPECT_THAT(
      [&] {
        SafetensorsWriter w(path, {{"a", DType::f32, {2, 2}}});
        w.write(three);
        w.finish();
      },
      ThrowsMessage<ShapeError>("safetensors: tensor a has 3 values, expected 4 = [2, 2]"));
  EXPECT_THROW(SafetensorsWriter(path, {{"a", DType::f32, {-1}}}), ShapeError);
  EXPECT_THROW(SafetensorsWriter(path, {{"a", DType::f32, {INT64_MAX, 4}}}), ShapeError);
  EXPECT_THROW(SafetensorsWriter(path, {{"a", DType::f32, {1}}, {"a", DType::f32, {1}}}),
               ValueError);
  EXPECT_THROW(SafetensorsWriter(path, {{"\xff", DType::f32, {1}}}), ValueError);
  EXPECT_TRUE(folder.content().empty());
}

struct Shards {
  ScratchFolder folder;
  Shards() {
    for (const char* name : {"a", "b"}) {
      SafetensorsWriter writer(folder / ("model-" + std::string(name) + ".safetensors"),
                               {{name, DType::f32, {2}}});
      writer.write(std::vector<float>{name[0] == 'a' ? 1.f : 2.f, 3.f});
      writer.finish();
    }
  }
  void index(const std::string& json) const {
    write_file(folder / "model.safetensors.index.json", json);
  }
};

TEST(SafetensorsFolder, ReadsShardsByTheIndex) {
  const Shards shards;
  shards.index(R"({"metadata":{"total_size":16,"x":[1,{"y":null}]},"weight_map":)"
               R"({"a":"model-a.safetensors","b":"model-b.safetensors"}})");
  const auto folder = SafetensorsFolder::open(shards.folder.path());
  EXPECT_THAT(folder.names(), ElementsAre("a", "b"));
  EXPECT_EQ((folder.tensor<float, 1>("b"))(0), 2.f);
  EXPECT_EQ((folder.load<double, 1>("a"))(0), 1.0);
  EXPECT_THAT([&] { folder.info("c"); },
              ThrowsMessage<FormatError>(HasSubstr("no tensor named c")));
}

TEST(SafetensorsFolder, RefusesABrokenIndex) {
  const Shards shards;
  const auto refused = [&](const std::string& json, const std::string& message) {
    shards.index(json);
    EXPECT_THAT([&] { SafetensorsFolder::open(shards.folder.path()); },
                ThrowsMessage<std::runtime_error>(HasSubstr(message)))
        << json;
  };
  refused(R"({"weight_map":{"a":"../model-a.safetensors"}})", "expected a plain file name");
  refused(R"({"weight_map":{"a":"/etc/passwd"}})", "expected a plain file name");
  refused(R"({"weight_map":{"a":"model-c.safetensors"}})", "cannot open");
  refused(R"({"weight_map":{"b":"model-a.safetensors"}})", "has no tensor named b");
  refused(R"({"weight_map":{"a":"model-a.safetensors","a":"model-b.safetensors"}})", "named twice");
  refused(R"({"weight_map":{"a":3}})", "expected '\"'");
  refused(R"({})", "has no weight_map");
  refused(R"({"x":)" + std::string(100000, '[') + "}", "nested too deeply");
  fs::remove(shards.folder / "model.safetensors.index.json");
  EXPECT_THAT([&] { SafetensorsFolder::open(shards.folder.path()); },
              ThrowsMessage<IoError>(
                  HasSubstr("has neither model.safetensors nor model.safetensors.index.json")));
}

}  // namespace
}  // namespace rapt::test
