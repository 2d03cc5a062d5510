#include "net/name_lookup.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <future>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <thread>

namespace fairway::net {
namespace {

// A resolver whose nameserver is silent for names that begin with "dead", until it is let go. It outlives the look-ups.
class Nameserver {
 public:
  std::function<LookupResult(const std::string&)> resolve() {
    return [state = state_](const std::string& name) -> LookupResult {
      ++state->asked;
      if (!name.starts_with("dead")) return {.addresses = {"10.0.0.1"}, .error = {}};
      state->let_go.wait();
      return {.addresses = {}, .error = "silence"};
    };
  }
  int asked() const { return state_->asked; }
  void LetGo() { promise_.set_value(); }

 private:
  struct State {
    std::shared_future<void> let_go;
    std::atomic<int> asked{0};
  };
  std::promise<void> promise_;
  std::shared_ptr<State> state_ = std::make_shared<State>(promise_.get_future().share());
};

class NameLookupTest : public ::testing::Test {
 protected:
  void OnLoop(const std::function<void()>& task) { RunOn(thread_.loop(), task); }
  LookupResult Find(NameLookup& lookup, const std::string& name) {
    std::promise<LookupResult> found;
    OnLoop([&] { lookup.Find(name, [&](const LookupResult& result) { found.set_value(result); }); });
    return found.get_future().get();
  }
  LoopThread thread_{"lookup-test"};
};

TEST_F(NameLookupTest, TheSystemsOwn) {
  NameLookup lookup(thread_.loop());
  const LookupResult localhost = Find(lookup, "localhost");
  ASSERT_FALSE(localhost.addresses.empty()) << localhost.error;
  const std::set<std::string> loopback = {"127.0.0.1", "::1"};
  for (const std::string& address : localhost.addresses) EXPECT_TRUE(loopback.contains(address)) << address;
  const LookupResult none = Find(lookup, "no-such-host.invalid");
  EXPECT_TRUE(none.addresses.empty());
  EXPECT_NE(none.error, "");
}

TEST_F(NameLookupTest, ASilentNameserverDelaysNoOtherName) {
  Nameserver nameserver;
  NameLookup lookup(thread_.loop(), {.resolve = nameserver.resolve()});
  std::atomic<int> dead{0};
  // All but one of the threads.
  for (size_t i = 1; i < NameLookup::kMostThreads; ++i)
    OnLoop([&] { lookup.Find("dead" + std::to_string(i), [&](const LookupResult&) { ++dead; }); });
  EXPECT_EQ(Find(lookup, "good").addresses, std::vector<std::string>{"10.0.0.1"});
  EXPECT_EQ(Find(lookup, "better").addresses, std::vector<std::string>{"10.0.0.1"});
  EXPECT_EQ(dead, 0);
  nameserver.LetGo();
  while (dead != NameLookup::kMostThreads - 1) std::this_thread::yield();
}

TEST_F(NameLookupTest, ANameIsLookedUpOnceAndAllAreTold) {
  Nameserver nameserver;
  NameLookup lookup(thread_.loop(), {.resolve = nameserver.resolve()});
  std::atomic<int> told{0};
  for (int i = 0; i < 5; ++i)
    OnLoop(
        [&] { lookup.Find("dead", [&](const LookupResult& result) { told += result.error == "silence"; }); });
  nameserver.LetGo();
  while (told != 5) std::this_thread::yield();
  EXPECT_EQ(nameserver.asked(), 1);
}

// Those that took long are looked up when no others wait.
TEST_F(NameLookupTest, WhoseNameHadNoAddressWaitsBehindOthers) {
  std::mutex mutex;
  std::vector<std::string> order;
  // One thread is free before the others: two would take the names in turn and end in any order.
  std::promise<void> go, go_too;
  const std::shared_future<void> gone = go.get_future().share(), gone_too = go_too.get_future().share();
  std::atomic<bool> hold{false};
  std::atomic<size_t> held{0}, told{0};
  const auto resolve = [&](const std::string& name) -> LookupResult {
    if (hold && name.starts_with("busy")) {
      ++held;
      (name == "busy0" ? gone : gone_too).wait();
    }
    const std::lock_guard lock(mutex);
    order.push_back(name);
    if (name.starts_with("bad")) return {.addresses = {}, .error = "no address"};
    return {.addresses = {"10.0.0.1"}, .error = {}};
  };
  NameLookup lookup(thread_.loop(), {.resolve = resolve});
  EXPECT_EQ(Find(lookup, "bad").error, "no address");
  hold = true;
  const auto count = [&](const LookupResult&) { ++told; };
  OnLoop([&] {
    for (size_t i = 0; i < NameLookup::kMostThreads; ++i) lookup.Find("busy" + std::to_string(i), count);
    lookup.Find("bad", count);
    lookup.Find("good", count);
  });
  while (held != NameLookup::kMostThreads) std::this_thread::yield();
  order.clear();
  go.set_value();
  while (told != 3) std::this_thread::yield();
  go_too.set_value();
  while (told != NameLookup::kMostThreads + 2) std::this_thread::yield();
  const auto at = [&](const char* name) {
    return std::find(order.begin(), order.end(), name) - order.begin();
  };
  EXPECT_LT(at("good"), at("bad"));
}

TEST_F(NameLookupTest, TheEndWaitsForNoNameserver) {
  Nameserver nameserver;
  auto lookup =
      std::make_unique<NameLookup>(thread_.loop(), NameLookupOptions{.resolve = nameserver.resolve()});
  bool told = false;
  OnLoop([&] { lookup->Find("dead", [&](const LookupResult&) { told = true; }); });
  while (nameserver.asked() == 0) std::this_thread::yield();
  OnLoop([&] { lookup.reset(); });
  thread_.Join();
  nameserver.LetGo();
  EXPECT_FALSE(told);
}

}  // namespace
}  // namespace fairway::net
