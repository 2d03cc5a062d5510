#include "sources/kubernetes/access_review.h"

#include <algorithm>
#include <cstdint>
#include <list>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include "base/strings.h"
#include "net/http_stream.h"
#include "sources/json/json_view.h"
#include "sources/kubernetes/api_server.h"
#include "sources/kubernetes/objects.h"

namespace fairway::sources::kubernetes {
namespace {

using Verdict = AccessReview::Verdict;

constexpr size_t kMaxBody = 256u << 10;
constexpr const char* kTokens = "/apis/authentication.k8s.io/v1/tokenreviews";
constexpr const char* kAccesses = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

std::string_view Member(std::string_view object, std::string_view name) {
  for (JsonMembers members(object); members.Next();) {
    if (members.key() == name) return members.value();
  }
  return {};
}

std::string TokenQuestion(const std::string& token) {
  return R"({"apiVersion":"authentication.k8s.io/v1","kind":"TokenReview","spec":{"token":)" +
         base::JsonString(token) + "}}";
}

// `user`: as the TokenReview gave it, its fields go on as they are.
std::string AccessQuestion(std::string_view user, const std::string& path) {
  std::string out =
      R"({"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{"nonResourceAttributes":{"verb":"get","path":)" +
      base::JsonString(path) + "}";
  for (const auto& [theirs, ours] : {std::pair{"username", "user"}, std::pair{"groups", "groups"},
                                     std::pair{"uid", "uid"}, std::pair{"extra", "extra"}}) {
    const std::string_view value = Member(user, theirs);
    if (!value.empty()) out.append(",\"").append(ours).append("\":").append(value);
  }
  return out + "}}";
}

// The latest answers of one kind, at most so many.
class Answers {
 public:
  explicit Answers(size_t max) : max_(max) {}

  struct Known {
    Verdict verdict = Verdict::kUnknown;
    base::Nanos since = 0;
    std::list<std::string>::iterator age;
  };

  const Known* Find(const std::string& key) const {
    const auto found = known_.find(key);
    return found == known_.end() ? nullptr : &found->second;
  }
  void Put(const std::string& key, Verdict verdict, base::Nanos now) {
    Forget(key);
    while (!by_age_.empty() && known_.size() >= max_) Forget(std::string(by_age_.front()));
    by_age_.push_back(key);
    known_[key] = {verdict, now, std::prev(by_age_.end())};
  }
  void Forget(const std::string& key) {
    const auto found = known_.find(key);
    if (found == known_.end()) return;
    by_age_.erase(found->second.age);
    known_.erase(found);
  }

 private:
  const size_t max_;
  std::map<std::string, Known> known_;
  std::list<std::string> by_age_;  // the oldest first
};

}  // namespace

struct AccessReview::Impl {
  struct Waiter {
    std::string from;
    base::Nanos since = 0;
    Done done;
  };
  // Several who ask the same are asked for once.
  struct Question {
    std::string token;
    std::string path;
    std::vector<Waiter> waiters;
    std::string key() const { return token + '\n' + path; }  // no token has a line end
  };
  using Answered = std::vector<std::pair<Done, Verdict>>;

  Impl(net::Loop& l, std::unique_ptr<ApiServer> s, const base::Clock& c, const base::Log& g,
       base::Registry& registry, const AccessReviewOptions& o)
      : loop(l),
        server(std::move(s)),
        clock(c),
        log(g),
        options(o),
        reviews(registry.AddCounter(
            {.name = "fairway_access_reviews_total",
             .help = "Questions to the API server about readers of the admin pages, by answer",
             .labels = {"answer"}})),
        turned_away(
            registry
                .AddCounter({.name = "fairway_access_reviews_turned_away_total",
                             .help = "Readers of the admin pages for whom nobody was asked: too many waited"})
                .With({})),
        allowed(o.max_kept),
        refused(o.max_kept),
        next(l),
        look(l) {}

