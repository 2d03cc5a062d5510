#include "sources/kubernetes/reflector.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "sources/kubernetes/objects.h"
#include "tests/support/fake_api_server.h"

namespace fairway::sources::kubernetes {
namespace {

using fairway::testing::FakeApiServer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Keeps names, and a journal of what came.
class NameSink final : public ReflectorSink {
 public:
  void BeginList() override { Note("begin"), staged_.clear(); }
  void Listed(std::string_view object) override { staged_.push_back(Name(object)); }
  void EndList() override {
    names_ = staged_;
    Note("end " + std::to_string(names_.size()));
  }
  void Set(std::string_view object) override { Note("set " + Name(object)); }
  void Deleted(std::string_view object) override { Note("deleted " + Name(object)); }
  void StateChanged() override {}

  std::vector<std::string> journal() {
    std::lock_guard lock(mutex_);
    return journal_;
  }

 private:
  static std::string Name(std::string_view object) { return ReadObjectId(object).value_or(ObjectId{}).name; }
  void Note(const std::string& what) {
    std::lock_guard lock(mutex_);
    journal_.push_back(what);
  }
  std::mutex mutex_;
  std::vector<std::string> journal_;
  std::vector<std::string> names_;
  std::vector<std::string> staged_;
};

std::string Object(const std::string& name, int version) {
  return R"({"metadata":{"name":")" + name + R"(","namespace":"default","resourceVersion":")" +
         std::to_string(version) + R"("}})";
}
std::string Event(const std::string& type, const std::string& object) {
  return R"({"type":")" + type + R"(","object":)" + object + "}\n";
}
std::string List(int version, const std::vector<std::string>& objects, const std::string& token = "") {
  std::string text = R"({"kind":"PodList","metadata":{"resourceVersion":")" + std::to_string(version) +
                     R"(","continue":")" + token + R"("},"items":[)";
  for (const std::string& object : objects) text += (text.back() == '[' ? "" : ",") + object;
  return text + "]}";
}
std::string Failure(int code, const std::string& reason, const std::string& message) {
  return "{\"kind\":\"Status\",\"message\":\"" + message + "\",\"reason\":\"" + reason +
         "\",\"code\":" + std::to_string(code) + "}";
}
std::string Expired() { return Failure(410, "Expired", "too old resource version: 1 (7)"); }

class ReflectorTest : public ::testing::Test {
 protected:
  void Start(ReflectorOptions more = {}) {
    more.path = "/api/v1/namespaces/default/pods";
    more.resource = "pods";
    more.namespace_name = "default";
    more.min_pause = base::kMillisecond;
    more.max_pause = 20 * base::kMillisecond;
    api_.Run([&] {
      server_ = *ApiServer::Create(api_.Config());
      reflector_ = std::make_unique<Reflector>(api_.loop(), *server_, more, sink_, clock_, log_);
    });
  }
  void TearDown() override {
    api_.Run([&] { reflector_.reset(); });
  }
  bool Await(const std::string& what) {
    return api_.Await([&] {
      const auto journal = sink_.journal();
      return !journal.empty() && std::find(journal.begin(), journal.end(), what) != journal.end();
    });
  }
  std::string Logged() {
    std::lock_guard lock(log_mutex_);
    return logged_;
  }

  std::mutex log_mutex_;
  std::string logged_;
  base::Log log_{base::LogLevel::kInfo, base::LogFormat::kText, [this](std::string_view line) {
                   std::lock_guard lock(log_mutex_);
                   logged_ += line;
                 }};
  base::SystemClock clock_;
  NameSink sink_;
  FakeApiServer api_;
  std::unique_ptr<ApiServer> server_;
  std::unique_ptr<Reflector> reflector_;
};

