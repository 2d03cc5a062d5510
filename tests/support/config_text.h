// An EndpointPickerConfig for tests, from its text to what decides.
#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "api/endpoint_picker_config.h"
#include "scheduling/config.h"

namespace fairway::tests {

// `text`: what stands after apiVersion and kind. Fails the test where it has an error.
inline std::shared_ptr<const scheduling::Config> ConfigOf(const std::string& text,
                                                          scheduling::States* states = nullptr) {
  const auto document = api::ParseEndpointPickerConfig(
      "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n" + text, "config.yaml");
  std::vector<api::Problem> found = document.problems;
  api::ProblemList problems("config.yaml", found);
  std::shared_ptr<const scheduling::Config> config;
  if (document.ok())
    config = scheduling::Compile(scheduling::FromDocument(document.config), problems,
                                 {.more_types = {}, .states = states, .allow_experimental = true});
  for (const api::Problem& problem : found) {
    if (problem.severity == api::Severity::kError) ADD_FAILURE() << api::ToString(problem);
  }
  return config;
}

// A session stays with the endpoint that a header of the answer named.
inline const char* const kSessionConfig =
    "plugins:\n- type: session-affinity-filter\n- type: random-picker\n"
    "schedulingProfiles:\n- name: default\n  plugins:\n"
    "  - pluginRef: session-affinity-filter\n  - pluginRef: random-picker\n";

}  // namespace fairway::tests
