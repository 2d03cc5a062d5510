#include "cli/sim_command.h"

#include <pthread.h>
#include <signal.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "base/strings.h"
#include "cli/console.h"
#include "cli/exit_codes.h"
#include "net/address.h"
#include "simulator/server.h"

namespace fairway::cli {

using base::ErrorCode;
using base::Fail;
using simulator::EndpointOptions;

namespace {

constexpr uint32_t kMaxEndpoints = 4096;

constexpr char kExamples[] = R"(
Examples:
  One server on port 8000:
    fairway sim --model llama2
  Three with names, LoRA adapters, two of which fit into memory at once:
    fairway sim --listen a=127.0.0.1:8101 --listen b=127.0.0.1:8102 --listen c=127.0.0.1:8103 \
      --model vllm-llama2-7b --adapter lora-x,lora-y,lora-z --max-loras 2
  A hundred on free ports, twenty times as fast as a real one:
    fairway sim --listen 127.0.0.1:0 --count 100 --time-scale 0.05
  Metrics that stay as they are, while requests are served:
    fairway sim --listen 127.0.0.1:8101 --listen 127.0.0.1:8102 --adapter a,b \
      --pin '8101:waiting=10,kv=0.3,running_lora=a|b' --pin '8102:waiting=5,kv=0.7'
  A server that never answers, well again later:
    fairway sim --listen 127.0.0.1:8101 --fault 8101:requests=hang
    curl http://127.0.0.1:8101/sim/faults -d '{"requests": "ok"}'

Values to pin: waiting, running, kv (0..1), running_lora and waiting_lora (names separated by |), max_lora.
Faults: requests=ok|refuse|hang|fail|cut, metrics=ok|garbage|empty|404|500|hang|redirect|huge.
While running: GET and POST /sim/faults on any of the ports, e.g.
  {"endpoint": "8102", "requests": "refuse", "for_ms": 2000} or {"pin": {"waiting": 10}} or {"pin": null}.

Exit codes: 0 after SIGINT or SIGTERM, 2 when a flag is wrong, 3 when a port cannot be listened on.)";

struct Flags {
  std::vector<std::string> listen = {"127.0.0.1:8000"};
  uint32_t count = 1;
  std::string model = "sim-model";
  std::vector<std::string> adapters;
  simulator::EngineOptions engine;
  double decode_ms = 12;
  double decode_per_sequence_ms = 0.1;
  double lora_load_ms = 200;
  bool no_prefix_caching = false;
  double time_scale = 1;
  std::vector<std::string> pins;
  std::vector<std::string> faults;
  std::string engine_type = "vllm";
  bool legacy_metric_names = false;
  uint32_t threads = 1;
};

base::Result<simulator::EngineOptions> EngineOf(const Flags& flags) {
  simulator::EngineOptions engine = flags.engine;
  constexpr double kHour = 3600e3;
  for (auto [name, value] : {std::pair("--decode-ms", flags.decode_ms),
                             std::pair("--decode-per-seq-ms", flags.decode_per_sequence_ms),
                             std::pair("--lora-load-ms", flags.lora_load_ms)}) {
    if (!(value >= 0 && value <= kHour))
      return Fail(ErrorCode::kInvalidArgument, std::string(name) + " must be 0..3600000 milliseconds");
  }
  if (!(flags.time_scale >= 1e-6 && flags.time_scale <= 1000))
    return Fail(ErrorCode::kInvalidArgument, "--time-scale must be 0.000001..1000; 0.1 is ten times as fast");
  auto nanos = [](double ms) { return static_cast<base::Nanos>(std::llround(ms * 1e6)); };
  engine.decode_base = nanos(flags.decode_ms);
  engine.decode_per_sequence = nanos(flags.decode_per_sequence_ms);
  engine.lora_load_time = nanos(flags.lora_load_ms);
  engine.prefix_caching = !flags.no_prefix_caching;
  if (auto ok = simulator::Validate(engine); !ok) return tl::make_unexpected(ok.error());
  return simulator::ScaleTime(engine, flags.time_scale);
}

base::Result<std::vector<EndpointOptions>> EndpointsOf(const Flags& flags) {
  const auto engine = EngineOf(flags);
  if (!engine) return tl::make_unexpected(engine.error());
  if (flags.count < 1 || flags.count * static_cast<uint64_t>(flags.listen.size()) > kMaxEndpoints)
    return Fail(ErrorCode::kInvalidArgument,
                "at least 1 and at most " + std::to_string(kMaxEndpoints) + " endpoints");

  EndpointOptions common{.model = flags.model, .legacy_metric_names = flags.legacy_metric_names};
  if (flags.engine_type == "sglang") common.type = simulator::EngineType::kSglang;
  common.engine = *engine;
  for (const std::string& adapter : flags.adapters) common.adapters.emplace_back(base::Trim(adapter));
  if (auto ok = simulator::Validate(common); !ok) return tl::make_unexpected(ok.error());
  std::vector<EndpointOptions> endpoints;
  for (const std::string& listen : flags.listen) {
    const size_t equals = listen.find('=');
    const std::string name = equals == std::string::npos ? "" : listen.substr(0, equals);
    const auto address =
        net::ParseHostPort(listen.substr(equals == std::string::npos ? 0 : equals + 1), true);
    if (!address)
      return Fail(ErrorCode::kInvalidArgument, "--listen " + listen + ": " + address.error().message);
    if (address->port != 0 && address->port + flags.count - 1 > 65535)
      return Fail(ErrorCode::kInvalidArgument, "--listen " + listen + ": --count goes beyond port 65535");
    for (uint32_t i = 0; i < flags.count; ++i) {
      EndpointOptions endpoint = common;
      endpoint.host = address->host;
      endpoint.port = static_cast<uint16_t>(address->port == 0 ? 0 : address->port + i);
      if (!name.empty()) endpoint.name = flags.count == 1 ? name : name + "-" + std::to_string(i + 1);
      endpoint.engine.seed = flags.engine.seed + endpoints.size();
      endpoints.push_back(std::move(endpoint));
    }
  }
  return endpoints;
}

using PatchParser = base::Result<simulator::TargetedPatch> (*)(std::string_view);

base::Result<void> ApplyAll(const char* flag, const std::vector<std::string>& texts, PatchParser parse,
                            std::vector<EndpointOptions>& endpoints) {
  for (const std::string& text : texts) {
    auto fail = [&](const base::Error& error) {
      return Fail(ErrorCode::kInvalidArgument, std::string(flag) + " " + text + ": " + error.message);
    };
    auto parsed = parse(text);
    if (!parsed) return fail(parsed.error());
    auto apply = [&](EndpointOptions& endpoint) {
      simulator::FaultPatch patch = parsed->patch;
      if (patch.pin) {
        simulator::PinnedMetrics pin = endpoint.faults.pin;
        pin.Merge(*patch.pin);
        patch.pin = pin;
      }
      endpoint.faults = simulator::Apply(endpoint.faults, patch);
    };
    if (parsed->endpoint.empty()) {
      for (EndpointOptions& endpoint : endpoints) apply(endpoint);
      continue;
    }
    const auto target = simulator::FindEndpoint(endpoints, parsed->endpoint);
    if (!target) return fail(target.error());
    apply(endpoints[*target]);
  }
  return {};
}

base::Result<simulator::SimulatorOptions> OptionsOf(const Flags& flags) {
  auto endpoints = EndpointsOf(flags);
  if (!endpoints) return tl::make_unexpected(endpoints.error());
  if (auto ok = ApplyAll("--pin", flags.pins, simulator::PinFromText, *endpoints); !ok)
    return tl::make_unexpected(ok.error());
  if (auto ok = ApplyAll("--fault", flags.faults, simulator::FaultsFromText, *endpoints); !ok)
    return tl::make_unexpected(ok.error());
  return simulator::SimulatorOptions{.endpoints = std::move(*endpoints), .threads = flags.threads};
}

void PrintReady(const simulator::Simulator& sim, const Flags& flags) {
  for (size_t i = 0; i < sim.size(); ++i) {
    std::string line = sim.name(i) == sim.address(i) ? "" : sim.name(i) + "  ";
    line += "http://" + sim.address(i);
    std::printf("%s  model %s", line.c_str(), flags.model.c_str());
    if (!flags.adapters.empty()) std::printf("  adapters %s", base::Join(flags.adapters, ",").c_str());
    std::printf("\n");
  }
  std::printf("ready: %zu simulated model server%s; Ctrl-C ends\n", sim.size(), sim.size() == 1 ? "" : "s");
  std::fflush(stdout);
}

int RunSim(const Flags& flags) {
  const auto options = OptionsOf(flags);
  if (!options) {
    Show(stderr, "fairway sim: " + options.error().message + "\n");
    return kExitUsage;
  }
  // Blocked before there are threads, so that only sigwait below gets them.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  const base::SystemClock clock;
  const base::Log log;
  const auto sim = simulator::Simulator::Start(*options, clock, log);
  if (!sim) {
    Show(stderr, "fairway sim: " + sim.error().message + "\n");
    return sim.error().code == ErrorCode::kInvalidArgument ? kExitUsage : kExitStart;
  }
  PrintReady(**sim, flags);
  int signal = 0;
  sigwait(&signals, &signal);
  return kExitOk;
}

void AddEngineFlags(CLI::App& sim, Flags& flags) {
  constexpr char kGroup[] = "The engine";
  simulator::EngineOptions& engine = flags.engine;
  auto add = [&](const char* name, auto& value, const char* help) {
    sim.add_option(name, value, help)->group(kGroup)->capture_default_str();
  };
  add("--prefill-rate", engine.prefill_tokens_per_second, "prompt tokens computed per second");
  add("--decode-ms", flags.decode_ms,
      "length of an engine step, which makes one token of each running request");
  add("--decode-per-seq-ms", flags.decode_per_sequence_ms, "added to a step for each running request");
  add("--max-num-seqs", engine.max_num_seqs, "requests in a batch; further ones wait");
  add("--max-num-batched-tokens", engine.max_num_batched_tokens,
      "tokens in a step; longer prompts take several");
  add("--max-model-len", engine.max_model_len, "tokens of prompt and answer together");
  add("--num-blocks", engine.num_blocks, "KV cache blocks");
  add("--block-size", engine.block_size, "tokens in a KV cache block");
  add("--max-waiting", engine.max_waiting, "waiting requests; further ones get 503");
  add("--max-loras", engine.max_loras, "adapters in memory at once; 0: as many as there are, at most 4");
  add("--lora-load-ms", flags.lora_load_ms, "added to the step that first needs an adapter");
  add("--tokenizer-rate", engine.tokenizer_tokens_per_second,
      "prompt tokens per second that get into the queue, one prompt after the other; 0: at once");
  add("--answer-tokens", engine.answer_tokens,
      "length of an answer that max_tokens does not cut, on average");
  add("--answer-spread", engine.answer_spread, "how far lengths vary, as a fraction: 0..1");
  add("--jitter", engine.jitter, "how far the length of steps varies, as a fraction: 0..1");
  add("--seed", engine.seed, "for all that varies; each further server takes the next number");
  add("--time-scale", flags.time_scale, "all times are multiplied by this: 0.1 is ten times as fast");
  sim.add_flag("--no-prefix-caching", flags.no_prefix_caching, "compute every prompt in full")->group(kGroup);
}

}  // namespace

