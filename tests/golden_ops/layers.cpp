// ops rmsnorm, layernorm, gated_mlp, linear, embedding, softcap, cross_entropy.
#include "golden_ops/case.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/ops/embedding.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/core/ops/softcap.hpp"
#include "rapt/nn/gated_mlp.hpp"
#include "rapt/nn/linear.hpp"

namespace rapt::golden {
namespace {

/// f with the tensor in its own rank, 2 to 4.
template <class F>
void with_rank(Case& c, const char* tensor, F f) {
  switch (c.rank(tensor)) {
    case 2:
      return f(c.input<float, 2>(tensor));
    case 3:
      return f(c.input<float, 3>(tensor));
    case 4:
      return f(c.input<float, 4>(tensor));
    default:
      return f(c.input_rows<float>(tensor));
  }
}

/// The module's parameters by the case's tensors of the same names.
void load_parameters(Case& c, const Parameters<float, Cpu>& parameters) {
  for (const auto& p : parameters) {
    if (p.shape != c.shape(p.name))
      throw Failure("parameter " + p.name + " is " + detail::shape_text(p.shape) + ", the case's " +
                    detail::shape_text(c.shape(p.name)));
    copy(p.values, c.input_as<float>(p.name, p.values.shape()));
  }
}

/// The result of rows [rows, n], compared with a tensor of any rank.
void expect_rows(Case& c, const std::string& tensor, const Tensor<float, 2>& rows) {
  const auto& shape = c.shape(tensor);
  if (shape.empty() || shape.back() != rows.extent(1))
    throw Failure(tensor + " has rows of " + detail::text(rows.extent(1)) + ", expected " +
                  detail::shape_text(shape));
  Tensor<float, 1> flat({rows.size()});
  copy(flat, rows.reshape(Shape<1>{rows.size()}));
  switch (shape.size()) {
    case 1:
      return c.expect(tensor, flat);
    case 2:
      return c.expect(tensor, flat.reshape(Shape(shape[0], shape[1])));
    case 3:
      return c.expect(tensor, flat.reshape(Shape(shape[0], shape[1], shape[2])));
    case 4:
      return c.expect(tensor, flat.reshape(Shape(shape[0], shape[1], shape[2], shape[3])));
    default:
      throw Unsupported{tensor + " of rank " + detail::text(shape.size())};
  }
}

void gradients_of(Case& c, std::initializer_list<const char*> names) {
  for (const char* name : names) c.gradient(name);
}

}  // namespace

void run_rmsnorm(Case& c) {
  const auto weight = c.input<float, 1>("weight");
  with_rank(c, "x", [&](const auto& x) {
    auto y = x;
    rms_norm(y, x, weight, c.setting<double>("eps"), c.setting("weight_plus_one", false));
    c.expect("y", y);
  });
  gradients_of(c, {"dy", "dx", "dweight"});
}

void run_layernorm(Case& c) {
  const auto weight = c.input<float, 1>("weight");
  Tensor<float, 1> bias;
  if (c.has("bias")) bias = c.input<float, 1>("bias");
  with_rank(c, "x", [&](const auto& x) {
    auto y = x;
    layer_norm(y, x, weight, bias, c.setting<double>("eps"));
    c.expect("y", y);
  });
  gradients_of(c, {"dy", "dx", "dweight", "dbias"});
}

void run_gated_mlp(Case& c) {
  const std::string name = c.setting<std::string>("activation");
  static const std::map<std::string, Activation> activations = {
      {"silu", Activation::silu},
      {"gelu_pytorch_tanh", Activation::gelu_tanh},
      {"gelu", Activation::gelu_erf}};
  const auto activation = activations.find(name);
  if (activation == activations.end()) throw Unsupported{"activation " + name};
  const auto& gate = c.shape("gate_proj.weight");  // [hidden, d_model]
  if (gate.size() != 2) throw Failure("gate_proj.weight has not rank 2");
  nn::GatedMlp<float> mlp(gate[1], gate[0], activation->second, c.has("gate_proj.bias"));
  load_parameters(c, mlp.parameters());
  expect_rows(c, "y", mlp.forward(c.input_rows<float>("x")));
  c.gradient("dy");
  c.gradient("dx");
  for (const auto& p : mlp.parameters()) c.gradient("d" + p.name);
}

void run_linear(Case& c) {
  const auto& weight = c.shape("weight");  // [out, in]
  if (weight.size() != 2) throw Failure("weight has not rank 2");
  nn::Linear<float> linear(weight[1], weight[0], c.has("bias"));
  load_parameters(c, linear.parameters());
  expect_rows(c, "y", linear.forward(c.input_rows<float>("x")));
  gradients_of(c, {"dy", "dx", "dweight", "dbias"});
}

void run_embedding(Case& c) {
  const auto table = c.input<float, 2>("weight");
  const auto ids = c.input_rows<std::int32_t>("ids");  // [.., seq] as [batch, seq]
  Tensor<float, 3> y({ids.extent(0), ids.extent(1), table.extent(1)});
  embedding(y, table, ids);
  c.expect("y", y);
  gradients_of(c, {"dy", "dweight"});
}

void run_softcap(Case& c) {
  auto x = c.input_rows<float>("x");
  softcap(x, static_cast<float>(c.setting<double>("softcap")));
  expect_rows(c, "y", x);
  gradients_of(c, {"dy", "dx"});
}

void run_cross_entropy(Case& c) {
  const auto logits = c.input_rows<float>("logits");
  const auto targets = c.input_as<std::int32_t>("targets", Shape<1>{logits.extent(0)});
  CrossEntropyOptions options;
  options.ignore_index = c.setting<std::int32_t>("ignore_index", -100);
  options.label_smoothing = c.setting("label_smoothing", 0.0);
  const std::string reduction = c.setting<std::string>("reduction", "mean");
  if (reduction == "none") {
    Tensor<float, 1> loss({logits.extent(0)});
    cross_entropy(loss, logits, targets, options);
    c.expect("loss", loss);
  } else {
    if (reduction != "mean" && reduction != "sum") throw Unsupported{"reduction " + reduction};
    options.reduction = reduction == "sum" ? Reduction::sum : Reduction::mean;
    Tensor<float, 1> loss({1});
    loss(0) = cross_entropy(logits, targets, options);
    c.expect("loss", loss);
  }
  gradients_of(c, {"dloss", "dlogits"});
}

}  // namespace rapt::golden
