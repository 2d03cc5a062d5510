#include "api/manifests.h"

#include <algorithm>
#include <unordered_map>

#include "api/decode.h"
#include "base/strings.h"

namespace fairway::api {

std::string ToString(const Problem& problem) {
  std::string out = base::CleanText(problem.where.file, 3 * problem.where.file.size());
  const auto add = [&out](std::string_view part) {
    if (!out.empty()) out += ": ";
    out += part;
  };
  if (problem.where.line > 0) out += (out.empty() ? "line " : ":") + std::to_string(problem.where.line);
  if (problem.severity == Severity::kWarning) add("warning");
  if (!problem.object.empty()) add(problem.object);
  if (!problem.field.empty()) add(problem.field);
  add(problem.message);
  return out;
}

bool HasErrors(const std::vector<Problem>& problems) {
  return std::any_of(problems.begin(), problems.end(),
                     [](const Problem& problem) { return problem.severity == Severity::kError; });
}

std::string Key(std::string_view namespace_name, std::string_view name) {
  std::string key(namespace_name);
  key += '/';
  key += name;
  return key;
}

std::string Key(const ObjectMeta& meta) { return Key(meta.namespace_name, meta.name); }

const InferencePool* Manifests::FindPool(std::string_view namespace_name, std::string_view name) const {
  const auto found = std::find_if(pools.begin(), pools.end(), [&](const InferencePool& pool) {
    return pool.meta.name == name && pool.meta.namespace_name == namespace_name;
  });
  return found == pools.end() ? nullptr : &*found;
}

std::vector<const InferenceModel*> ModelsOf(const Manifests& manifests, const InferencePool& pool) {
  std::vector<const InferenceModel*> models;
  std::unordered_map<std::string_view, size_t> by_name;
  for (const InferenceModel& model : manifests.models) {
    if (model.pool_name != pool.meta.name || model.meta.namespace_name != pool.meta.namespace_name) continue;
    const auto [at, is_new] = by_name.emplace(model.model_name, models.size());
    if (is_new) {
      models.push_back(&model);
    } else if (Older(model.meta, models[at->second]->meta)) {
      models[at->second] = &model;
    }
  }
  return models;
}

namespace {

bool Means(const PoolRef& ref, const ObjectMeta& meta, const InferencePool& pool) {
  return ref.name == pool.meta.name && ref.group == pool.group &&
         meta.namespace_name == pool.meta.namespace_name;
}

}  // namespace

std::vector<const InferenceObjective*> ObjectivesOf(const Manifests& manifests, const InferencePool& pool) {
  std::vector<const InferenceObjective*> objectives;
  for (const InferenceObjective& objective : manifests.objectives) {
    if (Means(objective.pool, objective.meta, pool)) objectives.push_back(&objective);
  }
  return objectives;
}

std::vector<const InferenceModelRewrite*> RewritesOf(const Manifests& manifests, const InferencePool& pool) {
  std::vector<const InferenceModelRewrite*> rewrites;
  for (const InferenceModelRewrite& rewrite : manifests.rewrites) {
    if (Means(rewrite.pool, rewrite.meta, pool)) rewrites.push_back(&rewrite);
  }
  std::sort(rewrites.begin(), rewrites.end(), [](const auto* a, const auto* b) {
    const std::string& left = a->meta.creation_timestamp;
    const std::string& right = b->meta.creation_timestamp;
    if (left.empty() != right.empty()) return right.empty();
    return left != right ? left < right : a < b;  // of one vector: the order of reading
  });
  return rewrites;
}

bool Matches(const std::map<std::string, std::string>& selector,
             const std::map<std::string, std::string>& labels) {
  return !selector.empty() && std::all_of(selector.begin(), selector.end(), [&](const auto& pair) {
    const auto label = labels.find(pair.first);
    return label != labels.end() && label->second == pair.second;
  });
}

void TakeMetricsPlace(const std::map<std::string, std::string>& texts, Endpoint& endpoint) {
  const auto text = [&texts](std::string_view name) -> std::string {
    const auto found = texts.find(std::string(name));
    return found == texts.end() ? "" : found->second.substr(0, kMaxMetricsText);
  };
  endpoint.metrics_path = text(kMetricsPath);
  endpoint.metrics_scheme = text(kMetricsScheme);
  endpoint.metrics_port = base::ParseInteger<uint16_t>(text(kMetricsPort)).value_or(0);
}

bool BelongsTo(const Endpoint& endpoint, const InferencePool& pool) {
  if (!endpoint.pool_key.empty()) return endpoint.pool_key == Key(pool.meta);
  return endpoint.namespace_name == pool.meta.namespace_name && Matches(pool.selector, endpoint.labels);
}

bool LoadResult::ok() const { return !HasErrors(problems); }

}  // namespace fairway::api
