#include "picker/kv_events_wiring.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "picker/engines_page.h"
#include "scheduling/plugin.h"

namespace fairway::picker {
namespace {

using scheduling::CacheHook;
using scheduling::KvEventsReader;
using sources::kv_events::KvEvent;
using sources::kv_events::Publisher;

constexpr base::Nanos kLookEvery = base::kSecond / 2;

const KvEventsReader::Where* WhereOf(const scheduling::Config& config) {
  for (const auto& instance : config.plugins) {
    const auto* reader = dynamic_cast<const KvEventsReader*>(instance->plugin.get());
    if (reader != nullptr && reader->kv_events() != nullptr) return reader->kv_events();
  }
  return nullptr;
}

bool Wanted(const fleet::Endpoint& endpoint, const KvEventsReader::Where& where) {
  if (!where.namespace_name.empty() && endpoint.namespace_name != where.namespace_name) return false;
  return std::all_of(where.labels.begin(), where.labels.end(), [&](const auto& label) {
    const auto found = endpoint.labels.find(label.first);
    return found != endpoint.labels.end() && found->second == label.second;
  });
}

void AddPublishers(const fleet::PoolSnapshot& pool, const KvEventsReader::Where& where,
                   std::vector<Publisher>& to) {
  // Data-parallel ranks of a Pod: an endpoint for each, at ports in the order of ranks.
  std::map<std::string_view, std::vector<uint16_t>> ports;
  for (const fleet::Endpoint& endpoint : pool.endpoints) ports[endpoint.host].push_back(endpoint.port);
  for (auto& [host, of_host] : ports) std::sort(of_host.begin(), of_host.end());
  for (const fleet::Endpoint& endpoint : pool.endpoints) {
    if (!Wanted(endpoint, where)) continue;
    const auto& of_host = ports[endpoint.host];
    const auto rank = static_cast<size_t>(std::lower_bound(of_host.begin(), of_host.end(), endpoint.port) -
                                          of_host.begin());
    const size_t port = where.port + rank;
    const size_t replay_port = where.replay_port != 0 ? where.replay_port + rank : 0;
    if ((where.dials && port > 65535) || replay_port > 65535) continue;
    to.push_back({.pool = pool.key,
                  .endpoint = endpoint.id,
                  .name = endpoint.name,
                  .address = endpoint.address,
                  .cell = endpoint.cell,
                  .picks = endpoint.picks,
                  .options = {.host = endpoint.host,
                              .port = static_cast<uint16_t>(port),
                              .endpoint_port = endpoint.port,
                              .dials = where.dials,
                              .central_host = where.central_host,
                              .central_port = where.central_port,
                              .replay_port = static_cast<uint16_t>(replay_port),
                              .topic = where.topic,
                              .reader = where.reader}});
  }
}

// On the thread of events.
template <typename Tell>
void TellHooks(const routing::Router& router, const std::string& pool, Tell tell) {
  const auto configs = router.configs();
  for (const auto& instance : configs->Of(pool).plugins) {
    if (const auto* hook = dynamic_cast<const CacheHook*>(instance->plugin.get())) tell(*hook);
  }
}

// What an event's values hold: memory that is used again for each. Of the thread of events.
class EventTeller {
 public:
  explicit EventTeller(std::shared_ptr<std::atomic<bool>> stopping) : stopping_(std::move(stopping)) {}

  void Tell(const routing::Router& router, const Publisher& publisher, const KvEvent& event) {
    hashes_.clear();
    tokens_.clear();
    std::vector<std::vector<std::string_view>>().swap(extras_);  // few engines have any
    if (!sources::kv_events::ReadHashes(event.hashes, kMostBlocks, hashes_)) return;
    if (event.kind == KvEvent::Kind::kRemoved) {
      TellHooks(router, publisher.pool, [&](const CacheHook& hook) {
        hook.Removed(*publisher.cell, event.rank, hashes_, event.medium);
      });
      return;
    }
    if (!event.tokens.empty() && !sources::kv_events::ReadTokens(event.tokens, kMostTokens, tokens_)) return;
    const bool odd = !event.extra_keys.empty() && !sources::kv_events::ReadExtraKeys(
                                                      event.extra_keys, event.adapter, kMostBlocks, extras_);
    if (odd) return;
    prefix::StoredBlocks stored{.blocks = hashes_,
                                .parent = event.parent,
                                .tokens = tokens_,
                                .block_tokens = static_cast<uint32_t>(event.block_size),
                                .tier = event.medium,
                                .adapter = event.adapter,
                                .extras = extras_};
    TellHooks(router, publisher.pool,
              [&](const CacheHook& hook) { TellStored(hook, publisher, event.rank, stored); });
  }

