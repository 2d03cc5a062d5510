// What a worker thread and a ticket are made of. For the .cc files of this room only.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "routing/metrics.h"
#include "routing/router.h"

namespace fairway::routing {

struct Worker::Impl {
  Impl(const base::Published<fleet::Snapshot>& fleet, const base::Clock& c, RouterMetrics& m, uint64_t seed)
      : reader(fleet), clock(c), metrics(m), cache(m), random(seed) {}

  base::Published<fleet::Snapshot>::Reader reader;
  const base::Clock& clock;
  RouterMetrics& metrics;
  MetricsCache cache;
  base::Random random;
  scheduling::Scratch scratch;
  std::vector<uint32_t> candidates;  // of a subset hint
  scheduling::Explanation explanation;
};

// A ticket holds the cell of its endpoint but no snapshot: a stream of an hour must not keep an hour's
// snapshots alive.
struct Ticket::State {
  // Copies what its views are to outlive the request and the snapshot into one piece of memory.
  struct Texts {
    std::string_view pool_key;
    std::string_view model;
    std::string_view target_model;
    std::string_view fairness_id;
    std::string_view priority;
  };
  void Keep(const Texts& texts, std::span<const std::string_view> destinations);

  Worker::Impl* worker = nullptr;  // outlives its tickets
  std::unique_ptr<char[]> memory;  // of the texts
  std::string_view pool_key;
  std::string_view model;
  std::string_view target_model;
  std::string_view fairness_id;
  std::string_view priority;
  std::string_view destinations;
  uint32_t first_length = 0;  // destinations up to here is the first choice
  bool rewrites = false;
  bool streaming = false;
  bool error_counted = false;
  std::vector<std::pair<std::string, float>> scores;

  std::shared_ptr<fleet::EndpointCell> cell;  // null once given back
  fleet::Reservation reservation;
  RequestSeries series{};
  base::Nanos received_at = 0;
  base::Nanos first_body_at = 0;
  base::Nanos last_body_at = 0;
  uint64_t response_bytes = 0;
  payload::Usage usage;

  RequestLabels labels() const { return {model, target_model, fairness_id, priority}; }
  // Gives the reservation back and takes the request off the gauges; once.
  void Release(fleet::ReleaseKind kind);
  void Record();  // the histograms of a response that was seen to its end
};

}  // namespace fairway::routing
