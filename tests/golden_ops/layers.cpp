// ops rmsnorm, layernorm, gated_mlp, linear, embedding, softcap, cross_entropy.
#include "golden_ops/case.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/ops/embedding.hpp"
#include "rapt/core/ops/norm.hpp"
#include "rapt/core/ops/softcap.hpp"
#include "rapt/core/random.hpp"
#include "rapt/core/tape.hpp"
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

/// What backward() of a layer made of dy: dx, and the gradient of every parameter.
template <class Layer>
void expect_gradients(Case& c, Layer& layer, const Tensor<float, 2>& x) {
  if (!c.has("dy")) return;
  layer.require_gradients();
  const auto dy = c.input_rows<float>("dy");
  Tape<Cpu> tape;
  Tensor<float, 2> y(dy.shape()), dx(x.shape());
  layer.forward(y, x, tape);
  expect_rows(c, "y", y);
  layer.backward(dx, dy, tape);
  expect_rows(c, "dx", dx);
  for (const auto& p : layer.parameters())
    c.expect("d" + p.name, p.gradient.reshape(Shape{p.shape[0], p.gradient.size() / p.shape[0]}));
}

}  // namespace

void run_rmsnorm(Case& c) {
  const auto weight = c.input<float, 1>("weight");
  with_rank(c, "x", [&](const auto& x) {
    auto y = x;
    const double eps = c.setting<double>("eps");
    const bool plus_one = c.setting("weight_plus_one", false);
    rms_norm(y, x, weight, eps, plus_one);
    c.expect("y", y);
    if (!c.has("dy")) return;
    auto dx = c.input<float, rank_v<decltype(x)>>("dy");  // in place
    Tensor<float, 1> dweight(weight.shape());
    rms_norm_backward(dx, dweight, dx, x, weight, eps, plus_one);
    c.expect("dx", dx);
    c.expect("dweight", dweight);
  });
}

void run_layernorm(Case& c) {
  const auto weight = c.input<float, 1>("weight");
  Tensor<float, 1> bias;
  if (c.has("bias")) bias = c.input<float, 1>("bias");
  with_rank(c, "x", [&](const auto& x) {
    auto y = x;
    const double eps = c.setting<double>("eps");
    layer_norm(y, x, weight, bias, eps);
    c.expect("y", y);
    if (!c.has("dy")) return;
    const auto dy = c.input<float, rank_v<decltype(x)>>("dy");
    auto dx = dy;
    Tensor<float, 1> dweight(weight.shape()), dbias(bias.shape());
    layer_norm_backward(dx, dweight, dbias, dy, x, weight, eps);
    c.expect("dx", dx);
    c.expect("dweight", dweight);
    if (c.has("dbias")) c.expect("dbias", dbias);
  });
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
  const auto x = c.input_rows<float>("x");
  expect_rows(c, "y", mlp.forward(x));
  expect_gradients(c, mlp, x);
}

void run_linear(Case& c) {
  const auto& weight = c.shape("weight");  // [out, in]
  if (weight.size() != 2) throw Failure("weight has not rank 2");
  nn::Linear<float> linear(weight[1], weight[0], c.has("bias"));
  load_parameters(c, linear.parameters());
  const auto x = c.input_rows<float>("x");
  expect_rows(c, "y", linear.forward(x));
  expect_gradients(c, linear, x);
}

void run_embedding(Case& c) {
  const auto table = c.input<float, 2>("weight");
  const auto ids = c.input_rows<std::int32_t>("ids");  // [.., seq] as [batch, seq]
  Tensor<float, 3> y({ids.extent(0), ids.extent(1), table.extent(1)});
  embedding(y, table, ids);
  c.expect("y", y);
  if (!c.has("dy")) return;
  Tensor<float, 2> dtable(table.shape());
  embedding_backward(dtable, c.input_as<float>("dy", y.shape()), ids);
  // A padding row is one that its owner does not train.
  if (const index_t padding = c.setting<index_t>("padding_idx", -1); padding >= 0)
    fill(dtable.slice(0, padding, padding + 1), 0);
  c.expect("dweight", dtable);
}

void run_softcap(Case& c) {
  auto x = c.input_rows<float>("x");
  const auto cap = static_cast<float>(c.setting<double>("softcap"));
  softcap(x, cap);
  expect_rows(c, "y", x);
  if (!c.has("dy")) return;
  auto dx = c.input_rows<float>("dy");
  softcap_backward(dx, dx, x, cap);
  expect_rows(c, "dx", dx);
}

void run_cross_entropy(Case& c) {
  const auto logits = c.input_rows<float>("logits");
  const auto targets = c.input_as<std::int32_t>("targets", Shape<1>{logits.extent(0)});
  CrossEntropyOptions options;
  options.ignore_index = c.setting<std::int32_t>("ignore_index", -100);
  options.label_smoothing = c.setting("label_smoothing", 0.0);
  const std::string reduction = c.setting<std::string>("reduction", "mean");
  const bool by_row = reduction == "none";
  if (!by_row && reduction != "mean" && reduction != "sum")
    throw Unsupported{"reduction " + reduction};
  Tensor<float, 1> loss({by_row ? logits.extent(0) : 1});
  if (by_row) {
    cross_entropy(loss, logits, targets, options);
  } else {
    options.reduction = reduction == "sum" ? Reduction::sum : Reduction::mean;
    loss(0) = cross_entropy(logits, targets, options);
  }
  c.expect("loss", loss);

  if (!c.has("dloss")) return;
  // dloss stands before a sum of rows, before their mean, or beside each row.
  const auto dloss = c.input_as<float>("dloss", loss.shape());
  index_t counted = 0;
  for (index_t i = 0; i < targets.size(); ++i) counted += targets(i) != options.ignore_index;
  Tensor<float, 2> dlogits(logits.shape()), in_place = logits;
  Tensor<float, 1> losses({logits.extent(0)});
  const auto write_gradients = [&](index_t begin, index_t end, float scale) {
    const auto rows = [&](auto&& x) { return x.slice(0, begin, end); };
    cross_entropy_backward(rows(dlogits.view()), rows(logits.view()), rows(targets.view()), scale,
                           options);
    cross_entropy_with_gradient(rows(losses.view()), rows(in_place.view()), rows(targets.view()),
                                scale, options);
  };
  if (by_row)
    for (index_t i = 0; i < logits.extent(0); ++i) write_gradients(i, i + 1, dloss(i));
  else
    write_gradients(0, logits.extent(0),
                    dloss(0) / (reduction == "sum" ? 1.f : static_cast<float>(counted)));
  c.expect("dlogits", dlogits);
  c.expect_again("dlogits", "in place", in_place);
  if (by_row) c.expect_again("loss", "with the gradient", losses);
}

}  // namespace rapt::golden
