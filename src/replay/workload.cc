#include "replay/workload.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "api/decode.h"
#include "api/scalars.h"
#include "replay/fields.h"
#include "replay/trace.h"

namespace fairway::replay {

using api::Node;
using api::ObjectReader;

namespace {

constexpr size_t kMaxClasses = 100;
constexpr double kMaxRate = 1e6;
constexpr size_t kMaxTraceBytes = size_t{2} << 30;

// What reading needs beside the node.
struct Place {
  const std::string& folder;
  std::vector<api::Problem>& problems;
};

void ReadBursts(ObjectReader& object, Arrivals& arrivals) {
  if (const auto size = object.Require("size").Integer(1, 1'000'000))
    arrivals.burst_size = static_cast<uint32_t>(*size);
  if (const auto every = ReadTime(object.Require("every"), base::kMicrosecond)) arrivals.burst_every = *every;
  if (const auto over = ReadTime(object.Get("over"))) arrivals.burst_over = *over;
}

void ReadTraceArrivals(ObjectReader& object, Arrivals& arrivals, const Place& place) {
  const Node file = object.Require("file");
  const std::string name = file.Text().value_or("");
  if (const auto speed = api::ReadNumber(object.Get("speed"), 1e-6, 1e6)) arrivals.trace_speed = *speed;
  if (name.empty()) return;
  const std::string path = name.front() == '/' || place.folder.empty() ? name : place.folder + "/" + name;
  if (const auto text = ReadFile(path, kMaxTraceBytes, place.problems))
    arrivals.trace = ParseTrace(*text, path, place.problems);
}

Arrivals ReadArrivals(const Node& node, const Place& place) {
  Arrivals arrivals;
  ObjectReader object(node);
  if (!object.valid()) return arrivals;
  using enum Arrivals::Process;
  arrivals.process =
      api::ReadEnum(object.Require("process"), {"poisson", "constant", "bursts", "ramp", "trace"},
                    {kPoisson, kConstant, kBursts, kRamp, kTrace}, kPoisson);
  const auto rate = [&](std::string_view field) {
    return api::ReadNumber(object.Require(field), 1e-6, kMaxRate).value_or(1);
  };
  switch (arrivals.process) {
    case kPoisson:
    case kConstant:
      arrivals.rate = rate("rate");
      break;
    case kRamp:
      arrivals.rate = rate("from");
      arrivals.to = rate("to");
      break;
    case kBursts:
      ReadBursts(object, arrivals);
      break;
    case kTrace:
      ReadTraceArrivals(object, arrivals, place);
      break;
  }
  object.Finish();
  return arrivals;
}

Popularity ReadPopularity(ObjectReader& object, uint32_t count) {
  const auto law = api::ReadChoice(object.Get("popularity"), {"uniform", "zipf"});
  const auto exponent = api::ReadNumber(object.Get("exponent"), 0, 10);
  return Popularity(count, law == 1 ? exponent.value_or(1) : 0);
}

void ReadAdapters(const Node& node, TrafficClass& traffic) {
  ObjectReader object(node);
  if (!object.valid()) return;
  traffic.adapters = static_cast<uint32_t>(object.Require("count").Integer(1, 10'000).value_or(1));
  traffic.adapter_name = object.Get("name").Text().value_or(traffic.adapter_name);
  traffic.adapter_popularity = ReadPopularity(object, traffic.adapters);
  object.Finish();
}

void ReadSystem(const Node& node, TrafficClass& traffic) {
  ObjectReader object(node);
  if (!object.valid()) return;
  traffic.systems = static_cast<uint32_t>(object.Get("count").Integer(1, 1'000'000).value_or(1));
  traffic.system_tokens =
      Distribution::Read(object.Require("tokens"), 1, kMaxPromptTokens, Distribution::Fixed(1));
  traffic.system_popularity = ReadPopularity(object, traffic.systems);
  object.Finish();
}

void ReadRetries(const Node& node, TrafficClass& traffic) {
  ObjectReader object(node);
  if (!object.valid()) return;
  traffic.retries = static_cast<uint32_t>(object.Require("max").Integer(0, 100).value_or(0));
  if (const auto backoff = ReadTime(object.Get("backoff"))) traffic.backoff = *backoff;
  object.Finish();
}

TrafficClass ReadClass(const Node& node, const Place& place) {
  TrafficClass traffic;
  ObjectReader object(node);
  if (!object.valid()) return traffic;
  traffic.name = object.Require("name").Text().value_or("");
  traffic.arrivals = ReadArrivals(object.Require("arrivals"), place);
  traffic.model = object.Get("model").Text().value_or(traffic.model);
  ReadAdapters(object.Get("adapters"), traffic);
  using enum api::Criticality;
  traffic.criticality = api::ReadEnum(object.Get("criticality"), {"Critical", "Standard", "Sheddable"},
                                      {kCritical, kStandard, kSheddable}, kUnset);
  if (const auto priority = object.Get("priority").Integer(INT32_MIN, INT32_MAX))
    traffic.priority = static_cast<int32_t>(*priority);
  ReadSystem(object.Get("system-prompt"), traffic);
  const auto tokens = [&](std::string_view field, const Distribution& otherwise) {
    return Distribution::Read(object.Get(field), 1, kMaxPromptTokens, otherwise);
  };
  traffic.prompt_tokens = tokens("prompt", traffic.prompt_tokens);
  traffic.answer_tokens = tokens("answer", traffic.answer_tokens);
  traffic.turns = Distribution::Read(object.Get("turns"), 1, 100'000, traffic.turns);
  traffic.think = Distribution::Read(object.Get("think"), 0, 1e6, traffic.think);
  traffic.bytes_per_token = api::ReadNumber(object.Get("bytes-per-token"), 0.1, 100).value_or(4);
  ReadRetries(object.Get("retries"), traffic);
  traffic.timeout = ReadTime(object.Get("timeout"), base::kMillisecond).value_or(0);
  object.Finish();
  return traffic;
}

base::Nanos EndOf(const Trace& trace, double speed) {
  const base::Nanos last = trace.requests.empty() ? 0 : trace.requests.back().at;
  return static_cast<base::Nanos>(static_cast<double>(last) / speed) + 1;
}

base::Nanos DefaultDuration(const Workload& workload) {
  base::Nanos longest = 0;
  for (const TrafficClass& traffic : workload.classes)
    if (traffic.arrivals.trace)
      longest = std::max(longest, EndOf(*traffic.arrivals.trace, traffic.arrivals.trace_speed));
  return longest > 0 ? longest : workload.duration;
}

base::Nanos DefaultWarmup(base::Nanos duration) { return std::min(10 * base::kSecond, duration / 10); }

Workload ReadWorkload(const Node& node, const Place& place) {
  Workload workload;
  ObjectReader object(node);
  if (!object.valid()) {
    node.WrongType("a workload: a map with classes");
    return workload;
  }
  workload.name = object.Get("name").Text().value_or("");
  for (const Node& item : object.Require("classes").Items(1, kMaxClasses))
    workload.classes.push_back(ReadClass(item, place));
  workload.duration =
      ReadTime(object.Get("duration"), base::kMillisecond).value_or(DefaultDuration(workload));
  const Node warmup = object.Get("warmup");
  workload.warmup = ReadTime(warmup).value_or(DefaultWarmup(workload.duration));
  if (warmup.present() && workload.warmup >= workload.duration) warmup.Error("want less than the duration");
  if (const Node fleet = object.Get("fleet"); fleet.present()) workload.fleet = ReadFleet(fleet);
  object.Get("description").Text();
  object.Finish();
  return workload;
}

std::string FolderOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "" : path.substr(0, slash);
}

std::string StemOf(const std::string& path) {
  const std::string file = path.substr(path.rfind('/') + 1);
  return file.substr(0, file.find('.'));
}

}  // namespace

Workload ParseWorkload(std::string_view text, const std::string& file, const std::string& folder,
                       std::vector<api::Problem>& problems) {
  api::ProblemList list(file, problems);
  const api::ParsedText parsed = api::ParseText(text, file);
  for (const api::SyntaxProblem& problem : parsed.problems)
    list.Add(api::Severity::kError, problem.line, "", "", problem.message);
  if (!parsed.problems.empty()) return {};
  if (parsed.documents.size() != 1) {
    list.Add(api::Severity::kError, 1, "", "", "want one document, a workload");
    return {};
  }
  const api::ObjectContext context{&list, ""};
  std::vector<api::Problem> of_files;
  Workload workload = ReadWorkload(Node(&context, parsed.documents[0].get(), "", parsed.documents[0]->line),
                                   {folder, of_files});
  problems.insert(problems.end(), of_files.begin(), of_files.end());
  if (workload.name.empty()) workload.name = StemOf(file);
  return workload;
}

Workload LoadWorkload(const std::string& path, std::vector<api::Problem>& problems) {
  const auto text = ReadFile(path, kMaxTraceBytes, problems);
  if (!text) return {};
  if (!IsTrace(*text)) return ParseWorkload(*text, path, FolderOf(path), problems);
  Workload workload{.name = StemOf(path)};
  TrafficClass traffic{.name = "trace"};
  traffic.arrivals.process = Arrivals::Process::kTrace;
  traffic.arrivals.trace = ParseTrace(*text, path, problems);
  workload.classes.push_back(std::move(traffic));
  workload.duration = DefaultDuration(workload);
  workload.warmup = DefaultWarmup(workload.duration);
  return workload;
}

namespace {

// Requests of a trace that no server takes, as their engines would say one by one.
void CheckLengths(const TrafficClass& traffic, const FleetSpec& fleet, const std::string& file,
                  std::vector<api::Problem>& problems) {
  if (!traffic.arrivals.trace || fleet.servers.empty()) return;
  uint64_t room = 0;
  for (const ServerSpec& server : fleet.servers) room = std::max<uint64_t>(room, server.engine.max_model_len);
  uint64_t longest = 0;
  size_t too_long = 0;
  for (const TraceRequest& request : traffic.arrivals.trace->requests) {
    const uint64_t tokens = uint64_t{request.prompt_tokens} + request.answer_tokens;
    longest = std::max(longest, tokens);
    too_long += tokens > room ? 1 : 0;
  }
  if (too_long == 0) return;
  problems.push_back(
      {api::Severity::kWarning,
       {file, 0},
       "",
       "",
       std::to_string(too_long) + " of " + std::to_string(traffic.arrivals.trace->requests.size()) +
           " requests will fail: they have up to " + std::to_string(longest) + " tokens, and servers take " +
           std::to_string(room) + "; raise max-model-len (and num-blocks) in the fleet"});
}

}  // namespace

void CheckFit(const Workload& workload, const FleetSpec& fleet, const std::string& file,
              std::vector<api::Problem>& problems) {
  for (const TrafficClass& traffic : workload.classes) CheckLengths(traffic, fleet, file, problems);
  for (const TrafficClass& traffic : workload.classes) {
    if (traffic.adapters == 0) continue;
    for (const ServerSpec& server : fleet.servers) {
      if (server.engine.max_loras > 0) continue;
      problems.push_back({api::Severity::kError,
                          {file, 0},
                          "",
                          "",
                          "class " + traffic.name + " asks for adapters, but " + server.name +
                              " serves none: set max-loras in the fleet"});
      return;
    }
  }
}

}  // namespace fairway::replay
