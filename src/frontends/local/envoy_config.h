// The Envoy configuration for a set of manifests, as texts: pure functions, no file and no socket.
//
// Layout, all in one private directory: bootstrap.json names the rest, which Envoy watches, so that a changed
// manifest is taken over without a restart: lds.json (listeners), rds-PORT.json (routes of one listener),
// cds.json (one cluster per pool) and eds-POOL.json (a pool's endpoints). Envoy looks again at exactly the
// file that is renamed into place, so an endpoint that comes or goes touches nothing else.
//
// Checked against Envoy 1.40; what each setting is for stands where it is written.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/manifests.h"
#include "base/result.h"
#include "net/address.h"

namespace fairway::local {

// How Envoy shows the request's body to the picker (ext_proc processing mode). Only with kBuffered does a
// request with a body survive a picker that dies under it (FailOpen): Envoy still has the body. kFullDuplex
// has given it away by then, so FailOpen does not hold there; in return what uploads hold together is bounded
// by the picker's budget, where who holds most loses.
enum class BodyMode { kBuffered, kFullDuplex, kStreamed, kPartial, kNone };
// kHeaders: the picker sees the response's headers and, by the end of the exchange, that it ended; no work
// per token. kFull: every piece of the response passes through it (usage, time per token).
enum class ResponseMode { kHeaders, kFull };

// "buffered", "full-duplex", "streamed", "partial", "none". The error lists them.
base::Result<BodyMode> ParseBodyMode(std::string_view text);
// "headers", "full".
base::Result<ResponseMode> ParseResponseMode(std::string_view text);

// Where the picker is: inside Envoy, or a server that is asked over ext_proc.
enum class PickerPlace { kModule, kExtProc };

struct ModuleOptions {
  std::string file;    // the shared object, absolute
  std::string config;  // JSON object for its filter: what it picks from (docs/envoy-module.md)
};

struct EnvoyOptions {
  std::string directory;  // where the files will be, absolute
  PickerPlace place = PickerPlace::kExtProc;
  ModuleOptions module;  // kModule only
  // Unset: the Gateways' ports on 127.0.0.1, or 127.0.0.1:8080 where there is no Gateway. Set: all listeners
  // of all Gateways come together on this one address.
  std::optional<net::HostPort> listen;
  net::HostPort picker{"127.0.0.1", 9002};
  bool picker_tls = false;                   // not verified, as gateways do it
  BodyMode body_mode = BodyMode::kBuffered;  // kExtProc only
  ResponseMode response_mode = ResponseMode::kHeaders;
  uint64_t max_body_bytes = 64u << 20;         // kExtProc: larger request bodies: 413
  uint64_t module_max_body_bytes = 16u << 20;  // the same of kModule, where all of them are in Envoy's memory
  uint64_t max_heap_bytes = 1u << 30;          // of Envoy: near it, it resets what holds most and refuses
  int64_t message_timeout_ms =
      10'000;  // Envoy's wait for one answer of the picker; not applied in kFullDuplex
};

// "namespace/name" of a pool -> its endpoints; hosts must be IP literals.
using PoolEndpoints = std::map<std::string, std::vector<net::HostPort>, std::less<>>;

// Endpoints belong to every pool of their namespace whose selector matches them. `addresses`: host name -> IP
// literal; endpoints whose name is missing there are left out.
PoolEndpoints SelectEndpoints(const api::Manifests& manifests,
                              const std::map<std::string, std::string, std::less<>>& addresses = {});

struct EnvoyFile {
  std::string name;  // within EnvoyOptions::directory
  std::string text;
};

struct EnvoyConfig {
  std::vector<EnvoyFile> files;          // in the order of writing: what is named comes before what names it
  std::vector<net::HostPort> listeners;  // where Envoy will listen
  std::vector<std::string> warnings;     // parts of the manifests that are not served, and why
};

// The error says what is missing (no pool; several pools and no route). REQUIRES: the manifests had no
// errors.
base::Result<EnvoyConfig> MakeEnvoyConfig(const api::Manifests& manifests, const PoolEndpoints& endpoints,
                                          const EnvoyOptions& options);

}  // namespace fairway::local
