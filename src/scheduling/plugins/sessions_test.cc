// Plugins that remember: session affinity, no-hit-lru.
#include "scheduling/plugins/sessions.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "scheduling/plugin.h"
#include "scheduling/session_token.h"
#include "tests/support/plugins.h"
#include "tests/support/pools.h"

namespace fairway::scheduling {
namespace {

using List = std::vector<uint32_t>;
using Scores = std::vector<float>;
using base::kSecond;

// A scheduler of a session filter and a random picker, and requests with headers.
class Service {
 public:
  explicit Service(const char* parameters, std::vector<PluginSpec> more = {}) {
    more.push_back(tests::Parsed("session-affinity-filter", "session", parameters));
    more.push_back(tests::Spec("random-picker"));
    config_ = tests::Compiled(tests::OneProfile(more, {{"session"}, {"random-picker"}}),
                              {.more_types = {}, .states = nullptr, .allow_experimental = true}, &warnings);
    // Its pages are of the first second, and still count.
    scheduler_.emplace(SchedulerOptions{.ledger_trust = 3600 * kSecond}, 0, config_);
  }
  Outcome Pick(const std::map<std::string, std::string>& headers, std::optional<List> among = std::nullopt) {
    const Facts request{.headers = {headers.begin(), headers.end()}};
    return scheduler_->Pick(*pool.pool(), request, among, now, scratch_, random_);
  }

  tests::TestPool pool{{{"a"}, {"b"}, {"c"}, {"d"}}};
  base::Nanos now = kSecond;
  std::vector<std::string> warnings;

