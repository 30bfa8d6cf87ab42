// Mapped and atomic files.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <csignal>
#include <cstring>
#include <string>
#include <thread>

#include "io_support.hpp"
#include "rapt/io/atomic_file.hpp"
#include "rapt/io/mapped_file.hpp"
#include "rapt/io/safetensors.hpp"

namespace rapt::test {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

TEST(MappedFile, HoldsTheBytesOfAFile) {
  const ScratchFolder folder;
  write_file(folder / "a", "hello");
  MappedFile file(folder / "a");
  EXPECT_TRUE(file.is_mapped());
  EXPECT_EQ(detail::as_text(file.bytes()), "hello");
  for (const FileAccess access : {FileAccess::sequential, FileAccess::random, FileAccess::will_need,
                                  FileAccess::dont_need, FileAccess::normal})
    file.advise(access);
  file.advise(FileAccess::will_need, file.bytes().subspan(2, 2));
  const MappedFile moved = std::move(file);
  EXPECT_EQ(detail::as_text(moved.bytes()), "hello");
  EXPECT_TRUE(file.bytes().empty());  // NOLINT: a moved-from file is empty, not broken
}

TEST(MappedFile, ReplacingAFileByRenameKeepsTheOldBytes) {
  const ScratchFolder folder;
  write_file(folder / "a", "old");
  const MappedFile file(folder / "a");
  write_file(folder / "a", "longer and new");
  EXPECT_EQ(detail::as_text(file.bytes()), "old");
  EXPECT_EQ(read_file(folder / "a"), "longer and new");
}

TEST(MappedFile, EmptyFilesAndPipesAreRead) {
  const ScratchFolder folder;
  write_file(folder / "empty", "");
  EXPECT_EQ(MappedFile(folder / "empty").size(), 0u);

  const std::string big(3 << 20, 'x');
  ASSERT_EQ(::mkfifo((folder / "pipe").c_str(), 0600), 0);
  std::thread writer([&] { write_file(folder / "pipe", big); });
  const MappedFile file(folder / "pipe");
  writer.join();
  EXPECT_FALSE(file.is_mapped());
  EXPECT_TRUE(detail::as_text(file.bytes()) == big);
}

TEST(MappedFile, NamesWhatCannotBeOpened) {
  const ScratchFolder folder;
  EXPECT_THAT([&] { MappedFile(folder / "nothing"); },
              ThrowsMessage<IoError>((folder / "nothing").string() +
                                     ": cannot open: No such file or directory"));
  EXPECT_THAT([&] { MappedFile(folder.path()); },
              ThrowsMessage<IoError>(HasSubstr("is a folder, expected a file")));
}

TEST(AtomicFile, AppearsOnCommitOnly) {
  const ScratchFolder folder;
  {
    AtomicFile file(folder / "a");
    file.write("hel");
    file.write("lo");
    EXPECT_EQ(file.size(), 5u);
    EXPECT_FALSE(fs::exists(folder / "a"));
    file.commit();
    EXPECT_EQ(read_file(folder / "a"), "hello");
    EXPECT_THROW(file.write("more"), IoError);
  }
  {
    AtomicFile file(folder / "a");
    file.write("thrown away");
  }
  EXPECT_EQ(read_file(folder / "a"), "hello");
  EXPECT_THAT(folder.content(), ElementsAre("a"));
}

TEST(AtomicFile, KeepsPermissionsAndFollowsLinks) {
  const ScratchFolder folder;
  write_file(folder / "real", "1");
  fs::permissions(folder / "real", fs::perms::owner_read | fs::perms::owner_write);
  fs::create_symlink("real", folder / "link");
  write_file(folder / "link", "2");
  EXPECT_TRUE(fs::is_symlink(folder / "link"));
  EXPECT_EQ(read_file(folder / "real"), "2");
  EXPECT_EQ(fs::status(folder / "real").permissions(),
            fs::perms::owner_read | fs::perms::owner_write);
}

TEST(AtomicFile, NamesWhatCannotBeWritten) {
  const ScratchFolder folder;
  EXPECT_THAT([&] { AtomicFile(folder / "no/such/file"); },
              ThrowsMessage<IoError>((folder / "no/such/file").string() +
                                     ": cannot create: No such file or directory"));
  EXPECT_THAT([&] { AtomicFile(folder.path()); },
              ThrowsMessage<IoError>(HasSubstr("is a folder, expected a file")));
  EXPECT_THAT([] { write_file("/dev/full", "x"); },
              ThrowsMessage<IoError>("/dev/full: cannot write: No space left on device"));
  EXPECT_TRUE(fs::is_character_file("/dev/full"));
}

/// Files of this process may not grow beyond `bytes`: what a full disk looks like.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    old_handler_ = std::signal(SIGXFSZ, SIG_IGN);
    ::getrlimit(RLIMIT_FSIZE, &old_);
    rlimit limit = old_;
    limit.rlim_cur = bytes;
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, old_handler_);
  }

 private:
  rlimit old_{};
  void (*old_handler_)(int);
};

TEST(AtomicFile, AFullDiskLeavesTheOldFileAndNothingElse) {
  const ScratchFolder folder;
  write_file(folder / "a", "old");
  const std::vector<float> row(1 << 16, 1.f);
  std::string message;
  {
    const FileSizeLimit limit(1 << 20);
    try {
      SafetensorsWriter file(folder / "a", {{"x", DType::f32, {100, 1 << 16}}});
      for (int i = 0; i < 100; ++i) file.write(row);
      file.finish();
    } catch (const IoError& error) {
      message = error.what();
    }
  }
  EXPECT_EQ(message, (folder / "a").string() + ": cannot write: File too large");
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_THAT(folder.content(), ElementsAre("a"));
}

TEST(AtomicFile, AFullDiskFoundOnlyWhenFlushingLeavesTheOldFile) {
  const ScratchFolder folder;
  write_file(folder / "a", "old");
  {
    const FileSizeLimit limit(10);
    AtomicFile file(folder / "a");
    file.write("more than ten bytes, all of them still in the buffer");
    EXPECT_THROW(file.commit(), IoError);
  }
  EXPECT_EQ(read_file(folder / "a"), "old");
  EXPECT_THAT(folder.content(), ElementsAre("a"));
}

}  // namespace
}  // namespace rapt::test
