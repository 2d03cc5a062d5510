#include "replay/production.h"

#include <algorithm>
#include <array>
#include <set>
#include <unordered_map>
#include <utility>
#include <variant>

#include "base/metrics.h"
#include "base/strings.h"
#include "fleet/fleet.h"
#include "fleet/peer_loads.h"
#include "payload/request.h"
#include "routing/router.h"
#include "scheduling/plugin.h"

namespace fairway::replay {

namespace {

constexpr char kPoolName[] = "pool";
constexpr uint16_t kPort = 8000;

std::string AddressOf(uint32_t server) {
  return "10.0." + std::to_string(server >> 8) + "." + std::to_string(server & 255);
}

routing::RouterOptions OptionsOf(const Policy& policy, base::Nanos scrape_interval) {
  routing::RouterOptions options;
  options.scheduling.fresh_for = std::max(base::kSecond, 4 * scrape_interval);  // as `fairway epp` has it
  SetParameters(policy, options.scheduling);
  if (policy.compile) options.config = policy.compile();
  return options;
}

// What a cluster would hold for this workload, but for the servers.
api::Manifests ManifestsOf(const Policy& policy, const Workload& workload) {
  api::Manifests out;
  api::InferencePool pool;
  pool.meta.name = kPoolName;
  pool.group = policy.declares_models ? "inference.networking.x-k8s.io" : "inference.networking.k8s.io";
  pool.selector = {{"app", "server"}};
  pool.target_ports = {kPort};
  out.pools.push_back(pool);
  std::set<std::string> seen;
  for (const TrafficClass& traffic : workload.classes) {
    if (!policy.declares_models && traffic.priority) {
      api::InferenceObjective objective;
      objective.meta.name = traffic.name;
      objective.group = pool.group;
      objective.priority = *traffic.priority;
      objective.pool = {.group = pool.group, .name = kPoolName};
      out.objectives.push_back(objective);
    }
    for (uint32_t i = 0; policy.declares_models && i < std::max(1u, traffic.adapters); ++i) {
      api::InferenceModel model;
      model.model_name = traffic.ModelName(i);
      if (!seen.insert(model.model_name).second) continue;
      model.meta.name = "model-" + std::to_string(seen.size());
      model.criticality = traffic.criticality;
      model.pool_name = kPoolName;
      out.models.push_back(model);
    }
  }
  return out;
}

class Production final : public Picker {
 public:
  Production(const Policy& policy, const PickerSetup& setup)
      : setup_(setup),
        manifests_(ManifestsOf(policy, setup.workload)),
        router_(fleet_.published(), setup.clock, registry_, OptionsOf(policy, setup.scrape_interval)),
        cells_(setup.fleet.servers.size()) {
    for (uint32_t i = 0; i < cells_.size(); ++i) {
      addresses_.push_back(AddressOf(i) + ":" + std::to_string(kPort));
      by_address_.emplace(addresses_.back(), i);
    }
    worker_ = router_.NewWorker(setup.seed);
  }

  Picked Pick(uint32_t slot, const Asked& asked) override {
    routing::RequestInput input;
    WriteBody(asked);
    scanner_.Reset(payload::Api::kCompletions);
    scanner_.Feed(body_);
    scanner_.Finish();
    input.request_id = "";
    input.shows_answer = !setup_.unseen_ends;
    input.body = &scanner_;
    const auto prompt = static_cast<uint64_t>(asked.request.prompt_tokens * asked.traffic.bytes_per_token);
    input.unseen_prompt_bytes = prompt - std::min(prompt, scanner_.fields().prompt_bytes);
    input.body_bytes = body_.size() + input.unseen_prompt_bytes;
    if (router_.wants_prefixes()) {
      HashPrompt(asked);
      input.unseen_prompt = &hasher_;
    }
    if (asked.traffic.priority) input.objective = asked.traffic.name;
    auto begun = router_.Begin(*worker_, input);
    Picked picked;
    if (const auto* rejection = std::get_if<routing::Rejection>(&begun)) {
      picked.kind = rejection->status == 429 ? Picked::Kind::kShed : Picked::Kind::kNobody;
      return picked;
    }
    if (routing::Router::HasPutOff(*worker_)) routing::Router::RunPutOff(*worker_);
    routing::Ticket& ticket = std::get<routing::Ticket>(begun);
    picked.kind = Picked::Kind::kPicked;
    for (const std::string_view address : base::Split(ticket.destinations(), ',')) {
      if (picked.count == Picked::kMost) break;
      picked.servers[picked.count++] = by_address_.find(address)->second;
    }
    if (tickets_.size() <= slot) tickets_.resize(slot + 1);
    tickets_[slot] = std::move(ticket);
    return picked;
  }

