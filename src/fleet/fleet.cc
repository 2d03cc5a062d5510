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

void Fleet::Publish(Pools pools) {
  auto next = std::make_shared<Snapshot>();
  next->version = ++version_;
  next->knew_a_pool = published_.Load()->knew_a_pool || !pools.empty();
  next->pools = std::move(pools);
  if (prepare_) prepare_(*next);
  published_.Publish(std::move(next));
}

// An endpoint of a pool, with its address.
struct Fleet::Wanted {
  const api::Endpoint* entry;
  std::string host;
};

namespace {

bool IsSame(const Endpoint& endpoint, const api::Endpoint& entry, const std::string& host) {
  return endpoint.name == entry.name && endpoint.namespace_name == entry.namespace_name &&
         endpoint.host == host && endpoint.port == entry.port &&
         endpoint.metrics_port == entry.metrics_port && endpoint.metrics_scheme == entry.metrics_scheme &&
         endpoint.metrics_path == entry.metrics_path && endpoint.uid == entry.uid &&
         endpoint.labels == entry.labels;
}

// Are these the pool's endpoints, in this order?
template <typename List>
bool Has(const PoolSnapshot& pool, const List& wanted) {
  size_t next = 0;
  for (const auto& [entry, host] : wanted) {
    if (next < pool.endpoints.size() && IsSame(pool.endpoints[next], *entry, host)) {
      ++next;
      continue;
    }
    // One that was named before under this address is none.
    const auto twin = pool.by_address.find(FormatAddress(host, entry->port));
    if (twin == pool.by_address.end() || twin->second >= next) return false;
  }
  return next == pool.endpoints.size();
}

std::string IdOf(const api::Endpoint& entry, const std::string& address) {
  std::string id = api::Key(entry.namespace_name, entry.name) + "@" + address;
  if (!entry.uid.empty()) id += "#" + entry.uid;
  return id;
}

}  // namespace

std::vector<Fleet::Wanted> Fleet::WantedOf(const api::InferencePool& pool,
                                           const std::vector<const api::Endpoint*>& candidates,
                                           const Addresses& addresses) {
  std::vector<Wanted> wanted;
  for (const auto* entry : candidates) {
    if (!api::BelongsTo(*entry, pool)) continue;
    const std::string* host = &entry->address;
    if (!IsIpLiteral(entry->address)) {
      const auto resolved = addresses.find(entry->address);
      if (resolved == addresses.end()) {
        if (std::find(unresolved_.begin(), unresolved_.end(), entry->address) == unresolved_.end()) {
          unresolved_.push_back(entry->address);
        }
        continue;
      }
      host = &resolved->second;
    }
    wanted.push_back({entry, base::CanonicalAddress(*host)});
  }
  return wanted;
}

std::shared_ptr<const PoolContent> Fleet::MakeContent(const std::vector<Wanted>& wanted, ModelMap models,
                                                      const PoolSnapshot* before) {
  auto content = std::make_shared<PoolContent>();
  content->slab = loads_;
  content->models = std::move(models);
  content->endpoints.reserve(wanted.size());
  content->cells.reserve(wanted.size());
  content->loads.reserve(wanted.size());
  content->by_address.reserve(wanted.size());
  content->by_host.reserve(wanted.size());
  for (const auto& [entry, host] : wanted) {
    const auto number = static_cast<uint32_t>(content->endpoints.size());
    std::string address = FormatAddress(host, entry->port);
    // One server named twice is one candidate.
    if (!content->by_address.emplace(address, number).second) continue;
    Endpoint endpoint;
    endpoint.id = IdOf(*entry, address);
    endpoint.name = entry->name;
    endpoint.namespace_name = entry->namespace_name;
    endpoint.host = host;
    endpoint.port = entry->port;
    endpoint.metrics_port = entry->metrics_port;
    endpoint.metrics_scheme = entry->metrics_scheme;
    endpoint.metrics_path = entry->metrics_path;
    endpoint.labels = entry->labels;
    endpoint.uid = entry->uid;
    if (before != nullptr) {
      const auto old = before->by_address.find(address);
      if (old != before->by_address.end() && before->endpoints[old->second].id == endpoint.id) {
        endpoint.cell = before->endpoints[old->second].cell;
        endpoint.picks = before->endpoints[old->second].picks;
      }
    }
    if (endpoint.cell == nullptr) {
      endpoint.cell = std::make_shared<EndpointCell>(loads_);
      endpoint.picks = std::make_shared<PickTally>();
    }
    endpoint.address = std::move(address);
    content->by_host.emplace(endpoint.host, number);
    content->cells.push_back(endpoint.cell.get());
    content->loads.push_back(&endpoint.cell->load());
    content->endpoints.push_back(std::move(endpoint));
  }
  return content;
}

