// What build/tests/golden says of good, wrong, incomplete and broken folders, by its exit code and
// its lines; and that a library whose kernels write zeros passes none of the cases they have a part
// in (golden_zeroed: the same runner built with the headers of zeroed/ before the library's).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "rapt/io/safetensors.hpp"

namespace rapt::test {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;
using testing::HasSubstr;
using testing::Not;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct Outcome {
  int code;
  std::string out, err;
};

std::string read_text(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream out;
  out << stream.rdbuf();
  return out.str();
}

struct GoldenRunner : testing::Test {
  const fs::path folder =
      fs::temp_directory_path() / ("rapt_golden_" + std::to_string(::getpid()) + "_" +
                                   testing::UnitTest::GetInstance()->current_test_info()->name());
  Json index = {{"set", "test"}, {"cases", Json::array()}};

  GoldenRunner() {
    fs::remove_all(folder);
    fs::create_directories(folder);
  }
  ~GoldenRunner() override { fs::remove_all(folder); }

  static fs::path program(const char* name) {
    return fs::read_symlink("/proc/self/exe").parent_path() / name;
  }
  Outcome run(const std::string& arguments, const char* name = "golden",
              const std::string& environment = "-u RAPT_GOLDEN") const {
    const fs::path out = folder / "stdout.txt", err = folder / "stderr.txt";
    const std::string command = "env " + environment + " '" + program(name).string() + "' " +
                                arguments + " > '" + out.string() + "' 2> '" + err.string() + "'";
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, read_text(out), read_text(err)};
  }
  Outcome run_folder(const std::string& flags = "") const {
    return run(flags + " '" + folder.string() + "'");
  }

  void write_index() const { std::ofstream(folder / "index.json") << index; }

  struct Values {
    std::vector<index_t> shape;
    std::vector<float> numbers;
  };
  /// Adds a case of the op with these F32 tensors to the folder.
  void add(const std::string& op, const std::string& name, const Json& config,
           const Json& tolerance, const std::vector<std::pair<std::string, Values>>& tensors) {
    std::vector<TensorSpec> specs;
    Json listed = Json::object();
    for (const auto& [tensor, values] : tensors) {
      specs.push_back({tensor, DType::f32, values.shape});
      listed[tensor] = {{"dtype", "F32"}, {"shape", values.shape}};
    }
    SafetensorsWriter writer(folder / (name + ".safetensors"), std::move(specs), {{"op", op}});
    for (const auto& [tensor, values] : tensors)
      writer.write(TensorView<const float, 1>(std::span<const float>(values.numbers)));
    writer.finish();
    index["cases"].push_back({{"case", name},
                              {"file", name + ".safetensors"},
                              {"op", op},
                              {"config", config},
                              {"tolerance", tolerance},
                              {"tensors", listed}});
    write_index();
  }
  /// y = softcap(x) = x here, as the cap is far away.
  void add_softcap(const std::string& name, const Values& y,
                   const Json& tolerance = {{"default", {1e-6, 0}}}) {
    add("softcap", name, {{"softcap", 1e9}}, tolerance, {{"x", {{1, 2}, {0.5f, -2.f}}}, {"y", y}});
  }
};

TEST_F(GoldenRunner, PassesWhatIsRightAndSaysHowWell) {
  add_softcap("right", {{1, 2}, {0.5f, -2.f}});
  const Outcome r = run_folder();
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(r.out, "softcap right 0 1e-06 ok\n1 passed, 0 failed, 0 skipped\n");
  EXPECT_EQ(r.err, "");
  const Outcome json = run_folder("--json");
  const auto line = Json::parse(json.out.substr(0, json.out.find('\n')));
  EXPECT_EQ(line.at("result"), "ok");
  EXPECT_EQ(line.at("tensor"), "y");
  EXPECT_THAT(json.out, HasSubstr("{\"passed\":1,\"failed\":0,\"skipped\":0}"));
}

TEST_F(GoldenRunner, FailsWhatIsWrong) {
  add_softcap("wrong", {{1, 2}, {0.5f, -2.1f}});
  const Outcome r = run_folder();
  EXPECT_EQ(r.code, 1);
  EXPECT_THAT(r.out, HasSubstr("softcap wrong 0.1 1e-06 FAIL\n"));
  EXPECT_THAT(r.out, HasSubstr("0 passed, 1 failed, 0 skipped\n"));
  EXPECT_THAT(r.err, HasSubstr("wrong: y[1] is -2, expected -2.0999999 within 1e-06"));
}

