#include "frontends/local/envoy_admin.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "base/result.h"

namespace fairway::local {
namespace {

// Answers each connection to a socket in a folder with the next of its answers, and keeps the first request.
class Socket {
 public:
  explicit Socket(std::vector<std::string> answers) {
    FAIRWAY_CHECK(mkdtemp(folder_.data()) != nullptr);
    fd_ = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    std::strncpy(address.sun_path, path().c_str(), sizeof address.sun_path - 1);
    FAIRWAY_CHECK(::bind(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    FAIRWAY_CHECK(::listen(fd_, 8) == 0);
    thread_ = std::thread([this, all = std::move(answers)] {
      for (const std::string& answer : all) {
        const int client = ::accept(fd_, nullptr, nullptr);
        if (client < 0) return;
        char buffer[4096];
        const ssize_t n = ::read(client, buffer, sizeof buffer);
        const std::lock_guard lock(mutex_);
        if (n > 0) asked_ += std::string(buffer, static_cast<size_t>(n)).substr(0, 14) + "|";
        (void)!::write(client, answer.data(), answer.size());
        ::close(client);
      }
    });
  }
  ~Socket() {
    ::shutdown(fd_, SHUT_RDWR);
    thread_.join();
    ::close(fd_);
    std::filesystem::remove_all(folder_);
  }
  std::string path() const { return folder_ + "/admin.sock"; }
  std::string asked() {
    const std::lock_guard lock(mutex_);
    return asked_;
  }

 private:
  std::string folder_ = "/tmp/fairway-test-XXXXXX";
  int fd_ = -1;
  std::mutex mutex_;
  std::string asked_;
  std::thread thread_;
};

TEST(EnvoyAdmin, AsksOverASocket) {
  Socket socket(
      {"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\na::1\n\r\n5\r\nb::2\n\r\n0\r\n\r\n",
       "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno",
       "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nLIVE\n"});
  net::LoopThread thread("admin-test");
  std::unique_ptr<EnvoyAdmin> admin;
  std::promise<std::string> body;
  std::promise<void> ended;
  bool refused = false;
  net::Timer again(thread.loop());
  thread.loop().Post([&] {
    admin = std::make_unique<EnvoyAdmin>(thread.loop(), socket.path());
    admin->Get("/listeners", [&](std::string_view text) { body.set_value(std::string(text)); });
  });
  EXPECT_EQ(body.get_future().get(), "a::1\nb::2\n");
  body = {};
  thread.loop().Post([&] {
    admin->Get("/ready", [&](std::string_view) { refused = true; });
    again.Every(base::kMillisecond, [&] {
      if (admin->busy()) return;  // a 503 is no answer
      again.Cancel();
      admin->Get("/ready", [&](std::string_view text) { body.set_value(std::string(text)); });
    });
  });
  EXPECT_EQ(body.get_future().get(), "LIVE\n");
  EXPECT_FALSE(refused);
  EXPECT_EQ(socket.asked(), "GET /listeners|GET /ready HTT|GET /ready HTT|");
  // Nobody is there, and what is no address.
  thread.loop().Post([&] {
    admin = std::make_unique<EnvoyAdmin>(thread.loop(), socket.path() + ".none");
    admin->Get("/ready", [&](std::string_view) { ADD_FAILURE(); });
    again.Every(base::kMillisecond, [&] {
      if (admin->busy()) return;
      again.Cancel();
      admin = std::make_unique<EnvoyAdmin>(thread.loop(), "nonsense");
      admin->Get("/ready", [&](std::string_view) { ADD_FAILURE(); });
      EXPECT_FALSE(admin->busy());
      admin.reset();
      ended.set_value();
    });
  });
  ended.get_future().get();
  thread.Join();
}

}  // namespace
}  // namespace fairway::local
