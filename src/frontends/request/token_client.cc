#include "frontends/request/token_client.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <future>
#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "frontends/request/circuit_breaker.h"
#include "net/address.h"
#include "net/http_client.h"
#include "payload/render_answer.h"

namespace fairway::request {
namespace {

using Tokens = std::shared_ptr<const payload::PromptTokens>;

constexpr size_t kMaxIdle = 16;  // connections that are kept to one server

size_t MostAnswer(size_t question, bool media) {
  return media ? TokenClient::kMaxAnswer
               : std::min(TokenClient::kMaxAnswer, TokenClient::AnswerBytes(question));
}

}  // namespace

struct TokenClient::Impl {
  // One of few, which configs name.
  struct Server {
    std::string name;
    std::vector<std::unique_ptr<net::HttpFetcher>> idle;
    // Of text, and of prompts with images or the like: where a client's URL keeps the server waiting, text does not.
    std::array<CircuitBreaker, 2> breakers;
    bool silent = false;  // that it gives none was told
    base::Nanos asked_at = 0;
    size_t answered_bytes = 0;  // of the last question that was answered
  };
  struct Open {
    Question question;
    net::Loop* back = nullptr;
    Answer answer;
    base::Nanos ends_at = 0;
    std::shared_ptr<Server> server;
    std::string name;  // path, an end of line and the body, which is nowhere else
    size_t bytes = 0;  // of the body
    std::unique_ptr<net::HttpFetcher> fetcher;
    base::Nanos begun = 0;
    CircuitBreaker::Ask asked = CircuitBreaker::Ask::kYes;
    payload::RenderAnswerReader reader;
    size_t read = 0;  // of answer_bytes
  };
  struct Kept {
    std::string question;  // path and body
    Tokens tokens;
    size_t bytes = 0;
  };

  Impl(base::Registry& registry, const base::Log& its_log)
      : log(its_log),
        outcomes(
            registry.AddCounter({.name = "fairway_token_questions_total",
                                 .help = "Prompts whose tokens a render server was asked for, by outcome: "
                                         "answered, kept, failed, full, circuit_open.",
                                 .labels = {"outcome"}})),
        answered(outcomes.With({"answered"})),
        kept_answers(outcomes.With({"kept"})),
        failed(outcomes.With({"failed"})),
        full(outcomes.With({"full"})),
        left_alone(outcomes.With({"circuit_open"})),
        circuits_open(registry
                          .AddGauge({.name = "fairway_token_circuits_open",
                                     .help = "Render servers that are left alone for now, as they kept "
                                             "requests waiting for nothing."})
                          .With({})),
        duration(registry
                     .AddHistogram({.name = "fairway_token_answer_duration_seconds",
                                    .help = "How long render servers took to answer.",
                                    .buckets = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1,
                                                2.5, 5, 10, 30}})
                     .With({})) {}

  net::Loop& loop() {
    const std::lock_guard lock(mutex);
    if (thread == nullptr) thread = std::make_unique<net::LoopThread>("tokens");
    return thread->loop();
  }

  static void Give(net::Loop& back, Answer answer, Tokens tokens) {
    back.Post([answer = std::move(answer), tokens = std::move(tokens)] { answer(tokens); });
  }

  // ---- On the thread.
  const std::shared_ptr<Server>& ServerOf(const Question& question, base::Nanos now) {
    std::shared_ptr<Server>& server = servers[{question.host, question.port}];
    if (server == nullptr) {
      server = std::make_shared<Server>();
      server->name = net::FormatHostPort(question.host, question.port);
      server->asked_at = now;
      ForgetOld(now);
    }
    server->asked_at = now;
    return server;
  }
  // Those that configs named once.
  void ForgetOld(base::Nanos now) {
    constexpr base::Nanos kOld = 600 * base::kSecond;
    std::erase_if(servers, [&](const auto& it) {
      if (now - it.second->asked_at < kOld) return false;
      for (const CircuitBreaker& breaker : it.second->breakers) circuits_open.Add(breaker.open() ? -1 : 0);
      return true;
    });
  }
  static CircuitBreaker& BreakerOf(const Open& open) {
    return open.server->breakers[open.question.media ? 1 : 0];
  }

