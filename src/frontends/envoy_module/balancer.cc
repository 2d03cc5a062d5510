#include "frontends/envoy_module/balancer.h"

#include <utility>

#include "frontends/request/headers.h"
#include "net/address.h"

namespace fairway::envoy_module {

using abi::Buffer;
using abi::ToBuffer;

void ClusterDirectory::Subscribe(uint64_t id, const std::string& cluster, Changed changed) {
  const std::lock_guard lock(mutex_);
  Cluster& entry = clusters_[cluster];
  if (!entry.told.empty()) changed(entry.told);
  entry.subscriptions.push_back({id, std::move(changed)});
}

void ClusterDirectory::Unsubscribe(uint64_t id) {
  const std::lock_guard lock(mutex_);
  for (auto& [name, cluster] : clusters_) {
    std::erase_if(cluster.subscriptions, [id](const Subscription& s) { return s.id == id; });
  }
  std::erase_if(clusters_, [](const auto& entry) {
    return entry.second.subscriptions.empty() && entry.second.heard.empty();
  });
}

uint64_t ClusterDirectory::Join(const std::string& cluster) {
  const std::lock_guard lock(mutex_);
  (void)clusters_[cluster];
  return ++last_balancer_;
}

void ClusterDirectory::Publish(uint64_t balancer, const std::string& cluster, ClusterHosts hosts) {
  const std::lock_guard lock(mutex_);
  Cluster& entry = clusters_[cluster];
  entry.heard[balancer] = std::move(hosts);
  Tell(entry);
}

void ClusterDirectory::Leave(uint64_t balancer, const std::string& cluster) {
  const std::lock_guard lock(mutex_);
  const auto found = clusters_.find(cluster);
  if (found == clusters_.end()) return;
  Cluster& entry = found->second;
  entry.heard.erase(balancer);
  if (!entry.heard.empty()) return Tell(entry);
  // The cluster is gone. What it had stays with subscribers: a cluster that is warming anew under the same
  // name must not look like an empty pool meanwhile.
  if (entry.subscriptions.empty()) clusters_.erase(found);
}

void ClusterDirectory::Tell(Cluster& cluster) {
  const ClusterHosts& hosts = cluster.heard.rbegin()->second;
  if (hosts == cluster.told) return;
  cluster.told = hosts;
  for (const Subscription& subscription : cluster.subscriptions) subscription.changed(hosts);
}

void ClusterDirectory::WantLabels(const std::string& metadata_namespace,
                                  const std::vector<std::string>& keys) {
  const std::lock_guard lock(mutex_);
  for (const std::string& key : keys) ++labels_[metadata_namespace][key];
}

std::vector<std::pair<std::string, std::string>> ClusterDirectory::wanted_labels() const {
  const std::lock_guard lock(mutex_);
  std::vector<std::pair<std::string, std::string>> wanted;
  for (const auto& [space, keys] : labels_) {
    for (const auto& [key, count] : keys) wanted.emplace_back(space, key);
  }
  return wanted;
}

Balancer::Balancer(ClusterDirectory& directory, abi::Balancer envoy) : directory_(directory), envoy_(envoy) {
  Buffer name{nullptr, 0};
  FAIRWAY_ENVOY(lb_get_cluster_name)(envoy, &name);
  cluster_ = name.view();
  id_ = directory_.Join(cluster_);
  // A worker's first look may come before its hosts do: that is no news.
  const auto priorities = static_cast<uint32_t>(FAIRWAY_ENVOY(lb_get_priority_set_size)(envoy));
  for (uint32_t priority = 0; priority < priorities; ++priority) {
    if (FAIRWAY_ENVOY(lb_get_hosts_count)(envoy, priority) == 0) continue;
    OnHostsChanged();
    break;
  }
}

Balancer::~Balancer() { directory_.Leave(id_, cluster_); }

void Balancer::OnHostsChanged() {
  // First of all: what fails below leaves no places of hosts that are no more.
  healthy_.clear();
  in_turn_.clear();
  const auto wanted = directory_.wanted_labels();
  ClusterHosts hosts;
  const auto priorities = static_cast<uint32_t>(FAIRWAY_ENVOY(lb_get_priority_set_size)(envoy_));
  for (uint32_t priority = 0; priority < priorities; ++priority) {
    const size_t healthy_count = FAIRWAY_ENVOY(lb_get_healthy_hosts_count)(envoy_, priority);
    for (uint32_t i = 0; i < healthy_count; ++i) {
      Buffer address{nullptr, 0};
      if (FAIRWAY_ENVOY(lb_get_healthy_host_address)(envoy_, priority, i, &address)) {
        healthy_.emplace(address.view(), Place{priority, i});
      }
    }
    const size_t count = FAIRWAY_ENVOY(lb_get_hosts_count)(envoy_, priority);
    for (size_t i = 0; i < count; ++i) {
      Buffer address{nullptr, 0};
      if (!FAIRWAY_ENVOY(lb_get_host_address)(envoy_, priority, i, &address)) continue;
      const bool is_healthy = healthy_.contains(address.view());
      if (is_healthy && (in_turn_.empty() || in_turn_priority_ == priority)) {
        in_turn_priority_ = priority;
        in_turn_.push_back(static_cast<uint32_t>(i));
      }
      // Health as Envoy sees it (health checks, outlier detection, EDS). Where nobody is healthy Envoy would
      // send to anybody, and so do we.
      std::string text(address.view());
      if (healthy_count > 0 && !is_healthy) continue;
      const auto parsed = net::ParseHostPort(text);
      if (!parsed || !net::IsIpLiteral(parsed->host)) continue;  // a pipe, say
      ClusterHost host;
      host.host = parsed->host;
      host.port = parsed->port;
      for (const auto& [space, key] : wanted) {
        Buffer value{nullptr, 0};
        if (FAIRWAY_ENVOY(lb_get_host_metadata_string)(envoy_, priority, i, ToBuffer(space), ToBuffer(key),
                                                       &value)) {
          host.labels.emplace(key, value.view());
        }
      }
      hosts.push_back(std::move(host));
    }
  }
  directory_.Publish(id_, cluster_, std::move(hosts));
}

// The request's entry, when the picker has made one for it.
[[gnu::hot]] Choice* Balancer::Find(abi::LbContext context) {
  if (context == nullptr) return nullptr;
  if (choices_ == nullptr) choices_ = &Choices::OfThisThread();
  if (Choice* expected = choices_->TakeExpected()) return expected;
  Buffer request_id{nullptr, 0};
  if (!FAIRWAY_ENVOY(lb_context_get_downstream_header)(context, ToBuffer("x-request-id"), &request_id, 0,
                                                       nullptr)) {
    return nullptr;
  }
  Choice* choice = choices_->Find(request_id.view());
  if (choice == nullptr || !choice->shared()) return choice;
  // Several have this id. The filter has told each of them its first choice.
  Buffer first{nullptr, 0};
  if (!FAIRWAY_ENVOY(lb_context_get_downstream_header)(context, ToBuffer(request::kDestination), &first, 0,
                                                       nullptr)) {
    return nullptr;
  }
  return choices_->Find(request_id.view(), first.view());
}

[[gnu::hot]] bool Balancer::Choose(abi::LbContext context, uint32_t& priority, uint32_t& index) {
  if (Choice* choice = Find(context); choice != nullptr) {
    for (auto next = choice->Next(); !next.empty(); next = choice->Next()) {
      const auto found = healthy_.find(next);
      if (found == healthy_.end()) continue;  // the picker knew it before Envoy did, or still does
      priority = found->second.priority;
      index = found->second.index;
      return true;
    }
  }
  const auto priorities = static_cast<uint32_t>(FAIRWAY_ENVOY(lb_get_priority_set_size)(envoy_));
  for (priority = 0; priority < priorities; ++priority) {
    const size_t count = FAIRWAY_ENVOY(lb_get_healthy_hosts_count)(envoy_, priority);
    if (count == 0) continue;
    // Envoy's own policies look for a host that the retry policy (previous_hosts) accepts; so do we.
    const bool ask = context != nullptr && priority == in_turn_priority_ && count == in_turn_.size();
    for (size_t i = 0; i < count; ++i) {
      index = static_cast<uint32_t>(next_++ % count);
      if (!ask ||
          !FAIRWAY_ENVOY(lb_context_should_select_another_host)(envoy_, context, priority, in_turn_[index])) {
        break;
      }
    }
    return true;
  }
  priority = 0;
  return false;
}

}  // namespace fairway::envoy_module
