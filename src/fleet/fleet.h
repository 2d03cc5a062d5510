// The writer's side: turns what sources say into published snapshots, and keeps each endpoint's live cell for
// as long as the endpoint lives.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "api/manifests.h"
#include "base/published.h"
#include "fleet/load.h"
#include "fleet/snapshot.h"

namespace fairway::fleet {

// Owned by the control loop; `published()` is what the workers read.
class Fleet {
 public:
  // Host names of endpoints -> IP literals. An endpoint whose name is missing here is left out and listed in
  // unresolved().
  using Addresses = std::map<std::string, std::string, std::less<>>;

  // Publishes an empty snapshot: no pool yet.
  Fleet();

  // Replaces pools, models and endpoints, and publishes where that changes anything; a pool that stays as it
  // is keeps its object. An endpoint belongs to every pool of its namespace whose selector its labels match,
  // with a cell for each. Endpoints that stay (same name, address, port and uid) keep their cells: signals
  // and reservations go on. REQUIRES: the manifests had no errors.
  void Apply(const api::Manifests& manifests, const Addresses& addresses = {});

  // The number of adapter `name` in `pool_key`'s cells; a new name is seen by readers after PublishNames.
  // kNoAdapter when the pool is gone or kMaxAdapters names are in use: then affinity to this adapter is not
  // seen, and adapter_overflow() counts it.
  uint32_t NumberAdapter(std::string_view pool_key, std::string_view name);
  // As above without counting, for names that may be known.
  uint32_t FindAdapter(std::string_view pool_key, std::string_view name) const;
  // The models that an endpoint says it serves, in place of what it said before: the pool knows their names
  // (PoolSnapshot::Knows) after PublishNames. None: it is gone. Names beyond kMaxServed of the pool are not
  // known.
  static constexpr size_t kMaxServed = 1024;
  void SetServed(std::string_view pool_key, std::string_view endpoint_id, std::vector<std::string> names);
  bool has_new_names() const { return new_names_; }
  // Publishes adapters and served models, if any are new. Nothing large is copied.
  void PublishNames();
  // Both at once.
  uint32_t InternAdapter(std::string_view pool_key, std::string_view name);
  uint64_t adapter_overflow() const { return adapter_overflow_; }

  // Called with each snapshot before readers see it, for what they are to find ready then. The fleet's
  // thread.
  void set_before_publish(std::function<void(const Snapshot&)> prepare) { prepare_ = std::move(prepare); }

  const std::vector<std::string>& unresolved() const { return unresolved_; }
  const base::Published<Snapshot>& published() const { return published_; }
  // Frees former snapshots that no reader holds any more; Apply does so, too.
  void FreeOldSnapshots() { published_.FreeUnused(); }

 private:
  using Pools = std::map<std::string, std::shared_ptr<const PoolSnapshot>, std::less<>>;
  // What the model servers of one pool name.
  struct Names {
    AdapterMap adapters;  // in use, and their numbers
    std::array<bool, kMaxAdapters> used{};
    std::map<std::string, std::vector<std::string>, std::less<>> served_by;  // endpoint id -> models
    std::map<std::string, uint32_t, std::less<>> servers;                    // model -> how many endpoints
    std::shared_ptr<const NameSet> served;                                   // null: to be made anew
    bool changed = false;                                                    // since it was published
  };
  struct Wanted;

  void Publish(Pools pools);
  std::vector<Wanted> WantedOf(const api::InferencePool& pool,
                               const std::vector<const api::Endpoint*>& candidates,
                               const Addresses& addresses);
  std::shared_ptr<const PoolSnapshot> MakePool(const api::Manifests& manifests,
                                               const api::InferencePool& source,
                                               const std::vector<Wanted>& wanted,
                                               const std::shared_ptr<const PoolSnapshot>& before);
  std::shared_ptr<const PoolContent> MakeContent(const std::vector<Wanted>& wanted, ModelMap models,
                                                 const PoolSnapshot* before);
  static void DropUnborne(const PoolSnapshot& pool, Names& names);
  static void TakeNames(Names& names, PoolSnapshot& pool);

  std::map<std::string, Names, std::less<>> names_;  // by pool
  bool new_names_ = false;

  const std::shared_ptr<LoadSlab> loads_ = std::make_shared<LoadSlab>();
  base::Published<Snapshot> published_;
  std::function<void(const Snapshot&)> prepare_;
  uint64_t version_ = 0;
  uint64_t adapter_overflow_ = 0;
  std::vector<std::string> unresolved_;
};

}  // namespace fairway::fleet
