#include "replay/servers.h"

#include <algorithm>

namespace fairway::replay {

using simulator::Engine;
using simulator::EngineRequest;

Servers::Servers(const Workload& workload, const FleetSpec& fleet, const base::Clock& clock, uint64_t seed)
    : fleet_(fleet), clock_(clock), seed_(seed) {
  for (const TrafficClass& traffic : workload.classes) {
    std::vector<std::string>& names = adapters_.emplace_back();
    for (uint32_t i = 0; i < traffic.adapters; ++i) names.push_back(traffic.ModelName(i));
  }
  for (const ServerSpec& spec : fleet.servers) {
    servers_.push_back({.first_engine = engines(), .ranks = spec.ranks});
    for (uint32_t rank = 0; rank < spec.ranks; ++rank) engines_.push_back(nullptr);
  }
  for (uint32_t i = 0; i < size(); ++i)
    if (fleet.servers[i].at_start) Start(i);
}

void Servers::Start(uint32_t number) {
  Server& server = servers_[number];
  server.alive = true;
  for (uint32_t rank = 0; rank < server.ranks; ++rank) {
    std::unique_ptr<Engine>& engine = engines_[server.first_engine + rank];
    if (engine) gone_.push_back(std::move(engine));
    simulator::EngineOptions options = fleet_.servers[number].engine;
    options.seed = seed_ * 1'000'003 + server.first_engine + rank + gone_.size() * 7919;
    engine = std::make_unique<Engine>(options);
  }
}

void Servers::Kill(uint32_t number) {
  Server& server = servers_[number];
  server.alive = false;
  for (uint32_t rank = 0; rank < server.ranks; ++rank)
    if (engines_[server.first_engine + rank]) engines_[server.first_engine + rank]->AbortAll();
}

void Servers::SetSlowdown(uint32_t number, double factor) {
  const Server& server = servers_[number];
  for (uint32_t rank = 0; rank < server.ranks; ++rank)
    if (engines_[server.first_engine + rank]) engines_[server.first_engine + rank]->SetSlowdown(factor);
}

EngineRequest Servers::Make(const Request& request) const {
  const std::vector<std::string>& names = adapters_[request.traffic];
  return {.adapter = names.empty() ? std::string_view() : names[request.adapter],
          .max_tokens = request.answer_tokens,
          .segments = request.segments,
          .ignore_eos = true};
}

// As vLLM's own balancer between data-parallel engines: least of 4 x waiting + running.
uint32_t Servers::RankFor(const Server& server) const {
  uint32_t best = 0;
  uint64_t least = UINT64_MAX;
  for (uint32_t rank = 0; rank < server.ranks; ++rank) {
    const Engine& engine = *engines_[server.first_engine + rank];
    const uint64_t load = 4ULL * engine.waiting_now() + engine.running_now();
    if (load < least) {
      least = load;
      best = rank;
    }
  }
  return best;
}

base::Result<uint64_t> Servers::Submit(uint32_t number, const Request& request, uint64_t tag,
                                       uint32_t& engine) {
  Server& server = servers_[number];
  Forget(number, request);
  engine = server.first_engine + RankFor(server);
  EngineRequest wanted = Make(request);
  wanted.tag = tag;
  const auto accepted = engines_[engine]->Submit(wanted, clock_.Now());
  if (!accepted) return tl::make_unexpected(accepted.error());
  return accepted->id;
}

void Servers::ReadPage(uint32_t number, Page& page) const {
  const Server& server = servers_[number];
  page.waiting = page.running = page.max_loras = page.num_blocks = 0;
  page.kv_usage = 0;
  page.waiting_tokens.reset();
  page.has_lora = false;
  page.running_adapters.clear();
  page.waiting_adapters.clear();
  const auto add = [](std::vector<std::string>& to, const std::vector<std::string>& names) {
    for (const std::string& name : names)
      if (std::find(to.begin(), to.end(), name) == to.end()) to.push_back(name);
  };
  for (uint32_t rank = 0; rank < server.ranks; ++rank) {
    const Engine& engine = *engines_[server.first_engine + rank];
    page.waiting += engine.gauges().waiting;
    page.running += engine.gauges().running;
    page.kv_usage += engine.gauges().kv_cache_usage / server.ranks;
    page.block_size = engine.options().block_size;
    page.num_blocks += engine.options().num_blocks;
    if (engine.options().counts_waiting_tokens)
      page.waiting_tokens = page.waiting_tokens.value_or(0) + engine.gauges().waiting_tokens;
    page.max_loras = engine.options().max_loras;
    if (engine.lora_infos().empty()) continue;
    page.has_lora = true;
    add(page.running_adapters, engine.lora_infos().back().running);
    add(page.waiting_adapters, engine.lora_infos().back().waiting);
  }
}

fleet::AnswerLoad Servers::LoadOf(uint32_t number) const {
  Page page;
  ReadPage(number, page);
  return {.waiting = page.waiting, .kv_usage = static_cast<float>(page.kv_usage)};
}

base::Nanos Servers::FirstToken(uint32_t number, const Request& request) const {
  const Server& server = servers_[number];
  if (!server.alive) return INT64_MAX;
  std::vector<EngineRequest> requests;
  requests.reserve(server.expected.size() + 1);
  for (const Request* expected : server.expected) requests.push_back(Make(*expected));
  requests.push_back(Make(request));
  return engines_[server.first_engine + RankFor(server)]->ForecastFirstToken(requests, clock_.Now());
}

void Servers::AddTo(RunTotals& totals) const {
  std::vector<double> work(engines_.size());
  uint64_t queries = 0, hits = 0;
  const auto add = [&](const Engine& engine) {
    const simulator::EngineTotals& of = engine.totals();
    queries += of.prefix_cache_queries;
    hits += of.prefix_cache_hits;
    totals.preemptions += static_cast<double>(of.num_preemptions);
    totals.lora_loads += static_cast<double>(of.lora_loads);
    return static_cast<double>(of.prompt_tokens) - static_cast<double>(of.prefix_cache_hits) +
           static_cast<double>(of.generation_tokens);
  };
  double sum = 0, most = 0;
  for (const Server& server : servers_) {
    double of_server = 0;
    for (uint32_t rank = 0; rank < server.ranks; ++rank)
      if (engines_[server.first_engine + rank]) of_server += add(*engines_[server.first_engine + rank]);
    sum += of_server;
    most = std::max(most, of_server);
  }
  for (const auto& engine : gone_) add(*engine);
  totals.spread = sum > 0 ? most * static_cast<double>(servers_.size()) / sum : 0;
  totals.hit_rate = queries > 0 ? static_cast<double>(hits) / static_cast<double>(queries) : 0;
}

}  // namespace fairway::replay
