#include "net/loop.h"

#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

namespace fairway::net {
namespace {

TEST(LoopTest, RunsPostedTasksInOrderOnItsThread) {
  LoopThread thread("order");
  std::vector<int> seen;
  std::promise<bool> done;
  EXPECT_FALSE(thread.loop().InLoop());
  for (int i = 0; i < 100; ++i) thread.loop().Post([&seen, i] { seen.push_back(i); });
  thread.loop().Post([&] { done.set_value(thread.loop().InLoop()); });
  EXPECT_TRUE(done.get_future().get());
  ASSERT_EQ(seen.size(), 100u);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(seen[static_cast<size_t>(i)], i);
}

TEST(LoopTest, TakesTasksFromManyThreads) {
  LoopThread thread("many");
  std::atomic<int> left{4000};
  std::promise<void> done;
  std::vector<std::thread> posters;
  posters.reserve(4);
  for (int t = 0; t < 4; ++t) {
    posters.emplace_back([&] {
      for (int i = 0; i < 1000; ++i) {
        thread.loop().Post([&] {
          if (--left == 0) done.set_value();
        });
      }
    });
  }
  for (auto& poster : posters) poster.join();
  done.get_future().get();
  EXPECT_EQ(left, 0);
}

TEST(LoopTest, StopBeforeRunIsNotLost) {
  Loop loop;
  loop.Stop();
  loop.Run();
  bool ran = false;  // and it can run again
  loop.Post([&] {
    ran = true;
    loop.Stop();
  });
  loop.Run();
  EXPECT_TRUE(ran);
}

TEST(LoopTest, ThreadHasItsNameAndTakesNoSignals) {
  LoopThread thread("a-name-that-is-too-long");
  std::promise<std::pair<std::string, bool>> told;
  thread.loop().Post([&] {
    char name[32] = {};
    pthread_getname_np(pthread_self(), name, sizeof name);
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, nullptr, &mask);
    told.set_value({name, sigismember(&mask, SIGTERM) == 1 && sigismember(&mask, SIGHUP) == 1});
  });
  auto [name, blocked] = told.get_future().get();
  EXPECT_EQ(name, "a-name-that-is-");
  EXPECT_TRUE(blocked);
  sigset_t mask;
  pthread_sigmask(SIG_SETMASK, nullptr, &mask);
  EXPECT_EQ(sigismember(&mask, SIGTERM), 0);
}

TEST(TimerTest, FiresOnce) {
  Loop loop;
  Timer timer(loop);
  Timer stop(loop);
  int fired = 0;
  timer.After(base::kMillisecond, [&] {
    ++fired;
    stop.After(5 * base::kMillisecond, [&] { loop.Stop(); });
  });
  loop.Run();
  EXPECT_EQ(fired, 1);
}

TEST(TimerTest, RepeatsWithoutBunching) {
  Loop loop;
  Timer timer(loop);
  std::vector<std::chrono::steady_clock::time_point> at;
  timer.Every(2 * base::kMillisecond, [&] {
    at.push_back(std::chrono::steady_clock::now());
    if (at.size() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));  // late on purpose
    if (at.size() == 10) loop.Stop();
  });
  loop.Run();
  ASSERT_EQ(at.size(), 10u);
  // After the delay the ten that were missed do not come at once. A busy machine may bring two together.
  int apart = 0;
  for (size_t i = 2; i < at.size(); ++i) apart += at[i] - at[i - 1] >= std::chrono::milliseconds(1) ? 1 : 0;
  EXPECT_GE(apart, 4);
}

TEST(TimerTest, SetAnewReplaces) {
  Loop loop;
  Timer timer(loop);
  std::string seen;
  timer.After(0, [&] { seen += "old"; });
  timer.After(base::kMillisecond, [&] {
    seen += "new";
    loop.Stop();
  });
  loop.Run();
  EXPECT_EQ(seen, "new");
}

TEST(TimerTest, DestroyedAfterItsTimeCameIsNotCalled) {
  Loop loop;
  auto timer = std::make_unique<Timer>(loop);
  bool called = false;
  timer->After(0, [&] { called = true; });
  std::this_thread::sleep_for(std::chrono::milliseconds(1));
  timer.reset();
  Timer stop(loop);
  stop.After(2 * base::kMillisecond, [&] { loop.Stop(); });
  loop.Run();
  EXPECT_FALSE(called);
}

TEST(TimerTest, MayDestroyOrSetItselfInItsTask) {
  Loop loop;
  auto once = std::make_unique<Timer>(loop);
  int calls = 0;
  once->Every(base::kMillisecond, [&] {
    ++calls;
    once.reset();
  });
  Timer chain(loop);
  chain.Every(base::kMillisecond, [&] { chain.After(5 * base::kMillisecond, [&] { loop.Stop(); }); });
  loop.Run();
  EXPECT_EQ(calls, 1);
}

TEST(TimerTest, LoopMayEndWithTimersWaiting) {
  auto thread = std::make_unique<LoopThread>("waiting");
  std::promise<void> set;
  auto timer = std::make_unique<Timer>(thread->loop());
  thread->loop().Post([&] {
    timer->Every(3600 * base::kSecond, [] {});
    set.set_value();
  });
  set.get_future().get();
  thread->Join();
  timer.reset();
}

}  // namespace
}  // namespace fairway::net