  void MayGet(const std::string& token, const std::string& path, const std::string& from, Done done) {
    if (token.size() > options.max_token || token.find('\n') != std::string::npos)
      return done(Verdict::kUnknown);
    const std::string key = token + '\n' + path;
    const base::Nanos now = clock.Now();
    const Answers::Known* yes = allowed.Find(key);
    if (yes != nullptr && now - yes->since < options.keep_allowed) return done(Verdict::kAllowed);
    const Answers::Known* no = refused.Find(key);
    if (no != nullptr && now - no->since < options.keep_refused) return done(no->verdict);
    const bool at_once = HadYes(key) && (is_slow || num_waiters >= options.max_waiting);
    if (!at_once && num_waiters >= options.max_waiting && !MakeRoom(from)) {
      turned_away.Add();
      return done(Verdict::kUnavailable);
    }
    // Who is answered at once by what was known is asked for all the same, if there is room for a question.
    if (!at_once || questions.size() < options.max_waiting) {
      Question& question = QuestionOf(token, path);
      if (!at_once) {
        question.waiters.push_back({from, now, std::move(done)});
        ++num_waiters;
        Watch();
      }
      if (questions.size() == 1 && !is_asking) AskNext();
    }
    if (at_once) done(Verdict::kAllowed);  // NOLINT(bugprone-use-after-move): moved only where it is not
  }

  bool HadYes(const std::string& key) const {
    const Answers::Known* yes = allowed.Find(key);
    return yes != nullptr && clock.Now() - yes->since < options.keep_stale;
  }

  Question& QuestionOf(const std::string& token, const std::string& path) {
    for (Question& question : questions) {
      if (question.token == token && question.path == path) return question;
    }
    return questions.emplace_back(Question{token, path, {}});
  }

  // One of the address that has most of them goes, unless that is where the newcomer is from. False: no room.
  bool MakeRoom(const std::string& from) {
    std::map<std::string_view, size_t> by_address;
    for (const Question& question : questions) {
      for (const Waiter& waiter : question.waiters) ++by_address[waiter.from];
    }
    const auto most = std::max_element(by_address.begin(), by_address.end(),
                                       [](const auto& a, const auto& b) { return a.second < b.second; });
    if (most == by_address.end() || most->second <= by_address[from] + 1) return false;
    const std::string address(most->first);
    for (auto question = questions.rbegin(); question != questions.rend(); ++question) {
      for (auto waiter = question->waiters.begin(); waiter != question->waiters.end(); ++waiter) {
        if (waiter->from != address) continue;
        turned_away.Add();
        // Not from within: who is answered may ask the next question, or end us.
        dropped.push_back(std::move(waiter->done));
        question->waiters.erase(waiter);
        --num_waiters;
        Watch();
        return true;
      }
    }
    return false;
  }

  // ---- who waits for too long

  void Watch() {
    if (std::exchange(is_watching, true)) return;
    look.After(std::min(options.patience, base::kSecond) / 4, [this] {
      is_watching = false;
      Look();
    });
  }

  void Look() {
    Answered answered;
    for (Done& done : std::exchange(dropped, {}))
      answered.emplace_back(std::move(done), Verdict::kUnavailable);
    const base::Nanos now = clock.Now();
    for (Question& question : questions) {
      const bool had_yes = HadYes(question.key());
      std::erase_if(question.waiters, [&](Waiter& waiter) {
        const base::Nanos waited = now - waiter.since;
        const bool takes_old = had_yes && waited >= options.patience;
        if (!takes_old && waited < options.max_wait) return false;
        is_slow |= takes_old;
        answered.emplace_back(std::move(waiter.done), had_yes ? Verdict::kAllowed : Verdict::kUnavailable);
        --num_waiters;
        return true;
      });
    }
    DropUnwanted();
    if (num_waiters > 0) Watch();
    for (auto& [done, verdict] : answered) done(verdict);  // may end us
  }

