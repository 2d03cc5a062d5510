#include "cli/up_command.h"

#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/json_writer.h"
#include "cli/console.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"
#include "cli/picker.h"
#include "frontends/local/envoy_binary.h"
#include "frontends/local/local_gateway.h"
#include "frontends/local/patterns.h"
#include "net/address.h"

namespace fairway::cli {
namespace {

struct UpFlags {
  CommonFlags common;
  std::vector<std::string> endpoints;
  std::string listen;
  std::string envoy;
  std::string picker;
  std::string body_mode;
  std::string response_mode = "headers";
  bool print_config = false;
  bool ext_proc = false;
  std::string module;
  uint16_t admin_port = 0;
  unsigned envoy_concurrency = 0;
  std::string stop_grace = "5s";
};

// `--endpoint a:1 --endpoint b:2`: one pool of these, no models, no routes.
base::Result<api::Manifests> ManifestsOf(const std::vector<std::string>& endpoints) {
  api::Manifests manifests;
  api::InferencePool pool;
  pool.meta.name = "endpoints";
  pool.group = "inference.networking.k8s.io";
  pool.selector = {{"fairway", "endpoint"}};
  for (const auto& text : endpoints) {
    const auto parsed = net::ParseHostPort(text);
    if (!parsed)
      return base::Fail(base::ErrorCode::kInvalidArgument, "--endpoint: " + parsed.error().message);
    api::Endpoint endpoint;
    endpoint.name = text;
    endpoint.address = parsed->host;
    endpoint.port = parsed->port;
    endpoint.labels = pool.selector;
    manifests.endpoints.push_back(std::move(endpoint));
  }
  pool.target_ports = {manifests.endpoints.front().port};
  manifests.pools.push_back(std::move(pool));
  return manifests;
}

// The same for the picker inside Envoy.
void WriteObjects(const api::Manifests& manifests, base::JsonWriter& json) {
  const api::InferencePool& pool = manifests.pools.front();
  const auto selector = [&pool, &json] {
    json.BeginObject();
    for (const auto& [key, value] : pool.selector) json.Member(key, value);
    json.EndObject();
  };
  json.BeginList().BeginObject().Member("apiVersion", pool.group + "/v1").Member("kind", "InferencePool");
  json.Key("metadata").BeginObject().Member("name", pool.meta.name).EndObject();
  json.Key("spec").BeginObject().Key("selector").BeginObject().Key("matchLabels");
  selector();
  json.EndObject().Key("targetPorts").BeginList().BeginObject();
  json.Member("number", pool.target_ports.front()).EndObject().EndList();
  json.Key("endpointPickerRef").BeginObject().Member("name", "fairway");
  json.Key("port").BeginObject().Member("number", 9002).EndObject().EndObject().EndObject().EndObject();
  json.BeginObject().Key("endpoints").BeginList();
  for (const api::Endpoint& endpoint : manifests.endpoints) {
    json.BeginObject().Member("name", endpoint.name).Member("address", endpoint.address);
    json.Member("port", endpoint.port).Key("labels");
    selector();
    json.EndObject();
  }
  json.EndList().EndObject().EndList();
}

// What the picker inside Envoy is told: the same manifests and settings as ours.
std::string ModuleConfig(const UpFlags& f, const PickerOptions& options) {
  std::string text;
  base::JsonWriter json(text);
  json.BeginObject();
  if (options.files.empty()) {
    WriteObjects(options.manifests, json.Key("objects"));
  } else {
    json.Key("manifests").BeginList();
    for (const auto& file : options.files) json.Value(std::filesystem::absolute(file).string());
    json.EndList();
  }
  json.Key("admin").BeginObject().Member("port", options.admin_port).EndObject();
  json.Member("responseMode", f.response_mode);
  json.Member("hostSelection", "policy");  // the clusters below have it
  json.Member("lastFilter", true);         // and the router comes next
  json.Member("subsetHint", false);        // nobody in this Envoy gives one
  json.Member("failureMode", "FailClose");
  json.Member("maxBodyBytes", local::EnvoyOptions().module_max_body_bytes);
  json.Member("logManifests", false);  // we say it
  json.Member("logFormat", "json");    // so that its fields are fields of our log's lines
  api::PickerSettings given = f.common;
  api::PickerSettings defaults;
  const std::vector<api::Setting> otherwise = api::SettingsOf(defaults);
  const std::vector<api::Setting> settings = api::SettingsOf(given);
  for (size_t i = 0; i < settings.size(); ++i) {
    const api::Setting& setting = settings[i];
    if (api::Show(setting) == api::Show(otherwise[i])) continue;
    if (setting.path) {  // Envoy runs elsewhere
      auto& path = *std::get<std::string*>(setting.value);
      path = std::filesystem::absolute(path).string();
    }
    api::Write(setting, json.Key(setting.field));
  }
  json.EndObject();
  return text;
}

// The shared object that Envoy loads: beside the program, or where packages put it. Empty: not there.
std::string FindModule() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  if (error) return "";
  const std::string name = "libfairway_envoy-" FAIRWAY_VERSION ".so";
  for (const auto& folder : {program.parent_path(), program.parent_path() / "../lib/fairway"}) {
    const auto path = folder / name;
    if (std::filesystem::exists(path, error)) return path.lexically_normal().string();
  }
  return "";
}

int PrintConfig(const api::Manifests& manifests, const local::EnvoyOptions& options) {
  const auto config = local::MakeEnvoyConfig(manifests, local::SelectEndpoints(manifests), options);
  if (!config) {
    Show(stderr, "fairway up: " + config.error().message + "\n");
    return kExitInput;
  }
  for (const auto& warning : config->warnings) Show(stderr, "warning: " + warning + "\n");
  for (const auto& file : config->files) Show(stdout, "# " + file.name + "\n" + file.text + "\n");
  return kExitOk;
}

// Envoy and what it follows; the control loop's but for the two atomics.
struct Front {
  Front(local::LocalGatewayOptions o, const base::Log& l) : options(std::move(o)), log(l) {}

