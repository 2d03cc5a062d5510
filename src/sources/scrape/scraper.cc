#include "sources/scrape/scraper.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>
#include <set>
#include <span>
#include <utility>

#include "api/text_rules.h"
#include "net/http_client.h"
#include "net/small_file.h"
#include "net/tls_client.h"
#include "sources/scrape/meters.h"

namespace fairway::sources::scrape {
namespace {

using fleet::EndpointCell;

// Endpoints are asked in turns spread over the interval, so that a thousand do not fire at once. Small fleets
// have few turns: the wake-ups of a turn cost as much as several pages.
constexpr size_t kPerTurn = 25;
constexpr size_t kMaxTurns = 20;

// A turn's new adapter names make workers look anew: what untrusted pages can ask for is bounded. Further
// names wait for a later page.
constexpr int kNewAdaptersPerTurn = 32;
// Between two snapshots that only name adapters and models: making one copies what the pools name.
constexpr base::Nanos kNamesPause = 10 * base::kMillisecond;
constexpr base::Nanos kAdaptersFullPause = base::kSecond;

constexpr base::Nanos kLogAgain = 30 * base::kSecond;

// Pages of each endpoint, on average, before the log tells what none of them says.
constexpr size_t kPagesUntilTold = 4;

// An engine whose version does not tell its waiting tokens will not begin to soon; what fails may be back.
constexpr base::Nanos kAskUnknownAgain = 60 * base::kSecond;
constexpr base::Nanos kAskFailedAgain = 5 * base::kSecond;

std::string_view KindOf(net::HttpFailure failure) {
  switch (failure) {
    case net::HttpFailure::kOptions:
      return "options";
    case net::HttpFailure::kConnect:
      return "connect";
    case net::HttpFailure::kTimeout:
      return "timeout";
    case net::HttpFailure::kClosed:
      return "closed";
    case net::HttpFailure::kProtocol:
      return "protocol";
    case net::HttpFailure::kTooLarge:
      return "too_large";
    case net::HttpFailure::kStatus:
      return "status";
    case net::HttpFailure::kTls:
      return "tls";
    case net::HttpFailure::kNone:
      break;
  }
  return "content";
}

uint32_t Rounded(double count) { return static_cast<uint32_t>(std::lround(std::min(count, 4e9))); }

// Computes freshness when the page is rendered: kept gauges would be as old as their last update. The
// registry can not forget a collector, so this outlives the scraper.
struct Freshness {
  Freshness(const base::Published<fleet::Snapshot>& published, const base::Clock& c, Meters& m)
      : snapshots(&published), clock(c), meters(m) {}

  void Collect() {
    std::lock_guard lock(mutex);
    if (snapshots == nullptr) return;
    const auto snapshot = snapshots->Load();
    const base::Nanos now = clock.Now();
    for (const auto& [key, pool] : snapshot->pools) {
      base::Nanos oldest = 0;
      size_t never = 0;
      size_t refusing = 0;
      for (const EndpointCell* cell : pool->cells) {
        const base::Nanos at = cell->scraped_at();
        refusing += cell->refusing() ? 1 : 0;
        if (at == 0) {
          ++never;
        } else {
          oldest = std::max(oldest, now - at);
        }
      }
      meters.age.With({key}).Set(base::ToSeconds(oldest));
      meters.unscraped.With({key}).Set(static_cast<double>(never));
      meters.refusing.With({key}).Set(static_cast<double>(refusing));
    }
  }
  void Stop() {
    std::lock_guard lock(mutex);
    snapshots = nullptr;
  }

  std::mutex mutex;
  const base::Published<fleet::Snapshot>* snapshots;
  const base::Clock& clock;
  Meters& meters;
};

// Which engine an endpoint is of, and how each one's page is read. Immutable.
struct Engines {
  // A label that names no engine, and none at all, mean `home`. REQUIRES: one of `specs` has that name.
  Engines(std::vector<std::string> by, const std::string& home, std::vector<EngineSpec> specs)
      : labels(std::move(by)), readers(std::move(specs)), home_reader(*readers.Find(home)) {}

