#include "sources/kv_events/kv_events.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <map>
#include <mutex>
#include <utility>

#include "net/address.h"
#include "net/loop.h"
#include "sources/kv_events/central.h"

namespace fairway::sources::kv_events {
namespace {

using Step = base::SeriesReader::Step;

constexpr base::Nanos kJudgeEvery = base::kSecond;
constexpr base::Nanos kTickEvery = base::kSecond / 10;

// What the metrics page shows of one engine; it may be read after its subscriber is gone.
struct Shown {
  std::vector<std::string> labels;  // pool, endpoint, address
  std::atomic<Standing> standing{Standing::kWaiting};
  std::atomic<int64_t> held{-1};  // tokens; below 0: not known
};

// Thread-safe. The registry cannot forget a family, so this outlives the events.
class Board {
 public:
  using List = std::vector<std::shared_ptr<const Shown>>;
  std::shared_ptr<const List> list() const {
    const std::lock_guard lock(mutex_);
    return list_;
  }
  void Set(List list) {
    auto next = std::make_shared<const List>(std::move(list));
    const std::lock_guard lock(mutex_);
    list_ = std::move(next);
  }

 private:
  mutable std::mutex mutex_;
  std::shared_ptr<const List> list_ = std::make_shared<const List>();
};

class BoardReader final : public base::SeriesReader {
 public:
  BoardReader(std::shared_ptr<const Board::List> list, bool held) : list_(std::move(list)), held_(held) {}
  Step Next(base::Series& out) override {
    if (next_ == list_->size()) return Step::kEnd;
    const Shown& shown = *(*list_)[next_++];
    out.labels = shown.labels;
    out.value = 1;
    if (!held_) {
      out.labels.emplace_back(NameOf(shown.standing.load(std::memory_order_relaxed)));
      return Step::kSeries;
    }
    const int64_t tokens = shown.held.load(std::memory_order_relaxed);
    out.value = static_cast<double>(tokens);
    return tokens < 0 ? Step::kNothing : Step::kSeries;
  }

 private:
  const std::shared_ptr<const Board::List> list_;
  const bool held_;
  size_t next_ = 0;
};

void AddBoard(base::Registry& registry, const std::shared_ptr<Board>& board) {
  registry.AddComputed(
      {.name = "fairway_kv_events_endpoint",
       .help = "1 for how the KV events of the endpoint stand: waiting, followed, unreachable, silent, "
               "other_topic, unreadable, unmatched.",
       .labels = {"pool", "endpoint", "address", "standing"}},
      base::MetricType::kGauge, [board] { return std::make_unique<BoardReader>(board->list(), false); });
  registry.AddComputed({.name = "fairway_kv_events_held_tokens",
                        .help = "Tokens in the endpoint's prefix cache, counted from its KV events.",
                        .labels = {"pool", "endpoint", "address"}},
                       base::MetricType::kGauge,
                       [board] { return std::make_unique<BoardReader>(board->list(), true); });
}

// With what engines that dial may call themselves in their topics; `$(POD_IP):8000` has no brackets.
CentralPorts::Engine Dialling(const Publisher& publisher, Subscriber* subscriber) {
  const SubscriberOptions& options = publisher.options;
  const std::string port = std::to_string(options.endpoint_port);
  return {.addresses = {publisher.address, options.host, options.host + ":" + port},
          .names = {publisher.name, publisher.endpoint},
          .subscriber = subscriber};
}

uint64_t Requests(const fleet::PickTally& picks) {
  uint64_t all = 0;
  for (uint32_t number = 0; number < fleet::PickTally::kNumbers; ++number) all += picks.Get(number);
  return all;
}

}  // namespace

struct KvEvents::Impl {
  struct Followed {
    Publisher publisher;
    std::shared_ptr<Shown> shown = std::make_shared<Shown>();
    std::unique_ptr<Subscriber> subscriber;
  };
  using Key = std::pair<std::string, std::string>;

  Impl(const base::Clock& c, const base::Log& l, base::Registry& r, Learned le)
      : clock(c), log(l), registry(r), learned(std::move(le)) {}

  // ---- On the thread of events.
  void Follow(std::vector<Publisher> publishers) {
    std::map<Key, std::unique_ptr<Followed>> next;
    for (Publisher& publisher : publishers) {
      Key key{publisher.pool, publisher.endpoint};
      const auto found = followed.find(key);
      const bool stays = found != followed.end() && found->second != nullptr &&
                         found->second->publisher.options == publisher.options &&
                         found->second->publisher.cell == publisher.cell;
      if (stays) found->second->subscriber->TellAgain();
      next[std::move(key)] = stays ? std::move(found->second) : Begin(std::move(publisher));
    }
    std::vector<CentralPorts::Engine> engines;
    engines.reserve(next.size());
    for (const auto& [key, one] : next) engines.push_back(Dialling(one->publisher, one->subscriber.get()));
    central->Set(engines);
    followed = std::move(next);
    Board::List list;
    for (const auto& [key, one] : followed) list.push_back(one->shown);
    board->Set(std::move(list));
  }