  void OnManifests(const api::Manifests& manifests, const sources::NameResolver::Addresses& addresses) {
    latest = manifests;
    endpoints = local::SelectEndpoints(manifests, addresses);
    if (gateway == nullptr) return;
    if (auto updated = gateway->Update(latest, endpoints); !updated) {
      log.Error("Envoy keeps its configuration", {{"reason", updated.error().message}});
    }
  }

  local::LocalGatewayOptions options;
  const base::Log& log;
  api::Manifests latest;
  local::PoolEndpoints endpoints;
  std::unique_ptr<local::LocalGateway> gateway;
  std::atomic<bool> failed{false};
  bool announced = false;
};

std::string Announcement(const Front& front, uint16_t metrics_port) {
  std::string where;
  for (const auto& listener : front.gateway->listeners()) {
    where += " http://" + net::FormatHostPort(listener.host, listener.port);
  }
  return "ready:" + where + "  (metrics http://127.0.0.1:" + std::to_string(metrics_port) + "/metrics)\n";
}

base::Result<void> WrongUse(std::string what) {
  return base::Fail(base::ErrorCode::kInvalidArgument, std::move(what));
}

// Modes and addresses, as flags say them.
base::Result<void> UseEnvoyFlags(const UpFlags& f, local::EnvoyOptions& envoy) {
  if (!f.body_mode.empty()) {
    const auto body_mode = local::ParseBodyMode(f.body_mode);
    if (!body_mode) return WrongUse("--body-mode: " + body_mode.error().message);
    envoy.body_mode = *body_mode;
  } else if (f.picker.empty()) {
    // The picker lives as long as Envoy does, so that nothing is gained by Envoy's holding bodies for when it
    // is gone; and of what Envoy holds the next one pays, of what the picker holds who holds most.
    envoy.body_mode = local::BodyMode::kFullDuplex;
  }
  const auto response_mode = local::ParseResponseMode(f.response_mode);
  if (!response_mode) return WrongUse("--response-mode: " + response_mode.error().message);
  envoy.response_mode = *response_mode;
  if (!f.listen.empty()) {
    const auto parsed = net::ParseHostPort(f.listen, true);
    if (!parsed) return WrongUse("--listen: " + parsed.error().message);
    envoy.listen = *parsed;
  }
  if (!f.picker.empty()) {
    const auto parsed = net::ParseHostPort(f.picker);
    if (!parsed) return WrongUse("--picker: " + parsed.error().message);
    envoy.picker = *parsed;
  }
  return {};
}

// Manifests, or model servers without any.
base::Result<void> UseInput(const UpFlags& f, PickerOptions& options) {
  options.load.check_pattern = local::CheckPattern;
  if (options.files.empty() == f.endpoints.empty()) {
    return WrongUse(f.endpoints.empty()
                        ? "nothing to serve: give manifests with -f, or model servers with --endpoint"
                        : "give either manifests with -f or model servers with --endpoint, not both");
  }
  if (f.endpoints.empty()) return {};
  auto manifests = ManifestsOf(f.endpoints);
  if (!manifests) return tl::make_unexpected(manifests.error());
  options.manifests = std::move(*manifests);
  return {};
}

// Inside Envoy, where the module is there and nothing asks for ext_proc.
base::Result<void> PlacePicker(const UpFlags& f, PickerOptions& options, local::EnvoyOptions& envoy,
                               const base::Log& log) {
  // Settings that only ext_proc has are a wish for it.
  const bool wants_ext_proc = f.ext_proc || !f.picker.empty() || !f.body_mode.empty();
  envoy.place = wants_ext_proc ? local::PickerPlace::kExtProc : local::PickerPlace::kModule;
  if (!wants_ext_proc) {
    envoy.module.file = f.module.empty() ? FindModule() : std::filesystem::absolute(f.module).string();
    std::error_code error;
    if (!f.module.empty() && !std::filesystem::exists(envoy.module.file, error))
      return WrongUse("--module: there is no file " + f.module);
    const bool from_input = std::find(options.files.begin(), options.files.end(), "-") != options.files.end();
    if (envoy.module.file.empty() || from_input) {
      log.Info(
          from_input
              ? "manifests from standard input can be read once only: Envoy asks this process over ext_proc"
              : "libfairway_envoy-" FAIRWAY_VERSION
                ".so is not beside this program: Envoy asks this process over ext_proc");
      envoy.place = local::PickerPlace::kExtProc;
    }
  }
  options.admin_port = f.admin_port;
  if (envoy.place != local::PickerPlace::kModule) return {};
  if (options.admin_port == 0 && !f.print_config) {
    const auto port = local::FreePort("127.0.0.1");
    if (!port) return WrongUse(port.error().message);
    options.admin_port = *port;
  }
  envoy.module.config = ModuleConfig(f, options);
  return {};
}

// The picker is inside Envoy: this process only watches the manifests, for Envoy's configuration.
void LeaveToModule(PickerOptions& options) {
  options.serve_ext_proc = false;
  options.scrape_endpoints = false;
  options.record_file.clear();
  options.config = {};
  options.admin = picker::Options::Admin::kNone;
}

// For an Envoy of ours, on loopback.
void UseExtProc(const UpFlags& f, const local::EnvoyOptions& envoy, PickerOptions& options) {
  options.ext_proc.host = "127.0.0.1";
  options.ext_proc.grpc_port = 0;
  options.ext_proc.serve_health_port = false;
  options.ext_proc.secure_serving = false;  // both ends are ours
  if (!f.picker.empty()) options.serve_ext_proc = false;
  // On loopback small windows cost nothing, and an honest call has less in front of it on its way here.
  options.ext_proc.transport.stream_window = 128 << 10;
  options.ext_proc.transport.connection_window = 2 << 20;
  // A whole body comes as one message in the buffered modes.
  options.ext_proc.transport.max_message = envoy.max_body_bytes + (1 << 20);
}

int Say(Console& console, const std::string& message, int code) {
  console.PrintError("fairway up: " + message + "\n");
  return code;
}
int Say(Console& console, const base::Error& error) {
  return Say(console, error.message,
             error.code == base::ErrorCode::kInvalidArgument ? kExitInput : kExitStart);
}

// Envoy, until it could be started. On the control loop.
base::Result<void> StartEnvoy(net::Loop& control, Front& front, Console& console, uint16_t metrics_port) {
  std::promise<base::Result<void>> started;
  control.Post([&] {
    local::EnvoyProcessEvents events;
    events.on_ready = [&front, &console, metrics_port] {
      if (std::exchange(front.announced, true)) return;
      console.Print(Announcement(front, metrics_port));
    };
    events.on_explanation = [&console](std::string_view line) { console.Print(std::string(line) + "\n"); };
    events.on_failed = [&front, &console](const std::string& reason) {
      Say(console, "Envoy does not start: " + reason, kExitStart);
      front.failed = true;
      kill(getpid(), SIGTERM);  // wakes the main thread, which waits for exactly that
    };
    auto gateway = local::LocalGateway::Create(control, front.options, front.latest, front.endpoints,
                                               std::move(events), front.log);
    if (!gateway) {
      started.set_value(tl::make_unexpected(gateway.error()));
      return;
    }
    front.gateway = std::move(*gateway);
    front.gateway->Start();
    started.set_value({});
  });
  return started.get_future().get();
}

// Until a signal comes.
int Serve(const UpFlags& f, const PickerOptions& options, Front& front, Console& console) {
  auto picker = Picker::Start(options, front.log, [&front](const auto& manifests, const auto& addresses) {
    front.OnManifests(manifests, addresses);
  });
  if (!picker) return Say(console, picker.error());
  const bool module = front.options.envoy.place == local::PickerPlace::kModule;
  if (f.picker.empty() && !module) front.options.envoy.picker = {"127.0.0.1", (*picker)->grpc_port()};
  net::Loop& control = (*picker)->control_loop();
  int code = kExitOk;
  if (const auto started =
          StartEnvoy(control, front, console, module ? options.admin_port : (*picker)->admin_port())) {
    WaitForSignal();  // SIGHUP, too: the terminal is gone
    code = front.failed ? kExitStart : kExitOk;
    ExitOnSecondSignal([folder = front.gateway->directory()] {
      std::error_code ignored;
      std::filesystem::remove_all(folder, ignored);
    });
    // Envoy first: it ends what clients have open, and with it the picker's exchanges.
    std::promise<void> stopped;
    control.Post([&] { front.gateway->Stop([&] { stopped.set_value(); }); });
    stopped.get_future().wait();
  } else {
    code = Say(console, started.error());
  }
  (*picker)->Drain(Duration(f.stop_grace));
  std::promise<void> cleared;
  control.Post([&] {
    front.gateway.reset();
    cleared.set_value();
  });
  cleared.get_future().wait();
  return code;
}

int Up(const UpFlags& f) {
  BlockStopSignals();
  Console console(Format(f.common));
  const base::Log log = console.MakeLog(Level(f.common));
  local::LocalGatewayOptions local_options;
  local::EnvoyOptions& envoy = local_options.envoy;
  local_options.concurrency = f.envoy_concurrency;
  PickerOptions options = MakePickerOptions(f.common, console);
  base::Result<void> used = UseEnvoyFlags(f, envoy);
  if (used) used = UseInput(f, options);
  if (used) used = PlacePicker(f, options, envoy, log);
  if (!used) return Say(console, used.error().message, kExitUsage);

  if (f.print_config) {
    envoy.directory = "/etc/fairway";
    if (options.files.empty()) return PrintConfig(options.manifests, envoy);
    const api::LoadResult loaded = api::LoadManifests(options.files, options.load);
    return PrintProblems(loaded.problems, options.print) ? PrintConfig(loaded.manifests, envoy) : kExitInput;
  }

  const auto binary = local::FindEnvoy(f.envoy);
  if (!binary) return Say(console, binary.error().message, kExitStart);
  local_options.binary = binary->path;
  if (envoy.place == local::PickerPlace::kModule) {
    // Envoy would say it in a line of its log.
    std::vector<api::Problem> found;
    const bool good = picker::ConfigSource(options.config).Load(found);
    if (!PrintProblems(found, options.print) || !good)
      return Say(console, "the scheduler config has errors", kExitInput);
    LeaveToModule(options);
  }
  UseExtProc(f, envoy, options);
  Front front(std::move(local_options), log);
  return Serve(f, options, front, console);
}

}  // namespace