  std::string LabelOf(const fleet::Endpoint& endpoint) const {
    for (const std::string& name : labels) {
      const auto found = endpoint.labels.find(name);
      if (found != endpoint.labels.end() && !found->second.empty()) return found->second;
    }
    return {};
  }
  // Null: no engine has the label's name.
  const PageReader* Find(const std::string& label) const {
    return label.empty() ? &home_reader : readers.Find(label);
  }

  std::vector<std::string> labels;  // the first one that is there counts
  EngineReaders readers;
  const PageReader& home_reader;
};

// What the endpoints of a pool share. The references live as long as the registry does.
struct PoolState {
  std::string key;
  base::Counter* scrapes = nullptr;
  base::Gauge* failing = nullptr;
  base::Nanos adapters_full_until = 0;
  std::shared_ptr<const fleet::PoolContent> content;  // whose endpoints are scraped
  std::shared_ptr<const api::EnginePages> pages;      // of its config; null: it says nothing
  std::shared_ptr<const Engines> engines;
  std::vector<std::string> unsaid;  // attributes of its config that no page has said, until that is told
  size_t pages_read = 0;            // good ones, meanwhile
  bool seen = false;
};

struct Target {
  Target(net::Loop& loop, net::HttpFetchOptions options) : fetcher(loop, std::move(options)) {}

  PoolState* pool = nullptr;
  std::string id;  // of the endpoint
  std::string address;
  PagePlace place;
  std::string path;  // what is asked for: the place's, or what a redirect or the engine's JSON led to
  std::string engine_label;
  std::shared_ptr<EndpointCell> cell;
  std::shared_ptr<const Engines> engines;  // its reader is one of theirs
  const PageReader* reader = nullptr;
  net::HttpFetcher fetcher;
  base::LogLimit limit{kLogAgain};
  size_t turn = 0;
  bool asked = false;
  uint32_t left_out = 0;             // turns in a row
  base::Nanos ask_waiting_from = 0;  // not for waiting tokens before
  bool redirected = false;           // this fetch follows a redirect
  bool looked_elsewhere = false;
  bool shares_port = false;  // with requests
  bool failing = false;
  bool failure_logged = false;
  bool had_lora = false;
  std::vector<std::string> models;  // that its last good page said it serves
  bool seen = false;
};

}  // namespace

struct Scraper::Impl {
  Impl(ScraperOptions o, net::Loop& l, fleet::Fleet& f, const base::Clock& c, const base::Log& lg,
       base::Registry& registry)
      : options(std::move(o)),
        loop(l),
        fleet(f),
        clock(c),
        log(lg),
        engines(std::make_shared<Engines>(options.engine_labels, options.default_engine, KnownEngines())),
        meters(std::make_shared<Meters>(registry)),
        freshness(std::make_shared<Freshness>(fleet.published(), clock, *meters)),
        snapshot(fleet.published()),
        timer(loop),
        names_timer(loop) {
    registry.AddCollector([kept_meters = meters, kept = freshness] { kept->Collect(); });
  }
  ~Impl() { freshness->Stop(); }

  void Start() {
    Sync();
    SetTimer();
    AskNewcomers();
  }

  void SetTimer() {
    timer.Every(options.interval / static_cast<base::Nanos>(turns.size()), [this] { Tick(); });
  }

  void Tick() {
    new_adapters_left = kNewAdaptersPerTurn;
    if (fleet.published().version() != synced_version) {
      Sync();
      AskNewcomers();
    }
    fleet.FreeOldSnapshots();
    turn = (turn + 1) % turns.size();
    for (Target* target : turns[turn]) {
      if (target->fetcher.busy()) continue;  // slow; its time-out runs
      if (!Rests(*target)) Ask(*target);
    }
  }

