// Parallel loops on a small pool of our own threads.
//
//   parallel_for(n, [&](index_t i) { ... });      // calls f(0) ... f(n - 1), each exactly once
//
// The split is static: share t of w holds the indices t, t + w, t + 2w, ... A caller cuts its work
// into tiles by shape alone and lets index i own tile i, so a result never depends on the number of
// threads, nor on who runs an index. (Dealing round robin, not in blocks, also balances causal
// work, where tile i costs i.)
//
//   share 0    the caller's          whoever is done with its own takes a share that nobody has
//   share t    worker t's            begun; then single indices of those that others are at
//
// So a loop does not wait for a worker that finds no core to begin on, and one whose core is slow
// (another program has half of it, or it is of the small kind) does fewer indices; who has begun is
// waited for. What a share keeps between loops (its scratch memory, ShareStorage) serves who began
// it, for the indices of other shares, too.
//
// Rules
//   * Pool size: RAPT_NUM_THREADS in the environment, else the cores this process may use;
//     set_num_threads(n) changes it. n counts the calling thread.
//   * One loop runs on the pool at a time. A loop inside a loop, or a second caller meanwhile, runs
//     on its own thread alone: no deadlock, no oversubscription, the same result.
//   * Workers spin for half a millisecond after a loop, then sleep, so that the many short loops of
//     a decode step do not each pay for a wake-up. With more threads than cores they sleep at once.
//   * After fork() the child has no workers; its first loop starts a pool of its own.
//   * An exception thrown by f is rethrown to the caller when all have ended; if several indices
//     threw, that of the lowest one. Indices above one that threw may be left out.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <exception>
#include <limits>
#include <memory>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#endif

namespace rapt {

namespace detail {

/// What outlives a loop: of a thread outside loops, or of a share of the pool's loops, where who
/// begins the share next finds it again. Values are found by the address of `key`.
class ShareStorage {
 public:
  struct Value {
    const void* key;
    std::shared_ptr<void> value;
  };
  std::vector<Value> values;  // few: a short list beats a map

  /// That of the share that this thread has begun, or the thread's own.
  static ShareStorage& current() {
    static thread_local ShareStorage own;
    ShareStorage* const share = of_share();
    return share != nullptr ? *share : own;
  }

 private:
  friend class ThreadPool;
  static ShareStorage*& of_share() {
    static thread_local ShareStorage* share = nullptr;
    return share;
  }
};

class ThreadPool {
 public:
  using Task = void (*)(void* context, index_t index);

  static ThreadPool& instance() {
    // Never destroyed: a static destructor elsewhere may still run a loop.
    static ThreadPool* pool = [] {
      auto* fresh = new ThreadPool;
      current() = fresh;
#if defined(__unix__) || defined(__APPLE__)
      // The child of a fork inherits none of the threads: forget them. What they held leaks, once.
      pthread_atfork(nullptr, nullptr, [] { current()->forget_workers(); });
#endif
      return fresh;
    }();
    return *pool;
  }

  int size() const { return size_.load(std::memory_order_relaxed); }

  void resize(int threads) {
    if (inside_loop())
      throw ValueError(
          "set_num_threads: the caller is a parallel loop, expected a call outside one");
    const std::lock_guard<std::mutex> owner(shared_->owner);
    stop();
    size_.store(threads, std::memory_order_relaxed);
  }

  /// Runs the task for indices [0, items) in `size()` shares, the caller's being share 0; inline
  /// when the pool is busy.
  void run(Task task, void* context, index_t items) {
    const auto alone = [=] {
      for (index_t i = 0; i < items; ++i) task(context, i);
    };
    if (items <= 1 || size() <= 1 || inside_loop()) return alone();
    // A reference of our own: fork() in another thread may replace shared_.
    const std::shared_ptr<Shared> shared = shared_;
    std::unique_lock<std::mutex> owner(shared->owner, std::try_to_lock);
    if (!owner.owns_lock()) return alone();
    const int threads = size();  // read once the pool is ours: a resize may have come before us
    const int shares = static_cast<int>(items < threads ? items : threads);
    if (shares <= 1) return alone();
    start(threads);
    Shared& s = *shared;
    s.task = task;
    s.context = context;
    s.items = items;
    s.count = shares;
    s.remaining.store(shares - 1, std::memory_order_relaxed);
    for (int share = 0; share < shares; ++share)
      s.share(share).next.store(share + index_t{shares}, std::memory_order_relaxed);
    const std::uint64_t loop = announce(s, shares);
    take_part(s, loop, 0, shares);
    const auto done = [&s] { return s.remaining.load(std::memory_order_acquire) == 0; };
    if (!spin(s, done))
      while (!done()) std::this_thread::yield();
    if (s.lowest_bad.load(std::memory_order_relaxed) != kNone) rethrow(s);
  }

