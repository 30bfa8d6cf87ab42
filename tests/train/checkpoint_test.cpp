// Checkpoints survive: every write, fsync and rename of a save fails once, and the program dies at
// every one of them; a whole checkpoint can be loaded each time. Broken ones are refused by name.
//
// The system calls of this program are its own: it defines write, fsync and rename (below), counts
// them and makes one of them fail or end the process.
#include "rapt/train/checkpoint.hpp"

#include <dirent.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <functional>

#include "io/io_support.hpp"
#include "rapt/io/atomic_folder.hpp"

namespace rapt::test {
namespace {

/// Which call is going to fail, and how.
struct Fault {
  enum class Kind { none, error, partial, exit_before, exit_after };
  Kind kind = Kind::none;
  int countdown = -1;  // calls until then
  int calls = 0;       // so far

  bool strikes() {
    ++calls;
    return kind != Kind::none && countdown-- == 0;
  }
};
Fault fault;

template <class Call>
long faulty(Call call) {
  if (!fault.strikes()) return call();
  switch (fault.kind) {
    case Fault::Kind::exit_before:
      ::_exit(9);
    case Fault::Kind::exit_after:
      call();
      ::_exit(9);
    default:
      errno = ENOSPC;
      return -1;
  }
}

}  // namespace
}  // namespace rapt::test

extern "C" {
ssize_t write(int fd, const void* data, size_t size) {
  using namespace rapt::test;
  if (fd <= 2) return ::syscall(SYS_write, fd, data, size);
  const auto real = [&](size_t n) { return ::syscall(SYS_write, fd, data, n); };
  if (fault.kind == Fault::Kind::partial && fault.strikes()) {
    real(size / 2);  // what a full disk takes before it refuses
    errno = ENOSPC;
    return -1;
  }
  return fault.kind == Fault::Kind::partial ? real(size) : faulty([&] { return real(size); });
}
int fsync(int fd) {
  return static_cast<int>(rapt::test::faulty([&] { return ::syscall(SYS_fsync, fd); }));
}
int rename(const char* from, const char* to) noexcept {
  return static_cast<int>(rapt::test::faulty(
      [&] { return ::syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0); }));
}
}

namespace rapt::test {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;
using train::AdamW;
using train::TrainerState;

template <class T>
struct Training {
  nn::Transformer<T> model;
  AdamW<T> optimizer;
  TrainerState state;

  static ModelConfig config() {
    ModelConfig c;
    c.architecture = "llama";
    c.vocab_size = 19;
    c.d_model = 8;
    c.layers = 1;
    c.heads = 2;
    c.kv_heads = 1;
    c.head_dim = 4;
    c.ffn_dim = 12;
    c.max_position = 16;
    c.layer_types.resize(1);
    return c;
  }
  static Parameters<T, Cpu> prepared(nn::Transformer<T>& model) {
    model.require_gradients();
    return model.parameters();
  }
  Training() : model(config()), optimizer(prepared(model)) {}

