#include <algorithm>
#include <array>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "api/endpoint_picker_config.h"
#include "api/manifests.h"
#include "base/clock.h"
#include "base/metrics.h"
#include "base/random.h"
#include "base/strings.h"
#include "fleet/fleet.h"
#include "frontends/request/headers.h"
#include "frontends/request/model_name.h"
#include "payload/request.h"
#include "routing/router.h"
#include "scheduling/config.h"
#include "tests/equality/pickers.h"

namespace fairway::equality {
namespace {

constexpr std::string_view kDestination = "x-gateway-destination-endpoint";

constexpr std::array kControlHeaders = {
    std::string_view("x-llm-d-inference-objective"),
    std::string_view("x-gateway-inference-objective"),
    std::string_view("x-llm-d-inference-fairness-id"),
    std::string_view("x-gateway-inference-fairness-id"),
    std::string_view("x-llm-d-model-name-rewrite"),
    std::string_view("x-gateway-model-name-rewrite"),
    std::string_view("x-prefiller-url"),
    std::string_view("x-prefiller-host-port"),
    std::string_view("x-encoder-hosts-ports"),
    std::string_view("x-data-parallel-host-port"),
    std::string_view("x-kv-cache-source-host-port"),
};

// Under the new name, else under the old one.
std::string FindEither(const Headers& headers, const std::string& what) {
  const auto found = Find(headers, "x-llm-d-" + what);
  return found ? *found : Find(headers, "x-gateway-" + what).value_or("");
}

uint64_t SeedOfFirstWorker(uint64_t seed) { return base::SplitMix64(seed); }

}  // namespace

struct Core::Impl {
  Impl(const api::Manifests& manifests, uint64_t seed, const routing::RouterOptions& options)
      : router(fleet.published(), clock, registry, options),
        worker(router.NewWorker(SeedOfFirstWorker(seed))),
        ids(~SeedOfFirstWorker(seed)) {
    fleet.Apply(manifests);
  }

