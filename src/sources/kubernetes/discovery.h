// Which CRDs are installed: asks the API server for the resources of each group and version, again and again,
// so that one installed later is found. Every authenticated user may ask (ClusterRole system:discovery).
#pragma once

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "net/loop.h"
#include "sources/kubernetes/api_server.h"

namespace fairway::sources::kubernetes {

// Owned by its loop's thread. The API server outlives it.
class Discovery {
 public:
  using Resources = std::set<std::string, std::less<>>;  // "inferencepools", ...
  // On the loop, for each of the groups ("inference.networking.k8s.io/v1") with its first answer and with
  // each change. A group that disappears is told only after it was missing for several times in a row: a
  // server that just started may not know its CRDs yet. Null: we may not ask, so everything may be there.
  using Found = std::function<void(const std::string& group_version, const Resources* resources)>;

  Discovery(net::Loop& loop, ApiServer& server, std::vector<std::string> group_versions, base::Nanos interval,
            const base::Clock& clock, const base::Log& log, Found found);
  ~Discovery();
  // When the server answered anything last; 0: not yet, or there is nothing to ask for.
  base::Nanos heard_at() const;

  Discovery(const Discovery&) = delete;
  Discovery& operator=(const Discovery&) = delete;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::sources::kubernetes