  /// Weights and moments that say which step they are of.
  void become(index_t step) {
    Philox random(static_cast<std::uint64_t>(step));
    for (auto& slot : optimizer.slots()) {
      fill_normal(slot.parameter.values, random);
      fill_normal(slot.first, random);
      fill_uniform(slot.second, random);
    }
    optimizer.read_masters();
    optimizer.set_steps(step);
    state.step = state.optimizer_steps = step;
    state.position = 3 * step;
    state.random = {~std::uint64_t{0}, 5};
    state.scaler = {65536, step, 0};
    state.settings = {{"seq", "16"}, {"lr", "0.001"}};
  }
  void save(const fs::path& folder) {
    train::save_checkpoint(model, optimizer, state, folder, [](const fs::path& inside) {
      write_file(inside / "tokenizer.json", "{}");
    });
  }
  std::vector<double> everything() {
    std::vector<double> out;
    for (auto& slot : optimizer.slots()) {
      for (index_t i = 0; i < slot.first.size(); ++i) {
        out.push_back(static_cast<double>(slot.parameter.values(i)));
        out.push_back(static_cast<double>(slot.first(i)));
        out.push_back(static_cast<double>(slot.second(i)));
        if (slot.master.size() > 0) out.push_back(static_cast<double>(slot.master(i)));
      }
    }
    return out;
  }
};

template <class T>
struct Checkpoints : testing::Test {};
using Elements = testing::Types<float, double, half, bfloat16>;
TYPED_TEST_SUITE(Checkpoints, Elements);

TYPED_TEST(Checkpoints, ComeBackBitForBit) {
  const ScratchFolder folder;
  Training<TypeParam> run, other;
  run.become(7);
  run.save(folder / "latest");
  other.become(1);
  const TrainerState state =
      train::load_checkpoint(other.model, other.optimizer, folder / "latest");
  EXPECT_EQ(state, run.state);
  EXPECT_EQ(other.everything(), run.everything());
  EXPECT_EQ(other.optimizer.steps(), 7);
  // The folder is a model like any other.
  auto model = nn::load_transformer<float>(folder / "latest");
  EXPECT_EQ(model.config().dtype, dtype_of<TypeParam>);
  EXPECT_EQ(folder.content(), std::vector<std::string>{"latest"});
}

/// Saves step 2 over step 1 under the fault, then loads: it must be one of the two, whole.
index_t step_after(const Fault& wanted, bool in_child, bool& thrown, int& calls) {
  const ScratchFolder folder;
  Training<float> run;
  run.become(1);
  run.save(folder / "latest");
  run.become(2);
  const auto save = [&] {
    fault = wanted;
    try {
      run.save(folder / "latest");
    } catch (const IoError&) {
      thrown = true;
    }
    calls = fault.calls;
    fault = {};
  };
  if (in_child) {
    const pid_t child = ::fork();
    if (child == 0) {
      save();
      ::_exit(0);
    }
    int status = 0;
    ::waitpid(child, &status, 0);
    thrown = WEXITSTATUS(status) == 9;
  } else {
    save();
  }
  if (!recover_folder(folder / "latest")) return -1;
  Training<float> loaded;
  const TrainerState state =
      train::load_checkpoint(loaded.model, loaded.optimizer, folder / "latest");
  Training<float> expected;
  expected.become(state.step);
  EXPECT_EQ(loaded.everything(), expected.everything());
  EXPECT_EQ(read_file(folder / "latest/tokenizer.json"), "{}");
  // And the next save goes through, whatever was left behind.
  loaded.become(3);
  loaded.save(folder / "latest");
  EXPECT_EQ(folder.content(), std::vector<std::string>{"latest"});
  EXPECT_EQ(train::read_trainer_state<float>(folder / "latest").step, 3);
  return state.step;
}

int calls_of_a_save() {
  bool thrown = false;
  int calls = 0;
  EXPECT_EQ(step_after({}, false, thrown, calls), 2);
  EXPECT_FALSE(thrown);
  return calls;
}

TEST(CheckpointFaults, EveryCallFailsOnce) {
  const int calls = calls_of_a_save();
  EXPECT_GT(calls, 15);
  int old = 0, fresh = 0;
  for (const auto kind : {Fault::Kind::error, Fault::Kind::partial})
    for (int i = 0; i < calls; ++i) {
      bool thrown = false;
      int unused = 0;
      const index_t step = step_after({kind, i, 0}, false, thrown, unused);
      SCOPED_TRACE(testing::Message() << "call " << i << " gives step " << step);
      ASSERT_TRUE(step == 1 || step == 2);
      ++(step == 1 ? old : fresh);
      EXPECT_TRUE(thrown || step == 2);  // a save that left the old one has said so
    }
  EXPECT_GT(old, 10);
  EXPECT_GT(fresh, 0);  // the folder's last flush comes after the new one is in place
}

TEST(CheckpointFaults, TheProgramDiesAtEveryCall) {
  const int calls = calls_of_a_save();
  index_t last = 1;
  for (const auto kind : {Fault::Kind::exit_before, Fault::Kind::exit_after}) {
    last = 1;
    for (int i = 0; i < calls; ++i) {
      bool died = false;
      int unused = 0;
      const index_t step = step_after({kind, i, 0}, true, died, unused);
      SCOPED_TRACE(testing::Message() << "call " << i << " gives step " << step);
      EXPECT_TRUE(died);
      ASSERT_TRUE(step == 1 || step == 2);
      EXPECT_GE(step, last);  // once the new one is there it stays
      last = step;
    }
    EXPECT_EQ(last, 2);
  }
}

TEST(CheckpointFaults, ASaveBetweenTheTwoRenamesNeverRemovesTheOnlyOne) {
  const ScratchFolder folder;
  Training<float> run;
  run.become(1);
  run.save(folder / "latest");
  fs::rename(folder / "latest", folder / "latest.old");  // where a crash left it
  run.become(2);
  fault = {Fault::Kind::error, 0, 0};
  EXPECT_THROW(run.save(folder / "latest"), IoError);
  fault = {};
  ASSERT_TRUE(recover_folder(folder / "latest"));
  EXPECT_EQ(train::read_trainer_state<float>(folder / "latest").step, 1);
}

struct Refusals : testing::Test {
  const ScratchFolder folder;
  Training<float> run;
  std::vector<double> before;

