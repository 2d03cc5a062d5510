#include "sources/kubernetes/access_review.h"

#include <deque>
#include <list>
#include <map>
#include <string_view>
#include <utility>

#include "base/strings.h"
#include "net/http_stream.h"
#include "sources/kubernetes/api_server.h"
#include "sources/kubernetes/json_view.h"
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

}  // namespace

struct AccessReview::Impl {
  struct Question {
    std::string token;
    std::string path;
    Done done;
    std::string key() const { return token + '\n' + path; }  // no token has a line end
  };
  struct Known {
    Verdict verdict = Verdict::kUnknown;
    base::Nanos since = 0;
    std::list<std::string>::iterator age;
  };

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
        next(l) {}

  void MayGet(Question question) {
    if (question.token.size() > options.max_token || question.token.find('\n') != std::string::npos)
      return question.done(Verdict::kUnknown);
    if (const Known* known = Find(question.key())) {
      const base::Nanos age = clock.Now() - known->since;
      if (age < (known->verdict == Verdict::kAllowed ? options.keep_allowed : options.keep_refused))
        return question.done(known->verdict);
    }
    if (waiting.size() >= options.max_waiting) return question.done(Verdict::kUnavailable);
    waiting.push_back(std::move(question));
    if (waiting.size() == 1) AskToken();
  }

  // ---- The question in front.

  void AskToken() {
    // While it waited another one may have brought the answer.
    const Known* known = Find(waiting.front().key());
    if (known != nullptr && clock.Now() - known->since < options.keep_refused) return Answer(known->verdict);
    user.clear();
    Post(kTokens, TokenQuestion(waiting.front().token), [this](std::string_view status) {
      if (Member(status, "authenticated") != "true") return Learn(Verdict::kUnknown);
      user = std::string(Member(status, "user"));
      AskAccess();
    });
  }

  void AskAccess() {
    Post(kAccesses, AccessQuestion(user, waiting.front().path), [this](std::string_view status) {
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
    const Known* known = Find(waiting.front().key());
    const bool stale = known != nullptr && known->verdict == Verdict::kAllowed &&
                       clock.Now() - known->since < options.keep_stale;
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
    reviews
        .With({verdict == Verdict::kAllowed   ? "allowed"
               : verdict == Verdict::kUnknown ? "unknown"
                                              : "forbidden"})
        .Add();
    const std::string key = waiting.front().key();
    Forget(key);
    while (known_answers.size() >= options.max_kept) Forget(std::string(by_age.front()));
    by_age.push_back(key);
    known_answers[key] = {verdict, clock.Now(), std::prev(by_age.end())};
    Answer(verdict);
  }

  void Answer(Verdict verdict) {
    const Done done = std::move(waiting.front().done);
    waiting.pop_front();
    // Not from within: the one who is answered may ask the next question, or end us.
    if (!waiting.empty()) next.After(0, [this] { AskToken(); });
    done(verdict);
  }

  const Known* Find(const std::string& key) const {
    const auto found = known_answers.find(key);
    return found == known_answers.end() ? nullptr : &found->second;
  }

  void Forget(const std::string& key) {
    const auto found = known_answers.find(key);
    if (found == known_answers.end()) return;
    by_age.erase(found->second.age);
    known_answers.erase(found);
  }

  net::Loop& loop;
  std::unique_ptr<ApiServer> server;
  const base::Clock& clock;
  const base::Log& log;
  const AccessReviewOptions options;
  base::CounterFamily& reviews;
  std::map<std::string, Known> known_answers;
  std::list<std::string> by_age;
  std::deque<Question> waiting;  // the first is being asked
  std::string user;
  std::string body;
  int code = 0;
  bool is_failing = false;
  uint64_t stream_generation = 0;
  std::unique_ptr<net::HttpStream> stream;
  net::Timer next;
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

void AccessReview::MayGet(const std::string& token, const std::string& path, Done done) {
  impl_->MayGet({token, path, std::move(done)});
}

}  // namespace fairway::sources::kubernetes
