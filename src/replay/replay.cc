#include "replay/replay.h"

#include <algorithm>
#include <deque>
#include <utility>

#include "base/clock.h"
#include "replay/servers.h"
#include "replay/traffic.h"

namespace fairway::replay {

using base::Nanos;

namespace {

// Pages are read for a second before the first request comes.
constexpr Nanos kPagesFrom = base::kSecond;
constexpr Nanos kStart = 2 * base::kSecond;
constexpr uint64_t kEventsPerProgress = 1 << 16;

enum class Kind : uint8_t {
  kArrival,     // the next conversation begins
  kAsk,         // a slot's request is due (again): the picker decides
  kDeliver,     // it reaches its server
  kRefused,     // the server's no reaches the picker
  kHeaders,     // the answer's headers do
  kFirstToken,  // its first token does
  kEnd,         // its last token does
  kReset,       // the connection broke
  kTimeout,     // the client gives up
  kEngine,      // an engine's step ends
  kFleet,       // the next event of the fleet
  kMembers,     // the pool's members change
  kPageAsk,     // a picker's next page: asked for,
  kPageRead,    // read by the server,
  kPageCome,    // arrived
  kTell,        // a picker tells the others
  kHear,        // they hear it
};

struct Event {
  Nanos at = 0;
  uint64_t order = 0;  // among those of one moment: as they were made
  Kind kind = Kind::kArrival;
  uint32_t a = 0;                             // slot, engine, picker or server
  uint32_t b = 0;                             // the slot's generation
  bool operator<(const Event& other) const {  // of a heap whose top is the next one
    return at != other.at ? at > other.at : order > other.order;
  }
};

// A request from when it is due to its end; used again.
struct Slot {
  Request request;
  Picked picked;
  uint64_t engine_id = 0;
  Nanos first_token = 0;  // when it reached the picker; 0: not yet
  uint32_t generation = 0;
  uint32_t picker = 0;
  uint32_t choice = 0;  // of picked.servers: where it is
  uint32_t engine = 0;
  uint32_t cached_tokens = 0;  // of the prompt, as the engine tells
  fleet::AnswerLoad load;      // as the engine tells
  uint32_t tries = 0;          // retries of the client's so far
  int status = 0;              // of a refusal
  bool open = false;
  bool picked_now = false;  // the picker holds a ticket for it
  bool at_engine = false;
  bool began = false;  // headers were seen
};

// When a picker reads which page: each server once an interval, at moments that differ between servers and
// pickers. What comes next is found without a search, as the times between asking, reading and arriving are
// always the same.
struct PageRound {
  std::vector<std::pair<Nanos, uint32_t>> turns;  // when in an interval, which server
  uint64_t asked = 0, read = 0, came = 0;         // turns so far
  std::vector<uint8_t> pending;                   // by server: 1 asked for, 2 read
  std::vector<Page> pages;                        // by server
};

}  // namespace

std::string CheckSettings(const Settings& settings) {
  if (settings.pickers < 1 || settings.pickers > kMaxPickers)
    return "pickers: want 1 to " + std::to_string(kMaxPickers);
  if (settings.scrape_interval < base::kMillisecond || settings.scrape_interval > 3600 * base::kSecond)
    return "the scrape interval: want 1ms to 1h";
  if (settings.page_delay < 0 || settings.page_delay >= settings.scrape_interval)
    return "the page delay: want less than the scrape interval";
  if (settings.network_delay < 0 || settings.network_delay > 10 * base::kSecond)
    return "the network delay: want 0 to 10s";
  if (settings.tell_interval != 0 &&
      (settings.tell_interval < base::kMillisecond || settings.tell_interval > 3600 * base::kSecond))
    return "the tell interval: want 0s (never) or 1ms to 1h";
  if (settings.tell_delay < 0 || settings.tell_delay > 10 * base::kSecond)
    return "the tell delay: want 0 to 10s";
  return "";
}

struct Replay::Impl {
  Impl(const Workload& w, const FleetSpec& f, const Policy& policy, const Settings& s, uint64_t seed)
      : workload(w),
        fleet(f),
        settings(s),
        traffic(w, seed),
        servers(w, f, clock, seed),
        members(f.servers.size()) {
    clock.Set(kPagesFrom);
    for (size_t i = 0; i < members.size(); ++i) members[i] = f.servers[i].at_start;
    scheduled.resize(servers.engines());
    base::Random seeds(seed ^ 0x7069636bULL);
    for (uint32_t i = 0; i < settings.pickers; ++i) {
      pickers.push_back(
          policy.NewPicker({w, f, clock, servers, s.scrape_interval, seeds.Next(), s.unseen_ends}));
      pickers.back()->SetMembers(members);
      if (pickers.back()->reads_pages()) StartPages(i, seeds);
    }
    for (uint32_t i = 0; s.tell_interval > 0 && i < settings.pickers; ++i)
      Push(kPagesFrom + static_cast<Nanos>(seeds.Below(static_cast<uint64_t>(s.tell_interval))), Kind::kTell,
           i);
    PushArrival();
    if (!fleet.events.empty()) Push(kStart + fleet.events[0].at, Kind::kFleet, 0);
  }

