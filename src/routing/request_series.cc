#include "routing/request_series.h"

#include <utility>

namespace fairway::routing {

NamedCounters::~NamedCounters() {
  for (const Node* node = first_.load(std::memory_order_relaxed); node != nullptr;) {
    delete std::exchange(node, node->next);
  }
}

base::Counter* NamedCounters::Find(std::string_view name) const noexcept {
  for (const Node* node = first_.load(std::memory_order_acquire); node != nullptr; node = node->next) {
    if (node->name == name) return node->counter.get();
  }
  return nullptr;
}

base::Counter& NamedCounters::Add(std::string_view name, std::shared_ptr<base::Counter> counter) {
  Node* node = new Node{std::string(name), std::move(counter), first_.load(std::memory_order_relaxed)};
  first_.store(node, std::memory_order_release);
  ++size_;
  return *node->counter;
}

RequestSeries::RequestSeries(const RequestLabels& l, const RequestBounds& bounds, uint32_t target_number)
    : target(target_number),
      request_size(bounds.request_size),
      duration(bounds.duration),
      response_size(bounds.response_size),
      ttft{base::Histogram(bounds.ttft), base::Histogram(bounds.ttft)},
      inter_token(bounds.inter_token),
      input_tokens(bounds.input_tokens),
      output_tokens(bounds.output_tokens),
      cached_tokens(bounds.cached_tokens),
      per_output_token(bounds.per_output_token),
      streaming_per_output_token(bounds.streaming_per_output_token),
      texts{std::string(l.model), std::string(l.target_model), std::string(l.fairness_id),
            std::string(l.priority)} {}

}  // namespace fairway::routing
