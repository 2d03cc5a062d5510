#include "fleet/fleet.h"

#include <algorithm>
#include <array>
#include <unordered_map>
#include <utility>
#include <vector>

namespace fairway::fleet {
namespace {

std::string FormatAddress(const std::string& host, uint16_t port) {
  const bool v6 = host.find(':') != std::string::npos;
  return (v6 ? "[" + host + "]" : host) + ":" + std::to_string(port);
}

bool IsIpLiteral(std::string_view host) {
  return host.find(':') != std::string_view::npos ||
         (!host.empty() && host.find_first_not_of("0123456789.") == std::string_view::npos);
}

Model MakeModel(const api::InferenceModel& source) {
  Model model;
  model.name = source.model_name;
  model.critical = source.criticality == api::Criticality::kCritical;
  uint64_t total = 0;
  for (const auto& target : source.targets) {
    // All weights or none are set (the CRD's rule); none is a uniform draw.
    total += static_cast<uint64_t>(target.weight.value_or(1));
    model.targets.push_back({target.name, total});
  }
  if (model.targets.empty()) model.targets.push_back({source.model_name, 1});
  return model;
}

ModelMap MakeModels(const api::Manifests& manifests, const api::InferencePool& pool) {
  ModelMap models;
  for (const api::InferenceModel* model : api::ModelsOf(manifests, pool))
    models.emplace(model->model_name, MakeModel(*model));
  return models;
}

std::shared_ptr<const std::vector<std::string>> NamesOf(const ModelMap& models) {
  auto names = std::make_shared<std::vector<std::string>>();
  for (const auto& [name, model] : models) names->push_back(name);
  std::sort(names->begin(), names->end());
  return names;
}

Policies::Rewrite MakeRewrite(const std::string& name, const api::InferenceModelRewrite::Rule& rule) {
  Policies::Rewrite rewrite{.name = name, .targets = {}};
  const bool weighted = std::any_of(rule.targets.begin(), rule.targets.end(),
                                    [](const auto& target) { return target.weight.has_value(); });
  uint64_t total = 0;
  for (const auto& target : rule.targets) {
    // Where some have a weight the others get nothing, as in the reference.
    if (weighted && !target.weight) continue;
    total += static_cast<uint64_t>(target.weight.value_or(1));
    rewrite.targets.push_back({target.model, total});
  }
  return rewrite;
}

// In the order of precedence: what is there already stays.
std::shared_ptr<const Policies> MakePolicies(const api::Manifests& manifests,
                                             const api::InferencePool& pool) {
  const auto objectives = api::ObjectivesOf(manifests, pool);
  const auto sources = api::RewritesOf(manifests, pool);
  if (objectives.empty() && sources.empty()) return nullptr;
  auto policies = std::make_shared<Policies>();
  for (const auto* objective : objectives)
    policies->priorities.emplace(objective->meta.name, objective->priority);
  for (const auto* source : sources) {
    for (const auto& rule : source->rules) {
      if (rule.targets.empty()) continue;
      const auto number = static_cast<uint32_t>(policies->rewrites.size());
      policies->rewrites.push_back(MakeRewrite(source->meta.name, rule));
      for (const auto& match : rule.matches) policies->by_model.emplace(match.model, number);
      if (rule.matches.empty() && !policies->generic) policies->generic = number;
    }
  }
  return policies;
}

}  // namespace

const int32_t* Policies::FindPriority(std::string_view objective) const {
  const auto found = priorities.find(objective);
  return found == priorities.end() ? nullptr : &found->second;
}

const Policies::Rewrite* Policies::FindRewrite(std::string_view model) const {
  const auto found = by_model.find(model);
  return found == by_model.end() ? nullptr : &rewrites[found->second];
}

const PoolSnapshot* Snapshot::FindPool(std::string_view key) const {
  if (key.empty()) return pools.size() == 1 ? pools.begin()->second.get() : nullptr;
  const auto found = pools.find(key);
  return found == pools.end() ? nullptr : found->second.get();
}

Fleet::Fleet() : published_(std::make_shared<const Snapshot>()) {}

void Fleet::Publish(std::map<std::string, std::shared_ptr<const PoolSnapshot>, std::less<>> pools) {
  auto next = std::make_shared<Snapshot>();
  next->version = ++version_;
  next->pools = std::move(pools);
  published_.Publish(std::move(next));
}

void Fleet::Apply(const api::Manifests& manifests, const Addresses& addresses) {
  const auto before = published_.Load();
  unresolved_.clear();
  // With many pools most endpoints are none of a pool's business: those that know their pool are found by it.
  std::unordered_map<std::string_view, std::vector<const api::Endpoint*>> of_pool;
  std::vector<const api::Endpoint*> of_any;
  for (const auto& entry : manifests.endpoints) {
    (entry.pool_key.empty() ? of_any : of_pool[entry.pool_key]).push_back(&entry);
  }
  std::vector<const api::Endpoint*> candidates;
  std::map<std::string, std::shared_ptr<const PoolSnapshot>, std::less<>> pools;
  for (const auto& source : manifests.pools) {
    auto pool = std::make_shared<PoolSnapshot>();
    pool->key = api::Key(source.meta);
    pool->name = source.meta.name;
    pool->namespace_name = source.meta.namespace_name;
    if (source.picker) pool->failure_mode = source.picker->failure_mode;
    pool->app_protocol = source.app_protocol;
    pool->models = MakeModels(manifests, source);
    pool->model_names = NamesOf(pool->models);
    pool->policies = MakePolicies(manifests, source);

    std::map<std::string_view, const Endpoint*> known;
    if (const auto old = before->pools.find(pool->key); old != before->pools.end()) {
      pool->adapters = old->second->adapters;
      pool->tally = old->second->tally;
      for (const auto& endpoint : old->second->endpoints) known.emplace(endpoint.id, &endpoint);
    } else {
      pool->tally = std::make_shared<PoolTally>();
    }
    candidates = of_any;
    if (const auto own = of_pool.find(pool->key); own != of_pool.end()) {
      candidates.insert(candidates.end(), own->second.begin(), own->second.end());
    }
    for (const auto* candidate : candidates) {
      const api::Endpoint& entry = *candidate;
      if (!api::BelongsTo(entry, source)) continue;
      Endpoint endpoint;
      endpoint.host = entry.address;
      if (!IsIpLiteral(entry.address)) {
        const auto resolved = addresses.find(entry.address);
        if (resolved == addresses.end()) {
          if (std::find(unresolved_.begin(), unresolved_.end(), entry.address) == unresolved_.end()) {
            unresolved_.push_back(entry.address);
          }
          continue;
        }
        endpoint.host = resolved->second;
      }
      endpoint.host = base::CanonicalAddress(endpoint.host);
      endpoint.name = entry.name;
      endpoint.namespace_name = entry.namespace_name;
      endpoint.port = entry.port;
      endpoint.address = FormatAddress(endpoint.host, endpoint.port);
      if (pool->by_address.contains(endpoint.address)) continue;  // one server named twice is one candidate
      endpoint.metrics_port = entry.metrics_port;
      endpoint.metrics_scheme = entry.metrics_scheme;
      endpoint.metrics_path = entry.metrics_path;
      endpoint.labels = entry.labels;
      endpoint.id = api::Key(entry.namespace_name, entry.name) + "@" + endpoint.address;
      if (!entry.uid.empty()) endpoint.id += "#" + entry.uid;
      const auto kept = known.find(endpoint.id);
      endpoint.cell = kept != known.end() ? kept->second->cell : std::make_shared<EndpointCell>(loads_);
      endpoint.picks = kept != known.end() ? kept->second->picks : std::make_shared<PickTally>();
      const auto number = static_cast<uint32_t>(pool->endpoints.size());
      pool->by_address.emplace(endpoint.address, number);
      pool->by_host.emplace(endpoint.host, number);
      pool->cells.push_back(endpoint.cell.get());
      pool->loads.push_back(&endpoint.cell->load());
      pool->endpoints.push_back(std::move(endpoint));
    }
    pools.emplace(pool->key, std::move(pool));
  }
  Publish(std::move(pools));
}

uint32_t Fleet::InternAdapter(std::string_view pool_key, std::string_view name) {
  const auto now = published_.Load();
  const auto found = now->pools.find(pool_key);
  if (found == now->pools.end()) return kNoAdapter;
  const PoolSnapshot& pool = *found->second;
  if (const uint32_t known = pool.AdapterId(name); known != kNoAdapter) return known;

  std::array<bool, kMaxAdapters> used{};
  for (const auto& [known, id] : pool.adapters) used[id] = true;
  auto next = std::make_shared<PoolSnapshot>(pool);
  auto free_id = std::find(used.begin(), used.end(), false);
  if (free_id == used.end()) {
    // Full: names that no endpoint bears any more make room. A worker with an older snapshot may take the new
    // name for the old one once; that costs one pick its affinity.
    std::erase_if(next->adapters, [&](const auto& entry) {
      const bool borne = std::any_of(pool.cells.begin(), pool.cells.end(), [&](const EndpointCell* cell) {
        return cell->adapter_running(entry.second) || cell->adapter_waiting(entry.second);
      });
      if (!borne) used[entry.second] = false;
      return !borne;
    });
    free_id = std::find(used.begin(), used.end(), false);
    if (free_id == used.end()) {
      ++adapter_overflow_;
      return kNoAdapter;
    }
  }
  const auto id = static_cast<uint32_t>(free_id - used.begin());
  next->adapters.emplace(name, id);
  auto pools = now->pools;
  pools.find(pool_key)->second = std::move(next);
  Publish(std::move(pools));
  return id;
}

}  // namespace fairway::fleet
