#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "cli/commands.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"
#include "cli/picker.h"
#include "net/address.h"
#include "net/small_file.h"
#include "net/tls.h"

namespace fairway::cli {
namespace {

// The reference's flags by its names and defaults. What has no meaning here yet is taken with a warning, so
// that its command lines work unchanged.
struct EppFlags {
  CommonFlags common;
  uint16_t grpc_port = 9002;
  uint16_t health_port = 9003;
  uint16_t metrics_port = 9090;
  std::string metrics_host;
  bool metrics_auth = true;
  std::string metrics_cert_dir;
  std::string metrics_client_ca;
  std::vector<std::string> metrics_hosts;
  std::string pool_name;
  std::string pool_namespace;
  std::string pool_group;
  std::string kubeconfig;
  std::string endpoint_selector;
  std::vector<uint16_t> endpoint_ports;
  bool leader_election = false;
  bool all_pools = false;
  bool all_namespaces = false;
  std::string pool_selector;
  std::string picker_service;
  std::string metrics_staleness = "2s";
  std::string drain_timeout = "30s";
  bool disable_subset = false;
  bool emit_scores = false;
  bool health_checking = false;
  bool secure_serving = true;
  std::string cert_path;
  bool cert_reload = false;
  std::string client_ca_file;
  std::string tls_min_version;
  std::vector<std::string> cipher_suites;
  bool stream_metrics = false;
  std::string max_receive;
  std::string max_send;
  std::string body_timeout = "30s";
  std::vector<std::string> peers;
  uint16_t peer_port = 9004;
  std::string peer_ca_file;
  std::string peer_interval = "20ms";
};

// name -> why it has no effect. Their values are read and dropped.
const std::vector<std::pair<const char*, const char*>> kNotYet{
    {"--refresh-prometheus-metrics-interval", "gauges are computed when the page is read"},
    {"--tracing", "there is no tracing yet"},
    {"--enable-pprof", "profiles are taken from outside, see CONTRIBUTING.md"},
    {"-v,--v", "use --log-level"},
    {"--zap-devel", "use --log-format and --log-level"},
    {"--zap-encoder", "use --log-format"},
    {"--zap-log-level", "use --log-level"},
    {"--zap-stacktrace-level", "there are no stack traces in the log"},
    {"--zap-time-encoding", "times are RFC 3339 with milliseconds"},
};
// They parse, but the reference fails on them, and so do we: their effect would be missed.
const std::vector<const char*> kRejected{"--total-queued-requests-metric", "--total-running-requests-metric",
                                         "--kv-cache-usage-percentage-metric", "--lora-info-metric",
                                         "--cache-info-metric"};

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

// A Deployment's Pod "name-6d4cf56db6-x7k2p" -> "name", as the reference names a pool that has no object.
std::string NameWithoutObject() {
  std::string name = Environment("POD_NAME");
  for (int i = 0; i < 2; ++i) {
    const size_t dash = name.rfind('-');
    if (dash != std::string::npos && dash != 0) name.resize(dash);
  }
  return name.empty() ? "endpoints" : name;
}

// This replica's name on the Lease: another's is never the same, and that of a Pod whose container is started
// again is, so that a leader that was killed takes its own Lease over at once. The Pod's uid says so, from
// $POD_UID or a downward API volume.
std::string ReplicaIdentity() {
  constexpr size_t kMaxUid = 64;
  char host[256] = "";
  ::gethostname(host, sizeof host - 1);
  std::string uid = Environment("POD_UID");
  if (uid.empty()) uid = net::ReadSmallFile("/etc/podinfo/uid").value_or("");
  uid = base::Trim(uid).substr(0, kMaxUid);
  return std::string(host) + "_" + (uid.empty() ? std::to_string(picker::SystemSeed()) : uid);
}

// Where pools and endpoints come from when it is not files. Sets the pool that is served. An error of code
// kInvalidArgument is the flags', another one that of credentials.
base::Result<void> UseKubernetes(const EppFlags& f, const std::string& space, PickerOptions& options) {
  const auto bad = [](const char* why) { return base::Fail(base::ErrorCode::kInvalidArgument, why); };
  const bool many = f.all_pools || !f.pool_selector.empty();
  const int ways = (f.pool_name.empty() ? 0 : 1) + (f.endpoint_selector.empty() ? 0 : 1) + (many ? 1 : 0);
  if (ways == 0) {
    return bad(
        "nothing to serve. Give manifests with -f FILE, or a pool of the Kubernetes API with --pool-name, "
        "or many with --all-pools, or Pods by --endpoint-selector and --endpoint-target-ports");
  }
  if (ways > 1)
    return bad("give one of --pool-name, --endpoint-selector and --all-pools (or --pool-selector)");
  auto client = sources::kubernetes::FindClientConfig(f.kubeconfig);
  if (!client) return base::Fail(base::ErrorCode::kIo, client.error().message);
  auto& kubernetes = options.kubernetes.emplace();
  kubernetes.client = std::move(*client);
  kubernetes.options.namespace_name = many && f.all_namespaces ? "" : space;
  kubernetes.options.lease_namespace = space;
  kubernetes.options.all_pools = many;
  kubernetes.options.pool_selector = f.pool_selector;
  kubernetes.options.picker_service = f.picker_service;
  kubernetes.options.pool_name = many || !f.pool_name.empty() ? f.pool_name : NameWithoutObject();
  kubernetes.options.pool_group = f.pool_group;
  kubernetes.options.endpoint_selector = f.endpoint_selector;
  kubernetes.options.target_ports = f.endpoint_ports;
  kubernetes.options.seed = f.common.seed != 0 ? f.common.seed : picker::SystemSeed();
  options.listen_for_pools = many;
  if (!many) options.ext_proc.service.default_pool = api::Key(space, kubernetes.options.pool_name);
  if (f.leader_election) {
    kubernetes.options.identity = ReplicaIdentity();
    kubernetes.options.leading = std::make_shared<std::atomic<bool>>(false);
    options.ext_proc.leading = kubernetes.options.leading;
  }
  return {};
}

// Beside -f, which says it all.
void WarnOfKubernetesFlags(const EppFlags& f, Console& console) {
  const std::pair<bool, const char*> given[] = {{f.leader_election, "--ha-enable-leader-election"},
                                                {f.all_pools, "--all-pools"},
                                                {!f.pool_selector.empty(), "--pool-selector"},
                                                {!f.endpoint_selector.empty(), "--endpoint-selector"},
                                                {!f.kubeconfig.empty(), "--kubeconfig"}};
  for (const auto& [is_given, flag] : given) {
    if (!is_given) continue;
    console.PrintError(std::string("fairway epp: warning: ") + flag +
                       " has no effect: with -f nothing is read from the Kubernetes API\n");
  }
}

// As the reference has it.
base::Result<void> UseMetricsCertificates(const EppFlags& f, PickerOptions& options) {
  if (!f.metrics_client_ca.empty() && f.metrics_cert_dir.empty())
    return base::Fail(base::ErrorCode::kInvalidArgument, "--metrics-client-ca-file needs --metrics-cert-dir");
  if (!f.metrics_cert_dir.empty() && !f.metrics_auth && f.metrics_client_ca.empty()) {
    return base::Fail(base::ErrorCode::kInvalidArgument,
                      "--metrics-cert-dir with --metrics-endpoint-auth=false lets everybody read: give "
                      "--metrics-client-ca-file, or leave both away for plain HTTP");
  }
  options.admin_cert_dir = f.metrics_cert_dir;
  options.admin_tls.min_version = f.tls_min_version;
  options.admin_tls.client_ca_file = f.metrics_client_ca;
  options.admin_hosts = f.metrics_hosts;
  return {};
}

base::Result<void> UsePeers(const EppFlags& f, PickerOptions& options) {
  if (f.peers.empty()) return {};
  const auto bad = [](const std::string& what) {
    return base::Fail(base::ErrorCode::kInvalidArgument, what);
  };
  for (const std::string& peer : f.peers) {
    if (const auto parsed = sources::peers::ParsePeer(peer, std::max<uint16_t>(f.peer_port, 1)); !parsed)
      return bad("--peers: " + parsed.error().message);
    if (!sources::peers::ParsePeer(peer, f.peer_port))
      return bad("--peers: \"" + peer +
                 "\": want HOST:PORT, as --peer-port 0 is another port in each replica");
  }
  if (f.leader_election)
    return bad("--peers is for replicas that all serve: leave out --ha-enable-leader-election");
  if (!f.peer_ca_file.empty() && !f.secure_serving)
    return bad("--peer-ca-file needs TLS, which --secure-serving=false turns off");
  if (!f.peer_ca_file.empty() && f.cert_path.empty())
    return bad("--peer-ca-file needs --cert-path: peers ask for a certificate of that authority");
  const base::Nanos interval = Duration(f.peer_interval);
  if (interval < 10 * base::kMillisecond || interval > 200 * base::kMillisecond)
    return bad("--peer-interval: want 10ms to 200ms");
  options.peers = {.peers = f.peers,
                   .port = f.peer_port,
                   .secure = f.secure_serving,
                   .cert_path = f.cert_path,
                   .ca_file = f.peer_ca_file,
                   .interval = interval};
  return {};
}

int Serve(const EppFlags& f, PickerOptions options, Console& console) {
  const base::Log log = console.MakeLog(Level(f.common));
  const std::string host = options.admin_host;
  auto picker = Picker::Start(std::move(options), log, {});
  if (!picker) {
    console.PrintError("fairway epp: " + picker.error().message + "\n");
    return picker.error().code == base::ErrorCode::kInvalidArgument ? kExitInput : kExitStart;
  }
  const std::string peer_port = std::to_string((*picker)->peer_port());
  if ((*picker)->peer_port() != 0) log.Info("serving peers", {{"port", peer_port}});
  log.Info("serving", {{"ext_proc", std::to_string((*picker)->grpc_port())},
                       {"health", std::to_string((*picker)->health_port())},
                       {"metrics", net::FormatHostPort(host, (*picker)->admin_port())}});
  while (WaitForSignal() == SIGHUP) {
    log.Info("SIGHUP: the manifests are looked at again");
    (*picker)->Reload();
  }
  log.Info("stopping", {{"grace", f.drain_timeout}});
  ExitOnSecondSignal();
  (*picker)->Drain(Duration(f.drain_timeout));
  return kExitOk;
}

int Epp(const EppFlags& f) {
  BlockStopSignals();
  RaiseDescriptorLimit();
  Console console(Format(f.common));
  PickerOptions options = MakePickerOptions(f.common, console);
  std::string space = f.pool_namespace.empty() ? Environment("NAMESPACE") : f.pool_namespace;
  if (space.empty()) space = "default";
  if (!options.files.empty()) {
    if (!f.pool_name.empty()) options.ext_proc.service.default_pool = api::Key(space, f.pool_name);
    WarnOfKubernetesFlags(f, console);
  } else if (auto used = UseKubernetes(f, space, options); !used) {
    console.PrintError("fairway epp: " + used.error().message + "\n");
    return used.error().code == base::ErrorCode::kInvalidArgument ? kExitUsage : kExitStart;
  }
  // As the reference: open to the cluster, for those whom the API server knows. Without it nobody could be
  // asked.
  options.admin_host = !f.metrics_host.empty() ? f.metrics_host : options.kubernetes ? "::" : "127.0.0.1";
  options.admin_auth = f.metrics_auth;
  options.admin_port = f.metrics_port;
  options.router.keep_scores = f.emit_scores;
  options.router.use_subset_hint = !f.disable_subset;
  options.router.ready_staleness = Duration(f.metrics_staleness);
  ext_proc::ServerOptions& server = options.ext_proc;
  server.grpc_port = f.grpc_port;
  server.health_port = f.health_port;
  server.health_checking = f.health_checking;
  server.secure_serving = f.secure_serving;
  server.cert_path = f.cert_path;
  server.enable_cert_reload = f.cert_reload;
  if (!f.client_ca_file.empty() && !f.secure_serving) {
    std::fprintf(stderr, "fairway epp: --client-ca-file needs TLS, which --secure-serving=false turns off\n");
    return kExitUsage;
  }
  server.tls.client_ca_file = f.client_ca_file;
  server.tls.min_version = f.tls_min_version;
  server.tls.cipher_suites = f.cipher_suites;
  std::erase(server.tls.cipher_suites, "");  // "--tls-cipher-suites=" is an empty list
  // What can be judged without files is a wrong flag, before anything runs.
  if (const auto made = net::SelfSignedTlsServer(
          {.min_version = server.tls.min_version, .cipher_suites = server.tls.cipher_suites, .alpn = {"h2"}});
      f.secure_serving && !made) {
    console.PrintError("fairway epp: --tls-min-version, --tls-cipher-suites: " + made.error().message + "\n");
    return kExitUsage;
  }
  server.service.stream_metrics = f.stream_metrics;
  server.service.session.body_timeout = Duration(f.body_timeout);
  if (const auto bytes = base::ParseQuantity(f.max_receive); bytes && *bytes > 0) {
    server.transport.max_message = *bytes;
    server.body_messages_of_any_size = false;
  }

  for (const auto& used : {UseMetricsCertificates(f, options), UsePeers(f, options)}) {
    if (used) continue;
    console.PrintError("fairway epp: " + used.error().message + "\n");
    return kExitUsage;
  }
  return Serve(f, std::move(options), console);
}

// Ports, and who may read the pages.
void AddAdminFlags(CLI::App* command, const std::shared_ptr<EppFlags>& f) {
  command->add_option("--grpc-port", f->grpc_port, "ext_proc port; 0 is a free one")->capture_default_str();
  command->add_option("--grpc-health-port", f->health_port, "gRPC health port; 0 is a free one")
      ->capture_default_str();
  command
      ->add_option("--metrics-port", f->metrics_port, "Port of /metrics and the admin pages; 0 is a free one")
      ->capture_default_str();
  command->add_option(
      "--metrics-host", f->metrics_host,
      "Address that the metrics port binds to; else loopback with -f, all with the Kubernetes API");
  command->add_flag("--metrics-endpoint-auth", f->metrics_auth,
                    "Ask the Kubernetes API whether a reader's bearer token may get the page; not over "
                    "loopback, and not with -f "
                    "(default true; --metrics-endpoint-auth=false)");
  command->add_option(
      "--metrics-cert-dir", f->metrics_cert_dir,
      "Folder with tls.crt and tls.key for the metrics port, followed when they change; empty: "
      "plain HTTP");
  command->add_option("--metrics-client-ca-file", f->metrics_client_ca,
                      "Authorities (PEM) one of which must have signed a reader's certificate; needs "
                      "--metrics-cert-dir");
  command
      ->add_option("--metrics-allowed-hosts", f->metrics_hosts,
                   "Further names by which the pages may be asked for without a token, or *; addresses, "
                   "localhost and names of the cluster always may")
      ->delimiter(',');
}

// What is served.
void AddPoolFlags(CLI::App* command, const std::shared_ptr<EppFlags>& f) {
  command->add_option(
      "--pool-name", f->pool_name,
      "InferencePool to serve from the Kubernetes API; with -f: the pool of calls that name none");
  command->add_option("--pool-namespace", f->pool_namespace, "Its namespace; else $NAMESPACE, else default");
  command
      ->add_option("--pool-group", f->pool_group,
                   "Its API group: inference.networking.k8s.io or inference.networking.x-k8s.io; else both "
                   "are looked at")
      ->check(CLI::IsMember({"", "inference.networking.k8s.io", "inference.networking.x-k8s.io"}));
  command->add_flag(
      "--all-pools", f->all_pools,
      "Serve all InferencePools of the namespace, each on the port that its endpointPickerRef names");
  command->add_option("--pool-selector", f->pool_selector,
                      "Of these the ones with these labels (kubectl's syntax)");
  command->add_flag("--all-namespaces", f->all_namespaces,
                    "Pools of all namespaces, with --all-pools or --pool-selector");
  command->add_option("--picker-service", f->picker_service,
                      "Only pools whose endpointPickerRef names this Service");
  command->add_option("--endpoint-selector", f->endpoint_selector,
                      "Serve the Pods with these labels, without any InferencePool (kubectl's syntax)");
  command
      ->add_option("--endpoint-target-ports", f->endpoint_ports,
                   "Their ports, 1 to 8, with --endpoint-selector")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option(
      "--kubeconfig", f->kubeconfig,
      "How to reach the Kubernetes API; else $KUBECONFIG, the Pod's service account, ~/.kube/config");
  command->add_flag("--ha-enable-leader-election", f->leader_election,
                    "Only the replica that holds the pool's Lease is ready; needs the Kubernetes API");
}

// How ext_proc is served.
void AddServingFlags(CLI::App* command, const std::shared_ptr<EppFlags>& f) {
  AddDuration(*command, "--metrics-staleness-threshold", f->metrics_staleness,
              "Age from which an endpoint no longer counts as ready in the gauges");
  AddDuration(*command, "--drain-timeout", f->drain_timeout, "From SIGTERM to the end");
  command->add_flag("--disable-endpoint-subset-filter", f->disable_subset,
                    "Ignore the gateway's subset hint");
  command->add_flag("--emit-endpoint-scores", f->emit_scores,
                    "Put every candidate's score into the metadata");
  command->add_flag("--health-checking", f->health_checking, "Serve gRPC health on the ext_proc port, too");
  command->add_flag("--secure-serving", f->secure_serving,
                    "TLS on the ext_proc port (default true; --secure-serving=false)");
  command->add_option("--cert-path", f->cert_path,
                      "Folder with tls.crt and tls.key; empty: a self-signed certificate");
  command->add_flag("--enable-cert-reload", f->cert_reload,
                    "Follow changes of the certificate and of --client-ca-file");
  command->add_option(
      "--client-ca-file", f->client_ca_file,
      "PEM file of authorities: the ext_proc port serves only gateways with a certificate of one "
      "of them; empty: any gateway");
  command->add_option("--tls-min-version", f->tls_min_version, "VersionTLS12 or VersionTLS13");
  command->add_option("--tls-cipher-suites", f->cipher_suites, "Cipher suites by their Go names")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_flag("--enable-grpc-stream-metrics", f->stream_metrics, "Also the extproc_streams_* series");
}

void AddLimitFlags(CLI::App* command, const std::shared_ptr<EppFlags>& f) {
  const auto quantity = [](const std::string& text) -> std::string {
    return base::ParseQuantity(text) ? "" : "\"" + text + "\" is not a size; write it like 10MiB or 4Mi";
  };
  command
      ->add_option("--grpc-max-recv-msg-size", f->max_receive,
                   "Largest message of a gateway, e.g. 10MiB (default 4MiB, and 64MiB for a request's body "
                   "in one message)")
      ->check(quantity);
  command
      ->add_option("--grpc-max-send-msg-size", f->max_send,
                   "Accepted; answers are never larger than 64 KiB a message")
      ->check(quantity);
  AddDuration(*command, "--body-timeout", f->body_timeout,
              "The longest silence while a request's body is awaited");
}

void AddPeerFlags(CLI::App* command, const std::shared_ptr<EppFlags>& f) {
  command
      ->add_option(
          "--peers", f->peers,
          "Other replicas that serve the same pools, to tell one another what was sent where: HOST or "
          "HOST:PORT; a name stands for all its addresses (a headless Service), looked up again and "
          "again")
      ->delimiter(',')
      ->allow_extra_args(false);
  command->add_option("--peer-port", f->peer_port, "Port that peers ask; 0 is a free one")
      ->capture_default_str();
  command->add_option("--peer-ca-file", f->peer_ca_file,
                      "PEM file of authorities: peers have to show each other a certificate of one of them "
                      "that is for the name in --peers; empty: TLS without that");
  AddDuration(*command, "--peer-interval", f->peer_interval, "How often peers are told");
}

// Flags of the reference that change nothing here, or that it refuses, too.
void AddAcceptedFlags(CLI::App* command) {
  // Read as text with an optional value, so that "--tracing", "--tracing=false" and "--pool-group x" all
  // parse.
  for (const auto& [name, why] : kNotYet) {
    const std::string flag = name;
    const std::string reason = why;
    const bool is_switch = flag == "--tracing" || flag == "--enable-pprof" ||
                           flag == "--allow-experimental-plugins" || flag == "--zap-devel";
    const auto warn = [flag, reason](const std::string&) {
      std::fprintf(stderr, "fairway epp: warning: %s has no effect: %s\n", flag.c_str(), reason.c_str());
    };
    CLI::Option* option = nullptr;
    if (is_switch) {
      option = command->add_flag_function(flag, [warn](int64_t) { warn(""); }, "No effect: " + reason);
    } else {
      option = command->add_option_function<std::string>(flag, warn, "No effect: " + reason);
    }
    option->group("Accepted for compatibility");
  }
  for (const char* name : kRejected) {
    command
        ->add_option_function<std::string>(
            name,
            [name](const std::string&) {
              throw CLI::ValidationError(
                  name,
                  "is no longer supported, as in the reference: engines are told apart by the label "
                  "llm-d.ai/engine-type");
            },
            "Rejected")
        ->group("");
  }
}

}  // namespace

void AddEppCommand(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("epp", "Serve as endpoint picker of a gateway with ext_proc");
  auto f = std::make_shared<EppFlags>();
  AddCommonFlags(*command, f->common, "--refresh-metrics-interval");
  AddAdminFlags(command, f);
  AddPoolFlags(command, f);
  AddServingFlags(command, f);
  AddLimitFlags(command, f);
  AddPeerFlags(command, f);
  AddAcceptedFlags(command);
  command->footer(
      "SIGTERM: health says NOT_SERVING, open exchanges end within --drain-timeout, then exit 0; a second "
      "one ends at once. SIGHUP: the manifests are looked at again.\n\n"
      "Without -f, pools, models and Pods are read from the Kubernetes API and followed "
      "(docs/kubernetes.md).\n\n"
      "Examples:\n"
      "  fairway epp --pool-name vllm-llama2-7b-pool --pool-namespace llm\n"
      "  fairway epp --endpoint-selector app=vllm --endpoint-target-ports 8000\n"
      "  fairway epp -f manifests/ --pool-name vllm-llama2-7b-pool\n"
      "  fairway epp -f manifests/ --secure-serving=false --grpc-port 9002 --explain\n"
      "  fairway epp -f pool.yaml -f endpoints.yaml --cert-path /etc/tls --enable-cert-reload");
  command->callback([f, &run] { run = [f] { return Epp(*f); }; });
}

}  // namespace fairway::cli
