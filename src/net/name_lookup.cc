#include "net/name_lookup.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.h"

namespace fairway::net {
namespace {

constexpr base::Nanos kLong = base::kSecond / 2;
constexpr size_t kMostRemembered = 4096;  // names that took long

LookupResult SystemLookup(const std::string& name, bool only_configured) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = only_configured ? AI_ADDRCONFIG : 0;
  addrinfo* found = nullptr;
  LookupResult result;
  if (const int failed = ::getaddrinfo(name.c_str(), nullptr, &hints, &found); failed != 0) {
    result.error = ::gai_strerror(failed);
    return result;
  }
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    char text[NI_MAXHOST];  // with the scope of an address of a link
    if (::getnameinfo(one->ai_addr, one->ai_addrlen, text, sizeof text, nullptr, 0, NI_NUMERICHOST) != 0)
      continue;
    if (std::find(result.addresses.begin(), result.addresses.end(), text) == result.addresses.end())
      result.addresses.emplace_back(text);
  }
  ::freeaddrinfo(found);
  if (result.addresses.empty()) result.error = "no address";
  return result;
}

}  // namespace

// Kept alive by its threads; `loop` is not to be used once it is closed.
struct NameLookup::Impl : std::enable_shared_from_this<NameLookup::Impl> {
  Impl(Loop& l, NameLookupOptions o) : loop(l), options(std::move(o)) {}

  // ---- On the loop.
  void Find(const std::string& name, Done done) {
    auto& waiters = asked[name];
    waiters.push_back(std::move(done));
    if (waiters.size() > 1) return;
    bool may_start = false;
    {
      const std::lock_guard lock(mutex);
      (doubtful.contains(name) ? later : first).push_back(name);
      may_start = threads < kMostThreads;
      if (may_start) ++threads;
    }
    if (may_start) StartThread();
  }

  void StartThread() {
    // A new thread inherits the mask: signals are for others.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      std::thread([self = shared_from_this()] {
        pthread_setname_np(pthread_self(), "look-up");
        self->Work();
      }).detach();
    } catch (const std::system_error& error) {
      NoThread(error.what());
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  // Where others run, they will come to what waits.
  void NoThread(const std::string& why) {
    std::deque<std::string> stranded;
    {
      const std::lock_guard lock(mutex);
      if (--threads != 0) return;
      stranded = std::exchange(first, {});
      stranded.insert(stranded.end(), later.begin(), later.end());
      later.clear();
    }
    for (const std::string& name : stranded) Tell(name, {.addresses = {}, .error = why}, true);
  }

  // ---- On a thread.
  void Work() {
    std::string name;
    while (Next(name)) {
      const base::Nanos begun = base::SystemClock().Now();
      LookupResult result =
          options.resolve ? options.resolve(name) : SystemLookup(name, options.only_configured);
      const bool doubt = result.addresses.empty() || base::SystemClock().Now() - begun > kLong;
      const std::lock_guard lock(mutex);
      Tell(name, std::move(result), doubt);
    }
  }

  bool Next(std::string& name) {
    const std::lock_guard lock(mutex);
    auto& queue = first.empty() ? later : first;
    if (closed || queue.empty()) {
      --threads;
      return false;
    }
    name = std::move(queue.front());
    queue.pop_front();
    return true;
  }

  // On a thread under the mutex, so that the loop is there.
  void Tell(const std::string& name, LookupResult result, bool doubt) {
    if (closed) return;
    loop.Post([weak = weak_from_this(), name, result = std::move(result), doubt] {
      const auto self = weak.lock();
      if (self == nullptr || self->closed) return;
      if (!doubt) self->doubtful.erase(name);
      if (doubt && self->doubtful.size() < kMostRemembered) self->doubtful.insert(name);
      const auto waiters = self->asked.extract(name);
      if (waiters.empty()) return;
      for (const Done& done : waiters.mapped()) {
        if (self->closed) return;
        done(result);
      }
    });
  }

  Loop& loop;
  const NameLookupOptions options;
  // The loop's.
  std::map<std::string, std::vector<Done>, std::less<>> asked;
  std::set<std::string, std::less<>> doubtful;
  std::mutex mutex;
  std::deque<std::string> first, later;
  size_t threads = 0;
  bool closed = false;  // set on the loop, under the mutex
};

NameLookup::NameLookup(Loop& loop, NameLookupOptions options)
    : impl_(std::make_shared<Impl>(loop, std::move(options))) {}

NameLookup::~NameLookup() {
  const std::lock_guard lock(impl_->mutex);
  impl_->closed = true;
}

void NameLookup::Find(const std::string& name, Done done) { impl_->Find(name, std::move(done)); }

}  // namespace fairway::net