std::shared_ptr<const PoolSnapshot> Fleet::MakePool(const api::Manifests& manifests,
                                                    const api::InferencePool& source,
                                                    const std::vector<Wanted>& wanted,
                                                    const std::shared_ptr<const PoolSnapshot>& before) {
  const auto failure_mode = source.picker ? source.picker->failure_mode : api::FailureMode::kFailClose;
  ModelMap models = MakeModels(manifests, source);
  auto policies = MakePolicies(manifests, source);
  const bool same_policies = before != nullptr && (policies == nullptr || before->policies == nullptr
                                                       ? policies == before->policies
                                                       : *policies == *before->policies);
  const bool same_content = before != nullptr && before->models == models && Has(*before, wanted);
  std::string key = api::Key(source.meta);
  Names& names = names_[key];
  if (same_content && same_policies && !names.changed && before->failure_mode == failure_mode &&
      before->app_protocol == source.app_protocol) {
    return before;
  }
  auto pool = std::make_shared<PoolSnapshot>(
      same_content ? before->content : MakeContent(wanted, std::move(models), before.get()));
  pool->key = std::move(key);
  pool->name = source.meta.name;
  pool->namespace_name = source.meta.namespace_name;
  pool->failure_mode = failure_mode;
  pool->app_protocol = source.app_protocol;
  pool->tally = before != nullptr ? before->tally : std::make_shared<PoolTally>();
  pool->model_names = same_content ? before->model_names : NamesOf(pool->models);
  pool->policies = same_policies ? before->policies : policies;
  TakeNames(names, *pool);
  return pool;
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
  Pools pools;
  for (const auto& source : manifests.pools) {
    const std::string key = api::Key(source.meta);
    std::vector<const api::Endpoint*> candidates = of_any;
    if (const auto own = of_pool.find(key); own != of_pool.end()) {
      candidates.insert(candidates.end(), own->second.begin(), own->second.end());
    }
    const auto old = before->pools.find(key);
    pools.emplace(key, MakePool(manifests, source, WantedOf(source, candidates, addresses),
                                old == before->pools.end() ? nullptr : old->second));
  }
  std::erase_if(names_, [&pools](const auto& entry) { return !pools.contains(entry.first); });
  new_names_ = false;
  if (version_ == 0 || pools != before->pools) {
    Publish(std::move(pools));
  } else {
    FreeOldSnapshots();
  }
}

// ---- Names that model servers tell.

uint32_t Fleet::FindAdapter(std::string_view pool_key, std::string_view name) const {
  const auto pool = names_.find(pool_key);
  if (pool == names_.end()) return kNoAdapter;
  const auto found = pool->second.adapters.find(name);
  return found == pool->second.adapters.end() ? kNoAdapter : found->second;
}

// Names that no endpoint bears any more make room. A worker with an older snapshot may take a new name for an
// old one once; that costs one pick its affinity.
void Fleet::DropUnborne(const PoolSnapshot& pool, Names& names) {
  std::erase_if(names.adapters, [&](const auto& entry) {
    const bool borne = std::any_of(pool.cells.begin(), pool.cells.end(), [&](const EndpointCell* cell) {
      return cell->adapter_running(entry.second) || cell->adapter_waiting(entry.second);
    });
    if (!borne) names.used[entry.second] = false;
    return !borne;
  });
}

uint32_t Fleet::NumberAdapter(std::string_view pool_key, std::string_view name) {
  if (const uint32_t known = FindAdapter(pool_key, name); known != kNoAdapter) return known;
  const auto found = names_.find(pool_key);
  if (found == names_.end()) return kNoAdapter;
  Names& names = found->second;
  auto free_id = std::find(names.used.begin(), names.used.end(), false);
  if (free_id == names.used.end()) {
    DropUnborne(*published_.Load()->pools.find(pool_key)->second, names);
    free_id = std::find(names.used.begin(), names.used.end(), false);
    if (free_id == names.used.end()) {
      ++adapter_overflow_;
      return kNoAdapter;
    }
  }
  *free_id = true;
  const auto id = static_cast<uint32_t>(free_id - names.used.begin());
  names.adapters.emplace(name, id);
  names.changed = new_names_ = true;
  return id;
}

void Fleet::SetServed(std::string_view pool_key, std::string_view endpoint_id,
                      std::vector<std::string> models) {
  const auto pool = names_.find(pool_key);
  if (pool == names_.end()) return;
  Names& names = pool->second;
  const auto change = [&](bool differs) {
    if (!differs) return;
    names.served = nullptr;
    names.changed = new_names_ = true;
  };
  // The new ones first: what stays is known all the time.
  std::sort(models.begin(), models.end());
  models.erase(std::unique(models.begin(), models.end()), models.end());
  std::erase_if(models, [&](const std::string& model) {
    const auto found = names.servers.find(model);
    if (found == names.servers.end() && names.servers.size() >= kMaxServed) return true;
    change(found == names.servers.end());
    ++names.servers[model];
    return false;
  });
  std::vector<std::string> before;
  if (const auto found = names.served_by.find(endpoint_id); found != names.served_by.end()) {
    before.swap(found->second);
    if (models.empty()) names.served_by.erase(found);
  }
  for (const std::string& model : before) {
    const auto server = names.servers.find(model);
    if (--server->second > 0) continue;
    names.servers.erase(server);
    change(true);
  }
  if (!models.empty()) names.served_by.insert_or_assign(std::string(endpoint_id), std::move(models));
}

void Fleet::TakeNames(Names& names, PoolSnapshot& pool) {
  if (names.served == nullptr) {
    auto served = std::make_shared<NameSet>();
    for (const auto& [model, count] : names.servers) served->insert(model);
    names.served = std::move(served);
  }
  pool.adapters = names.adapters;
  pool.served = names.served;
  names.changed = false;
}

void Fleet::PublishNames() {
  if (!new_names_) return;
  new_names_ = false;
  Pools pools = published_.Load()->pools;
  for (auto& [key, pool] : pools) {
    Names& names = names_.find(key)->second;
    if (!names.changed) continue;
    auto next = std::make_shared<PoolSnapshot>(*pool);
    TakeNames(names, *next);
    pool = std::move(next);
  }
  Publish(std::move(pools));
}

uint32_t Fleet::InternAdapter(std::string_view pool_key, std::string_view name) {
  const uint32_t id = NumberAdapter(pool_key, name);
  PublishNames();
  return id;
}

}  // namespace fairway::fleet
