// Plays a workload (examples/workloads) against an address in real time: what clients of a fleet see of
// whatever picks its servers. bench/quality.py is who runs it.
//
//   open_loop --workload FILE --target HOST:PORT [--seed 1] [--seconds 30] [--model NAME] [--grace 20]
//
// Open loop: a request is sent when it is due, however many are still open, and its times count from when it
// was due. What it asks for depends on the seed alone (replay::Traffic), so whoever is behind the address
// gets the same. A conversation's next turn is due some time after its last answer; with an answer that never
// came it ends.
//
// Each request has a connection of its own and asks for a stream. One line of JSON for each on standard
// output, as they end:
//   {"due":1.2,"class":"chat","late":0.0001,"first":0.2,"last":0.9,"total":0.9,"tokens":60,"prompt":900,"cached":0,
//    "server":"engine-3","end":"answered"}
// Seconds; `late`: from when it was due to when it was sent; `first`, `last`: to the first and last token,
// `total` to the end. `end`: answered, shed (429), failed, unfinished. At the end {"lag_p99":...}: how late a
// timer of 5 ms was, which is what the measuring itself may be wrong by.
#include <sys/prctl.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <boost/asio/connect.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <charconv>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/random.h"
#include "base/strings.h"
#include "net/address.h"
#include "replay/fields.h"
#include "replay/traffic.h"
#include "replay/workload.h"

namespace {

using boost::system::error_code;
using fairway::base::Nanos;
using fairway::base::ToSeconds;
using fairway::replay::Request;
using fairway::replay::TrafficClass;
using fairway::replay::Workload;
using Tcp = boost::asio::ip::tcp;
namespace http = boost::beast::http;

constexpr size_t kTokenBytes = 4;  // what `fairway sim` takes a token for
constexpr Nanos kTick = 5 * fairway::base::kMillisecond;

// `size` bytes of what `content` says, from `begin` on: what was said before is the beginning of what is said
// later.
void AppendText(std::string& out, uint64_t content, size_t begin, size_t size) {
  constexpr std::string_view kLetters = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLMNOPQRSTUVWXYZ 0123456789";
  for (size_t at = begin; at < begin + size; ++at) {
    uint64_t state = content + at / 8;
    const uint64_t eight = fairway::base::SplitMix64(state);
    out += kLetters[(eight >> (at % 8 * 8)) % kLetters.size()];
  }
}

// A conversation: who said how much of its text, in tokens; the client first.
struct Conversation {
  Request request;
  std::vector<uint32_t> said;

  void GoOn(Request next) {
    said.push_back(request.answer_tokens);
    said.push_back(next.segments.back().tokens - request.segments.back().tokens - request.answer_tokens);
    request = std::move(next);
  }
};

void AppendMessage(std::string& body, std::string_view role, std::string_view text) {
  if (body.back() != '[') body += ',';
  body.append("{\"role\":\"").append(role).append("\",\"content\":\"").append(text).append("\"}");
}

std::string BodyOf(const TrafficClass& traffic, const Conversation& conversation, const std::string& model) {
  const Request& request = conversation.request;
  std::string body = "{\"model\":" + fairway::base::JsonString(model);
  body += ",\"stream\":true,\"stream_options\":{\"include_usage\":true},\"ignore_eos\":true,\"max_tokens\":" +
          std::to_string(request.answer_tokens) + ",\"messages\":[";
  std::string text;
  size_t segment = 0;
  if (traffic.systems > 0 && request.segments.size() > 1) {
    AppendText(text, request.segments[0].content, 0, request.segments[0].tokens * kTokenBytes);
    AppendMessage(body, "system", text);
    segment = 1;
  }
  text.clear();
  for (; segment < request.segments.size(); ++segment)
    AppendText(text, request.segments[segment].content, 0, request.segments[segment].tokens * kTokenBytes);
  std::string_view rest = text;
  for (size_t i = 0; i < conversation.said.size(); ++i) {
    const size_t size = i + 1 == conversation.said.size() ? rest.size() : conversation.said[i] * kTokenBytes;
    AppendMessage(body, i % 2 == 0 ? "user" : "assistant", rest.substr(0, size));
    rest.remove_prefix(size);
  }
  return body + "]}";
}

// The number behind the last `name` of a text; 0 where there is none.
uint32_t NumberBehind(std::string_view text, std::string_view name) {
  const size_t at = text.rfind(name);
  if (at == std::string_view::npos) return 0;
  const size_t digits = text.find_first_of("0123456789", at + name.size());
  uint32_t value = 0;
  if (digits != std::string_view::npos)
    std::from_chars(text.data() + digits, text.data() + text.size(), value);
  return value;
}

double Quantile(std::vector<Nanos>& values, double part) {
  if (values.empty()) return 0;
  const auto at = values.begin() + static_cast<ptrdiff_t>(part * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), at, values.end());
  return ToSeconds(*at);
}

