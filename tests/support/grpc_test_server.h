// A gRPC server with services that do one thing each, for the tests of the transport.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "net/grpc_server.h"
#include "net/loop.h"

namespace fairway::testing {

// What the calls report, to be waited for. Thread-safe.
class CallLog {
 public:
  void Cancelled(bool answered) {
    const std::lock_guard lock(mutex_);
    cancels_.push_back(answered);
    changed_.notify_all();
  }
  void Begun() {
    const std::lock_guard lock(mutex_);
    ++alive_;
    ++begun_;
    changed_.notify_all();
  }
  void Gone() {
    const std::lock_guard lock(mutex_);
    --alive_;
    changed_.notify_all();
  }
  void GotMessage() {
    const std::lock_guard lock(mutex_);
    ++messages_;
    changed_.notify_all();
  }
  std::vector<bool> cancels() {
    const std::lock_guard lock(mutex_);
    return cancels_;
  }
  int alive() {
    const std::lock_guard lock(mutex_);
    return alive_;
  }
  bool WaitCancels(size_t n) {
    return Wait([&] { return cancels_.size() >= n; });
  }
  bool WaitBegun(int n) {
    return Wait([&] { return begun_ >= n; });
  }
  bool WaitMessages(int n) {
    return Wait([&] { return messages_ >= n; });
  }
  bool WaitAlive(int n) {
    return Wait([&] { return alive_ == n; });
  }

 private:
  template <typename Condition>
  bool Wait(Condition condition) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, std::chrono::seconds(20), condition);
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<bool> cancels_;
  int alive_ = 0;
  int begun_ = 0;
  int messages_ = 0;
};

class TestCall : public net::GrpcCall {
 public:
  explicit TestCall(CallLog& log) : log_(log) { log_.Begun(); }
  ~TestCall() override {
    EXPECT_LE(cancels_, 1);
    log_.Gone();
  }
  void OnMessage(std::string_view) override { log_.GotMessage(); }
  void OnHalfClose() override {}  // never ends by itself
  void OnCancel(bool answered) override {
    ++cancels_;
    log_.Cancelled(answered);
  }

 protected:
  void Answer(std::string_view message) { Write(net::GrpcFrame(message.size()) + std::string(message)); }
  CallLog& log_;
  int cancels_ = 0;
};

// Sends every message back; a long one by reference.
class EchoCall final : public TestCall {
 public:
  using TestCall::TestCall;
  void OnMessage(std::string_view message) override {
    log_.GotMessage();
    Write(net::GrpcFrame(message.size()));
    Write(Share(std::string(message)));
  }
  void OnHalfClose() override { Finish(net::GrpcStatus::kOk); }
};

// Takes long messages in pieces and tells how: "M:<text>" or "P:<bytes in parts>:<tail size>:<text>".
class PiecesCall final : public TestCall {
 public:
  using TestCall::TestCall;
  static constexpr size_t kTail = 10;
  void OnMessage(std::string_view message) override { Answer("M:" + std::string(message)); }
  bool OnHead(std::string_view first, size_t length, size_t& body, size_t& tail) override {
    if (length < 100 || length - first.size() < kTail) return false;
    text_ = first;
    parts_ = 0;
    tail = with_tail_ ? kTail : 0;
    body = length - first.size() - tail;
    return true;
  }
  void OnPart(std::string_view part) override {
    text_ += part;
    parts_ += part.size();
  }
  void OnTail(std::string_view tail) override {
    text_ += tail;
    Answer("P:" + std::to_string(parts_) + ":" + std::to_string(tail.size()) + ":" + text_);
    with_tail_ = !with_tail_;
  }
  void OnHalfClose() override { Finish(net::GrpcStatus::kOk); }

 private:
  std::string text_;
  size_t parts_ = 0;
  bool with_tail_ = true;
};

class BadSplitCall final : public TestCall {
 public:
  using TestCall::TestCall;
  bool OnHead(std::string_view, size_t length, size_t& body, size_t& tail) override {
    body = tail = length;
    return true;
  }
};

// Answers each message with "ok", and leaves the end to the client, as ext_proc does.
class AnswerCall final : public TestCall {
 public:
  using TestCall::TestCall;
  void OnMessage(std::string_view) override {
    Answer("ok");
    log_.GotMessage();
  }
};

class FinishCall final : public TestCall {
 public:
  using TestCall::TestCall;
  void OnMessage(std::string_view message) override {
    if (message == "with answer") Answer("first");
    Finish(net::GrpcStatus::kNotFound, "n\xc3\xb6 such % thing\n");
    Finish(net::GrpcStatus::kOk);  // the first one counts
    Answer("too late");
  }
};

// The message is a number: so many bytes come back.
class BigCall final : public TestCall {
 public:
  using TestCall::TestCall;
  void OnMessage(std::string_view message) override {
    const size_t size = std::stoul(std::string(message));
    Write(net::GrpcFrame(size));
    Write(Share(std::string(size, 'b')));  // and forgets it
    log_.GotMessage();
  }
  void OnHalfClose() override { Finish(net::GrpcStatus::kOk); }
};

class ThrowCall final : public TestCall {
 public:
  using TestCall::TestCall;
  void OnMessage(std::string_view message) override {
    if (message == "after answer") Answer("first");
    throw std::runtime_error("thrown on purpose");
  }
};

