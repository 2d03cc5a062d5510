#include "fleet/peer_loads.h"

#include <algorithm>

namespace fairway::fleet {

void OwnLoads::Take(const Snapshot& fleet, const std::function<void(const Endpoint&)>& changed) {
  std::unordered_map<const EndpointCell*, OpenLoad> before;
  for (const Endpoint& endpoint : endpoints_) before.emplace(endpoint.cell.get(), endpoint.load);
  std::vector<Endpoint> next;
  for (const auto& [key, pool] : fleet.pools) {
    for (const fleet::Endpoint& endpoint : pool->endpoints) {
      next.push_back({.pool = key, .address = endpoint.address, .cell = endpoint.cell, .load = {}});
      const auto known = before.find(endpoint.cell.get());
      if (known == before.end()) continue;
      next.back().load = known->second;
      before.erase(known);
    }
  }
  for (Endpoint& gone : endpoints_) {
    if (!before.contains(gone.cell.get()) || gone.load == OpenLoad{}) continue;
    gone.load = {};
    changed(gone);
  }
  endpoints_ = std::move(next);
  version_ = fleet.version;
}

void OwnLoads::Look(const Snapshot& fleet, base::Nanos now,
                    const std::function<void(const Endpoint&)>& changed) {
  if (fleet.version != version_) Take(fleet, changed);
  for (Endpoint& endpoint : endpoints_) {
    const OpenLoad load = endpoint.cell->ToTell(now);
    if (load == endpoint.load) continue;
    endpoint.load = load;
    changed(endpoint);
  }
}

std::shared_ptr<EndpointCell> FindCell(const Snapshot& fleet, std::string_view pool,
                                       std::string_view address) {
  const auto found = fleet.pools.find(pool);
  if (found == fleet.pools.end()) return nullptr;
  const auto number = found->second->by_address.find(address);
  return number != found->second->by_address.end() ? found->second->endpoints[number->second].cell : nullptr;
}

PeerLoads::~PeerLoads() {
  while (!replicas_.empty()) Forget(replicas_.begin()->first);
}

void PeerLoads::Give(Told& told, std::string_view pool, std::string_view address) const {
  const auto cell = FindCell(*fleet_, pool, address);
  if (cell == nullptr) return;
  told.cell = cell;
  told.tally = fleet_->pools.find(pool)->second->tally;
  Replace(told, {}, told.load);
}

void PeerLoads::Replace(Told& told, const OpenLoad& before, const OpenLoad& now) {
  if (told.tally == nullptr) return;
  told.tally->told_requests.fetch_add(int64_t{now.requests} - before.requests, std::memory_order_relaxed);
  if (const auto cell = told.cell.lock()) cell->ReplaceTold(before, now);
}

void PeerLoads::TakeBack(Told& told) {
  Replace(told, told.load, {});
  told.cell.reset();
  told.tally.reset();
}

bool PeerLoads::Hear(uint64_t replica, std::string_view pool, std::string_view address,
                     const OpenLoad& load) {
  if (pool.size() + address.size() > kMostName) return false;
  name_.assign(pool).append("\n").append(address);
  OfReplica& known = replicas_[replica];
  auto found = known.find(name_);
  if (found == known.end()) {
    if (load == OpenLoad{}) return true;
    if (known.size() >= kMostEndpoints) return false;
    found = known.emplace(name_, Told{}).first;
    Give(found->second, pool, address);
  }
  const OpenLoad bounded{.requests = std::min(load.requests, Ledger::kMost), .tokens = load.tokens};
  Told& told = found->second;
  Replace(told, told.load, bounded);
  told.load = bounded;
  if (bounded == OpenLoad{}) known.erase(found);
  return true;
}

void PeerLoads::Forget(uint64_t replica) {
  const auto found = replicas_.find(replica);
  if (found == replicas_.end()) return;
  for (auto& [name, told] : found->second) TakeBack(told);
  replicas_.erase(found);
}

void PeerLoads::Refresh() {
  auto next = published_.Load();
  if (next->version == fleet_->version) return;
  fleet_ = std::move(next);
  for (auto& [replica, known] : replicas_) {
    for (auto& [name, told] : known) {
      const size_t end = name.find('\n');
      const auto pool = std::string_view(name).substr(0, end),
                 address = std::string_view(name).substr(end + 1);
      const auto cell = FindCell(*fleet_, pool, address);
      if (cell != nullptr && cell == told.cell.lock()) continue;
      TakeBack(told);
      Give(told, pool, address);
    }
  }
}

}  // namespace fairway::fleet
