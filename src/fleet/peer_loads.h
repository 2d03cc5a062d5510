// What replicas of this picker tell one another of their open requests.
//
//   OwnLoads own;                                           // what to tell
//   own.Look(*fleet.published().Load(), now, [&](const OwnLoads::Endpoint& changed) {...});
//
//   PeerLoads peers(fleet.published());                     // what was told
//   peers.Hear(replica, "default/pool", "10.0.0.7:8000", {.requests = 3, .tokens = 900});
//   peers.Refresh();                                        // each time that endpoints may have changed
//   peers.Forget(replica);                                  // it is gone, or silent
//
// A cell has the sum of what all replicas told (EndpointCell::ReplaceTold), and each replica takes back exactly
// what it had told: after Forget nothing of it is left. An endpoint that is not known here (yet) is kept by
// name until it is.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "base/published.h"
#include "base/strings.h"
#include "fleet/cell.h"
#include "fleet/snapshot.h"

namespace fairway::fleet {

// Owned by one thread.
class OwnLoads {
 public:
  struct Endpoint {
    std::string pool;  // "namespace/name"
    std::string address;
    std::shared_ptr<EndpointCell> cell;
    OpenLoad load;  // as of the last Look; nothing: it has left the fleet
  };
  // Calls `changed` for each endpoint whose load is another than at the last call.
  void Look(const Snapshot& fleet, base::Nanos now, const std::function<void(const Endpoint&)>& changed);
  // As of the last Look.
  const std::vector<Endpoint>& endpoints() const { return endpoints_; }

 private:
  void Take(const Snapshot& fleet, const std::function<void(const Endpoint&)>& changed);

  uint64_t version_ = 0;
  std::vector<Endpoint> endpoints_;
};

// The endpoint of this pool and address. Null: there is none.
std::shared_ptr<EndpointCell> FindCell(const Snapshot& fleet, std::string_view pool,
                                       std::string_view address);

// Owned by one thread.
class PeerLoads {
 public:
  static constexpr size_t kMostEndpoints = 20'000;  // of one replica; of more is nothing known
  static constexpr size_t kMostName = 600;          // bytes of pool and address

  explicit PeerLoads(const base::Published<Snapshot>& fleet) : fleet_(fleet.Load()), published_(fleet) {}
  ~PeerLoads();
  PeerLoads(const PeerLoads&) = delete;
  PeerLoads& operator=(const PeerLoads&) = delete;

  // In place of what `replica` said of that endpoint. False: its name is too long, or there are too many.
  bool Hear(uint64_t replica, std::string_view pool, std::string_view address, const OpenLoad& load);
  void Forget(uint64_t replica);
  // Endpoints came and went: what was told of them goes with them.
  void Refresh();
  // As of the last Refresh.
  const Snapshot& fleet() const { return *fleet_; }

 private:
  struct Told {
    std::weak_ptr<EndpointCell> cell;  // that has `load`, and
    std::shared_ptr<PoolTally> tally;  // its pool's
    OpenLoad load;
  };
  // By pool, "\n" and address.
  using OfReplica = std::unordered_map<std::string, Told, base::StringHash, std::equal_to<>>;
  void Give(Told& told, std::string_view pool, std::string_view address) const;
  static void Replace(Told& told, const OpenLoad& before, const OpenLoad& now);
  static void TakeBack(Told& told);

  std::shared_ptr<const Snapshot> fleet_;
  const base::Published<Snapshot>& published_;
  std::map<uint64_t, OfReplica> replicas_;
  std::string name_;
};

}  // namespace fairway::fleet
