// The model servers of a replay: engines behind addresses, what is sent to them and what their pages say.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "replay/picker.h"
#include "replay/results.h"

namespace fairway::replay {

// Owned by one thread. Its arguments outlive it.
class Servers final : public Truth {
 public:
  Servers(const Workload& workload, const FleetSpec& fleet, const base::Clock& clock, uint64_t seed);

  uint32_t size() const { return static_cast<uint32_t>(servers_.size()); }
  bool alive(uint32_t server) const { return servers_[server].alive; }
  // One of a server's engines: what events name.
  uint32_t EngineOf(uint32_t server, uint32_t rank) const { return servers_[server].first_engine + rank; }
  simulator::Engine& engine(uint32_t engine) { return *engines_[engine]; }
  uint32_t engines() const { return static_cast<uint32_t>(engines_.size()); }

  // A request is on its way to the server: who knows the truth counts it. The request stays where it is until
  // Submit.
  void Expect(uint32_t server, const Request& request) { servers_[server].expected.push_back(&request); }
  // It is there. `tag` comes back with its tokens; `engine`: the one that has it now.
  base::Result<uint64_t> Submit(uint32_t server, const Request& request, uint64_t tag, uint32_t& engine);
  void Forget(uint32_t server, const Request& request) { std::erase(servers_[server].expected, &request); }

  void Start(uint32_t server);  // empty, as after a restart
  void Kill(uint32_t server);
  void SetSlowdown(uint32_t server, double factor);

  void ReadPage(uint32_t server, Page& page) const;
  fleet::AnswerLoad LoadOf(uint32_t server) const;  // what it tells with an answer
  base::Nanos FirstToken(uint32_t server, const Request& request) const override;
  void AddTo(RunTotals& totals) const;

 private:
  struct Server {
    bool alive = false;
    uint32_t first_engine = 0;
    uint32_t ranks = 1;
    double slowdown = 1;
    std::vector<const Request*> expected;
  };
  simulator::EngineRequest Make(const Request& request) const;
  uint32_t RankFor(const Server& server) const;

  const FleetSpec& fleet_;
  const base::Clock& clock_;
  const uint64_t seed_;
  std::vector<Server> servers_;
  std::vector<std::unique_ptr<simulator::Engine>> engines_;
  std::vector<std::unique_ptr<simulator::Engine>>
      gone_;                                        // of servers that were restarted: their totals count
  std::vector<std::vector<std::string>> adapters_;  // names, by class and number
};

}  // namespace fairway::replay
