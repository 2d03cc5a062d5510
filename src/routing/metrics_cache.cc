#include "routing/metrics_cache.h"

#include <initializer_list>

namespace fairway::routing {
namespace {

void SetKey(std::string& key, std::initializer_list<std::string_view> parts) {
  key.clear();
  for (const std::string_view part : parts) {
    key += part;
    key += '\0';
  }
}

}  // namespace

RequestClass::RequestClass(std::string texts, std::string_view pool_key, const RequestLabels& labels,
                           const RequestSeries& s)
    : has_model(!labels.model.empty()),
      rewrites(!labels.model.empty() && !labels.target_model.empty() && labels.model != labels.target_model),
      series(s),
      texts_(std::move(texts)),
      model_(static_cast<uint32_t>(pool_key.size() + 1)),
      target_model_(static_cast<uint32_t>(model_ + labels.model.size() + 1)),
      fairness_id_(static_cast<uint32_t>(target_model_ + labels.target_model.size() + 1)),
      priority_(static_cast<uint32_t>(fairness_id_ + labels.fairness_id.size() + 1)) {}

void RequestClass::SetTexts(std::string& texts, std::string_view pool_key, const RequestLabels& labels) {
  SetKey(texts, {pool_key, labels.model, labels.target_model, labels.fairness_id, labels.priority});
}

bool RequestClass::Is(const RequestLabels& labels) const {
  const RequestLabels own = this->labels();
  return own.model == labels.model && own.target_model == labels.target_model &&
         own.fairness_id == labels.fairness_id;
}

[[gnu::cold]] void RequestClassPointer::Delete(RequestClass* object) { delete object; }

RequestClassPointer MetricsCache::Class(std::string_view pool_key, const RequestLabels& labels) {
  RequestClass::SetTexts(key_, pool_key, labels);
  const auto found = classes_.find(key_);
  if (found != classes_.end() && found->second->Is(labels)) return found->second;
  if (classes_.size() >= kMax) classes_.clear();
  RequestClassPointer made(new RequestClass(key_, pool_key, labels, metrics_.Series(labels)));
  classes_.emplace(made->texts(), made);
  return made;
}

std::shared_ptr<base::Counter*[]> MetricsCache::Attempts(uint64_t version, const fleet::PoolSnapshot& pool,
                                                         std::string_view target_model) {
  for (const AttemptsTable& table : tables_) {
    if (table.version == version && table.pool == &pool && table.target_model == target_model)
      return table.counters;
  }
  if (tables_.size() < kMaxTables) {
    tables_.emplace_back();
    next_table_ = tables_.size() - 1;
  }
  AttemptsTable& table = tables_[next_table_];
  next_table_ = (next_table_ + 1) % kMaxTables;
  table.version = version;
  table.pool = &pool;
  table.target_model = target_model;
  table.counters = std::make_shared<base::Counter*[]>(pool.endpoints.size());
  return table.counters;
}

base::Counter& MetricsCache::FindAttempts(std::string_view target_model, const fleet::Endpoint& endpoint) {
  SetKey(key_, {target_model, endpoint.id});
  const auto found = attempts_.find(std::string_view(key_));
  if (found != attempts_.end()) return *found->second;
  if (attempts_.size() >= kMax) attempts_.clear();
  return *attempts_.emplace(key_, &metrics_.Attempts(target_model, &endpoint)).first->second;
}

base::Counter& MetricsCache::Decisions(const std::string& pool, scheduling::Rung rung) {
  if (decisions_.size() >= kMax && !decisions_.contains(pool)) decisions_.clear();
  base::Counter*& counter = decisions_[pool][static_cast<size_t>(rung)];
  if (counter == nullptr) counter = &metrics_.Decisions(pool, rung);
  return *counter;
}

base::Counter& MetricsCache::Rewrites(std::string_view rewrite, std::string_view model,
                                      std::string_view target_model) {
  SetKey(key_, {rewrite, model, target_model});
  const auto found = rewrites_.find(std::string_view(key_));
  if (found != rewrites_.end()) return *found->second;
  if (rewrites_.size() >= kMax) rewrites_.clear();
  return *rewrites_.emplace(key_, &metrics_.Rewrites(rewrite, model, target_model)).first->second;
}

}  // namespace fairway::routing
