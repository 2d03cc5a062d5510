#include "simulator/server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <charconv>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "api/scalars.h"
#include "api/value.h"
#include "base/strings.h"

namespace fairway::simulator {
namespace {

using base::kSecond;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

// A blocking HTTP/1.1 client of one connection, 20 s at most for each read.
class Client {
 public:
  explicit Client(uint16_t port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in to{};
    to.sin_family = AF_INET;
    to.sin_port = htons(port);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const timeval limit{20, 0};
    setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&to), sizeof(to)) == 0;
  }
  ~Client() { close(fd_); }
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  bool connected() const { return connected_; }
  void Send(const std::string& method, const std::string& path, const std::string& body = "",
            const std::string& headers = "") {
    const std::string text = method + " " + path + " HTTP/1.1\r\nhost: sim\r\n" + headers +
                             "content-length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    ASSERT_EQ(send(fd_, text.data(), text.size(), MSG_NOSIGNAL), static_cast<ssize_t>(text.size()));
  }
  // More bytes; false at the end of the connection.
  bool Read() {
    char piece[65536];
    const ssize_t n = recv(fd_, piece, sizeof(piece), 0);
    if (n <= 0) return false;
    buffer_.append(piece, static_cast<size_t>(n));
    return true;
  }
  bool ReadUntil(std::string_view text) {
    while (buffer_.find(text) == std::string::npos)
      if (!Read()) return false;
    return true;
  }
  const std::string& buffer() const { return buffer_; }

  struct Reply {
    int status = 0;
    std::string head;
    std::string body;
    std::string Header(const std::string& name) const {
      for (std::string_view line : base::Split(head, '\n')) {
        const size_t colon = line.find(':');
        if (colon != std::string_view::npos && base::EqualsIgnoreCase(line.substr(0, colon), name))
          return std::string(base::Trim(line.substr(colon + 1)));
      }
      return "";
    }
  };
  // A whole answer with content-length or chunks; status 0 when the connection ends before.
  Reply Receive() {
    if (!ReadUntil("\r\n\r\n")) return {};
    Reply reply;
    const size_t head_end = buffer_.find("\r\n\r\n");
    reply.head = buffer_.substr(0, head_end);
    buffer_.erase(0, head_end + 4);
    const std::string status = reply.head.substr(9, 3);
    std::from_chars(status.data(), status.data() + 3, reply.status);
    if (reply.Header("transfer-encoding") == "chunked") {
      if (!ReadChunks(reply.body)) return {};
      return reply;
    }
    const size_t length = *base::ParseInteger<size_t>(reply.Header("content-length"));
    while (buffer_.size() < length)
      if (!Read()) return {};
    reply.body = buffer_.substr(0, length);
    buffer_.erase(0, length);
    return reply;
  }

 private:
  bool ReadChunks(std::string& body) {
    while (true) {
      if (!ReadUntil("\r\n")) return false;
      size_t size = 0;
      const size_t line = buffer_.find("\r\n");
      std::from_chars(buffer_.data(), buffer_.data() + line, size, 16);
      while (buffer_.size() < line + 2 + size + 2)
        if (!Read()) return false;
      body += buffer_.substr(line + 2, size);
      buffer_.erase(0, line + 2 + size + 2);
      if (size == 0) return true;
    }
  }

  int fd_;
  bool connected_ = false;
  std::string buffer_;
};

std::vector<std::string> Events(const std::string& body) {
  std::vector<std::string> events;
  for (size_t at = 0; at < body.size();) {
    const size_t end = body.find("\n\n", at);
    EXPECT_NE(end, std::string::npos);
    EXPECT_EQ(body.substr(at, 6), "data: ");
    events.push_back(body.substr(at + 6, end - at - 6));
    at = end + 2;
  }
  return events;
}

using Json = api::Value;

Json Parsed(const std::string& text) {
  const auto parsed = api::ParseJson(text);
  EXPECT_TRUE(parsed.problems.empty() && parsed.documents.size() == 1) << text;
  return parsed.documents.size() == 1 ? *parsed.documents[0] : Json{};
}

double NumberOf(const Json* json) { return json == nullptr ? -1 : api::ParseReal(json->text).value_or(-1); }

