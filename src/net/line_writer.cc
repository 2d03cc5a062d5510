#include "net/line_writer.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>

namespace fairway::net {
namespace {

// A pipe that poll() calls writable takes this much at once, whole (PIPE_BUF).
constexpr size_t kWhole = 4096;
constexpr int kLookMs = 50;  // for the end of the writer, while nobody reads

}  // namespace

// Shared with the thread, which may be left behind in a write: another process can have filled the pipe after
// we looked.
struct LineWriter::State {
  State(int d, LineWriterOptions o) : descriptor(d), options(std::move(o)) {}

  void Run() {
    std::unique_lock lock(mutex);
    for (;;) {
      changed.wait(lock, [this] { return ending || !lines.empty(); });
      if (lines.empty()) break;
      Item item = std::move(lines.front());
      lines.pop_front();
      lock.unlock();
      const bool written = WriteAll(item.make ? item.make() : item.text);
      item.make = {};
      if (!written) lost.fetch_add(1, std::memory_order_relaxed);
      if (written) TellLost();
      lock.lock();
      waiting_bytes -= item.bytes;
    }
    ended = true;
    changed.notify_all();
  }

  // Within what may be lost, too: the line about it may be.
  void TellLost() {
    const uint64_t now = lost.load(std::memory_order_relaxed);
    if (now == told || !options.note) return;
    if (WriteAll(options.note(now - told))) told = now;
  }

  bool WriteAll(std::string_view text) const {
    if (options.sink) return options.sink(text);
    while (!text.empty()) {
      pollfd look{descriptor, POLLOUT, 0};
      if (::poll(&look, 1, kLookMs) <= 0) {
        if (abandoned.load(std::memory_order_relaxed)) return false;
        continue;
      }
      const ssize_t n = ::write(descriptor, text.data(), std::min(text.size(), kWhole));
      if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (n <= 0) return false;  // closed, or a disk that is full
      text.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }

  const int descriptor;
  const LineWriterOptions options;
  std::mutex mutex;
  std::condition_variable changed;
  struct Item {
    std::string text;
    std::function<std::string()> make;  // empty: the text is there
    size_t bytes = 0;
  };
  void Add(Item item) {
    const std::lock_guard lock(mutex);
    if (waiting_bytes + item.bytes > options.max_bytes) {
      lost.fetch_add(1, std::memory_order_relaxed);
      return;
    }
    waiting_bytes += item.bytes;
    lines.push_back(std::move(item));
    changed.notify_one();
  }
  std::deque<Item> lines;
  size_t waiting_bytes = 0;  // with the line that is being written
  bool ending = false;
  bool ended = false;
  std::atomic<bool> abandoned{false};
  std::atomic<uint64_t> lost{0};
  uint64_t told = 0;  // the thread's
  std::thread thread;
};

LineWriter::LineWriter(int descriptor, LineWriterOptions options)
    : state_(std::make_shared<State>(descriptor, std::move(options))) {
  // A new thread inherits the mask: no signal is ever taken there.
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  state_->thread = std::thread([state = state_] {
    pthread_setname_np(pthread_self(), "writer");
    state->Run();
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

LineWriter::~LineWriter() {
  State& state = *state_;
  std::unique_lock lock(state.mutex);
  state.ending = true;
  state.changed.notify_all();
  const auto ended = [&state] { return state.ended; };
  bool joins = state.changed.wait_for(lock, std::chrono::nanoseconds(state.options.grace), ended);
  if (!joins) {
    // Nobody reads. What waits is lost; the thread ends with its next look.
    state.lost.fetch_add(state.lines.size(), std::memory_order_relaxed);
    state.lines.clear();
    state.abandoned = true;
    joins = state.changed.wait_for(lock, std::chrono::milliseconds(10 * kLookMs), ended);
  }
  lock.unlock();
  if (joins) {
    state.thread.join();
  } else {
    state.thread.detach();
  }
}

void LineWriter::Write(std::string_view lines) {
  if (!lines.empty()) state_->Add({std::string(lines), {}, lines.size()});
}

void LineWriter::WriteLater(std::function<std::string()> make, size_t bytes) {
  state_->Add({"", std::move(make), bytes});
}

uint64_t LineWriter::lost() const { return state_->lost.load(std::memory_order_relaxed); }

}  // namespace fairway::net
