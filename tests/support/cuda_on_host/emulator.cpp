#include "support/cuda_on_host/emulator.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "rapt/core/error.hpp"
#include "support/cuda_on_host/fibre.hpp"

namespace rapt::cuda_on_host {

namespace {

constexpr int kWarp = 32;
constexpr std::size_t kStackBytes = std::size_t{256} << 10;

struct Where {
  const char* file = "";
  int line = 0;
  bool operator==(const Where& other) const {
    return line == other.line && std::strcmp(file, other.file) == 0;
  }
};

std::string text_of(const Where& where) {
  const char* name = std::strrchr(where.file, '/');
  return detail::text(name != nullptr ? name + 1 : where.file, ":", where.line);
}

const char* name_of(Meeting meeting) {
  switch (meeting) {
    case Meeting::block_barrier:
      return "block_barrier";
    case Meeting::warp_barrier:
      return "warp_barrier";
    case Meeting::shuffle_xor:
      return "shuffle_xor";
    case Meeting::shuffle:
      return "shuffle";
    case Meeting::ballot:
      return "ballot";
  }
  return "?";
}

/// An access to a word of shared memory, in the terms that decide whether another is ordered with
/// it: how many barriers of the block and of the warp its thread had passed.
struct Touch {
  int thread = -1;
  int block_epoch = 0, warp_epoch = 0;
};

bool ordered(const Touch& a, const Touch& b) {
  if (a.thread < 0 || a.thread == b.thread || a.block_epoch != b.block_epoch) return true;
  return a.thread / kWarp == b.thread / kWarp && a.warp_epoch != b.warp_epoch;
}

struct Word {
  bool written = false;
  Touch last_write;
  std::vector<Touch> reads;  // since the last barrier of the block
};

/// Thrown by fail(): unwinds the thread that found something, so that nothing of it is left behind.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class State { runnable, waiting, finished };

struct Thread {
  State state = State::finished;
  Meeting meeting = Meeting::block_barrier;  // while waiting
  int detail = 0;
  Where where;
  int barriers = 0;  // block barriers met so far, skipped ones included
  int block_epoch = 0, warp_epoch = 0;
  int meetings = 0;  // of its warp; picks the buffer of values
};

struct Warp {
  int arrived = 0;
  std::uint64_t values[2][kWarp] = {};
};

/// The block that runs now, and the fibres it runs on.
struct Machine {
  Fibre main;
  std::vector<std::unique_ptr<Fibre>> fibres;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<int> runnable;
  std::vector<unsigned char> shared;
  std::vector<Word> words;
  const std::function<void()>* body = nullptr;
  Grid grid{"", 0, 0, 0};
  index_t block = 0;
  int current = 0, arrived = 0, finished = 0;
  bool running = false;
  std::string failure;
  std::uint64_t random = 0;
  std::vector<std::uint64_t> favour;  // of each warp, where the schedule is unfair; else empty

  std::uint64_t draw(std::uint64_t below) {  // splitmix64
    std::uint64_t z = random += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) % below;
  }
  Thread& self() { return threads[static_cast<std::size_t>(current)]; }
  Fibre& fibre(int thread) { return *fibres[static_cast<std::size_t>(thread)]; }
  Warp& warp() { return warps[static_cast<std::size_t>(current / kWarp)]; }
  Touch touch() { return {current, self().block_epoch, self().warp_epoch}; }

  void make_runnable(int thread) {
    threads[static_cast<std::size_t>(thread)].state = State::runnable;
    runnable.push_back(thread);
  }

  /// Index into `runnable` of the thread to go on with.
  std::size_t pick() {
    if (favour.empty() || draw(32) == 0) return draw(runnable.size());
    const auto favour_of = [&](std::size_t at) {
      return favour[static_cast<std::size_t>(runnable[at] / kWarp)];
    };
    std::size_t best = draw(runnable.size());
    for (std::size_t at = 0; at < runnable.size(); ++at)
      if (favour_of(at) > favour_of(best)) best = at;
    return best;
  }

  /// Leaves the current thread, whose state is set, for one drawn at random.
  void leave() {
    const int from = current;
    const bool last = self().state == State::finished;
    if (!failure.empty() || runnable.empty()) {
      if (failure.empty() && finished < grid.threads) failure = stuck();
      Fibre::switch_to(fibre(from), main, last);
      return;
    }
    const std::size_t at = pick();
    const int next = runnable[at];
    runnable[at] = runnable.back();
    runnable.pop_back();
    if (next == from) return;
    ++counters().switches;
    current = next;
    Fibre::switch_to(fibre(from), fibre(next), last);
  }

