// Stub model servers, many in one process, as cheap as they can be: what a gateway costs is measured against
// them.
//
//   stub_servers --count 100          prints "ready PORT PORT ...", one line, and serves on 127.0.0.1
//   stub_servers --port P --port P    the same on these ports
//
// GET /metrics is a page as vLLM's, idle. Anything else gets a small completion; the request may ask for
// another answer by a header:
//
//   x-stub-chunks: 200                an event stream of so many pieces, one in each tick (--tick-us 2000)
//   x-stub-hold: silent               nothing, ever
//   x-stub-hold: open                 an event stream with one piece that never ends
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

[[noreturn]] void Die(const char* what) {
  std::perror(what);
  std::exit(1);
}

std::string WithLength(std::string_view type, std::string_view body) {
  return "HTTP/1.1 200 OK\r\ncontent-type: " + std::string(type) +
         "\r\ncontent-length: " + std::to_string(body.size()) + "\r\n\r\n" + std::string(body);
}

std::string Chunk(std::string_view data) {
  std::array<char, 20> size{};
  std::snprintf(size.data(), size.size(), "%zx\r\n", data.size());
  return size.data() + std::string(data) + "\r\n";
}

std::string MetricsPage() {
  std::string page;
  for (const char* name : {"num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"}) {
    const std::string full = std::string("vllm:") + name;
    page += "# HELP " + full + " Stub.\n# TYPE " + full + " gauge\n" + full +
            "{engine=\"0\",model_name=\"llama2\"} 0.0\n";
  }
  page +=
      "# HELP vllm:cache_config_info Stub.\n# TYPE vllm:cache_config_info gauge\n"
      "vllm:cache_config_info{block_size=\"16\",engine=\"0\",num_gpu_blocks=\"2048\"} 1.0\n";
  for (int i = 0; page.size() < 2000; ++i) {
    page += "vllm:time_to_first_token_seconds_bucket{engine=\"0\",le=\"0." + std::to_string(i) +
            "\",model_name=\"llama2\"} 0.0\n";
  }
  return page;
}

constexpr std::string_view kEvent =
    "data: {\"id\":\"cmpl-0a1b2c3d4e5f60718293a4b5c6d7e8f9\",\"object\":\"text_completion\",\"created\":1,"
    "\"model\":\"llama2\",\"choices\":[{\"index\":0,\"text\":\" dog\",\"logprobs\":null,"
    "\"finish_reason\":null,\"stop_reason\":null}]}\n\n";
constexpr std::string_view kStreamHead =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
constexpr std::string_view kCompletion =
    "{\"id\":\"cmpl-0a1b2c3d4e5f60718293a4b5c6d7e8f9\",\"object\":\"text_completion\",\"created\":1,"
    "\"model\":\"llama2\",\"choices\":[{\"index\":0,\"text\":\" dog\",\"logprobs\":null,\"finish_reason\":"
    "\"stop\"}],\"usage\":{\"prompt_tokens\":400,\"total_tokens\":401,\"completion_tokens\":1}}";

struct Connection {
  std::string head;        // of the request, until it is complete
  uint64_t body_left = 0;  // to come
  uint64_t chunks_left = 0;
  bool in_body = false;
};

class Servers {
 public:
  Servers(const std::vector<uint16_t>& ports, long tick_us)
      : epoll_(epoll_create1(0)), timer_(timerfd_create(CLOCK_MONOTONIC, 0)) {
    Watch(timer_);
    const itimerspec tick{{0, tick_us * 1000}, {0, tick_us * 1000}};
    if (timerfd_settime(timer_, 0, &tick, nullptr) != 0) Die("timerfd_settime");
    std::string ready = "ready";
    for (const uint16_t port : ports) ready += " " + std::to_string(Listen(port));
    std::puts(ready.c_str());
    std::fflush(stdout);
  }

  [[noreturn]] void Run() {
    std::array<epoll_event, 256> events{};
    while (true) {
      const int n = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
      for (int i = 0; i < n; ++i) {
        const int fd = events[static_cast<size_t>(i)].data.fd;
        if (fd == timer_) {
          Tick();
        } else if (std::find(listeners_.begin(), listeners_.end(), fd) != listeners_.end()) {
          Accept(fd);
        } else {
          Read(fd);
        }
      }
    }
  }

