#include "checks.h"

#include <vector>

namespace rapkernels {
namespace {

struct NamedRule {
  const char* name;
  Rule::Kind kind;
  std::vector<const char*> parameters;
};

const std::vector<NamedRule>& known_rules() {
  static const std::vector<NamedRule> rules = {
      {"rap", Rule::kRap, {}},
      {"rap_conv", Rule::kRapConv, {}},
      {"absolute", Rule::kAbsolute, {}},
      {"epsilon", Rule::kEpsilon, {"epsilon"}},
      {"gamma", Rule::kGamma, {"gamma", "stabilizer"}},
      {"alpha_beta", Rule::kAlphaBeta, {"alpha", "beta", "stabilizer"}},
  };
  return rules;
}

std::string joined(const std::vector<const char*>& names) {
  std::string all;
  for (const char* name : names) all += (all.empty() ? "" : ", ") + std::string(name);
  return all;
}

}  // namespace

Rule parse_rule(const char* op, std::string_view rule, at::ArrayRef<double> parameters,
                const OptionalTensor& bias, const Tensor& weight) {
  const NamedRule* known = nullptr;
  for (const NamedRule& candidate : known_rules()) {
    if (rule == candidate.name) known = &candidate;
  }
  TORCH_CHECK(known != nullptr, op,
              ": rule must be 'rap', 'rap_conv', 'absolute', 'epsilon', 'gamma' or 'alpha_beta', "
              "got '",
              rule, "'");
  TORCH_CHECK(parameters.size() == known->parameters.size(), op, ": parameters must be (",
              joined(known->parameters), ") for rule '", rule, "', got ", parameters.size(),
              " entries");
  Rule parsed{known->kind, {}};
  for (size_t i = 0; i < parameters.size(); ++i) {
    check_at_least_zero(op, "parameters", parameters[i],
                        std::string(" for ") + known->parameters[i]);
    parsed.parameters[i] = parameters[i];
  }
  if (bias) {
    check_like(op, "bias", *bias, "x", weight);
    check_shape(op, "bias", *bias, {weight.size(0)});
  }
  return parsed;
}

}  // namespace rapkernels
