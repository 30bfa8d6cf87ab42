// The pool's rules: each index once, nested and concurrent loops, workers that come late or are slow,
// whose scratch memory it is, fork, exceptions, resizing.
#include "rapt/core/parallel.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "rapt/core/scratch.hpp"

#if defined(__unix__)
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace rapt::test {

using testing::HasSubstr;
using testing::ThrowsMessage;

// Restores the pool's size, so that no test sees the size another one left.
struct Parallel : testing::Test {
  const int before = num_threads();
  ~Parallel() override { set_num_threads(before); }
};

std::vector<int> visits(index_t n) {
  std::vector<int> count(static_cast<std::size_t>(n));
  parallel_for(n, [&](index_t i) { ++count[static_cast<std::size_t>(i)]; });
  return count;
}

TEST_F(Parallel, CallsEachIndexExactlyOnce) {
  for (const int threads : {1, 2, 3, 5, 8}) {
    set_num_threads(threads);
    EXPECT_EQ(num_threads(), threads);
    for (const index_t n : {0, 1, 2, 3, 7, 64, 1001})
      ASSERT_EQ(visits(n), std::vector<int>(static_cast<std::size_t>(n), 1)) << threads << " " << n;
  }
  int calls = 0;
  parallel_for(-3, [&](index_t) { ++calls; });
  EXPECT_EQ(calls, 0);
}

TEST_F(Parallel, SurvivesManyShortLoopsOfChangingLength) {
  // A loop shorter than the pool leaves workers out; the one that follows must find them once.
  set_num_threads(4);
  std::atomic<index_t> sum{0};
  index_t wanted = 0;
  for (int round = 0; round < 500; ++round) {
    const index_t n = 2 + round % 5;
    parallel_for(n, [&](index_t i) { sum.fetch_add(i + 1, std::memory_order_relaxed); });
    wanted += n * (n + 1) / 2;
  }
  EXPECT_EQ(sum.load(), wanted);
}

TEST_F(Parallel, RunsOnAsManyThreadsAsAsked) {
  set_num_threads(3);
  std::vector<std::thread::id> ids(3);
  std::atomic<int> begun{0};
  parallel_for(3, [&](index_t i) {
    ids[static_cast<std::size_t>(i)] = std::this_thread::get_id();
    for (++begun; begun < 3;) std::this_thread::yield();  // nobody can do two
  });
  EXPECT_EQ(ids[0], std::this_thread::get_id());  // index 0 belongs to the caller
  EXPECT_NE(ids[1], ids[0]);
  EXPECT_NE(ids[2], ids[0]);
  EXPECT_NE(ids[2], ids[1]);
}

#if defined(__unix__)
std::atomic<int> held{0};  // 1: a worker is to be held, 2: it is, 0: it may go, or come too late

// As if another program had the worker's core: a signal holds it, between loops.
TEST_F(Parallel, DoesTheShareOfAWorkerThatCannotRun) {
  set_num_threads(3);
  std::vector<pthread_t> threads(3);
  std::atomic<int> begun{0};
  parallel_for(3, [&](index_t i) {
    threads[static_cast<std::size_t>(i)] = pthread_self();
    for (++begun; begun < 3;) std::this_thread::yield();
  });
  struct sigaction hold {
  }, old{};
  hold.sa_handler = [](int) {
    int wanted = 1;
    if (!held.compare_exchange_strong(wanted, 2)) return;
    while (held == 2) usleep(100);
  };
  ASSERT_EQ(sigaction(SIGUSR1, &hold, &old), 0);
  held = 1;
  ASSERT_EQ(pthread_kill(threads[2], SIGUSR1), 0);
  for (int tries = 0; held == 1 && tries < 20000; ++tries) usleep(100);
  const bool holds = held == 2;
  for (int round = 0; holds && round < 100; ++round) EXPECT_EQ(visits(50), std::vector<int>(50, 1));
  held = 0;
  visits(3);
  if (!holds) GTEST_SKIP() << "the signal did not come within two seconds";  // it still may
  sigaction(SIGUSR1, &old, nullptr);
}
#endif

TEST_F(Parallel, DoesWhatIsLeftToAWorkerThatIsSlow) {
  set_num_threads(2);
  for (int round = 0; round < 20; ++round) {
    std::atomic<bool> begun{false};
    std::atomic<int> done{0};
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    const auto wait = [&](auto condition) {
      while (!condition() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
    };
    parallel_for(8, [&](index_t i) {
      if (i == 0) wait([&] { return begun.load(); });
      if (i == 1) {  // 3, 5 and 7 are of the same share
        begun = true;
        wait([&] { return done == 7; });
        EXPECT_EQ(done, 7);
      }
      Scratch<Cpu> scratch;  // in which nobody else writes
      const auto x = scratch.tensor<index_t>(Shape<1>{1000});
      for (index_t& v : std::span(x.data(), 1000)) v = i;
      for (const index_t v : std::span(x.data(), 1000)) ASSERT_EQ(v, i);
      ++done;
    });
    ASSERT_EQ(done, 8);
    if (HasFailure()) return;
  }
}

TEST_F(Parallel, ScratchMemoryBelongsToTheShareWhoeverBeginsIt) {
  set_num_threads(5);  // with fewer cores some threads come late
  std::vector<const float*> first(5), now(5);
  for (int round = 0; round < 300; ++round) {
    parallel_for(5, [&](index_t i) {
      Scratch<Cpu> scratch;
      const auto x = scratch.tensor<float>(Shape<1>{1000});
      now[static_cast<std::size_t>(i)] = x.data();
      for (float& v : std::span(x.data(), 1000)) v = static_cast<float>(i);  // nobody else's
      for (const float v : std::span(x.data(), 1000)) ASSERT_EQ(v, static_cast<float>(i));
    });
    if (round == 0) first = now;
    ASSERT_EQ(now, first) << round;
  }
}

TEST_F(Parallel, RunsANestedLoopOnItsOwnThread) {
  set_num_threads(4);
  std::vector<int> count(4 * 8);
  std::atomic<int> strangers{0};
  parallel_for(4, [&](index_t i) {
    const auto self = std::this_thread::get_id();
    parallel_for(8, [&](index_t j) {
      if (std::this_thread::get_id() != self) ++strangers;
      ++count[static_cast<std::size_t>(i * 8 + j)];
    });
  });
  EXPECT_EQ(count, std::vector<int>(32, 1));
  EXPECT_EQ(strangers, 0);
}

TEST_F(Parallel, ServesTwoCallersAtOnce) {
  set_num_threads(3);
  std::atomic<int> wrong{0};
  auto caller = [&] {
    for (int round = 0; round < 300; ++round) {
      const index_t n = 1 + round % 50;
      if (visits(n) != std::vector<int>(static_cast<std::size_t>(n), 1)) ++wrong;
    }
  };
  std::thread a(caller), b(caller), c([&] {
    for (int round = 0; round < 50; ++round) set_num_threads(1 + round % 4);
  });
  a.join();
  b.join();
  c.join();
  EXPECT_EQ(wrong, 0);
}

TEST_F(Parallel, RethrowsToTheCallerAndGoesOn) {
  for (const int threads : {1, 4}) {
    set_num_threads(threads);
    EXPECT_THAT(
        [] {
          parallel_for(100, [](index_t i) {
            if (i == 37) throw std::runtime_error("index 37 is bad");
          });
        },
        ThrowsMessage<std::runtime_error>("index 37 is bad"));
    EXPECT_EQ(visits(100), std::vector<int>(100, 1));
  }
  // Several throw: the lowest index is the one that is heard, and none of them lingers.
  set_num_threads(4);
  for (int round = 0; round < 20; ++round)
    EXPECT_THAT(
        [] { parallel_for(4, [](index_t i) { throw std::out_of_range(std::to_string(i)); }); },
        ThrowsMessage<std::out_of_range>("0"));
  EXPECT_NO_THROW(visits(4));
  for (int round = 0; round < 100; ++round)
    EXPECT_THAT(
        [] {
          parallel_for(100, [](index_t i) {
            if (i >= 21) throw std::out_of_range(std::to_string(i));
          });
        },
        ThrowsMessage<std::out_of_range>("21"));
}

TEST_F(Parallel, RefusesImpossibleSizes) {
  EXPECT_THAT([] { set_num_threads(0); },
              ThrowsMessage<ValueError>(HasSubstr("threads is 0, expected 1 to 4096")));
  EXPECT_THROW(set_num_threads(-1), ValueError);
  EXPECT_THROW(set_num_threads(5000), ValueError);
  set_num_threads(2);
  EXPECT_THROW(parallel_for(2, [](index_t) { set_num_threads(3); }), ValueError);
  EXPECT_EQ(num_threads(), 2);
}

#if defined(__unix__)
// Exit status of `body`, run in a child made by fork().
template <class Body>
int in_a_child(Body body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 100 + WTERMSIG(status);
}

TEST_F(Parallel, StartsAgainInAForkedChild) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "the thread sanitizer knows no threads in the child of a program that had some";
#endif
  set_num_threads(3);
  visits(100);
  EXPECT_EQ(in_a_child([] {
              if (num_threads() != 3) return 1;
              if (visits(100) != std::vector<int>(100, 1)) return 2;
              set_num_threads(2);
              return visits(100) == std::vector<int>(100, 1) ? 0 : 3;
            }),
            0);
  EXPECT_EQ(visits(100), std::vector<int>(100, 1));  // and the parent's pool is whole
}

// The pool is made once a process, so the environment is read in a process of its own.
int pool_size_with(const char* value) {
  char command[512];
  const ssize_t n = readlink("/proc/self/exe", command, sizeof command - 1);
  if (n <= 0) return -1;
  command[n] = '\0';
  return in_a_child([&] {
    setenv("RAPT_NUM_THREADS", value, 1);
    setenv("RAPT_TEST_PRINT_POOL", "1", 1);
    execl(command, command, "--gtest_filter=PoolSize.*", "--gtest_brief=1", nullptr);
    return 99;
  });
}

TEST(PoolSize, IsReportedAsTheExitStatus) {
  if (std::getenv("RAPT_TEST_PRINT_POOL") == nullptr) GTEST_SKIP() << "runs inside the test below";
  _exit(num_threads());
}

TEST(Environment, SetsThePoolsSize) {
#if defined(__linux__)
  EXPECT_EQ(pool_size_with("5"), 5);
  EXPECT_EQ(pool_size_with("1"), 1);
  const int cores = pool_size_with("");
  EXPECT_GE(cores, 1);
  EXPECT_EQ(pool_size_with("many"), cores);
  EXPECT_EQ(pool_size_with("-2"), cores);
  EXPECT_EQ(pool_size_with("3x"), cores);
#endif
}
#endif

}  // namespace rapt::test