  void OnHeaders(uint32_t slot, int status, uint32_t server, bool detach) override {
    tickets_[slot].OnResponseHeaders(status, addresses_[server], true);
    if (!detach) return;
    tickets_[slot].Detach();
    tickets_[slot] = {};
  }
  void OnLoad(uint32_t slot, const fleet::AnswerLoad& load) override { tickets_[slot].OnLoad(load); }
  void OnFirstToken(uint32_t slot) override { tickets_[slot].OnResponseBody(kEventBytes); }
  void OnEnd(uint32_t slot, const payload::Usage& usage) override {
    tickets_[slot].OnUsage(usage);
    tickets_[slot].OnComplete();
    tickets_[slot] = {};
  }
  void OnAbort(uint32_t slot) override {
    tickets_[slot].Abort();
    tickets_[slot] = {};
  }

  void SetMembers(const std::vector<bool>& members) override {
    manifests_.endpoints.clear();
    for (uint32_t i = 0; i < members.size(); ++i) {
      if (!members[i]) continue;
      api::Endpoint endpoint;
      endpoint.name = setup_.fleet.servers[i].name;
      endpoint.address = AddressOf(i);
      endpoint.port = kPort;
      endpoint.labels = {{"app", "server"}};
      manifests_.endpoints.push_back(std::move(endpoint));
    }
    fleet_.Apply(manifests_);
    for (auto& cell : cells_) cell = nullptr;
    snapshot_ = fleet_.published().Load();
    for (const fleet::Endpoint& endpoint : Pool().endpoints)
      cells_[by_address_.find(endpoint.address)->second] = endpoint.cell;
  }

  bool reads_pages() const override { return true; }
  void BeginPage(uint32_t server) override {
    cells_[server]->BeginScrape(setup_.clock.Now());
    cells_[server]->BeginWaitingTokens();
  }
  void ApplyPage(uint32_t server, const Page& page) override {
    if (!cells_[server]) return;
    fleet::Signals signals;
    signals.waiting = page.waiting;
    signals.running = page.running;
    signals.kv_usage = static_cast<float>(page.kv_usage);
    signals.block_size = page.block_size;
    signals.num_blocks = page.num_blocks;
    if (page.has_lora) {
      fleet::Signals::Lora& lora = signals.lora.emplace(fleet::Signals::Lora{});
      lora.max = page.max_loras;
      lora.resident_count = AddAdapters(page.running_adapters, lora.running);
      lora.waiting_count = AddAdapters(page.waiting_adapters, lora.waiting);
    }
    fleet::EndpointCell& cell = *cells_[server];
    cell.ApplyScrape(signals, setup_.clock.Now());
    if (page.waiting_tokens && cell.wants_waiting_tokens())
      cell.ApplyWaitingTokens(*page.waiting_tokens, setup_.clock.Now());
  }

  std::vector<Told> Tell() override {
    std::vector<Told> told;
    const auto find = [&](const fleet::OwnLoads::Endpoint& endpoint) -> Told& {
      return told.emplace_back(
          Told{.server = by_address_.find(endpoint.address)->second, .load = endpoint.load, .placed = {}});
    };
    own_loads_.Look(*snapshot_, setup_.clock.Now(), find);
    for (const auto& endpoint : own_loads_.endpoints()) {
      std::vector<uint64_t> placed;
      OfPlacements([&](const scheduling::Placements& p) {
        p.SetTelling(true);
        p.TakeUntold(*endpoint.cell, placed);
      });
      if (!placed.empty()) find(endpoint).placed = std::move(placed);
    }
    return told;
  }
  void Hear(uint32_t from, const std::vector<Told>& told) override {
    peer_loads_.Refresh();
    for (const Told& t : told) {
      peer_loads_.Hear(from, Pool().key, addresses_[t.server], t.load);
      if (!cells_[t.server]) continue;
      for (size_t at = 0; at < t.placed.size(); at += 1 + t.placed[at])
        OfPlacements([&](const scheduling::Placements& p) {
          p.PlacedByPeer(*cells_[t.server], std::span(t.placed).subspan(at + 1, t.placed[at]));
        });
    }
  }

