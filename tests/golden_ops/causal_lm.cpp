// op causal_lm: a checkpoint folder, read with each of its configs: logits, loss, greedy generation
// through the cache, a left-padded batch; the gradient of every parameter, with and without
// recomputation of the blocks.
#include <algorithm>

#include "golden_ops/case.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/nn/checkpoint.hpp"
#include "rapt/text/generate.hpp"

namespace rapt::golden {
namespace {

bool covered(const std::string& model_type) {
  for (const char* known :
       {"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gemma3_text"})
    if (model_type == known) return true;
  return false;
}

using Model = nn::Transformer<float>;
using Ids = Tensor<std::int32_t, 2>;

/// Compares under the tensor's name; `how` says what is different about this result, if anything.
template <class X>
void expect(Case& c, const std::string& name, const std::string& how, const X& got,
            const Case::Where& where = {}) {
  if (how.empty())
    c.expect(name, got, where);
  else
    c.expect_again(name, how, got, where);
}

/// Mean over the positions t of the cross-entropy against labels[t + 1].
float shifted_loss(const Tensor<float, 3>& logits, const Ids& labels) {
  const index_t batch = logits.extent(0), seq = logits.extent(1), vocab = logits.extent(2);
  const auto rows = clone(logits.slice(1, 0, seq - 1));  // [batch, seq - 1, vocab]
  const auto targets = clone(labels.slice(1, 1, seq));   // [batch, seq - 1]
  const index_t n = batch * (seq - 1);
  return cross_entropy(rows.reshape(Shape(n, vocab)), targets.reshape(Shape<1>{n}));
}

/// The token with the largest logit of each row at position t [batch, 1].
Ids best_tokens(const Tensor<float, 3>& logits, index_t t) {
  Ids out({logits.extent(0), 1});
  for (index_t b = 0; b < logits.extent(0); ++b) {
    const auto row = logits.select(0, b).select(0, t);
    out(b, 0) = argmax(std::span<const float>(row.data(), static_cast<std::size_t>(row.size())));
  }
  return out;
}

void run_with(Case& c, const Model& model, const std::string& how) {
  const auto ids = c.input<std::int32_t, 2>("input_ids");
  const index_t batch = ids.extent(0), seq = ids.extent(1);
  const auto logits = model.forward(ids);
  expect(c, "logits", how, logits);
  if (c.has("labels")) {
    Tensor<float, 1> loss({1});
    loss(0) = shifted_loss(logits, c.input<std::int32_t, 2>("labels"));
    expect(c, "loss", how, loss);
  }

  if (c.has("generated_ids")) {
    const index_t steps = c.setting<index_t>("new_tokens");
    auto cache = model.make_cache(batch, seq + steps);
    auto step_logits = model.forward(ids, cache);
    expect(c, "logits", how.empty() ? "through the cache" : how + ", through the cache",
           step_logits);
    Ids generated({batch, steps});
    Tensor<float, 3> generated_logits({batch, steps, step_logits.extent(2)});
    for (index_t step = 0; step < steps; ++step) {
      const index_t last = step_logits.extent(1) - 1;
      copy(generated_logits.slice(1, step, step + 1), step_logits.slice(1, last, last + 1));
      const Ids next = best_tokens(step_logits, last);
      copy(generated.slice(1, step, step + 1), next);
      if (step + 1 < steps) step_logits = model.forward(next, cache);
    }
    expect(c, "generated_ids", how, generated);
    if (c.has("generated_logits")) expect(c, "generated_logits", how, generated_logits);

    // The loop that programs use.
    Session<float> session(model, batch, seq + steps);
    std::vector<std::vector<std::int32_t>> prompts;
    for (index_t b = 0; b < batch; ++b) prompts.emplace_back(&ids(b, 0), &ids(b, 0) + seq);
    session.feed(prompts);
    Philox random(0);
    GenerateOptions options;
    options.max_new_tokens = steps;
    options.sampling.temperature = 0;
    const auto result = generate(session, options, random);
    for (index_t b = 0; b < batch; ++b) {
      const auto& row = result.ids.at(static_cast<std::size_t>(b));
      if (static_cast<index_t>(row.size()) != steps)
        throw Failure("generate() gave " + detail::text(row.size()) + " tokens, expected " +
                      detail::text(steps));
      std::copy(row.begin(), row.end(), &generated(b, 0));
    }
    expect(c, "generated_ids", how.empty() ? "generate()" : how + ", generate()", generated);
  }

  if (c.has("padded_input_ids")) {
    const auto padded = c.input<std::int32_t, 2>("padded_input_ids");
    const auto mask = c.input<std::int32_t, 2>("padded_attention_mask");
    const auto positions = c.input<std::int32_t, 2>("padded_position_ids");
    const Model::Call call{.positions = positions, .key_mask = mask};
    const index_t vocab = model.config().vocab_size;
    const Case::Where kept = [&](index_t i) { return mask.data()[i / vocab] != 0; };
    expect(c, "padded_logits", how, model.forward(padded, call), kept);
    auto cache = model.make_cache(padded.extent(0), padded.extent(1));
    expect(c, "padded_logits", how.empty() ? "through the cache" : how + ", through the cache",
           model.forward(padded, cache, call), kept);
  }
}

/// Gradients of the mean loss, by the training step.
void run_gradients(Case& c, Model& model, const std::string& how) {
  if (!c.has("labels")) return;
  const auto ids = c.input<std::int32_t, 2>("input_ids");
  const auto labels = c.input<std::int32_t, 2>("labels");
  const index_t batch = ids.extent(0), seq = ids.extent(1);
  Ids targets(ids.shape());  // position t predicts labels[t + 1], the last one nothing
  fill(targets, -100);
  copy(targets.slice(1, 0, seq - 1), labels.slice(1, 1, seq));
  const index_t counted =
      std::count_if(targets.data(), targets.data() + batch * seq, [](auto t) { return t != -100; });
  Tape<> tape;
  model.require_gradients();
  for (const bool recompute : {false, true}) {
    const std::string step = (how.empty() ? "" : how + ", ") + std::string("training step") +
                             (recompute ? ", recomputed" : "");
    zero_gradients(model.parameters());
    const auto loss = model.forward_backward(
        ids, targets, tape, {.scale = 1.0 / static_cast<double>(counted), .recompute = recompute});
    Tensor<double, 1> mean({1});
    mean(0) = loss.mean();
    c.expect_again("loss", step, mean);
    for (const auto& p : model.parameters()) {
      const std::string name = "grad." + p.name;
      if (p.shape.size() == 2)
        c.expect_again(name, step, p.gradient.reshape(Shape(p.shape[0], p.shape[1])));
      else
        c.expect_again(name, step, p.gradient);
    }
  }
}

}  // namespace

void run_causal_lm(Case& c) {
  const std::string model_type = c.setting<std::string>("model_type");
  if (!covered(model_type)) throw Unsupported{"a model of type " + model_type};
  const auto folder = c.folder() / c.setting<std::string>("checkpoint_folder");
  const WeightFile weights = WeightFile::open(folder);
  auto model = nn::load_transformer<float>(weights);
  run_with(c, model, "");
  run_gradients(c, model, "");
  if (const auto legacy = folder / "config_legacy.json"; std::filesystem::exists(legacy)) {
    Model from_legacy(read_model_config(legacy));
    rapt::load_parameters(from_legacy.parameters(), weights);
    run_with(c, from_legacy, "config_legacy.json");
    run_gradients(c, from_legacy, "config_legacy.json");
  }
}

}  // namespace rapt::golden
