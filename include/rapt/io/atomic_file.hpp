// A file that appears whole or not at all.
//
//   AtomicFile file("model.safetensors");   // opens model.safetensors.<unique>.tmp beside it
//   file.write(header);
//   file.write(bytes, size);
//   file.commit();                          // flush, fsync, rename over the target
//
// Until commit() returns, the target is what it was; a full disk, an exception or a killed program
// leaves it untouched, and unless the program was killed no temporary file stays either. A symbolic
// link is followed, and an existing file's permissions are kept. A target that is no regular file
// (/dev/stdout, a pipe) is written directly.
//
// Errors: IoError "<path>: cannot <action>: <what the system said>".
#pragma once

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "rapt/core/error.hpp"
#include "rapt/io/mapped_file.hpp"

namespace rapt {

class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
    namespace fs = std::filesystem;
    std::error_code error;
    if (fs::is_symlink(path_, error)) {
      const fs::path real = fs::weakly_canonical(path_, error);
      if (!error) path_ = real;
    }
    const fs::file_status status = fs::status(path_, error);
    if (fs::is_directory(status))
      throw IoError(path_.string() + ": cannot write: is a folder, expected a file");
    const bool exists = fs::exists(status);
    direct_ = exists && !fs::is_regular_file(status);
    if (direct_) {
      fd_ = detail::FileDescriptor(::open(path_.c_str(), O_WRONLY | O_CLOEXEC));
      if (fd_.get() < 0) detail::throw_io_error(path_, "open for writing", errno);
    } else {
      create_temporary();
      if (exists) ::fchmod(fd_.get(), static_cast<mode_t>(status.permissions()));
    }
    buffer_.reserve(kBuffer);
  }
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile() { discard(); }

  /// Appends. After a failure the temporary file is gone and the object is good for nothing.
  void write(const void* data, std::size_t size) {
    if (fd_.get() < 0) throw IoError(path_.string() + ": cannot write: the file is closed");
    const auto* bytes = static_cast<const char*>(data);
    if (size >= kBuffer) {
      flush();
      write_now(bytes, size);
    } else if (size > 0) {
      if (buffer_.size() + size > kBuffer) flush();
      buffer_.insert(buffer_.end(), bytes, bytes + size);
    }
    size_ += size;
  }
  void write(std::string_view s) { write(s.data(), s.size()); }

  /// Bytes written so far.
  std::uint64_t size() const { return size_; }
  const std::filesystem::path& path() const { return path_; }

  /// Makes the file appear under its name. Nothing can be written afterwards.
  void commit() {
    if (fd_.get() < 0) throw IoError(path_.string() + ": cannot commit: the file is closed");
    flush();
    if (!direct_ && ::fsync(fd_.get()) != 0) fail("flush to disk", errno);
    // Some file systems report a full disk only here.
    if (::close(fd_.release()) != 0) fail("close", errno);
    if (direct_) return;
    if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename into place", errno);
    temporary_.clear();
    sync_folder();
  }

  /// Gives up: the temporary file is removed, the target stays as it was.
  void discard() noexcept {
    if (fd_.get() >= 0) ::close(fd_.release());
    if (!temporary_.empty()) ::unlink(temporary_.c_str());
    temporary_.clear();
  }

 private:
  static constexpr std::size_t kBuffer = std::size_t{1} << 16;

  void create_temporary() {
    // Beside the target, because rename is atomic only within a file system. Not mkstemp: its
    // permissions ignore the umask.
    static std::atomic<unsigned> counter{0};
    for (int attempt = 0; attempt < 100; ++attempt) {
      temporary_ = path_.string() + "." + std::to_string(::getpid()) + "-" +
                   std::to_string(counter.fetch_add(1)) + ".tmp";
      fd_ = detail::FileDescriptor(
          ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
      if (fd_.get() >= 0) return;
      const int error = errno;
      temporary_.clear();
      if (error != EEXIST) detail::throw_io_error(path_, "create", error);
    }
    detail::throw_io_error(path_, "create", EEXIST);
  }

  void flush() {
    write_now(buffer_.data(), buffer_.size());
    buffer_.clear();
  }

  void write_now(const char* data, std::size_t size) {
    while (size > 0) {
      const ssize_t n = ::write(fd_.get(), data, size);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) fail("write", errno);
      data += n;
      size -= static_cast<std::size_t>(n);
    }
  }

  [[noreturn]] void fail(const char* action, int error) {
    discard();
    detail::throw_io_error(path_, action, error);
  }

  /// The new name survives a power cut only when the folder is on disk too. Best effort.
  void sync_folder() const {
    const std::filesystem::path folder = path_.has_parent_path() ? path_.parent_path() : ".";
    const detail::FileDescriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (fd.get() >= 0) ::fsync(fd.get());
  }

  std::filesystem::path path_;
  std::string temporary_;  // empty once renamed, discarded, or where the target is no regular file
  bool direct_ = false;
  detail::FileDescriptor fd_{-1};
  std::vector<char> buffer_;
  std::uint64_t size_ = 0;
};

/// Writes `content` to `path` in one step, atomically.
inline void write_file(const std::filesystem::path& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

/// The whole content of a file.
inline std::string read_file(const std::filesystem::path& path) {
  const MappedFile file(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.size()};
}

}  // namespace rapt
