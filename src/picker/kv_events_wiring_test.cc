#include "picker/kv_events_wiring.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "api/manifests.h"
#include "fleet/fleet.h"
#include "tests/support/plugins.h"

namespace fairway::picker {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

api::Endpoint EndpointAt(std::string name, std::string host, uint16_t port,
                         std::map<std::string, std::string> labels) {
  labels["app"] = "vllm";
  api::Endpoint endpoint;
  endpoint.name = std::move(name);
  endpoint.namespace_name = "ns";
  endpoint.address = std::move(host);
  endpoint.port = port;
  endpoint.labels = std::move(labels);
  return endpoint;
}

class Wiring : public testing::Test {
 protected:
  Wiring() {
    api::InferencePool pool;
    pool.meta.name = "pool";
    pool.meta.namespace_name = "ns";
    pool.selector = {{"app", "vllm"}};
    manifests.pools.push_back(pool);
    manifests.endpoints = {EndpointAt("a-1", "10.0.0.1", 8001, {}), EndpointAt("a-0", "10.0.0.1", 8000, {}),
                           EndpointAt("b-0", "10.0.0.2", 8000, {{"events", "yes"}})};
    fleet.Apply(manifests);
  }
  // "name host:port replay".
  std::vector<std::string> Found(std::string_view parameters) const {
    const scheduling::ConfigSpec spec = tests::OneProfile(
        {tests::Parsed("precise-prefix-cache-producer", "precise", parameters), tests::Spec("random-picker")},
        {{"random-picker"}});
    std::vector<std::string> warnings;
    const scheduling::ConfigSet configs{.common = tests::Compiled(spec, {}, &warnings)};
    std::vector<std::string> found;
    for (const auto& publisher : PublishersOf(*fleet.published().Load(), configs))
      found.push_back(publisher.name + " " + publisher.options.host + ":" +
                      std::to_string(publisher.options.port) + " " +
                      std::to_string(publisher.options.replay_port));
    std::sort(found.begin(), found.end());
    return found;
  }
  api::Manifests manifests;
  fleet::Fleet fleet;
};

TEST_F(Wiring, EachRankOfAPodHasItsPorts) {
  EXPECT_THAT(Found("{kvEventsConfig: {podDiscoveryConfig: {replaySocketPort: 6000}}}"),
              ElementsAre("a-0 10.0.0.1:5557 6000", "a-1 10.0.0.1:5558 6001", "b-0 10.0.0.2:5557 6000"));
}

TEST_F(Wiring, OnlyThoseThatTheConfigMeans) {
  EXPECT_THAT(Found("{kvEventsConfig: {podDiscoveryConfig: {podLabelSelector: events=yes}}}"),
              ElementsAre("b-0 10.0.0.2:5557 0"));
  EXPECT_THAT(Found("{kvEventsConfig: {podDiscoveryConfig: {podNamespace: other}}}"), IsEmpty());
  EXPECT_THAT(Found("{kvEventsConfig: {discoverPods: false}}"), IsEmpty());
}

TEST_F(Wiring, ThoseThatMayDialAreFollowedWithoutBeingAsked) {
  EXPECT_THAT(Found("{kvEventsConfig: {discoverPods: false, zmqEndpoint: 'tcp://127.0.0.1:6600'}}"),
              ElementsAre("a-0 10.0.0.1:5557 0", "a-1 10.0.0.1:5558 0", "b-0 10.0.0.2:5557 0"));
}

TEST_F(Wiring, NobodyWhereTheConfigHasNoReader) {
  const scheduling::ConfigSet configs{.common = scheduling::CompileBuiltin({})};
  EXPECT_THAT(PublishersOf(*fleet.published().Load(), configs), IsEmpty());
}

}  // namespace
}  // namespace fairway::picker
