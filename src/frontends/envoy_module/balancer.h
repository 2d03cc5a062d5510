// The load-balancing half: hears of a cluster's hosts and tells the picker, so that endpoints come from
// Envoy's own discovery (EDS); takes requests to the hosts that the picker chose for them (choices.h), also
// when they are tried again; and chooses where nobody has chosen, one healthy host after the other.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/strings.h"
#include "frontends/envoy_module/abi.h"
#include "frontends/envoy_module/choices.h"

namespace fairway::envoy_module {

struct ClusterHost {
  std::string host;  // IP literal without brackets
  uint16_t port = 0;
  std::map<std::string, std::string> labels;
  bool operator==(const ClusterHost&) const = default;
};
using ClusterHosts = std::vector<ClusterHost>;

// What Envoy's clusters have, for who wants to know. One in a process: modules see all clusters, and load
// balancers are made apart from filters. Thread-safe: a mutex, taken when hosts change.
class ClusterDirectory {
 public:
  // Of a subscriber. Called on the publishing thread or inside Subscribe, with the lock held: it must not
  // call back.
  using Changed = std::function<void(const ClusterHosts&)>;

  // Tells at once when there are hosts already. `id` names the subscription.
  void Subscribe(uint64_t id, const std::string& cluster, Changed changed);
  void Unsubscribe(uint64_t id);

  // Every worker and the main thread have a balancer of the same cluster and hear of the same hosts at their
  // own time, and a cluster that is replaced lives on for a while beside the new one. The one that was made
  // last and has heard of hosts speaks for the cluster.
  uint64_t Join(const std::string& cluster);
  void Publish(uint64_t balancer, const std::string& cluster, ClusterHosts hosts);
  void Leave(uint64_t balancer, const std::string& cluster);

  // Which labels are to be looked for in a host's metadata: namespace -> keys.
  void WantLabels(const std::string& metadata_namespace, const std::vector<std::string>& keys);
  std::vector<std::pair<std::string, std::string>> wanted_labels() const;  // (namespace, key)

 private:
  struct Subscription {
    uint64_t id;
    Changed changed;
  };
  struct Cluster {
    std::map<uint64_t, ClusterHosts> heard;  // balancer -> its hosts
    ClusterHosts told;
    std::vector<Subscription> subscriptions;
  };
  void Tell(Cluster& cluster);

  mutable std::mutex mutex_;
  uint64_t last_balancer_ = 0;
  std::unordered_map<std::string, Cluster> clusters_;
  std::map<std::string, std::map<std::string, int>> labels_;
};

// One worker's balancer of one cluster.
class Balancer {
 public:
  Balancer(ClusterDirectory& directory, abi::Balancer envoy);
  ~Balancer();
  Balancer(const Balancer&) = delete;
  Balancer& operator=(const Balancer&) = delete;

  void OnHostsChanged();
  // The request's next choice that is a healthy host here; where it has none (left), the next healthy host,
  // for a retry one that its retry policy has nothing against. False: there is none. `context`: the request,
  // null for none. (A host that the filter has set as override host does not come by here: Envoy goes there
  // by itself.)
  bool Choose(abi::LbContext context, uint32_t& priority, uint32_t& index);

 private:
  ClusterDirectory& directory_;
  const abi::Balancer envoy_;
  std::string cluster_;
  uint64_t id_;
  uint32_t next_ = 0;
  Choices* choices_ = nullptr;  // of the thread that chooses
  Choice* Find(abi::LbContext context);

  struct Place {
    uint32_t priority;
    uint32_t index;  // among the healthy hosts of the priority
  };
  std::unordered_map<std::string, Place, base::StringHash, std::equal_to<>> healthy_;  // by "ip:port"
  // Of the first priority that has healthy hosts: their numbers among all of it, by those among the healthy.
  std::vector<uint32_t> in_turn_;
  uint32_t in_turn_priority_ = 0;
};

}  // namespace fairway::envoy_module
