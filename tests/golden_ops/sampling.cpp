// op sampling: the stages in the case's order, and the probabilities of what they leave.
#include "rapt/text/sampling.hpp"

#include "golden_ops/case.hpp"

namespace rapt::golden {
namespace {

SamplingStage stage_of(const std::string& name) {
  static const std::map<std::string, SamplingStage> stages = {
      {"repetition_penalty", SamplingStage::repetition_penalty},
      {"temperature", SamplingStage::temperature},
      {"top_k", SamplingStage::top_k},
      {"top_p", SamplingStage::top_p},
      {"min_p", SamplingStage::min_p}};
  const auto found = stages.find(name);
  if (found == stages.end()) throw Unsupported{"sampling stage " + name};
  return found->second;
}

}  // namespace

void run_sampling(Case& c) {
  SamplingParams params;
  params.temperature = c.setting("temperature", params.temperature);
  params.top_k = c.setting("top_k", params.top_k);
  params.top_p = c.setting("top_p", params.top_p);
  params.min_p = c.setting("min_p", params.min_p);
  params.repetition_penalty = c.setting("repetition_penalty", params.repetition_penalty);
  std::vector<SamplingStage> order;
  for (const auto& name : c.setting<std::vector<std::string>>("order"))
    order.push_back(stage_of(name));

  auto logits = c.input<float, 2>("logits");
  const auto previous = c.input<std::int32_t, 2>("previous_ids");
  Tensor<float, 2> probabilities(logits.shape());
  for (index_t b = 0; b < logits.extent(0); ++b) {
    const auto row = [b](auto& t) {
      return std::span(t.data() + b * t.extent(1), static_cast<std::size_t>(t.extent(1)));
    };
    process_logits(row(logits), row(previous), params, order);
    softmax(row(probabilities), row(logits));
  }
  c.expect("processed_logits", logits);
  c.expect("probs", probabilities);
}

}  // namespace rapt::golden