TEST_F(GoldenRunner, ComparesByTheTolerancesOfTheCase) {
  const Values off{{1, 2}, {0.5f, -2.01f}};
  add_softcap("relative", off, {{"default", {0, 0.01}}});
  add_softcap("name_beats_prefix", off, {{"y*", {1, 0}}, {"y", {0, 0}}, {"default", {1, 0}}});
  add_softcap("prefix_beats_default", off, {{"y*", {0.1, 0}}, {"default", {0, 0}}});
  add_softcap("exact", off, {{"default", {0, 0}}});
  add_softcap("infinity", {{1, 2}, {0.5f, -kInfinity}}, {{"default", {1e30, 1}}});
  add_softcap("nan", {{1, 2}, {0.5f, kNaN}}, {{"default", {1e30, 1}}});
  add_softcap("no_tolerance", off, Json::object());
  const Outcome r = run_folder();
  EXPECT_EQ(r.code, 1);
  for (const char* name : {"relative", "prefix_beats_default"})
    EXPECT_THAT(r.out, testing::ContainsRegex("softcap " + std::string(name) + " .* ok\n"));
  for (const char* name : {"name_beats_prefix", "exact", "infinity", "nan", "no_tolerance"})
    EXPECT_THAT(r.out, testing::ContainsRegex("softcap " + std::string(name) + " .* FAIL\n"));
  EXPECT_THAT(r.err, HasSubstr("no_tolerance: no tolerance for tensor y"));
}

TEST_F(GoldenRunner, MatchesInfinitiesAndNaN) {
  add("sampling", "drops", {{"top_k", 1}, {"order", {"top_k"}}}, {{"default", {1e-6, 0}}},
      {{"logits", {{1, 2}, {1.f, 2.f}}},
       {"previous_ids", {{1, 1}, {0.f}}},
       {"processed_logits", {{1, 2}, {-kInfinity, 2.f}}},
       {"probs", {{1, 2}, {0.f, 1.f}}}});
  const Outcome r = run_folder();
  EXPECT_EQ(r.code, 0) << r.err;
}

TEST_F(GoldenRunner, ComparesGradientsWhereTheyAreStored) {
  const auto add_gradient = [&](const char* name, float dx) {
    add("softcap", name, {{"softcap", 1e9}}, {{"default", {1e-6, 0}}},
        {{"x", {{1, 1}, {1.f}}},
         {"y", {{1, 1}, {1.f}}},
         {"dy", {{1, 1}, {3.f}}},
         {"dx", {{1, 1}, {dx}}}});
  };
  add_gradient("right_gradient", 3.f);
  add_gradient("wrong_gradient", 2.f);
  const Outcome r = run_folder();
  EXPECT_EQ(r.code, 1);
  EXPECT_THAT(r.out, HasSubstr("right_gradient 0 1e-06 ok\n"));
  EXPECT_THAT(r.err, HasSubstr("wrong_gradient: dx[0] is 3, expected 2 within 1e-06"));
}

TEST_F(GoldenRunner, FailsWhereATensorWasForgottenOrIsMissing) {
  add("softcap", "stranger", {{"softcap", 1e9}}, {{"default", {1e-6, 0}}},
      {{"x", {{1, 1}, {1.f}}}, {"y", {{1, 1}, {1.f}}}, {"z", {{1}, {1.f}}}});
  add("softcap", "no_y", {{"softcap", 1e9}}, {{"default", {1e-6, 0}}}, {{"x", {{1, 1}, {1.f}}}});
  add("softcap", "no_cap", Json::object(), {{"default", {1e-6, 0}}},
      {{"x", {{1, 1}, {1.f}}}, {"y", {{1, 1}, {1.f}}}});
  const Outcome r = run_folder();
  EXPECT_EQ(r.code, 1);
  EXPECT_THAT(r.out, HasSubstr("0 passed, 3 failed"));
  EXPECT_THAT(r.err, HasSubstr("stranger: tensor z was not computed"));
  EXPECT_THAT(r.err, HasSubstr("has no tensor named y"));
  EXPECT_THAT(r.err, HasSubstr("no_cap: config has no softcap"));
}

TEST_F(GoldenRunner, FailsWhereShapesDoNotFit) {
  add_softcap("result_shape", {{1, 3}, {1.f, 2.f, 3.f}});
  add("rmsnorm", "library_says_no", {{"eps", 1e-6}}, {{"default", {1e-6, 0}}},
      {{"x", {{1, 2}, {1.f, 2.f}}},
       {"weight", {{3}, {1.f, 1.f, 1.f}}},
       {"y", {{1, 2}, {1.f, 2.f}}}});
  add_softcap("index_disagrees", {{1, 2}, {0.5f, -2.f}});
  index["cases"].back()["tensors"]["y"]["shape"] = {2, 2};
  write_index();
  const Outcome r = run_folder();
  EXPECT_EQ(r.code, 1);
  EXPECT_THAT(r.out, HasSubstr("0 passed, 3 failed"));
  EXPECT_THAT(r.err, HasSubstr("result_shape: y "));
  EXPECT_THAT(r.err, HasSubstr("library_says_no: rms_norm: weight is [3], expected [2]"));
  EXPECT_THAT(r.err,
              HasSubstr("index_disagrees: tensor y is [1, 2] in the file, [2,2] in the index"));
}

