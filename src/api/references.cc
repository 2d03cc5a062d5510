// What only shows when all objects are there.
#include <algorithm>
#include <functional>
#include <map>
#include <unordered_map>

#include "api/decode.h"
#include "api/manifests.h"

namespace fairway::api {
namespace {

// Beyond this many problems a file list is beyond reading, and looking for the nearest name costs time for
// each.
constexpr size_t kMaxProblems = 1000;

std::string At(const Position& where) {
  return where.file + (where.line > 0 ? ":" + std::to_string(where.line) : "");
}

class Checker {
 public:
  Checker(const Manifests& manifests, std::vector<Problem>& problems)
      : manifests_(manifests), problems_(problems), limit_(problems.size() + kMaxProblems) {
    for (const InferencePool& pool : manifests.pools) {
      if (!pool.meta.name.empty()) pools_.emplace(Key(pool.meta), &pool);
    }
    for (const Gateway& gateway : manifests.gateways) {
      if (!gateway.meta.name.empty()) gateways_.emplace(Key(gateway.meta), &gateway);
    }
  }

  void Run() {
    CheckDuplicates("InferencePool", manifests_.pools);
    CheckDuplicates("InferenceModel", manifests_.models);
    CheckDuplicates("InferenceObjective", manifests_.objectives);
    CheckDuplicates("InferenceModelRewrite", manifests_.rewrites);
    CheckDuplicates("Gateway", manifests_.gateways);
    CheckDuplicates("HTTPRoute", manifests_.routes);
    CheckEndpointDuplicates();
    for (const InferenceModel& model : manifests_.models) CheckModel(model);
    CheckModelNames();
    for (const InferenceObjective& objective : manifests_.objectives)
      CheckPoolRef(objective.pool, objective.meta, "InferenceObjective ");
    for (const InferenceModelRewrite& rewrite : manifests_.rewrites)
      CheckPoolRef(rewrite.pool, rewrite.meta, "InferenceModelRewrite ");
    for (const InferencePool& pool : manifests_.pools) CheckRewriteRules(pool);
    for (const HttpRoute& route : manifests_.routes) CheckRoute(route);
    CheckSelections();
  }

 private:
  void Add(Severity severity, const Position& where, std::string object, std::string field,
           std::string message) {
    if (problems_.size() < limit_) {
      problems_.push_back({severity, where, std::move(object), std::move(field), std::move(message)});
    } else if (problems_.size() == limit_) {
      problems_.push_back({Severity::kError, where, "", "", "more problems follow; repair these first"});
    }
  }

  template <typename Object>
  void CheckDuplicates(const std::string& kind, const std::vector<Object>& objects) {
    std::unordered_map<std::string, const Object*> first;
    for (const Object& object : objects) {
      if (object.meta.name.empty() || object.meta.namespace_name.empty()) continue;  // reported already
      const auto [at, is_new] = first.emplace(Key(object.meta), &object);
      if (is_new) continue;
      std::string message = "is defined twice; first in " + At(at->second->meta.where);
      if constexpr (requires { object.group; }) {
        if (object.group != at->second->group) {
          message += " with the group " + Quote(at->second->group) + "; keep one of the two";
        }
      }
      Add(Severity::kError, object.meta.where, kind + " " + Key(object.meta), "metadata.name",
          std::move(message));
    }
  }

  void CheckEndpointDuplicates() {
    std::unordered_map<std::string, const Endpoint*> names;
    std::unordered_map<std::string, const Endpoint*> addresses;
    for (const Endpoint& endpoint : manifests_.endpoints) {
      if (endpoint.name.empty() || endpoint.address.empty() || endpoint.port == 0) continue;
      const std::string object = "endpoint " + Key(endpoint.namespace_name, endpoint.name);
      const auto [name, new_name] = names.emplace(Key(endpoint.namespace_name, endpoint.name), &endpoint);
      if (!new_name) {
        Add(Severity::kError, endpoint.where, object, "name",
            "is defined twice; first in " + At(name->second->where));
        continue;
      }
      const std::string address =
          endpoint.namespace_name + " " + endpoint.address + " " + std::to_string(endpoint.port);
      const auto [same, new_address] = addresses.emplace(address, &endpoint);
      if (!new_address) {
        Add(Severity::kWarning, endpoint.where, object, "address",
            "address and port are those of endpoint " + Quote(same->second->name) + " (" +
                At(same->second->where) + "): one server would get two servers' load");
      }
    }
  }

  // "no InferencePool "x" in namespace "y"" and what was probably meant.
  std::string NoPool(std::string_view namespace_name, std::string_view name) const {
    std::string message = "no InferencePool " + Quote(name) + " in namespace " + Quote(namespace_name);
    std::vector<std::string> names;
    for (const InferencePool& pool : manifests_.pools) {
      if (pool.meta.namespace_name == namespace_name) {
        names.push_back(pool.meta.name);
      } else if (pool.meta.name == name) {
        return message + "; there is one in namespace " + Quote(pool.meta.namespace_name);
      }
    }
    const std::string hint = DidYouMean(name, names);
    if (!hint.empty()) return message + hint;
    if (manifests_.pools.empty()) return message + "; no InferencePool was given at all";
    if (names.size() == 1) return message + "; the only one there is " + Quote(names[0]);
    return message;
  }

