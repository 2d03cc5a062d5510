// Between the replicas' talk (sources/peers) and what it is about: cells of the fleet and the index of prefixes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/published.h"
#include "base/result.h"
#include "fleet/peer_loads.h"
#include "fleet/snapshot.h"
#include "net/loop.h"
#include "routing/router.h"
#include "scheduling/config.h"
#include "scheduling/plugin.h"
#include "sources/peers/peers.h"

namespace fairway::picker {

// On a thread of its own, so that no peer makes scraping late. Created and destroyed on one thread.
class PeersWiring {
 public:
  // REQUIRES: all outlive it.
  static base::Result<std::unique_ptr<PeersWiring>> Start(sources::peers::Options options,
                                                          const base::Published<fleet::Snapshot>& fleet,
                                                          const routing::Router& router,
                                                          const base::Clock& clock, const base::Log& log,
                                                          base::Registry& registry);
  ~PeersWiring();
  PeersWiring(const PeersWiring&) = delete;
  PeersWiring& operator=(const PeersWiring&) = delete;

  uint16_t port() const { return port_; }

 private:
  PeersWiring(const base::Published<fleet::Snapshot>& fleet, const routing::Router& router,
              const base::Clock& clock)
      : fleet_(fleet), router_(router), clock_(clock), heard_(fleet) {}

  sources::peers::Content MakeContent();
  void OfPlacements(std::string_view pool,
                    const std::function<void(const scheduling::Placements&)>& tell) const;
  static void OfPlacements(const scheduling::ConfigSet& configs, std::string_view pool,
                           const std::function<void(const scheduling::Placements&)>& tell);
  void WriteChanges(sources::peers::MessageWriter& to);
  std::function<bool(sources::peers::MessageWriter&)> Snapshot() const;
  void Heard(uint64_t peer, const sources::peers::Message& message);
  void Took(const sources::peers::Message& message);
  bool WantsSnapshot() const;

  const base::Published<fleet::Snapshot>& fleet_;
  const routing::Router& router_;
  const base::Clock& clock_;
  fleet::OwnLoads own_;
  fleet::PeerLoads heard_;
  uint16_t port_ = 0;
  std::atomic<bool> stopping_{false};  // what was told and not taken yet is left
  std::unique_ptr<net::LoopThread> thread_;
  std::unique_ptr<sources::peers::Peers> peers_;
};

}  // namespace fairway::picker
