#include "sources/kubernetes/access_review.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "tests/support/fake_api_server.h"

namespace fairway::sources::kubernetes {
namespace {

using fairway::testing::FakeAnswer;
using fairway::testing::FakeApiServer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Verdict = AccessReview::Verdict;

const FakeAnswer kSomebody{.has = {"/tokenreviews"},
                           .status = 201,
                           .body = R"({"status":{"authenticated":true,"user":{"username":"u","uid":"1",)"
                                   R"("groups":["g"],"extra":{"k":["v"]}}}})"};
const FakeAnswer kNobody{
    .has = {"/tokenreviews"}, .status = 201, .body = R"({"status":{"error":"bad token"}})"};
const FakeAnswer kMay{
    .has = {"/subjectaccessreviews"}, .status = 201, .body = R"({"status":{"allowed":true}})"};
const FakeAnswer kMayNot{
    .has = {"/subjectaccessreviews"}, .status = 201, .body = R"({"status":{"allowed":false}})"};

class AccessReviewTest : public ::testing::Test {
 protected:
  void Start(const AccessReviewOptions& options = {}) {
    api_.Run([&] {
      auto made = AccessReview::Create(api_.loop(), api_.Config(), clock_, log_, registry_, options);
      ASSERT_TRUE(made) << made.error().message;
      review_ = std::move(*made);
    });
  }
  ~AccessReviewTest() override {
    api_.Run([&] { review_.reset(); });
  }

  // Asks and waits.
  Verdict Ask(const std::string& token, const std::string& path = "/metrics",
              const std::string& from = "10.0.0.1") {
    auto answer = std::make_shared<std::vector<Verdict>>();
    api_.Run([&] { review_->MayGet(token, path, from, [answer](Verdict v) { answer->push_back(v); }); });
    EXPECT_TRUE(api_.Await([&] { return api_.Ask([&] { return !answer->empty(); }); }));
    return api_.Ask([&] { return answer->empty() ? Verdict::kUnavailable : answer->front(); });
  }
  std::string Logged() {
    std::lock_guard lock(mutex_);
    return logged_;
  }