  void Ask(Target& target) {
    target.asked = true;
    target.cell->BeginScrape(clock.Now());
    target.redirected = false;
    Fetch(target);
  }

  // Nothing is known of them: the first ones do not wait for their turn.
  void AskNewcomers() {
    size_t left = kPerTurn;
    for (auto& [key, target] : targets) {
      if (target->asked) continue;
      if (left-- == 0) return;
      Ask(*target);
    }
  }

  // Nothing happens there, as far as we know: an older page does.
  bool Rests(Target& target) const {
    const fleet::EndpointCell& cell = *target.cell;
    const bool idle = cell.scraped_at() != 0 && !target.failing && cell.own() + cell.others() == 0;
    target.left_out = idle && target.left_out < options.idle_turns ? target.left_out + 1 : 0;
    return target.left_out != 0;
  }

  void Fetch(Target& target) {
    target.fetcher.Fetch(
        [this, at = &target](const net::HttpFetcher::Outcome& outcome) { OnPage(*at, outcome); });
  }

  void Ask(Target& target, std::string path) {
    target.path = std::move(path);
    target.fetcher.SetTarget(target.path);
  }

  // ---- Membership.

  void Sync() {
    synced_version = fleet.published().version();
    const auto now = snapshot.Get();
    if (now->pools.size() == pools.size() &&
        std::all_of(now->pools.begin(), now->pools.end(),
                    [this](const auto& entry) { return IsSynced(entry); }))
      return;  // an adapter's name is all that is new
    for (auto& [key, pool] : pools) pool.seen = false;
    for (auto& [key, target] : targets) {
      const auto pool = now->pools.find(target->pool->key);
      target->seen = pool != now->pools.end() && IsSynced(*pool);
    }
    for (const auto& [key, pool] : now->pools) {
      PoolState& state = pools[key];
      if (state.scrapes == nullptr) {
        state.key = key;
        state.scrapes = &meters->scrapes.With({key});
        state.failing = &meters->failing.With({key});
      }
      state.seen = true;
      if (state.engines == nullptr) FindEngines(state);
      if (state.content == pool->content) continue;
      state.content = pool->content;
      for (const fleet::Endpoint& endpoint : pool->endpoints) Keep(state, endpoint);
    }
    for (auto it = targets.begin(); it != targets.end();) {
      if (it->second->seen) {
        ++it;
      } else {
        Leave(*it->second);
        it = targets.erase(it);
      }
    }
    Rebalance();
    std::lock_guard lock(freshness->mutex);  // it sets what is removed here
    for (auto it = pools.begin(); it != pools.end();) {
      if (it->second.seen) {
        ++it;
        continue;
      }
      meters->age.Remove({it->first});
      meters->failing.Remove({it->first});
      meters->unscraped.Remove({it->first});
      meters->refusing.Remove({it->first});
      it = pools.erase(it);
    }
  }

  std::vector<EngineSpec> KnownEngines() const {
    return options.engines.empty() ? BuiltinEngines() : options.engines;
  }

  // By what the pool's config says now. False: that is the same as before.
  bool FindEngines(PoolState& pool) {
    auto pages = options.pages ? options.pages(pool.key) : nullptr;
    const bool same =
        pages == pool.pages || (pages != nullptr && pool.pages != nullptr && *pages == *pool.pages);
    if (pool.engines != nullptr && same) return false;
    pool.pages = std::move(pages);
    pool.engines = pool.pages == nullptr ? engines : EnginesOf(pool.pages);
    pool.unsaid = pool.pages != nullptr ? api::AttributesOf(*pool.pages) : std::vector<std::string>();
    pool.pages_read = 0;
    return true;
  }

