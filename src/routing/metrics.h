// The request, pool and scheduler series, under the reference's names and their deprecated twins (llm-d
// router, pkg/epp/metrics).
//
// Whose text a label is decides how long it keeps a series. What manifests and model servers name does for as
// long as they do. What clients make up, model names and fairness ids, gets one while there is room on the
// page, loses it after kIdle without a request, and is "other" meanwhile: so nobody can take all the room, or
// keep it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/published.h"
#include "fleet/snapshot.h"
#include "routing/request_series.h"
#include "scheduling/scheduler.h"

namespace fairway::routing {

// Registers everything in its constructor. Thread-safe.
class RouterMetrics {
 public:
  static constexpr base::Nanos kIdle = 600 * base::kSecond;

  // What one worker looks series up with. Owned by one thread.
  struct View {
    explicit View(const RouterMetrics& metrics) : table(metrics.table_) {}
    base::Published<SeriesTable>::Reader table;
    std::string key;  // reused
  };

  explicit RouterMetrics(base::Registry& registry);

  struct Found {
    std::shared_ptr<RequestSeries> series;
    bool own;  // false: shared with others for want of room, which may change
  };
  // The series of these labels. `known`: manifests or model servers name model and target. No lock, but where
  // a name gets its series, and each 10 s while some get none.
  Found Find(View& view, const RequestLabels& labels, bool known, base::Nanos now);
  // The first request that went to a model server: puts its series on the page.
  void Show(const std::shared_ptr<RequestSeries>& series);
  // Lock-free but for the first of each code or name.
  base::Counter& Errors(RequestSeries& series, std::string_view code);
  base::Counter& Rewrites(RequestSeries& series, std::string_view rewrite);
  // What a profile handler with stages chose.
  base::Counter& Stages(RequestSeries& series, View& view, const StagesChosen& chosen);
  // What refused requests of a pool. With a mutex; good as long as this object.
  base::Counter& Refusals(std::string_view pool, const scheduling::Outcome& outcome) {
    return refusals_.With({pool, ToString(outcome.refusal), outcome.refused_by});
  }
  // Nobody could be picked for this target.
  void CountFailure(const RequestSeries& series) { failures_[series.target].Add(); }
  base::Histogram& scheduler_duration() { return scheduler_duration_; }

  // Before a page: takes off what is gone or idle, and keeps what the pools' gauges are read from. Endpoints
  // are ready whose last scrape is not older than `staleness`.
  void Collect(std::shared_ptr<const fleet::Snapshot> snapshot, base::Nanos now, base::Nanos staleness);

 private:
  template <typename Share>
  base::Counter& FindOrAdd(RequestSeries& series, NamedCounters& counters, std::string_view name,
                           std::string_view rest, const Share& share);
  // Whose name it is, and which part of the page it may take.
  enum Kind : uint8_t { kKept, kFairness, kMadeUp, kKinds };
  struct Record {
    std::shared_ptr<RequestSeries> series;
    Kind kind;
    size_t page_bytes;
  };
  struct Target {
    uint32_t number = 0;
    uint32_t users = 0;
  };
  struct Pools;
  class PoolReader;
  class AttemptsReader;

  static Kind KindOf(const RequestLabels& labels, bool known);
  bool HasRoom(Kind kind, size_t page_bytes) const;
  std::shared_ptr<RequestSeries> Admit(std::string_view key, const RequestLabels& labels, Kind kind,
                                       base::Nanos now);
  void TrySweep(base::Nanos now);
  // With mutex_ held.
  void Sweep(base::Nanos now);
  void Retire(const Record& record);
  void PutInTable(std::string_view key, std::shared_ptr<RequestSeries> series);
  uint32_t TakeTarget(std::string_view name);
  void ReturnTarget(std::string_view name);
  void FreeTargets(const fleet::Snapshot& snapshot);
  void Sort(const fleet::Snapshot& snapshot);
  template <typename Visit>
  void ForEachShown(const std::shared_ptr<RequestSeries>& series, const Visit& visit);

  void AddPoolGauges(base::Registry& registry);
  void AddEndpointSeries(base::Registry& registry);
  void AddTallies(base::Registry& registry);
  std::shared_ptr<const Pools> pools() const;

  base::Registry& registry_;
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
  base::CounterFamily& rewrites_;
  base::CounterFamily& stages_;
  base::CounterFamily& refusals_;
  base::Histogram& scheduler_duration_;
  RequestBounds bounds_;
  // What the series of a label set take of a page, about: base + per_byte * bytes of the labels.
  size_t page_bytes_base_ = 0;
  size_t page_bytes_per_byte_ = 0;

  base::Published<SeriesTable> table_{std::make_shared<const SeriesTable>()};
  std::array<std::atomic<size_t>, kKinds> page_bytes_{};  // taken
  std::atomic<base::Nanos> next_sweep_{0};
  std::array<base::Counter, fleet::PickTally::kNumbers> failures_;

  mutable std::mutex mutex_;  // for what follows
  std::map<std::string, Record, std::less<>> records_;
  std::map<std::string, Target, std::less<>> targets_;
  std::vector<uint32_t> free_targets_;
  std::vector<uint32_t> returned_targets_;  // free with the next page
  std::shared_ptr<const Pools> pools_;
  std::shared_ptr<const fleet::Snapshot> snapshot_;  // of the last page
};

}  // namespace fairway::routing
