// Many simulated model servers in one process: `fairway sim`, the demo and the tests.
//
//   auto sim = Simulator::Start({.endpoints = {{.port = 0, .model = "llama"}, {.port = 0, .model =
//   "llama"}}}, clock, log);
//   (*sim)->port(0);
//
// Endpoints are dealt out to `threads` loops, each with its own engine. Thread-safe where it says so.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "simulator/endpoint.h"

namespace fairway::simulator {

struct SimulatorOptions {
  std::vector<EndpointOptions> endpoints;
  uint32_t threads = 1;
};

class Simulator {
 public:
  // All endpoints listen when it returns. The error names the endpoint that could not be started; then none
  // is. `clock` and `log` outlive the simulator.
  static base::Result<std::unique_ptr<Simulator>> Start(SimulatorOptions options, const base::Clock& clock,
                                                        const base::Log& log);
  // Closes everything. REQUIRES: not on one of its loops.
  ~Simulator();
  Simulator(const Simulator&) = delete;
  Simulator& operator=(const Simulator&) = delete;

  // Thread-safe: fixed since Start.
  size_t size() const;
  uint16_t port(size_t endpoint) const;
  const std::string& name(size_t endpoint) const;
  std::string address(size_t endpoint) const;  // "127.0.0.1:8101", "[::1]:8101"

  // Thread-safe, but not from the simulator's own loops: they wait until it is done there.
  base::Result<Faults> SetFaults(size_t endpoint, const FaultPatch& patch);
  void Inspect(size_t endpoint, const std::function<void(const Endpoint&)>& look);

 private:
  struct Impl;
  explicit Simulator(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Which of `endpoints` a target of TargetedPatch means: a name, a port or host:port. The error lists what
// there is.
base::Result<size_t> FindEndpoint(const std::vector<EndpointOptions>& endpoints, std::string_view target);

}  // namespace fairway::simulator
