// What a worker has looked up of the series, and what a ticket keeps of it. For the .cc files of this room
// only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "routing/metrics.h"

namespace fairway::routing {

// What the requests of one pool, model, target, fairness id and priority have in common: their texts and
// their series. Lives as long as a RequestClassPointer to it, whatever became of the cache that made it: open
// tickets hold one and no texts of their own. Used by one thread.
class alignas(64) RequestClass {
 public:
  RequestClass(std::string texts, std::string_view pool_key, const RequestLabels& labels,
               const RequestSeries& s);
  // The texts as one, each with a 0 behind it.
  static void SetTexts(std::string& texts, std::string_view pool_key, const RequestLabels& labels);
  bool Is(const RequestLabels& labels) const;  // of those with the same texts: a text may have a 0 in it

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
