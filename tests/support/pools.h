// Pools for tests, in the words of the worked examples: A(queue, KV use, adapters).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "api/manifests.h"
#include "fleet/fleet.h"

namespace fairway::tests {

struct ServerState {
  std::string name;
  uint32_t waiting = 0;
  float kv_usage = 0;
  std::vector<std::string> adapters;  // running
  std::vector<std::string> waiting_adapters;
  uint32_t max_adapters = 0;
  uint32_t running = 0;
  bool tells_adapters = true;  // false: its page says nothing of them
};

// One pool "default/pool" of endpoints 10.0.0.1:8000, 10.0.0.2:8000, ... in the order given.
class TestPool {
 public:
  explicit TestPool(std::vector<ServerState> servers, std::vector<api::InferenceModel> models = {},
                    base::Nanos scraped_at = base::kSecond) {
    api::InferencePool pool;
    pool.meta.name = "pool";
    pool.selector = {{"app", "vllm"}};
    pool.target_ports = {8000};
    manifests_.pools.push_back(pool);
    for (auto& model : models) {
      model.pool_name = "pool";
      if (model.meta.name.empty()) model.meta.name = model.model_name;
      manifests_.models.push_back(model);
    }
    for (size_t i = 0; i < servers.size(); ++i) {
      api::Endpoint endpoint;
      endpoint.name = servers[i].name;
      endpoint.address = "10.0." + std::to_string(i / 250) + "." + std::to_string(i % 250 + 1);
      endpoint.port = 8000;
      endpoint.labels = pool.selector;
      manifests_.endpoints.push_back(endpoint);
    }
    fleet_.Apply(manifests_);
    for (size_t i = 0; i < servers.size(); ++i) {
      if (scraped_at != 0) Scrape(i, servers[i], scraped_at);
    }
  }

  void Scrape(size_t number, const ServerState& state, base::Nanos now) {
    fleet::Signals signals{.waiting = state.waiting, .running = state.running, .kv_usage = state.kv_usage};
    signals.lora = fleet::Signals::Lora{};
    for (const auto& name : state.adapters)
      fleet::AddAdapter(signals.lora->running, fleet_.InternAdapter("default/pool", name));
    for (const auto& name : state.waiting_adapters) {
      fleet::AddAdapter(signals.lora->waiting, fleet_.InternAdapter("default/pool", name));
    }
    signals.lora->resident_count = static_cast<uint32_t>(state.adapters.size());
    signals.lora->waiting_count = static_cast<uint32_t>(state.waiting_adapters.size());
    signals.lora->max = state.max_adapters;
    if (!state.tells_adapters) signals.lora.reset();
    auto& cell = *pool()->endpoints[number].cell;
    cell.BeginScrape(now);
    cell.ApplyScrape(signals, now);
  }

  std::shared_ptr<const fleet::PoolSnapshot> pool() const {
    return fleet_.published().Load()->pools.at("default/pool");
  }
  fleet::Fleet& fleet() { return fleet_; }
  api::Manifests& manifests() { return manifests_; }

 private:
  api::Manifests manifests_;
  fleet::Fleet fleet_;
};

inline api::InferenceObjective Objective(std::string name, int32_t priority) {
  api::InferenceObjective objective;
  objective.meta.name = std::move(name);
  objective.priority = priority;
  objective.pool.name = "pool";
  return objective;
}

// One rule; no models: every model.
inline api::InferenceModelRewrite Rewrite(std::string name, const std::vector<std::string>& models,
                                          std::vector<api::InferenceModelRewrite::Target> targets) {
  api::InferenceModelRewrite rewrite;
  rewrite.meta.name = std::move(name);
  rewrite.pool.name = "pool";
  auto& rule = rewrite.rules.emplace_back();
  for (const std::string& model : models) rule.matches.push_back({.model = model, .where = {}});
  rule.targets = std::move(targets);
  return rewrite;
}

inline api::InferenceModel Model(std::string name, api::Criticality criticality,
                                 std::vector<api::InferenceModel::Target> targets = {}) {
  api::InferenceModel model;
  model.model_name = std::move(name);
  model.criticality = criticality;
  model.targets = std::move(targets);
  return model;
}

}  // namespace fairway::tests
