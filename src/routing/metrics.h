// The request, pool and scheduler series, under the reference's names and their deprecated twins (llm-d
// router, pkg/epp/metrics).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/published.h"
#include "fleet/snapshot.h"
#include "scheduling/scheduler.h"

namespace fairway::routing {

// The series of one label set {model_name, target_model_name, fairness_id, priority}. References live as long
// as the registry. Those that every request touches come first.
struct RequestSeries {
  base::Counter* requests;
  base::Gauge* running;
  base::Histogram* request_size;
  base::Histogram* duration;
  base::Histogram* response_size;
  base::Histogram* ttft[2];  // [streaming]
  base::Histogram* inter_token;
  base::Histogram* input_tokens;
  base::Histogram* output_tokens;
  base::Histogram* cached_tokens;
  base::Histogram* per_output_token;
  base::Histogram* streaming_per_output_token;
};

struct RequestLabels {
  std::string_view model;
  std::string_view target_model;
  std::string_view fairness_id;
  std::string_view priority;
};

// The first `max` different values of a label keep their names, later ones are "other": what clients make up
// in one label must not push the others' series off the page. Thread-safe: a mutex, taken only where a
// MetricsCache has missed.
class LabelValues {
 public:
  explicit LabelValues(size_t max) : max_(max) {}
  std::string_view Bound(std::string_view value);

 private:
  const size_t max_;
  std::mutex mutex_;
  std::set<std::string, std::less<>> known_;
};

// Registers everything in its constructor. Thread-safe; per-request look-ups go through a MetricsCache.
class RouterMetrics {
 public:
  explicit RouterMetrics(base::Registry& registry);

  RequestSeries Series(RequestLabels labels);
  base::Counter& Errors(RequestLabels labels, std::string_view code);
  base::Counter& Attempts(std::string_view target_model, const fleet::Endpoint* endpoint);  // null: failure
  base::Counter& Decisions(std::string_view pool, scheduling::Rung rung);
  // `rewrite`: the InferenceModelRewrite's name.
  base::Counter& Rewrites(std::string_view rewrite, std::string_view model, std::string_view target_model);
  base::Histogram& scheduler_duration() { return *scheduler_duration_; }
  base::Counter& ServedElsewhere(std::string_view pool) { return served_elsewhere_.With({pool}); }

  // Brings the pool gauges up to date: averages and deviations over endpoints with a scrape not older than
  // `staleness`.
  void CollectPools(const fleet::Snapshot& snapshot, base::Nanos now, base::Nanos staleness);

 private:
  RequestLabels Bound(const RequestLabels& labels);

  // The reference's limits are 1000 and 1000. Fairness ids are the clients' own text in every pool, so they
  // get less.
  LabelValues models_{1000};
  LabelValues fairness_ids_{100};
  base::CounterFamily& requests_;
  base::CounterFamily& errors_;
  base::HistogramFamily& duration_;
  base::HistogramFamily& request_size_;
  base::HistogramFamily& response_size_;
  base::HistogramFamily& input_tokens_;
  base::HistogramFamily& output_tokens_;
  base::HistogramFamily& cached_tokens_;
  base::HistogramFamily& per_output_token_;
  base::HistogramFamily& streaming_per_output_token_;
  base::HistogramFamily& inter_token_;
  base::HistogramFamily& ttft_;
  base::GaugeFamily& running_;
  base::CounterFamily& attempts_;
  base::CounterFamily& decisions_;
  base::CounterFamily& rewrites_;
  base::CounterFamily& served_elsewhere_;
  base::Histogram* scheduler_duration_;

  // average and standard deviation of KV use, queue, running; then ready endpoints
  std::array<base::GaugeFamily*, 3> average_;
  std::array<base::GaugeFamily*, 3> deviation_;
  base::GaugeFamily& ready_;
  base::GaugeFamily& endpoint_queue_;
  std::map<std::string, std::set<std::string>>
      shown_;  // pool -> endpoints on the page; guarded by collect_mutex_
  std::mutex collect_mutex_;
};

}  // namespace fairway::routing
