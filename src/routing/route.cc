#include "routing/route.h"

#include <algorithm>
#include <cstring>

#include "base/strings.h"

namespace fairway::routing {

[[gnu::hot]] bool Route::Matches(const fleet::Snapshot& snapshot, const RouteKey& key) const {
  if (version_ != snapshot.version || snapshot_ != &snapshot || unnamed_ != key.unnamed) return false;
  const char* text = texts_.data();
  for (size_t i = 0; i < key.parts.size(); ++i) {
    const std::string_view part = key.parts[i];
    if (part.size() != sizes_[i]) return false;
    if (!part.empty() && std::memcmp(part.data(), text, part.size()) != 0) return false;
    text += part.size();
  }
  return true;
}

void Route::Set(const fleet::Snapshot& snapshot, const RouteKey& key) {
  snapshot_ = nullptr;  // until all is set: memory may run out on the way
  texts_.clear();
  for (size_t i = 0; i < key.parts.size(); ++i) {
    sizes_[i] = static_cast<uint32_t>(key.parts[i].size());
    texts_ += key.parts[i];
  }
  unnamed_ = key.unnamed;
  RouteKey own{.parts = {}, .unnamed = key.unnamed};
  size_t begin = 0;
  for (size_t i = 0; i < key.parts.size(); ++i) {
    own.parts[i] = std::string_view(texts_).substr(begin, sizes_[i]);
    begin += sizes_[i];
  }
  pool = snapshot.FindPool(own.parts[RouteKey::kPool]);
  others_.clear();
  if (pool != nullptr) Rule(own);
  version_ = snapshot.version;
  snapshot_ = &snapshot;
}

// The target: a rewrite that names the model, else the InferenceModel, else the rewrite of every other model,
// else the header. The priority: the objective, else the InferenceModel. `key` is this route's own.
void Route::Rule(const RouteKey& key) {
  unknown_model = false;
  critical = true;
  declared = false;
  targets_ = {};
  rewrite = {};
  objective = {};
  priority = 0;
  const std::string_view model_name = key.parts[RouteKey::kModel];
  const std::string_view model_rewrite = key.parts[RouteKey::kModelRewrite];
  const fleet::Policies* policies = pool->policies.get();
  const fleet::Model* model = nullptr;
  const fleet::Policies::Rewrite* rule = nullptr;
  if (!model_name.empty()) {
    if (!pool->models.empty()) {
      const auto found = pool->models.find(model_name);
      if (found != pool->models.end()) model = &found->second;
    }
    if (policies != nullptr) rule = policies->FindRewrite(model_name);
    if (policies != nullptr && rule == nullptr && model == nullptr) rule = policies->GenericRewrite();
    unknown_model = !pool->models.empty() && model == nullptr && rule == nullptr;
  } else if (key.unnamed && policies != nullptr) {
    rule = policies->GenericRewrite();
  }
  if (model != nullptr) {
    declared = true;
    critical = model->critical;
    // Below 0 is what may be shed, as with InferenceObjective.
    priority = model->critical ? 1 : -1;
  }
  if (rule != nullptr) {
    rewrite = rule->name;
    targets_ = rule->targets;
  } else if (model != nullptr) {
    targets_ = model->targets;
  }
  const std::string_view named = key.parts[RouteKey::kObjective];
  const int32_t* found = policies != nullptr && !named.empty() ? policies->FindPriority(named) : nullptr;
  if (found != nullptr) {
    objective = named;
    critical = *found >= 0;
    priority = *found;
  }
  priority_text = std::to_string(priority);

  if (targets_.empty()) {
    Reset(first_, model_rewrite.empty() ? model_name : model_rewrite);
    return;
  }
  Reset(first_, targets_[0].name);
  others_.resize(targets_.size() - 1);
  for (size_t i = 1; i < targets_.size(); ++i) Reset(others_[i - 1], targets_[i].name);
}

void Route::Reset(RouteTarget& target, std::string_view name) {
  target = {};
  target.name = name;
  target.adapter = pool->AdapterId(name);
}

RouteTarget& Route::DrawOne(base::Random& random) {
  const uint64_t drawn = random.Below(targets_.back().cumulative_weight);
  const auto found =
      std::upper_bound(targets_.begin(), targets_.end(), drawn,
                       [](uint64_t d, const auto& target) { return d < target.cumulative_weight; });
  const auto number = static_cast<size_t>(found - targets_.begin());
  return number == 0 ? first_ : others_[number - 1];
}

Route& RouteCache::Search(const fleet::Snapshot& snapshot, const RouteKey& key) {
  size_t hash = 0;
  size_t size = 0;
  for (const std::string_view part : key.parts) {
    hash = hash * 31 + base::StringHash()(part);
    size += part.size();
  }
  last_ = size <= kMaxTexts ? &routes_[hash % kRoutes] : &long_;
  if (!last_->Matches(snapshot, key)) last_->Set(snapshot, key);
  return *last_;
}

}  // namespace fairway::routing
