// A whole file as read-only bytes: mapped where the system can, read into memory where it cannot
// (pipes, some network and special file systems).
//
// A mapping costs no memory until it is touched and is shared by all processes that map the file.
// The file must not shrink while it is mapped: touching bytes that are gone ends a program with
// SIGBUS. Replacing it by rename, as AtomicFile does, is safe.
//
// Errors: IoError "<path>: <what the system said>".
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "rapt/core/error.hpp"

namespace rapt {

namespace detail {

[[noreturn]] inline void throw_io_error(const std::filesystem::path& path, const char* action,
                                        int error) {
  throw IoError(text(path.string(), ": cannot ", action, ": ", std::strerror(error)));
}

/// Closes a file descriptor at the end of its scope.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

}  // namespace detail

/// How the bytes will be visited; a hint to the system, never an error.
enum class FileAccess { normal, sequential, random, will_need, dont_need };

class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path) : path_(path) {
    const detail::FileDescriptor fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (fd.get() < 0) detail::throw_io_error(path, "open", errno);
    struct stat status {};
    if (::fstat(fd.get(), &status) != 0) detail::throw_io_error(path, "examine", errno);
    if (S_ISDIR(status.st_mode)) throw IoError(path.string() + ": is a folder, expected a file");

    if (S_ISREG(status.st_mode) && status.st_size > 0) {
      const auto size = static_cast<std::size_t>(status.st_size);
      void* const address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fd.get(), 0);
      if (address != MAP_FAILED) {
        bytes_ = {static_cast<const std::byte*>(address), size};
        return;
      }
    }
    read_all(fd.get());
  }

  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)),
        copy_(std::move(other.copy_)),
        bytes_(std::exchange(other.bytes_, {})) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(copy_, other.copy_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~MappedFile() {
    if (is_mapped()) ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
  }

  std::span<const std::byte> bytes() const { return bytes_; }
  std::size_t size() const { return bytes_.size(); }
  const std::filesystem::path& path() const { return path_; }
  bool is_mapped() const { return copy_.empty() && !bytes_.empty(); }

  /// Tells the system how `range`, a part of bytes(), will be read.
  void advise(FileAccess access, std::span<const std::byte> range) const {
    if (!is_mapped() || range.empty()) return;
    const auto page = static_cast<std::size_t>(::sysconf(_SC_PAGESIZE));
    // Whole pages only: the first page from its start, which may lie before the range.
    const auto begin = static_cast<std::size_t>(range.data() - bytes_.data()) / page * page;
    const auto end = static_cast<std::size_t>(range.data() - bytes_.data()) + range.size();
    ::madvise(const_cast<std::byte*>(bytes_.data()) + begin, end - begin, advice(access));
  }
  void advise(FileAccess access) const { advise(access, bytes_); }

 private:
  static int advice(FileAccess access) {
    switch (access) {
      case FileAccess::normal:
        break;
      case FileAccess::sequential:
        return MADV_SEQUENTIAL;
      case FileAccess::random:
        return MADV_RANDOM;
      case FileAccess::will_need:
        return MADV_WILLNEED;
      case FileAccess::dont_need:
        return MADV_DONTNEED;
    }
    return MADV_NORMAL;
  }

  void read_all(int fd) {
    constexpr std::size_t kStep = std::size_t{1} << 20;
    std::size_t size = 0;
    for (;;) {
      if (copy_.size() - size < kStep) copy_.resize(size + (size < kStep ? kStep : size));
      const ssize_t n = ::read(fd, copy_.data() + size, copy_.size() - size);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) detail::throw_io_error(path_, "read", errno);
      if (n == 0) break;
      size += static_cast<std::size_t>(n);
    }
    copy_.resize(size);
    bytes_ = copy_;
  }

  std::filesystem::path path_;
  std::vector<std::byte> copy_;       // the fallback; empty where the file is mapped
  std::span<const std::byte> bytes_;  // of the mapping or of copy_
};

}  // namespace rapt
