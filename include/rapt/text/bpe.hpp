// Byte-pair encoding: neighbours are joined, best pair first, until no pair has a rule.
//
//   while some neighbours (a, b) have a rule:
//     join the pair with the smallest key; of equal keys the leftmost
//
// key = the merge's rank (byte_bpe, bpe) or minus the joined token's score (score_bpe). Symbols
// form a linked list and candidate pairs a heap, so n symbols cost O(n log n): a megabyte without a
// blank is no trap. Short pieces, nearly all of them in practice, are scanned in place, which is
// faster.
//
// Source: Sennrich, Haddow, Birch 2016, arXiv:1508.07909, algorithm 1; Kudo, Richardson 2018,
// arXiv:1808.06226 (by score).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace rapt::detail {

/// Merge rules by the ids of the two sides.
class MergeTable {
 public:
  struct Rule {
    std::uint32_t rank = kNone;
    std::int32_t joined = -1;
  };
  static constexpr std::uint32_t kNone = 0xFFFFFFFFu;

  MergeTable() = default;
  explicit MergeTable(std::size_t count) {
    std::size_t slots = 16;
    while (slots < 2 * count) slots *= 2;
    slots_.resize(slots);
  }

  /// Adds a rule; a pair that has one keeps it (the first one ranks higher).
  void add(std::int32_t left, std::int32_t right, std::uint32_t rank, std::int32_t joined) {
    Slot& slot = slots_[slot_of(key_of(left, right))];
    if (slot.rule.rank == kNone) slot = {key_of(left, right), {rank, joined}};
  }

  Rule find(std::int32_t left, std::int32_t right) const {
    return slots_.empty() ? Rule{} : slots_[slot_of(key_of(left, right))].rule;
  }

 private:
  struct Slot {
    std::uint64_t key = 0;
    Rule rule;
  };
  static std::uint64_t key_of(std::int32_t left, std::int32_t right) {
    return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) |
           static_cast<std::uint32_t>(right);
  }
  std::size_t slot_of(std::uint64_t key) const {
    const std::size_t mask = slots_.size() - 1;
    std::size_t slot = static_cast<std::size_t>((key * 0x9E3779B97F4A7C15u) >> 20) & mask;
    while (slots_[slot].rule.rank != kNone && slots_[slot].key != key) slot = (slot + 1) & mask;
    return slot;
  }
  std::vector<Slot> slots_;
};

/// A symbol of a piece while it is merged: its id (or -1) and its bytes within the piece.
struct BpeSymbol {
  std::int32_t id;
  std::uint32_t begin, length;
};

/// The result of asking for a rule: `id` < 0 means there is none.
template <class Key>
struct BpeJoin {
  Key key;
  std::int32_t id;
};

/// Merges `symbols` in place. join(left, right) gives a BpeJoin. O(n log n).
template <class Key, class Join>
void merge_with_heap(std::vector<BpeSymbol>& symbols, Join join) {
  struct Candidate {
    Key key;
    std::int32_t joined;
    std::uint32_t left, right, length;  // length of both together: a stale candidate has another
  };
  // std::push_heap keeps the largest on top: "less" means "merged later".
  const auto later = [](const Candidate& a, const Candidate& b) {
    return a.key > b.key || (a.key == b.key && a.left > b.left);
  };
  const auto count = static_cast<std::uint32_t>(symbols.size());
  std::vector<std::uint32_t> next(count), previous(count);  // count: the end, on either side
  for (std::uint32_t i = 0; i < count; ++i) {
    next[i] = i + 1;
    previous[i] = i == 0 ? count : i - 1;
  }
  std::vector<Candidate> heap;
  heap.reserve(count);
  const auto consider = [&](std::uint32_t left, std::uint32_t right, bool push) {
    if (left >= count || right >= count) return;
    const BpeJoin<Key> rule = join(symbols[left], symbols[right]);
    if (rule.id < 0) return;
    heap.push_back({rule.key, rule.id, left, right, symbols[left].length + symbols[right].length});
    if (push) std::push_heap(heap.begin(), heap.end(), later);
  };
  for (std::uint32_t i = 0; i + 1 < count; ++i) consider(i, i + 1, false);
  std::make_heap(heap.begin(), heap.end(), later);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Candidate best = heap.back();
    heap.pop_back();
    BpeSymbol& left = symbols[best.left];
    const BpeSymbol& right = symbols[best.right];
    // Symbols only grow and a swallowed one has length 0, so equal lengths mean nothing changed.
    if (left.length == 0 || right.length == 0 || next[best.left] != best.right ||
        left.length + right.length != best.length)
      continue;
    left.id = best.joined;
    left.length = best.length;
    symbols[best.right].length = 0;
    next[best.left] = next[best.right];
    if (next[best.left] < count) previous[next[best.left]] = best.left;
    consider(previous[best.left], best.left, true);
    consider(best.left, next[best.left], true);
  }
  symbols.erase(std::remove_if(symbols.begin(), symbols.end(),
                               [](const BpeSymbol& s) { return s.length == 0; }),
                symbols.end());
}

/// The same by scanning, O(n^2), for short pieces.
template <class Key, class Join>
void merge_by_scan(std::vector<BpeSymbol>& symbols, Join join) {
  constexpr std::size_t kMost = 64;
  const std::size_t n = symbols.size();
  if (n > kMost) return merge_with_heap<Key>(symbols, join);
  if (n < 2) return;
  BpeJoin<Key> rules[kMost];  // rules[i] joins symbols i and i + 1
  for (std::size_t i = 0; i + 1 < n; ++i) rules[i] = join(symbols[i], symbols[i + 1]);
  for (std::size_t left_over = n; left_over > 1; --left_over) {
    std::size_t best = left_over;
    for (std::size_t i = 0; i + 1 < left_over; ++i)
      if (rules[i].id >= 0 && (best == left_over || rules[i].key < rules[best].key)) best = i;
    if (best == left_over) break;
    symbols[best].id = rules[best].id;
    symbols[best].length += symbols[best + 1].length;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best) + 1);
    for (std::size_t i = best + 1; i + 2 < left_over; ++i) rules[i] = rules[i + 1];
    if (best > 0) rules[best - 1] = join(symbols[best - 1], symbols[best]);
    if (best + 1 < symbols.size()) rules[best] = join(symbols[best], symbols[best + 1]);
  }
}

}  // namespace rapt::detail
