// The emulator on kernels written to go wrong: what it promises in emulator.hpp it must find.
#include "support/cuda_on_host/emulator.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {
namespace {

using cuda_on_host::Options;
using cuda_on_host::WithOptions;
using testing::AllOf;
using testing::HasSubstr;
using testing::ThrowsMessage;

__global__ void write_indices(int* out) {
  out[block_index() * block_size() + thread_index()] =
      static_cast<int>(block_index()) * 1000 + thread_index();
}

TEST(Emulator, RunsEveryThreadOfEveryBlockOnce) {
  std::vector<int> out(3 * 64, -1);
  launch("write_indices", write_indices, {3, 64}, Cuda{}, out.data());
  for (int block = 0; block < 3; ++block)
    for (int thread = 0; thread < 64; ++thread)
      EXPECT_EQ(out[static_cast<std::size_t>(block * 64 + thread)], block * 1000 + thread);
}

__global__ void shuffles(int* of_neighbour, int* of_seven, unsigned* odd) {
  const int t = thread_index();
  of_neighbour[t] = shuffle_xor(t, 1);
  of_seven[t] = shuffle(10 * t, 7);
  odd[t] = ballot(t % 2 == 1);
}

TEST(Emulator, ShufflesStayInsideTheWarp) {
  std::vector<int> neighbour(64), seven(64);
  std::vector<unsigned> odd(64);
  launch("shuffles", shuffles, {1, 64}, Cuda{}, neighbour.data(), seven.data(), odd.data());
  for (std::size_t t = 0; t < 64; ++t) {
    EXPECT_EQ(neighbour[t], static_cast<int>(t ^ 1));
    EXPECT_EQ(seven[t], t < 32 ? 70 : 390);
    EXPECT_EQ(odd[t], 0xaaaaaaaau);
  }
}

__global__ void sum_kernel(const double* x, double* sum, double* most) {
  const double value = x[thread_index()];
  const double s = block_sum(value), m = block_max(value);
  sum[thread_index()] = s;
  most[thread_index()] = m;
}

TEST(Emulator, BlockReductionsReachEveryThread) {
  std::vector<double> x(96), sum(96), most(96);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<double>(i % 7) - 3;
  double want = 0;
  for (const double value : x) want += value;
  launch("sum_kernel", sum_kernel, {1, 96, kReduceBytes<double>}, Cuda{}, x.data(), sum.data(),
         most.data());
  for (std::size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(sum[i], want);
    EXPECT_EQ(most[i], 3);
  }
}

__global__ void note_order(std::vector<int>* order, index_t) {
  block_barrier();
  order->push_back(static_cast<int>(block_index()) * 100 + thread_index());
}

std::vector<int> order_under(std::uint64_t seed) {
  const WithOptions options({.seed = seed});
  std::vector<int> order;
  launch("note_order", note_order, {3, 32}, Cuda{}, &order, 0);
  return order;
}

TEST(Emulator, ASeedFixesTheOrderOfThreadsAndBlocks) {
  std::set<std::vector<int>> orders;
  for (std::uint64_t seed = 1; seed <= 8; ++seed) {
    EXPECT_EQ(order_under(seed), order_under(seed));
    orders.insert(order_under(seed));
  }
  EXPECT_EQ(orders.size(), 8u);
}

__global__ void half_of_the_block_waits() {
  if (thread_index() < 32) block_barrier();
}
__global__ void two_barriers() {
  if (thread_index() < 32)
    block_barrier();
  else
    block_barrier();
}
__global__ void some_lanes_shuffle(int* out) {
  if (thread_index() % 2 == 0) out[thread_index()] = shuffle_xor(1, 2);
}
__global__ void lanes_meet_differently(int* out) {
  out[thread_index()] = thread_index() == 3 ? static_cast<int>(ballot(true)) : shuffle_xor(1, 2);
}

TEST(Emulator, NamesBarrierDivergence) {
  EXPECT_THAT(
      [] {
        launch("half", half_of_the_block_waits, {1, 64}, Cuda{});
      },
      ThrowsMessage<DeviceError>(
          AllOf(HasSubstr("half of 1 blocks of 64 threads"), HasSubstr("block 0"),
                HasSubstr("and 31 more waits at block_barrier (emulator_test.cpp:"),
                HasSubstr("and 31 more returned"))));
  EXPECT_THAT(
      [] {
        launch("two", two_barriers, {1, 64}, Cuda{});
      },
      ThrowsMessage<DeviceError>(HasSubstr("waits at another")));
}

TEST(Emulator, NamesWarpDivergence) {
  std::vector<int> out(32);
  EXPECT_THAT(
      [&] {
        launch("some", some_lanes_shuffle, {1, 32}, Cuda{}, out.data());
      },
      ThrowsMessage<DeviceError>(AllOf(HasSubstr("waits at shuffle_xor"), HasSubstr("returned"))));
  EXPECT_THAT(
      [&] {
        launch("differ", lanes_meet_differently, {1, 32}, Cuda{}, out.data());
      },
      ThrowsMessage<DeviceError>(HasSubstr("divergence: at ")));
}

/// Reverses a block's numbers through shared memory.
__global__ void reverse(const int* in, int* out) {
  const Shared<int> tile = shared<int>();
  tile[thread_index()] = in[thread_index()];
  block_barrier();
  out[thread_index()] = tile[block_size() - 1 - thread_index()];
}
std::vector<int> reversed(const Options& options) {
  const WithOptions changed(options);
  std::vector<int> in(64), out(64);
  for (int i = 0; i < 64; ++i) in[static_cast<std::size_t>(i)] = i;
  launch("reverse", reverse, {1, 64, 64 * 4}, Cuda{}, in.data(), out.data());
  return out;
}

TEST(Emulator, AMissingBarrierIsReported) {
  const auto right = reversed({});
  for (std::size_t i = 0; i < 64; ++i) EXPECT_EQ(right[i], 63 - static_cast<int>(i));
  for (std::uint64_t seed = 1; seed <= 20; ++seed)
    EXPECT_THROW(reversed({.seed = seed, .skipped_barrier = 0}), DeviceError) << "seed " << seed;
}

TEST(Emulator, AMissingBarrierChangesTheResultEvenWhereNobodyLooksForRaces) {
  for (std::uint64_t seed = 1; seed <= 20; ++seed)
    EXPECT_NE(reversed({.seed = seed, .skipped_barrier = 0, .checks_shared = false}), reversed({}))
        << "seed " << seed;
}

__global__ void racy_write(int* out) {
  const Shared<int> tile = shared<int>();
  tile[0] = thread_index();
  block_barrier();
  out[thread_index()] = tile[0];
}
__global__ void warp_ordered(int* out) {
  const Shared<int> tile = shared<int>();
  tile[thread_index()] = thread_index();
  warp_barrier();
  out[thread_index()] = tile[thread_index() ^ 1];
}
__global__ void shuffle_is_no_barrier(int* out) {
  const Shared<int> tile = shared<int>();
  tile[thread_index()] = shuffle_xor(thread_index(), 1);
  out[thread_index()] = shuffle_xor(0, 1) + tile[thread_index() ^ 1];
}
__global__ void reads_first(int* out) { out[thread_index()] = shared<int>()[thread_index()]; }
__global__ void reads_outside(int* out) { out[thread_index()] = shared<int>()[64]; }

TEST(Emulator, SharedMemoryIsWatched) {
  std::vector<int> out(64);
  const auto with = [&](void (*kernel)(int*)) {
    return [&out, kernel] { launch("kernel", kernel, {1, 64, 256}, Cuda{}, out.data()); };
  };
  EXPECT_THAT(with(racy_write),
              ThrowsMessage<DeviceError>(HasSubstr("race on shared memory, byte 0: writes what")));
  EXPECT_NO_THROW(with(warp_ordered)());
  EXPECT_THAT(with(shuffle_is_no_barrier),
              ThrowsMessage<DeviceError>(HasSubstr("race on shared memory")));
  EXPECT_THAT(with(reads_first),
              ThrowsMessage<DeviceError>(HasSubstr("is read before it is written")));
  EXPECT_THAT(with(reads_outside),
              ThrowsMessage<DeviceError>(HasSubstr("bytes [256, 260) are touched, of 256")));
}

__global__ void throws_error() { throw ValueError("a view was cut wrongly"); }

TEST(Emulator, RefusesWhatAGpuRefuses) {
  EXPECT_THAT(
      [] {
        launch("odd", throws_error, {1, 33}, Cuda{});
      },
      ThrowsMessage<DeviceError>(HasSubstr("odd of 1 blocks of 33 threads")));
  EXPECT_THROW(launch("big", throws_error, {1, 2048}, Cuda{}), DeviceError);
  EXPECT_NO_THROW(launch("none", throws_error, {0, 32}, Cuda{}));
  EXPECT_THAT(
      [] {
        launch("throws", throws_error, {1, 32}, Cuda{});
      },
      ThrowsMessage<DeviceError>(HasSubstr("a view was cut wrongly")));
  EXPECT_THAT(
      [] {
        launch("elsewhere", throws_error, {1, 32}, Cuda{.device = 3});
      },
      ThrowsMessage<DeviceError>(HasSubstr("this machine has 1 CUDA devices")));
}

}  // namespace
}  // namespace rapt::cuda
