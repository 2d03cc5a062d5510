#include <unistd.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "cli/commands.h"
#include "cli/config_file.h"
#include "cli/console.h"
#include "cli/exit_codes.h"
#include "cli/flags.h"
#include "replay/decisions.h"
#include "replay/fields.h"
#include "replay/picker.h"
#include "replay/plot.h"
#include "replay/production.h"
#include "replay/replay.h"

namespace fairway::cli {

namespace {

constexpr char kReplayExamples[] = R"(
Examples:
  The default profile beside round robin and what nobody can beat:
    fairway replay --workload examples/workloads/unique.yaml --policy fairway,round-robin,oracle
  A published trace on 32 servers, four pickers, five seeds, a picture:
    fairway replay --workload mooncake_conversation.jsonl --fleet 32 --pickers 4 --seeds 5 --plot out.svg
  Six servers and two that are half as fast:
    fairway replay --workload w.yaml --fleet '6;2,name=old,prefill-rate=4000,decode-ms=24'
  A parameter of the scheduler's:
    fairway replay --workload w.yaml --policy fairway,tolerance=0 --policy fairway

  Which recorded decisions (`fairway epp --record FILE`) another parameter would make otherwise:
    fairway replay --from-decisions decisions.jsonl --policy fairway,tolerance=0

Times are virtual: a run takes as long as it takes to compute. The same seed gives the same table.
Exit codes: 0 done, 1 a file has errors or a recorded decision is made otherwise now, 2 wrong flags.

)";

struct ReplayFlags {
  std::string workload;
  std::string from_decisions;
  std::vector<std::string> configs;
  bool policy_given = false;
  std::string fleet;
  std::vector<std::string> policies = {"fairway", "round-robin"};
  uint32_t pickers = 1;
  std::string scrape_interval = "50ms";
  std::string page_delay = "3ms";
  std::string network_delay = "250us";
  std::string tell_interval = "0s";
  std::string tell_delay = "2ms";
  std::string duration;
  std::string warmup;
  bool unseen_ends = false;
  uint32_t seeds = 1;
  uint64_t seed = 1;
  uint64_t requests = 0;
  std::string json;
  std::string plot;
};

using Steady = std::chrono::steady_clock;

int Wrong(const std::string& what) {
  Show(stderr, "fairway replay: " + what + "\n");
  return kExitUsage;
}

// One line on stderr, at most every two seconds, and only for who looks.
class ProgressLine {
 public:
  ProgressLine(const replay::Workload& workload, size_t runs) : workload_(workload), runs_(runs) {}
  void NextRun(const std::string& policy) {
    policy_ = policy;
    ++run_;
  }
  void Show(base::Nanos now, uint64_t requests) {
    const auto at = Steady::now();
    if (at - shown_ < std::chrono::seconds(2)) return;
    shown_ = at;
    std::fprintf(stderr, "run %zu of %zu, %s: %.0f s of %.0f s, %llu requests\n", run_, runs_,
                 policy_.c_str(), base::ToSeconds(now), base::ToSeconds(workload_.duration),
                 static_cast<unsigned long long>(requests));
  }

