// Series of prefix caches: what is believed of them, under the reference's names (llm-d router, `prefix_*`),
// and beside it what answers told.
#pragma once

#include <functional>
#include <memory>
#include <string_view>

#include "base/metrics.h"
#include "fleet/snapshot.h"
#include "scheduling/config.h"

namespace fairway::routing {

// Registers everything in its constructor. Thread-safe.
class PrefixMetrics {
 public:
  using Configs = std::function<std::shared_ptr<const scheduling::ConfigSet>()>;
  using Fleet = std::function<std::shared_ptr<const fleet::Snapshot>()>;
  // Both are called when a page is written.
  PrefixMetrics(base::Registry& registry, Configs configs, Fleet fleet);

  // Of decisions by one plugin. Valid as long as this object.
  struct Series {
    base::Histogram* hit_ratio = nullptr;
    base::Histogram* hit_bytes = nullptr;
    base::Histogram* predicted_tokens = nullptr;
    base::Histogram* prompt_tokens = nullptr;
  };
  // How long looking for a prompt's blocks took, among what engines told. Thread-safe.
  base::Histogram& lookup_seconds() { return lookup_seconds_; }

  // Takes a lock.
  Series Of(std::string_view plugin, std::string_view type);

 private:
  void AddByPlugin(base::Registry& registry);
  void AddExact(base::Registry& registry);
  void AddByEndpoint(base::Registry& registry);
  void AddByPool(base::Registry& registry);

  const Configs configs_;
  const Fleet fleet_;
  base::HistogramFamily& hit_ratio_;
  base::HistogramFamily& hit_bytes_;
  base::HistogramFamily& predicted_tokens_;
  base::HistogramFamily& prompt_tokens_;
  base::Histogram& lookup_seconds_;
};

}  // namespace fairway::routing