void AddUpCommand(CLI::App& app, std::function<int()>& run) {
  auto* command = app.add_subcommand("up", "Serve manifests on this machine through a real Envoy");
  auto f = std::make_shared<UpFlags>();
  AddCommonFlags(*command, f->common, "--scrape-interval");
  command->add_option("--endpoint", f->endpoints,
                      "A model server HOST:PORT, any number of times; needs no manifest");
  command->add_option(
      "--listen", f->listen,
      "Where clients connect, e.g. 127.0.0.1:8080; default: the Gateways' ports on 127.0.0.1, else 8080");
  command->add_option("--envoy", f->envoy, "Envoy's binary; default: on PATH, else the one ./demo installed");
  command->add_option("--envoy-concurrency", f->envoy_concurrency,
                      "Envoy's worker threads; 0 is one per core, at most 4");
  command->add_flag(
      "--ext-proc", f->ext_proc,
      "Envoy asks this process over ext_proc, as a gateway in a cluster does, rather than having "
      "the picker inside itself");
  command->add_option("--module", f->module,
                      "The shared object that Envoy loads; default: the one beside this program");
  command->add_option("--picker", f->picker,
                      "Ask the picker at HOST:PORT (plain text) over ext_proc instead of the built-in one");
  command->add_option("--metrics-port", f->admin_port,
                      "Port of /metrics and the admin pages on 127.0.0.1; 0 is a free one");
  command->add_option("--body-mode", f->body_mode,
                      "How Envoy hands over bodies over ext_proc (implies it): full-duplex, buffered, "
                      "streamed, partial, none; "
                      "default: full-duplex, with --picker buffered");
  command
      ->add_option("--response-mode", f->response_mode,
                   "headers: no work per token; full: responses pass through the picker, for token metrics")
      ->capture_default_str();
  command->add_flag("--print-envoy-config", f->print_config,
                    "Print the generated Envoy configuration and exit");
  command->footer(
      "Prints one line \"ready: http://...\" once requests are served. Changed manifests are taken over "
      "while running; a broken\n"
      "change is reported and the last good state stays. An Envoy that dies is started again; it ends with "
      "this process,\n"
      "which ends with SIGINT, SIGTERM or its terminal.\n\n"
      "Examples:\n"
      "  fairway up -f examples/intro-fixed --explain\n"
      "  fairway up --endpoint 127.0.0.1:8000 --endpoint 127.0.0.1:8001 --listen 127.0.0.1:8080\n"
      "  fairway up -f manifests/ --response-mode full --metrics-port 9090\n"
      "  fairway up -f manifests/ --ext-proc");
  command->callback([f, &run] { run = [f] { return Up(*f); }; });
}

}  // namespace fairway::cli
