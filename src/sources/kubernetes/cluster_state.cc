#include "sources/kubernetes/cluster_state.h"

#include <algorithm>
#include <iterator>

namespace fairway::sources::kubernetes {
namespace {

std::string KeyOf(const Pod& pod) { return api::Key(pod.namespace_name, pod.name); }

std::string LabelKey(const std::string& space, const std::string& name, const std::string& value) {
  return space + "/" + name + "=" + value;
}

template <typename T>
void AppendAll(const std::vector<T>& from, std::vector<T>& to) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

void PodStore::Note(const Pod& pod, const std::string& key) {
  if (pod.active_ports_problem.empty()) {
    problems_.erase(key);
    return;
  }
  // Another Pod of the same name is told anew.
  std::string fault = pod.uid + " " + pod.active_ports_problem;
  std::string& told = problems_[key];
  if (told == fault) return;
  told = std::move(fault);
  if (report_) report_(key, pod.active_ports_problem);
}

void PodStore::BeginList() {
  staged_.clear();
  staged_problems_.clear();
}

void PodStore::Listed(std::string_view object) {
  auto pod = ReadPod(object);
  if (!pod) return;
  std::string key = KeyOf(*pod);
  Note(*pod, key);
  if (const auto told = problems_.find(key); told != problems_.end()) staged_problems_.insert(*told);
  if (pod->eligible) staged_.insert_or_assign(std::move(key), std::move(*pod));
}

void PodStore::EndList() {
  if (staged_ != pods_) {
    pods_ = std::move(staged_);
    ++version_;
  }
  staged_.clear();
  problems_ = std::move(staged_problems_);
  staged_problems_.clear();
}

void PodStore::Set(std::string_view object) {
  auto pod = ReadPod(object);
  if (!pod) return;
  const std::string key = KeyOf(*pod);
  Note(*pod, key);
  if (!pod->eligible) return Remove(key);
  // A Pod's status is written often, and rarely with anything new for us.
  auto& known = pods_[key];
  if (known == *pod) return;
  known = std::move(*pod);
  ++version_;
}

void PodStore::Remove(const std::string& key) {
  if (pods_.erase(key) != 0) ++version_;
}

void PodStore::Deleted(std::string_view object) {
  const auto id = ReadObjectId(object);
  if (!id) return;
  const std::string key = api::Key(id->namespace_name, id->name);
  problems_.erase(key);
  Remove(key);
}

void PodStore::Clear() {
  if (!pods_.empty()) ++version_;
  pods_.clear();
  problems_.clear();
}

std::pair<std::string, ManifestStore::Entry> ManifestStore::Read(std::string_view object) const {
  const auto id = ReadObjectId(object);
  if (!id || id->name.empty()) return {};
  const std::string key = api::Key(id->namespace_name, id->name);
  const auto known = objects_.find(key);
  Entry entry = known != objects_.end() ? known->second : Entry{};
  if (entry.resource_version == id->resource_version && !id->resource_version.empty()) return {key, entry};
  entry.resource_version = id->resource_version;
  api::LoadResult result = api::ParseObject(object, "");
  for (api::Problem& problem : result.problems) {
    problem.where = {};
    if (problem.object.empty()) problem.object = key;
    report_(problem);
  }
  if (result.ok()) entry.good = std::make_shared<const api::Manifests>(std::move(result.manifests));
  return {key, entry};
}

void ManifestStore::Listed(std::string_view object) {
  auto [key, entry] = Read(object);
  if (!key.empty()) staged_.insert_or_assign(std::move(key), std::move(entry));
}

void ManifestStore::EndList() {
  const bool same = std::equal(
      staged_.begin(), staged_.end(), objects_.begin(), objects_.end(),
      [](const auto& a, const auto& b) { return a.first == b.first && a.second.good == b.second.good; });
  objects_ = std::move(staged_);
  staged_.clear();
  if (!same) ++version_;
}

void ManifestStore::Set(std::string_view object) {
  auto [key, entry] = Read(object);
  if (key.empty()) return;
  Entry& known = objects_[key];
  if (known.good != entry.good) ++version_;
  known = std::move(entry);
}

void ManifestStore::Deleted(std::string_view object) {
  const auto id = ReadObjectId(object);
  if (id && objects_.erase(api::Key(id->namespace_name, id->name)) != 0) ++version_;
}

void ManifestStore::Clear() {
  if (!objects_.empty()) ++version_;
  objects_.clear();
}

void ManifestStore::AppendTo(api::Manifests& out) const {
  for (const auto& [key, entry] : objects_) {
    if (entry.good == nullptr) continue;
    AppendAll(entry.good->pools, out.pools);
    AppendAll(entry.good->models, out.models);
    AppendAll(entry.good->objectives, out.objectives);
    AppendAll(entry.good->rewrites, out.rewrites);
  }
}

void DropShadowedPools(std::vector<api::InferencePool>& pools) {
  std::sort(pools.begin(), pools.end(), [](const auto& a, const auto& b) {
    const auto key = [](const api::InferencePool& pool) {
      return std::make_pair(api::Key(pool.meta), pool.group != "inference.networking.k8s.io");
    };
    return key(a) < key(b);
  });
  pools.erase(std::unique(pools.begin(), pools.end(),
                          [](const auto& a, const auto& b) { return api::Key(a.meta) == api::Key(b.meta); }),
              pools.end());
}

PodIndex::PodIndex(const PodStore::Pods& pods) {
  for (const auto& [key, pod] : pods) {
    for (const auto& [name, value] : pod.labels)
      by_label_[LabelKey(pod.namespace_name, name, value)].push_back(&pod);
  }
}

std::vector<const Pod*> PodIndex::Matching(const api::InferencePool& pool) const {
  // The pair with the fewest Pods is looked through. An empty selector matches nothing.
  const std::vector<const Pod*>* fewest = nullptr;
  for (const auto& [name, value] : pool.selector) {
    const auto found = by_label_.find(LabelKey(pool.meta.namespace_name, name, value));
    if (found == by_label_.end()) return {};
    if (fewest == nullptr || found->second.size() < fewest->size()) fewest = &found->second;
  }
  std::vector<const Pod*> matching;
  if (fewest == nullptr) return matching;
  std::copy_if(fewest->begin(), fewest->end(), std::back_inserter(matching),
               [&](const Pod* pod) { return api::Matches(pool.selector, pod->labels); });
  return matching;
}

void AppendEndpoints(const api::InferencePool& pool, const std::vector<const Pod*>& pods,
                     std::vector<api::Endpoint>& out) {
  const std::string pool_key = api::Key(pool.meta);
  for (const Pod* pod : pods) {
    for (size_t i = 0; i < pool.target_ports.size(); ++i) {
      if (!PortIsActive(*pod, pool.target_ports[i])) continue;
      out.push_back({.name = pod->name + "-rank-" + std::to_string(i),
                     .namespace_name = pod->namespace_name,
                     .address = pod->address,
                     .port = pool.target_ports[i],
                     .labels = pod->labels,
                     .pool_key = pool_key,
                     .uid = pod->uid});
      api::TakeMetricsPlace(pod->metrics, out.back());
    }
  }
}

void AppendEndpoints(const api::InferencePool& pool, const PodStore::Pods& pods,
                     std::vector<api::Endpoint>& out) {
  std::vector<const Pod*> all;
  all.reserve(pods.size());
  for (const auto& [key, pod] : pods) all.push_back(&pod);
  AppendEndpoints(pool, all, out);
}

}  // namespace fairway::sources::kubernetes
