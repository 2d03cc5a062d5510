// Gateway and HTTPRoute: fields, defaults and checks of the Gateway API's CRDs. What local mode does not
// serve is read, checked for its name and warned about.
#include <algorithm>
#include <set>

#include "api/decode.h"
#include "base/strings.h"

namespace fairway::api {
namespace {

constexpr size_t kMaxListeners = 64;
constexpr size_t kMaxParents = 32;
constexpr size_t kMaxHostnames = 16;
constexpr size_t kMaxRules = 16;
constexpr size_t kMaxMatches = 64;
constexpr size_t kMaxMatchesOfRoute = 128;
constexpr size_t kMaxBackends = 16;
constexpr size_t kMaxValueMatches = 16;

Gateway::Listener ReadListener(const Node& item) {
  ObjectReader reader(item);
  Gateway::Listener listener;
  listener.where = item.where();
  listener.name = ReadText(reader.Require("name"), CheckDnsSubdomain);
  listener.port = ReadPort(reader.Require("port")).value_or(0);
  const Node protocol = reader.Require("protocol");
  listener.protocol = protocol.Text().value_or("");
  const std::vector<std::string> known{"HTTP", "HTTPS", "TLS", "TCP", "UDP"};
  if (protocol.present() && !listener.protocol.empty() && listener.protocol != "HTTP") {
    const bool is_known = std::find(known.begin(), known.end(), listener.protocol) != known.end();
    const std::string hint = is_known ? "" : DidYouMean(listener.protocol, known);
    if (!hint.empty()) {
      protocol.Error("want one of HTTP, HTTPS, TLS, TCP, UDP, got " + Quote(listener.protocol) + hint);
    } else {
      protocol.Warn("a listener of protocol " + Quote(listener.protocol) + " is not served locally; HTTP is");
    }
  }
  const Node hostname = reader.Get("hostname");
  if (!(hostname.Is(Value::Kind::kString) && hostname.value().text.empty())) {
    listener.hostname = ReadText(hostname, CheckHostname);
  }
  const bool plain = listener.protocol == "HTTP" || listener.protocol == "TCP" || listener.protocol == "UDP";
  const Node tls = reader.Get("tls");
  if (tls.present() && plain) {
    tls.Error("must not be set for protocol " + listener.protocol);
  } else if (tls.present()) {
    tls.Warn("is not served locally and has no effect here");
  }
  reader.NotServed({"allowedRoutes"});
  reader.Finish();
  return listener;
}

void CheckRegex(const Node& value, const std::string& text) {
  const CheckPattern* check = value.context().check_pattern;
  if (check == nullptr) return;
  if (std::string why = (*check)(text); !why.empty()) value.Error(std::move(why));
}

HttpRoute::ValueMatch ReadValueMatch(const Node& item, bool header) {
  ObjectReader reader(item);
  HttpRoute::ValueMatch match;
  match.regex = ReadChoice(reader.Get("type"), {"Exact", "RegularExpression"}).value_or(0) == 1;
  match.name = ReadText(reader.Require("name"), CheckHeaderName);
  const TextRule header_value = [](std::string_view text) -> std::string {
    return !text.empty() && text.size() <= 4096 ? "" : "want 1 to 4096 characters";
  };
  const TextRule query_value = [](std::string_view text) -> std::string {
    return !text.empty() && text.size() <= 1024 ? "" : "want 1 to 1024 characters";
  };
  const Node value = reader.Require("value");
  match.value = ReadText(value, header ? header_value : query_value);
  if (match.regex && value.present()) CheckRegex(value, match.value);
  reader.Finish();
  return match;
}

std::vector<HttpRoute::ValueMatch> ReadValueMatches(const Node& node, bool header) {
  std::vector<HttpRoute::ValueMatch> matches;
  std::set<std::string> names;
  for (const Node& item : node.Items(0, kMaxValueMatches)) {
    matches.push_back(ReadValueMatch(item, header));
    const std::string& name = matches.back().name;
    // Header names are the same in any case; only the first of them would count.
    if (!name.empty() && !names.insert(header ? base::ToLower(name) : name).second) {
      item.Child("name").Error(Quote(name) +
                               " is matched twice in one match; write one of them in a second match");
    }
  }
  return matches;
}

HttpRoute::Match ReadMatch(const Node& item) {
  using PathType = HttpRoute::PathType;
  ObjectReader reader(item);
  HttpRoute::Match match;
  ObjectReader path(reader.Get("path"));
  if (path.valid()) {
    match.path_type = ReadEnum(path.Get("type"), {"PathPrefix", "Exact", "RegularExpression"},
                               {PathType::kPrefix, PathType::kExact, PathType::kRegex}, PathType::kPrefix);
    const TextRule regex = [](std::string_view text) -> std::string {
      return text.size() <= 1024 ? "" : "must have at most 1024 characters";
    };
    const Node value = path.Get("value");
    match.path = ReadTextOr(value, match.path_type == PathType::kRegex ? regex : CheckHttpPath, "/");
    if (match.path_type == PathType::kRegex && value.present()) CheckRegex(value, match.path);
    path.Finish();
  }
  match.headers = ReadValueMatches(reader.Get("headers"), true);
  match.query = ReadValueMatches(reader.Get("queryParams"), false);
  const Node method = reader.Get("method");
  if (ReadChoice(method, {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})) {
    match.method = method.value().text;
  }
  reader.Finish();
  return match;
}

// What kind a backend names, with the mistakes that are easily made.
void CheckBackendKind(const Node& group, const Node& kind, const HttpRoute::Backend& backend) {
  const bool inference_group = backend.group == kInferenceGroup || backend.group == kInferenceGroupX;
  if (group.present() && backend.group.empty() &&
      !(group.Is(Value::Kind::kString) && group.value().text.empty())) {
    return;  // the group itself is wrong, which is reported
  }
  const std::string groups = Quote(kInferenceGroup) + " or " + Quote(kInferenceGroupX);
  if (backend.kind == "InferencePool") {
    if (inference_group) return;
    const std::vector<std::string> known{std::string(kInferenceGroup), std::string(kInferenceGroupX)};
    if (!group.present()) {
      group.Error("is required for an InferencePool: " + groups);
    } else {
      group.Error("an InferencePool has the group " + groups + ", got " + Quote(backend.group) +
                  DidYouMean(backend.group, known));
    }
    return;
  }
  const std::vector<std::string> pool{"InferencePool"};
  if (inference_group && backend.kind == "Service" && !kind.present()) {
    kind.Error("is required for an InferencePool: kind: InferencePool (the default is Service)");
  } else if (inference_group || !DidYouMean(backend.kind, pool).empty()) {
    kind.Error("want InferencePool, got " + Quote(backend.kind) + DidYouMean(backend.kind, pool));
  } else {
    kind.Warn("a backend of kind " + Quote(backend.kind) + " is not served locally; InferencePool is");
  }
}

HttpRoute::Backend ReadBackend(const Node& item, const ObjectMeta& meta) {
  ObjectReader reader(item);
  HttpRoute::Backend backend;
  backend.where = item.where();
  const Node group = reader.Get("group");
  const Node kind = reader.Get("kind");
  backend.group = ReadText(group, CheckGroup);
  backend.kind = ReadTextOr(kind, CheckKind, "Service");
  if (reader.valid() && !backend.kind.empty()) CheckBackendKind(group, kind, backend);
  const Node name = reader.Require("name");
  backend.name = ReadText(name, CheckReferentName);
  if (name.present()) backend.where = name.where();
  backend.namespace_name = ReadTextOr(reader.Get("namespace"), CheckDnsLabel, meta.namespace_name);
  const Node port = reader.Get("port");  // an InferencePool has its own; conformance wants any value ignored
  ReadPort(port);
  if (reader.valid() && backend.kind == "Service" && backend.group.empty() && kind.present() &&
      !port.present()) {
    port.Error("is required for a Service");
  }
  backend.weight = static_cast<int32_t>(reader.Get("weight").Integer(0, kMaxWeight).value_or(1));
  reader.NotServed({"filters"});
  reader.Finish();
  return backend;
}

std::optional<int64_t> ReadDuration(const Node& node) {
  const auto text = node.Text();
  if (!text) return std::nullopt;
  const auto duration = ParseGatewayDuration(*text);
  if (!duration) node.Error("want a duration such as \"30s\", \"500ms\" or \"1m30s\", got " + Quote(*text));
  return duration;
}

HttpRoute::Rule ReadRule(const Node& item, const ObjectMeta& meta, size_t& matches_of_route) {
  ObjectReader reader(item);
  HttpRoute::Rule rule;
  rule.where = item.where();
  reader.Ignore({"name"});
  for (const Node& match : reader.Get("matches").Items(0, kMaxMatches))
    rule.matches.push_back(ReadMatch(match));
  matches_of_route += rule.matches.size();
  if (rule.matches.empty()) rule.matches.emplace_back();
  const Node backends = reader.Get("backendRefs");
  for (const Node& backend : backends.Items(0, kMaxBackends))
    rule.backends.push_back(ReadBackend(backend, meta));
  if (reader.valid() && rule.backends.empty() && (!backends.present() || backends.Is(Value::Kind::kList))) {
    backends.Warn("is empty: requests that match this rule are answered with 500");
  } else if (!rule.backends.empty() &&
             std::all_of(rule.backends.begin(), rule.backends.end(),
                         [](const HttpRoute::Backend& b) { return b.weight == 0; })) {
    backends.Warn("all weights are 0: requests that match this rule are answered with 500");
  }
  ObjectReader timeouts(reader.Get("timeouts"));
  if (timeouts.valid()) {
    const auto request = ReadDuration(timeouts.Get("request"));
    rule.request_timeout_ms = request.value_or(0);
    const Node backend_node = timeouts.Get("backendRequest");
    const auto backend = ReadDuration(backend_node);
    if (request && backend && *request != 0 && *backend > *request) {
      backend_node.Error("cannot be longer than timeouts.request");
    } else if (backend) {
      backend_node.Warn("is not served locally and has no effect here");
    }
    timeouts.Finish();
  }
  reader.NotServed({"filters", "retry", "sessionPersistence"});
  reader.Finish();
  return rule;
}

void ReadParent(const Node& item, HttpRoute& route) {
  ObjectReader reader(item);
  HttpRoute::ParentRef parent;
  parent.where = item.where();
  const Node group = reader.Get("group");
  const Node kind = reader.Get("kind");
  const std::string group_name = ReadTextOr(group, CheckGroup, kGatewayGroup);
  const std::string kind_name = ReadTextOr(kind, CheckKind, "Gateway");
  const Node name = reader.Require("name");
  parent.name = ReadText(name, CheckReferentName);
  if (name.present()) parent.where = name.where();
  parent.namespace_name = ReadTextOr(reader.Get("namespace"), CheckDnsLabel, route.meta.namespace_name);
  parent.section_name = ReadText(reader.Get("sectionName"), CheckDnsSubdomain);
  parent.port = ReadPort(reader.Get("port"));
  reader.Finish();
  if (!reader.valid() || parent.name.empty()) return;
  const std::vector<std::string> gateway{"Gateway"};
  if (kind_name != "Gateway" && !kind_name.empty()) {
    if (const std::string hint = DidYouMean(kind_name, gateway); !hint.empty()) {
      kind.Error("want Gateway, got " + Quote(kind_name) + hint);
    } else {
      kind.Warn("a parent of kind " + Quote(kind_name) + " is not served locally; Gateway is");
    }
    return;
  }
  if (group_name != kGatewayGroup) {
    if (group_name.empty() && !(group.Is(Value::Kind::kString) && group.value().text.empty())) return;
    group.Error("a Gateway has the group " + Quote(kGatewayGroup) + ", got " + Quote(group_name));
    return;
  }
  const bool twice =
      std::any_of(route.parents.begin(), route.parents.end(), [&](const HttpRoute::ParentRef& p) {
        return p.name == parent.name && p.namespace_name == parent.namespace_name &&
               p.section_name == parent.section_name && p.port == parent.port;
      });
  if (twice) {
    item.Error("the same parent is here twice; tell them apart by sectionName or port");
    return;
  }
  route.parents.push_back(std::move(parent));
}

}  // namespace

Gateway ReadGateway(ObjectReader& root, ObjectMeta meta) {
  Gateway gateway;
  gateway.meta = std::move(meta);
  ObjectReader spec(root.Require("spec"));
  gateway.class_name = ReadText(spec.Require("gatewayClassName"), CheckReferentName);
  std::set<std::string> names;
  for (const Node& item : spec.Require("listeners").Items(1, kMaxListeners)) {
    Gateway::Listener listener = ReadListener(item);
    if (!listener.name.empty() && !names.insert(listener.name).second) {
      item.Child("name").Error("a listener " + Quote(listener.name) +
                               " is there already; listener names must be unique");
    }
    const auto same =
        std::find_if(gateway.listeners.begin(), gateway.listeners.end(), [&](const Gateway::Listener& l) {
          return l.port == listener.port && l.protocol == listener.protocol &&
                 l.hostname == listener.hostname;
        });
    if (listener.port != 0 && !listener.protocol.empty() && same != gateway.listeners.end()) {
      item.Error("port, protocol and hostname are those of listener " + Quote(same->name) +
                 "; their combination must be unique");
    }
    gateway.listeners.push_back(std::move(listener));
  }
  spec.NotServed({"addresses", "infrastructure", "backendTLS", "tls", "allowedListeners", "defaultScope"});
  spec.Finish();
  return gateway;
}

HttpRoute ReadRoute(ObjectReader& root, ObjectMeta meta) {
  HttpRoute route;
  route.meta = std::move(meta);
  ObjectReader spec(root.Require("spec"));
  for (const Node& item : spec.Get("parentRefs").Items(0, kMaxParents)) ReadParent(item, route);
  for (const Node& item : spec.Get("hostnames").Items(0, kMaxHostnames)) {
    if (std::string host = ReadText(item, CheckHostname); !host.empty())
      route.hostnames.push_back(std::move(host));
  }
  const Node rules = spec.Get("rules");
  size_t matches = 0;
  for (const Node& item : rules.Items(1, kMaxRules))
    route.rules.push_back(ReadRule(item, route.meta, matches));
  if (matches > kMaxMatchesOfRoute) {
    rules.Error("want at most 128 matches in all rules together, got " + std::to_string(matches));
  }
  if (spec.valid() && !rules.present()) {
    rules.Warn("is empty: the route sends nothing anywhere");
  }
  spec.NotServed({"useDefaultGateways"});
  spec.Mistaken("gateways", "the gateways of a route stand under parentRefs");
  spec.Finish();
  return route;
}

}  // namespace fairway::api