 private:
  template <typename Do>
  void OfPlacements(Do tell) {
    const auto configs = router_.configs();
    for (const auto& instance : configs->Of(Pool().key).plugins)
      if (const auto* p = dynamic_cast<const scheduling::Placements*>(instance->plugin.get())) tell(*p);
  }
  static constexpr uint64_t kEventBytes = 200;  // of a streamed token

  const fleet::PoolSnapshot& Pool() const { return *snapshot_->FindPool(""); }

  // A body as small as it can be: what is long in a real one has its length in the input.
  void WriteBody(const Asked& asked) {
    body_ = "{\"model\":\"";
    body_ += asked.traffic.ModelName(asked.request.adapter);
    body_ += "\",\"stream\":true,\"prompt\":\"x\"}";
  }

  // As if it were text: equal segments after equal segments have equal bytes.
  void HashPrompt(const Asked& asked) {
    hasher_.Reset();
    hasher_.BeginPart(payload::PromptHasher::kMain);
    std::array<uint64_t, 512> text;
    for (const simulator::PromptSegment& segment : asked.request.segments) {
      auto left = static_cast<size_t>(segment.tokens * asked.traffic.bytes_per_token);
      for (uint64_t word = 0; left > 0;) {
        for (uint64_t& out : text)
          out = (segment.content + 1) * 0x9e3779b97f4a7c15 ^ ++word * 0xbf58476d1ce4e5b9;
        const size_t size = std::min(left, sizeof text);
        hasher_.Add({reinterpret_cast<const char*>(text.data()), size});
        left -= size;
      }
    }
    hasher_.EndPart();
    hasher_.Finish(false);
  }

  uint32_t AddAdapters(const std::vector<std::string>& names, fleet::AdapterSet& set) {
    for (const std::string& name : names) {
      uint32_t id = Pool().AdapterId(name);
      if (id == fleet::kNoAdapter) {
        id = fleet_.InternAdapter(Pool().key, name);
        snapshot_ = fleet_.published().Load();
      }
      if (id != fleet::kNoAdapter) fleet::AddAdapter(set, id);
    }
    return static_cast<uint32_t>(names.size());
  }

  const PickerSetup setup_;
  api::Manifests manifests_;
  base::Registry registry_;
  fleet::Fleet fleet_;
  routing::Router router_;
  std::shared_ptr<const fleet::Snapshot> snapshot_;
  std::vector<std::shared_ptr<fleet::EndpointCell>> cells_;  // by server; null: not in the pool
  std::vector<std::string> addresses_;
  std::unordered_map<std::string, uint32_t, base::StringHash, std::equal_to<>> by_address_;
  std::unique_ptr<routing::Worker> worker_;
  fleet::OwnLoads own_loads_;
  fleet::PeerLoads peer_loads_{fleet_.published()};
  std::vector<routing::Ticket> tickets_;  // by slot
  payload::RequestScanner scanner_{payload::Api::kCompletions};
  std::string body_;
  payload::PromptHasher hasher_;
};

}  // namespace

std::string WithoutData(const scheduling::Config& config) {
  std::set<uint16_t> of_pages;  // columns of custom metrics
  std::vector<std::string> by_events;
  for (const auto& instance : config.plugins) {
    const auto* plugin = instance->plugin.get();
    if (dynamic_cast<const scheduling::PageSettings*>(plugin) != nullptr)
      for (const scheduling::Column made : instance->makes) of_pages.insert(made.id);
    if (dynamic_cast<const scheduling::KvEventsReader*>(plugin) != nullptr)
      by_events.push_back(instance->name);
  }
  std::vector<std::string> by_pages;
  for (const auto& instance : config.plugins) {
    if (std::any_of(instance->reads.begin(), instance->reads.end(),
                    [&](const scheduling::Column read) { return of_pages.contains(read.id); }))
      by_pages.push_back(instance->name);
  }
  std::string text;
  if (!by_pages.empty()) text += "no custom metrics (read by " + base::Join(by_pages, ", ") + ")";
  if (!by_events.empty())
    text += std::string(text.empty() ? "" : ", ") + "no KV events and no tokens (read by " +
            base::Join(by_events, ", ") + ": prompts are compared by their text)";
  return text;
}

std::unique_ptr<Picker> MakeProduction(const Policy& policy, const PickerSetup& setup) {
  return std::make_unique<Production>(policy, setup);
}

}  // namespace fairway::replay