 private:
  /// How long a thread spins before it sleeps: longer than what a step of a small model does
  /// between two of its loops, at most some 100 microseconds, and as long as a few wake-ups take.
  static constexpr std::chrono::microseconds kPatience{500};

  /// Cores hand lines of memory to each other: what they fight for lies apart from what they keep.
  static constexpr std::size_t kLine = 64;

  static constexpr index_t kNone = std::numeric_limits<index_t>::max();

  struct Share {
    alignas(kLine) std::atomic<std::uint64_t> begun{0};  // the last loop that had a taker for it
    std::atomic<index_t> next{0};  // index of the share; the first one is the taker's, without it
    alignas(kLine) ShareStorage storage;
  };

  struct Shared {
    std::mutex owner;  // held by the caller whose loop is running
    alignas(kLine) std::atomic<std::uint64_t> generation{0};  // number of the loop, 16 bits: shares
    Task task = nullptr;
    void* context = nullptr;
    index_t items = 0;
    int count = 0;  // of the loop's shares
    std::atomic<bool> stopping{false};
    std::atomic<bool> crowded{false};  // more threads than cores: who spins is in another's way
    alignas(kLine) std::atomic<int> remaining{0};  // shares whose takers still take part
    std::atomic<index_t> lowest_bad{kNone};        // of the indices that threw
    std::mutex errors;
    std::exception_ptr error;  // its exception
    std::deque<Share> shares;

    Share& share(int t) { return shares[static_cast<std::size_t>(t)]; }
  };

  ThreadPool() : shared_(std::make_shared<Shared>()), size_(default_size()) {}

  static ThreadPool*& current() {
    static ThreadPool* pool = nullptr;
    return pool;
  }
  static bool& inside_loop() {
    static thread_local bool inside = false;
    return inside;
  }
  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  /// Spins until `done` or the end of patience, and returns whether it was done. Counts of `pause`
  /// are no times (27 ns on one processor, 50 on another), so it looks at the clock now and then.
  template <class Done>
  static bool spin(const Shared& s, Done done) {
    if (done()) return true;
    if (s.crowded.load(std::memory_order_relaxed)) return false;
    const auto end = std::chrono::steady_clock::now() + kPatience;
    do {
      for (int pauses = 0; pauses < 32; ++pauses) {
        pause();
        if (done()) return true;
      }
    } while (std::chrono::steady_clock::now() < end);
    return false;
  }

  static int default_size() {
    if (const char* text = std::getenv("RAPT_NUM_THREADS")) {
      char* end = nullptr;
      const long n = std::strtol(text, &end, 10);
      if (end != text && *end == '\0' && n >= 1 && n <= 4096) return static_cast<int>(n);
    }
    return usable_cores();
  }

  static int usable_cores() {
#if defined(__linux__)
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
      const int n = CPU_COUNT(&allowed);
      if (n > 0) return n;
    }
#endif
    const unsigned n = std::thread::hardware_concurrency();
    return n > 0 ? static_cast<int>(n) : 1;
  }

  /// A new loop. Its number and its size are one word: a worker that is not wanted reads nothing
  /// else, so it cannot meet the fields of the loop after. Returns the number. (Not by a condition
  /// variable: its notify_all may wait for a sleeper that was woken before and has no core yet.)
  static std::uint64_t announce(Shared& s, int shares) {
    const std::uint64_t number = (s.generation.load(std::memory_order_relaxed) >> 16) + 1;
    s.generation.store((number << 16) | static_cast<std::uint64_t>(shares),
                       std::memory_order_release);
    s.generation.notify_all();
    return number;
  }

  /// Whether this thread is the one that runs the share in that loop. Who comes too late, even for
  /// the whole loop, finds its number, or a later one.
  static bool take(Share& share, std::uint64_t loop) {
    std::uint64_t last = share.begun.load(std::memory_order_relaxed);
    return last < loop &&
           share.begun.compare_exchange_strong(last, loop, std::memory_order_relaxed);
  }

