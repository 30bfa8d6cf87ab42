// The training loop: batches in, weights out, and everything needed to stop and go on.
//
//   per step:  for each micro-batch a:  S/N * dL_a   added to the gradients    L_a = sum of losses
//              n = |g| / S;  skip unless n is finite;  AdamW with g / S * min(1, clip / (n + 1e-6))
//
//   S   the loss scale (half), 1 otherwise          N   the tokens that count in all micro-batches,
//                                                       so that accumulation equals the large batch
//
//   Trainer<float> trainer(model, dataset, {.batch = 16, .schedule = {.lr = 1e-3, .steps = 1000}});
//   while (trainer.state().step < 1000) {
//     const StepReport report = trainer.step();           // loss, lr, norm, tokens, seconds
//     if (report.step % 100 == 0) trainer.save("run/latest");
//   }
//
// The law of resuming: a run is a function of its settings, so save after step k, load and go on
// gives bit for bit what the uninterrupted run gives, with any number of threads.
//
// A step whose gradients are not finite leaves weights, moments and schedule as they were; the data
// moves on. Too many of them in a row (default 100) throw std::runtime_error.
#pragma once

#include <chrono>
#include <cmath>
#include <filesystem>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "rapt/core/tape.hpp"
#include "rapt/nn/training.hpp"
#include "rapt/nn/transformer.hpp"
#include "rapt/train/checkpoint.hpp"
#include "rapt/train/dataset.hpp"
#include "rapt/train/loss_scaler.hpp"
#include "rapt/train/optimizer.hpp"
#include "rapt/train/schedule.hpp"

namespace rapt::train {

/// How micro-batches of a step are weighed.
enum class Accumulation {
  by_tokens,       // every token alike: equals one large batch
  by_micro_batch,  // the mean of their means, as most training scripts have it
};

struct TrainerOptions {
  index_t batch = 8;       // sequences of a micro-batch
  index_t accumulate = 1;  // micro-batches of a step
  Accumulation accumulation = Accumulation::by_tokens;
  Schedule schedule{};
  AdamWOptions optimizer{};
  double clip = 1.0;       // the largest gradient norm; 0: no clipping
  bool recompute = false;  // run each block's forward again instead of saving its activations
  std::uint64_t seed = 42;
  LossScalerOptions scaler{};
  index_t patience = 100;  // skipped steps in a row
};

/// What happened in a step.
struct StepReport {
  index_t step = 0;                    // steps done now
  double loss = 0;                     // mean over the tokens that count, before the step
  double lr = 0;                       // of this step
  double grad_norm = 0;                // before clipping, without the loss scale
  index_t tokens = 0;                  // of this step, padding included
  double seconds = 0;                  // of this step
  double scale = 1;                    // the loss was multiplied by it
  bool skipped = false;                // the gradients were not finite
  std::vector<nn::TokenLoss> micro{};  // each micro-batch
};

template <class T, class B = Cpu>
class Trainer {
 public:
  using Model = nn::Transformer<T, B>;

  /// `model` and `data` must outlive the trainer; the model's weights are as the caller set them.
  Trainer(Model& model, Dataset& data, TrainerOptions options)
      : model_(&model),
        data_(&data),
        options_(std::move(options)),
        optimizer_(with_gradients(model), options_.optimizer),
        scaler_(std::is_same_v<T, half>, options_.scaler),
        random_(options_.seed),
        tape_(model.backend()) {
    options_.schedule.check();
    const auto positive = [](const char* name, index_t value) {
      if (value < 1)
        throw ValueError(
            rapt::detail::text("trainer: ", name, " is ", value, ", expected at least 1"));
    };
    positive("batch", options_.batch);
    positive("accumulate", options_.accumulate);
    if (!(options_.clip >= 0))
      throw ValueError(
          rapt::detail::text("trainer: clip is ", options_.clip, ", expected at least 0"));
    const index_t most = model.config().max_position;
    if (most > 0 && data.seq() > most)
      throw ValueError(rapt::detail::text("trainer: seq is ", data.seq(),
                                          ", expected at most the model's max_position = ", most));
    for (index_t a = 0; a < options_.accumulate; ++a)
      batches_.emplace_back(options_.batch, data.seq());
  }

  const TrainerOptions& options() const { return options_; }
  Model& model() { return *model_; }
  AdamW<T, B>& optimizer() { return optimizer_; }
  /// For sampled texts; a checkpoint keeps its position.
  Philox& random() { return random_; }
  /// Bytes of activations that a step saves at most.
  std::size_t activation_bytes() const { return tape_.peak_bytes(); }

  TrainerState state() const {
    TrainerState out = state_;
    out.optimizer_steps = optimizer_.steps();
    out.scaler = scaler_.state();
    out.random = random_.state();
    return out;
  }
  /// What a checkpoint says of the run, for comparing it with the one that resumes.
  void set_settings(std::map<std::string, std::string> settings) {
    state_.settings = std::move(settings);
  }

