// One golden case: its tensors, its config, and the comparison of what the library computed.
//
// An operation's handler reads inputs with input(), hands every result to expect() and names
// gradients that the library cannot compute yet with gradient(). When it returns, every tensor of
// the case must have been one of the three: a tensor nobody asked for is a failure, so a case can
// not pass because something was forgotten.
//
//   |got - want| <= atol + rtol * |want|         -inf must be -inf, NaN must be NaN
//
// There is no mathematics here: reading, calling, comparing.
#pragma once

#include <cmath>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "rapt/core/convert.hpp"
#include "rapt/core/error.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/io/safetensors.hpp"

namespace rapt::golden {

using Json = nlohmann::json;

/// Thrown by a handler that meets a mechanism which the library does not have yet.
struct Unsupported {
  std::string what;
};

/// A case that cannot be read or that the library computed wrongly; the text says why.
struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Tolerance {
  double absolute = 0, relative = 0;
};

/// What is known about a case when its handler has returned.
struct Comparison {
  double error = 0;      // at the element that used the largest share of its tolerance
  double allowed = 0;    // the tolerance of that element
  double share = -1;     // error / allowed; -1: nothing compared
  std::string tensor;    // where
  std::string mismatch;  // first tensor that does not fit; empty: all do
};

class Case {
 public:
  /// `entry` is one element of the index's `cases`. Opens the case's file, whose own metadata must
  /// agree with the index on what the case is.
  Case(const std::filesystem::path& folder, const Json& entry)
      : folder_(folder),
        name_(entry.at("case").get<std::string>()),
        op_(entry.at("op").get<std::string>()),
        config_(entry.value("config", Json::object())),
        tolerance_(entry.value("tolerance", Json::object())),
        file_(SafetensorsFile::open(folder / entry.at("file").get<std::string>())) {
    const auto op = file_.metadata().find("op");
    if (op != file_.metadata().end() && op->second != op_)
      throw Failure("the file says op " + op->second + ", the index " + op_);
    if (const auto listed = entry.find("tensors"); listed != entry.end())
      for (const auto& [tensor, info] : listed->items()) check_listed(tensor, info);
  }

  const std::filesystem::path& folder() const { return folder_; }
  const std::string& name() const { return name_; }
  const std::string& op() const { return op_; }
  const Json& config() const { return config_; }
  const Comparison& comparison() const { return comparison_; }

  /// A setting; where it is missing or null, `otherwise`.
  template <class T>
  T setting(const char* key, T otherwise) const {
    const auto found = config_.find(key);
    return found == config_.end() || found->is_null() ? otherwise : found->get<T>();
  }
  template <class T>
  T setting(const char* key) const {
    const auto found = config_.find(key);
    if (found == config_.end()) throw Failure(std::string("config has no ") + key);
    return found->get<T>();
  }

  bool has(std::string_view tensor) const { return file_.has(tensor); }
  const std::vector<index_t>& shape(std::string_view tensor) const {
    return file_.info(tensor).shape;
  }
  index_t rank(std::string_view tensor) const { return static_cast<index_t>(shape(tensor).size()); }
  std::vector<std::string> names_with_prefix(std::string_view prefix) const {
    std::vector<std::string> out;
    for (const auto& tensor : file_.names())
      if (tensor.starts_with(prefix)) out.push_back(tensor);
    return out;
  }

  /// An input, converted to T. The rank must be the stored one.
  template <class T, std::size_t Rank>
  Tensor<T, Rank> input(std::string_view tensor) {
    seen_.insert(std::string(tensor));
    return file_.load<T, Rank>(tensor);
  }
  /// An input of any rank in another shape of as many elements.
  template <class T, std::size_t Rank>
  Tensor<T, Rank> input_as(std::string_view tensor, Shape<Rank> shape) {
    seen_.insert(std::string(tensor));
    auto out = Tensor<T, Rank>::uninitialized(shape);
    file_.read(tensor, std::span<T>(out.data(), static_cast<std::size_t>(out.size())));
    return out;
  }
  /// An input as a matrix whose last axis is the stored one: [.., n] as [rows, n].
  template <class T>
  Tensor<T, 2> input_rows(std::string_view tensor) {
    const auto& stored = shape(tensor);
    const index_t width = stored.empty() ? 1 : stored.back();
    const index_t elements = file_.info(tensor).elements();
    return input_as<T>(tensor, Shape(width > 0 ? elements / width : 0, width));
  }

