// The megabyte of mixed Unicode that make_reference.py makes, and its hash of ids: the same words,
// the same blocks, the same draws.
#pragma once

#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <span>
#include <string>
#include <string_view>

#include "rapt/text/unicode.hpp"

namespace rapt::test {

inline constexpr int kReferenceLines = 1024;

inline std::string reference_line(int number) {
  static constexpr std::string_view words[] = {" ",
                                               " ",
                                               "  ",
                                               "    ",
                                               "\012",
                                               "\012\012",
                                               "\015\012",
                                               "\011",
                                               " \012",
                                               "\302\240",
                                               " the",
                                               " of",
                                               "The",
                                               " and",
                                               "ing",
                                               " house",
                                               "'s",
                                               "'ll",
                                               "'RE",
                                               "don't",
                                               " I'm",
                                               "1",
                                               "42",
                                               "1234567",
                                               " 3.14",
                                               "://",
                                               "...",
                                               " == ",
                                               "--",
                                               "(x)",
                                               "{}",
                                               "\"",
                                               "\342\200\231s",
                                               "\303\251",
                                               "e\314\201",
                                               "\357\254\201",
                                               "\304\260",
                                               "\303\237",
                                               "\316\224\316\243",
                                               "\341\272\233\314\243",
                                               "\305\277",
                                               "\341\240\216",
                                               "\342\200\213",
                                               "\342\226\201",
                                               "\302\275",
                                               "\342\221\240",
                                               "\344\270\255\346\226\207",
                                               "\346\227\245\346\234\254\350\252\236",
                                               "\355\225\234\352\265\255\354\226\264",
                                               "\360\237\221\215\360\237\217\275",
                                               "\360\237\221\250\342\200\215\360\237\221\251",
                                               "\001",
                                               "\177",
                                               "\302\205",
                                               "<s>",
                                               "</s>",
                                               "<|end|>",
                                               "[MASK]",
                                               "<unk>",
                                               "aaaaaaaaaaaaaaaaaaaaaaaa"};
  static constexpr std::array<std::uint32_t, 2> blocks[] = {
      {0x20, 0x7e},     {0x61, 0x7a},     {0x61, 0x7a},       {0x41, 0x5a},     {0x30, 0x39},
      {0xa1, 0x17f},    {0x391, 0x3c9},   {0x410, 0x44f},     {0x5d0, 0x5ea},   {0x621, 0x64a},
      {0x905, 0x939},   {0xe01, 0xe3a},   {0x2000, 0x2063},   {0x3041, 0x3096}, {0x30a1, 0x30fa},
      {0x4e00, 0x9fa5}, {0xac00, 0xd7a3}, {0x1f300, 0x1f64f}, {0x300, 0x36f},   {0x1800, 0x180e},
      {0xff01, 0xffbe}, {0x2160, 0x2188}, {0x9, 0xd}};
  auto state = static_cast<std::uint64_t>(number);
  const auto below = [&](std::uint64_t n) {
    state += 0x9E3779B97F4A7C15u;
    std::uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (z ^ (z >> 31)) % n;
  };
  std::string out;
  while (out.size() < 1024) {
    if (below(3) != 0) {
      out += words[below(std::size(words))];
      continue;
    }
    const auto [low, high] = blocks[below(std::size(blocks))];
    for (std::uint64_t n = 1 + below(8); n > 0; --n)
      detail::append_utf8(out, static_cast<char32_t>(low + below(high - low + 1)));
  }
  return out;
}

/// FNV-1a over the ids as 32-bit little-endian words, folded to 32 bits, in hex.
inline std::string hash_ids(std::span<const std::int32_t> ids) {
  std::uint64_t hash = 0xCBF29CE484222325u;
  for (const std::int32_t id : ids)
    for (int shift = 0; shift < 32; shift += 8)
      hash = (hash ^ ((static_cast<std::uint32_t>(id) >> shift) & 0xFF)) * 0x100000001B3u;
  char text[9];
  std::snprintf(text, sizeof text, "%08x",
                static_cast<unsigned>((hash ^ (hash >> 32)) & 0xFFFFFFFF));
  return text;
}

/// tests/text/reference/<name>; tests run in the root of the sources.
inline std::filesystem::path reference_path(const std::string& name) {
  return std::filesystem::path("tests/text/reference") / name;
}

inline std::string read_text(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
}

/// A model file in $RAPT_MODELS or models/; empty where it is not there.
inline std::filesystem::path model_path(const std::string& file) {
  const char* folder = std::getenv("RAPT_MODELS");
  for (const std::filesystem::path& place :
       {std::filesystem::path(folder ? folder : "models"), std::filesystem::path("models")})
    if (std::filesystem::exists(place / file)) return place / file;
  return {};
}

}  // namespace rapt::test