  void Begin(const std::shared_ptr<Open>& open) {
    open->name = open->question.path + "\n" + std::exchange(open->question.body, {});
    if (const auto found = by_question.find(open->name); found != by_question.end()) {
      kept_answers.Add();
      kept.splice(kept.begin(), kept, found->second);
      return End(*open, found->second->tokens);
    }
    open->begun = clock.Now();
    open->server = ServerOf(open->question, open->begun);
    open->asked = BreakerOf(*open).MayAsk(open->begun);
    if (open->asked == CircuitBreaker::Ask::kNo) {
      left_alone.Add();
      return End(*open, nullptr);
    }
    TakeFetcher(*open);
    asked.push_back(open);
    open->fetcher->Fetch([this, open](const net::HttpFetcher::Outcome& outcome) { Done(open, outcome); },
                         [this, open = open.get()](std::string_view piece) { return Read(*open, piece); });
  }

  void TakeFetcher(Open& open) {
    auto& idle = open.server->idle;
    if (idle.empty()) {
      open.fetcher = std::make_unique<net::HttpFetcher>(
          thread->loop(), net::HttpFetchOptions{.host = open.question.host, .port = open.question.port});
    } else {
      open.fetcher = std::move(idle.back());
      idle.pop_back();
    }
    const size_t body = open.question.path.size() + 1;
    open.fetcher->SetPost(open.question.path, std::string_view(open.name).substr(body));
    open.fetcher->SetLimits(std::max<base::Nanos>(open.ends_at - open.begun, 0),
                            MostAnswer(open.bytes, open.question.media));
  }

  bool Read(Open& open, std::string_view piece) {
    const bool good = open.reader.Feed(piece);
    Count(open, open.reader.bytes());
    return good && answer_bytes <= kMaxAnswerBytes;
  }
  void Count(Open& open, size_t bytes) { answer_bytes += bytes - std::exchange(open.read, bytes); }

  void Done(const std::shared_ptr<Open>& open, const net::HttpFetcher::Outcome& outcome) {
    Tokens tokens;
    if (outcome.ok) {
      if (auto read = open->reader.Finish())
        tokens = std::make_shared<const payload::PromptTokens>(std::move(*read));
    }
    Count(*open, 0);
    const base::Nanos took = clock.Now() - open->begun;
    duration.Observe(base::ToSeconds(took));
    (tokens != nullptr ? answered : failed).Add();
    Judge(*open, tokens != nullptr, outcome.failure == net::HttpFailure::kTimeout, took);
    Note(*open, tokens != nullptr, outcome.ok ? "no answer of a render server" : outcome.error);
    if (tokens != nullptr) Keep(open->name, tokens);
    asked.remove(open);
    End(*open, std::move(tokens));
    // Not from within its own call.
    thread->loop().Post([open] {
      auto& idle = open->server->idle;
      if (idle.size() >= kMaxIdle) return;
      open->fetcher->SetPost(open->question.path, "");  // it would keep the body
      idle.push_back(std::move(open->fetcher));
    });
  }

  // What took most of its time and brought nothing was not worth it, whatever the reason; a refusal costs none. Of
  // a time limit that was over soon, as the question had waited on this thread, the server knows nothing.
  void Judge(const Open& open, bool good, bool timed_out, base::Nanos took) {
    CircuitBreaker& breaker = BreakerOf(open);
    const bool soon = took < open.question.timeout / 2;
    if (good) open.server->answered_bytes = open.bytes;
    if (good || (soon && !timed_out)) {
      if (breaker.Answered()) circuits_open.Add(-1);
      return;
    }
    // Nor does one that was far longer than what is answered in time say that those will not be.
    const bool far_longer = open.server->answered_bytes != 0 && open.bytes / 4 > open.server->answered_bytes;
    if ((soon || far_longer) && open.asked != CircuitBreaker::Ask::kProbe) return;
    if (!breaker.Waited(open.asked, clock.Now())) return;
    circuits_open.Add(1);
    if (!alone_limit.Allow(clock.Now())) return;
    open.server->silent = true;  // so that its end is told, too
    log.Warn(
        "the render server keeps requests waiting and is left alone for a while; prompts are compared by "
        "their text meanwhile",
        {{"server", open.server->name},
         {"first_pause_s", std::to_string(breaker.pause() / base::kSecond)},
         {"longest_pause_s", std::to_string(CircuitBreaker::kMostPause / base::kSecond)}});
  }

