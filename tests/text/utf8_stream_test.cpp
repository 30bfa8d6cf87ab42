#include "rapt/text/utf8_stream.hpp"

#include <gmock/gmock.h>

#include "rapt/core/random.hpp"

namespace rapt::test {
namespace {

/// Everything the stream gives for `bytes` cut at random.
std::string streamed(std::string_view bytes, const std::vector<std::string>& stops,
                     Philox& random) {
  Utf8Stream stream(stops);
  std::string out;
  while (!bytes.empty()) {
    const std::size_t n = std::min<std::size_t>(bytes.size(), 1 + random.below(5));
    const std::string part = stream.push(bytes.substr(0, n));
    EXPECT_EQ(detail::valid_prefix(part), part.size());
    out += part;
    bytes.remove_prefix(n);
  }
  return out + stream.finish();
}

TEST(Utf8Stream, NeverPrintsHalfACharacter) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.push("\x91"), "");
  EXPECT_EQ(stream.push("\x8D!"), "\xF0\x9F\x91\x8D!");
  EXPECT_EQ(stream.push("\xE2\x82"), "");
  EXPECT_EQ(stream.push("x"), "\xEF\xBF\xBDx");  // it will not become one any more
  EXPECT_EQ(stream.push("\xC3"), "");
  EXPECT_EQ(stream.finish(), "\xEF\xBF\xBD");
}

TEST(Utf8Stream, HoldsBackWhatMayBecomeAStopString) {
  Utf8Stream stream({"\nUser:"});
  EXPECT_EQ(stream.push("Hi\nUs"), "Hi");
  EXPECT_EQ(stream.push("age\nUser"), "\nUsage");
  EXPECT_FALSE(stream.stopped());
  EXPECT_EQ(stream.push(": more"), "");
  EXPECT_TRUE(stream.stopped());
  EXPECT_EQ(stream.push("more"), "");
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, GivesTheSameTextHoweverItIsCut) {
  Philox random(11);
  for (int round = 0; round < 2000; ++round) {
    std::string bytes;
    for (std::uint64_t n = random.below(40); n > 0; --n)
      bytes += random.below(2) ? std::string(1, static_cast<char>(random.below(256)))
                               : std::string("\xE2\x82\xAC");
    EXPECT_EQ(streamed(bytes, {}, random), to_valid_utf8(bytes));
  }
}

TEST(Utf8Stream, StopsAtTheStringThatIsCompleteFirstHoweverItIsCut) {
  Philox random(12);
  const std::vector<std::string> stops = {"abc", "bb", "cabba", "c\xE2\x82\xAC"};
  for (int round = 0; round < 3000; ++round) {
    std::string bytes;
    for (std::uint64_t n = random.below(30); n > 0; --n)
      bytes +=
          random.below(9) ? std::string(1, "abcd"[random.below(4)]) : std::string("\xE2\x82\xAC");
    // Oracle: the shortest beginning of the text that ends with a stop string.
    std::string want = bytes;
    for (std::size_t end = 1; end <= bytes.size() && want == bytes; ++end) {
      std::size_t longest = 0;
      for (const auto& stop : stops)
        if (std::string_view(bytes).substr(0, end).ends_with(stop))
          longest = std::max(longest, stop.size());
      if (longest > 0) {
        want = bytes.substr(0, end - longest);
        break;
      }
    }
    EXPECT_EQ(streamed(bytes, stops, random), want) << bytes;
  }
}

TEST(Utf8Stream, RefusesAnEmptyStopString) { EXPECT_THROW(Utf8Stream({""}), ValueError); }

TEST(ToValidUtf8, CutsInvalidBytesAsPythonDoes) {
  EXPECT_EQ(to_valid_utf8("\xED\xA0\x80"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD");  // a surrogate
  EXPECT_EQ(to_valid_utf8("\xF0\x9F\x91z"), "\xEF\xBF\xBDz");
  EXPECT_EQ(to_valid_utf8("\xC0\xAF"), "\xEF\xBF\xBD\xEF\xBF\xBD");
  EXPECT_EQ(to_valid_utf8("\xF4\x90\x80\x80").size(), 12u);
  EXPECT_EQ(to_valid_utf8(std::string_view("a\0b", 3)), std::string_view("a\0b", 3));
}

TEST(ByteAlphabet, IsABijection) {
  std::string all;
  for (int b = 0; b < 256; ++b) all += static_cast<char>(b);
  std::string back;
  EXPECT_TRUE(detail::from_byte_alphabet(detail::to_byte_alphabet(all), back));
  EXPECT_EQ(back, all);
  EXPECT_EQ(detail::to_byte_alphabet(" "),
            "\xC4\xA0");  // the G with a dot of every vocabulary file
  EXPECT_FALSE(detail::from_byte_alphabet("a b", back));
}

}  // namespace
}  // namespace rapt::test
