// A router over a pool of servers, and requests to it.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "routing/router.h"
#include "tests/support/pools.h"
#include "tests/support/prometheus_page.h"

namespace fairway::tests {

using routing::Rejection;
using routing::RequestInput;
using routing::Ticket;

class Scene {
 public:
  explicit Scene(std::vector<tests::ServerState> servers, std::vector<api::InferenceModel> models = {},
                 routing::RouterOptions options = {}, uint64_t seed = 1)
      : pool(std::move(servers), std::move(models)), clock(base::kSecond + 20 * base::kMillisecond) {
    options.scheduling.lora_exploration = 0;
    router = std::make_unique<routing::Router>(pool.fleet().published(), clock, registry, std::move(options));
    worker = router->NewWorker(seed);
  }

  std::variant<Ticket, Rejection> Ask(std::string_view body, std::string_view path = "/v1/completions",
                                      RequestInput input = {}) {
    payload::RequestScanner scanner(payload::ApiOfPath(path));
    scanner.HashPrompt(router->wants_prefixes());
    scanner.Feed(body);
    scanner.Finish();
    input.body = &scanner;
    input.body_bytes = body.size();
    return router->Begin(*worker, input);
  }
  Ticket Get(std::string_view body, std::string_view path = "/v1/completions", RequestInput input = {}) {
    auto begun = Ask(body, path, input);
    if (auto* rejection = std::get_if<Rejection>(&begun)) ADD_FAILURE() << RejectionBody(*rejection);
    return std::get<Ticket>(std::move(begun));
  }
  Rejection Refused(std::string_view body, std::string_view path = "/v1/completions",
                    RequestInput input = {}) {
    auto begun = Ask(body, path, input);
    if (std::holds_alternative<Ticket>(begun)) {
      ADD_FAILURE() << "not refused";
      return {};
    }
    return std::get<Rejection>(begun);
  }
  // The metrics page, read strictly.
  PrometheusPage Page() {
    PrometheusPage page(registry.Render());
    for (const std::string& problem : page.problems()) ADD_FAILURE() << problem;
    return page;
  }
  fleet::EndpointCell& cell(size_t i) { return *pool.pool()->endpoints[i].cell; }

  TestPool pool;
  base::ManualClock clock;
  base::Registry registry;
  std::unique_ptr<routing::Router> router;
  std::unique_ptr<routing::Worker> worker;
};

inline std::string Completion(std::string_view model) {
  return R"({"model":")" + std::string(model) + R"(","prompt":"Say hi."})";
}

}  // namespace fairway::tests
