// Finding tokens: by their exact text (TokenIndex) and at a place in a text (TokenTrie).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace rapt::detail {

/// Text to id by open addressing. It keeps ids only: the texts stay where the caller has them, so a
/// vocabulary of 262144 tokens costs 4 MiB beside itself.
class TokenIndex {
 public:
  /// Ids 0 ... n-1 of `texts` for which `take(id)`; of equal texts the lowest id is found.
  template <class Take>
  TokenIndex(const std::vector<std::string>& texts, Take take) {
    std::size_t slots = 16;
    while (slots < 2 * texts.size()) slots *= 2;
    slots_.assign(slots, -1);
    for (std::size_t id = 0; id < texts.size(); ++id) {
      if (!take(static_cast<std::int32_t>(id))) continue;
      std::int32_t& slot = slots_[slot_of(texts, texts[id])];
      if (slot < 0) slot = static_cast<std::int32_t>(id);
      if (texts[id].size() > longest_) longest_ = texts[id].size();
    }
  }
  TokenIndex() = default;

  /// The id, or -1.
  std::int32_t find(const std::vector<std::string>& texts, std::string_view text) const {
    if (slots_.empty() || text.size() > longest_) return -1;
    return slots_[slot_of(texts, text)];
  }
  std::size_t longest() const { return longest_; }

 private:
  std::size_t slot_of(const std::vector<std::string>& texts, std::string_view text) const {
    std::uint64_t hash = 0xCBF29CE484222325u ^ text.size();
    for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001B3u;
    hash ^= hash >> 29;
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = static_cast<std::size_t>(hash) & mask;
    while (slots_[slot] >= 0 && texts[static_cast<std::size_t>(slots_[slot])] != text)
      slot = (slot + 1) & mask;
    return slot;
  }

  std::vector<std::int32_t> slots_;
  std::size_t longest_ = 0;
};

/// The longest of a set of strings that stands at a place in a text.
class TokenTrie {
 public:
  bool empty() const { return nodes_.empty(); }

  void insert(std::string_view text, std::int32_t value) {
    if (text.empty()) return;
    std::int32_t* link = &roots_[static_cast<unsigned char>(text[0])];
    for (std::size_t i = 0;; ++i) {
      const char byte = text[i];
      while (*link >= 0 && nodes_[static_cast<std::size_t>(*link)].byte != byte)
        link = &nodes_[static_cast<std::size_t>(*link)].sibling;
      if (*link < 0) {
        *link = static_cast<std::int32_t>(nodes_.size());
        nodes_.push_back({byte});  // may move the nodes: `link` is dead from here on
        for (++i; i < text.size(); ++i) {
          const std::size_t parent = nodes_.size() - 1;
          nodes_[parent].child = static_cast<std::int32_t>(nodes_.size());
          nodes_.push_back({text[i]});
        }
        nodes_.back().value = value;
        return;
      }
      Node& node = nodes_[static_cast<std::size_t>(*link)];
      if (i + 1 == text.size()) {
        if (node.value < 0) node.value = value;  // of equal texts the first one counts
        return;
      }
      link = &node.child;
    }
  }

  struct Match {
    std::int32_t value = -1;  // -1: nothing
    std::size_t length = 0;
  };

  Match longest_at(std::string_view text) const {
    Match best;
    if (text.empty()) return best;
    std::int32_t at = roots_[static_cast<unsigned char>(text[0])];
    for (std::size_t i = 0; at >= 0;) {
      const Node& node = nodes_[static_cast<std::size_t>(at)];
      if (node.byte != text[i]) {
        at = node.sibling;
        continue;
      }
      ++i;
      if (node.value >= 0) best = {node.value, i};
      if (i == text.size()) break;
      at = node.child;
    }
    return best;
  }

 private:
  struct Node {
    char byte;
    std::int32_t child = -1, sibling = -1, value = -1;
  };
  std::vector<Node> nodes_;
  std::array<std::int32_t, 256> roots_ = [] {
    std::array<std::int32_t, 256> r{};
    r.fill(-1);
    return r;
  }();
};

}  // namespace rapt::detail
