#include "sources/kubernetes/leader_election.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <optional>
#include <utility>

#include "base/random.h"
#include "base/strings.h"
#include "net/http_stream.h"
#include "sources/json/json_view.h"
#include "sources/kubernetes/objects.h"

namespace fairway::sources::kubernetes {
namespace {

constexpr size_t kMaxBody = 256 << 10;

// What others wrote, as far as it counts.
struct Lease {
  std::string metadata;  // as it came: written back, so that labels and versions stay
  std::string holder;
  std::string acquired;
  std::string renewed;
  int64_t seconds = 0;
  int64_t transitions = 0;
};

Lease ReadLease(std::string_view text) {
  Lease lease;
  for (JsonMembers members(text); members.Next();) {
    if (members.key() == "metadata") lease.metadata = members.value();
    if (members.key() != "spec") continue;
    for (JsonMembers spec(members.value()); spec.Next();) {
      const auto number = [&] { return base::ParseInteger<int64_t>(spec.value()).value_or(0); };
      const auto text_value = [&] { return JsonString(spec.value()).value_or(""); };
      if (spec.key() == "holderIdentity") lease.holder = text_value();
      if (spec.key() == "acquireTime") lease.acquired = text_value();
      if (spec.key() == "renewTime") lease.renewed = text_value();
      if (spec.key() == "leaseDurationSeconds") lease.seconds = number();
      if (spec.key() == "leaseTransitions") lease.transitions = number();
    }
  }
  return lease;
}

std::string Text(const Lease& lease) {
  std::string out = R"({"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":)" + lease.metadata +
                    R"(,"spec":{"holderIdentity":)" + base::JsonString(lease.holder) +
                    R"(,"leaseDurationSeconds":)" + std::to_string(lease.seconds) +
                    R"(,"leaseTransitions":)" + std::to_string(lease.transitions);
  if (!lease.acquired.empty()) out += R"(,"acquireTime":)" + base::JsonString(lease.acquired);
  return out + R"(,"renewTime":)" + base::JsonString(lease.renewed) + "}}";
}

std::string NowText() {
  return MicroTime(std::chrono::duration_cast<std::chrono::microseconds>(
                       std::chrono::system_clock::now().time_since_epoch())
                       .count());
}

}  // namespace

std::string MicroTime(int64_t microseconds) {
  const std::time_t seconds = microseconds / 1'000'000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[40];
  const size_t size = std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  std::snprintf(text + size, sizeof text - size, ".%06dZ", static_cast<int>(microseconds % 1'000'000));
  return text;
}

struct LeaderElection::Impl {
  Impl(net::Loop& l, ApiServer& a, LeaderElectionOptions o, const base::Clock& c, const base::Log& g,
       Changed f)
      : loop(l),
        server(a),
        options(std::move(o)),
        clock(c),
        log(g),
        changed(std::move(f)),
        random(options.seed),
        timer(l) {}

  using Answer = std::function<void(int status, const std::string& body)>;  // status 0: no answer

  void Call(const char* method, bool named, const std::string& body, Answer answer) {
    uint64_t generation = 0;
    const net::HttpStreamOptions& connection = server.Connection(generation);
    if (stream == nullptr || generation != stream_generation) {
      stream = std::make_unique<net::HttpStream>(loop, connection);
      stream_generation = generation;
    }
    auto headers = server.Headers();
    if (!body.empty()) headers.emplace_back("Content-Type", "application/json");
    status = 0;
    received.clear();
    stream->Start(
        {.method = method,
         .target = server.Target("/apis/coordination.k8s.io/v1/namespaces/" + options.namespace_name +
                                 "/leases" + (named ? "/" + options.name : "")),
         .headers = std::move(headers),
         .body = body,
         .head_timeout = options.call_timeout,
         .idle_timeout = options.call_timeout,
         .total_timeout = options.call_timeout},
        {.head = [this](const net::HttpStreamHead& head) { status = head.status; },
         .data =
             [this](std::string_view bytes) {
               if (received.size() < kMaxBody) received += bytes.substr(0, kMaxBody - received.size());
             },
         .end =
             [this, verb = method, answer = std::move(answer)](const std::string& error) {
               const int code = error.empty() ? status : 0;
               Note(verb, code, error);
               answer(code, received);
             }});
  }

  // One line when it begins to go wrong, and one when it works again.
  void Note(std::string_view verb, int code, const std::string& error) {
    // Not there yet, and another was faster: both are a part of the game.
    const bool fine = (code >= 200 && code < 300) || code == 404 || code == 409;
    if (!fine && !troubled) {
      log.Warn("the leader's Lease cannot be read or written",
               {{"lease", options.namespace_name + "/" + options.name},
                {"verb", verb == "GET"    ? "get"
                         : verb == "POST" ? "create"
                                          : "update"},
                {"status", std::to_string(code)},
                {"answer", code == 0 ? error : ReadApiStatus(received).message}});
    }
    if (fine && troubled) log.Info("the leader's Lease can be read and written again");
    troubled = !fine;
  }

