#include "sources/kubernetes/reflector.h"

#include <algorithm>
#include <utility>

#include "base/random.h"
#include "net/http_stream.h"
#include "sources/json/json_view.h"
#include "sources/kubernetes/objects.h"

namespace fairway::sources::kubernetes {
namespace {

constexpr size_t kMaxErrorBody = 64 << 10;
constexpr size_t kMaxEvent = ListSplitter::kMaxItem;
constexpr base::Nanos kListTimeout = 120 * base::kSecond;  // one page
// From here on a watch counts as having worked, whatever it brought.
constexpr base::Nanos kGoodWatch = base::kSecond;

}  // namespace

std::string PercentEncode(std::string_view text) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '-' || c == '_' || c == '.' || c == '~';
    if (plain) {
      out += c;
    } else {
      out += '%';
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    }
  }
  return out;
}

struct Reflector::Impl {
  Impl(net::Loop& l, ApiServer& a, ReflectorOptions o, ReflectorSink& s, const base::Clock& c,
       const base::Log& g)
      : loop(l),
        server(a),
        options(std::move(o)),
        sink(&s),
        clock(c),
        log(g),
        random(options.seed),
        timer(l),
        seen_at(c.Now()) {}

  // ---- Calls.

  std::string Query(const std::string& more) const {
    std::string query = "?" + more;
    if (!options.label_selector.empty()) query += "&labelSelector=" + PercentEncode(options.label_selector);
    if (!options.field_selector.empty()) query += "&fieldSelector=" + PercentEncode(options.field_selector);
    return query;
  }

  // One connection for lists and watches, new when certificates changed.
  void Call(const std::string& query, base::Nanos idle, base::Nanos total,
            std::function<void(std::string_view)> data, std::function<void(const std::string&)> end) {
    uint64_t generation = 0;
    const net::HttpStreamOptions& connection = server.Connection(generation);
    if (stream == nullptr || generation != stream_generation) {
      stream = std::make_unique<net::HttpStream>(loop, connection);
      stream_generation = generation;
    }
    head = {};
    error_body.clear();
    stream->Start({.target = server.Target(options.path) + query,
                   .headers = server.Headers(),
                   .head_timeout = options.call_timeout,
                   .idle_timeout = idle,
                   .total_timeout = total},
                  {.head =
                       [this](const net::HttpStreamHead& got) {
                         head = got;
                         if (watching && got.status == 200) WatchOpened();
                       },
                   .data =
                       [this, data = std::move(data)](std::string_view bytes) {
                         if (head.status == 200) {
                           data(bytes);
                         } else if (error_body.size() < kMaxErrorBody) {
                           error_body += bytes.substr(0, kMaxErrorBody - error_body.size());
                         }
                       },
                   .end = std::move(end)});
  }

  // ---- Listing.

  void List() {
    watching = false;
    sink->BeginList();
    ListPage("");
  }

  void ListPage(const std::string& token) {
    splitter = std::make_unique<ListSplitter>([this](std::string_view item) { sink->Listed(item); });
    std::string query = "limit=" + std::to_string(all_at_once ? 0 : options.page_size);
    if (!token.empty()) query += "&continue=" + PercentEncode(token);
    Call(
        Query(query), options.call_timeout, kListTimeout,
        [this](std::string_view bytes) { too_large = !splitter->Feed(bytes) || too_large; },
        [this](const std::string& error) { ListEnded(error); });
  }

  void ListEnded(const std::string& error) {
    if (!error.empty()) return Failed("list", error);
    if (head.status == 410) {
      // The pages' snapshot is gone before the last page was read: once more, and then without pages.
      ++stats.expired;
      all_at_once = true;
      return Pause([this] { List(); });
    }
    if (head.status != 200) return Refused("list");
    if (too_large || !splitter->done()) {
      const std::string why =
          too_large ? "an object or the list's head is too large" : "the list ends too early";
      too_large = false;
      return Failed("list", why);
    }
    const ListMeta meta = ReadListMeta(splitter->envelope());
    splitter.reset();
    if (!meta.continue_token.empty()) return ListPage(meta.continue_token);
    if (meta.resource_version.empty()) return Failed("list", "the list has no resourceVersion");
    version = meta.resource_version;
    all_at_once = false;
    ++stats.lists;
    Works();
    is_synced = true;
    seen_at = clock.Now();
    sink->EndList();
    Watch();
  }

  // ---- Watching.