class SimulatorTest : public testing::Test {
 protected:
  static EndpointOptions Fast() {
    EndpointOptions options{.model = "base", .adapters = {"lora-a", "lora-b"}};
    options.engine.answer_spread = 0;
    options.engine.answer_tokens = 8;
    options.engine = ScaleTime(options.engine, 0.01);
    return options;
  }
  void Start(std::vector<EndpointOptions> endpoints, uint32_t threads = 1) {
    auto sim = Simulator::Start({.endpoints = std::move(endpoints), .threads = threads}, clock_, log_);
    ASSERT_TRUE(sim) << sim.error().message;
    sim_ = std::move(*sim);
  }
  Client::Reply Ask(const std::string& method, const std::string& path, const std::string& body = "",
                    size_t endpoint = 0) {
    Client client(sim_->port(endpoint));
    if (!client.connected()) return {};
    client.Send(method, path, body);
    return client.Receive();
  }
  // Asks until it is so; fails the test after 20 s.
  template <typename Condition>
  void Await(const char* what, Condition condition) {
    const base::Nanos until = clock_.Now() + 20 * kSecond;
    while (!condition()) {
      ASSERT_LT(clock_.Now(), until) << "never: " << what;
      std::this_thread::yield();
    }
  }
  uint32_t Running(size_t endpoint = 0) {
    uint32_t running = 0;
    sim_->Inspect(endpoint,
                  [&](const Endpoint& e) { running = e.engine().running_now() + e.engine().waiting_now(); });
    return running;
  }

  base::SystemClock clock_;
  base::Log log_{base::LogLevel::kError, base::LogFormat::kText};
  std::unique_ptr<Simulator> sim_;
};

constexpr char kChat[] = R"({"model":"base","messages":[{"role":"user","content":"Hello there"}]})";

TEST_F(SimulatorTest, ChatAnswersInVllmsShape) {
  EndpointOptions options = Fast();
  options.name = "alpha";
  Start({options});
  Client client(sim_->port(0));
  client.Send("POST", "/v1/chat/completions", kChat, "x-request-id: r7\r\n");
  const auto reply = client.Receive();
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(reply.Header("x-served-by"), "alpha");
  EXPECT_EQ(reply.Header("content-type"), "application/json");
  const Json json = Parsed(reply.body);
  EXPECT_EQ(json.Find("id")->text, "chatcmpl-r7");
  EXPECT_EQ(json.Find("object")->text, "chat.completion");
  EXPECT_EQ(json.Find("model")->text, "base");
  EXPECT_GT(NumberOf(json.Find("created")), 1.7e9);
  const Json& choice = *json.Find("choices")->items.at(0);
  EXPECT_EQ(choice.Find("finish_reason")->text, "stop");
  EXPECT_EQ(choice.Find("message")->Find("role")->text, "assistant");
  EXPECT_THAT(choice.Find("message")->Find("content")->text, StartsWith("Served by alpha: "));
  const Json* usage = json.Find("usage");
  EXPECT_EQ(NumberOf(usage->Find("completion_tokens")), 8);
  EXPECT_GT(NumberOf(usage->Find("prompt_tokens")), 0);
  EXPECT_EQ(NumberOf(usage->Find("total_tokens")), 8 + NumberOf(usage->Find("prompt_tokens")));

  client.Send("POST", "/v1/chat/completions", kChat);  // the connection is kept
  EXPECT_EQ(client.Receive().status, 200);
}

TEST_F(SimulatorTest, CompletionsAndTokenLimits) {
  Start({Fast()});
  const auto reply = Ask("POST", "/v1/completions",
                         R"({"model":"lora-a","prompt":"Once","max_tokens":5,"ignore_eos":true})");
  ASSERT_EQ(reply.status, 200) << reply.body;
  const Json json = Parsed(reply.body);
  EXPECT_THAT(json.Find("id")->text, StartsWith("cmpl-"));
  EXPECT_EQ(json.Find("object")->text, "text_completion");
  EXPECT_EQ(json.Find("model")->text, "lora-a");
  const Json& choice = *json.Find("choices")->items.at(0);
  EXPECT_THAT(choice.Find("text")->text, StartsWith("Served by 127.0.0.1:" + std::to_string(sim_->port(0))));
  EXPECT_EQ(choice.Find("finish_reason")->text, "length");
  EXPECT_EQ(NumberOf(json.Find("usage")->Find("completion_tokens")), 5);
}

