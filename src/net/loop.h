// One event loop, run by one thread. Everything that happens on a connection, stream or timer happens on its
// loop's thread; other threads reach it by Post only.
//
// A Boost.Asio io_context behind a light header: include <boost/asio.hpp> in the .cc that needs sockets.
#pragma once

#include <functional>
#include <memory>

#include "base/clock.h"

namespace boost::asio {
class io_context;
}

namespace fairway::net {

class Loop {
 public:
  Loop();   // throws std::system_error when the process is out of descriptors
  ~Loop();  // REQUIRES: not running
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  // Runs until Stop(). The loop stays alive with nothing to do.
  void Run();
  // Thread-safe. Run() returns soon; what was posted before may or may not run.
  void Stop();
  // Thread-safe. Runs `task` on the loop's thread, later, in the order of posting.
  void Post(std::function<void()> task);
  // True on the thread inside Run().
  bool InLoop() const;

  boost::asio::io_context& io();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A one-shot or repeating timer of one loop. Owned by the loop's thread; destroying it cancels it, and the
// task is never called after that.
class Timer {
 public:
  explicit Timer(Loop& loop);
  ~Timer();
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;

  // Calls `task` once after `delay` (0: on the next round). Replaces what was set before.
  void After(base::Nanos delay, std::function<void()> task);
  // Calls `task` every `period`; a late call does not make the next ones bunch up.
  void Every(base::Nanos period, std::function<void()> task);
  void Cancel();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

// A loop with its thread: started by the constructor, stopped and joined by the destructor. All signals are
// blocked in it.
class LoopThread {
 public:
  explicit LoopThread(const char* name);  // name: at most 15 characters, shown by top and gdb
  ~LoopThread();
  Loop& loop();
  // Stops and joins; the loop's posted tasks may be left undone. Called by the destructor.
  void Join();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Runs `task` on the loop and waits for it. REQUIRES: not called on it.
void RunOn(Loop& loop, const std::function<void()>& task);

}  // namespace fairway::net
