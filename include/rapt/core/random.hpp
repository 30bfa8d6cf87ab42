// Philox4x32-10: random numbers as a function of (seed, counter), the same on every machine.
//
// Ten rounds of two 32 x 32 -> 64 bit products turn a 128-bit counter and a 64-bit key into four
// random words. The state is the counter alone, so a run resumes exactly from {seed, position}, and
// skipping ahead costs nothing.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
// Words agree with the Random123 library (known answers in tests/core/random_test.cpp).
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "rapt/core/convert.hpp"
#include "rapt/core/dtype.hpp"
#include "rapt/core/tensor.hpp"

namespace rapt {

class Philox {
 public:
  using result_type = std::uint32_t;  // a UniformRandomBitGenerator, for std::shuffle and friends

  /// Everything that the generator is: the key and how many words were drawn.
  struct State {
    std::uint64_t seed = 0, position = 0;
    friend bool operator==(const State&, const State&) = default;
  };

  explicit Philox(std::uint64_t seed = 0) : state_{seed, 0} {}

  static constexpr result_type min() { return 0; }
  static constexpr result_type max() { return 0xFFFFFFFFu; }

  result_type operator()() {
    const std::uint64_t block = state_.position / 4;
    if (!cached_ || block != cached_block_) {
      words_ = block_of(state_.seed, block);
      cached_block_ = block;
      cached_ = true;
    }
    return words_[state_.position++ % 4];
  }

  /// Uniform in [0, 1), 53 random bits.
  double uniform() {
    const std::uint64_t high = (*this)(), low = (*this)();
    return static_cast<double>((high << 21) ^ (low >> 11)) * 0x1p-53;
  }

  /// Standard normal, Box-Muller; two words pairs a number, so the position stays a plain count.
  double normal() {
    const double u = 1.0 - uniform(), v = uniform();  // u in (0, 1]: its logarithm is finite
    return std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586476925 * v);
  }

  /// Uniform in [0, n), n >= 1, without bias.
  std::uint64_t below(std::uint64_t n) {
    const std::uint64_t limit = ~std::uint64_t{0} - (~std::uint64_t{0} % n + 1) % n;
    for (;;) {
      const std::uint64_t high = (*this)(), word = (high << 32) | (*this)();
      if (word <= limit) return word % n;
    }
  }

  State state() const { return state_; }
  void set_state(State state) {
    state_ = state;
    cached_ = false;
  }

  /// The four words of one counter value.
  static std::array<std::uint32_t, 4> block_of(std::uint64_t seed, std::uint64_t counter) {
    return rounds(
        {static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32), 0, 0},
        {static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)});
  }

  static std::array<std::uint32_t, 4> rounds(std::array<std::uint32_t, 4> c,
                                             std::array<std::uint32_t, 2> key) {
    for (int round = 0; round < 10; ++round) {
      const std::uint64_t p0 = std::uint64_t{0xD2511F53u} * c[0];
      const std::uint64_t p1 = std::uint64_t{0xCD9E8D57u} * c[2];
      c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ key[0], static_cast<std::uint32_t>(p1),
           static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ key[1], static_cast<std::uint32_t>(p0)};
      key[0] += 0x9E3779B9u;
      key[1] += 0xBB67AE85u;
    }
    return c;
  }

 private:
  State state_;
  std::array<std::uint32_t, 4> words_{};
  std::uint64_t cached_block_ = 0;
  bool cached_ = false;
};

namespace detail {

/// Fills in row-major order on the host, whatever the backend: a seed gives one tensor everywhere.
template <class X, class Draw>
void fill_from(X&& x, Draw draw) {
  auto view = as_view(x);
  using T = element_t<X>;
  Tensor<T, rank_v<X>> host = Tensor<T, rank_v<X>>::uninitialized(view.shape());
  for (index_t i = 0; i < host.size(); ++i) host.data()[i] = convert<T>(draw());
  copy(view, host);
}

}  // namespace detail

/// x = mean-zero normal numbers of the given standard deviation, in row-major order.
template <class X>
void fill_normal(X&& x, Philox& random, double stddev = 1.0) {
  detail::fill_from(x, [&] { return static_cast<float>(stddev * random.normal()); });
}

/// x uniform in [low, high), in row-major order.
template <class X>
void fill_uniform(X&& x, Philox& random, double low = 0.0, double high = 1.0) {
  detail::fill_from(x, [&] { return static_cast<float>(low + (high - low) * random.uniform()); });
}

/// x = value everywhere.
template <class X>
void fill(X&& x, double value) {
  detail::fill_from(x, [&] { return value; });
}

}  // namespace rapt