TEST_F(SimulatorTest, APlainAnswerTellsTheLoadToWhoAsks) {
  Start({Fast()});
  for (const auto& [stream, asks] : {std::pair(false, true), {false, false}, {true, true}}) {
    Client client(sim_->port(0));
    client.Send("POST", "/v1/completions",
                std::string(R"({"model":"base","prompt":"Hi","max_tokens":3,"stream":)") +
                    (stream ? "true}" : "false}"),
                asks ? "endpoint-load-metrics-format: TEXT\r\n" : "");
    const auto reply = client.Receive();
    ASSERT_EQ(reply.status, 200) << reply.body;
    EXPECT_THAT(reply.Header("endpoint-load-metrics"),
                asks && !stream ? testing::MatchesRegex(
                                      "TEXT named_metrics.kv_cache_usage_perc=0\\.[0-9]+,named_metrics.num_"
                                      "requests_waiting=0")
                                : testing::MatchesRegex(""));
  }
}

TEST_F(SimulatorTest, StreamHasRoleTokensFinishUsageAndDone) {
  Start({Fast()});
  const auto reply =
      Ask("POST", "/v1/chat/completions",
          R"({"model":"base","stream":true,"stream_options":{"include_usage":true},"max_tokens":4,)"
          R"("messages":[{"role":"user","content":"Hi"}]})");
  ASSERT_EQ(reply.status, 200);
  EXPECT_THAT(reply.Header("content-type"), StartsWith("text/event-stream"));
  EXPECT_NE(reply.Header("x-served-by"), "");
  const auto events = Events(reply.body);
  ASSERT_EQ(events.size(), 1u + 4 + 1 + 1);
  EXPECT_EQ(Parsed(events[0]).Find("object")->text, "chat.completion.chunk");
  EXPECT_EQ(Parsed(events[0]).Find("choices")->items[0]->Find("delta")->Find("role")->text, "assistant");
  std::string text;
  for (size_t i = 1; i <= 4; ++i) {
    const Json event = Parsed(events[i]);
    const Json& choice = *event.Find("choices")->items.at(0);
    text += choice.Find("delta")->Find("content")->text;
    if (i < 4) {
      EXPECT_TRUE(choice.Find("finish_reason")->kind == Json::Kind::kNull);
    } else {
      EXPECT_EQ(choice.Find("finish_reason")->text, "length");
    }
    EXPECT_EQ(event.Find("id")->text, Parsed(events[0]).Find("id")->text);
  }
  EXPECT_THAT(text, StartsWith("Served by "));
  EXPECT_THAT(Parsed(events[5]).Find("choices")->items, IsEmpty());
  EXPECT_EQ(NumberOf(Parsed(events[5]).Find("usage")->Find("completion_tokens")), 4);
  EXPECT_EQ(events[6], "[DONE]");
}

TEST_F(SimulatorTest, CompletionStreamWithoutUsage) {
  Start({Fast()});
  const auto reply =
      Ask("POST", "/v1/completions", R"({"model":"base","stream":true,"prompt":"Hi","max_tokens":3})");
  const auto events = Events(reply.body);
  ASSERT_EQ(events.size(), 3u + 1);
  EXPECT_EQ(Parsed(events[0]).Find("object")->text, "text_completion");
  EXPECT_EQ(Parsed(events[0]).Find("choices")->items[0]->Find("text")->text, "Served");
  EXPECT_THAT(reply.body, Not(HasSubstr("usage")));
}

TEST_F(SimulatorTest, EachEventLeavesWhenItsTokenIsMade) {
  EndpointOptions options = Fast();
  options.engine = ScaleTime(options.engine, 20);  // 2.4 ms a token: 400 of them take a second
  Start({options});
  Client client(sim_->port(0));
  client.Send("POST", "/v1/completions",
              R"({"model":"base","stream":true,"prompt":"Hi","max_tokens":400,"ignore_eos":true})");
  ASSERT_TRUE(client.ReadUntil("Served"));
  uint64_t made = 0;
  sim_->Inspect(0, [&](const Endpoint& e) { made = e.engine().totals().generation_tokens; });
  EXPECT_LT(made, 300u);
  EXPECT_EQ(Running(), 1u);
  EXPECT_THAT(client.buffer(), Not(HasSubstr("[DONE]")));
  EXPECT_TRUE(client.ReadUntil("[DONE]"));
}