  Changes ChangesOf(const Followed& one) const {
    Changes changes{.emptied = [this, &one] { learned.emptied(one.publisher); },
                    .capacity = [this, &one](uint64_t tokens) { learned.capacity(one.publisher, tokens); }};
    changes.stopping = [stopping = learned.stopping] { return stopping->load(std::memory_order_relaxed); };
    if (learned.event)
      changes.event = [this, &one](const KvEvent& event) { learned.event(one.publisher, event); };
    if (learned.knows) changes.knows = [this, &one](bool all) { learned.knows(one.publisher, all); };
    if (learned.why_unmatched)
      changes.why_unmatched = [this, &one] { return learned.why_unmatched(one.publisher); };
    return changes;
  }

  std::unique_ptr<Followed> Begin(Publisher publisher) {
    auto made = std::make_unique<Followed>();
    Followed& one = *made;
    one.shown->labels = {publisher.pool, publisher.name, publisher.address};
    one.publisher = std::move(publisher);
    one.subscriber = std::make_unique<Subscriber>(thread->loop(), one.publisher.options, clock, log, *meters,
                                                  ChangesOf(one));
    return made;
  }

  void Judge() {
    central->Judge();
    for (const auto& [key, one] : followed) {
      one->subscriber->Judge(Requests(*one->publisher.picks));
      one->shown->standing.store(one->subscriber->standing(), std::memory_order_relaxed);
      const auto tokens = one->subscriber->held_tokens();
      one->shown->held.store(tokens ? static_cast<int64_t>(*tokens) : -1, std::memory_order_relaxed);
    }
  }

  std::vector<EngineState> States(size_t most) const {
    std::vector<EngineState> states;
    for (const auto& [key, one] : followed) {
      if (states.size() == most) break;
      const Subscriber& subscriber = *one->subscriber;
      states.push_back({.pool = one->publisher.pool,
                        .name = one->publisher.name,
                        .address = one->publisher.address,
                        .cell = one->publisher.cell,
                        .standing = subscriber.standing(),
                        .reason = subscriber.reason(),
                        .connected = subscriber.connected(),
                        .fed = subscriber.fed(),
                        .replaying = subscriber.replaying(),
                        .options = subscriber.options(),
                        .seen = subscriber.seen(),
                        .held_tokens = subscriber.held_tokens(),
                        .capacity_tokens = subscriber.capacity_tokens()});
    }
    return states;
  }

  // ---- On the owner's.
  void Start() {
    meters = std::make_unique<Meters>(registry);
    gauges = std::make_unique<CentralPorts::Gauges>(registry);
    AddBoard(registry, board);
    thread = std::make_unique<net::LoopThread>("kv-events");
    thread->loop().Post([this] {
      central = std::make_unique<CentralPorts>(thread->loop(), clock, log, *meters, *gauges);
      judge = std::make_unique<net::Timer>(thread->loop());
      judge->Every(kJudgeEvery, [this] { Judge(); });
      tick = std::make_unique<net::Timer>(thread->loop());
      if (learned.tick) tick->Every(kTickEvery, [this] { learned.tick(clock.Now()); });
    });
    looked_at.store(&thread->loop(), std::memory_order_release);
  }

  void Stop() {
    if (thread == nullptr) return;
    learned.stopping->store(true, std::memory_order_relaxed);
    std::promise<void> done;
    thread->loop().Post([&] {
      judge.reset();
      tick.reset();
      central.reset();
      followed.clear();
      board->Set({});
      done.set_value();
    });
    done.get_future().wait();
    thread->Join();
  }

  const base::Clock& clock;
  const base::Log log;
  base::Registry& registry;
  const Learned learned;
  const std::shared_ptr<Board> board = std::make_shared<Board>();
  std::unique_ptr<Meters> meters;
  std::unique_ptr<CentralPorts::Gauges> gauges;
  std::unique_ptr<net::LoopThread> thread;     // null: nothing was ever followed
  std::atomic<net::Loop*> looked_at{nullptr};  // the thread's, for others
  // The thread's.
  std::unique_ptr<net::Timer> judge, tick;
  std::unique_ptr<CentralPorts> central;
  std::map<Key, std::unique_ptr<Followed>> followed;
};

KvEvents::KvEvents(const base::Clock& clock, const base::Log& log, base::Registry& registry, Learned learned)
    : impl_(std::make_unique<Impl>(clock, log, registry, std::move(learned))) {}
KvEvents::~KvEvents() { impl_->Stop(); }

void KvEvents::Follow(std::vector<Publisher> publishers) {
  if (impl_->thread == nullptr) {
    if (publishers.empty()) return;
    impl_->Start();
  }
  impl_->thread->loop().Post([impl = impl_.get(), publishers = std::move(publishers)]() mutable {
    impl->Follow(std::move(publishers));
  });
}

std::optional<std::vector<EngineState>> KvEvents::Look(size_t most, size_t& left_out) const {
  left_out = 0;
  net::Loop* loop = impl_->looked_at.load(std::memory_order_acquire);
  if (loop == nullptr) return std::vector<EngineState>();
  using Answer = std::pair<std::vector<EngineState>, size_t>;
  auto promise = std::make_shared<std::promise<Answer>>();
  auto answer = promise->get_future();
  loop->Post([promise, impl = impl_.get(), most] {
    promise->set_value({impl->States(most), impl->followed.size() - std::min(most, impl->followed.size())});
  });
  if (answer.wait_for(std::chrono::seconds(1)) != std::future_status::ready) return std::nullopt;
  Answer got = answer.get();
  left_out = got.second;
  return std::move(got.first);
}

}  // namespace fairway::sources::kv_events
