// Generation: a model and its cache as a session, and the loop that samples from it.
//
//   Session<float> session(model, batch, capacity);
//   session.feed(prompts);                        // prefill; rows of different lengths are padded
//   generate(session, options, random, on_token);  // feeds what it samples
//
// Session<float, Cpu, half> keeps keys and values in half: what long contexts of a quantized model
// want.
//
//   feed      h = model(new tokens) against the cache; the logits of each row's last token stay
//   generate  id = sample(logits); on_token(row, id); feed(id); until an end id, a stop or a limit
//
// Prompts of different lengths are padded on the left: row b's n_b tokens stand at positions
// 0 .. n_b - 1, and nobody sees the padding. A session without a cache (for comparison) runs the
// whole text again for every token and gives the same logits.
//
// Errors: ValueError for an empty prompt or an id outside the vocabulary, CapacityError where the
// cache is too small: the session is then as it was.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "rapt/core/convert.hpp"
#include "rapt/core/random.hpp"
#include "rapt/nn/transformer.hpp"
#include "rapt/text/sampling.hpp"

namespace rapt {

/// Calls f(first, z) with the logits z [rows, vocab] of tokens first, first + 1, ... of one text, a
/// few rows at a time: all logits of a long text under a large vocabulary, in little memory. Rows
/// before `from` are computed as context only.
template <class T, class B, class F>
void visit_logits(const nn::Transformer<T, B>& model, std::span<const std::int32_t> ids, F&& f,
                  index_t from = 0) {
  constexpr index_t kRows = 64, kChunk = 512;
  const auto n = static_cast<index_t>(ids.size());
  const TensorView<const std::int32_t, 2> all(ids.data(), Shape<2>{1, n});
  auto cache = model.make_cache(1, n);
  auto logits = Tensor<T, 2, B>::uninitialized(Shape{std::min(kRows, n), model.config().vocab_size},
                                               model.backend());
  auto h = Tensor<T, 3, B>::uninitialized(Shape{1, std::min(kChunk, n), model.config().d_model},
                                          model.backend());
  for (index_t begin = 0; begin < n; begin += kChunk) {
    const index_t end = std::min(n, begin + kChunk);
    auto chunk = h.slice(1, 0, end - begin);
    model.hidden(chunk, all.slice(1, begin, end), cache);
    for (index_t t = std::max(begin, from); t < end; t += kRows) {
      const index_t rows = std::min(kRows, end - t);
      auto z = logits.slice(0, 0, rows);
      model.logits(z, chunk.select(0, 0).slice(0, t - begin, t - begin + rows));
      f(t, as_const_view(z));
    }
  }
}

template <class T = float, class B = Cpu, class E = T>
class Session {
 public:
  using Model = nn::Transformer<T, B>;

  /// `capacity`: tokens of the longest row, padding included. The model must outlive the session.
  Session(const Model& model, index_t batch, index_t capacity, bool use_cache = true)
      : model_(&model), batch_(batch), capacity_(capacity) {
    if (batch < 1)
      throw ShapeError(detail::text("session: batch is ", batch, ", expected at least 1"));
    if (use_cache) cache_.emplace(model.template make_cache_of<E>(batch, capacity));
    texts_.resize(static_cast<std::size_t>(batch));
    logits_ = Tensor<float, 2>(Shape{batch, model.config().vocab_size});
  }

  const Model& model() const { return *model_; }
  index_t batch() const { return batch_; }
  index_t capacity() const { return capacity_; }
  /// Tokens of the longest row, padding included.
  index_t length() const { return length_; }
  bool cached() const { return cache_.has_value(); }
  index_t cache_bytes() const { return cache_ ? cache_->bytes() : 0; }
  /// Bytes of keys and values that the next token will read.
  index_t cache_bytes_read_per_token() const { return cache_ ? cache_->bytes_read_per_token() : 0; }

  /// All ids fed to a row so far.
  std::span<const std::int32_t> text(index_t row) const {
    return texts_.at(static_cast<std::size_t>(row));
  }
  /// Logits of the row's last token [vocab]; sampling may change them in place.
  std::span<float> logits(index_t row) {
    return {logits_.data() + row * logits_.extent(1), static_cast<std::size_t>(logits_.extent(1))};
  }

