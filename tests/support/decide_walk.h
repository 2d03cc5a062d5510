// Bytes as the life of a picker: pools that come and go, pages, configs, and requests that begin and end in
// any order, with a plain model beside it that says what the ledger has to be. What is wrong stops the
// process: fuzz/decide_fuzz.cc makes the bytes up, src/routing/walk_test.cc draws them.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "api/manifests.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "base/result.h"
#include "base/strings.h"
#include "fleet/fleet.h"
#include "payload/request.h"
#include "routing/router.h"
#include "scheduling/config.h"
#include "scheduling/plugin.h"

namespace fairway::tests {

class DecideWalk {
 public:
  explicit DecideWalk(std::span<const uint8_t> bytes) : bytes_(bytes) {}

  void Run() {
    Begin();
    while (!bytes_.empty()) {
      Step();
      CheckLedger();
    }
    while (!open_.empty()) End(open_.size() - 1, Byte());
    CheckLedger();
    for (const auto& cell : cells_) {
      FAIRWAY_CHECK(cell->own() == 0 && cell->load().own_work().tokens == 0);
    }
  }
  size_t picked() const { return picked_; }
  size_t refused() const { return refused_; }

 private:
  static constexpr size_t kMost = 12;  // endpoints
  static constexpr const char* kKey = "default/pool";
  static constexpr std::array<std::string_view, 6> kModels = {"chat",   "code",    "lora-a",
                                                              "lora-b", "made-up", ""};

  struct Open {
    routing::Ticket ticket;
    std::shared_ptr<fleet::EndpointCell> cell;  // that has its place; null: given back
  };

  uint8_t Byte() {
    if (bytes_.empty()) return 0;
    const uint8_t first = bytes_.front();
    bytes_ = bytes_.subspan(1);
    return first;
  }
  size_t Below(size_t n) { return Byte() % n; }

  std::shared_ptr<const fleet::PoolSnapshot> Pool() const {
    const auto& pools = fleet_.published().Load()->pools;
    const auto found = pools.find(kKey);
    return found == pools.end() ? nullptr : found->second;
  }

  void Begin() {
    const uint8_t how = Byte();
    has_models_ = how & 1;
    routing::RouterOptions options;
    options.keep_scores = how & 2;
    if (how & 4) options.explain = [](std::string_view) {};
    options.scheduling.profile = scheduling::kProfiles[(how >> 3) % scheduling::kProfiles.size()];
    options.scheduling.max_choices = 1 + (how >> 5);
    max_choices_ = options.scheduling.max_choices;
    members_ = 1 + Below(1 << 8) * 16 + Below(16);
    Apply();
    router_ = std::make_unique<routing::Router>(fleet_.published(), clock_, registry_, std::move(options));
    worker_ = router_->NewWorker(1 + Byte());
  }

  // ---- What happens.

  void Step() {
    const uint8_t what = Byte();
    switch (what % 16) {
      case 0:
        members_ ^= size_t{1} << Below(kMost);
        return Apply();
      case 1:
        return clock_.Advance(static_cast<base::Nanos>(Byte()) * Byte() * base::kMillisecond);
      case 2:
      case 3:
        return Page();
      case 4:
        return Swap();
      case 5:
        return Mark();
      case 6:
      case 7:
      case 8:
      case 9:
        if (!open_.empty()) Answer(Below(open_.size()));
        return;
      case 10:
      case 11:
        if (!open_.empty()) End(Below(open_.size()), Byte());
        return;
      default:
        return Ask();
    }
  }

  void Apply() {
    api::Manifests m;
    api::InferencePool pool;
    pool.meta.name = "pool";
    pool.selector = {{"app", "x"}};
    pool.target_ports = {8000};
    m.pools.push_back(pool);
    for (size_t i = 0; i < kMost; ++i) {
      if ((members_ >> i & 1) == 0) continue;
      api::Endpoint endpoint;
      endpoint.name = "e" + std::to_string(i);
      endpoint.address = "10.0.0." + std::to_string(i / 2 + 1);  // two ports each
      endpoint.port = static_cast<uint16_t>(8000 + i % 2);
      endpoint.labels = pool.selector;
      if (i % 3 == 0) endpoint.labels["llm-d.ai/role"] = "decode";
      m.endpoints.push_back(std::move(endpoint));
    }
    for (const char* name : {"chat", "code"}) {
      if (!has_models_) break;
      api::InferenceModel model;
      model.meta.name = model.model_name = name;
      model.pool_name = "pool";
      if (model.model_name == "chat") model.criticality = api::Criticality::kCritical;
      model.targets = {{"lora-a", {}}, {"chat", {}}};
      m.models.push_back(std::move(model));
    }
    api::InferenceObjective batch;
    batch.meta.name = "batch";
    batch.priority = -1;
    batch.pool.name = "pool";
    m.objectives.push_back(batch);
    fleet_.Apply(m);
    for (const auto& endpoint : Pool()->endpoints) cells_.insert(endpoint.cell);
  }

