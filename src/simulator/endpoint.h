// One simulated model server: an Engine behind an HTTP port, in real time.
//
//   POST /v1/chat/completions, /v1/completions   plain, or SSE with each token leaving as the engine makes it
//                                                plain ones tell the load where asked, as vLLM does
//   POST /tokenize, /v1/completions/render, /v1/chat/completions/render   tokens of a prompt
//   GET  /v1/models /health /ping /version /metrics; as SGLang also /v1/loads
//   GET  /sim/faults, POST /sim/faults           see simulator/faults.h
//
// Each answer carries x-served-by: NAME, and its text begins "Served by NAME:".
//
// Owned by its loop: created, used and destroyed on the loop's thread. What was under way when it goes, or
// when it is told to refuse, is aborted and its connections are closed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/result.h"
#include "net/http_server.h"
#include "net/loop.h"
#include "simulator/engine.h"
#include "simulator/faults.h"

namespace fairway::simulator {

// Whose names are on the page, and what is told beside it.
enum class EngineType { kVllm, kSglang };

struct EndpointOptions {
  std::string name;  // "": host:port
  std::string host = "127.0.0.1";
  uint16_t port = 0;  // 0: a free one
  std::string model = "sim-model";
  std::vector<std::string> adapters;  // LoRA adapters it can serve; each is a model name
  EngineOptions engine;               // max_loras 0 with adapters: as many as there are adapters, at most 4
  EngineType type = EngineType::kVllm;
  bool legacy_metric_names = false;
  Faults faults;  // at the start
};

// The error names the option.
base::Result<void> Validate(const EndpointOptions& options);

class Endpoint {
 public:
  // Answers a POST /sim/faults that names another endpoint: `done` gets the body to answer, later, on this
  // loop.
  using Delegate = std::function<void(TargetedPatch, std::function<void(base::Result<std::string>)> done)>;

  // On the loop. `clock`, `log` and `loop` outlive the endpoint.
  static base::Result<std::unique_ptr<Endpoint>> Listen(EndpointOptions options, net::Loop& loop,
                                                        const base::Clock& clock, const base::Log& log,
                                                        Delegate delegate = {});
  virtual ~Endpoint() = default;

  virtual uint16_t port() const = 0;  // stays the same while it refuses
  virtual const std::string& name() const = 0;
  // Takes effect at once; a listener that cannot be opened again is an error and the endpoint keeps refusing.
  virtual base::Result<Faults> SetFaults(const FaultPatch& patch) = 0;
  virtual const Faults& faults() const = 0;
  virtual const Engine& engine() const = 0;
};

}  // namespace fairway::simulator
