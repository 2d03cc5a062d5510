// The model servers of a replay and what happens to them.
//
//   engines:
//   - {count: 6}
//   - {name: old, count: 2, prefill-rate: 4000, decode-ms: 24}
//   events:
//   - {at: 60s, engine: old-1, slowdown: 4}       its steps take four times as long
//   - {at: 90s, engine: old-1, slowdown: 1}
//   - {at: 60s, engine: engine-2, fail: true}     dies: its requests and its page with it
//   - {at: 60s, engine: engine-6, join: true}     is not there before
//
// or in one line: "6;2,name=old,prefill-rate=4000,decode-ms=24".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "api/decode.h"
#include "base/clock.h"
#include "simulator/engine.h"

namespace fairway::replay {

// One address that a picker knows.
struct ServerSpec {
  std::string name;
  simulator::EngineOptions engine;
  uint32_t ranks = 1;  // data-parallel engines behind the address, with one page together
  bool at_start = true;
  bool tells_load = false;  // with each answer, as vLLM's endpoint-load-metrics
};

struct FleetEvent {
  enum class Kind { kSlowdown, kFail, kJoin };
  base::Nanos at = 0;  // since the replay's begin
  Kind kind = Kind::kSlowdown;
  uint32_t server = 0;
  double factor = 1;
};

struct FleetSpec {
  std::vector<ServerSpec> servers;
  std::vector<FleetEvent> events;  // in order of time
  // Between a server's death and its leaving the pool: what a readiness probe takes.
  base::Nanos unready_after = 10 * base::kSecond;
};

constexpr uint32_t kMaxServers = 65'000;  // an IPv4 /16
constexpr uint32_t kMaxRanks = 64;

// What an engine of a replay is like where nothing is said: as `fairway sim`'s, with room for long prompts.
simulator::EngineOptions DefaultEngine();

// `node`: a map as above. Mistakes are reported through it.
FleetSpec ReadFleet(const api::Node& node);
// A file of that shape.
FleetSpec LoadFleet(const std::string& path, std::vector<api::Problem>& problems);
// The one-line form. `where` names it in problems: "--fleet".
FleetSpec ParseFleet(std::string_view text, const std::string& where, std::vector<api::Problem>& problems);

}  // namespace fairway::replay