  // Questions that nobody waits for any more and that are not being asked; but for those of somebody who had
  // a yes.
  void DropUnwanted() {
    auto first = questions.begin();
    if (is_asking && first != questions.end()) ++first;
    for (auto question = first; question != questions.end();) {
      question = question->waiters.empty() && !HadYes(question->key()) ? questions.erase(question)
                                                                       : std::next(question);
    }
  }

  // ---- The question in front.

  // Moves there who had a yes before, or else somebody of the address whose turn was longest ago.
  void ChooseNext() {
    const auto rank = [&](const Question& question) {
      const std::string from = question.waiters.empty() ? "" : question.waiters.front().from;
      const auto turn = turns.find(from);
      return std::pair{HadYes(question.key()) ? 0 : 1, turn == turns.end() ? 0 : turn->second};
    };
    const auto best =
        std::min_element(questions.begin(), questions.end(),
                         [&](const Question& a, const Question& b) { return rank(a) < rank(b); });
    questions.splice(questions.begin(), questions, best);
    std::map<std::string, uint64_t> kept;  // of who waits
    for (const Question& question : questions) {
      for (const Waiter& waiter : question.waiters) {
        if (const auto turn = turns.find(waiter.from); turn != turns.end()) kept.insert(*turn);
      }
    }
    if (!questions.front().waiters.empty()) kept[questions.front().waiters.front().from] = ++last_turn;
    turns = std::move(kept);
  }

  void AskNext() {
    DropUnwanted();
    if (questions.empty()) return;
    is_asking = true;
    ChooseNext();
    user.clear();
    Post(kTokens, TokenQuestion(questions.front().token), [this](std::string_view status) {
      if (Member(status, "authenticated") != "true") return Learn(Verdict::kUnknown);
      user = std::string(Member(status, "user"));
      AskAccess();
    });
  }

  void AskAccess() {
    Post(kAccesses, AccessQuestion(user, questions.front().path), [this](std::string_view status) {
      Learn(Member(status, "allowed") == "true" ? Verdict::kAllowed : Verdict::kForbidden);
    });
  }

  void Post(const char* path, std::string what, std::function<void(std::string_view status)> use,
            bool again = false) {
    uint64_t generation = 0;
    const net::HttpStreamOptions& connection = server->Connection(generation);
    const bool reused = stream != nullptr && generation == stream_generation && !again;
    if (!reused) {
      stream = std::make_unique<net::HttpStream>(loop, connection);
      stream_generation = generation;
    }
    body.clear();
    code = 0;
    auto headers = server->Headers();
    headers.emplace_back("Content-Type", "application/json");
    const std::string target = server->Target(path);
    stream->Start({.method = "POST",
                   .target = target,
                   .headers = std::move(headers),
                   .body = what,
                   .head_timeout = options.timeout,
                   .idle_timeout = options.timeout,
                   .total_timeout = options.timeout},
                  {.head = [this](const net::HttpStreamHead& head) { code = head.status; },
                   .data =
                       [this](std::string_view bytes) {
                         if (body.size() < kMaxBody) body += bytes.substr(0, kMaxBody - body.size());
                       },
                   .end =
                       [this, path, what, use = std::move(use), reused](const std::string& error) mutable {
                         // A kept connection that the server has closed meanwhile. The stream is in the
                         // middle of its call: not to be replaced within it.
                         if (!error.empty() && code == 0 && reused) {
                           next.After(0,
                                      [this, path, what = std::move(what), use = std::move(use)]() mutable {
                                        Post(path, std::move(what), std::move(use), true);
                                      });
                           return;
                         }
                         if (!error.empty()) return Unavailable(error, path);
                         if (code != 200 && code != 201)
                           return Unavailable(
                               "status " + std::to_string(code) + " " + ReadApiStatus(body).message, path);
                         use(Member(body, "status"));
                       }});
  }