TEST_F(SimulatorTest, WrongRequestsGetVllmsErrors) {
  Start({Fast()});
  auto error = [&](const Client::Reply& reply) { return *Parsed(reply.body).Find("error"); };
  auto reply =
      Ask("POST", "/v1/chat/completions", R"({"model":"nope","messages":[{"role":"user","content":"x"}]})");
  EXPECT_EQ(reply.status, 404);
  EXPECT_EQ(error(reply).Find("message")->text, "The model `nope` does not exist.");
  EXPECT_EQ(error(reply).Find("type")->text, "NotFoundError");
  EXPECT_EQ(NumberOf(error(reply).Find("code")), 404);
  for (const char* body : {"", "{", "[]", R"({"model":"base"})", "{\"model\":\"base\",\"messages\":[}"}) {
    reply = Ask("POST", "/v1/chat/completions", body);
    EXPECT_EQ(reply.status, 400) << body;
    EXPECT_EQ(error(reply).Find("type")->text, "BadRequestError");
  }
  reply = Ask("POST", "/v1/completions", R"({"model":"base","prompt":"x","max_tokens":100000})");
  EXPECT_EQ(reply.status, 400);
  EXPECT_THAT(reply.body, HasSubstr("maximum context length is 4096 tokens"));
  EXPECT_EQ(Ask("POST", "/v1/completions", R"({"model":"base","prompt":")" + std::string(20000, 'x') + "\"}")
                .status,
            400);
  EXPECT_EQ(Ask("GET", "/v1/completions").status, 405);
  EXPECT_EQ(Ask("POST", "/metrics").status, 405);
  EXPECT_EQ(Ask("GET", "/nothing").status, 404);
  EXPECT_EQ(Running(), 0u);
}

TEST_F(SimulatorTest, ModelsNameTheParentOfAdapters) {
  Start({Fast()});
  const Json json = Parsed(Ask("GET", "/v1/models").body);
  const auto& data = json.Find("data")->items;
  ASSERT_EQ(data.size(), 3u);
  EXPECT_EQ(data[0]->Find("id")->text, "base");
  EXPECT_TRUE(data[0]->Find("parent")->kind == Json::Kind::kNull);
  EXPECT_EQ(NumberOf(data[0]->Find("max_model_len")), 4096);
  EXPECT_EQ(data[1]->Find("id")->text, "lora-a");
  EXPECT_EQ(data[1]->Find("parent")->text, "base");
  EXPECT_EQ(Ask("GET", "/health").status, 200);
  EXPECT_THAT(Ask("GET", "/version").body, HasSubstr("version"));
}

TEST_F(SimulatorTest, TokensOfAChatAreThoseOfItsText) {
  Start({Fast()});
  const auto tokens = [&](const std::string& body) {
    const Json json = Parsed(Ask("POST", "/tokenize", body).body);
    std::vector<double> out;
    for (const auto& token : json.Find("tokens")->items) out.push_back(NumberOf(token.get()));
    EXPECT_EQ(NumberOf(json.Find("count")), static_cast<double>(out.size()));
    EXPECT_EQ(NumberOf(json.Find("max_model_len")), 4096);
    return out;
  };
  const auto whole = tokens(R"({"prompt": "abcdefghabcdxy"})");
  ASSERT_EQ(whole.size(), 4u);
  EXPECT_EQ(whole[0], whole[2]);
  EXPECT_NE(whole[0], whole[1]);
  EXPECT_EQ(tokens(R"({"messages": [{"role": "system", "content": "abcd"},
                                    {"role": "user", "content": "efghabcdxy"}]})"),
            whole);
  // As a render server of vLLM answers: an object for a chat, a list for a text.
  const Json chat = Parsed(Ask("POST", "/v1/chat/completions/render",
                               R"({"model": "x", "messages": [{"role": "user", "content": "abcdefgh"}]})")
                               .body);
  ASSERT_EQ(chat.Find("token_ids")->items.size(), 2u);
  EXPECT_EQ(NumberOf(chat.Find("token_ids")->items[0].get()), whole[0]);
  const Json text = Parsed(Ask("POST", "/v1/completions/render", R"({"prompt": "abcdefgh"})").body);
  ASSERT_EQ(text.items.size(), 1u);
  EXPECT_EQ(NumberOf(text.items[0]->Find("token_ids")->items[1].get()), whole[1]);
  EXPECT_EQ(Ask("POST", "/v1/completions/render", "{").status, 400);
  EXPECT_EQ(Ask("POST", "/tokenize", R"({"prompt": ""})").status, 400);
  EXPECT_EQ(Ask("POST", "/tokenize", "{").status, 400);
  EXPECT_EQ(Ask("GET", "/tokenize").status, 405);
}