 private:
  const replay::Workload& workload_;
  const size_t runs_;
  size_t run_ = 0;
  std::string policy_;
  Steady::time_point shown_ = Steady::now();
};

std::vector<std::string> SplitPolicies(const std::vector<std::string>& given) {
  // "a,b" is two policies, "a,x=1" one with a parameter.
  std::vector<std::string> out;
  for (const std::string& text : given) {
    for (const std::string_view piece : base::Split(text, ',')) {
      if (piece.find('=') != std::string_view::npos && !out.empty()) {
        out.back() += "," + std::string(base::Trim(piece));
      } else {
        out.emplace_back(base::Trim(piece));
      }
    }
  }
  return out;
}

bool Write(const std::string& path, const std::string& text) {
  if (path == "-") return std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
  std::ofstream file(path, std::ios::binary);
  file << text;
  file.close();
  return file.good();
}

// Asked before the run, which may take minutes. What is there stays as it is.
bool CanWrite(const std::string& path) {
  return path.empty() || path == "-" || std::ofstream(path, std::ios::binary | std::ios::app).good();
}

replay::FleetSpec FleetOf(const ReplayFlags& flags, const replay::Workload& workload,
                          std::vector<api::Problem>& problems) {
  if (flags.fleet.empty())
    return workload.fleet ? *workload.fleet : replay::ParseFleet("8", "--fleet", problems);
  if (::access(flags.fleet.c_str(), R_OK) == 0 || flags.fleet.ends_with(".yaml"))
    return replay::LoadFleet(flags.fleet, problems);
  return replay::ParseFleet(flags.fleet, "--fleet", problems);
}

std::string Describe(const ReplayFlags& flags, const replay::Workload& workload,
                     const replay::FleetSpec& fleet) {
  std::string text = workload.name + ": " + std::to_string(fleet.servers.size()) + " servers, ";
  text += std::to_string(flags.pickers) + (flags.pickers == 1 ? " picker" : " pickers");
  text += ", a page each " + flags.scrape_interval;
  if (Duration(flags.tell_interval) > 0) text += ", told each " + flags.tell_interval;
  if (flags.unseen_ends) text += ", ends unseen";
  text += ", " + std::to_string(flags.seeds) + (flags.seeds == 1 ? " seed" : " seeds");
  return text;
}

// Recorded decisions instead of a workload. By default as they were made; a policy's parameters change that.
int RunDecisions(const ReplayFlags& flags) {
  constexpr uint64_t kMostTold = 100;
  replay::DecisionReplayOptions how;
  if (flags.policy_given) {
    if (flags.policies.size() != 1) return Wrong("--from-decisions takes one --policy");
    const auto policy = replay::Policy::Find(flags.policies[0]);
    if (!policy) return Wrong(policy.error().message);
    if (!policy->is_ours())
      return Wrong("--from-decisions: " + policy->name() + " cannot decide on what was recorded");
    how.change = [policy = *policy](scheduling::SchedulerOptions& options) {
      replay::SetParameters(policy, options);
    };
  }
  uint64_t told = 0;
  how.tell = [&told](std::string_view line) {
    if (told++ < kMostTold) Show(stdout, std::string(line) + "\n");
  };
  std::vector<api::Problem> problems;
  if (flags.configs.size() > 1) return Wrong("--from-decisions takes one --config");
  if (!flags.configs.empty()) {
    how.config = ReadConfigFile(flags.configs[0], problems);
    if (!problems.empty()) Show(stderr, replay::ToText(problems) + "\n");
    if (how.config == nullptr) return kExitInput;
    problems.clear();
  }
  const replay::DecisionReplay done = replay::ReplayDecisions(flags.from_decisions, how, problems);
  if (told > kMostTold) std::printf("... and %llu more\n", static_cast<unsigned long long>(told - kMostTold));
  if (!problems.empty()) Show(stderr, replay::ToText(problems) + "\n");
  if (done.same + done.differing + done.left_out + done.broken == 0 && api::HasErrors(problems))
    return kExitInput;  // there was nothing to read
  std::printf("%llu decisions are the same, %llu differ, %llu were left out\n",
              static_cast<unsigned long long>(done.same), static_cast<unsigned long long>(done.differing),
              static_cast<unsigned long long>(done.left_out));
  return api::HasErrors(problems) || done.differing > 0 ? kExitInput : kExitOk;
}

// Fairway by each of these EndpointPickerConfigs, as one more policy under the file's name. What is wrong
// or doubtful in one is told here; false: it cannot decide.
bool AddConfigs(const std::vector<std::string>& paths, std::vector<replay::Policy>& policies,
                std::vector<api::Problem>& problems) {
  for (const std::string& path : paths) {
    const auto config = ReadConfigFile(path, problems);
    const bool good = config != nullptr;
    if (const std::string lacks = good ? replay::WithoutData(*config) : ""; !lacks.empty())
      problems.push_back({api::Severity::kWarning, {path, 0}, "", "", "a replay has " + lacks});
    if (!problems.empty()) Show(stderr, replay::ToText(problems) + "\n");
    problems.clear();
    if (!good) return false;
    policies.push_back(replay::Policy::ByConfig(std::filesystem::path(path).filename(), [path] {
      std::vector<api::Problem> told_before;
      return ReadConfigFile(path, told_before);
    }));
  }
  return true;
}

int RunReplay(const ReplayFlags& flags) {
  if (flags.workload.empty() == flags.from_decisions.empty())
    return Wrong("give --workload FILE or --from-decisions FILE");
  if (!flags.from_decisions.empty()) return RunDecisions(flags);
  std::vector<replay::Policy> policies;
  for (const std::string& name : SplitPolicies(flags.policies)) {
    auto policy = replay::Policy::Find(name);
    if (!policy) return Wrong(policy.error().message);
    policies.push_back(*std::move(policy));
  }
  std::vector<api::Problem> problems;
  if (!AddConfigs(flags.configs, policies, problems)) return kExitInput;
  if (flags.seeds < 1 || flags.seeds > 1000) return Wrong("--seeds: want 1 to 1000");
  replay::Settings settings{.pickers = flags.pickers,
                            .scrape_interval = Duration(flags.scrape_interval),
                            .page_delay = Duration(flags.page_delay),
                            .network_delay = Duration(flags.network_delay),
                            .tell_interval = Duration(flags.tell_interval),
                            .tell_delay = Duration(flags.tell_delay),
                            .unseen_ends = flags.unseen_ends,
                            .max_requests = flags.requests};
  if (const std::string wrong = replay::CheckSettings(settings); !wrong.empty()) return Wrong(wrong);

  replay::Workload workload = replay::LoadWorkload(flags.workload, problems);
  const replay::FleetSpec fleet = FleetOf(flags, workload, problems);
  if (!api::HasErrors(problems)) replay::CheckFit(workload, fleet, flags.workload, problems);
  if (!problems.empty()) Show(stderr, replay::ToText(problems) + "\n");
  if (api::HasErrors(problems)) return kExitInput;
  if (!flags.duration.empty()) {
    workload.duration = Duration(flags.duration);
    workload.warmup = std::min(workload.warmup, workload.duration / 10);
  }
  if (!flags.warmup.empty()) workload.warmup = Duration(flags.warmup);
  if (workload.warmup >= workload.duration) return Wrong("--warmup: want less than the duration");
  for (const auto& [flag, path] : {std::pair("--json", flags.json), std::pair("--plot", flags.plot)})
    if (!CanWrite(path)) return Wrong(std::string(flag) + ": " + path + " cannot be written");

  std::vector<replay::Row> rows;
  ProgressLine line(workload, policies.size() * flags.seeds);
  for (const replay::Policy& policy : policies) {
    for (uint32_t i = 0; i < flags.seeds; ++i) {
      line.NextRun(policy.name());
      replay::Replay run(workload, fleet, policy, settings, flags.seed + i);
      const auto outcome = run.Run([&](base::Nanos now, uint64_t requests) {
        line.Show(now, requests);
        return true;
      });
      replay::Summarize(workload, policy.name(), outcome.records, outcome.totals, 1.0 / flags.seeds, rows);
    }
  }
  const std::string setting = Describe(flags, workload, fleet);
  if (flags.json != "-") Show(stdout, setting + "\n" + replay::Table(rows));
  const auto write = [](const std::string& path, const std::string& text) {
    if (path.empty() || Write(path, text)) return true;
    Show(stderr, "fairway replay: " + path + " cannot be written\n");
    return false;
  };
  const bool written = write(flags.json, replay::Json(workload.name, setting, rows)) &&
                       write(flags.plot, replay::Plot(setting, rows));
  return written ? kExitOk : kExitFailure;
}

}  // namespace

