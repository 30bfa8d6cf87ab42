// Quads for any machine: 16 bytes as an array, one loop an operation.
// Included by cpu/int8.hpp alone, which documents the operations.
#pragma once

namespace rapt::cpu {
inline namespace RAPT_SIMD {

struct Quads {
  static constexpr int kLanes = Vec<float>::kLanes;
  typedef std::uint8_t Bytes __attribute__((vector_size(16)));
  typedef std::uint16_t Words __attribute__((vector_size(16)));
  typedef std::int32_t Lanes __attribute__((vector_size(16)));
  Bytes v;

  static Quads zero() { return {Bytes{}}; }
  static Quads bytes(int x) { return {Bytes{} + static_cast<std::uint8_t>(x)}; }
  static Quads load(const void* p) {
    Quads r;
    std::memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  void store(void* p) const { std::memcpy(p, &v, sizeof v); }
  static Quads broadcast(const void* p) {
    std::int32_t four;
    std::memcpy(&four, p, sizeof four);
    return {reinterpret_cast<Bytes>(Lanes{} + four)};
  }
  template <int n>
  Quads right() const {
    return {reinterpret_cast<Bytes>(reinterpret_cast<Words>(v) >> n)};
  }
  template <int n>
  Quads left() const {
    return {reinterpret_cast<Bytes>(reinterpret_cast<Words>(v) << n)};
  }
  friend Quads operator&(Quads a, Quads b) { return {a.v & b.v}; }
  friend Quads operator|(Quads a, Quads b) { return {a.v | b.v}; }

  // On words and lanes, not on bytes: the even bytes of every word, then the odd ones.
  friend Quads dot(Quads s, Quads c, Quads x) { return dot_wide(s, c, x); }
  friend Quads dot_wide(Quads s, Quads c, Quads x) {
    typedef std::int16_t Pairs __attribute__((vector_size(16)));
    const Words cw = reinterpret_cast<Words>(c.v);
    const Pairs xw = reinterpret_cast<Pairs>(x.v);
    const Lanes even_c = reinterpret_cast<Lanes>(cw & 0xff),
                odd_c = reinterpret_cast<Lanes>(cw >> 8);
    const Lanes even_x = reinterpret_cast<Lanes>((xw << 8) >> 8),
                odd_x = reinterpret_cast<Lanes>(xw >> 8);
    // Each product of a word is below 2^15.1: it is summed in 32 bits, low word and high word.
    const auto sum = [](Lanes a, Lanes b) {
      return (a & 0xffff) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
    };
    return {reinterpret_cast<Bytes>(reinterpret_cast<Lanes>(s.v) + sum(even_c, even_x) +
                                    sum(odd_c, odd_x))};
  }

  friend Quads add(Quads a, Quads b) {
    return {reinterpret_cast<Bytes>(reinterpret_cast<Lanes>(a.v) + reinterpret_cast<Lanes>(b.v))};
  }
  friend Vec<float> to_float(Quads a) {
    const Lanes lanes = reinterpret_cast<Lanes>(a.v);
    Vec<float> r;
    for (int i = 0; i < kLanes; ++i) r.v[i] = static_cast<float>(lanes[i]);
    return r;
  }
};

inline Vec<float> unsigned_lanes(const std::uint8_t* p) {
  Vec<float> r;
  for (int i = 0; i < Vec<float>::kLanes; ++i) r.v[i] = static_cast<float>(p[i]);
  return r;
}
inline Vec<float> signed_lanes(const std::uint8_t* p) {
  Vec<float> r;
  for (int i = 0; i < Vec<float>::kLanes; ++i)
    r.v[i] = static_cast<float>(static_cast<std::int8_t>(p[i]));
  return r;
}
inline void store_int8(std::int8_t* p, Vec<float> v) {
  const Vec<float> whole = round(v);
  for (int i = 0; i < Vec<float>::kLanes; ++i) p[i] = static_cast<std::int8_t>(whole.v[i]);
}

}  // namespace RAPT_SIMD
}  // namespace rapt::cpu
