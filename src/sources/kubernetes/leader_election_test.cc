#include "sources/kubernetes/leader_election.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/support/fake_api_server.h"

namespace fairway::sources::kubernetes {
namespace {

using fairway::testing::FakeApiServer;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::string Lease(const std::string& holder, int version,
                  const std::string& renewed = "2026-01-01T00:00:00.000000Z", int seconds = 1,
                  int transitions = 4) {
  return R"({"kind":"Lease","metadata":{"name":"l","namespace":"llm","labels":{"a":"b"},"resourceVersion":")" +
         std::to_string(version) + R"("},"spec":{"holderIdentity":")" + holder +
         R"(","leaseDurationSeconds":)" + std::to_string(seconds) +
         R"(,"acquireTime":"2026-01-01T00:00:00.000000Z","renewTime":")" + renewed +
         R"(","leaseTransitions":)" + std::to_string(transitions) + "}}";
}

class LeaderElectionTest : public ::testing::Test {
 protected:
  void Start() {
    api_.Run([&] {
      server_ = *ApiServer::Create(api_.Config());
      election_ =
          std::make_unique<LeaderElection>(api_.loop(), *server_,
                                           LeaderElectionOptions{.namespace_name = "llm",
                                                                 .name = "l",
                                                                 .identity = "me",
                                                                 .lease = base::kSecond,
                                                                 .renew = 20 * base::kMillisecond,
                                                                 .look = 10 * base::kMillisecond,
                                                                 .call_timeout = 200 * base::kMillisecond},
                                           clock_, log_, [this](bool leads) { told_.push_back(leads); });
    });
  }
  void TearDown() override {
    api_.Run([&] { election_.reset(); });
  }
  bool AwaitTold(size_t count) {
    return api_.Await([&] { return api_.Ask([&] { return told_.size(); }) >= count; });
  }
  std::vector<bool> told() {
    return api_.Ask([&] { return told_; });
  }

  base::SystemClock clock_;
  base::Log log_{base::LogLevel::kOff, base::LogFormat::kText};
  std::vector<bool> told_;
  FakeApiServer api_;
  std::unique_ptr<ApiServer> server_;
  std::unique_ptr<LeaderElection> election_;
};

