// Asks our Envoy's admin interface, over the socket in its private folder or over TCP.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "net/loop.h"

namespace fairway::local {

// Owned by its loop's thread. One question at a time, each on a connection of its own and within a second.
class EnvoyAdmin {
 public:
  // The body of a 200; not called when there was none, nor after our end.
  using Answered = std::function<void(std::string_view body)>;

  // `address`: what Envoy wrote to --admin-address-path, "/path/of/socket" or "127.0.0.1:9901".
  EnvoyAdmin(net::Loop& loop, std::string address);
  ~EnvoyAdmin();
  EnvoyAdmin(const EnvoyAdmin&) = delete;
  EnvoyAdmin& operator=(const EnvoyAdmin&) = delete;

  bool busy() const;
  // REQUIRES: not busy().
  void Get(std::string_view target, Answered answered);

 private:
  struct Exchange;
  net::Loop& loop_;
  const std::string address_;
  std::shared_ptr<Exchange> exchange_;
};

}  // namespace fairway::local