  /// Appends prompts[b] to row b. Rows may differ in length the first time only: later the padding
  /// would come between tokens. `progress(tokens done, tokens in all)` is called between chunks.
  void feed(std::span<const std::vector<std::int32_t>> prompts,
            const std::function<void(index_t, index_t)>& progress = {}) {
    if (static_cast<index_t>(prompts.size()) != batch_)
      throw ShapeError(detail::text("session.feed: prompts is [", prompts.size(), "], expected [",
                                    batch_, "] = [batch]"));
    index_t longest = 0;
    bool ragged = false;
    for (const auto& prompt : prompts) {
      const auto n = static_cast<index_t>(prompt.size());
      if (n == 0) throw ValueError("session.feed: a prompt is empty, expected at least one token");
      longest = std::max(longest, n);
      ragged = ragged || n != static_cast<index_t>(prompts.front().size());
      for (const std::int32_t id : prompt)
        if (id < 0 || id >= model_->config().vocab_size)
          throw ValueError(detail::text("session.feed: an id is ", id, ", expected 0 to ",
                                        model_->config().vocab_size - 1));
    }
    if (ragged && length_ > 0)
      throw ShapeError(
          "session.feed: prompts differ in length, expected equal lengths once tokens were fed");
    if (longest > capacity_ - length_)
      throw CapacityError(detail::text("session.feed: it holds ", length_, " of ", capacity_,
                                       " tokens and cannot take ", longest, " more"));

    Tensor<std::int32_t, 2> ids(Shape{batch_, longest}), mask(Shape{batch_, longest}),
        positions(Shape{batch_, longest});
    std::vector<std::int32_t> pads(static_cast<std::size_t>(batch_), 0);
    index_t b = 0;
    for (const auto& prompt : prompts) {
      const index_t pad = longest - static_cast<index_t>(prompt.size());
      if (length_ == 0) pads[static_cast<std::size_t>(b)] = static_cast<std::int32_t>(pad);
      index_t i = pad;
      for (const std::int32_t id : prompt) {
        ids(b, i) = id;
        mask(b, i++) = 1;
      }
      ++b;
    }
    if (length_ == 0) pads_ = pads;
    for (b = 0; b < batch_; ++b)
      for (index_t i = 0; i < longest; ++i)
        positions(b, i) = std::max<std::int32_t>(
            static_cast<std::int32_t>(length_ + i) - pads_[static_cast<std::size_t>(b)], 0);
    padded_ = padded_ || ragged;

    if (cache_)
      run_cached(ids, mask, positions, progress);
    else
      run_whole(ids);
    b = 0;
    for (const auto& prompt : prompts) {
      auto& text = texts_[static_cast<std::size_t>(b++)];
      text.insert(text.end(), prompt.begin(), prompt.end());
    }
    length_ += longest;
  }
  void feed(const std::vector<std::vector<std::int32_t>>& prompts,
            const std::function<void(index_t, index_t)>& progress = {}) {
    feed(std::span<const std::vector<std::int32_t>>(prompts), progress);
  }

  /// Back to before the first token.
  void reset() {
    if (cache_) cache_->reset();
    for (auto& text : texts_) text.clear();
    length_ = 0;
    padded_ = false;
  }

 private:
  /// A long prompt goes through the model in pieces, so that its activations stay small.
  static constexpr index_t kChunk = 512;

  void run_cached(const Tensor<std::int32_t, 2>& ids, const Tensor<std::int32_t, 2>& mask,
                  const Tensor<std::int32_t, 2>& positions,
                  const std::function<void(index_t, index_t)>& progress) {
    const index_t n = ids.extent(1), width = model_->config().d_model;
    const index_t before = cache_->length();
    try {
      for (index_t begin = 0; begin < n; begin += kChunk) {
        const index_t end = std::min(n, begin + kChunk);
        if (begin > 0 && progress) progress(begin, n);
        Scratch<B> scratch(model_->backend());
        auto h = scratch.template tensor<T>(Shape{batch_, end - begin, width});
        nn::TransformerCall<T, B> call;
        if (padded_) {
          call.positions = positions.slice(1, begin, end);
          call.key_mask = mask.slice(1, begin, end);
        }
        model_->hidden(h, as_const_view(ids).slice(1, begin, end), *cache_, call);
        if (end == n) take_logits(h, scratch);
      }
    } catch (...) {
      // Some chunks may have joined: forget them, where a ring still can.
      if (before == 0)
        cache_->reset();
      else if (cache_->length() > before)
        cache_->truncate(before);
      throw;
    }
    if (progress) progress(n, n);
  }