// One request and its answer.
class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  struct Times {
    Nanos sent = 0, first = 0, last = 0, end = 0;
  };
  using Done = std::function<void(Exchange&)>;

  Exchange(boost::asio::io_context& io, const fairway::base::Clock& clock, Conversation conversation)
      : clock_(clock), conversation(std::move(conversation)), socket_(io) {
    parser_.body_limit(64u << 20);
    parser_.eager(true);
  }

  void Start(const Tcp::endpoint& target, std::string text, Done done) {
    text_ = std::move(text);
    done_ = std::move(done);
    times.sent = clock_.Now();
    socket_.async_connect(target, [self = shared_from_this()](error_code error) {
      if (error) return self->End();
      self->socket_.set_option(Tcp::no_delay(true), error);
      boost::asio::async_write(self->socket_, boost::asio::buffer(self->text_),
                               [self](error_code wrong, size_t) {
                                 if (wrong) self->End();
                               });
      self->Read();
    });
  }

  // What is there by now counts; nothing more is told.
  void Stop() {
    done_ = {};
    error_code ignored;
    socket_.close(ignored);
  }

  unsigned status() const { return parser_.is_header_done() ? parser_.get().result_int() : 0; }
  bool whole() const { return parser_.is_done(); }
  std::string server() const {
    return parser_.is_header_done() ? std::string(parser_.get()["x-served-by"]) : std::string();
  }
  std::string_view body() const { return parser_.get().body(); }

 private:
  const fairway::base::Clock& clock_;

 public:
  Conversation conversation;
  Times times;

 private:
  void Read() {
    socket_.async_read_some(buffer_.prepare(64 << 10),
                            [self = shared_from_this()](error_code error, size_t size) {
                              self->buffer_.commit(size);
                              const bool sound = self->Parse();
                              if (error == boost::asio::error::eof && sound && !self->parser_.is_done())
                                self->parser_.put_eof(error);
                              self->Look();
                              if (error || !sound || self->parser_.is_done()) return self->End();
                              self->Read();
                            });
  }

  // Beast's own reads wait for more than there is.
  bool Parse() {
    error_code error;
    while (!error && buffer_.size() > 0 && !parser_.is_done())
      buffer_.consume(parser_.put(buffer_.data(), error));
    return !error || error == http::error::need_more;
  }

  // A token is an event that has choices; the one that says the role comes along with the first.
  void Look() {
    if (!parser_.is_header_done()) return;
    const std::string& text = parser_.get().body();
    const size_t found = text.find("\"finish_reason\"", seen_);
    seen_ = text.size() > 16 ? text.size() - 16 : 0;
    if (found == std::string::npos) return;
    times.last = clock_.Now();
    if (times.first == 0) times.first = times.last;
  }

  void End() {
    times.end = clock_.Now();
    error_code ignored;
    socket_.close(ignored);
    if (const Done done = std::exchange(done_, {})) done(*this);
  }

  Tcp::socket socket_;
  boost::beast::flat_buffer buffer_;
  http::response_parser<http::string_body> parser_;
  std::string text_;
  size_t seen_ = 0;
  Done done_;
};