  // Made once for all pools of a config.
  std::shared_ptr<const Engines> EnginesOf(const std::shared_ptr<const api::EnginePages>& pages) {
    std::erase_if(made_engines, [](const auto& made) { return made.second.expired(); });
    auto& made = made_engines[pages];
    if (auto there = made.lock()) return there;
    // The reference's older label counts where the config does not name another one.
    std::vector<std::string> labels{pages->label};
    if (pages->label == options.engine_labels.front()) labels = options.engine_labels;
    std::vector<EngineSpec> specs = WithConfig(KnownEngines(), *pages);
    const bool known = std::any_of(specs.begin(), specs.end(), [&](const EngineSpec& spec) {
      return spec.name == pages->default_engine;
    });
    auto engines_of = std::make_shared<const Engines>(
        std::move(labels), known ? pages->default_engine : options.default_engine, std::move(specs));
    made = engines_of;
    return engines_of;
  }

  void PagesChanged() {
    bool changed = false;
    for (auto& [key, pool] : pools) {
      if (!FindEngines(pool)) continue;
      changed = true;
      pool.content.reset();  // all of its endpoints are looked at anew
    }
    if (!changed) return;
    Sync();
    AskNewcomers();
  }

  // Has this pool the endpoints that it had at the last Sync?
  template <typename Entry>
  bool IsSynced(const Entry& entry) const {
    const auto known = pools.find(entry.first);
    return known != pools.end() && known->second.content == entry.second->content;
  }

  void Keep(PoolState& pool, const fleet::Endpoint& endpoint) {
    std::unique_ptr<Target>& slot = targets[{pool.key, endpoint.id}];
    const std::string engine_label = pool.engines->LabelOf(endpoint);
    const PageReader* reader = pool.engines->Find(engine_label);
    const PageReader& home = pool.engines->home_reader;
    std::string problem;
    const PagePlace place =
        PlaceOf(endpoint, options.page, (reader != nullptr ? *reader : home).page(), problem);
    if (slot && slot->cell == endpoint.cell && slot->place == place && slot->engine_label == engine_label &&
        slot->engines == pool.engines) {
      slot->seen = true;
      return;
    }
    if (slot) Leave(*slot);
    endpoint.cell->ForgetAttributes();
    slot = std::make_unique<Target>(loop, net::HttpFetchOptions{.host = place.host,
                                                                .port = place.port,
                                                                .target = place.path,
                                                                .tls = place.https ? Tls() : nullptr,
                                                                .server_name = options.server_name,
                                                                .timeout = options.timeout,
                                                                .max_body = options.max_page});
    Target& target = *slot;
    target.seen = true;
    target.pool = &pool;
    target.id = endpoint.id;
    target.address = endpoint.address;
    target.place = place;
    target.path = place.path;
    target.shares_port = place.port == endpoint.port;
    if (!target.shares_port) endpoint.cell->SetRefusing(false);
    target.engine_label = engine_label;
    target.cell = endpoint.cell;
    target.had_lora = endpoint.cell->lora_max() != 0;
    target.engines = pool.engines;
    target.reader = reader != nullptr ? reader : &home;
    if (reader == nullptr && told_engines.size() < 100 && told_engines.insert(engine_label).second) {
      log.Warn("unknown engine type; it is read as the default engine",
               {{"endpoint", target.address}, {"engine", engine_label}, {"default", home.engine()}});
    }
    if (!problem.empty() && told_places.size() < 100 && told_places.insert(problem).second) {
      log.Warn("an endpoint's own place of its metrics page cannot be; that of all is used",
               {{"endpoint", target.address}, {"problem", problem}});
    }
    TakeTurn(target);
  }

  // Of all https pages. Made when the first one is seen: the system's authorities cost a megabyte.
  const net::TlsContext& Tls() {
    if (tls == nullptr) {
      auto made = net::MakeTlsClient(
          {.ca_pem = ca_pem, .insecure = ca_pem.empty() && options.verification != Verification::kOn});
      FAIRWAY_CHECK(made);  // Create has tried a CA file; without one nothing of the user's is in it
      tls = std::move(*made);
    }
    return tls;
  }