TEST_F(GoldenRunner, FailsACaseWhoseFileIsMissingOrBroken) {
  add_softcap("gone", {{1, 2}, {0.5f, -2.f}});
  add_softcap("cut", {{1, 2}, {0.5f, -2.f}});
  add_softcap("other_op", {{1, 2}, {0.5f, -2.f}});
  add_softcap("right", {{1, 2}, {0.5f, -2.f}});
  fs::remove(folder / "gone.safetensors");
  fs::resize_file(folder / "cut.safetensors", fs::file_size(folder / "cut.safetensors") - 5);
  index["cases"][2]["op"] = "linear";
  write_index();
  const Outcome r = run_folder();
  EXPECT_EQ(r.code, 1);
  EXPECT_THAT(r.out, HasSubstr("1 passed, 3 failed, 0 skipped"));
  EXPECT_THAT(r.err, HasSubstr("gone.safetensors"));
  EXPECT_THAT(r.err, HasSubstr("cut.safetensors"));
  EXPECT_THAT(r.err, HasSubstr("other_op: the file says op softcap, the index linear"));
}

TEST_F(GoldenRunner, SkipsWhatTheLibraryDoesNotHave) {
  add("time_travel", "later", Json::object(), {{"default", {0, 0}}}, {{"x", {{1}, {1.f}}}});
  add("attention_module", "mla", {{"kind", "mla"}}, {{"default", {0, 0}}}, {{"x", {{1}, {1.f}}}});
  const Outcome r = run_folder();
  EXPECT_EQ(r.code, 0);
  EXPECT_EQ(r.out,
            "time_travel later - - unsupported\nattention_module mla - - unsupported\n"
            "0 passed, 0 failed, 2 skipped\n");
}

TEST_F(GoldenRunner, RefusesBadUsageAndUnreadableFolders) {
  EXPECT_EQ(run("--help").code, 0);
  EXPECT_THAT(run("--help").out, HasSubstr("usage: golden"));
  const auto refuses = [&](const std::string& arguments, const std::string& words) {
    const Outcome r = run(arguments);
    EXPECT_EQ(r.code, 2) << arguments;
    EXPECT_EQ(r.out, "") << arguments;
    EXPECT_THAT(r.err, HasSubstr(words));
    EXPECT_EQ(std::count(r.err.begin(), r.err.end(), '\n'), 1) << r.err;  // one clear line
  };
  refuses("", "no golden folder is given");
  refuses("--colour .", "unknown option --colour");
  refuses("--op", "--op needs a value");
  refuses("/nowhere/at/all", "/nowhere/at/all/index.json: cannot be read");
  const std::string here = "'" + folder.string() + "'";
  std::ofstream(folder / "index.json") << "{\"cases\": [";
  refuses(here, "index.json: is no JSON");
  std::ofstream(folder / "index.json") << "[1, 2]";
  refuses(here, "has no list `cases`");
  std::ofstream(folder / "index.json") << "{\"cases\": [{\"case\": \"a\", \"op\": 3}]}";
  refuses(here, "a case has no text `file`");
  add_softcap("right", {{1, 2}, {0.5f, -2.f}});
  refuses("--op nothing " + here, "no case was selected");
}

TEST_F(GoldenRunner, SelectsCasesAndAddsTheFolderOfTheEnvironment) {
  add_softcap("one", {{1, 2}, {0.5f, -2.f}});
  add_softcap("two", {{1, 2}, {0.5f, -2.f}});
  const Outcome one = run_folder("--case one");
  EXPECT_THAT(one.out, HasSubstr("1 passed"));
  EXPECT_THAT(one.out, Not(HasSubstr("two")));
  const Outcome both = run("", "golden", "RAPT_GOLDEN='" + folder.string() + "'");
  EXPECT_EQ(both.code, 0);
  EXPECT_THAT(both.out, HasSubstr("2 passed"));
}

TEST_F(GoldenRunner, PassesNoCaseOfALibraryWhoseKernelsWriteZeros) {
  if (!fs::exists("tests/golden/index.json")) GTEST_SKIP() << "runs in the root of the sources";
  for (const std::string op : {"sdpa", "rope", "rmsnorm", "layernorm", "gated_mlp", "linear",
                               "embedding", "softcap", "cross_entropy", "attention_module",
                               "causal_lm", "adamw", "clip_grad_norm", "training_run"}) {
    const Outcome r = run("--op " + op + " tests/golden", "golden_zeroed");
    EXPECT_EQ(r.code, 1) << op;
    EXPECT_THAT(r.out, testing::ContainsRegex("\n0 passed, [0-9]+ failed, 0 skipped\n")) << op;
    EXPECT_THAT(r.out, Not(testing::AnyOf(HasSubstr(" ok\n"), HasSubstr(" forward\n"))));
  }
}

}  // namespace
}  // namespace rapt::test
