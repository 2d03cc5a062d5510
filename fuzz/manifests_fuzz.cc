// Any bytes as a manifest file: YAML, JSON and what only looks like it. Whether the size is even chooses the
// file's ending.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "api/manifests.h"
#include "api/summary.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using fairway::api::Problem;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  fairway::api::LoadResult result =
      fairway::api::ParseManifests(text, size % 2 == 0 ? "input.yaml" : "input.json");
  fairway::api::CheckReferences(result.manifests, result.problems);
  for (const Problem& problem : result.problems) {
    if (problem.message.empty() || fairway::api::ToString(problem).empty()) std::abort();
  }
  if (fairway::api::Summarize(result.manifests).empty()) std::abort();
  // What passed the checks must keep the promises of the header.
  if (!result.ok()) return 0;
  for (const auto& pool : result.manifests.pools) {
    if (pool.meta.name.empty() || pool.target_ports.empty() || pool.target_ports.size() > 8) std::abort();
  }
  for (const auto& model : result.manifests.models) {
    if (model.model_name.empty() || model.pool_name.empty() || model.targets.size() > 10) std::abort();
  }
  for (const auto& objective : result.manifests.objectives) {
    if (objective.meta.name.empty() || objective.pool.name.empty()) std::abort();
  }
  for (const auto& rewrite : result.manifests.rewrites) {
    for (const auto& rule : rewrite.rules) {
      if (rule.targets.empty() || rule.targets[0].model.empty()) std::abort();
    }
  }
  for (const auto& route : result.manifests.routes) {
    for (const auto& rule : route.rules) {
      if (rule.matches.empty()) std::abort();
    }
  }
  for (const auto& endpoint : result.manifests.endpoints) {
    if (endpoint.name.empty() || endpoint.address.empty() || endpoint.port == 0) std::abort();
  }
  return 0;
}