TEST_F(ReflectorTest, ListsInPagesAndWatchesFromThere) {
  api_.Expect({.has = {"limit=2", "!continue"}, .body = List(7, {Object("a", 1), Object("b", 2)}, "t/1=")});
  api_.Expect({.has = {"limit=2", "continue=t%2F1%3D"}, .body = List(7, {Object("c", 3)})});
  auto watch =
      api_.Expect({.has = {"watch=true", "resourceVersion=7", "allowWatchBookmarks=true", "timeoutSeconds="},
                   .stream = true});
  Start({.page_size = 2});
  ASSERT_TRUE(Await("end 3"));
  ASSERT_TRUE(watch->Opened());
  EXPECT_TRUE(api_.Ask([&] { return reflector_->synced() && reflector_->age() == 0; }));

  // Cut anywhere, several at once.
  const std::string events = Event("ADDED", Object("d", 8)) + Event("DELETED", Object("a", 9)) +
                             Event("BOOKMARK", R"({"kind":"Pod","metadata":{"resourceVersion":"20"}})");
  watch->Write(events.substr(0, 30));
  watch->Write(events.substr(30));
  ASSERT_TRUE(Await("deleted a"));
  EXPECT_THAT(sink_.journal(), ElementsAre("begin", "end 3", "set d", "deleted a"));

  // It ends, as the server said it would: the next one goes on behind the bookmark.
  auto next = api_.Expect({.has = {"watch=true", "resourceVersion=20"}, .stream = true});
  watch->End();
  ASSERT_TRUE(next->Opened());
  next->Write(Event("MODIFIED", Object("c", 21)));
  ASSERT_TRUE(Await("set c"));
  EXPECT_EQ(api_.Ask([&] { return reflector_->stats().lists; }), 1u);
}

TEST_F(ReflectorTest, TooOldIsListedAnewAndWhatIsKnownStaysUntilThen) {
  api_.Expect({.body = List(7, {Object("a", 1)})});
  auto watch = api_.Expect({.has = {"watch=true"}, .stream = true});
  Start();
  ASSERT_TRUE(watch->Opened());
  auto list = api_.Expect({.has = {"limit=", "!watch"}, .held = true, .body = List(9, {Object("b", 8)})});
  watch->Write(Event("ERROR", Expired()) + Event("ADDED", Object("x", 8)));  // what follows does not count
  ASSERT_TRUE(list->Opened());
  EXPECT_THAT(sink_.journal(), ElementsAre("begin", "end 1", "begin"));
  auto next = api_.Expect({.has = {"watch=true", "resourceVersion=9"}, .stream = true});
  list->Release();
  ASSERT_TRUE(next->Opened());
  EXPECT_THAT(sink_.journal(), ElementsAre("begin", "end 1", "begin", "end 1"));
  EXPECT_EQ(api_.Ask([&] { return reflector_->stats().expired; }), 1u);

  // And as an HTTP status.
  api_.Expect({.has = {"watch=true", "resourceVersion=9"}, .status = 410, .body = Expired()});
  api_.Expect({.has = {"!watch"}, .body = List(12, {})});
  auto last = api_.Expect({.has = {"watch=true", "resourceVersion=12"}, .stream = true});
  next->End();
  EXPECT_TRUE(last->Opened());
}

TEST_F(ReflectorTest, AServerThatSaysTooOldForEverIsNotStormed) {
  api_.Default({.has = {}, .body = List(7, {})}, {.status = 410, .body = Expired()});
  Start({.seed = 3});
  ASSERT_TRUE(
      api_.Await([&] { return reflector_ && api_.Ask([&] { return reflector_->stats().expired >= 12; }); }));
  // After the first few, each round waits for 10 to 20 ms: pauses grow from 1 ms to 20 ms.
  EXPECT_GE(api_.Elapsed(), 60 * base::kMillisecond);
}

TEST_F(ReflectorTest, PagesThatExpireAreListedWithoutPages) {
  api_.Expect({.has = {"limit=2"}, .body = List(7, {Object("a", 1), Object("b", 2)}, "t")});
  api_.Expect({.has = {"continue=t"}, .status = 410, .body = Expired()});
  api_.Expect({.has = {"limit=0", "!continue"}, .body = List(9, {Object("z", 9)})});
  auto watch = api_.Expect({.has = {"watch=true", "resourceVersion=9"}, .stream = true});
  Start({.page_size = 2});
  ASSERT_TRUE(watch->Opened());
  EXPECT_THAT(sink_.journal(), ElementsAre("begin", "begin", "end 1"));
}

