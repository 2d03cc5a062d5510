#include "replay/fleet_spec.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "api/scalars.h"
#include "base/strings.h"
#include "replay/fields.h"

namespace fairway::replay {

using api::Node;
using api::ObjectReader;

namespace {

constexpr size_t kMaxFileBytes = 4 << 20;
constexpr size_t kMaxGroups = 10'000;
constexpr size_t kMaxEvents = 100'000;

void ReadCount(const Node& node, uint32_t& out) {
  if (const auto value = node.Integer(1, 1 << 24)) out = static_cast<uint32_t>(*value);
}

void ReadMilliseconds(const Node& node, base::Nanos& out) {
  if (const auto value = api::ReadNumber(node, 0, 3600e3))
    out = static_cast<base::Nanos>(std::llround(*value * 1e6));
}

// The names are those of `fairway sim`'s flags.
void ReadEngine(ObjectReader& group, simulator::EngineOptions& engine) {
  if (const auto rate = api::ReadNumber(group.Get("prefill-rate"), 1e-3, 1e9))
    engine.prefill_tokens_per_second = *rate;
  ReadMilliseconds(group.Get("decode-ms"), engine.decode_base);
  ReadMilliseconds(group.Get("decode-per-seq-ms"), engine.decode_per_sequence);
  ReadMilliseconds(group.Get("lora-load-ms"), engine.lora_load_time);
  ReadCount(group.Get("max-num-seqs"), engine.max_num_seqs);
  ReadCount(group.Get("max-num-batched-tokens"), engine.max_num_batched_tokens);
  ReadCount(group.Get("max-model-len"), engine.max_model_len);
  ReadCount(group.Get("block-size"), engine.block_size);
  ReadCount(group.Get("num-blocks"), engine.num_blocks);
  ReadCount(group.Get("max-waiting"), engine.max_waiting);
  if (const auto value = group.Get("max-loras").Integer(0, 1024))
    engine.max_loras = static_cast<uint32_t>(*value);
  if (const auto value = api::ReadNumber(group.Get("jitter"), 0, 1)) engine.jitter = *value;
  if (const auto rate = api::ReadNumber(group.Get("tokenizer-rate"), 0, 1e12))
    engine.tokenizer_tokens_per_second = *rate;
  engine.counts_waiting_tokens =
      api::ReadBoolean(group.Get("tells-waiting-tokens")).value_or(engine.counts_waiting_tokens);
  engine.prefix_caching = api::ReadBoolean(group.Get("prefix-caching")).value_or(engine.prefix_caching);
  if (const auto factor = api::ReadNumber(group.Get("time-scale"), 1e-6, 1e3))
    engine = simulator::ScaleTime(engine, *factor);
}

void ReadGroup(const Node& node, FleetSpec& fleet) {
  ObjectReader group(node);
  if (!group.valid()) return;
  ServerSpec server{.name = group.Get("name").Text().value_or("engine"), .engine = DefaultEngine()};
  const auto count = group.Get("count").Integer(1, kMaxServers).value_or(1);
  if (const auto ranks = group.Get("ranks").Integer(1, kMaxRanks))
    server.ranks = static_cast<uint32_t>(*ranks);
  server.tells_load = api::ReadBoolean(group.Get("tells-load")).value_or(false);
  ReadEngine(group, server.engine);
  group.Finish();
  if (const auto ok = simulator::Validate(server.engine); !ok) node.Error(ok.error().message);
  if (fleet.servers.size() + static_cast<size_t>(count) > kMaxServers)
    return node.Error("more than " + std::to_string(kMaxServers) + " servers");
  const std::string stem = server.name + "-";
  int64_t taken = std::count_if(fleet.servers.begin(), fleet.servers.end(), [&](const ServerSpec& other) {
    return other.name.starts_with(stem) &&
           other.name.find_first_not_of("0123456789", stem.size()) == std::string::npos;
  });
  for (int64_t i = 0; i < count; ++i) {
    server.name = stem + std::to_string(++taken);
    fleet.servers.push_back(server);
  }
}

void ReadEvent(const Node& node, FleetSpec& fleet) {
  ObjectReader object(node);
  if (!object.valid()) return;
  FleetEvent event{.at = ReadTime(object.Require("at")).value_or(0)};
  const Node name_node = object.Require("engine");
  const std::string name = name_node.Text().value_or("");
  std::vector<std::string> names;
  names.reserve(fleet.servers.size());
  for (const ServerSpec& server : fleet.servers) names.push_back(server.name);
  const auto found = std::find(names.begin(), names.end(), name);
  if (found == names.end() && name_node.present())
    name_node.Error("no engine \"" + name + "\"" + api::DidYouMean(name, names));
  event.server = static_cast<uint32_t>(found - names.begin());
  const Node slowdown = object.Get("slowdown"), fail = object.Get("fail"), join = object.Get("join");
  if (static_cast<int>(slowdown.present()) + fail.present() + join.present() != 1)
    node.Error("want exactly one of slowdown, fail, join");
  if (fail.present()) event.kind = FleetEvent::Kind::kFail;
  if (join.present()) event.kind = FleetEvent::Kind::kJoin;
  if ((fail.present() && !api::ReadBoolean(fail).value_or(true)) ||
      (join.present() && !api::ReadBoolean(join).value_or(true)))
    node.Error("want true, or leave it out");
  event.factor = api::ReadNumber(slowdown, 0.001, 1e6).value_or(1);
  object.Finish();
  if (found != names.end()) fleet.events.push_back(event);
}

FleetSpec FromText(std::string_view text, const std::string& name, std::vector<api::Problem>& problems) {
  api::ProblemList list(name, problems);
  const api::ParsedText parsed = api::ParseText(text, name);
  for (const api::SyntaxProblem& problem : parsed.problems)
    list.Add(api::Severity::kError, problem.line, "", "", problem.message);
  if (!parsed.problems.empty()) return {};
  const api::ObjectContext context{&list, ""};
  if (parsed.documents.size() != 1) {
    list.Add(api::Severity::kError, 1, "", "", "want one document with engines");
    return {};
  }
  return ReadFleet(Node(&context, parsed.documents[0].get(), "", parsed.documents[0]->line));
}

}  // namespace

simulator::EngineOptions DefaultEngine() { return {.max_model_len = 32'768, .num_blocks = 8192}; }

FleetSpec ReadFleet(const Node& node) {
  FleetSpec fleet;
  ObjectReader object(node);
  if (!object.valid()) return fleet;
  for (const Node& group : object.Require("engines").Items(1, kMaxGroups)) ReadGroup(group, fleet);
  for (const Node& event : object.Get("events").Items(0, kMaxEvents)) ReadEvent(event, fleet);
  if (const auto time = ReadTime(object.Get("unready-after"))) fleet.unready_after = *time;
  object.Finish();
  std::stable_sort(fleet.events.begin(), fleet.events.end(),
                   [](const FleetEvent& a, const FleetEvent& b) { return a.at < b.at; });
  std::vector<bool> seen(fleet.servers.size());
  for (const FleetEvent& event : fleet.events) {
    if (!seen[event.server] && event.kind == FleetEvent::Kind::kJoin)
      fleet.servers[event.server].at_start = false;
    if (event.kind != FleetEvent::Kind::kSlowdown) seen[event.server] = true;
  }
  return fleet;
}

FleetSpec LoadFleet(const std::string& path, std::vector<api::Problem>& problems) {
  const auto text = ReadFile(path, kMaxFileBytes, problems);
  return text ? FromText(*text, path, problems) : FleetSpec{};
}

// Put into the form of a file, so that there is one reader.
FleetSpec ParseFleet(std::string_view text, const std::string& where, std::vector<api::Problem>& problems) {
  std::string yaml = "{engines: [";
  for (const std::string_view group : base::Split(text, ';')) {
    if (base::Trim(group).empty()) continue;
    yaml += "{";
    for (const std::string_view piece : base::Split(group, ',')) {
      const std::string_view item = base::Trim(piece);
      const size_t equals = item.find('=');
      const std::string_view key = equals == std::string_view::npos ? "count" : item.substr(0, equals);
      const std::string_view value = equals == std::string_view::npos ? item : item.substr(equals + 1);
      if (text.find_first_of("{}[]\"'#:\n") != std::string_view::npos || key.empty() || value.empty()) {
        problems.push_back({api::Severity::kError,
                            {where, 0},
                            "",
                            "",
                            "want COUNT[,NAME=VALUE...][;COUNT...], got \"" + std::string(text) + "\""});
        return {};
      }
      yaml += std::string(key) + ": " + std::string(value) + ", ";
    }
    yaml += "}, ";
  }
  return FromText(yaml + "]}", where, problems);
}

}  // namespace fairway::replay
