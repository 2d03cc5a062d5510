// The names that --policy takes. A new one is a line in kPolicies, a parameter of the scheduler a line in
// kParameters.
#include <algorithm>
#include <array>
#include <charconv>

#include "base/strings.h"
#include "replay/picker.h"
#include "replay/production.h"

namespace fairway::replay {

namespace {

using Options = scheduling::SchedulerOptions;

struct Named {
  std::string_view name;
  Policy::Make make;
  bool declares_models;
  std::string_view what;
  void (*set)(Options& options) = nullptr;  // what makes it differ from the defaults
};

constexpr std::array kPolicies{
    Named{"fairway", MakeProduction, false, "Fairway, a pool without InferenceModels: the default profile"},
    Named{"fairway-tree", MakeProduction, true, "Fairway, a pool with InferenceModels: the criticality tree"},
    Named{"fairway-queue-kv-lora", MakeProduction, false, "queue, KV use and LoRA affinity instead",
          [](Options& o) { o.profile = scheduling::Profile::kQueueKvLora; }},
    Named{"fairway-active-request", MakeProduction, false, "least open requests instead",
          [](Options& o) { o.profile = scheduling::Profile::kActiveRequest; }},
    Named{"fairway-lmetric", MakeProduction, false, "uncached tokens x open requests instead",
          [](Options& o) { o.profile = scheduling::Profile::kLmetric; }},
    Named{"round-robin", MakeRoundRobin, false, "one server after the other"},
    Named{"random", MakeRandom, false, "any server"},
    Named{"least-requests", MakeLeastRequests, false, "fewest open requests of this picker's own"},
    Named{"power-of-two", MakePowerOfTwo, false, "the one of two drawn at random that has fewer of them"},
    Named{"oracle", MakeOracle, false,
          "knows every engine's true state: the earliest first token, the limit"},
};

// The parameters of Fairway's policies: fields of SchedulerOptions.
struct Parameter {
  std::string_view name;
  void (*set)(Options& options, double value);
};
constexpr std::array kParameters{
    Parameter{"critical-queue-limit",
              [](Options& o, double v) { o.critical_queue_limit = static_cast<float>(v); }},
    Parameter{"sheddable-queue-limit",
              [](Options& o, double v) { o.sheddable_queue_limit = static_cast<float>(v); }},
    Parameter{"sheddable-kv-limit",
              [](Options& o, double v) { o.sheddable_kv_limit = static_cast<float>(v); }},
    Parameter{"sheddable-work-limit",
              [](Options& o, double v) { o.sheddable_work_limit = static_cast<float>(v); }},
    Parameter{"lora-exploration", [](Options& o, double v) { o.lora_exploration = v; }},
    Parameter{"lora-load-cost", [](Options& o, double v) { o.lora_load_cost = static_cast<float>(v); }},
    Parameter{"request-cost", [](Options& o, double v) { o.request_cost = static_cast<float>(v); }},
    Parameter{"tolerance", [](Options& o, double v) { o.tolerance = static_cast<float>(v); }},
    Parameter{"unseen-tolerance", [](Options& o, double v) { o.unseen_tolerance = static_cast<float>(v); }},
    Parameter{"trust", [](Options& o, double v) { o.trust_in_others = static_cast<float>(v); }},
    Parameter{"prefix-cache", [](Options& o, double v) { o.prefix_cache = v != 0; }},
    // 1: the page's load columns alone, as a picker has them that keeps no account of its own.
    Parameter{"page-load",
              [](Options& o, double v) {
                o.load_source = v != 0 ? scheduling::LoadSource::kPage : scheduling::LoadSource::kLedger;
              }},
};

const Parameter* FindParameter(std::string_view name) {
  const auto found = std::find_if(kParameters.begin(), kParameters.end(),
                                  [&](const Parameter& parameter) { return parameter.name == name; });
  return found == kParameters.end() ? nullptr : &*found;
}

std::string Near(std::string_view wanted, const auto& table) {
  std::vector<std::string> names;
  names.reserve(table.size());
  for (const auto& entry : table) names.emplace_back(entry.name);
  const auto near = base::Nearest(wanted, names);
  return near ? "; did you mean \"" + *near + "\"?" : "; there are " + base::Join(names, ", ");
}

}  // namespace

void SetParameters(const Policy& policy, scheduling::SchedulerOptions& options) {
  if (policy.base != nullptr) policy.base(options);
  for (const auto& [name, value] : policy.parameters)
    if (const Parameter* parameter = FindParameter(name)) parameter->set(options, value);
}

base::Result<Policy> Policy::Find(std::string_view text) {
  const auto fail = [&](const std::string& what) {
    return base::Fail(base::ErrorCode::kInvalidArgument, "policy \"" + std::string(text) + "\": " + what);
  };
  const auto pieces = base::Split(text, ',');
  const auto found = std::find_if(kPolicies.begin(), kPolicies.end(),
                                  [&](const Named& named) { return named.name == base::Trim(pieces[0]); });
  if (found == kPolicies.end()) return fail("there is none of that name" + Near(pieces[0], kPolicies));
  Policy policy;
  policy.name_ = text;
  policy.make_ = found->make;
  policy.declares_models = found->declares_models;
  policy.base = found->set;
  for (size_t i = 1; i < pieces.size(); ++i) {
    const size_t equals = pieces[i].find('=');
    const std::string name(base::Trim(pieces[i].substr(0, equals)));
    if (found->make != MakeProduction) return fail("it has no parameters");
    if (FindParameter(name) == nullptr)
      return fail("no parameter \"" + name + "\"" + Near(name, kParameters));
    const std::string_view number =
        equals == std::string_view::npos ? "" : base::Trim(pieces[i].substr(equals + 1));
    double value = 0;
    const auto [end, error] = std::from_chars(number.data(), number.data() + number.size(), value);
    if (error != std::errc() || end != number.data() + number.size()) return fail(name + ": want a number");
    policy.parameters.emplace_back(name, value);
  }
  scheduling::SchedulerOptions options;
  SetParameters(policy, options);
  if (const auto ok = scheduling::CheckOptions(options); !ok) return fail(ok.error().message);
  return policy;
}

Policy Policy::ByConfig(std::string name, Compile compile) {
  Policy policy;
  policy.name_ = std::move(name);
  policy.make_ = MakeProduction;
  policy.compile = std::move(compile);
  return policy;
}

std::string Policy::Describe() {
  std::string text;
  for (const Named& named : kPolicies)
    text += "  " + std::string(named.name) + std::string(24 - named.name.size(), ' ') +
            std::string(named.what) + "\n";
  text += "Parameters of Fairway's, as in \"fairway,tolerance=0\":";
  for (const Parameter& parameter : kParameters) text += " " + std::string(parameter.name);
  return text;
}

}  // namespace fairway::replay