  /// Without a cache: everything so far, again.
  void run_whole(const Tensor<std::int32_t, 2>& fresh) {
    const index_t n = length_ + fresh.extent(1);
    Tensor<std::int32_t, 2> ids(Shape{batch_, n}), mask(ids.shape()), positions(ids.shape());
    for (index_t b = 0; b < batch_; ++b) {
      const auto row = static_cast<std::size_t>(b);
      const index_t pad = pads_[row];
      for (index_t i = pad; i < n; ++i) {
        ids(b, i) =
            i < length_ ? texts_[row][static_cast<std::size_t>(i - pad)] : fresh(b, i - length_);
        mask(b, i) = 1;
        positions(b, i) = static_cast<std::int32_t>(i - pad);
      }
    }
    Scratch<B> scratch(model_->backend());
    auto h = scratch.template tensor<T>(Shape{batch_, n, model_->config().d_model});
    nn::TransformerCall<T, B> call;
    if (padded_) {
      call.positions = positions;
      call.key_mask = mask;
    }
    model_->hidden(h, as_const_view(ids), call);
    take_logits(h, scratch);
  }

  void take_logits(TensorView<T, 3, B> h, Scratch<B>& scratch) {
    const index_t last = h.extent(1) - 1, vocab = logits_.extent(1);
    auto rows = scratch.template tensor<T>(Shape{batch_, h.extent(2)});
    copy(rows, h.select(1, last));
    if constexpr (std::same_as<T, float> && std::same_as<B, Cpu>) {
      model_->logits(logits_, rows);
    } else {
      auto out = scratch.template tensor<T>(Shape{batch_, vocab});
      model_->logits(out, rows);
      copy(logits_, out);
    }
  }

  const Model* model_;
  index_t batch_, capacity_, length_ = 0;
  bool padded_ = false;
  std::optional<nn::TransformerCache<E, B>> cache_;
  std::vector<std::vector<std::int32_t>> texts_;
  std::vector<std::int32_t> pads_;
  Tensor<float, 2> logits_;
};

struct GenerateOptions {
  index_t max_new_tokens = 128;
  SamplingParams sampling = {};
  std::vector<std::int32_t> end_ids = {};  // any of them ends its row; it is not part of the text
  const std::atomic<bool>* cancel = nullptr;  // looked at before every token
};

struct GenerateResult {
  std::vector<std::vector<std::int32_t>> ids;  // by row, without prompt and end id
  double seconds = 0;
  index_t steps = 0;
  bool cancelled = false;
  bool full = false;        // ended because the session's capacity was reached
  bool last_unfed = false;  // the session lacks the last ids: only an end id leaves it complete
};

/// Samples until every row has ended. `on_token(row, id)` sees each token as it is chosen and may
/// return false to end its row. The session holds prompt and output afterwards.
template <class T, class B, class E>
GenerateResult generate(Session<T, B, E>& session, const GenerateOptions& options, Philox& random,
                        const std::function<bool(index_t row, std::int32_t id)>& on_token = {}) {
  if (session.length() == 0) throw ValueError("generate: the session is empty, expected a prompt");
  if (options.max_new_tokens < 0)
    throw ValueError(detail::text("generate: max_new_tokens is ", options.max_new_tokens,
                                  ", expected 0 or more"));
  check_sampling(options.sampling);
  const auto rows = static_cast<std::size_t>(session.batch());
  GenerateResult result;
  result.ids.resize(rows);
  std::vector<bool> ended(rows, false);
  std::vector<std::vector<std::int32_t>> next(rows, std::vector<std::int32_t>(1, 0));
  const auto start = std::chrono::steady_clock::now();
  for (index_t step = 0; step < options.max_new_tokens; ++step) {
    bool chosen = false;
    if (options.cancel != nullptr && options.cancel->load()) {
      result.cancelled = true;
      break;
    }
    for (std::size_t row = 0; row < rows; ++row) {
      if (ended[row]) continue;  // keeps feeding its last token, unseen
      const auto at = static_cast<index_t>(row);
      const std::int32_t id =
          sample(session.logits(at), session.text(at), options.sampling, random);
      next[row][0] = id;
      if (std::find(options.end_ids.begin(), options.end_ids.end(), id) != options.end_ids.end()) {
        ended[row] = true;
        continue;
      }
      result.ids[row].push_back(id);
      chosen = true;
      if (on_token && !on_token(at, id)) ended[row] = true;
    }
    ++result.steps;
    result.last_unfed = chosen;
    if (std::all_of(ended.begin(), ended.end(), [](bool e) { return e; })) break;
    if (step + 1 == options.max_new_tokens) break;  // nobody will read the next logits
    if (session.length() == session.capacity()) {
      result.full = true;
      break;
    }
    session.feed(next);
    result.last_unfed = false;
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace rapt
