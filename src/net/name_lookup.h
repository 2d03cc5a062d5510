// Names to IP addresses by the system's resolver, off the loop. Asio's has one thread that works through all
// names of a loop and is waited for at the end; here a name whose nameserver is silent (5 s and more) makes
// neither other names nor the process's end wait.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "net/loop.h"

namespace fairway::net {

struct LookupResult {
  std::vector<std::string> addresses;  // IP literals, each once, in the system's order
  std::string error;                   // where there are none
};

struct NameLookupOptions {
  // Leaves out IPv6 (IPv4) where this machine has no such address but of its loopback.
  bool only_configured = false;
  // Tests'. Runs on a thread of its own; it may outlive the NameLookup.
  std::function<LookupResult(const std::string&)> resolve = {};
};

// Owned by its loop's thread. Each look-up has a thread of its own, kMostThreads at one time, and ends when the
// system's resolver gives up; others wait, those behind whose name took long or had no address the last time.
class NameLookup {
 public:
  static constexpr size_t kMostThreads = 16;
  using Done = std::function<void(const LookupResult&)>;

  explicit NameLookup(Loop& loop, NameLookupOptions options = {});
  ~NameLookup();  // waits for nothing; no Done is called any more
  NameLookup(const NameLookup&) = delete;
  NameLookup& operator=(const NameLookup&) = delete;

  // `done` is called on the loop, never inside Find. A name that is being looked up is not looked up twice.
  void Find(const std::string& name, Done done);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fairway::net
