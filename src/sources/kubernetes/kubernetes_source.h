// A cluster's InferencePools, InferenceModels and Pods as the API server tells of them, kept up with for as
// long as the source lives.
//
// While the API server is away or refuses, what was known last stays. docs/kubernetes.md says what is read
// and which rights that takes.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "api/manifests.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/result.h"
#include "net/loop.h"
#include "sources/kubernetes/client_config.h"

namespace fairway::sources::kubernetes {

struct KubernetesOptions {
  std::string namespace_name = "default";
  std::string pool_name;   // the InferencePool; with endpoint_selector only a name for what is selected
  std::string pool_group;  // "": both groups; where both have the pool, inference.networking.k8s.io
  // Or many: all of the namespace ("" is all namespaces), or of those the ones with these labels (kubectl's
  // syntax), or whose endpointPickerRef names this Service. pool_name is "" then.
  bool all_pools = false;
  std::string pool_selector;
  std::string picker_service;
  // Without any InferencePool: Pods by a label selector in kubectl's syntax, and their ports.
  std::string endpoint_selector;
  std::vector<uint16_t> target_ports;

  // Leader election among replicas by the Lease epp-NAMESPACE-POOL.llm-d.ai, as the reference has it
  // ("all-pools" for many). Set to
  // whether we lead; null: there is none. Followers keep their fleet as warm as leaders.
  std::shared_ptr<std::atomic<bool>> leading;
  std::string identity;         // unlike any other replica's; see LeaderElectionOptions
  std::string lease_namespace;  // "": namespace_name

  // Changes are gathered for this long, or four times as long as the last publication took; one after a
  // silence is published at once.
  base::Nanos publish_interval = 10 * base::kMillisecond;
  base::Nanos discovery_interval = 5 * base::kSecond;
  // Kinds whose reading fails hold back the first publication no longer than this, once pool and Pods are
  // known. What is refused or not installed holds back nothing.
  base::Nanos patience = 2 * base::kSecond;
  uint64_t seed = 1;
};

// Owned by its loop's thread.
class KubernetesSource {
 public:
  // On the loop, when pools, models and Pods are known for the first time, and with each change after it.
  using Changed = std::function<void(const api::Manifests&)>;

  // The error says what is wrong with options or credentials; an API server that is away is none. Clock, log
  // and registry outlive the source.
  static base::Result<std::unique_ptr<KubernetesSource>> Create(net::Loop& loop, ClientConfig config,
                                                                KubernetesOptions options,
                                                                const base::Clock& clock,
                                                                const base::Log& log,
                                                                base::Registry& registry, Changed changed);
  ~KubernetesSource();
  KubernetesSource(const KubernetesSource&) = delete;
  KubernetesSource& operator=(const KubernetesSource&) = delete;

  bool synced() const;  // Changed was called
  // Gives the Lease back, so that another replica leads at once. `done` runs on the loop within 5 s.
  void StepDown(std::function<void()> done);

 private:
  struct Impl;
  explicit KubernetesSource(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::sources::kubernetes