  Refusals() {
    run.become(4);
    run.save(folder / "latest");
    run.become(5);
    before = run.everything();
  }
  void refused(const std::string& part) {
    EXPECT_THAT([&] { train::load_checkpoint(run.model, run.optimizer, folder / "latest"); },
                ThrowsMessage<FormatError>(HasSubstr(part)));
    EXPECT_EQ(run.everything(), before);  // nothing was touched
  }
  void change(const std::string& file, const std::string& from, const std::string& to) {
    std::string text = read_file(folder / ("latest/" + file));
    const std::size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    write_file(folder / ("latest/" + file), text.replace(at, from.size(), to));
  }
};

TEST_F(Refusals, OfTruncatedFiles) {
  for (const std::string file : {"model.safetensors", "trainer.safetensors", "trainer.json"}) {
    const std::string whole = read_file(folder / ("latest/" + file));
    for (const std::size_t size : {std::size_t{0}, whole.size() / 2, whole.size() - 1}) {
      write_file(folder / ("latest/" + file), whole.substr(0, size));
      if (file == "trainer.json" && size == whole.size() - 1) continue;  // the last line break
      refused(file);
    }
    write_file(folder / ("latest/" + file), whole);
  }
}

TEST_F(Refusals, OfForeignEntries) {
  change("trainer.json", "rapt trainer", "some other");
  refused("format is some other, expected \"rapt trainer\"");
}
TEST_F(Refusals, OfAnotherVersion) {
  change("trainer.json", "\"version\": 1", "\"version\": 9");
  refused("version is 9, expected 1");
}
TEST_F(Refusals, OfAnotherElementType) {
  change("trainer.json", "\"f32\"", "\"bf16\"");
  refused("dtype is bf16, expected f32");
}
TEST_F(Refusals, OfFilesFromTwoCheckpoints) {
  change("trainer.json", "\"step\": 4", "\"step\": 8");
  refused("is of step 4, expected 8 as in trainer.json");
}
TEST_F(Refusals, OfALossScaleThatIsNoNumber) {
  change("trainer.json", "\"65536\"", "\"nan\"");
  refused("loss_scale is nan, expected a number of at least 1");
}
TEST_F(Refusals, OfAMissingEntry) {
  change("trainer.json", "  \"position\": 12,\n", "");
  refused("has no position");
}
TEST_F(Refusals, OfWeightsOfAnotherShape) {
  ModelConfig config = Training<float>::config();
  config.ffn_dim = 16;
  nn::Transformer<float> other(config);
  AdamW<float> optimizer(Training<float>::prepared(other));
  EXPECT_THAT([&] { train::load_checkpoint(other, optimizer, folder / "latest"); },
              ThrowsMessage<FormatError>(HasSubstr("is [12, 8], expected [16, 8]")));
}
TEST_F(Refusals, OfAMissingFile) {
  fs::remove(folder / "latest/trainer.safetensors");
  EXPECT_THAT([&] { train::load_checkpoint(run.model, run.optimizer, folder / "latest"); },
              ThrowsMessage<IoError>(HasSubstr("trainer.safetensors")));
}

}  // namespace
}  // namespace rapt::test
