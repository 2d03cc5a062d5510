// What a pool makes of a request, and the series that it moves, kept from one request to the next: most
// requests ask for what one of the last ones did. For the .cc files of this room only.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "fleet/snapshot.h"
#include "routing/request_class.h"

namespace fairway::routing {

// All that a request says that decides its route, but for what depends on chance and load.
struct RouteKey {
  enum Part { kPool, kModel, kModelRewrite, kObjective, kParts };
  std::array<std::string_view, kParts> parts;  // kModel: "" when it is not known
  bool unnamed =
      false;  // the body was read and names no model: it is given one where a rule or the header has one
};

// A model that a route may lead to.
struct RouteTarget {
  std::string_view name;
  uint32_t adapter = fleet::kNoAdapter;
  // Of the last request, which had this fairness id. Null: there was none.
  RequestClassPointer request_class;
  base::Nanos look_again = 0;  // when it may have got series of its own
  std::string fairness_id;
};

// Owned by a RouteCache. Refers to the snapshot that it was made for, and is used with no other.
class alignas(64) Route {
 public:
  Route() = default;
  Route(const Route&) = delete;
  Route& operator=(const Route&) = delete;

  bool Matches(const fleet::Snapshot& snapshot, const RouteKey& key) const;
  void Set(const fleet::Snapshot& snapshot, const RouteKey& key);

  // Weighted targets are drawn for each request; where there is one, no number is.
  RouteTarget& Draw(base::Random& random) { return targets_.size() <= 1 ? first_ : DrawOne(random); }

 private:
  void Rule(const RouteKey& key);
  RouteTarget& DrawOne(base::Random& random);
  void Reset(RouteTarget& target, std::string_view name);

  // What each request reads comes first, and together.
  uint64_t version_ = 0;
  const fleet::Snapshot* snapshot_ = nullptr;  // to be compared only
  std::array<uint32_t, RouteKey::kParts> sizes_{};
  bool unnamed_ = false;

 public:
  bool unknown_model = false;                 // the pool declares its models, and this is none of them
  bool critical = true;                       // what nobody declares is not shed
  bool declared = false;                      // by an InferenceModel
  const fleet::PoolSnapshot* pool = nullptr;  // null: there is none
  std::string_view rewrite;                   // the InferenceModelRewrite that set the target; "" is none

 private:
  std::span<const fleet::Target> targets_;  // empty: the request's own model, or its header's
  std::string texts_;                       // of the key
  RouteTarget first_;
  std::vector<RouteTarget> others_;

 public:
  std::string_view objective;  // the one that set the priority
  int32_t priority = 0;
  std::string priority_text;
};

// The routes of one worker's last requests. Owned by one thread. Bounded: a route takes the place of another
// one, and those with long texts have one place.
class RouteCache {
 public:
  RouteCache() { last_ = &long_; }
  // The route is good until the next call. `snapshot` need not outlive it, but the route's use.
  Route& Find(const fleet::Snapshot& snapshot, const RouteKey& key) {
    return last_->Matches(snapshot, key) ? *last_ : Search(snapshot, key);
  }

 private:
  static constexpr size_t kRoutes = 64;
  static constexpr size_t kMaxTexts = 1024;

  Route& Search(const fleet::Snapshot& snapshot, const RouteKey& key);

  Route* last_ = nullptr;
  Route long_;
  std::array<Route, kRoutes> routes_;
};

}  // namespace fairway::routing