  /// Who waits for whom, when nobody can go on.
  std::string stuck() const {
    std::string out = "divergence: ";
    // One line for each place where threads wait: the first of them, and how many.
    struct Place {
      std::string text;
      int first, count;
    };
    std::vector<Place> places;
    for (int t = 0; t < grid.threads; ++t) {
      const Thread& thread = threads[static_cast<std::size_t>(t)];
      const std::string place =
          thread.state == State::finished
              ? "returned"
              : detail::text("waits at ", cuda_on_host::name_of(thread.meeting), " (",
                             text_of(thread.where), ")");
      auto found = std::find_if(places.begin(), places.end(),
                                [&](const Place& p) { return p.text == place; });
      if (found == places.end())
        places.push_back({place, t, 1});
      else
        ++found->count;
    }
    for (std::size_t i = 0; i < places.size(); ++i)
      out += detail::text(
          i > 0 ? "; " : "", "thread ", places[i].first,
          places[i].count > 1 ? detail::text(" and ", places[i].count - 1, " more") : std::string(),
          " ", places[i].text);
    return out;
  }

  void run_block(index_t index);
};

Machine& machine() {
  static thread_local Machine instance;
  return instance;
}

void thread_main() {
  Fibre::arrived();
  Machine& m = machine();
  try {
    (*m.body)();
  } catch (const Failure& failure) {
    m.failure = failure.what();
  } catch (const std::exception& error) {
    if (m.failure.empty()) m.failure = detail::text("exception in a kernel: ", error.what());
  }
  m.self().state = State::finished;
  ++m.finished;
  m.leave();
  std::terminate();  // a finished thread is never resumed
}

void Machine::run_block(index_t index) {
  ++counters().blocks;
  block = index;
  arrived = finished = 0;
  threads.assign(static_cast<std::size_t>(grid.threads), Thread{});
  warps.assign(static_cast<std::size_t>(grid.threads / kWarp), Warp{});
  shared.assign(static_cast<std::size_t>(grid.shared_bytes), 0xff);
  words.assign(static_cast<std::size_t>((grid.shared_bytes + 3) / 4), Word{});
  while (fibres.size() < threads.size()) fibres.push_back(std::make_unique<Fibre>(kStackBytes));
  favour.clear();
  if (options().seed % 2 == 0)
    for (std::size_t warp = 0; warp < warps.size(); ++warp) favour.push_back(draw(1u << 30));
  runnable.clear();
  for (int t = 0; t < grid.threads; ++t) {
    fibre(t).restart(thread_main);
    make_runnable(t);
  }
  const std::size_t first = pick();
  current = runnable[first];
  runnable[first] = runnable.back();
  runnable.pop_back();
  Fibre::switch_to(main, fibre(current));
}

}  // namespace

Options& options() {
  static thread_local Options instance;
  return instance;
}

Counters& counters() {
  static thread_local Counters instance;
  return instance;
}

void run(const Grid& grid, const std::function<void()>& thread) {
  Machine& m = machine();
  const auto shape = [&] {
    return detail::text(grid.kernel, " of ", grid.blocks, " blocks of ", grid.threads,
                        " threads with ", grid.shared_bytes, " bytes of shared memory");
  };
  if (m.running) throw DeviceError(detail::text(shape(), ": launched from within a kernel"));
  if (grid.blocks < 0 || grid.blocks > 0x7fffffff || grid.threads < 1 || grid.threads > 1024 ||
      grid.threads % kWarp != 0 || grid.shared_bytes < 0 || grid.shared_bytes > 48 * 1024)
    throw DeviceError(detail::text(shape(), ": invalid configuration"));
  ++counters().launches;
  m.grid = grid;
  m.body = &thread;
  m.failure.clear();
  m.random = options().seed;
  std::vector<index_t> order(static_cast<std::size_t>(grid.blocks));
  std::iota(order.begin(), order.end(), index_t{0});
  for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[m.draw(i)]);
  m.running = true;
  for (const index_t block : order) {
    m.run_block(block);
    if (m.failure.empty()) continue;
    m.running = false;
    throw DeviceError(detail::text(shape(), ": block ", block, ": ", m.failure));
  }
  m.running = false;
}

