#include "sources/kubernetes/discovery.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "net/http_stream.h"
#include "sources/json/json_view.h"

namespace fairway::sources::kubernetes {
namespace {

constexpr size_t kMaxBody = 1 << 20;
constexpr base::Nanos kTimeout = 5 * base::kSecond;
constexpr base::Nanos kFirstPause = 50 * base::kMillisecond;
constexpr int kMissesThatCount = 3;

Discovery::Resources ReadResources(std::string_view body) {
  Discovery::Resources resources;
  for (JsonMembers members(body); members.Next();) {
    if (members.key() != "resources") continue;
    for (JsonItems items(members.value()); items.Next();) {
      for (JsonMembers fields(items.value()); fields.Next();) {
        if (fields.key() != "name") continue;
        if (auto name = JsonString(fields.value())) resources.insert(std::move(*name));
      }
    }
  }
  return resources;
}

}  // namespace

struct Discovery::Impl {
  // One group and version.
  struct Group {
    Group(Impl& impl, std::string name) : owner(impl), group_version(std::move(name)), timer(impl.loop) {}

    void Ask() {
      uint64_t generation = 0;
      const net::HttpStreamOptions& connection = owner.server.Connection(generation);
      if (stream == nullptr || generation != stream_generation) {
        stream = std::make_unique<net::HttpStream>(owner.loop, connection);
        stream_generation = generation;
      }
      body.clear();
      status = 0;
      stream->Start({.target = owner.server.Target("/apis/" + group_version),
                     .headers = owner.server.Headers(),
                     .head_timeout = kTimeout,
                     .idle_timeout = kTimeout,
                     .total_timeout = 2 * kTimeout},
                    {.head = [this](const net::HttpStreamHead& head) { status = head.status; },
                     .data =
                         [this](std::string_view bytes) {
                           if (body.size() < kMaxBody) body += bytes.substr(0, kMaxBody - body.size());
                         },
                     .end = [this](const std::string& error) { Answered(error); }});
    }

    void Answered(const std::string& error) {
      if (error.empty()) owner.heard_at = owner.clock.Now();
      base::Nanos pause = owner.interval;
      if (error.empty() && status == 200) {
        misses = 0;
        Tell(ReadResources(body));
      } else if (error.empty() && status == 404) {
        if (!known || (known->empty() && !unknown) || ++misses >= kMissesThatCount) Tell(Resources{});
      } else if (error.empty() && (status == 401 || status == 403) && !known) {
        owner.log.Warn("the API server does not tell which resources it has; all are asked for",
                       {{"group", group_version}, {"status", std::to_string(status)}});
        unknown = true;
        known.emplace();
        owner.found(group_version, nullptr);
      } else if (!known) {
        // Until the first answer somebody is waiting.
        pause = std::min(kFirstPause << std::min(failures++, 10), pause);
      }
      timer.After(pause, [this] { Ask(); });
    }

    void Tell(Resources resources) {
      if (known && !unknown && *known == resources) return;
      unknown = false;
      known = std::move(resources);
      owner.found(group_version, &*known);
    }

    Impl& owner;
    const std::string group_version;
    net::Timer timer;
    std::unique_ptr<net::HttpStream> stream;
    uint64_t stream_generation = 0;
    int status = 0;
    std::string body;
    std::optional<Resources> known;  // what was told last
    bool unknown = false;            // "everything may be there" was told
    int misses = 0;
    int failures = 0;
  };

  net::Loop& loop;
  ApiServer& server;
  base::Nanos interval;
  const base::Clock& clock;
  const base::Log& log;
  Found found;
  std::vector<std::unique_ptr<Group>> groups;
  base::Nanos heard_at = 0;
};

Discovery::Discovery(net::Loop& loop, ApiServer& server, std::vector<std::string> group_versions,
                     base::Nanos interval, const base::Clock& clock, const base::Log& log, Found found)
    : impl_(new Impl{loop, server, interval, clock, log, std::move(found), {}}) {
  for (std::string& name : group_versions) {
    impl_->groups.push_back(std::make_unique<Impl::Group>(*impl_, std::move(name)));
    impl_->groups.back()->timer.After(0, [group = impl_->groups.back().get()] { group->Ask(); });
  }
}

Discovery::~Discovery() = default;

base::Nanos Discovery::heard_at() const { return impl_->heard_at; }

}  // namespace fairway::sources::kubernetes