  void CheckModel(const InferenceModel& model) {
    if (model.pool_name.empty() || model.meta.namespace_name.empty()) return;
    const std::string object = "InferenceModel " + Key(model.meta);
    const auto pool = pools_.find(Key(model.meta.namespace_name, model.pool_name));
    if (pool == pools_.end()) {
      Add(Severity::kError, model.pool_where, object, "spec.poolRef.name",
          NoPool(model.meta.namespace_name, model.pool_name));
    } else if (model.pool_group != pool->second->group && model.pool_group != kInferenceGroupX) {
      // The reference compares the name alone, so a model of a v1 pool works whatever its group says.
      Add(Severity::kWarning, model.pool_where, object, "spec.poolRef.group",
          "is " + Quote(model.pool_group) + ", but InferencePool " + Key(pool->second->meta) + " is of " +
              Quote(pool->second->group));
    }
  }

  void CheckModelNames() {
    std::map<std::string, std::vector<const InferenceModel*>> named;
    for (const InferenceModel& model : manifests_.models) {
      if (model.model_name.empty() || model.pool_name.empty()) continue;
      named[model.meta.namespace_name + "/" + model.pool_name + "/" + model.model_name].push_back(&model);
    }
    for (const auto& [key, models] : named) {
      const InferenceModel* winner = models[0];
      for (const InferenceModel* model : models) {
        if (Older(model->meta, winner->meta)) winner = model;
      }
      for (const InferenceModel* model : models) {
        if (model == winner) continue;
        const bool by_age = Older(winner->meta, model->meta);
        Add(Severity::kWarning, model->meta.where, "InferenceModel " + Key(model->meta), "spec.modelName",
            Quote(model->model_name) + " is also the name of InferenceModel " + Key(winner->meta) + " (" +
                At(winner->meta.where) + "), which is " + (by_age ? "older and is served" : "served") +
                "; this one has no effect");
      }
    }
  }

  // Unlike a model's, the group counts: the reference ignores what names another.
  void CheckPoolRef(const PoolRef& ref, const ObjectMeta& meta, const std::string& kind) {
    if (ref.name.empty() || meta.namespace_name.empty()) return;
    const auto pool = pools_.find(Key(meta.namespace_name, ref.name));
    if (pool == pools_.end()) {
      Add(Severity::kError, ref.where, kind + Key(meta), "spec.poolRef.name",
          NoPool(meta.namespace_name, ref.name));
    } else if (ref.group != pool->second->group) {
      Add(Severity::kError, ref.where, kind + Key(meta), "spec.poolRef.group",
          "is " + Quote(ref.group) + ", but InferencePool " + Key(pool->second->meta) + " (" +
              At(pool->second->meta.where) + ") is of " + Quote(pool->second->group));
    }
  }

  // Matches that never count, because another rule comes first.
  void CheckRewriteRules(const InferencePool& pool) {
    std::unordered_map<std::string_view, const InferenceModelRewrite*> exact;
    const InferenceModelRewrite* generic = nullptr;
    for (const InferenceModelRewrite* rewrite : RewritesOf(manifests_, pool)) {
      const auto hidden = [&](const Position& where, std::string field, std::string what,
                              const InferenceModelRewrite* by) {
        Add(Severity::kWarning, where, "InferenceModelRewrite " + Key(rewrite->meta), std::move(field),
            std::move(what) +
                (by == rewrite ? " by an earlier rule of this object"
                               : " by InferenceModelRewrite " + Key(by->meta) + " (" + At(by->meta.where) +
                                     "), which comes first") +
                "; this one has no effect");
      };
      for (size_t r = 0; r < rewrite->rules.size(); ++r) {
        const InferenceModelRewrite::Rule& rule = rewrite->rules[r];
        const std::string field = "spec.rules[" + std::to_string(r) + "]";
        if (rule.matches.empty()) {
          if (generic != nullptr) hidden(rule.where, field, "every model is matched already", generic);
          if (generic == nullptr) generic = rewrite;
        }
        for (size_t m = 0; m < rule.matches.size(); ++m) {
          const InferenceModelRewrite::Match& match = rule.matches[m];
          const auto [first, is_new] = exact.emplace(match.model, rewrite);
          if (is_new || match.model.empty()) continue;
          hidden(match.where, field + ".matches[" + std::to_string(m) + "].model.value",
                 Quote(match.model) + " is matched already", first->second);
        }
      }
    }
  }

