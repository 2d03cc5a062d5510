// What is known of a cluster's pools, models and Pods, and what the fleet is to make of it. No network here:
// objects go in as JSON texts, api::Manifests come out.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "api/manifests.h"
#include "sources/kubernetes/objects.h"
#include "sources/kubernetes/reflector.h"

namespace fairway::sources::kubernetes {

// Objects of one kind, as a list and a watch tell of them. Owned by the control loop.
class ObjectStore {
 public:
  virtual ~ObjectStore() = default;
  virtual void BeginList() = 0;
  virtual void Listed(std::string_view object) = 0;
  virtual void EndList() = 0;
  virtual void Set(std::string_view object) = 0;
  virtual void Deleted(std::string_view object) = 0;
  virtual void Clear() = 0;
  virtual size_t size() const = 0;
  // Moves whenever something changed that matters for what is served.
  virtual uint64_t version() const = 0;
};

// Pods that can serve. One that is not ready, or is on its way out, is left out.
class PodStore final : public ObjectStore {
 public:
  using Pods = std::map<std::string, Pod>;  // by "namespace/name"
  // Something is wrong with a Pod: told once for each Pod and fault, however often its status is written.
  using Report = std::function<void(const std::string& key, const std::string& problem)>;
  explicit PodStore(Report report = {}) : report_(std::move(report)) {}

  void BeginList() override;
  void Listed(std::string_view object) override;
  void EndList() override;
  void Set(std::string_view object) override;
  void Deleted(std::string_view object) override;
  void Clear() override;
  size_t size() const override { return pods_.size(); }
  uint64_t version() const override { return version_; }
  const Pods& pods() const { return pods_; }

 private:
  using Problems = std::map<std::string, std::string>;  // of Pods that are there, ready or not; by their keys

  void Note(const Pod& pod, const std::string& key);
  void Remove(const std::string& key);

  const Report report_;
  Pods pods_;
  Pods staged_;
  Problems problems_;
  Problems staged_problems_;
  uint64_t version_ = 0;
};

// Objects of our own kinds. One that has errors is reported like a file's, and its last good state stays.
class ManifestStore final : public ObjectStore {
 public:
  using Report = std::function<void(const api::Problem&)>;
  explicit ManifestStore(Report report) : report_(std::move(report)) {}

  void BeginList() override { staged_.clear(); }
  void Listed(std::string_view object) override;
  void EndList() override;
  void Set(std::string_view object) override;
  void Deleted(std::string_view object) override;
  void Clear() override;
  size_t size() const override { return objects_.size(); }
  uint64_t version() const override { return version_; }
  void AppendTo(api::Manifests& out) const;

 private:
  struct Entry {
    std::string resource_version;                // the last seen, good or not
    std::shared_ptr<const api::Manifests> good;  // null: never was
  };
  using Entries = std::map<std::string, Entry>;

  // The entry for `object` where `known` has the one before it.
  std::pair<std::string, Entry> Read(std::string_view object) const;

  Report report_;
  Entries objects_;
  Entries staged_;
  uint64_t version_ = 0;
};

// Pools of both groups under one name: the one of inference.networking.k8s.io is served, as the newer API.
void DropShadowedPools(std::vector<api::InferencePool>& pools);

// Pods by namespace and label: which a pool's selector matches is found without looking at all of them. Valid
// as long as the Pods are.
class PodIndex {
 public:
  explicit PodIndex(const PodStore::Pods& pods);
  // Those of the pool's namespace that its selector matches, in the order of their names.
  std::vector<const Pod*> Matching(const api::InferencePool& pool) const;

 private:
  std::unordered_map<std::string, std::vector<const Pod*>> by_label_;
};

// One endpoint per Pod and target port of `pool`.
void AppendEndpoints(const api::InferencePool& pool, const std::vector<const Pod*>& pods,
                     std::vector<api::Endpoint>& out);
// The same for all Pods: the server has selected them.
void AppendEndpoints(const api::InferencePool& pool, const PodStore::Pods& pods,
                     std::vector<api::Endpoint>& out);

}  // namespace fairway::sources::kubernetes
