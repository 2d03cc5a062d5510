// The series of one label set {model_name, target_model_name, fairness_id, priority}, and which label sets
// there are. For the .cc files of this room only.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/metrics.h"
#include "base/strings.h"

namespace fairway::routing {

struct RequestLabels {
  std::string_view model;
  std::string_view target_model;
  std::string_view fairness_id;
  std::string_view priority;
};

// Which stages of a request have an endpoint of their own, and the profile handler that chose so.
struct StagesChosen {
  std::string_view plugin_name;
  std::string_view plugin_type;
  std::string_view decision;  // "decode-only", "prefill-decode", "encode-decode", "encode-prefill-decode"
};

inline constexpr std::string_view kDefaultFlow = "default-flow";
inline constexpr std::string_view kOther = "other";  // what has no series of its own

// A few counters by name, found without a lock; beyond kMax names the last one stands for all later ones.
// Thread-safe, but that one thread at a time adds.
class NamedCounters {
 public:
  static constexpr size_t kMax = 16;
  NamedCounters() = default;
  NamedCounters(const NamedCounters&) = delete;
  NamedCounters& operator=(const NamedCounters&) = delete;
  ~NamedCounters();

  base::Counter* Find(std::string_view name) const noexcept;  // null: there is none
  bool full() const noexcept { return size_ >= kMax; }
  base::Counter& Add(std::string_view name, std::shared_ptr<base::Counter> counter);
  template <typename Visit>
  void ForEach(const Visit& visit) const {
    for (const Node* n = first_.load(std::memory_order_acquire); n != nullptr; n = n->next) visit(n->name);
  }

 private:
  struct Node {
    std::string name;
    std::shared_ptr<base::Counter> counter;
    Node* next;
  };
  std::atomic<Node*> first_{nullptr};
  size_t size_ = 0;
};

// The upper bounds of the histograms' buckets; they live with the families.
struct RequestBounds {
  std::span<const double> request_size, duration, response_size, ttft, inter_token, input_tokens,
      output_tokens, cached_tokens, per_output_token, streaming_per_output_token;
};

// Shared by the workers, held by whoever counts in it: it may be off the page by then. Thread-safe. What each
// request touches comes first.
struct alignas(64) RequestSeries {
  enum State : uint8_t {
    kNew,    // only errors are on the page
    kShown,  // and requests, too
    kGone,   // its name was idle for long: to be looked up again
  };

  RequestSeries(const RequestLabels& l, const RequestBounds& bounds, uint32_t target_number);
  RequestLabels labels() const { return {texts[0], texts[1], texts[2], texts[3]}; }

  base::Counter requests;
  base::Gauge running;
  std::atomic<base::Nanos> last_used{0};
  std::atomic<State> state{kNew};
  const uint32_t target;  // the target model's number in fleet::PickTally
  base::Histogram request_size;
  base::Histogram duration;
  base::Histogram response_size;
  std::array<base::Histogram, 2> ttft;  // [streaming]
  base::Histogram inter_token;
  base::Histogram input_tokens;
  base::Histogram output_tokens;
  base::Histogram cached_tokens;
  base::Histogram per_output_token;
  base::Histogram streaming_per_output_token;
  NamedCounters errors;                    // by code
  NamedCounters rewrites;                  // by the InferenceModelRewrite's name
  NamedCounters stages;                    // by plugin name, plugin type and decision, a line each
  const std::array<std::string, 4> texts;  // the labels
};

// Which label sets have series: immutable, a new one for each that comes or goes; the shards that stay the
// same are shared, so that this costs some microseconds.
struct SeriesTable {
  struct Entry {
    size_t hash;
    std::string key;
    std::shared_ptr<RequestSeries> series;
  };
  using Shard = std::vector<Entry>;
  static constexpr size_t kShards = 128;

  const std::shared_ptr<RequestSeries>* Find(std::string_view key) const {
    const size_t hash = base::StringHash()(key);
    const Shard* shard = shards[hash % kShards].get();
    if (shard == nullptr) return nullptr;
    for (const Entry& entry : *shard) {
      if (entry.hash == hash && entry.key == key) return &entry.series;
    }
    return nullptr;
  }

  std::array<std::shared_ptr<const Shard>, kShards> shards;  // null: empty
};

}  // namespace fairway::routing