  base::ManualClock clock_{base::kSecond};
  std::mutex mutex_;
  std::string logged_;
  base::Log log_{base::LogLevel::kInfo, base::LogFormat::kText, [this](std::string_view line) {
                   std::lock_guard lock(mutex_);
                   logged_ += line;
                 }};
  base::Registry registry_;
  FakeApiServer api_;
  std::unique_ptr<AccessReview> review_;
};

TEST_F(AccessReviewTest, WhoAndWhether) {
  for (const auto& answer : {kSomebody, kMay, kSomebody, kMayNot, kNobody}) api_.Expect(answer);
  Start();
  EXPECT_EQ(Ask("a"), Verdict::kAllowed);
  EXPECT_EQ(Ask("b"), Verdict::kForbidden);
  EXPECT_EQ(Ask("c"), Verdict::kUnknown);
  EXPECT_EQ(Ask(std::string(17 << 10, 'x')), Verdict::kUnknown);  // not even asked
}

TEST_F(AccessReviewTest, AnswersAreKeptForAWhile) {
  for (const auto& answer : {kSomebody, kMay, kNobody}) api_.Expect(answer);
  Start();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(Ask("a"), Verdict::kAllowed);
    EXPECT_EQ(Ask("b"), Verdict::kUnknown);
  }
  // The no is old sooner than the yes.
  clock_.Advance(11 * base::kSecond);
  for (const auto& answer : {kSomebody, kMay}) api_.Expect(answer);
  EXPECT_EQ(Ask("b"), Verdict::kAllowed);
  EXPECT_EQ(Ask("a"), Verdict::kAllowed);
  // Another page is another question; and each yes ends.
  api_.Expect(kSomebody);
  api_.Expect(kMayNot);
  EXPECT_EQ(Ask("a", "/debug/fleet"), Verdict::kForbidden);
  clock_.Advance(61 * base::kSecond);
  api_.Expect(kNobody);
  EXPECT_EQ(Ask("a"), Verdict::kUnknown);
}

TEST_F(AccessReviewTest, AYesCountsOnWhileTheServerIsAway) {
  const FakeAnswer broken{
      .has = {}, .status = 500, .body = R"({"kind":"Status","message":"etcd is gone","code":500})"};
  for (const auto& answer : {kSomebody, kMay}) api_.Expect(answer);
  Start();
  EXPECT_EQ(Ask("a"), Verdict::kAllowed);
  clock_.Advance(61 * base::kSecond);
  for (int i = 0; i < 2; ++i) api_.Expect(broken);
  EXPECT_EQ(Ask("a"), Verdict::kAllowed);
  EXPECT_EQ(Ask("b"), Verdict::kUnavailable);
  EXPECT_THAT(Logged(), HasSubstr("etcd is gone"));
  EXPECT_EQ(Logged().find("does not say"), Logged().rfind("does not say")) << "told once";
  clock_.Advance(600 * base::kSecond);
  api_.Expect(broken);
  EXPECT_EQ(Ask("a"), Verdict::kUnavailable);
}

TEST_F(AccessReviewTest, AMissingRuleIsNamed) {
  api_.Expect(
      {.status = 403, .body = R"({"kind":"Status","message":"tokenreviews is forbidden","code":403})"});
  Start();
  EXPECT_EQ(Ask("a"), Verdict::kUnavailable);
  EXPECT_THAT(Logged(), HasSubstr(R"(resources: ["tokenreviews"], verbs: ["create"], in a ClusterRole)"));
}

TEST_F(AccessReviewTest, QuestionsWaitTheirTurnAndAreBounded) {
  auto held = kSomebody;
  held.held = true;
  const auto first = api_.Expect(held);
  api_.Expect(kMay);
  Start({.max_waiting = 3});
  std::vector<Verdict> answers;
  api_.Run([&] {
    // The same question thrice is asked once.
    for (int i = 0; i < 4; ++i)
      review_->MayGet("a", "/metrics", "10.0.0.1", [&](Verdict v) { answers.push_back(v); });
  });
  EXPECT_THAT(api_.Ask([&] { return answers; }), ElementsAre(Verdict::kUnavailable));
  ASSERT_TRUE(first->Opened());
  first->Release();
  EXPECT_TRUE(api_.Await([&] { return api_.Ask([&] { return answers.size() == 4; }); }));
  EXPECT_THAT(api_.Ask([&] { return answers; }),
              ElementsAre(Verdict::kUnavailable, Verdict::kAllowed, Verdict::kAllowed, Verdict::kAllowed));
}

TEST_F(AccessReviewTest, OldAnswersMakeRoom) {
  for (int i = 0; i < 3; ++i) api_.Expect(kNobody);
  Start({.max_kept = 2});
  for (const char* token : {"a", "b", "c", "c", "b"}) EXPECT_EQ(Ask(token), Verdict::kUnknown);
  api_.Expect(kSomebody);
  api_.Expect(kMay);
  EXPECT_EQ(Ask("a"), Verdict::kAllowed);
}

TEST_F(AccessReviewTest, MadeUpTokensDoNotPushOutAYes) {
  for (const auto& answer : {kSomebody, kMay}) api_.Expect(answer);
  Start({.max_kept = 2});
  EXPECT_EQ(Ask("a"), Verdict::kAllowed);
  for (int i = 0; i < 5; ++i) {
    api_.Expect(kNobody);
    EXPECT_EQ(Ask("made-up-" + std::to_string(i)), Verdict::kUnknown);
  }
  EXPECT_EQ(Ask("a"), Verdict::kAllowed);  // nothing more is expected of the server
}

TEST_F(AccessReviewTest, AnEarlierYesCountsWhileTheServerIsSlowAndWhenTooManyWait) {
  for (const auto& answer : {kSomebody, kMay}) api_.Expect(answer);
  Start({.max_waiting = 2});
  EXPECT_EQ(Ask("a"), Verdict::kAllowed);
  clock_.Advance(61 * base::kSecond);
  auto held = kNobody;
  held.held = true;
  const auto slow = api_.Expect(held);
  std::vector<Verdict> garbage;
  std::vector<Verdict> again;
  std::vector<Verdict> full;
  api_.Run([&] {
    review_->MayGet("x", "/metrics", "10.6.6.6", [&](Verdict v) { garbage.push_back(v); });
    review_->MayGet("a", "/metrics", "10.0.0.1", [&](Verdict v) { again.push_back(v); });
    // A third has no place, but is known.
    review_->MayGet("a", "/metrics", "10.0.0.1", [&](Verdict v) { full.push_back(v); });
  });
  ASSERT_TRUE(slow->Opened());
  EXPECT_THAT(api_.Ask([&] { return full; }), ElementsAre(Verdict::kAllowed));
  EXPECT_TRUE(api_.Ask([&] { return again.empty(); }));
  clock_.Advance(2 * base::kSecond);
  EXPECT_TRUE(api_.Await([&] { return api_.Ask([&] { return !again.empty(); }); }));
  EXPECT_THAT(api_.Ask([&] { return again; }), ElementsAre(Verdict::kAllowed));
  // From now on it is known that the server is slow: nobody who had a yes waits.
  EXPECT_EQ(Ask("a"), Verdict::kAllowed);
  // Who had none is told in the end, and not only when the server answers.
  clock_.Advance(9 * base::kSecond);
  EXPECT_TRUE(api_.Await([&] { return api_.Ask([&] { return !garbage.empty(); }); }));
  EXPECT_THAT(api_.Ask([&] { return garbage; }), ElementsAre(Verdict::kUnavailable));
  // The question of who had a yes is still asked, and a no ends it.
  api_.Expect(kNobody);
  slow->Release();
  EXPECT_TRUE(api_.Await([&] { return Ask("a") == Verdict::kUnknown; }));
}

TEST_F(AccessReviewTest, AddressesShareThePlacesAndTheTurns) {
  auto held = kNobody;
  held.held = true;
  const auto first = api_.Expect(held);
  Start({.max_waiting = 4});
  std::vector<std::string> answers;
  const auto ask = [&](const std::string& token, const std::string& from) {
    review_->MayGet(token, "/metrics", from, [&answers, token](Verdict v) {
      answers.push_back(token + (v == Verdict::kUnavailable ? "-" : ""));
    });
  };
  api_.Run([&] {
    for (const char* token : {"x1", "x2", "x3", "x4", "x5"}) ask(token, "10.6.6.6");
    ask("honest", "10.0.0.1");
  });
  ASSERT_TRUE(first->Opened());
  // x5 has no place, and x4 gives its own to the other address.
  EXPECT_TRUE(api_.Await([&] { return api_.Ask([&] { return answers.size() == 2; }); }));
  EXPECT_THAT(api_.Ask([&] { return answers; }), ElementsAre("x5-", "x4-"));
  for (int i = 0; i < 3; ++i) api_.Expect(kNobody);
  first->Release();
  EXPECT_TRUE(api_.Await([&] { return api_.Ask([&] { return answers.size() == 6; }); }));
  EXPECT_THAT(api_.Ask([&] { return answers; }), ElementsAre("x5-", "x4-", "x1", "honest", "x2", "x3"));
}

TEST_F(AccessReviewTest, TheEndInTheMiddle) {
  auto held = kSomebody;
  held.held = true;
  const auto exchange = api_.Expect(held);
  Start();
  bool answered = false;
  api_.Run([&] { review_->MayGet("a", "/metrics", "10.0.0.1", [&](Verdict) { answered = true; }); });
  ASSERT_TRUE(exchange->Opened());
  api_.Run([&] { review_.reset(); });
  exchange->Release();
  EXPECT_FALSE(api_.Ask([&] { return answered; }));
}

}  // namespace
}  // namespace fairway::sources::kubernetes
