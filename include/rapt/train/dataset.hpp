// Batches for next-token prediction, from one long row of token ids.
//
//   chunk c = ids[o + c seq ... o + (c + 1) seq]      seq + 1 ids: inputs, and targets one further
//   epoch e = every chunk once, in an order shuffled by (seed, e), from an offset o of its own
//
// The n-th sequence of a run is a function of (seed, n) alone, so a position in the data is one
// number, and a run resumes at exactly the batch it would have seen.
//
//   Batch  ids, targets, document_ids  [batch, seq] int32
//     packed    chunks run over the ends of documents; document_ids tells them apart, and a
//               separator begins a new one: it is seen by its document, predicted by the one before
//     padded    a row holds (a part of) one document, then padding: id 0, target -100, document -1
//
//   ids           sep  a  b  c sep  d  e        (packed)
//   targets         a  b  c sep  d  e  f
//   document_ids    0  0  0  0  1  1  1
//
// Errors: ValueError for data with no id to predict; FormatError for an id outside the vocabulary.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "rapt/core/config.hpp"
#include "rapt/core/error.hpp"
#include "rapt/core/random.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/train/token_file.hpp"

namespace rapt::train {

inline constexpr std::int32_t kIgnored = -100;  // a target that does not count

struct Batch {
  Tensor<std::int32_t, 2> ids, targets, document_ids;  // [batch, seq]
  index_t valid = 0;                                   // targets that count
  bool one_document = true;  // every row is one document without padding: no mask is needed

  Batch() = default;
  Batch(index_t batch, index_t seq)
      : ids(Shape{batch, seq}), targets(Shape{batch, seq}), document_ids(Shape{batch, seq}) {}
};

enum class Packing { packed, padded };

struct DatasetOptions {
  index_t seq = 256;
  Packing packing = Packing::packed;
  bool shuffle = true;  // false: in order, every epoch alike (validation)
  std::uint64_t seed = 42;
  std::int32_t separator = -1;  // begins a document; -1: all is one document
};

class Dataset {
 public:
  /// `ids` must outlive the data set.
  Dataset(TokenSpan ids, DatasetOptions options) : ids_(ids), options_(options) {
    if (options.seq < 1)
      throw ValueError(
          rapt::detail::text("dataset: seq is ", options.seq, ", expected at least 1"));
    if (options.packing == Packing::padded)
      cut_documents();
    else
      cut_chunks();
    if (sequences_ == 0)
      throw ValueError(rapt::detail::text("dataset: the data has ", ids.size(),
                                          " tokens, expected at least 2 in a document"));
  }

  index_t seq() const { return options_.seq; }
  index_t tokens() const { return ids_.size(); }
  /// Sequences of one epoch.
  index_t sequences() const { return sequences_; }
  const DatasetOptions& options() const { return options_; }

  /// Fills row r of the batch with sequence first + r of the run, for all rows. first >= 0.
  void fill(Batch& batch, index_t first) {
    if (first < 0)
      throw ValueError(rapt::detail::text("dataset: first is ", first, ", expected at least 0"));
    batch.valid = 0;
    batch.one_document = true;
    for (index_t row = 0; row < batch.ids.extent(0); ++row) fill_row(batch, row, first + row);
  }

 private:
  void cut_chunks() {
    const index_t targets = ids_.size() - 1;
    if (targets < 1) return;
    // One chunk less than fits leaves room to begin each epoch somewhere else.
    const index_t fit = targets / options_.seq;
    sequences_ = std::max<index_t>(1, options_.shuffle ? fit - 1 : fit);
    room_ = options_.shuffle ? std::max<index_t>(0, targets - sequences_ * options_.seq) : 0;
  }
  void cut_documents() {
    index_t begin = 0;
    const auto close = [&](index_t end) {  // [begin, end) is a document: rows of seq targets
      for (index_t at = begin; at + 1 < end; at += options_.seq)
        rows_.push_back({at, std::min(options_.seq, end - 1 - at)});
    };
    for (index_t i = 0; i < ids_.size(); ++i)
      if (options_.separator >= 0 && ids_[i] == options_.separator) {
        close(i);
        begin = i;
      }
    close(ids_.size());
    sequences_ = static_cast<index_t>(rows_.size());
  }

  /// The order of one epoch.
  void enter(index_t epoch) {
    if (epoch == epoch_) return;
    epoch_ = epoch;
    if (!options_.shuffle) return;
    // A stream of its own for each epoch: the key is mixed, so that neighbouring seeds and epochs
    // have nothing in common.
    Philox random(options_.seed ^ (0x9E3779B97F4A7C15u * static_cast<std::uint64_t>(epoch + 1)));
    offset_ = room_ > 0 ? static_cast<index_t>(random.below(
                              static_cast<std::uint64_t>(std::min(room_, options_.seq - 1) + 1)))
                        : 0;
    order_.resize(static_cast<std::size_t>(sequences_));
    for (std::size_t i = 0; i < order_.size(); ++i) order_[i] = static_cast<index_t>(i);
    for (std::size_t i = order_.size(); i > 1; --i)
      std::swap(order_[i - 1], order_[static_cast<std::size_t>(random.below(i))]);
  }

  void fill_row(Batch& batch, index_t row, index_t n) {
    enter(n / sequences_);
    const index_t slot = n % sequences_;
    const index_t chunk = options_.shuffle ? order_[static_cast<std::size_t>(slot)] : slot;
    index_t begin = offset_ + chunk * options_.seq, length = options_.seq;
    if (options_.packing == Packing::padded)
      std::tie(begin, length) = rows_[static_cast<std::size_t>(chunk)];
    length = std::min(length, ids_.size() - 1 - begin);
    const index_t seq = batch.ids.extent(1);
    std::int32_t* const ids = batch.ids.data() + row * seq;
    std::int32_t* const targets = batch.targets.data() + row * seq;
    std::int32_t* const documents = batch.document_ids.data() + row * seq;
    std::int32_t document = 0;
    for (index_t t = 0; t < length; ++t) {
      ids[t] = ids_[begin + t];
      targets[t] = ids_[begin + t + 1];
      if (t > 0 && ids[t] == options_.separator) {
        ++document;
        batch.one_document = false;
      }
      documents[t] = document;
    }
    for (index_t t = length; t < seq; ++t) {
      ids[t] = 0;
      targets[t] = kIgnored;
      documents[t] = -1;
      batch.one_document = false;
    }
    batch.valid += length;
  }

  TokenSpan ids_;
  DatasetOptions options_;
  index_t sequences_ = 0;
  index_t room_ = 0;                               // packed: ids that the chunks leave over
  std::vector<std::pair<index_t, index_t>> rows_;  // padded: first id and targets of each row
  index_t epoch_ = -1, offset_ = 0;
  std::vector<index_t> order_;
};

}  // namespace rapt::train
