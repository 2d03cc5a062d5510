#include "frontends/local/envoy_config.h"

#include <algorithm>
#include <tuple>
#include <utility>

#include "base/strings.h"
#include "frontends/local/json_text.h"
#include "frontends/local/route_table.h"

namespace fairway::local {
namespace {

using api::HttpRoute;

constexpr std::string_view kDestination = "x-gateway-destination-endpoint";
constexpr std::string_view kPickerCluster = "fairway-picker";
// A backend that does not exist gets its share of the requests and answers 500, as the Gateway API wants it.
// No cluster has this name (those of pools have a slash).
constexpr std::string_view kInvalidBackend = "fairway-invalid-backend";
constexpr std::string_view kExtProc = "envoy.filters.http.ext_proc";
constexpr std::string_view kModule = "fairway";
// What Envoy reads of a connection before the others have their turn, and what an upload holds of it beside
// what is kept for the picker: on its connection or stream, on the way to the picker and back, and to be sent
// once more to another endpoint. In bytes; Envoy's own are 1 MiB and up to 24.
constexpr int64_t kConnectionBuffer = 64 << 10;
constexpr int64_t kStreamWindow = 256 << 10;
constexpr int64_t kConnectionWindow = 1 << 20;
constexpr int64_t kRetryBuffer = 1 << 20;
constexpr int64_t kAllStreamsWindow = 1 << 30;
// Frames that wait to be sent to the picker; Envoy's heap limit comes first.
constexpr int64_t kMostFrames = 1'000'000;

Json Type(std::string_view name) { return JsonText("type.googleapis.com/" + std::string(name)); }
Json Seconds(int64_t seconds) { return JsonText(std::to_string(seconds) + "s"); }
Json Millis(int64_t ms) {
  std::string fraction = std::to_string(1000 + ms % 1000).substr(1);
  return JsonText(std::to_string(ms / 1000) + "." + fraction + "s");
}

Json Address(const net::HostPort& at) {
  return JsonObject({{"socket_address",
                      JsonObject({{"address", JsonText(at.host)}, {"port_value", JsonNumber(at.port)}})}});
}

// A name that several pools cannot share: '_' is in no Kubernetes name.
std::string FileName(std::string_view pool_key) {
  std::string name = "eds-";
  for (const char c : pool_key) {
    const bool plain =
        (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.';
    name += plain ? c : '_';
  }
  return name + ".json";
}

class Writer {
 public:
  Writer(const api::Manifests& manifests, const PoolEndpoints& endpoints, const EnvoyOptions& options)
      : manifests_(manifests), endpoints_(endpoints), options_(options) {}

  EnvoyConfig Write(const RouteTable& table) {
    EnvoyConfig config;
    config.warnings = table.warnings;
    const auto add = [&](std::string name, const Json& json) {
      config.files.push_back({std::move(name), Indented(json)});
    };
    std::vector<Json> clusters;
    std::vector<Json> listeners;
    for (const api::InferencePool& pool : manifests_.pools) {
      const std::string key = api::Key(pool.meta);
      add(FileName(key), Resources({Endpoints(key)}));
      clusters.push_back(PoolCluster(pool, key));
    }
    add("cds.json", Resources(clusters));
    for (const TableListener& listener : table.listeners) {
      const std::string routes = "rds-" + std::to_string(listener.address.port);
      add(routes + ".json", Resources({Routes(routes, listener)}));
      listeners.push_back(Listener(routes, listener));
      config.listeners.push_back(listener.address);
    }
    add("lds.json", Resources(listeners));
    add("bootstrap.json", Bootstrap());
    return config;
  }

 private:
  Json Resources(const std::vector<Json>& resources) const {
    return JsonObject({{"resources", JsonArray(resources)}});
  }

  Json FileSource(const std::string& name) const {
    return JsonObject(
        {{"resource_api_version", JsonText("V3")},
         {"path_config_source", JsonObject({{"path", JsonText(options_.directory + "/" + name)}})}});
  }

  // ---- endpoints and clusters

  Json Endpoints(const std::string& key) const {
    std::vector<Json> hosts;
    if (const auto found = endpoints_.find(key); found != endpoints_.end()) {
      for (const net::HostPort& at : found->second) {
        hosts.push_back(JsonObject({{"endpoint", JsonObject({{"address", Address(at)}})}}));
      }
    }
    return JsonObject({{"@type", Type("envoy.config.endpoint.v3.ClusterLoadAssignment")},
                       {"cluster_name", JsonText(key)},
                       {"endpoints", JsonArray({JsonObject({{"lb_endpoints", JsonArray(hosts)}})})}});
  }

  // Who may get how much is the picker's business: Envoy's own limits (1,024 of each, 3 retries) must not
  // bite.
  static Json NoLimits() {
    const Json many = JsonNumber(1'000'000);
    return JsonObject({{"thresholds", JsonArray({JsonObject({{"max_connections", many},
                                                             {"max_pending_requests", many},
                                                             {"max_requests", many},
                                                             {"max_retries", many}})})}});
  }

  static Json Policies(std::string_view name, const Json& config) {
    return JsonObject(
        {{"policies",
          JsonArray({JsonObject({{"typed_extension_config",
                                  JsonObject({{"name", JsonText(name)}, {"typed_config", config}})}})})}});
  }

  // The picker's list in order: the first choice, then with each retry the next; then, and where there is no
  // list (FailOpen), the endpoint with the fewest requests.
  static Json OverrideHost() {
    const Json metadata_key =
        JsonObject({{"key", JsonText("envoy.lb")},
                    {"path", JsonArray({JsonObject({{"key", JsonText(kDestination)}})})}});
    const Json served_key = JsonObject(
        {{"key", JsonText("envoy.lb")},
         {"path", JsonArray({JsonObject({{"key", JsonText(std::string(kDestination) + "-served")}})})}});
    constexpr std::string_view kFallback = "envoy.load_balancing_policies.least_request";
    const Json fallback = JsonObject(
        {{"@type", Type("envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest")}});
    return Policies(
        "envoy.load_balancing_policies.override_host",
        JsonObject({{"@type", Type("envoy.extensions.load_balancing_policies.override_host.v3.OverrideHost")},
                    {"override_host_sources", JsonArray({JsonObject({{"metadata", metadata_key}})})},
                    {"selected_host_key", served_key},
                    {"fallback_policy", Policies(kFallback, fallback)}}));
  }

  // The module's own: it knows what its filter chose, and tells nobody by metadata. Without a choice
  // (FailOpen) one endpoint after the other.
  Json ModulePolicy() const {
    return Policies("envoy.load_balancing_policies.dynamic_modules",
                    JsonObject({{"@type", Type("envoy.extensions.load_balancing_policies.dynamic_modules.v3."
                                               "DynamicModulesLoadBalancerConfig")},
                                {"dynamic_module_config", ModuleFile()},
                                {"lb_policy_name", JsonText(kModule)}}));
  }

  // `idle_s`: 0 is Envoy's default.
  static Json Protocol(bool http2, const Json& http2_options, int64_t idle_s) {
    constexpr std::string_view kName = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    const Json explicit_http = http2 ? JsonObject({{"http2_protocol_options", http2_options}})
                                     : JsonObject({{"http_protocol_options", JsonObject({})}});
    return JsonObject(
        {{kName, JsonObject({{"@type", Type(kName)},
                             {"common_http_protocol_options",
                              idle_s > 0 ? JsonObject({{"idle_timeout", Seconds(idle_s)}}) : JsonNothing()},
                             {"explicit_http_config", explicit_http}})}});
  }

  Json PoolCluster(const api::InferencePool& pool, const std::string& key) const {
    const bool h2c = pool.app_protocol == api::AppProtocol::kH2c;
    return JsonObject(
        {{"@type", Type("envoy.config.cluster.v3.Cluster")},
         {"name", JsonText(key)},
         {"type", JsonText("EDS")},
         {"connect_timeout", Seconds(1)},
         {"eds_cluster_config", JsonObject({{"eds_config", FileSource(FileName(key))}})},
         {"load_balancing_policy", options_.place == PickerPlace::kModule ? ModulePolicy() : OverrideHost()},
         {"circuit_breakers", NoLimits()},
         // Python model servers (uvicorn) close idle connections after 5 s: be first, or a
         // request meets a connection that is just being closed.
         {"typed_extension_protocol_options", Protocol(h2c, JsonObject({}), h2c ? 0 : 4)},
         // A machine that vanished under a stream that is silent for long.
         {"upstream_connection_options",
          JsonObject({{"tcp_keepalive", JsonObject({{"keepalive_time", JsonNumber(30)},
                                                    {"keepalive_interval", JsonNumber(10)},
                                                    {"keepalive_probes", JsonNumber(3)}})}})}});
  }

  Json PickerCluster() const {
    const bool literal = net::IsIpLiteral(options_.picker.host);
    const Json assignment =
        JsonObject({{"cluster_name", JsonText(kPickerCluster)},
                    {"endpoints",
                     JsonArray({JsonObject(
                         {{"lb_endpoints",
                           JsonArray({JsonObject(
                               {{"endpoint", JsonObject({{"address", Address(options_.picker)}})}})})}})})}});
    // Bodies come back through it: a call holds no more here than one window, and what one leaves unread does
    // not keep the others' answers back.
    // And clients that leave by the thousand: each is a reset here, and Envoy would give up the connection, with
    // everybody's calls, at 1,000 that wait to be sent.
    const Json http2 = JsonObject({{"initial_stream_window_size", JsonNumber(kStreamWindow)},
                                   {"initial_connection_window_size", JsonNumber(kAllStreamsWindow)},
                                   {"max_outbound_frames", JsonNumber(kMostFrames)},
                                   {"max_outbound_control_frames", JsonNumber(kMostFrames)}});
    const Json tls = JsonObject(
        {{"name", JsonText("envoy.transport_sockets.tls")},
         {"typed_config",
          JsonObject(
              {{"@type", Type("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext")},
               {"common_tls_context", JsonObject({{"alpn_protocols", JsonArray({JsonText("h2")})}})}})}});
    return JsonObject({{"name", JsonText(kPickerCluster)},
                       {"type", JsonText(literal ? "STATIC" : "STRICT_DNS")},
                       {"connect_timeout", Seconds(1)},
                       {"load_assignment", assignment},
                       {"circuit_breakers", NoLimits()},
                       {"typed_extension_protocol_options", Protocol(true, http2, 0)},
                       {"transport_socket", options_.picker_tls ? tls : JsonNothing()}});
  }

  // ---- routes

  static Json StringMatch(const HttpRoute::ValueMatch& match) {
    return match.regex ? JsonObject({{"safe_regex", JsonObject({{"regex", JsonText(match.value)}})}})
                       : JsonObject({{"exact", JsonText(match.value)}});
  }

  static Json Match(const HttpRoute::Match& match) {
    std::vector<Json> headers;
    std::vector<Json> query;
    if (!match.method.empty()) {
      headers.push_back(JsonObject({{"name", JsonText(":method")},
                                    {"string_match", JsonObject({{"exact", JsonText(match.method)}})}}));
    }
    headers.reserve(match.headers.size() + 1);
    for (const auto& header : match.headers) {
      headers.push_back(JsonObject(
          {{"name", JsonText(base::ToLower(header.name))}, {"string_match", StringMatch(header)}}));
    }
    query.reserve(match.query.size());
    for (const auto& parameter : match.query) {
      query.push_back(
          JsonObject({{"name", JsonText(parameter.name)}, {"string_match", StringMatch(parameter)}}));
    }
    const bool exact = match.path_type == HttpRoute::PathType::kExact;
    const bool regex = match.path_type == HttpRoute::PathType::kRegex;
    const bool all = !exact && !regex && (match.path.empty() || match.path == "/");
    const Json path = JsonText(match.path);
    return JsonObject({{"prefix", all ? JsonText("/") : JsonNothing()},
                       {"path", exact ? path : JsonNothing()},
                       {"safe_regex", regex ? JsonObject({{"regex", path}}) : JsonNothing()},
                       // By whole segments: /v1 takes /v1/models and not /v10.
                       {"path_separated_prefix", !exact && !regex && !all ? path : JsonNothing()},
                       {"headers", headers.empty() ? JsonNothing() : JsonArray(headers)},
                       {"query_parameters", query.empty() ? JsonNothing() : JsonArray(query)}});
  }

  // The filter is off but where a pool says whom to ask for: requests that no pool takes cost nothing.
  Json AskPicker(const api::InferencePool& pool) const {
    const bool open = pool.picker && pool.picker->failure_mode == api::FailureMode::kFailOpen;
    if (options_.place == PickerPlace::kModule) {
      const Json config = JsonObject({{"pool", JsonText(api::Key(pool.meta))},
                                      {"failureMode", JsonText(open ? "FailOpen" : "FailClose")}});
      return JsonObject(
          {{kModule,
            JsonObject(
                {{"@type",
                  Type("envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilterPerRoute")},
                 {"dynamic_module_config", ModuleFile()},
                 {"filter_name", JsonText(kModule)},
                 {"filter_config", Struct(config)}})}});
    }
    const Json metadata =
        JsonObject({{"key", JsonText("x-fairway-pool")}, {"value", JsonText(api::Key(pool.meta))}});
    return JsonObject(
        {{kExtProc, JsonObject({{"@type", Type("envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute")},
                                {"overrides", JsonObject({{"grpc_initial_metadata", JsonArray({metadata})},
                                                          {"failure_mode_allow", JsonBool(open)}})}})}});
  }

  const api::InferencePool* PoolOf(const HttpRoute::Backend& backend) const {
    return backend.kind == "InferencePool" ? manifests_.FindPool(backend.namespace_name, backend.name)
                                           : nullptr;
  }

  static Json Answer(int status, std::string_view type, std::string_view message) {
    const std::string body = JsonObject({{"error", JsonObject({{"message", JsonText(message)},
                                                               {"type", JsonText(type)},
                                                               {"code", JsonNumber(status)}})}})
                                 .text;
    return JsonObject(
        {{"status", JsonNumber(status)}, {"body", JsonObject({{"inline_string", JsonText(body + "\n")}})}});
  }

  static Json JsonContent() {
    return JsonArray({JsonObject(
        {{"header", JsonObject({{"key", JsonText("content-type")}, {"value", JsonText("application/json")}})},
         {"append_action", JsonText("OVERWRITE_IF_EXISTS_OR_ADD")}})});
  }

  // Only what the model server cannot have begun to answer: no connection, refused, reset or closed before
  // the request went out, or its own 503. The next try takes the next of the picker's list.
  // Beyond the list it is somebody who was not tried.
  static Json Retries() {
    const Json previous_hosts = JsonArray({JsonObject(
        {{"name", JsonText("envoy.retry_host_predicates.previous_hosts")},
         {"typed_config", JsonObject({{"@type", Type("envoy.extensions.retry.host.previous_hosts.v3."
                                                     "PreviousHostsPredicate")}})}})});
    return JsonObject(
        {{"retry_on", JsonText("connect-failure,refused-stream,reset-before-request,retriable-status-codes")},
         {"retriable_status_codes", JsonArray({JsonNumber(503)})},
         {"num_retries", JsonNumber(2)},
         {"retry_back_off", JsonObject({{"base_interval", Millis(5)}, {"max_interval", Millis(50)}})},
         {"retry_host_predicate", previous_hosts},
         {"host_selection_retry_max_attempts", JsonText("5")}});
  }

  // Bodies do not wait in Envoy, but pass.
  bool Streams() const {
    return options_.place == PickerPlace::kExtProc && options_.body_mode != BodyMode::kBuffered &&
           options_.body_mode != BodyMode::kPartial;
  }

  // What Envoy keeps of a request's body, until the picker has answered and for retries; the listener's own
  // limit is smaller. One byte more for the module, which says its own 413 and would raise it so far for each
  // request.
  int64_t BodyBuffer() const {
    if (options_.place == PickerPlace::kModule)
      return static_cast<int64_t>(options_.module_max_body_bytes) + 1;
    return Streams() ? kRetryBuffer : static_cast<int64_t>(options_.max_body_bytes);
  }

  Json Route(const TableRoute& route) const {
    struct Share {
      const api::InferencePool* pool;
      int64_t weight;
    };
    std::vector<Share> shares;
    for (const HttpRoute::Backend& backend : route.backends) {
      if (backend.weight > 0) shares.push_back({PoolOf(backend), backend.weight});
    }
    const Json name = JsonText(route.name);
    const bool any_pool =
        std::any_of(shares.begin(), shares.end(), [](const Share& s) { return s.pool != nullptr; });
    if (!any_pool) {
      return JsonObject(
          {{"name", name},
           {"match", Match(route.match)},
           {"direct_response",
            Answer(500, "configuration_error",
                   "the HTTPRoute that matches this request has no backend that exists and has a weight")},
           {"response_headers_to_add", JsonContent()}});
    }
    Json cluster;
    Json weighted;
    Json filters;
    if (shares.size() == 1) {
      cluster = JsonText(api::Key(shares[0].pool->meta));
      filters = AskPicker(*shares[0].pool);
    } else {
      std::vector<Json> clusters;
      clusters.reserve(shares.size());
      for (const Share& share : shares) {
        clusters.push_back(JsonObject(
            {{"name",
              JsonText(share.pool != nullptr ? api::Key(share.pool->meta) : std::string(kInvalidBackend))},
             {"weight", JsonNumber(share.weight)},
             {"typed_per_filter_config", share.pool != nullptr ? AskPicker(*share.pool) : JsonNothing()}}));
      }
      weighted = JsonObject({{"clusters", JsonArray(clusters)}});
    }
    return JsonObject(
        {{"name", name},
         {"match", Match(route.match)},
         {"route", JsonObject({{"cluster", cluster},
                               {"weighted_clusters", weighted},
                               {"cluster_not_found_response_code", JsonText("INTERNAL_SERVER_ERROR")},
                               // Long answers are the rule here: no limit but the one a user wrote.
                               {"timeout", route.timeout_ms > 0 ? Millis(route.timeout_ms) : Seconds(0)},
                               {"retry_policy", Retries()}})},
         {"request_body_buffer_limit", JsonText(std::to_string(BodyBuffer()))},
         {"typed_per_filter_config", filters}});
  }

  Json Routes(const std::string& name, const TableListener& listener) const {
    std::vector<Json> hosts;
    for (const VirtualHost& host : listener.hosts) {
      std::vector<Json> routes;
      routes.reserve(host.routes.size() + 1);
      for (const TableRoute& route : host.routes) routes.push_back(Route(route));
      routes.push_back(JsonObject(
          {{"match", JsonObject({{"prefix", JsonText("/")}})},
           {"direct_response", Answer(404, "not_found_error", "no HTTPRoute matches this host and path")},
           {"response_headers_to_add", JsonContent()}}));
      hosts.push_back(JsonObject({{"name", JsonText(host.domain)},
                                  {"domains", JsonArray({JsonText(host.domain)})},
                                  {"routes", JsonArray(routes)}}));
    }
    return JsonObject({{"@type", Type("envoy.config.route.v3.RouteConfiguration")},
                       {"name", JsonText(name)},
                       {"virtual_hosts", JsonArray(hosts)},
                       {"ignore_port_in_host_matching", JsonBool(true)}});
  }

  // ---- listeners

  // What a client sends under these names would be taken for the picker's word.
  static Json RemoveControlHeaders() {
    const auto prefix = [](std::string_view text) {
      return JsonObject(
          {{"remove_on_match", JsonObject({{"key_matcher", JsonObject({{"prefix", JsonText(text)}})}})}});
    };
    return JsonObject(
        {{"name", JsonText("envoy.filters.http.header_mutation")},
         {"typed_config",
          JsonObject(
              {{"@type", Type("envoy.extensions.filters.http.header_mutation.v3.HeaderMutation")},
               {"mutations", JsonObject({{"request_mutations",
                                          JsonArray({prefix(kDestination), prefix("x-fairway-")})}})}})}});
  }

  static Json ProcessingMode(BodyMode mode, ResponseMode response) {
    std::string_view body;
    switch (mode) {
      case BodyMode::kBuffered:
        body = "BUFFERED";
        break;
      case BodyMode::kFullDuplex:
        body = "FULL_DUPLEX_STREAMED";
        break;
      case BodyMode::kStreamed:
        body = "STREAMED";
        break;
      case BodyMode::kPartial:
        body = "BUFFERED_PARTIAL";
        break;
      case BodyMode::kNone:
        body = "NONE";
        break;
    }
    const bool trailers = mode == BodyMode::kFullDuplex;  // Envoy insists on them there
    const bool full = response == ResponseMode::kFull;
    return JsonObject({{"request_header_mode", JsonText("SEND")},
                       {"request_body_mode", JsonText(body)},
                       {"request_trailer_mode", JsonText(trailers ? "SEND" : "SKIP")},
                       {"response_header_mode", JsonText("SEND")},
                       {"response_body_mode", JsonText(full ? "STREAMED" : "NONE")},
                       {"response_trailer_mode", JsonText(full ? "SEND" : "SKIP")}});
  }

  // Loaded once for the life of Envoy, whatever becomes of the filters that use it.
  Json ModuleFile() const {
    return JsonObject(
        {{"module", JsonObject({{"local", JsonObject({{"filename", JsonText(options_.module.file)}})}})},
         {"do_not_close", JsonBool(true)},
         {"metrics_namespace", JsonText("fairway")}});
  }

  static Json Struct(const Json& value) {
    return JsonObject({{"@type", Type("google.protobuf.Struct")}, {"value", value}});
  }

  Json Module() const {
    return JsonObject(
        {{"name", JsonText(kModule)},
         {"disabled", JsonBool(true)},  // see AskPicker
         {"typed_config",
          JsonObject({{"@type", Type("envoy.extensions.filters.http.dynamic_modules.v3.DynamicModuleFilter")},
                      {"dynamic_module_config", ModuleFile()},
                      {"filter_name", JsonText(kModule)},
                      {"filter_config", Struct(Json{options_.module.config})}})}});
  }

  Json ExtProc(BodyMode mode, ResponseMode response) const {
    const auto untyped = [](const std::vector<Json>& names) {
      return JsonObject({{"untyped", JsonArray(names)}});
    };
    return JsonObject(
        {{"name", JsonText(kExtProc)},
         {"disabled", JsonBool(true)},  // see AskPicker
         {"typed_config",
          JsonObject(
              {{"@type", Type("envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor")},
               {"grpc_service",
                JsonObject({{"envoy_grpc", JsonObject({{"cluster_name", JsonText(kPickerCluster)}})}})},
               {"failure_mode_allow", JsonBool(false)},
               {"processing_mode", ProcessingMode(mode, response)},
               {"message_timeout", Millis(options_.message_timeout_ms)},
               // The pool is chosen before the picker is asked; choosing again could only cost time.
               {"route_cache_action", JsonText("RETAIN")},
               {"metadata_options",
                JsonObject({{"forwarding_namespaces",
                             untyped({JsonText("envoy.lb"), JsonText("envoy.lb.subset_hint")})},
                            {"receiving_namespaces", untyped({JsonText("envoy.lb")})}})}})}});
  }

  // WebSocket, for the realtime APIs. Over ext_proc by filters of its own: with a body mode Envoy would wait
  // for the end of a body that has none.
  Json Upgrades(const Json& router) const {
    const Json filters =
        options_.place == PickerPlace::kModule
            ? JsonNothing()
            : JsonArray({RemoveControlHeaders(), ExtProc(BodyMode::kNone, ResponseMode::kHeaders), router});
    return JsonArray({JsonObject({{"upgrade_type", JsonText("websocket")}, {"filters", filters}})});
  }

  Json Listener(const std::string& routes, const TableListener& listener) const {
    const Json router = JsonObject(
        {{"name", JsonText("envoy.filters.http.router")},
         {"typed_config", JsonObject({{"@type", Type("envoy.extensions.filters.http.router.v3.Router")}})}});
    const Json manager = JsonObject(
        {{"@type", Type("envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager")},
         {"stat_prefix", JsonText(routes)},
         {"rds", JsonObject({{"route_config_name", JsonText(routes)},
                             {"config_source", FileSource(routes + ".json")}})},
         // The picker inside Envoy removes such headers itself.
         {"http_filters", options_.place == PickerPlace::kModule
                              ? JsonArray({Module(), router})
                              : JsonArray({RemoveControlHeaders(),
                                           ExtProc(options_.body_mode, options_.response_mode), router})},
         {"upgrade_configs", Upgrades(router)},
         {"http2_protocol_options",
          JsonObject({{"initial_stream_window_size", JsonNumber(kStreamWindow)},
                      {"initial_connection_window_size", JsonNumber(kConnectionWindow)}})},
         {"normalize_path", JsonBool(true)},
         {"server_header_transformation", JsonText("PASS_THROUGH")},
         {"request_headers_timeout", Seconds(30)},
         // All of a request, however it drips. A wait for the answer does not count, nor an upgrade's
         // conversation.
         {"request_timeout", Seconds(300)},
         // A long prompt is silent until its first token, a reasoning model until its answer: only what is
         // silent for an hour is given up.
         {"stream_idle_timeout", Seconds(3600)}});
    return JsonObject(
        {{"@type", Type("envoy.config.listener.v3.Listener")},
         {"name", JsonText(routes)},
         {"address", Address(listener.address)},
         {"per_connection_buffer_limit_bytes", JsonNumber(kConnectionBuffer)},
         {"filter_chains",
          JsonArray({JsonObject(
              {{"filters",
                JsonArray({JsonObject({{"name", JsonText("envoy.filters.network.http_connection_manager")},
                                       {"typed_config", manager}})})}})})}});
  }

  // Bounds of all requests together: uploads that do not end would take Envoy's memory one after the other.
  // Near the limit the streams that hold most are reset, then those that are silent, then nothing new is
  // taken.
  Json OverloadManager() const {
    constexpr std::string_view kType =
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig";
    constexpr std::string_view kHeapType = "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig";
    constexpr std::string_view kHeap = "envoy.resource_monitors.fixed_heap";
    const auto monitor = [](std::string_view name, const Json& config) {
      return JsonObject({{"name", JsonText(name)}, {"typed_config", config}});
    };
    const auto action = [kHeap](std::string_view name, std::string_view how, const Json& value,
                                const Json& config = JsonNothing()) {
      return JsonObject({{"name", JsonText("envoy.overload_actions." + std::string(name))},
                         {"triggers", JsonArray({JsonObject({{"name", JsonText(kHeap)}, {how, value}})})},
                         {"typed_config", config}});
    };
    const Json near_the_limit =
        JsonObject({{"scaling_threshold", Json{"0.85"}}, {"saturation_threshold", Json{"0.95"}}});
    // Of HTTP/1 Envoy does not know which stream holds what: what is silent, as an upload that stalls, goes
    // after 30 s.
    const Json timers = JsonObject(
        {{"@type", Type("envoy.config.overload.v3.ScaleTimersOverloadActionConfig")},
         {"timer_scale_factors", JsonArray({JsonObject({{"timer", JsonText("HTTP_DOWNSTREAM_STREAM_IDLE")},
                                                        {"min_timeout", Seconds(30)}})})}});
    const auto from = [](const char* value) { return JsonObject({{"value", Json{value}}}); };
    return JsonObject(
        {{"refresh_interval", Millis(250)},
         // Streams that hold a MiB or more are known by name.
         {"buffer_factory_config", JsonObject({{"minimum_account_to_track_power_of_two", JsonNumber(20)}})},
         {"resource_monitors",
          JsonArray({monitor("envoy.resource_monitors.global_downstream_max_connections",
                             JsonObject({{"@type", Type(kType)},
                                         {"max_active_downstream_connections", JsonText("50000")}})),
                     monitor(kHeap, JsonObject({{"@type", Type(kHeapType)},
                                                {"max_heap_size_bytes",
                                                 JsonText(std::to_string(options_.max_heap_bytes))}}))})},
         {"actions", JsonArray({action("shrink_heap", "threshold", from("0.8")),
                                action("reset_high_memory_stream", "scaled", near_the_limit),
                                action("reduce_timeouts", "scaled", near_the_limit, timers),
                                action("stop_accepting_requests", "threshold", from("0.95"))})}});
  }

  // Whoever reaches it can end Envoy and read what it serves: a socket in our own folder, that no other user
  // and no web page reaches. A folder whose name is too long for a socket leaves a port of this machine.
  Json AdminAddress() const {
    constexpr size_t kMaxSocketPath = 107;
    constexpr int kOwnerOnly = 0600;
    const std::string path = options_.directory + "/admin.sock";
    if (path.size() > kMaxSocketPath) return Address({"127.0.0.1", 0});
    return JsonObject({{"pipe", JsonObject({{"path", JsonText(path)}, {"mode", JsonNumber(kOwnerOnly)}})}});
  }

  Json Bootstrap() const {
    return JsonObject(
        {{"node", JsonObject({{"id", JsonText("fairway-local")}, {"cluster", JsonText("fairway")}})},
         {"admin", JsonObject({{"address", AdminAddress()}})},
         {"overload_manager", OverloadManager()},
         // Who has many requests on a connection takes turns with others.
         {"layered_runtime",
          JsonObject({{"layers",
                       JsonArray({JsonObject({{"name", JsonText("fairway")},
                                              {"static_layer", JsonObject({{"http.max_requests_per_io_cycle",
                                                                            JsonNumber(2)}})}})})}})},
         {"dynamic_resources",
          JsonObject({{"lds_config", FileSource("lds.json")}, {"cds_config", FileSource("cds.json")}})},
         {"static_resources", options_.place == PickerPlace::kModule
                                  ? JsonNothing()
                                  : JsonObject({{"clusters", JsonArray({PickerCluster()})}})}});
  }

  const api::Manifests& manifests_;
  const PoolEndpoints& endpoints_;
  const EnvoyOptions& options_;
};

}  // namespace

base::Result<BodyMode> ParseBodyMode(std::string_view text) {
  if (text == "buffered") return BodyMode::kBuffered;
  if (text == "full-duplex") return BodyMode::kFullDuplex;
  if (text == "streamed") return BodyMode::kStreamed;
  if (text == "partial") return BodyMode::kPartial;
  if (text == "none") return BodyMode::kNone;
  return base::Fail(
      base::ErrorCode::kInvalidArgument,
      "body mode \"" + std::string(text) + "\": want buffered, full-duplex, streamed, partial or none");
}

base::Result<ResponseMode> ParseResponseMode(std::string_view text) {
  if (text == "headers") return ResponseMode::kHeaders;
  if (text == "full") return ResponseMode::kFull;
  return base::Fail(base::ErrorCode::kInvalidArgument,
                    "response mode \"" + std::string(text) + "\": want headers or full");
}

PoolEndpoints SelectEndpoints(const api::Manifests& manifests,
                              const std::map<std::string, std::string, std::less<>>& addresses) {
  PoolEndpoints selected;
  for (const api::InferencePool& pool : manifests.pools) {
    std::vector<net::HostPort>& hosts = selected[api::Key(pool.meta)];
    for (const api::Endpoint& endpoint : manifests.endpoints) {
      if (!api::BelongsTo(endpoint, pool)) continue;
      if (net::IsIpLiteral(endpoint.address)) {
        hosts.push_back({endpoint.address, endpoint.port});
      } else if (const auto found = addresses.find(endpoint.address); found != addresses.end()) {
        hosts.push_back({found->second, endpoint.port});
      }
    }
    // In one order whatever the file's, and once each: Envoy refuses duplicates in places.
    const auto key = [](const net::HostPort& at) { return std::tie(at.host, at.port); };
    std::sort(hosts.begin(), hosts.end(), [&](const auto& a, const auto& b) { return key(a) < key(b); });
    hosts.erase(std::unique(hosts.begin(), hosts.end(),
                            [&](const auto& a, const auto& b) { return key(a) == key(b); }),
                hosts.end());
  }
  return selected;
}

base::Result<EnvoyConfig> MakeEnvoyConfig(const api::Manifests& manifests, const PoolEndpoints& endpoints,
                                          const EnvoyOptions& options) {
  auto table = MakeRouteTable(manifests, options.listen);
  if (!table) return tl::make_unexpected(table.error());
  return Writer(manifests, endpoints, options).Write(*table);
}

}  // namespace fairway::local