void AddReplayCommand(CLI::App& app, std::function<int()>& run) {
  CLI::App* replay =
      app.add_subcommand("replay", "Workloads against policies in virtual time: where requests wait");
  auto flags = std::make_shared<ReplayFlags>();
  replay->footer(std::string(kReplayExamples) + "Policies:\n" + replay::Policy::Describe());
  replay->add_option("--workload", flags->workload,
                     "a workload (YAML, see examples/workloads) or a trace (Mooncake's JSONL, Azure's CSV)");
  replay->add_option("--from-decisions", flags->from_decisions,
                     "instead: decisions that --record wrote, made again; those that differ are told");
  replay->add_option("--fleet", flags->fleet,
                     "a file, or COUNT[,NAME=VALUE...][;COUNT...]; else the workload's own, else 8");
  replay
      ->add_option("--config", flags->configs,
                   "Fairway by this EndpointPickerConfig, as one more policy; several: repeated. With "
                   "--from-decisions: what decides")
      ->allow_extra_args(false);
  CLI::Option* policy = replay
                            ->add_option("--policy", flags->policies,
                                         "who decides; several side by side, separated by commas or repeated")
                            ->capture_default_str()
                            ->allow_extra_args(false);
  replay
      ->add_option("--pickers", flags->pickers,
                   "replicas, each with its own pages and its share of the requests")
      ->capture_default_str();
  AddDuration(*replay, "--scrape-interval", flags->scrape_interval,
              "how often a picker reads each page; `fairway epp` by itself: 400ms (docs/replay.md)");
  AddDuration(*replay, "--page-delay", flags->page_delay, "from asking for a page to having it");
  AddDuration(*replay, "--network-delay", flags->network_delay, "between picker and server, one way");
  AddDuration(*replay, "--tell-interval", flags->tell_interval,
              "how often pickers tell one another what they have sent where; 0s: never");
  AddDuration(*replay, "--tell-delay", flags->tell_delay, "until the others hear it");
  AddDuration(*replay, "--duration", flags->duration, "instead of the workload's");
  AddDuration(*replay, "--warmup", flags->warmup,
              "instead of the workload's: requests due before do not count");
  replay
      ->add_option("--requests", flags->requests,
                   "stop after that many conversations; 0: the duration decides")
      ->capture_default_str();
  replay->add_option("--seeds", flags->seeds, "runs, each with the next seed; the table shows their mean")
      ->capture_default_str();
  replay->add_option("--seed", flags->seed, "the first")->capture_default_str();
  replay->add_flag("--unseen-ends", flags->unseen_ends,
                   "pickers see an answer's headers and no more, as with response mode NONE");
  replay->add_option("--json", flags->json,
                     "every number into this file; -: to standard output instead of the table");
  replay->add_option("--plot", flags->plot, "the table as a picture (SVG) into this file");
  replay->callback([flags, policy, &run] {
    flags->policy_given = policy->count() > 0;
    run = [flags] { return RunReplay(*flags); };
  });
}

}  // namespace fairway::cli
