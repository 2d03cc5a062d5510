// The request, pool and scheduler series, under the reference's names and their deprecated twins (llm-d
// router, pkg/epp/metrics).
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/published.h"
#include "base/strings.h"
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

// What the requests of one pool, model, target, fairness id and priority have in common: their texts and
// their series. Lives as long as a RequestClassPointer to it, whatever became of the cache that made it: open
// tickets hold one and no texts of their own. Used by one thread.
class alignas(64) RequestClass {
 public:
  RequestClass(std::string texts, std::string_view pool_key, const RequestLabels& labels,
               const RequestSeries& s);
  // The texts as one, each with a 0 behind it: what tells classes apart.
  static void SetTexts(std::string& texts, std::string_view pool_key, const RequestLabels& labels);

  const std::string& texts() const { return texts_; }
  std::string_view pool_key() const { return std::string_view(texts_).substr(0, model_ - 1); }
  std::string_view model() const { return Text(model_, target_model_); }
  std::string_view target_model() const { return Text(target_model_, fairness_id_); }
  RequestLabels labels() const {
    return {model(), target_model(), Text(fairness_id_, priority_),
            Text(priority_, static_cast<uint32_t>(texts_.size()))};
  }

 private:
  friend class RequestClassPointer;
  std::string_view Text(uint32_t begin, uint32_t next) const {
    return std::string_view(texts_).substr(begin, next - begin - 1);
  }

  uint32_t references_ = 0;

 public:
  const bool has_model;
  const bool rewrites;  // the body must name target_model() instead of model()
  const RequestSeries series;

 private:
  std::string texts_;
  uint32_t model_;  // where they begin
  uint32_t target_model_;
  uint32_t fairness_id_;
  uint32_t priority_;
};

class RequestClassPointer {
 public:
  RequestClassPointer() = default;
  explicit RequestClassPointer(RequestClass* object) : object_(object) { ++object_->references_; }
  RequestClassPointer(const RequestClassPointer& other) : object_(other.object_) {
    if (object_ != nullptr) ++object_->references_;
  }
  RequestClassPointer(RequestClassPointer&& other) noexcept
      : object_(std::exchange(other.object_, nullptr)) {}
  RequestClassPointer& operator=(RequestClassPointer other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~RequestClassPointer() {
    if (object_ != nullptr && --object_->references_ == 0) Delete(object_);
  }
  explicit operator bool() const { return object_ != nullptr; }
  const RequestClass& operator*() const { return *object_; }
  const RequestClass* operator->() const { return object_; }

 private:
  static void Delete(RequestClass* object);
  RequestClass* object_ = nullptr;
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

// What one worker has looked up, so that a request costs no mutex. Owned by one thread; bounded: beyond its
// limits it starts anew.
class MetricsCache {
 public:
  explicit MetricsCache(RouterMetrics& metrics) : metrics_(metrics) {}
  RequestClassPointer Class(std::string_view pool_key, const RequestLabels& labels);
  // The counters of one model on a pool's endpoints, by their numbers; null where not looked up yet: see
  // FindAttempts. `version` is that of the pool's snapshot.
  std::shared_ptr<base::Counter*[]> Attempts(uint64_t version, const fleet::PoolSnapshot& pool,
                                             std::string_view target_model);
  base::Counter& FindAttempts(std::string_view target_model, const fleet::Endpoint& endpoint);
  base::Counter& Decisions(const std::string& pool, scheduling::Rung rung);
  base::Counter& Rewrites(std::string_view rewrite, std::string_view model, std::string_view target_model);

 private:
  static constexpr size_t kMax = 4096;
  static constexpr size_t kMaxTables = 8;
  template <typename V>
  using Map = std::unordered_map<std::string, V, base::StringHash, std::equal_to<>>;

  struct AttemptsTable {
    uint64_t version = 0;
    const fleet::PoolSnapshot* pool = nullptr;  // to be compared only
    std::string target_model;
    std::shared_ptr<base::Counter*[]> counters;
  };

  RouterMetrics& metrics_;
  std::string key_;                                                    // reused
  std::unordered_map<std::string_view, RequestClassPointer> classes_;  // by their own texts
  Map<base::Counter*> attempts_;
  std::vector<AttemptsTable> tables_;
  size_t next_table_ = 0;  // to be replaced
  Map<std::array<base::Counter*, scheduling::kRungs>> decisions_;
  Map<base::Counter*> rewrites_;
};

}  // namespace fairway::routing