 private:
  void Watch(int fd) const {
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.fd = fd;
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) Die("epoll_ctl");
  }

  int Listen(uint16_t port) {  // 0: a free one
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(port);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    if (bind(fd, generic, size) != 0 || listen(fd, 4096) != 0) Die("listen");
    if (getsockname(fd, generic, &size) != 0) Die("getsockname");
    listeners_.push_back(fd);
    Watch(fd);
    return ntohs(address.sin_port);
  }

  void Accept(int listener) {
    while (true) {
      const int fd = accept4(listener, nullptr, nullptr, SOCK_NONBLOCK);
      if (fd < 0) return;
      const int on = 1;
      setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      connections_[fd] = std::make_unique<Connection>();
      Watch(fd);
    }
  }

  void Close(int fd) {
    connections_.erase(fd);
    std::erase(streaming_, fd);
    close(fd);
  }

  // Answers are small: a socket that does not take one whole has a peer that does not read.
  void Send(int fd, std::string_view text) {
    if (send(fd, text.data(), text.size(), MSG_NOSIGNAL) != static_cast<ssize_t>(text.size()))
      shutdown(fd, SHUT_RDWR);
  }

  void Read(int fd) {
    const ssize_t n = recv(fd, buffer_.data(), buffer_.size(), 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return Close(fd);
    Connection& c = *connections_.at(fd);
    std::string_view got(buffer_.data(), static_cast<size_t>(n));
    while (true) {
      if (!c.in_body) {
        c.head += got;
        const size_t end = c.head.find("\r\n\r\n");
        if (end == std::string::npos) return;
        const size_t taken = c.head.size() - got.size();
        got.remove_prefix(end + 4 - taken);
        c.head.resize(end + 2);
        const std::string_view length = Header(c.head, "content-length");
        c.body_left = length.empty() ? 0 : std::strtoull(length.data(), nullptr, 10);
        c.in_body = true;
      }
      const size_t part = std::min<uint64_t>(got.size(), c.body_left);
      got.remove_prefix(part);
      c.body_left -= part;
      if (c.body_left > 0) return;
      c.in_body = false;
      Answer(fd, c);
      c.head.clear();
      if (got.empty()) return;
    }
  }

  // Gateways send names in lower case.
  static std::string_view Header(std::string_view head, std::string_view name) {
    const std::string line = "\r\n" + std::string(name) + ": ";
    const size_t at = head.find(line);
    if (at == std::string_view::npos) return {};
    const size_t begin = at + line.size();
    return head.substr(begin, head.find("\r\n", begin) - begin);
  }

  void Answer(int fd, Connection& c) {
    if (c.head.starts_with("GET /metrics")) return Send(fd, page_);
    const std::string_view hold = Header(c.head, "x-stub-hold");
    if (hold == "silent") return;
    if (hold == "open") return Send(fd, std::string(kStreamHead) + event_);
    if (const std::string_view chunks = Header(c.head, "x-stub-chunks"); !chunks.empty()) {
      c.chunks_left = std::strtoull(chunks.data(), nullptr, 10);
      streaming_.push_back(fd);
      return Send(fd, kStreamHead);
    }
    Send(fd, completion_);
  }

  void Tick() {
    uint64_t ticks = 0;
    if (read(timer_, &ticks, sizeof(ticks)) < 0) return;
    std::erase_if(streaming_, [this](int fd) {
      Connection& c = *connections_.at(fd);
      const bool last = --c.chunks_left == 0;
      Send(fd, last ? last_ : event_);
      return last;
    });
  }

  const int epoll_;
  const int timer_;
  std::vector<int> listeners_;
  std::unordered_map<int, std::unique_ptr<Connection>> connections_;
  std::vector<int> streaming_;
  std::vector<char> buffer_ = std::vector<char>(256 << 10);
  const std::string page_ = WithLength("text/plain; version=0.0.4", MetricsPage());
  const std::string completion_ = WithLength("application/json", kCompletion);
  const std::string event_ = Chunk(kEvent);
  const std::string last_ = Chunk("data: [DONE]\n\n") + "0\r\n\r\n";
};

}  // namespace

int main(int argc, char** argv) {
  size_t count = 1;
  std::vector<uint16_t> ports;
  long tick_us = 2000;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view flag = argv[i];
    if (flag == "--count") count = std::strtoul(argv[i + 1], nullptr, 10);
    if (flag == "--port") ports.push_back(static_cast<uint16_t>(std::strtoul(argv[i + 1], nullptr, 10)));
    if (flag == "--tick-us") tick_us = std::atol(argv[i + 1]);
  }
  rlimit files{};
  if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
  }
  if (ports.empty()) ports.assign(count, 0);
  Servers(ports, tick_us).Run();
}
