// Which endpoints' KV events are followed, by the fleet and the configs as they are, and who hears what they
// say: between sources/kv_events and the plugins of the config that decides for a pool.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/published.h"
#include "fleet/snapshot.h"
#include "net/loop.h"
#include "routing/router.h"
#include "scheduling/config.h"
#include "sources/kv_events/kv_events.h"

namespace fairway::picker {

// The engines of all pools whose config has a scheduling::KvEventsReader. A Pod's endpoints publish at ports
// that follow each other, in the order of their own.
std::vector<sources::kv_events::Publisher> PublishersOf(const fleet::Snapshot& fleet,
                                                        const scheduling::ConfigSet& configs);

// Owned by the loop's thread; looks at fleet and configs twice a second.
class KvEventsWiring {
 public:
  KvEventsWiring(net::Loop& loop, const base::Published<fleet::Snapshot>& fleet,
                 const routing::Router& router, const base::Clock& clock, const base::Log& log,
                 base::Registry& registry);

  // What /debug/prefix shows; empty: no engine is followed, or their thread is busy. Any thread.
  std::function<std::string()> Page() const;

 private:
  void Look();

  const base::Published<fleet::Snapshot>& fleet_;
  const routing::Router& router_;
  const base::Clock& clock_;
  uint64_t version_ = 0;
  std::shared_ptr<const scheduling::ConfigSet> configs_;
  sources::kv_events::KvEvents events_;
  net::Timer timer_;
};

}  // namespace fairway::picker
