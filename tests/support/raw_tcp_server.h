// A TCP server for tests that sends bytes as they are: broken answers, early ends, silence.
#pragma once

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <set>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace fairway::test {

// One accepted connection, used by the thread of its script. Reads and writes block.
class RawConnection {
 public:
  RawConnection(int fd, int number) : fd_(fd), number_(number) {}

  int fd() const { return fd_; }          // for what does not speak plain text
  int number() const { return number_; }  // 0 for the first connection of the server
  // False: the peer closed.
  bool ReadRequest() {
    std::string got;
    char piece[4096];
    while (got.find("\r\n\r\n") == std::string::npos) {
      const ssize_t n = ::recv(fd_, piece, sizeof piece, 0);
      if (n <= 0) return false;
      got.append(piece, static_cast<size_t>(n));
    }
    request_ = got;
    return true;
  }
  const std::string& request() const { return request_; }
  bool Send(std::string_view bytes) {
    while (!bytes.empty()) {
      const ssize_t n = ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      bytes.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  // Until the peer closes or the server ends.
  void WaitForEnd() {
    char piece[4096];
    while (::recv(fd_, piece, sizeof piece, 0) > 0) {
    }
  }
  // Makes the close a reset.
  void ResetOnClose() {
    const linger hard{1, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_LINGER, &hard, sizeof hard);
  }

 private:
  int fd_;
  int number_;
  std::string request_;
};

// Runs `script` in a thread for each connection and closes the connection when the script returns. The
// destructor ends all.
class RawTcpServer {
 public:
  using Script = std::function<void(RawConnection&)>;

  explicit RawTcpServer(Script script, uint16_t port = 0) : script_(std::move(script)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    const int on = 1;
    ::setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) == 0 && ::listen(listener_, 64) == 0 &&
        ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) == 0) {
      port_ = ntohs(address.sin_port);
    }
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~RawTcpServer() {
    stopping_ = true;
    ::shutdown(listener_, SHUT_RDWR);
    acceptor_.join();
    ::close(listener_);
    {
      std::lock_guard lock(mutex_);
      for (const int fd : open_) ::shutdown(fd, SHUT_RDWR);
    }
    for (std::thread& thread : threads_) thread.join();
  }
  RawTcpServer(const RawTcpServer&) = delete;
  RawTcpServer& operator=(const RawTcpServer&) = delete;

  uint16_t port() const { return port_; }  // 0: could not listen
  int connections() const { return connections_; }
  int closed() const { return closed_; }  // connections whose script returned

 private:
  void Accept() {
    for (;;) {
      const int fd = ::accept(listener_, nullptr, nullptr);
      if (fd < 0 || stopping_) {
        if (fd >= 0) ::close(fd);
        return;
      }
      const int on = 1;
      ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
      {
        std::lock_guard lock(mutex_);
        open_.insert(fd);
      }
      threads_.emplace_back([this, fd, number = connections_++] {
        RawConnection connection(fd, number);
        script_(connection);
        std::lock_guard lock(mutex_);
        open_.erase(fd);
        ::close(fd);
        ++closed_;
      });
    }
  }

  Script script_;
  int listener_ = -1;
  uint16_t port_ = 0;
  std::atomic<bool> stopping_{false};
  std::atomic<int> connections_{0};
  std::atomic<int> closed_{0};
  std::mutex mutex_;
  std::set<int> open_;  // connections whose script runs; guarded by mutex_
  std::vector<std::thread> threads_;
  std::thread acceptor_;
};

}  // namespace fairway::test