  void Unavailable(const std::string& why, std::string_view path) {
    const bool stale = HadYes(questions.front().key());
    is_slow = true;
    if (std::exchange(is_failing, true)) {
      // Told already; it is asked again with each question.
    } else if (code == 403) {
      const bool tokens = path == kTokens;
      log.Error("RBAC does not allow to ask who may read the admin pages",
                {{"missing_rule",
                  std::string("apiGroups: [\"") + (tokens ? "authentication" : "authorization") +
                      ".k8s.io\"], resources: [\"" + (tokens ? "tokenreviews" : "subjectaccessreviews") +
                      "\"], verbs: [\"create\"], in a ClusterRole"},
                 {"answer", why}});
    } else {
      log.Warn(
          "the API server does not say who may read the admin pages",
          {{"server", server->name()}, {"error", why}, {"known", stale ? "an earlier yes counts on" : "no"}});
    }
    reviews.With({"none"}).Add();
    Answer(stale ? Verdict::kAllowed : Verdict::kUnavailable);
  }

  void Learn(Verdict verdict) {
    is_failing = false;
    is_slow = false;
    reviews
        .With({verdict == Verdict::kAllowed   ? "allowed"
               : verdict == Verdict::kUnknown ? "unknown"
                                              : "forbidden"})
        .Add();
    const std::string key = questions.front().key();
    allowed.Forget(key);
    refused.Forget(key);
    (verdict == Verdict::kAllowed ? allowed : refused).Put(key, verdict, clock.Now());
    Answer(verdict);
  }

  void Answer(Verdict verdict) {
    std::vector<Waiter> waiters = std::move(questions.front().waiters);
    questions.pop_front();
    num_waiters -= waiters.size();
    is_asking = false;
    // Not from within: the one who is answered may ask the next question, or end us.
    if (!questions.empty()) {
      is_asking = true;
      next.After(0, [this] {
        is_asking = false;
        AskNext();
      });
    }
    for (Waiter& waiter : waiters) waiter.done(verdict);
  }

  net::Loop& loop;
  std::unique_ptr<ApiServer> server;
  const base::Clock& clock;
  const base::Log& log;
  const AccessReviewOptions options;
  base::CounterFamily& reviews;
  base::Counter& turned_away;
  Answers allowed;
  Answers refused;                // of their own, so that made-up tokens do not push out a yes
  std::list<Question> questions;  // the first is being asked, while is_asking
  size_t num_waiters = 0;
  std::vector<Done> dropped;              // get kUnavailable soon
  std::map<std::string, uint64_t> turns;  // address -> when it was last asked for
  uint64_t last_turn = 0;
  std::string user;
  std::string body;
  int code = 0;
  bool is_asking = false;
  bool is_watching = false;
  bool is_failing = false;  // said so in the log
  bool is_slow = false;     // the last answer did not come, or not in time
  uint64_t stream_generation = 0;
  std::unique_ptr<net::HttpStream> stream;
  net::Timer next;
  net::Timer look;
};

base::Result<std::unique_ptr<AccessReview>> AccessReview::Create(net::Loop& loop, ClientConfig config,
                                                                 const base::Clock& clock,
                                                                 const base::Log& log,
                                                                 base::Registry& registry,
                                                                 const AccessReviewOptions& options) {
  auto server = ApiServer::Create(std::move(config));
  if (!server) return tl::make_unexpected(server.error());
  return std::unique_ptr<AccessReview>(
      new AccessReview(std::make_unique<Impl>(loop, std::move(*server), clock, log, registry, options)));
}

AccessReview::AccessReview(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
AccessReview::~AccessReview() = default;

void AccessReview::MayGet(const std::string& token, const std::string& path, const std::string& from,
                          Done done) {
  impl_->MayGet(token, path, from, std::move(done));
}

}  // namespace fairway::sources::kubernetes