  void Push(Nanos at, Kind kind, uint32_t a, uint32_t b = 0) {
    events.push_back({at, order++, kind, a, b});
    std::push_heap(events.begin(), events.end());
  }
  void PushSlot(Nanos at, Kind kind, uint32_t slot) { Push(at, kind, slot, slots[slot].generation); }
  Event Pop() {
    std::pop_heap(events.begin(), events.end());
    const Event event = events.back();
    events.pop_back();
    return event;
  }
  Nanos now() const { return clock.Now(); }
  Nanos delay() const { return settings.network_delay; }
  bool Idle() const { return open == 0 && arrivals_over; }
  const TrafficClass& ClassOf(const Slot& slot) const { return workload.classes[slot.request.traffic]; }
  Picker& PickerOf(const Slot& slot) { return *pickers[slot.picker]; }
  uint32_t ServerOf(const Slot& slot) const { return slot.picked.servers[slot.choice]; }

  void Handle(const Event& event);
  void HandleSlot(Kind kind, uint32_t number);

  void PushArrival();
  void Arrive();
  uint32_t Open(Request request);
  void Ask(uint32_t number);
  void Deliver(uint32_t number);
  void Refused(uint32_t number);
  void FirstToken(uint32_t number);
  void Ended(uint32_t number);
  void Reset(uint32_t number);
  void TimedOut(uint32_t number);
  void Again(uint32_t number, End otherwise);
  void Finish(uint32_t number, End end);
  void RunEngine(uint32_t engine, Nanos at);
  void Schedule(uint32_t engine);

  void ChangeFleet(const FleetEvent& event);
  void FleetStep();
  void SetMembers();

  void StartPages(uint32_t picker, base::Random& random);
  Nanos TurnAt(const PageRound& round, uint64_t turn) const;
  void TellOthers(uint32_t picker);
  void HearOf(uint32_t picker);
  void PageAsk(uint32_t picker);
  void PageRead(uint32_t picker);
  void PageCome(uint32_t picker);

