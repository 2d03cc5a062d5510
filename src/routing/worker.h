// What a worker thread and a ticket are made of. For the .cc files of this room only.
#pragma once

#include <memory>
#include <string>
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
  Worker::Impl* worker = nullptr;  // outlives its tickets
  std::string pool_key;
  std::string model;
  std::string target_model;
  std::string fairness_id;
  std::string priority;
  std::string destinations;
  size_t first_length = 0;  // destinations up to here is the first choice
  bool rewrites = false;
  bool streaming = false;
  std::vector<std::pair<std::string, float>> scores;

  std::shared_ptr<fleet::EndpointCell> cell;  // null once given back
  fleet::Reservation reservation;
  RequestSeries series{};
  base::Nanos received_at = 0;
  base::Nanos first_body_at = 0;
  base::Nanos last_body_at = 0;
  uint64_t response_bytes = 0;
  payload::Usage usage;
  bool error_counted = false;

  RequestLabels labels() const { return {model, target_model, fairness_id, priority}; }
  // Gives the reservation back and takes the request off the gauges; once.
  void Release(fleet::ReleaseKind kind);
  void Record();  // the histograms of a response that was seen to its end
};

}  // namespace fairway::routing