  void Again(base::Nanos pause) {
    if (releasing) return;
    // Replicas that start together should not look together for ever.
    timer.After(static_cast<base::Nanos>(static_cast<double>(pause) * (0.9 + random.NextDouble() * 0.2)),
                [this] { Look(); });
  }

  void Look() {
    Call("GET", true, "", [this](int code, const std::string& body) {
      if (code == 404) return Create();
      if (code != 200) return Again(options.look);
      lease = ReadLease(body);
      if (lease.holder == options.identity) return Write();
      SetLeading(false);
      // Other clocks may be wrong: what counts is how long nothing changed as we see it.
      const std::string mark = lease.holder + " " + lease.renewed + " " + lease.acquired;
      const base::Nanos now = clock.Now();
      if (mark != seen || seen_at == 0) {
        seen = mark;
        seen_at = now;
      }
      const base::Nanos ends = seen_at + (lease.seconds > 0 ? lease.seconds * base::kSecond : options.lease);
      if (lease.holder.empty() || now >= ends) return Write();
      Again(std::min(options.look, ends - now));
    });
  }

  void Fill() {
    const std::string now = NowText();
    if (lease.holder != options.identity) {
      lease.acquired = now;
      ++lease.transitions;
    }
    lease.holder = options.identity;
    lease.renewed = now;
    lease.seconds = std::max<base::Nanos>(options.lease / base::kSecond, 1);
  }

  void Create() {
    lease = {.transitions = -1};  // Fill makes it 0
    lease.metadata = "{\"name\":" + base::JsonString(options.name) +
                     ",\"namespace\":" + base::JsonString(options.namespace_name) + "}";
    Fill();
    Call("POST", false, Text(lease), [this](int code, const std::string& body) { Written(code, body); });
  }

  void Write() {
    Fill();
    Call("PUT", true, Text(lease), [this](int code, const std::string& body) { Written(code, body); });
  }

  void Written(int code, const std::string& body) {
    if (code != 200 && code != 201) return Again(options.look);  // also 409: another was faster
    lease = ReadLease(body);
    SetLeading(true);
    if (!releasing) {
      timer.After(options.renew, [this] { Look(); });
    }
  }

  void SetLeading(bool now) {
    if (now == leading) return;
    leading = now;
    log.Info(now ? "leads" : "does not lead any more",
             {{"lease", options.namespace_name + "/" + options.name}, {"identity", options.identity}});
    changed(now);
  }

  void Release(std::function<void()> finished) {
    releasing = true;
    // Once, when all is said or when there is no more time for it.
    const auto done = [this, finished = std::make_shared<std::function<void()>>(std::move(finished))] {
      timer.Cancel();
      if (const auto call = std::exchange(*finished, nullptr)) call();
    };
    timer.After(options.call_timeout, done);
    stream.reset();  // a call that is under way does not count any more
    const bool ours = leading;
    SetLeading(false);
    if (!ours) return timer.After(0, done);
    // Read once more: the call that was cut off may have written.
    Call("GET", true, "", [this, done](int code, const std::string& body) {
      lease = ReadLease(body);
      if (code != 200 || lease.holder != options.identity) return done();
      lease.holder.clear();
      lease.renewed = NowText();
      lease.seconds = 1;
      Call("PUT", true, Text(lease), [done](int, const std::string&) { done(); });
    });
  }

  net::Loop& loop;
  ApiServer& server;
  const LeaderElectionOptions options;
  const base::Clock& clock;
  const base::Log& log;
  const Changed changed;
  base::Random random;
  net::Timer timer;
  std::unique_ptr<net::HttpStream> stream;
  uint64_t stream_generation = 0;
  int status = 0;
  std::string received;
  Lease lease;
  std::string seen;  // of another holder
  base::Nanos seen_at = 0;
  bool leading = false;
  bool releasing = false;
  bool troubled = false;
};

LeaderElection::LeaderElection(net::Loop& loop, ApiServer& server, LeaderElectionOptions options,
                               const base::Clock& clock, const base::Log& log, Changed changed)
    : impl_(std::make_unique<Impl>(loop, server, std::move(options), clock, log, std::move(changed))) {
  impl_->timer.After(0, [impl = impl_.get()] { impl->Look(); });
}

LeaderElection::~LeaderElection() = default;

void LeaderElection::Release(std::function<void()> done) { impl_->Release(std::move(done)); }

}  // namespace fairway::sources::kubernetes
