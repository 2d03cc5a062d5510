// The real ext_proc server with a real router, over real sockets: what a gateway sends and gets, byte for
// byte.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <map>
#include <thread>

#include "api/manifests.h"
#include "base/strings.h"
#include "ext_proc.pb.h"
#include "fleet/fleet.h"
#include "frontends/ext_proc/health.h"
#include "frontends/ext_proc/server.h"
#include "net/address.h"
#include "tests/support/grpc_client.h"
#include "tests/support/raw_http2.h"

namespace fairway::ext_proc {
namespace {

namespace pb = envoy::service::ext_proc::v3;
using ::testing::HasSubstr;
using Client = fairway::testing::GrpcClient;
using ClientOptions = fairway::testing::GrpcClientOptions;
using Reply = fairway::testing::GrpcReply;
using CallMetadata = fairway::testing::Metadata;

constexpr const char* kProcess = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
constexpr const char* kCheck = "/grpc.health.v1.Health/Check";
constexpr const char* kWatch = "/grpc.health.v1.Health/Watch";

// Polls what has no event to wait for.
template <typename Condition>
bool Eventually(Condition condition) {
  for (int i = 0; i < 4000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return false;
}

// Three endpoints A, B, C = 10.0.0.1..3:8000 of pool default/llama.
constexpr std::string_view kPool = R"(
apiVersion: inference.networking.k8s.io/v1
kind: InferencePool
metadata: {name: llama}
spec:
  selector: {matchLabels: {app: vllm}}
  targetPorts: [{number: 8000}]
  endpointPickerRef: {name: epp, port: {number: 9002}}
---
endpoints:
- {name: a, address: 10.0.0.1, port: "8000", labels: {app: vllm}}
- {name: b, address: 10.0.0.2, port: "8000", labels: {app: vllm}}
- {name: c, address: 10.0.0.3, port: "8000", labels: {app: vllm}}
)";

std::string Model(std::string_view name, std::string_view criticality, std::string_view targets = "") {
  return "\n---\napiVersion: inference.networking.x-k8s.io/v1alpha2\nkind: InferenceModel\nmetadata: "
         "{name: " +
         base::ToLower(name) + "}\nspec:\n  modelName: " + std::string(name) +
         "\n  criticality: " + std::string(criticality) + "\n  poolRef: {name: llama}\n" +
         std::string(targets);
}

struct State {
  uint32_t waiting = 0;
  float kv_usage = 0;
  std::vector<std::string> adapters;
};

// The picker as `fairway epp` wires it, without its sources.
class Picker {
 public:
  explicit Picker(const std::string& manifests, ServerOptions options = {},
                  routing::RouterOptions router_options = {}) {
    auto loaded = api::ParseManifests(manifests, "test.yaml");
    for (const auto& problem : loaded.problems) {
      EXPECT_NE(problem.severity, api::Severity::kError) << ToString(problem);
    }
    fleet_.Apply(loaded.manifests);
    router_options.scheduling.lora_exploration = 0;
    router_ = std::make_unique<routing::Router>(fleet_.published(), clock_, registry_, router_options);
    std::vector<net::Loop*> loops;
    for (int i = 0; i < 2; ++i) {
      threads_.push_back(std::make_unique<net::LoopThread>("test-worker"));
      loops.push_back(&threads_.back()->loop());
    }
    options.host = "127.0.0.1";
    options.grpc_port = options.health_port = 0;
    auto started = ExtProcServer::Start(options, *router_, clock_, registry_,
                                        base::Log(base::LogLevel::kOff, base::LogFormat::kText), loops);
    EXPECT_TRUE(started) << (started ? "" : started.error().message);
    if (started) server_ = std::move(*started);
  }
  ~Picker() {
    for (auto& thread : threads_) thread->Join();
    server_.reset();
  }

  void Scrape(size_t number, const State& state) {
    fleet::Signals signals{.waiting = state.waiting, .running = 0, .kv_usage = state.kv_usage};
    signals.lora.emplace();
    for (const auto& name : state.adapters) {
      fleet::AddAdapter(signals.lora->running, fleet_.InternAdapter("default/llama", name));
    }
    signals.lora->resident_count = static_cast<uint32_t>(state.adapters.size());
    signals.lora->max = 1;
    auto& cell = *pool()->endpoints[number].cell;
    cell.BeginScrape(clock_.Now());
    cell.ApplyScrape(signals, clock_.Now());
  }

  std::shared_ptr<const fleet::PoolSnapshot> pool() const {
    return fleet_.published().Load()->pools.at("default/llama");
  }
  uint32_t inflight(size_t number) const { return pool()->endpoints[number].cell->own(); }
  uint32_t inflight() const {
    uint32_t sum = 0;
    for (const auto& endpoint : pool()->endpoints) sum += endpoint.cell->own();
    return sum;
  }
  ExtProcServer& server() { return *server_; }
  fleet::Fleet& fleet() { return fleet_; }
  base::Registry& registry() { return registry_; }

  std::unique_ptr<Client> Connect(ClientOptions options = {}) {
    std::string error;
    auto client = Client::Connect("127.0.0.1", server_->grpc_port(), std::move(options), &error);
    EXPECT_TRUE(client) << error;
    return client;
  }

 private:
  base::SystemClock clock_;
  base::Registry registry_;
  fleet::Fleet fleet_;
  std::unique_ptr<routing::Router> router_;
  std::vector<std::unique_ptr<net::LoopThread>> threads_;
  std::unique_ptr<ExtProcServer> server_;
};

ServerOptions PlainText() {
  ServerOptions options;
  options.secure_serving = false;
  return options;
}

using Headers = std::vector<std::pair<std::string, std::string>>;

struct Modes {
  pb::BodySendMode request = pb::FULL_DUPLEX_STREAMED;
  pb::BodySendMode response = pb::FULL_DUPLEX_STREAMED;
};

// One exchange as a gateway has it.
class Exchange {
 public:
  explicit Exchange(Client& client, std::optional<Modes> modes = Modes(), const CallMetadata& metadata = {})
      : modes_(modes), call_(client.Open(kProcess, metadata)) {}

