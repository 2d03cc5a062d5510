// The two ways to the decision that need no Envoy: the core by hand, and the ext_proc frontend as a gateway
// asks it. Each is used by one thread.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "tests/equality/exchange.h"

namespace fairway::equality {

struct ServerState {
  std::string address;
  uint32_t waiting = 0;
  uint32_t running = 0;
  float kv_usage = 0;
  uint32_t max_adapters = 0;
  std::vector<std::string> adapters;
  std::vector<std::string> waiting_adapters;
};

// The router over a fleet whose cells get their signals by hand, on a clock that stands. No code of a
// frontend is used but the one that makes up request ids: what a header means is written down here once more.
class Core {
 public:
  // `seed` as `fairway epp --seed` takes it. `config`: an EndpointPickerConfig file; "": none. Ends the
  // program on files that are wrong.
  Core(const std::string& manifests, uint64_t seed, double lora_exploration, const std::string& config);
  ~Core();
  void SetState(const std::vector<ServerState>& servers);
  Outcome Ask(const Request& request);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// A gateway with `request_body_mode: BUFFERED`: sends headers and body, does to the request what the replies
// say, and tells of a response that ended, so that the reservation is given back before the next request.
class ExtProc {
 public:
  explicit ExtProc(uint16_t port);
  ~ExtProc();
  // Ends the program when the picker says what a gateway could not do.
  Outcome Ask(const Request& request);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fairway::equality
