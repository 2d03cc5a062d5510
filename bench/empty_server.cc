// An ext_proc server without a picker: it buffers the request body, answers with one fixed endpoint and sends
// the body back. What it costs per exchange is the transport's own share, which benchmarks subtract or
// compare with.
//
//   empty_ext_proc [--port 9002] [--loops 2] [--cert FILE --key FILE]
#include <malloc.h>
#include <signal.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "net/grpc_server.h"
#include "net/loop.h"

namespace {

using fairway::net::GrpcStatus;

constexpr std::string_view kKey = "x-gateway-destination-endpoint";
constexpr std::string_view kEndpoint = "127.0.0.1:9100";
constexpr size_t kChunk = 62'000;  // Envoy refuses larger streamed pieces

// Protobuf wire format, as much as this needs. https://protobuf.dev/programming-guides/encoding/
struct Reader {
  explicit Reader(std::string_view message) : rest(message) {}

  bool Varint(uint64_t& value) {
    value = 0;
    for (int shift = 0; shift < 64 && !rest.empty(); shift += 7) {
      const auto byte = static_cast<uint8_t>(rest.front());
      rest.remove_prefix(1);
      value |= uint64_t{byte & 127u} << shift;
      if (byte < 128) return true;
    }
    return ok = false;
  }
  bool Next() {
    uint64_t tag = 0;
    if (rest.empty() || !ok || !Varint(tag)) return false;
    field = tag >> 3;
    text = {};
    if ((tag & 7) == 0) return Varint(number);
    uint64_t size = (tag & 7) == 1 ? 8 : 4;
    if ((tag & 7) == 2 ? !Varint(size) : (tag & 7) != 1 && (tag & 7) != 5) return ok = false;
    if (size > rest.size()) return ok = false;
    text = rest.substr(0, size);
    rest.remove_prefix(size);
    return true;
  }

  std::string_view rest;
  uint64_t field = 0;
  uint64_t number = 0;
  std::string_view text;
  bool ok = true;
};

std::string Varint(uint64_t value) {
  std::string out;
  for (; value > 127; value >>= 7) out += static_cast<char>(value | 128);
  return out += static_cast<char>(value);
}
// A field whose last `extra` bytes come from elsewhere.
std::string Field(int number, std::string_view text, size_t extra = 0) {
  return Varint(static_cast<uint64_t>(number) << 3 | 2).append(Varint(text.size() + extra)).append(text);
}
std::string Number(int number, uint64_t value) {
  return Varint(static_cast<uint64_t>(number) << 3).append(Varint(value));
}

std::string Framed(const std::string& message, size_t extra = 0) {
  return fairway::net::GrpcFrame(message.size() + extra) + message;
}

// request_headers{response{clear_route_cache, header_mutation}} and dynamic_metadata{"envoy.lb": {key:
// endpoint}}.
std::string HeadersAnswer() {
  const std::string value = Field(5, Field(1, Field(1, kKey) + Field(2, Field(3, kEndpoint))));
  const std::string metadata = Field(8, Field(1, Field(1, "envoy.lb") + Field(2, value)));
  const std::string set_header = Field(1, Field(1, Field(1, kKey) + Field(3, kEndpoint)));
  return Framed(Field(1, Field(1, Field(2, set_header) + Number(5, 1))) + metadata);
}

// request_body{response{body_mutation{streamed_response{body, end_of_stream}}}} up to the body itself.
std::string BodyAnswer(size_t body, bool end) {
  std::string inner = (end ? Number(2, 1) : "") + Varint(1 << 3 | 2) + Varint(body);
  for (const int field : {3, 3, 1, 3}) inner = Field(field, inner, body);
  return Framed(inner, body);
}

class ExtProc final : public fairway::net::GrpcCall {
 public:
  explicit ExtProc(const std::string& headers_answer) : headers_answer_(headers_answer) {}

