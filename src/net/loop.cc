#include "net/loop.h"

#include <pthread.h>
#include <signal.h>

#include <atomic>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <cstdint>
#include <future>
#include <string>
#include <thread>
#include <utility>

namespace fairway::net {

namespace asio = boost::asio;

// One thread runs the context, so Asio may keep what that thread posts out of the shared queue (hint 1); Post
// from other threads still takes the queue's lock.
struct Loop::Impl {
  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> work = asio::make_work_guard(io);
  std::atomic<std::thread::id> runner{};
};

// Asio opens its descriptors (epoll, eventfd, timerfd) with the first timer or socket and throws if there are
// none left: better here, at the start, than in the loop's thread later.
Loop::Loop() : impl_(std::make_unique<Impl>()) { const asio::steady_timer first(impl_->io); }
Loop::~Loop() = default;

void Loop::Run() {
  impl_->runner.store(std::this_thread::get_id(), std::memory_order_relaxed);
  impl_->io.run();
  impl_->runner.store({}, std::memory_order_relaxed);
  // At the end and not at the beginning: a Stop() that comes before Run() must not be lost.
  impl_->io.restart();
}

void Loop::Stop() { impl_->io.stop(); }

void Loop::Post(std::function<void()> task) { asio::post(impl_->io, std::move(task)); }

bool Loop::InLoop() const {
  return impl_->runner.load(std::memory_order_relaxed) == std::this_thread::get_id();
}

asio::io_context& Loop::io() { return impl_->io; }

// Shared with the waiting handler, which may run once more after the Timer is gone or set anew: `round` tells
// it so.
struct Timer::Impl : std::enable_shared_from_this<Timer::Impl> {
  explicit Impl(Loop& loop) : timer(loop.io()) {}

  void Set(base::Nanos delay, base::Nanos every, std::function<void()> what) {
    ++round;
    period = every;
    task = std::move(what);
    timer.expires_after(std::chrono::nanoseconds(delay > 0 ? delay : 0));
    Wait();
  }

  void Clear() {
    ++round;
    task = nullptr;
    timer.cancel();
  }

  void Wait() {
    timer.async_wait([self = shared_from_this(), now = round](const boost::system::error_code& error) {
      if (!error && self->round == now) self->Fire();
    });
  }

  void Fire() {
    // The task may destroy the timer or set it anew while it runs.
    std::function<void()> running = std::move(task);
    task = nullptr;
    const uint64_t before = round;
    running();
    if (round != before || period == 0) return;
    task = std::move(running);
    const auto step = std::chrono::nanoseconds(period);
    const auto now = std::chrono::steady_clock::now();
    auto next = timer.expiry() + step;
    if (next <= now) next = now + step;
    timer.expires_at(next);
    Wait();
  }

  asio::steady_timer timer;
  std::function<void()> task;
  base::Nanos period = 0;
  uint64_t round = 0;
};

Timer::Timer(Loop& loop) : impl_(std::make_shared<Impl>(loop)) {}
Timer::~Timer() { impl_->Clear(); }

void Timer::After(base::Nanos delay, std::function<void()> task) { impl_->Set(delay, 0, std::move(task)); }

void Timer::Every(base::Nanos period, std::function<void()> task) {
  if (period <= 0) period = 1;
  impl_->Set(period, period, std::move(task));
}

void Timer::Cancel() { impl_->Clear(); }

struct LoopThread::Impl {
  Loop loop;
  std::thread thread;
};

LoopThread::LoopThread(const char* name) : impl_(std::make_unique<Impl>()) {
  // A new thread inherits the mask, so there is no moment in which it could take a signal.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  impl_->thread = std::thread([loop = &impl_->loop, thread_name = std::string(name).substr(0, 15)] {
    pthread_setname_np(pthread_self(), thread_name.c_str());
    loop->Run();
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

LoopThread::~LoopThread() { Join(); }

Loop& LoopThread::loop() { return impl_->loop; }

void LoopThread::Join() {
  if (!impl_->thread.joinable()) return;
  impl_->loop.Stop();
  impl_->thread.join();
}

void RunOn(Loop& loop, const std::function<void()>& task) {
  std::promise<void> done;
  loop.Post([&] {
    task();
    done.set_value();
  });
  done.get_future().wait();
}

}  // namespace fairway::net