  void Send(pb::ProcessingRequest message) {
    if (modes_) {
      message.mutable_protocol_config()->set_request_body_mode(modes_->request);
      message.mutable_protocol_config()->set_response_body_mode(modes_->response);
      modes_.reset();
    }
    call_->Send(message.SerializeAsString());
  }
  void SendHeaders(bool end = false, const Headers& more = {},
                   const std::string& path = "/v1/chat/completions") {
    pb::ProcessingRequest message;
    auto* headers = message.mutable_request_headers();
    Headers all = {{":method", end ? "GET" : "POST"}, {":path", path}, {"x-request-id", "r1"}};
    all.insert(all.end(), more.begin(), more.end());
    for (const auto& [name, value] : all) {
      auto* header = headers->mutable_headers()->add_headers();
      header->set_key(name);
      header->set_raw_value(value);
    }
    headers->set_end_of_stream(end);
    Send(message);
  }
  void SendBody(std::string_view body, bool end) {
    pb::ProcessingRequest message;
    message.mutable_request_body()->set_body(std::string(body));
    message.mutable_request_body()->set_end_of_stream(end);
    Send(message);
  }
  void SendResponseHeaders(const std::string& served = "", const std::string& status = "200") {
    pb::ProcessingRequest message;
    auto* header = message.mutable_response_headers()->mutable_headers()->add_headers();
    header->set_key(":status");
    header->set_raw_value(status);
    if (!served.empty()) {
      (*(*message.mutable_metadata_context()->mutable_filter_metadata())["envoy.lb"]
            .mutable_fields())["x-gateway-destination-endpoint-served"]
          .set_string_value(served);
    }
    Send(message);
  }
  void SendResponseBody(std::string_view body, bool end) {
    pb::ProcessingRequest message;
    message.mutable_response_body()->set_body(std::string(body));
    message.mutable_response_body()->set_end_of_stream(end);
    Send(message);
  }

  pb::ProcessingResponse Recv() {
    pb::ProcessingResponse response;
    const Reply reply = call_->Recv();
    EXPECT_EQ(static_cast<int>(reply.kind), static_cast<int>(Reply::Kind::kMessage))
        << reply.status << " " << reply.status_message;
    EXPECT_TRUE(response.ParseFromString(reply.message));
    return response;
  }
  // The destination of the reply to the headers; the metadata must begin with it.
  std::string RecvDestination() {
    const auto reply = Recv();
    EXPECT_TRUE(reply.has_request_headers()) << reply.ShortDebugString();
    const std::string destination = Destination(reply.request_headers().response());
    const auto& metadata = reply.dynamic_metadata().fields();
    EXPECT_TRUE(metadata.contains("envoy.lb"));
    if (metadata.contains("envoy.lb")) {
      const auto& lb = metadata.at("envoy.lb").struct_value().fields();
      EXPECT_EQ(lb.at("x-gateway-destination-endpoint").string_value().substr(0, destination.size()),
                destination);
    }
    return destination;
  }
  static std::string Destination(const pb::CommonResponse& response) {
    EXPECT_TRUE(response.clear_route_cache());
    std::string found;
    for (const auto& option : response.header_mutation().set_headers()) {
      if (option.header().key() != "x-gateway-destination-endpoint") continue;
      EXPECT_EQ(option.append_action(), pb::HeaderValueOption::OVERWRITE_IF_EXISTS_OR_ADD);
      found = option.header().raw_value();
    }
    return found;
  }
  // Sizes of the streamed pieces up to the end of the body, and the body itself.
  std::vector<size_t> RecvPieces(std::string& body, bool response = false) {
    std::vector<size_t> sizes;
    body.clear();
    for (bool end = false; !end && !HasFailure();) {
      const auto reply = Recv();
      EXPECT_EQ(reply.has_request_body(), !response);
      const auto& piece = (response ? reply.response_body() : reply.request_body())
                              .response()
                              .body_mutation()
                              .streamed_response();
      sizes.push_back(piece.body().size());
      body += piece.body();
      end = piece.end_of_stream();
    }
    return sizes;
  }
  void ExpectRefused(int status, const std::string& text) {
    const auto reply = Recv();
    ASSERT_TRUE(reply.has_immediate_response()) << reply.ShortDebugString();
    EXPECT_EQ(reply.immediate_response().status().code(), status);
    EXPECT_THAT(reply.immediate_response().body(), HasSubstr(text));
    ExpectEnd(0);
  }
  void ExpectEnd(int status) {
    const Reply end = call_->RecvEnd();
    EXPECT_EQ(static_cast<int>(end.kind), static_cast<int>(Reply::Kind::kEnd));
    EXPECT_EQ(end.status, status) << end.status_message;
  }
  fairway::testing::GrpcClientCall& call() { return *call_; }