struct Settings {
  std::string workload;
  std::string target;
  std::string model;
  uint64_t seed = 1;
  double seconds = 30;
  double grace = 20;
};

class Player {
 public:
  Player(const Workload& workload, const Settings& settings, Tcp::endpoint target)
      : workload_(workload),
        settings_(settings),
        target_(std::move(target)),
        end_(static_cast<Nanos>(settings.seconds * 1e9)),
        traffic_(workload, settings.seed),
        due_timer_(io_),
        tick_timer_(io_) {}

  void Run() {
    start_ = clock_.Now() + 50 * fairway::base::kMillisecond;
    ArmDue();
    tick_ = Now() + kTick;
    ArmTick();
    io_.run();
    for (const auto& exchange : open_) Print(*exchange, "unfinished");
    std::printf("{\"lag_p99\":%.6f,\"lag_max\":%.6f}\n", Quantile(lags_, 0.99), Quantile(lags_, 1));
  }

 private:
  Nanos Now() const { return clock_.Now() - start_; }

  // Waits for the next request, a conversation's first or a later one.
  void ArmDue() {
    Nanos due = turns_.empty() ? INT64_MAX : turns_.begin()->first;
    if (const auto next = traffic_.NextDue()) due = std::min(due, *next);
    if (due == INT64_MAX) return;
    due_timer_.expires_after(std::chrono::nanoseconds(std::max<Nanos>(0, due - Now())));
    due_timer_.async_wait([this](error_code error) {
      if (error) return;  // another time was set
      SendDue();
      ArmDue();
    });
  }

  void SendDue() {
    const Nanos now = Now();
    for (auto next = traffic_.NextDue(); next && *next <= now; next = traffic_.NextDue()) {
      Conversation conversation{.request = traffic_.Take(), .said = {}};
      conversation.said = {conversation.request.segments.back().tokens};
      Send(std::move(conversation));
    }
    while (!turns_.empty() && turns_.begin()->first <= now) {
      Conversation conversation = std::move(turns_.begin()->second);
      turns_.erase(turns_.begin());
      Send(std::move(conversation));
    }
  }

  void Send(Conversation conversation) {
    const Request& request = conversation.request;
    const TrafficClass& traffic = workload_.classes[request.traffic];
    const bool base = traffic.adapters == 0 && !settings_.model.empty();
    const std::string body =
        BodyOf(traffic, conversation, base ? settings_.model : traffic.ModelName(request.adapter));
    std::string text = "POST /v1/chat/completions HTTP/1.1\r\nhost: " + settings_.target +
                       "\r\ncontent-type: application/json\r\nconnection: close\r\n";
    if (traffic.priority) text += "x-gateway-inference-objective: " + traffic.name + "\r\n";
    text += "content-length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
    auto exchange = std::make_shared<Exchange>(io_, clock_, std::move(conversation));
    open_.insert(exchange);
    exchange->Start(target_, std::move(text), [this](Exchange& ended) { Ended(ended); });
  }

  void Ended(Exchange& exchange) {
    const bool answered = exchange.status() == 200 && exchange.whole() && exchange.times.first > 0;
    Print(exchange, answered ? "answered" : exchange.status() == 429 ? "shed" : "failed");
    open_.erase(exchange.shared_from_this());
    if (!answered) return;
    auto next = traffic_.After(exchange.conversation.request, exchange.times.end - start_);
    if (!next || next->due >= end_) return;
    Conversation conversation = std::move(exchange.conversation);
    const Nanos due = next->due;
    conversation.GoOn(*std::move(next));
    turns_.emplace(due, std::move(conversation));
    ArmDue();
  }

  void ArmTick() {
    tick_timer_.expires_after(std::chrono::nanoseconds(std::max<Nanos>(0, tick_ - Now())));
    tick_timer_.async_wait([this](error_code) {
      const Nanos now = Now();
      lags_.push_back(now - tick_);
      tick_ = now + kTick;
      const bool over = now > end_ && open_.empty() && turns_.empty();
      if (over || now > end_ + static_cast<Nanos>(settings_.grace * 1e9)) return Stop();
      ArmTick();
    });
  }

