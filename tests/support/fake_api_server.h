// A Kubernetes API server for tests that answers as it is told, request by request, over plain HTTP.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "net/http_server.h"
#include "net/loop.h"
#include "sources/kubernetes/client_config.h"

namespace fairway::testing {

// What a request is answered with. `has`: pieces that its method, target and body ("GET /x {...}") must have
// ("!x": must not have).
struct FakeAnswer {
  std::vector<std::string> has;
  bool stream = false;  // a watch: 200, and then what Write gives
  bool held = false;    // answered when Release is called, not before
  int status = 200;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
};

// Used by the test's thread; what it serves, and what is tested, runs on its loop's thread.
class FakeApiServer {
 public:
  using Nanos = base::Nanos;

  // One request as it comes, or will come.
  class Exchange {
   public:
    Exchange(FakeApiServer& server, FakeAnswer answer) : server_(server), answer_(std::move(answer)) {}
    // Waits for the request. False: it did not come within a minute.
    bool Opened() {
      return server_.Await([this] { return server_.Ask([this] { return responder_ != nullptr; }); });
    }
    void Write(const std::string& text) {
      server_.Run([&] { responder_->Write(text); });
    }
    void End() {
      server_.Run([&] { responder_->End(); });
    }
    // Closes the connection in the middle.
    void Break() {
      server_.Run([&] { responder_.reset(); });
    }
    void Release() {
      server_.Run([&] { Send(); });
    }

   private:
    friend class FakeApiServer;
    void Begin(std::shared_ptr<net::HttpResponder> responder) {
      responder_ = std::move(responder);
      if (answer_.stream) {
        responder_->Start({.headers = answer_.headers});
      } else if (!answer_.held) {
        Send();
      }
    }
    void Send() {
      responder_->Send({.status = answer_.status, .headers = answer_.headers, .body = answer_.body});
    }

    FakeApiServer& server_;
    const FakeAnswer answer_;
    std::shared_ptr<net::HttpResponder> responder_;
  };

  FakeApiServer() : thread_("fake-api"), began_(clock_.Now()) {
    Run([this] {
      auto server = net::HttpServer::Listen(
          {}, thread_.loop(),
          [this](net::HttpRequest request, std::shared_ptr<net::HttpResponder> responder) {
            Serve(request, std::move(responder));
          },
          log_);
      ASSERT_TRUE(server) << server.error().message;
      server_ = std::move(*server);
    });
  }
  ~FakeApiServer() {
    Run([this] {
      expected_.clear();
      begun_.clear();
      unexpected_.clear();
      server_.reset();
    });
  }

  net::Loop& loop() { return thread_.loop(); }
  sources::kubernetes::ClientConfig Config() const {
    sources::kubernetes::ClientConfig config;
    config.host = "127.0.0.1";
    config.port = server_->port();
    config.tls = false;
    return config;
  }

  // The next request that is not expected yet. Requests beyond all that are expected get no answer.
  std::shared_ptr<Exchange> Expect(FakeAnswer answer) {
    auto exchange = std::make_shared<Exchange>(*this, std::move(answer));
    Run([&] { expected_.push_back(exchange); });
    return exchange;
  }
  // From now on requests that nobody expects are answered so: watches with `watch`, others with `list`.
  void Default(FakeAnswer list, FakeAnswer watch) {
    Run([&] { defaults_ = {std::move(list), std::move(watch)}; });
  }
  // Answers by what the target begins with, before anything else, in the order of adding; "" as the body
  // takes the answer away.
  void Always(const std::string& prefix, FakeAnswer answer) {
    Run([&] {
      std::erase_if(always_, [&](const auto& entry) { return entry.first == prefix; });
      if (!answer.body.empty()) always_.emplace_back(prefix, std::move(answer));
    });
  }

  void Run(const std::function<void()>& task) {
    std::promise<void> done;
    loop().Post([&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }
  template <typename F>
  auto Ask(F question) -> decltype(question()) {
    decltype(question()) answer{};
    Run([&] { answer = question(); });
    return answer;
  }
  // Waits up to a minute for a condition, which is looked at on the test's thread.
  template <typename F>
  bool Await(F condition) {
    for (const Nanos end = clock_.Now() + 60 * base::kSecond; clock_.Now() < end;) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  Nanos Elapsed() const { return clock_.Now() - began_; }

 private:
  void Serve(const net::HttpRequest& request, std::shared_ptr<net::HttpResponder> responder) {
    for (const auto& [prefix, answer] : always_) {
      if (!request.target.starts_with(prefix)) continue;
      begun_.push_back(std::make_shared<Exchange>(*this, answer));
      return begun_.back()->Begin(std::move(responder));
    }
    if (expected_.empty() && !defaults_.empty()) {
      const bool watch = request.target.find("watch=true") != std::string::npos;
      begun_.push_back(std::make_shared<Exchange>(*this, defaults_[watch ? 1 : 0]));
      return begun_.back()->Begin(std::move(responder));
    }
    if (expected_.empty()) {
      unexpected_.push_back(std::move(responder));
      return;
    }
    const auto exchange = expected_.front();
    expected_.pop_front();
    begun_.push_back(exchange);
    const std::string all = request.method + " " + request.target + " " + request.body;
    for (const std::string& piece : exchange->answer_.has) {
      const bool not_wanted = piece.starts_with('!');
      const bool found = all.find(not_wanted ? piece.substr(1) : piece) != std::string::npos;
      EXPECT_NE(found, not_wanted) << all << " and " << piece;
    }
    exchange->Begin(std::move(responder));
  }

  base::SystemClock clock_;
  base::Log log_{base::LogLevel::kOff, base::LogFormat::kText};
  net::LoopThread thread_;
  Nanos began_;
  std::unique_ptr<net::HttpServer> server_;
  std::deque<std::shared_ptr<Exchange>> expected_;
  std::vector<std::shared_ptr<Exchange>> begun_;
  std::vector<std::shared_ptr<net::HttpResponder>> unexpected_;
  std::vector<FakeAnswer> defaults_;
  std::vector<std::pair<std::string, FakeAnswer>> always_;
};

}  // namespace fairway::testing
