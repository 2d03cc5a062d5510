// Keeps up with one kind of objects at the API server: list in pages, then watch from there, for ever.
//
// A watch that ends goes on from the last version seen. One that fell too far behind (410) is listed anew,
// and what was known stays until the new list is complete. Nothing is ever waited for without an end; what
// fails is tried again with growing, jittered pauses.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/log.h"
#include "net/loop.h"
#include "sources/kubernetes/api_server.h"

namespace fairway::sources::kubernetes {

// What comes of it, on the loop. The texts are objects in JSON, valid during the call.
class ReflectorSink {
 public:
  virtual ~ReflectorSink() = default;
  // A list begins: what is Listed until EndList replaces all that is known. It may begin again before it
  // ended; then what was listed so far does not count.
  virtual void BeginList() = 0;
  virtual void Listed(std::string_view object) = 0;
  virtual void EndList() = 0;
  virtual void Set(std::string_view object) = 0;
  virtual void Deleted(std::string_view object) = 0;
  // The state changed (see Reflector): for metrics and for who waits for it.
  virtual void StateChanged() = 0;
};

struct ReflectorOptions {
  std::string path;  // "/api/v1/namespaces/default/pods"
  std::string label_selector;
  std::string field_selector;
  // For messages: what RBAC has to allow.
  std::string group;  // "" is core
  std::string resource;
  std::string namespace_name;  // "" is all
  bool optional = false;       // a refusal is no error, as much can be done without

  int page_size = 500;
  base::Nanos min_pause = 50 * base::kMillisecond;
  base::Nanos max_pause = 5 * base::kSecond;
  // A watch is asked to last this long to twice this long; 30 s more and it counts as lost. So long a server
  // that hangs without a word may go unnoticed.
  base::Nanos watch_time = 60 * base::kSecond;
  base::Nanos call_timeout = 30 * base::kSecond;
  uint64_t seed = 1;
};

struct ReflectorStats {
  uint64_t lists = 0;    // complete ones
  uint64_t watches = 0;  // begun
  uint64_t events = 0;   // bookmarks too
  uint64_t expired = 0;  // 410
  uint64_t errors = 0;   // calls that failed, RBAC's refusals too
};

// Owned by its loop's thread; not to be destroyed inside a call of its sink. The API server and the sink
// outlive it.
class Reflector {
 public:
  Reflector(net::Loop& loop, ApiServer& server, ReflectorOptions options, ReflectorSink& sink,
            const base::Clock& clock, const base::Log& log);
  ~Reflector();
  Reflector(const Reflector&) = delete;
  Reflector& operator=(const Reflector&) = delete;

  bool synced() const;   // a list was complete, now or once
  bool denied() const;   // the last call was refused by RBAC
  bool absent() const;   // the last call says that there is no such kind
  bool failing() const;  // the last call failed, in whatever way
  // How old what is known may be: 0 while a watch is open.
  base::Nanos age() const;
  const ReflectorStats& stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// "a b" -> "a%20b", for a query's values.
std::string PercentEncode(std::string_view text);

}  // namespace fairway::sources::kubernetes