TEST_F(SimulatorTest, MetricsMoveUnderLoad) {
  EndpointOptions options = Fast();
  options.engine = ScaleTime(options.engine, 100);  // real time: they stay while we look
  options.engine.max_num_seqs = 2;
  options.engine.lora_load_time = 0;
  Start({options});
  const std::string body =
      R"({"model":"lora-b","prompt":"Hello","max_tokens":3000,"ignore_eos":true,"stream":true})";
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 5; ++i) {
    clients.push_back(std::make_unique<Client>(sim_->port(0)));
    clients.back()->Send("POST", "/v1/completions", body);
  }
  Await("running 2, waiting 3", [&] {
    const std::string page = Ask("GET", "/metrics").body;
    return page.find("vllm:num_requests_running{engine=\"0\",model_name=\"base\"} 2.0") !=
               std::string::npos &&
           page.find("vllm:num_requests_waiting{engine=\"0\",model_name=\"base\"} 3.0") != std::string::npos;
  });
  const std::string page = Ask("GET", "/metrics").body;
  EXPECT_THAT(page,
              HasSubstr("max_lora=\"2\",running_lora_adapters=\"lora-b\",waiting_lora_adapters=\"lora-b\""));
  EXPECT_THAT(page, Not(HasSubstr("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"base\"} 0.0\n")));

  clients.clear();  // clients that go away free what they held
  Await("nobody left", [&] { return Running() == 0; });
  sim_->Inspect(0, [&](const Endpoint& e) { EXPECT_EQ(e.engine().used_blocks(), 0u); });
  Await("aborts on the page", [&] {
    return Ask("GET", "/metrics").body.find("finished_reason=\"abort\",model_name=\"base\"} 5.0") !=
           std::string::npos;
  });
}

TEST_F(SimulatorTest, AClientThatLeavesBeforeAPlainAnswerAborts) {
  EndpointOptions options = Fast();
  options.engine = ScaleTime(options.engine, 100);
  Start({options});
  {
    Client client(sim_->port(0));
    client.Send("POST", "/v1/completions",
                R"({"model":"base","prompt":"x","max_tokens":4000,"ignore_eos":true})");
    Await("it runs", [&] { return Running() == 1; });
  }
  Await("it is gone", [&] { return Running() == 0; });
}

TEST_F(SimulatorTest, PinnedMetricsWhileRequestsAreServed) {
  EndpointOptions options = Fast();
  options.faults.pin = {.waiting = 10, .kv_usage = 0.3, .running_lora = {{"lora-a"}}};
  Start({options});
  EXPECT_EQ(Ask("POST", "/v1/chat/completions", kChat).status, 200);
  std::string page = Ask("GET", "/metrics").body;
  EXPECT_THAT(page, HasSubstr("vllm:num_requests_waiting{engine=\"0\",model_name=\"base\"} 10.0"));
  EXPECT_THAT(page, HasSubstr("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"base\"} 0.3"));
  EXPECT_THAT(page, HasSubstr("max_lora=\"2\",running_lora_adapters=\"lora-a\",waiting_lora_adapters=\"\""));
  const auto reply = Ask("POST", "/sim/faults", R"({"pin": null})");
  EXPECT_EQ(reply.body, "{\"requests\":\"ok\",\"metrics\":\"ok\",\"pin\":null}\n");
  page = Ask("GET", "/metrics").body;
  EXPECT_THAT(page, HasSubstr("vllm:num_requests_waiting{engine=\"0\",model_name=\"base\"} 0.0"));
}