TEST(MicroTime, HasSixDecimals) {
  EXPECT_EQ(MicroTime(0), "1970-01-01T00:00:00.000000Z");
  EXPECT_EQ(MicroTime(1'767'225'600'000'042), "2026-01-01T00:00:00.000042Z");
}

TEST_F(LeaderElectionTest, MakesTheLeaseAndRenewsIt) {
  api_.Expect(
      {.has = {"GET /apis/coordination.k8s.io/v1/namespaces/llm/leases/l "}, .status = 404, .body = "{}"});
  api_.Expect({.has = {"POST /apis/coordination.k8s.io/v1/namespaces/llm/leases ", R"("holderIdentity":"me")",
                       R"("leaseDurationSeconds":1)", R"("leaseTransitions":0)", R"("name":"l")"},
               .status = 201,
               .body = Lease("me", 1)});
  api_.Expect({.has = {"GET "}, .body = Lease("me", 1)});
  auto renewal = api_.Expect(
      {.has = {"PUT /apis/coordination.k8s.io/v1/namespaces/llm/leases/l ", R"("resourceVersion":"1")",
               R"("labels":{"a":"b"})", R"("acquireTime":"2026-01-01T00:00:00.000000Z")",
               R"("leaseTransitions":4)", "!\"renewTime\":\"2026-01-01"},
       .body = Lease("me", 2)});
  Start();
  ASSERT_TRUE(renewal->Opened());
  EXPECT_THAT(told(), ElementsAre(true));
}

TEST_F(LeaderElectionTest, WaitsUntilAnotherSaysNothingMoreForItsWholeLease) {
  // The times in it are of another clock, years ago: what counts is that nothing changes.
  for (int i = 0; i < 10; ++i)
    api_.Expect({.has = {"GET "}, .body = Lease("other", 7, "t" + std::to_string(i))});
  api_.Default({.body = Lease("other", 7, "the last")}, {});
  Start();
  ASSERT_TRUE(api_.Await([&] { return api_.Elapsed() > base::kSecond * 6 / 10; }));
  EXPECT_THAT(told(), IsEmpty());
  // The default answers the PUT too; it names another holder still, so wait for the attempt by its effect.
  ASSERT_TRUE(AwaitTold(1));
  EXPECT_GE(api_.Elapsed(), base::kSecond);
}

TEST_F(LeaderElectionTest, AnEmptyHolderIsTakenOverAtOnceAndCounted) {
  api_.Expect({.has = {"GET "}, .body = Lease("", 7)});
  api_.Expect({.has = {"PUT ", R"("holderIdentity":"me")", R"("leaseTransitions":5)",
                       "!\"acquireTime\":\"2026-01-01"},
               .body = Lease("me", 8)});
  Start();
  ASSERT_TRUE(AwaitTold(1));
  EXPECT_LT(api_.Elapsed(), base::kSecond);
}

// A container that was killed and started again in its Pod: nobody else leads, so nothing is waited for.
TEST_F(LeaderElectionTest, ALeaseOfOursFromBeforeARestartIsTakenOverAtOnce) {
  api_.Expect({.has = {"GET "}, .body = Lease("me", 7, "2026-01-01T00:00:00.000000Z", 3600)});
  api_.Expect({.has = {"PUT ", R"("holderIdentity":"me")", R"("leaseTransitions":4)",
                       R"("acquireTime":"2026-01-01T00:00:00.000000Z")", R"("leaseDurationSeconds":1)"},
               .body = Lease("me", 8)});
  Start();
  ASSERT_TRUE(AwaitTold(1));
  EXPECT_THAT(told(), ElementsAre(true));
}

TEST_F(LeaderElectionTest, WhoWasSlowerFollows) {
  api_.Expect({.has = {"GET "}, .body = Lease("", 7)});
  api_.Expect(
      {.has = {"PUT "}, .status = 409, .body = R"({"kind":"Status","code":409,"reason":"Conflict"})"});
  auto look = api_.Expect({.has = {"GET "}, .body = Lease("faster", 8)});
  Start();
  ASSERT_TRUE(look->Opened());
  EXPECT_THAT(told(), IsEmpty());
}

TEST_F(LeaderElectionTest, GoesOnLeadingWhileTheServerIsAwayAndStopsWhenItSeesAnother) {
  api_.Expect({.has = {"GET "}, .body = Lease("", 7)});
  api_.Expect({.has = {"PUT "}, .body = Lease("me", 8)});
  api_.Expect({.has = {"GET "}, .status = 500, .body = "{}"});
  auto silent = api_.Expect({.has = {"GET "}, .held = true});
  auto other = api_.Expect({.has = {"GET "}, .body = Lease("other", 9)});
  Start();
  ASSERT_TRUE(silent->Opened());
  EXPECT_THAT(told(), ElementsAre(true));
  ASSERT_TRUE(AwaitTold(2));
  EXPECT_THAT(told(), ElementsAre(true, false));
}

TEST_F(LeaderElectionTest, GivesItBack) {
  api_.Expect({.has = {"GET "}, .body = Lease("", 7)});
  api_.Expect({.has = {"PUT "}, .body = Lease("me", 8)});
  Start();
  ASSERT_TRUE(AwaitTold(1));
  auto read = api_.Expect({.has = {"GET "}, .body = Lease("me", 8)});
  auto release = api_.Expect(
      {.has = {"PUT ", R"("holderIdentity":"")", R"("leaseDurationSeconds":1)"}, .body = Lease("", 9)});
  bool done = false;
  api_.Run([&] { election_->Release([&] { done = true; }); });
  ASSERT_TRUE(api_.Await([&] { return api_.Ask([&] { return done; }); }));
  EXPECT_THAT(told(), ElementsAre(true, false));
}

TEST_F(LeaderElectionTest, GivingItBackTakesNoLongerThanACallMay) {
  api_.Expect({.has = {"GET "}, .body = Lease("", 7)});
  api_.Expect({.has = {"PUT "}, .body = Lease("me", 8)});
  Start();
  ASSERT_TRUE(AwaitTold(1));
  auto read = api_.Expect({.has = {"GET "}, .held = true});
  const auto began = api_.Elapsed();
  int done = 0;
  api_.Run([&] { election_->Release([&] { ++done; }); });
  ASSERT_TRUE(api_.Await([&] { return api_.Ask([&] { return done; }) == 1; }));
  EXPECT_LT(api_.Elapsed() - began, base::kSecond);
}

TEST_F(LeaderElectionTest, GivesNothingBackThatIsNotOurs) {
  auto look = api_.Expect({.has = {"GET "}, .body = Lease("other", 7)});
  Start();
  ASSERT_TRUE(look->Opened());
  bool done = false;
  api_.Run([&] { election_->Release([&] { done = true; }); });
  EXPECT_TRUE(api_.Await([&] { return api_.Ask([&] { return done; }); }));
  EXPECT_THAT(told(), IsEmpty());
}

}  // namespace
}  // namespace fairway::sources::kubernetes
