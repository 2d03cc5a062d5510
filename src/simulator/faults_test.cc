#include "simulator/faults.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "simulator/server.h"

namespace fairway::simulator {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

base::Result<TargetedPatch> FromJson(std::string_view text) {
  const auto json = api::ParseJson(text);
  EXPECT_EQ(json.documents.size(), 1u) << text;
  return FaultsFromJson(*json.documents.at(0));
}

TEST(Faults, PinsFromText) {
  auto pin = PinFromText("8101:waiting=10,kv=0.3,running_lora=a|b,waiting_lora=,max_lora=4");
  ASSERT_TRUE(pin) << pin.error().message;
  EXPECT_EQ(pin->endpoint, "8101");
  EXPECT_EQ(pin->patch.pin->waiting, 10);
  EXPECT_EQ(pin->patch.pin->kv_usage, 0.3);
  EXPECT_EQ(pin->patch.pin->running, std::nullopt);
  EXPECT_THAT(*pin->patch.pin->running_lora, ElementsAre("a", "b"));
  EXPECT_THAT(*pin->patch.pin->waiting_lora, IsEmpty());
  EXPECT_EQ(pin->patch.pin->max_lora, 4u);
  EXPECT_EQ(PinFromText("[::1]:8101:waiting=1")->endpoint, "[::1]:8101");
  EXPECT_EQ(PinFromText("waiting=1")->endpoint, "");
}

TEST(Faults, WrongTextSaysWhatWouldBeRight) {
  EXPECT_THAT(PinFromText("8101:wating=1").error().message, HasSubstr("one of waiting, running, kv"));
  EXPECT_THAT(PinFromText("kv=30").error().message, HasSubstr("kv must be a number from 0 to 1"));
  EXPECT_THAT(PinFromText("waiting=many").error().message, HasSubstr("waiting must be a number"));
  EXPECT_THAT(PinFromText("waiting").error().message, HasSubstr("is not NAME=VALUE"));
  EXPECT_FALSE(PinFromText(""));
  EXPECT_FALSE(PinFromText("running_lora=a||b"));
  EXPECT_FALSE(PinFromText("waiting=nan"));
  EXPECT_THAT(FaultsFromText("8101:requests=slow").error().message,
              HasSubstr("one of ok, refuse, hang, fail, cut"));
  EXPECT_THAT(FaultsFromText("8101:metric=hang").error().message, HasSubstr("one of requests, metrics"));
  EXPECT_THAT(FromJson(R"({"request": "hang"})").error().message, HasSubstr("unknown field \"request\""));
  EXPECT_THAT(FromJson(R"({"requests": 1})").error().message, HasSubstr("requests must be a string"));
  EXPECT_FALSE(FromJson("[]"));
  EXPECT_FALSE(FromJson(R"({"pin": 1})"));
  EXPECT_FALSE(FromJson(R"({"pin": {"running_lora": "x"}})"));
  EXPECT_FALSE(FromJson(R"({"for_ms": -1})"));
}

TEST(Faults, JsonThereAndBack) {
  auto patch = FromJson(R"({"endpoint": "b", "requests": "hang", "metrics": "404", "for_ms": 1.5,
                            "pin": {"running": 3, "running_lora": ["x"]}})");
  ASSERT_TRUE(patch) << patch.error().message;
  EXPECT_EQ(patch->endpoint, "b");
  EXPECT_EQ(patch->patch.duration, 1'500'000);
  const Faults faults = Apply({}, patch->patch);
  EXPECT_EQ(faults.requests, RequestFault::kHang);
  EXPECT_EQ(faults.metrics, MetricsFault::kNotFound);
  const std::string text = ToJson(faults);
  EXPECT_EQ(text, R"({"requests":"hang","metrics":"404","pin":{"running":3,"running_lora":["x"]}})");
  EXPECT_EQ(ToJson(Apply({}, FromJson(text)->patch)), text);
  EXPECT_EQ(ToJson(Apply(faults, FromJson(R"({"pin": null, "requests": "ok"})")->patch)),
            R"({"requests":"ok","metrics":"404","pin":null})");
}

TEST(Faults, TargetsAreNamesPortsOrAddresses) {
  std::vector<EndpointOptions> endpoints(2);
  endpoints[0].port = 8101;
  endpoints[1] = {.name = "b", .host = "::1", .port = 8102};
  EXPECT_EQ(*FindEndpoint(endpoints, "8101"), 0u);
  EXPECT_EQ(*FindEndpoint(endpoints, "127.0.0.1:8101"), 0u);
  EXPECT_EQ(*FindEndpoint(endpoints, "b"), 1u);
  EXPECT_EQ(*FindEndpoint(endpoints, "[::1]:8102"), 1u);
  EXPECT_EQ(FindEndpoint(endpoints, "c").error().message, "no endpoint \"c\"; there are: 127.0.0.1:8101, b");
}

}  // namespace
}  // namespace fairway::simulator