 private:
  std::shared_ptr<const Config> config_;
  std::optional<Scheduler> scheduler_;
  Scratch scratch_;
  base::Random random_{7};
};

TEST(SessionAffinity, TheTokenOfAnAnswerComesBackToItsEndpoint) {
  Service service("{}");
  const Outcome first = service.Pick({});
  ASSERT_EQ(first.num_session_headers, 1u);
  EXPECT_EQ(first.session_headers[0].name, "x-session-token");
  EXPECT_EQ(first.session_headers[0].endpoint, first.choices[0]);
  const auto snapshot = service.pool.pool();
  const std::string token = SessionToken(*snapshot, first.choices[0]);
  for (int i = 0; i < 50; ++i)
    EXPECT_EQ(service.Pick({{"x-session-token", token}}).choices[0], first.choices[0]);
  std::set<uint32_t> others;
  for (int i = 0; i < 50; ++i) others.insert(service.Pick({{"x-session-token", "bm9ib2R5"}}).choices[0]);
  EXPECT_EQ(others.size(), 4u) << "a token of nobody";
  EXPECT_EQ(SessionToken(*snapshot, 0), "ZGVmYXVsdC9h") << "default/a";
}

TEST(SessionAffinity, TheHeaderMayHaveAnotherName) {
  Service service("encodedEndpointHeaderConfig: {header: X-Pin}");
  EXPECT_EQ(service.Pick({}).session_headers[0].name, "x-pin");
  EXPECT_EQ(service.Pick({{"x-pin", "ZGVmYXVsdC9j"}}).choices[0], 2u);
}

TEST(SessionToken, ReadsWhatItWritesAndNothingElse) {
  std::array<char, 16> memory;
  EXPECT_EQ(ReadSessionToken("ZGVmYXVsdC9h", memory), "default/a");
  EXPECT_EQ(ReadSessionToken("ZGVmYXVsdA==", memory), "default");
  EXPECT_EQ(ReadSessionToken("ZGVmYXVsdC8=", memory), "default/");
  for (const char* wrong : {"", "=", "A", "ZGVm!", "ZGVmYXVsdC9hZGVmYXVsdC9h", "\xff\xff\xff\xff"})
    EXPECT_EQ(ReadSessionToken(wrong, memory), "") << wrong;
}

TEST(SessionAffinity, AnIdStaysWhereItWasFirst) {
  Service service("strategy: session_id");
  const auto pick = [&](const char* id, std::optional<List> among = std::nullopt) {
    const Outcome outcome = service.Pick({{"x-session-id", id}}, std::move(among));
    EXPECT_EQ(outcome.num_session_headers, 0u);
    return outcome.choices[0];
  };
  const uint32_t first = pick("s1");
  for (int i = 0; i < 50; ++i) EXPECT_EQ(pick("s1"), first);
  std::set<uint32_t> others;
  for (int i = 0; i < 50; ++i) others.insert(pick(("t" + std::to_string(i)).c_str()));
  EXPECT_EQ(others.size(), 4u);
  // Its endpoint is not there: another one, which it stays with.
  List left{0, 1, 2, 3};
  left.erase(left.begin() + first);
  const uint32_t second = pick("s1", left);
  EXPECT_NE(second, first);
  for (int i = 0; i < 50; ++i) EXPECT_EQ(pick("s1"), second);
}

TEST(SessionAffinity, AnIdIsForgottenAfterItsTime) {
  Service service("{strategy: session_id, sessionIdConfig: {evictionTtlSeconds: 60}}");
  const auto pick = [&] { return service.Pick({{"x-session-id", "s"}}).choices[0]; };
  const uint32_t first = pick();
  for (int i = 0; i < 20; ++i) {
    service.now += 59 * kSecond;
    ASSERT_EQ(pick(), first) << "each request renews it";
  }
  std::set<uint32_t> others;
  for (int i = 0; i < 50; ++i) {
    service.now += 62 * kSecond;
    others.insert(pick());
  }
  EXPECT_EQ(others.size(), 4u);
}

TEST(SessionAffinity, IdsComeFromCookiesAndAgents) {
  Service service(
      "{strategy: session_id, sessionIdConfig: {sources: [{attribute: SessionIDDataKey, producer: cookies}, "
      "{attribute: agent-identity}, {header: x-user}]}}",
      {tests::Parsed("session-id-producer", "cookies", "cookieName: sid"), tests::Spec("agent-identity")});
  EXPECT_TRUE(service.warnings.empty());
  for (const std::map<std::string, std::string>& headers :
       {std::map<std::string, std::string>{{"cookie", "a=1; sid=s1 ;b=2"}},
        {{"x-claude-code-session-id", "s2"}},
        {{"session_id", "s3"}},
        {{"x-user", "s4"}}}) {
    const uint32_t first = service.Pick(headers).choices[0];
    for (int i = 0; i < 30; ++i) ASSERT_EQ(service.Pick(headers).choices[0], first);
  }
  std::set<uint32_t> others;
  for (int i = 0; i < 50; ++i) others.insert(service.Pick({{"cookie", "xsid=s1; sidx=s1"}}).choices[0]);
  EXPECT_EQ(others.size(), 4u);
}

TEST(SessionAffinity, TheScorerGivesOne) {
  tests::Candidates f(3);
  f.Label({{}, {}, {}});
  EXPECT_EQ(f.Scores("session-affinity-scorer"), (Scores{0, 0, 0}));
  f.headers["x-session-token"] = "ZGVmYXVsdC9wb2QtMQ==";  // default/pod-1
  EXPECT_EQ(f.Scores("session-affinity-scorer"), (Scores{0, 1, 0}));
  f.headers["x-session-token"] = "ZGVmYXVsdC9wb2QtMjo4MDAw";  // default/pod-2:8000
  EXPECT_EQ(f.Scores("session-affinity-scorer"), (Scores{0, 0, 1}));
}

TEST(SessionAffinity, HoldsWhereNobodyToldItsLoadForLong) {
  Service service("{}");
  service.now = 7200 * kSecond;
  for (int i = 0; i < 50; ++i) {
    const Outcome outcome = service.Pick({{"x-session-token", "ZGVmYXVsdC9j"}});
    EXPECT_EQ(outcome.rung, Rung::kPowerOfTwo);
    ASSERT_EQ(outcome.choices[0], 2u);
    ASSERT_EQ(outcome.num_choices, 1u);
  }
}

TEST(Sessions, TheOldestOfABucketMakesRoom) {
  Sessions sessions;
  const auto key = [](uint64_t i) { return 5 + i * Sessions::kBuckets; };
  for (uint64_t i = 0; i < 6; ++i) sessions.Bind(key(i), 100 + i, static_cast<base::Nanos>(10 + i) * kSecond);
  const auto find = [&](uint64_t i) { return sessions.Find(key(i), 20 * kSecond, 300 * kSecond); };
  EXPECT_EQ(find(0), std::nullopt);
  EXPECT_EQ(find(1), std::nullopt);
  for (uint64_t i = 2; i < 6; ++i) EXPECT_EQ(find(i), 100 + i);
  EXPECT_EQ(sessions.Find(key(5), 316 * kSecond, 300 * kSecond), std::nullopt);
}

TEST(NoHitLruScorer, WhoWasUsedLongestAgoIsNext) {
  const char* const type = "no-hit-lru-scorer";
  tests::Candidates f(3);
  f.Label({{}, {}, {}});
  const auto use = [&](size_t i) {
    f.With(type, {}, [&](const auto& context, const auto& plugin) {
      plugin.hook->Picked(context, 0, f.endpoints[i]);
      return 0;
    });
  };
  // Each scorer is made anew: what it remembers is in `states`, as over a new config.
  const auto keep = f.With(type, {}, [](const auto&, const auto&) { return 0; });
  EXPECT_EQ(keep, 0);
  EXPECT_EQ(f.Scores(type), (Scores{1, 0.5f, 0}));
  use(0);
  EXPECT_EQ(f.Scores(type), (Scores{0, 1, 0.5f}));
  use(1);
  EXPECT_EQ(f.Scores(type), (Scores{0.5f, 0, 1}));
  use(2);
  use(0);
  EXPECT_EQ(f.Scores(type), (Scores{0, 1, 0.5f}));
  f.all = {0, 1};
  EXPECT_EQ(f.Scores(type), (Scores{0, 1})) << "its place is that among all: 2 is beyond 1";
  f.all = {1};
  EXPECT_EQ(f.Scores(type), (Scores{1}));
  f.all = {0, 1, 2};
  f["prefix-match"] = {0, 0.1f, 0};
  EXPECT_EQ(f.Scores(type), (Scores{0.5f, 0.5f, 0.5f}));
  use(1);
  f["prefix-match"] = {0, 0, 0};
  EXPECT_EQ(f.Scores(type), (Scores{0, 1, 0.5f})) << "one that had a hit is not remembered";
}

}  // namespace
}  // namespace fairway::scheduling
