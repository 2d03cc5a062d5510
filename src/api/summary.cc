#include "api/summary.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <vector>

namespace fairway::api {
namespace {

constexpr size_t kMaxEndpointsShown = 20;

std::string Pairs(const std::map<std::string, std::string>& pairs) {
  std::string out;
  for (const auto& [key, value] : pairs) {
    if (!out.empty()) out += ", ";
    out.append(key).append("=").append(value);
  }
  return out.empty() ? "(nothing)" : out;
}

std::string Share(int64_t weight, int64_t total) {
  if (total <= 0) return "0 %";
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.1f",
                100.0 * static_cast<double>(weight) / static_cast<double>(total));
  std::string out(text.data());
  if (out.ends_with(".0")) out.resize(out.size() - 2);
  return out + " %";
}

// " (metrics on 9100, https, /page)": what the endpoint says of it.
std::string MetricsPlace(const Endpoint& endpoint) {
  std::string text;
  const auto add = [&text](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (endpoint.metrics_port != 0 && endpoint.metrics_port != endpoint.port)
    add(std::to_string(endpoint.metrics_port));
  if (!endpoint.metrics_scheme.empty()) add(endpoint.metrics_scheme);
  if (!endpoint.metrics_path.empty()) add(endpoint.metrics_path);
  return text.empty() ? "" : " (metrics on " + text + ")";
}

std::string Address(const Endpoint& endpoint) {
  const bool v6 = endpoint.address.find(':') != std::string::npos;
  return (v6 ? "[" + endpoint.address + "]" : endpoint.address) + ":" + std::to_string(endpoint.port);
}

std::string_view Name(Criticality criticality) {
  switch (criticality) {
    case Criticality::kCritical:
      return "Critical";
    case Criticality::kStandard:
      return "Standard";
    case Criticality::kSheddable:
      return "Sheddable";
    case Criticality::kUnset:
      break;
  }
  return "unset";
}

void Line(std::string& out, int indent, std::string_view name, std::string_view value) {
  constexpr size_t kValueColumn = 20;
  std::string line(static_cast<size_t>(indent) * 2, ' ');
  line += name;
  line.resize(std::max(kValueColumn, line.size() + 1), ' ');
  out += line.append(value) + "\n";
}

std::string Targets(const InferenceModel& model) {
  if (model.targets.empty()) return model.model_name;
  int64_t total = 0;
  for (const InferenceModel::Target& target : model.targets) total += target.weight.value_or(1);
  std::string out;
  for (const InferenceModel::Target& target : model.targets) {
    if (!out.empty()) out += ", ";
    out += target.name;
    if (model.targets.size() > 1) {
      out += " (" + (target.weight ? "weight " + std::to_string(*target.weight) + ", " : std::string()) +
             Share(target.weight.value_or(1), total) + ")";
    }
  }
  return out;
}

std::string Matched(const InferenceModelRewrite::Rule& rule) {
  std::string out;
  for (const InferenceModelRewrite::Match& match : rule.matches)
    out += (out.empty() ? "" : ", ") + match.model;
  return rule.matches.empty() ? "any other model" : out;
}

std::string Targets(const InferenceModelRewrite::Rule& rule) {
  int64_t total = 0;
  for (const InferenceModelRewrite::Target& target : rule.targets) total += target.weight.value_or(0);
  const bool equal = total == 0;
  if (equal) total = static_cast<int64_t>(rule.targets.size());
  std::string out;
  for (const InferenceModelRewrite::Target& target : rule.targets) {
    if (!out.empty()) out += ", ";
    out += target.model;
    if (rule.targets.size() == 1) break;
    if (equal) {
      out += " (" + Share(1, total) + ")";
    } else if (target.weight) {
      out += " (weight " + std::to_string(*target.weight) + ", " + Share(*target.weight, total) + ")";
    } else {
      out += " (no weight, 0 %)";
    }
  }
  return out;
}

void AddPolicies(std::string& out, const Manifests& manifests, const InferencePool& pool) {
  const std::vector<const InferenceModelRewrite*> rewrites = RewritesOf(manifests, pool);
  for (const bool exact : {true, false}) {
    for (const InferenceModelRewrite* rewrite : rewrites) {
      for (const InferenceModelRewrite::Rule& rule : rewrite->rules) {
        if (rule.matches.empty() == exact) continue;
        Line(out, 1, "rewrite", Matched(rule) + " -> " + Targets(rule) + " (" + rewrite->meta.name + ")");
      }
    }
  }
  for (const InferenceObjective* objective : ObjectivesOf(manifests, pool)) {
    Line(out, 1, "objective",
         objective->meta.name + ": priority " + std::to_string(objective->priority) +
             (objective->priority < 0 ? ", may be shed" : ""));
  }
}

void AddPool(std::string& out, const Manifests& manifests, const InferencePool& pool) {
  out += "InferencePool " + Key(pool.meta) + " (" + pool.group + ")\n";
  Line(out, 1, "selector", Pairs(pool.selector));
  std::string ports;
  for (const uint16_t port : pool.target_ports) ports += (ports.empty() ? "" : ", ") + std::to_string(port);
  Line(out, 1, "ports", ports + (pool.app_protocol == AppProtocol::kH2c ? " (h2c)" : " (http)"));
  // Without a picker the CRD's default for one holds: a request that cannot be picked for fails.
  const bool open = pool.picker && pool.picker->failure_mode == FailureMode::kFailOpen;
  Line(out, 1, "failure mode", open ? "FailOpen" : "FailClose");

  std::vector<const Endpoint*> endpoints;
  for (const Endpoint& endpoint : manifests.endpoints) {
    if (BelongsTo(endpoint, pool)) {
      endpoints.push_back(&endpoint);
    }
  }
  Line(out, 1, "endpoints", endpoints.empty() ? "none" : std::to_string(endpoints.size()));
  for (size_t i = 0; i < std::min(endpoints.size(), kMaxEndpointsShown); ++i) {
    const Endpoint& endpoint = *endpoints[i];
    Line(out, 2, endpoint.name, Address(endpoint) + MetricsPlace(endpoint));
  }
  if (endpoints.size() > kMaxEndpointsShown) {
    out += "    and " + std::to_string(endpoints.size() - kMaxEndpointsShown) + " more\n";
  }

  const std::vector<const InferenceModel*> models = ModelsOf(manifests, pool);
  if (models.empty()) Line(out, 1, "models", "any (no InferenceModel names this pool)");
  for (const InferenceModel* model : models) {
    Line(out, 1, "model",
         model->model_name + " [" + std::string(Name(model->criticality)) + "] -> " + Targets(*model));
  }
  AddPolicies(out, manifests, pool);
}

void AddGateway(std::string& out, const Gateway& gateway) {
  out += "Gateway " + Key(gateway.meta) + "\n";
  for (const Gateway::Listener& listener : gateway.listeners) {
    Line(out, 1, "listener",
         listener.name + ": port " + std::to_string(listener.port) + ", " + listener.protocol + ", " +
             (listener.hostname.empty() ? "all hosts" : "host " + listener.hostname) +
             (listener.protocol == "HTTP" ? "" : " (not served locally)"));
  }
}

std::string Describe(const HttpRoute::ValueMatch& match) {
  return match.name + (match.regex ? "~" : "=") + match.value;
}

std::string Describe(const HttpRoute::Match& match) {
  std::string out;
  switch (match.path_type) {
    case HttpRoute::PathType::kPrefix:
      out = "prefix ";
      break;
    case HttpRoute::PathType::kExact:
      out = "path ";
      break;
    case HttpRoute::PathType::kRegex:
      out = "regex ";
      break;
  }
  out += match.path;
  if (!match.method.empty()) out += ", method " + match.method;
  for (const HttpRoute::ValueMatch& header : match.headers) out += ", header " + Describe(header);
  for (const HttpRoute::ValueMatch& query : match.query) out += ", query " + Describe(query);
  return out;
}

void AddRoute(std::string& out, const HttpRoute& route) {
  out += "HTTPRoute " + Key(route.meta) + "\n";
  for (const HttpRoute::ParentRef& parent : route.parents) {
    std::string name = Key(parent.namespace_name, parent.name);
    if (!parent.section_name.empty()) name += ", listener " + parent.section_name;
    if (parent.port) name += ", port " + std::to_string(*parent.port);
    Line(out, 1, "gateway", name);
  }
  for (const std::string& host : route.hostnames) Line(out, 1, "host", host);
  for (const HttpRoute::Rule& rule : route.rules) {
    for (const HttpRoute::Match& match : rule.matches) Line(out, 1, "match", Describe(match));
    if (rule.request_timeout_ms > 0) Line(out, 2, "timeout", std::to_string(rule.request_timeout_ms) + " ms");
    int64_t total = 0;
    for (const HttpRoute::Backend& backend : rule.backends) total += backend.weight;
    for (const HttpRoute::Backend& backend : rule.backends) {
      std::string text = backend.kind + " " + Key(backend.namespace_name, backend.name);
      if (rule.backends.size() > 1 || backend.weight != 1) {
        text += " (weight " + std::to_string(backend.weight) + ", " + Share(backend.weight, total) + ")";
      }
      if (backend.kind != "InferencePool") text += " (not served locally)";
      Line(out, 2, "to", text);
    }
    if (rule.backends.empty()) Line(out, 2, "to", "nothing: answered with 500");
  }
}

}  // namespace

std::string Summarize(const Manifests& manifests) {
  std::string out;
  for (const InferencePool& pool : manifests.pools) AddPool(out, manifests, pool);
  for (const Gateway& gateway : manifests.gateways) AddGateway(out, gateway);
  if (manifests.gateways.empty() && !manifests.routes.empty())
    out += "Gateway: none given; local mode adds a listener of its own\n";
  for (const HttpRoute& route : manifests.routes) AddRoute(out, route);
  if (manifests.pools.empty() && !manifests.endpoints.empty()) {
    out += "endpoints without an InferencePool: " + std::to_string(manifests.endpoints.size()) + "\n";
    for (size_t i = 0; i < std::min(manifests.endpoints.size(), kMaxEndpointsShown); ++i) {
      Line(out, 1, manifests.endpoints[i].name, Address(manifests.endpoints[i]));
    }
  }
  return out.empty() ? "nothing to serve\n" : out;
}

}  // namespace fairway::api