  base::ManualClock clock;
  base::Registry registry;
  fleet::Fleet fleet;
  routing::Router router;
  std::unique_ptr<routing::Worker> worker;
  base::Random ids;
};

namespace {

std::shared_ptr<const scheduling::Config> ReadConfig(const std::string& path) {
  const auto document = api::LoadEndpointPickerConfig(path);
  std::vector<api::Problem> found = document.problems;
  api::ProblemList problems(path, found);
  std::shared_ptr<const scheduling::Config> config;
  if (document.ok())
    config = scheduling::Compile(scheduling::FromDocument(document.config), problems,
                                 {.more_types = {}, .states = nullptr, .allow_experimental = true});
  for (const auto& problem : found) {
    if (problem.severity == api::Severity::kError) Die(api::ToString(problem));
  }
  return config;
}

}  // namespace

Core::Core(const std::string& manifests, uint64_t seed, double lora_exploration, const std::string& config) {
  const api::LoadResult loaded = api::LoadManifests({manifests});
  for (const auto& problem : loaded.problems) {
    if (problem.severity == api::Severity::kError) Die(api::ToString(problem));
  }
  routing::RouterOptions options;
  options.scheduling.lora_exploration = lora_exploration;
  options.scheduling.load_source = scheduling::LoadSource::kPage;  // what is remembered depends on the time
  if (!config.empty()) options.config = ReadConfig(config);
  impl_ = std::make_unique<Impl>(loaded.manifests, seed, options);
}

Core::~Core() = default;

void Core::SetState(const std::vector<ServerState>& servers) {
  fleet::Fleet& fleet = impl_->fleet;
  const auto snapshot = fleet.published().Load();
  for (const auto& [key, pool] : snapshot->pools) {
    for (const ServerState& server : servers) {
      const auto found = pool->by_address.find(server.address);
      if (found == pool->by_address.end()) Die("no endpoint " + server.address + " in " + key);
      fleet::Signals signals{
          .waiting = server.waiting, .running = server.running, .kv_usage = server.kv_usage};
      auto& lora = signals.lora.emplace();
      for (const auto& name : server.adapters)
        fleet::AddAdapter(lora.running, fleet.InternAdapter(key, name));
      for (const auto& name : server.waiting_adapters)
        fleet::AddAdapter(lora.waiting, fleet.InternAdapter(key, name));
      lora.resident_count = static_cast<uint32_t>(server.adapters.size());
      lora.waiting_count = static_cast<uint32_t>(server.waiting_adapters.size());
      lora.max = server.max_adapters;
      fleet::EndpointCell& cell = *pool->endpoints[found->second].cell;
      cell.BeginScrape(impl_->clock.Now());
      cell.ApplyScrape(signals, impl_->clock.Now());
    }
  }
}

Outcome Core::Ask(const Request& request) {
  const auto api = payload::ApiOfPath(request.target, impl_->router.ParsersOf(*impl_->worker, request.pool));
  payload::RequestScanner scanner(api.value_or(payload::Api::kUnknown));
  scanner.HashPrompt(impl_->router.wants_prefixes());
  scanner.Feed(request.body);
  scanner.Finish();

  const std::string fairness_id = FindEither(request.headers, "inference-fairness-id");
  const std::string model_rewrite = FindEither(request.headers, "model-name-rewrite");
  const std::string objective = FindEither(request.headers, "inference-objective");
  std::string id = Find(request.headers, "x-request-id").value_or("");
  const bool own_id = id.empty();
  if (own_id) id = request::NewRequestId(impl_->ids);
  routing::SubsetHint hint;
  const std::string listed = request.hint.value_or("");
  for (const std::string_view entry : base::Split(listed, ',')) {
    if (!base::Trim(entry).empty()) hint.emplace_back(base::Trim(entry));
  }
  routing::RequestInput input;
  input.pool_key = request.pool;
  input.request_id = id;
  if (!request.ends_with_headers) input.body = &scanner;
  input.body_bytes = request.body.size();
  input.fairness_id = fairness_id;
  input.model_rewrite = model_rewrite;
  input.objective = objective;
  if (request.hint) input.subset = &hint;
  std::vector<std::pair<std::string, std::string>> found;
  for (const std::string& name : impl_->router.WantedHeaders(*impl_->worker)) {
    if (const auto value = Find(request.headers, name)) found.emplace_back(name, *value);
  }
  const std::vector<std::pair<std::string_view, std::string_view>> wanted(found.begin(), found.end());
  input.headers = wanted;
  input.if_available = Find(request.headers, "prefer") == "if-available";

  auto begun = api || request.ends_with_headers
                   ? impl_->router.Begin(*impl_->worker, input)
                   : std::variant<routing::Ticket, routing::Rejection>(request::NoParser(request.target));
  if (const auto* rejection = std::get_if<routing::Rejection>(&begun)) {
    return {.status = rejection->status,
            .drop_reason = rejection->drop_reason.empty() ? "-" : std::string(rejection->drop_reason),
            .refused_by = rejection->refused_by.empty() ? "-" : rejection->refused_by,
            .come_again = rejection->retry_after > 0,
            .body = routing::RejectionBody(*rejection)};
  }
  const auto& ticket = std::get<routing::Ticket>(begun);
  Outcome outcome{.destinations = std::string(ticket.destinations()), .headers = request.headers};
  std::erase_if(outcome.headers, [](const auto& header) {
    return header.first.starts_with(kDestination) ||
           std::find(kControlHeaders.begin(), kControlHeaders.end(), header.first) != kControlHeaders.end();
  });
  Set(outcome.headers, kDestination, ticket.destination());
  for (const auto& [name, value] : ticket.request_headers()) Set(outcome.headers, name, value);
  if (own_id) Set(outcome.headers, "x-request-id", id);
  outcome.body = request.body;
  if (ticket.rewrites() || ticket.inserts_model())
    payload::PutModel(outcome.body, scanner.fields(), ticket.target_model());
  if (Find(outcome.headers, "content-length"))
    Set(outcome.headers, "content-length", std::to_string(outcome.body.size()));
  return outcome;  // and the reservation is given back
}

}  // namespace fairway::equality