  // Of requests there are many, of servers one.
  void Note(const Open& open, bool good, std::string_view error) {
    bool& told = open.server->silent;
    if (told == !good) return;
    if (!good) {
      if (!limit.Allow(clock.Now())) return;  // one that comes and goes
      told = true;
      log.Warn("no tokens from the render server; prompts are compared by their text",
               {{"server", open.server->name}, {"path", open.question.path}, {"error", std::string(error)}});
    } else {
      told = false;
      log.Info("the render server gives tokens again", {{"server", open.server->name}});
    }
  }

  void End(Open& open, Tokens tokens) {
    num_open.fetch_sub(1, std::memory_order_relaxed);
    open_bytes.fetch_sub(open.bytes, std::memory_order_relaxed);
    Give(*open.back, std::move(open.answer), std::move(tokens));
  }

  void Keep(const std::string& name, const Tokens& tokens) {
    const size_t bytes = tokens->bytes() + 2 * name.size() + 256;
    if (bytes > kMaxKeptBytes / 4 || by_question.contains(name)) return;
    kept.push_front({name, tokens, bytes});
    by_question.emplace(kept.front().question, kept.begin());
    kept_bytes += bytes;
    while (kept_bytes > kMaxKeptBytes) {
      kept_bytes -= kept.back().bytes;
      by_question.erase(kept.back().question);
      kept.pop_back();
    }
  }

  void Stop() {
    if (thread == nullptr) return;
    std::promise<void> done;
    thread->loop().Post([&] {
      for (const auto& open : asked) open->fetcher.reset();
      asked.clear();
      for (auto& [at, server] : servers) server->idle.clear();
      servers.clear();
      done.set_value();
    });
    done.get_future().wait();
    thread->Join();
  }

  const base::SystemClock clock;
  const base::Log log;
  base::CounterFamily& outcomes;
  base::Counter &answered, &kept_answers, &failed, &full, &left_alone;
  base::Gauge& circuits_open;
  base::Histogram& duration;
  std::atomic<size_t> num_open{0}, open_bytes{0};
  std::mutex mutex;
  std::unique_ptr<net::LoopThread> thread;  // null: nobody asked
  // The thread's.
  std::map<std::pair<std::string, uint16_t>, std::shared_ptr<Server>> servers;
  std::list<std::shared_ptr<Open>> asked;
  std::list<Kept> kept;  // the one used last first
  // By what clients write: under a hash that they cannot make collide.
  std::unordered_map<std::string_view, std::list<Kept>::iterator, base::StringHash, std::equal_to<>>
      by_question;
  size_t kept_bytes = 0;
  size_t answer_bytes = 0;  // of answers under way
  base::LogLimit limit{30 * base::kSecond}, alone_limit{30 * base::kSecond};
};

TokenClient::TokenClient(base::Registry& registry, const base::Log& log)
    : impl_(std::make_unique<Impl>(registry, log)) {}
TokenClient::~TokenClient() { impl_->Stop(); }

void TokenClient::Ask(Question question, net::Loop& back, Answer answer) {
  Impl& impl = *impl_;
  const size_t bytes = question.body.size();
  const bool fits = impl.num_open.fetch_add(1, std::memory_order_relaxed) < kMaxOpen;
  const bool room = impl.open_bytes.fetch_add(bytes, std::memory_order_relaxed) + bytes <= kMaxOpenBytes;
  if (!fits || !room) {
    impl.num_open.fetch_sub(1, std::memory_order_relaxed);
    impl.open_bytes.fetch_sub(bytes, std::memory_order_relaxed);
    impl.full.Add();
    return Impl::Give(back, std::move(answer), nullptr);
  }
  auto open = std::make_shared<Impl::Open>();
  open->question = std::move(question);
  open->back = &back;
  open->answer = std::move(answer);
  open->bytes = bytes;
  open->ends_at = impl.clock.Now() + open->question.timeout;
  impl.loop().Post([impl = impl_.get(), open = std::move(open)] { impl->Begin(open); });
}

}  // namespace fairway::request
