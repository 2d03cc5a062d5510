#include "frontends/request/headers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <initializer_list>
#include <map>
#include <string>
#include <utility>

namespace fairway::request {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::MatchesRegex;

RequestHeaders Read(std::initializer_list<std::pair<std::string_view, std::string_view>> headers) {
  HeaderReader reader;
  for (const auto& [name, value] : headers) reader.Add(name, value);
  return reader.Finish();
}

TEST(RequestHeaders, OfAnAliasTheNewNameCountsInAnyOrder) {
  const auto first = Read({{"x-llm-d-inference-fairness-id", "new"},
                           {"x-gateway-inference-fairness-id", "old"},
                           {"x-llm-d-model-name-rewrite", "m-new"},
                           {"x-gateway-model-name-rewrite", "m-old"},
                           {"x-llm-d-inference-objective", "o-new"},
                           {"x-gateway-inference-objective", "o-old"}});
  EXPECT_EQ(first.fairness_id, "new");
  EXPECT_EQ(first.model_rewrite, "m-new");
  EXPECT_EQ(first.objective, "o-new");
  const auto last = Read({{"x-gateway-inference-fairness-id", "old"},
                          {"x-llm-d-inference-fairness-id", "new"},
                          {"x-gateway-inference-objective", "o-old"},
                          {"x-llm-d-inference-objective", "o-new"}});
  EXPECT_EQ(last.fairness_id, "new");
  EXPECT_EQ(last.objective, "o-new");
  EXPECT_EQ(Read({{"x-gateway-inference-objective", "o-old"}}).objective, "o-old");
  EXPECT_EQ(Read({{"x-gateway-inference-fairness-id", "old"}}).fairness_id, "old");
}

TEST(RequestHeaders, ThePathIsTheRequestsOwnElseWhatItWas) {
  EXPECT_EQ(Read({{":path", "/a"}, {"x-original-path", "/b"}}).path, "/a");
  EXPECT_EQ(Read({{"x-forwarded-path", "/c"}, {"x-original-path", "/b"}}).path, "/b");
  EXPECT_EQ(Read({{"x-forwarded-path", "/c"}}).path, "/c");
  EXPECT_EQ(Read({}).path, "/v1/completions");
}

TEST(RequestHeaders, WhatIsSaidToThePickerIsListedOnceAndTheDestinationIsNot) {
  const auto headers = Read({{"x-prefiller-host-port", "1.2.3.4:5"},
                             {"x-gateway-destination-endpoint", "6.6.6.6:1"},
                             {"x-gateway-destination-endpoint-subset", "6.6.6.6"},
                             {"x-prefiller-host-port", "again"},
                             {"x-fairway-pool", "mine"},
                             {"x-other", "stays"},
                             {"", "nameless"}});
  EXPECT_THAT(headers.control, ElementsAre("x-fairway-pool", "x-gateway-destination-endpoint-subset",
                                           "x-prefiller-host-port"));
  EXPECT_TRUE(headers.has_destination);
  EXPECT_THAT(Read({{"authorization", "x"}}).control, IsEmpty());
  EXPECT_FALSE(Read({{"x-gateway-destination-endpoint-subset", "x"}}).has_destination);
}

TEST(RequestHeaders, WhoWantsTheServersLoadIsKnown) {
  EXPECT_TRUE(Read({{"endpoint-load-metrics-format", "JSON"}}).asks_load);
  EXPECT_FALSE(Read({{"endpoint-load-metrics", "TEXT"}}).asks_load);
}

TEST(RequestHeaders, LoadIsReadFromWhatAnswersSay) {
  const auto waiting = [](std::string_view text) { return ReadLoad(text).waiting; };
  const auto usage = [](std::string_view text) { return ReadLoad(text).kv_usage; };
  constexpr std::string_view kBoth =
      "TEXT named_metrics.kv_cache_usage_perc=0.75, named_metrics.num_requests_waiting=3";
  EXPECT_EQ(waiting(kBoth), 3u);
  EXPECT_EQ(usage(kBoth), 0.75f);
  EXPECT_EQ(waiting("named_metrics.num_requests_waiting=3.0,cpu_utilization=0.5"), 3u)
      << "without the first word";
  EXPECT_EQ(usage("TEXT named_metrics.kv_cache_usage_perc=7"), 1.0f);
  EXPECT_EQ(waiting("TEXT named_metrics.num_requests_waiting=1e300"), 65'535u);
  for (const std::string_view bad :
       {"", "TEXT", "TEXT num_requests_waiting=3", "TEXT named_metrics.num_requests_waiting=", "TEXT =3",
        "TEXT named_metrics.num_requests_waiting=-1", "TEXT named_metrics.num_requests_waiting=nan",
        "TEXT named_metrics.num_requests_waiting=3x",
        "JSON {\"named_metrics\":{\"num_requests_waiting\":3}}"})
    EXPECT_EQ(waiting(bad), std::nullopt) << bad;
  EXPECT_EQ(waiting(std::string(5000, ' ') + std::string(kBoth)), std::nullopt) << "too long to be that";
}

// By any of these a side-car beside a model server would connect to wherever the client likes.
TEST(RequestHeaders, NoClientTellsASideCarWhereToConnectTo) {
  for (const char* name : {"x-prefiller-url", "x-prefiller-host-port", "x-encoder-hosts-ports",
                           "x-data-parallel-host-port", "x-kv-cache-source-host-port"})
    EXPECT_THAT(Read({{name, "http://10.0.0.1"}}).control, ElementsAre(name));
}

// Each once more: to look for each among all before it would be 14 billion comparisons.
TEST(RequestHeaders, ManyNamesForThePickerAreRemovedInLinearTime) {
  std::vector<std::string> names;
  for (int i = 0; i < 120'000; ++i) names.push_back("x-fairway-" + std::to_string(i % 60'000));
  HeaderReader reader;
  const auto start = std::chrono::steady_clock::now();
  for (const std::string& name : names) reader.Add(name, "x");
  const auto control = reader.Finish().control;
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
  EXPECT_EQ(control.size(), 60'000u);
}

TEST(RequestHeaders, ContentLengthIsAClaim) {
  EXPECT_FALSE(Read({}).has_content_length);
  EXPECT_EQ(Read({{"content-length", "12"}}).content_length, 12u);
  EXPECT_EQ(Read({{"content-length", "twelve"}}).content_length, 0u);
  EXPECT_TRUE(Read({{"content-length", "twelve"}}).has_content_length);
}

TEST(RequestHeaders, AnUpgradeOrConnectHasNoBody) {
  EXPECT_TRUE(Read({{"connection", "Upgrade"}, {"upgrade", "websocket"}}).tunnel);
  EXPECT_TRUE(Read({{"upgrade", "websocket"}, {"connection", "keep-alive, upgrade"}}).tunnel);
  EXPECT_TRUE(Read({{"connection", "keep-alive"}, {"connection", "UPGRADE"}, {"upgrade", "h2c"}}).tunnel);
  EXPECT_TRUE(Read({{":method", "CONNECT"}, {":path", "/"}}).tunnel);
  EXPECT_FALSE(Read({{"upgrade", "websocket"}}).tunnel);  // not asked of this hop
  EXPECT_FALSE(Read({{"connection", "upgrade"}}).tunnel);
  EXPECT_FALSE(Read({{"connection", "upgraded"}, {"upgrade", "websocket"}}).tunnel);
  EXPECT_FALSE(Read({{"connection", "upgrade"}, {"upgrade", ""}}).tunnel);
  EXPECT_FALSE(Read({{":method", "POST"}, {"connection", "keep-alive"}}).tunnel);
}

TEST(RequestHeaders, ABodyThatIsNotUtf8IsNotRead) {
  const auto unreadable = [](std::string_view name, std::string_view value) {
    return Read({{name, value}}).unreadable_body;
  };
  for (const std::string_view coding : {"gzip", "zstd", "br", "GZIP", "identity, gzip", "x-whatever"}) {
    EXPECT_TRUE(unreadable("content-encoding", coding)) << coding;
  }
  for (const std::string_view coding : {"identity", "Identity", "", " ", ",", "identity,identity"}) {
    EXPECT_FALSE(unreadable("content-encoding", coding)) << coding;
  }
  for (const std::string_view type :
       {"application/json; charset=utf-16", "application/json;charset=\"UTF-32LE\"",
        "application/json; x=1; Charset=UTF-16BE"}) {
    EXPECT_TRUE(unreadable("content-type", type)) << type;
  }
  for (const std::string_view type :
       {"application/json", "application/json; charset=utf-8", "application/json; charset=iso-8859-1",
        "multipart/form-data; boundary=x"}) {
    EXPECT_FALSE(unreadable("content-type", type)) << type;
  }
}

TEST(RequestHeaders, PreferIsReadAsRfc7240HasIt) {
  for (const std::string_view value : {"if-available", "If-Available", "wait=10, if-available",
                                       "if-available;x=1", "respond-async,if-available ;a, wait=2"}) {
    EXPECT_TRUE(Read({{"prefer", value}}).if_available) << value;
  }
  for (const std::string_view value : {"", "wait=10", "if-availabl", "not-if-available", "x=if-available"}) {
    EXPECT_FALSE(Read({{"prefer", value}}).if_available) << value;
  }
  EXPECT_FALSE(Read({{"preference", "if-available"}}).if_available);
}

TEST(RefusalHeaders, HaveWhatThereIs) {
  const auto of = [](const routing::Rejection& rejection) {
    const RefusalHeaders headers(rejection);
    std::map<std::string, std::string> all;
    for (const auto& [name, value] : headers.all()) all.emplace(name, value);
    return all;
  };
  EXPECT_TRUE(of({400, "BadRequest", "wrong", ""}).empty());
  EXPECT_EQ(of({.status = 429,
                .code = "ResourceExhausted",
                .message = "",
                .drop_reason = "rejected-saturated",
                .refused_by = "room; plugin=p",
                .retry_after = 7}),
            (std::map<std::string, std::string>{{"retry-after", "7"},
                                                {"x-fairway-refused-by", "room; plugin=p"},
                                                {"x-llm-d-request-dropped-reason", "rejected-saturated"}}));
}

TEST(RequestHeaders, HintsAreTrimmedAndEmptyOnesDropped) {
  routing::SubsetHint hint;
  AddHints(" 10.0.0.1:8000 ,,10.0.0.2", hint);
  EXPECT_THAT(hint, ElementsAre("10.0.0.1:8000", "10.0.0.2"));
}

TEST(RequestHeaders, WhatIsTooLongForAHintIsNone) {
  routing::SubsetHint hint;
  const std::string longest(300, 'h');
  AddHints(std::string(301, 'x') + "," + longest + "," + std::string(16'000, '1'), hint);
  EXPECT_THAT(hint, ElementsAre(longest));
}

TEST(RequestHeaders, TwentyThousandHintsAreKept) {
  routing::SubsetHint hint;
  std::string text;
  for (int i = 0; i < 20'500; ++i) text += "10.0.0.1:" + std::to_string(i) + ",";
  AddHints(text, hint);
  AddHints("10.0.0.2", hint);
  EXPECT_EQ(hint.size(), 20'000u);
  EXPECT_EQ(hint.back(), "10.0.0.1:19999");
}

TEST(RequestHeaders, NewIdsAreVersion4UuidsAndDiffer) {
  base::Random random(1);
  const std::string a = NewRequestId(random);
  EXPECT_THAT(a, MatchesRegex("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"));
  EXPECT_NE(a, NewRequestId(random));
}

TEST(Grpc, IsToldByTheContentType) {
  for (const char* type : {"application/grpc", "application/grpc+proto", "application/grpc; x=1"})
    EXPECT_TRUE(IsGrpc(type)) << type;
  for (const char* type : {"", "application/json", "application/grpc-web", "application/grp"})
    EXPECT_FALSE(IsGrpc(type)) << type;
  HeaderReader reader;
  reader.Add("content-type", "application/grpc");
  EXPECT_TRUE(reader.Finish().grpc);
}

TEST(Grpc, StatusesThereAndBack) {
  for (const auto& [http, grpc] :
       {std::pair{400, 3}, {404, 5}, {408, 4}, {412, 9}, {413, 8}, {429, 8}, {500, 13}, {503, 14}, {418, 2}})
    EXPECT_EQ(GrpcStatusOf(http), grpc) << http;
  EXPECT_EQ(HttpStatusOf("0"), 200);
  EXPECT_EQ(HttpStatusOf("8"), 429);
  EXPECT_EQ(HttpStatusOf("14"), 503);
  for (const char* none : {"", "17", "-1", "OK", "99999999999"}) EXPECT_EQ(HttpStatusOf(none), 500) << none;
}

TEST(NoParser, NamesThePathWithoutWhatIsNoText) {
  EXPECT_EQ(NoParser("/v1/x?key=secret").message, "no parser registered matching path suffix for: /v1/x");
  EXPECT_LT(NoParser("/" + std::string(10000, 'a')).message.size(), 200u);
}

}  // namespace
}  // namespace fairway::request
