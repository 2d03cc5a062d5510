// The module's configuration, as Envoy hands it over: a Struct comes as JSON, a StringValue as the text that
// it is, which may be YAML. docs/envoy-module.md describes every field.
//
//   manifests: [/etc/fairway/manifests]     # files and folders, watched
//   pool: default/llama                     # of requests whose route names none
//   hostSelection: policy                   # the pool's cluster has the module's load-balancing policy
//   responseMode: full                      # usage and time per token; `headers` (the default) costs nothing
//   admin: {port: 9090}
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/manifests.h"
#include "api/picker_settings.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"

namespace fairway::envoy_module {

// kHeaders: nothing is done per piece of a response. kFull: usage is read, time per token measured, a
// replaced model's name put back.
enum class ResponseMode { kHeaders, kFull };

// How Envoy hears where a request goes. kOverrideHost: by an override host for the first try and the list in
// the metadata `envoy.lb` for the others; works with every cluster. kPolicy: by the module's own
// load-balancing policy, which asks for it; the cluster must have that policy. It is cheaper.
enum class HostSelection { kOverrideHost, kPolicy };

// What a pool's endpoints are read from beside the manifests: the hosts of one of Envoy's clusters.
struct ClusterPool {
  std::string pool_key;  // "namespace/name"
  std::string cluster;
  // Labels that are looked for in a host's metadata, under `metadata_namespace`.
  std::vector<std::string> label_keys = {"llm-d.ai/engine-type", "llm-d.ai/role",
                                         std::string(api::kMetricsPath), std::string(api::kMetricsScheme),
                                         std::string(api::kMetricsPort)};
  std::string metadata_namespace = "envoy.lb";
};

// A pool of the Kubernetes API, with its models and Pods, followed as the server does (docs/kubernetes.md).
struct ClusterApi {
  std::string pool_key;    // "namespace/name"
  std::string pool_group;  // "": both
  std::string kubeconfig;  // "": $KUBECONFIG, the Pod's service account, ~/.kube/config
};

// Other Envoys with the module, and whoever else runs a picker for the same pools: each tells the others what it
// has sent where (docs/high-availability.md).
struct PeerConfig {
  std::string where;                   // of these settings, before a field's name: "filter_config:12: peers."
  std::vector<std::string> addresses;  // "host", "host:port" or "ip"; a name stands for all its addresses
  std::string host = "::";             // to listen on
  uint16_t port = 9004;
  bool tls = true;
  std::string cert_dir;  // folder with tls.crt and tls.key; "": a self-signed one
  std::string ca_file;   // "": any certificate is good
  base::Nanos interval = 20 * base::kMillisecond;
};

// Of the picker behind filters; filters that say the same here share one.
struct PickerConfig : api::PickerSettings {
  std::vector<std::string> files;
  api::Manifests manifests;  // of `objects`, and pools made for `pools` that no manifest declares
  std::vector<ClusterPool> clusters;
  std::optional<ClusterApi> kubernetes;  // instead of manifests
  std::string admin_host = "127.0.0.1";
  std::optional<uint16_t> admin_port;    // absent: no admin pages
  std::string admin_cert_dir;            // folder with tls.crt and tls.key; "": plain HTTP
  std::string admin_client_ca_file;      // "": nobody is asked for a certificate
  std::vector<std::string> admin_hosts;  // further names by which the pages may be asked for
  std::optional<PeerConfig> peers;
  // How long after the start requests wait for a pool's first endpoints rather than being refused.
  base::Nanos startup_wait = 5 * base::kSecond;
  bool use_subset_hint = true;
  bool log_manifests = true;                            // problems and changes of manifests in Envoy's log
  base::LogFormat log_format = base::LogFormat::kText;  // of the picker's lines in Envoy's log
  std::string identity;  // equal exactly when all of the above was written the same
};

// Of one filter.
struct FilterConfig {
  std::string pool_key;  // "" is the only pool there is
  ResponseMode response_mode = ResponseMode::kHeaders;
  HostSelection host_selection = HostSelection::kOverrideHost;
  // The router follows this filter, and all requests to clusters with the module's policy pass it: which of
  // them the policy is asked for needs no look. With HostSelection::kPolicy only.
  bool last_filter = false;
  // False: requests go without x-gateway-destination-endpoint where Envoy has no need of it, which is with
  // HostSelection::kPolicy only. It is most of what an open stream keeps in memory for us.
  bool destination_header = true;
  std::optional<api::FailureMode> failure_mode;  // absent: FailOpen
  bool use_subset_hint = true;                   // the picker's; without it nobody looks for hints
  uint64_t max_body = 16u << 20;                 // bytes of a request's body; more: 413
  uint64_t max_buffered = 256u << 20;  // bytes of bodies that one worker holds; then the longest goes: 503
  base::Nanos body_timeout = 30 * base::kSecond;  // no byte of a body for that long: 408
  uint32_t max_waiting = 1024;  // requests that wait for endpoints at the start; further ones: 503
};

// Of one route.
struct RouteConfig {
  std::string pool_key;                          // "": the filter's
  std::optional<api::FailureMode> failure_mode;  // absent: the filter's
};

struct ModuleConfig {
  PickerConfig picker;
  FilterConfig filter;
};

// All fields that are one value; lists and maps of others (manifests, objects, pools, kubernetes, admin) have
// readers of their own.
std::vector<api::Setting> SettingsOf(ModuleConfig& config);

// The error lists every problem, a line each, with line, field and what would be right. Never throws.
base::Result<ModuleConfig> ParseConfig(std::string_view text);
base::Result<RouteConfig> ParseRouteConfig(std::string_view text);

}  // namespace fairway::envoy_module