void AddSimCommand(CLI::App& app, std::function<int()>& run) {
  CLI::App* sim = app.add_subcommand("sim", "Simulated model servers that behave as vLLM does");
  auto flags = std::make_shared<Flags>();
  sim->footer(kExamples);
  sim->add_option("--listen", flags->listen,
                  "where to listen, [NAME=]HOST:PORT; port 0: a free one; can be repeated, one server each")
      ->capture_default_str();
  sim->add_option("--count", flags->count, "servers for each --listen, on consecutive ports")
      ->capture_default_str();
  sim->add_option("--model", flags->model, "name of the base model")->capture_default_str();
  sim->add_option("--adapter", flags->adapters, "LoRA adapters, NAME[,NAME...]; can be repeated")
      ->delimiter(',');
  sim->add_option("--pin", flags->pins,
                  "show fixed metrics: [SERVER:]NAME=VALUE[,NAME=VALUE...]; can be repeated")
      ->allow_extra_args(false);
  sim->add_option("--fault", flags->faults,
                  "go wrong from the start: [SERVER:]requests=...,metrics=...; can be repeated")
      ->allow_extra_args(false);
  sim->add_option("--engine", flags->engine_type,
                  "whose metrics it shows: vllm, or sglang, which also answers /v1/loads")
      ->check(CLI::IsMember({"vllm", "sglang"}))
      ->capture_default_str();
  sim->add_flag("--legacy-metric-names", flags->legacy_metric_names,
                "also show vllm:gpu_cache_usage_perc and others that vLLM dropped after 0.10");
  sim->add_option("--threads", flags->threads, "event loops that share the servers, 1..64")
      ->capture_default_str();
  AddEngineFlags(*sim, *flags);
  sim->callback([flags, &run] { run = [flags] { return RunSim(*flags); }; });
}

}  // namespace fairway::cli