  void Watch() {
    watching = true;
    line.clear();
    const base::Nanos time =
        options.watch_time +
        static_cast<base::Nanos>(random.NextDouble() * static_cast<double>(options.watch_time));
    const base::Nanos limit = time + 30 * base::kSecond;
    relist = false;
    Call(
        Query("watch=true&allowWatchBookmarks=true&resourceVersion=" + PercentEncode(version) +
              "&timeoutSeconds=" + std::to_string(std::max<base::Nanos>(time / base::kSecond, 1))),
        limit, limit, [this](std::string_view bytes) { WatchData(bytes); },
        [this](const std::string& error) { WatchEnded(error); });
  }

  void WatchOpened() {
    ++stats.watches;
    open = true;
    opened_at = clock.Now();
    Recovered();
    sink->StateChanged();
  }

  void Close() {
    if (open) seen_at = clock.Now();
    open = false;
  }

  void WatchData(std::string_view bytes) {
    Lines(bytes);
    if (!relist) return;
    // The rest of this stream does not count.
    stream.reset();
    timer.After(0, [this] { WatchEnded(""); });
  }

  // An event is a line.
  void Lines(std::string_view bytes) {
    while (!bytes.empty() && !relist) {
      const size_t end = bytes.find('\n');
      if (end == std::string_view::npos) {
        line += bytes;
        if (line.size() > kMaxEvent)
          Relist("an event is larger than " + std::to_string(kMaxEvent) + " bytes");
        return;
      }
      if (line.empty()) {
        Event(bytes.substr(0, end));
      } else {
        line += bytes.substr(0, end);
        Event(line);
        line.clear();
      }
      bytes.remove_prefix(end + 1);
    }
  }

  void Event(std::string_view text) {
    if (text.empty()) return;
    ++stats.events;
    const WatchEvent event = ReadWatchEvent(text);
    if (event.type == WatchEvent::Type::kError) {
      const ApiStatus status = ReadApiStatus(event.object);
      if (status.code == 410) ++stats.expired;
      return Relist(status.message);
    }
    const auto id = ReadObjectId(event.object);
    if (!id || id->resource_version.empty()) return Relist("an event without a resourceVersion");
    version = id->resource_version;
    Works();
    expired_in_row = 0;
    if (event.type == WatchEvent::Type::kSet) sink->Set(event.object);
    if (event.type == WatchEvent::Type::kDeleted) sink->Deleted(event.object);
  }

  // What is known may have holes from here on.
  void Relist(const std::string& why) {
    log.Info("watch fell behind, listing anew", {{"resource", options.resource}, {"reason", why}});
    relist = true;
  }

  void WatchEnded(const std::string& error) {
    const bool was_open = open;
    Close();
    const bool good = was_open && clock.Now() - opened_at >= kGoodWatch;
    if (good) {
      Works();
      expired_in_row = 0;
    }
    if (relist) {
      sink->StateChanged();
      // The first time at once. A server that says so again and again is left in peace.
      if (expired_in_row++ == 0) return List();
      return Pause([this] { List(); });
    }
    if (!error.empty()) return Failed("watch", error);
    if (head.status == 410) {
      ++stats.expired;
      if (expired_in_row++ == 0) return List();
      return Pause([this] { List(); });
    }
    if (head.status != 200) return Refused("watch");
    // The time asked for is over, as a rule.
    if (good) return Watch();
    Pause([this] { Again(); });
  }

  // ---- What goes wrong.

  void Recovered() {
    if (is_failing) {
      log.Info("the API server answers again", {{"resource", options.resource}, {"server", server.name()}});
    }
    is_failing = is_denied = is_absent = false;
  }

  void Works() {
    Recovered();
    attempts = 0;
  }

  void Failed(const char* verb, const std::string& why) {
    Close();
    ++stats.errors;
    // Once when it begins: what goes on is told by the metric's growing age.
    if (!is_failing || is_denied || is_absent) {
      log.Warn("the API server does not answer; what is known of it is served on",
               {{"verb", verb},
                {"resource", options.resource},
                {"server", server.name()},
                {"error", why},
                {"credentials", server.problem().empty() ? "ok" : server.problem()}});
    }
    is_failing = true;
    is_denied = is_absent = false;
    sink->StateChanged();
    Pause([this] { Again(); });
  }