  void OnMessage(std::string_view message) override {
    Reader r(message);
    while (r.Next()) {
      if (r.field == 3) Write(Framed(Field(2, Field(1, ""))));
      if (r.field == 4) RequestBody(r.text);
    }
    if (!r.ok) Finish(GrpcStatus::kInvalidArgument, "malformed message");
  }

  // A long request_body{body, ...}: the body's bytes go straight to where they stay.
  bool OnHead(std::string_view first, size_t length, size_t& body, size_t& tail) override {
    Reader r(first);
    uint64_t tag = 0;
    uint64_t outer = 0;
    uint64_t size = 0;
    if (!r.Varint(tag) || tag != (4 << 3 | 2) || !r.Varint(outer)) return false;
    const size_t inner_at = first.size() - r.rest.size();
    if (outer != length - inner_at || !r.Varint(tag) || tag != (1 << 3 | 2) || !r.Varint(size)) return false;
    const size_t prefix = first.size() - r.rest.size();
    if (size <= r.rest.size() || size > length - prefix) return false;
    body = size - r.rest.size();
    tail = length - prefix - size;
    body_.append(r.rest);
    return true;
  }
  void OnPart(std::string_view part) override { body_.append(part); }
  void OnTail(std::string_view tail) override { RequestBody(tail); }

 private:
  void RequestBody(std::string_view message) {
    Reader r(message);
    bool end = false;
    while (r.Next()) {
      if (r.field == 1) body_.append(r.text);
      if (r.field == 2) end = r.number != 0;
    }
    if (!r.ok) return Finish(GrpcStatus::kInvalidArgument, "malformed message");
    if (!end) return;
    Write(headers_answer_);
    const fairway::net::SharedBytes all = Share(std::move(body_));
    size_t at = 0;
    do {
      const fairway::net::SharedBytes chunk = all.Slice(at, kChunk);
      at += chunk.size();
      Write(BodyAnswer(chunk.size(), at == all.size()));
      Write(chunk);
    } while (at < all.size());
  }

  const std::string& headers_answer_;
  std::string body_;
};

std::string Option(int argc, char** argv, const char* name, const char* otherwise) {
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], name) == 0) return argv[i + 1];
  }
  return otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  // Bodies of some 100 KB come and go: glibc would map and unmap each.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 256 << 20);
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  fairway::net::GrpcServerOptions options;
  options.host = "127.0.0.1";
  options.port = static_cast<uint16_t>(atoi(Option(argc, argv, "--port", "9002").c_str()));
  const std::string certificate = Option(argc, argv, "--cert", "");
  if (!certificate.empty()) {
    auto tls = fairway::net::LoadTlsServer(certificate, Option(argc, argv, "--key", ""), {.alpn = {"h2"}});
    if (!tls) {
      fprintf(stderr, "%s\n", tls.error().message.c_str());
      return 1;
    }
    options.tls = *tls;
  }
  std::vector<std::unique_ptr<fairway::net::LoopThread>> threads;
  std::vector<fairway::net::Loop*> loops;
  const int count = std::max(1, atoi(Option(argc, argv, "--loops", "2").c_str()));
  for (int i = 0; i < count; ++i) {
    threads.push_back(std::make_unique<fairway::net::LoopThread>("worker"));
    loops.push_back(&threads.back()->loop());
  }
  const std::string headers_answer = HeadersAnswer();
  auto server = fairway::net::GrpcServer::Listen(
      options, loops,
      [&headers_answer](const fairway::net::GrpcRequest& request) -> std::unique_ptr<fairway::net::GrpcCall> {
        if (request.path != "/envoy.service.ext_proc.v3.ExternalProcessor/Process") return nullptr;
        return std::make_unique<ExtProc>(headers_answer);
      },
      fairway::base::Log());
  if (!server) {
    fprintf(stderr, "%s\n", server.error().message.c_str());
    return 1;
  }
  int received = 0;
  sigwait(&signals, &received);
  std::promise<void> done;
  (*server)->Shutdown(fairway::base::kSecond, [&done] { done.set_value(); });
  done.get_future().wait();
  for (auto& thread : threads) thread->Join();
  return 0;
}
