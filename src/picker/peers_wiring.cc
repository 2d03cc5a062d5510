#include "picker/peers_wiring.h"

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "picker/picker.h"

namespace fairway::picker {

using scheduling::Placements;
using sources::peers::EndpointNews;
using sources::peers::Learned;
using sources::peers::Message;
using sources::peers::MessageWriter;

namespace {

Learned ToLearned(const Placements::Held& held) {
  Learned learned{.reported_blocks = held.reported, .blocks = held.capacity};
  learned.held.reserve(held.blocks.size());
  for (const auto& [block, behind] : held.blocks) learned.held.emplace_back(block, behind);
  return learned;
}

Placements::Held ToHeld(const Learned& learned) {
  Placements::Held held{.reported = learned.reported_blocks, .capacity = learned.blocks, .blocks = {}};
  held.blocks.reserve(learned.held.size());
  for (const auto& [block, behind] : learned.held) held.blocks.push_back({.block = block, .behind = behind});
  return held;
}

}  // namespace

base::Result<std::unique_ptr<PeersWiring>> PeersWiring::Start(sources::peers::Options options,
                                                              const base::Published<fleet::Snapshot>& fleet,
                                                              const routing::Router& router,
                                                              const base::Clock& clock, const base::Log& log,
                                                              base::Registry& registry) {
  std::unique_ptr<PeersWiring> wiring(new PeersWiring(fleet, router, clock));
  wiring->thread_ = std::make_unique<net::LoopThread>("peers");
  net::Loop& loop = wiring->thread_->loop();
  options.replica = SystemSeed();
  base::Result<void> outcome;
  RunOn(loop, [&] {
    auto peers =
        sources::peers::Peers::Start(std::move(options), wiring->MakeContent(), loop, clock, log, registry);
    if (!peers) {
      outcome = tl::make_unexpected(peers.error());
      return;
    }
    wiring->peers_ = std::move(*peers);
    wiring->port_ = wiring->peers_->port();
  });
  if (!outcome) return tl::make_unexpected(outcome.error());
  return wiring;
}

PeersWiring::~PeersWiring() {
  stopping_.store(true, std::memory_order_relaxed);
  RunOn(thread_->loop(), [this] { peers_.reset(); });
  thread_->Join();
}

sources::peers::Content PeersWiring::MakeContent() {
  return {.changes = [this](MessageWriter& to) { WriteChanges(to); },
          .all =
              [this](MessageWriter& to) {
                for (const auto& endpoint : own_.endpoints())
                  if (endpoint.load != fleet::OpenLoad{})
                    to.Add(endpoint.pool, endpoint.address, endpoint.load);
              },
          .listened =
              [this](bool listened) {
                for (const auto& [pool, unused] : fleet_.Load()->pools)
                  OfPlacements(pool, [listened](const Placements& of) { of.SetTelling(listened); });
              },
          .heard = [this](uint64_t peer, const Message& message) { Heard(peer, message); },
          .gone = [this](uint64_t peer) { heard_.Forget(peer); },
          .snapshot = [this] { return Snapshot(); },
          .wants_snapshot = [this] { return WantsSnapshot(); },
          .took = [this](const Message& message) { Took(message); }};
}

void PeersWiring::OfPlacements(std::string_view pool,
                               const std::function<void(const Placements&)>& tell) const {
  OfPlacements(*router_.configs(), pool, tell);
}

void PeersWiring::OfPlacements(const scheduling::ConfigSet& configs, std::string_view pool,
                               const std::function<void(const Placements&)>& tell) {
  for (const auto& instance : configs.Of(pool).plugins) {
    if (const auto* placements = dynamic_cast<const Placements*>(instance->plugin.get())) tell(*placements);
  }
}

void PeersWiring::WriteChanges(MessageWriter& to) {
  own_.Look(*fleet_.Load(), clock_.Now(), [&](const fleet::OwnLoads::Endpoint& endpoint) {
    to.Add(endpoint.pool, endpoint.address, endpoint.load);
  });
  // Those of a pool follow one another.
  const std::string* pool = nullptr;
  std::vector<const Placements*> placements;
  std::map<const Placements*, bool> untold;  // pools may have one config
  std::vector<uint64_t> placed;
  const auto configs = router_.configs();
  for (const auto& endpoint : own_.endpoints()) {
    if (pool == nullptr || *pool != endpoint.pool) {
      pool = &endpoint.pool;
      placements.clear();
      OfPlacements(*configs, *pool, [&](const Placements& of) {
        of.SetTelling(true);  // also of a config that came since somebody listens
        const auto [known, is_new] = untold.try_emplace(&of, false);
        if (is_new) known->second = of.HasUntold();
        if (known->second) placements.push_back(&of);
      });
    }
    if (placements.empty()) continue;
    placed.clear();
    for (const Placements* of : placements) of->TakeUntold(*endpoint.cell, placed);
    if (!placed.empty()) to.Add(endpoint.pool, endpoint.address, std::nullopt, placed);
  }
}

// An endpoint a part: what a peer takes slowly is not held here.
std::function<bool(MessageWriter&)> PeersWiring::Snapshot() const {
  struct Next {
    std::shared_ptr<const fleet::Snapshot> fleet;
    std::map<std::string, std::shared_ptr<const fleet::PoolSnapshot>, std::less<>>::const_iterator pool;
    size_t endpoint = 0;
  };
  auto next = std::make_shared<Next>();
  next->fleet = fleet_.Load();
  next->pool = next->fleet->pools.begin();
  return [this, next](MessageWriter& to) {
    while (next->pool != next->fleet->pools.end()) {
      const fleet::PoolSnapshot& pool = *next->pool->second;
      if (next->endpoint >= pool.endpoints.size()) {
        ++next->pool;
        next->endpoint = 0;
        continue;
      }
      const fleet::Endpoint& endpoint = pool.endpoints[next->endpoint++];
      Learned learned;
      OfPlacements(pool.key, [&](const Placements& of) {
        if (learned.held.empty()) learned = ToLearned(of.Export(*endpoint.cell));
      });
      learned.ms_per_token = endpoint.cell->ms_per_token();
      to.Add(pool.key, endpoint.address, std::nullopt, {}, &learned);
      return true;
    }
    return false;
  };
}

void PeersWiring::Heard(uint64_t peer, const Message& message) {
  heard_.Refresh();
  for (const EndpointNews& news : message.endpoints) {
    if (news.load) heard_.Hear(peer, news.pool, news.address, *news.load);
    if (news.placed.empty()) continue;
    const auto cell = fleet::FindCell(heard_.fleet(), news.pool, news.address);
    if (cell == nullptr) continue;
    OfPlacements(news.pool, [&](const Placements& of) {
      for (const auto& chain : news.placed) {
        if (!stopping_.load(std::memory_order_relaxed)) of.PlacedByPeer(*cell, chain);
      }
    });
  }
}

void PeersWiring::Took(const Message& message) {
  heard_.Refresh();
  for (const EndpointNews& news : message.endpoints) {
    if (!news.learned || stopping_.load(std::memory_order_relaxed)) continue;
    const auto cell = fleet::FindCell(heard_.fleet(), news.pool, news.address);
    if (cell == nullptr) continue;
    cell->AdoptRate(static_cast<float>(news.learned->ms_per_token));
    OfPlacements(news.pool, [&](const Placements& of) { of.Import(*cell, ToHeld(*news.learned)); });
  }
}

// Endpoints have to be known before anything can be taken over for them.
bool PeersWiring::WantsSnapshot() const {
  const auto fleet = fleet_.Load();
  return std::any_of(fleet->pools.begin(), fleet->pools.end(),
                     [](const auto& pool) { return !pool.second->endpoints.empty(); });
}

}  // namespace fairway::picker