  void Page() {
    const auto pool = Pool();
    if (pool->endpoints.empty()) return;
    fleet::EndpointCell& cell = *pool->endpoints[Below(pool->endpoints.size())].cell;
    cell.BeginScrape(clock_.Now());
    const uint8_t has = Byte();
    fleet::Signals signals;
    if (has & 1) signals.waiting = uint32_t{Byte()} * Byte();
    if (has & 2) signals.running = Byte();
    if (has & 4) signals.kv_usage = static_cast<float>(Byte()) / 255;
    signals.load_unknown = (has & 3) != 3;
    signals.kv_unknown = (has & 4) == 0;
    if (has & 8) {
      signals.lora = fleet::Signals::Lora{};
      signals.lora->max = static_cast<uint32_t>(Below(4));
      fleet::AddAdapter(signals.lora->running, fleet_.InternAdapter(kKey, kModels[2 + Below(2)]));
      signals.lora->resident_count = 1;
    }
    if (has & 16) clock_.Advance(Byte() * base::kMillisecond);
    if ((has & 32) == 0) cell.ApplyScrape(signals, clock_.Now());
    if (has & 64) cell.PageIsGood();
  }

  // A config of any plugins that need no parameters; one that cannot be is said to be.
  void Swap() {
    scheduling::ConfigSpec spec;
    spec.fills_in = true;
    for (size_t n = 1 + Below(4); n > 0; --n) {
      const auto types = scheduling::BuiltinPlugins();
      const std::string type(types[Below(types.size())].type);
      for (const char* role : {"-filter", "-scorer", "-picker", "-detector"}) {
        if (type.ends_with(role)) spec.plugins.push_back({.type = type, .name = type + std::to_string(n)});
      }
    }
    std::vector<api::Problem> found;
    api::ProblemList problems("walk", found);
    const auto config = scheduling::Compile(spec, problems, {.states = &states_, .allow_experimental = true});
    const bool has_error = std::any_of(found.begin(), found.end(), [](const auto& problem) {
      return problem.severity == api::Severity::kError;
    });
    FAIRWAY_CHECK((config == nullptr) == has_error);
    if (config == nullptr) return;
    configs_.push_back(config);
    router_->Swap(std::make_shared<const scheduling::ConfigSet>(scheduling::ConfigSet{config, {}}));
    built_in_ = false;
  }

  void Mark() {
    const auto pool = Pool();
    if (pool->endpoints.empty()) return;
    const fleet::Endpoint& endpoint = pool->endpoints[Below(pool->endpoints.size())];
    const uint8_t how = Byte();
    if (how % 4 < 2) endpoint.cell->SetRefusing(how & 1);
    if (how % 4 == 2) endpoint.cell->NoteUnavailable(clock_.Now());
    if (how % 4 == 3) fleet_.SetServed(kKey, endpoint.id, {std::string(kModels[Below(kModels.size())])});
    fleet_.PublishNames();
  }

  // ---- Requests.

  void Ask() {
    const uint8_t how = Byte();
    const std::string_view model = kModels[Below(kModels.size())];
    const std::string body = "{\"model\":\"" + std::string(model) + "\",\"prompt\":\"" +
                             std::string(1 + size_t{Byte()} * 8, 'x') +
                             "\",\"stream\":" + ((how & 1) != 0 ? "true}" : "false}");
    payload::RequestScanner scanner(payload::Api::kCompletions);
    scanner.HashPrompt(router_->wants_prefixes());
    scanner.Feed(body);
    scanner.Finish();
    routing::RequestInput input;
    if ((how & 2) == 0) input.body = &scanner;
    input.body_bytes = body.size();
    input.shows_answer = how & 4;
    if (how & 8) input.objective = "batch";
    if (how & 16) input.fairness_id = "tenant";
    input.provisional = how & 32;
    routing::SubsetHint hint;
    for (size_t n = Below(4); (how & 64) != 0 && n > 0; --n) {
      const size_t i = Below(kMost + 2);
      hint.push_back("10.0.0." + std::to_string(i / 2 + 1) +
                     (i % 3 == 0 ? "" : ":" + std::to_string(8000 + i % 2)));
    }
    if (how & 64) input.subset = &hint;
    const auto pool = Pool();
    std::set<std::string> allowed;
    for (const auto& endpoint : pool->endpoints) {
      const bool named = std::any_of(hint.begin(), hint.end(), [&](const std::string& text) {
        return text == endpoint.host || text == endpoint.address;
      });
      if (input.subset == nullptr || named) allowed.insert(endpoint.address);
    }
    auto begun = router_->Begin(*worker_, input);
    if (const auto* rejection = std::get_if<routing::Rejection>(&begun)) {
      ++refused_;
      return CheckRefusal(*rejection, input, model, allowed.empty());
    }
    ++picked_;
    routing::Ticket& ticket = std::get<routing::Ticket>(begun);
    const auto destinations = base::Split(ticket.destinations(), ',');
    FAIRWAY_CHECK(!destinations.empty() && destinations.size() <= max_choices_);
    FAIRWAY_CHECK(destinations.front() == ticket.destination());
    std::set<std::string> seen;
    for (const std::string_view destination : destinations) {
      FAIRWAY_CHECK(allowed.contains(std::string(destination)) &&
                    seen.insert(std::string(destination)).second);
    }
    const auto at = pool->by_address.find(ticket.destination());
    std::shared_ptr<fleet::EndpointCell> cell = pool->endpoints[at->second].cell;
    ++own_[cell.get()];
    open_.push_back({std::move(ticket), std::move(cell)});
  }

