// Who decides in a replay: one replica of a policy. Production's router behind it, or a baseline.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "fleet/cell.h"
#include "payload/usage.h"
#include "replay/traffic.h"
#include "replay/workload.h"
#include "scheduling/config.h"
#include "scheduling/scheduler.h"
#include "simulator/engine.h"

namespace fairway::replay {

// What a server's metrics page says at one moment.
struct Page {
  uint32_t waiting = 0;
  uint32_t running = 0;
  double kv_usage = 0;
  uint32_t max_loras = 0;
  bool has_lora = false;
  std::vector<std::string> running_adapters;
  std::vector<std::string> waiting_adapters;
  uint32_t block_size = 0;
  uint32_t num_blocks = 0;
  // Beside the page, where the server tells it (SGLang's /v1/loads): uncached prompt tokens that wait.
  std::optional<uint64_t> waiting_tokens;
};

// A request as its picker sees it.
struct Asked {
  const Request& request;
  const TrafficClass& traffic;
  uint64_t number = 0;  // of the request in the run
};

struct Picked {
  static constexpr size_t kMost = 8;
  enum class Kind { kPicked, kShed, kNobody };
  Kind kind = Kind::kNobody;
  uint32_t servers[kMost] = {};  // the first choice, then where it goes when that one refuses
  uint32_t count = 0;
};

// The true state of the servers: for a baseline that knows what nobody can.
class Truth {
 public:
  virtual ~Truth() = default;
  // When the first token of the request would come from this server, if it were sent now.
  virtual base::Nanos FirstToken(uint32_t server, const Request& request) const = 0;
};

// What one picker tells the others of a server.
struct Told {
  uint32_t server = 0;
  fleet::OpenLoad load;
  std::vector<uint64_t> placed;  // as scheduling::Placements::TakeUntold has it
};

// Owned by the replay. `slot` names a request from Pick to OnEnd or OnAbort; slots are used again.
class Picker {
 public:
  virtual ~Picker() = default;

  virtual Picked Pick(uint32_t slot, const Asked& asked) = 0;
  // An answer began, from `server`. `detach`: nothing more will be seen of it; no other call follows.
  virtual void OnHeaders(uint32_t slot, int status, uint32_t server, bool detach) = 0;
  // Its headers said how loaded the server was when the request came there. Before OnHeaders.
  virtual void OnLoad(uint32_t /*slot*/, const fleet::AnswerLoad& /*load*/) {}
  virtual void OnFirstToken(uint32_t slot) = 0;
  virtual void OnEnd(uint32_t slot, const payload::Usage& usage) = 0;
  // The client gave up, or the connection broke.
  virtual void OnAbort(uint32_t slot) = 0;

  // Which servers are in the pool from now on.
  virtual void SetMembers(const std::vector<bool>& members) = 0;

  // Pages: asked for, then arrived or not. Only of members. The default needs none.
  virtual bool reads_pages() const { return false; }
  virtual void BeginPage(uint32_t /*server*/) {}
  virtual void ApplyPage(uint32_t /*server*/, const Page& /*page*/) {}

  // What it has at each server now, and what it placed since the last call, for the other pickers. The default
  // has nothing to tell.
  virtual std::vector<Told> Tell() { return {}; }
  virtual void Hear(uint32_t /*from*/, const std::vector<Told>& /*told*/) {}
};

// What a picker is made for.
struct PickerSetup {
  const Workload& workload;
  const FleetSpec& fleet;
  const base::Clock& clock;
  const Truth& truth;
  base::Nanos scrape_interval = 0;
  uint64_t seed = 1;
  bool unseen_ends = false;
};

class Policy;
std::unique_ptr<Picker> MakeProduction(const Policy& policy, const PickerSetup& setup);  // production.cc

// A policy by the name that `--policy` takes, e.g. "fairway", or with parameters
// "fairway,tolerance=0".
class Policy {
 public:
  using Make = std::unique_ptr<Picker> (*)(const Policy& policy, const PickerSetup& setup);
  // The error says what is wrong and names the nearest.
  static base::Result<Policy> Find(std::string_view text);
  // Fairway, deciding by an EndpointPickerConfig. `compile` makes the config anew for each picker, since what a
  // config remembers (sessions, what is cached where) is that picker's own.
  using Compile = std::function<std::shared_ptr<const scheduling::Config>()>;
  static Policy ByConfig(std::string name, Compile compile);
  // "fairway  the default profile ..." a line each, then the parameters.
  static std::string Describe();

  const std::string& name() const { return name_; }  // as it was given
  bool is_ours() const { return make_ == MakeProduction; }
  std::unique_ptr<Picker> NewPicker(const PickerSetup& setup) const { return make_(*this, setup); }

  std::vector<std::pair<std::string, double>> parameters;
  void (*base)(scheduling::SchedulerOptions& options) = nullptr;  // before the parameters; null: defaults
  Compile compile;                                                // empty: the built-in profiles
  bool declares_models = false;  // InferenceModels are made of the workload's classes

 private:
  std::string name_;
  Make make_ = nullptr;
};

// baselines.cc
std::unique_ptr<Picker> MakeRoundRobin(const Policy& policy, const PickerSetup& setup);
std::unique_ptr<Picker> MakeRandom(const Policy& policy, const PickerSetup& setup);
std::unique_ptr<Picker> MakeLeastRequests(const Policy& policy, const PickerSetup& setup);
std::unique_ptr<Picker> MakePowerOfTwo(const Policy& policy, const PickerSetup& setup);
std::unique_ptr<Picker> MakeOracle(const Policy& policy, const PickerSetup& setup);

}  // namespace fairway::replay