  /// Which elements (by row-major index) are compared; all where it is empty.
  using Where = std::function<bool(index_t)>;

  /// Compares a result with the stored tensor of that name; axes of extent 1 may be left out of
  /// either shape.
  template <class X>
  void expect(const std::string& tensor, const X& got, const Where& where = {}) {
    expect_stored(tensor, tensor, got, where);
  }
  /// The same where `got` is computed a second time, in another way.
  template <class X>
  void expect_again(const std::string& tensor, const std::string& how, const X& got,
                    const Where& where = {}) {
    expect_stored(tensor, tensor + " (" + how + ")", got, where);
  }
  /// A stored alternative that the library does not offer.
  void leave_out(const std::string& tensor) {
    if (has(tensor)) seen_.insert(tensor);
  }

  /// The gradient of an operation, or the upstream gradient it starts from: not computed yet.
  void gradient(const std::string& tensor) {
    if (!has(tensor)) return;
    seen_.insert(tensor);
    has_gradients_ = true;
  }
  bool has_gradients() const { return has_gradients_; }

  /// Throws where something was stored and nobody looked at it.
  void finish() const {
    for (const auto& tensor : file_.names())
      if (!seen_.contains(tensor)) throw Failure("tensor " + tensor + " was not computed");
    if (comparison_.share < 0) throw Failure("nothing was compared");
  }

 private:
  void check_listed(const std::string& tensor, const Json& info) const {
    if (!file_.has(tensor))
      throw Failure("the index lists tensor " + tensor + ", the file has none");
    const auto& stored = file_.info(tensor);
    if (info.contains("shape") && info.at("shape").get<std::vector<index_t>>() != stored.shape)
      throw Failure("tensor " + tensor + " is " + detail::shape_text(stored.shape) +
                    " in the file, " + info.at("shape").dump() + " in the index");
    if (info.contains("dtype") && info.at("dtype").get<std::string>() != stored.dtype_name)
      throw Failure("tensor " + tensor + " is " + stored.dtype_name + " in the file, " +
                    info.at("dtype").get<std::string>() + " in the index");
  }

  /// An exact name wins over a prefix, the longest prefix over a shorter one, all over `default`.
  Tolerance tolerance_of(const std::string& tensor) const {
    const Json* found = nullptr;
    std::size_t length = 0;
    for (const auto& [key, value] : tolerance_.items()) {
      if (key == tensor) {
        found = &value;
        break;
      }
      if (!key.empty() && key.back() == '*' && tensor.starts_with(key.substr(0, key.size() - 1)) &&
          (found == nullptr || key.size() > length)) {
        found = &value;
        length = key.size();
      }
    }
    if (found == nullptr) {
      const auto fallback = tolerance_.find("default");
      if (fallback == tolerance_.end()) throw Failure("no tolerance for tensor " + tensor);
      found = &*fallback;
    }
    if (!found->is_array() || found->size() != 2)
      throw Failure("the tolerance of tensor " + tensor + " is " + found->dump() +
                    ", expected [atol, rtol]");
    return {found->at(0).get<double>(), found->at(1).get<double>()};
  }

  static std::vector<index_t> without_ones(std::vector<index_t> shape) {
    std::erase(shape, 1);
    return shape;
  }

