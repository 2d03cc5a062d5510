// Host names of the endpoints file -> IP addresses, off the request path: names are looked up when the file
// changes and again every interval (net/name_lookup.h); an address that was found stays until another is found.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "net/loop.h"

namespace fairway::sources {

// Owned by its loop's thread.
class NameResolver {
 public:
  using Addresses = std::map<std::string, std::string, std::less<>>;  // name -> IP literal
  using Changed = std::function<void(const Addresses&)>;

  // `changed` runs on the loop whenever an address is new or different.
  NameResolver(net::Loop& loop, const base::Log& log, Changed changed,
               base::Nanos interval = 30 * base::kSecond);
  ~NameResolver();
  NameResolver(const NameResolver&) = delete;
  NameResolver& operator=(const NameResolver&) = delete;

  // The names that matter from now on. Known ones keep their address; new ones are looked up at once. A name
  // with IPv4 and IPv6 addresses gives the first that the system's resolver lists.
  void Watch(std::vector<std::string> names);
  const Addresses& addresses() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace fairway::sources