  void TakeTurn(Target& target) {
    const auto emptiest = std::min_element(turns.begin(), turns.end(),
                                           [](const auto& a, const auto& b) { return a.size() < b.size(); });
    target.turn = static_cast<size_t>(emptiest - turns.begin());
    emptiest->push_back(&target);
  }

  // As many turns as the fleet's size asks for, none shorter than 1 ms.
  void Rebalance() {
    const auto most =
        std::clamp<size_t>(static_cast<size_t>(options.interval / base::kMillisecond), 1, kMaxTurns);
    const size_t wanted = std::clamp<size_t>((targets.size() + kPerTurn - 1) / kPerTurn, 1, most);
    if (wanted == turns.size()) return;
    turns.assign(wanted, {});
    turn = 0;
    for (auto& [key, target] : targets) TakeTurn(*target);
    SetTimer();
  }

  void Leave(Target& target) {
    std::erase(turns[target.turn], &target);
    if (!target.models.empty()) fleet.SetServed(target.pool->key, target.id, {});
    if (target.failing) target.pool->failing->Add(-1);
  }

  // ---- Pages.

  void OnPage(Target& target, const net::HttpFetcher::Outcome& outcome) {
    NoteRefusal(target, outcome);
    if (!outcome.location.empty() && Redirect(target, outcome.location)) return;
    if (!outcome.ok) return Failed(target, KindOf(outcome.failure), outcome.error);
    target.reader->Read(outcome.body, sample);
    if (sample.families == 0 && !Redetect(target, outcome.body)) {
      const std::string why = "the page has no metrics of engine " + target.reader->engine();
      Failed(target, "content", why);
      LookElsewhere(target, outcome.body);
      return;
    }
    target.looked_elsewhere = false;
    if (sample.missing + sample.garbage + sample.malformed > 0) meters->extract_errors.Add();
    const fleet::Signals signals = SignalsOf(target);
    TakeModels(target);
    PublishNames();
    target.cell->ApplyScrape(signals, clock.Now());
    for (size_t i = 0; i < sample.custom.size(); ++i)
      target.cell->SetAttribute(target.reader->custom_keys()[i], sample.custom[i]);
    if (!target.pool->unsaid.empty()) LookForUnsaid(target);
    if (target.shares_port) target.cell->PageIsGood();
    target.pool->scrapes->Add();
    if (target.failing) Recovered(target);
    AskWaitingTokens(target);
  }

  // Who decides by an attribute that no page says refuses or scores all alike, and nothing else would say why.
  // It is told once, when every endpoint that can be read was read.
  void LookForUnsaid(Target& target) {
    PoolState& pool = *target.pool;
    for (size_t i = 0; i < sample.custom.size(); ++i) {
      if (std::isfinite(sample.custom[i]))
        std::erase_if(pool.unsaid, [key = target.reader->custom_keys()[i]](const std::string& name) {
          return fleet::PageAttributes::KeyOf(name) == key;
        });
    }
    const auto& endpoints = pool.content->endpoints;
    if (++pool.pages_read < kPagesUntilTold * endpoints.size()) return;
    if (std::any_of(endpoints.begin(), endpoints.end(), [&](const fleet::Endpoint& endpoint) {
          const auto known = targets.find({pool.key, endpoint.id});
          return endpoint.cell->scraped_at() == 0 && known != targets.end() && !known->second->failing;
        }))
      return;
    for (const std::string& name : pool.unsaid)
      log.Warn("no page has the metric of an attribute of the config's: no endpoint has a value",
               {{"pool", pool.key}, {"attribute", name}, {"metric", api::MetricsOf(*pool.pages, name)}});
    pool.unsaid.clear();
  }

  // After a page that shows others' requests: without any there is nothing to be told.
  void AskWaitingTokens(Target& target) {
    const std::string& path = target.reader->waiting_tokens().path;
    if (path.empty() || !target.cell->wants_waiting_tokens() || clock.Now() < target.ask_waiting_from) return;
    target.cell->BeginWaitingTokens();
    target.fetcher.SetTarget(path);
    target.fetcher.Fetch([this, at = &target](const net::HttpFetcher::Outcome& outcome) {
      at->fetcher.SetTarget(at->path);
      OnWaitingTokens(*at, outcome);
    });
  }