 private:
  // In pieces: each holds up whoever wants to know something of the same engine, and the process's end.
  void TellStored(const CacheHook& hook, const Publisher& publisher, int64_t rank,
                  prefix::StoredBlocks stored) const {
    const bool divides = stored.tokens.size() == stored.blocks.size() * stored.block_tokens;
    while (divides && stored.blocks.size() > kPiece && !stopping_->load(std::memory_order_relaxed)) {
      prefix::StoredBlocks piece = stored;
      piece.blocks = stored.blocks.first(kPiece);
      piece.tokens = stored.tokens.first(kPiece * stored.block_tokens);
      piece.extras = stored.extras.first(std::min(kPiece, stored.extras.size()));
      hook.Stored(*publisher.cell, rank, piece);
      stored.parent = piece.blocks.back();
      stored.blocks = stored.blocks.subspan(kPiece);
      stored.tokens = stored.tokens.subspan(piece.tokens.size());
      stored.extras = stored.extras.subspan(piece.extras.size());
    }
    if (!stopping_->load(std::memory_order_relaxed)) hook.Stored(*publisher.cell, rank, stored);
  }

  static constexpr size_t kPiece = 8192;  // blocks
  static constexpr size_t kMostBlocks = 1 << 20;
  static constexpr size_t kMostTokens = 1 << 22;
  const std::shared_ptr<std::atomic<bool>> stopping_;
  std::vector<uint64_t> hashes_;
  std::vector<uint32_t> tokens_;
  std::vector<std::vector<std::string_view>> extras_;
};

std::string WhyUnmatched(const routing::Router& router, const Publisher& publisher) {
  std::string why;
  TellHooks(router, publisher.pool, [&](const CacheHook& hook) {
    if (why.empty()) why = hook.WhyUnmatched(*publisher.cell);
  });
  return why;
}

void Tick(const routing::Router& router, base::Nanos now) {
  const auto configs = router.configs();
  const auto tick = [now](const scheduling::Config& config) {
    for (const auto& instance : config.plugins) {
      if (const auto* hook = dynamic_cast<const CacheHook*>(instance->plugin.get())) hook->Tick(now);
    }
  };
  tick(*configs->common);
  for (const auto& [pool, config] : configs->of_pools) tick(*config);
}

sources::kv_events::Learned ToHooks(const routing::Router& router) {
  const auto stopping = std::make_shared<std::atomic<bool>>(false);
  return {.stopping = stopping,
          .emptied =
              [&router](const Publisher& publisher) {
                TellHooks(router, publisher.pool,
                          [&](const CacheHook& hook) { hook.Emptied(*publisher.cell); });
              },
          .capacity =
              [&router](const Publisher& publisher, uint64_t tokens) {
                TellHooks(router, publisher.pool,
                          [&](const CacheHook& hook) { hook.Keeps(*publisher.cell, tokens); });
              },
          .event = [&router, teller = std::make_shared<EventTeller>(stopping)](
                       const Publisher& publisher,
                       const KvEvent& event) { teller->Tell(router, publisher, event); },
          .knows =
              [&router](const Publisher& publisher, bool all) {
                TellHooks(router, publisher.pool,
                          [&](const CacheHook& hook) { hook.Knows(*publisher.cell, all); });
              },
          .why_unmatched = [&router](const Publisher& publisher) { return WhyUnmatched(router, publisher); },
          .tick = [&router](base::Nanos now) { Tick(router, now); }};
}

}  // namespace

std::vector<Publisher> PublishersOf(const fleet::Snapshot& fleet, const scheduling::ConfigSet& configs) {
  std::vector<Publisher> publishers;
  for (const auto& [key, pool] : fleet.pools) {
    if (const auto* where = WhereOf(configs.Of(key))) AddPublishers(*pool, *where, publishers);
  }
  return publishers;
}

KvEventsWiring::KvEventsWiring(net::Loop& loop, const base::Published<fleet::Snapshot>& fleet,
                               const routing::Router& router, const base::Clock& clock, const base::Log& log,
                               base::Registry& registry)
    : fleet_(fleet),
      router_(router),
      clock_(clock),
      events_(clock, log, registry, ToHooks(router)),
      timer_(loop) {
  Look();
  timer_.Every(kLookEvery, [this] { Look(); });
}

std::function<std::string()> KvEventsWiring::Page() const {
  constexpr size_t kMostEngines = 4096;
  size_t left_out = 0;
  auto engines = events_.Look(kMostEngines, left_out);
  if (!engines || engines->empty()) return {};
  return EnginesPage(std::move(*engines), left_out, clock_.Now(), [&router = router_](const auto& engine) {
    std::optional<scheduling::EngineView> view;
    TellHooks(router, engine.pool, [&](const CacheHook& hook) {
      if (!view) view = hook.View(*engine.cell);
    });
    return view;
  });
}

void KvEventsWiring::Look() {
  const auto fleet = fleet_.Load();
  auto configs = router_.configs();
  if (fleet->version == version_ && configs == configs_) return;
  version_ = fleet->version;
  configs_ = std::move(configs);
  events_.Follow(PublishersOf(*fleet, *configs_));
}

}  // namespace fairway::picker