  void CheckRefusal(const routing::Rejection& rejection, const routing::RequestInput& input,
                    std::string_view model, bool nobody) const {
    const bool declared = model == "chat" || model == "code";
    switch (rejection.status) {
      case 400:  // it names no model
        FAIRWAY_CHECK(input.body != nullptr && model.empty());
        return;
      case 404:
        FAIRWAY_CHECK(has_models_ && input.body != nullptr && !declared);
        return;
      case 429:
        FAIRWAY_CHECK(!built_in_ || !input.objective.empty() || (has_models_ && model != "chat"));
        return;
      default:
        FAIRWAY_CHECK(rejection.status == 503 && (nobody || !built_in_));
    }
  }

  void Answer(size_t number) {
    Open& open = open_[number];
    const uint8_t how = Byte();
    switch (how % 4) {
      case 0: {
        constexpr std::array<int, 6> kStatus = {200, 503, 500, 404, 0, 504};
        const auto pool = Pool();
        const std::string destination(open.ticket.destination());
        std::string served;
        if ((how & 16) != 0) served = "10.9.9.9:1";
        if ((how & 32) != 0) served = destination;
        if ((how & 64) != 0 && !pool->endpoints.empty())
          served = pool->endpoints[Below(pool->endpoints.size())].address;
        open.ticket.OnResponseHeaders(kStatus[Below(kStatus.size())], served, how & 4, how & 8);
        const auto at = pool->by_address.find(served);
        if (open.cell == nullptr || served == destination || at == pool->by_address.end()) return;
        --own_[open.cell.get()];
        open.cell = pool->endpoints[at->second].cell;
        ++own_[open.cell.get()];
        return;
      }
      case 1:
        return open.ticket.OnFirstToken();
      case 2:
        return open.ticket.OnResponseBody(Byte());
      default:
        payload::Usage usage;
        usage.found = true;
        usage.tells_cached = how & 4;
        usage.input_tokens = Byte();
        usage.output_tokens = int64_t{Byte()} - 8;
        usage.cached_tokens = Byte();
        open.ticket.OnUsage(usage);
    }
  }

  void End(size_t number, uint8_t how) {
    Open& open = open_[number];
    if (how % 8 == 1) open.ticket.OnComplete();
    if (how % 8 == 2) open.ticket.Abort();
    if (how % 8 == 3) open.ticket.Detach();
    if (how % 8 == 4) {
      open.ticket.OnComplete();
      open.ticket.Abort();
      open.ticket.Detach();
    }
    if (open.cell != nullptr) --own_[open.cell.get()];
    open.cell = nullptr;
    if (how % 8 == 5 && number + 1 < open_.size()) std::swap(open, open_.back());
    // Tickets that have ended may stay; what is said to them has no effect.
    if (how % 8 != 0 && how % 8 <= 4 && (how & 8) != 0 && !bytes_.empty()) return;
    open_.erase(open_.begin() + static_cast<std::ptrdiff_t>(how % 8 == 5 ? open_.size() - 1 : number));
  }

  void CheckLedger() const {
    for (const auto& cell : cells_) {
      const auto expected = own_.find(cell.get());
      FAIRWAY_CHECK(cell->own() == (expected == own_.end() ? 0 : expected->second));
    }
  }

  std::span<const uint8_t> bytes_;
  base::ManualClock clock_{base::kSecond};
  base::Registry registry_;
  fleet::Fleet fleet_;
  scheduling::States states_;
  std::vector<std::shared_ptr<const scheduling::Config>> configs_;  // outlive their decisions
  std::unique_ptr<routing::Router> router_;
  std::unique_ptr<routing::Worker> worker_;
  std::vector<Open> open_;
  // All that there ever were.
  std::set<std::shared_ptr<fleet::EndpointCell>> cells_;
  std::map<const fleet::EndpointCell*, uint32_t> own_;  // the model
  size_t members_ = 0;                                  // a bit each
  size_t max_choices_ = 0;
  size_t picked_ = 0, refused_ = 0;
  bool has_models_ = false;
  bool built_in_ = true;
};

}  // namespace fairway::tests