  // What fails here is asked for again later. The endpoint's page decides whether it is in order.
  void OnWaitingTokens(Target& target, const net::HttpFetcher::Outcome& outcome) {
    const base::Nanos now = clock.Now();
    if (!outcome.ok) {
      const bool unknown = outcome.status >= 400 && outcome.status < 500;
      target.ask_waiting_from = now + (unknown ? kAskUnknownAgain : kAskFailedAgain);
      if (!unknown) meters->poll_errors.Add();
      return;
    }
    if (const auto tokens = ReadWaitingTokens(outcome.body, target.reader->waiting_tokens()))
      return target.cell->ApplyWaitingTokens(*tokens, now);
    target.ask_waiting_from = now + kAskFailedAgain;
    meters->extract_errors.Add();
  }

  // The server's system refused or reset the connection: so it will a request's, unless its pages have a port
  // of their own. It is back with the first answer, whatever that says; until then silence does not count.
  static void NoteRefusal(Target& target, const net::HttpFetcher::Outcome& outcome) {
    if (outcome.refused && target.shares_port) target.cell->SetRefusing(true);
    if (outcome.status != 0) target.cell->SetRefusing(false);
  }

  // Follows one redirect that stays on the server, and remembers it as long as its page is good.
  bool Redirect(Target& target, std::string_view location) {
    if (target.redirected) return false;
    auto path = RedirectedPath(target.place, target.path, location);
    if (!path) return false;
    target.redirected = true;
    Ask(target, std::move(*path));
    Fetch(target);
    return true;
  }

  // A server without a label whose page is a JSON array: so is /metrics of an engine that has its page
  // elsewhere. Asked there once, and then as before.
  void LookElsewhere(Target& target, std::string_view page) {
    if (target.looked_elsewhere || !target.engine_label.empty() || target.place.path_is_set) return;
    if (!page.starts_with('[')) return;
    const PageReader* other = target.engines->readers.Elsewhere(target.path);
    if (other == nullptr) return;
    target.looked_elsewhere = true;
    target.reader = other;
    Ask(target, other->page().path);
  }

  // A server without a label may still be of another engine than the default. A label is believed.
  bool Redetect(Target& target, std::string_view page) {
    if (!target.engine_label.empty() && target.engines->Find(target.engine_label) != nullptr) return false;
    const PageReader* found = target.engines->readers.Detect(page, sample);
    if (found == nullptr) return false;
    if (detected.insert({target.pool->key, found->engine()}).second) {
      log.Info("engine type taken from the metrics page, as the endpoint has no label that says it",
               {{"pool", target.pool->key}, {"endpoint", target.address}, {"engine", found->engine()}});
    }
    target.reader = found;
    found->Read(page, sample);
    return true;
  }

  void Failed(Target& target, std::string_view kind, std::string_view error) {
    const std::string url = UrlOf(target.place, target.path);
    if (target.path != target.place.path && kind != "connect" && kind != "timeout") {
      Ask(target, target.place.path);
      if (target.looked_elsewhere) target.reader = &target.engines->home_reader;
    }
    meters->errors.With({target.pool->key, kind}).Add();
    meters->poll_errors.Add();
    if (target.failing) return;
    target.failing = true;
    target.pool->failing->Add(1);
    if (!target.limit.Allow(clock.Now())) return;  // a page that comes and goes
    target.failure_logged = true;
    log.Warn("metrics page failed; its last values count until they are stale",
             {{"pool", target.pool->key},
              {"endpoint", target.address},
              {"url", url},
              {"kind", std::string(kind)},
              {"error", std::string(error)}});
  }

