// Local mode: an Envoy in front of the pools of some manifests, with the configuration kept up to date.
//
//   auto gateway = LocalGateway::Create(loop, options, manifests, endpoints, events, log);
//   if (!gateway) -> gateway.error().message
//   (*gateway)->Start();                         // on the loop; events.on_ready once requests are served
//   (*gateway)->Update(manifests, endpoints);    // on the loop, whenever they change
//   (*gateway)->Stop(done);                      // on the loop
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "api/manifests.h"
#include "base/log.h"
#include "base/result.h"
#include "frontends/local/envoy_config.h"
#include "frontends/local/envoy_process.h"
#include "net/loop.h"

namespace fairway::local {

// A port of `host` (an IP address) that nobody listens on now.
base::Result<uint16_t> FreePort(const std::string& host);

struct LocalGatewayOptions {
  EnvoyOptions envoy;        // `directory` is set by Create; a listen port of 0 becomes a free one
  std::string binary;        // of FindEnvoy
  unsigned concurrency = 0;  // Envoy's worker threads; 0: as many as cores, at most 4
};

// Owned by its loop's thread. The process's files live in a private folder (0700) below $XDG_RUNTIME_DIR or
// /tmp, removed by the destructor.
class LocalGateway {
 public:
  // Writes the configuration; checks that Envoy will be able to listen where it says. Any thread, no child
  // process yet.
  static base::Result<std::unique_ptr<LocalGateway>> Create(net::Loop& loop, LocalGatewayOptions options,
                                                            const api::Manifests& manifests,
                                                            const PoolEndpoints& endpoints,
                                                            EnvoyProcessEvents events, const base::Log& log);
  ~LocalGateway();  // on the loop, or the loop is stopped
  LocalGateway(const LocalGateway&) = delete;
  LocalGateway& operator=(const LocalGateway&) = delete;

  void Start();
  // Envoy takes over what changed and nothing else. After an error everything stays as it was.
  base::Result<void> Update(const api::Manifests& manifests, const PoolEndpoints& endpoints);
  void Stop(std::function<void()> done);

  const std::vector<net::HostPort>& listeners() const;
  const std::string& directory() const;
  const EnvoyProcess& process() const;

 private:
  struct Impl;
  explicit LocalGateway(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::local