  void CheckRoute(const HttpRoute& route) {
    const std::string object = "HTTPRoute " + Key(route.meta);
    for (const HttpRoute::ParentRef& parent : route.parents) CheckParent(parent, object);
    for (size_t r = 0; r < route.rules.size(); ++r) {
      for (size_t b = 0; b < route.rules[r].backends.size(); ++b) {
        const HttpRoute::Backend& backend = route.rules[r].backends[b];
        if (backend.kind != "InferencePool" || backend.name.empty() || backend.namespace_name.empty())
          continue;
        const std::string field =
            "spec.rules[" + std::to_string(r) + "].backendRefs[" + std::to_string(b) + "]";
        const auto pool = pools_.find(Key(backend.namespace_name, backend.name));
        if (pool == pools_.end()) {
          Add(Severity::kError, backend.where, object, field + ".name",
              NoPool(backend.namespace_name, backend.name));
        } else if (backend.group != pool->second->group &&
                   (backend.group == kInferenceGroup || backend.group == kInferenceGroupX)) {
          Add(Severity::kError, backend.where, object, field + ".group",
              "is " + Quote(backend.group) + ", but InferencePool " + Key(pool->second->meta) + " (" +
                  At(pool->second->meta.where) + ") is of " + Quote(pool->second->group));
        }
      }
    }
  }

  void CheckParent(const HttpRoute::ParentRef& parent, const std::string& object) {
    // Without any Gateway local mode has a listener of its own, which takes all routes.
    if (manifests_.gateways.empty() || parent.namespace_name.empty()) return;
    const auto found = gateways_.find(Key(parent.namespace_name, parent.name));
    if (found == gateways_.end()) {
      std::vector<std::string> names;
      std::string message =
          "no Gateway " + Quote(parent.name) + " in namespace " + Quote(parent.namespace_name);
      for (const Gateway& gateway : manifests_.gateways) {
        if (gateway.meta.namespace_name == parent.namespace_name) names.push_back(gateway.meta.name);
        if (gateway.meta.name == parent.name) {
          message += "; there is one in namespace " + Quote(gateway.meta.namespace_name);
          names.clear();
          break;
        }
      }
      Add(Severity::kError, parent.where, object, "spec.parentRefs",
          message + DidYouMean(parent.name, names));
      return;
    }
    const Gateway& gateway = *found->second;
    if (!parent.section_name.empty()) {
      std::vector<std::string> names;
      names.reserve(gateway.listeners.size());
      for (const Gateway::Listener& listener : gateway.listeners) names.push_back(listener.name);
      if (std::find(names.begin(), names.end(), parent.section_name) == names.end()) {
        Add(Severity::kError, parent.where, object, "spec.parentRefs",
            "Gateway " + Key(gateway.meta) + " has no listener " + Quote(parent.section_name) +
                DidYouMean(parent.section_name, names));
        return;
      }
    }
    const bool some =
        std::any_of(gateway.listeners.begin(), gateway.listeners.end(), [&](const Gateway::Listener& l) {
          return (parent.section_name.empty() || l.name == parent.section_name) &&
                 (!parent.port || l.port == *parent.port);
        });
    if (!some && parent.port) {
      Add(Severity::kError, parent.where, object, "spec.parentRefs",
          "Gateway " + Key(gateway.meta) + " has no such listener on port " + std::to_string(*parent.port));
    }
  }

  void CheckSelections() {
    if (manifests_.endpoints.empty()) return;
    std::vector<bool> selected(manifests_.endpoints.size());
    for (const InferencePool& pool : manifests_.pools) {
      bool some = false;
      for (size_t i = 0; i < manifests_.endpoints.size(); ++i) {
        const Endpoint& endpoint = manifests_.endpoints[i];
        if (!BelongsTo(endpoint, pool)) continue;
        some = true;
        selected[i] = true;
      }
      if (some || pool.meta.name.empty()) continue;
      Add(Severity::kWarning, pool.meta.where, "InferencePool " + Key(pool.meta), "spec.selector",
          "selects none of the endpoints; an endpoint needs its namespace " +
              Quote(pool.meta.namespace_name) + " and all its labels");
    }
    if (manifests_.pools.empty()) return;
    for (size_t i = 0; i < manifests_.endpoints.size(); ++i) {
      const Endpoint& endpoint = manifests_.endpoints[i];
      if (selected[i] || endpoint.name.empty()) continue;
      Add(Severity::kWarning, endpoint.where, "endpoint " + Key(endpoint.namespace_name, endpoint.name),
          "labels", "no InferencePool selects this endpoint; it will get no requests");
    }
  }

  const Manifests& manifests_;
  std::vector<Problem>& problems_;
  size_t limit_;
  std::unordered_map<std::string, const InferencePool*> pools_;
  std::unordered_map<std::string, const Gateway*> gateways_;
};

}  // namespace

void CheckReferences(const Manifests& manifests, std::vector<Problem>& problems) {
  Checker(manifests, problems).Run();
}

}  // namespace fairway::api
