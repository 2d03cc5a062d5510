#include "sources/scrape/waiting_tokens.h"

#include <gtest/gtest.h>

#include <string>

#include "sources/scrape/metrics_page.h"

namespace fairway::sources::scrape {
namespace {

std::optional<uint64_t> Read(std::string_view body) {
  const EngineReaders engines;
  return ReadWaitingTokens(body, engines.Find("sglang")->waiting_tokens());
}

std::string Rank(const std::string& tokens, const std::string& capacity = "400000") {
  return R"({"dp_rank":0,"num_running_reqs":3,"num_waiting_uncached_tokens":)" + tokens +
         R"(,"max_total_num_tokens":)" + capacity + R"(,"queues":{"waiting":[1,"]}"]},"token_usage":0.25})";
}
std::string Loads(const std::string& ranks) {
  return R"({"timestamp":"2026-11-30T10:00:00Z","version":"0.5.6","loads":[)" + ranks + "]}";
}

TEST(WaitingTokens, AreThoseOfAllRanks) {
  EXPECT_EQ(Read(Loads(Rank("1200"))), 1200u);
  EXPECT_EQ(Read(Loads(Rank("1200") + ", " + Rank("0") + "," + Rank("34"))), 1234u);
  EXPECT_EQ(Read(Loads(Rank("0"))), 0u);
}

TEST(WaitingTokens, ARankThatHasNotWorkedYetSaysNothing) {
  EXPECT_EQ(Read(Loads(Rank("0", "0"))), std::nullopt);
  EXPECT_EQ(Read(Loads(Rank("700") + "," + Rank("0", "0"))), std::nullopt);
  EXPECT_EQ(Read(Loads(R"({"num_waiting_uncached_tokens":7})")), std::nullopt);
}

TEST(WaitingTokens, AListWithoutRanksIsBrokenAndNotIdle) {
  EXPECT_EQ(Read(Loads("")), std::nullopt);
  EXPECT_EQ(Read(R"({"version":"0.5.6"})"), std::nullopt);
  EXPECT_EQ(Read(R"([{"dp_rank":0,"num_reqs":3,"num_waiting_reqs":1,"num_tokens":90}])"), std::nullopt)
      << "the older /get_load";
}

TEST(WaitingTokens, WhatCannotBeIsNothing) {
  for (const char* number : {"-1", "1.5", "1e3", "null", "\"12\"", "1000000001", "99999999999999999999",
                             "nan", "{}", "[3]", "true", "12x"})
    EXPECT_EQ(Read(Loads(Rank(number))), std::nullopt) << number;
  for (const char* body : {"", "{", "[]", "null", "<html>", "{\"loads\":", "{\"loads\":{}}", "{\"loads\":[",
                           "{\"loads\":[[[", "{\"loads\":[1,2]}", "{\"loads\":[{}]}", "{\"loads\":\"[{}]\"}",
                           "\xff\xfe", "{\"loads\":[{\"num_waiting"})
    EXPECT_EQ(Read(body), std::nullopt) << body;
}

TEST(WaitingTokens, AnyCutOfATextIsNothing) {
  const std::string whole = Loads(Rank("5") + "," + Rank("6"));
  for (size_t size = 0; size + 1 < whole.size(); ++size) {
    const auto read = Read(std::string_view(whole).substr(0, size));
    EXPECT_EQ(read, std::nullopt) << size;
  }
}

TEST(WaitingTokens, RanksAreBounded) {
  std::string ranks = Rank("1");
  for (size_t i = 1; i < kMaxRanks; ++i) ranks += "," + Rank("1");
  EXPECT_EQ(Read(Loads(ranks)), kMaxRanks);
  EXPECT_EQ(Read(Loads(ranks + "," + Rank("1"))), std::nullopt);
}

TEST(WaitingTokens, OtherEnginesAreNotAsked) {
  const EngineReaders engines;
  for (const char* engine : {"vllm", "trtllm-serve", "triton-tensorrt-llm", "triton"})
    EXPECT_EQ(engines.Find(engine)->waiting_tokens().path, "") << engine;
}

}  // namespace
}  // namespace fairway::sources::scrape