TEST_F(SimulatorTest, MetricsFaults) {
  Start({Fast()});
  auto set = [&](const char* fault) {
    ASSERT_EQ(Ask("POST", "/sim/faults", R"({"metrics": ")" + std::string(fault) + "\"}").status, 200);
  };
  set("garbage");
  EXPECT_THAT(Ask("GET", "/metrics").body, StartsWith("<html>"));
  set("404");
  EXPECT_EQ(Ask("GET", "/metrics").status, 404);
  set("500");
  EXPECT_EQ(Ask("GET", "/metrics").status, 500);
  set("redirect");
  EXPECT_EQ(Ask("GET", "/metrics").status, 307);
  EXPECT_NE(Ask("GET", "/metrics").Header("location"), "");
  set("empty");
  EXPECT_EQ(Ask("GET", "/metrics").body, "");
  set("huge");
  EXPECT_GT(Ask("GET", "/metrics").body.size(), 8u << 20);
  EXPECT_EQ(Ask("POST", "/v1/chat/completions", kChat).status, 200);
  set("hang");
  Client hanging(sim_->port(0));
  hanging.Send("GET", "/metrics");
  EXPECT_EQ(Ask("GET", "/health").status, 200);
  set("ok");
  EXPECT_FALSE(hanging.Read());  // closed, not answered
  EXPECT_EQ(Ask("GET", "/metrics").status, 200);
  EXPECT_EQ(Ask("POST", "/sim/faults", R"({"metrics": "gone"})").status, 400);
  EXPECT_EQ(Ask("POST", "/sim/faults", "{").status, 400);
}

TEST_F(SimulatorTest, RequestFaults) {
  Start({Fast()});
  ASSERT_EQ(Ask("POST", "/sim/faults", R"({"requests": "fail"})").status, 200);
  EXPECT_EQ(Ask("POST", "/v1/chat/completions", kChat).status, 500);
  EXPECT_EQ(Ask("GET", "/metrics").status, 200);
  ASSERT_EQ(Ask("POST", "/sim/faults", R"({"requests": "cut"})").status, 200);
  Client cut(sim_->port(0));
  cut.Send("POST", "/v1/completions", R"({"model":"base","stream":true,"prompt":"x","max_tokens":9})");
  while (cut.Read()) {
  }
  EXPECT_THAT(cut.buffer(), HasSubstr("Served"));
  EXPECT_THAT(cut.buffer(), Not(HasSubstr("[DONE]")));
  EXPECT_EQ(Running(), 0u);
  ASSERT_EQ(Ask("POST", "/sim/faults", R"({"requests": "hang"})").status, 200);
  Client hanging(sim_->port(0));
  hanging.Send("POST", "/v1/chat/completions", kChat);
  EXPECT_EQ(Ask("GET", "/metrics").status, 200);
  ASSERT_EQ(Ask("POST", "/sim/faults", R"({"requests": "ok"})").status, 200);
  EXPECT_FALSE(hanging.Read());
  EXPECT_EQ(Ask("POST", "/v1/chat/completions", kChat).status, 200);
}

TEST_F(SimulatorTest, RefusingClosesTheListenerAndComesBackOnTheSamePort) {
  EndpointOptions first = Fast();
  first.name = "first";
  EndpointOptions second = Fast();
  second.name = "second";
  Start({first, second}, 2);
  Client open(sim_->port(1));
  open.Send("GET", "/health");
  ASSERT_EQ(open.Receive().status, 200);
  // By way of another endpoint, on another loop.
  auto reply = Ask("POST", "/sim/faults", R"({"endpoint": "second", "requests": "refuse"})");
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_THAT(reply.body, HasSubstr("\"requests\":\"refuse\""));
  EXPECT_FALSE(open.Read());
  EXPECT_FALSE(Client(sim_->port(1)).connected());
  EXPECT_EQ(Ask("GET", "/health", "", 0).status, 200);
  reply = Ask("POST", "/sim/faults",
              R"({"endpoint": ")" + std::to_string(sim_->port(1)) + R"(", "requests": "ok"})");
  ASSERT_EQ(reply.status, 200) << reply.body;
  EXPECT_EQ(Ask("GET", "/health", "", 1).status, 200);
  EXPECT_EQ(Ask("POST", "/sim/faults", R"({"endpoint": "third"})").status, 404);

  // Itself, and well again after a while.
  reply = Ask("POST", "/sim/faults", R"({"requests": "refuse", "for_ms": 100})", 1);
  EXPECT_EQ(reply.status, 200);
  Await("refuses", [&] { return !Client(sim_->port(1)).connected(); });
  Await("is back", [&] { return Ask("GET", "/health", "", 1).status == 200; });
}

