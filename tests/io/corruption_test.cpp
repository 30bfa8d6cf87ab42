// Hostile files: every parser is fed 10,000 seeded corruptions of a good file. It may refuse them
// with one of its own errors or read them; it may not crash, read outside the bytes (the address
// sanitizer's preset watches), or allocate more than a small multiple of the file.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "io_support.hpp"
#include "rapt/io/gguf_config.hpp"
#include "rapt/io/read_config.hpp"
#include "rapt/io/safetensors.hpp"

namespace {
// All allocations of this program pass here.
constexpr std::size_t kLargestAllocation = std::size_t{64} << 20;
std::size_t largest_allocation = 0;

void* counted_allocation(std::size_t bytes) {
  largest_allocation = std::max(largest_allocation, bytes);
  if (bytes > kLargestAllocation) throw std::bad_alloc();
  if (void* p = std::malloc(bytes ? bytes : 1)) return p;
  throw std::bad_alloc();
}
}  // namespace

// Never inlined: g++ 12 would see std::free meet operator new and warn.
[[gnu::noinline]] void* operator new(std::size_t bytes) { return counted_allocation(bytes); }
[[gnu::noinline]] void* operator new[](std::size_t bytes) { return counted_allocation(bytes); }
[[gnu::noinline]] void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept {
  largest_allocation = std::max(largest_allocation, bytes);
  return std::malloc(bytes ? bytes : 1);
}
[[gnu::noinline]] void* operator new[](std::size_t bytes, const std::nothrow_t& tag) noexcept {
  return operator new(bytes, tag);
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

namespace rapt::test {
namespace {

constexpr int kCorruptions = 10000;

class Corruptor {
 public:
  explicit Corruptor(std::uint64_t seed) : random_(seed) {}

  std::vector<std::byte> corrupt(std::span<const std::byte> good) {
    std::vector<std::byte> bytes(good.begin(), good.end());
    const int changes = 1 + static_cast<int>(below(3));
    for (int i = 0; i < changes && !bytes.empty(); ++i) change(bytes);
    return bytes;
  }

  /// JSON with one value replaced, which keeps it well-formed more often than bytes would.
  std::string corrupt_json(const std::string& good) {
    static const char* const kValues[] = {"null",
                                          "true",
                                          "-1",
                                          "0",
                                          "0.5",
                                          "1e999",
                                          "-0",
                                          "18446744073709551615",
                                          "9223372036854775808",
                                          "4294967296",
                                          "2147483647",
                                          "\"\"",
                                          "\"x\"",
                                          "[]",
                                          "{}",
                                          "[[[]]]",
                                          "[1,2,3]",
                                          "1e-400",
                                          "\"\\ud800\"",
                                          "\"\\u0000\"",
                                          "99999999999999999999999999"};
    if (below(2) == 0) {
      const auto bytes = corrupt(as_bytes(good));
      return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
    }
    std::string text = good;
    const std::size_t start = text.find_first_of(":,[", below(text.size()));
    if (start == std::string::npos) return text.substr(0, below(text.size()));
    const std::size_t end = text.find_first_of(",]}", start + 1);
    if (end == std::string::npos) return text;
    return text.replace(start + 1, end - start - 1, kValues[below(std::size(kValues))]);
  }

 private:
  std::size_t below(std::size_t n) { return n == 0 ? 0 : random_() % n; }

  void change(std::vector<std::byte>& bytes) {
    static constexpr std::uint64_t kNumbers[] = {0,          1,           0xff,       0x7fffffff,
                                                 0xffffffff, 0x100000000, INT64_MAX,  UINT64_MAX,
                                                 1ull << 62, 1ull << 61,  1ull << 40, 32};
    const std::size_t at = below(bytes.size());
    switch (below(7)) {
      case 0:  // one bit
        bytes[at] ^= static_cast<std::byte>(1u << below(8));
        break;
      case 1:  // one byte
        bytes[at] = static_cast<std::byte>(random_());
        break;
      case 2: {  // a number of eight or four bytes
        const std::uint64_t number =
            below(4) == 0 ? random_() : kNumbers[below(std::size(kNumbers))];
        const std::size_t size = std::min<std::size_t>(below(2) ? 8 : 4, bytes.size() - at);
        std::memcpy(bytes.data() + at, &number, size);
        break;
      }
      case 3:  // cut short
        bytes.resize(at);
        break;
      case 4: {  // a piece is missing
        const std::size_t n = 1 + below(std::min<std::size_t>(32, bytes.size() - at));
        bytes.erase(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                    bytes.begin() + static_cast<std::ptrdiff_t>(std::min(at + n, bytes.size())));
        break;
      }
      case 5: {  // a piece is doubled
        const std::size_t n = std::min<std::size_t>(1 + below(64), bytes.size() - at);
        const std::vector<std::byte> piece(bytes.begin() + static_cast<std::ptrdiff_t>(at),
                                           bytes.begin() + static_cast<std::ptrdiff_t>(at + n));
        bytes.insert(bytes.begin() + static_cast<std::ptrdiff_t>(at), piece.begin(), piece.end());
        break;
      }
      default: {  // a piece is copied elsewhere
        const std::size_t to = below(bytes.size());
        const std::size_t n = std::min(1 + below(32), bytes.size() - std::max(at, to));
        std::memmove(bytes.data() + to, bytes.data() + at, n);
        break;
      }
    }
  }

  std::mt19937_64 random_;
};

/// Counts what happened; anything but rapt's own errors fails the test.
struct Outcome {
  int read = 0, refused = 0;

  template <class F>
  void run(int seed, F f) {
    largest_allocation = 0;
    try {
      f();
      ++read;
    } catch (const FormatError&) {
      ++refused;
    } catch (const std::exception& error) {
      ADD_FAILURE() << "seed " << seed << ": " << error.what();
    }
    ASSERT_LE(largest_allocation, kLargestAllocation) << "seed " << seed;
  }
  void check() const {
    EXPECT_EQ(read + refused, kCorruptions);
    EXPECT_GT(refused, kCorruptions / 10) << "the corruptions reach the checks";
    EXPECT_GT(read, 0) << "and some are harmless, so reading is tested too";
  }
};

template <class File>
void read_everything(const File& file) {
  std::vector<float> values;
  for (const std::string& name : file.names()) {
    const TensorInfo& info = file.info(name);
    ASSERT_LE(static_cast<std::size_t>(info.elements()), 4 * info.bytes.size()) << name;
    values.resize(static_cast<std::size_t>(info.elements()));
    try {
      file.read(name, std::span<float>(values));
    } catch (const FormatError&) {  // a type that cannot be read
    }
  }
}

TEST(Corruption, Safetensors) {
  const std::string header =
      R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
      R"("b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},)"
      R"("c":{"dtype":"I64","shape":[],"data_offsets":[32,40]}})";
  Bytes good;
  good.put(std::uint64_t{header.size()}).text(header);
  for (int i = 0; i < 40; ++i) good.put(static_cast<std::uint8_t>(i));
  read_everything(SafetensorsFile::from_bytes(good.span(), "f"));

  Outcome outcome;
  for (int seed = 0; seed < kCorruptions; ++seed) {
    Corruptor corruptor(static_cast<std::uint64_t>(seed));
    std::vector<std::byte> bytes;
    if (seed % 2 == 0) {
      bytes = corruptor.corrupt(good.span());
    } else {  // the header alone, with the length that belongs to it
      const std::string text = corruptor.corrupt_json(header);
      Bytes built;
      built.put(std::uint64_t{text.size()}).text(text);
      built.data().insert(built.data().end(), good.span().end() - 40, good.span().end());
      bytes = built.data();
    }
    outcome.run(seed, [&] { read_everything(SafetensorsFile::from_bytes(bytes, "f")); });
  }
  outcome.check();
}

TEST(Corruption, SafetensorsIndex) {
  const std::string good =
      R"({"metadata":{"total_size":1234,"nested":{"a":[1,2.5,null,true]}},"weight_map":{)"
      R"("model.a.weight":"model-00001-of-00002.safetensors",)"
      R"("model.b\u00fc.weight":"model-00002-of-00002.safetensors"}})";
  ASSERT_EQ(parse_safetensors_index(good, "f").size(), 2u);
  Outcome outcome;
  for (int seed = 0; seed < kCorruptions; ++seed) {
    Corruptor corruptor(static_cast<std::uint64_t>(seed));
    const std::string text = corruptor.corrupt_json(good);
    outcome.run(seed, [&] { parse_safetensors_index(text, "f"); });
  }
  outcome.check();
}

TEST(Corruption, Gguf) {
  GgufBuilder builder;
  Bytes nested;
  nested.put(std::uint32_t{9}).put(std::uint32_t{9}).put(std::uint64_t{1});
  nested.put(std::uint32_t{6}).put(std::uint64_t{2}).put(1.f).put(2.f);
  builder.string("general.architecture", "llama")
      .u32("general.alignment", 32)
      .u32("llama.block_count", 1)
      .u32("llama.embedding_length", 32)
      .u32("llama.attention.head_count", 2)
      .u32("llama.feed_forward_length", 32)
      .u32("llama.context_length", 64)
      .f32("llama.attention.layer_norm_rms_epsilon", 1e-5f)
      .strings("tokenizer.ggml.tokens", {"a", "bc", "", "d"})
      .raw_entry("nested", nested)
      .u32("tokenizer.ggml.eos_token_id", 2);
  builder.f32_tensor("token_embd.weight", {32, 4}, std::vector<float>(128, 0.5f))
      .tensor("blk.0.attn_q.weight", {32, 4}, 8, std::vector<std::byte>(136, std::byte{1}))
      .tensor("blk.0.ffn_up.weight", {256}, 14, std::vector<std::byte>(210, std::byte{2}))
      .tensor("blk.0.ffn_down.weight", {32}, 3, std::vector<std::byte>(20, std::byte{3}));
  const Bytes good = builder.build();
  const auto read = [](std::span<const std::byte> bytes) {
    const GgufFile file = GgufFile::from_bytes(bytes, "f");
    read_everything(file);
    for (const std::string& key : file.keys()) {
      const GgufValue& value = file.value(key);
      if (!value.is_array()) continue;
      try {
        if (value.element_type() == GgufType::string)
          value.strings();
        else
          value.numbers();
      } catch (const FormatError&) {  // nested, or bools
      }
    }
    model_config_from_gguf(file);
  };
  read(good.span());

  Outcome outcome;
  const std::size_t head = 800;  // most corruptions belong where the structure is
  for (int seed = 0; seed < kCorruptions; ++seed) {
    Corruptor corruptor(static_cast<std::uint64_t>(seed));
    std::vector<std::byte> bytes;
    if (seed % 4 == 0) {
      bytes = corruptor.corrupt(good.span());
    } else {
      bytes = corruptor.corrupt(good.span().first(head));
      bytes.insert(bytes.end(), good.span().begin() + head, good.span().end());
    }
    outcome.run(seed, [&] { read(bytes); });
  }
  outcome.check();
}

TEST(Corruption, Config) {
  const std::string good =
      R"({"model_type":"gemma3_text","vocab_size":80,"hidden_size":32,"num_hidden_layers":4,)"
      R"("num_attention_heads":4,"num_key_value_heads":2,"head_dim":16,"intermediate_size":64,)"
      R"("max_position_embeddings":256,"rms_norm_eps":1e-06,"hidden_activation":"gelu_pytorch_tanh",)"
      R"("layer_types":["sliding_attention","full_attention","sliding_attention","full_attention"],)"
      R"("query_pre_attn_scalar":16,"sliding_window":5,"eos_token_id":[1,106],"bos_token_id":2,)"
      R"("rope_parameters":{"full_attention":{"factor":8.0,"rope_theta":1000000.0,"rope_type":"linear"},)"
      R"("sliding_attention":{"rope_theta":10000.0,"rope_type":"default"}},)"
      R"("attn_logit_softcapping":null,"tie_word_embeddings":true,"dtype":"bfloat16"})";
  parse_model_config(good, "f");
  Outcome outcome;
  for (int seed = 0; seed < kCorruptions; ++seed) {
    Corruptor corruptor(static_cast<std::uint64_t>(seed));
    const std::string text = corruptor.corrupt_json(good);
    outcome.run(seed, [&] { parse_model_config(text, "f"); });
  }
  outcome.check();
}

}  // namespace
}  // namespace rapt::test
