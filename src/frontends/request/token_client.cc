#include "frontends/request/token_client.h"

#include <atomic>
#include <future>
#include <list>
#include <map>
#include <mutex>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "net/address.h"
#include "net/http_client.h"
#include "payload/render_answer.h"

namespace fairway::request {
namespace {

using Tokens = std::shared_ptr<const payload::PromptTokens>;

constexpr size_t kMaxIdle = 16;           // connections that are kept to one server
constexpr size_t kMaxAnswer = 16u << 20;  // times kMaxOpen: what all of them can hold

}  // namespace

struct TokenClient::Impl {
  // Server and time limit: what an HttpFetcher is made for.
  using Key = std::tuple<std::string, uint16_t, base::Nanos>;
  struct Open {
    Question question;
    net::Loop* back = nullptr;
    Answer answer;
    std::unique_ptr<net::HttpFetcher> fetcher;
    base::Nanos begun = 0;
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
                                         "answered, kept, failed, full.",
                                 .labels = {"outcome"}})),
        answered(outcomes.With({"answered"})),
        kept_answers(outcomes.With({"kept"})),
        failed(outcomes.With({"failed"})),
        full(outcomes.With({"full"})),
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
  void Begin(const std::shared_ptr<Open>& open) {
    const std::string name = open->question.path + "\n" + open->question.body;
    if (const auto found = by_question.find(name); found != by_question.end()) {
      kept_answers.Add();
      kept.splice(kept.begin(), kept, found->second);
      return End(*open, found->second->tokens);
    }
    const Key key{open->question.host, open->question.port, open->question.timeout};
    auto& free = idle[key];
    if (free.empty()) {
      open->fetcher = std::make_unique<net::HttpFetcher>(
          thread->loop(), net::HttpFetchOptions{.host = open->question.host,
                                                .port = open->question.port,
                                                .target = open->question.path,
                                                .timeout = open->question.timeout,
                                                .max_body = kMaxAnswer});
    } else {
      open->fetcher = std::move(free.back());
      free.pop_back();
    }
    open->begun = clock.Now();
    net::HttpFetcher& fetcher = *open->fetcher;
    fetcher.SetPost(open->question.path, open->question.body);
    asked.push_back(open);
    fetcher.Fetch([this, open, name](const net::HttpFetcher::Outcome& outcome) {
      Tokens tokens;
      if (outcome.ok) {
        if (auto read = payload::ReadRenderAnswer(outcome.body))
          tokens = std::make_shared<const payload::PromptTokens>(std::move(*read));
      }
      duration.Observe(base::ToSeconds(clock.Now() - open->begun));
      (tokens != nullptr ? answered : failed).Add();
      Note(open->question, tokens != nullptr, outcome.ok ? "no answer of a render server" : outcome.error);
      if (tokens != nullptr) Keep(name, tokens);
      asked.remove(open);
      End(*open, std::move(tokens));
      // Not from within its own call.
      thread->loop().Post([this, open] {
        const Key of{open->question.host, open->question.port, open->question.timeout};
        auto& free_ones = idle[of];
        if (free_ones.size() < kMaxIdle) free_ones.push_back(std::move(open->fetcher));
      });
    });
  }

  // Of requests there are many, of servers one.
  void Note(const Question& question, bool good, std::string_view error) {
    const std::string server = net::FormatHostPort(question.host, question.port);
    bool& told = silent[server];  // one of few, which configs name
    if (told == !good) return;
    if (!good) {
      if (!limit.Allow(clock.Now())) return;  // one that comes and goes
      told = true;
      log.Warn("no tokens from the render server; prompts are compared by their text",
               {{"server", server}, {"path", question.path}, {"error", std::string(error)}});
    } else {
      told = false;
      log.Info("the render server gives tokens again", {{"server", server}});
    }
  }

  void End(Open& open, Tokens tokens) {
    num_open.fetch_sub(1, std::memory_order_relaxed);
    open_bytes.fetch_sub(open.question.body.size(), std::memory_order_relaxed);
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
      idle.clear();
      done.set_value();
    });
    done.get_future().wait();
    thread->Join();
  }

  const base::SystemClock clock;
  const base::Log log;
  base::CounterFamily& outcomes;
  base::Counter &answered, &kept_answers, &failed, &full;
  base::Histogram& duration;
  std::atomic<size_t> num_open{0}, open_bytes{0};
  std::mutex mutex;
  std::unique_ptr<net::LoopThread> thread;  // null: nobody asked
  // The thread's.
  std::map<Key, std::vector<std::unique_ptr<net::HttpFetcher>>> idle;
  std::list<std::shared_ptr<Open>> asked;
  std::list<Kept> kept;  // the one used last first
  // By what clients write: under a hash that they cannot make collide.
  std::unordered_map<std::string_view, std::list<Kept>::iterator, base::StringHash, std::equal_to<>>
      by_question;
  size_t kept_bytes = 0;
  std::map<std::string, bool> silent;  // by server: that it gave none was told
  base::LogLimit limit{30 * base::kSecond};
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
  impl.loop().Post([impl = impl_.get(), open = std::move(open)] { impl->Begin(open); });
}

}  // namespace fairway::request