TEST_F(SimulatorTest, RefusingFromTheStartAndFromTheApi) {
  EndpointOptions options = Fast();
  options.faults.requests = RequestFault::kRefuse;
  Start({options});
  EXPECT_NE(sim_->port(0), 0);
  EXPECT_FALSE(Client(sim_->port(0)).connected());
  ASSERT_TRUE(sim_->SetFaults(0, {.requests = RequestFault::kNone}));
  EXPECT_EQ(Ask("GET", "/health").status, 200);
}

TEST_F(SimulatorTest, WhatIsUnderWayEndsWhenItRefusesOrStops) {
  EndpointOptions options = Fast();
  options.engine = ScaleTime(options.engine, 100);
  Start({options});
  const std::string body =
      R"({"model":"base","prompt":"x","max_tokens":4000,"ignore_eos":true,"stream":true})";
  Client a(sim_->port(0));
  a.Send("POST", "/v1/completions", body);
  ASSERT_TRUE(a.ReadUntil("Served"));
  ASSERT_TRUE(sim_->SetFaults(0, {.requests = RequestFault::kRefuse}));
  EXPECT_EQ(Running(), 0u);
  while (a.Read()) {
  }
  ASSERT_TRUE(sim_->SetFaults(0, {.requests = RequestFault::kNone}));
  Client b(sim_->port(0));
  b.Send("POST", "/v1/completions", body);
  ASSERT_TRUE(b.ReadUntil("Served"));
  sim_.reset();
  while (b.Read()) {
  }
  EXPECT_THAT(b.buffer(), Not(HasSubstr("[DONE]")));
}

TEST_F(SimulatorTest, PipelinedRequestsAreAnsweredInOrder) {
  Start({Fast()});
  Client client(sim_->port(0));
  for (const char* model : {"base", "lora-a", "lora-b"})
    client.Send("POST", "/v1/completions",
                R"({"model":")" + std::string(model) + R"(","prompt":"x","max_tokens":2})");
  for (const char* model : {"base", "lora-a", "lora-b"})
    EXPECT_EQ(Parsed(client.Receive().body).Find("model")->text, model);
}

TEST_F(SimulatorTest, ManyClientsOnManyEndpoints) {
  std::vector<EndpointOptions> endpoints(4, Fast());
  for (size_t i = 0; i < endpoints.size(); ++i) endpoints[i].name = "e" + std::to_string(i);
  Start(endpoints, 2);
  std::vector<std::thread> threads;
  std::atomic<int> good = 0;
  for (size_t i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int n = 0; n < 10; ++n) {
        const auto reply = Ask("POST", "/v1/chat/completions", kChat, i % 4);
        if (reply.status == 200 && reply.Header("x-served-by") == "e" + std::to_string(i % 4)) ++good;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(good, 80);
}

TEST_F(SimulatorTest, WrongOptionsSayWhichEndpointAndWhy) {
  auto error = [&](SimulatorOptions options) {
    auto sim = Simulator::Start(std::move(options), clock_, log_);
    return sim ? std::string("none") : sim.error().message;
  };
  EXPECT_EQ(error({}), "no endpoint to simulate");
  EXPECT_THAT(error({.endpoints = {Fast()}, .threads = 0}), HasSubstr("threads must be 1..64"));
  EndpointOptions twice = Fast();
  twice.name = "x";
  twice.adapters = {"a", "a"};
  EXPECT_EQ(error({.endpoints = {Fast(), twice}}), "endpoint x: \"a\" names two models");
  Start({Fast()});
  EndpointOptions taken = Fast();
  taken.port = sim_->port(0);
  EXPECT_THAT(error({.endpoints = {taken}}),
              HasSubstr("endpoint 127.0.0.1:" + std::to_string(taken.port) + ": "));
}

}  // namespace
}  // namespace fairway::simulator