  template <class X>
  void expect_stored(const std::string& tensor, const std::string& label, const X& got,
                     const Where& where) {
    const auto result = clone(got);  // row-major
    const auto& stored = file_.info(tensor);
    seen_.insert(tensor);
    const std::vector<index_t> shape(result.shape().begin(), result.shape().end());
    if (without_ones(shape) != without_ones(stored.shape))
      throw Failure(label + " is " + detail::shape_text(shape) + ", expected " +
                    detail::shape_text(stored.shape));
    using T = element_t<X>;
    const auto want = input_as<double>(tensor, Shape<1>{stored.elements()});
    const Tolerance tolerance = tolerance_of(tensor);
    for (index_t i = 0; i < want.size(); ++i)
      if (!where || where(i))
        compare(label, i, static_cast<double>(convert<T>(result.data()[i])), want(i), tolerance);
  }

  void compare(const std::string& label, index_t i, double got, double want, Tolerance tolerance) {
    const double error = distance(got, want);
    const double allowed = tolerance.absolute + tolerance.relative * magnitude(want);
    const bool fits = error <= allowed;  // false for NaN
    const double share = error == 0 ? 0 : allowed > 0 ? error / allowed : HUGE_VAL;
    if (comparison_.share < 0 || !(share <= comparison_.share)) {
      comparison_.share = std::isnan(share) ? HUGE_VAL : share;
      comparison_.error = error;
      comparison_.allowed = allowed;
      comparison_.tensor = label;
    }
    if (!fits && comparison_.mismatch.empty())
      comparison_.mismatch =
          detail::text(label, "[", i, "] is ", got, ", expected ", want, " within ", allowed);
  }
  /// 0 for two NaN and for two equal infinities; infinite where only one is such.
  static double distance(double got, double want) {
    if (std::isnan(want) || std::isnan(got))
      return std::isnan(want) && std::isnan(got) ? 0 : HUGE_VAL;
    if (got == want) return 0;
    return std::fabs(got - want);
  }
  static double magnitude(double want) { return std::isfinite(want) ? std::fabs(want) : 0; }

  std::filesystem::path folder_;
  std::string name_, op_;
  Json config_, tolerance_;
  SafetensorsFile file_;
  std::set<std::string> seen_;
  bool has_gradients_ = false;
  Comparison comparison_;
};

/// Runs one case: reads, calls the library, compares.
using Handler = void (*)(Case&);

void run_sdpa(Case&);
void run_rope(Case&);
void run_rmsnorm(Case&);
void run_layernorm(Case&);
void run_gated_mlp(Case&);
void run_linear(Case&);
void run_embedding(Case&);
void run_softcap(Case&);
void run_cross_entropy(Case&);
void run_sampling(Case&);
void run_round_format(Case&);
void run_decode_format(Case&);
void run_quantize_int8(Case&);
void run_quantize_int8_given_scale(Case&);
void run_quantize_fp8(Case&);
void run_attention_module(Case&);
void run_causal_lm(Case&);
void run_adamw(Case&);
void run_lr_schedule(Case&);
void run_clip_grad_norm(Case&);
void run_training_run(Case&);

/// Handlers by the op's name; an op without one is unsupported.
inline const std::map<std::string, Handler, std::less<>>& handlers() {
  static const std::map<std::string, Handler, std::less<>> table = {
      {"sdpa", run_sdpa},
      {"rope", run_rope},
      {"rmsnorm", run_rmsnorm},
      {"layernorm", run_layernorm},
      {"gated_mlp", run_gated_mlp},
      {"linear", run_linear},
      {"embedding", run_embedding},
      {"softcap", run_softcap},
      {"cross_entropy", run_cross_entropy},
      {"sampling", run_sampling},
      {"round_format", run_round_format},
      {"decode_format", run_decode_format},
      {"quantize_int8", run_quantize_int8},
      {"quantize_int8_given_scale", run_quantize_int8_given_scale},
      {"quantize_fp8", run_quantize_fp8},
      {"attention_module", run_attention_module},
      {"causal_lm", run_causal_lm},
      {"adamw", run_adamw},
      {"lr_schedule", run_lr_schedule},
      {"clip_grad_norm", run_clip_grad_norm},
      {"training_run", run_training_run},
  };
  return table;
}

}  // namespace rapt::golden
