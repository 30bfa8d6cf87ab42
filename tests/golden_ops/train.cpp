// ops adamw, lr_schedule, clip_grad_norm, training_run.
#include "golden_ops/case.hpp"
#include "rapt/nn/checkpoint.hpp"
#include "rapt/train/trainer.hpp"

namespace rapt::golden {
namespace {

using train::AdamW;
using train::Schedule;

/// A parameter and its gradient, in memory of the case's shapes.
struct Weight {
  std::string name;
  std::vector<index_t> shape;
  Tensor<float, 1> values, gradient;
};

/// A flat result in the shape that the case stores.
void expect_flat(Case& c, const std::string& tensor, TensorView<const float, 1> flat) {
  const auto& shape = c.shape(tensor);
  switch (shape.size()) {
    case 1:
      return c.expect(tensor, flat);
    case 2:
      return c.expect(tensor, flat.reshape(Shape(shape[0], shape[1])));
    case 3:
      return c.expect(tensor, flat.reshape(Shape(shape[0], shape[1], shape[2])));
    default:
      throw Unsupported{tensor + " of rank " + detail::text(shape.size())};
  }
}

index_t size_of_shape(const std::vector<index_t>& shape) {
  index_t n = 1;
  for (const index_t extent : shape) n *= extent;
  return n;
}

Parameters<float, Cpu> parameters_of(std::vector<Weight>& weights) {
  Parameters<float, Cpu> out;
  for (Weight& w : weights) {
    out.push_back({w.name, w.values, w.gradient});
    out.back().shape = w.shape;
  }
  return out;
}

Schedule schedule_of(const Case& c, double lr, index_t warmup, index_t steps,
                     const std::string& name) {
  Schedule s;
  s.kind = name.find("cosine") != std::string::npos   ? train::ScheduleKind::cosine
           : name.find("linear") != std::string::npos ? train::ScheduleKind::linear
                                                      : train::ScheduleKind::constant;
  s.lr = lr;
  s.warmup = warmup;
  s.steps = steps;
  s.cycles = c.setting("num_cycles", 0.5);
  s.hold_at_end = false;  // as transformers has it
  s.check();
  return s;
}

train::AdamWOptions adamw_options(const Case& c) {
  const auto betas = c.setting<std::vector<double>>("betas");
  return {.beta1 = betas.at(0),
          .beta2 = betas.at(1),
          .eps = c.setting<double>("eps"),
          .weight_decay = c.setting<double>("weight_decay"),
          .decay_all = true};
}

Tensor<float, 1> to_tensor(const std::vector<double>& values) {
  Tensor<float, 1> out({static_cast<index_t>(values.size())});
  for (std::size_t i = 0; i < values.size(); ++i)
    out(static_cast<index_t>(i)) = static_cast<float>(values[i]);
  return out;
}

}  // namespace

void run_adamw(Case& c) {
  std::vector<Weight> weights;
  for (const std::string& tensor : c.names_with_prefix("param.")) {
    if (!tensor.ends_with(".init")) continue;
    Weight w;
    w.name = tensor.substr(6, tensor.size() - 6 - 5);
    w.shape = c.shape(tensor);
    const Shape<1> flat{size_of_shape(w.shape)};
    w.values = c.input_as<float>(tensor, flat);
    w.gradient = Tensor<float, 1>(flat);
    weights.push_back(std::move(w));
  }
  AdamW<float> optimizer(parameters_of(weights), adamw_options(c));
  const auto steps = c.setting<index_t>("steps");
  const auto schedule =
      schedule_of(c, c.setting<double>("lr"), c.setting("warmup_steps", index_t{0}),
                  c.setting("total_steps", steps), c.setting("schedule", std::string("constant")));
  const double max_norm = c.setting("max_grad_norm", 0.0);
  std::vector<Tensor<float, 2>> gradients;
  for (const Weight& w : weights)
    gradients.push_back(c.input_as<float>("grad." + w.name, Shape(steps, w.values.size())));
  std::vector<double> rates, norms;
  for (index_t step = 0; step < steps; ++step) {
    for (std::size_t i = 0; i < weights.size(); ++i)
      copy(weights[i].gradient, gradients[i].select(0, step));
    rates.push_back(schedule(step));
    norms.push_back(optimizer.gradient_norm());
    optimizer.step(rates.back(), train::clip_scale(norms.back(), max_norm));
    for (const Weight& w : weights) {
      const std::string after = "param." + w.name + ".after_" + std::to_string(step + 1);
      if (c.has(after)) expect_flat(c, after, w.values);
    }
  }
  for (const auto& slot : optimizer.slots()) {
    expect_flat(c, "exp_avg." + slot.parameter.name, slot.first);
    expect_flat(c, "exp_avg_sq." + slot.parameter.name, slot.second);
  }
  c.expect("lr", to_tensor(rates));
  if (c.has("grad_norm")) c.expect("grad_norm", to_tensor(norms));
}

void run_lr_schedule(Case& c) {
  const auto schedule =
      schedule_of(c, c.setting<double>("base_lr"), c.setting("num_warmup_steps", index_t{0}),
                  c.setting("num_training_steps", index_t{1}), c.setting<std::string>("schedule"));
  std::vector<double> rates;
  for (index_t step = 0; step < c.setting<index_t>("steps"); ++step)
    rates.push_back(schedule(step));
  c.expect("lr", to_tensor(rates));
}

void run_clip_grad_norm(Case& c) {
  std::vector<Weight> weights;
  for (const std::string& tensor : c.names_with_prefix("grad.")) {
    Weight w;
    w.name = tensor.substr(5);
    w.shape = c.shape(tensor);
    const Shape<1> flat{size_of_shape(w.shape)};
    w.gradient = c.input_as<float>(tensor, flat);
    w.values = Tensor<float, 1>(flat);
    weights.push_back(std::move(w));
  }
  const double norm = train::clip_gradients(parameters_of(weights), c.setting<double>("max_norm"));
  c.expect("total_norm", to_tensor({norm}));
  for (const Weight& w : weights) expect_flat(c, "clipped." + w.name, w.gradient);
}

void run_training_run(Case& c) {
  const auto steps = c.setting<index_t>("steps"), accumulation = c.setting<index_t>("accumulation"),
             batch = c.setting<index_t>("batch"), seq = c.setting<index_t>("seq");
  const Shape all(steps * accumulation, batch * seq);
  const auto ids = c.input_as<std::int32_t>("input_ids", all);
  const auto labels = c.input_as<std::int32_t>("labels", all);
  auto model =
      nn::load_transformer<float>(c.folder() / c.setting<std::string>("checkpoint_folder"));

  train::TrainerOptions options;
  options.batch = batch;
  options.accumulate = accumulation;
  options.accumulation = train::Accumulation::by_micro_batch;
  options.schedule =
      schedule_of(c, c.setting<double>("lr"), c.setting<index_t>("warmup_steps"),
                  c.setting<index_t>("total_steps"), c.setting<std::string>("schedule"));
  options.optimizer = adamw_options(c);
  options.clip = c.setting<double>("max_grad_norm");
  // The trainer wants data of its own; the batches come from the case.
  const std::vector<std::int32_t> unused(static_cast<std::size_t>(seq) + 1, 0);
  train::Dataset data(train::TokenSpan(unused, 1), {.seq = seq});
  train::Trainer<float> trainer(model, data, options);

  std::vector<double> losses, norms, rates;
  Tensor<float, 2> micro({steps, accumulation});
  std::vector<train::Batch> batches;
  for (index_t a = 0; a < accumulation; ++a) batches.emplace_back(batch, seq);
  for (index_t step = 0; step < steps; ++step) {
    for (index_t a = 0; a < accumulation; ++a) {
      train::Batch& now = batches[static_cast<std::size_t>(a)];
      now.valid = 0;
      for (index_t b = 0; b < batch; ++b)
        for (index_t t = 0; t < seq; ++t) {
          const index_t row = step * accumulation + a, at = b * seq + t;
          now.ids(b, t) = ids(row, at);
          // labels[t] is the id at t; position t predicts the one after it.
          now.targets(b, t) = t + 1 < seq ? labels(row, at + 1) : train::kIgnored;
          now.valid += now.targets(b, t) != train::kIgnored ? 1 : 0;
        }
    }
    const train::StepReport report = trainer.step(batches);
    losses.push_back(report.loss);
    norms.push_back(report.grad_norm);
    rates.push_back(report.lr);
    for (index_t a = 0; a < accumulation; ++a)
      micro(step, a) = static_cast<float>(report.micro[static_cast<std::size_t>(a)].mean());
  }
  c.expect("loss", to_tensor(losses));
  c.expect("loss_float64", to_tensor(losses));
  c.expect("micro_loss", micro);
  c.expect("grad_norm", to_tensor(norms));
  c.expect("lr", to_tensor(rates));
  for (const auto& p : model.parameters()) expect_flat(c, "final." + p.name, p.values);
}

}  // namespace rapt::golden