  void Stop() {
    for (const auto& exchange : open_) exchange->Stop();
    due_timer_.cancel();
    io_.stop();
  }

  void Print(const Exchange& exchange, const char* end) const {
    const Request& request = exchange.conversation.request;
    const Nanos due = start_ + request.due;
    const auto since = [due](Nanos at) { return at == 0 ? 0 : ToSeconds(at - due); };
    const std::string_view body = exchange.status() == 200 ? exchange.body() : std::string_view();
    std::printf(
        "{\"due\":%.6f,\"class\":%s,\"late\":%.6f,\"first\":%.6f,\"last\":%.6f,\"total\":%.6f,"
        "\"tokens\":%u,\"prompt\":%u,\"cached\":%u,\"server\":%s,\"status\":%u,\"end\":\"%s\"}\n",
        ToSeconds(request.due), fairway::base::JsonString(workload_.classes[request.traffic].name).c_str(),
        since(exchange.times.sent), since(exchange.times.first), since(exchange.times.last),
        since(exchange.times.end), NumberBehind(body, "\"completion_tokens\""),
        NumberBehind(body, "\"prompt_tokens\""), NumberBehind(body, "\"cached_tokens\""),
        fairway::base::JsonString(exchange.server()).c_str(), exchange.status(), end);
  }

  const Workload& workload_;
  const Settings& settings_;
  const Tcp::endpoint target_;
  const Nanos end_;  // in which requests are due
  const fairway::base::SystemClock clock_;
  boost::asio::io_context io_{1};
  fairway::replay::Traffic traffic_;
  std::multimap<Nanos, Conversation> turns_;  // later turns, by when they are due
  std::unordered_set<std::shared_ptr<Exchange>> open_;
  boost::asio::steady_timer due_timer_, tick_timer_;
  Nanos start_ = 0;
  Nanos tick_ = 0;
  std::vector<Nanos> lags_;
};

int Fail(const std::string& what) {
  std::fprintf(stderr, "open_loop: %s\n", what.c_str());
  return 1;
}

// What cannot be played; "" where everything can.
std::string Unplayable(const Workload& workload) {
  for (const TrafficClass& traffic : workload.classes) {
    if (traffic.bytes_per_token != kTokenBytes)
      return traffic.name + ": want bytes-per-token 4, as servers count";
    if (traffic.retries > 0 || traffic.timeout > 0)
      return traffic.name + ": retries and timeout are not made here";
  }
  return "";
}

int Play(const Settings& settings) {
  std::vector<fairway::api::Problem> problems;
  Workload workload = fairway::replay::LoadWorkload(settings.workload, problems);
  if (fairway::api::HasErrors(problems)) return Fail(fairway::replay::ToText(problems));
  if (const std::string wrong = Unplayable(workload); !wrong.empty()) return Fail(wrong);
  workload.duration = static_cast<Nanos>(settings.seconds * 1e9);
  const auto address = fairway::net::ParseHostPort(settings.target);
  if (!address) return Fail("--target: " + address.error().message);
  error_code error;
  const auto host = boost::asio::ip::make_address(address->host, error);
  if (error) return Fail("--target: want an IP address, got " + address->host);
  prctl(PR_SET_TIMERSLACK, 1000);  // 1 us instead of 50
  Player(workload, settings, Tcp::endpoint(host, address->port)).Run();
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Plays a workload against an address in real time; one line of JSON for each request");
  Settings settings;
  app.add_option("--workload", settings.workload, "see examples/workloads")->required();
  app.add_option("--target", settings.target, "IP:PORT of whatever stands before the servers")->required();
  app.add_option("--model", settings.model, "asked for instead of the workload's; adapters keep their names");
  app.add_option("--seed", settings.seed, "of what is asked and when")->capture_default_str();
  app.add_option("--seconds", settings.seconds, "in which requests are due")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  app.add_option("--grace", settings.grace, "seconds after that, in which answers count")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return Play(settings);
}