int thread_index() { return machine().current; }
int block_size() { return machine().grid.threads; }
index_t block_index() { return machine().block; }
index_t grid_size() { return machine().grid.blocks; }

void fail(const std::string& message) {
  throw Failure(detail::text("thread ", machine().current, ": ", message));
}

void yield() {
  Machine& m = machine();
  m.runnable.push_back(m.current);
  m.leave();
}

void block_barrier(const char* file, int line) {
  Machine& m = machine();
  Thread& self = m.self();
  if (self.barriers++ == options().skipped_barrier) return yield();
  self.meeting = Meeting::block_barrier;
  self.where = {file, line};
  if (m.arrived > 0) {
    for (const Thread& other : m.threads)
      if (other.state == State::waiting && other.meeting == Meeting::block_barrier &&
          !(other.where == self.where))
        fail(detail::text("divergence: waits at block_barrier (", text_of(self.where),
                          ") while thread ", &other - m.threads.data(), " waits at another (",
                          text_of(other.where), ")"));
  }
  ++m.arrived;
  if (m.arrived < m.grid.threads) {
    self.state = State::waiting;
    return m.leave();
  }
  ++counters().barriers;
  m.arrived = 0;
  for (int t = 0; t < m.grid.threads; ++t) {
    ++m.threads[static_cast<std::size_t>(t)].block_epoch;
    m.make_runnable(t);
  }
  m.leave();
}

const std::uint64_t* meet_warp(Meeting meeting, int detail, std::uint64_t value, const char* file,
                               int line) {
  Machine& m = machine();
  Thread& self = m.self();
  Warp& warp = m.warp();
  self.meeting = meeting;
  self.detail = detail;
  self.where = {file, line};
  // Two buffers: a lane may enter the next meeting while another still reads this one's values, but
  // no lane can enter the one after that.
  std::uint64_t* values = warp.values[self.meetings++ % 2];
  values[m.current % kWarp] = value;
  ++warp.arrived;
  const int first = m.current / kWarp * kWarp;
  if (warp.arrived < kWarp) {
    self.state = State::waiting;
    m.leave();
    return values;
  }
  for (int t = first; t < first + kWarp; ++t) {
    const Thread& other = m.threads[static_cast<std::size_t>(t)];
    if (other.meeting != meeting || other.detail != detail || !(other.where == self.where))
      fail(detail::text("divergence: at ", cuda_on_host::name_of(meeting), " (",
                        text_of(self.where), ") while thread ", t, " of its warp is at ",
                        cuda_on_host::name_of(other.meeting), " (", text_of(other.where), ")"));
  }
  warp.arrived = 0;
  for (int t = first; t < first + kWarp; ++t) {
    if (meeting == Meeting::warp_barrier) ++m.threads[static_cast<std::size_t>(t)].warp_epoch;
    m.make_runnable(t);
  }
  m.leave();
  return values;
}

void* access_shared(index_t offset, std::size_t bytes, Access access) {
  Machine& m = machine();
  if (options().yields_at_shared && m.draw(4) == 0) yield();
  const auto begin = static_cast<std::size_t>(offset);
  if (offset < 0 || begin + bytes > m.shared.size())
    fail(detail::text("shared memory: bytes [", offset, ", ", begin + bytes, ") are touched, of ",
                      m.shared.size()));
  if (options().checks_shared) {
    const Touch now = m.touch();
    for (std::size_t w = begin / 4; w <= (begin + bytes - 1) / 4; ++w) {
      Word& word = m.words[w];
      const auto race = [&](const Touch& other, const char* what) {
        fail(detail::text("race on shared memory, byte ", 4 * w, ": ",
                          access == Access::write ? "writes" : "reads", " what thread ",
                          other.thread, " ", what, " without a barrier between"));
      };
      if (!ordered(word.last_write, now)) race(word.last_write, "wrote");
      if (access == Access::read) {
        if (!word.written)
          fail(detail::text("shared memory: byte ", 4 * w, " is read before it is written"));
        std::erase_if(word.reads, [&](const Touch& t) {
          return t.block_epoch != now.block_epoch || t.thread == now.thread;
        });
        word.reads.push_back(now);
      } else {
        for (const Touch& read : word.reads)
          if (!ordered(read, now)) race(read, "read");
        word.reads.clear();
        word.written = true;
        word.last_write = now;
      }
    }
  }
  return m.shared.data() + offset;
}

}  // namespace rapt::cuda_on_host
