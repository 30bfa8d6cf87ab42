// A GPU made of fibres: runs a grid of kernel threads on the calling thread, deterministically from
// a seed, and looks for what a GPU would forgive on most days.
//
// A block's threads are fibres (a stack each, switched by hand). At every device function that can
// wait, and at every access to shared memory, the next runnable fibre is drawn at random; blocks
// run one after another in random order. Even seeds favour some warps, so that others fall far
// behind, which finds what a fair draw hardly ever does. The same seed gives the same order. Found
// and reported, as DeviceError from launch(), naming kernel, block, threads and source lines:
//
//   divergence    threads of a block at different barriers, lanes of a warp at different shuffles,
//                 or some at one while others have returned
//   races         two threads touch one word of shared memory, at least one writes, and no barrier
//                 (block's, or warp's where they share a warp) lies between
//   stale reads   of shared memory that nobody wrote, and accesses outside of it
//
// `skipped_barrier` makes one barrier of every block a mere yield: the test that a barrier is
// needed, and that its loss is noticed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "rapt/core/config.hpp"

namespace rapt::cuda_on_host {

struct Options {
  std::uint64_t seed = 1;
  int skipped_barrier = -1;      // the n-th block barrier that a thread meets, counted from 0
  bool checks_shared = true;     // report races on and stale reads of shared memory
  bool yields_at_shared = true;  // let another thread go first, now and then
};

/// What the launches of this thread run under; tests change it.
Options& options();

/// Changes options() for the length of a scope.
class WithOptions {
 public:
  explicit WithOptions(Options changed) : before_(options()) { options() = changed; }
  WithOptions(const WithOptions&) = delete;
  WithOptions& operator=(const WithOptions&) = delete;
  ~WithOptions() { options() = before_; }

 private:
  Options before_;
};

/// Counts since the start of the thread.
struct Counters {
  std::int64_t launches = 0, blocks = 0, switches = 0, barriers = 0;
};
Counters& counters();

// ---- for launch() ----

struct Grid {
  const char* kernel;
  index_t blocks;
  int threads, shared_bytes;
};
/// Runs `thread` once for every thread of the grid. Throws DeviceError with what was found.
void run(const Grid& grid, const std::function<void()>& thread);

// ---- for the device functions; `file` and `line` are those of the kernel ----

enum class Meeting { block_barrier, warp_barrier, shuffle_xor, shuffle, ballot };

int thread_index();
int block_size();
index_t block_index();
index_t grid_size();
void yield();
void block_barrier(const char* file, int line);
/// Waits for the warp's 32 lanes to come to the same place with a value each; returns all values,
/// valid until this lane meets the others again. `detail` must agree between lanes.
const std::uint64_t* meet_warp(Meeting meeting, int detail, std::uint64_t value, const char* file,
                               int line);
enum class Access { read, write };
/// Notes an access to shared memory, and returns its address.
void* access_shared(index_t offset, std::size_t bytes, Access access);
/// Ends the block with a report.
[[noreturn]] void fail(const std::string& message);

}  // namespace rapt::cuda_on_host