  void Recovered(Target& target) {
    target.failing = false;
    target.pool->failing->Add(-1);
    if (!target.failure_logged) return;
    target.failure_logged = false;
    log.Info("metrics page is back", {{"pool", target.pool->key}, {"endpoint", target.address}});
  }

  fleet::Signals SignalsOf(Target& target) {
    fleet::Signals signals;
    if (sample.queued) signals.waiting = Rounded(*sample.queued);
    if (sample.running) signals.running = Rounded(*sample.running);
    if (sample.kv_usage) signals.kv_usage = static_cast<float>(*sample.kv_usage);
    signals.load_unknown = sample.load_unknown;
    signals.kv_unknown = sample.kv_unknown;
    signals.block_size = sample.block_size;
    signals.num_blocks = sample.num_blocks;
    if (sample.has_lora) {
      signals.lora = LoraOf(target);
      target.had_lora = true;
    } else if (target.had_lora && !sample.lora_unknown) {
      // A server that restarted and has loaded nothing yet: its adapters are gone, its slots are not.
      fleet::Signals::Lora lora;
      lora.max = target.cell->lora_max();
      lora.restarted = true;
      signals.lora = lora;
    }
    return signals;
  }

  // Adapters of all the server's engines; slots are counted engine by engine, as an adapter takes one in
  // each.
  fleet::Signals::Lora LoraOf(Target& target) {
    fleet::Signals::Lora lora;
    lora.max = sample.max_lora.value_or(0);
    std::span<const std::string_view> running(sample.running_adapters);
    std::span<const std::string_view> waiting(sample.waiting_adapters);
    for (const LoraEngine& engine : sample.lora_engines) {
      lora.resident_count += AddAdapters(target, running.first(engine.running), lora.running);
      lora.waiting_count += AddAdapters(target, waiting.first(engine.waiting), lora.waiting);
      running = running.subspan(engine.running);
      waiting = waiting.subspan(engine.waiting);
    }
    return lora;
  }

  // How many different ones one engine names, also those that got no number. All of them go to `set`.
  uint32_t AddAdapters(Target& target, std::span<const std::string_view> names, fleet::AdapterSet& set) {
    fleet::AdapterSet mine{};
    uint32_t count = 0;
    for (const std::string_view name : names) {
      const uint32_t id = AdapterId(target, name);
      if (id != fleet::kNoAdapter) {
        if ((mine[id / 64] >> (id % 64) & 1) != 0) continue;
        fleet::AddAdapter(mine, id);
        fleet::AddAdapter(set, id);
      }
      ++count;
    }
    return count;
  }

  void TakeModels(Target& target) {
    if (std::equal(sample.models.begin(), sample.models.end(), target.models.begin(), target.models.end()))
      return;
    target.models.assign(sample.models.begin(), sample.models.end());
    fleet.SetServed(target.pool->key, target.id, target.models);
  }

  // The first at once, then every kNamesPause: hundreds of pages may each name something new.
  void PublishNames() {
    if (names_wait || !fleet.has_new_names()) return;
    fleet.PublishNames();
    names_wait = true;
    names_timer.After(kNamesPause, [this] {
      names_wait = false;
      PublishNames();
    });
  }

  uint32_t AdapterId(Target& target, std::string_view name) {
    const uint32_t known = fleet.FindAdapter(target.pool->key, name);
    if (known != fleet::kNoAdapter || new_adapters_left <= 0) return known;
    const base::Nanos now = clock.Now();
    if (now < target.pool->adapters_full_until) return fleet::kNoAdapter;
    --new_adapters_left;
    const uint32_t id = fleet.NumberAdapter(target.pool->key, name);
    if (id == fleet::kNoAdapter) target.pool->adapters_full_until = now + kAdaptersFullPause;
    return id;
  }