  // "missing rule: verb list on resource pods, apiGroup "" in namespace llm"
  std::string Rule(const char* verb) const {
    return std::string("apiGroups: [\"") + options.group + "\"], resources: [\"" + options.resource +
           "\"], verbs: [\"" + verb + "\"]" +
           (options.namespace_name.empty() ? ", in a ClusterRole"
                                           : ", in namespace " + options.namespace_name);
  }

  void Refused(const char* verb) {
    Close();
    ++stats.errors;
    const ApiStatus status = ReadApiStatus(error_body);
    const bool denies = head.status == 403;
    const bool missing = head.status == 404;
    // A CRD that was just made answers so for some 10 ms, and then it is there: neither worth a line nor the
    // second's wait that the header asks for.
    const bool initialising = status.message.find("(re)initializing") != std::string::npos;
    const bool told = initialising || (is_failing && is_denied == denies && is_absent == missing);
    if (denies && !told && options.optional) {
      log.Warn("RBAC does not allow to read an optional resource; it is left out as long as that is so",
               {{"missing_rule", Rule(verb)}, {"server", server.name()}, {"answer", status.message}});
    } else if (denies && !told) {
      log.Error("RBAC does not allow what is needed; it is tried again until it does",
                {{"missing_rule", Rule(verb)}, {"server", server.name()}, {"answer", status.message}});
    } else if (missing && !told) {
      log.Warn("there is no such resource at the API server (its CRD is not installed)",
               {{"resource", options.resource}, {"group", options.group}, {"server", server.name()}});
    } else if (!told) {
      log.Warn("the API server refuses a call; what is known of it is served on",
               {{"verb", verb},
                {"resource", options.resource},
                {"server", server.name()},
                {"status", std::to_string(head.status)},
                {"answer", status.message},
                {"credentials", server.problem().empty() ? "ok" : server.problem()}});
    }
    is_failing = is_failing || !initialising;
    is_denied = denies;
    is_absent = missing;
    sink->StateChanged();
    base::Nanos least = 0;
    if (head.retry_after > 0 && !initialising) {
      least = std::min(head.retry_after * base::kSecond, options.max_pause);
    }
    Pause([this] { Again(); }, least);
  }

  // Goes on where it was: a watch from the last version, a list from its beginning.
  void Again() {
    if (watching) {
      Watch();
    } else {
      List();
    }
  }

  void Pause(std::function<void()> then, base::Nanos least = 0) {
    base::Nanos pause = options.max_pause;
    const int tries = std::max(attempts, expired_in_row - 1);
    if (tries < 20) pause = std::min(pause, options.min_pause << tries);
    ++attempts;
    pause = std::max(static_cast<base::Nanos>(static_cast<double>(pause) * (0.5 + random.NextDouble() / 2)),
                     least);
    timer.After(pause, std::move(then));
  }

  net::Loop& loop;
  ApiServer& server;
  const ReflectorOptions options;
  ReflectorSink* sink;
  const base::Clock& clock;
  const base::Log& log;
  base::Random random;
  net::Timer timer;
  std::unique_ptr<net::HttpStream> stream;
  uint64_t stream_generation = 0;
  net::HttpStreamHead head;
  std::string error_body;
  std::unique_ptr<ListSplitter> splitter;
  std::string line;     // the beginning of an event whose end has not come yet
  std::string version;  // seen last
  ReflectorStats stats;
  int attempts = 0;
  int expired_in_row = 0;
  base::Nanos seen_at;
  base::Nanos opened_at = 0;
  bool watching = false;
  bool open = false;
  bool relist = false;
  bool too_large = false;
  bool all_at_once = false;
  bool is_synced = false;
  bool is_failing = false;
  bool is_denied = false;
  bool is_absent = false;
};

Reflector::Reflector(net::Loop& loop, ApiServer& server, ReflectorOptions options, ReflectorSink& sink,
                     const base::Clock& clock, const base::Log& log)
    : impl_(std::make_unique<Impl>(loop, server, std::move(options), sink, clock, log)) {
  impl_->timer.After(0, [impl = impl_.get()] { impl->List(); });
}

Reflector::~Reflector() = default;

bool Reflector::synced() const { return impl_->is_synced; }
bool Reflector::denied() const { return impl_->is_denied; }
bool Reflector::absent() const { return impl_->is_absent; }
bool Reflector::failing() const { return impl_->is_failing; }
base::Nanos Reflector::age() const { return impl_->open ? 0 : impl_->clock.Now() - impl_->seen_at; }
const ReflectorStats& Reflector::stats() const { return impl_->stats; }

}  // namespace fairway::sources::kubernetes