  /// One step on the next batches of the data.
  StepReport step() {
    const auto start = std::chrono::steady_clock::now();
    index_t position = state_.position;
    for (Batch& batch : batches_) {
      data_->fill(batch, position);
      position += options_.batch;
    }
    StepReport report = step(batches_);
    state_.position = position;
    report.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
  }

  /// One step on given micro-batches; the data's position stays.
  StepReport step(std::span<const Batch> micro_batches) {
    const auto start = std::chrono::steady_clock::now();
    index_t valid = 0;
    for (const Batch& batch : micro_batches) valid += batch.valid;
    StepReport report;
    report.scale = scaler_.scale();
    report.lr = options_.schedule(optimizer_.steps());
    zero_gradients(parameters_of_optimizer());
    nn::TokenLoss total;
    double means = 0;
    for (const Batch& batch : micro_batches) {
      const bool by_tokens = options_.accumulation == Accumulation::by_tokens;
      const double weight =
          by_tokens ? static_cast<double>(valid)
                    : static_cast<double>(batch.valid) * static_cast<double>(micro_batches.size());
      nn::TrainingCall call = call_of(batch);
      call.scale = weight > 0 ? report.scale / weight : 0;
      call.recompute = options_.recompute;
      report.micro.push_back(model_->forward_backward(batch.ids, batch.targets, tape_, call));
      total += report.micro.back();
      means += report.micro.back().mean() / static_cast<double>(micro_batches.size());
      report.tokens += batch.ids.size();
    }
    report.loss = options_.accumulation == Accumulation::by_tokens ? total.mean() : means;
    report.grad_norm = optimizer_.gradient_norm() / report.scale;
    if (scaler_.update(std::isfinite(report.grad_norm) && std::isfinite(report.loss))) {
      optimizer_.step(report.lr, clip_scale(report.grad_norm, options_.clip) / report.scale);
      skipped_in_a_row_ = 0;
    } else {
      report.skipped = true;
      if (++skipped_in_a_row_ >= options_.patience)
        throw std::runtime_error(rapt::detail::text(
            "training: the gradients of ", skipped_in_a_row_, " steps in a row up to step ",
            state_.step + 1, " are not finite (the loss is ", report.loss, ")"));
    }
    report.step = ++state_.step;
    state_.tokens += report.tokens;
    report.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return report;
  }

  /// The loss over `count` sequences of another data set, from its first on (0: one epoch).
  nn::TokenLoss evaluate(Dataset& data, index_t count = 0) {
    if (count <= 0) count = data.sequences();
    nn::TokenLoss total;
    for (index_t first = 0; first < count; first += options_.batch) {
      const index_t rows = std::min(options_.batch, count - first);
      Batch batch(rows, data.seq());
      data.fill(batch, first);
      total += model_->loss(batch.ids, batch.targets, call_of(batch));
    }
    return total;
  }

  /// Writes a checkpoint that replaces `folder`; see train/checkpoint.hpp.
  void save(const std::filesystem::path& folder, const CheckpointFiles& more = {}) {
    save_checkpoint(*model_, optimizer_, state(), folder, more);
  }

  /// Goes on from a checkpoint of the same settings. Throws FormatError naming the setting, its
  /// value there and here; nothing has changed then.
  void load(const std::filesystem::path& folder) {
    const TrainerState saved = read_trainer_state<T>(folder);
    for (const auto& [key, value] : state_.settings) {
      const auto found = saved.settings.find(key);
      const std::string there = found == saved.settings.end() ? "missing" : found->second;
      if (there != value)
        throw FormatError(rapt::detail::text((folder / "trainer.json").string(), ": ", key, " is ",
                                             there, ", expected ", value, " = this run's"));
    }
    const TrainerState loaded = load_checkpoint(*model_, optimizer_, folder);
    scaler_.set_state(loaded.scaler);
    random_.set_state(loaded.random);
    state_ = loaded;
    skipped_in_a_row_ = 0;
  }

 private:
  static Parameters<T, B> with_gradients(Model& model) {
    model.require_gradients();
    return model.parameters();
  }
  const Parameters<T, B>& parameters_of_optimizer() {
    if (parameters_.empty())
      for (const auto& slot : optimizer_.slots()) parameters_.push_back(slot.parameter);
    return parameters_;
  }
  static nn::TrainingCall call_of(const Batch& batch) {
    nn::TrainingCall call;
    call.ignore_index = kIgnored;
    if (!batch.one_document) call.document_ids = batch.document_ids;
    return call;
  }

  Model* model_;
  Dataset* data_;
  TrainerOptions options_;
  AdamW<T, B> optimizer_;
  LossScaler scaler_;
  Philox random_;
  Tape<B> tape_;
  TrainerState state_;
  Parameters<T, B> parameters_;
  std::vector<Batch> batches_;
  index_t skipped_in_a_row_ = 0;
};

}  // namespace rapt::train