  /// Share `own` unless somebody else has begun it, then those that nobody has, then what is left
  /// of the others. As long as this thread counts for a share the loop is not over, so its fields
  /// are there to be read: it does until there is nothing left to take.
  static void take_part(Shared& s, std::uint64_t loop, int own, int shares) {
    int taken = 0;
    inside_loop() = true;
    for (int i = 0; i < shares; ++i) {
      const int t = (own + i) % shares;
      const bool mine = t == 0 ? own == 0 : take(s.share(t), loop);  // share 0 is the caller's
      if (!mine) continue;
      if (t != 0) {
        ++taken;
        ShareStorage::of_share() = &s.share(t).storage;
      }
      run_index(s, t);
      run_rest(s, t);
    }
    if (own == 0 || taken > 0)
      for (int i = 1; i < shares; ++i) run_rest(s, (own + i) % shares);
    ShareStorage::of_share() = nullptr;
    inside_loop() = false;
    if (taken > 0) s.remaining.fetch_sub(taken, std::memory_order_acq_rel);
  }

  /// Indices of a share, as long as there are any, whoever else takes some.
  static void run_rest(Shared& s, int share) {
    std::atomic<index_t>& next = s.share(share).next;
    while (next.load(std::memory_order_relaxed) < s.items) {
      const index_t i = next.fetch_add(s.count, std::memory_order_relaxed);
      if (i < s.items) run_index(s, i);
    }
  }

  static void run_index(Shared& s, index_t i) {
    if (i > s.lowest_bad.load(std::memory_order_relaxed)) return;
    try {
      s.task(s.context, i);
    } catch (...) {
      const std::lock_guard<std::mutex> lock(s.errors);
      if (i > s.lowest_bad.load(std::memory_order_relaxed)) return;
      s.lowest_bad.store(i, std::memory_order_relaxed);
      s.error = std::current_exception();
    }
  }

  [[noreturn]] static void rethrow(Shared& s) {
    s.lowest_bad.store(kNone, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(s.error, nullptr));
  }

  void start(int threads) {
    if (static_cast<int>(threads_.size()) == threads - 1) return;
    auto& shares = shared_->shares;  // no worker runs yet
    while (static_cast<int>(shares.size()) < threads) shares.emplace_back();
    shared_->crowded.store(threads > usable_cores());
    const std::uint64_t generation = shared_->generation.load();
    try {
      for (int worker = static_cast<int>(threads_.size()) + 1; worker < threads; ++worker)
        threads_.emplace_back(loop, shared_, worker, generation);
    } catch (...) {
      stop();
      throw;
    }
  }

  void stop() {
    if (threads_.empty()) return;
    shared_->stopping.store(true);
    announce(*shared_, 0);
    for (auto& thread : threads_) thread.join();
    threads_.clear();
    shared_->shares.clear();
    shared_->stopping.store(false);
  }

  void forget_workers() {
    for (auto& thread : threads_) new (&thread) std::thread;  // no thread of that name runs here
    threads_.clear();
    new (&shared_) std::shared_ptr<Shared>(std::make_shared<Shared>());
    ShareStorage::of_share() = nullptr;
    inside_loop() = false;
  }

  static void loop(std::shared_ptr<Shared> shared, int worker, std::uint64_t seen) {
    Shared& s = *shared;
    for (;;) {
      const auto announced = [&s, seen] {
        return s.generation.load(std::memory_order_acquire) != seen;
      };
      if (!spin(s, announced)) s.generation.wait(seen, std::memory_order_acquire);
      const std::uint64_t now = s.generation.load(std::memory_order_acquire);
      seen = now;
      if (s.stopping.load(std::memory_order_acquire)) return;
      const int shares = static_cast<int>(now & 0xFFFF);
      if (worker < shares) take_part(s, now >> 16, worker, shares);
    }
  }

  std::shared_ptr<Shared> shared_;
  std::vector<std::thread> threads_;
  std::atomic<int> size_;
};

}  // namespace detail

/// Threads that parallel_for uses, the caller included.
inline int num_threads() { return detail::ThreadPool::instance().size(); }

/// Waits for a running loop, then changes the number of threads. Throws ValueError below 1 and
/// inside a loop, which would wait for itself.
inline void set_num_threads(int threads) {
  if (threads < 1 || threads > 4096)
    throw ValueError(detail::text("set_num_threads: threads is ", threads, ", expected 1 to 4096"));
  detail::ThreadPool::instance().resize(threads);
}

/// f(i) for every i in [0, n), on the pool.
template <class F>
void parallel_for(index_t n, F&& f) {
  if (n <= 0) return;
  if (n == 1) {
    f(index_t{0});
    return;
  }
  detail::ThreadPool::instance().run(
      [](void* context, index_t i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(std::addressof(f))), n);
}

}  // namespace rapt