// Answers from a timer, or from another thread by way of the loop.
class LaterCall final : public TestCall {
 public:
  LaterCall(CallLog& log, bool thread) : TestCall(log), thread_(thread) {}
  ~LaterCall() override {
    if (helper_.joinable()) helper_.join();
  }
  void OnMessage(std::string_view message) override {
    log_.GotMessage();
    if (!thread_) {
      timer_.emplace(loop());
      timer_->After(5 * base::kMillisecond, [this, text = std::string(message)] {
        Answer(text);
        Finish(net::GrpcStatus::kOk);
      });
      return;
    }
    helper_ =
        std::thread([this, &on = loop(), weak = std::weak_ptr<int>(alive_), text = std::string(message)] {
          on.Post([this, weak, text] {
            if (weak.expired()) return;
            Answer(text);
            Finish(net::GrpcStatus::kOk);
          });
        });
  }
  void OnCancel(bool answered) override {
    Answer("nobody hears this");
    Finish(net::GrpcStatus::kOk);
    TestCall::OnCancel(answered);
  }

 private:
  bool thread_;
  std::optional<net::Timer> timer_;
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
  std::thread helper_;
};

class TextCall final : public TestCall {
 public:
  TextCall(CallLog& log, std::string text) : TestCall(log), text_(std::move(text)) {}
  void OnHalfClose() override {
    Answer(text_);
    Finish(net::GrpcStatus::kOk);
  }

 private:
  std::string text_;
};

// The message is a number of bytes to keep.
class KeepCall : public TestCall {
 public:
  using TestCall::TestCall;
  void OnMessage(std::string_view message) override {
    const size_t bytes = std::stoul(std::string(message));
    if (bytes == 0) {
      Release(SIZE_MAX);
    } else if (!Reserve(bytes)) {
      return;
    }
    Answer("kept");
  }
};

// The same, but lets go of it when memory is short.
class RelieveCall final : public KeepCall {
 public:
  using KeepCall::KeepCall;
  bool OnMemoryShort() override {
    Release(SIZE_MAX);
    Answer("relieved");
    return true;
  }
};

class GrpcTestServer {
 public:
  explicit GrpcTestServer(net::GrpcServerOptions options = {}, size_t loops = 2) {
    if (options.host == "0.0.0.0") options.host = "127.0.0.1";
    if (options.port == 9002) options.port = 0;
    std::vector<net::Loop*> all;
    for (size_t i = 0; i < loops; ++i) {
      threads_.push_back(std::make_unique<net::LoopThread>("test-loop"));
      all.push_back(&threads_.back()->loop());
    }
    auto made = net::GrpcServer::Listen(
        std::move(options), all, [this](const net::GrpcRequest& r) { return Make(r); },
        base::Log(base::LogLevel::kOff, base::LogFormat::kText));
    EXPECT_TRUE(made.has_value()) << (made ? "" : made.error().message);
    if (made) server_ = std::move(*made);
  }
  ~GrpcTestServer() {
    StopLoops();
    server_.reset();
    EXPECT_EQ(log.alive(), 0);
  }

  void StopLoops() {
    for (auto& thread : threads_) thread->Join();
  }
  void Destroy() { server_.reset(); }
  net::GrpcServer& operator*() { return *server_; }
  net::GrpcServer* operator->() { return server_.get(); }
  uint16_t port() const { return server_->port(); }
  net::Loop& loop(size_t i = 0) { return threads_[i]->loop(); }

  std::future<void> Shutdown(base::Nanos grace) {
    auto done = std::make_shared<std::promise<void>>();
    auto future = done->get_future();
    server_->Shutdown(grace, [done] { done->set_value(); });
    return future;
  }

  // Polls what has no event to wait for.
  template <typename Condition>
  static bool Eventually(Condition condition) {
    for (int i = 0; i < 4000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    return false;
  }

  CallLog log;

 private:
  std::unique_ptr<net::GrpcCall> Make(const net::GrpcRequest& r) {
    if (r.path == "/t/Echo") return std::make_unique<EchoCall>(log);
    if (r.path == "/t/Pieces") return std::make_unique<PiecesCall>(log);
    if (r.path == "/t/BadSplit") return std::make_unique<BadSplitCall>(log);
    if (r.path == "/t/Hold") return std::make_unique<TestCall>(log);
    if (r.path == "/t/Answer") return std::make_unique<AnswerCall>(log);
    if (r.path == "/t/Finish") return std::make_unique<FinishCall>(log);
    if (r.path == "/t/Big") return std::make_unique<BigCall>(log);
    if (r.path == "/t/Throw") return std::make_unique<ThrowCall>(log);
    if (r.path == "/t/ThrowFactory") throw std::runtime_error("thrown on purpose");
    if (r.path == "/t/Timer") return std::make_unique<LaterCall>(log, false);
    if (r.path == "/t/Thread") return std::make_unique<LaterCall>(log, true);
    if (r.path == "/t/Keep") return std::make_unique<KeepCall>(log);
    if (r.path == "/t/Relieve") return std::make_unique<RelieveCall>(log);
    if (r.path == "/t/Metadata") {
      return std::make_unique<TextCall>(
          log, std::string(r.metadata("x-key")) + "|" + std::string(r.metadata("none")));
    }
    if (r.path == "/t/Worker") {
      EXPECT_TRUE(r.loop->InLoop());
      return std::make_unique<TextCall>(log, std::to_string(r.worker));
    }
    if (r.path == "/t/Port") return std::make_unique<TextCall>(log, std::to_string(r.port));
    return nullptr;
  }

  std::vector<std::unique_ptr<net::LoopThread>> threads_;
  std::unique_ptr<net::GrpcServer> server_;
};

}  // namespace fairway::testing
