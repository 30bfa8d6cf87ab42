// A folder that replaces another whole or not at all.
//
//   AtomicFolder folder("run/latest");        // makes run/latest.new, empty
//   write files into folder.path()            // each flushed (AtomicFile does)
//   folder.commit();                          // run/latest is the new one
//
//   commit   fsync latest.new · rename latest -> latest.old · rename latest.new -> latest ·
//            fsync run · remove latest.old
//
// No system call replaces a full folder, so between the two renames there is none of that name; the
// old one is then whole under latest.old, and recover_folder() gives it its name back. Until
// commit() has returned, what was there stays readable, whatever fails and wherever the program or
// the machine stops.
//
// Errors: IoError "<path>: cannot <action>: <what the system said>"; the old folder is then where
// it was.
#pragma once

#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "rapt/core/error.hpp"
#include "rapt/io/mapped_file.hpp"

namespace rapt {

namespace detail {

inline std::filesystem::path beside(const std::filesystem::path& target, const char* ending) {
  return target.string() + ending;
}

/// Puts the names in a folder on the disk.
inline void sync_folder(const std::filesystem::path& folder) {
  const FileDescriptor fd(::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (fd.get() < 0) throw_io_error(folder, "open", errno);
  if (::fsync(fd.get()) != 0) throw_io_error(folder, "flush to disk", errno);
}

inline void rename_or_throw(const std::filesystem::path& from, const std::filesystem::path& to) {
  if (::rename(from.c_str(), to.c_str()) != 0)
    throw_io_error(from, ("rename to " + to.string()).c_str(), errno);
}

inline void remove_folder(const std::filesystem::path& folder) {
  std::error_code error;
  std::filesystem::remove_all(folder, error);
  if (error) throw IoError(text(folder.string(), ": cannot remove: ", error.message()));
}

}  // namespace detail

/// Gives a folder whose replacement was cut short its name back. False: there is none.
inline bool recover_folder(const std::filesystem::path& target) {
  namespace fs = std::filesystem;
  if (fs::exists(target)) return true;
  const fs::path old = detail::beside(target, ".old");
  if (!fs::exists(old)) return false;
  detail::rename_or_throw(old, target);
  return true;
}

class AtomicFolder {
 public:
  /// Makes an empty folder beside `target`, whose parent must exist.
  explicit AtomicFolder(std::filesystem::path target)
      : target_(std::move(target)), fresh_(detail::beside(target_, ".new")) {
    detail::remove_folder(fresh_);  // what a killed program left
    std::error_code error;
    std::filesystem::create_directory(fresh_, error);
    if (error) throw IoError(detail::text(fresh_.string(), ": cannot create: ", error.message()));
  }
  AtomicFolder(const AtomicFolder&) = delete;
  AtomicFolder& operator=(const AtomicFolder&) = delete;
  ~AtomicFolder() {
    if (committed_) return;
    std::error_code ignored;
    std::filesystem::remove_all(fresh_, ignored);
  }

  /// Where to write.
  const std::filesystem::path& path() const { return fresh_; }

  void commit() {
    namespace fs = std::filesystem;
    const fs::path old = detail::beside(target_, ".old");
    const fs::path parent = target_.has_parent_path() ? target_.parent_path() : ".";
    detail::sync_folder(fresh_);
    recover_folder(target_);  // never removes the only whole one
    const bool replaces = fs::exists(target_);
    if (replaces) {
      detail::remove_folder(old);
      detail::sync_folder(parent);
      detail::rename_or_throw(target_, old);
    }
    if (::rename(fresh_.c_str(), target_.c_str()) != 0) {
      const int error = errno;
      if (replaces) ::rename(old.c_str(), target_.c_str());
      detail::throw_io_error(fresh_, "rename into place", error);
    }
    committed_ = true;
    detail::sync_folder(parent);  // before the old one goes
    std::error_code ignored;      // the next commit removes what is left
    fs::remove_all(old, ignored);
  }

 private:
  std::filesystem::path target_, fresh_;
  bool committed_ = false;
};

}  // namespace rapt