TEST_F(ReflectorTest, AConnectionThatBreaksGoesOnWhereItWas) {
  api_.Expect({.body = List(7, {Object("a", 1)})});
  auto watch = api_.Expect({.has = {"watch=true", "resourceVersion=7"}, .stream = true});
  Start();
  ASSERT_TRUE(watch->Opened());
  watch->Write(Event("ADDED", Object("b", 8)) + R"({"type":"ADDED","obj)");
  ASSERT_TRUE(Await("set b"));
  auto next = api_.Expect({.has = {"watch=true", "resourceVersion=8"}, .stream = true});
  watch->Break();
  ASSERT_TRUE(next->Opened());
  EXPECT_EQ(api_.Ask([&] { return reflector_->stats().lists; }), 1u);
  EXPECT_TRUE(api_.Await([&] { return api_.Ask([&] { return !reflector_->failing(); }); }));
  EXPECT_THAT(Logged(), HasSubstr("the API server answers again"));
}

TEST_F(ReflectorTest, AListThatBreaksIsNoList) {
  api_.Expect({.body = R"({"metadata":{"resourceVersion":"7"},"items":[)" + Object("a", 1)});
  api_.Expect({.body = "oops"});
  api_.Expect({.body = R"({"items":[]})"});
  api_.Expect({.body = List(7, {Object("b", 1)})});
  auto watch = api_.Expect({.has = {"watch=true"}, .stream = true});
  Start();
  ASSERT_TRUE(watch->Opened());
  EXPECT_THAT(sink_.journal(), ElementsAre("begin", "begin", "begin", "begin", "end 1"));
}

TEST_F(ReflectorTest, RefusalsNameTheMissingRuleOnceAndAreTriedAgain) {
  const std::string forbidden =
      R"({"kind":"Status","message":"pods is forbidden: User \"u\" cannot list resource","reason":"Forbidden","code":403})";
  for (int i = 0; i < 3; ++i) api_.Expect({.status = 403, .body = forbidden});
  api_.Expect({.body = List(7, {})});
  auto watch = api_.Expect({.has = {"watch=true"}, .stream = true});
  Start();
  ASSERT_TRUE(watch->Opened());
  const std::string rule = R"(apiGroups: [""], resources: ["pods"], verbs: ["list"], in namespace default)";
  EXPECT_THAT(Logged(), HasSubstr(rule));
  EXPECT_EQ(Logged().find(rule), Logged().rfind(rule));
  EXPECT_THAT(Logged(), HasSubstr("cannot list resource"));
}

TEST_F(ReflectorTest, ANewCrdIsNotWaitedForLongerThanItTakes) {
  api_.Expect({.status = 404, .body = "404 page not found\n"});
  api_.Expect({.status = 429,
               .headers = {{"Retry-After", "1"}},
               .body = R"({"kind":"Status","message":"storage is (re)initializing","code":429})"});
  api_.Expect({.body = List(7, {})});
  auto watch = api_.Expect({.has = {"watch=true"}, .stream = true});
  Start();
  ASSERT_TRUE(watch->Opened());
  EXPECT_LT(api_.Elapsed(), base::kSecond / 2);
}

TEST_F(ReflectorTest, AServerThatDoesNotAnswerIsGivenUp) {
  auto silent = api_.Expect({.held = true});
  api_.Expect({.body = List(7, {})});
  auto watch = api_.Expect({.has = {"watch=true"}, .stream = true});
  Start({.call_timeout = 50 * base::kMillisecond});
  ASSERT_TRUE(watch->Opened());
  EXPECT_THAT(Logged(), HasSubstr("no answer within 0"));
}

TEST_F(ReflectorTest, SelectorsAreEncoded) {
  EXPECT_EQ(PercentEncode("a in (x,y),!b"), "a%20in%20%28x%2Cy%29%2C%21b");
  api_.Expect(
      {.has = {"labelSelector=a%20in%20%28x%29", "fieldSelector=metadata.name%3Dp"}, .body = List(7, {})});
  auto watch = api_.Expect({.has = {"watch=true", "labelSelector=", "fieldSelector="}, .stream = true});
  Start({.label_selector = "a in (x)", .field_selector = "metadata.name=p"});
  EXPECT_TRUE(watch->Opened());
}

}  // namespace
}  // namespace fairway::sources::kubernetes
