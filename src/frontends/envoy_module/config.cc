#include "frontends/envoy_module/config.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <utility>

#include "api/decode.h"
#include "base/strings.h"

namespace fairway::envoy_module {
namespace {

using api::Node;
using api::ObjectReader;
using api::Value;

constexpr std::string_view kSource = "filter_config";
constexpr size_t kMaxList = 10'000;
constexpr uint64_t kMaxBody = 1u << 30;

// A value as JSON text, so that objects written inside the configuration are read as any other manifest.
void AppendJson(std::string& out, const Value& value) {
  switch (value.kind) {
    case Value::Kind::kNull:
      out += "null";
      return;
    case Value::Kind::kBool:
    case Value::Kind::kNumber:
      out += value.text;
      return;
    case Value::Kind::kString:
      base::AppendJsonString(out, value.text);
      return;
    case Value::Kind::kList:
      out += '[';
      for (const auto& item : value.items) {
        if (out.back() != '[') out += ',';
        AppendJson(out, *item);
      }
      out += ']';
      return;
    case Value::Kind::kMap:
      out += '{';
      for (const auto& entry : value.entries) {
        if (out.back() != '{') out += ',';
        base::AppendJsonString(out, entry.key);
        out += ':';
        AppendJson(out, *entry.value);
      }
      out += '}';
      return;
  }
}

std::optional<double> ReadNumber(const Node& node, double min, double max) {
  if (!node.present()) return std::nullopt;
  double number = 0;
  if (node.Is(Value::Kind::kNumber)) {
    const std::string& text = node.value().text;
    const auto read = std::from_chars(text.data(), text.data() + text.size(), number);
    if (read.ec == std::errc() && std::isfinite(number) && number >= min && number <= max) return number;
  }
  const auto shown = [](double value) {
    std::string text = std::to_string(value);
    text.erase(text.find_last_not_of('0') + 1);
    if (text.back() == '.') text.pop_back();
    return text;
  };
  node.Error("want a number from " + shown(min) + " to " + shown(max));
  return std::nullopt;
}

// An integer that a Struct may have made a double of: 3 comes as 3 or 3.0.
std::optional<uint64_t> ReadWhole(const Node& node, uint64_t min, uint64_t max) {
  if (!node.present()) return std::nullopt;
  const auto number = ReadNumber(node, static_cast<double>(min), static_cast<double>(max));
  if (!number) return std::nullopt;
  if (*number != std::floor(*number)) {
    node.Error("want a whole number");
    return std::nullopt;
  }
  return static_cast<uint64_t>(*number);
}

std::optional<bool> ReadBool(const Node& node) {
  if (!node.present()) return std::nullopt;
  if (!node.Is(Value::Kind::kBool)) {
    node.WrongType("true or false");
    return std::nullopt;
  }
  return node.value().text == "true" || node.value().text == "True" || node.value().text == "TRUE" ||
         node.value().text == "yes" || node.value().text == "on";
}

std::optional<base::Nanos> ReadDuration(const Node& node, base::Nanos min) {
  if (!node.present()) return std::nullopt;
  const auto text = node.Text();
  if (!text) return std::nullopt;
  const auto duration = base::ParseDuration(*text);
  if (!duration || *duration < min) {
    node.Error("want a duration like 50ms, 2s or 1m30s, got \"" + *text + "\"");
    return std::nullopt;
  }
  return duration;
}

// "auto" is none.
std::optional<base::Nanos> ReadInterval(const Node& node) {
  if (!node.present()) return std::nullopt;
  const auto text = node.Text();
  return text && *text != "auto" ? ReadDuration(node, base::kMillisecond) : std::nullopt;
}

std::optional<api::FailureMode> ReadFailureMode(const Node& node) {
  if (!node.present()) return std::nullopt;
  return api::ReadEnum(node, {"FailClose", "FailOpen"},
                       {api::FailureMode::kFailClose, api::FailureMode::kFailOpen},
                       api::FailureMode::kFailOpen);
}

std::string CheckText(std::string_view text) { return text.empty() ? "want a text" : ""; }

std::string CheckPoolKey(std::string_view text) {
  const size_t slash = text.find('/');
  const bool fits = slash != std::string_view::npos && slash > 0 && slash + 1 < text.size() &&
                    text.find('/', slash + 1) == std::string_view::npos;
  return fits ? "" : "want a pool as namespace/name, like default/llama";
}

std::string CheckFileName(std::string_view text) {
  return text.empty() || text == "-" ? "want the path of a file or folder" : "";
}

std::vector<std::string> ReadTexts(const Node& node, api::TextRule rule) {
  std::vector<std::string> texts;
  for (const Node& item : node.Items(0, kMaxList)) texts.push_back(api::ReadText(item, rule));
  return texts;
}

void ReadClusters(const Node& node, PickerConfig& picker) {
  for (const Node& item : node.Items(0, kMaxList)) {
    ObjectReader reader(item);
    ClusterPool pool;
    pool.pool_key = api::ReadText(reader.Require("name"), CheckPoolKey);
    pool.cluster = api::ReadTextOr(reader.Get("cluster"), CheckText, pool.pool_key);
    if (const Node labels = reader.Get("labels"); labels.present())
      pool.label_keys = ReadTexts(labels, CheckText);
    pool.metadata_namespace = api::ReadTextOr(reader.Get("metadataNamespace"), CheckText, "envoy.lb");
    reader.Finish();
    picker.clusters.push_back(std::move(pool));
  }
}

void ReadObjects(const Node& node, PickerConfig& picker, std::vector<api::Problem>& problems) {
  if (!node.present()) return;
  std::string text;
  if (node.Is(Value::Kind::kString)) {
    text = node.value().text;
  } else if (node.Is(Value::Kind::kList)) {
    AppendJson(text, node.value());
  } else {
    node.WrongType("a list of objects, or their YAML as one text");
    return;
  }
  api::LoadResult loaded = api::ParseManifests(text, std::string(kSource) + ": objects");
  for (auto& problem : loaded.problems) problems.push_back(std::move(problem));
  picker.manifests = std::move(loaded.manifests);
}

// An EndpointPickerConfig, as text or as it is.
void ReadConfigText(const Node& node, PickerConfig& picker) {
  if (!node.present()) return;
  if (node.Is(Value::Kind::kString)) {
    picker.config_text = node.value().text;
  } else if (node.Is(Value::Kind::kMap)) {
    AppendJson(picker.config_text, node.value());
  } else {
    return node.WrongType("an EndpointPickerConfig, as a map or as one text");
  }
  if (!picker.config_file.empty()) node.Error("give configFile or configText, not both");
}

// A pool that only a cluster tells of.
api::InferencePool MakePool(const std::string& key) {
  api::InferencePool pool;
  const size_t slash = key.find('/');
  pool.meta.namespace_name = key.substr(0, slash);
  pool.meta.name = key.substr(slash + 1);
  pool.group = api::kInferenceGroup;
  pool.target_ports = {8000};
  return pool;
}

base::Result<ModuleConfig> Decode(const Value& document, std::vector<api::Problem>& problems) {
  ModuleConfig config;
  PickerConfig& picker = config.picker;
  FilterConfig& filter = config.filter;
  api::ProblemList list{std::string(kSource), problems};
  const api::ObjectContext context{&list, ""};
  ObjectReader root(Node(&context, &document, "", document.line));

  picker.files = ReadTexts(root.Get("manifests"), CheckFileName);
  ReadObjects(root.Get("objects"), picker, problems);
  ReadClusters(root.Get("pools"), picker);
  if (const Node node = root.Get("kubernetes"); node.present()) {
    ObjectReader reader(node);
    ClusterApi& kubernetes = picker.kubernetes.emplace();
    kubernetes.pool_key = api::ReadText(reader.Require("pool"), CheckPoolKey);
    kubernetes.pool_group = api::ReadTextOr(reader.Get("poolGroup"), CheckText, "");
    kubernetes.kubeconfig = api::ReadTextOr(reader.Get("kubeconfig"), CheckText, "");
    reader.Finish();
    if (!picker.files.empty() || !picker.manifests.pools.empty()) {
      node.Error("give either kubernetes or manifests (manifests, objects), not both");
    }
  }
  if (const Node node = root.Get("admin"); node.present()) {
    ObjectReader admin(node);
    picker.admin_host = api::ReadTextOr(admin.Get("host"), CheckText, "127.0.0.1");
    picker.admin_port = static_cast<uint16_t>(ReadWhole(admin.Get("port"), 0, 65535).value_or(9090));
    picker.admin_cert_dir = api::ReadTextOr(admin.Get("certDir"), CheckText, "");
    const Node client_ca = admin.Get("clientCaFile");
    picker.admin_client_ca_file = api::ReadTextOr(client_ca, CheckText, "");
    if (client_ca.present() && picker.admin_cert_dir.empty()) client_ca.Error("needs certDir");
    picker.admin_hosts = ReadTexts(admin.Get("allowedHosts"), CheckText);
    admin.Finish();
  }
  picker.scrape_interval = ReadInterval(root.Get("scrapeInterval"));
  picker.scrape_timeout =
      ReadDuration(root.Get("scrapeTimeout"), base::kMillisecond).value_or(picker.scrape_timeout);
  picker.page_path = api::ReadTextOr(root.Get("metricsPath"), api::CheckMetricsPath, "");
  picker.page_scheme = api::ReadTextOr(root.Get("metricsScheme"), api::CheckMetricsScheme, "");
  picker.page_port = static_cast<uint16_t>(ReadWhole(root.Get("metricsPort"), 1, 65535).value_or(0));
  picker.page_ca_file = api::ReadTextOr(root.Get("metricsCaFile"), CheckText, "");
  picker.page_server_name = api::ReadTextOr(root.Get("metricsServerName"), CheckText, "");
  picker.page_unverified = ReadBool(root.Get("metricsInsecureSkipVerify"));
  picker.startup_wait = ReadDuration(root.Get("startupWait"), 0).value_or(picker.startup_wait);
  picker.max_endpoints = static_cast<uint32_t>(ReadWhole(root.Get("maxEndpoints"), 1, 8).value_or(3));
  picker.page_load = api::ReadEnum(root.Get("loadSource"), {"ledger", "page"}, {false, true}, false);
  picker.lora_exploration = ReadNumber(root.Get("loraExploration"), 0, 1).value_or(picker.lora_exploration);
  picker.critical_queue_limit =
      ReadNumber(root.Get("criticalQueueLimit"), 0, 1e9).value_or(picker.critical_queue_limit);
  picker.sheddable_queue_limit =
      ReadNumber(root.Get("sheddableQueueLimit"), 0, 1e9).value_or(picker.sheddable_queue_limit);
  picker.sheddable_kv_limit =
      ReadNumber(root.Get("sheddableKvLimit"), 0, 1).value_or(picker.sheddable_kv_limit);
  picker.sheddable_work_limit =
      ReadNumber(root.Get("sheddableWorkLimit"), 0, 1e9).value_or(picker.sheddable_work_limit);
  picker.seed = ReadWhole(root.Get("seed"), 0, uint64_t{1} << 53).value_or(0);
  picker.explain = ReadBool(root.Get("explain")).value_or(false);
  picker.metrics_max_bytes = static_cast<uint32_t>(
      ReadWhole(root.Get("metricsMaxBytes"), 100'000, 1'000'000'000).value_or(picker.metrics_max_bytes));
  picker.debug_decisions =
      static_cast<uint32_t>(ReadWhole(root.Get("debugDecisions"), 0, 10'000).value_or(0));
  picker.record_file = api::ReadTextOr(root.Get("record"), CheckText, "");
  picker.record_max_bytes =
      ReadWhole(root.Get("recordMaxBytes"), 1 << 20, uint64_t{1} << 40).value_or(picker.record_max_bytes);
  picker.config_file = api::ReadTextOr(root.Get("configFile"), CheckText, "");
  ReadConfigText(root.Get("configText"), picker);
  picker.config_directory = api::ReadTextOr(root.Get("configDir"), CheckText, "");
  picker.shadow_config_file = api::ReadTextOr(root.Get("shadowConfigFile"), CheckText, "");
  picker.allow_experimental_plugins = ReadBool(root.Get("allowExperimentalPlugins")).value_or(false);
  picker.feature_gates = ReadTexts(root.Get("featureGates"), CheckText);
  picker.log_manifests = ReadBool(root.Get("logManifests")).value_or(true);
  picker.use_subset_hint = ReadBool(root.Get("subsetHint")).value_or(true);

  filter.pool_key = api::ReadTextOr(root.Get("pool"), CheckPoolKey, "");
  filter.response_mode = api::ReadEnum(root.Get("responseMode"), {"headers", "full"},
                                       {ResponseMode::kHeaders, ResponseMode::kFull}, ResponseMode::kHeaders);
  filter.host_selection =
      api::ReadEnum(root.Get("hostSelection"), {"overrideHost", "policy"},
                    {HostSelection::kOverrideHost, HostSelection::kPolicy}, HostSelection::kOverrideHost);
  const Node last_filter = root.Get("lastFilter");
  filter.last_filter = ReadBool(last_filter).value_or(false);
  if (filter.last_filter && filter.host_selection != HostSelection::kPolicy) {
    last_filter.Error("says something of hostSelection: policy only");
  }
  const Node destination_header = root.Get("destinationHeader");
  filter.destination_header = ReadBool(destination_header).value_or(true);
  if (!filter.destination_header && filter.host_selection != HostSelection::kPolicy) {
    destination_header.Error("only with hostSelection: policy can requests go without the header");
  }
  filter.failure_mode = ReadFailureMode(root.Get("failureMode"));
  filter.use_subset_hint = picker.use_subset_hint;
  filter.max_body = ReadWhole(root.Get("maxBodyBytes"), 1, kMaxBody).value_or(filter.max_body);
  const Node max_buffered = root.Get("maxBufferedBytes");
  filter.max_buffered = ReadWhole(max_buffered, 1, uint64_t{1} << 40).value_or(filter.max_buffered);
  if (filter.max_buffered < filter.max_body) {
    if (max_buffered.present())
      max_buffered.Error("want room for one body at least: maxBodyBytes is " +
                         std::to_string(filter.max_body));
    filter.max_buffered = filter.max_body;
  }
  filter.body_timeout =
      ReadDuration(root.Get("bodyTimeout"), base::kMillisecond).value_or(filter.body_timeout);
  filter.max_waiting =
      static_cast<uint32_t>(ReadWhole(root.Get("maxWaiting"), 0, 1'000'000).value_or(filter.max_waiting));
  root.Finish();

  if (root.valid() && picker.files.empty() && picker.manifests.pools.empty() && picker.clusters.empty() &&
      !picker.kubernetes) {
    root.node().Error(
        "nothing to pick from: give manifests (files or folders), objects, pools with the clusters that have "
        "their endpoints, or kubernetes with a pool");
  }
  return config;
}

// The picker's part of the document, as text: two filters with the same one share a picker.
std::string IdentityOf(const Value& document) {
  constexpr std::string_view kFilterFields[] = {
      "pool",        "responseMode", "hostSelection",    "destinationHeader", "lastFilter",
      "failureMode", "maxBodyBytes", "maxBufferedBytes", "bodyTimeout",       "maxWaiting"};
  std::vector<std::string> members;
  for (const auto& entry : document.entries) {
    if (std::find(std::begin(kFilterFields), std::end(kFilterFields), entry.key) != std::end(kFilterFields))
      continue;
    std::string text;
    base::AppendJsonString(text, entry.key);
    text += ':';
    AppendJson(text, *entry.value);
    members.push_back(std::move(text));
  }
  std::sort(members.begin(), members.end());
  std::string identity;
  for (const auto& member : members) identity += member + "\n";
  return identity;
}

std::string Listed(const std::vector<api::Problem>& problems) {
  std::string text;
  for (const auto& problem : problems) {
    if (problem.severity != api::Severity::kError) continue;
    if (!text.empty()) text += '\n';
    text += api::ToString(problem);
  }
  return text;
}

base::Result<api::ValuePtr> ParseDocument(std::string_view text) {
  const api::ParsedText parsed = api::ParseText(text, "config.yaml");
  if (!parsed.problems.empty()) {
    const auto& first = parsed.problems.front();
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      std::string(kSource) + ":" + std::to_string(first.line) + ": " + first.message);
  }
  if (parsed.documents.size() != 1 || parsed.documents[0]->kind != Value::Kind::kMap) {
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      std::string(kSource) + ": want one map of settings, as a Struct or as YAML text");
  }
  return parsed.documents[0];
}

}  // namespace

base::Result<ModuleConfig> ParseConfig(std::string_view text) {
  const auto document = ParseDocument(text);
  if (!document) return tl::make_unexpected(document.error());
  std::vector<api::Problem> problems;
  auto config = Decode(**document, problems);
  if (const std::string listed = Listed(problems); !listed.empty())
    return base::Fail(base::ErrorCode::kInvalidArgument, listed);
  PickerConfig& picker = config->picker;
  for (const ClusterPool& cluster : picker.clusters) {
    const size_t slash = cluster.pool_key.find('/');
    // Manifests in files may declare it too; then the file's one is served (module/).
    if (picker.files.empty() && !picker.kubernetes &&
        picker.manifests.FindPool(cluster.pool_key.substr(0, slash), cluster.pool_key.substr(slash + 1)) ==
            nullptr) {
      picker.manifests.pools.push_back(MakePool(cluster.pool_key));
    }
  }
  picker.identity = IdentityOf(**document);
  return config;
}

base::Result<RouteConfig> ParseRouteConfig(std::string_view text) {
  const auto document = ParseDocument(text);
  if (!document) return tl::make_unexpected(document.error());
  std::vector<api::Problem> problems;
  api::ProblemList list{std::string(kSource), problems};
  const api::ObjectContext context{&list, ""};
  ObjectReader root(Node(&context, document->get(), "", (*document)->line));
  RouteConfig config;
  config.pool_key = api::ReadTextOr(root.Get("pool"), CheckPoolKey, "");
  config.failure_mode = ReadFailureMode(root.Get("failureMode"));
  root.Finish();
  if (const std::string listed = Listed(problems); !listed.empty())
    return base::Fail(base::ErrorCode::kInvalidArgument, listed);
  return config;
}

}  // namespace fairway::envoy_module
