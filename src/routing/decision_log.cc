#include "routing/decision_log.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string_view>
#include <utility>
#include <vector>

#include "base/strings.h"

namespace fairway::routing {
namespace {

constexpr size_t kMaxListed = 20;  // endpoints of one list
constexpr size_t kMaxText = 200;   // of what clients write
constexpr size_t kPiece = 64u << 10;

std::string Number(double value) {
  if (!std::isfinite(value)) return "null";
  std::array<char, 48> out{};
  std::snprintf(out.data(), out.size(), "%.6g", value);
  return out.data();
}

void AddText(std::string& out, std::string_view key, std::string_view value) {
  if (!out.empty() && out.back() != '{') out += ',';
  out.append("\"").append(key).append("\":");
  base::AppendJsonString(out, base::CleanText(value, kMaxText));
}

// `json` as it is.
void Add(std::string& out, std::string_view key, std::string_view json) {
  if (!out.empty() && out.back() != '{') out += ',';
  out.append("\"").append(key).append("\":").append(json);
}

std::string_view Bool(bool value) { return value ? "true" : "false"; }

std::string_view Name(scheduling::OutcomeKind kind) {
  switch (kind) {
    case scheduling::OutcomeKind::kPicked:
      return "picked";
    case scheduling::OutcomeKind::kShed:
      return "shed";
    case scheduling::OutcomeKind::kNoCandidates:
      break;
  }
  return "no endpoint";
}

std::string Candidate(const scheduling::Explanation::Candidate& candidate, const fleet::PoolSnapshot& pool) {
  const fleet::Endpoint& endpoint = pool.endpoints[candidate.endpoint];
  std::string out = "{";
  AddText(out, "name", endpoint.name);
  AddText(out, "address", endpoint.address);
  Add(out, "own", Number(candidate.own));
  Add(out, "others", Number(candidate.others));
  Add(out, "queue", Number(candidate.queue));
  Add(out, "pageQueue", Number(candidate.page_queue));
  Add(out, "running", Number(candidate.running));
  Add(out, "kvUsage", Number(candidate.kv_usage));
  Add(out, "workMs", Number(candidate.work));
  Add(out, "prefillMs", Number(candidate.prefill));
  AddText(out, "adapter", candidate.adapter);
  Add(out, "fresh", Bool(candidate.fresh));
  Add(out, "scrapeAgeMs",
      candidate.scraped ? Number(static_cast<double>(candidate.age) / base::kMillisecond) : "null");
  Add(out, "score", Number(candidate.score));
  return out + "}";
}

std::string Step(const scheduling::Explanation::Step& step, const fleet::PoolSnapshot& pool) {
  std::string out = "{";
  AddText(out, "name", step.name);
  Add(out, "in", std::to_string(step.in));
  if (!step.scores.empty()) {
    Add(out, "weight", Number(step.weight));
    std::string scores = "{";
    for (size_t i = 0; i < std::min(step.scores.size(), kMaxListed); ++i) {
      // By address: names of different namespaces may be the same.
      Add(scores, pool.endpoints[step.scores[i].first].address, Number(step.scores[i].second));
    }
    Add(out, "scores", scores + "}");
    return out + "}";
  }
  Add(out, "out", std::to_string(step.out));
  if (step.failed) Add(out, "failed", "true");
  std::string dropped = "[";
  for (size_t i = 0; i < std::min(step.drops.size(), kMaxListed); ++i) {
    std::string drop = "{";
    AddText(drop, "address", pool.endpoints[step.drops[i].endpoint].address);
    AddText(drop, "why", step.drops[i].why);
    dropped += (i > 0 ? "," : "") + drop + "}";
  }
  Add(out, "dropped", dropped + "]");
  return out + "}";
}

template <typename Item>
std::string List(const std::vector<Item>& items, const fleet::PoolSnapshot& pool,
                 std::string (*format)(const Item&, const fleet::PoolSnapshot&)) {
  std::string out = "[";
  for (size_t i = 0; i < std::min(items.size(), kMaxListed); ++i)
    out += (i > 0 ? "," : "") + format(items[i], pool);
  return out + "]";
}

}  // namespace

std::string DecisionJson(const ExplainedRequest& request, const fleet::PoolSnapshot& pool,
                         const scheduling::Outcome& outcome, const scheduling::Explanation& explanation) {
  std::string out;
  AddText(out, "requestId", request.request_id);
  AddText(out, "pool", pool.key);
  AddText(out, "model", request.model);
  AddText(out, "targetModel", request.target_model);
  AddText(out, "rewrite", request.rewrite);
  AddText(out, "objective", request.objective);
  Add(out, "priority", request.priority.empty() ? "0" : request.priority);
  Add(out, "mayBeShed", Bool(!request.critical));
  AddText(out, "outcome", Name(outcome.kind));
  std::string endpoints = "[";
  for (uint32_t i = 0; i < outcome.num_choices; ++i) {
    if (i > 0) endpoints += ',';
    base::AppendJsonString(endpoints, pool.endpoints[outcome.choices[i]].address);
  }
  Add(out, "endpoints", endpoints + "]");
  AddText(out, "signals", scheduling::ToString(outcome.rung));
  AddText(out, "profile", explanation.profile);
  Add(out, "tookUs", Number(static_cast<double>(request.took) / base::kMicrosecond));
  Add(out, "numCandidates", std::to_string(explanation.candidates.size()));
  Add(out, "candidates", List(explanation.candidates, pool, Candidate));
  Add(out, "steps", List(explanation.steps, pool, Step));
  return out;
}

void DecisionLog::Add(base::Nanos now, std::string json) {
  const std::lock_guard lock(mutex_);
  ++added_;
  bytes_ += json.size();
  entries_.push_back({now, std::move(json)});
  while (entries_.size() > capacity_ || (bytes_ > max_bytes_ && entries_.size() > 1)) {
    bytes_ -= entries_.front().json.size();
    entries_.pop_front();
  }
}

uint64_t DecisionLog::AppendBefore(uint64_t before, base::Nanos now, std::string& out) const {
  const std::lock_guard lock(mutex_);
  before = std::min(before, added_ + 1);
  const uint64_t oldest = added_ - entries_.size() + 1;
  while (before > oldest && out.size() < kPiece) {
    --before;
    const Entry& entry = entries_[before - oldest];
    out += ",\n{\"ageMs\":" + Number(static_cast<double>(now - entry.at) / base::kMillisecond) + "," +
           entry.json + "}";
  }
  return before > oldest ? before : 0;
}

std::function<std::string()> DecisionLog::Pages(base::Nanos now) const {
  return [this, now, before = UINT64_MAX]() mutable {
    std::string out;
    if (before == 0) return out;
    const bool first = before == UINT64_MAX;
    before = AppendBefore(before, now, out);
    if (first) out.replace(0, out.empty() ? 0 : 1, "{\"decisions\":[");  // no comma before the first
    if (before == 0) out += "]}\n";
    return out;
  };
}

std::string DecisionLog::Render(base::Nanos now) const {
  const auto pages = Pages(now);
  std::string out;
  for (std::string piece = pages(); !piece.empty(); piece = pages()) out += piece;
  return out;
}

}  // namespace fairway::routing
