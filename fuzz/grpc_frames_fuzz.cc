// What a client may send to the gRPC server, as one connection's bytes. The first byte chooses how they
// begin: as they are, or behind a valid preface and an open call, so that the fuzzer need not find those.
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <string_view>

#include "../tests/support/raw_http2.h"
#include "net/grpc_server.h"
#include "net/grpc_worker.h"
#include "net/loop.h"

namespace {

using fairway::testing::Frame;

// Echoes, takes some messages in pieces, and ends at half-close.
class FuzzCall final : public fairway::net::GrpcCall {
 public:
  void OnMessage(std::string_view message) override {
    if (message == "finish") return Finish(fairway::net::GrpcStatus::kNotFound, message);
    Write(fairway::net::GrpcFrame(message.size()) + std::string(message));
  }
  bool OnHead(std::string_view first, size_t length, size_t& body, size_t& tail) override {
    if (length % 2 == 0) return false;
    tail = std::min<size_t>(length - first.size(), 7);
    body = length - first.size() - tail;
    expected_ = body;
    return true;
  }
  void OnPart(std::string_view part) override {
    if (part.empty() || part.size() > expected_) abort();
    expected_ -= part.size();
  }
  void OnTail(std::string_view tail) override {
    if (expected_ != 0 || tail.size() > 7) abort();
    OnMessage(tail);
  }
  void OnCancel(bool) override {
    if (cancelled_) abort();
    cancelled_ = true;
  }

 private:
  size_t expected_ = 0;
  bool cancelled_ = false;
};

struct Fixture {
  Fixture() {
    fairway::net::GrpcServerOptions options;
    options.max_message = 1 << 16;
    options.max_buffered_bytes = 1 << 20;
    options.stall_timeout = 100 * fairway::base::kMillisecond;
    shared = std::make_shared<fairway::net::GrpcShared>(
        options, [](const fairway::net::GrpcRequest&) { return std::make_unique<FuzzCall>(); },
        fairway::base::Log(fairway::base::LogLevel::kOff, fairway::base::LogFormat::kText));
    worker = std::make_shared<fairway::net::GrpcWorker>(loop, 0, shared);
    worker->on_idle = [this] { loop.Stop(); };
  }

  fairway::net::Loop loop;
  std::shared_ptr<fairway::net::GrpcShared> shared;
  std::shared_ptr<fairway::net::GrpcWorker> worker;
};

std::string Start(uint8_t choice) {
  std::string bytes;
  if (choice % 4 == 0) return bytes;
  bytes = fairway::testing::Preface();
  if (choice % 4 >= 2) {
    bytes += Frame(fairway::testing::kHeadersFrame, fairway::testing::kEndHeaders, 1,
                   fairway::testing::RequestBlock("/f"));
  }
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static auto* const fixture = new Fixture;
  if (size < 1 || size > 32 << 10) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  std::string bytes = Start(data[0]);
  if (data[0] % 4 == 3) {
    // As one call's DATA, in frames of a size that the input chooses.
    const size_t step = 1 + (data[0] >> 2) * 9;
    for (size_t at = 0; at < input.size(); at += step) {
      bytes += Frame(fairway::testing::kDataFrame,
                     at + step >= input.size() ? fairway::testing::kEndStream : 0, 1, input.substr(at, step));
    }
  } else {
    bytes += input;
  }

  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) abort();
  ++fixture->worker->load;
  ++fixture->shared->stats.connections;
  // All of it fits into the socket's buffer; answers that do not fit are never read, as with a client that
  // stopped.
  (void)!write(ends[1], bytes.data(), bytes.size());
  shutdown(ends[1], SHUT_WR);
  const fairway::net::PeerAddress peer{};
  fixture->shared->CountAddress(peer);
  fixture->loop.Post([&] { fixture->worker->Adopt(ends[0], peer, fairway::net::GrpcRoom::kThereIs); });
  fixture->loop.Run();
  close(ends[1]);
  if (fixture->shared->stats.buffered_bytes != 0 || fixture->shared->stats.streams != 0) abort();
  return 0;
}
