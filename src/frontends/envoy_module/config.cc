#include "frontends/envoy_module/config.h"

#include <algorithm>
#include <utility>

#include "api/decode.h"
#include "api/print.h"
#include "base/json_writer.h"
#include "base/strings.h"

namespace fairway::envoy_module {
namespace {

using api::Node;
using api::ObjectReader;
using api::Value;

constexpr std::string_view kSource = "filter_config";
constexpr size_t kMaxList = 10'000;
constexpr double kMaxBody = 0x1p30;

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
    base::JsonWriter json(text);
    api::WriteValue(node.value(), json);
  } else {
    node.WrongType("a list of objects, or their YAML as one text");
    return;
  }
  api::LoadResult loaded = api::ParseManifests(text, std::string(kSource) + ": objects");
  for (auto& problem : loaded.problems) problems.push_back(std::move(problem));
  picker.manifests = std::move(loaded.manifests);
}

api::Setting FailureModeSetting(std::optional<api::FailureMode>& mode) {
  return {.field = "failureMode",
          .value = api::Word(mode),
          .words = {"FailClose", "FailOpen"},
          .otherwise = "FailOpen",
          .help = "After a fault in the picker: the request goes on by the cluster's policy, or gets a 500"};
}

std::vector<api::Setting> SettingsOf(FilterConfig& filter) {
  return {
      {.field = "pool",
       .value = &filter.pool_key,
       .rule = CheckPoolKey,
       .otherwise = "the only one",
       .help = "namespace/name of the pool of requests whose route says nothing"},
      {.field = "hostSelection",
       .value = api::Word(filter.host_selection),
       .words = {"overrideHost", "policy"},
       .help = "How Envoy hears where a request goes: by its override host, or by the module's own policy"},
      {.field = "lastFilter",
       .value = &filter.last_filter,
       .help = "The router follows this filter; only with hostSelection: policy"},
      {.field = "destinationHeader",
       .value = &filter.destination_header,
       .help = "Requests carry x-gateway-destination-endpoint; false only with hostSelection: policy"},
      FailureModeSetting(filter.failure_mode),
      {.field = "responseMode",
       .value = api::Word(filter.response_mode),
       .words = {"headers", "full"},
       .help = "full: usage and time per token are measured, a replaced model's name is put back"},
      {.field = "maxBodyBytes",
       .value = &filter.max_body,
       .min = 1,
       .max = kMaxBody,
       .bytes = true,
       .help = "Longer bodies of requests get a 413"},
      {.field = "maxBufferedBytes",
       .value = &filter.max_buffered,
       .min = 1,
       .max = 0x1p40,
       .bytes = true,
       .help = "What the bodies that one of Envoy's workers collects may hold together"},
      {.field = "bodyTimeout",
       .value = &filter.body_timeout,
       .min = base::kMillisecond,
       .help = "A body of which no byte comes for that long gets a 408"},
      {.field = "maxWaiting",
       .value = &filter.max_waiting,
       .max = 1'000'000,
       .help = "Requests that wait for endpoints at the start; further ones get a 503"},
  };
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

PeerConfig ReadPeers(const Node& node) {
  ObjectReader reader(node);
  PeerConfig peers;
  peers.where = std::string(kSource) + ":" + std::to_string(node.line()) + ": peers.";
  const Node addresses = reader.Require("addresses");
  peers.addresses = ReadTexts(addresses, CheckText);
  if (addresses.present() && peers.addresses.empty())
    addresses.Error("want the other Envoys' names or addresses, such as a headless Service's");
  peers.host = api::ReadTextOr(reader.Get("host"), CheckText, peers.host);
  api::Read({.value = &peers.port, .min = 1}, reader.Get("port"));
  api::Read({.value = &peers.tls}, reader.Get("tls"));
  api::Read({.value = &peers.interval, .min = 10 * base::kMillisecond, .max = 200 * base::kMillisecond},
            reader.Get("interval"));
  const Node cert_dir = reader.Get("certDir");
  peers.cert_dir = api::ReadTextOr(cert_dir, CheckText, "");
  if (cert_dir.present() && !peers.tls) cert_dir.Error("needs tls");
  const Node ca_file = reader.Get("caFile");
  peers.ca_file = api::ReadTextOr(ca_file, CheckText, "");
  if (ca_file.present() && (!peers.tls || peers.cert_dir.empty()))
    ca_file.Error("needs tls and certDir: peers ask for a certificate of that authority");
  reader.Finish();
  return peers;
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
    picker.admin_port = 9090;
    api::Read({.value = &*picker.admin_port}, admin.Get("port"));
    picker.admin_cert_dir = api::ReadTextOr(admin.Get("certDir"), CheckText, "");
    const Node client_ca = admin.Get("clientCaFile");
    picker.admin_client_ca_file = api::ReadTextOr(client_ca, CheckText, "");
    if (client_ca.present() && picker.admin_cert_dir.empty()) client_ca.Error("needs certDir");
    picker.admin_hosts = ReadTexts(admin.Get("allowedHosts"), CheckText);
    admin.Finish();
  }
  if (const Node node = root.Get("peers"); node.present()) picker.peers = ReadPeers(node);
  for (const api::Setting& setting : SettingsOf(config)) api::Read(setting, root.Get(setting.field));
  if (!picker.config_file.empty() && !picker.config_text.empty())
    root.Get("configText").Error("give configFile or configText, not both");
  const bool by_policy = filter.host_selection == HostSelection::kPolicy;
  if (filter.last_filter && !by_policy)
    root.Get("lastFilter").Error("says something of hostSelection: policy only");
  if (!filter.destination_header && !by_policy)
    root.Get("destinationHeader").Error("only with hostSelection: policy can requests go without the header");
  filter.use_subset_hint = picker.use_subset_hint;
  if (filter.max_buffered < filter.max_body) {
    if (const Node given = root.Get("maxBufferedBytes"); given.present())
      given.Error("want room for one body at least: maxBodyBytes is " + std::to_string(filter.max_body));
    filter.max_buffered = filter.max_body;
  }
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
  FilterConfig filter;
  const std::vector<api::Setting> filter_fields = SettingsOf(filter);
  std::vector<std::string> members;
  for (const auto& entry : document.entries) {
    const auto is_it = [&](const api::Setting& setting) { return setting.field == entry.key; };
    if (std::any_of(filter_fields.begin(), filter_fields.end(), is_it)) continue;
    std::string text;
    base::AppendJsonString(text, entry.key);
    text += ':';
    base::JsonWriter json(text);
    api::WriteValue(*entry.value, json);
    members.push_back(std::move(text));
  }
  std::sort(members.begin(), members.end());
  return base::Join(members, "\n");
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

std::vector<api::Setting> SettingsOf(ModuleConfig& config) {
  std::vector<api::Setting> all = SettingsOf(config.filter);
  const std::vector<api::Setting> picker = api::SettingsOf(config.picker);
  all.insert(all.end(), picker.begin(), picker.end());
  all.push_back({.field = "startupWait",
                 .value = &config.picker.startup_wait,
                 .help = "So long after the start requests wait for a pool's first endpoints"});
  all.push_back({.field = "subsetHint",
                 .value = &config.picker.use_subset_hint,
                 .help = "Honour the metadata envoy.lb.subset_hint"});
  all.push_back({.field = "logManifests",
                 .value = &config.picker.log_manifests,
                 .help = "Problems and changes of manifests in Envoy's log"});
  all.push_back({.field = "logFormat",
                 .value = api::Word(config.picker.log_format),
                 .words = {"text", "json"},
                 .help =
                     "What follows \"fairway: \" in Envoy's log: text, or an object with time, level, msg "
                     "and fields"});
  return all;
}

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
  api::Read(FailureModeSetting(config.failure_mode), root.Get("failureMode"));
  root.Finish();
  if (const std::string listed = Listed(problems); !listed.empty())
    return base::Fail(base::ErrorCode::kInvalidArgument, listed);
  return config;
}

}  // namespace fairway::envoy_module
