// The fleet as one decision sees it: immutable, pinned once per request.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "api/manifests.h"
#include "base/clock.h"
#include "base/strings.h"
#include "fleet/cell.h"
#include "fleet/load.h"
#include "fleet/tally.h"

namespace fairway::fleet {

// One model server of a pool. Its number is its place in PoolSnapshot::endpoints and means nothing outside
// that snapshot.
struct Endpoint {
  std::string id;    // stable while the server lives: "namespace/name", its address and, for a Pod, its uid
  std::string name;  // the pod's or the file's name
  std::string namespace_name;
  std::string host;  // IP literal without brackets, IPv6 as base::CanonicalAddress has it
  uint16_t port = 0;
  std::string address;  // "ip:port", IPv6 in brackets: what headers and metadata carry
  // Of its metrics page, as its source says it: 0 and "" are for sources/scrape to fill in. Its host is
  // `host`.
  uint16_t metrics_port = 0;
  std::string metrics_scheme;
  std::string metrics_path;
  std::map<std::string, std::string> labels;
  std::string uid;  // of a Pod, "" elsewhere
  // Never null; the same objects in every snapshot that has this id.
  std::shared_ptr<EndpointCell> cell;
  std::shared_ptr<PickTally> picks;
};

// A model that a request may get.
struct Target {
  std::string name;
  uint64_t cumulative_weight = 0;  // sum of the weights up to and with this one; at least 1

  bool operator==(const Target&) const = default;
};

// What an InferenceModel says, ready for the request path.
struct Model {
  std::string name;
  bool critical = false;        // only `Critical` is; Standard, Sheddable and unset can be shed
  std::vector<Target> targets;  // never empty

  bool operator==(const Model&) const = default;
};

using ModelMap = std::unordered_map<std::string, Model, base::StringHash, std::equal_to<>>;
using AdapterMap = std::unordered_map<std::string, uint32_t, base::StringHash, std::equal_to<>>;
using NameSet = std::unordered_set<std::string, base::StringHash, std::equal_to<>>;

// What InferenceObjectives and InferenceModelRewrites say of a pool's requests. Immutable.
struct Policies {
  struct Rewrite {
    std::string name;             // of the InferenceModelRewrite, for metrics
    std::vector<Target> targets;  // never empty

    bool operator==(const Rewrite&) const = default;
  };
  std::unordered_map<std::string, int32_t, base::StringHash, std::equal_to<>> priorities;  // by objective
  std::vector<Rewrite> rewrites;
  std::unordered_map<std::string, uint32_t, base::StringHash, std::equal_to<>>
      by_model;                     // number in rewrites
  std::optional<uint32_t> generic;  // the rewrite of every other model

  // Null: there is none.
  const int32_t* FindPriority(std::string_view objective) const;
  const Rewrite* FindRewrite(std::string_view model) const;  // by name, not the generic one
  const Rewrite* GenericRewrite() const { return generic ? &rewrites[*generic] : nullptr; }

  bool operator==(const Policies&) const = default;
};

// What is large in a pool. Immutable, and shared by the snapshots that differ in nothing of it.
struct PoolContent {
  uint64_t number = NextNumber();        // of no other content in this process
  std::shared_ptr<const LoadSlab> slab;  // of the cells
  std::vector<Endpoint> endpoints;
  std::vector<const EndpointCell*> cells;
  std::vector<const EndpointLoad*> loads;
  ModelMap models;
  std::unordered_map<std::string, uint32_t, base::StringHash, std::equal_to<>> by_address;
  std::unordered_multimap<std::string, uint32_t, base::StringHash, std::equal_to<>> by_host;

 private:
  static uint64_t NextNumber() noexcept {
    static std::atomic<uint64_t> numbers{0};
    return ++numbers;
  }
};

// A copy costs no more than its adapters' names.
struct PoolSnapshot {
  explicit PoolSnapshot(std::shared_ptr<const PoolContent> shared)
      : content(std::move(shared)),
        endpoints(content->endpoints),
        cells(content->cells),
        loads(content->loads),
        slab(content->slab.get()),
        models(content->models),
        by_address(content->by_address),
        by_host(content->by_host) {}

  std::string key;  // "namespace/name"
  std::string name;
  std::string namespace_name;
  api::FailureMode failure_mode = api::FailureMode::kFailClose;
  api::AppProtocol app_protocol = api::AppProtocol::kHttp;

  const std::shared_ptr<const PoolContent> content;  // never null; the next ones are views of it
  const std::span<const Endpoint> endpoints;
  // column: cells[i] == endpoints[i].cell.get(); const: only scraping writes
  const std::span<const EndpointCell* const> cells;
  const std::span<const EndpointLoad* const> loads;  // column: loads[i] == &cells[i]->load()
  const LoadSlab* const slab;                        // of the cells
  // Is there an endpoint in the whole fleet that refuses connections?
  bool anyone_refuses() const noexcept { return slab->refusing().load(std::memory_order_relaxed) != 0; }

  const ModelMap& models;  // empty: the pool has no InferenceModels, any model goes
  // Their names in order; never null.
  std::shared_ptr<const std::vector<std::string>> model_names;
  AdapterMap adapters;                       // name -> id in the cells' AdapterSets
  std::shared_ptr<const NameSet> served;     // models that its endpoints say they serve; never null
  std::shared_ptr<const Policies> policies;  // null: no objective and no rewrite names the pool

  const decltype(PoolContent::by_address)& by_address;
  const decltype(PoolContent::by_host)& by_host;

  std::shared_ptr<PoolTally> tally;  // never null; the same object as long as there is a pool of this key

  uint32_t AdapterId(std::string_view adapter) const {
    const auto found = adapters.find(adapter);
    return found == adapters.end() ? kNoAdapter : found->second;
  }
  // Manifests or model servers name this model; others are made up, as far as is known.
  bool Knows(std::string_view model) const {
    return models.contains(model) || adapters.contains(model) || served->contains(model) ||
           (policies != nullptr && policies->by_model.contains(model));
  }
};

struct Snapshot {
  uint64_t version = 0;
  bool knew_a_pool = false;  // this one or one before has a pool
  std::map<std::string, std::shared_ptr<const PoolSnapshot>, std::less<>> pools;  // by key

  // The pool "namespace/name"; with an empty key the only pool there is. Null: no such pool, or not clear
  // which.
  const PoolSnapshot* FindPool(std::string_view key) const;
};

}  // namespace fairway::fleet