  const Workload& workload;
  const FleetSpec& fleet;
  const Settings settings;
  base::ManualClock clock;
  Traffic traffic;
  Servers servers;
  std::vector<bool> members;
  std::vector<std::unique_ptr<Picker>> pickers;
  std::deque<PageRound> rounds;                     // by picker, where it reads pages
  std::vector<std::deque<std::vector<Told>>> told;  // by picker: what is on its way
  std::vector<Event> events;                        // a heap
  std::vector<Nanos> scheduled;                     // by engine: when its event is; 0: there is none
  std::deque<Slot> slots;                           // requests are pointed to: they stay where they are
  std::vector<uint32_t> free_slots;
  std::vector<simulator::EngineEvent> tokens;
  Outcome outcome;
  uint64_t order = 0;
  uint64_t open = 0;
  uint64_t conversations = 0;
  uint64_t pages = 0;
  size_t next_fleet_event = 0;
  bool arrivals_over = false;
  bool stopping = false;
};

void Replay::Impl::PushArrival() {
  const auto due = traffic.NextDue();
  arrivals_over = !due || (settings.max_requests > 0 && conversations >= settings.max_requests);
  if (!arrivals_over) Push(kStart + *due, Kind::kArrival, 0);
}

void Replay::Impl::Arrive() {
  ++conversations;
  const uint32_t slot = Open(traffic.Take());
  PushArrival();
  Ask(slot);
}

uint32_t Replay::Impl::Open(Request request) {
  if (free_slots.empty()) {
    free_slots.push_back(static_cast<uint32_t>(slots.size()));
    slots.emplace_back();
  }
  const uint32_t number = free_slots.back();
  free_slots.pop_back();
  Slot& slot = slots[number];
  slot = {.request = std::move(request), .generation = slot.generation + 1, .open = true};
  // Which replica a request meets has nothing to do with the policy.
  uint64_t state = slot.request.seed + slot.request.turn;
  slot.picker = static_cast<uint32_t>(base::SplitMix64(state) % pickers.size());
  ++open;
  return number;
}

void Replay::Impl::Ask(uint32_t number) {
  Slot& slot = slots[number];
  const TrafficClass& of = ClassOf(slot);
  if (slot.tries == 0 && of.timeout > 0) PushSlot(now() + of.timeout, Kind::kTimeout, number);
  slot.choice = 0;
  slot.began = false;
  ++outcome.totals.decisions;
  slot.picked = PickerOf(slot).Pick(number, {slot.request, of});
  if (slot.picked.kind != Picked::Kind::kPicked)
    return Again(number, slot.picked.kind == Picked::Kind::kShed ? End::kShed : End::kFailed);
  slot.picked_now = true;
  servers.Expect(ServerOf(slot), slot.request);
  PushSlot(now() + delay(), Kind::kDeliver, number);
}

void Replay::Impl::Deliver(uint32_t number) {
  Slot& slot = slots[number];
  const uint32_t server = ServerOf(slot);
  if (!servers.alive(server)) {  // refused: the gateway goes down the list
    servers.Forget(server, slot.request);
    slot.status = 503;
    if (slot.choice + 1 >= slot.picked.count) return PushSlot(now() + delay(), Kind::kRefused, number);
    ++slot.choice;
    servers.Expect(ServerOf(slot), slot.request);
    return PushSlot(now() + 2 * delay(), Kind::kDeliver, number);
  }
  const auto accepted =
      servers.Submit(server, slot.request, uint64_t{slot.generation} << 32 | number, slot.engine);
  if (!accepted) {
    slot.status = accepted.error().code == base::ErrorCode::kInvalidArgument ? 400 : 503;
    return PushSlot(now() + delay(), Kind::kRefused, number);
  }
  slot.engine_id = *accepted;
  if (fleet.servers[server].tells_load) slot.load = servers.LoadOf(server);
  slot.at_engine = true;
  Schedule(slot.engine);
  PushSlot(now() + delay(), Kind::kHeaders, number);
}

void Replay::Impl::Refused(uint32_t number) {
  Slot& slot = slots[number];
  slot.picked_now = false;
  PickerOf(slot).OnHeaders(number, slot.status, ServerOf(slot), settings.unseen_ends);
  if (!settings.unseen_ends) PickerOf(slot).OnEnd(number, {});
  if (slot.status == 400) return Finish(number, End::kFailed);
  Again(number, End::kFailed);
}

void Replay::Impl::FirstToken(uint32_t number) {
  Slot& slot = slots[number];
  slot.first_token = now();
  if (slot.picked_now) PickerOf(slot).OnFirstToken(number);
}

void Replay::Impl::Ended(uint32_t number) {
  Slot& slot = slots[number];
  const Request& request = slot.request;
  if (std::exchange(slot.picked_now, false)) {
    const int64_t input = request.prompt_tokens, output = request.answer_tokens;
    PickerOf(slot).OnEnd(number, {.found = true,
                                  .input_tokens = input,
                                  .output_tokens = output,
                                  .total_tokens = input + output,
                                  .cached_tokens = slot.cached_tokens,
                                  .tells_cached = true});
  }
  std::optional<Request> next = traffic.After(request, now() - kStart);
  Finish(number, End::kAnswered);
  if (!next || next->due >= workload.duration) return;
  const uint32_t following = Open(*std::move(next));
  PushSlot(kStart + slots[following].request.due, Kind::kAsk, following);
}

// The server died with it.
void Replay::Impl::Reset(uint32_t number) {
  Slot& slot = slots[number];
  if (std::exchange(slot.picked_now, false)) {
    if (slot.began) {
      PickerOf(slot).OnAbort(number);
    } else {
      PickerOf(slot).OnHeaders(number, 503, ServerOf(slot), settings.unseen_ends);
      if (!settings.unseen_ends) PickerOf(slot).OnEnd(number, {});
    }
  }
  Again(number, End::kFailed);
}

void Replay::Impl::TimedOut(uint32_t number) {
  Slot& slot = slots[number];
  if (std::exchange(slot.picked_now, false)) PickerOf(slot).OnAbort(number);
  if (slot.at_engine) {
    servers.engine(slot.engine).Abort(slot.engine_id);
  } else if (slot.picked.count > 0) {
    servers.Forget(ServerOf(slot), slot.request);
  }
  Finish(number, End::kTimedOut);
}

// The client tries once more, later, unless it has done so as often as it does.
void Replay::Impl::Again(uint32_t number, End otherwise) {
  Slot& slot = slots[number];
  const TrafficClass& of = ClassOf(slot);
  if (slot.tries >= of.retries) return Finish(number, otherwise);
  const Nanos backoff = of.backoff << std::min<uint32_t>(slot.tries, 16);
  ++slot.tries;
  slot.at_engine = false;
  slot.first_token = 0;
  slot.picked = {};
  PushSlot(now() + backoff, Kind::kAsk, number);
}

void Replay::Impl::Finish(uint32_t number, End end) {
  Slot& slot = slots[number];
  const Request& request = slot.request;
  Record record{.due = request.due,
                .prompt_tokens = request.prompt_tokens,
                .answer_tokens = request.answer_tokens,
                .traffic = static_cast<uint16_t>(request.traffic),
                .end = end,
                .retried = slot.tries > 0};
  if (end == End::kAnswered) {
    record.first_token = static_cast<float>(base::ToSeconds(slot.first_token - kStart - request.due));
    record.total = static_cast<float>(base::ToSeconds(now() - kStart - request.due));
    if (request.answer_tokens > 1)
      record.per_token =
          static_cast<float>(base::ToSeconds(now() - slot.first_token) / (request.answer_tokens - 1));
  }
  outcome.records.push_back(record);
  slot.open = false;
  ++slot.generation;  // what is still on its way to this slot comes to nobody
  slot.request.segments = {};
  free_slots.push_back(number);
  --open;
}

void Replay::Impl::Schedule(uint32_t engine) {
  const Nanos next = servers.engine(engine).NextEventTime();
  if (next == 0 || (scheduled[engine] != 0 && scheduled[engine] <= next)) return;
  scheduled[engine] = next;
  Push(next, Kind::kEngine, engine);
}

void Replay::Impl::RunEngine(uint32_t engine, Nanos at) {
  if (scheduled[engine] != at) return;
  scheduled[engine] = 0;
  tokens.clear();
  servers.engine(engine).AdvanceTo(at, tokens, simulator::Engine::Tell::kFirstAndLast);
  for (const simulator::EngineEvent& token : tokens) {
    const auto slot = static_cast<uint32_t>(token.tag);
    const auto generation = static_cast<uint32_t>(token.tag >> 32);
    if (token.index == 0) {
      if (slots[slot].generation == generation) slots[slot].cached_tokens = token.cached_tokens;
      Push(at + delay(), Kind::kFirstToken, slot, generation);
    }
    if (token.finish != simulator::FinishReason::kNone) Push(at + delay(), Kind::kEnd, slot, generation);
  }
  Schedule(engine);
}

void Replay::Impl::FleetStep() {
  ChangeFleet(fleet.events[next_fleet_event++]);
  if (next_fleet_event < fleet.events.size())
    Push(kStart + fleet.events[next_fleet_event].at, Kind::kFleet, 0);
}

void Replay::Impl::ChangeFleet(const FleetEvent& event) {
  switch (event.kind) {
    case FleetEvent::Kind::kSlowdown:
      servers.SetSlowdown(event.server, event.factor);
      break;
    case FleetEvent::Kind::kJoin:
      if (servers.alive(event.server)) break;
      servers.Start(event.server);
      members[event.server] = true;
      SetMembers();
      break;
    case FleetEvent::Kind::kFail:
      if (!servers.alive(event.server)) break;
      servers.Kill(event.server);
      for (uint32_t i = 0; i < slots.size(); ++i) {
        Slot& slot = slots[i];
        if (!slot.open || !slot.at_engine || ServerOf(slot) != event.server) continue;
        slot.at_engine = false;
        PushSlot(now() + delay(), Kind::kReset, i);
      }
      Push(now() + fleet.unready_after, Kind::kMembers, event.server);
      break;
  }
}

void Replay::Impl::SetMembers() {
  for (const auto& picker : pickers) picker->SetMembers(members);
}

void Replay::Impl::StartPages(uint32_t picker, base::Random& random) {
  PageRound& round = rounds.emplace_back();
  for (uint32_t i = 0; i < servers.size(); ++i)
    round.turns.emplace_back(
        static_cast<Nanos>(random.Below(static_cast<uint64_t>(settings.scrape_interval))), i);
  std::sort(round.turns.begin(), round.turns.end());
  round.pending.resize(servers.size());
  round.pages.resize(servers.size());
  Push(TurnAt(round, 0), Kind::kPageAsk, picker);
  Push(TurnAt(round, 0) + settings.page_delay / 2, Kind::kPageRead, picker);
  Push(TurnAt(round, 0) + settings.page_delay, Kind::kPageCome, picker);
}

Nanos Replay::Impl::TurnAt(const PageRound& round, uint64_t turn) const {
  return kPagesFrom + static_cast<Nanos>(turn / round.turns.size()) * settings.scrape_interval +
         round.turns[turn % round.turns.size()].first;
}

void Replay::Impl::PageAsk(uint32_t picker) {
  PageRound& round = rounds[picker];
  const uint32_t server = round.turns[round.asked % round.turns.size()].second;
  if (members[server]) {
    pickers[picker]->BeginPage(server);
    round.pending[server] = 1;
    ++pages;
  }
  Push(TurnAt(round, ++round.asked), Kind::kPageAsk, picker);
}

void Replay::Impl::TellOthers(uint32_t picker) {
  told.resize(pickers.size());
  told[picker].push_back(pickers[picker]->Tell());
  Push(now() + settings.tell_delay, Kind::kHear, picker);
  Push(now() + settings.tell_interval, Kind::kTell, picker);
}

void Replay::Impl::HearOf(uint32_t picker) {
  for (uint32_t i = 0; i < pickers.size(); ++i)
    if (i != picker) pickers[i]->Hear(picker, told[picker].front());
  told[picker].pop_front();
}

void Replay::Impl::PageRead(uint32_t picker) {
  PageRound& round = rounds[picker];
  const uint32_t server = round.turns[round.read % round.turns.size()].second;
  if (round.pending[server] == 1 && servers.alive(server)) {
    servers.ReadPage(server, round.pages[server]);
    round.pending[server] = 2;
  }
  Push(TurnAt(round, ++round.read) + settings.page_delay / 2, Kind::kPageRead, picker);
}

void Replay::Impl::PageCome(uint32_t picker) {
  PageRound& round = rounds[picker];
  const uint32_t server = round.turns[round.came % round.turns.size()].second;
  const uint8_t pending = std::exchange(round.pending[server], 0);
  if (pending == 2) pickers[picker]->ApplyPage(server, round.pages[server]);
  Push(TurnAt(round, ++round.came) + settings.page_delay, Kind::kPageCome, picker);
}

void Replay::Impl::HandleSlot(Kind kind, uint32_t number) {
  Slot& slot = slots[number];
  switch (kind) {
    case Kind::kAsk:
      return Ask(number);
    case Kind::kDeliver:
      return Deliver(number);
    case Kind::kRefused:
      return Refused(number);
    case Kind::kHeaders:
      if (!slot.at_engine) return;  // the server died meanwhile
      slot.began = true;
      if (slot.load.waiting) PickerOf(slot).OnLoad(number, slot.load);
      PickerOf(slot).OnHeaders(number, 200, ServerOf(slot), settings.unseen_ends);
      slot.picked_now = !settings.unseen_ends;
      return;
    case Kind::kFirstToken:
      return FirstToken(number);
    case Kind::kEnd:
      return Ended(number);
    case Kind::kReset:
      return Reset(number);
    default:
      return TimedOut(number);
  }
}

void Replay::Impl::Handle(const Event& event) {
  switch (event.kind) {
    case Kind::kArrival:
      return Arrive();
    case Kind::kEngine:
      return RunEngine(event.a, event.at);
    case Kind::kFleet:
      return FleetStep();
    case Kind::kMembers:
      if (servers.alive(event.a)) return;  // it is back already
      members[event.a] = false;
      return SetMembers();
    case Kind::kPageAsk:
      return PageAsk(event.a);
    case Kind::kPageRead:
      return PageRead(event.a);
    case Kind::kPageCome:
      return PageCome(event.a);
    case Kind::kTell:
      return TellOthers(event.a);
    case Kind::kHear:
      return HearOf(event.a);
    default:
      if (slots[event.a].open && slots[event.a].generation == event.b) HandleSlot(event.kind, event.a);
  }
}

Replay::Replay(const Workload& workload, const FleetSpec& fleet, const Policy& policy,
               const Settings& settings, uint64_t seed)
    : impl_(std::make_unique<Impl>(workload, fleet, policy, settings, seed)) {}
Replay::~Replay() = default;

Replay::Outcome Replay::Run(const Progress& progress) {
  Impl& impl = *impl_;
  const Nanos last = kStart + impl.workload.duration + impl.settings.drain;
  for (uint64_t count = 1; !impl.Idle() && impl.events.front().at <= last; ++count) {
    const Event event = impl.Pop();
    impl.clock.Set(event.at);
    impl.Handle(event);
    if (count % kEventsPerProgress == 0 && progress &&
        !progress(impl.now() - kStart, impl.outcome.records.size() + impl.open))
      break;
  }
  for (uint32_t i = 0; i < impl.slots.size(); ++i) {
    if (!impl.slots[i].open) continue;
    if (impl.slots[i].picked_now) impl.PickerOf(impl.slots[i]).OnAbort(i);
    impl.Finish(i, End::kUnfinished);
  }
  RunTotals& totals = impl.outcome.totals;
  totals.seconds = base::ToSeconds(impl.now() - kStart);
  const double watched = base::ToSeconds(impl.now() - kPagesFrom);
  if (watched > 0)
    totals.pages_per_second =
        static_cast<double>(impl.pages) / watched / static_cast<double>(impl.servers.size());
  impl.servers.AddTo(totals);
  return std::move(impl.outcome);
}

}  // namespace fairway::replay