 private:
  static bool HasFailure() { return ::testing::Test::HasFailure(); }
  std::optional<Modes> modes_;
  std::shared_ptr<fairway::testing::GrpcClientCall> call_;
};

std::string Chat(const std::string& model) {
  return R"({"model":")" + model + R"(","messages":[{"role":"user","content":"hi"}]})";
}

// The endpoint that a chat with `model` is sent to.
std::string Pick(Client& client, const std::string& model) {
  Exchange exchange(client);
  exchange.SendHeaders();
  exchange.SendBody(Chat(model), true);
  return exchange.RecvDestination();
}

// ---- The three worked examples of the design, from the bytes of the request to the header.

TEST(ExtProc, WorkedExampleCriticalWithLora) {
  Picker picker(std::string(kPool) + Model("LoRA-X", "Critical"), PlainText());
  auto client = picker.Connect();
  picker.Scrape(0, {10, 0.3f, {"LoRA-X"}});
  picker.Scrape(1, {5, 0.7f, {}});
  picker.Scrape(2, {60, 0.2f, {"LoRA-X"}});
  EXPECT_EQ(Pick(*client, "LoRA-X"), "10.0.0.1:8000");
}

TEST(ExtProc, WorkedExampleSheddable) {
  Picker picker(std::string(kPool) + Model("plain", "Standard"), PlainText());
  auto client = picker.Connect();
  picker.Scrape(0, {6, 0.85f, {}});
  picker.Scrape(1, {4, 0.75f, {}});
  picker.Scrape(2, {7, 0.6f, {}});
  EXPECT_EQ(Pick(*client, "plain"), "10.0.0.2:8000");
}

TEST(ExtProc, WorkedExampleCriticalUnderLoad) {
  Picker picker(std::string(kPool) + Model("LoRA-Y", "Critical"), PlainText());
  auto client = picker.Connect();
  picker.Scrape(0, {70, 0.4f, {"LoRA-Y"}});
  picker.Scrape(1, {80, 0.6f, {"LoRA-Y"}});
  picker.Scrape(2, {65, 0.7f, {}});
  EXPECT_EQ(Pick(*client, "LoRA-Y"), "10.0.0.1:8000");
}

// ---- Modes.

TEST(ExtProc, FullDuplexInPieces) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  std::string body = R"({"model":"m","prompt":")";
  body += std::string(150'025 - body.size() - 2, 'a') + "\"}";
  for (const size_t message : {size_t{1000}, size_t{16'384}, size_t{65'536}, body.size()}) {
    Exchange exchange(*client);
    exchange.SendHeaders(false, {{"content-length", std::to_string(body.size())}}, "/v1/completions");
    for (size_t at = 0; at < body.size(); at += message)
      exchange.SendBody(std::string_view(body).substr(at, message), false);
    exchange.SendBody("", true);
    EXPECT_FALSE(exchange.RecvDestination().empty());
    std::string echoed;
    EXPECT_THAT(exchange.RecvPieces(echoed), ::testing::ElementsAre(62'000, 62'000, 26'025));
    EXPECT_TRUE(echoed == body) << "message size " << message;
    exchange.call().Reset();
  }
}

// An answer may stream for minutes; the prompt must not be kept for as long.
TEST(ExtProc, TheBodyIsFreedOnceItIsSent) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  Exchange exchange(*client);
  exchange.SendHeaders(false, {}, "/v1/completions");
  const std::string body = R"({"model":"m","prompt":")" + std::string(500'000, 'a') + "\"}";
  exchange.SendBody(body.substr(0, 400'000), false);
  ASSERT_TRUE(client->PumpUntil([&] { return exchange.call().unsent() == 0; }));
  EXPECT_TRUE(Eventually([&] { return picker.server().stats().buffered_bytes >= 400'000; }));
  exchange.SendBody(body.substr(400'000), true);
  EXPECT_FALSE(exchange.RecvDestination().empty());
  std::string echoed;
  exchange.RecvPieces(echoed);
  EXPECT_TRUE(echoed == body);
  exchange.SendResponseHeaders();
  EXPECT_TRUE(exchange.Recv().has_response_headers());
  // The figure is brought up to date when something happens on the connection.
  EXPECT_TRUE(Eventually([&] {
    exchange.SendResponseBody("data: 1\n\n", false);
    EXPECT_TRUE(exchange.Recv().has_response_body());
    return picker.server().stats().buffered_bytes < 100'000;
  }));
  EXPECT_EQ(picker.inflight(), 1u);
}

// The answer waits for the client's window while the exchange turns into an error: what the client then gets
// is its own body and nobody else's memory.
TEST(ExtProc, AnAnswerOnItsWayStaysWhole) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect({.stream_window = 2000});  // more only as we read
  auto other = picker.Connect();
  Exchange secret(*other);
  secret.SendHeaders(false, {}, "/v1/completions");
  Exchange exchange(*client);
  exchange.SendHeaders(false, {}, "/v1/completions");
  const std::string body = R"({"model":"m","prompt":")" + std::string(3'000'000, 'a') + "\"}";
  exchange.SendBody(body, true);
  ASSERT_TRUE(client->PumpUntil([&] { return exchange.call().unsent() == 0; }));
  ASSERT_TRUE(Eventually([&] { return picker.inflight() == 1; }));
  exchange.call().Send("\x50\x01");  // observability_mode, too late
  for (int i = 0; i < 200; ++i) secret.SendBody(std::string(30'000, 's'), false);
  ASSERT_TRUE(other->PumpUntil([&] { return secret.call().unsent() == 0; }));
  EXPECT_TRUE(Eventually([&] { return picker.inflight() == 0; }));
  EXPECT_FALSE(exchange.RecvDestination().empty());
  std::string echoed;
  exchange.RecvPieces(echoed);
  EXPECT_TRUE(echoed == body);
  exchange.ExpectEnd(static_cast<int>(net::GrpcStatus::kInvalidArgument));
}

// As large as a body may be, in each mode, beside exchanges on the same connection that are at their model
// server already.
TEST(ExtProc, TheLargestBodiesDisturbNobody) {
  Picker picker(std::string(kPool) + Model("llama2", "Critical", "  targetModels: [{name: llama2-v1}]\n"),
                PlainText());
  auto client = picker.Connect({.stream_window = 1 << 20});
  Exchange running(*client);
  running.SendHeaders();
  running.SendBody(Chat("llama2"), true);
  EXPECT_FALSE(running.RecvDestination().empty());
  std::string body;
  running.RecvPieces(body);
  running.SendResponseHeaders();
  EXPECT_TRUE(running.Recv().has_response_headers());
  const std::string begin = R"({"model":"llama2","messages":[{"role":"user","content":")";
  const size_t size = (64u << 20) - 3;  // the other name is longer by three
  const std::string large = begin + std::string(size - begin.size() - 4, 'a') + "\"}]}";
  std::string expected = large;
  expected.replace(10, 6, "llama2-v1");
  {
    Exchange duplex(*client);
    duplex.SendHeaders(false, {{"content-length", std::to_string(size)}});
    for (size_t at = 0; at < size; at += 65'536)
      duplex.SendBody(std::string_view(large).substr(at, 65'536), false);
    duplex.SendBody("", true);
    EXPECT_FALSE(duplex.RecvDestination().empty());
    duplex.RecvPieces(body);
    EXPECT_TRUE(body == expected);
    duplex.call().Reset();
  }
  {
    Exchange buffered(*client, Modes{pb::BUFFERED, pb::NONE});
    buffered.SendHeaders(false, {{"content-length", std::to_string(size)}});
    EXPECT_TRUE(buffered.Recv().has_request_headers());
    buffered.SendBody(large, true);
    const auto reply = buffered.Recv();
    ASSERT_TRUE(reply.has_request_body()) << reply.ShortDebugString().substr(0, 500);
    EXPECT_TRUE(reply.request_body().response().body_mutation().body() == expected);
    buffered.call().Reset();
  }
  running.SendResponseBody("{}", true);
  EXPECT_TRUE(running.Recv().has_response_body());
  EXPECT_EQ(picker.server().stats().aborted_connections, 0u);
  EXPECT_EQ(picker.server().stats().shed_calls, 0u);
}

// Idle calls and unfinished bodies, as many as one can have: an honest client is served.
TEST(ExtProc, HonestExchangesAreServedBesideGreedyOnes) {
  ServerOptions options = PlainText();
  options.transport.max_buffered_bytes = 64 << 20;
  Picker picker(std::string(kPool), options);
  std::vector<std::unique_ptr<Client>> greedy;
  std::vector<std::unique_ptr<Exchange>> unfinished;
  auto honest = picker.Connect();
  size_t most = 0;
  for (int c = 0; c < 8; ++c) {
    greedy.push_back(picker.Connect());
    for (int i = 0; i < 2000; ++i) greedy.back()->Open(kProcess);
    for (int i = 0; i < 3; ++i) {
      unfinished.push_back(std::make_unique<Exchange>(*greedy.back()));
      unfinished.back()->SendHeaders(false, {}, "/v1/completions");
      for (int piece = 0; piece < 100; ++piece) unfinished.back()->SendBody(std::string(60'000, 'x'), false);
    }
    greedy.back()->PumpUntil([] { return false; }, std::chrono::milliseconds(50));
    EXPECT_FALSE(Pick(*honest, "m").empty()) << c;
    Exchange long_prompt(*honest);
    long_prompt.SendHeaders(false, {}, "/v1/completions");
    const std::string body = R"({"model":"m","prompt":")" + std::string(400'000, 'a') + "\"}";
    long_prompt.SendBody(body, true);
    EXPECT_FALSE(long_prompt.RecvDestination().empty()) << c;
    std::string echoed;
    long_prompt.RecvPieces(echoed);
    EXPECT_TRUE(echoed == body);
    long_prompt.call().Reset();
    most = std::max<size_t>(most, picker.server().stats().buffered_bytes);
  }
  EXPECT_LT(most, 72u << 20);
  // Uploads that were in the way were decided by load, not failed.
  EXPECT_GT(picker.server().stats().relieved_calls, 0u);
}

TEST(ExtProc, FullDuplexManyAtOnce) {
  Picker picker(std::string(kPool) + Model("llama2", "Critical", "  targetModels: [{name: llama2-v1}]\n"),
                PlainText());
  auto client = picker.Connect();
  std::vector<std::unique_ptr<Exchange>> exchanges;
  for (int i = 0; i < 60; ++i) {
    exchanges.push_back(std::make_unique<Exchange>(*client));
    exchanges.back()->SendHeaders();
    exchanges.back()->SendBody(Chat("llama2"), true);
  }
  std::map<std::string, int> picks;
  for (auto& exchange : exchanges) {
    ++picks[exchange->RecvDestination()];
    std::string body;
    exchange->RecvPieces(body);
    EXPECT_EQ(body, Chat("llama2-v1"));
  }
  // Nothing was scraped: reservations alone spread them.
  for (const auto& [endpoint, n] : picks) EXPECT_NEAR(n, 20, 1) << endpoint;
  EXPECT_EQ(picker.inflight(), 60u);
  for (auto& exchange : exchanges) exchange->call().Reset();
  client->Pump();
  EXPECT_TRUE(Eventually([&] { return picker.inflight() == 0; }));
}

TEST(ExtProc, TrailersEndTheBody) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  Exchange exchange(*client);
  exchange.SendHeaders();
  exchange.SendBody(Chat("m"), false);
  pb::ProcessingRequest trailers;
  trailers.mutable_request_trailers();
  exchange.Send(trailers);
  EXPECT_FALSE(exchange.RecvDestination().empty());
  const auto piece = exchange.Recv();
  EXPECT_EQ(piece.request_body().response().body_mutation().streamed_response().body(), Chat("m"));
  EXPECT_FALSE(piece.request_body().response().body_mutation().streamed_response().end_of_stream());
  EXPECT_TRUE(exchange.Recv().has_request_trailers());
}

TEST(ExtProc, StreamedBufferedAndNone) {
  Picker picker(std::string(kPool) + Model("llama2", "Critical", "  targetModels: [{name: llama2-v1}]\n"),
                PlainText());
  auto client = picker.Connect();
  {
    Exchange exchange(*client, Modes{pb::STREAMED, pb::STREAMED});
    exchange.SendHeaders();
    EXPECT_FALSE(exchange.RecvDestination().empty());
    exchange.SendBody(Chat("llama2").substr(0, 14), false);
    EXPECT_TRUE(exchange.Recv().request_body().response().body_mutation().clear_body());
    exchange.SendBody(Chat("llama2").substr(14), true);
    EXPECT_EQ(exchange.Recv().request_body().response().body_mutation().body(), Chat("llama2-v1"));
    exchange.SendResponseHeaders();
    EXPECT_TRUE(exchange.Recv().has_response_headers());
    exchange.SendResponseBody("abc", true);
    EXPECT_FALSE(exchange.Recv().response_body().response().has_body_mutation());
  }
  for (const auto mode : {pb::BUFFERED, pb::BUFFERED_PARTIAL}) {
    Exchange exchange(*client, Modes{mode, pb::NONE});
    exchange.SendHeaders();
    EXPECT_TRUE(exchange.Recv().has_request_headers());
    exchange.SendBody(Chat("llama2"), true);
    const auto reply = exchange.Recv();
    EXPECT_FALSE(Exchange::Destination(reply.request_body().response()).empty());
    EXPECT_EQ(reply.request_body().response().body_mutation().body(), Chat("llama2-v1"));
    EXPECT_TRUE(reply.has_dynamic_metadata());
  }
  {
    Exchange exchange(*client, Modes{pb::NONE, pb::NONE});
    exchange.SendHeaders();
    EXPECT_FALSE(exchange.RecvDestination().empty());
  }
}

TEST(ExtProc, LargeStreamedMessagesPass) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  Exchange exchange(*client, Modes{pb::BUFFERED, pb::NONE});
  exchange.SendHeaders(false, {}, "/v1/completions");
  EXPECT_TRUE(exchange.Recv().has_request_headers());
  const std::string body = R"({"model":"m","prompt":")" + std::string(1'000'000, 'a') + "\"}";
  exchange.SendBody(body, true);
  EXPECT_FALSE(Exchange::Destination(exchange.Recv().request_body().response()).empty());
}

// ---- Headers and metadata.

TEST(ExtProc, TheClientCannotChooseItsDestination) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  Exchange exchange(*client);
  exchange.SendHeaders(true,
                       {{"x-gateway-destination-endpoint", "6.6.6.6:66"},
                        {"x-gateway-destination-endpoint-subset", "6.6.6.6"}},
                       "/v1/models");
  const auto reply = exchange.Recv();
  EXPECT_THAT(Exchange::Destination(reply.request_headers().response()), ::testing::StartsWith("10.0.0."));
  EXPECT_EQ(reply.request_headers().response().header_mutation().remove_headers(0),
            "x-gateway-destination-endpoint-subset");
}

pb::ProcessingRequest WithHint(pb::ProcessingRequest message, const std::vector<std::string>& entries,
                               bool as_text) {
  auto& value = (*(*message.mutable_metadata_context()->mutable_filter_metadata())["envoy.lb.subset_hint"]
                      .mutable_fields())["x-gateway-destination-endpoint-subset"];
  if (as_text) {
    std::string text;
    for (const auto& entry : entries) text += (text.empty() ? "" : ",") + entry;
    value.set_string_value(text);
  } else {
    value.mutable_list_value();
    for (const auto& entry : entries) value.mutable_list_value()->add_values()->set_string_value(entry);
  }
  return message;
}

TEST(ExtProc, SubsetHint) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  struct Case {
    std::vector<std::string> entries;
    bool as_text;
    std::string expected;  // "": refused
  };
  for (const Case& c : {Case{{"10.0.0.2:8000"}, false, "10.0.0.2:8000"},
                        Case{{"10.0.0.3:8000", "9.9.9.9:1"}, true, "10.0.0.3:8000"},
                        Case{{"10.0.0.1"}, false, "10.0.0.1:8000"}, Case{{"10.0.0.1:9999"}, false, ""},
                        Case{{}, false, ""}, Case{{"9.9.9.9:1"}, true, ""}}) {
    pb::ProcessingRequest headers;
    headers.mutable_request_headers()->set_end_of_stream(true);
    Exchange exchange(*client);
    exchange.Send(WithHint(headers, c.entries, c.as_text));
    if (!c.expected.empty()) {
      EXPECT_EQ(exchange.RecvDestination(), c.expected);
    } else {
      exchange.ExpectRefused(503, "inference error: ServiceUnavailable - failed to find endpoint candidates");
    }
  }
  // As Ref has it: on the last body message alone.
  Exchange exchange(*client);
  exchange.SendHeaders();
  pb::ProcessingRequest body;
  body.mutable_request_body()->set_body(Chat("m"));
  body.mutable_request_body()->set_end_of_stream(true);
  exchange.Send(WithHint(body, {"10.0.0.3:8000"}, false));
  EXPECT_EQ(exchange.RecvDestination(), "10.0.0.3:8000");
}

TEST(ExtProc, ThePoolIsNamedInTheMetadata) {
  std::string manifests(kPool);
  manifests += "\n---\n";
  std::string other(kPool.substr(0, kPool.find("---")));
  other.replace(other.find("llama"), 5, "other");
  other.replace(other.find("vllm"), 4, "none");
  manifests += other;
  ServerOptions options = PlainText();
  options.service.default_pool = "default/llama";
  Picker picker(manifests, options);
  auto client = picker.Connect();
  {
    Exchange exchange(*client, Modes(), {{"x-fairway-pool", "default/other"}});
    exchange.SendHeaders(true);
    exchange.ExpectRefused(503, "ServiceUnavailable");
  }
  Exchange exchange(*client);
  exchange.SendHeaders(true);
  EXPECT_FALSE(exchange.RecvDestination().empty());
}

// ---- Responses.

TEST(ExtProc, TheReservationFollowsWhoServed) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  Exchange exchange(*client);
  pb::ProcessingRequest headers;
  headers.mutable_request_headers()->set_end_of_stream(true);
  exchange.Send(WithHint(headers, {"10.0.0.1:8000"}, false));
  EXPECT_EQ(exchange.RecvDestination(), "10.0.0.1:8000");
  EXPECT_EQ(picker.inflight(0), 1u);
  exchange.SendResponseHeaders("10.0.0.3:8000");
  const auto reply = exchange.Recv();
  ASSERT_EQ(reply.response_headers().response().header_mutation().set_headers_size(), 1);
  EXPECT_EQ(reply.response_headers().response().header_mutation().set_headers(0).header().key(),
            "x-went-into-resp-headers");
  EXPECT_EQ(picker.inflight(0), 0u);
  EXPECT_EQ(picker.inflight(2), 1u);
  exchange.SendResponseBody("data: 1\n\n", false);
  EXPECT_EQ(exchange.Recv().response_body().response().body_mutation().streamed_response().body(),
            "data: 1\n\n");
  exchange.SendResponseBody(std::string(70'000, 'x'), true);
  std::string body;
  EXPECT_THAT(exchange.RecvPieces(body, true), ::testing::ElementsAre(62'000, 8'000));
  EXPECT_TRUE(Eventually([&] { return picker.inflight() == 0; }));
}

TEST(ExtProc, AResponseWithoutARequest) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  Exchange exchange(*client);
  exchange.SendResponseHeaders();
  EXPECT_TRUE(exchange.Recv().has_response_headers());
  pb::ProcessingRequest trailers;
  trailers.mutable_response_trailers();
  exchange.Send(trailers);
  EXPECT_TRUE(exchange.Recv().has_response_trailers());
  exchange.call().HalfClose();
  exchange.ExpectEnd(0);
}

// ---- Refusals.

TEST(ExtProc, Refusals) {
  Picker picker(std::string(kPool) + Model("cheap", "Sheddable"), PlainText());
  auto client = picker.Connect();
  for (size_t i = 0; i < 3; ++i) picker.Scrape(i, {60, 0.95f, {}});
  {
    Exchange exchange(*client);
    exchange.SendHeaders();
    exchange.SendBody(Chat("cheap"), true);
    const auto reply = exchange.Recv();
    EXPECT_EQ(reply.immediate_response().status().code(), 429);
    EXPECT_EQ(reply.immediate_response().headers().set_headers(0).header().key(),
              "x-llm-d-request-dropped-reason");
    EXPECT_EQ(reply.immediate_response().headers().set_headers(0).header().raw_value(), "rejected-saturated");
    exchange.ExpectEnd(0);
  }
  const auto refused = [&](std::string_view body, int status, const std::string& text) {
    Exchange exchange(*client);
    exchange.SendHeaders();
    exchange.SendBody(body, true);
    exchange.ExpectRefused(status, text);
  };
  refused(Chat("cheapo"), 404, "did you mean \"cheap\"");
  refused(R"({"model":)", 400, "inference error: BadRequest - ");
  refused("", 400, "inference error: BadRequest - ");
  refused(R"({"messages":[{"role":"user","content":"hi"}]})", 400, "model not found in request body");
}

TEST(ExtProc, ObjectivesAndRewrites) {
  const auto policy = [](std::string_view kind, std::string_view name, std::string_view spec) {
    return "\n---\napiVersion: llm-d.ai/v1alpha2\nkind: " + std::string(kind) +
           "\nmetadata: {name: " + std::string(name) + "}\nspec: {poolRef: {name: llama}, " +
           std::string(spec) + "}\n";
  };
  Picker picker(std::string(kPool) + policy("InferenceObjective", "batch", "priority: -1") +
                    policy("InferenceObjective", "gold", "priority: 5") +
                    policy("InferenceModelRewrite", "canary",
                           "rules: [{matches: [{model: {value: chat}}], targets: [{modelRewrite: LoRA-X}]}]"),
                PlainText());
  auto client = picker.Connect();
  picker.Scrape(0, {9, 0.1f, {}});
  picker.Scrape(1, {9, 0.1f, {"LoRA-X"}});
  picker.Scrape(2, {60, 0.9f, {}});
  for (const char* header : {"x-llm-d-inference-objective", "x-gateway-inference-objective"}) {
    Exchange exchange(*client);
    exchange.SendHeaders(false, {{header, "batch"}});
    exchange.SendBody(Chat("other"), true);
    exchange.ExpectRefused(429, "system saturated, sheddable request dropped");
  }
  Exchange exchange(*client);
  exchange.SendHeaders(false,
                       {{"x-llm-d-inference-objective", "gold"}, {"x-llm-d-model-name-rewrite", "header"}});
  exchange.SendBody(Chat("chat"), true);
  EXPECT_EQ(exchange.RecvDestination(), "10.0.0.2:8000") << "where the rewrite's adapter is";
  std::string body;
  exchange.RecvPieces(body);
  EXPECT_EQ(body, Chat("LoRA-X"));
  exchange.SendResponseHeaders();
  exchange.Recv();
  exchange.SendResponseBody(Chat("LoRA-X"), true);
  exchange.RecvPieces(body, true);
  EXPECT_EQ(body, Chat("chat")) << "the name that was asked for comes back";
  EXPECT_THAT(
      picker.registry().Render(),
      HasSubstr("llm_d_epp_request_total{model_name=\"chat\",target_model_name=\"LoRA-X\",fairness_id="
                "\"default-flow\",priority=\"5\"} 1\n"));
}

TEST(ExtProc, AnEmptyPoolIs503) {
  Picker picker(std::string(kPool.substr(0, kPool.find("---"))), PlainText());
  auto client = picker.Connect();
  Exchange exchange(*client);
  exchange.SendHeaders(true);
  exchange.ExpectRefused(503, "inference error: ServiceUnavailable");
}

TEST(ExtProc, ABodyTooLargeIs413) {
  ServerOptions options = PlainText();
  options.service.session.max_body = 1000;
  Picker picker(std::string(kPool), options);
  auto client = picker.Connect();
  Exchange exchange(*client);
  exchange.SendHeaders();
  exchange.SendBody(std::string(1001, ' '), false);
  exchange.ExpectRefused(413, "larger than 1000 bytes");
}

TEST(ExtProc, EveryWaitEnds) {
  ServerOptions options = PlainText();
  options.service.session.body_timeout = 50 * base::kMillisecond;
  options.service.session.mode_timeout = 50 * base::kMillisecond;
  Picker picker(std::string(kPool), options);
  auto client = picker.Connect();
  Exchange stalled(*client);
  stalled.SendHeaders();
  stalled.SendBody("{", false);
  stalled.ExpectRefused(408, "did not come in time");
  // A gateway that says no modes and waits for the answer to its headers.
  Exchange silent(*client, std::nullopt);
  silent.SendHeaders();
  EXPECT_FALSE(silent.RecvDestination().empty());
  EXPECT_THAT(picker.registry().Render(), HasSubstr(R"(fairway_extproc_events_total{event="timeout"} 1)"));
}

TEST(ExtProc, MalformedMessagesEndTheCallAlone) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  Exchange broken(*client);
  broken.call().Send("\x12\xff\xff");
  broken.ExpectEnd(static_cast<int>(net::GrpcStatus::kInvalidArgument));
  EXPECT_FALSE(Pick(*client, "m").empty());
  auto unknown = client->Open("/envoy.service.ext_proc.v3.ExternalProcessor/Other");
  EXPECT_EQ(unknown->RecvEnd().status, static_cast<int>(net::GrpcStatus::kUnimplemented));
}

TEST(ExtProc, AGatewayThatGoesAwayLeavesNothingBehind) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  for (int i = 0; i < 5; ++i) EXPECT_FALSE(Pick(*client, "m").empty());
  EXPECT_EQ(picker.inflight(), 5u);
  client.reset();
  EXPECT_TRUE(Eventually([&] { return picker.inflight() == 0; }));
}

// ---- TLS.

// A key and a certificate for `name`, as PEM files tls.key and tls.crt in `folder`.
void WriteCertificate(const std::filesystem::path& folder, const std::string& name) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  X509_gmtime_adj(X509_getm_notBefore(certificate), 0);
  X509_gmtime_adj(X509_getm_notAfter(certificate), 3600);
  X509_set_pubkey(certificate, key);
  X509_NAME* subject = X509_get_subject_name(certificate);
  X509_NAME_add_entry_by_txt(subject, "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  X509_set_issuer_name(certificate, subject);
  X509_sign(certificate, key, EVP_sha256());
  const auto write = [&](const char* file, auto print) {
    // Whole or not at all, as Kubernetes does it.
    const std::string temporary = folder / (std::string(file) + ".new");
    FILE* out = fopen(temporary.c_str(), "w");
    ASSERT_NE(out, nullptr);
    print(out);
    fclose(out);
    std::filesystem::rename(temporary, folder / file);
  };
  write("tls.key", [&](FILE* out) { PEM_write_PrivateKey(out, key, nullptr, nullptr, 0, nullptr, nullptr); });
  write("tls.crt", [&](FILE* out) { PEM_write_X509(out, certificate); });
  X509_free(certificate);
  EVP_PKEY_free(key);
}

TEST(ExtProc, SelfSignedTlsByDefault) {
  Picker picker{std::string(kPool)};
  auto client = picker.Connect({.tls = true});
  ASSERT_TRUE(client);
  EXPECT_FALSE(Pick(*client, "m").empty());
  // kgateway's Envoy: TLS 1.2, no SNI.
  auto old = picker.Connect({.tls = true, .max_tls_version = TLS1_2_VERSION});
  ASSERT_TRUE(old);
  EXPECT_EQ(old->tls_version(), "TLSv1.2");
  EXPECT_FALSE(Pick(*old, "m").empty());
}

// Only gateways that the operator's authority knows.
TEST(ExtProc, ClientCertificatesAreAskedForOnRequest) {
  const auto folder =
      std::filesystem::temp_directory_path() / ("fairway-wire-clients-" + std::to_string(getpid()));
  for (const char* who : {"server", "gateway", "stranger", "next"}) {
    std::filesystem::create_directories(folder / who);
    WriteCertificate(folder / who, who);
  }
  const auto allow = [&](const char* who) {
    std::filesystem::copy_file(folder / who / "tls.crt", folder / "ca.new");
    std::filesystem::rename(folder / "ca.new", folder / "ca.crt");
  };
  allow("gateway");
  ServerOptions options;
  options.cert_path = folder / "server";
  options.enable_cert_reload = true;
  options.cert_poll = 10 * base::kMillisecond;
  options.tls.client_ca_file = folder / "ca.crt";
  Picker picker(std::string(kPool), options);
  const auto served = [&](const std::string& who) {
    ClientOptions tls{.tls = true};
    if (!who.empty()) {
      tls.certificate_file = folder / who / "tls.crt";
      tls.key_file = folder / who / "tls.key";
    }
    // Under TLS 1.3 a client hears only after its handshake that it is refused.
    auto client = Client::Connect("127.0.0.1", picker.server().grpc_port(), tls);
    if (client == nullptr) return false;
    auto call = client->Open(kProcess);
    call->Send("");
    client->PumpUntil([&] { return client->closed() || client->max_concurrent_streams() == 10'000; });
    return !client->closed();
  };
  EXPECT_TRUE(served("gateway"));
  EXPECT_FALSE(served(""));
  EXPECT_FALSE(served("stranger"));
  allow("next");
  EXPECT_TRUE(Eventually([&] { return served("next"); }));
  EXPECT_FALSE(served("gateway"));
  // Probes come without.
  auto probe = Client::Connect("127.0.0.1", picker.server().health_port());
  ASSERT_TRUE(probe);
  std::filesystem::remove_all(folder);
  options.tls.client_ca_file = "/nonexistent/ca.crt";
  base::SystemClock clock;
  base::Registry registry;
  fleet::Fleet fleet;
  routing::Router router(fleet.published(), clock, registry, {});
  net::LoopThread thread("test");
  options.cert_path.clear();
  options.grpc_port = options.health_port = 0;
  auto started = ExtProcServer::Start(options, router, clock, registry, base::Log(), {&thread.loop()});
  ASSERT_FALSE(started);
  EXPECT_THAT(started.error().message, HasSubstr("/nonexistent/ca.crt"));
  thread.Join();
}

TEST(ExtProc, CertificatesAreReloaded) {
  const auto folder = std::filesystem::temp_directory_path() / ("fairway-wire-" + std::to_string(getpid()));
  std::filesystem::create_directories(folder);
  WriteCertificate(folder, "first");
  ServerOptions options;
  options.cert_path = folder;
  options.enable_cert_reload = true;
  options.cert_poll = 10 * base::kMillisecond;
  Picker picker(std::string(kPool), options);
  auto before = picker.Connect({.tls = true});
  ASSERT_TRUE(before);
  const std::string first = before->tls_certificate();
  EXPECT_THAT(first, HasSubstr("first"));
  WriteCertificate(folder, "second");
  EXPECT_TRUE(Eventually([&] {
    auto after = picker.Connect({.tls = true});
    return after && after->tls_certificate().find("second") != std::string::npos;
  }));
  // Rubbish leaves the good one in place, and the old connection lives on.
  std::ofstream(folder / "tls.crt") << "rubbish";
  EXPECT_FALSE(Pick(*before, "m").empty());
  auto again = picker.Connect({.tls = true});
  ASSERT_TRUE(again);
  EXPECT_THAT(again->tls_certificate(), HasSubstr("second"));
  std::filesystem::remove_all(folder);
}

TEST(ExtProc, AMissingCertificateIsAnError) {
  base::SystemClock clock;
  base::Registry registry;
  fleet::Fleet fleet;
  routing::Router router(fleet.published(), clock, registry, {});
  net::LoopThread thread("test");
  ServerOptions options;
  options.grpc_port = options.health_port = 0;
  options.cert_path = "/nonexistent";
  auto started = ExtProcServer::Start(options, router, clock, registry, base::Log(), {&thread.loop()});
  ASSERT_FALSE(started);
  EXPECT_THAT(started.error().message, HasSubstr("/nonexistent/tls.crt"));
  thread.Join();
}

// ---- Health.

std::string HealthRequest(const std::string& service) {
  if (service.empty()) return "";
  return std::string("\x0a") + static_cast<char>(service.size()) + service;
}
// 1 SERVING, 2 NOT_SERVING, 3 SERVICE_UNKNOWN.
int HealthStatus(const std::string& message) {
  return message.size() == 2 && message[0] == 8 ? message[1] : -1;
}

TEST(ExtProcHealth, TheHealthPortAnswersAnyName) {
  Picker picker{std::string(kPool), PlainText()};
  std::string error;
  auto client = Client::Connect("127.0.0.1", picker.server().health_port(), {}, &error);
  ASSERT_TRUE(client) << error;
  for (const std::string name :
       {"", "liveness", "readiness", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor"}) {
    EXPECT_EQ(HealthStatus(client->Unary(kCheck, HealthRequest(name)).message), 1) << name;
  }
  const std::string list = client->Unary("/grpc.health.v1.Health/List", "").message;
  EXPECT_THAT(list, HasSubstr("envoy.service.ext_proc.v3.ExternalProcessor"));
}

TEST(ExtProcHealth, NotServingWithoutAPool) {
  Picker picker("endpoints: []\n", PlainText());
  auto client = Client::Connect("127.0.0.1", picker.server().health_port());
  ASSERT_TRUE(client);
  EXPECT_EQ(HealthStatus(client->Unary(kCheck, "").message), 2);
  EXPECT_EQ(HealthStatus(client->Unary(kCheck, HealthRequest("readiness")).message), 2);
  // A restart would not bring a pool.
  EXPECT_EQ(HealthStatus(client->Unary(kCheck, HealthRequest("liveness")).message), 1);
  auto watch = client->Open(kWatch);
  watch->Send("");
  EXPECT_EQ(HealthStatus(watch->Recv().message), 2);
  auto loaded = api::ParseManifests(kPool, "test.yaml");
  picker.fleet().Apply(loaded.manifests);
  EXPECT_EQ(HealthStatus(watch->Recv().message), 1);
}

// An answer, be it a 503, would be the picker's word: the gateway does what its failure mode says when there
// is none.
TEST(ExtProc, BeforeAnyPoolIsKnownEachCallEndsUnavailableAtOnce) {
  ServerOptions options = PlainText();
  options.health_checking = true;
  Picker picker("endpoints: []\n", options);
  auto client = picker.Connect();
  for (const bool end : {true, false}) {
    Exchange early(*client);
    early.SendHeaders(end);
    early.ExpectEnd(static_cast<int>(net::GrpcStatus::kUnavailable));
  }
  Exchange empty(*client);
  empty.call().HalfClose();
  empty.ExpectEnd(static_cast<int>(net::GrpcStatus::kUnavailable));
  EXPECT_EQ(HealthStatus(client->Unary(kCheck, "").message), 2);
  EXPECT_THAT(picker.registry().Render(),
              HasSubstr("fairway_extproc_events_total{event=\"no_pool_yet\"} 3\n"));
  // The connection lives, and serves from the first pool on.
  picker.fleet().Apply(api::ParseManifests(kPool, "test.yaml").manifests);
  EXPECT_FALSE(Pick(*client, "m").empty());
  // A pool that goes is another thing: it is known that there is none.
  picker.fleet().Apply({});
  Exchange late(*client);
  late.SendHeaders(true);
  EXPECT_EQ(late.Recv().immediate_response().status().code(), 503);
}

TEST(ExtProcHealth, OnTheExtProcPortOnRequest) {
  {
    Picker picker{std::string(kPool), PlainText()};
    Reply end;
    picker.Connect()->Unary(kCheck, "", &end);
    EXPECT_EQ(end.status, static_cast<int>(net::GrpcStatus::kUnimplemented));
  }
  ServerOptions options = PlainText();
  options.health_checking = true;
  Picker picker(std::string(kPool), options);
  auto client = picker.Connect();
  EXPECT_EQ(HealthStatus(client->Unary(kCheck, "").message), 1);
  EXPECT_EQ(HealthStatus(client->Unary(kCheck, HealthRequest(std::string(kExternalProcessor))).message), 1);
  Reply end;
  client->Unary(kCheck, HealthRequest("liveness"), &end);
  EXPECT_EQ(end.status, static_cast<int>(net::GrpcStatus::kNotFound));
  auto watch = client->Open(kWatch);
  watch->Send(HealthRequest("liveness"));
  EXPECT_EQ(HealthStatus(watch->Recv().message), 3);
}

// Watchers cost something when health changes, and are bounded; probes are answered beside them.
TEST(ExtProcHealth, WatchersAreBoundedAndAllAreTold) {
  Picker picker("endpoints: []\n", PlainText());
  std::vector<std::unique_ptr<Client>> clients;
  std::vector<std::shared_ptr<fairway::testing::GrpcClientCall>> watches;
  for (int c = 0; c < 22; ++c) {
    clients.push_back(Client::Connect("127.0.0.1", picker.server().health_port()));
    ASSERT_TRUE(clients.back());
    for (int i = 0; i < 100; ++i) {
      watches.push_back(clients.back()->Open(kWatch));
      watches.back()->Send("");
    }
  }
  size_t watching = 0;
  for (auto& watch : watches) {
    const Reply reply = watch->Recv();
    if (reply.kind == Reply::Kind::kMessage) {
      EXPECT_EQ(HealthStatus(reply.message), 2);
      ++watching;
    } else {
      EXPECT_EQ(reply.status, static_cast<int>(net::GrpcStatus::kResourceExhausted));
    }
  }
  EXPECT_EQ(watching, 2000u);  // on two loops
  auto probe = Client::Connect("127.0.0.1", picker.server().health_port());
  ASSERT_TRUE(probe);
  EXPECT_EQ(HealthStatus(probe->Unary(kCheck, HealthRequest("liveness")).message), 1);
  picker.fleet().Apply(api::ParseManifests(kPool, "test.yaml").manifests);
  for (auto& watch : watches) {
    if (!watch->ended()) {
      EXPECT_EQ(HealthStatus(watch->Recv().message), 1);
    }
  }
}

// Kubernetes restarts a picker whose probes fail.
TEST(ExtProcHealth, ProbesAreAnsweredBesideIdleConnections) {
  Picker picker{std::string(kPool), PlainText()};
  const int many = static_cast<int>(std::min<size_t>(1100, net::DescriptorLimit() / 3));
  std::vector<fairway::testing::RawClient> idle;
  for (int i = 0; i < many; ++i) {
    idle.push_back(fairway::testing::RawClient::Connect(picker.server().health_port()));
    idle.back().Send(fairway::testing::Preface(), false);
    if (i % 100 != 99) continue;
    auto probe = Client::Connect("127.0.0.1", picker.server().health_port());
    ASSERT_TRUE(probe);
    EXPECT_EQ(HealthStatus(probe->Unary(kCheck, HealthRequest("liveness")).message), 1) << i;
  }
}

TEST(ExtProc, TheTransportIsOnTheMetricsPage) {
  Picker picker{std::string(kPool), PlainText()};
  auto client = picker.Connect();
  Exchange exchange(*client);
  exchange.SendHeaders(true);
  exchange.RecvDestination();
  const std::string page = picker.registry().Render();
  EXPECT_THAT(page, HasSubstr(R"(fairway_grpc_connections{port="ext_proc"} 1)"));
  EXPECT_THAT(page, HasSubstr(R"(fairway_grpc_calls{port="ext_proc"} 1)"));
  EXPECT_THAT(page, HasSubstr(R"(fairway_grpc_calls_total{port="ext_proc"} 1)"));
  EXPECT_THAT(page, HasSubstr(R"(fairway_grpc_held_bytes{port="ext_proc"} )"));
  EXPECT_THAT(page, HasSubstr(R"(fairway_grpc_call_events_total{port="health",event="stalled"} 0)"));
  EXPECT_THAT(page, HasSubstr(R"(fairway_grpc_connection_events_total{port="ext_proc",event="evicted"} 0)"));
}

// ---- Drain.

TEST(ExtProc, DrainLetsExchangesEnd) {
  Picker picker{std::string(kPool), PlainText()};
  auto health = Client::Connect("127.0.0.1", picker.server().health_port());
  ASSERT_TRUE(health);
  auto watch = health->Open(kWatch);
  watch->Send("");
  EXPECT_EQ(HealthStatus(watch->Recv().message), 1);
  auto client = picker.Connect();
  Exchange open(*client);
  open.SendHeaders();
  open.SendBody("{", false);
  client->Pump();

  auto done = std::make_shared<std::promise<void>>();
  auto drained = done->get_future();
  picker.server().Drain(200 * base::kMillisecond, 20 * base::kSecond, [done] { done->set_value(); });
  EXPECT_EQ(HealthStatus(watch->Recv().message), 2);
  // Still served, also new calls on new connections.
  {
    auto late = picker.Connect();
    ASSERT_TRUE(late);
    EXPECT_FALSE(Pick(*late, "m").empty());
  }
  ASSERT_TRUE(client->PumpUntil([&] { return client->goaway().has_value(); }));
  std::string error;
  EXPECT_TRUE(Eventually(
      [&] { return Client::Connect("127.0.0.1", picker.server().grpc_port(), {}, &error) == nullptr; }));
  EXPECT_EQ(drained.wait_for(std::chrono::milliseconds(0)), std::future_status::timeout);
  // The exchange that was open ends as it should.
  open.SendBody(Chat("m").substr(1), true);
  EXPECT_FALSE(open.RecvDestination().empty());
  std::string body;
  open.RecvPieces(body);
  EXPECT_EQ(body, Chat("m"));
  open.call().HalfClose();
  open.ExpectEnd(0);
  EXPECT_EQ(drained.wait_for(std::chrono::seconds(20)), std::future_status::ready);
}

TEST(ExtProc, StreamMetricsOnRequest) {
  ServerOptions options = PlainText();
  options.service.stream_metrics = true;
  Picker picker(std::string(kPool), options);
  auto client = picker.Connect();
  {
    Exchange exchange(*client);
    exchange.SendHeaders(true);
    exchange.RecvDestination();
    EXPECT_THAT(picker.registry().Render(), HasSubstr("llm_d_epp_extproc_streams_inflight 1"));
    exchange.call().HalfClose();
    exchange.ExpectEnd(0);
  }
  EXPECT_TRUE(Eventually([&] {
    return picker.registry().Render().find(R"(llm_d_epp_extproc_streams_total{code="OK"} 1)") !=
           std::string::npos;
  }));
}

}  // namespace
}  // namespace fairway::ext_proc