  const ScraperOptions options;
  net::Loop& loop;
  fleet::Fleet& fleet;
  const base::Clock& clock;
  const base::Log log;
  const std::shared_ptr<const Engines> engines;  // of pools whose config says nothing
  std::map<std::shared_ptr<const api::EnginePages>, std::weak_ptr<const Engines>> made_engines;
  std::shared_ptr<Meters> meters;
  std::shared_ptr<Freshness> freshness;
  base::Published<fleet::Snapshot>::Reader snapshot;
  uint64_t synced_version = 0;
  std::map<std::string, PoolState> pools;
  std::map<std::pair<std::string, std::string>, std::unique_ptr<Target>> targets;  // by pool and endpoint id
  std::vector<std::vector<Target*>> turns = std::vector<std::vector<Target*>>(1);
  size_t turn = 0;
  int new_adapters_left = kNewAdaptersPerTurn;
  bool names_wait = false;  // for names_timer
  EngineSample sample;
  std::string ca_pem;
  net::TlsContext tls;  // null: no https page so far
  std::set<std::string> told_engines;
  std::set<std::string> told_places;
  std::set<std::pair<std::string, std::string>> detected;  // pool, engine: told
  net::Timer timer;
  net::Timer names_timer;
};

Scraper::Scraper(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Scraper::~Scraper() = default;

void Scraper::PagesChanged() { impl_->PagesChanged(); }
size_t Scraper::endpoints() const { return impl_->targets.size(); }

base::Result<std::unique_ptr<Scraper>> Scraper::Create(ScraperOptions options, net::Loop& loop,
                                                       fleet::Fleet& fleet, const base::Clock& clock,
                                                       const base::Log& log, base::Registry& registry) {
  const auto fail = [](std::string message) {
    return base::Fail(base::ErrorCode::kInvalidArgument, std::move(message));
  };
  if (options.interval < base::kMillisecond) return fail("the metrics refresh interval must be at least 1ms");
  if (options.timeout < base::kMillisecond) return fail("the metrics time-out must be at least 1ms");
  if (const std::string& path = options.page.path; !path.empty() && path.front() != '/') {
    return fail("the metrics path must begin with \"/\", not \"" + path + "\"");
  }
  if (const std::string why = api::CheckMetricsPath(options.page.path);
      !options.page.path.empty() && !why.empty())
    return fail("the metrics path: " + why);
  if (const std::string why = api::CheckMetricsScheme(options.page.scheme);
      !options.page.scheme.empty() && !why.empty()) {
    return fail("the metrics scheme: " + why + ", not " + api::Quote(options.page.scheme));
  }
  const std::vector<EngineSpec> known = options.engines.empty() ? BuiltinEngines() : options.engines;
  const bool found = std::any_of(known.begin(), known.end(),
                                 [&](const EngineSpec& spec) { return spec.name == options.default_engine; });
  if (!found) {
    std::string names;
    for (const EngineSpec& spec : known) names += (names.empty() ? "" : ", ") + spec.name;
    return fail("no engine is named \"" + options.default_engine + "\"; known are " + names);
  }
  std::string ca_pem;
  net::TlsContext tls;
  if (!options.ca_file.empty() && options.verification == Verification::kOff)
    return fail("a CA file of metrics pages and their certificates not to be verified: give one of them");
  if (!options.ca_file.empty()) {
    const auto text = net::ReadSmallFile(options.ca_file);
    if (!text) return fail("the CA file of metrics pages: " + text.error().message);
    if (text->empty()) return fail("the CA file of metrics pages, " + options.ca_file + ", is empty");
    auto made = net::MakeTlsClient({.ca_pem = *text});
    if (!made) return fail("the CA file of metrics pages, " + options.ca_file + ": " + made.error().message);
    ca_pem = *text;
    tls = std::move(*made);
  }
  auto impl = std::make_unique<Impl>(std::move(options), loop, fleet, clock, log, registry);
  impl->ca_pem = std::move(ca_pem);
  impl->tls = std::move(tls);
  impl->Start();
  return std::unique_ptr<Scraper>(new Scraper(std::move(impl)));
}

}  // namespace fairway::sources::scrape
